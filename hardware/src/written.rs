//! Clusters as people write them: `4x8xh100`, `64xh100`, `2xp5.48xlarge`. They become the complete short form, which
//! `autodist_spec::Cluster` reads, with a note for everything that was not said.

use crate::catalogue::{Catalogue, NodeShape};
use autodist_spec::{InputError, Seconds, catalog, text};

/// A cluster in its complete short form.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenCluster {
    pub text: String,
    /// How short names were read.
    pub notes: Vec<String>,
    /// The network, if nobody said it.
    pub assumptions: Vec<String>,
    /// Latency of the network of a named machine.
    pub latency: Option<Seconds>,
}

/// Devices of a node of a kind that the catalogue has no machine of.
const USUAL_NODE: u32 = 8;

struct Group {
    nodes: u32,
    devices: u32,
    device: String,
    /// The machine that was named.
    named: Option<&'static NodeShape>,
}

impl Catalogue {
    /// The kind of node with this name, in any case; `p5` for `p5.48xlarge`, if only one begins so.
    pub fn machine(&self, name: &str) -> Option<&'static NodeShape> {
        let lower = name.to_lowercase();
        let lower = lower.strip_prefix("standard_").unwrap_or(&lower);
        let exact = self.machines().find(|node| node.name.to_lowercase() == lower);
        exact.or_else(|| self.machines().find(|node| node.name.split('.').next() == Some(lower)))
    }

    /// A usual node with this device, whose network is assumed where none is said.
    fn usual(&self, device: &str) -> Option<&'static NodeShape> {
        let rank = |node: &&NodeShape| match node.name.split(['-', '.']).next() {
            Some("dgx" | "hgx") => 0,
            _ => 1,
        };
        self.machines().filter(|node| node.device == device).min_by_key(rank)
    }

    /// Completes the short form of a cluster; a text that is not understood here is returned as it is, for the reader of the
    /// short form to refuse.
    ///
    /// # Errors
    /// Devices that do not make whole nodes, or a machine with another number of devices.
    pub fn complete(&self, written: &str) -> Result<WrittenCluster, InputError> {
        text::check_name("cluster", written)?;
        let as_is = || WrittenCluster {
            text: written.to_owned(),
            notes: Vec::new(),
            assumptions: Vec::new(),
            latency: None,
        };
        let (machines, network) = match written.split_once('@') {
            Some((machines, network)) => (machines, Some(network)),
            None => (written, None),
        };
        let (mut groups, mut notes) = (Vec::new(), Vec::new());
        for part in machines.split('+') {
            match self.group(part.trim(), written, &mut notes)? {
                Some(group) => groups.push(group),
                None => return Ok(as_is()),
            }
        }
        let text = groups.iter().map(|group| format!("{}x{}x{}", group.nodes, group.devices, group.device));
        let mut text = text.collect::<Vec<_>>().join("+");
        let (mut assumptions, mut latency) = (Vec::new(), None);
        if let Some(network) = network {
            text += &format!("@{network}");
        } else if groups.iter().map(|group| group.nodes).sum::<u32>() > 1 {
            let Some((nics, rate, node, said)) = self.network(&groups) else {
                return Ok(WrittenCluster { text, notes, assumptions, latency });
            };
            let gigabits = rate * 8.0 / 1e9;
            text += &format!("@{nics}x{gigabits}gbps");
            if said {
                notes.push(format!(
                    "the network of {} is {nics} NICs of {gigabits} Gb/s in every node",
                    node.name
                ));
            } else {
                assumptions.push(format!(
                    "network: {nics} NICs of {gigabits} Gb/s in every node, as {} has: no `@<NICs per node>x<rate>` is given",
                    node.name
                ));
            }
            let fabric = self.fabric(&node.fabric)?;
            if said && node.fabric != "infiniband" {
                latency = Some(fabric.latency_s);
                notes.push(format!(
                    "its network ({}) is priced as InfiniBand of this rate, with a latency of {}",
                    node.fabric, fabric.latency_s
                ));
            }
        }
        Ok(WrittenCluster { text, notes, assumptions, latency })
    }

    /// NICs of a node, the rate of each, the machine that has them, and whether that machine was named. Of several
    /// kinds of nodes, the slowest network.
    fn network(&self, groups: &[Group]) -> Option<(u32, f64, &'static NodeShape, bool)> {
        let mut slowest: Option<(u32, f64, &'static NodeShape, bool)> = None;
        for group in groups {
            let node = group.named.or_else(|| self.usual(&group.device))?;
            // A node with fewer devices has fewer NICs.
            let nics = (node.nics * group.devices / node.devices).max(1);
            let rate = node.nic_bytes_per_s.0;
            if slowest.is_none_or(|(others, other, ..)| f64::from(nics) * rate < f64::from(others) * other) {
                slowest = Some((nics, rate, node, group.named.is_some()));
            }
        }
        slowest
    }

    /// The machine that a cluster of one kind of nodes names, such as `2xp5.48xlarge`.
    pub fn named_node(&self, written: &str) -> Option<&'static NodeShape> {
        self.group(written.trim(), written, &mut Vec::new()).ok().flatten()?.named
    }

    /// One kind of nodes; `None` if the text is not of a form that this module knows.
    fn group(&self, text: &str, whole: &str, notes: &mut Vec<String>) -> Result<Option<Group>, InputError> {
        let wrong =
            |problem: String, hint: String| Err(InputError::new("--cluster", whole, problem).hint(hint));
        let (mut numbers, mut name) = (Vec::new(), text);
        while numbers.len() < 2
            && let Some((head, rest)) = name.split_once(['x', 'X'])
            && !head.is_empty()
            && head.bytes().all(|byte| byte.is_ascii_digit())
        {
            // The reader of the short form refuses numbers that are 0 or too large.
            let Some(number) = head.parse().ok().filter(|number| (1..=1 << 20).contains(number)) else {
                return Ok(None);
            };
            numbers.push(number);
            name = rest;
        }
        if let Some(node) = self.machine(name) {
            let (nodes, devices) = match numbers[..] {
                [] => (1, node.devices),
                [nodes] => (nodes, node.devices),
                [nodes, devices] => (nodes, devices),
                _ => return Ok(None),
            };
            if devices != node.devices {
                return wrong(
                    format!("{} has {} devices, not {devices}", node.name, node.devices),
                    format!(
                        "write {nodes}x{}, or name the device: {nodes}x{devices}x{}",
                        node.name, node.device
                    ),
                );
            }
            notes.push(format!("`{name}` is a node with {} {}", node.devices, node.device));
            return Ok(Some(Group { nodes, devices, device: node.device.clone(), named: Some(node) }));
        }
        let Some((device, others)) = catalog::understand(self.devices(), name) else { return Ok(None) };
        let device = device.name.clone();
        if device != name {
            let also = if others.is_empty() {
                String::new()
            } else {
                format!("; there is also {}", others.join(", "))
            };
            notes.push(format!("`{name}` is read as {device}{also}"));
        }
        let (nodes, devices) = match numbers[..] {
            [nodes, devices] => (nodes, devices),
            [total] => {
                let each = self.usual(&device).map_or(USUAL_NODE, |node| node.devices);
                if total > each && total % each != 0 {
                    return wrong(
                        format!(
                            "{total} devices do not fill nodes of {each}, as nodes of {device} usually are"
                        ),
                        format!(
                            "write <nodes>x<devices per node>x{name}, e.g. {}x{each}x{name}",
                            total / each + 1
                        ),
                    );
                }
                let (nodes, devices) = if total > each { (total / each, each) } else { (1, total) };
                notes.push(format!("`{text}` is {}", in_words(total, nodes, devices)));
                (nodes, devices)
            }
            _ => {
                return wrong(
                    "does not say how many devices".to_owned(),
                    format!("write e.g. 8x{name} (one node of 8) or 4x8x{name} (4 nodes of 8)"),
                );
            }
        };
        Ok(Some(Group { nodes, devices, device, named: None }))
    }
}

