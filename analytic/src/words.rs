//! Parses what sources call devices and networks.

use crate::machine::Uplink;
use autodist_hardware::{Catalogue, NodeShape};

/// The catalogue's name of a device, and whether it is an exact match.
pub fn device(catalogue: &Catalogue, written: &str) -> Result<(String, bool), String> {
    let lower = written.to_ascii_lowercase();
    let bare = lower.split('(').next().unwrap_or_default().trim().replace([' ', '_'], "-");
    let bare =
        bare.replace("sxm2", "sxm").replace("sxm3", "sxm").replace("sxm4", "sxm").replace("sxm5", "sxm");
    if catalogue.device(&bare).is_ok() {
        return Ok((bare, true));
    }
    let kind = bare.split('-').next().unwrap_or_default();
    let alike = catalogue.devices().iter().filter(|known| known.name.split('-').next() == Some(kind));
    // Among devices of the same kind, the one with the longest common prefix.
    let common = |name: &str| name.bytes().zip(bare.bytes()).take_while(|(a, b)| a == b).count();
    let best = alike.max_by_key(|known| (common(&known.name), known.name.contains("80gb-sxm")));
    best.map(|known| (known.name.clone(), false))
        .ok_or_else(|| format!("`gpu` is `{written}`: not in the catalogue"))
}

/// Devices per node for a rack that is one NVLink domain, where sources count trays as nodes: as many as the
/// job uses.
pub fn rack(catalogue: &Catalogue, link: &str, device: &str) -> Option<u32> {
    let one_domain = link.is_empty() || link.to_ascii_lowercase().contains("nvl");
    let mut nodes = catalogue.nodes().iter();
    let rack = nodes.find(|node| one_domain && node.device == device && node.devices > 16)?;
    Some(1 << rack.devices.ilog2())
}

/// The network between nodes, from text such as `8x HDR 200Gb/s IB per node` or `RoCE 1600 Gb/s per node`;
/// otherwise the network of the catalogue's node with that device.
pub fn uplink(
    catalogue: &Catalogue,
    words: &str,
    device: &str,
    assumptions: &mut Vec<String>,
) -> Result<Uplink, String> {
    let rate = cards(words);
    let words = words.to_ascii_lowercase();
    let fabric = match () {
        () if words.contains("omni") || words.contains("opa") => "omni-path",
        () if words.contains("roce") => "roce",
        () if words.contains("efa") => "efa",
        () if words.contains("slingshot") => "slingshot",
        () if words.contains("ethernet") || words.contains("tcp") => "ethernet",
        () => "infiniband",
    }
    .to_owned();
    if let Some((nics, gigabits)) = rate {
        // Plausible limits: NICs of a node, and a NIC's bandwidth up to a thousand times that of current
        // products.
        if nics > 1 << 12 || !(1e-3..=1e6).contains(&gigabits) {
            return Err(format!("`inter_link` is `{words}`: expected the rate of a node's network"));
        }
        return Ok(Uplink { fabric, bytes_per_s: f64::from(nics) * gigabits * 1e9 / 8.0, nics });
    }
    let like = |name: &str| name.split('-').next() == device.split('-').next();
    // The node with that device or one of its kind; preferably with the named fabric.
    let fits = |node: &&NodeShape| {
        let named = words.is_empty() || node.fabric == fabric;
        (named, node.device == device)
    };
    let nodes = catalogue.nodes().iter().filter(|node| like(&node.device));
    let node = nodes
        .rev()
        .max_by_key(fits)
        .ok_or_else(|| format!("`inter_link` is not given, and no node of the catalogue has {device}"))?;
    if words.is_empty() {
        assumptions.push(format!("a network as of {}: not given", node.name));
        return Ok(Uplink {
            fabric: node.fabric.clone(),
            bytes_per_s: node.nic_bytes_per_s.0 * f64::from(node.nics),
            nics: node.nics,
        });
    }
    assumptions.push(format!("network cards as of {}: rate not given", node.name));
    Ok(Uplink { fabric, bytes_per_s: node.nic_bytes_per_s.0 * f64::from(node.nics), nics: node.nics })
}

