//! The small parts of a model by the keys of its family: biases, norms, positions, activations.

use super::config::Config;
use super::families::{Biases, Family, Table};
use crate::block::Addition;
use crate::error::InputError;
use serde_json::Value;

/// Heads of keys and values.
pub(super) fn kv_heads(config: &Config<'_>, family: &Family, heads: u32) -> Result<u32, InputError> {
    let given = config.optional("num_key_value_heads")?;
    Ok(match family.name {
        "falcon" | "RefinedWeb" | "RefinedWebModel" if !config.flag("new_decoder_architecture", false)? => {
            if config.flag("multi_query", true)? {
                1
            } else {
                heads
            }
        }
        "gpt_bigcode" => {
            if config.flag("multi_query", true)? {
                1
            } else {
                heads
            }
        }
        "mpt" => inside(config, "kv_n_heads").and_then(Value::as_u64).map_or(heads, |count| count as u32),
        _ => given.unwrap_or(heads),
    })
}

/// A key of MPT's `attn_config`.
fn inside<'a>(config: &'a Config<'_>, key: &str) -> Option<&'a Value> {
    config.get("attn_config").and_then(|of| of.get(key)).filter(|value| !value.is_null())
}

/// How positions are told apart.
pub(super) fn table(config: &Config<'_>, family: &Family) -> Result<Table, InputError> {
    Ok(match family.name {
        "falcon" | "RefinedWeb" | "RefinedWebModel" if config.flag("alibi", false)? => Table::Alibi,
        "mpt" if inside(config, "alibi").and_then(Value::as_bool) == Some(false) => {
            if inside(config, "rope").and_then(Value::as_bool) == Some(true) {
                Table::Rotary
            } else {
                Table::Learned
            }
        }
        _ => family.table,
    })
}

/// Whether all linear layers have a bias, and the additions of every block.
pub(super) fn of(config: &Config<'_>, family: &Family) -> Result<(bool, Vec<Addition>), InputError> {
    use Addition::{
        HeadBias, MlpBias, MultiTokenPrediction, NormWithoutBias, OutputBias, QkvBias, ScaledValues,
        SharedNorm,
    };
    let mut additions = family.additions.to_vec();
    let bias = biases(config, family, &mut additions)?;
    if !bias && config.flag("mlp_bias", false)? {
        additions.push(MlpBias);
    }
    if !bias && config.flag("attention_out_bias", false)? {
        additions.push(OutputBias);
    }
    if config.flag("lm_head_bias", false)? {
        additions.push(HeadBias);
    }
    if let Some(norm) = family.qk_norm
        && config.flag("use_qk_norm", false)?
    {
        additions.push(norm);
    }
    match family.name {
        "falcon" | "RefinedWeb" | "RefinedWebModel" if config.flag("new_decoder_architecture", false)? => {
            let norms = config.optional("num_ln_in_parallel_attn")?.unwrap_or(2);
            additions.extend(Family::side_by_side(norms == 1));
        }
        "falcon" | "RefinedWeb" | "RefinedWebModel" if config.flag("parallel_attn", true)? => {
            additions.extend(Family::side_by_side(true));
        }
        "gpt_neox" if config.flag("use_parallel_residual", true)? => {
            additions.extend(Family::side_by_side(false))
        }
        "stablelm" if config.flag("use_parallel_residual", false)? => {
            additions.extend(Family::side_by_side(true))
        }
        "mpt" if config.flag("no_bias", true)? => additions.push(NormWithoutBias),
        "opt" => opt(config)?,
        // Its norms of queries and keys have no parameters.
        "llama4_text" => drop(config.flag("use_qk_norm", true)?),
        // `use_qk_norm` is true in all released models.
        "minimax_m2" | "hunyuan_v1_dense" => drop(config.flag("use_qk_norm", true)?),
        _ => {}
    }
    for field in ["add_cross_attention", "scale_attn_by_inverse_layer_idx", "is_encoder_decoder"] {
        config.absent(field, &[], "set it to false: only the decoder itself is supported")?;
    }
    activation(config, family, &mut additions)?;
    // Constants by which values are multiplied, or at which they are cut off.
    for field in [
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
        "logits_scaling",
        "logit_scale",
        "scale_emb",
        "scale_depth",
        "clip_qkv",
    ] {
        let value =
            if field == "clip_qkv" { config.get(field).or(inside(config, field)) } else { config.get(field) };
        let neutral =
            |value: &Value| value.is_null() || value.as_f64() == Some(1.0) || value == &Value::Bool(false);
        if value.is_some_and(|value| !neutral(value)) && !additions.contains(&ScaledValues) {
            additions.push(ScaledValues);
        }
    }
    if config.counted("num_nextn_predict_layers")?.unwrap_or(0) > 0 {
        additions.push(MultiTokenPrediction);
    }
    debug_assert!(!bias || !additions.iter().any(|one| matches!(one, QkvBias | OutputBias | MlpBias)));
    debug_assert!(!additions.contains(&SharedNorm) || additions.contains(&Addition::ParallelMlp));
    Ok((bias, additions))
}

