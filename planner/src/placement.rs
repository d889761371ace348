//! Which device each rank runs on: placements with the lowest link loads.
//!
//! For each kind of traffic (tensor groups, gradients, replicas, activations) a placement has the time of its
//! most loaded link; a link's load is all traffic of that kind that crosses it. Only the simulation
//! determines how much of each kind a step can overlap, so the search returns the Pareto front: the
//! placements that no other beats in every kind. If a step time never decreases with a load, the best
//! placement is among them. Up to [`EXACT`] ranks they are found by branch and bound: a subset of the ranks
//! never loads a link more than all of them. Beyond that, swaps improve the placement that fills nodes in
//! order, and a bound gives the distance from the minimum load. The few placements are then priced like any
//! other option.

use crate::communication::interchangeable;
use autodist_program::{Flows, Program};
use autodist_spec::{Network, PlacementReport};
use petgraph::algo::kosaraju_scc;
use petgraph::graphmap::UnGraphMap;
use std::collections::BTreeMap;

/// Ranks up to which the search is exact.
const EXACT: usize = 8;
/// Largest number of placements that are priced.
const KEPT: usize = 12;
/// Smaller differences of loads are ignored: links are not measured more accurately.
const NOTHING: f64 = 0.02;
/// Weight of one kind of traffic relative to the others, in the swap search that optimises for this kind.
const EMPHASIS: f64 = 64.0;
/// Weight of the load of all links relative to that of the busiest, so that swaps find a descent direction.
const ALL_LINKS: f64 = 0.01;
/// Largest number of rounds of swaps; each tries every pair of ranks.
const ROUNDS: usize = 50;
/// Traffic is rounded to powers of this, so that similar programs share a search.
const STEP: f64 = 2.0;

/// The traffic of programs that have the same placements.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    edges: [Vec<(usize, usize)>; 4],
    /// Powers of [`STEP`] below the largest; `None` without traffic.
    weights: [Option<i32>; 4],
}

impl Shape {
    pub fn of(program: &Program) -> Self {
        let traffic = program.traffic();
        let most = traffic.iter().filter(|flows| !flows.edges.is_empty()).map(|flows| flows.bytes);
        let most = most.fold(0.0, f64::max);
        let weight = |flows: &Flows| {
            let flows = (flows.bytes > 0.0 && !flows.edges.is_empty()).then_some(flows)?;
            Some((flows.bytes / most).log(STEP).round() as i32)
        };
        let weights = [0, 1, 2, 3].map(|kind| weight(&traffic[kind]));
        Self { weights, edges: traffic.map(|flows| flows.edges) }
    }

    fn bytes(&self, kind: usize) -> f64 {
        self.weights[kind].map_or(0.0, |power| STEP.powi(power))
    }
}

/// The devices of a network, prepared for placements.
struct Ground<'a> {
    network: &'a Network,
    /// Devices of each node.
    room: Vec<Vec<u32>>,
    alike: Vec<Vec<bool>>,
}

/// Loads of all links by kind, and their cost.
#[derive(Clone)]
struct Load {
    seconds: [Vec<f64>; 4],
}

impl<'a> Ground<'a> {
    fn of(network: &'a Network) -> Self {
        let mut room: Vec<Vec<u32>> = Vec::new();
        for (device, node) in network.nodes.iter().enumerate() {
            room.resize(room.len().max(*node as usize + 1), Vec::new());
            room[*node as usize].push(device as u32);
        }
        let alike = (0..room.len())
            .map(|a| (0..room.len()).map(|b| interchangeable(network, &room[a], &room[b])).collect())
            .collect();
        Self { network, room, alike }
    }

    fn nothing(&self) -> Load {
        Load { seconds: std::array::from_fn(|_| vec![0.0; self.network.links.len()]) }
    }

    /// Adds the traffic between rank `rank` and the ranks before it.
    fn add(&self, shape: &Shape, placed: &[u32], rank: usize, load: &mut Load) {
        for kind in 0..4 {
            let bytes = shape.bytes(kind);
            for (from, to) in &shape.edges[kind] {
                if (*from).max(*to) != rank {
                    continue;
                }
                for link in &self.network.paths[placed[*from] as usize][placed[*to] as usize].links {
                    load.seconds[kind][*link as usize] +=
                        bytes / self.network.links[*link as usize].bytes_per_s.0;
                }
            }
        }
    }

    fn load(&self, shape: &Shape, placed: &[u32]) -> Load {
        let mut load = self.nothing();
        (0..placed.len()).for_each(|rank| self.add(shape, placed, rank, &mut load));
        load
    }

    fn loads(&self, shape: &Shape, placed: &[u32]) -> Loads {
        self.load(shape, placed).busiest()
    }

