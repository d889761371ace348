//! Flags of other programs: what they are called here.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// Names that other trainers and planners use, and the flags for the same thing; the first that the command has is
/// meant.
const OTHERS: [(&[&str], &[&str], &str); 26] = [
    (
        &["batch-size", "batch", "gbs", "train-batch-size", "global-batch-size"],
        &["global-batch"],
        "it counts the sequences of one step over all devices",
    ),
    (
        &["micro-batch-size", "mbs", "per-device-batch-size", "per-device-train-batch-size", "micro-bs"],
        &["micro-batch"],
        "sequences per micro-batch and rank",
    ),
    (
        &["gradient-accumulation-steps", "grad-accum", "num-microbatches", "accumulation"],
        &["micro-batch"],
        "the number of micro-batches follows from --global-batch, --micro-batch and the data-parallel degree",
    ),
    (
        &[
            "sequence-length",
            "seq-length",
            "seqlen",
            "seq",
            "context-length",
            "max-seq-len",
            "max-length",
            "ctx",
        ],
        &["seq-len"],
        "",
    ),
    (&["gpus", "num-gpus", "n-gpus", "ngpus", "num-devices", "gpu"], &["cluster", "ranks", "device"], ""),
    (&["world-size", "nproc-per-node", "np", "num-ranks"], &["ranks", "cluster"], ""),
    (&["nodes", "num-nodes", "nnodes", "hardware", "machine"], &["cluster", "hosts"], ""),
    (&["device"], &["devices"], ""),
    (&["devices"], &["device"], ""),
    (&["zero-stage", "zero-optimization", "deepspeed-stage"], &["zero"], ""),
    (
        &["dtype", "data-type", "torch-dtype", "params-dtype", "mixed-precision"],
        &["precision"],
        "e.g., --precision bf16",
    ),
    (&["bf16", "bfloat16"], &["precision"], "write --precision bf16"),
    (&["fp16", "half"], &["precision"], "write --precision fp16"),
    (&["fp8"], &["precision"], "write --precision fp8"),
    (&["fp32"], &["precision"], "write --precision fp32"),
    (
        &[
            "tensor-parallel",
            "tensor-parallel-size",
            "tensor-model-parallel-size",
            "tensor-parallelism",
            "tp-size",
        ],
        &["tp"],
        "",
    ),
    (
        &["pipeline-parallel", "pipeline-parallel-size", "pipeline-model-parallel-size", "pp-size", "stages"],
        &["pp"],
        "",
    ),
    (&["data-parallel", "data-parallel-size", "dp-size", "replicas"], &["dp"], ""),
    (&["context-parallel", "context-parallel-size", "cp-size", "sequence-parallel-size"], &["cp"], ""),
    (&["expert-parallel", "expert-parallel-size", "expert-model-parallel-size", "ep-size"], &["ep"], ""),
    (&["virtual-stages", "interleave", "virtual-pipeline-model-parallel-size"], &["vpp"], ""),
    (&["sequence-parallel", "sequence-parallelism"], &["sp"], ""),
    (
        &[
            "activation-checkpointing",
            "gradient-checkpointing",
            "recompute-granularity",
            "checkpointing",
            "ac",
        ],
        &["recompute"],
        "none, selective or full",
    ),
    (&["lr", "learning-rate-peak"], &["learning-rate"], ""),
    (&["memory", "gpu-memory", "mem"], &["device-memory"], "e.g., --device-memory 80GiB"),
    (&["time", "max-time", "time-budget", "limit"], &["time-limit", "budget", "timeout"], "e.g., 10m"),
];

/// What the flags that count devices look like.
const COUNTS: [(&str, &str); 3] = [
    ("cluster", "e.g., --cluster 4x8xh100 (4 nodes of 8)"),
    ("ranks", "e.g., --ranks 8"),
    ("hosts", "a host file"),
];

/// The error with the flag that the user may have meant, if the one on the command line is that of another program.
pub fn explained(mut error: Error, program: &Command) -> Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(written)) = error.get(ContextKind::InvalidArg) else { return error };
    let name = written.trim_start_matches('-').split('=').next().unwrap_or_default().replace('_', "-");
    let name = name.to_lowercase();
    // The command that was parsed stands in the usage line, or is the first word that is a command.
    let called = std::env::args().skip(1).find_map(|word| program.find_subcommand(word));
    let Some(command) = called else { return error };
    let has = |flag: &str| command.get_arguments().any(|argument| argument.get_long() == Some(flag));
    let found =
        OTHERS.iter().filter(|(names, ..)| names.contains(&name.as_str())).find_map(|(_, flags, why)| {
            let flag = flags.iter().find(|flag| has(flag))?;
            Some((*flag, *why))
        });
    let spelt = has(&name).then_some((name.as_str(), ""));
    let Some((flag, why)) = found.or(spelt) else { return error };
    let counts = COUNTS.iter().find(|(name, _)| *name == flag).map_or("", |(_, example)| *example);
    let why = [why, counts].into_iter().find(|why| !why.is_empty()).map(|why| format!(": {why}"));
    let why = why.unwrap_or_default();
    let tip = format!("this is called `--{flag}` here{why}");
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::SuggestedValue);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}