/// Whether all linear layers have a bias; those of some are added to the additions.
fn biases(config: &Config<'_>, family: &Family, additions: &mut Vec<Addition>) -> Result<bool, InputError> {
    use Addition::{OutputBias, QkvBias};
    let own = |has: bool| -> Result<(), InputError> {
        for field in ["attention_bias", "qkv_bias"] {
            if config.flag(field, has)? != has {
                let (problem, hint) = ("the biases of this family cannot be left out", "set it to true");
                return Err(config.error(field, problem, hint));
            }
        }
        Ok(())
    };
    match family.biases {
        Biases::Attention(key) if config.flag(key, false)? => additions.extend([QkvBias, OutputBias]),
        Biases::Qkv(key) if config.flag(key, false)? => additions.push(QkvBias),
        Biases::Attention(_) | Biases::Qkv(_) => {}
        Biases::Whole(key) => return config.flag(key, false),
        Biases::Unless(key) => return Ok(!config.flag(key, false)?),
        Biases::Always => {
            own(true)?;
            return Ok(true);
        }
        Biases::Own => own(family.additions.contains(&QkvBias))?,
    }
    Ok(false)
}

/// Refuses what the released sizes of OPT but one do not have.
fn opt(config: &Config<'_>) -> Result<(), InputError> {
    let hint = "OPT-350m is the only size that has it; it is not supported";
    if let Some(width) = config.optional("word_embed_proj_dim")?
        && Some(width) != config.optional("hidden_size")?
    {
        return Err(config.error("word_embed_proj_dim", "is not the hidden size", hint));
    }
    if !config.flag("do_layer_norm_before", true)? {
        return Err(config.error("do_layer_norm_before", "puts the norms after attention and the MLP", hint));
    }
    let problem = "leaves out the last norm";
    match config.flag("_remove_final_layer_norm", false)? {
        true => Err(config.error("_remove_final_layer_norm", problem, "set it to false")),
        false => Ok(()),
    }
}

fn activation(config: &Config<'_>, family: &Family, additions: &mut Vec<Addition>) -> Result<(), InputError> {
    let usual: &[&str] =
        if family.gated { &["silu", "swish"] } else { &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"] };
    let gelu = ["gelu_pytorch_tanh", "gelu_new", "gelu"];
    // Gemma: the older key says `gelu` and means its tanh form.
    let other = ["gelu", "relu", "relu2", "quick_gelu", "gelu_10"];
    match config.word("hidden_act")? {
        None => {}
        Some(word) if usual.contains(&word) => {}
        Some(word) if family.gated && gelu.contains(&word) => additions.push(Addition::GeluGate),
        Some(word) if other.contains(&word) => additions.push(Addition::OtherActivation),
        Some(_) => {
            let known: Vec<&str> = usual.iter().chain(&other).copied().collect();
            let hint = format!("supported: {}", known.join(", "));
            return Err(config.error("hidden_act", "is not a supported activation", &hint));
        }
    }
    Ok(())
}

/// The base of rotary positions, and how they differ from plain ones.
pub(super) fn rotary(
    config: &Config<'_>,
    family: &Family,
    head_dim: u32,
) -> Result<(f64, Vec<Addition>), InputError> {
    // Newer and older configurations spell it differently.
    let rope = ["rope_parameters", "rope_scaling"].map(|field| (field, config.get(field)));
    let rope = rope.map(|(field, value)| (field, value.filter(|value| !value.is_null())));
    let hint = "copy the value from the model's config.json on Hugging Face";
    for (field, parameters) in rope {
        if parameters.is_some_and(|parameters| !parameters.is_object()) {
            return Err(config.error(field, "must be an object", hint));
        }
    }
    // Newest configurations have one object for each kind of attention; with full attention first.
    let objects: Vec<(&str, &Value)> = rope
        .iter()
        .filter_map(|(field, value)| Some((*field, (*value)?)))
        .flat_map(|(field, value)| {
            let kinds = ["full_attention", "sliding_attention"].map(|kind| value.get(kind));
            kinds
                .into_iter()
                .flatten()
                .filter(|one| one.is_object())
                .chain([value])
                .map(move |one| (field, one))
        })
        .collect();
    let number = |key: &str| -> Result<Option<f64>, InputError> {
        match objects.iter().find_map(|(field, one)| Some((*field, one.get(key)?))) {
            Some((field, value)) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| config.error(field, &format!("{key} must be a number"), hint)),
            None => Ok(None),
        }
    };
    let theta = match number("rope_theta")? {
        Some(theta) => theta,
        None => config.real("rope_theta", 10_000.0)?,
    };
    let factor = config.real("partial_rotary_factor", 1.0)?;
    let factor = number("partial_rotary_factor")?.unwrap_or(factor);
    let part = config.optional("rotary_dim")?.is_some_and(|part| part < head_dim);
    let mut additions = Vec::new();
    if !family.latent && (factor != 1.0 || part) || some_blocks_have_none(config, family)? {
        additions.push(Addition::PartialRotary);
    }
    if objects.iter().any(|(_, one)| is_scaled(one)) {
        additions.push(Addition::ScaledPositions);
    }
    Ok((theta, additions))
}

/// Whether some blocks have no positions (SmolLM3).
fn some_blocks_have_none(config: &Config<'_>, family: &Family) -> Result<bool, InputError> {
    if family.name != "smollm3" {
        return Ok(false);
    }
    Ok(match config.list("no_rope_layers")? {
        Some(list) => list.contains(&0),
        None => config.optional("no_rope_layer_interval")?.is_some(),
    })
}

/// Whether `rope_parameters` or `rope_scaling` change the angles of rotary positions.
fn is_scaled(parameters: &Value) -> bool {
    match parameters.get("rope_type").or_else(|| parameters.get("type")) {
        Some(kind) => kind != "default" && kind != "mrope",
        // Without a type, a factor is the older spelling of linear scaling.
        None => parameters.get("factor").is_some(),
    }
}
