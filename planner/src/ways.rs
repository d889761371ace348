//! The communications of a way of training that are tried.

use autodist_collectives::{Collective, suits};
use autodist_spec::{Algorithm, Codec, Communication, Job, Network, ParallelStrategy, Reduction};

/// What the search may choose of communication, worked out once.
#[derive(Debug)]
pub(crate) struct Ways {
    placements: Vec<Vec<u32>>,
    /// Given by the job; otherwise the fastest are chosen.
    algorithms: Option<Vec<Algorithm>>,
    network: bool,
}

impl Ways {
    pub fn new(network: Option<&Network>, job: &Job) -> Self {
        let found = || network.map_or_else(|| vec![Vec::new()], placements);
        Self {
            placements: job.allow.placements.clone().unwrap_or_else(found),
            algorithms: job.allow.algorithms.clone(),
            network: network.is_some(),
        }
    }

    /// Whether nothing but rings on rank r's device r is in question.
    pub fn are_plain(&self) -> bool {
        !self.network && self.algorithms.is_none()
    }

    /// Whether the fastest algorithms are to be chosen.
    pub fn choose(&self) -> bool {
        self.network && self.algorithms.is_none()
    }

    /// Every placement with every codec, and with every algorithm that was given.
    pub fn communications(&self, strategy: &ParallelStrategy, job: &Job) -> Vec<Communication> {
        let compresses = strategy.zero_stage == 0 && strategy.data > 1;
        let mut list = Vec::new();
        for placement in &self.placements {
            let in_order = placement.iter().enumerate().all(|(rank, device)| rank == *device as usize);
            let placement = if in_order { Vec::new() } else { placement.clone() };
            for codec in job.allow.codecs.iter().filter(|codec| compresses || **codec == Codec::None) {
                match &self.algorithms {
                    None => list.push(Communication {
                        placement: placement.clone(),
                        reduce: Reduction { codec: *codec, ..Reduction::default() },
                        ..Communication::default()
                    }),
                    Some(algorithms) => {
                        list.extend(algorithms.iter().map(|a| everywhere(*a, *codec, &placement, strategy)));
                    }
                }
            }
        }
        if list.is_empty() {
            // The job allows lossy codecs alone, and nothing of this strategy can be compressed.
            list.push(Communication::default());
        }
        let mut distinct: Vec<Communication> = Vec::new();
        for communication in list {
            if !distinct.contains(&communication) {
                distinct.push(communication);
            }
        }
        distinct
    }
}

/// `algorithm` for all collectives that it fits, rings for the others.
fn everywhere(
    algorithm: Algorithm,
    codec: Codec,
    placement: &[u32],
    strategy: &ParallelStrategy,
) -> Communication {
    let fits = |collectives: &[Collective], size: u32| {
        let size = size as usize;
        size > 1 && collectives.iter().all(|c| suits(algorithm, *c, size).is_ok())
    };
    let or_ring = |fits: bool| if fits { algorithm } else { Algorithm::Ring };
    let of_tensor: &[Collective] = match strategy.sequence_parallel {
        true => &[Collective::AllReduce, Collective::ReduceScatter, Collective::AllGather],
        false => &[Collective::AllReduce],
    };
    let reduces = match strategy.zero_stage {
        0 => fits(&[Collective::AllReduce], strategy.data),
        _ => fits(&[Collective::ReduceScatter], strategy.shard),
    };
    Communication {
        placement: placement.to_vec(),
        tensor: or_ring(fits(of_tensor, strategy.tensor)),
        gather: or_ring(strategy.zero_stage > 0 && fits(&[Collective::AllGather], strategy.shard)),
        reduce: Reduction { algorithm: or_ring(reduces), codec },
        buckets: Vec::new(),
    }
}

/// Placements that are tried where the job gives none.
const MOST_PLACEMENTS: usize = 16;

/// Placements that differ in which ranks share a node, rank r on device r first. Devices of a node take its ranks in
/// their order; nodes that are alike are interchangeable.
pub(crate) fn placements(network: &Network) -> Vec<Vec<u32>> {
    let nodes = &network.nodes;
    let mut room: Vec<Vec<u32>> = Vec::new();
    for (device, node) in nodes.iter().enumerate() {
        if room.len() <= *node as usize {
            room.push(Vec::new());
        }
        room[*node as usize].push(device as u32);
    }
    let alike: Vec<Vec<bool>> = (0..room.len())
        .map(|a| (0..room.len()).map(|b| interchangeable(network, &room[a], &room[b])).collect())
        .collect();
    let mut list = Vec::new();
    fill(&mut vec![0; room.len()], &room, &alike, &mut Vec::new(), nodes.len(), &mut list);
    list
}

/// Extends the devices of the first ranks in every way, nodes in order, so that rank r on device r comes first.
fn fill(
    used: &mut Vec<usize>,
    room: &[Vec<u32>],
    alike: &[Vec<bool>],
    placed: &mut Vec<u32>,
    world: usize,
    list: &mut Vec<Vec<u32>>,
) {
    if list.len() == MOST_PLACEMENTS {
        return;
    }
    if placed.len() == world {
        list.push(placed.clone());
        return;
    }
    for node in 0..room.len() {
        // Of untouched nodes that are alike, the first stands for all.
        let stands_for = (0..node).any(|other| used[other] == 0 && used[node] == 0 && alike[other][node]);
        if used[node] == room[node].len() || stands_for {
            continue;
        }
        placed.push(room[node][used[node]]);
        used[node] += 1;
        fill(used, room, alike, placed, world, list);
        used[node] -= 1;
        placed.pop();
    }
}

/// Whether two nodes have as many devices, and links as fast to everyone else.
fn interchangeable(network: &Network, one: &[u32], other: &[u32]) -> bool {
    let way = |from: u32, to: u32| {
        let path = &network.paths[from as usize][to as usize];
        let rates = path.links.iter().map(|link| network.links[*link as usize].bytes_per_s.0);
        (rates.fold(f64::INFINITY, f64::min), path.latency_s.0)
    };
    // Measured rates of equal links differ a little.
    let close = |a: f64, b: f64| a == b || (a - b).abs() <= 0.05 * a.abs().max(b.abs());
    let same = |(rate, latency): (f64, f64), (other_rate, other_latency): (f64, f64)| {
        close(rate, other_rate) && (close(latency, other_latency) || (latency - other_latency).abs() < 2e-4)
    };
    let others =
        (0..network.nodes.len() as u32).filter(|device| !one.contains(device) && !other.contains(device));
    one.len() == other.len()
        && others.into_iter().all(|device| {
            same(way(one[0], device), way(other[0], device))
                && same(way(device, one[0]), way(device, other[0]))
        })
        && (one.len() == 1 || same(way(one[0], one[1]), way(other[0], other[1])))
        && same(way(one[0], other[0]), way(other[0], one[0]))
}