    /// Weighted loads of the busiest links and, with a small weight, of all: one swap seldom relieves all
    /// busy links.
    fn smooth(&self, shape: &Shape, placed: &[u32], weights: &Loads) -> f64 {
        let load = self.load(shape, placed);
        let all: Loads = std::array::from_fn(|kind| load.seconds[kind].iter().sum());
        sum(&load.busiest(), weights) + ALL_LINKS * sum(&all, weights)
    }
}

/// Time of the busiest link, by kind of traffic; in arbitrary units within one search.
type Loads = [f64; 4];

impl Load {
    fn busiest(&self) -> Loads {
        std::array::from_fn(|kind| self.seconds[kind].iter().copied().fold(0.0, f64::max))
    }
}

fn sum(loads: &Loads, weights: &Loads) -> f64 {
    loads.iter().zip(weights).map(|(load, weight)| load * weight).sum()
}

/// Whether one is at least as good in every kind, within the accuracy of measurements.
fn beats(one: &Loads, other: &Loads) -> bool {
    one.iter().zip(other).all(|(one, other)| *one <= other * (1.0 + NOTHING))
}

/// The placements found, with rank r on device r first.
#[derive(Debug, Clone)]
pub(crate) struct Placements {
    pub list: Vec<Vec<u32>>,
    loads: Vec<Loads>,
    exact: bool,
    /// Lower bound of the sum of the loads.
    bound: f64,
}

const EQUALLY: Loads = [1.0; 4];

impl Placements {
    /// A comparison of `placement` with others.
    pub fn report(&self, network: &Network, shape: &Shape, placement: &[u32]) -> PlacementReport {
        let ground = Ground::of(network);
        let in_order = sum(&self.loads[0], &EQUALLY);
        let own =
            if placement.is_empty() { in_order } else { sum(&ground.loads(shape, placement), &EQUALLY) };
        let above = |least: f64| if least > 0.0 { (own / least - 1.0).max(0.0) } else { 0.0 };
        PlacementReport {
            exact: self.exact,
            tried: self.list.len() as u32,
            above_bound: (!self.exact).then(|| above(self.bound)),
            in_order: if own > 0.0 { in_order / own - 1.0 } else { 0.0 },
        }
    }
}

/// The placements to be priced.
pub(crate) fn search(network: &Network, shape: &Shape) -> Placements {
    let ground = Ground::of(network);
    let world = network.nodes.len();
    let in_order: Vec<u32> = (0..world as u32).collect();
    let mut front = Front::new(ground.loads(shape, &in_order), in_order.clone());
    if world <= EXACT {
        let mut used = vec![0; ground.room.len()];
        branch(&ground, shape, &mut used, &mut Vec::new(), &ground.nothing(), &mut front);
    } else {
        // Ranks in turn over all nodes (round robin).
        let most = ground.room.iter().map(Vec::len).max().unwrap_or(0);
        let turn = (0..most).flat_map(|place| ground.room.iter().filter_map(move |node| node.get(place)));
        let turn: Vec<u32> = turn.copied().collect();
        let emphasised = (0..4).map(|kind| std::array::from_fn(|k| if k == kind { EMPHASIS } else { 1.0 }));
        for weights in std::iter::once(EQUALLY).chain(emphasised) {
            for start in [&in_order, &turn] {
                let placed = improved(&ground, shape, start.clone(), &weights);
                front.take(ground.loads(shape, &placed), &placed);
            }
        }
    }
    let exact = world <= EXACT && front.found.len() <= KEPT;
    front.found[1..].sort_by(|a, b| sum(&a.0, &EQUALLY).total_cmp(&sum(&b.0, &EQUALLY)).then(a.1.cmp(&b.1)));
    front.found.truncate(KEPT);
    let (loads, list) = front.found.into_iter().unzip();
    Placements { list, loads, exact, bound: bound(&ground, shape) }
}

/// A Pareto front of placements; the first one always stays.
struct Front {
    found: Vec<(Loads, Vec<u32>)>,
}

impl Front {
    fn new(loads: Loads, placed: Vec<u32>) -> Self {
        Self { found: vec![(loads, placed)] }
    }

    fn is_beaten(&self, loads: &Loads) -> bool {
        self.found.iter().any(|(other, _)| beats(other, loads))
    }

    fn take(&mut self, loads: Loads, placed: &[u32]) {
        if self.is_beaten(&loads) {
            return;
        }
        let first = self.found[0].1.clone();
        self.found.retain(|(other, kept)| *kept == first || !beats(&loads, other));
        self.found.push((loads, placed.to_vec()));
    }
}

