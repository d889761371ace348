//! What joins devices: links that flows share, and the path between every two devices.

use crate::cluster::{Cluster, Link};
use crate::communication::Algorithm;
use crate::error::{InputError, in_range, not_negative, positive};
use crate::profile::Sample;
use crate::units::{Bytes, BytesPerSecond, Provenance, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A link in one direction. All flows whose paths hold it share its rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SharedLink {
    pub name: String,
    pub bytes_per_s: BytesPerSecond,
    #[serde(default)]
    pub provenance: Provenance,
}

/// The way from one device to another.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// Indices of the links that it crosses; none between a device and itself.
    pub links: Vec<u32>,
    /// From the first byte's sending to its arrival.
    pub latency_s: Seconds,
}

/// What messages of one kind of collective go where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    AllReduce(Algorithm),
    ReduceScatter(Algorithm),
    AllGather(Algorithm),
    /// Every member sends each other member its part.
    AllToAll,
}

impl Pattern {
    /// As people write it: `all-reduce, ring`.
    pub fn name(self) -> String {
        match self {
            Self::AllReduce(algorithm) => format!("all-reduce, {}", algorithm.name()),
            Self::ReduceScatter(algorithm) => format!("reduce-scatter, {}", algorithm.name()),
            Self::AllGather(algorithm) => format!("all-gather, {}", algorithm.name()),
            Self::AllToAll => "all-to-all".to_owned(),
        }
    }
}

/// A collective of all devices, in their order, as it was timed. What it takes beyond what its links explain (messages
/// that wait for each other, streams that share a link unevenly) is taken for a property of the pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatternTiming {
    pub pattern: Pattern,
    /// Of the whole tensor; for an all-to-all of what one device has for all.
    pub bytes: Bytes,
    pub time: Sample,
}

/// The graph of a cluster as flows see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The node of every device; devices of a node are consecutive.
    pub nodes: Vec<u32>,
    pub links: Vec<SharedLink>,
    /// By sender, then by receiver.
    pub paths: Vec<Vec<Path>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<PatternTiming>,
}

impl Network {
    /// Two devices of a node have a link for each direction to themselves; all devices of a node share its uplink and
    /// its downlink. `None` where the cluster says nothing of a link that is needed.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let mut network = Self::default();
        let mut first_of_node = Vec::new();
        let mut groups = Vec::new();
        for group in &cluster.nodes {
            for _ in 0..group.count {
                let node = first_of_node.len() as u32;
                first_of_node.push(network.nodes.len());
                groups.push(group);
                network.nodes.extend(std::iter::repeat_n(node, group.devices as usize));
            }
        }
        let devices = network.nodes.len();
        let several = first_of_node.len() > 1;
        let mut ends: Vec<Option<(u32, u32, f64, f64)>> = Vec::new();
        for (node, group) in groups.iter().enumerate() {
            let up: Option<&Link> = group.uplink.as_ref().or(cluster.network.as_ref());
            let down: Option<&Link> = group.downlink.as_ref().or(up);
            ends.push(match (up, down) {
                (Some(up), Some(down)) if several => {
                    let first = network.links.len() as u32;
                    network.push(format!("node {node} up"), up);
                    network.push(format!("node {node} down"), down);
                    Some((first, first + 1, up.latency_s.0, down.latency_s.0))
                }
                _ => None,
            });
        }
        for from in 0..devices {
            let mut row = Vec::new();
            for to in 0..devices {
                let (a, b) = (network.nodes[from] as usize, network.nodes[to] as usize);
                row.push(if from == to {
                    Path::default()
                } else if a == b {
                    let link = groups[a].link.as_ref()?;
                    let index = network.links.len() as u32;
                    network.push(format!("device {from} to {to}"), link);
                    Path { links: vec![index], latency_s: link.latency_s }
                } else {
                    let (up, down) = (ends[a]?, ends[b]?);
                    Path { links: vec![up.0, down.1], latency_s: Seconds(up.2 + down.3) }
                });
            }
            network.paths.push(row);
        }
        Some(network)
    }

    fn push(&mut self, name: String, link: &Link) {
        let bytes_per_s: BytesPerSecond = link.bytes_per_s;
        self.links.push(SharedLink { name, bytes_per_s, provenance: Provenance::Assumed });
    }

    pub fn devices(&self) -> usize {
        self.paths.len()
    }

    pub(crate) fn check(&self) -> Result<(), InputError> {
        let devices = self.nodes.len();
        in_range("paths", self.paths.len() as u64, devices as u64, devices as u64)?;
        for (index, link) in self.links.iter().enumerate() {
            positive(&format!("links[{index}].bytes_per_s"), link.bytes_per_s.0)?;
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
                            format!("there are {} links", self.links.len()),
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
