//! Local sizes, and the layout of parameters.

use super::{AttentionLayer, Embedding, LmHead, Mlp, NormLayer};
use autodist_spec::model::{LayerKind, ModelSpec, Parameter};
use std::ops::Range;

/// Which part of each layer a rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorShard {
    pub rank: u32,
    pub degree: u32,
    /// Whether norms and residual stream are sharded by rows (sequence parallelism).
    pub sequence_parallel: bool,
}

impl TensorShard {
    pub const WHOLE: TensorShard = TensorShard { rank: 0, degree: 1, sequence_parallel: false };
}

/// One rank's shard of a model's layers, for micro-batches of one shape.
///
/// Heads, key/value heads, the MLP's width and, with a sharded sequence, its length must be divisible by the
/// degree; the vocabulary need not be.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerShape {
    pub hidden: usize,
    /// Rows of a full activation: sequence length × micro-batch.
    pub tokens: usize,
    /// The rows of the residual stream that this rank holds.
    pub rows: Range<usize>,
    pub shard: TensorShard,
    pub embedding: Embedding,
    pub attention_norm: NormLayer,
    pub attention: AttentionLayer,
    pub mlp_norm: NormLayer,
    pub mlp: Mlp,
    pub final_norm: NormLayer,
    pub head: LmHead,
    layouts: [ParameterLayout; 3],
}

impl LayerShape {
    pub fn new(model: &ModelSpec, micro_batch: usize, seq_len: usize, shard: TensorShard) -> Self {
        // All blocks are alike.
        let layouts =
            [0, 1, model.chain_len() - 1].map(|layer| ParameterLayout::new(&model.parameters(layer), shard));
        let [embedding, block, head] = &layouts;
        let sizes = Sizes::new(model, micro_batch, seq_len, shard);
        Self {
            hidden: sizes.hidden,
            tokens: sizes.tokens,
            rows: sizes.rows.clone(),
            shard,
            embedding: Embedding::new(model, &sizes, embedding),
            attention_norm: NormLayer::new(model, &sizes, block.offset("attention_norm.weight")),
            attention: AttentionLayer::new(model, &sizes, block),
            mlp_norm: NormLayer::new(model, &sizes, block.offset("mlp_norm.weight")),
            mlp: Mlp::new(model, &sizes, block),
            final_norm: NormLayer::new(model, &sizes, head.offset("final_norm.weight")),
            head: LmHead::new(model, &sizes, head),
            layouts,
        }
    }

    pub fn layout(&self, kind: LayerKind) -> &ParameterLayout {
        match kind {
            LayerKind::Embedding => &self.layouts[0],
            LayerKind::Block => &self.layouts[1],
            LayerKind::Head => &self.layouts[2],
        }
    }
}

/// Common arguments of the segments' constructors.
pub(super) struct Sizes {
    pub hidden: usize,
    pub micro_batch: usize,
    pub seq_len: usize,
    pub tokens: usize,
    /// Rows of the residual stream that this rank holds.
    pub rows: Range<usize>,
    /// Rows in which this rank's partial sums include residual, biases and positions.
    pub contributed_rows: Range<usize>,
    pub shard: TensorShard,
}

impl Sizes {
    fn new(model: &ModelSpec, micro_batch: usize, seq_len: usize, shard: TensorShard) -> Self {
        let tokens = seq_len * micro_batch;
        let (rank, degree) = (shard.rank as usize, shard.degree as usize);
        let rows = if shard.sequence_parallel {
            seq_len * rank / degree * micro_batch..seq_len * (rank + 1) / degree * micro_batch
        } else {
            0..tokens
        };
        let contributed_rows = if shard.sequence_parallel || rank == 0 { rows.clone() } else { 0..0 };
        let hidden = model.hidden as usize;
        Self { hidden, micro_batch, seq_len, tokens, rows, contributed_rows, shard }
    }

    /// This rank's part of a size that is divisible by the degree.
    pub fn part(&self, total: u32) -> usize {
        (total / self.shard.degree) as usize
    }
}

/// The offsets of parameters in a layer's flat region.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterLayout {
    entries: Vec<LayoutEntry>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LayoutEntry {
    /// The whole parameter.
    pub parameter: Parameter,
    /// The range of this rank's part.
    pub range: Range<usize>,
}

impl ParameterLayout {
    fn new(parameters: &[Parameter], shard: TensorShard) -> Self {
        let mut end = 0;
        let entry = |parameter: &Parameter| {
            let start = end;
            end += parameter.local_elements(shard.rank, shard.degree) as usize;
            LayoutEntry { parameter: parameter.clone(), range: start..end }
        };
        Self { entries: parameters.iter().map(entry).collect() }
    }

    pub fn len(&self) -> usize {
        self.entries.last().map_or(0, |entry| entry.range.end)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn entries(&self) -> &[LayoutEntry] {
        &self.entries
    }

    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        self.entries.iter().find(|entry| entry.parameter.name == name).map(|entry| entry.range.clone())
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.range(name).map(|range| range.start)
    }

    /// The offset of a parameter that every model has.
    pub(super) fn offset(&self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|| panic!("`ModelSpec::parameters` lists no `{name}`"))
    }
}
