//! The network between devices: shared links, and the path between every two devices.

use crate::cluster::{Cluster, Link};
use crate::communication::Algorithm;
use crate::error::{InputError, in_range, not_negative, positive, rate};
use crate::profile::Sample;
use crate::units::{Bytes, BytesPerSecond, Provenance, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A link in one direction. All flows whose paths contain it share its bandwidth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SharedLink {
    pub name: String,
    pub bytes_per_s: BytesPerSecond,
    /// The rate while the other direction is equally busy, as in collectives: streams in both directions
    /// delay each other's acknowledgements, and a wireless link is shared by both. Absent if it was not
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub both_ways_bytes_per_s: Option<BytesPerSecond>,
    #[serde(default)]
    pub provenance: Provenance,
}

impl SharedLink {
    /// The bandwidth that flows share while ranks both send and receive.
    pub fn busy_rate(&self) -> BytesPerSecond {
        self.both_ways_bytes_per_s.unwrap_or(self.bytes_per_s)
    }
}

/// The path from one device to another.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// Indices of its links; empty between a device and itself.
    pub links: Vec<u32>,
    /// Time from the sending of the first byte to its arrival.
    pub latency_s: Seconds,
}

/// The communication pattern of a kind of collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    AllReduce(Algorithm),
    ReduceScatter(Algorithm),
    AllGather(Algorithm),
    /// Every member sends a part of its buffer to each other member.
    AllToAll,
}

impl Pattern {
    /// The label, such as `all-reduce, ring`.
    pub fn name(self) -> String {
        match self {
            Self::AllReduce(algorithm) => format!("all-reduce, {}", algorithm.name()),
            Self::ReduceScatter(algorithm) => format!("reduce-scatter, {}", algorithm.name()),
            Self::AllGather(algorithm) => format!("all-gather, {}", algorithm.name()),
            Self::AllToAll => "all-to-all".to_owned(),
        }
    }
}

/// A timed collective over all devices, in their order. Time that its links do not explain (transfers that
/// wait for each other, streams that share a link unevenly) is attributed to the pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatternTiming {
    pub pattern: Pattern,
    /// Bytes of the whole tensor; for an all-to-all, the bytes that one device sends to all others.
    pub bytes: Bytes,
    pub time: Sample,
}

/// The graph of a cluster's devices and links.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The node of every device. Nodes are counted from 0 in the order of their first devices; a launcher may
    /// assign ranks to them round-robin.
    pub nodes: Vec<u32>,
    pub links: Vec<SharedLink>,
    /// Paths by sender, then by receiver.
    pub paths: Vec<Vec<Path>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<PatternTiming>,
}

/// The links of a node, as far as the cluster describes them.
struct Ends {
    name: String,
    /// Link between two of its devices.
    inside: Option<Link>,
    /// Links to and from the other nodes.
    outside: Option<(Link, Link)>,
}

