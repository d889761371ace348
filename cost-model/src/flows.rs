//! Collectives as flows on a network: the schedule determines who sends when, the links determine how fast.
//!
//! Flows that cross a link at the same time share it by max-min fairness (Bertsekas and Gallager, "Data
//! Networks", section 6.5.2), like long-lived streams over one bottleneck.

use autodist_collectives::Schedule;
use autodist_spec::{Network, Pattern};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Each send is simulated in this many equal portions, because ranks forward data that has arrived before the
/// rest arrives.
const PORTIONS: usize = 4;
/// Largest group for which all cuts are used in the lower bound.
const ALL_CUTS: usize = 12;
/// Fewer bytes than this count as zero: shares are rounded.
const NOTHING: f64 = 1e-3;

/// The collective of one group.
#[derive(Debug, Clone, Copy)]
pub struct GroupCollective<'a> {
    /// The device of each member, by place.
    pub devices: &'a [usize],
    pub schedule: &'a Schedule,
    /// Bytes of an element.
    pub width: f64,
}

/// A portion of a send.
struct Transfer {
    links: Vec<usize>,
    latency: f64,
    left: f64,
    /// Number of events before it may start: arrivals, and the start of the previous transfer on the same
    /// path.
    missing: usize,
    /// Transfers that wait for the arrival of this one.
    dependents: Vec<usize>,
    /// The next transfer on the same path.
    next: Option<usize>,
    run: usize,
}

/// Seconds until the last send of each run has arrived, if all runs start together.
pub fn simulate(network: &Network, runs: &[GroupCollective]) -> Vec<f64> {
    let mut transfers = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        add(network, index, run, &mut transfers);
    }
    let mut ends = vec![0.0_f64; runs.len()];
    let mut active: Vec<usize> = (0..transfers.len()).filter(|t| transfers[*t].missing == 0).collect();
    // Arrivals by time; times are never negative, so their bit patterns have the same order.
    let mut arriving: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut now = 0.0;
    loop {
        let rates = fair_shares(network, &transfers, &active);
        let leaves = active
            .iter()
            .zip(&rates)
            .map(|(t, rate)| transfers[*t].left / rate)
            .fold(f64::INFINITY, f64::min);
        let arrives = arriving.peek().map_or(f64::INFINITY, |Reverse((bits, _))| f64::from_bits(*bits) - now);
        let step = leaves.min(arrives).max(0.0);
        if !step.is_finite() {
            return ends;
        }
        now += step;
        let mut begun = Vec::new();
        let mut still = Vec::with_capacity(active.len());
        for (t, rate) in active.iter().zip(&rates) {
            transfers[*t].left -= rate * step;
            if transfers[*t].left > NOTHING {
                still.push(*t);
                continue;
            }
            arriving.push(Reverse(((now + transfers[*t].latency).to_bits(), *t)));
            if let Some(next) = transfers[*t].next {
                transfers[next].missing -= 1;
                if transfers[next].missing == 0 {
                    begun.push(next);
                }
            }
        }
        while let Some(Reverse((bits, t))) = arriving.peek().copied()
            && f64::from_bits(bits) <= now
        {
            arriving.pop();
            let run = transfers[t].run;
            ends[run] = ends[run].max(now);
            for dependent in std::mem::take(&mut transfers[t].dependents) {
                transfers[dependent].missing -= 1;
                if transfers[dependent].missing == 0 {
                    begun.push(dependent);
                }
            }
        }
        still.extend(begun);
        active = still;
    }
}

/// Adds a run's sends in portions, with their dependencies.
fn add(network: &Network, index: usize, run: &GroupCollective, transfers: &mut Vec<Transfer>) {
    let Schedule { sends, receives } = run.schedule;
    let base = transfers.len();
    let mut first_of = Vec::new();
    let mut count = 0;
    for list in sends {
        first_of.push(count);
        count += list.len();
    }
    let id =
        |member: usize, send: usize, portion: usize| base + (first_of[member] + send) * PORTIONS + portion;
    // The k-th receive from a peer matches the k-th send of that peer.
    let mut sent_to: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (member, list) in sends.iter().enumerate() {
        for (place, send) in list.iter().enumerate() {
            sent_to.entry((member, send.to)).or_default().push(place);
        }
    }
    let mut source: Vec<Vec<(usize, usize)>> = Vec::new();
    for (member, list) in receives.iter().enumerate() {
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        let of = |receive: &autodist_collectives::Receive| {
            let turn = taken.entry(receive.from).or_insert(0);
            *turn += 1;
            (receive.from, sent_to[&(receive.from, member)][*turn - 1])
        };
        source.push(list.iter().map(of).collect());
    }
    let mut edges = Vec::new();
    for (member, list) in sends.iter().enumerate() {
        for (place, send) in list.iter().enumerate() {
            let path = &network.paths[run.devices[member]][run.devices[send.to]];
            let bytes = send.elements.len() as f64 * run.width / PORTIONS as f64;
            for portion in 0..PORTIONS {
                let me = id(member, place, portion);
                transfers.push(Transfer {
                    links: path.links.iter().map(|link| *link as usize).collect(),
                    latency: path.latency_s.0,
                    left: bytes,
                    missing: 0,
                    dependents: Vec::new(),
                    next: (portion + 1 < PORTIONS).then_some(me + 1),
                    run: index,
                });
                for receive in &send.after {
                    let (peer, theirs) = source[member][*receive];
                    let same = receives[member][*receive].elements == send.elements;
                    let awaited = if same { portion } else { PORTIONS - 1 };
                    edges.push((id(peer, theirs, awaited), me));
                }
            }
        }
    }
    for ((member, _), places) in &sent_to {
        for pair in places.windows(2) {
            transfers[id(*member, pair[0], PORTIONS - 1)].next = Some(id(*member, pair[1], 0));
        }
    }
    for (before, after) in edges {
        transfers[before].dependents.push(after);
        transfers[after].missing += 1;
    }
    for t in base..transfers.len() {
        if let Some(next) = transfers[t].next {
            transfers[next].missing += 1;
        }
    }
}

