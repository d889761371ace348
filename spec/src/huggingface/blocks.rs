//! The blocks of a `config.json`: which have experts, and which attend within a window.

use super::config::Config;
use super::families::{ExpertKeys, Family, Windows};
use crate::block::{BlockSpec, Experts, Latent};
use crate::error::InputError;

/// The blocks of the model, where `usual` is the dense one with full attention.
pub(super) fn of(
    config: &Config<'_>,
    family: &Family,
    layers: u32,
    usual: BlockSpec,
) -> Result<Vec<BlockSpec>, InputError> {
    let routed = experts(config, family)?;
    let sparse = match routed {
        Some(_) => sparse(config, family, layers)?,
        None => vec![false; layers as usize],
    };
    let windows = windows(config, family, layers)?;
    let block = |(sparse, window): (bool, Option<u32>)| match routed.filter(|_| sparse) {
        Some((experts, ffn)) => BlockSpec { experts: Some(experts), ffn, window, ..usual },
        None => BlockSpec { window, ..usual },
    };
    Ok(sparse.into_iter().zip(windows).map(block).collect())
}

/// The experts of a block that has some, and the width of one.
fn experts(config: &Config<'_>, family: &Family) -> Result<Option<(Experts, u32)>, InputError> {
    let keys = family.experts;
    let hint = "the model_type of models with experts is e.g. mixtral, qwen3_moe or deepseek_v3";
    let of = |shared_ffn: u32| -> Result<_, InputError> {
        let (count, active) = (config.required("num_experts")?, config.required("num_experts_per_tok")?);
        Ok(Some((Experts { count, active, shared_ffn }, config.required(keys.width())?)))
    };
    match keys {
        ExpertKeys::None => {
            config.absent("num_experts", &[0.0, 1.0], hint)?;
            // Written by some configurations of dense models.
            let _ = config.get("num_experts_per_tok");
            Ok(None)
        }
        ExpertKeys::Every => of(0),
        ExpertKeys::Qwen => of(config.counted(keys.shared())?.unwrap_or(0)),
        // As wide as one expert.
        ExpertKeys::Llama4 => of(config.required(keys.shared())?),
        ExpertKeys::Deepseek | ExpertKeys::Ernie => {
            if config.counted("num_experts")?.unwrap_or(0) == 0 {
                return Ok(None);
            }
            let shared = config.counted("n_shared_experts")?.unwrap_or(0);
            of(shared.saturating_mul(config.required(keys.width())?))
        }
    }
}

/// Which blocks have experts.
fn sparse(config: &Config<'_>, family: &Family, layers: u32) -> Result<Vec<bool>, InputError> {
    let every = |step: u32| (0..layers).map(|index| (index + 1) % step == 0).collect();
    match family.experts {
        ExpertKeys::None | ExpertKeys::Every => Ok(vec![true; layers as usize]),
        ExpertKeys::Qwen => {
            let mut list: Vec<bool> = every(config.optional("decoder_sparse_step")?.unwrap_or(1));
            indices(config, "mlp_only_layers", &mut list, false)?;
            Ok(list)
        }
        ExpertKeys::Llama4 => {
            let mut list = vec![false; layers as usize];
            if indices(config, "moe_layers", &mut list, true)? {
                return Ok(list);
            }
            Ok(every(config.optional("interleave_moe_layer_step")?.unwrap_or(1)))
        }
        ExpertKeys::Deepseek => {
            let first = config.counted("first_k_dense_replace")?.unwrap_or(0);
            if first > layers {
                let problem = format!("must be at most {layers}, the number of blocks");
                return Err(InputError::new("first_k_dense_replace", first, problem)
                    .hint("give the number of the first blocks that have no experts"));
            }
            if let Some(kinds) = config.words("mlp_layer_types")? {
                return dense_or_sparse(config, &kinds, layers);
            }
            let step = config.optional("moe_layer_freq")?.unwrap_or(1);
            Ok((0..layers).map(|index| index >= first && index % step == 0).collect())
        }
        ExpertKeys::Ernie => {
            let first = config.counted("moe_layer_start_index")?.unwrap_or(0);
            // It counts from the last block if it is negative.
            let given = config.get("moe_layer_end_index").and_then(serde_json::Value::as_i64);
            let last = given.filter(|last| *last >= 0).unwrap_or(i64::from(layers) - 1);
            let step = config.optional("moe_layer_interval")?.unwrap_or(1);
            let has = |index: u32| index >= first && i64::from(index) <= last && (index + 1) % step == 0;
            Ok((0..layers).map(has).collect())
        }
    }
}

