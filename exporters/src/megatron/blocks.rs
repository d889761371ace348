//! Megatron's flags of blocks: experts, windows of attention, latent attention, and which blocks have them.

use crate::document::{Document, quotient};
use crate::pattern;
use crate::row::Draft;
use autodist_spec::{Addition, BlockSpec, Experts, InputError, Latent, ModelSpec};

/// Every block's entry in a list: 1 for those with the property.
fn marks(blocks: &[BlockSpec], has: impl Fn(&BlockSpec) -> bool) -> Vec<u32> {
    blocks.iter().map(|block| u32::from(has(block))).collect()
}

/// The only value among those that are present, or a refusal of the model.
fn one<T: PartialEq>(
    values: impl Iterator<Item = T>,
    model: &str,
    what: &str,
    draft: &mut Draft<'_>,
) -> Option<T> {
    let mut values = values;
    let first = values.next()?;
    if values.any(|other| other != first) {
        let problem = format!("has blocks with different {what}, which Megatron does not describe");
        let error = InputError::new("model.blocks", model, problem);
        draft.refusals.push(error.hint("train it with a trainer that takes the whole model by its name"));
    }
    Some(first)
}

/// Sets the flags of a model's blocks.
pub(super) fn write(model: &ModelSpec, draft: &mut Draft<'_>) {
    let blocks: Vec<BlockSpec> = (1..=model.layers as usize).map(|layer| model.block(layer)).collect();
    let name = &model.name;
    let attention = |block: &BlockSpec| (block.heads, block.kv_heads, block.head_dim);
    one(blocks.iter().map(attention), name, "heads", draft);
    let dense = blocks.iter().filter(|block| block.experts.is_none()).map(|block| block.ffn);
    let ffn = one(dense, name, "widths of the MLP", draft);
    draft.set("ffn-hidden-size", ffn.unwrap_or(model.ffn));
    let routed = blocks.iter().filter_map(|block| Some((block.experts?, block.ffn)));
    if let Some((experts, width)) = one(routed, name, "experts", draft) {
        draft.set("num-experts", experts.count);
        draft.set("moe-router-topk", experts.active);
        draft.set("moe-ffn-hidden-size", width);
        if experts.shared_ffn > 0 {
            draft.set("moe-shared-expert-intermediate-size", experts.shared_ffn);
        }
        if ffn.is_some() {
            let list = marks(&blocks, |block| block.experts.is_some());
            draft.set("moe-layer-freq", pattern::expression(&list));
        }
        // As the plan is priced.
        draft.set("moe-grouped-gemm", true);
        draft.set("moe-token-dispatcher-type", "alltoall");
    }
    if let Some(window) = one(blocks.iter().filter_map(|block| block.window), name, "windows", draft) {
        // Tokens before and after a query's own.
        draft.set("window-size", format!("{},0", window - 1));
        let list = marks(&blocks, |block| block.window.is_some());
        if list.contains(&0) {
            draft.set("window-attn-skip-freq", pattern::expression(&list));
        }
    }
    for addition in &model.additions {
        match addition {
            Addition::QkvBias => draft.set("add-qkv-bias", true),
            Addition::HeadNorm => draft.set("qk-layernorm", true),
            Addition::AttentionSink => draft.set("softmax-type", "learnable"),
            Addition::SharedGate => draft.set("moe-shared-expert-gate", true),
            // Refused for all files that describe the model.
            Addition::ScaledPositions => {}
            other => {
                let error = InputError::new(
                    "model.additions",
                    other.name(),
                    "is a part that Megatron has no flag for",
                );
                draft
                    .refusals
                    .push(error.hint("train it with a trainer that takes the whole model by its name"));
            }
        }
    }
    if let Some(latent) = model.latent {
        let Latent { query_rank, kv_rank, rope_dim, value_dim } = latent;
        draft.set("multi-latent-attention", true);
        if let Some(rank) = query_rank {
            draft.set("q-lora-rank", rank);
        }
        draft.set("kv-lora-rank", kv_rank);
        draft.set("qk-head-dim", blocks[0].head_dim.saturating_sub(rope_dim));
        draft.set("qk-pos-emb-head-dim", rope_dim);
        draft.set("v-head-dim", value_dim);
        // The norms of the low-rank projections.
        draft.set("qk-layernorm", true);
        draft.set("rope-type", "rope");
    }
}

/// The model with the blocks of a file; `usual` has the shape of its dense blocks.
///
/// # Errors
/// A list is not one of the model's blocks, or a flag has another value.
pub(super) fn read(document: &Document, usual: ModelSpec) -> Result<ModelSpec, InputError> {
    let usual = latent(document, usual)?;
    let layers = usual.layers;
    let experts = experts(document)?;
    let width = document.size("moe-ffn-hidden-size")?.unwrap_or(usual.ffn);
    // An integer N: the first of every N blocks has experts.
    let has_experts = flags(document, "moe-layer-freq", layers, |index, n| index % n == 0)?;
    let window = window(document)?;
    // An integer N: the last of every N blocks has full attention.
    let has_window = flags(document, "window-attn-skip-freq", layers, |index, n| (index + 1) % n != 0)?;
    let one = usual.block(1);
    let block = |index: usize| {
        let experts = experts.filter(|_| has_experts.as_ref().is_none_or(|list| list[index]));
        let window = window.filter(|_| has_window.as_ref().is_none_or(|list| list[index]));
        BlockSpec { experts, window, ffn: if experts.is_some() { width } else { one.ffn }, ..one }
    };
    let blocks: Vec<BlockSpec> = (0..layers as usize).map(block).collect();
    let additions = additions(document, usual.latent.is_some())?;
    Ok(ModelSpec { additions, ..usual.with_blocks(&blocks) })
}

