//! Keys of a trainer's file that no row reads. Each is refused by name, listed as approximated, or ignored; a key
//! that no list has is refused if its name suggests that it changes time or memory.

use crate::document::{Document, plain};
use crate::row::FieldMapping;
use crate::settings::{CommandLine, Field};
use autodist_spec::InputError;
use std::collections::BTreeSet;

/// How some keys of a trainer are treated that have no row.
#[derive(Clone, Copy)]
pub struct KeyRule {
    /// Keys, or their last parts, with underscores. An entry that ends with a point is a section, and one that
    /// ends with `*` is the start of a last part.
    keys: &'static [&'static str],
    /// Values without effect, in addition to those of `OFF`.
    neutral: &'static [&'static str],
    /// With this field on the command line it has no effect.
    unless: Option<Field>,
    treatment: Treatment,
}

#[derive(Clone, Copy)]
enum Treatment {
    Refuse {
        why: &'static str,
        way_out: &'static str,
    },
    /// No estimate depends on it; its effect is mostly small.
    Approximate,
    /// It changes neither time nor memory.
    Ignore,
}

/// The keys of a file that no row reads and that are not refused, by their treatment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherKeys {
    /// Known keys that are not settings of a plan, and keys that are switched off.
    pub irrelevant: Vec<String>,
    /// Known keys that can change time or memory, mostly a little; no estimate depends on them.
    pub approximated: Vec<String>,
    /// Keys that no list of this crate has.
    pub unknown: Vec<String>,
}

/// Values that turn any setting off.
const OFF: [&str; 9] = ["", "none", "null", "no", "off", "false", "0", "0.0", "{}"];

/// Keys that are refused unless their value is off or one of `neutral`.
pub const fn refused(
    keys: &'static [&'static str],
    neutral: &'static [&'static str],
    why: &'static str,
    way_out: &'static str,
) -> KeyRule {
    KeyRule { keys, neutral, unless: None, treatment: Treatment::Refuse { why, way_out } }
}

/// Keys that are refused unless the command line gives the field.
pub const fn refused_unless(
    field: Field,
    keys: &'static [&'static str],
    why: &'static str,
    way_out: &'static str,
) -> KeyRule {
    KeyRule { keys, neutral: &[], unless: Some(field), treatment: Treatment::Refuse { why, way_out } }
}

/// The same for degrees, of which 1 is none.
pub const fn refused_degree(
    field: Field,
    keys: &'static [&'static str],
    why: &'static str,
    way_out: &'static str,
) -> KeyRule {
    KeyRule { keys, neutral: &["1"], unless: Some(field), treatment: Treatment::Refuse { why, way_out } }
}

/// Keys that can change time or memory a little, which no estimate shows.
pub const fn approximated(keys: &'static [&'static str]) -> KeyRule {
    KeyRule { keys, neutral: &[], unless: None, treatment: Treatment::Approximate }
}

/// Keys that change neither time nor memory.
pub const fn ignored(keys: &'static [&'static str]) -> KeyRule {
    KeyRule { keys, neutral: &[], unless: None, treatment: Treatment::Ignore }
}

const OFFLOAD: Treatment = Treatment::Refuse {
    why: "keeps state or activations in host memory, which plans do not do",
    way_out: "switch it off in the file: the estimate is for state in the memory of the devices",
};

/// Keys of FP8 and narrower arithmetic, which `--precision fp8` prices.
const FP8: [&str; 10] = [
    "fp8",
    "fp8_*",
    "fp4",
    "fp4_*",
    "quantization",
    "float8.",
    "mx.",
    "quantize.",
    "fp8_config.",
    "enable_fp8",
];

const EXPERTS: [&str; 5] =
    ["num_experts", "num_moe_experts", "num_local_experts", "n_routed_experts", "moe_config."];

/// The rules that hold for all trainers.
fn common(command: &CommandLine) -> [KeyRule; 3] {
    const IN_8_BITS: KeyRule = refused(
        &FP8,
        &[],
        "is arithmetic in 8 or 4 bits, which no plan has",
        "remove it from the file; `--precision fp8` prices FP8 on a cluster without a profile",
    );
    const OF_EXPERTS: KeyRule = refused(
        &EXPERTS,
        &["1"],
        "makes the model one of experts, which is not read from files",
        "give a model of experts by `--model`, e.g. `--model mixtral-8x7b` (see `autodist catalog`)",
    );
    const SPLIT_OTHERWISE: KeyRule = refused(
        &["expert_tensor_parallel_size"],
        &[],
        "splits experts otherwise than the other layers, which has no price",
        "remove it from the file: experts are then split over the tensor-parallel ranks, too",
    );
    [
        if command.experts { SPLIT_OTHERWISE } else { ignored(&[]) },
        if command.fp8 { approximated(&FP8) } else { IN_8_BITS },
        if command.experts { ignored(&EXPERTS) } else { OF_EXPERTS },
    ]
}

/// Flags of the launchers in scripts: torchrun, srun, mpirun.
pub const LAUNCHERS: KeyRule = ignored(&[
    "nnodes",
    "nproc_per_node",
    "node_rank",
    "master_addr",
    "master_port",
    "rdzv*",
    "max_restarts",
    "monitor_interval",
    "start_method",
    "role",
    "log_dir",
    "redirects",
    "tee",
    "local_ranks_filter",
    "standalone",
    "no_python",
    "module",
    "nodes",
    "ntasks",
    "ntasks_per_node",
    "gpus",
    "gpus_per_node",
    "gpus_per_task",
    "cpus_per_task",
    "cpu_bind",
    "container_*",
    "no_container_*",
    "partition",
    "account",
    "job_name",
    "time",
    "mem",
    "exclusive",
    "export",
    "mpi",
    "kill_on_bad_exit",
    "unbuffered",
    "label",
    "output",
    "error",
    "wait",
    "bind_to",
    "map_by",
    "allow_run_as_root",
    "hostfile",
    "host",
    "np",
]);

