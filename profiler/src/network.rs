//! Measures every link of a network whose devices are not all joined alike: who shares which link is known, how fast
//! each is and how late bytes arrive is measured.

use crate::{Request, links};
use autodist_communication::{Mailbox, Reduction};
use autodist_executor::launcher::Worker;
use autodist_executor::{Device, ExecutionError, host};
use autodist_spec::profile::Sample;
use autodist_spec::{BytesPerSecond, Network, Provenance, Seconds};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Flows to time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkTask {
    /// Sets of flows, each from a device to another, that begin together. All flows of a device in a set leave it, or
    /// all of them come to it.
    pub experiments: Vec<Vec<(usize, usize)>>,
    /// Elements of a flow.
    pub elements: usize,
    pub repetitions: usize,
}

/// What one rank saw as a sender: per experiment, and by size (one element, then all), seconds until all its flows
/// have arrived and were acknowledged; empty where it did not send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkAnswer {
    pub seconds: Vec<[Vec<f64>; 2]>,
    /// Hand-over of work to the communication stream and back, seconds.
    pub handover: Vec<f64>,
    /// Memory that a communicator holds after a large collective.
    pub staging_bytes: u64,
}

/// Of a flow: long against what a link lets through at once.
const FLOW_BYTES: usize = 384 << 10;
const REPETITIONS: usize = 5;

impl NetworkTask {
    /// Every pair of devices by itself, and for every node all that its uplink and its downlink can be asked for.
    pub fn of(request: &Request) -> Option<Self> {
        let network = Network::of(request.emulated.as_ref()?)?;
        let devices = network.devices();
        let mut experiments = Vec::new();
        for from in 0..devices {
            experiments.extend((0..devices).filter(|to| *to != from).map(|to| vec![(from, to)]));
        }
        let nodes = network.nodes.last().map_or(0, |last| *last as usize + 1);
        let first = |node: usize| network.nodes.iter().position(|n| *n as usize == node).unwrap_or(0);
        for node in 0..nodes {
            let others: Vec<usize> = (0..nodes).filter(|other| *other != node).map(first).collect();
            if others.len() > 1 {
                experiments.push(others.iter().map(|other| (first(node), *other)).collect());
                experiments.push(others.iter().map(|other| (*other, first(node))).collect());
            }
        }
        Some(Self { experiments, elements: FLOW_BYTES / 4, repetitions: REPETITIONS })
    }
}

pub fn measure<D: Device>(
    device: &D,
    task: &NetworkTask,
    worker: &mut Worker,
    name: &str,
) -> Result<NetworkAnswer, ExecutionError> {
    host::enter_communication(worker.placement);
    let (rank, world) = (worker.endpoint.rank(), worker.endpoint.world());
    let everyone: Vec<usize> = (0..world).collect();
    let others: Vec<usize> = (0..world).filter(|other| *other != rank).collect();
    let before = device.live_memory();
    let mut group = worker.endpoint.group(&format!("{name}.all"), &everyone)?;
    let mut values = vec![1.0; task.elements];
    group.all_reduce(&mut values, Reduction::Sum)?;
    drop(values);
    let staging_bytes = device.live_memory().saturating_sub(before) as u64;
    let mut mailbox = worker.endpoint.point_to_point(&format!("{name}.flows"), &others)?;
    let mut seconds = Vec::new();
    for flows in &task.experiments {
        let mut of_experiment = [Vec::new(), Vec::new()];
        for (size, elements) in [1, task.elements].into_iter().enumerate() {
            for repetition in 0..=task.repetitions {
                group.barrier()?;
                let taken = flow(&mut *mailbox, flows, rank, elements)?;
                // The first warms the connection up.
                of_experiment[size].extend(taken.filter(|_| repetition > 0));
            }
        }
        seconds.push(of_experiment);
    }
    mailbox.close()?;
    let handover = links::handover(device, REPETITIONS, worker, name)?;
    Ok(NetworkAnswer { seconds, handover, staging_bytes })
}

