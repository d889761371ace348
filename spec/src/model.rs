//! A model as a chain of layers: parameters and FLOPs of each.

use crate::block::{Addition, BlockRun, BlockSpec, Experts, Latent};
use crate::kernels::Shard;
use crate::profile::Segment;
use crate::units::Flops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A decoder-only transformer. It contains only shapes, and neither devices nor sharding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    pub name: String,
    /// Number of transformer blocks.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; equal to `heads` without grouped-query attention.
    pub kv_heads: u32,
    /// Width of one head; usually `hidden / heads`.
    pub head_dim: u32,
    /// Width of the MLP's inner layer, or of that of one expert.
    pub ffn: u32,
    pub vocab: u32,
    /// Longest sequence; the size of the table when positions are learned.
    pub max_seq_len: u32,
    pub positions: Positions,
    pub norm: Norm,
    pub norm_epsilon: f64,
    pub activation: Activation,
    /// Whether linear layers carry a bias.
    pub bias: bool,
    /// Whether the output projection is the token embedding's transpose.
    pub tied_embeddings: bool,
    /// Tokens that a query attends to, itself and those before it; all before it if absent (sliding-window
    /// attention; Beltagy et al., 2004.05150).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Low-rank projections of queries, keys and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<Latent>,
    /// Every block has a layer of experts in place of its MLP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Blocks that differ, in order, each with the fields in which it differs from those above. The list is
    /// repeated until there are `layers` blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<BlockRun>,
    /// Small parts that every block has in addition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additions: Vec<Addition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Positions {
    /// A learned table of `max_seq_len` rows (GPT-2).
    Learned,
    /// Rotary embedding of queries and keys (Su et al., RoFormer, 2104.09864).
    Rotary { theta: f64 },
    /// Scores of attention that fall with the distance (ALiBi; Press et al., 2108.12409).
    Alibi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    LayerNorm,
    RmsNorm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Two matrices with GELU (tanh form, as in GPT-2) between them.
    Gelu,
    /// Three matrices: down(silu(gate) * up).
    SwiGlu,
}

/// A layer of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    Embedding,
    Block,
    /// Final norm, output projection and cross-entropy.
    Head,
}

/// How tensor parallelism shards a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TensorSplit {
    /// Output features (rows) are sharded: a column-parallel linear layer, or a vocabulary-parallel table.
    Rows,
    /// Input features (columns) are sharded: a row-parallel linear layer.
    Columns,
    /// Every tensor-parallel rank holds all of it.
    Replicated,
}

/// A parameter tensor, row-major `[rows, columns]` (`[out_features, in_features]`; vectors have one column).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub rows: u64,
    pub columns: u64,
    pub split: TensorSplit,
    /// Whether it belongs to the experts, over which expert parallelism distributes it.
    pub routed: bool,
    /// Weight decay and scaled initialisation apply to matrices only.
    pub init: Init,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal, standard deviation 0.02 (GPT-2).
    Normal,
    /// Normal, 0.02 / sqrt(2 * layers): projections onto the residual stream (GPT-2).
    ScaledNormal,
    Zeros,
    Ones,
}

/// Rows `[start, end)` that part `index` of `parts` holds: the first parts are the larger ones.
pub fn share(total: u64, index: u64, parts: u64) -> std::ops::Range<u64> {
    let small = total / parts;
    let larger = total % parts;
    let start = index * small + index.min(larger);
    start..start + small + u64::from(index < larger)
}

impl Parameter {
    pub(crate) fn matrix(
        name: &'static str,
        rows: u64,
        columns: u64,
        split: TensorSplit,
        init: Init,
    ) -> Self {
        Self { name, rows, columns, split, routed: false, init }
    }

    pub(crate) fn vector(name: &'static str, rows: u64, split: TensorSplit, init: Init) -> Self {
        Self::matrix(name, rows, 1, split, init)
    }

    pub fn elements(&self) -> u64 {
        self.rows * self.columns
    }

