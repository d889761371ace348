//! The cost of communication if links differ: schedules, simulated on the measured network.

use crate::curve::Price;
use crate::extended::UNCHECKED;
use crate::flows::{self, GroupCollective};
use autodist_collectives::{Receive, Schedule, Send};
use autodist_spec::{Algorithm, Bytes, Collective, Network, Pattern, PatternTiming, Provenance};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Sizes at which a schedule is simulated; in between, time is linear in size, as for any schedule whose
/// slowest link does not change.
const SMALLEST: u64 = 1 << 10;
const RATIO: u64 = 4;
/// Elements are f32.
const WIDTH: f64 = 4.0;
/// Relative uncertainty of a simulated time on links that were measured.
const MEASURED: f64 = 0.03;

/// The operation that several groups run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Traffic {
    Pattern(Pattern),
    /// A send/recv from the first member to the second.
    Message,
}

type Key = (Traffic, Vec<Vec<usize>>);

/// A network, with a cache of simulations.
#[derive(Debug)]
pub(crate) struct Routes {
    network: Network,
    /// Relative uncertainty of a simulated time.
    uncertainty: f64,
    cells: Mutex<BTreeMap<Key, BTreeMap<u64, f64>>>,
}

impl Routes {
    pub fn new(network: &Network) -> Self {
        Self { network: network.clone(), uncertainty: MEASURED, cells: Mutex::default() }
    }

    /// A network whose links were described, not measured.
    pub fn described(network: &Network) -> Self {
        Self { uncertainty: UNCHECKED, ..Self::new(network) }
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn nodes(&self) -> &[u32] {
        &self.network.nodes
    }

    /// Links between any two members of a group.
    pub fn links(&self, groups: &[Vec<usize>]) -> BTreeSet<u32> {
        let pairs =
            groups.iter().flat_map(|group| group.iter().flat_map(|a| group.iter().map(move |b| (*a, *b))));
        pairs.flat_map(|(a, b)| self.network.paths[a][b].links.iter().copied()).collect()
    }

    /// A collective on `bytes` over each of `groups` at the same time: the slowest group's time.
    pub fn collective(&self, pattern: Pattern, groups: &[Vec<usize>], bytes: Bytes) -> Price {
        self.price(Traffic::Pattern(pattern), groups, bytes)
    }

    /// Lower bound over all algorithms for the slowest of the groups, if each has the network to itself.
    pub fn lower_bound(&self, pattern: Pattern, groups: &[Vec<usize>], bytes: Bytes) -> f64 {
        let of = |group: &Vec<usize>| flows::lower_bound(&self.network, group, pattern, bytes.as_f64());
        groups.iter().filter(|group| group.len() > 1).map(of).fold(0.0, f64::max)
    }

    /// A send/recv of `bytes` from the first to the second of each pair, at the same time.
    pub fn message(&self, pairs: &[Vec<usize>], bytes: Bytes) -> Price {
        self.price(Traffic::Message, pairs, bytes)
    }

    fn price(&self, traffic: Traffic, groups: &[Vec<usize>], bytes: Bytes) -> Price {
        let groups: Vec<Vec<usize>> = groups.iter().filter(|group| group.len() > 1).cloned().collect();
        if groups.is_empty() || bytes.0 == 0 {
            return Price::ZERO;
        }
        let mut below = SMALLEST;
        while below * RATIO < bytes.0 {
            below *= RATIO;
        }
        let above = below * RATIO;
        let key = (traffic, groups);
        let (low, high) = (self.at(&key, below), self.at(&key, above));
        let weight = (bytes.as_f64() - below as f64).max(0.0) / (above - below) as f64;
        let links = low + weight * (high - low);
        let seconds = links * self.beyond_links(&key, bytes);
        let half_width = self.uncertainty * seconds;
        Price { seconds, half_width, caution: 0.0, provenance: Provenance::Modelled }
    }

    /// Measured time of a pattern relative to its simulation on the links, as timed on all devices,
    /// interpolated in the logarithm of the size. 1 for two members: their link itself was measured.
    fn beyond_links(&self, (traffic, groups): &Key, bytes: Bytes) -> f64 {
        let Traffic::Pattern(pattern) = traffic else { return 1.0 };
        if groups.iter().all(|group| group.len() < 3) {
            return 1.0;
        }
        let all: Vec<usize> = (0..self.network.devices()).collect();
        let timed = self.network.patterns.iter().filter(|timing| timing.pattern == *pattern);
        let ratio = |timed: &PatternTiming| {
            timed.time.median_s.0 / self.at(&(*traffic, vec![all.clone()]), timed.bytes.0)
        };
        let (mut below, mut above): (Option<&PatternTiming>, Option<&PatternTiming>) = (None, None);
        for timing in timed {
            let best = if timing.bytes <= bytes { &mut below } else { &mut above };
            let nearer =
                |other: &&PatternTiming| timing.bytes.0.abs_diff(bytes.0) < other.bytes.0.abs_diff(bytes.0);
            if best.as_ref().is_none_or(nearer) {
                *best = Some(timing);
            }
        }
        match (below, above) {
            (None, None) => 1.0,
            (Some(one), None) | (None, Some(one)) => ratio(one),
            (Some(low), Some(high)) => {
                let at = |bytes: Bytes| bytes.as_f64().ln();
                let weight = (at(bytes) - at(low.bytes)) / (at(high.bytes) - at(low.bytes));
                ratio(low) * (1.0 - weight) + ratio(high) * weight
            }
        }
    }

    fn at(&self, key: &Key, bytes: u64) -> f64 {
        let known = || self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seconds) = known().get(key).and_then(|curve| curve.get(&bytes)) {
            return *seconds;
        }
        // Simulated outside the lock: two threads may both do it, with the same result.
        let seconds = self.simulate(key, bytes);
        known().entry(key.clone()).or_default().insert(bytes, seconds);
        seconds
    }

