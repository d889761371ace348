//! Drops doubtful cells, so that they are measured again.

use crate::assemble::in_block;
use autodist_spec::{ParallelStrategy, Profile, Recompute, SegmentCost};

/// Drops the cells from `profile` that plans of these strategies depend on, and returns their number. The
/// profile is then incomplete: [`crate::profile`] completes it.
///
/// Segments are those of the strategy's tensor degree, sequence parallelism, micro-batch (or the measured
/// ones next to it) and recomputation. Collectives and send/recv are measured together, so all of them are
/// dropped if a strategy uses any; those of a network, where each link was measured separately, stay. Updates
/// and the overhead of a step are measured by every probe.
pub fn forget(profile: &mut Profile, strategies: &[ParallelStrategy]) -> usize {
    let before = cells(profile);
    // Looked up before any cell is dropped.
    let measured: Vec<Vec<u32>> = strategies.iter().map(|strategy| about(profile, strategy)).collect();
    for (strategy, micro_batches) in strategies.iter().zip(measured) {
        profile.segments.retain(|cell| !stands_on(strategy, &micro_batches, cell));
        if strategy.devices() > 1 && profile.network.is_none() {
            profile.collectives.clear();
            profile.exchanges.clear();
            profile.messages.clear();
            profile.fits.clear();
        }
        if strategy.pipeline > 1 {
            profile.pipelining.retain(|cost| cost.schedule != strategy.schedule);
        }
        let communication = &strategy.communication;
        let gradients = communication.reductions().map(|reduction| reduction.codec);
        let used: Vec<_> = gradients.chain([communication.parameters, communication.activations]).collect();
        profile.codecs.retain(|cost| !used.contains(&cost.codec));
    }
    let dropped = before - cells(profile);
    profile.complete &= dropped == 0;
    dropped
}

fn cells(profile: &Profile) -> usize {
    profile.segments.len()
        + profile.collectives.len()
        + profile.messages.len()
        + profile.pipelining.len()
        + profile.codecs.len()
}

fn same_split(strategy: &ParallelStrategy, cell: &SegmentCost) -> bool {
    (cell.tensor, cell.sequence_parallel) == (strategy.tensor, strategy.sequence_parallel)
}

/// The strategy's micro-batch; if it was not measured, the two next to it, between which times are
/// interpolated.
fn about(profile: &Profile, strategy: &ParallelStrategy) -> Vec<u32> {
    let wanted = strategy.micro_batch;
    let measured =
        || profile.segments.iter().filter(|cell| same_split(strategy, cell)).map(|cell| cell.micro_batch);
    if measured().any(|micro_batch| micro_batch == wanted) {
        return vec![wanted];
    }
    let below = measured().filter(|micro_batch| *micro_batch < wanted).max();
    let above = measured().filter(|micro_batch| *micro_batch > wanted).min();
    below.into_iter().chain(above).collect()
}

fn stands_on(strategy: &ParallelStrategy, micro_batches: &[u32], cell: &SegmentCost) -> bool {
    let of_block = in_block(cell.segment);
    // If only some blocks recompute, the others use the cells without recomputation; embedding and head
    // always do.
    let policy = cell.recompute == strategy.recompute || cell.recompute == Recompute::None;
    same_split(strategy, cell) && micro_batches.contains(&cell.micro_batch) && (policy || !of_block)
}