    /// The part of each rank that experts are distributed over.
    #[must_use]
    pub fn distributed(mut self, ranks: u32) -> Self {
        if self.routed {
            let size = if self.split == TensorSplit::Rows { &mut self.rows } else { &mut self.columns };
            *size /= u64::from(ranks.max(1));
        }
        self
    }

    /// `[rows, columns]` that tensor-parallel rank `rank` of `degree` holds.
    pub fn local_shape(&self, rank: u32, degree: u32) -> (u64, u64) {
        let part = |total| {
            let range = share(total, u64::from(rank), u64::from(degree));
            range.end - range.start
        };
        match self.split {
            TensorSplit::Rows => (part(self.rows), self.columns),
            TensorSplit::Columns => (self.rows, part(self.columns)),
            TensorSplit::Replicated => (self.rows, self.columns),
        }
    }

    pub fn local_elements(&self, rank: u32, degree: u32) -> u64 {
        let (rows, columns) = self.local_shape(rank, degree);
        rows * columns
    }
}

impl ModelSpec {
    /// Number of layers in the chain: blocks, embedding and head.
    pub fn chain_len(&self) -> usize {
        self.layers as usize + 2
    }

    pub fn kind(&self, layer: usize) -> LayerKind {
        match layer {
            0 => LayerKind::Embedding,
            l if l == self.chain_len() - 1 => LayerKind::Head,
            _ => LayerKind::Block,
        }
    }