/// Units of a rate, and bits per second of each: a small `b` is a bit, a large one a byte.
const UNITS: [(&str, f64); 12] = [
    ("Gb/s", 1e9),
    ("gb/s", 1e9),
    ("Gbps", 1e9),
    ("gbps", 1e9),
    ("Gbit/s", 1e9),
    ("GB/s", 8e9),
    ("GBps", 8e9),
    ("MB/s", 8e6),
    ("Mb/s", 1e6),
    ("Tb/s", 1e12),
    ("Tbps", 1e12),
    ("TB/s", 8e12),
];

/// NICs of a node and Gb/s of each: `8 x 200 Gb/s`; or `1600 Gb/s` (`200 GB/s`) in total, in NICs of 200.
fn cards(words: &str) -> Option<(u32, f64)> {
    let units = UNITS.iter().filter_map(|(unit, bits)| Some((words.find(unit)?, bits)));
    let (unit, bits) = units.min_by_key(|(at, _)| *at)?;
    let before = words[..unit].trim_end();
    let start = before.rfind(|c: char| !c.is_ascii_digit() && c != '.').map_or(0, |at| at + 1);
    let rate = before[start..].parse::<f64>().ok()? * bits / 1e9;
    let head = before[..start].trim_end();
    let count = head.rfind('x').and_then(|at| {
        let digits = head[..at].trim_end();
        let first = digits.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
        digits[first..].parse::<u32>().ok()
    });
    match count {
        Some(count) if count > 0 => Some((count, rate)),
        _ => {
            let cards = (rate / 200.0).ceil().max(1.0);
            Some((cards as u32, rate / cards))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_read_from_a_sources_words() {
        for (words, expected) in [
            ("selene: 8x hdr 200gb/s ib per node (recalled)", (8, 200.0)),
            ("4 x 100 gb/s roce per node", (4, 100.0)),
            ("roce 1600 gb/s per node", (8, 200.0)),
            ("omni-path 4x100gb/s per node", (4, 100.0)),
            ("1 x edr 100 gb/s ib per node", (1, 100.0)),
            ("800 gb/s per node (config)", (4, 200.0)),
            ("25 GB/s per node", (1, 200.0)),
            ("8 x 25 GB/s InfiniBand", (8, 200.0)),
            ("25 Gb/s Ethernet", (1, 25.0)),
            ("10Gbps", (1, 10.0)),
            ("1.6 Tb/s per node", (8, 200.0)),
        ] {
            assert_eq!(cards(words), Some(expected), "{words}");
        }
        assert_eq!(cards("selene hdr ib"), None);
    }

    #[test]
    fn racks_are_domains_where_nothing_else_is_said() {
        let catalogue = Catalogue::shipped();
        assert_eq!(rack(&catalogue, "", "gb200-186gb"), Some(64));
        assert_eq!(rack(&catalogue, "NVL72", "gb300-288gb"), Some(64));
        assert_eq!(rack(&catalogue, "4x400Gb/s InfiniBand", "gb200-186gb"), None);
        assert_eq!(rack(&catalogue, "", "h100-80gb-sxm"), None);
    }

    #[test]
    fn devices_are_found_by_what_sources_call_them() {
        let catalogue = Catalogue::shipped();
        for (written, expected, exact) in [
            ("A100-80GB-SXM", "a100-80gb-sxm", true),
            ("V100-32GB-SXM3 (DGX-2)", "v100-32gb-sxm", true),
            ("H100-96GB-500W (Grand Teton)", "h100-96gb-sxm", false),
            ("A100-80GB-SXM4", "a100-80gb-sxm", true),
        ] {
            assert_eq!(device(&catalogue, written).unwrap(), (expected.to_owned(), exact), "{written}");
        }
        assert!(device(&catalogue, "Cerebras").is_err());
    }
}
