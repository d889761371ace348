//! Built-in models and devices: data files, embedded when the program is built.

use crate::cluster::{Device, Link};
use crate::error::{InputError, in_range, rate as rate_in};
use crate::model::ModelSpec;
use crate::model_names;
pub use crate::nicknames::understand;
use crate::parse::{self, Check};
use crate::units::{Bytes, BytesPerSecond, FlopsPerSecond, Provenance, Seconds};
use crate::utilisation::Peak;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// A model of the catalogue, with the source of its shape.
#[derive(Debug, Clone)]
pub struct CatalogModel {
    pub spec: ModelSpec,
    pub source: String,
    /// Published number of parameters; rounded for the largest models.
    pub published_parameters: u64,
}

/// Published figures of a device, as `catalog/devices.toml` and files of the same form give them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFigures {
    pub name: String,
    pub memory_bytes: Bytes,
    /// Published peak rate of dense bf16 GEMMs; of fp16 GEMMs if the device has no bf16.
    pub peak_flops_per_s: FlopsPerSecond,
    /// Published peak rates of dense GEMMs in other number formats.
    #[serde(default)]
    pub peaks: Peaks,
    /// Highest measured rate of bf16 GEMMs, if it is known.
    pub achievable_flops_per_s: Option<FlopsPerSecond>,
    pub memory_bytes_per_s: BytesPerSecond,
    pub l2_bytes: Option<Bytes>,
    /// Streaming multiprocessors or compute units.
    pub processors: Option<u32>,
    /// Architecture, which determines its kernels, e.g. `hopper`.
    pub architecture: Option<String>,
    /// Bandwidth from one device to all others of its node together, in one direction.
    pub link_bytes_per_s: BytesPerSecond,
    pub link: Option<LinkKind>,
    /// Its name in tables of measured kernels.
    pub measured_as: Option<String>,
    /// Names that its driver reports, e.g. `NVIDIA H200`. Profiles identify devices by these names.
    #[serde(default)]
    pub driver_names: Vec<String>,
    pub source: String,
}

/// Peak rates of dense GEMMs by number format, in operations per second; absent if the device does not
/// support the format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peaks {
    /// Rate without tensor cores.
    pub fp32: Option<FlopsPerSecond>,
    pub tf32: Option<FlopsPerSecond>,
    /// Given if it differs from bf16, or if the device has no bf16.
    pub fp16: Option<FlopsPerSecond>,
    pub fp8: Option<FlopsPerSecond>,
    pub fp4: Option<FlopsPerSecond>,
}

/// The interconnect between the devices of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// NVLink with switches: each device reaches every other device at its full rate.
    NvSwitch,
    /// Direct NVLink or xGMI links between devices: each pair has a part of a device's rate.
    Mesh,
    /// The host's PCI Express.
    Pcie,
}

static MODELS: LazyLock<Vec<CatalogModel>> = LazyLock::new(|| {
    let table: toml::Table =
        include_str!("../../catalog/models.toml").parse().expect("the embedded catalogue is TOML");
    let entries = table["model"].as_array().expect("a list of models").iter();
    entries
        .map(|entry| {
            let mut entry = entry.as_table().expect("a model is a table").clone();
            let mut take =
                |key: &str| entry.remove(key).unwrap_or_else(|| panic!("a model of the catalogue has {key}"));
            let source = take("source").as_str().expect("a source is text").to_owned();
            let published_parameters = take("published_parameters").as_integer().expect("a count") as u64;
            CatalogModel { spec: entry.try_into().expect("a model's shape"), source, published_parameters }
        })
        .collect()
});

