//! The environment of a run in words. GPUs appear only if ranks used them, and real-time priority only if
//! ranks ran on CPU cores.

use crate::words::plural;
use autodist_spec::profile::{Accelerator, AcceleratorPath};
use autodist_spec::{DeviceKind, Engine, Environment, RunRecord};
use std::collections::BTreeMap;

pub(crate) fn device_kind(emulated: bool) -> &'static str {
    if emulated { "emulated devices" } else { "real devices" }
}

fn on_gpus(environment: &Environment) -> bool {
    environment.devices == DeviceKind::Cuda
}

/// Whether ranks had real-time priority; `None` if it does not affect their figures.
pub(crate) fn realtime(environment: &Environment) -> Option<bool> {
    (!on_gpus(environment)).then_some(environment.realtime)
}

/// `real devices`, or the GPUs of the run by name: `2 x NVIDIA H100`.
pub(crate) fn devices(run: &RunRecord) -> String {
    let environment = &run.environment;
    let kind = device_kind(environment.emulated);
    if !on_gpus(environment) {
        return kind.to_owned();
    }
    // Ranks use GPUs in order, so GPUs beyond the last rank were not used.
    let used = run.ranks.len().min(environment.accelerators.len());
    let mut names: Vec<(&str, usize)> = Vec::new();
    for gpu in &environment.accelerators[..used] {
        match names.iter_mut().find(|(name, _)| *name == gpu.name) {
            Some((_, number)) => *number += 1,
            None => names.push((&gpu.name, 1)),
        }
    }
    let names: Vec<String> = names.iter().map(|(name, number)| format!("{number} x {name}")).collect();
    let names = if names.is_empty() { "GPUs of unknown name".to_owned() } else { names.join(", ") };
    if environment.emulated { format!("{kind} on {names}") } else { names }
}

/// The training engine, if it was not autodist's own.
pub(crate) fn engine(environment: &Environment) -> Option<&str> {
    (environment.engine != Engine::Native).then_some(environment.collectives.as_str())
}

/// The transport of collectives between GPUs, and the transport of everything else if it was not TCP.
pub(crate) fn between(environment: &Environment) -> Option<String> {
    let native = environment.engine == Engine::Native;
    let known = on_gpus(environment) && native && !environment.collectives.is_empty();
    let collectives = known.then(|| format!("collectives through {}", environment.collectives));
    let transport = &environment.transport;
    let transport = (!transport.is_empty()).then(|| format!("what ranks say through {transport}"));
    let parts: Vec<String> = collectives.into_iter().chain(transport).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Each GPU, each kind of path between two of them, and the users of the paths; empty if ranks ran on CPU
/// cores.
pub(crate) fn gpus(environment: &Environment) -> Vec<(String, String)> {
    if !on_gpus(environment) {
        return Vec::new();
    }
    let each = environment.accelerators.iter().map(|gpu| (format!("GPU {}", gpu.ordinal), accelerator(gpu)));
    let wired = paths(environment).into_iter().map(|path| ("path".to_owned(), path));
    let between = between(environment).map(|how| ("between".to_owned(), how));
    each.chain(wired).chain(between).collect()
}

/// The recorded properties of a GPU, without those that are shown elsewhere.
fn accelerator(gpu: &Accelerator) -> String {
    let name = if gpu.name.is_empty() { "unknown name" } else { &gpu.name };
    let some = |known: bool, text: String| known.then_some(text);
    let others = plural(u64::from(gpu.other_processes), "other process");
    [
        Some(name.to_owned()),
        Some(gpu.memory_bytes.to_string()),
        some(gpu.multiprocessors > 0, plural(u64::from(gpu.multiprocessors), "multiprocessor")),
        some(!gpu.capability.is_empty(), format!("compute capability {}", gpu.capability)),
        some(!gpu.driver.is_empty(), format!("driver {}", gpu.driver)),
        clock(gpu),
        some(!gpu.throttled.is_empty(), format!("held back by {}", gpu.throttled.join(" and "))),
        some(!gpu.pcie.is_empty(), format!("PCIe {}", gpu.pcie)),
        some(gpu.nvlinks > 0, plural(u64::from(gpu.nvlinks), "NVLink")),
        some(gpu.other_processes > 0, format!("shared with {others}")),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

/// `clock 1215 of 1980 MHz`: current and maximum.
fn clock(gpu: &Accelerator) -> Option<String> {
    match (gpu.clock_mhz, gpu.highest_clock_mhz) {
        (Some(now), Some(highest)) => Some(format!("clock {now} of {highest} MHz")),
        (Some(now), None) => Some(format!("clock {now} MHz")),
        (None, Some(highest)) => Some(format!("clock up to {highest} MHz")),
        (None, None) => None,
    }
}

/// One line per kind of path, as eight GPUs have 28 pairs: `NVLink between GPUs 0 and 1, 0 and 2`.
fn paths(environment: &Environment) -> Vec<String> {
    let mut kinds: BTreeMap<&str, Vec<&AcceleratorPath>> = BTreeMap::new();
    for path in &environment.accelerator_paths {
        kinds.entry(&path.path).or_default().push(path);
    }
    let gpus = environment.accelerators.len();
    let line = |(kind, paths): (&str, Vec<&AcceleratorPath>)| {
        // With two GPUs, the only pair is named like any other.
        if gpus > 2 && paths.len() == gpus * (gpus - 1) / 2 {
            return format!("{kind} between every two of the {gpus} GPUs");
        }
        let pairs: Vec<String> = paths.iter().map(|path| format!("{} and {}", path.from, path.to)).collect();
        format!("{kind} between GPUs {}", pairs.join(", "))
    };
    kinds.into_iter().map(line).collect()
}
