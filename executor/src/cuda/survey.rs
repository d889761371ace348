//! The GPUs of this machine, or the reason why none can be used.

use autodist_cuda::{self as gpu, Libraries, Search, nvml};
use autodist_spec::Bytes;
use autodist_spec::profile::{Accelerator, AcceleratorPath};

/// The GPUs of this machine and their current state.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    pub accelerators: Vec<Accelerator>,
    pub paths: Vec<AcceleratorPath>,
    /// Conditions that make measurements on these GPUs doubtful, and checks that failed.
    pub warnings: Vec<String>,
}

/// The reason why no GPU can be used.
#[derive(Debug, Clone)]
pub struct Absent {
    /// A summary in one line.
    pub brief: String,
    /// Libraries and devices that were searched for, the places, the findings, and how to get missing ones.
    pub details: String,
}

/// Queries the GPUs.
///
/// # Errors
/// There are no GPUs, or a requirement for training on them is missing.
pub fn survey() -> Result<Survey, Absent> {
    let search = Search::from_environment();
    let absent = |error: gpu::CudaError| Absent {
        brief: match &error {
            gpu::CudaError::Missing(missing) if missing.cause.is_empty() => {
                format!("{} is missing", missing.library)
            }
            gpu::CudaError::Missing(missing) => {
                format!("{} cannot be used: {}", missing.library, missing.cause)
            }
            other => other.to_string(),
        },
        details: gpu::diagnose(&search).iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
    };
    let libraries = Libraries::load(&search).map_err(absent)?;
    let gpus = gpu::gpus(&libraries).map_err(absent)?;
    let mut survey = Survey::default();
    let report = nvml::look(&libraries, &gpus).unwrap_or_else(|error| {
        survey
            .warnings
            .push(format!("clocks, other processes and interconnect of the GPUs are unknown: {error}"));
        nvml::NvmlReport { health: vec![nvml::Health::default(); gpus.len()], paths: Vec::new() }
    });
    for (gpu, health) in gpus.iter().zip(report.health) {
        if !health.throttled.is_empty() {
            survey.warnings.push(format!(
                "GPU {} is throttled by {}: measurements may not hold at other times",
                gpu.ordinal,
                health.throttled.join(", ")
            ));
        }
        if health.other_processes > 0 {
            survey.warnings.push(format!(
                "{} other process(es) use GPU {}: measurements include their load",
                health.other_processes, gpu.ordinal
            ));
        }
        survey.accelerators.push(Accelerator {
            ordinal: gpu.ordinal as u32,
            name: gpu.name.clone(),
            uuid: gpu.uuid.clone(),
            pci_bus: gpu.pci_bus.clone(),
            memory_bytes: Bytes(gpu.memory_bytes as u64),
            multiprocessors: gpu.multiprocessors,
            capability: format!("{}.{}", gpu.capability.0, gpu.capability.1),
            driver: health.driver,
            clock_mhz: health.clock_mhz,
            highest_clock_mhz: health.highest_clock_mhz,
            throttled: health.throttled,
            other_processes: health.other_processes as u32,
            nvlinks: health.nvlinks as u32,
            pcie: health.pcie,
        });
    }
    let path = |(from, to, path)| AcceleratorPath { from: from as u32, to: to as u32, path };
    survey.paths = report.paths.into_iter().map(path).collect();
    Ok(survey)
}
