//! Devices, nodes and fabrics by name.

use autodist_spec::catalog::{self, DeviceFigures, closest};
use autodist_spec::{BytesPerSecond, InputError, Seconds};
use serde::Deserialize;
use std::sync::LazyLock;

/// A machine that can be rented or bought.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeShape {
    pub name: String,
    pub device: String,
    pub devices: u32,
    /// Network NICs.
    pub nics: u32,
    /// Bandwidth of each NIC in one direction.
    pub nic_bytes_per_s: BytesPerSecond,
    pub fabric: String,
    pub source: String,
}

/// A kind of network between nodes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    pub name: String,
    /// Latency of one send/recv between two nodes.
    pub latency_s: Seconds,
    /// Fraction of the NICs' bandwidth that large collectives reach.
    pub efficiency: f64,
    /// NICs of a node that the rings of one group use; if absent, the NICs of all its devices.
    pub group_nics: Option<u32>,
    pub source: String,
}

/// Bandwidth of large all-reduces inside a node, for devices that no table of kernels covers: bytes that each
/// device sends per second, by the number of devices in the group.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusRates {
    /// Names of the devices.
    pub devices: Vec<String>,
    /// Pairs of number of devices and bytes per second.
    pub rates: Vec<(u32, BytesPerSecond)>,
    pub source: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    fabric: Vec<Fabric>,
    node: Vec<NodeShape>,
    rented: Vec<NodeShape>,
    bus: Vec<BusRates>,
}

/// All named devices, nodes and fabrics.
#[derive(Debug, Clone)]
pub struct Catalogue {
    devices: Vec<DeviceFigures>,
}

static NODES: LazyLock<NodeFile> = LazyLock::new(|| {
    toml::from_str(include_str!("../../catalog/nodes.toml")).expect("the embedded catalogue is one of nodes")
});

impl Catalogue {
    /// The shipped catalogue.
    pub fn shipped() -> Self {
        Self { devices: catalog::devices().to_vec() }
    }

    /// This catalogue with the devices of a TOML text added; they replace devices of the same name.
    ///
    /// # Errors
    /// The text is not a list of devices; the error names `file`, the device and the field.
    pub fn with_devices(mut self, file: &str, toml: &[u8]) -> Result<Self, InputError> {
        for device in catalog::read_devices(file, toml)? {
            self.devices.retain(|known| known.name != device.name);
            self.devices.push(device);
        }
        Ok(self)
    }

    pub fn devices(&self) -> &[DeviceFigures] {
        &self.devices
    }

    pub fn nodes(&self) -> &[NodeShape] {
        &NODES.node
    }

    /// All kinds of nodes that a cluster may name: those of [`Catalogue::nodes`], and rented ones.
    pub fn machines(&self) -> impl Iterator<Item = &'static NodeShape> {
        NODES.node.iter().chain(&NODES.rented)
    }

    pub fn fabrics(&self) -> &[Fabric] {
        &NODES.fabric
    }

    /// # Errors
    /// The name is unknown; the error names the closest one.
    pub fn device(&self, name: &str) -> Result<&DeviceFigures, InputError> {
        find("device", name, &self.devices, |device| &device.name)
            .map_err(|error| error.hint("`autodist catalog` lists the devices; `--devices FILE` adds more"))
    }

    /// Whether both names are of the same device: in a catalogue, or as its driver calls it.
    pub fn is_same_device(&self, one: &str, other: &str) -> bool {
        one == other || self.devices.iter().any(|known| known.is_called(one) && known.is_called(other))
    }

    /// # Errors
    /// The name is unknown; the error names the closest one.
    pub fn node(&self, name: &str) -> Result<&NodeShape, InputError> {
        find("node", name, &NODES.node, |node| &node.name)
    }

    /// # Errors
    /// The name is unknown; the error names the closest one.
    pub fn fabric(&self, name: &str) -> Result<&Fabric, InputError> {
        find("fabric", name, &NODES.fabric, |fabric| &fabric.name)
    }

    pub(crate) fn bus_rates(device: &str) -> Option<&'static BusRates> {
        NODES.bus.iter().find(|bus| bus.devices.iter().any(|name| name == device))
    }
}

fn find<'a, T>(
    what: &str,
    name: &str,
    all: &'a [T],
    name_of: impl Fn(&T) -> &String,
) -> Result<&'a T, InputError> {
    all.iter().find(|entry| name_of(entry) == name).ok_or_else(|| {
        let nearest = closest(name, all.iter().map(|entry| name_of(entry).as_str()));
        InputError::new(what, name, format!("the catalogue has no {what} `{name}`; did you mean {nearest}?"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_names_a_device_and_a_fabric() {
        let catalogue = Catalogue::shipped();
        for node in catalogue.machines() {
            catalogue.device(&node.device).unwrap();
            let fabric = catalogue.fabric(&node.fabric).unwrap();
            assert!(0.0 < fabric.efficiency && fabric.efficiency <= 1.0);
        }
        for bus in &NODES.bus {
            bus.devices.iter().for_each(|name| assert!(catalogue.device(name).is_ok(), "{name}"));
            assert!(bus.rates.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }

    #[test]
    fn a_users_device_joins_the_catalogue_or_is_refused_with_its_field() {
        let good = r#"
            [[device]]
            name = "abacus"
            memory_bytes = 1000000000
            peak_flops_per_s = 1e12
            memory_bytes_per_s = 1e11
            link_bytes_per_s = 1e9
            source = "counted"
        "#;
        let with = |text: &str| Catalogue::shipped().with_devices("mine.toml", text.as_bytes());
        let catalogue = with(good).unwrap();
        assert_eq!(catalogue.device("abacus").unwrap().source, "counted");
        for (from, to, expected) in [
            ("1e12", "-1.0", "`device `abacus`.peak_flops_per_s` is `-1`"),
            ("\"abacus\"", "3", "`device[0].name` is `3`"),
            ("1e11", "nan", "`device[0].memory_bytes_per_s` is `NaN`"),
            ("source", "architecture = \"babbage\"\nsource", "`babbage`"),
            ("source", "colour = \"brass\"\nsource", "colour"),
            ("source = \"counted\"", "", "missing field `source`"),
            (good, "", "empty"),
        ] {
            let error = with(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains("mine.toml") && error.contains(expected), "{to}: {error}");
            assert!(error.contains("hint: "), "{error}");
        }
        assert!(with(&good.repeat(2)).unwrap_err().to_string().contains("earlier device"));
        assert!(catalogue.device("h100").unwrap_err().to_string().contains("h100-80gb-sxm"));
    }
}
