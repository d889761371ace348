//! The names of a configuration's keys: the usual one for each, and those that older families have for the same.

use crate::error::InputError;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// By the usual name of a key: its name in the file.
pub(super) type Written = BTreeMap<&'static str, String>;

/// The usual name of a key, and its other names; of several in one file, the first that is not null counts.
const NAMES: [(&str, &[&str]); 15] = [
    ("hidden_size", &["hidden_size", "n_embd", "n_embed", "d_model"]),
    ("num_hidden_layers", &["num_hidden_layers", "n_layer", "n_layers", "num_layers"]),
    ("num_attention_heads", &["num_attention_heads", "n_head", "n_heads", "num_heads"]),
    ("num_key_value_heads", &["num_key_value_heads", "num_kv_heads", "n_head_kv"]),
    ("intermediate_size", &["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"]),
    ("max_position_embeddings", &["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"]),
    (
        "rms_norm_eps",
        &[
            "rms_norm_eps",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "norm_eps",
            "norm_epsilon",
            "rms_norm_epsilon",
        ],
    ),
    ("hidden_act", &["hidden_activation", "hidden_act", "activation_function", "activation"]),
    ("head_dim", &["head_dim", "kv_channels", "attention_head_dim"]),
    ("partial_rotary_factor", &["partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent"]),
    ("num_experts", &["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"]),
    ("num_experts_per_tok", &["num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"]),
    ("n_shared_experts", &["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"]),
    (
        "num_nextn_predict_layers",
        &["num_nextn_predict_layers", "num_mtp_modules", "num_mtp_layers", "mtp_num_hidden_layers"],
    ),
    ("rope_theta", &["rope_theta", "rotary_emb_base"]),
];

/// What absent keys mean, by family.
static DEFAULTS: LazyLock<toml::Table> = LazyLock::new(|| {
    include_str!("../../../catalog/families.toml").parse().expect("the embedded table is TOML")
});

/// The configuration with the usual names of keys, and with what its absent keys mean in transformers.
pub(super) fn usual(root: &Map<String, Value>, family: &str) -> (Value, Written) {
    let mut written = Written::new();
    let mut all = root.clone();
    for (name, others) in NAMES {
        let given = |other: &&&str| root.get(**other).is_some_and(|value| !value.is_null());
        let there = |other: &&&str| root.contains_key(**other);
        if let Some(found) = others.iter().find(given).or_else(|| others.iter().find(there)) {
            all.retain(|key, _| !others.contains(&key.as_str()));
            all.insert(name.to_owned(), root[*found].clone());
            written.insert(name, (*found).to_owned());
        }
    }
    if let Some(defaults) = DEFAULTS.get(family).and_then(toml::Value::as_table) {
        for (key, value) in defaults {
            let value = serde_json::to_value(value).expect("numbers, flags and words");
            all.entry(key.clone()).or_insert(value);
        }
    }
    (Value::Object(all), written)
}

/// Parts of names of keys that change a model's shape or arithmetic.
const SHAPES: [&str; 24] = [
    "mamba",
    "ssm",
    "state_size",
    "d_state",
    "conv",
    "linear_attn",
    "linear_attention",
    "linear_num",
    "cross_attention",
    "expert",
    "lora_rank",
    "index_",
    "altup",
    "laurel",
    "per_layer",
    "sparse_attention",
    "blocksparse",
    "recurrent",
    "kv_shared",
    "zero_expert",
    "moe_intermediate",
    "bias",
    "qk_norm",
    "qk_layernorm",
];

/// Keys with such names that change neither.
const HARMLESS: [&str; 9] = [
    "router",
    "capacity",
    "implementation",
    "logits",
    "dropout",
    "norm_expert",
    "bias_max",
    "bias_update",
    "per_layer_config",
];

/// # Errors
/// A key that nothing asked for, whose name says that it changes the model.
pub(super) fn check_rest(all: &Value, asked: &BTreeSet<String>) -> Result<(), InputError> {
    let neutral = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    };
    for (key, value) in all.as_object().into_iter().flatten() {
        let has = |part: &&str| key.contains(*part);
        if !asked.contains(key) && !neutral(value) && SHAPES.iter().any(&has) && !HARMLESS.iter().any(&has) {
            let problem = "changes the model in a way that is not known of this model_type";
            return Err(InputError::new(key, value.to_string(), problem)
                .hint("remove it if the model is the same without it; or describe the model in a model file (docs/files.md)"));
        }
    }
    Ok(())
}
