//! How much of the residual stream a segment keeps.

use autodist_spec::{ParallelStrategy, Pass, Recompute, Segment};

/// Activations of the residual stream, `[sequence, micro-batch, hidden]`, that are live after a segment's pass
/// but were not before it; negative if it frees more. What a segment keeps in addition, inside attention, the
/// MLP or the head, is split over the tensor ranks.
///
/// A forward pass keeps its input, which is the output of the segment before. With sequence parallelism a rank
/// keeps its rows and frees the gathered tensor (Korthikanti et al. 2022, 2205.05198, section 4.2.2).
///
/// A layer without a backward pass keeps nothing: its output replaces its input.
pub fn residual_stream(
    segment: Segment,
    pass: Pass,
    (recompute, has_backward): (Recompute, bool),
    strategy: &ParallelStrategy,
) -> f64 {
    use Segment::{Attention, AttentionNorm, Embedding, FinalNorm, Logits, Loss, Mlp, MlpNorm, Normalizer};
    let (rows, gathered) =
        if strategy.sequence_parallel { (1.0 / f64::from(strategy.tensor), 1.0) } else { (1.0, 0.0) };
    let forgets = recompute == Recompute::Full && pass == Pass::Forward;
    match (segment, pass) {
        (Embedding, Pass::Forward | Pass::Recompute) => 1.0,
        (Embedding, Pass::Backward) => -rows - gathered,
        (AttentionNorm | MlpNorm | FinalNorm, Pass::Forward | Pass::Recompute) => rows,
        // The norm's input, the gradient of the residual and that of its output are replaced by the gradient
        // of its input.
        (AttentionNorm | MlpNorm, Pass::Backward) => -2.0 * rows,
        (FinalNorm, Pass::Backward) => -rows,
        (Attention | Mlp, Pass::Forward) if !has_backward => 1.0 - gathered - 2.0 * rows,
        // The norm's output is freed, and before the block ends its input, too.
        (Attention, Pass::Forward) if forgets => 1.0 - gathered - rows,
        (Mlp, Pass::Forward) if forgets => 1.0 - gathered - 2.0 * rows,
        (Attention, Pass::Forward | Pass::Recompute) | (Mlp, Pass::Forward) => 1.0 - gathered,
        // The block's output is not needed again.
        (Mlp, Pass::Recompute) => -gathered,
        (Attention | Mlp, Pass::Backward) | (Logits, _) => -gathered,
        (Normalizer | Loss, _) => 0.0,
    }
}
