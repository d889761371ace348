//! Selects the measured device whose parameters an unmeasured one uses.

use autodist_spec::catalog::{self, DeviceFigures};

/// Positions of the generations, in order; a distance of a half or more means that kernels are written
/// differently.
fn generation(architecture: Option<&str>) -> f64 {
    match architecture {
        Some("volta") => 0.0,
        Some("ampere" | "cdna2") => 1.0,
        Some("ada") => 1.5,
        Some("blackwell" | "blackwell-ultra") => 3.0,
        Some("blackwell-rtx") => 2.5,
        Some("cdna4") => 3.0,
        // Hopper and CDNA3; an unknown generation is placed with them.
        _ => 2.0,
    }
}

/// Whether kernels are written alike for both devices.
pub(crate) fn are_of_one_generation(one: &DeviceFigures, other: &DeviceFigures) -> bool {
    let [a, b] = [one, other].map(|device| generation(device.architecture.as_deref()));
    let maker = |device: &DeviceFigures| match device.architecture.as_deref() {
        Some("other") => "other",
        Some(name) if name.starts_with("cdna") => "cdna",
        _ => "cuda",
    };
    (a - b).abs() < 0.5 && maker(one) == maker(other)
}

/// Distance of two devices: generations first, then figures.
fn distance(one: &DeviceFigures, other: &DeviceFigures) -> f64 {
    if one.name == other.name {
        return -1.0;
    }
    let generations = generation(one.architecture.as_deref()) - generation(other.architecture.as_deref());
    let apart = |one: f64, other: f64| (one / other).ln().abs();
    10.0 * generations.abs()
        + apart(one.peak_flops_per_s.0, other.peak_flops_per_s.0)
        + apart(one.memory_bytes_per_s.0, other.memory_bytes_per_s.0)
}

/// The entry of the nearest device, and that device's own figures. An entry of a device that is not in the
/// catalogue matches only a device of the same name.
pub(crate) fn nearest<'a, T>(
    figures: &DeviceFigures,
    entries: impl Iterator<Item = &'a T>,
    device: impl Fn(&T) -> &String,
) -> Option<(&'a T, DeviceFigures)> {
    entries
        .filter_map(|entry| {
            let name = device(entry);
            if *name == figures.name {
                return Some((entry, figures.clone()));
            }
            catalog::devices().iter().find(|known| known.name == *name).map(|known| (entry, known.clone()))
        })
        .min_by(|(_, a), (_, b)| distance(figures, a).total_cmp(&distance(figures, b)))
}
