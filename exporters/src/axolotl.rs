//! Axolotl's YAML, whose keys have other names than those of Transformers' arguments that they become.

use crate::document::{Document, plain};
use crate::unsupported::{KeyRule, approximated, ignored};
use serde_json::Value;

/// Names in axolotl, and in Transformers and TRL.
const NAMES: [(&str, &str); 10] = [
    ("bfloat16", "bf16"),
    ("float16", "fp16"),
    ("base_model", "model_name_or_path"),
    ("micro_batch_size", "per_device_train_batch_size"),
    ("optimizer", "optim"),
    ("lr_scheduler", "lr_scheduler_type"),
    ("sequence_len", "max_length"),
    ("bnb_4bit_use_double_quant", "use_bnb_nested_quant"),
    ("tensor_parallel_size", "tp_size"),
    ("fsdp_version", "fsdp_config.version"),
];

/// Switches that are values of another key in Transformers.
const SWITCHES: [(&str, &str, &str); 5] = [
    ("flash_attention", "attn_implementation", "flash_attention_2"),
    ("sdp_attention", "attn_implementation", "sdpa"),
    ("eager_attention", "attn_implementation", "eager"),
    ("xformers_attention", "attn_implementation", "xformers"),
    ("lora_target_linear", "lora_target_modules", "all-linear"),
];

pub fn is_axolotl(document: &Document) -> bool {
    document.has("base_model") && (document.has("micro_batch_size") || document.has("datasets"))
}

/// The same settings by Transformers' names.
pub fn as_transformers(said: &Document) -> Document {
    let mut document = said.like();
    let is = |value: &Value, word: &str| plain(value).eq_ignore_ascii_case(word);
    let adapter = said.entries().iter().find(|(key, _)| key == "adapter");
    let adapter =
        adapter.map(|(_, value)| plain(value)).filter(|kind| !["", "null"].contains(&kind.as_str()));
    for (key, value) in said.entries() {
        // Without an adapter its settings are not used.
        if adapter.is_none() && key.starts_with("lora_") {
            continue;
        }
        if let Some((_, name, setting)) = SWITCHES.iter().find(|(switch, ..)| switch == key) {
            if is(value, "true") {
                document.set(name, *setting);
            }
            continue;
        }
        let renamed = NAMES.iter().find(|(own, _)| own == key).map(|(_, name)| (*name).to_owned());
        let nested = || Some(format!("fsdp_config.{}", key.strip_prefix("fsdp_config.fsdp_")?));
        let name = renamed.or_else(nested).unwrap_or_else(|| key.clone());
        match key.as_str() {
            "adapter" | "fsdp_config.fsdp_offload_params" | "fsdp_config.offload_params" => {}
            "fsdp" | "fsdp_config.fsdp_sharding_strategy" | "fsdp_config.sharding_strategy" => {}
            "gradient_checkpointing" if value.is_string() && is(value, "offload") => {
                document.set("gradient_checkpointing", true);
                document.set("activation_offloading", true);
            }
            "bf16" | "tf32" if is(value, "auto") || is(value, "full") => document.set(&name, true),
            // Below 1 it is a part of the steps, whose number is not known.
            "warmup_steps" if value.as_f64().is_some_and(|steps| steps < 1.0) => {}
            // A key without a value takes nothing back.
            _ if value.is_null() && document.has(&name) => {}
            _ => document.set(&name, value.clone()),
        }
    }
    match adapter.as_deref() {
        None => {}
        Some("qlora") => {
            document.set("use_peft", true);
            if !document.has("use_bnb_nested_quant") {
                document.set("use_bnb_nested_quant", true);
            }
        }
        Some("lora") => document.set("use_peft", true),
        // Read as what it is called, and refused by that name.
        Some(other) => document.set("finetuning_type", other),
    }
    // Without a list of words, FSDP's section has the strategy; its second version shards everything.
    let of_section = |name: &str| {
        let matches =
            |key: &str| key == format!("fsdp_config.{name}") || key == format!("fsdp_config.fsdp_{name}");
        said.entries()
            .iter()
            .find(|(key, _)| matches(key))
            .map(|(_, value)| plain(value).to_ascii_lowercase())
    };
    let words = said.entries().iter().find(|(key, _)| key == "fsdp").map(|(_, value)| match value {
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => plain(other),
    });
    let strategy = words
        .filter(|words| !["", "null"].contains(&words.as_str()))
        .or_else(|| of_section("sharding_strategy"));
    let second = document.has("fsdp_config.version").then(|| "full_shard".to_owned());
    if let Some(mut words) = strategy.or(second) {
        if of_section("offload_params").is_some_and(|value| value == "true") {
            words += " offload";
        }
        document.set("fsdp", words);
    }
    document
}

/// Keys of axolotl alone.
pub static RULES: &[KeyRule] = &[
    approximated(&[
        "sample_packing*",
        "lora_mlp_kernel",
        "lora_qkv_kernel",
        "lora_o_kernel",
        "flash_attn_*",
        "flash_optimum",
        "unsloth_*",
        "liger_*",
        "cut_cross_entropy",
        "chunked_cross_entropy",
        "fused_attn_kernel",
        "experts_implementation",
        "torch_compile_*",
    ]),
    ignored(&[
        "eval_batch_size",
        "eval_sample_packing",
        "pad_to_sequence_len",
        "batch_flattening",
        "dataset_*",
        "sequence_len_overflow_handling",
        "excess_length_strategy",
        "group_by_length",
        "num_epochs",
    ]),
];
