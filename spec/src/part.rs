//! Parts of a cluster: a plan may leave devices off.

use crate::cluster::{Cluster, NodeGroup};
use crate::job::Job;
use crate::model::ModelSpec;
use crate::units::Seconds;
use std::collections::BTreeSet;
use std::ops::Range;

/// A part of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterPart {
    /// Its name says which part of which cluster it is.
    pub cluster: Cluster,
    /// The kinds of nodes that it has, by their places in [`Cluster::node_kinds`] of the whole.
    pub kinds: Vec<usize>,
}

impl Cluster {
    /// The parts that are worth a search, the largest first: clusters of several kinds of nodes without one of them, each
    /// kind alone, halves of its nodes (and the largest power of two) down to one, and halves of the devices of one node.
    pub fn parts(&self) -> Vec<ClusterPart> {
        let ranges = self.ranges_of_kinds();
        let mut parts = Vec::new();
        if ranges.len() > 2 {
            for without in 0..ranges.len() {
                let kinds: Vec<usize> = (0..ranges.len()).filter(|kind| *kind != without).collect();
                let groups = kinds.iter().flat_map(|kind| &self.nodes[ranges[*kind].clone()]).cloned();
                let left_out = self.nodes[ranges[without].start].device.name.clone();
                let name = format!("{} without its {left_out}", self.name);
                parts.push(self.part(name, groups.collect(), kinds));
            }
        }
        for (kind, range) in ranges.iter().enumerate() {
            let groups = &self.nodes[range.clone()];
            let nodes: u32 = groups.iter().map(|group| group.count).sum();
            let all = if ranges.len() > 1 { nodes } else { 0 };
            for count in smaller(nodes).into_iter().chain([all]).filter(|count| *count > 0) {
                let name = format!("{} of {}", self.nodes_named(count, &groups[0]), self.name);
                parts.push(self.part(name, first_nodes(groups, count), vec![kind]));
            }
            for count in smaller(groups[0].devices) {
                let group = NodeGroup { count: 1, devices: count, ..groups[0].clone() };
                let devices = if count == 1 { "device" } else { "devices" };
                let name = format!("{count} {devices} of one node of {}", self.name);
                parts.push(self.part(name, vec![group], vec![kind]));
            }
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.cluster.device_count()));
        parts.dedup_by(|a, b| a.cluster.nodes == b.cluster.nodes);
        parts
    }

    fn part(&self, name: String, nodes: Vec<NodeGroup>, kinds: Vec<usize>) -> ClusterPart {
        ClusterPart { cluster: Self { name, nodes, ..self.clone() }, kinds }
    }

    /// The groups of each kind of nodes.
    fn ranges_of_kinds(&self) -> Vec<Range<usize>> {
        let starts: Vec<usize> = self.node_kinds().iter().map(|kind| kind.index).collect();
        let ends = starts.iter().skip(1).copied().chain([self.nodes.len()]);
        starts.iter().zip(ends).map(|(start, end)| *start..end).collect()
    }

    fn nodes_named(&self, count: u32, group: &NodeGroup) -> String {
        let nodes = if count == 1 { "node" } else { "nodes" };
        match self.node_kinds().len() {
            1 => format!("{count} {nodes}"),
            _ => format!("{count} {} {nodes}", group.device.name),
        }
    }

    /// Seconds that no step of a job takes less than on these devices: the FLOPs of its linear layers at the published
    /// peaks. `None` without a published peak.
    pub fn least_step(&self, model: &ModelSpec, job: &Job) -> Option<Seconds> {
        let peak = self.published_peak(job.precision.name())?;
        // A causal kernel may skip half of the attention, which is then less than that of a sequence of one token.
        let flops = job.trainable.step_flops(model, job.tokens(), 1);
        let rate = peak.rate.0 * f64::from(self.device_count());
        Some(Seconds(flops.0 / rate))
    }
}

/// Halves of a number down to 1, and powers of two below it, descending.
fn smaller(number: u32) -> Vec<u32> {
    let halves = std::iter::successors(Some(number / 2), |half| Some(half / 2)).take_while(|half| *half > 0);
    let powers = (0..u32::BITS).map(|power| 1_u32 << power).take_while(|power| *power < number);
    halves.chain(powers).collect::<BTreeSet<u32>>().into_iter().rev().collect()
}

fn first_nodes(groups: &[NodeGroup], count: u32) -> Vec<NodeGroup> {
    let mut left = count;
    let mut kept = Vec::new();
    for group in groups {
        let count = group.count.min(left);
        left -= count;
        if count > 0 {
            kept.push(NodeGroup { count, ..group.clone() });
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<String> {
        let cluster = Cluster::from_short_form(text).unwrap();
        let short = |part: &ClusterPart| {
            let groups: Vec<String> = part
                .cluster
                .nodes
                .iter()
                .map(|group| format!("{}x{}x{}", group.count, group.devices, group.device.name))
                .collect();
            groups.join("+")
        };
        cluster.parts().iter().map(short).collect()
    }

    #[test]
    fn parts_are_halves_powers_of_two_and_single_kinds() {
        assert_eq!(parts("1x1xrtx4090"), Vec::<String>::new());
        assert_eq!(parts("2x1xrtx4090@1x1gbps"), ["1x1xrtx4090"]);
        assert_eq!(
            parts("6x4xrtx4090@1x1gbps"),
            ["4x4xrtx4090", "3x4xrtx4090", "2x4xrtx4090", "1x4xrtx4090", "1x2xrtx4090", "1x1xrtx4090"]
        );
        let mixed = parts("1x2xrtx4090+1x1xl40s@1x1gbps");
        assert_eq!(mixed, ["1x2xrtx4090", "1x1xrtx4090", "1x1xl40s"]);
        let three = parts("1x1xrtx4090+1x1xl40s+1x1xa10g@1x1gbps");
        assert_eq!(three[..3], ["1x1xl40s+1x1xa10g", "1x1xrtx4090+1x1xa10g", "1x1xrtx4090+1x1xl40s"]);
        let whole = Cluster::from_short_form("2x2xrtx4090@1x1gbps").unwrap();
        let names: Vec<String> = whole.parts().iter().map(|part| part.cluster.name.clone()).collect();
        assert_eq!(names, ["1 node of 2x2xrtx4090@1x1gbps", "1 device of one node of 2x2xrtx4090@1x1gbps"]);
        assert!(whole.parts().iter().all(|part| part.kinds == [0]));
    }
}
