//! The time of the host to launch each segment of a block, and of the ends of a model.

use crate::estimate::{BACKWARD_LAUNCHES, HOST_OF_ENDS};
use crate::prices::Passes;
use autodist_spec::{Pass, Segment};

/// Host seconds to launch the kernels of one micro-batch's passes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Launches {
    block: Passes,
    /// Of the embedding, and as many of the head and the loss.
    end: Passes,
}

impl Launches {
    /// `forward` is the time for one block's forward pass.
    pub fn of(forward: f64) -> Self {
        let passes = |forward: f64| Passes { forward, again: forward, backward: BACKWARD_LAUNCHES * forward };
        Self { block: passes(forward), end: passes(0.5 * HOST_OF_ENDS * forward) }
    }

    /// The launches of a block by segment, assumed: of eight kernels each norm has one, attention with its
    /// projections four, and the MLP two.
    pub fn seconds(&self, segment: Segment, pass: Pass) -> f64 {
        match segment {
            Segment::AttentionNorm | Segment::MlpNorm => 0.125 * self.block.of(pass),
            Segment::Attention => 0.5 * self.block.of(pass),
            Segment::Mlp => 0.25 * self.block.of(pass),
            Segment::Embedding => self.end.of(pass),
            // The backward pass of the whole head is one segment.
            Segment::Loss if pass == Pass::Backward => self.end.backward,
            Segment::Logits => self.end.forward,
            Segment::FinalNorm | Segment::Normalizer | Segment::Loss => 0.0,
        }
    }
}
