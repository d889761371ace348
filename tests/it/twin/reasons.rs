//! Reasons for large differences between the two models: each has the layouts to which it applies, and the
//! amount by which the program's figure exceeds the closed form's.

use super::{Figure, Pair};
use autodist_cost_model::{CollectiveQuery, Prices, Purpose, SegmentPrice, SegmentQuery};
use autodist_program::Transfer;
use autodist_spec::{Algorithm, Bytes, Collective, Kernels, LayerTraining, Pass, Recompute, Segment};

pub struct Reason {
    pub name: &'static str,
    pub figure: Figure,
    pub applies: fn(&Pair) -> bool,
    /// Seconds or bytes.
    pub amount: fn(&Pair) -> f64,
}

pub const REASONS: [Reason; 3] = [
    // In a program every backward pass of a chunk ends with its last reduce-scatter, and so later ranks of
    // the pipeline wait. The closed form reduce-scatters after the last micro-batch.
    Reason {
        name: "ZeRO-2 scatters in every pass of a pipeline",
        figure: Figure::Time,
        applies: |pair| zero(pair, 2) && piped(pair) && !stays_gathered(pair),
        amount: |pair| {
            let Block { gather, scatter, backward, .. } = Block::of(pair);
            let beside = if zero(pair, 3) { gather } else { 0.0 };
            let exposed = scatter + (blocks(pair) - 1.0) * (scatter + beside - backward).max(0.0);
            passes(pair) * exposed
        },
    },
    // A program holds the whole fp32 gradients of two blocks, one being written and one being
    // reduce-scattered. The closed form has one block's in 16 bits for FSDP, none for Megatron.
    Reason {
        name: "two blocks' whole gradients in fp32",
        figure: Figure::Memory,
        applies: |pair| zero(pair, 2) && !stays_gathered(pair),
        amount: |pair| {
            let held = 2.0 * 4.0 * block_elements(pair);
            let closed = if zero(pair, 3) { 2.0 * block_elements(pair) } else { 0.0 };
            held - closed
        },
    },
    // The closed form adds logits to the memory of a block's backward pass. A program frees them before, so
    // that the larger of the two counts.
    Reason {
        name: "logits and a block's backward pass at one moment",
        figure: Figure::Memory,
        applies: |pair| pair.analytic_memory.logits > 0.0,
        amount: |pair| -pair.analytic_memory.logits.min(passing(pair)),
    },
];

fn zero(pair: &Pair, stage: u8) -> bool {
    pair.run.layout.zero_stage >= stage
}

/// Whether both models gather and reduce once in a step.
fn stays_gathered(pair: &Pair) -> bool {
    piped(pair) && pair.run.trainer.traits().shards_parameters
}

fn piped(pair: &Pair) -> bool {
    pair.run.layout.pipeline > 1
}

/// Segments of a block.
const BLOCK: [Segment; 4] = [Segment::AttentionNorm, Segment::Attention, Segment::MlpNorm, Segment::Mlp];

fn segment(pair: &Pair, segment: Segment, pass: Pass) -> SegmentPrice {
    let strategy = &pair.case.strategy;
    let (recompute, micro_batches) = (strategy.recompute, pair.program.micro_batches);
    let block = pair.case.model.block(1);
    let training = LayerTraining::WHOLE;
    let query = SegmentQuery { block, training, segment, pass, recompute, strategy, micro_batches };
    pair.prices.segment(&query).unwrap()
}

/// Bytes that the backward pass of a block allocates: gradients, and recomputed activations.
fn passing(pair: &Pair) -> f64 {
    let again: i64 = match pair.case.strategy.recompute {
        Recompute::None => 0,
        _ => BLOCK.iter().map(|one| segment(pair, *one, Pass::Recompute).growth_bytes).sum(),
    };
    let gradients = segment(pair, Segment::Mlp, Pass::Backward).peak_bytes;
    let residual = segment(pair, Segment::Embedding, Pass::Forward).growth_bytes;
    (gradients + residual + again) as f64
}

/// Blocks of a pipeline rank.
fn blocks(pair: &Pair) -> f64 {
    pair.run.blocks().0
}

/// Passes in each direction between the first and the last of a step that follow each other.
fn passes(pair: &Pair) -> f64 {
    pair.run.micro_batches() + f64::from(pair.run.layout.pipeline) - 1.0
}

fn block_elements(pair: &Pair) -> f64 {
    pair.run.kernels().iter().map(Kernels::weights).sum()
}

/// Seconds of a collective of a bucket. Gradients are given in fp32, as a program counts them.
fn transfer(pair: &Pair, kind: Collective, bytes: Bytes) -> f64 {
    let of = if kind == Collective::AllGather { Transfer::Gather } else { Transfer::Reduce };
    let view = pair.program.transfer_view(Transfer::Reduce, &pair.program.ranks[0].buckets()[0]);
    let (group, stride) = (view.size(), view.stride());
    let query = CollectiveQuery {
        purpose: Purpose::Bucket(of),
        kind,
        algorithm: Algorithm::Ring,
        group,
        stride,
        bytes,
        strategy: &pair.case.strategy,
    };
    pair.prices.collective(&query).unwrap().seconds
}

/// Seconds of one block's passes and transfers.
struct Block {
    backward: f64,
    gather: f64,
    scatter: f64,
}

impl Block {
    fn of(pair: &Pair) -> Self {
        let pass = |pass| -> f64 { BLOCK.iter().map(|one| segment(pair, *one, pass).time.seconds).sum() };
        let again = if pair.case.strategy.recompute == Recompute::Full { pass(Pass::Recompute) } else { 0.0 };
        let elements = block_elements(pair) as u64;
        Self {
            backward: pass(Pass::Backward) + again,
            gather: transfer(pair, Collective::AllGather, Bytes(2 * elements)),
            scatter: transfer(pair, Collective::ReduceScatter, Bytes(4 * elements)),
        }
    }
}