/// Device architectures with known kernels.
const ARCHITECTURES: [&str; 11] = [
    "volta",
    "ampere",
    "ada",
    "hopper",
    "blackwell",
    "blackwell-ultra",
    "blackwell-rtx",
    "cdna2",
    "cdna3",
    "cdna4",
    "other",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceFile {
    device: Vec<DeviceFigures>,
}

static DEVICES: LazyLock<Vec<DeviceFigures>> = LazyLock::new(|| {
    read_devices("the embedded catalogue", include_bytes!("../../catalog/devices.toml"))
        .expect("it is one of devices")
});

/// Reads devices from a text in the format of `catalog/devices.toml`; `file` is its name in errors.
///
/// # Errors
/// Invalid text, or a figure out of range. The error names the file, the device and the field.
pub fn read_devices(file: &str, text: &[u8]) -> Result<Vec<DeviceFigures>, InputError> {
    let read = parse::toml::<DeviceFile>(file, text);
    let read = read.map_err(|error| match error.hint.starts_with("every field") {
        true => error.hint(
            "a device file holds [[device]] tables, each with name, memory_bytes, peak_flops_per_s, \
             memory_bytes_per_s, link_bytes_per_s, source; docs/files.md lists the optional fields",
        ),
        false => error,
    });
    Ok(read?.device)
}

impl Check for DeviceFile {
    const WHAT: &'static str = "device";

    fn versioned() -> bool {
        false
    }

    fn check(&self) -> Result<(), InputError> {
        for (index, device) in self.device.iter().enumerate() {
            device.check()?;
            if self.device[..index].iter().any(|earlier| earlier.name == device.name) {
                let error = InputError::new(
                    format!("device[{index}].name"),
                    &device.name,
                    "is the name of an earlier device, too",
                );
                return Err(error.hint("give each device of the file its own name"));
            }
        }
        Ok(())
    }
}

impl DeviceFigures {
    fn check(&self) -> Result<(), InputError> {
        let device = self;
        let at = |field: &str| format!("device `{}`.{field}", device.name);
        // A name is part of a cluster's short form.
        if device.name.is_empty() || device.name.contains(['@', ' ']) {
            let error =
                InputError::new("device.name", &device.name, "must be one word without spaces or `@`");
            return Err(error.hint("name it like the others, e.g. h100-96gb-500w"));
        }
        if let Some(architecture) = &device.architecture
            && !ARCHITECTURES.contains(&architecture.as_str())
        {
            let error = InputError::new(at("architecture"), architecture, "is not a known architecture");
            return Err(error.hint(format!(
                "use the nearest of {}, or remove `architecture` to use Hopper's kernels",
                ARCHITECTURES.join(", ")
            )));
        }
        in_range(&at("memory_bytes"), device.memory_bytes.0, 1 << 20, 1 << 50)?;
        if let Some(processors) = device.processors {
            in_range(&at("processors"), u64::from(processors), 1, 1 << 20)?;
        }
        let peaks = &device.peaks;
        for (field, rate) in [
            ("peak_flops_per_s", Some(device.peak_flops_per_s.0)),
            ("peaks.fp32", peaks.fp32.map(|rate| rate.0)),
            ("peaks.tf32", peaks.tf32.map(|rate| rate.0)),
            ("peaks.fp16", peaks.fp16.map(|rate| rate.0)),
            ("peaks.fp8", peaks.fp8.map(|rate| rate.0)),
            ("peaks.fp4", peaks.fp4.map(|rate| rate.0)),
            ("achievable_flops_per_s", device.achievable_flops_per_s.map(|rate| rate.0)),
            ("memory_bytes_per_s", Some(device.memory_bytes_per_s.0)),
            ("link_bytes_per_s", Some(device.link_bytes_per_s.0)),
        ] {
            rate.map_or(Ok(()), |rate| rate_in(&at(field), rate))?;
        }
        Ok(())
    }
}

/// All devices of the catalogue.
pub fn devices() -> &'static [DeviceFigures] {
    &DEVICES
}

