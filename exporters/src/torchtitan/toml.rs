//! torchtitan's TOML files, its configuration from 2024 to the end of 2025: sections and keys have moved since.

use super::FLOAT8;
use crate::Files;
use crate::document::Document;
use autodist_spec::InputError;
use serde_json::Value;

/// Key that marks a configuration from a TOML file, whose defaults differ from those of today.
pub const KEY: &str = "toml";

/// Older keys, and those of torchtitan 0.2.
const MOVED: [(&str, &str); 17] = [
    ("training.batch_size", "training.local_batch_size"),
    ("training.data_parallel_degree", "parallelism.data_parallel_shard_degree"),
    ("training.data_parallel_shard_degree", "parallelism.data_parallel_shard_degree"),
    ("training.data_parallel_replicate_degree", "parallelism.data_parallel_replicate_degree"),
    ("training.fsdp_reshard_after_forward", "parallelism.fsdp_reshard_after_forward"),
    ("training.tensor_parallel_degree", "parallelism.tensor_parallel_degree"),
    ("training.sequence_parallel_degree", "parallelism.tensor_parallel_degree"),
    ("training.pipeline_parallel_degree", "parallelism.pipeline_parallel_degree"),
    ("training.enable_cpu_offload", "training.enable_cpu_offload"),
    ("experimental.pipeline_parallel_degree", "parallelism.pipeline_parallel_degree"),
    ("experimental.context_parallel_degree", "parallelism.context_parallel_degree"),
    ("experimental.pipeline_parallel_schedule", "parallelism.pipeline_parallel_schedule"),
    ("experimental.pipeline_parallel_microbatches", "parallelism.pipeline_parallel_microbatches"),
    ("experimental.pipeline_parallel_split_points", "parallelism.pipeline_parallel_split_points"),
    ("experimental.enable_async_tensor_parallel", "parallelism.enable_async_tensor_parallel"),
    ("training.warmup_steps", "lr_scheduler.warmup_steps"),
    ("training.mixed_precision", "training.mixed_precision_param"),
];

/// Whether the text is a TOML file of torchtitan, and no command line: it begins with a section or a key.
pub fn is_toml(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.next().is_some_and(|line| {
        line.starts_with('[')
            && line.split('#').next().unwrap_or_default().trim_end().ends_with(']')
            && !line.starts_with("[ ")
    })
}

/// # Errors
/// If it is not TOML.
pub fn read(text: &str) -> Result<Document, InputError> {
    let said = Document::of_toml(text)?;
    let mut document = Document::default();
    for (key, value) in said.entries() {
        let moved = MOVED.iter().find(|(old, _)| old == key).map_or(key.as_str(), |(_, new)| new);
        document.set(moved, value.clone());
    }
    optimizer(&mut document);
    let on = float8(&said);
    if on {
        document.set(FLOAT8, true);
    } else {
        // Details without a converter do nothing.
        for (key, _) in said.entries().iter().filter(|(key, _)| is_of_float8(key)) {
            document.set(key, Value::Null);
        }
    }
    document.set(KEY, true);
    document.get(KEY);
    Ok(document)
}

/// Keys of `[optimizer]`, which are now those of its first group.
fn optimizer(document: &mut Document) {
    for (old, new) in [("lr", "lr"), ("eps", "eps"), ("weight_decay", "weight-decay")] {
        if let Some(value) = document.get(&format!("optimizer.{old}")).cloned() {
            document.set(&super::kwargs(new), value);
        }
    }
    let betas = ["optimizer.beta1", "optimizer.beta2"].map(|key| document.get(key).cloned());
    if betas.iter().any(Option::is_some) {
        let [first, second] = betas;
        let both = [first.unwrap_or(0.9.into()), second.unwrap_or(0.95.into())];
        document.set(&super::kwargs("betas"), both.to_vec());
    }
}

fn is_of_float8(key: &str) -> bool {
    ["float8.", "mx.", "quantize."].iter().any(|section| key.starts_with(section))
}

/// Whether GEMMs are in FP8: by a converter of the model, or by one of the older switches.
fn float8(said: &Document) -> bool {
    let converters = said.get("model.converters").map(ToString::to_string).unwrap_or_default();
    let switched =
        ["float8.enable_float8_linear", "training.enable_float8_linear", "training.enable_fp8_linear"];
    converters.contains("float8")
        || switched.iter().any(|key| said.text(key).as_deref() == Some("true"))
        || said.text("training.fp8_linear").is_some_and(|kind| !kind.is_empty())
}

/// The configuration of the file that a command line names by `CONFIG_FILE` or `--job.config_file`, if it is there.
///
/// # Errors
/// If it is not TOML.
pub fn of_script(said: &Document, text: &str, open: Files) -> Result<Document, InputError> {
    let named = said.text("job.config_file").or_else(|| {
        let after = text.split("CONFIG_FILE=").nth(1)?;
        Some(after.split([' ', '\n', '\t']).next()?.trim_matches(['"', '\'']).to_owned())
    });
    let name = named.filter(|name| name.ends_with(".toml") && !name.contains('$'));
    let Some(content) = name.as_deref().and_then(|name| open(name).ok()) else {
        return Ok(Document::default());
    };
    read(&content).map_err(|error| error.in_file(name.as_deref().unwrap_or_default()))
}

/// The model by its name and its size.
pub fn model_name(document: &Document) -> Option<(&'static str, String)> {
    let (name, flavor) = (document.text("model.name")?, document.text("model.flavor")?);
    let whole = match (name.as_str(), flavor.as_str()) {
        ("deepseek_v3", "671B") => "deepseek-v3".to_owned(),
        ("llama4", "17bx16e") => "llama4-scout".to_owned(),
        ("llama4", "17bx128e") => "llama4-maverick".to_owned(),
        _ => format!("{name}-{flavor}"),
    };
    Some(("model.flavor", whole))
}
