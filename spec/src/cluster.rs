//! The machines: nodes of devices, connected by links.

use crate::catalog::{self, DeviceFigures};
use crate::error::{InputError, in_range, not_negative, rate as rate_in};
use crate::host::NodeHost;
use crate::parse::{self, Check, SCHEMA_VERSION};
use crate::training::check_price;
use crate::units::{Bytes, BytesPerSecond, FlopsPerSecond, Provenance, Seconds};
use crate::utilisation::Peak;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A cluster of nodes with devices. Ranks are numbered in the order of the nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub schema_version: u32,
    pub name: String,
    pub nodes: Vec<NodeGroup>,
    /// Link between nodes; required if there is more than one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Link>,
}

/// A group of `count` equal nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeGroup {
    pub count: u32,
    pub devices: u32,
    #[schemars(with = "DeviceForm")]
    pub device: Device,
    /// Time that the host of each node takes to launch a kernel, relative to the hosts of the runs to which
    /// the catalogue was fitted; 1 if it is missing. Only prices without a profile depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_slowness: Option<f64>,
    /// Host memory, and the way from there to the devices; only state that is kept away from the devices needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<NodeHost>,
    /// Price of one of these devices for one hour, in US dollars. Plans of trainings with a known number of tokens
    /// then include the cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_device_hour: Option<f64>,
    /// Number of network cards of each node, which its devices share; if it is missing, one per device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<u32>,
    /// Link between two devices of one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// Link from each of these nodes to the others, shared by its devices; defaults to `network`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Link>,
    /// Link from the other nodes to each of these, shared by its devices; defaults to the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downlink: Option<Link>,
}

/// A compute device. A cluster file has either a name from the catalogue or a table with these fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    pub name: String,
    pub memory_bytes: Bytes,
    /// Peak rate of dense 16-bit GEMMs in FLOP/s, as published or given; for an emulated device, its rate in
    /// training. Absent for devices that were measured: older profiles have the rate of their fastest GEMM
    /// here, which is not a peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_flops_per_s: Option<FlopsPerSecond>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_s: Option<BytesPerSecond>,
    pub provenance: Provenance,
    /// Source of the figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A link in one direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub bytes_per_s: BytesPerSecond,
    #[serde(default)]
    pub latency_s: Seconds,
}

/// A device in a file: a name of the catalogue, or a complete table.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Device")]
#[expect(dead_code, reason = "it only describes the files: `Device` reads them itself, with better messages")]
enum DeviceForm {
    Name(String),
    Table(DeviceTable),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DeviceTable {
    name: String,
    memory_bytes: Bytes,
    peak_flops_per_s: Option<FlopsPerSecond>,
    memory_bytes_per_s: Option<BytesPerSecond>,
    #[serde(default = "assumed")]
    provenance: Provenance,
    source: Option<String>,
}

fn assumed() -> Provenance {
    Provenance::Assumed
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        // Parsed in two steps, so that errors name the wrong field of the table instead of "no variant
        // matched".
        let value = serde_json::Value::deserialize(deserializer)?;
        match value {
            serde_json::Value::String(name) => {
                catalog::device(&name).map(|(device, _)| device).map_err(|e| D::Error::custom(e.problem))
            }
            other => serde_json::from_value::<DeviceTable>(other).map(Device::from).map_err(D::Error::custom),
        }
    }
}

impl Device {
    /// Published peak of dense GEMMs of `bf16`, `fp32`, `tf32` or `fp8`, if a catalogue of devices has it: the
    /// built-in catalogue, which is searched for the device's own name and its driver's name, or the device file
    /// from which this device was read.
    pub fn published_peak(&self, arithmetic: &str) -> Option<Peak> {
        let figures = catalog::devices().iter().find(|known| known.is_called(&self.name));
        let known = figures.and_then(|figures| figures.peak(arithmetic));
        // A device from a catalogue also has its 16-bit figure.
        match self.peak_flops_per_s.filter(|_| self.provenance == Provenance::Modelled) {
            Some(rate) if ["bf16", "fp16"].contains(&arithmetic) => {
                let own = if arithmetic == "bf16" { "bf16" } else { "fp16" };
                Some(Peak { rate, arithmetic: known.map_or(own, |peak| peak.arithmetic) })
            }
            _ => known,
        }
    }

    /// The rate of the fastest GEMM, which older profiles have in place of a peak.
    pub fn measured_rate(&self) -> Option<FlopsPerSecond> {
        self.peak_flops_per_s.filter(|_| self.provenance == Provenance::Measured)
    }
}

impl From<DeviceTable> for Device {
    fn from(t: DeviceTable) -> Self {
        Self {
            name: t.name,
            memory_bytes: t.memory_bytes,
            peak_flops_per_s: t.peak_flops_per_s,
            memory_bytes_per_s: t.memory_bytes_per_s,
            provenance: t.provenance,
            source: t.source,
        }
    }
}

