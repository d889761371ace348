//! Time of collectives within nodes and between them.

use crate::PredictedTime;
use crate::catalogue::{BusRates, Catalogue};
use crate::nccl::{CollectiveParameters, NcclDatatype};
use crate::nearest::nearest;
use crate::network;
use crate::parameters::KernelParameters;
use autodist_spec::catalog::{DeviceFigures, LinkKind};
use autodist_spec::{Bytes, BytesPerSecond, Cluster, Collective, InputError, Provenance, Seconds};

/// The ranks of a collective: `nodes` nodes with `per_node` ranks each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupShape {
    pub per_node: u32,
    pub nodes: u32,
    /// Groups of the same shape that run the same collective at the same time on other devices of the same
    /// nodes, and share the nodes' NICs with this one; includes this one.
    pub sharing: u32,
}

impl GroupShape {
    pub fn in_one_node(devices: u32) -> Self {
        Self { per_node: devices, nodes: 1, sharing: 1 }
    }

    pub fn ranks(self) -> u32 {
        self.per_node * self.nodes
    }
}

/// The network between nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InterNodeNetwork {
    /// Bandwidth of all NICs of a node together, in one direction.
    pub node_rate: BytesPerSecond,
    /// NICs of one node: a single device uses only its own NIC, or its share of one.
    pub nics: u32,
    /// Devices of one node.
    pub devices: u32,
    /// Latency of one send/recv.
    pub latency: Seconds,
    /// Fraction of the bandwidth that large collectives reach.
    pub efficiency: f64,
    /// NICs of a node that the rings of one group use; if absent, the NICs of all its devices.
    pub group_nics: Option<u32>,
}

/// Prices collectives within nodes and between them.
#[derive(Debug, Clone)]
pub struct Interconnect {
    inside: Vec<CollectiveParameters>,
    /// Link bandwidths of this device relative to those of the device that the parameters were fitted to.
    scale: f64,
    bus: Option<&'static BusRates>,
    own: bool,
    /// Spread of predictions for links that were not measured.
    spread: f64,
    network: Option<InterNodeNetwork>,
}

/// Spread of predictions for unmeasured devices with NVLink or similar links, and for nodes with a measured
/// bus bandwidth: two thirds of the errors of each measured device, predicted from the others, lie within it
/// (the A100 has the largest).
const OTHER_LINKS: f64 = 0.25;

/// Spread for PCI Express, where servers differ by a factor of two and more: from an L40S's links to those of
/// an RTX PRO 6000, and vice versa.
const OTHER_SERVERS: f64 = 1.0;

impl Interconnect {
    /// A node of the shipped catalogue, e.g. `dgx-h100`, with its own NICs and fabric.
    ///
    /// # Errors
    /// The name is unknown; the hint gives the closest one.
    pub fn named(node: &str) -> Result<Self, InputError> {
        let catalogue = Catalogue::shipped();
        let node = catalogue.node(node)?;
        let fabric = catalogue.fabric(&node.fabric)?;
        let network = InterNodeNetwork {
            node_rate: node.nic_bytes_per_s * f64::from(node.nics),
            nics: node.nics,
            devices: node.devices,
            latency: fabric.latency_s,
            efficiency: fabric.efficiency,
            group_nics: fabric.group_nics,
        };
        let device = catalogue.device(&node.device)?;
        Ok(Self::of_device(device, KernelParameters::shipped()).with_network(network))
    }

