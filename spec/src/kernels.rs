//! The kernels of a segment on one rank: GEMM shapes, FLOPs, elements that are moved and kept.

use crate::block::{BlockSpec, Experts, Latent};
use crate::model::ModelSpec;
use crate::profile::{Pass, Segment};
use crate::strategy::{ParallelStrategy, Recompute};

/// How the ranks of a strategy divide one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shard {
    /// Tokens of a micro-batch on one rank; context parallelism divides them.
    pub tokens: f64,
    pub seq_len: u32,
    pub tensor: u32,
    /// Ranks over which experts are distributed.
    pub expert: u32,
    pub sequence_parallel: bool,
}

impl Shard {
    pub fn of(strategy: &ParallelStrategy, seq_len: u32) -> Self {
        let sequences = f64::from(strategy.micro_batch) / f64::from(strategy.context);
        let ParallelStrategy { tensor, expert, sequence_parallel, .. } = *strategy;
        Self { tokens: sequences * f64::from(seq_len), seq_len, tensor, expert, sequence_parallel }
    }

    /// All of `tokens` tokens on one rank.
    pub fn whole(tokens: u64, seq_len: u64) -> Self {
        let seq_len = u32::try_from(seq_len).unwrap_or(u32::MAX);
        Self { tokens: tokens as f64, seq_len, tensor: 1, expert: 1, sequence_parallel: false }
    }

    /// Part of a size that tensor parallelism divides.
    fn part(&self, size: u64) -> f64 {
        size as f64 / f64::from(self.tensor)
    }

    /// Elements of a token's row of the residual stream, outside the tensor-parallel parts.
    fn row(&self, model: &ModelSpec) -> f64 {
        let hidden = u64::from(model.hidden);
        if self.sequence_parallel { self.part(hidden) } else { hidden as f64 }
    }
}

/// Linear layers of equal shape, side by side: `rows` tokens of width `into` through `[out, into]` weights. No
/// layers if `count` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Linear {
    pub count: f64,
    pub rows: f64,
    pub out: f64,
    pub into: f64,
    /// Whether the weights are those of experts, which expert parallelism distributes.
    pub routed: bool,
}

impl Linear {
    fn new(rows: f64, out: f64, into: f64) -> Self {
        Self { count: 1.0, rows, out, into, routed: false }
    }

    /// Elements of the weights.
    pub fn weights(&self) -> f64 {
        self.count * self.out * self.into
    }

    /// FLOPs of the forward pass: 2mnk.
    pub fn flops(&self) -> f64 {
        2.0 * self.rows * self.weights()
    }
}

/// The core of causal attention, from queries, keys and values to the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionCore {
    /// Queries of all sequences of a micro-batch.
    pub tokens: f64,
    /// Heads on this rank; of keys and values at least one.
    pub heads: f64,
    pub kv_heads: f64,
    /// Width of a head of queries and keys, and of one of values.
    pub head_dim: u32,
    pub value_dim: u32,
    /// Keys of a sequence, and those that a query sees at most.
    pub keys: u32,
    pub span: u32,
}

impl AttentionCore {
    /// FLOPs of the forward pass, masked positions within the span included (Narayanan et al., SC'21,
    /// appendix).
    pub fn flops(&self) -> f64 {
        2.0 * self.tokens * f64::from(self.span) * self.heads * f64::from(self.head_dim + self.value_dim)
    }

    /// Scores of all heads, if they are written to memory.
    pub fn scores(&self) -> f64 {
        self.tokens * self.heads * f64::from(self.keys)
    }

    /// Elements of keys and values of a token.
    pub fn kv_width(&self) -> f64 {
        self.kv_heads * f64::from(self.head_dim + self.value_dim)
    }

    /// Elements of queries, keys, values and the result.
    pub fn operands(&self) -> f64 {
        let widths = f64::from(self.head_dim + self.value_dim);
        self.tokens * (self.heads + self.kv_heads) * widths
    }
}

/// Most linear layers of a segment.
const MOST_LINEAR: usize = 5;

