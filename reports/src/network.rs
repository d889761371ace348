//! Measured bandwidths and latencies of the links between devices.

use crate::table::{
    Align::{Left, Right},
    Table,
};
use autodist_spec::{BytesPerSecond, Network, Path, Provenance, Seconds};

/// Every link between machines, and the slowest and the fastest link inside each machine.
pub(crate) fn links(network: &Network) -> Table {
    let mut table = Table::new(&[
        ("link", Left),
        ("rate", Right),
        ("in bits", Right),
        ("both ways at once", Right),
        ("latency, one way", Right),
        ("provenance", Left),
    ]);
    let devices = 0..network.devices();
    let ways: Vec<(u32, u32, &Path)> = devices
        .clone()
        .flat_map(|from| devices.clone().map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
        .map(|(from, to)| (network.nodes[from], network.nodes[to], &network.paths[from][to]))
        .collect();
    let mut row = |name: String, links: &[u32], paths: &[&Path]| {
        let of = |link: &u32| network.links.get(*link as usize);
        let rates: Vec<f64> = links.iter().filter_map(of).map(|link| link.bytes_per_s.0).collect();
        let busy = links.iter().filter_map(of).filter_map(|link| link.both_ways_bytes_per_s);
        let busy = span(&busy.map(|rate| rate.0).collect::<Vec<_>>());
        let latencies: Vec<f64> = paths.iter().map(|path| path.latency_s.0).collect();
        let (Some(rates), Some(latencies)) = (span(&rates), span(&latencies)) else { return };
        let worst = links.iter().filter_map(of).map(|link| link.provenance).max();
        table.row([
            name,
            both(rates, |rate| BytesPerSecond(rate).to_string()),
            both(rates, bits),
            busy.map_or_else(String::new, |busy| both(busy, bits)),
            both(latencies, |latency| Seconds(latency).to_string()),
            worst.unwrap_or(Provenance::Assumed).to_string(),
        ]);
    };
    for (index, link) in network.links.iter().enumerate() {
        let index = index as u32;
        let crossing: Vec<&Path> = ways
            .iter()
            .filter(|(from, to, path)| from != to && path.links.contains(&index))
            .map(|(_, _, path)| *path)
            .collect();
        row(link.name.clone(), &[index], &crossing);
    }
    for node in 0..network.node_count() as u32 {
        let inside: Vec<&Path> = ways
            .iter()
            .filter(|(from, to, _)| (*from, *to) == (node, node))
            .map(|(_, _, path)| *path)
            .collect();
        let links: Vec<u32> = inside.iter().flat_map(|path| path.links.iter().copied()).collect();
        row(format!("inside {}", name(network, node)), &links, &inside);
    }
    table
}

/// Measured times of whole collectives.
pub(crate) fn patterns(network: &Network) -> Table {
    let mut table = Table::new(&[
        ("collective of all devices", Left),
        ("size", Right),
        ("time", Right),
        ("spread", Right),
    ]);
    for timing in &network.patterns {
        table.row([
            timing.pattern.name(),
            timing.bytes.to_string(),
            timing.time.median_s.to_string(),
            format!("[{}, {}]", timing.time.low_s, timing.time.high_s),
        ]);
    }
    table
}

/// The node's name, taken from its uplink.
fn name(network: &Network, node: u32) -> String {
    let uplink = network.nodes.iter().enumerate().find_map(|(from, of)| {
        let to = network.nodes.iter().position(|other| *other != node)?;
        let link = network.paths[from][to].links.first().filter(|_| *of == node)?;
        network.links.get(*link as usize)?.name.strip_suffix(" up")
    });
    uplink.map_or_else(|| format!("node {node}"), str::to_owned)
}

/// The minimum and the maximum; `None` without values.
fn span(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some((least, values.iter().copied().fold(least, f64::max)))
}

fn both((least, most): (f64, f64), show: impl Fn(f64) -> String) -> String {
    let (least, most) = (show(least), show(most));
    if least == most { least } else { format!("{least} to {most}") }
}

/// Bandwidth in bits, as for network products: `191 Mbit/s`.
fn bits(bytes_per_s: f64) -> String {
    let bits = 8.0 * bytes_per_s;
    let (value, unit) = if bits >= 1e9 { (bits / 1e9, "Gbit/s") } else { (bits / 1e6, "Mbit/s") };
    let digits = if value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_between_machines_has_a_row_and_every_machine_one_for_its_inside() {
        let names = ["alice".to_owned(), "bob".to_owned()];
        let mut network = Network::unmeasured(&[0, 0, 1], &names).unwrap();
        network.links.iter_mut().for_each(|link| link.bytes_per_s = BytesPerSecond(25e6));
        network.links[4].bytes_per_s = BytesPerSecond(2e9);
        network.links[0].both_ways_bytes_per_s = Some(BytesPerSecond(20e6));
        network.paths[0][2].latency_s = Seconds(1e-3);
        let rows = links(&network).rows;
        let first: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(first, ["alice up", "alice down", "bob up", "bob down", "inside alice"]);
        assert_eq!(rows[0][2], "200 Mbit/s");
        assert_eq!((rows[0][3].as_str(), rows[1][3].as_str()), ("160 Mbit/s", ""));
        assert!(rows[0][4].ends_with(&Seconds(1e-3).to_string()), "{:?}", rows[0]);
        assert_eq!(rows[4][2], "200 Mbit/s to 16.0 Gbit/s");
    }
}
