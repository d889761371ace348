//! Measures the bandwidth and latency of every link of a network with different links; which devices share
//! which link is given.

use crate::{Request, links};
use autodist_communication::{Communicator, Mailbox, ReduceOp};
use autodist_executor::launcher::Worker;
use autodist_executor::{ExecutionError, TrainingDevice, host};
use autodist_spec::profile::Sample;
use autodist_spec::{BytesPerSecond, Network, Provenance, Seconds};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Flows to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkTask {
    /// Sets of flows, each from one device to another, that start together.
    pub experiments: Vec<Vec<(usize, usize)>>,
    /// Elements of a flow: the minimum, and the maximum if the flow is too short to be timed.
    pub elements: usize,
    pub most_elements: usize,
    pub repetitions: usize,
}

/// Measurements of one rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkAnswer {
    pub flows: Vec<FlowTimings>,
    /// Hand-over of work to the communication stream and back, in seconds.
    pub handover: Vec<f64>,
    /// Memory that a communicator holds after a large collective.
    pub staging_bytes: u64,
    /// Whether collectives between devices use autodist's own schedules, not those of a library.
    pub by_schedule: bool,
}

/// Times of one experiment: seconds until all flows from this rank have arrived and were acknowledged; empty
/// if it sent none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FlowTimings {
    /// Times of flows of one element.
    pub round_trip: Vec<f64>,
    /// Times of flows of `elements`.
    pub whole: Vec<f64>,
    pub elements: usize,
}

/// Size of a flow, large compared with the buffer of an emulated link.
const FLOW_BYTES: usize = 384 << 10;
/// Largest size of a flow: shorter flows cannot be timed on a fast link.
const MOST_BYTES: usize = 32 << 20;
/// A flow of this duration is timed well: the slow start of its first round trips is negligible.
const LONG_ENOUGH_S: f64 = 0.04;
const ROUND_TRIPS: f64 = 30.0;
/// Each set is timed once per pass, so that a short disturbance of the machine affects a set in only one
/// pass.
const PASSES: usize = 3;
/// Repetitions in each pass.
const REPETITIONS: usize = 3;
/// Links whose bandwidth exceeds that of a set's slowest link by less than this factor count as bottlenecks,
/// too.
const HELD_UP: f64 = 1.05;
/// Elements of a send: flows are sequences of them.
const PART: usize = 16 << 10;

impl NetworkTask {
    /// Every pair of devices of a node alone, and the first devices of every two nodes; then, for shared
    /// links, the maximum number of flows at once; and for real links, the remaining bandwidth of each
    /// direction while the other is busy.
    pub fn of(request: &Request) -> Option<Self> {
        let network = request.structure()?;
        let mut experiments = experiments(&network);
        let most = match request.emulated {
            Some(_) => FLOW_BYTES,
            None => {
                experiments.extend(both_ways(&network));
                MOST_BYTES
            }
        };
        Some(Self {
            experiments,
            elements: FLOW_BYTES / 4,
            most_elements: most / 4,
            repetitions: REPETITIONS,
        })
    }
}

fn experiments(network: &Network) -> Vec<Vec<(usize, usize)>> {
    let devices_of: Vec<Vec<usize>> = (0..network.node_count())
        .map(|node| (0..network.devices()).filter(|d| network.nodes[*d] as usize == node).collect())
        .collect();
    let mut experiments = Vec::new();
    for (node, devices) in devices_of.iter().enumerate() {
        for from in devices {
            experiments.extend(devices.iter().filter(|to| *to != from).map(|to| vec![(*from, *to)]));
        }
        let others = devices_of.iter().enumerate().filter(|(other, _)| *other != node);
        let others: Vec<&Vec<usize>> = others.map(|(_, devices)| devices).collect();
        for there in &others {
            experiments.push(vec![(devices[0], there[0])]);
            // In parallel, as replicas reduce their gradients.
            let pairs: Vec<(usize, usize)> = devices.iter().copied().zip(there.iter().copied()).collect();
            if pairs.len() > 1 {
                experiments.push(pairs);
            }
        }
        if others.len() > 1 {
            experiments.push(others.iter().map(|there| (devices[0], there[0])).collect());
            experiments.push(others.iter().map(|there| (there[0], devices[0])).collect());
        }
    }
    experiments
}

