//! A lower bound of the simulated step, in closed form over the bodies.

use crate::priced::{Barrier, Priced, PricedBody, Step};
use autodist_program::BodyKind;
use autodist_spec::{ParallelStrategy, Seconds};

/// Minimum time of one chunk for one micro-batch, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChunkWork {
    pub forward: f64,
    pub backward: f64,
    /// Time of the host to launch both.
    pub launch: f64,
}

/// Minimum time of a rank from the end of its last backward to the gradient norm's barrier, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tail {
    /// After work that the device bounds.
    pub device: f64,
    /// After work that the host bounds.
    pub host: f64,
}

/// Lower bound of the seconds until the gradient norm's barrier. Every rank processes all micro-batches one
/// after the other; it cannot start before the first micro-batch has passed the chunks before its own first
/// one, and after its last backward the gradient still passes back through them (fill and drain of Narayanan
/// et al., SC'21, section 2.2; true for any order of micro-batches).
///
/// Nor can it end before its host has launched all of it.
///
/// `message` is the send/recv time between two chunks.
pub fn pipeline_bound(
    chunks: &[ChunkWork],
    strategy: &ParallelStrategy,
    micro_batches: usize,
    message: f64,
    tail: impl Fn(usize) -> Tail,
) -> f64 {
    let (mut fill, mut drain) = (0.0, 0.0);
    let mut bound = 0.0_f64;
    for rank in 0..strategy.pipeline as usize {
        let all = |of: fn(&ChunkWork) -> f64| {
            micro_batches as f64 * strategy.chunks_of(rank).map(|chunk| of(&chunks[chunk])).sum::<f64>()
        };
        let last_backward = fill + all(|chunk| chunk.forward + chunk.backward);
        let launched = all(|chunk| chunk.launch);
        bound = bound.max(last_backward + tail(rank).device).max(launched + tail(rank).host);
        if rank > 0 {
            bound = bound.max(last_backward.max(launched) + drain + tail(0).device);
        }
        fill += chunks[rank].forward + message;
        drain += chunks[rank].backward + message;
    }
    bound
}

/// Margin for rounding: the simulator adds the same numbers in another order.
pub(crate) const ROUNDING: f64 = 1.0 - 1e-9;

impl Priced<'_> {
    /// No simulation of this program is faster: both streams run at full speed without interference, and the
    /// only wait for other ranks is the pipeline's fill and drain.
    pub fn lower_bound(&self) -> Seconds {
        let strategy = &self.program.strategy;
        let chunks: Vec<ChunkWork> =
            (0..self.program.stages.len()).map(|chunk| self.chunk_work(chunk)).collect();
        let ranks = 0..strategy.pipeline as usize;
        let tails: Vec<(Tail, f64)> = ranks.map(|rank| self.tail(rank, &chunks[rank])).collect();
        let barrier =
            pipeline_bound(&chunks, strategy, self.program.micro_batches, self.fastest_message(), |r| {
                tails[r].0
            });
        let update = tails.iter().map(|tail| tail.1).fold(0.0, f64::max);
        Seconds((barrier + update + self.costs.step_overhead.seconds) * ROUNDING)
    }

    fn chunk_work(&self, chunk: usize) -> ChunkWork {
        let shortest = |backward: bool| {
            let received = if backward { chunk + 1 < self.program.stages.len() } else { chunk > 0 };
            let host = if received && self.costs.receives_block { Host::Behind } else { Host::Ahead };
            let bodies = self.bodies_of(chunk, backward).map(|body| elapsed(&[&body.steps], host).0);
            bodies.fold(f64::INFINITY, f64::min)
        };
        let launch = self.launch(chunk, false) + self.launch(chunk, true);
        ChunkWork { forward: shortest(false), backward: shortest(true), launch }
    }

    fn launch(&self, chunk: usize, backward: bool) -> f64 {
        self.bodies_of(chunk, backward).map(|body| body.work.launch).fold(f64::INFINITY, f64::min)
    }

    fn bodies_of(&self, chunk: usize, backward: bool) -> impl Iterator<Item = &PricedBody> {
        let wanted = if backward { BodyKind::Backward { chunk } } else { BodyKind::Forward { chunk } };
        let rank = self.program.strategy.rank_of(chunk);
        let bodies = self.program.ranks[rank].bodies.iter().zip(&self.ranks[rank]);
        bodies.filter(move |(body, _)| body.kind == wanted).map(|(_, priced)| priced)
    }

    /// From the end of the rank's last backward to the norm's barrier, and from there to the end of its
    /// updates. Includes the reductions that its last backward has queued.
    fn tail(&self, rank: usize, first: &ChunkWork) -> (Tail, f64) {
        let (Some(optimizer), Some(last)) = (self.ranks[rank].last(), self.bodies_of(rank, true).last())
        else {
            return (Tail::default(), 0.0);
        };
        let is_norm = |step: &Step| matches!(step, Step::Barrier(Barrier::Norm, _));
        let norm = optimizer.steps.iter().position(is_norm).unwrap_or(optimizer.steps.len());
        let (before, after) = optimizer.steps.split_at(norm);
        let after_backward = |host| elapsed(&[&last.steps, before], host).0;
        let tail = Tail {
            device: after_backward(Host::Ahead) - first.backward,
            host: after_backward(Host::Behind) - self.launch(rank, true),
        };
        (tail, elapsed(&[after], Host::Ahead).1)
    }
}

/// Where the host is when the first of some steps starts.
#[derive(Debug, Clone, Copy)]
enum Host {
    /// It has launched all of them.
    Ahead,
    /// It begins to launch them.
    Behind,
}

/// When the compute stream and when both streams finish these steps, without interference.
fn elapsed(parts: &[&[Step]], host: Host) -> (f64, f64) {
    let mut host = match host {
        Host::Ahead => f64::NEG_INFINITY,
        Host::Behind => 0.0,
    };
    let mut compute = 0.0_f64;
    let mut communication = 0.0_f64;
    let mut finish = Vec::new();
    for step in parts.iter().copied().flatten() {
        match step {
            Step::Work(work) => {
                compute = work.end(compute, host);
                host += work.launch;
            }
            Step::Start(id, seconds) => {
                communication = communication.max(compute) + seconds;
                finish.push((*id, communication));
            }
            Step::Wait(id) => {
                let done = finish.iter().rev().find(|(other, _)| other == id).map_or(compute, |(_, at)| *at);
                compute = compute.max(done);
            }
            Step::Barrier(_, seconds) => compute += seconds,
        }
    }
    (compute, compute.max(communication))
}