/// What a segment runs for one micro-batch on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Kernels {
    pub linear: [Linear; MOST_LINEAR],
    pub core: Option<AttentionCore>,
    /// Elements that elementwise kernels read and write in the forward and in the backward pass, which reads
    /// inputs and gradients again and reduces gradients of biases.
    pub forward_elements: f64,
    pub backward_elements: f64,
    /// Elements that are kept for the backward pass beside the residual stream and the scores of attention.
    pub kept: f64,
}

/// FLOPs for each element that an elementwise kernel reads or writes.
const ELEMENTWISE: f64 = 4.0;

impl Kernels {
    /// FLOPs of the GEMMs of the forward pass, attention in full.
    pub fn gemm_flops(&self) -> f64 {
        let linear: f64 = self.linear.iter().map(Linear::flops).sum();
        linear + self.core.map_or(0.0, |core| core.flops())
    }

    /// Lower bound of these FLOPs: a causal kernel may skip masked blocks, half of the attention core.
    pub fn least_flops(&self) -> f64 {
        self.gemm_flops() - 0.5 * self.core.map_or(0.0, |core| core.flops())
    }

    /// FLOPs of a pass: a backward pass has two GEMMs for each of the forward pass (Narayanan et al., SC'21,
    /// appendix), and with selective recomputation the attention core again.
    pub fn flops(&self, pass: Pass, recompute: Recompute) -> f64 {
        let forward = self.gemm_flops();
        match pass {
            Pass::Forward | Pass::Recompute => forward + ELEMENTWISE * self.forward_elements,
            Pass::Backward => {
                let selective = recompute == Recompute::Selective;
                let again = self.core.filter(|_| selective).map_or(0.0, |core| core.flops());
                2.0 * forward + again + ELEMENTWISE * self.backward_elements
            }
        }
    }

    /// Elements of the weights of all linear layers.
    pub fn weights(&self) -> f64 {
        self.linear.iter().map(Linear::weights).sum()
    }

    /// Elements of the weights of experts.
    pub fn routed_weights(&self) -> f64 {
        self.linear.iter().filter(|layer| layer.routed).map(Linear::weights).sum()
    }
}

impl ModelSpec {
    /// FLOPs of one pass of a segment on one rank, of blocks like `block`.
    pub fn segment_flops(
        &self,
        block: &BlockSpec,
        segment: Segment,
        (pass, recompute): (Pass, Recompute),
        shard: &Shard,
    ) -> f64 {
        let of = |segment| self.kernels(block, segment, shard).flops(pass, recompute);
        // The backward pass of the whole head is one segment.
        let logits =
            if segment == Segment::Loss && pass == Pass::Backward { of(Segment::Logits) } else { 0.0 };
        of(segment) + logits
    }

    /// The kernels of a segment, of blocks like `block`.
    pub fn kernels(&self, block: &BlockSpec, segment: Segment, shard: &Shard) -> Kernels {
        let tokens = shard.tokens;
        let rows = tokens * shard.row(self);
        let vocab = tokens * shard.part(self.vocab.into());
        match segment {
            Segment::Attention => block.attention(self, shard),
            Segment::Mlp => block.mlp(self, shard),
            // Input and output; in the backward pass two gradients more, and those of the weights.
            Segment::AttentionNorm | Segment::MlpNorm | Segment::FinalNorm => {
                Kernels { forward_elements: 2.0 * rows, backward_elements: 5.0 * rows, ..Kernels::default() }
            }
            Segment::Embedding => {
                Kernels { forward_elements: 2.0 * rows, backward_elements: 4.0 * rows, ..Kernels::default() }
            }
            Segment::Logits => {
                let mut linear = [Linear::default(); MOST_LINEAR];
                linear[0] = Linear::new(tokens, shard.part(self.vocab.into()), self.hidden.into());
                Kernels { linear, kept: vocab, ..Kernels::default() }
            }
            Segment::Normalizer | Segment::Loss => Kernels {
                forward_elements: 2.0 * vocab,
                backward_elements: 2.0 * vocab,
                ..Kernels::default()
            },
        }
    }
}

