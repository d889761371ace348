//! Reads a Hugging Face `config.json` of the families of `families`.

mod blocks;
mod config;
mod families;
mod keys;
mod parts;
#[cfg(test)]
mod tests;

use crate::block::{Addition, BlockSpec};
use crate::error::{InputError, in_range};
use crate::model::{Activation, MOST_BLOCKS, ModelSpec, Positions};
use crate::parse::{Check, json_value};
use config::Config;
use families::{FAMILIES, Family, Table, Windows};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

fn supported() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    format!(
        "supported values of model_type: {}. Any other model can be described in a model file (docs/files.md, “Model”)",
        names.join(", ")
    )
}

fn known(family: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|known| known.name == family)
}

/// Reads a `config.json`; `name` names the model, `file` the file in errors.
///
/// # Errors
/// Text that is not a JSON object, an unsupported family, missing fields, values out of range.
pub fn model_from_config(file: &str, name: &str, bytes: &[u8]) -> Result<ModelSpec, InputError> {
    let root = json_value(file, bytes, "model configuration")?;
    let Some(object) = root.as_object() else {
        return Err(InputError::new("", "", "expected one JSON object").hint(supported()).in_file(file));
    };
    let Some(text) = root.get("text_config").filter(|value| !value.is_null()) else {
        return read(file, object, name);
    };
    // A model of text and images: its text model.
    let inner = text.get("model_type").and_then(Value::as_str);
    let outer = root.get("model_type").and_then(Value::as_str);
    match (text.as_object(), inner, outer) {
        (Some(text), Some(_), Some(outer))
            if known(outer).is_none_or(|outer| outer.name.ends_with("_vl")) =>
        {
            let mut text = text.clone();
            // It is a key of the whole model in some versions.
            if let Some(tied) = object.get("tie_word_embeddings") {
                text.entry("tie_word_embeddings").or_insert_with(|| tied.clone());
            }
            read(file, &text, name).map_err(|error| error.under("text_config"))
        }
        _ => {
            let problem = "is a part of a model of more than text, which is not supported";
            let error = InputError::new("text_config", text.to_string(), problem);
            Err(error.hint("give its content as the file").in_file(file))
        }
    }
}

fn read(file: &str, object: &Map<String, Value>, name: &str) -> Result<ModelSpec, InputError> {
    let wrong = |value: String, problem: &str| {
        Err(InputError::new("model_type", value, problem).hint(supported()).in_file(file))
    };
    let family = match object.get("model_type") {
        None | Some(Value::Null) => return wrong(String::new(), "is missing"),
        Some(Value::String(word)) => match known(word) {
            Some(family) => family,
            None => return wrong(format!("\"{word}\""), "is not a supported model family"),
        },
        Some(other) => return wrong(other.to_string(), "must be a string"),
    };
    let like = if family.like.is_empty() { family.name } else { family.like };
    let (all, written) = keys::usual(object, like);
    let config = Config { file, root: &all, written, asked: RefCell::new(BTreeSet::new()) };
    let spec = model(&config, family, name)?;
    keys::check_rest(&all, &config.asked.borrow()).map_err(|error| error.in_file(file))?;
    spec.check().map_err(|error| in_own_words(error, &config, family, &spec).in_file(file))?;
    Ok(spec)
}

