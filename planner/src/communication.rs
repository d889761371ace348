//! The communication options that are tried for a strategy: placement, algorithms, codecs.

use crate::placement::{self, Placements, Shape};
use autodist_collectives::suits;
use autodist_program::{Program, rules};
use autodist_spec::{
    Algorithm, Codec, Collective, Communication, Job, Network, ParallelStrategy, PlacementReport, Reduction,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The communication options of the search, computed once.
#[derive(Debug)]
pub(crate) struct CommunicationOptions {
    /// Given by the job; otherwise those with the lowest link loads.
    placements: Option<Vec<Vec<u32>>>,
    /// Given by the job; otherwise the fastest are chosen.
    algorithms: Option<Vec<Algorithm>>,
    network: Option<Network>,
    /// Cache of placements. They depend only on the shape, not on the thread that computes them first.
    found: Mutex<BTreeMap<Shape, Arc<Placements>>>,
}

impl CommunicationOptions {
    pub fn new(network: Option<&Network>, job: &Job) -> Self {
        Self {
            placements: job.allow.placements.clone(),
            algorithms: job.allow.algorithms.clone(),
            network: network.cloned(),
            found: Mutex::default(),
        }
    }

    /// Whether only rings are allowed, with rank r on device r.
    pub fn only_default(&self) -> bool {
        self.network.is_none() && self.algorithms.is_none()
    }

    /// Whether the search chooses the fastest algorithms.
    pub fn choose_algorithms(&self) -> bool {
        self.network.is_some() && self.algorithms.is_none()
    }

    /// A comparison of the plan's placement with others; `None` if all links are alike.
    pub fn placement(&self, program: &Program) -> Option<PlacementReport> {
        let network = self.network.as_ref()?;
        let shape = Shape::of(program);
        let found = self.search(network, &shape);
        Some(found.report(network, &shape, &program.strategy.communication.placement))
    }

    fn search(&self, network: &Network, shape: &Shape) -> Arc<Placements> {
        let known = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(shape) {
            return found.clone();
        }
        // Outside the lock: two threads may both do it, with the same result.
        let found = Arc::new(placement::search(network, shape));
        known().entry(shape.clone()).or_insert(found).clone()
    }

    /// Every placement with every codec, and with every given algorithm.
    pub fn communications(&self, program: &Program, job: &Job) -> Vec<Communication> {
        let strategy = &program.strategy;
        let placements = match (&self.placements, &self.network) {
            (Some(given), _) => given.clone(),
            (None, Some(network)) => self.search(network, &Shape::of(program)).list.clone(),
            (None, None) => vec![Vec::new()],
        };
        let forms = forms(strategy, job);
        let mut list = Vec::new();
        for placement in &placements {
            let in_order = placement.iter().enumerate().all(|(rank, device)| rank == *device as usize);
            let placement = if in_order { Vec::new() } else { placement.clone() };
            for forms in &forms {
                let communication = Communication { placement: placement.clone(), ..forms.clone() };
                match &self.algorithms {
                    None => list.push(communication),
                    Some(algorithms) => {
                        list.extend(algorithms.iter().map(|a| everywhere(*a, &communication, strategy)));
                    }
                }
            }
        }
        if list.is_empty() {
            // The job allows only lossy codecs, and no traffic of this strategy can be compressed.
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

/// Every combination of codecs for gradients, gathered parameters and activations.
fn forms(strategy: &ParallelStrategy, job: &Job) -> Vec<Communication> {
    let allow = &job.allow;
    let working = !job.precision.is_mixed();
    let exact = &[Codec::None][..];
    let gathers = working && strategy.zero_stage == 3 && strategy.shards() > 1;
    let parameters = if gathers { &allow.parameter_codecs } else { exact };
    let activations = if working && strategy.pipeline > 1 { &allow.activation_codecs } else { exact };
    let gradients = allow.codecs.iter().filter(|codec| match **codec {
        Codec::None => true,
        codec => strategy.data > 1 && (strategy.zero_stage == 0 || rules::rounds(codec)),
    });
    let mut forms = Vec::new();
    for codec in gradients {
        for (parameters, activations) in
            parameters.iter().flat_map(|p| activations.iter().map(move |activations| (*p, *activations)))
        {
            let reduce = Reduction { codec: *codec, ..Reduction::default() };
            forms.push(Communication { reduce, parameters, activations, ..Communication::default() });
        }
    }
    forms
}

/// `algorithm` for all collectives that it supports, rings for the others.
fn everywhere(
    algorithm: Algorithm,
    communication: &Communication,
    strategy: &ParallelStrategy,
) -> Communication {
    // Parameters in a codec support only the ring.
    let gathers = strategy.zero_stage > 0 && communication.parameters == Codec::None;
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
        0 => fits(&[Collective::AllReduce], strategy.replicas()),
        _ => fits(&[Collective::ReduceScatter], strategy.shards()),
    };
    Communication {
        tensor: or_ring(fits(of_tensor, strategy.tensor)),
        gather: or_ring(gathers && fits(&[Collective::AllGather], strategy.shards())),
        reduce: Reduction { algorithm: or_ring(reduces), ..communication.reduce },
        ..communication.clone()
    }
}

/// Whether two nodes have the same number of devices, and equally fast links to all other nodes.
pub(crate) fn interchangeable(network: &Network, one: &[u32], other: &[u32]) -> bool {
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