impl DeviceFigures {
    /// Whether `name` is the device's name in the catalogue or one of its driver's names.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.driver_names.iter().any(|known| known == name)
    }

    /// Published peak of dense GEMMs of `bf16`, `fp32`, `tf32`, `fp16`, `fp8` or `fp4`; `None` if no peak is
    /// published.
    pub fn peak(&self, arithmetic: &str) -> Option<Peak> {
        // The 16-bit figure is for fp16; bf16 is at most as fast.
        let no_bf16 = self.architecture.as_deref() == Some("volta");
        let (rate, arithmetic) = match arithmetic {
            "bf16" if no_bf16 => (Some(self.peak_flops_per_s), "fp16"),
            "bf16" => (Some(self.peak_flops_per_s), "bf16"),
            "fp32" => (self.peaks.fp32, "fp32"),
            "tf32" => (self.peaks.tf32, "tf32"),
            "fp16" => (self.peaks.fp16.or(Some(self.peak_flops_per_s)), "fp16"),
            "fp8" => (self.peaks.fp8, "fp8"),
            "fp4" => (self.peaks.fp4, "fp4"),
            _ => (None, ""),
        };
        Some(Peak { rate: rate?, arithmetic })
    }

    /// The device as a cluster file describes it.
    pub fn device(&self) -> Device {
        Device {
            name: self.name.clone(),
            memory_bytes: self.memory_bytes,
            peak_flops_per_s: Some(self.peak_flops_per_s),
            memory_bytes_per_s: Some(self.memory_bytes_per_s),
            provenance: Provenance::Modelled,
            source: Some(self.source.clone()),
        }
    }
}

/// All models, smallest family first.
pub fn models() -> &'static [CatalogModel] {
    &MODELS
}

/// The model with this name, which may be that of a hub: [`crate::model_names::understand`].
///
/// # Errors
/// An unknown name; the hint gives the closest ones.
pub fn model(name: &str) -> Result<ModelSpec, InputError> {
    let names = || MODELS.iter().map(|m| m.spec.name.as_str());
    if let Some(known) = model_names::understand(name, names()) {
        return Ok(MODELS.iter().find(|m| m.spec.name == known).expect("it is one of them").spec.clone());
    }
    let sizes: Vec<(&str, f64)> =
        MODELS.iter().map(|m| (m.spec.name.as_str(), m.published_parameters as f64)).collect();
    Err(InputError::new("model", name, "is neither a model of the catalogue nor an existing file").hint(format!(
        "{} `autodist catalog` lists the models. Of any other model, save the config.json of its page on the Hugging Face \
         hub (tab “Files”), and give its path",
        model_names::suggestion(name, &sizes)
    )))
}

/// Names of all devices.
pub fn device_names() -> Vec<&'static str> {
    DEVICES.iter().map(|d| d.name.as_str()).collect()
}

/// The device with this name, and the link between two such devices of one node.
pub fn device(name: &str) -> Result<(Device, Option<Link>), InputError> {
    device_of(&DEVICES, name)
}

/// The device with this name among `devices`, and the link between two such devices of one node.
///
/// # Errors
/// An unknown name; the error suggests the closest one. Short names and vendors' spellings are known:
/// [`understand`].
pub fn device_of(devices: &[DeviceFigures], name: &str) -> Result<(Device, Option<Link>), InputError> {
    let entry = understand(devices, name).map(|(device, _)| device).ok_or_else(|| {
        let nearest = closest(name, devices.iter().map(|d| d.name.as_str()));
        InputError::new(
            "device",
            name,
            format!("the catalogue has no device `{name}`; did you mean {nearest}?"),
        )
        .hint("`autodist catalog` lists the devices; any other can be described in a cluster file")
    })?;
    let link = Link { bytes_per_s: entry.link_bytes_per_s, latency_s: Seconds::ZERO };
    Ok((entry.device(), Some(link)))
}