impl BlockSpec {
    /// Attention between its norm and the residual stream.
    fn attention(&self, model: &ModelSpec, shard: &Shard) -> Kernels {
        let (tokens, hidden) = (shard.tokens, f64::from(model.hidden));
        let widths = u64::from(self.head_dim + self.value_dim());
        // A rank has at least one head of keys and values.
        let kv_heads = shard.part(self.kv_heads.max(shard.tensor).into());
        let core = AttentionCore {
            tokens,
            heads: shard.part(self.heads.into()),
            kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim(),
            keys: shard.seq_len,
            span: self.span(shard.seq_len.into()) as u32,
        };
        let (query, kv) = (shard.part(self.query_width()), kv_heads * widths as f64);
        let mut linear = [Linear::default(); MOST_LINEAR];
        match self.latent {
            None => linear[0] = Linear::new(tokens, query + kv, hidden),
            Some(Latent { query_rank, kv_rank, rope_dim, .. }) => {
                // The rotary part of the keys is not expanded.
                let expanded = kv - kv_heads * f64::from(rope_dim);
                linear[0] = Linear::new(tokens, self.latent_width(), hidden);
                linear[1] = Linear::new(tokens, query, query_rank.map_or(hidden, f64::from));
                linear[2] = Linear::new(tokens, expanded, kv_rank.into());
            }
        }
        linear[3] = Linear::new(tokens, hidden, shard.part(self.value_width()));
        // A residual with dropout, and half of what is before and after the core.
        let rows = tokens * shard.row(model);
        Kernels {
            linear,
            core: Some(core),
            forward_elements: 3.5 * rows,
            backward_elements: 3.0 * rows,
            kept: core.operands() + tokens * self.latent_width(),
        }
    }

    /// The MLP or the experts, between their norm and the residual stream.
    fn mlp(&self, model: &ModelSpec, shard: &Shard) -> Kernels {
        let (tokens, hidden) = (shard.tokens, f64::from(model.hidden));
        let matrices = f64::from(model.activation.matrices());
        // The gate and the up projection are one GEMM.
        let gates = matrices - 1.0;
        let ffn = shard.part(self.ffn.into());
        let mut linear = [Linear::default(); MOST_LINEAR];
        let mut dispatched = 0.0;
        match self.experts {
            None => {
                linear[0] = Linear::new(tokens, gates * ffn, hidden);
                linear[1] = Linear::new(tokens, hidden, ffn);
            }
            Some(Experts { count, active, shared_ffn }) => {
                // Balanced: every local expert has its share of the tokens of all ranks of its
                // expert-parallel group.
                let held = f64::from(count / shard.expert);
                let rows = tokens * f64::from(active) / held;
                let expert = |out, into| Linear { count: held, rows, out, into, routed: true };
                linear[0] = Linear::new(tokens, count.into(), hidden);
                linear[1] = expert(gates * ffn, hidden);
                linear[2] = expert(hidden, ffn);
                if shared_ffn > 0 {
                    let shared = shard.part(shared_ffn.into());
                    linear[3] = Linear::new(tokens, gates * shared, hidden);
                    linear[4] = Linear::new(tokens, hidden, shared);
                }
                // Copies of a token on the way to its experts and back.
                dispatched = 2.0 * f64::from(active) * hidden;
            }
        }
        let inner = self.inner_width() / f64::from(shard.tensor);
        let row = shard.row(model);
        Kernels {
            linear,
            core: None,
            forward_elements: tokens * (3.5 * row + (1.0 + gates) * inner + 2.0 * dispatched),
            backward_elements: tokens * (3.0 * row + (1.0 + 2.0 * gates) * inner + 2.0 * dispatched),
            kept: tokens * (matrices * inner + dispatched),
        }
    }

    /// Inner elements of the MLP for one token, over its active experts and the shared ones.
    pub fn inner_width(&self) -> f64 {
        let Experts { active, shared_ffn, .. } =
            self.experts.unwrap_or(Experts { count: 1, active: 1, shared_ffn: 0 });
        f64::from(self.ffn) * f64::from(active) + f64::from(shared_ffn)
    }

    /// Elements per token of the low-rank projections of queries, keys and values, which every tensor-parallel
    /// rank has.
    pub fn latent_width(&self) -> f64 {
        self.latent.map_or(0.0, |Latent { query_rank, kv_rank, rope_dim, .. }| {
            f64::from(query_rank.unwrap_or(0)) + f64::from(kv_rank) + f64::from(rope_dim)
        })
    }
}