/// Replaces the field's name by its name in the configuration.
fn in_own_words(mut error: InputError, config: &Config<'_>, family: &Family, spec: &ModelSpec) -> InputError {
    // A block of a list has the keys of the model.
    let (run, ours) = error.field.rsplit_once("].").unwrap_or(("", &error.field));
    let run = run.strip_prefix("blocks[").and_then(|index| spec.blocks.get(index.parse::<usize>().ok()?));
    let sparse = spec.experts.or(run.and_then(|run| run.experts)).is_some();
    let keys = family.experts;
    let names = [
        ("layers", "num_hidden_layers"),
        ("hidden", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("kv_heads", "num_key_value_heads"),
        ("ffn", if sparse { keys.width() } else { keys.dense() }),
        ("vocab", "vocab_size"),
        ("max_seq_len", "max_position_embeddings"),
        ("norm_epsilon", "rms_norm_eps"),
        ("positions.theta", "rope_theta"),
        ("window", "sliding_window"),
        ("heads x head_dim", "num_attention_heads x head_dim"),
        ("latent.query_rank", "q_lora_rank"),
        ("latent.kv_rank", "kv_lora_rank"),
        ("latent.rope_dim", "qk_rope_head_dim"),
        ("latent.value_dim", "v_head_dim"),
        ("experts.count", "num_experts"),
        ("experts.active", "num_experts_per_tok"),
        ("experts.shared_ffn", keys.shared()),
    ];
    if let Some((_, usual)) = names.iter().find(|(name, _)| *name == ours) {
        error.field = config.spelt(usual).to_owned();
    }
    error
}

fn model(config: &Config<'_>, family: &Family, name: &str) -> Result<ModelSpec, InputError> {
    let (hidden, heads) = (config.required("hidden_size")?, config.required("num_attention_heads")?);
    let layers = config.required("num_hidden_layers")?;
    in_range(config.spelt("num_hidden_layers"), layers.into(), 1, MOST_BLOCKS)
        .map_err(|e| e.in_file(config.file))?;
    let latent = if family.latent { Some(blocks::latent(config)?) } else { None };
    let head_dim = match (latent, config.optional("head_dim")?) {
        (Some((_, head_dim)), _) | (None, Some(head_dim)) => head_dim,
        (None, None) => config.head_dim(hidden, heads, "num_attention_heads")?,
    };
    let kv_heads = parts::kv_heads(config, family, heads)?;
    let ffn = match config.optional(family.experts.dense())? {
        Some(ffn) => ffn,
        // An MLP of four times the width, or of so many as MPT says.
        None if !family.gated => hidden.saturating_mul(config.optional("expansion_ratio")?.unwrap_or(4)),
        None => config.required(family.experts.dense())?,
    };
    let usual = BlockSpec {
        heads,
        kv_heads: if family.latent { heads } else { kv_heads },
        head_dim,
        window: None,
        latent: latent.map(|(latent, _)| latent),
        ffn,
        experts: None,
    };
    let blocks = blocks::of(config, family, layers, usual)?;
    let longest = config.optional("max_position_embeddings")?.unwrap_or(2048);
    // Inside a chunk, attention is the same as without chunks.
    let chunk =
        if family.windows == Windows::Chunks { config.optional("attention_chunk_size")? } else { None };
    let (bias, mut additions) = parts::of(config, family)?;
    let (theta, of_positions) = parts::rotary(config, family, head_dim)?;
    let table = parts::table(config, family)?;
    if matches!(table, Table::Rotary) {
        additions.extend(of_positions);
    }
    let model = ModelSpec {
        name: name.to_owned(),
        kv_heads,
        head_dim,
        ffn,
        vocab: config.required("vocab_size")?,
        max_seq_len: match table {
            Table::Longer(more) => longest.saturating_add(more),
            _ => longest.min(chunk.unwrap_or(u32::MAX)),
        },
        positions: match table {
            Table::Rotary => Positions::Rotary { theta },
            Table::Learned | Table::Longer(_) => Positions::Learned,
            Table::Alibi => Positions::Alibi,
        },
        norm: family.norm,
        norm_epsilon: config.real("rms_norm_eps", 1e-5)?,
        activation: if family.gated { Activation::SwiGlu } else { Activation::Gelu },
        bias,
        tied_embeddings: config.flag("tie_word_embeddings", false)?,
        additions,
        ..ModelSpec::gpt(layers, hidden, heads, 0, 0)
    };
    let model = model.with_blocks(&blocks);
    // What only experts or only MLPs have.
    let dense = (1..=model.layers as usize).any(|layer| model.block(layer).experts.is_none());
    let sparse = model.has_experts();
    let has = |one: &Addition| match one {
        Addition::MlpBias => dense,
        Addition::ExpertBias | Addition::SharedGate => sparse,
        _ => true,
    };
    Ok(ModelSpec { additions: model.additions.iter().copied().filter(has).collect(), ..model })
}
