//! A lower bound of the simulated step, in closed form.

use crate::priced::{Barrier, Priced, Step};
use autodist_program::BodyKind;
use autodist_spec::Seconds;

/// Work of one chunk on one micro-batch, in seconds, nothing waited for and nothing slowed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChunkWork {
    pub forward: f64,
    pub backward: f64,
}

/// When the last pipeline rank can have run its last backward, in seconds: every rank does its work of all
/// micro-batches one after the other; it cannot begin before the first micro-batch has come through the chunks before
/// its first one, and after its last backward the gradient still runs back through them (the fill and drain of
/// Narayanan et al., SC'21, section 2.2, for any order of micro-batches). `message` is the time between two chunks,
/// `tail` what a rank does at least between its last backward and the gradient norm's barrier.
pub fn pipeline_bound(
    chunks: &[ChunkWork],
    pipeline: usize,
    micro_batches: usize,
    message: f64,
    tail: impl Fn(usize) -> f64,
) -> f64 {
    let mut around = 0.0;
    let mut bound = 0.0_f64;
    for rank in 0..pipeline {
        let per_micro_batch: f64 = chunks.iter().skip(rank).step_by(pipeline).map(|c| c.forward + c.backward).sum();
        let (fill, drain) = around_of(around);
        let busy = fill + per_micro_batch * micro_batches as f64;
        bound = bound.max(busy + tail(rank)).max(busy + drain + tail(0));
        around = (fill + chunks[rank].forward + message, drain + chunks[rank].backward + message).into_pair();
    }
    bound
}