    /// The links of a cluster's group of nodes `index`: within nodes by the measurements of the device's kind,
    /// scaled to the file's bandwidth. Each device is assumed to have its own NIC if the file does not count them, and the
    /// network is assumed to be like the catalogue's InfiniBand if the file gives no latency;
    /// [`Self::with_network`] overrides this.
    ///
    /// # Errors
    /// The catalogue does not contain the device, and the file gives no links between the devices of a node.
    pub fn of_nodes(cluster: &Cluster, index: usize, catalogue: &Catalogue) -> Result<Self, InputError> {
        let group = &cluster.nodes[index];
        let figures = catalogue.device(&group.device.name).ok().cloned();
        let link = group.link.as_ref().map(|link| link.bytes_per_s);
        let figures = match (figures, link) {
            (Some(known), None) => known,
            (Some(known), Some(rate)) => DeviceFigures { link_bytes_per_s: rate, ..known },
            (None, None) if group.devices > 1 => {
                return Err(InputError::new(
                    format!("nodes[{index}].link"),
                    "",
                    "is missing, and the catalogue does not have this device",
                )
                .hint("add link = { bytes_per_s = … } to the cluster file"));
            }
            (None, rate) => DeviceFigures {
                name: group.device.name.clone(),
                memory_bytes: group.device.memory_bytes,
                peak_flops_per_s: group.device.peak_flops_per_s.unwrap_or_default(),
                peaks: Default::default(),
                achievable_flops_per_s: None,
                memory_bytes_per_s: group.device.memory_bytes_per_s.unwrap_or_default(),
                l2_bytes: None,
                processors: None,
                architecture: None,
                link_bytes_per_s: rate.unwrap_or(BytesPerSecond(1.0)),
                link: None,
                measured_as: None,
                driver_names: Vec::new(),
                source: String::new(),
            },
        };
        let inside = Self::of_device(&figures, KernelParameters::shipped());
        let Some(link) = group.uplink.as_ref().or(cluster.network.as_ref()) else { return Ok(inside) };
        let fabric = catalogue.fabric("infiniband")?;
        Ok(inside.with_network(InterNodeNetwork {
            node_rate: link.bytes_per_s,
            nics: group.nics.unwrap_or(group.devices),
            devices: group.devices,
            latency: if link.latency_s.0 > 0.0 { link.latency_s } else { fabric.latency_s },
            efficiency: fabric.efficiency,
            group_nics: fabric.group_nics,
        }))
    }

    /// Devices of one node, as many as the group has ranks, and no network.
    pub fn of_device(figures: &DeviceFigures, parameters: &KernelParameters) -> Self {
        let kind = |device: &str| {
            autodist_spec::catalog::devices()
                .iter()
                .find(|known| known.name == device)
                .and_then(|known| known.link)
        };
        let entries = || parameters.collective.iter();
        let own = entries().any(|entry| entry.device == figures.name);
        // Directly connected devices behave like those behind a switch, at their own bandwidth.
        let switched = figures.link.unwrap_or(LinkKind::Pcie) != LinkKind::Pcie;
        let alike = entries().filter(|entry| {
            entry.device == figures.name || (kind(&entry.device) != Some(LinkKind::Pcie)) == switched
        });
        let links = |entry: &CollectiveParameters| {
            autodist_spec::catalog::devices()
                .iter()
                .find(|known| known.name == entry.device)
                .map_or(figures.link_bytes_per_s, |known| known.link_bytes_per_s)
        };
        // PCI Express bandwidth depends mostly on the host: the fastest measured server represents the
        // others.
        let reached = |entry: &CollectiveParameters| entry.curve.bytes_per_s / links(entry).0;
        let chosen = match (own, switched) {
            (true, _) | (_, true) => nearest(figures, alike, |entry| &entry.device).map(|(entry, _)| entry),
            (false, false) => alike.max_by(|a, b| reached(a).total_cmp(&reached(b))),
        };
        let Some(chosen) = chosen else {
            return Self {
                inside: Vec::new(),
                scale: 1.0,
                bus: None,
                own: false,
                spread: 1.0,
                network: None,
            };
        };
        let scale = figures.link_bytes_per_s / links(chosen);
        let inside = entries().filter(|entry| entry.device == chosen.device).cloned().collect();
        let bus = Catalogue::bus_rates(&figures.name).filter(|_| !own);
        let spread = if switched || bus.is_some() { OTHER_LINKS } else { OTHER_SERVERS };
        Self { inside, scale, bus, own: own && (scale - 1.0).abs() < 1e-6, spread, network: None }
    }

