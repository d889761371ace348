//! What of a layer's parameters, gradients and optimizer state a rank holds.

use crate::mesh::{Axis, DATA};
use autodist_spec::{ParallelStrategy, Recompute, Stage};

/// What the ranks of a shard group divide among them (ZeRO; Rajbhandari et al., 1910.02054).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Residence {
    /// Nothing: every rank holds all.
    Whole,
    /// The optimizer state (stage 1).
    ShardedState,
    /// Also the gradients (stage 2).
    ShardedGradients,
    /// Also the parameters (stage 3).
    Sharded,
}

impl Residence {
    pub fn of(strategy: &ParallelStrategy) -> Self {
        match strategy.zero_stage {
            0 => Self::Whole,
            1 => Self::ShardedState,
            2 => Self::ShardedGradients,
            _ => Self::Sharded,
        }
    }

    pub fn shards_state(self) -> bool {
        self >= Self::ShardedState
    }

    /// Whole gradients exist only until their reduce-scatter.
    pub fn shards_gradients(self) -> bool {
        self >= Self::ShardedGradients
    }

    /// Whole parameters exist only between their all-gather and their release.
    pub fn shards_parameters(self) -> bool {
        self == Self::Sharded
    }

    /// The axes of the shard group. Context-parallel ranks hold the same parameters, so it contains all of
    /// them.
    pub fn shard_axes(self) -> &'static [Axis] {
        if self.shards_state() { &[Axis::Shard, Axis::Context] } else { &[] }
    }

    /// The axes over which the same shard is held by different ranks.
    pub fn replica_axes(self) -> &'static [Axis] {
        if self.shards_state() { &[Axis::Replicate] } else { &DATA }
    }
}

/// What is decided for a layer by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerStrategy {
    pub residence: Residence,
    pub recompute: Recompute,
}

impl LayerStrategy {
    /// Of `layer` of the model's chain, which `stage` holds.
    pub fn of(strategy: &ParallelStrategy, stage: &Stage, layer: usize) -> Self {
        let recompute = stage.recompute[layer - stage.first_layer as usize];
        Self { residence: Residence::of(strategy), recompute }
    }
}
