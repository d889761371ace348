//! Collectives between nodes: rings and trees over the nodes' NICs, as in NCCL.
//!
//! The constants are those of NCCL's tuner for algorithms and protocols (`src/graph/tuning.cc` of 2.2x,
//! BSD-3).

use crate::PredictedTime;
use crate::collective::{GroupShape, InterNodeNetwork, Interconnect};
use crate::nccl::{NcclDatatype, ring};
use autodist_spec::{Bytes, Collective, Provenance};

/// One of NCCL's protocols: microseconds of latency at the start, of a step inside a node and of one between
/// nodes, for rings and trees; and the fraction of the bandwidth that carries data.
struct Protocol {
    ring: [f64; 3],
    tree: [f64; 3],
    rate: f64,
}

/// LL (a flag for every 4 bytes of data), LL128 (for every 120), Simple.
const PROTOCOLS: [Protocol; 3] = [
    Protocol { ring: [6.6, 0.6, 2.7], tree: [6.8, 0.6, 5.0], rate: 0.25 },
    Protocol { ring: [14.0, 1.9, 4.0], tree: [14.0, 1.25, 8.5], rate: 120.0 / 128.0 },
    Protocol { ring: [8.4, 3.4, 14.0], tree: [8.4, 4.0, 14.0], rate: 1.0 },
];

/// Seconds per send of an all-to-all after the first: the time that a NIC needs to post it. Assumed.
const MESSAGE: f64 = 1e-6;

/// Spread of measured networks around their NICs' bandwidth (published collectives between nodes).
const SPREAD: f64 = 0.3;

impl InterNodeNetwork {
    /// Bytes per second that one of `sharing` equal groups can send out of a node where it has `per_node`
    /// ranks: its share of all NICs, and no more than the NICs of its own devices, or those that its rings
    /// use.
    fn group_rate(&self, per_node: u32, sharing: u32) -> f64 {
        let whole = self.node_rate.0 * self.efficiency;
        let (nics, devices) = (f64::from(self.nics.max(1)), f64::from(self.devices.max(1)));
        let own = f64::from(per_node) * (nics / devices).max(1.0);
        let cards = self.group_nics.map_or(own, |used| own.min(f64::from(used)));
        (whole / f64::from(sharing.max(1))).min(whole * (cards / nics).min(1.0))
    }
}

pub(crate) fn price(
    links: &Interconnect,
    network: &InterNodeNetwork,
    kind: Collective,
    bytes: f64,
    group: GroupShape,
) -> PredictedTime {
    let rate = network.group_rate(group.per_node, group.sharing);
    let (ranks, nodes) = (f64::from(group.ranks()), f64::from(group.nodes));
    let per_node = f64::from(group.per_node);
    // The additional latency of this network per hop: NCCL's constants were measured on a fast one.
    let latency = network.latency.0;
    let seconds = match kind {
        Collective::SendRecv => PROTOCOLS[2].ring[0] * 1e-6 + latency + bytes / rate,
        Collective::AllToAll => {
            let outside = per_node * bytes * (nodes - 1.0) / nodes / rate;
            let start = PROTOCOLS[2].ring[0] * 1e-6 + latency + MESSAGE * (ranks - 1.0);
            let inside = inside(links, kind, bytes * per_node / ranks, group.per_node);
            start + outside.max(inside)
        }
        Collective::Broadcast => {
            let hops = (nodes - 1.0).min(nodes.log2().ceil().max(1.0));
            let flow = (bytes / rate).max(inside(links, kind, bytes, group.per_node));
            PROTOCOLS[2].tree[0] * 1e-6 + hops * (PROTOCOLS[2].tree[2] * 1e-6 + latency) + flow
        }
        Collective::AllReduce | Collective::ReduceScatter | Collective::AllGather => {
            let (steps, part) = ring(kind, ranks);
            let between = steps * nodes / ranks;
            // The same bytes cross the links of the node, which are the bottleneck if they are slower than
            // its NICs.
            let inner = inside_rate(links, kind, bytes, group.per_node);
            let flow = part * bytes / rate.min(inner);
            let ring = PROTOCOLS.iter().map(|protocol| {
                let [start, near, far] = protocol.ring.map(|micro| micro * 1e-6);
                start + (steps - between) * near + between * (far + latency) + flow / protocol.rate
            });
            // Double binary trees send as many bytes as a ring of any length, and only support all-reduce.
            let trees = PROTOCOLS.iter().filter(|_| kind == Collective::AllReduce).map(|protocol| {
                let [start, near, far] = protocol.tree.map(|micro| micro * 1e-6);
                let depth = (per_node - 1.0) * near + nodes.log2().ceil() * (far + latency);
                start + 2.0 * depth + 2.0 * bytes / rate.min(inner) / protocol.rate
            });
            ring.chain(trees).fold(f64::INFINITY, f64::min)
        }
    };
    PredictedTime::new(seconds, SPREAD, Provenance::Extrapolated)
}

/// Seconds of the part of a collective inside a node.
fn inside(links: &Interconnect, kind: Collective, bytes: f64, devices: u32) -> f64 {
    if devices < 2 {
        0.0
    } else {
        links.inside(kind, NcclDatatype::Float, Bytes(bytes as u64), devices).time.0
    }
}

/// Bytes per second that each device of a node sends in a large collective.
fn inside_rate(links: &Interconnect, kind: Collective, bytes: f64, devices: u32) -> f64 {
    if devices < 2 {
        return f64::INFINITY;
    }
    let large = bytes.max(2f64.powi(28));
    ring(kind, f64::from(devices)).1 * large / inside(links, kind, large, devices)
}