    #[must_use]
    pub fn with_network(self, network: InterNodeNetwork) -> Self {
        Self { network: Some(network), ..self }
    }

    pub fn network(&self) -> Option<&InterNodeNetwork> {
        self.network.as_ref()
    }

    /// Price of a collective on floats. A group of one rank takes no time; a group over several nodes without
    /// a network is priced as if it were in one node.
    pub fn collective(&self, kind: Collective, bytes: Bytes, group: GroupShape) -> PredictedTime {
        if group.ranks() < 2 {
            return PredictedTime::new(0.0, 0.0, Provenance::Interpolated);
        }
        match &self.network {
            Some(network) if group.nodes > 1 => network::price(self, network, kind, bytes.as_f64(), group),
            _ => self.inside(kind, NcclDatatype::Float, bytes, group.ranks()),
        }
    }

    /// Within one node.
    pub fn inside(
        &self,
        kind: Collective,
        element: NcclDatatype,
        bytes: Bytes,
        devices: u32,
    ) -> PredictedTime {
        let (ranks, bytes) = (f64::from(devices.max(2)), bytes.as_f64().max(1.0));
        let like = match kind {
            Collective::Broadcast => Collective::AllGather,
            Collective::SendRecv => Collective::AllToAll,
            other => other,
        };
        let found = |element| self.inside.iter().find(|e| e.kind == like && e.element == element);
        let Some(entry) = found(element).or_else(|| found(NcclDatatype::Float)) else {
            return PredictedTime::new(0.0, 1.0, Provenance::Assumed);
        };
        if let Some(bus) = self.bus {
            let curve = crate::nccl::Curve { bytes_per_s: bus_rate(bus, ranks), ..entry.curve };
            return PredictedTime::new(
                curve.seconds(kind, ranks, bytes),
                self.spread,
                Provenance::Extrapolated,
            );
        }
        // A broadcast is an all-gather whose bytes all start at one rank; a send/recv is half of an exchange
        // between two.
        let (ranks, bytes, held) = match kind {
            Collective::Broadcast => (ranks, bytes * ranks / (ranks - 1.0), false),
            Collective::SendRecv => (2.0, 2.0 * bytes, false),
            _ => (ranks, bytes, true),
        };
        let curve = crate::nccl::Curve { bytes_per_s: entry.curve.bytes_per_s * self.scale, ..entry.curve };
        let seconds = curve.seconds(like, ranks, bytes) * entry.table.at(ranks, bytes).exp();
        let within = entry.table.covers(ranks, bytes);
        match (self.own, within, held) {
            (true, true, true) => PredictedTime::new(seconds, entry.spread, Provenance::Interpolated),
            (true, true, false) => PredictedTime::new(seconds, entry.spread.max(0.15), Provenance::Modelled),
            (true, false, _) => PredictedTime::new(seconds, 2.0 * entry.spread, Provenance::Extrapolated),
            (false, ..) => PredictedTime::new(seconds, self.spread, Provenance::Extrapolated),
        }
    }
}

/// Interpolates between two numbers of devices, in their logarithm.
fn bus_rate(bus: &BusRates, ranks: f64) -> f64 {
    let rates: Vec<(f64, f64)> = bus.rates.iter().map(|(count, rate)| (f64::from(*count), rate.0)).collect();
    let after = rates.iter().position(|(count, _)| *count >= ranks);
    match after {
        Some(0) => rates[0].1,
        None => rates[rates.len() - 1].1,
        Some(at) => {
            let ((low, from), (high, to)) = (rates[at - 1], rates[at]);
            from * (to / from).powf((ranks / low).ln() / (high / low).ln())
        }
    }
}