/// Sets in which devices send and receive at the same time: pairs of nodes to each other, and all nodes in a
/// ring.
fn both_ways(network: &Network) -> Vec<Vec<(usize, usize)>> {
    let firsts: Vec<usize> = (0..network.node_count()).filter_map(|node| network.first_of(node)).collect();
    let mut sets = Vec::new();
    for (index, one) in firsts.iter().enumerate() {
        sets.extend(firsts[index + 1..].iter().map(|other| vec![(*one, *other), (*other, *one)]));
    }
    if firsts.len() > 2 {
        let next = firsts.iter().cycle().skip(1);
        sets.push(firsts.iter().copied().zip(next.copied()).collect());
    }
    sets
}

/// Whether some device of a set sends and receives.
fn is_both_ways(flows: &[(usize, usize)]) -> bool {
    flows.iter().any(|(from, _)| flows.iter().any(|(_, to)| to == from))
}

pub fn measure<D: TrainingDevice>(
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
    group.all_reduce(&mut values, ReduceOp::Sum)?;
    drop(values);
    let staging_bytes = device.live_memory().saturating_sub(before) as u64;
    let mut mailbox = worker.endpoint.point_to_point(&format!("{name}.flows"), &others)?;
    let untimed = FlowTimings { elements: task.elements, ..FlowTimings::default() };
    let mut answers = vec![untimed; task.experiments.len()];
    for pass in 0..PASSES {
        for (flows, timings) in task.experiments.iter().zip(&mut answers) {
            let mut once = |group: &mut Box<dyn Communicator>, elements| {
                group.barrier()?;
                flow(&mut *mailbox, flows, rank, elements)
            };
            for repetition in 0..=task.repetitions {
                // The first repetition warms up the connection.
                timings.round_trip.extend(once(&mut group, 1)?.filter(|_| repetition > 0));
            }
            let mut sized = pass > 0;
            while !sized {
                let round_trip = Sample::of(&timings.round_trip).median_s.0;
                let taken = once(&mut group, timings.elements)?.unwrap_or(0.0);
                let mut longest = [taken as f32, round_trip as f32];
                group.all_reduce(&mut longest, ReduceOp::Max)?;
                let [longest, round_trip] = longest.map(f64::from);
                let more = (4 * timings.elements).min(task.most_elements);
                sized = longest >= LONG_ENOUGH_S.max(ROUND_TRIPS * round_trip) || more <= timings.elements;
                if !sized {
                    timings.elements = more;
                }
            }
            for _ in 0..task.repetitions {
                timings.whole.extend(once(&mut group, timings.elements)?);
            }
        }
    }
    mailbox.close()?;
    let handover = links::handover(device, PASSES * REPETITIONS, worker, name)?;
    Ok(NetworkAnswer { flows: answers, handover, staging_bytes, by_schedule: !device.chooses_algorithms() })
}

/// This rank's part of a set of flows; seconds if it sends.
fn flow(
    mailbox: &mut dyn Mailbox,
    flows: &[(usize, usize)],
    rank: usize,
    elements: usize,
) -> Result<Option<f64>, ExecutionError> {
    let receivers: Vec<usize> = flows.iter().filter(|(from, _)| *from == rank).map(|(_, to)| *to).collect();
    let senders: Vec<usize> = flows.iter().filter(|(_, to)| *to == rank).map(|(from, _)| *from).collect();
    // Data to send is created before the clock starts.
    let parts: Vec<usize> = (0..elements).step_by(PART).map(|start| PART.min(elements - start)).collect();
    let mut buffers: Vec<Vec<f32>> =
        receivers.iter().flat_map(|_| &parts).map(|elements| vec![1.0; *elements]).collect();
    // Ranks leave a barrier one after the other: receivers must be waiting before the clock starts.
    for to in &receivers {
        mailbox.send(*to, 0, vec![1.0])?;
    }
    for from in &senders {
        mailbox.receive(*from, 0)?;
        mailbox.send(*from, 1, vec![1.0])?;
    }
    for to in &receivers {
        mailbox.receive(*to, 1)?;
    }
    let start = Instant::now();
    for _ in &parts {
        for to in &receivers {
            mailbox.send(*to, 0, buffers.pop().unwrap_or_default())?;
        }
    }
    // Several flows are served in turn, so that none waits until another has finished.
    for _ in &parts {
        for from in &senders {
            mailbox.receive(*from, 0)?;
        }
    }
    for from in &senders {
        mailbox.send(*from, 1, vec![1.0])?;
    }
    for to in &receivers {
        mailbox.receive(*to, 1)?;
    }
    Ok((!receivers.is_empty()).then(|| start.elapsed().as_secs_f64()))
}