    fn simulate(&self, (traffic, groups): &Key, bytes: u64) -> f64 {
        let elements = (bytes as f64 / WIDTH) as usize;
        let schedules: Vec<Schedule> =
            groups.iter().map(|group| schedule(*traffic, elements, group.len())).collect();
        let runs: Vec<GroupCollective> = groups
            .iter()
            .zip(&schedules)
            .map(|(devices, schedule)| GroupCollective { devices, schedule, width: WIDTH })
            .collect();
        flows::simulate(&self.network, &runs).into_iter().fold(0.0, f64::max)
    }
}

/// `None` for collectives that are not timed on networks.
pub(crate) fn pattern(kind: Collective, algorithm: Algorithm) -> Option<Pattern> {
    match kind {
        Collective::AllReduce => Some(Pattern::AllReduce(algorithm)),
        Collective::ReduceScatter => Some(Pattern::ReduceScatter(algorithm)),
        Collective::AllGather => Some(Pattern::AllGather(algorithm)),
        Collective::AllToAll => Some(Pattern::AllToAll),
        Collective::Broadcast | Collective::SendRecv => None,
    }
}

fn schedule(traffic: Traffic, elements: usize, size: usize) -> Schedule {
    // The rules have accepted it.
    let by =
        |algorithm, collective| Schedule::build(algorithm, collective, elements, size).unwrap_or_default();
    match traffic {
        Traffic::Pattern(Pattern::AllReduce(algorithm)) => by(algorithm, Collective::AllReduce),
        Traffic::Pattern(Pattern::ReduceScatter(algorithm)) => by(algorithm, Collective::ReduceScatter),
        Traffic::Pattern(Pattern::AllGather(algorithm)) => by(algorithm, Collective::AllGather),
        Traffic::Pattern(Pattern::AllToAll) => pairwise(size, elements / size, |from, to| from != to),
        Traffic::Message => pairwise(size, elements, |from, to| (from, to) == (0, 1)),
    }
}

/// `elements` from every member to every other for which `sends` holds.
fn pairwise(size: usize, elements: usize, sends: impl Fn(usize, usize) -> bool) -> Schedule {
    let message = |to| Send { to, elements: 0..elements, after: Vec::new() };
    let arrival = |from| Receive {
        from,
        elements: 0..elements,
        combine: false,
        after: Vec::new(),
        after_sends: Vec::new(),
    };
    Schedule {
        sends: (0..size).map(|from| (0..size).filter(|to| sends(from, *to)).map(message).collect()).collect(),
        receives: (0..size)
            .map(|to| (0..size).filter(|from| sends(*from, to)).map(arrival).collect())
            .collect(),
    }
}