impl Network {
    /// Builds the network of a cluster. Two devices of a node have a link of their own in each direction; all
    /// devices of a node share its uplink and its downlink. `None` if the cluster does not describe a link
    /// that is needed.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let (mut nodes, mut ends) = (Vec::new(), Vec::new());
        for group in &cluster.nodes {
            let up: Option<&Link> = group.uplink.as_ref().or(cluster.network.as_ref());
            let down: Option<&Link> = group.downlink.as_ref().or(up);
            for _ in 0..group.count {
                let node = ends.len() as u32;
                nodes.extend(std::iter::repeat_n(node, group.devices as usize));
                ends.push(Ends {
                    name: format!("node {node}"),
                    inside: group.link.clone(),
                    outside: up.cloned().zip(down.cloned()),
                });
            }
        }
        Self::joined(nodes, &ends)
    }

    /// The network of machines whose links are not described: rates and latencies are zero until they are
    /// measured. `nodes` are as in [`Network::nodes`]; links are named after the machines.
    pub fn unmeasured(nodes: &[u32], machines: &[String]) -> Option<Self> {
        let link = Link { bytes_per_s: BytesPerSecond(0.0), latency_s: Seconds::ZERO };
        let ends = |name: &String| Ends {
            name: name.clone(),
            inside: Some(link.clone()),
            outside: Some((link.clone(), link.clone())),
        };
        Self::joined(nodes.to_vec(), &machines.iter().map(ends).collect::<Vec<_>>())
    }

    fn joined(nodes: Vec<u32>, of_node: &[Ends]) -> Option<Self> {
        let mut network = Self { nodes, ..Self::default() };
        let mut ends = Vec::new();
        for node in of_node {
            ends.push(node.outside.as_ref().filter(|_| of_node.len() > 1).map(|(up, down)| {
                let first = network.links.len() as u32;
                network.push(format!("{} up", node.name), up);
                network.push(format!("{} down", node.name), down);
                (first, first + 1, up.latency_s, down.latency_s)
            }));
        }
        let devices = network.nodes.len();
        for from in 0..devices {
            let mut row = Vec::new();
            for to in 0..devices {
                let (a, b) = (network.nodes[from] as usize, network.nodes[to] as usize);
                row.push(if from == to {
                    Path::default()
                } else if a == b {
                    let link = of_node.get(a)?.inside.as_ref()?;
                    let index = network.links.len() as u32;
                    network.push(format!("device {from} to {to}"), link);
                    Path { links: vec![index], latency_s: link.latency_s }
                } else {
                    let (up, down) = ((*ends.get(a)?)?, (*ends.get(b)?)?);
                    Path { links: vec![up.0, down.1], latency_s: up.2 + down.3 }
                });
            }
            network.paths.push(row);
        }
        Some(network)
    }

    fn push(&mut self, name: String, link: &Link) {
        let bytes_per_s: BytesPerSecond = link.bytes_per_s;
        let (both_ways_bytes_per_s, provenance) = (None, Provenance::Assumed);
        self.links.push(SharedLink { name, bytes_per_s, both_ways_bytes_per_s, provenance });
    }

    pub fn node_count(&self) -> usize {
        self.nodes.iter().max().map_or(0, |last| *last as usize + 1)
    }

    /// The first device of a node.
    pub fn first_of(&self, node: usize) -> Option<usize> {
        self.nodes.iter().position(|other| *other as usize == node)
    }

    pub fn devices(&self) -> usize {
        self.paths.len()
    }

    pub(crate) fn check(&self) -> Result<(), InputError> {
        let devices = self.nodes.len();
        in_range("paths", self.paths.len() as u64, devices as u64, devices as u64)?;
        let mut known = 0;
        for (device, node) in self.nodes.iter().enumerate() {
            in_range(&format!("nodes[{device}]"), u64::from(*node), 0, known)?;
            known = known.max(u64::from(*node) + 1);
        }
        for (index, link) in self.links.iter().enumerate() {
            rate(&format!("links[{index}].bytes_per_s"), link.bytes_per_s.0)?;
            rate(&format!("links[{index}].both_ways_bytes_per_s"), link.busy_rate().0)?;
        }
        for (from, row) in self.paths.iter().enumerate() {
            in_range(&format!("paths[{from}]"), row.len() as u64, devices as u64, devices as u64)?;
            for (to, path) in row.iter().enumerate() {
                let at = format!("paths[{from}][{to}]");
                not_negative(&format!("{at}.latency_s"), path.latency_s.0)?;
                for (index, link) in path.links.iter().enumerate() {
                    if *link as usize >= self.links.len() {
                        return Err(InputError::new(
                            format!("{at}.links[{index}]"),
                            link,
                            format!("must be below {}, the number of links", self.links.len()),
                        ));
                    }
                }
            }
        }
        for (index, timing) in self.patterns.iter().enumerate() {
            positive(&format!("patterns[{index}].bytes"), timing.bytes.as_f64())?;
            positive(&format!("patterns[{index}].time.median_s"), timing.time.median_s.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_share_their_links_in_whatever_order_ranks_are_dealt_out() {
        let names = ["a".to_owned(), "b".to_owned()];
        let network = Network::unmeasured(&[0, 1, 0], &names).unwrap();
        let of_path = |from: usize, to: usize| -> Vec<&str> {
            let links = network.paths[from][to].links.iter();
            links.map(|link| network.links[*link as usize].name.as_str()).collect()
        };
        assert_eq!(of_path(0, 1), ["a up", "b down"]);
        assert_eq!(of_path(2, 1), ["a up", "b down"]);
        assert_eq!(of_path(1, 2), ["b up", "a down"]);
        assert_eq!(of_path(0, 2), ["device 0 to 2"]);
        assert_eq!((network.node_count(), network.first_of(1)), (2, Some(1)));
    }

    #[test]
    fn nodes_are_numbered_by_their_first_devices() {
        let mut network = Network::unmeasured(&[0, 1], &["a".to_owned(), "b".to_owned()]).unwrap();
        network.links.iter_mut().for_each(|link| link.bytes_per_s = BytesPerSecond(1.0));
        assert!(network.check().is_ok());
        network.nodes = vec![0, u32::MAX];
        assert_eq!(network.check().unwrap_err().field, "nodes[1]");
    }
}