/// The times of a set of flows: its slowest sender's medians.
struct Taken {
    round_trip: f64,
    whole: f64,
    /// Bytes of each flow.
    bytes: f64,
}

impl Taken {
    fn of(experiment: usize, answers: &[NetworkAnswer]) -> Self {
        let time = |part: fn(&FlowTimings) -> &Vec<f64>| {
            let of = |answer: &NetworkAnswer| {
                let seconds = part(&answer.flows[experiment]);
                (!seconds.is_empty()).then(|| Sample::of(seconds).median_s.0)
            };
            answers.iter().filter_map(of).fold(0.0, f64::max)
        };
        let elements = answers.iter().map(|answer| answer.flows[experiment].elements).max().unwrap_or(0);
        Self {
            round_trip: time(|flow| &flow.round_trip),
            whole: time(|flow| &flow.whole),
            bytes: (4 * elements.saturating_sub(1)) as f64,
        }
    }

    /// Seconds on the wire.
    fn wire(&self, flows: &[(usize, usize)]) -> f64 {
        // Several senders start up to one round trip apart, and none of them can observe when the first
        // started. And if the machine's disturbances were longer than the flow, the result is only an upper
        // bound.
        let one_clock = flows.iter().all(|(from, _)| *from == flows[0].0);
        if one_clock && self.whole > self.round_trip { self.whole - self.round_trip } else { self.whole }
    }
}

/// The network of `structure` with measured rates and latencies.
pub fn assemble(structure: &Network, task: &NetworkTask, answers: &[NetworkAnswer]) -> Network {
    let mut network = structure.clone();
    let mut rates = vec![0.0_f64; network.links.len()];
    for (experiment, flows) in task.experiments.iter().enumerate().filter(|(_, flows)| !is_both_ways(flows)) {
        let taken = Taken::of(experiment, answers);
        if let [(from, to)] = flows[..] {
            for (a, b) in alike(structure, from, to) {
                network.paths[a][b].latency_s = Seconds(taken.round_trip / 2.0);
            }
        }
        let wire = taken.wire(flows);
        if wire <= 0.0 {
            continue;
        }
        for (link, rate) in rates.iter_mut().enumerate() {
            let count = crossing(&network, flows, link as u32);
            *rate = rate.max(count as f64 * taken.bytes / wire);
        }
    }
    for (link, rate) in network.links.iter_mut().zip(rates) {
        if rate > 0.0 {
            link.bytes_per_s = BytesPerSecond(rate);
            link.provenance = Provenance::Measured;
        }
    }
    let kept = kept_both_ways(&network, task, answers);
    for (link, part) in network.links.iter_mut().zip(kept) {
        link.both_ways_bytes_per_s = part.map(|part| BytesPerSecond(part * link.bytes_per_s.0));
    }
    network
}

/// Flows of a set that cross a link.
fn crossing(network: &Network, flows: &[(usize, usize)], link: u32) -> usize {
    flows.iter().filter(|(from, to)| network.paths[*from][*to].links.contains(&link)).count()
}

/// The fraction of each link's bandwidth that remains while the other direction is busy: if the link was the
/// bottleneck of some sets, the median over those, else the median of all.
fn kept_both_ways(network: &Network, task: &NetworkTask, answers: &[NetworkAnswer]) -> Vec<Option<f64>> {
    let mut parts: Vec<Vec<f64>> = vec![Vec::new(); network.links.len()];
    let between = |from: usize, to: usize| network.nodes[from] != network.nodes[to];
    for (experiment, flows) in task.experiments.iter().enumerate().filter(|(_, flows)| is_both_ways(flows)) {
        let taken = Taken::of(experiment, answers);
        // A device that sends and receives observes both starts, up to half a round trip.
        let wire = if taken.whole > taken.round_trip { taken.whole - taken.round_trip } else { taken.whole };
        let share = |link: &u32| {
            network.links[*link as usize].bytes_per_s.0 / crossing(network, flows, *link).max(1) as f64
        };
        let links: Vec<u32> =
            flows.iter().flat_map(|(from, to)| network.paths[*from][*to].links.iter().copied()).collect();
        let slowest = links.iter().map(share).fold(f64::INFINITY, f64::min);
        if wire <= 0.0 || !(slowest > 0.0 && slowest.is_finite()) {
            continue;
        }
        let part = (taken.bytes / slowest / wire).min(1.0);
        for link in links.iter().filter(|link| share(link) <= HELD_UP * slowest) {
            parts[*link as usize].push(part);
        }
    }
    let all: Vec<f64> = parts.iter().flatten().copied().collect();
    let devices = 0..network.devices();
    let outside: Vec<u32> = devices
        .clone()
        .flat_map(|from| devices.clone().map(move |to| (from, to)))
        .filter(|(from, to)| between(*from, *to))
        .flat_map(|(from, to)| network.paths[from][to].links.iter().copied())
        .collect();
    let part = |(link, parts): (usize, &Vec<f64>)| {
        let known = if parts.is_empty() { &all } else { parts };
        (outside.contains(&(link as u32)) && !known.is_empty()).then(|| Sample::of(known).median_s.0)
    };
    parts.iter().enumerate().map(part).collect()
}

