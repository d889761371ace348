//! The interface to the costs of a program: the cells of a profile, or another source with the same queries.

use crate::curve::Price;
use crate::measured::{SegmentPrice, Unpriced};
use crate::peak::PeakError;
use autodist_program::{Held, Transfer};
use autodist_spec::profile::Interference;
use autodist_spec::{
    Algorithm, BlockSpec, Bytes, Collective, LayerTraining, Optimizer, ParallelStrategy, Pass, Precision,
    Recompute, Seconds, Segment,
};
use std::fmt;

/// One pass of a segment over one micro-batch on one rank, without its collectives.
#[derive(Debug, Clone, Copy)]
pub struct SegmentQuery<'a> {
    /// The block of the segment; any of the model's for the embedding and the head.
    pub block: BlockSpec,
    /// What of the segment's layer is trained.
    pub training: LayerTraining,
    pub segment: Segment,
    pub pass: Pass,
    /// Policy of the block; the strategy's policy applies only to some blocks.
    pub recompute: Recompute,
    pub strategy: &'a ParallelStrategy,
    /// Micro-batches of a data rank in a step: gradients are accumulated if there are more than one.
    pub micro_batches: usize,
}

/// The purpose of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Activations of a tensor-parallel group, in a block like this one.
    Tensor(BlockSpec),
    /// Keys and values of a context-parallel group, for one pass of the attention of such a block.
    Context(BlockSpec, Pass),
    /// Tokens to the ranks of their experts, or back.
    Experts,
    /// Gradients or parameters of a bucket.
    Bucket(Transfer),
    /// Gradients of a table that the first and the last pipeline rank share.
    Tied,
    /// The norm of all gradients.
    Norm,
}

/// A collective of groups of equal size at the same time.
#[derive(Debug, Clone, Copy)]
pub struct CollectiveQuery<'a> {
    pub purpose: Purpose,
    pub kind: Collective,
    pub algorithm: Algorithm,
    /// Ranks of a group.
    pub group: usize,
    /// Distance of neighbouring ranks of a group.
    pub stride: usize,
    /// The whole tensor, as [`Collective`] counts it.
    pub bytes: Bytes,
    pub strategy: &'a ParallelStrategy,
}

/// A send/recv between pipeline ranks, of all their data and tensor ranks at the same time.
#[derive(Debug, Clone, Copy)]
pub struct MessageQuery<'a> {
    /// The pipeline ranks that send and receive; `None` for the fastest of all neighbours.
    pub ends: Option<(usize, usize)>,
    /// Ranks of a pipeline stage: the distance of two neighbours.
    pub stride: usize,
    pub bytes: Bytes,
    pub strategy: &'a ParallelStrategy,
}

/// A source of costs. For equal queries it must give equal prices, so that a lower bound that was computed
/// for a part of a program holds for the whole.
pub trait Prices: fmt::Debug + Send + Sync {
    /// # Errors
    /// The source has no price of this segment in this strategy.
    fn segment(&self, query: &SegmentQuery) -> Result<SegmentPrice, Unpriced>;

    /// # Errors
    /// The source has no price of such a group or algorithm.
    fn collective(&self, query: &CollectiveQuery) -> Result<Price, Unpriced>;

    /// # Errors
    /// The source has no price of a send/recv.
    fn message(&self, query: &MessageQuery) -> Result<Price, Unpriced>;

    /// The optimizer's update of so many elements on one rank.
    ///
    /// # Errors
    /// The source has no price of the optimizer.
    fn update(&self, elements: usize) -> Result<Price, Unpriced>;

    /// The norm of so many elements of gradients on one rank, and all other operations on them once in a
    /// step.
    ///
    /// # Errors
    /// The source has no price of the optimizer.
    fn norm(&self, elements: usize) -> Result<Price, Unpriced>;

    /// Bytes that a chunk keeps of a micro-batch from its forward to its backward pass, beside the activations
    /// of its segments.
    fn kept_of_pass(&self, strategy: &ParallelStrategy) -> Bytes {
        let _ = strategy;
        Bytes::ZERO
    }

    /// Bytes of the buffers that a rank with this number of trained parameters needs in the optimizer's update, when it
    /// has no activations.
    fn update_buffers(&self, elements: u64, strategy: &ParallelStrategy) -> Bytes {
        let _ = (elements, strategy);
        Bytes::ZERO
    }

    /// Bytes of the buffers that a rank with these parameters keeps beside its tensors.
    fn buffers(&self, held: &Held, strategy: &ParallelStrategy) -> Bytes {
        let _ = (held, strategy);
        Bytes::ZERO
    }
}

/// Bytes that a rank keeps for each of its parameters throughout a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ParameterBytes {
    /// Bytes of a trained weight.
    pub weight: f64,
    /// Bytes of a frozen weight, unless it is quantised.
    pub frozen: f64,
    /// Bytes of an accumulated gradient.
    pub gradient: f64,
    /// Bytes of the optimizer's moments and the master weight.
    pub state: f64,
}

impl ParameterBytes {
    /// As the executor keeps them: weights in the working precision, everything else in fp32.
    pub fn of(precision: Precision, optimizer: Optimizer) -> Self {
        let fp32 = Bytes::of_f32(1).as_f64();
        let state = optimizer.state_elements() + u64::from(precision.is_mixed());
        let weight = precision.working(1).as_f64();
        Self { weight, frozen: weight, gradient: fp32, state: fp32 * state as f64 }
    }

    /// Bytes of weights, of which the quantised ones have `quantised` of the bytes of another frozen one.
    pub fn weights(&self, held: &Held, quantised: f64) -> f64 {
        let frozen = held.elements.saturating_sub(held.trained + held.quantised) as f64;
        self.weight * held.trained as f64 + self.frozen * (frozen + quantised * held.quantised as f64)
    }
}

/// Costs of a step beyond its operations.
#[derive(Debug, Clone)]
pub struct StepCosts {
    /// By ZeRO stage.
    pub parameter_bytes: [ParameterBytes; 4],
    /// The same in the host's memory.
    pub host_bytes: [ParameterBytes; 4],
    /// Bytes of a gradient before it is reduced to the shards of ZeRO-2 and 3.
    pub whole_gradient_bytes: f64,
    /// Whether activations of blocks are in the host's memory between forward and backward pass.
    pub activations_on_host: bool,
    /// Whether the parameters that ZeRO shards are gathered only once in a step of a pipeline, and their
    /// gradients reduced once: between micro-batches both are whole.
    pub pipelines_stay_gathered: bool,
    /// Whether gradients are reduced while the backward pass continues.
    pub overlaps_reductions: bool,
    /// Whether gradients are freed after an update, and those of embedding and head are reduced together: PyTorch's
    /// FSDP.
    pub frees_gradients: bool,
    /// Whether the host waits for what another pipeline rank sends, instead of launching what comes after it.
    pub receives_block: bool,
    pub interference: Interference,
    /// Seconds of a step outside all operations.
    pub overhead_s: Seconds,
    /// Bytes of a rank outside all tensors.
    pub baseline_bytes: Bytes,
    /// Bytes that the allocator holds in addition to tensors, relative to these.
    pub fragmentation: f64,
    pub peak_error: PeakError,
    /// Half-width of the interval of a step time, relative to it.
    pub spread: f64,
}
