//! Settings of trainers that change time or memory, but that plans do not have: they are refused by name, or
//! listed as approximated.

use crate::document::{Document, plain};
use crate::settings::{CommandLine, Field};
use autodist_spec::InputError;

/// One kind of such settings.
pub struct Foreign {
    /// Keys, or their last parts. A part that ends with a point is a section.
    keys: &'static [&'static str],
    /// Values without effect, in addition to those of `OFF`.
    neutral: &'static [&'static str],
    /// With this field on the command line it has no effect.
    unless: Option<Field>,
    otherwise: Treatment,
}

enum Treatment {
    Refuse {
        why: &'static str,
        way_out: &'static str,
    },
    /// No estimate depends on it; its effect is mostly small.
    Approximate,
}

/// Values that turn any setting off.
const OFF: [&str; 9] = ["", "none", "null", "no", "off", "false", "0", "0.0", "{}"];

pub const fn refused(
    keys: &'static [&'static str],
    neutral: &'static [&'static str],
    why: &'static str,
    way_out: &'static str,
) -> Foreign {
    Foreign { keys, neutral, unless: None, otherwise: Treatment::Refuse { why, way_out } }
}

/// Refused unless the command line gives the field.
pub const fn refused_unless(
    field: Field,
    keys: &'static [&'static str],
    why: &'static str,
    way_out: &'static str,
) -> Foreign {
    Foreign { keys, neutral: &[], unless: Some(field), otherwise: Treatment::Refuse { why, way_out } }
}

pub const fn approximated(keys: &'static [&'static str]) -> Foreign {
    Foreign { keys, neutral: &[], unless: None, otherwise: Treatment::Approximate }
}

const OFFLOAD: Foreign = refused(
    // By its name, see `is_offload`.
    &[],
    &[],
    "keeps state or activations in host memory, which plans do not do",
    "switch it off in the file: the estimate is for state in the memory of the devices",
);

const FP8: Foreign = refused(
    &["fp8", "fp8_format", "fp4", "fp4_format", "quantization", "float8.", "mx.", "quantize.", "fp8_config."],
    &[],
    "is arithmetic in 8 or 4 bits, which no plan has",
    "remove it from the file; `--fp8` prices FP8 on a cluster without a profile",
);

const EXPERTS: Foreign = refused(
    &["num_experts", "num_moe_experts", "num_local_experts", "n_routed_experts", "moe_config."],
    &["1"],
    "makes the model one of experts, which is not read from files",
    "give a model of experts by `--model`, e.g. `--model mixtral-8x7b` (see `autodist catalog`)",
);

/// DeepSpeed's settings, also inside the files of Accelerate and Transformers.
pub static DEEPSPEED: &[Foreign] = &[
    refused(
        &["zero_hpz_partition_size"],
        &["1"],
        "keeps a second copy of the parameters in groups of ranks, which plans do not do",
        "remove it from the file: the estimate is for one copy",
    ),
    refused(
        &["mics_shard_size"],
        &["-1"],
        "shards over groups of ranks by MiCS, which DeepSpeed has removed",
        "remove it from the file, and give the size of a group by `--shard`",
    ),
    refused(
        &["amp.enabled"],
        &[],
        "is fp16 with a loss scale, which plans do not support",
        "use bf16, which takes the same time",
    ),
    refused(
        &["grad_accum_dtype"],
        &["fp32"],
        "keeps gradients in fewer bits than fp32, which plans do not do",
        "set it to fp32, or remove it from the file",
    ),
    refused(
        &["zero_quantized_gradients"],
        &[],
        "reduces gradients in 4 bits, which no codec of a plan does",
        "remove it from the file",
    ),
    refused(
        &["zero_quantized_weights"],
        &[],
        "gathers parameters in 8 bits, which is read from DeepSpeed's own files only",
        "read that file instead: `--from deepspeed FILE`",
    ),
    refused_unless(
        Field::Tensor,
        &["autotp_size"],
        "is tensor parallelism, which is read from DeepSpeed's own files only",
        "give the degree by `--tp`",
    ),
    refused(
        &["sequence_parallel_size"],
        &["1"],
        "splits sequences between ranks, which is not read from DeepSpeed's files",
        "remove it from the file, and give context parallelism by `--cp`",
    ),
    approximated(&[
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "partition_activations",
        "reduce_scatter",
        "round_robin_gradients",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "sub_group_size",
    ]),
];

/// Checks the keys that were not read; returns those that are approximated.
///
/// # Errors
/// The first one that is refused.
pub fn check(
    own: &[&[Foreign]],
    document: &Document,
    unread: &[String],
    command: &CommandLine,
) -> Result<Vec<String>, InputError> {
    let mut common = vec![&OFFLOAD];
    if !command.fp8 {
        common.push(&FP8);
    }
    if !command.experts {
        common.push(&EXPERTS);
    }
    let mut approximated = Vec::new();
    let unread: std::collections::BTreeSet<&str> = unread.iter().map(String::as_str).collect();
    for (key, value) in document.entries().iter().filter(|(key, _)| unread.contains(key.as_str())) {
        let shown = plain(value);
        let plain = shown.to_ascii_lowercase().replace(['[', ']', '"'], "");
        let spelled = key.replace('-', "_");
        let found = common
            .iter()
            .copied()
            .chain(own.iter().copied().flatten())
            .find(|foreign| foreign.names(&spelled));
        let Some(foreign) = found else { continue };
        let given = foreign.unless.is_some_and(|field| command.fields.contains_key(&field));
        if given || OFF.contains(&plain.as_str()) || foreign.neutral.contains(&plain.as_str()) {
            continue;
        }
        match &foreign.otherwise {
            Treatment::Refuse { why, way_out } => {
                return Err(InputError::new(key, shown, *why).hint(*way_out));
            }
            Treatment::Approximate => approximated.push(key.clone()),
        }
    }
    Ok(approximated)
}

impl Foreign {
    fn names(&self, key: &str) -> bool {
        let ends =
            |part: &str| key.strip_suffix(part).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if self.keys.is_empty() {
            return is_offload(key);
        }
        self.keys.iter().any(|part| match part.strip_suffix('.') {
            Some(_) => key.starts_with(part) || key.contains(&format!(".{part}")),
            None => ends(part),
        })
    }
}

/// Every trainer's switches of this kind have it in their names: `offload_optimizer.device`,
/// `optimizer-cpu-offload`, `fsdp_offload_params`; details such as `pin_memory` do nothing alone.
fn is_offload(key: &str) -> bool {
    let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
    let detail =
        ["fraction", "modules", "offloading_", "path", "ratio", "pin_memory", "buffer", "_overlap", "_size"];
    let switch = last.contains("offload") && !detail.iter().any(|part| last.contains(part));
    switch || last == "cpu_checkpointing" || (section.contains("offload") && last == "device")
}
