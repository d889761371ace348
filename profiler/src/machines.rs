//! Describes the measured devices as a cluster: one machine, or several with the links between them.

use crate::Request;
use autodist_executor::host;
use autodist_spec::profile::{CopyKind, Environment, Hardware};
use autodist_spec::{
    Bytes, BytesPerSecond, Cluster, Device, Link, Network, NodeGroup, Provenance, SCHEMA_VERSION, Seconds,
};

/// Number of machines that are listed by name.
const NAMED: usize = 4;

/// Each rank is a device with its share of its machine's memory. Each of several machines is a node, once the
/// links in `network` have been measured.
pub fn cluster(
    request: &Request,
    hardware: &Hardware,
    environment: &Environment,
    network: Option<&Network>,
) -> Cluster {
    let machines = request.machines.as_slice();
    let (name, memory, whose) = match environment.accelerators.first() {
        Some(gpu) => {
            // A launcher may assign each process its own GPU: ranks share GPUs only if this is declared.
            let most = machines.iter().map(|machine| machine.ranks.len() as u32).max();
            let gpus = environment.accelerators.len() as u32;
            let ranks = if request.shared { most.unwrap_or(request.ranks).div_ceil(gpus) } else { 1 };
            (gpu.name.clone(), gpu.memory_bytes.0 / u64::from(ranks.max(1)), "its GPU's memory")
        }
        None => {
            let parts =
                machines.iter().map(|machine| machine.memory_bytes.0 / machine.ranks.len().max(1) as u64);
            let free = parts.min().unwrap_or_else(|| host::available_memory() / u64::from(request.ranks));
            (format!("cpu ({})", environment.processor), free, "the free memory")
        }
    };
    let (here, least) = match machines.len() {
        0 | 1 => ("this machine", ""),
        _ => ("these machines", " where that is least"),
    };
    let device = Device {
        name,
        memory_bytes: Bytes(memory),
        // The published peak is looked up by name; the FLOP/s of one rank's GEMMs is not a peak.
        peak_flops_per_s: None,
        memory_bytes_per_s: memory_bandwidth(hardware),
        provenance: Provenance::Measured,
        source: Some(format!("measured on {here}: one rank's part of {whose}{least}")),
    };
    let group = |devices: u32, [link, uplink, downlink]: [Option<Link>; 3]| NodeGroup {
        count: 1,
        devices,
        device: device.clone(),
        host_slowness: None,
        host: None,
        usd_per_device_hour: None,
        nics: None,
        link,
        uplink,
        downlink,
    };
    let nodes = match network.filter(|_| machines.len() > 1) {
        Some(network) => machines
            .iter()
            .enumerate()
            .map(|(node, machine)| group(machine.ranks.len() as u32, links(network, node as u32)))
            .collect(),
        None => vec![group(request.ranks, [const { None }; 3])],
    };
    let name = match machines {
        [] | [_] => environment.host.clone(),
        [first, others @ ..] if machines.len() > NAMED => {
            format!("{} and {} other machines", first.name, others.len())
        }
        _ => machines.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>().join(" + "),
    };
    Cluster { schema_version: SCHEMA_VERSION, name, nodes, network: None }
}

/// The links of a node: the slowest between two of its devices, its uplink and its downlink. The path from
/// one node to another has the latencies of an uplink and a downlink.
fn links(network: &Network, node: u32) -> [Option<Link>; 3] {
    let devices = 0..network.devices();
    let pairs = devices.clone().flat_map(|from| devices.clone().map(move |to| (from, to)));
    let mut found: [Option<Link>; 3] = [const { None }; 3];
    for (from, to) in pairs.filter(|(from, to)| from != to) {
        let path = &network.paths[from][to];
        let (leaves, arrives) = (network.nodes[from] == node, network.nodes[to] == node);
        let (kind, link, half) = match (leaves, arrives) {
            (true, true) => (0, path.links.first(), 1.0),
            (true, false) => (1, path.links.first(), 0.5),
            (false, true) => (2, path.links.last(), 0.5),
            (false, false) => continue,
        };
        let Some(link) = link else { continue };
        let rate = network.links[*link as usize].bytes_per_s;
        let latency = Seconds(half * path.latency_s.0);
        found[kind] = Some(match found[kind].take() {
            None => Link { bytes_per_s: rate, latency_s: latency },
            Some(known) => Link {
                bytes_per_s: BytesPerSecond(known.bytes_per_s.0.min(rate.0)),
                latency_s: Seconds(known.latency_s.0.min(latency.0)),
            },
        });
    }
    found
}

/// Bandwidth of the largest copy inside the device, which reads and writes every byte.
fn memory_bandwidth(hardware: &Hardware) -> Option<BytesPerSecond> {
    let copies = hardware.copies.iter().filter(|copy| copy.kind == CopyKind::Device);
    let largest = copies.max_by_key(|copy| copy.bytes)?;
    let seconds = largest.time.median_s.0;
    (seconds > 0.0).then(|| BytesPerSecond(2.0 * largest.bytes.as_f64() / seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::parse::Check;
    use autodist_spec::{Job, Machine, catalog};

    #[test]
    fn machines_become_nodes_with_the_links_that_were_measured() {
        let machine = |name: &str, ranks: &[u32], memory: u64| Machine {
            name: name.to_owned(),
            ranks: ranks.to_vec(),
            memory_bytes: Bytes(memory),
            ..Machine::default()
        };
        let request = Request {
            model: catalog::model("tiny-llama").unwrap(),
            job: Job::new(8, 16),
            ranks: 3,
            shared: false,
            budget_s: 1.0,
            interval: 0.1,
            emulated: None,
            engine: autodist_spec::Engine::Native,
            machines: vec![machine("one", &[0, 2], 8 << 30), machine("two", &[1], 2 << 30)],
        };
        let mut network = request.structure().unwrap();
        for link in &mut network.links {
            let rate = if link.name.starts_with("two") { 10e6 } else { 50e6 };
            link.bytes_per_s = BytesPerSecond(rate);
        }
        network.paths[0][1].latency_s = Seconds(2e-3);
        network.paths[2][1].latency_s = Seconds(3e-3);
        let environment = Environment { host: "one".to_owned(), ..Environment::default() };
        let cluster = cluster(&request, &Hardware::default(), &environment, Some(&network));
        cluster.check().unwrap();
        assert_eq!(cluster.devices_per_node(), [2, 1]);
        assert!(cluster.homogeneous() && cluster.name == "one + two", "{cluster:?}");
        assert_eq!(cluster.device().memory_bytes, Bytes(2 << 30));
        assert_eq!(cluster.device().peak_flops_per_s, None);
        let uplink = |node: usize| cluster.nodes[node].uplink.clone().unwrap();
        assert_eq!((uplink(0).bytes_per_s.0, uplink(0).latency_s), (50e6, Seconds(1e-3)));
        assert_eq!(uplink(1).bytes_per_s.0, 10e6);
        assert_eq!(cluster.nodes[0].link.as_ref().unwrap().bytes_per_s.0, 50e6);
        assert_eq!(cluster.nodes[1].link, None);
    }
}
