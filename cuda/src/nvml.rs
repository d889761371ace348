//! How the GPUs are just now, and how they are wired, as NVIDIA's management library tells it.

use crate::device::Gpu;
use crate::error::{CudaError, Missing};
use crate::library::Libraries;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TopologyLevel};
use nvml_wrapper::error::NvmlError;

/// What may change between two measurements on a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    pub driver: String,
    /// Clock of the multiprocessors, MHz: now, and the highest.
    pub clock_mhz: Option<u32>,
    pub highest_clock_mhz: Option<u32>,
    /// Why the clock is held down, in words.
    pub throttled: Vec<String>,
    /// Other processes that compute on it.
    pub other_processes: usize,
    /// Links to other GPUs that are up.
    pub nvlinks: usize,
    /// As "4 x16".
    pub pcie: String,
}

/// Health of each GPU, and of each pair the nearest thing that they share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NvmlReport {
    pub health: Vec<Health>,
    pub paths: Vec<(usize, usize, String)>,
}

/// Looks at `gpus`.
///
/// # Errors
/// NVML is missing or refuses; what a GPU does not tell is left out.
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
                // The call takes the other one by value.
                let other = find(&gpus[to]).and_then(|other| devices[from].topology_common_ancestor(other));
                other.map_or_else(|_| "unknown".to_owned(), shared)
            };
            paths.push((from, to, path));
        }
    }
    Ok(NvmlReport { health, paths })
}

/// What holds a clock below its highest. Idling is no reason: work ends it.
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