/// Bytes per second of each active transfer.
fn fair_shares(network: &Network, transfers: &[Transfer], active: &[usize]) -> Vec<f64> {
    let mut capacity: Vec<f64> = network.links.iter().map(|link| link.busy_rate().0).collect();
    let mut crossing = vec![0_usize; capacity.len()];
    for t in active {
        transfers[*t].links.iter().for_each(|link| crossing[*link] += 1);
    }
    let mut rates = vec![f64::INFINITY; active.len()];
    let mut open: Vec<usize> =
        (0..active.len()).filter(|i| !transfers[active[*i]].links.is_empty()).collect();
    while !open.is_empty() {
        let share = |link: &usize| capacity[*link] / crossing[*link] as f64;
        let used = (0..capacity.len()).filter(|link| crossing[*link] > 0);
        let Some(tightest) = used.min_by(|a, b| share(a).total_cmp(&share(b))) else { break };
        let rate = share(&tightest);
        let (fixed, rest): (Vec<usize>, Vec<usize>) =
            open.into_iter().partition(|i| transfers[active[*i]].links.contains(&tightest));
        for i in fixed {
            rates[i] = rate;
            for link in &transfers[active[i]].links {
                capacity[*link] = (capacity[*link] - rate).max(0.0);
                crossing[*link] -= 1;
            }
        }
        open = rest;
    }
    rates
}