fn additions(document: &Document, latent: bool) -> Result<Vec<Addition>, InputError> {
    let sinks = [("vanilla", false), ("learnable", true)];
    let found = [
        (Addition::QkvBias, document.flag("add-qkv-bias")?),
        // In latent attention it is the norms of the low-rank projections, which are always there.
        (Addition::HeadNorm, document.flag("qk-layernorm")?.filter(|_| !latent)),
        (Addition::AttentionSink, document.choice("softmax-type", &sinks)?),
        (Addition::SharedGate, document.flag("moe-shared-expert-gate")?),
    ];
    Ok(found.into_iter().filter(|(_, has)| *has == Some(true)).map(|(addition, _)| addition).collect())
}

/// Which blocks have a property, as a list or by the integer's meaning.
fn flags(
    document: &Document,
    key: &str,
    layers: u32,
    of_integer: impl Fn(u32, u32) -> bool,
) -> Result<Option<Vec<bool>>, InputError> {
    let Some(text) = document.text(key) else { return Ok(None) };
    if !text.contains('[') {
        let every = document.size(key)?.unwrap_or(1);
        return Ok(Some((0..layers).map(|index| of_integer(index, every)).collect()));
    }
    let list = pattern::list(key, &text)?;
    if list.len() != layers as usize || list.iter().any(|mark| *mark > 1) {
        let problem = format!("expected a list of {layers} zeros and ones, one for each block");
        return Err(InputError::new(key, text, problem).hint("let it have as many entries as num-layers"));
    }
    Ok(Some(list.into_iter().map(|mark| mark == 1).collect()))
}

/// The experts of a file; `None` for a dense model. Megatron's router has two active ones by default.
fn experts(document: &Document) -> Result<Option<Experts>, InputError> {
    let Some(count) = document.size("num-experts")? else { return Ok(None) };
    let tensor = document.size("tensor-model-parallel-size")?.unwrap_or(1);
    let key = "expert-tensor-parallel-size";
    if let Some(split) = document.size(key)?.filter(|split| *split != tensor) {
        let problem =
            format!("must be {tensor}, the tensor-parallel degree: other splits of experts have no price");
        return Err(InputError::new(key, split, problem).hint("remove it from the file"));
    }
    let active = document.size("moe-router-topk")?.unwrap_or(2);
    let shared_ffn = document.size("moe-shared-expert-intermediate-size")?.unwrap_or(0);
    Ok((count > 1).then_some(Experts { count, active, shared_ffn }))
}

/// Tokens of a window: those before a query, and its own.
fn window(document: &Document) -> Result<Option<u32>, InputError> {
    let Some(text) = document.text("window-size") else { return Ok(None) };
    let parts: Vec<_> = text.trim_matches(['(', ')', '[', ']']).split(',').map(str::trim).collect();
    let before = |text: &str| text.parse::<u32>().ok().filter(|before| *before < 1 << 26);
    match parts.as_slice() {
        ["-1", "0" | "-1"] => Ok(None),
        [left, "0"] if before(left).is_some() => Ok(before(left).map(|before| before + 1)),
        _ => {
            Err(InputError::new("window-size", text, "expected the tokens before a query and those after it")
                .hint("give it as e.g. 4095,0: causal attention has none after it"))
        }
    }
}

fn latent(document: &Document, usual: ModelSpec) -> Result<ModelSpec, InputError> {
    if !document.flag("multi-latent-attention")?.unwrap_or(false) {
        return Ok(usual);
    }
    let size = |key: &str, default: u32| Ok::<u32, InputError>(document.size(key)?.unwrap_or(default));
    let rope_dim = size("qk-pos-emb-head-dim", 64)?;
    let latent = Latent {
        query_rank: document.size("q-lora-rank")?,
        kv_rank: size("kv-lora-rank", 32)?,
        rope_dim,
        value_dim: size("v-head-dim", 128)?,
    };
    document.choice("rope-type", &[("rope", ()), ("yarn", ())])?;
    let head_dim = size("qk-head-dim", 128)? + rope_dim;
    Ok(ModelSpec { head_dim, kv_heads: usual.heads, latent: Some(latent), ..usual })
}

/// Width of a head without latent attention.
pub(super) fn channels(document: &Document, hidden: u32, heads: u32) -> Result<u32, InputError> {
    match document.size("kv-channels")? {
        Some(channels) => Ok(channels),
        None if document.flag("multi-latent-attention")?.unwrap_or(false) => Ok(1),
        None => quotient("hidden-size", hidden.into(), heads.into(), "num-attention-heads"),
    }
}