fn in_words(total: u32, nodes: u32, devices: u32) -> String {
    match nodes {
        1 if total == 1 => "1 device in one node".to_owned(),
        1 => format!("{total} devices in one node"),
        _ => format!("{total} devices: {nodes} nodes of {devices}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(text: &str) -> WrittenCluster {
        Catalogue::shipped().complete(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn clusters_as_people_write_them_become_complete() {
        for (written, expected) in [
            ("4x8xh100-80gb-sxm@8x400gbps", "4x8xh100-80gb-sxm@8x400gbps"),
            ("4x8xh100", "4x8xh100-80gb-sxm@8x400gbps"),
            ("4x8xH100-SXM5-80GB@8x200gbps", "4x8xh100-80gb-sxm@8x200gbps"),
            ("32x8xb200", "32x8xb200-180gb-sxm@8x400gbps"),
            ("64xh100", "8x8xh100-80gb-sxm@8x400gbps"),
            ("8xh100", "1x8xh100-80gb-sxm"),
            ("4xh100", "1x4xh100-80gb-sxm"),
            ("2x4xh100", "2x4xh100-80gb-sxm@4x400gbps"),
            ("8x4090", "1x8xrtx4090"),
            ("4x8xmi300x", "4x8xmi300x@8x400gbps"),
            ("4X8XA100", "4x8xa100-80gb-sxm@8x200gbps"),
            ("2x8xa100-40gb", "2x8xa100-40gb-sxm@8x200gbps"),
            ("p5.48xlarge", "1x8xh100-80gb-sxm"),
            ("16xp5.48xlarge", "16x8xh100-80gb-sxm@32x100gbps"),
            ("16x8xp5.48xlarge", "16x8xh100-80gb-sxm@32x100gbps"),
            ("2xp4d", "2x8xa100-40gb-sxm@4x100gbps"),
            ("2xp4de.24xlarge", "2x8xa100-80gb-sxm@4x100gbps"),
            ("4xND96isr_H100_v5", "4x8xh100-80gb-sxm@8x400gbps"),
            ("4xStandard_ND96isr_H100_v5", "4x8xh100-80gb-sxm@8x400gbps"),
            ("4xa3-megagpu-8g", "4x8xh100-80gb-sxm@8x200gbps"),
            ("4xdgx-h100+8xdgx-a100", "4x8xh100-80gb-sxm+8x8xa100-80gb-sxm@8x200gbps"),
            ("4x8xh100+8x8xa100@8x400gbps", "4x8xh100-80gb-sxm+8x8xa100-80gb-sxm@8x400gbps"),
        ] {
            assert_eq!(complete(written).text, expected, "{written}");
        }
        // What is not known here is left to the reader of the short form.
        for written in
            ["", "2x8", "0x8xh100", "4x8xabacus", "1x8x", "2x8xrtx4090", "4x2@1x10gbps", "9999999x8xh100"]
        {
            assert_eq!(complete(written).text, written);
        }
    }

    #[test]
    fn what_was_not_said_is_noted() {
        let cluster = complete("4x8xh100");
        assert_eq!(
            cluster.notes,
            ["`h100` is read as h100-80gb-sxm; there is also h100-96gb-sxm, h100-80gb-pcie, h100-94gb-nvl"]
        );
        assert_eq!(
            cluster.assumptions,
            [
                "network: 8 NICs of 400 Gb/s in every node, as dgx-h100 has: no `@<NICs per node>x<rate>` is given"
            ]
        );
        assert!(complete("4x8xh100-80gb-sxm@8x400gbps").notes.is_empty());
        assert_eq!(complete("64xb200").notes[1], "`64xb200` is 64 devices: 8 nodes of 8");
        let rented = complete("2xp5");
        assert!(rented.assumptions.is_empty() && rented.latency == Some(Seconds(1.5e-5)), "{rented:?}");
    }

    #[test]
    fn devices_that_do_not_make_nodes_are_refused() {
        for (written, expected) in [
            ("12xh100", "12 devices do not fill nodes of 8"),
            ("h100", "does not say how many devices"),
            ("2x4xp5.48xlarge", "p5.48xlarge has 8 devices, not 4"),
        ] {
            let error = Catalogue::shipped().complete(written).unwrap_err();
            assert!(error.problem.contains(expected) && !error.hint.is_empty(), "{error}");
        }
    }
}
