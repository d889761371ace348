//! A model as a chain of layers: parameters and FLOPs of each.

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
    /// Every block has a layer of experts in place of its MLP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
}

/// A layer of experts: MLPs of which each token passes through a few, which a router chooses (Shazeer et al.,
/// 1701.06538).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    pub count: u32,
    /// Experts that each token passes through.
    pub active: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Positions {
    /// A learned table of `max_seq_len` rows (GPT-2).
    Learned,
    /// Rotary embedding of queries and keys (Su et al., RoFormer, 2104.09864).
    Rotary { theta: f64 },
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
    /// Embedding, blocks, head.
    pub fn chain(&self) -> Vec<LayerKind> {
        let mut chain = vec![LayerKind::Embedding];
        chain.extend(std::iter::repeat_n(LayerKind::Block, self.layers as usize));
        chain.push(LayerKind::Head);
        chain
    }

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

    fn query_width(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.head_dim)
    }

    /// Experts that each token passes through; 1 for the MLP of a dense model.
    fn active(&self) -> f64 {
        self.experts.map_or(1.0, |experts| f64::from(experts.active))
    }

    fn kv_width(&self) -> u64 {
        u64::from(self.kv_heads) * u64::from(self.head_dim)
    }

    /// Parameters of a layer in the order of its flat buffer: first those that tensor parallelism shards,
    /// then the replicated ones, so that each group is one slice. With tied embeddings the table belongs to
    /// the embedding and the head lists only its norm.
    pub fn parameters(&self, kind: LayerKind) -> Vec<Parameter> {
        use Init::*;
        use TensorSplit::*;
        let hidden = u64::from(self.hidden);
        let (query, kv, ffn, vocab) =
            (self.query_width(), self.kv_width(), u64::from(self.ffn), u64::from(self.vocab));
        let routed = false;
        let matrix =
            |name, rows, columns, split, init| Parameter { name, rows, columns, split, routed, init };
        let vector = |name, rows, split, init| Parameter { name, rows, columns: 1, split, routed, init };
        let mut list = Vec::new();
        match kind {
            LayerKind::Embedding => {
                list.push(matrix("embedding.weight", vocab, hidden, Rows, Normal));
                if self.positions == Positions::Learned {
                    list.push(matrix(
                        "position.weight",
                        u64::from(self.max_seq_len),
                        hidden,
                        Replicated,
                        Normal,
                    ));
                }
            }
            LayerKind::Block => {
                list.push(matrix("attention.query.weight", query, hidden, Rows, Normal));
                list.push(matrix("attention.key.weight", kv, hidden, Rows, Normal));
                list.push(matrix("attention.value.weight", kv, hidden, Rows, Normal));
                if self.bias {
                    list.push(vector("attention.query.bias", query, Rows, Zeros));
                    list.push(vector("attention.key.bias", kv, Rows, Zeros));
                    list.push(vector("attention.value.bias", kv, Rows, Zeros));
                }
                list.push(matrix("attention.output.weight", hidden, query, Columns, ScaledNormal));
                if let Some(experts) = self.experts {
                    // The experts' matrices below each other.
                    let inner = u64::from(experts.count) * ffn;
                    let expert = |name, split, init| {
                        let (rows, columns) = if split == Rows { (inner, hidden) } else { (hidden, inner) };
                        Parameter { name, rows, columns, split, routed: true, init }
                    };
                    if self.activation == Activation::SwiGlu {
                        list.push(expert("experts.gate.weight", Rows, Normal));
                    }
                    list.push(expert("experts.up.weight", Rows, Normal));
                    list.push(expert("experts.down.weight", Columns, ScaledNormal));
                    list.push(matrix("router.weight", experts.count.into(), hidden, Replicated, Normal));
                    self.norm_parameters(["attention_norm.weight", "attention_norm.bias"], &mut list);
                    self.norm_parameters(["mlp_norm.weight", "mlp_norm.bias"], &mut list);
                    return list;
                }
                if self.activation == Activation::SwiGlu {
                    list.push(matrix("mlp.gate.weight", ffn, hidden, Rows, Normal));
                }
                list.push(matrix("mlp.up.weight", ffn, hidden, Rows, Normal));
                if self.bias {
                    if self.activation == Activation::SwiGlu {
                        list.push(vector("mlp.gate.bias", ffn, Rows, Zeros));
                    }
                    list.push(vector("mlp.up.bias", ffn, Rows, Zeros));
                }
                list.push(matrix("mlp.down.weight", hidden, ffn, Columns, ScaledNormal));
                if self.bias {
                    list.push(vector("attention.output.bias", hidden, Replicated, Zeros));
                    list.push(vector("mlp.down.bias", hidden, Replicated, Zeros));
                }
                self.norm_parameters(["attention_norm.weight", "attention_norm.bias"], &mut list);
                self.norm_parameters(["mlp_norm.weight", "mlp_norm.bias"], &mut list);
            }
            LayerKind::Head => {
                if !self.tied_embeddings {
                    list.push(matrix("output.weight", vocab, hidden, Rows, Normal));
                }
                self.norm_parameters(["final_norm.weight", "final_norm.bias"], &mut list);
            }
        }
        list
    }

    fn norm_parameters(&self, [weight, bias]: [&'static str; 2], list: &mut Vec<Parameter>) {
        let rows = u64::from(self.hidden);
        let (split, routed) = (TensorSplit::Replicated, false);
        let vector = |name, init| Parameter { name, rows, columns: 1, split, routed, init };
        list.push(vector(weight, Init::Ones));
        if self.norm == Norm::LayerNorm {
            list.push(vector(bias, Init::Zeros));
        }
    }

    /// Parameters of one layer.
    pub fn layer_parameters(&self, kind: LayerKind) -> u64 {
        self.parameters(kind).iter().map(Parameter::elements).sum()
    }

    /// All parameters, a tied table counted once.
    pub fn total_parameters(&self) -> u64 {
        // Many layers of many experts exceed any number of parameters.
        self.layer_parameters(LayerKind::Block)
            .saturating_mul(u64::from(self.layers))
            .saturating_add(self.layer_parameters(LayerKind::Embedding))
            .saturating_add(self.layer_parameters(LayerKind::Head))
    }

    /// Forward FLOPs of one layer over `tokens` tokens in sequences of `seq_len`: 2mnk per GEMM of the active
    /// experts, with
    /// attention's GEMMs counted in full (Narayanan et al., SC'21, appendix). The backward pass has twice as
    /// many.
    pub fn forward_flops(&self, kind: LayerKind, tokens: u64, seq_len: u64) -> Flops {
        let hidden = f64::from(self.hidden);
        let tokens = tokens as f64;
        Flops(match kind {
            LayerKind::Embedding => 0.0,
            LayerKind::Block => {
                let mlp_matrices = if self.activation == Activation::SwiGlu { 3.0 } else { 2.0 };
                let query = self.query_width() as f64;
                let projections = hidden * (2.0 * query + 2.0 * self.kv_width() as f64);
                let mlp = mlp_matrices * hidden * f64::from(self.ffn) * self.active();
                2.0 * tokens * (projections + mlp) + 4.0 * tokens * seq_len as f64 * query
            }
            LayerKind::Head => 2.0 * tokens * hidden * f64::from(self.vocab),
        })
    }

    /// Lower bound of the FLOPs of GEMMs in a segment's forward pass, over all tensor-parallel ranks. The
    /// attention core counts by half, because a causal kernel may skip masked blocks.
    pub fn least_forward_flops(&self, segment: Segment, tokens: u64, seq_len: u64) -> Flops {
        let core = 2.0 * tokens as f64 * seq_len as f64 * self.query_width() as f64;
        let block = || self.forward_flops(LayerKind::Block, tokens, seq_len).0;
        let matrices = if self.activation == Activation::SwiGlu { 3.0 } else { 2.0 };
        let mlp =
            2.0 * tokens as f64 * matrices * f64::from(self.hidden) * f64::from(self.ffn) * self.active();
        Flops(match segment {
            Segment::Attention => block() - mlp - core,
            Segment::Mlp => mlp,
            Segment::Logits => self.forward_flops(LayerKind::Head, tokens, seq_len).0,
            _ => 0.0,
        })
    }

    /// FLOPs of a training step without recomputation: three times the forward FLOPs (Narayanan et al.,
    /// SC'21, appendix).
    pub fn step_flops(&self, tokens: u64, seq_len: u64) -> Flops {
        let forward: Flops =
            self.chain().into_iter().map(|kind| self.forward_flops(kind, tokens, seq_len)).sum();
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
            ("layers", self.layers, 10_000),
            ("hidden", self.hidden, 1 << 20),
            ("heads", self.heads, 1 << 16),
            ("kv_heads", self.kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("ffn", self.ffn, 1 << 22),
            ("vocab", self.vocab, 1 << 26),
            ("max_seq_len", self.max_seq_len, 1 << 26),
        ] {
            in_range(field, u64::from(value), 1, high)?;
        }
        if let Some(experts) = self.experts {
            in_range("experts.count", u64::from(experts.count), 2, 1 << 12)?;
            in_range("experts.active", u64::from(experts.active), 1, u64::from(experts.count))?;
            if self.bias {
                return Err(InputError::new("bias", true, "is not supported together with `experts`")
                    .hint("set bias to false, or remove experts"));
            }
        }
        in_range("heads x head_dim", self.query_width(), 1, 1 << 22)?;
        in_range("total number of parameters", self.total_parameters(), 1, 1 << 50)?;
        positive("norm_epsilon", self.norm_epsilon)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(InputError::new(
                "kv_heads",
                self.kv_heads,
                format!("does not divide the {} query heads", self.heads),
            )
            .hint(format!(
                "choose a divisor of {}: every key/value head serves the same number of query heads",
                self.heads
            )));
        }
        if let Positions::Rotary { theta } = self.positions {
            positive("positions.theta", theta)?;
            if !self.head_dim.is_multiple_of(2) {
                return Err(InputError::new(
                    "head_dim",
                    self.head_dim,
                    "must be even with rotary positions, which rotate pairs of elements",
                )
                .hint("choose an even head size, or learned positions"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::parse::Check;

    #[test]
    fn only_active_experts_compute_and_all_are_kept() {
        let sparse = catalog::model("mixtral-8x7b").unwrap();
        let dense = ModelSpec { experts: None, ffn: 2 * sparse.ffn, ..sparse.clone() };
        assert_eq!(sparse.step_flops(1000, 100), dense.step_flops(1000, 100));
        // Eight experts against the two in the dense model, and a router.
        let block = |model: &ModelSpec| model.layer_parameters(LayerKind::Block);
        let matrices = u64::from(3 * sparse.ffn * sparse.hidden);
        assert_eq!(block(&sparse) - block(&dense), 6 * matrices + 8 * u64::from(sparse.hidden));
        let held = |one: Parameter| one.distributed(4).elements();
        let quarter: u64 = sparse.parameters(LayerKind::Block).into_iter().map(held).sum();
        assert_eq!(block(&sparse) - quarter, 6 * matrices);
    }

    #[test]
    fn counts_of_experts_have_limits() {
        let with = |count, active| {
            let experts = Some(Experts { count, active });
            ModelSpec { experts, ..catalog::model("mixtral-8x7b").unwrap() }.check().map_err(|e| e.field)
        };
        assert_eq!(with(8, 2), Ok(()));
        assert_eq!(with(1, 1), Err("experts.count".to_owned()));
        assert_eq!(with(u32::MAX, 2), Err("experts.count".to_owned()));
        assert_eq!(with(8, 9), Err("experts.active".to_owned()));
        let most = Some(Experts { count: 1 << 12, active: 1 });
        let huge = ModelSpec {
            layers: 10_000,
            hidden: 1 << 20,
            ffn: 1 << 22,
            experts: most,
            ..catalog::model("mixtral-8x7b").unwrap()
        };
        assert_eq!(huge.check().unwrap_err().field, "total number of parameters");
    }
}
