//! What communication costs where links differ: schedules, simulated on the network that was measured.

use crate::choice::collective;
use crate::curve::Price;
use crate::flows::{self, Run};
use autodist_collectives::{Collective, Receive, Schedule, Send};
use autodist_spec::{Algorithm, Bytes, CollectiveKind, Network, Provenance};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Sizes at which a schedule is simulated; in between, time runs in a straight line, as it does along any schedule
/// whose slowest link does not change.
const SMALLEST: u64 = 1 << 10;
const RATIO: u64 = 4;
/// Elements are f32.
const WIDTH: f64 = 4.0;
/// How uncertain a simulated time is, relative to itself.
const UNCERTAINTY: f64 = 0.03;

/// What several groups do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pattern {
    Collective(Collective, Algorithm),
    /// Every member sends each other member its part of a buffer of that size.
    AllToAll,
    /// The first member sends the second all of it.
    Message,
}

type Key = (Pattern, Vec<Vec<usize>>);

/// A network with what has been simulated on it so far.
#[derive(Debug)]
pub(crate) struct Routes {
    network: Network,
    cells: Mutex<BTreeMap<Key, BTreeMap<u64, f64>>>,
}

impl Routes {
    pub fn new(network: &Network) -> Self {
        Self { network: network.clone(), cells: Mutex::default() }
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

    /// A collective on `bytes` over each of `groups`, all at once: the slowest group's time.
    pub fn collective(
        &self,
        kind: CollectiveKind,
        algorithm: Algorithm,
        groups: &[Vec<usize>],
        bytes: Bytes,
    ) -> Price {
        self.price(Pattern::Collective(collective(kind), algorithm), groups, bytes)
    }

    /// No algorithm is faster for the slowest of the groups, if each has the network to itself.
    pub fn lower_bound(&self, kind: CollectiveKind, groups: &[Vec<usize>], bytes: Bytes) -> f64 {
        let of =
            |group: &Vec<usize>| flows::lower_bound(&self.network, group, collective(kind), bytes.as_f64());
        groups.iter().filter(|group| group.len() > 1).map(of).fold(0.0, f64::max)
    }

    pub fn all_to_all(&self, groups: &[Vec<usize>], bytes: Bytes) -> Price {
        self.price(Pattern::AllToAll, groups, bytes)
    }

    /// A message of `bytes` from the first to the second of each pair, all at once.
    pub fn message(&self, pairs: &[Vec<usize>], bytes: Bytes) -> Price {
        self.price(Pattern::Message, pairs, bytes)
    }

    fn price(&self, pattern: Pattern, groups: &[Vec<usize>], bytes: Bytes) -> Price {
        let groups: Vec<Vec<usize>> = groups.iter().filter(|group| group.len() > 1).cloned().collect();
        if groups.is_empty() || bytes.0 == 0 {
            return Price::ZERO;
        }
        let mut below = SMALLEST;
        while below * RATIO < bytes.0 {
            below *= RATIO;
        }
        let above = below * RATIO;
        let key = (pattern, groups);
        let (low, high) = (self.at(&key, below), self.at(&key, above));
        let weight = (bytes.as_f64() - below as f64).max(0.0) / (above - below) as f64;
        let seconds = low + weight * (high - low);
        Price { seconds, half_width: UNCERTAINTY * seconds, provenance: Provenance::Modelled }
    }

    fn at(&self, key: &Key, bytes: u64) -> f64 {
        let known = || self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seconds) = known().get(key).and_then(|curve| curve.get(&bytes)) {
            return *seconds;
        }
        // Simulated outside the lock: two threads may both do it, and get the same.
        let seconds = self.simulate(key, bytes);
        known().entry(key.clone()).or_default().insert(bytes, seconds);
        seconds
    }

    fn simulate(&self, (pattern, groups): &Key, bytes: u64) -> f64 {
        let elements = (bytes as f64 / WIDTH) as usize;
        let schedules: Vec<Schedule> =
            groups.iter().map(|group| schedule(*pattern, elements, group.len())).collect();
        let runs: Vec<Run> = groups
            .iter()
            .zip(&schedules)
            .map(|(devices, schedule)| Run { devices, schedule, width: WIDTH })
            .collect();
        flows::simulate(&self.network, &runs).into_iter().fold(0.0, f64::max)
    }
}

fn schedule(pattern: Pattern, elements: usize, size: usize) -> Schedule {
    match pattern {
        // The rules have let it pass.
        Pattern::Collective(collective, algorithm) => {
            Schedule::build(algorithm, collective, elements, size).unwrap_or_default()
        }
        Pattern::AllToAll => pairwise(size, elements / size, |from, to| from != to),
        Pattern::Message => pairwise(size, elements, |from, to| (from, to) == (0, 1)),
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