    /// A block without a run of its own.
    fn usual_block(&self) -> BlockSpec {
        BlockSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: self.window,
            latent: self.latent,
            ffn: self.ffn,
            experts: self.experts,
        }
    }

    /// The block at this place of the chain; the first one for the embedding and the head.
    pub fn block(&self, layer: usize) -> BlockSpec {
        let index = layer.checked_sub(1).filter(|index| *index < self.layers as usize).unwrap_or(0);
        let usual = self.usual_block();
        BlockRun::at(&self.blocks, index).map_or(usual, |run| run.of(usual))
    }

    /// The shapes of blocks: one for each run, equal ones included.
    pub fn block_kinds(&self) -> impl Iterator<Item = BlockSpec> {
        let usual = self.usual_block();
        let alike = self.blocks.is_empty().then_some(usual);
        alike.into_iter().chain(self.blocks.iter().map(move |run| run.of(usual)))
    }

    /// Whether all blocks have the shape of the model's own fields.
    pub fn is_uniform(&self) -> bool {
        let usual = self.usual_block();
        self.block_kinds().all(|block| block == usual)
    }

    /// Whether any block has experts.
    pub fn has_experts(&self) -> bool {
        self.block_kinds().any(|block| block.experts.is_some())
    }

    /// Whether any block does not attend to the whole of a sequence of `seq_len` tokens.
    pub fn attends_within_window(&self, seq_len: u32) -> bool {
        self.block_kinds().any(|block| block.window.is_some_and(|window| window < seq_len))
    }

    /// By layer of the chain: the first layer that is like it.
    pub fn alike(&self) -> Vec<usize> {
        let mut kinds: Vec<(BlockSpec, usize)> = Vec::new();
        let first = |layer| {
            if self.kind(layer) != LayerKind::Block {
                return layer;
            }
            let block = self.block(layer);
            if let Some((_, first)) = kinds.iter().find(|(known, _)| *known == block) {
                return *first;
            }
            kinds.push((block, layer));
            layer
        };
        (0..self.chain_len()).map(first).collect()
    }

    /// The different blocks: the first layer of each, and the number of blocks that are like it.
    pub fn distinct_blocks(&self) -> Vec<(usize, usize)> {
        let alike = self.alike();
        let first = |layer: &usize| alike[*layer] == *layer && self.kind(*layer) == LayerKind::Block;
        let count = |layer: usize| (layer, alike.iter().filter(|first| **first == layer).count());
        (0..alike.len()).filter(first).map(count).collect()
    }

    /// The same model with these blocks, in the shortest form.
    #[must_use]
    pub fn with_blocks(mut self, blocks: &[BlockSpec]) -> Self {
        self.layers = blocks.len() as u32;
        let Some(first) = blocks.first() else { return self };
        let alike = |same: &dyn Fn(&BlockSpec) -> bool| blocks.iter().all(same);
        let dense = blocks.iter().find(|block| block.experts.is_none()).unwrap_or(first);
        let usual = BlockSpec {
            ffn: dense.ffn,
            // A run cannot remove these.
            window: first.window.filter(|_| alike(&|one| one.window == first.window)),
            experts: first.experts.filter(|_| alike(&|one| one.experts == first.experts)),
            ..*first
        };
        BlockSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: self.window,
            latent: self.latent,
            ffn: self.ffn,
            experts: self.experts,
        } = usual;
        self.blocks = BlockRun::list(blocks, &usual);
        self
    }

    /// A model in the style of GPT-2 (Radford et al. 2019), with a tied table and an MLP of four times the width.
    pub fn gpt(layers: u32, hidden: u32, heads: u32, vocab: u32, max_seq_len: u32) -> Self {
        Self {
            name: String::new(),
            layers,
            hidden,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads.max(1),
            window: None,
            latent: None,
            ffn: hidden.saturating_mul(4),
            vocab,
            max_seq_len,
            positions: Positions::Learned,
            norm: Norm::LayerNorm,
            norm_epsilon: 1e-5,
            activation: Activation::Gelu,
            bias: true,
            tied_embeddings: true,
            experts: None,
            blocks: Vec::new(),
            additions: Vec::new(),
        }
    }

    /// Parameters of a layer in the order of its flat buffer: first those that tensor parallelism shards,
    /// then the replicated ones, so that each group is one slice. With tied embeddings the table belongs to
    /// the embedding and the head lists only its norm.
    pub fn parameters(&self, layer: usize) -> Vec<Parameter> {
        use Init::Normal;
        let (hidden, vocab) = (u64::from(self.hidden), u64::from(self.vocab));
        let table = |name| Parameter::matrix(name, vocab, hidden, TensorSplit::Rows, Normal);
        let mut list = Vec::new();
        match self.kind(layer) {
            LayerKind::Embedding => {
                list.push(table("embedding.weight"));
                if self.positions == Positions::Learned {
                    let rows = u64::from(self.max_seq_len);
                    let split = TensorSplit::Replicated;
                    list.push(Parameter::matrix("position.weight", rows, hidden, split, Normal));
                }
                if self.additions.contains(&Addition::EmbeddingNorm) {
                    self.norm_parameters(["embedding_norm.weight", "embedding_norm.bias"], &mut list);
                }
            }
            LayerKind::Block => return self.block(layer).parameters(self),
            LayerKind::Head => {
                if !self.tied_embeddings {
                    list.push(table("output.weight"));
                }
                if self.additions.contains(&Addition::HeadBias) {
                    list.push(Parameter::vector("output.bias", vocab, TensorSplit::Rows, Init::Zeros));
                }
                self.norm_parameters(["final_norm.weight", "final_norm.bias"], &mut list);
            }
        }
        list
    }

    pub(crate) fn norm_parameters(&self, [weight, bias]: [&'static str; 2], list: &mut Vec<Parameter>) {
        let rows = u64::from(self.hidden);
        if self.additions.contains(&Addition::NormWithoutParameters) {
            return;
        }
        list.push(Parameter::vector(weight, rows, TensorSplit::Replicated, Init::Ones));
        if self.norm == Norm::LayerNorm && !self.additions.contains(&Addition::NormWithoutBias) {
            list.push(Parameter::vector(bias, rows, TensorSplit::Replicated, Init::Zeros));
        }
    }

    /// Parameters of one layer.
    pub fn layer_parameters(&self, layer: usize) -> u64 {
        self.parameters(layer).iter().map(Parameter::elements).fold(0, u64::saturating_add)
    }

    /// All parameters, a tied table counted once.
    pub fn total_parameters(&self) -> u64 {
        // Many layers of many experts exceed any number of parameters.
        let ends = [(0, 1), (self.chain_len() - 1, 1)];
        let all = self.distinct_blocks().into_iter().chain(ends);
        let of = |(layer, count)| self.layer_parameters(layer).saturating_mul(count as u64);
        all.map(of).fold(0, u64::saturating_add)
    }

    /// Forward FLOPs of the GEMMs of one layer over `tokens` tokens in sequences of `seq_len`, attention's in
    /// full (Narayanan et al., SC'21, appendix). The backward pass has twice as many.
    pub fn forward_flops(&self, layer: usize, tokens: u64, seq_len: u64) -> Flops {
        let segments: &[Segment] = match self.kind(layer) {
            LayerKind::Embedding => &[],
            LayerKind::Block => &[Segment::Attention, Segment::Mlp],
            LayerKind::Head => &[Segment::Logits],
        };
        let (block, whole) = (self.block(layer), Shard::whole(tokens, seq_len));
        segments.iter().map(|segment| Flops(self.kernels(&block, *segment, &whole).gemm_flops())).sum()
    }

    /// FLOPs of a training step without recomputation: three times the forward FLOPs (Narayanan et al.,
    /// SC'21, appendix).
    pub fn step_flops(&self, tokens: u64, seq_len: u64) -> Flops {
        let forward: Flops =
            (0..self.chain_len()).map(|layer| self.forward_flops(layer, tokens, seq_len)).sum();
        forward * 3.0
    }
}