/// Places the ranks one by one, and prunes partial placements that are already beaten.
fn branch(
    ground: &Ground<'_>,
    shape: &Shape,
    used: &mut Vec<usize>,
    placed: &mut Vec<u32>,
    load: &Load,
    front: &mut Front,
) {
    if front.is_beaten(&load.busiest()) {
        return;
    }
    if placed.len() == ground.network.nodes.len() {
        front.take(load.busiest(), placed);
        return;
    }
    for node in 0..ground.room.len() {
        // If several equal nodes have no ranks, only the first is tried.
        let alike = (0..node).any(|other| used[other] == 0 && used[node] == 0 && ground.alike[other][node]);
        if used[node] == ground.room[node].len() || alike {
            continue;
        }
        // Devices of a node are filled in order.
        placed.push(ground.room[node][used[node]]);
        used[node] += 1;
        let mut with = load.clone();
        ground.add(shape, placed, placed.len() - 1, &mut with);
        branch(ground, shape, used, placed, &with, front);
        used[node] -= 1;
        placed.pop();
    }
}

/// Swaps pairs of ranks as long as this lowers the weighted loads.
fn improved(ground: &Ground<'_>, shape: &Shape, mut placed: Vec<u32>, weights: &Loads) -> Vec<u32> {
    let of = |placed: &[u32]| ground.smooth(shape, placed, weights);
    let mut cost = of(&placed);
    for _ in 0..ROUNDS {
        let before = cost;
        for a in 0..placed.len() {
            for b in a + 1..placed.len() {
                if ground.network.nodes[placed[a] as usize] == ground.network.nodes[placed[b] as usize] {
                    continue;
                }
                placed.swap(a, b);
                let other = of(&placed);
                if other < cost * (1.0 - 1e-9) {
                    cost = other;
                } else {
                    placed.swap(a, b);
                }
            }
        }
        if cost == before {
            break;
        }
    }
    placed
}