/// Parts of names that suggest that a setting changes time or memory.
const TELLING: [&str; 25] = [
    "parallel",
    "shard",
    "offload",
    "recomput",
    "remat",
    "precision",
    "fp8",
    "fp4",
    "fp16",
    "bf16",
    "float8",
    "float16",
    "batch",
    "micro",
    "sequence",
    "overlap",
    "compil",
    "attention",
    "attn",
    "flash",
    "expert",
    "lora",
    "peft",
    "quant",
    "dtype",
];

/// Words of names that suggest the same.
const TELLING_WORDS: [&str; 11] = ["seq", "seqlen", "moe", "tp", "pp", "dp", "cp", "ep", "sp", "vpp", "fsdp"];

/// Parts of names of sizes, of which 1 is not without effect.
const SIZES: [&str; 5] = ["batch", "micro", "sequence", "seq", "precision"];

/// Whether the name of a key suggests that it changes time or memory.
fn is_telling(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    // Also `gradient_checkpointing`, but no checkpoint on a disk.
    let recomputes = key.contains("checkpoint") && (key.contains("activation") || key.contains("gradient"));
    let words = || key.split(['.', '_', '-', ' ']);
    recomputes
        || TELLING.iter().any(|part| key.contains(part))
        || words().any(|word| TELLING_WORDS.contains(&word))
}

/// Sorts the keys that no row has read.
///
/// # Errors
/// The first one that is refused.
pub fn sort(
    rows: &[FieldMapping],
    rules: &[&[KeyRule]],
    document: &Document,
    command: &CommandLine,
) -> Result<OtherKeys, InputError> {
    let common = common(command);
    // Rows do not read keys that others make useless.
    let of_rows: BTreeSet<&str> = rows.iter().flat_map(|row| row.theirs.split(", ")).collect();
    let all = || common.iter().chain(rules.iter().copied().flatten());
    let mut found = OtherKeys::default();
    for (key, value) in document.unread() {
        let shown = plain(value);
        let value = shown.to_ascii_lowercase().replace(['[', ']', '"'], "");
        let spelled = key.replace('-', "_");
        let rule = all().find(|rule| rule.names(&spelled));
        // Of a list, every entry.
        let is_neutral = value
            .split(',')
            .map(str::trim)
            .all(|entry| OFF.contains(&entry) || rule.is_some_and(|rule| rule.neutral.contains(&entry)));
        let is_off =
            is_neutral || rule.and_then(|rule| rule.unless).is_some_and(|field| command.replaces(field));
        let treatment = match rule {
            _ if of_rows.contains(key) => Some(Treatment::Ignore),
            Some(rule) => Some(rule.treatment),
            None if is_offload(&spelled) => Some(OFFLOAD),
            // A detail of an offload, which does nothing alone.
            None if spelled.contains("offload") => Some(Treatment::Ignore),
            None if is_telling(&spelled) => {
                let is_size = SIZES.iter().any(|part| spelled.contains(part));
                Some(if value == "1" && !is_size { Treatment::Ignore } else { UNKNOWN })
            }
            None => None,
        };
        match treatment {
            Some(Treatment::Refuse { why, way_out }) if !is_off => {
                return Err(InputError::new(key, shown, why).hint(way_out));
            }
            Some(Treatment::Approximate) if !is_off => found.approximated.push(key.to_owned()),
            Some(_) => found.irrelevant.push(key.to_owned()),
            None => found.unknown.push(key.to_owned()),
        }
    }
    Ok(found)
}

const UNKNOWN: Treatment = Treatment::Refuse {
    why: "is not known to autodist, but its name suggests that it changes time or memory",
    way_out: "remove it from the file if it changes neither, or if the estimate may ignore it",
};

impl KeyRule {
    /// Whether the rule is for this key, which has underscores.
    fn names(&self, key: &str) -> bool {
        let last = key.rsplit_once('.').map_or(key, |(_, last)| last);
        self.keys.iter().any(|part| {
            if let Some(section) = part.strip_suffix('.') {
                // An empty section is a key.
                return key.strip_suffix(section).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                    || key.starts_with(part)
                    || key.match_indices(part).any(|(at, _)| key[..at].ends_with('.'));
            }
            match part.strip_suffix('*') {
                Some(start) => last.starts_with(start),
                None => key.strip_suffix(part).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            }
        })
    }

    /// The keys, in the order of the list.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().copied()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_changes_time_or_memory() {
        for key in [
            "expert_parallel_degree",
            "hidden.tp",
            "my-micro-batch",
            "gradient_checkpointing_kwargs",
            "model.lora.rank",
            "reshard_after_forward",
            "max-seqlen",
            "Precision",
        ] {
            assert!(is_telling(key), "{key}");
        }
        for key in
            ["log_interval", "save_checkpoint", "tensorboard_dir", "tokenizer.path", "lr_decay", "step"]
        {
            assert!(!is_telling(key), "{key}");
        }
    }

    #[test]
    fn rules_name_whole_parts_of_keys() {
        let rule = ignored(&["checkpoint.", "fp8_*", "a.b"]);
        for key in
            ["checkpoint", "checkpoint.x", "deep.checkpoint.x.y", "model.fp8_margin", "fp8_", "a.b", "c.a.b"]
        {
            assert!(rule.names(key), "{key}");
        }
        for key in ["my_checkpoint", "my_checkpoint.x", "my_fp8_margin", "fp8_x.y", "ca.b", "b"] {
            assert!(!rule.names(key), "{key}");
        }
    }
}