impl Cluster {
    pub fn device_count(&self) -> u32 {
        self.nodes.iter().map(|group| group.count * group.devices).sum()
    }

    pub fn node_count(&self) -> u32 {
        self.nodes.iter().map(|group| group.count).sum()
    }

    /// Number of devices of each node.
    pub fn devices_per_node(&self) -> Vec<u32> {
        self.nodes.iter().flat_map(|g| std::iter::repeat_n(g.devices, g.count as usize)).collect()
    }

    /// The peak of [`Device::published_peak`], on average over the devices; `None` if one of them has none.
    pub fn published_peak(&self, arithmetic: &str) -> Option<Peak> {
        let (first, others) = self.nodes.split_first()?;
        let mut mean = first.device.published_peak(arithmetic)?;
        let mut devices = first.count * first.devices;
        for group in others {
            let peak = group.device.published_peak(arithmetic)?;
            let more = group.count * group.devices;
            let weight = f64::from(more) / f64::from(devices + more);
            mean.rate = FlopsPerSecond(mean.rate.0 + weight * (peak.rate.0 - mean.rate.0));
            devices += more;
        }
        Some(mean)
    }

    /// Price of all devices for one hour, in US dollars; `None` if one has no price.
    pub fn usd_per_hour(&self) -> Option<f64> {
        let of =
            |group: &NodeGroup| Some(group.usd_per_device_hour? * f64::from(group.count * group.devices));
        self.nodes.iter().map(of).sum()
    }

    /// A cluster with `devices` devices: more or fewer of the same nodes, or fewer devices of one node.
    ///
    /// # Errors
    /// The cluster has several kinds of nodes, its nodes do not have this number of devices together, or several
    /// nodes have no network.
    pub fn of_size(&self, devices: u32) -> Result<Self, InputError> {
        let refused = |problem: String| InputError::new("devices", devices, problem);
        let name = &self.name;
        let kinds = self.node_kinds();
        let [kind] = kinds.as_slice() else {
            return Err(refused(format!("{name} has nodes of several kinds, and so no other sizes")));
        };
        let mut group = kind.group.clone();
        let each = group.devices;
        if devices >= each && !devices.is_multiple_of(each) {
            return Err(refused(format!("is not a multiple of the {each} devices of a node of {name}")));
        }
        (group.count, group.devices) = ((devices / each).max(1), each.min(devices));
        if group.count > 1 && self.network.is_none() && group.uplink.is_none() {
            let nodes = group.count;
            return Err(refused(format!("needs {nodes} nodes, but {name} gives no network between nodes")));
        }
        let name = format!("{}x{}x{}", group.count, group.devices, group.device.name);
        let cluster = Self { name, nodes: vec![group], ..self.clone() };
        cluster.check()?;
        Ok(cluster)
    }

    /// The device of the first node. `homogeneous` returns whether all nodes have the same device.
    pub fn device(&self) -> &Device {
        &self.nodes[0].device
    }

    pub fn homogeneous(&self) -> bool {
        self.nodes.iter().all(|group| group.device == self.nodes[0].device)
    }

    /// Reads a cluster's TOML file, which may refer to `devices` by name.
    ///
    /// # Errors
    /// Text that is not a valid cluster, or the name of a device that is not in `devices`.
    pub fn read(file: &str, text: &[u8], devices: &[DeviceFigures]) -> Result<Self, InputError> {
        let mut value = parse::toml_value(file, text, Self::WHAT)?;
        let groups = value.get_mut("nodes").and_then(|nodes| nodes.as_array_mut());
        for (index, group) in groups.into_iter().flatten().enumerate() {
            if let Some(device) = group.get_mut("device")
                && let Some(name) = device.as_str()
            {
                let (found, _) = catalog::device_of(devices, name).map_err(|error| {
                    InputError { field: format!("nodes[{index}].device"), ..error }.in_file(file)
                })?;
                *device = serde_json::to_value(found).unwrap_or_default();
            }
        }
        parse::from_value(file, value)
    }

    /// Reads `<nodes>x<devices per node>x<device>[+…][@<NICs per node>x<rate>]`, e.g.
    /// `64x8xa100-80gb-sxm@8x200gbps`, or `4x8xh100-80gb-sxm+8x8xa100-80gb-sxm@8x400gbps` for nodes of two kinds.
    pub fn from_short_form(text: &str) -> Result<Self, InputError> {
        Self::from_short_form_with(text, catalog::devices())
    }

    /// Reads the short form, with the devices in `known`.
    ///
    /// # Errors
    /// Invalid text, or an unknown device.
    pub fn from_short_form_with(text: &str, known: &[DeviceFigures]) -> Result<Self, InputError> {
        Self::from_short_form_like(text, known, None)
    }