impl crate::parse::Check for ModelSpec {
    const WHAT: &'static str = "model";

    fn versioned() -> bool {
        false
    }

    fn check(&self) -> Result<(), crate::error::InputError> {
        use crate::error::{InputError, in_range, positive};
        for (field, value, high) in [
            ("layers", self.layers, MOST_BLOCKS),
            ("hidden", self.hidden, 1 << 20),
            ("vocab", self.vocab, 1 << 26),
            ("max_seq_len", self.max_seq_len, 1 << 26),
        ] {
            in_range(field, u64::from(value), 1, high)?;
        }
        let usual = self.usual_block();
        usual.check(self)?;
        BlockRun::check(&self.blocks, self.layers)?;
        for (index, run) in self.blocks.iter().enumerate() {
            run.of(usual).check(self).map_err(|error| error.under(&format!("blocks[{index}]")))?;
        }
        if !self.blocks.is_empty() && self.block_kinds().all(|block| block == self.block(1)) {
            return Err(InputError::new("blocks", "", "describes blocks that are all alike")
                .hint("set these fields of the model itself, and remove `blocks`"));
        }
        for (index, addition) in self.additions.iter().enumerate() {
            let refuse = |problem: &str, hint: &str| {
                Err(InputError::new(format!("additions[{index}]"), addition.name(), problem).hint(hint))
            };
            if self.additions[..index].contains(addition) {
                return refuse("is listed twice", "list each addition once");
            }
            if self.bias && matches!(addition, Addition::QkvBias | Addition::OutputBias | Addition::MlpBias) {
                let problem = "is already a part of a model with `bias`";
                return refuse(problem, "remove it, or set bias to false");
            }
            let of_experts = matches!(addition, Addition::ExpertBias | Addition::SharedGate);
            if of_experts && !self.has_experts() {
                return refuse("is a part of experts, which the model does not have", "remove it");
            }
        }
        in_range("total number of parameters", self.total_parameters(), 1, 1 << 50)?;
        positive("norm_epsilon", self.norm_epsilon)?;
        if let Positions::Rotary { theta } = self.positions {
            positive("positions.theta", theta)?;
        }
        Ok(())
    }
}

/// Most blocks of a model.
pub(crate) const MOST_BLOCKS: u64 = 10_000;