/// Lower bound of the summed loads: of every ring that is larger than the largest node, at least as many
/// edges leave a node as the ring spans nodes, over all uplinks together.
fn bound(ground: &Ground<'_>, shape: &Shape) -> f64 {
    let largest = ground.room.iter().map(Vec::len).max().unwrap_or(1);
    let between = |from: usize, to: usize| ground.network.nodes[from] != ground.network.nodes[to];
    let mut uplinks: BTreeMap<u32, f64> = BTreeMap::new();
    for (from, row) in ground.network.paths.iter().enumerate() {
        for (to, path) in row.iter().enumerate() {
            if let Some(link) = path.links.first().filter(|_| between(from, to)) {
                uplinks.insert(*link, ground.network.links[*link as usize].bytes_per_s.0);
            }
        }
    }
    let out: f64 = uplinks.values().sum();
    if out <= 0.0 {
        return 0.0;
    }
    // The last kind is a chain instead of a ring.
    let kinds = (0..3).map(|kind| {
        // Not by Tarjan's algorithm: it recurses along a ring, which may have thousands of ranks.
        let rings = kosaraju_scc(&UnGraphMap::<usize, ()>::from_edges(&shape.edges[kind]));
        let crossing: usize =
            rings.iter().map(|ring| ring.len().div_ceil(largest)).filter(|nodes| *nodes > 1).sum();
        crossing as f64 * shape.bytes(kind) / out
    });
    kinds.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_program::stages;
    use autodist_spec::{
        BytesPerSecond, Job, ParallelStrategy, Path, Provenance, Seconds, SharedLink, catalog,
    };

    /// Nodes with the given numbers of devices, behind an uplink and a downlink of the given bandwidth; fast
    /// links inside.
    fn network(nodes: &[(usize, f64)]) -> Network {
        let mut network = Network::default();
        let link = |name: String, rate: f64| SharedLink {
            name,
            bytes_per_s: BytesPerSecond(rate),
            provenance: Provenance::Assumed,
            both_ways_bytes_per_s: None,
        };
        for (node, (devices, rate)) in nodes.iter().enumerate() {
            network.nodes.extend(std::iter::repeat_n(node as u32, *devices));
            network.links.extend([link(format!("{node} up"), *rate), link(format!("{node} down"), *rate)]);
        }
        let inside = network.links.len() as u32;
        network.links.push(link("inside".to_owned(), 1e12));
        let world = network.nodes.len();
        let path = |from: usize, to: usize| {
            let (a, b) = (network.nodes[from], network.nodes[to]);
            let links = match (from == to, a == b) {
                (true, _) => Vec::new(),
                (_, true) => vec![inside],
                _ => vec![2 * a, 2 * b + 1],
            };
            Path { links, latency_s: Seconds::ZERO }
        };
        let paths = (0..world).map(|from| (0..world).map(|to| path(from, to)).collect()).collect();
        Network { paths, ..network }
    }

    fn shape(data: u32, tensor: u32, pipeline: u32) -> Shape {
        let model = catalog::model("tiny-llama").unwrap();
        let strategy = ParallelStrategy { tensor, pipeline, ..ParallelStrategy::data_parallel(data, 1) };
        let strategy = match pipeline {
            1 => strategy,
            _ => ParallelStrategy { schedule: autodist_spec::ScheduleKind::OneFOneB, ..strategy },
        };
        let stages = stages::even(&model, &strategy);
        let devices = data * tensor * pipeline;
        Shape::of(&Program::compile(&model, &Job::new(8 * data, 64), devices, &strategy, &stages).unwrap())
    }

    /// Loads of all orders of the devices.
    fn all(ground: &Ground<'_>, shape: &Shape, left: &[u32], placed: &mut Vec<u32>, loads: &mut Vec<Loads>) {
        if left.is_empty() {
            loads.push(ground.loads(shape, placed));
        }
        for device in left {
            placed.push(*device);
            let rest: Vec<u32> = left.iter().copied().filter(|other| other != device).collect();
            all(ground, shape, &rest, placed, loads);
            placed.pop();
        }
    }

    #[test]
    fn up_to_eight_ranks_nothing_loads_links_less_whatever_the_kinds_weigh() {
        let lopsided = [(2, 50e6), (1, 25e6), (1, 12e6)];
        let alike = [(1, 25e6); 6];
        let mixed = [(3, 40e6), (2, 10e6), (1, 20e6)];
        for (nodes, shapes) in [
            (&lopsided[..], vec![shape(4, 1, 1), shape(2, 2, 1), shape(2, 1, 2), shape(1, 2, 2)]),
            (&alike[..], vec![shape(2, 1, 3)]),
            (&mixed[..], vec![shape(2, 1, 3), shape(1, 2, 3)]),
        ] {
            let network = network(nodes);
            let ground = Ground::of(&network);
            for shape in shapes {
                let found = search(&network, &shape);
                assert!(found.exact, "{} placements for {shape:?}", found.list.len());
                let mut every = Vec::new();
                let devices: Vec<u32> = (0..network.nodes.len() as u32).collect();
                all(&ground, &shape, &devices, &mut Vec::new(), &mut every);
                for weights in [EQUALLY, [8.0, 1.0, 1.0, 1.0], [1.0, 8.0, 1.0, 1.0], [1.0, 1.0, 1.0, 8.0]] {
                    let least = |loads: &[Loads]| {
                        loads.iter().map(|loads| sum(loads, &weights)).fold(f64::INFINITY, f64::min)
                    };
                    let (best, least) = (least(&found.loads), least(&every));
                    assert!(best <= least * (1.0 + NOTHING) + 1e-12, "{best} is not {least} for {shape:?}");
                    assert!(weights != EQUALLY || found.bound <= least * (1.0 + 1e-9));
                }
            }
        }
    }

    #[test]
    fn groups_can_be_brought_inside_nodes_whatever_the_order_of_devices() {
        // Devices are assigned round robin: neighbours are on different nodes.
        let mut network = network(&[(2, 25e6), (2, 25e6)]);
        let by_turn = |device: usize| [0_usize, 2, 1, 3][device];
        network.nodes = vec![0, 1, 0, 1];
        network.paths = (0..4)
            .map(|from| (0..4).map(|to| network.paths[by_turn(from)][by_turn(to)].clone()).collect())
            .collect();
        let found = search(&network, &shape(2, 2, 1));
        // Tensor groups inside nodes, or gradients inside nodes: neither beats the other.
        assert_eq!(found.list, [vec![0, 1, 2, 3], vec![0, 2, 1, 3]]);
    }

    #[test]
    fn beyond_eight_ranks_swaps_undo_a_bad_order_and_a_bound_says_how_well() {
        let network = network(&[(2, 25e6); 6]);
        let shape = shape(6, 2, 1);
        let ground = Ground::of(&network);
        let scattered: Vec<u32> = (0..12).map(|rank| (rank * 5) % 12).collect();
        let load = |placed: &[u32]| sum(&ground.loads(&shape, placed), &EQUALLY);
        let better = improved(&ground, &shape, scattered.clone(), &EQUALLY);
        assert!(load(&better) < load(&scattered), "{better:?}");
        let found = search(&network, &shape);
        assert!(!found.exact && found.bound > 0.0);
        assert!(found.loads.iter().all(|loads| sum(loads, &EQUALLY) >= found.bound * (1.0 - 1e-9)));
        let report = found.report(&network, &shape, &scattered);
        assert!(report.above_bound > Some(0.0) && report.in_order < 0.0, "{report:?}");
    }
}
