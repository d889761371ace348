//! Devices and links of a run, prepared once and queried often.

use crate::memo;
use crate::states::HostRates;
use autodist_hardware::{
    Attention, AttentionKernel, Catalogue, DeviceModel, GroupShape, InterNodeNetwork, Interconnect,
    KernelParameters,
};
use autodist_spec::{Bytes, BytesPerSecond, Cluster, Collective, InputError, Precision};
use std::sync::atomic::{AtomicU64, Ordering};

/// Device generations that a calibration distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    Volta,
    Ampere,
    Hopper,
    Blackwell,
    BlackwellUltra,
    Other,
}

/// The kind of network between nodes, as far as it matters in addition to its bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum FabricKind {
    #[default]
    InfinibandOrEthernet,
    OmniPath,
}

/// A model of a cluster of equal nodes that are connected by a network.
#[derive(Debug, Clone)]
pub struct NodeModel {
    /// Unique per machine in this process, except for copies with other memory.
    number: u64,
    pub device_name: String,
    pub generation: Generation,
    pub device: DeviceModel,
    pub interconnect: Interconnect,
    pub fabric: FabricKind,
    pub devices_per_node: u32,
    /// Memory of one device that a run may use.
    pub memory: Bytes,
    /// Peak of dense 16-bit GEMMs, for the utilisation.
    pub peak_flops_per_s: f64,
    /// Streaming multiprocessors, for waves of tiles.
    pub processors: f64,
    /// Seconds per byte of a large memory-bound kernel.
    pub seconds_per_byte: f64,
    /// Time of the host to launch a kernel, relative to the hosts of the runs of the fit.
    pub host_slowness: f64,
    /// Rates of a node's host, which matter to state that is kept away from the devices.
    pub host: HostRates,
}

/// The network between nodes: its kind, and the bandwidth of all NICs of one node together, in one
/// direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// A fabric of the catalogue, e.g. `infiniband`.
    pub fabric: String,
    pub bytes_per_s: f64,
    pub nics: u32,
}

impl NodeModel {
    /// The machine that a cluster would be if all its nodes were like those of group `index`.
    ///
    /// # Errors
    /// The catalogue does not contain the device, and the cluster does not describe it.
    pub fn of_nodes(cluster: &Cluster, index: usize, catalogue: &Catalogue) -> Result<Self, InputError> {
        let device = DeviceModel::of_nodes(cluster, index, catalogue)?;
        let interconnect = Interconnect::of_nodes(cluster, index, catalogue)?;
        let group = &cluster.nodes[index];
        let fabric = FabricKind::InfinibandOrEthernet;
        let machine = Self::new(device, interconnect, fabric, group.devices);
        let host_slowness = group.host_slowness.unwrap_or(1.0);
        let host = HostRates::of(group.host.as_ref(), machine.generation, &machine.device_name);
        Ok(Self { memory: group.device.memory_bytes, host_slowness, host, ..machine })
    }

    /// A cluster of nodes with `per_node` devices of the given name from the shipped catalogue.
    ///
    /// # Errors
    /// The catalogue does not contain the device or the fabric.
    pub fn named(device: &str, per_node: u32, uplink: Option<&Uplink>) -> Result<Self, InputError> {
        Self::of_catalogue(&Catalogue::shipped(), device, per_node, uplink)
    }

    /// The machine of a cluster, with the devices and fabrics of the given catalogue.
    ///
    /// # Errors
    /// The catalogue does not contain the device or the fabric.
    pub fn of_catalogue(
        catalogue: &Catalogue,
        device: &str,
        per_node: u32,
        uplink: Option<&Uplink>,
    ) -> Result<Self, InputError> {
        let figures = catalogue.device(device)?;
        let parameters = KernelParameters::shipped();
        let mut interconnect = Interconnect::of_device(figures, parameters);
        let mut kind = FabricKind::InfinibandOrEthernet;
        if let Some(uplink) = uplink {
            let fabric = catalogue.fabric(&uplink.fabric)?;
            if uplink.fabric == "omni-path" {
                kind = FabricKind::OmniPath;
            }
            interconnect = interconnect.with_network(InterNodeNetwork {
                node_rate: BytesPerSecond(uplink.bytes_per_s),
                nics: uplink.nics,
                devices: per_node,
                latency: fabric.latency_s,
                efficiency: fabric.efficiency,
                group_nics: fabric.group_nics,
            });
        }
        Ok(Self::new(DeviceModel::new(figures, parameters)?, interconnect, kind, per_node))
    }

    fn new(
        device: DeviceModel,
        interconnect: Interconnect,
        fabric: FabricKind,
        devices_per_node: u32,
    ) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let figures = device.figures();
        let large = 1e9;
        let generation = generation(figures.architecture.as_deref());
        Self {
            number: MADE.fetch_add(1, Ordering::Relaxed),
            device_name: figures.name.clone(),
            generation,
            fabric,
            devices_per_node,
            memory: figures.memory_bytes,
            peak_flops_per_s: figures.peak_flops_per_s.0,
            processors: f64::from(figures.processors.unwrap_or(100)),
            seconds_per_byte: device.memory_bound(large).time.0 / large,
            host_slowness: 1.0,
            host: HostRates::of(None, generation, &figures.name),
            interconnect,
            device,
        }
    }

    /// Seconds of `batch` GEMMs `[m, k]` by `[k, n]` in one kernel.
    pub fn gemms(&self, dtype: Precision, batch: u64, m: u64, n: u64, k: u64) -> f64 {
        memo::remembered([self.number, 8 + dtype as u64, batch, m, n, k], || {
            self.device.batched_gemm(dtype, batch, m, n, k).time.0
        })
    }

    /// Seconds of fused attention, forward.
    pub fn attention(&self, shape: &Attention) -> f64 {
        let lengths = shape.sequence << 32 | shape.keys;
        let heads = shape.heads << 32 | shape.kv_heads;
        memo::remembered([self.number, 1, shape.batch, lengths, heads, shape.head_dim], || {
            self.device.attention_forward(shape, AttentionKernel::Flash).time.0
        })
    }

    /// Seconds of a collective among `ranks` ranks of which `per_node` are on each node, with `sharing` such
    /// groups on the same nodes; `bytes` as [`Collective`] counts them. Free for one rank.
    pub fn collective(&self, kind: Collective, bytes: f64, ranks: u32, per_node: u32, sharing: u32) -> f64 {
        if ranks < 2 || bytes <= 0.0 {
            return 0.0;
        }
        let per_node = per_node.clamp(1, ranks);
        let (bytes, sharing) = (bytes as u64, sharing.max(1));
        let ends = u64::from(ranks) << 32 | u64::from(per_node);
        memo::remembered([self.number, 2, kind as u64, bytes, ends, u64::from(sharing)], || {
            let group = GroupShape { per_node, nodes: ranks.div_ceil(per_node), sharing };
            self.interconnect.collective(kind, Bytes(bytes), group).time.0
        })
    }
}

fn generation(architecture: Option<&str>) -> Generation {
    match architecture {
        Some("volta") => Generation::Volta,
        Some("ampere") => Generation::Ampere,
        Some("hopper") => Generation::Hopper,
        Some("blackwell") => Generation::Blackwell,
        Some("blackwell-ultra") => Generation::BlackwellUltra,
        _ => Generation::Other,
    }
}