/// The pairs of devices with the same path: between two machines all pairs, within a machine only this pair.
fn alike(network: &Network, from: usize, to: usize) -> Vec<(usize, usize)> {
    let way = (network.nodes[from], network.nodes[to]);
    if way.0 == way.1 {
        return vec![(from, to)];
    }
    let devices = 0..network.devices();
    let pairs = devices.clone().flat_map(|a| devices.clone().map(move |b| (a, b)));
    pairs.filter(|(a, b)| (network.nodes[*a], network.nodes[*b]) == way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::{Path, SharedLink};

    #[test]
    fn flows_of_two_machines_run_alone_and_side_by_side() {
        let names = ["a".to_owned(), "b".to_owned()];
        let network = Network::unmeasured(&[0, 1, 0, 1], &names).unwrap();
        let found = experiments(&network);
        for expected in [&[(0, 2)][..], &[(2, 0)], &[(1, 3)], &[(0, 1)], &[(1, 0)], &[(0, 1), (2, 3)]] {
            assert!(found.iter().any(|flows| flows == expected), "{expected:?} in {found:?}");
        }
        assert_eq!(alike(&network, 0, 1), [(0, 1), (0, 3), (2, 1), (2, 3)]);
        assert_eq!(alike(&network, 0, 2), [(0, 2)]);
    }

    #[test]
    fn a_shared_link_is_as_fast_as_all_that_crosses_it_at_once() {
        let link = |name: &str| SharedLink {
            name: name.to_owned(),
            bytes_per_s: BytesPerSecond(1.0),
            both_ways_bytes_per_s: None,
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
            most_elements: 251,
            repetitions: 1,
        };
        let timings =
            |s: f64| FlowTimings { round_trip: vec![0.5], whole: vec![0.5 + s], elements: task.elements };
        let answer = |seconds: [f64; 3]| NetworkAnswer {
            flows: seconds.map(timings).to_vec(),
            handover: Vec::new(),
            staging_bytes: 0,
            by_schedule: true,
        };
        let measured = assemble(&network, &task, &[answer([10.0, 20.0, 10.0])]);
        let rates: Vec<f64> = measured.links.iter().map(|link| link.bytes_per_s.0).collect();
        assert_eq!(rates, [200.0, 100.0, 100.0]);
        assert_eq!(measured.paths[0][1].latency_s, Seconds(0.25));
    }

    #[test]
    fn what_is_left_of_a_link_while_the_other_direction_is_busy_is_told_apart() {
        let structure = Network::unmeasured(&[0, 1], &["a".to_owned(), "b".to_owned()]).unwrap();
        let task = NetworkTask {
            experiments: vec![vec![(0, 1)], vec![(1, 0)], vec![(0, 1), (1, 0)]],
            elements: 251,
            most_elements: 251,
            repetitions: 1,
        };
        let timings =
            |s: f64| FlowTimings { round_trip: vec![0.5], whole: vec![0.5 + s], elements: task.elements };
        let answer = NetworkAnswer {
            flows: [10.0, 10.0, 20.0].map(timings).to_vec(),
            handover: Vec::new(),
            staging_bytes: 0,
            by_schedule: true,
        };
        let measured = assemble(&structure, &task, &[answer]);
        for link in &measured.links {
            assert_eq!((link.bytes_per_s.0, link.busy_rate().0), (100.0, 50.0), "{}", link.name);
        }
    }
}
