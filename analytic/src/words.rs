//! Parses free text of sources: devices, networks, numbers in notes.

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

/// The year of a source, from its text: of its arXiv number, or the first year named.
pub fn year(words: &str) -> Option<u32> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let mut named = None;
    let mut at = 0;
    while let Some(found) = words[at..].find(|c: char| c.is_ascii_digit()) {
        let rest = &words[at + found..];
        let long = digits(rest);
        let fraction = rest[long..].strip_prefix('.').map_or(0, digits);
        let (head, month) = (rest[..long.min(4)].parse().unwrap_or(0), rest[..long.min(4)].get(2..4));
        let is_month = month.and_then(|m| m.parse::<u32>().ok()).is_some_and(|m| (1..=12).contains(&m));
        if long == 4 && matches!(fraction, 4 | 5) && is_month {
            return Some(2000 + head / 100);
        }
        if long == 4 && fraction == 0 && (2018..=2035).contains(&head) {
            named = named.or(Some(head));
        }
        at += found + long;
    }
    named
}

/// Whether the text names unfused attention.
pub fn named_unfused(words: &str) -> bool {
    ["unfused", "non-flash", "no flash", "not flash", "without flash", "core attention"]
        .iter()
        .any(|w| words.contains(w))
}

/// Devices per node for a rack that is one NVLink domain, where sources count trays as nodes: as many as the
/// job uses.
pub fn rack(catalogue: &Catalogue, link: &str, device: &str) -> Option<u32> {
    let one_domain = link.is_empty() || link.to_ascii_lowercase().contains("nvl");
    let mut nodes = catalogue.nodes().iter();
    let rack = nodes.find(|node| one_domain && node.device == device && node.devices > 16)?;
    Some(1 << rack.devices.ilog2())
}

/// The integer that follows the phrase.
pub fn number_after(words: &str, phrase: &str) -> Option<u32> {
    let rest = &words[words.find(phrase)? + phrase.len()..];
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// The network between nodes, from text such as `8x HDR 200Gb/s IB per node` or `RoCE 1600 Gb/s per node`;
/// otherwise the network of the catalogue's node with that device.
pub fn uplink(
    catalogue: &Catalogue,
    words: &str,
    device: &str,
    assumptions: &mut Vec<String>,
) -> Result<Uplink, String> {
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
    if let Some((nics, gigabits)) = cards(&words) {
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

/// NICs of a node and Gb/s of each: `8 x 200 Gb/s`; or `1600 Gb/s` in total, in NICs of 200.
fn cards(words: &str) -> Option<(u32, f64)> {
    let unit = words.find("gb/s")?;
    let before = words[..unit].trim_end();
    let start = before.rfind(|c: char| !c.is_ascii_digit() && c != '.').map_or(0, |at| at + 1);
    let rate: f64 = before[start..].parse().ok()?;
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
        ] {
            assert_eq!(cards(words), Some(expected), "{words}");
        }
        assert_eq!(cards("selene hdr ib"), None);
    }

    #[test]
    fn years_are_read_from_arxiv_numbers_and_dates() {
        for (words, expected) in [
            ("narayanan et al., 2104.04473, table 1", Some(2021)),
            ("arxiv 2401.10241 / openreview tuztn0eio5", Some(2024)),
            ("korthikanti et al. 2022 reducing activation recomputation arxiv 2205.05198", Some(2022)),
            ("dlperf gpt report 2021-05-12 dlperf_gpt_test_report_210512.md", Some(2021)),
            ("vtrain (micro-57), seq 2048, 4096 wide, 1600.5 tokens", None),
            ("9999.12345", None),
        ] {
            assert_eq!(year(words), expected, "{words}");
        }
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
