//! Bounds of a program before it is compiled: they exclude most of a large search space.

use crate::CostModel;
use crate::bound::{ChunkWork, Tail, pipeline_bound};
use crate::curve::Price;
use crate::layers::RankCosts;
use crate::measured::Unpriced;
use crate::prices::{MessageQuery, ParameterBytes};
use autodist_program::Held;
use autodist_program::schedule::{self, Extent, SlotKind};
use autodist_spec::{Job, LayerTraining, ModelSpec, ParallelStrategy, Seconds, Stage};

/// Costs of the chunks of a pipeline, summed: independent of data parallelism, ZeRO, schedule and buckets.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    chunks: Vec<ChunkWork>,
    /// Bytes that a forward pass of the chunk leaves allocated, including its send/recv buffers.
    growth: Vec<i64>,
    /// Parameters on tensor rank 0, by pipeline rank.
    held: Vec<Held>,
}

/// Number of forward passes of each chunk that a rank runs before its first backward.
pub type InFlight = Vec<(usize, i64)>;

impl Outline {
    pub fn new(
        model: &ModelSpec,
        strategy: &ParallelStrategy,
        stages: &[Stage],
        costs: &RankCosts,
        job: &Job,
    ) -> Self {
        let pipeline = strategy.pipeline as usize;
        let parts = if strategy.sequence_parallel { strategy.tensor } else { 1 };
        let tokens = u64::from(job.seq_len) * u64::from(strategy.micro_batch) / u64::from(strategy.context);
        let flow = job.precision.working(tokens * u64::from(model.hidden) / u64::from(parts)).0 as i64;
        let training = job.trainable.layers(model);
        let mut parameters: Vec<Held> = Vec::with_capacity(model.chain_len());
        for (layer, first) in LayerTraining::alike(&training, model).into_iter().enumerate() {
            let known = parameters.get(first).copied();
            let of = || Held::of(model, (layer, &training[layer]), strategy.tensor, strategy.expert);
            parameters.push(known.unwrap_or_else(of));
        }
        let mut outline =
            Self { chunks: Vec::new(), growth: Vec::new(), held: vec![Held::default(); pipeline] };
        for (chunk, stage) in stages.iter().enumerate() {
            let (mut work, mut launches, mut growth) = (ChunkWork::default(), [0.0; 2], 0);
            for layer in stage.layers() {
                let cost = costs.of_rank(strategy.rank_of(chunk)).of(layer);
                work.forward += cost.forward.seconds;
                work.backward += cost.backward.seconds;
                launches = [0, 1].map(|pass| launches[pass] + cost.launches[pass]);
                growth += cost.forward_growth;
                let rank = strategy.rank_of(chunk);
                outline.held[rank] = outline.held[rank] + parameters[layer];
            }
            if costs.receives_block {
                // The host launches a pass that waited for another rank only then.
                let (first, last) = (chunk == 0, chunk + 1 == stages.len());
                work.forward = work.forward.max(if first { 0.0 } else { launches[0] });
                work.backward = work.backward.max(if last { 0.0 } else { launches[1] });
            }
            work.launch = launches[0] + launches[1];
            growth += flow * (i64::from(chunk > 0) - i64::from(chunk + 1 < stages.len()));
            outline.chunks.push(work);
            outline.growth.push(growth);
        }
        if model.tied_embeddings && pipeline > 1 {
            outline.held[pipeline - 1] = outline.held[pipeline - 1] + parameters[0];
        }
        outline
    }

    /// Lower bounds of the bytes on the first and on the last pipeline rank, with their passes `in_flight`.
    pub fn memory_floor(
        &self,
        job: &Job,
        strategy: &ParallelStrategy,
        bytes: &ParameterBytes,
        in_flight: &[InFlight; 2],
    ) -> [u64; 2] {
        let ranks = [0, self.held.len() - 1];
        [0, 1].map(|end| {
            let kept: i64 = in_flight[end].iter().map(|(chunk, count)| self.growth[*chunk] * count).sum();
            let held = self.held[ranks[end]];
            crate::persistent_bytes(&held, job, strategy, bytes) + kept.max(0) as u64
        })
    }
}

/// Forward passes that the first and the last pipeline rank run before their first backward.
pub fn in_flight(strategy: &ParallelStrategy, micro_batches: usize) -> [InFlight; 2] {
    [0, strategy.pipeline as usize - 1].map(|rank| {
        let order = schedule::order(Extent::Period, strategy, rank, micro_batches);
        let mut counts: InFlight = strategy.chunks_of(rank).map(|chunk| (chunk, 0)).collect();
        for slot in order.iter().take_while(|slot| slot.kind == SlotKind::Forward) {
            counts[strategy.turn_of(slot.chunk)].1 += 1;
        }
        counts
    })
}

impl CostModel {
    /// Seconds that no simulation of any program with this outline can beat.
    ///
    /// # Errors
    /// The profile has no send/recv times, and the pipeline needs them.
    pub fn outline_bound(
        &self,
        outline: &Outline,
        model: &ModelSpec,
        strategy: &ParallelStrategy,
        micro_batches: usize,
    ) -> Result<Seconds, Unpriced> {
        // If links differ, the link of a send/recv depends on the placement, which is not decided yet.
        let message = if strategy.pipeline > 1 && self.routes.is_none() {
            let parts = if strategy.sequence_parallel { strategy.tensor } else { 1 };
            let tokens =
                u64::from(self.seq_len) * u64::from(strategy.micro_batch) / u64::from(strategy.context);
            let bytes = self.precision.working(tokens * u64::from(model.hidden) / u64::from(parts));
            self.shortest_message(&MessageQuery {
                ends: None,
                stride: strategy.stage_ranks(),
                bytes,
                strategy,
            })?
        } else {
            Price::ZERO
        };
        let tail = |_| Tail::default();
        let work = pipeline_bound(&outline.chunks, strategy, micro_batches, message.seconds, tail);
        Ok(Seconds((work + self.step_overhead.seconds) * crate::bound::ROUNDING))
    }
}