    /// As `from_short_form_with`; without a device name, nodes have devices and links like those of `own`.
    ///
    /// # Errors
    /// Invalid text, or an unknown device.
    pub fn from_short_form_like(
        text: &str,
        known: &[DeviceFigures],
        own: Option<&NodeGroup>,
    ) -> Result<Self, InputError> {
        let wrong = |problem: String| {
            InputError::new("cluster", text, problem).hint(
                "write <nodes>x<devices per node>x<device>[@<NICs per node>x<rate>], e.g. 2x8xa100-80gb-sxm@8x200gbps, \
                 with `+` between kinds of nodes; `autodist catalog` lists the devices, `estimate --devices` adds to them",
            )
        };
        crate::text::check_name("cluster", text)?;
        let (machines, network) = match text.split_once('@') {
            Some((machines, network)) => (machines, Some(network)),
            None => (text, None),
        };
        // A node with one device has one network card; of others, the rate could be a card's or the node's.
        let alone = machines.split('+').all(|nodes| nodes.split('x').nth(1) == Some("1"));
        let network =
            network.map(|n| if alone && !n.contains('x') { format!("1x{n}") } else { n.to_owned() });
        let (nics, network) = network.map(|n| parse_network(&n, &wrong)).transpose()?.unzip();
        let group = |machines| Ok(NodeGroup { nics, ..parse_nodes(machines, known, own, &wrong)? });
        let nodes = machines.split('+').map(group).collect::<Result<Vec<_>, InputError>>()?;
        let cluster = Self { schema_version: SCHEMA_VERSION, name: text.to_owned(), nodes, network };
        let count: u64 = cluster.nodes.iter().map(|group| u64::from(group.count)).sum();
        if count > 1 && cluster.network.is_none() {
            return Err(wrong(format!(
                "{count} nodes need a network: expected `@<NICs per node>x<rate>` at the end"
            )));
        }
        cluster.check()?;
        Ok(cluster)
    }
}

/// Nodes of one kind, without a network.
fn parse_nodes(
    text: &str,
    known: &[DeviceFigures],
    own: Option<&NodeGroup>,
    wrong: &dyn Fn(String) -> InputError,
) -> Result<NodeGroup, InputError> {
    let mut parts = text.splitn(3, 'x');
    let mut number = |what: &str| -> Result<u32, InputError> {
        let part = parts.next().unwrap_or_default();
        part.parse()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| wrong(format!("expected the number of {what}, found `{part}`")))
    };
    let count = number("nodes")?;
    let devices = number("devices per node")?;
    let (device, link) = match (parts.next().filter(|name| !name.is_empty()), own) {
        (Some(name), _) => catalog::device_of(known, name).map_err(|e| wrong(e.problem))?,
        (None, Some(own)) => (own.device.clone(), own.link.clone()),
        (None, None) => {
            return Err(wrong("the device name is missing after the number of devices".to_owned()));
        }
    };
    let host_slowness = own.and_then(|own| own.host_slowness);
    let host = own.and_then(|own| own.host.clone());
    let usd_per_device_hour = own.and_then(|own| own.usd_per_device_hour);
    Ok(NodeGroup {
        count,
        devices,
        device,
        host_slowness,
        host,
        usd_per_device_hour,
        nics: None,
        link,
        uplink: None,
        downlink: None,
    })
}

/// Number of network cards of a node, and their total bandwidth as a link.
fn parse_network(text: &str, wrong: &dyn Fn(String) -> InputError) -> Result<(u32, Link), InputError> {
    let (nics, rate) = text
        .split_once('x')
        .ok_or_else(|| wrong(format!("expected <NICs>x<rate> after the `@`, found `{text}`")))?;
    let nics: u32 = nics
        .parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| wrong(format!("expected the number of NICs per node, found `{nics}`")))?;
    // A capital B is bytes, a small one bits: a factor of eight.
    if rate.contains('B') {
        return Err(wrong(format!("expected bits per second, e.g. 200gbps, found bytes: `{rate}`")));
    }
    let lower = rate.to_ascii_lowercase();
    let (digits, scale) = [("tbps", 1e12), ("gbps", 1e9), ("mbps", 1e6), ("gbit", 1e9), ("mbit", 1e6)]
        .iter()
        .find_map(|(unit, scale)| lower.strip_suffix(unit).map(|digits| (digits, *scale)))
        .ok_or_else(|| wrong(format!("expected a rate with a unit, e.g. 200gbps, found `{rate}`")))?;
    let bits: f64 = digits
        .parse()
        .ok()
        .filter(|v: &f64| v.is_finite() && *v > 0.0)
        .ok_or_else(|| wrong(format!("expected a positive rate before the unit, found `{digits}`")))?;
    let bytes_per_s = BytesPerSecond(f64::from(nics) * bits * scale / 8.0);
    Ok((nics, Link { bytes_per_s, latency_s: Seconds::ZERO }))
}