fn dense_or_sparse(config: &Config<'_>, kinds: &[&str], layers: u32) -> Result<Vec<bool>, InputError> {
    let field = "mlp_layer_types";
    if kinds.len() != layers as usize {
        let problem = format!("has {} entries for {layers} blocks", kinds.len());
        return Err(config.error(field, &problem, "give one entry for each block"));
    }
    let of = |kind: &&str| match *kind {
        "dense" => Ok(false),
        "sparse" => Ok(true),
        _ => Err(config.error(field, &format!("has blocks of kind `{kind}`"), "supported: dense, sparse")),
    };
    kinds.iter().map(of).collect()
}

/// Sets the entries that a list names; whether there is a list.
fn indices(config: &Config<'_>, field: &str, list: &mut [bool], value: bool) -> Result<bool, InputError> {
    let Some(named) = config.list(field)? else { return Ok(false) };
    for index in named {
        let entry = usize::try_from(index).ok().and_then(|index| list.get_mut(index));
        *entry.ok_or_else(|| {
            config.error(
                field,
                &format!("has the block {index}, which the model does not have"),
                "count from 0",
            )
        })? = value;
    }
    Ok(true)
}

/// The window of each block.
fn windows(config: &Config<'_>, family: &Family, layers: u32) -> Result<Vec<Option<u32>>, InputError> {
    // A window in blocks from `first` on, but not in the last of every so many.
    let never = layers + 1;
    let (window, first, every) = match family.windows {
        Windows::Chunks => return Ok(vec![None; layers as usize]),
        Windows::All => (config.counted("sliding_window")?.filter(|width| *width > 0), 0, never),
        Windows::Every(usual) => {
            let pattern = config.optional("sliding_window_pattern")?.unwrap_or(usual);
            (config.optional("sliding_window")?, 0, pattern)
        }
        Windows::IfUsed if config.flag("use_sliding_window", false)? => {
            let first = config.counted("max_window_layers")?.unwrap_or(layers);
            (Some(config.required("sliding_window")?), first, never)
        }
        Windows::IfUsed => (None, 0, never),
    };
    if let Some(kinds) = config.words("layer_types")? {
        return listed(config, &kinds, layers, window);
    }
    let of = |index| window.filter(|_| index >= first && (index + 1) % every != 0);
    Ok((0..layers).map(of).collect())
}

fn listed(
    config: &Config<'_>,
    kinds: &[&str],
    layers: u32,
    window: Option<u32>,
) -> Result<Vec<Option<u32>>, InputError> {
    let field = "layer_types";
    if kinds.len() != layers as usize {
        let problem = format!("has {} entries for {layers} blocks", kinds.len());
        return Err(config.error(field, &problem, "give one entry for each block"));
    }
    let of = |kind: &&str| match (*kind, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(config.error(
            field,
            "has blocks with a window, but sliding_window is not given",
            "give sliding_window, the number of tokens of a window",
        )),
        _ => Err(config.error(
            field,
            &format!("has blocks of kind `{kind}`, which are not supported"),
            "supported: full_attention, sliding_attention",
        )),
    };
    kinds.iter().map(of).collect()
}

/// Multi-head latent attention, and the width of a head of queries.
pub(super) fn latent(config: &Config<'_>) -> Result<(Latent, u32), InputError> {
    let rope_dim = config.required("qk_rope_head_dim")?;
    let latent = Latent {
        query_rank: config.optional("q_lora_rank")?,
        kv_rank: config.required("kv_lora_rank")?,
        rope_dim,
        value_dim: config.required("v_head_dim")?,
    };
    Ok((latent, config.required("qk_nope_head_dim")?.saturating_add(rope_dim)))
}
