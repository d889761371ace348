//! The current state of GPUs and their topology, from NVIDIA's management library (NVML).

use crate::device::Gpu;
use crate::error::{CudaError, Missing};
use crate::library::Libraries;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TopologyLevel};
use nvml_wrapper::error::NvmlError;

/// The state of a GPU that may change between two measurements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    pub driver: String,
    /// Clock of the multiprocessors, MHz: current and maximum.
    pub clock_mhz: Option<u32>,
    pub highest_clock_mhz: Option<u32>,
    /// The reason for a throttled clock, as text.
    pub throttled: Vec<String>,
    /// Number of other compute processes on the GPU.
    pub other_processes: usize,
    /// Number of active links to other GPUs.
    pub nvlinks: usize,
    /// PCIe generation and width, for example "4 x16".
    pub pcie: String,
}

/// The health of each GPU, and the closest common ancestor of each pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NvmlReport {
    pub health: Vec<Health>,
    pub paths: Vec<(usize, usize, String)>,
}

/// Queries the state of `gpus`.
///
/// # Errors
/// NVML is missing or fails; values that a GPU does not report are left out.
pub fn look(libraries: &Libraries, gpus: &[Gpu]) -> Result<NvmlReport, CudaError> {
    let file = libraries.nvml().map_err(Missing::clone)?;
    let refused = |error: NvmlError| CudaError::Library { operation: "NVML", text: error.to_string() };
    let nvml = Nvml::builder().lib_path(file.as_os_str()).init().map_err(refused)?;
    let find = |gpu: &Gpu| nvml.device_by_uuid(gpu.uuid.as_str());
    let devices: Vec<_> = gpus.iter().map(find).collect::<Result<_, _>>().map_err(refused)?;
    let driver = nvml.sys_driver_version().unwrap_or_default();
    let health = devices.iter().map(|device| Health {
        driver: driver.clone(),
        clock_mhz: device.clock_info(Clock::SM).ok(),
        highest_clock_mhz: device.max_clock_info(Clock::SM).ok(),
        throttled: device.current_throttle_reasons().map(reasons).unwrap_or_default(),
        other_processes: device
            .running_compute_processes()
            .map_or(0, |list| list.iter().filter(|process| process.pid != std::process::id()).count()),
        nvlinks: (0..18)
            .map(|link| device.link_wrapper_for(link).is_active())
            .take_while(Result::is_ok)
            .filter(|up| matches!(up, Ok(true)))
            .count(),
        pcie: match (device.current_pcie_link_gen(), device.current_pcie_link_width()) {
            (Ok(generation), Ok(width)) => format!("{generation}.0 x{width}"),
            _ => String::new(),
        },
    });
    let health: Vec<Health> = health.collect();
    let mut paths = Vec::new();
    for from in 0..devices.len() {
        for to in from + 1..devices.len() {
            let path = if health[from].nvlinks > 0 && health[to].nvlinks > 0 {
                "NVLink".to_owned()
            } else {
                // The call takes the other device by value.
                let other = find(&gpus[to]).and_then(|other| devices[from].topology_common_ancestor(other));
                other.map_or_else(|_| "unknown".to_owned(), shared)
            };
            paths.push((from, to, path));
        }
    }
    Ok(NvmlReport { health, paths })
}

/// The reasons for a clock below its maximum. Idling does not count, because it ends when work begins.
fn reasons(now: ThrottleReasons) -> Vec<String> {
    [
        (ThrottleReasons::SW_POWER_CAP, "the power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "a slowdown by the hardware"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "its temperature"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "its temperature (hardware)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "the power supply"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "a clock that was set"),
        (ThrottleReasons::SYNC_BOOST, "another GPU of its boost group"),
    ]
    .into_iter()
    .filter(|(reason, _)| now.contains(*reason))
    .map(|(_, words)| words.to_owned())
    .collect()
}

fn shared(level: TopologyLevel) -> String {
    match level {
        TopologyLevel::Internal => "one board",
        TopologyLevel::Single => "one PCIe switch",
        TopologyLevel::Multiple => "several PCIe switches",
        TopologyLevel::HostBridge => "one host bridge",
        TopologyLevel::Node => "one processor",
        TopologyLevel::System => "across processors",
    }
    .to_owned()
}
