//! The kinds of devices of a cluster, by rank.

use crate::cluster::{Cluster, NodeGroup};
use crate::strategy::ParallelStrategy;
use std::ops::Range;

/// The kinds of devices of a cluster: ranks are numbered in the order of its nodes, so that each class has a
/// contiguous range of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceClasses {
    /// The first rank after each class.
    ends: Vec<usize>,
}

/// Neighbouring classes, from `first` to before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClassRange {
    pub first: usize,
    pub end: usize,
}

impl ClassRange {
    /// Only this class.
    pub const fn one(class: usize) -> Self {
        Self { first: class, end: class + 1 }
    }

    pub fn iter(self) -> Range<usize> {
        self.first..self.end
    }

    /// The smallest range that contains both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), end: self.end.max(other.end) }
    }
}

impl DeviceClasses {
    /// All ranks have the same device and links.
    pub fn alike() -> Self {
        Self { ends: vec![usize::MAX] }
    }

    pub fn of(cluster: &Cluster) -> Self {
        Self { ends: cluster.node_kinds().iter().map(|kind| kind.devices.end as usize).collect() }
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn all(&self) -> ClassRange {
        ClassRange { first: 0, end: self.ends.len() }
    }

    /// The classes of the devices of these ranks, at least one; ranks beyond the cluster are of the last class.
    fn of_ranks(&self, first: usize, count: usize) -> ClassRange {
        let class = |rank: usize| {
            self.ends.partition_point(|end| *end <= rank).min(self.ends.len().saturating_sub(1))
        };
        ClassRange { first: class(first), end: class(first + count.saturating_sub(1)) + 1 }
    }

    /// The classes of the devices of a pipeline stage.
    pub fn of_stage(&self, strategy: &ParallelStrategy, pipeline_rank: usize) -> ClassRange {
        let ranks = strategy.stage_ranks();
        self.of_ranks(pipeline_rank * ranks, ranks)
    }
}

/// Neighbouring groups of nodes that differ only in their number or their price.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeKind<'a> {
    /// The index of its first group in the cluster.
    pub index: usize,
    pub group: &'a NodeGroup,
    /// Its devices, counted over all nodes of the cluster.
    pub devices: Range<u32>,
}

/// Whether nodes differ only in their number or their price, neither of which makes one faster.
fn alike(one: &NodeGroup, other: &NodeGroup) -> bool {
    let NodeGroup { count, usd_per_device_hour, .. } = *one;
    NodeGroup { count, usd_per_device_hour, ..other.clone() } == *one
}

impl Cluster {
    /// The kinds of nodes in the order of the file.
    pub fn node_kinds(&self) -> Vec<NodeKind<'_>> {
        let mut kinds: Vec<NodeKind<'_>> = Vec::new();
        let mut first = 0;
        for (index, group) in self.nodes.iter().enumerate() {
            let end = first + group.count * group.devices;
            match kinds.last_mut() {
                Some(last) if alike(last.group, group) => {
                    last.devices.end = end;
                }
                _ => kinds.push(NodeKind { index, group, devices: first..end }),
            }
            first = end;
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(text: &str) -> Cluster {
        Cluster::from_short_form(text).unwrap()
    }

    #[test]
    fn ranks_have_the_classes_of_their_nodes() {
        let mut mixed = cluster("2x8xh100-80gb-sxm@8x400gbps");
        mixed.nodes.extend(cluster("1x4xa100-80gb-sxm").nodes);
        let classes = DeviceClasses::of(&mixed);
        assert_eq!(classes.count(), 2);
        assert_eq!(classes.of_ranks(0, 16), ClassRange::one(0));
        assert_eq!(classes.of_ranks(16, 4), ClassRange::one(1));
        assert_eq!(classes.of_ranks(15, 2), ClassRange { first: 0, end: 2 });
        let strategy = ParallelStrategy { pipeline: 2, tensor: 10, ..ParallelStrategy::data_parallel(1, 1) };
        assert_eq!([0, 1].map(|rank| classes.of_stage(&strategy, rank)), [ClassRange::one(0), classes.all()]);
        assert_eq!(DeviceClasses::alike().of_ranks(7, 1000), ClassRange::one(0));
    }

    #[test]
    fn equal_neighbours_are_one_kind() {
        let mut twice = cluster("2x8xh100-80gb-sxm@8x400gbps");
        twice.nodes.push(twice.nodes[0].clone());
        assert_eq!(twice.node_kinds(), [NodeKind { index: 0, group: &twice.nodes[0], devices: 0..32 }]);
        twice.nodes[1].devices = 4;
        assert_eq!(twice.node_kinds().len(), 2);
    }
}
