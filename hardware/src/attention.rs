//! Time of attention: tiles of queries against the unmasked keys, and a correction.

use crate::gemm::Chip;
use crate::tables::Corrections;

/// Attention of one layer on one device: `[batch, sequence, heads, head_dim]` in bf16 or fp16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    pub batch: u64,
    /// Queries of each sequence.
    pub sequence: u64,
    /// Keys of each sequence: `sequence`, or more if queries are split over context-parallel ranks.
    pub keys: u64,
    pub heads: u64,
    /// Key and value heads; equal to `heads` without grouped-query attention.
    pub kv_heads: u64,
    pub head_dim: u64,
    /// Causal mask: each query attends to the keys up to its own position, the last query to all of them.
    pub causal: bool,
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKernel {
    /// One kernel that never writes the scores to memory (FlashAttention and similar kernels).
    Flash,
    /// Batched GEMMs with a masked softmax between, the scores in memory; the GEMMs include masked positions.
    Unfused,
}

/// Queries of one tile.
const ROWS: f64 = 128.0;

impl Attention {
    /// Unmasked keys of a query, on average.
    pub(crate) fn seen(&self) -> f64 {
        let (sequence, keys) = (self.sequence as f64, self.keys as f64);
        if self.causal { (keys - 0.5 * (sequence - 1.0)).max(0.5 * keys) } else { keys }
    }

    /// FLOPs of the two GEMMs of the forward pass, for unmasked positions.
    pub fn forward_flops(&self) -> f64 {
        4.0 * (self.batch * self.heads * self.sequence * self.head_dim) as f64 * self.seen()
    }

    /// Elements of queries and results, and of keys and values.
    pub(crate) fn elements(&self) -> (f64, f64) {
        let queries = 2 * self.batch * self.sequence * self.heads * self.head_dim;
        (queries as f64, (2 * self.batch * self.keys * self.kv_heads * self.head_dim) as f64)
    }

    /// The coordinates of the correction tables: sequence, batch × heads, batch × key heads.
    pub(crate) fn sizes(&self) -> [f64; 3] {
        [self.sequence, self.batch * self.heads, self.batch * self.kv_heads].map(|size| size as f64)
    }
}

/// Parameters of flash attention that are not in the data sheet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttentionBase {
    /// Seconds per kernel.
    pub launch: f64,
    /// Seconds per tile.
    pub tile: f64,
    /// Fraction of the FLOP/s of one streaming multiprocessor.
    pub rate: f64,
    /// Fraction of the memory bandwidth for queries and results, whose time adds to the arithmetic.
    pub queries: f64,
    /// Fraction of the memory bandwidth for keys and values.
    pub keys: f64,
}

impl AttentionBase {
    /// Seconds of the forward pass. Tiles are spread evenly, but the pass takes at least as long as the tile
    /// with most unmasked keys (combined by a norm of order 4).
    pub fn seconds(&self, chip: &Chip, shape: &Attention) -> f64 {
        let head_dim = shape.head_dim as f64;
        let tile = |keys: f64| 4.0 * ROWS * keys * head_dim / (chip.processor_rate * self.rate) + self.tile;
        let tiles = (shape.batch * shape.heads) as f64 * (shape.sequence as f64 / ROWS).ceil();
        let seen = shape.seen() + if shape.causal { 0.5 * ROWS } else { 0.0 };
        let (spread, longest) = (tiles / chip.processors * tile(seen), tile(shape.keys as f64));
        let (a, b) = (spread * spread, longest * longest);
        let (queries, keys) = shape.elements();
        let bytes = queries / self.queries + keys / self.keys;
        (a * a + b * b).sqrt().sqrt() + chip.operand_bytes * bytes / chip.memory_rate + self.launch
    }
}

/// Flash attention with heads of one size on one device.
#[derive(Debug, Clone)]
pub(crate) struct AttentionModel {
    pub chip: Chip,
    pub base: AttentionBase,
    pub corrections: Corrections,
}

impl AttentionModel {
    /// Never faster than the peak of all streaming multiprocessors.
    pub fn seconds(&self, shape: &Attention) -> f64 {
        let (correction, _) = self.corrections.at(shape.sizes().map(f64::ln));
        let time = self.base.seconds(&self.chip, shape) * correction.exp();
        time.max(shape.forward_flops() / self.chip.peak)
    }
}