impl Check for Cluster {
    const WHAT: &'static str = "cluster";

    fn check(&self) -> Result<(), InputError> {
        if self.nodes.is_empty() {
            return Err(InputError::new("nodes", "[]", "must not be empty: a cluster has at least one node")
                .hint("add a [[nodes]] table with count, devices and device"));
        }
        let mut devices = 0;
        for (index, group) in self.nodes.iter().enumerate() {
            let at = |field: &str| format!("nodes[{index}].{field}");
            in_range(&at("count"), u64::from(group.count), 1, 1 << 20)?;
            in_range(&at("devices"), u64::from(group.devices), 1, 1 << 12)?;
            if let Some(usd) = group.usd_per_device_hour {
                check_price(&at("usd_per_device_hour"), usd)?;
            }
            if let Some(host) = &group.host {
                host.check().map_err(|error| error.under(&at("host")))?;
            }
            if let Some(nics) = group.nics {
                in_range(&at("nics"), u64::from(nics), 1, 1 << 12)?;
            }
            if let Some(slowness) = group.host_slowness.filter(|slowness| !(1e-3..=1e3).contains(slowness)) {
                let problem = "must be from 0.001 to 1000: a ratio of launch times";
                return Err(InputError::new(at("host_slowness"), slowness, problem).hint(
                    "give 1 for a host like those of the fitted runs, 2 for one that takes twice as long",
                ));
            }
            devices += u64::from(group.count) * u64::from(group.devices);
            in_range("total number of devices", devices, 1, 1 << 20)?;
            in_range(&at("device.memory_bytes"), group.device.memory_bytes.0, 1 << 20, 1 << 50)?;
            if let Some(rate) = group.device.peak_flops_per_s {
                rate_in(&at("device.peak_flops_per_s"), rate.0)?;
            }
            if let Some(rate) = group.device.memory_bytes_per_s {
                rate_in(&at("device.memory_bytes_per_s"), rate.0)?;
            }
            for (name, link) in
                [("link", &group.link), ("uplink", &group.uplink), ("downlink", &group.downlink)]
            {
                let Some(link) = link else { continue };
                rate_in(&at(&format!("{name}.bytes_per_s")), link.bytes_per_s.0)?;
                not_negative(&at(&format!("{name}.latency_s")), link.latency_s.0)?;
            }
        }
        if let Some(network) = &self.network {
            rate_in("network.bytes_per_s", network.bytes_per_s.0)?;
            not_negative("network.latency_s", network.latency_s.0)?;
        }
        let apart = self.nodes.iter().any(|group| group.uplink.is_none());
        if self.node_count() > 1 && self.network.is_none() && apart {
            return Err(InputError::new("network", "", "is missing; it is required with more than one node")
                .hint("add [network] with bytes_per_s and latency_s"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_names_nodes_devices_and_network() {
        let cluster = Cluster::from_short_form("64x8xa100-80gb-sxm@8x200gbps").unwrap();
        assert_eq!(cluster.device_count(), 512);
        assert_eq!(cluster.network.unwrap().bytes_per_s, BytesPerSecond(200e9));
        assert_eq!(cluster.nodes[0].nics, Some(8));
    }

    #[test]
    fn a_bad_short_form_says_what_is_wrong() {
        for (text, expected) in [
            ("", "expected the number of nodes"),
            ("0x8xa100-80gb-sxm", "expected the number of nodes"),
            ("2x8", "the device name is missing"),
            ("1x8xabacus", "abacus"),
            ("2x8xa100-80gb-sxm", "need a network"),
            ("1x8xa100-80gb-sxm+1x8xh100-80gb-sxm", "2 nodes need a network"),
            ("1x8xa100-80gb-sxm+@8x400gbps", "expected the number of nodes, found ``"),
            ("1x8xa100-80gb-sxm+1x8@8x400gbps", "the device name is missing"),
            ("2x8xa100-80gb-sxm@200gbps", "expected <NICs>x<rate>"),
            ("2x8xa100-80gb-sxm@8x200", "a rate with a unit"),
            ("2x8xa100-80gb-sxm@8xNaNgbps", "expected a positive rate"),
            ("2x8xa100-80gb-sxm@8x400GBps", "found bytes"),
            ("2x8xa100-80gb-sxm@8x400gBps", "found bytes"),
            ("2x8xa100-80gb-sxm@8x400GiBps", "found bytes"),
        ] {
            let error = Cluster::from_short_form(text).unwrap_err();
            assert!(error.problem.contains(expected), "{text}: {error}");
        }
    }
}