/// Seconds that no algorithm can beat for one group alone on the network. The bytes that must cross a cut of
/// the group are limited by the links on which they can leave, or on which they can arrive (for all-gathers,
/// ForestColl, 2402.06787, section 3). `bytes` are those of the whole tensor; in an all-to-all those that a
/// member sends in total.
pub fn lower_bound(network: &Network, devices: &[usize], pattern: Pattern, bytes: f64) -> f64 {
    let size = devices.len();
    if size < 2 {
        return 0.0;
    }
    let part = bytes / size as f64;
    let mut bound = 0.0_f64;
    let mut cut = |members: &[usize]| {
        let outside: Vec<usize> = devices.iter().copied().filter(|d| !members.contains(d)).collect();
        let crossing = match pattern {
            // Each element's partial sum leaves on one side, and its total on the other.
            Pattern::AllReduce(_) => bytes,
            Pattern::AllGather(_) => members.len() as f64 * part,
            Pattern::ReduceScatter(_) => outside.len() as f64 * part,
            Pattern::AllToAll => (members.len() * outside.len()) as f64 * part,
        };
        bound = bound.max(crossing / capacity(network, members, &outside));
    };
    if size <= ALL_CUTS {
        for set in 1..(1_usize << size) - 1 {
            let members: Vec<usize> = (0..size).filter(|i| set >> i & 1 == 1).map(|i| devices[i]).collect();
            cut(&members);
        }
    } else {
        let mut nodes: Vec<u32> = devices.iter().map(|device| network.nodes[*device]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        devices.iter().for_each(|device| cut(&[*device]));
        for node in nodes.iter().filter(|_| nodes.len() > 1) {
            let members: Vec<usize> =
                devices.iter().copied().filter(|d| network.nodes[*d] == *node).collect();
            cut(&members);
        }
    }
    if let Pattern::AllReduce(_) = pattern {
        // All members together send at least 2 (p - 1) n bytes (Patarasuk and Yuan, 2009, theorem 1).
        let all: f64 = devices
            .iter()
            .map(|device| {
                let others: Vec<usize> = devices.iter().copied().filter(|d| d != device).collect();
                capacity(network, &[*device], &others)
            })
            .sum();
        bound = bound.max(2.0 * (size as f64 - 1.0) * bytes / all);
    }
    let pairs = devices.iter().flat_map(|from| devices.iter().map(move |to| (*from, *to)));
    let latencies = pairs.map(|(from, to)| network.paths[from][to].latency_s.0);
    bound.max(latencies.fold(0.0, f64::max))
}

/// Bytes per second that can cross from `from` to `to` at most.
fn capacity(network: &Network, from: &[usize], to: &[usize]) -> f64 {
    let crossing = || from.iter().flat_map(|a| to.iter().map(|b| &network.paths[*a][*b].links));
    let room = |ends: Vec<Option<&u32>>| {
        let mut links: Vec<u32> = ends.into_iter().flatten().copied().collect();
        links.sort_unstable();
        links.dedup();
        links.iter().map(|link| network.links[*link as usize].bytes_per_s.0).sum::<f64>()
    };
    let leaving = room(crossing().map(|links| links.first()).collect());
    leaving.min(room(crossing().map(|links| links.last()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::Collective;
    use autodist_spec::{Algorithm, BytesPerSecond, Path, Provenance, Seconds, SharedLink};

    /// Devices with an uplink and a downlink each.
    fn star(rates: &[f64], latency: f64) -> Network {
        let link = |rate: &f64| SharedLink {
            name: String::new(),
            bytes_per_s: BytesPerSecond(*rate),
            both_ways_bytes_per_s: None,
            provenance: Provenance::Assumed,
        };
        let path = |from: usize, to: usize| match from == to {
            true => Path::default(),
            false => Path { links: vec![2 * from as u32, 2 * to as u32 + 1], latency_s: Seconds(latency) },
        };
        let devices = rates.len();
        Network {
            nodes: (0..devices as u32).collect(),
            links: rates.iter().flat_map(|rate| [link(rate), link(rate)]).collect(),
            paths: (0..devices).map(|a| (0..devices).map(|b| path(a, b)).collect()).collect(),
            patterns: Vec::new(),
        }
    }

    fn time(network: &Network, algorithm: Algorithm, devices: &[usize], elements: usize) -> f64 {
        let schedule = Schedule::build(algorithm, Collective::AllReduce, elements, devices.len()).unwrap();
        simulate(network, &[GroupCollective { devices, schedule: &schedule, width: 4.0 }])[0]
    }

    #[test]
    fn a_ring_on_equal_links_takes_what_the_formula_says_and_nothing_is_faster() {
        let network = star(&[100.0; 4], 0.5);
        let devices = [0, 1, 2, 3];
        let ring = time(&network, Algorithm::Ring, &devices, 4000);
        // 2 (p - 1) / p n / rate, and 2 (p - 1) latencies at most.
        assert!((240.0..=240.0 + 6.0 * 0.5 + 1e-9).contains(&ring), "{ring}");
        let bound = lower_bound(&network, &devices, Pattern::AllReduce(Algorithm::Ring), 16_000.0);
        assert!((bound - 240.0).abs() < 1e-9);
        for algorithm in autodist_collectives::candidates(4, &[0, 1, 2, 3]) {
            assert!(time(&network, algorithm, &devices, 4000) >= bound);
        }
    }

    #[test]
    fn latency_decides_for_small_messages() {
        let network = star(&[1e9; 8], 1.0);
        let devices: Vec<usize> = (0..8).collect();
        let ring = time(&network, Algorithm::Ring, &devices, 64);
        let halving = time(&network, Algorithm::HalvingDoubling, &devices, 64);
        assert!((ring - 14.0).abs() < 0.01 && (halving - 6.0).abs() < 0.01, "{ring} {halving}");
    }

    #[test]
    fn runs_that_share_a_link_share_its_rate() {
        // Both groups span the same two nodes.
        let mut network = star(&[100.0; 4], 0.0);
        for from in 0..4_usize {
            for to in 0..4_usize {
                if from != to {
                    network.paths[from][to].links = vec![2 * (from as u32 / 2), 2 * (to as u32 / 2) + 1];
                }
            }
        }
        let schedule = Schedule::build(Algorithm::Ring, Collective::AllReduce, 1000, 2).unwrap();
        let run = |devices| GroupCollective { devices, schedule: &schedule, width: 4.0 };
        let alone = simulate(&network, &[run(&[0, 2])])[0];
        let together = simulate(&network, &[run(&[0, 2]), run(&[1, 3])]);
        assert!(
            (alone - 40.0).abs() < 1e-6 && together.iter().all(|t| (t - 80.0).abs() < 1e-6),
            "{together:?}"
        );
    }

    #[test]
    fn the_slowest_link_sets_a_rings_pace() {
        let network = star(&[100.0, 100.0, 25.0], 0.0);
        let devices = [0, 1, 2];
        let ring = time(&network, Algorithm::Ring, &devices, 3000);
        assert!((ring / (4.0 / 3.0 * 12_000.0 / 25.0) - 1.0).abs() < 0.05, "{ring}");
        // Everything that the device sends and receives crosses its own link.
        assert!(
            lower_bound(&network, &devices, Pattern::AllReduce(Algorithm::Ring), 12_000.0) >= 12_000.0 / 25.0
        );
    }
}