/// The known name that is most similar to `written` (Jaro-Winkler similarity); the first of several equally
/// similar ones. Names that begin with `written` have priority.
pub fn closest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> String {
    let written = written.to_ascii_lowercase();
    let begins = |name: &str| if name.starts_with(&written) { 1.0 } else { 0.0 };
    // A short name may be that of a family: `h101` for `h100-80gb-sxm`.
    let family = |name: &'a str| name.split('-').next().unwrap_or(name);
    let similarity = |name: &'a str| {
        let alike = |other: &str| strsim::jaro_winkler(&written, other);
        begins(name) + alike(name).max(alike(family(name)))
    };
    known
        .min_by(|a, b| similarity(b).total_cmp(&similarity(a)))
        .map(|name| format!("`{name}`"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Precision;
    use crate::parse::Check;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for entry in models() {
            let counted = entry.spec.total_parameters();
            let published = entry.published_parameters;
            // Rounded figures ("175B", "1.7B") are accurate to their last digit; exact figures must match
            // exactly.
            let digit = [1_000_000_000, 100_000_000].into_iter().find(|digit| published % digit == 0);
            let tolerance = digit.map_or(0.0, |digit| (0.5 * digit as f64 / published as f64).max(0.02));
            let error = (counted as f64 / published as f64 - 1.0).abs();
            assert!(error <= tolerance, "{}: {counted} parameters, published {published}", entry.spec.name);
            entry.spec.check().unwrap();
        }
    }

    #[test]
    fn flops_are_the_published_ones() {
        // Narayanan et al., SC'21, eq. (3): 96 B s l h^2 (1 + s/6h + V/16lh) with full recomputation, so 3/4
        // of it without, except for the head, which is never recomputed: 6BshV.
        let spec = model("gpt3-175b").unwrap();
        let (b, s) = (1536.0, 2048.0);
        let (l, h, v) = (96.0, 12288.0, f64::from(spec.vocab));
        let blocks = 72.0 * b * s * l * h * h * (1.0 + s / (6.0 * h));
        let expected = blocks + 6.0 * b * s * h * v;
        let counted = spec.step_flops((b * s) as u64, s as u64).0;
        assert!((counted / expected - 1.0).abs() < 1e-9, "{counted:e} against {expected:e}");
    }

    #[test]
    fn devices_are_known_by_the_drivers_names_with_the_peak_of_each_arithmetic() {
        let peak = |name: &str, precision: Precision| {
            let device = Device {
                name: name.to_owned(),
                peak_flops_per_s: None,
                provenance: Provenance::Measured,
                ..device("h100-80gb-sxm").unwrap().0
            };
            device.published_peak(precision.name()).map(|peak| (peak.rate.0, peak.arithmetic))
        };
        assert_eq!(peak("NVIDIA H200", Precision::Bf16), Some((989e12, "bf16")));
        assert_eq!(peak("h200-141gb-sxm", Precision::Fp32), Some((67e12, "fp32")));
        assert_eq!(peak("NVIDIA A100-SXM4-80GB", Precision::Tf32), Some((156e12, "tf32")));
        assert_eq!(peak("Tesla V100-SXM2-16GB", Precision::Bf16), Some((125e12, "fp16")));
        for unknown in ["cpu (some processor)", "NVIDIA H200 MIG 1g.18gb", "emulated", ""] {
            assert_eq!(peak(unknown, Precision::Bf16), None, "{unknown}");
        }
        let h100 = devices().iter().find(|d| d.name == "h100-80gb-sxm").unwrap();
        assert!(h100.peak("fp8").unwrap().rate.0 > 1.9 * h100.peak("bf16").unwrap().rate.0);
        // A device that does not support the precision has no peak for it.
        assert_eq!(devices().iter().find(|d| d.name == "a100-80gb-sxm").unwrap().peak("fp8"), None);
        // Names are unique.
        let mut names: Vec<_> = devices().iter().flat_map(|d| &d.driver_names).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_closest() {
        let error = model("lama2-7b").unwrap_err();
        assert!(error.to_string().contains("`llama2-7b`"), "{error}");
        assert!(device("h100-64gb").unwrap_err().problem.contains("h100-"));
        assert!(device("a100-64gb").unwrap_err().problem.contains("a100-"));
    }
}
