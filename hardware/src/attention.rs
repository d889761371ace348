/// Attention of one layer on one device: `[batch, sequence, heads, head_dim]` in bf16 or fp16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    pub batch: u64,
    /// Queries of each sequence.
    pub sequence: u64,
    /// Keys of each sequence: `sequence`, or more where queries are split over context-parallel ranks.
    pub keys: u64,
    pub heads: u64,
    /// Heads of keys and values; `heads` without grouped queries.
    pub kv_heads: u64,
    pub head_dim: u64,
    pub causal: bool,
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKernel {
    /// One kernel that never writes the scores (FlashAttention and its kin).
    Flash,
    /// Batched products with masked softmax between, the scores in memory.
    Unfused,
}
