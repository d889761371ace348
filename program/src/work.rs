//! FLOPs of instructions.

use autodist_spec::{ModelSpec, ParallelStrategy, Pass, Recompute, Segment};

/// FLOPs per element of an optimizer update: AdamW's moments, bias correction, square root, decay.
const UPDATE: f64 = 20.0;
/// FLOPs per element of a norm's or an embedding's pass over one activation.
const ELEMENTWISE: f64 = 8.0;
/// Fractions of a block's GEMM FLOPs in the attention and in the MLP segment.
const ATTENTION: f64 = 0.4;

/// FLOPs of one pass of one segment on one rank, if all blocks are alike: the GEMMs by the model's shapes, a backward pass twice its
/// forward pass (Narayanan et al., SC'21, appendix), and a few FLOPs per element elsewhere.
pub fn segment_flops(
    model: &ModelSpec,
    seq_len: usize,
    strategy: &ParallelStrategy,
    segment: Segment,
    pass: Pass,
    recompute: Recompute,
) -> f64 {
    let tokens = u64::from(strategy.micro_batch) * seq_len as u64;
    let tensor = f64::from(strategy.tensor);
    let products = |layer| model.forward_flops(layer, tokens, seq_len as u64).0 / tensor;
    let head = model.chain_len() - 1;
    let rows = tokens as f64 / if strategy.sequence_parallel { tensor } else { 1.0 };
    let elementwise = ELEMENTWISE * rows * f64::from(model.hidden);
    let forward = match segment {
        Segment::Attention => ATTENTION * products(1),
        Segment::Mlp => (1.0 - ATTENTION) * products(1),
        Segment::Logits => products(head),
        Segment::Normalizer | Segment::Loss => ELEMENTWISE * tokens as f64 * f64::from(model.vocab) / tensor,
        Segment::Embedding | Segment::AttentionNorm | Segment::MlpNorm | Segment::FinalNorm => elementwise,
    };
    match pass {
        Pass::Forward | Pass::Recompute => forward,
        // The head's backward is one segment, with twice the work of all its forward segments.
        Pass::Backward if segment == Segment::Loss => 2.0 * products(head) + forward,
        Pass::Backward if segment == Segment::Attention && recompute == Recompute::Selective => 2.3 * forward,
        Pass::Backward => 2.0 * forward,
    }
}

/// FLOPs of an optimizer update of `elements` parameters.
pub fn update_flops(elements: usize) -> f64 {
    UPDATE * elements as f64
}
