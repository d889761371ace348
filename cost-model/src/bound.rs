//! A lower bound of the simulated step, in closed form over the bodies.

use crate::priced::{Barrier, Priced, PricedBody, Step};
use autodist_program::BodyKind;
use autodist_spec::{ParallelStrategy, Seconds};

/// Minimum time of one chunk for one micro-batch, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChunkWork {
    pub forward: f64,
    pub backward: f64,
}

/// Lower bound of the seconds until the gradient norm's barrier. Every rank processes all micro-batches one
/// after the other; it cannot start before the first micro-batch has passed the chunks before its own first
/// one, and after its last backward the gradient still passes back through them (fill and drain of Narayanan
/// et al., SC'21, section 2.2; true for any order of micro-batches).
///
/// `message` is the send/recv time between two chunks, `tail` the minimum time of a rank from the end of its
/// last backward to the barrier.
pub fn pipeline_bound(
    chunks: &[ChunkWork],
    strategy: &ParallelStrategy,
    micro_batches: usize,
    message: f64,
    tail: impl Fn(usize) -> f64,
) -> f64 {
    let (mut fill, mut drain) = (0.0, 0.0);
    let mut bound = 0.0_f64;
    for rank in 0..strategy.pipeline as usize {
        let own = strategy.chunks_of(rank).map(|chunk| chunks[chunk]);
        let work: f64 = own.map(|chunk| chunk.forward + chunk.backward).sum();
        let last_backward = fill + work * micro_batches as f64;
        bound = bound.max(last_backward + tail(rank)).max(last_backward + drain + tail(0));
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
        let tails: Vec<(f64, f64)> =
            (0..strategy.pipeline as usize).map(|rank| self.tail(rank, chunks[rank].backward)).collect();
        let barrier =
            pipeline_bound(&chunks, strategy, self.program.micro_batches, self.fastest_message(), |r| {
                tails[r].0
            });
        let update = tails.iter().map(|tail| tail.1).fold(0.0, f64::max);
        Seconds((barrier + update + self.costs.step_overhead.seconds) * ROUNDING)
    }

    fn chunk_work(&self, chunk: usize) -> ChunkWork {
        let shortest = |backward: bool| {
            let bodies = self.bodies_of(chunk, backward).map(|body| elapsed(&[&body.steps]).0);
            bodies.fold(f64::INFINITY, f64::min)
        };
        ChunkWork { forward: shortest(false), backward: shortest(true) }
    }

    fn bodies_of(&self, chunk: usize, backward: bool) -> impl Iterator<Item = &PricedBody> {
        let wanted = if backward { BodyKind::Backward { chunk } } else { BodyKind::Forward { chunk } };
        let rank = self.program.strategy.rank_of(chunk);
        let bodies = self.program.ranks[rank].bodies.iter().zip(&self.ranks[rank]);
        bodies.filter(move |(body, _)| body.kind == wanted).map(|(_, priced)| priced)
    }

    /// From the end of the rank's last backward to the norm's barrier, and from there to the end of its
    /// updates. Includes the reductions that its last backward has queued.
    fn tail(&self, rank: usize, backward: f64) -> (f64, f64) {
        let (Some(optimizer), Some(last)) = (self.ranks[rank].last(), self.bodies_of(rank, true).last())
        else {
            return (0.0, 0.0);
        };
        let is_norm = |step: &Step| matches!(step, Step::Barrier(Barrier::Norm, _));
        let norm = optimizer.steps.iter().position(is_norm).unwrap_or(optimizer.steps.len());
        let (before, after) = optimizer.steps.split_at(norm);
        (elapsed(&[&last.steps, before]).0 - backward, elapsed(&[after]).1)
    }
}

/// When the compute stream and when both streams finish these steps, without interference.
fn elapsed(parts: &[&[Step]]) -> (f64, f64) {
    let mut compute = 0.0_f64;
    let mut communication = 0.0_f64;
    let mut finish = Vec::new();
    for step in parts.iter().copied().flatten() {
        match step {
            Step::Work(work) => compute += work.total(),
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