/// This rank's part of a set of flows; seconds if it sends.
fn flow(
    mailbox: &mut dyn Mailbox,
    flows: &[(usize, usize)],
    rank: usize,
    elements: usize,
) -> Result<Option<f64>, ExecutionError> {
    // Ranks leave a barrier one after the other: who receives must be waiting before the clock starts.
    for (_, to) in flows.iter().filter(|(from, _)| *from == rank) {
        mailbox.send(*to, 0, vec![1.0])?;
    }
    for (from, _) in flows.iter().filter(|(_, to)| *to == rank) {
        mailbox.receive(*from, 0)?;
        mailbox.send(*from, 1, vec![1.0])?;
    }
    for (_, to) in flows.iter().filter(|(from, _)| *from == rank) {
        mailbox.receive(*to, 1)?;
    }
    let start = Instant::now();
    for (_, to) in flows.iter().filter(|(from, _)| *from == rank) {
        mailbox.send(*to, 0, vec![1.0; elements])?;
    }
    for (from, _) in flows.iter().filter(|(_, to)| *to == rank) {
        mailbox.receive(*from, 0)?;
        mailbox.send(*from, 1, vec![1.0])?;
    }
    let mut sends = false;
    for (_, to) in flows.iter().filter(|(from, _)| *from == rank) {
        mailbox.receive(*to, 1)?;
        sends = true;
    }
    Ok(sends.then(|| start.elapsed().as_secs_f64()))
}

/// The network of `structure` with measured rates and latencies.
pub fn assemble(structure: &Network, task: &NetworkTask, answers: &[NetworkAnswer]) -> Network {
    let mut network = structure.clone();
    let mut rates = vec![0.0_f64; network.links.len()];
    for (experiment, flows) in task.experiments.iter().enumerate() {
        let time = |size: usize| {
            // A set takes as long as its slowest sender.
            let of = |answer: &NetworkAnswer| {
                let seconds = &answer.seconds[experiment][size];
                (!seconds.is_empty()).then(|| Sample::of(seconds).median_s.0)
            };
            answers.iter().filter_map(of).fold(0.0, f64::max)
        };
        let (round_trip, whole) = (time(0), time(1));
        if let [(from, to)] = flows[..] {
            network.paths[from][to].latency_s = Seconds(round_trip / 2.0);
        }
        let wire = whole - round_trip;
        if wire <= 0.0 {
            continue;
        }
        for (link, rate) in rates.iter_mut().enumerate() {
            let crossing =
                |(from, to): &&(usize, usize)| network.paths[*from][*to].links.contains(&(link as u32));
            let count = flows.iter().filter(crossing).count();
            *rate = rate.max((count * 4 * (task.elements - 1)) as f64 / wire);
        }
    }
    for (link, rate) in network.links.iter_mut().zip(rates) {
        if rate > 0.0 {
            link.bytes_per_s = BytesPerSecond(rate);
            link.provenance = Provenance::Measured;
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::{Path, SharedLink};

    #[test]
    fn a_shared_link_is_as_fast_as_all_that_crosses_it_at_once() {
        let link = |name: &str| SharedLink {
            name: name.to_owned(),
            bytes_per_s: BytesPerSecond(1.0),
            provenance: Provenance::Assumed,
        };
        let path = |links: &[u32]| Path { links: links.to_vec(), latency_s: Seconds::ZERO };
        let network = Network {
            nodes: vec![0, 1, 2],
            links: vec![link("up of 0"), link("down of 1"), link("down of 2")],
            paths: vec![
                vec![path(&[]), path(&[0, 1]), path(&[0, 2])],
                vec![Path::default(); 3],
                vec![Path::default(); 3],
            ],
            patterns: Vec::new(),
        };
        let task = NetworkTask {
            experiments: vec![vec![(0, 1)], vec![(0, 2)], vec![(0, 1), (0, 2)]],
            elements: 251,
            repetitions: 1,
        };
        let answer = |seconds: [f64; 3]| NetworkAnswer {
            seconds: seconds.map(|s| [vec![0.5], vec![0.5 + s]]).to_vec(),
            handover: Vec::new(),
            staging_bytes: 0,
        };
        let measured = assemble(&network, &task, &[answer([10.0, 20.0, 10.0])]);
        let rates: Vec<f64> = measured.links.iter().map(|link| link.bytes_per_s.0).collect();
        assert_eq!(rates, [200.0, 100.0, 100.0]);
        assert_eq!(measured.paths[0][1].latency_s, Seconds(0.25));
    }
}
