use crate::Dtype;
use autodist_spec::{Bytes, BytesPerSecond, FlopsPerSecond, InputError, Seconds};

/// Published figures of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFigures {
    pub name: String,
    /// Generation whose kernels it runs: `volta`, `ampere`, `ada`, `hopper`, `blackwell`, `cdna2`, `cdna3`, …
    pub architecture: String,
    pub memory: Bytes,
    pub memory_rate: BytesPerSecond,
    /// Streaming multiprocessors or compute units.
    pub processors: u32,
    pub l2: Bytes,
    /// Peak dense rates, one for each of [`Dtype::ALL`]; absent where the device has no such arithmetic.
    pub peak: [Option<FlopsPerSecond>; 6],
    /// Highest rate of bf16 matrix products that was measured.
    pub achievable: Option<FlopsPerSecond>,
    /// From a device to the others of its node together, one direction.
    pub link_rate: BytesPerSecond,
    pub link_kind: LinkKind,
    /// What one kernel costs beyond its work.
    pub launch: Seconds,
    pub source: String,
}

/// How the devices of a node are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// NVLink through switches: each device reaches every other at its full rate.
    NvSwitch,
    /// NVLink or xGMI directly between devices: a pair has a part of the rate.
    Mesh,
    /// Over the host's PCI Express.
    Pcie,
}

/// A machine that can be rented or bought.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeShape {
    pub name: String,
    pub device: String,
    pub devices: u32,
    pub nics: u32,
    /// Of each card, one direction.
    pub nic_rate: BytesPerSecond,
    pub fabric: String,
    pub source: String,
}

/// A kind of network between nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Fabric {
    pub name: String,
    /// Of one message between two nodes.
    pub latency: Seconds,
    /// Part of the cards' rate that large messages reach.
    pub efficiency: f64,
    pub source: String,
}

/// All devices, nodes and fabrics that have a name.
#[derive(Debug, Clone)]
pub struct Catalogue {
    devices: Vec<DeviceFigures>,
}

impl DeviceFigures {
    pub fn peak(&self, dtype: Dtype) -> Option<FlopsPerSecond> {
        self.peak[dtype as usize]
    }
}

impl Catalogue {
    /// What is shipped.
    pub fn shipped() -> Self {
        Self { devices: Vec::new() }
    }

    /// This catalogue and the devices of a TOML text, which take the place of those of the same name.
    ///
    /// # Errors
    /// Text that is no list of devices; names `file`, the device and the field.
    pub fn with_devices(self, _toml: &str, _file: &str) -> Result<Self, InputError> {
        Ok(self)
    }

    pub fn devices(&self) -> &[DeviceFigures] {
        &self.devices
    }

    /// # Errors
    /// An unknown name; the hint gives the closest.
    pub fn device(&self, name: &str) -> Result<&DeviceFigures, InputError> {
        self.devices
            .iter()
            .find(|d| d.name == name)
            .ok_or_else(|| InputError::new("device", name, "is not in the catalogue"))
    }
}
