//! A transformer block: attention, and an MLP or experts.

mod parameters;
mod run;

pub use run::BlockRun;

use crate::error::{InputError, in_range};
use crate::model::{Activation, ModelSpec, Positions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The shape of one block of a [`ModelSpec`], which has the residual stream, the norms and the activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockSpec {
    pub heads: u32,
    pub kv_heads: u32,
    /// Width of a head of queries and keys.
    pub head_dim: u32,
    pub window: Option<u32>,
    pub latent: Option<Latent>,
    /// Width of the MLP's inner layer, or of that of one expert.
    pub ffn: u32,
    pub experts: Option<Experts>,
}

/// A layer of experts: MLPs of which each token passes through a few, which a router chooses (Shazeer et al.,
/// 1701.06538).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    pub count: u32,
    /// Experts that each token passes through.
    pub active: u32,
    /// Width of the inner layer of shared experts, through which every token passes, all of them together (Dai
    /// et al., 2401.06066).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared_ffn: u32,
}

/// Multi-head latent attention: queries, keys and values are expanded from low-rank projections of the residual
/// stream (DeepSeek-V2, 2405.04434, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Rank of the queries; without one, they are projected directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_rank: Option<u32>,
    /// Rank of keys and values.
    pub kv_rank: u32,
    /// The part of `head_dim` that has rotary positions; all heads share that of the keys.
    pub rope_dim: u32,
    /// Width of a head of values.
    pub value_dim: u32,
}

/// A small part of a block. Its parameters count; its arithmetic, on vectors, has no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Addition {
    /// Biases of the projections of queries, keys and values (Qwen2).
    QkvBias,
    /// Bias of the projection of attention's result (gpt-oss).
    OutputBias,
    /// A norm of each head of queries and keys (Qwen3, Gemma 3).
    HeadNorm,
    /// A norm of all queries of a token, and one of all its keys (OLMoE).
    QueryKeyNorm,
    /// A learned logit of each head in the softmax of attention (gpt-oss).
    AttentionSink,
    /// A norm after attention and one after the MLP, besides those before them (Gemma 2).
    PostNorm,
    /// Biases of the router and of the experts (gpt-oss).
    ExpertBias,
    /// A gate of the shared experts (Qwen2-MoE).
    SharedGate,
    /// GELU in place of SiLU in the gate of a SwiGLU (Gemma).
    GeluGate,
    /// Biases of the MLP in a model whose other linear layers have none (GPT-J).
    MlpBias,
    /// A bias of the output projection (Phi-2).
    HeadBias,
    /// Attention and the MLP side by side, both with the same input (GPT-NeoX); priced as one after the other.
    ParallelMlp,
    /// One norm for both, where they are side by side (Falcon, Phi-2, Cohere).
    SharedNorm,
    /// The norms of a block after attention and after the MLP, and not before them (OLMo 2).
    NormAfter,
    /// Layer norms without biases (Cohere, MPT).
    NormWithoutBias,
    /// Layer norms without parameters (OLMo).
    NormWithoutParameters,
    /// A norm of the embedding (BLOOM).
    EmbeddingNorm,
    /// Another function than GELU's tanh form between the matrices of an MLP, or than SiLU in its gate (OPT,
    /// Nemotron, GPT-NeoX).
    OtherActivation,
    /// Values that are multiplied by constants or cut off (Granite, Cohere).
    ScaledValues,
    /// Rotary positions of a part of each head, or in some blocks only (GPT-NeoX, GLM-4, SmolLM3).
    PartialRotary,
    /// Modules behind the last block that predict further tokens (DeepSeek-V3). The model is counted and priced
    /// without them.
    MultiTokenPrediction,
    /// Rotary positions whose angles are scaled for longer sequences, in any way (Llama 3.1, DeepSeek-V3, gpt-oss).
    ScaledPositions,
}

impl Addition {
    pub fn name(self) -> &'static str {
        match self {
            Self::QkvBias => "qkv_bias",
            Self::OutputBias => "output_bias",
            Self::HeadNorm => "head_norm",
            Self::QueryKeyNorm => "query_key_norm",
            Self::AttentionSink => "attention_sink",
            Self::PostNorm => "post_norm",
            Self::ExpertBias => "expert_bias",
            Self::SharedGate => "shared_gate",
            Self::GeluGate => "gelu_gate",
            Self::MlpBias => "mlp_bias",
            Self::HeadBias => "head_bias",
            Self::ParallelMlp => "parallel_mlp",
            Self::SharedNorm => "shared_norm",
            Self::NormAfter => "norm_after",
            Self::NormWithoutBias => "norm_without_bias",
            Self::NormWithoutParameters => "norm_without_parameters",
            Self::EmbeddingNorm => "embedding_norm",
            Self::OtherActivation => "other_activation",
            Self::ScaledValues => "scaled_values",
            Self::PartialRotary => "partial_rotary",
            Self::MultiTokenPrediction => "multi_token_prediction",
            Self::ScaledPositions => "scaled_positions",
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Experts {
    fn check(&self) -> Result<(), InputError> {
        in_range("experts.count", u64::from(self.count), 2, 1 << 12)?;
        in_range("experts.active", u64::from(self.active), 1, u64::from(self.count))?;
        in_range("experts.shared_ffn", u64::from(self.shared_ffn), 0, 1 << 22).map(|_| ())
    }
}

impl BlockSpec {
    /// Width of a head of values.
    pub fn value_dim(&self) -> u32 {
        self.latent.map_or(self.head_dim, |latent| latent.value_dim)
    }

    /// Width of all queries of a token.
    pub fn query_width(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.head_dim)
    }

    /// Width of all keys and values of a token, as the attention core reads them.
    pub fn kv_width(&self) -> u64 {
        u64::from(self.kv_heads) * (u64::from(self.head_dim) + u64::from(self.value_dim()))
    }

    /// Width of the attention core's result for a token.
    pub fn value_width(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.value_dim())
    }

    /// Tokens that a query attends to, at most, in a sequence of `seq_len`.
    pub fn span(&self, seq_len: u64) -> u64 {
        self.window.map_or(seq_len, |window| seq_len.min(window.into()))
    }

    /// Keys, without their rotary part, and values, of all heads.
    fn expanded_width(&self, latent: Latent) -> u64 {
        let width = u64::from(self.head_dim.saturating_sub(latent.rope_dim)) + u64::from(latent.value_dim);
        u64::from(self.heads) * width
    }

    pub(crate) fn check(&self, model: &ModelSpec) -> Result<(), InputError> {
        for (field, value, high) in [
            ("heads", self.heads, 1 << 16),
            ("kv_heads", self.kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("ffn", self.ffn, 1 << 22),
            ("window", self.window.unwrap_or(1), 1 << 26),
        ] {
            in_range(field, u64::from(value), 1, high)?;
        }
        if let Some(experts) = self.experts {
            experts.check()?;
            if model.bias {
                return Err(InputError::new("bias", true, "is not supported together with `experts`")
                    .hint("set bias to false, or remove experts"));
            }
        }
        in_range("heads x head_dim", self.query_width(), 1, 1 << 22)?;
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
        if let Some(latent) = self.latent {
            return self.check_latent(latent, model);
        }
        if matches!(model.positions, Positions::Rotary { .. }) && !self.head_dim.is_multiple_of(2) {
            return Err(InputError::new(
                "head_dim",
                self.head_dim,
                "must be even with rotary positions, which rotate pairs of elements",
            )
            .hint("choose an even head size, or learned positions"));
        }
        Ok(())
    }

    fn check_latent(&self, latent: Latent, model: &ModelSpec) -> Result<(), InputError> {
        let Latent { query_rank, kv_rank, rope_dim, value_dim } = latent;
        for (field, value, high) in [
            ("latent.query_rank", query_rank.unwrap_or(1), 1 << 20),
            ("latent.kv_rank", kv_rank, 1 << 20),
            ("latent.rope_dim", rope_dim, self.head_dim),
            ("latent.value_dim", value_dim, 1 << 16),
        ] {
            in_range(field, u64::from(value), 1, high.into())?;
        }
        if matches!(model.positions, Positions::Rotary { .. }) && !rope_dim.is_multiple_of(2) {
            let problem = "must be even with rotary positions, which rotate pairs of elements";
            return Err(InputError::new("latent.rope_dim", rope_dim, problem).hint("choose an even width"));
        }
        if self.kv_heads != self.heads {
            return Err(InputError::new("kv_heads", self.kv_heads, "must equal `heads` with `latent`")
                .hint(format!("set kv_heads to {}: every head has keys and values of its own", self.heads)));
        }
        if model.bias {
            return Err(InputError::new("bias", true, "is not supported together with `latent`")
                .hint("set bias to false, or remove latent"));
        }
        Ok(())
    }
}

impl Activation {
    /// Matrices of an MLP with this activation.
    pub fn matrices(self) -> u32 {
        match self {
            Self::Gelu => 2,
            Self::SwiGlu => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::kernels::Shard;
    use crate::model::Parameter;
    use crate::parse::Check;
    use crate::profile::Segment;

    fn mixtral() -> ModelSpec {
        catalog::model("mixtral-8x7b").unwrap()
    }

    fn experts(count: u32, active: u32) -> Option<Experts> {
        Some(Experts { count, active, shared_ffn: 0 })
    }

    #[test]
    fn only_active_experts_compute_and_all_are_kept() {
        let sparse = mixtral();
        let dense = ModelSpec { experts: None, ffn: 2 * sparse.ffn, ..sparse.clone() };
        let router = 6.0 * 1000.0 * 8.0 * f64::from(sparse.hidden) * f64::from(sparse.layers);
        assert_eq!(sparse.step_flops(1000, 100).0, dense.step_flops(1000, 100).0 + router);
        // Eight experts against the two in the dense model, and a router.
        let block = |model: &ModelSpec| model.layer_parameters(1);
        let matrices = u64::from(3 * sparse.ffn * sparse.hidden);
        assert_eq!(block(&sparse) - block(&dense), 6 * matrices + 8 * u64::from(sparse.hidden));
        let held = |one: Parameter| one.distributed(4).elements();
        let quarter: u64 = sparse.parameters(1).into_iter().map(held).sum();
        assert_eq!(block(&sparse) - quarter, 6 * matrices);
        // Every token passes through the shared experts, and every rank has them.
        let shared_ffn = sparse.ffn;
        let with = |active| Some(Experts { count: 8, active, shared_ffn });
        let shared = ModelSpec { experts: with(1), ..sparse.clone() };
        assert_eq!(shared.step_flops(1000, 100), sparse.step_flops(1000, 100));
        assert_eq!(block(&shared) - block(&sparse), matrices);
        let quarter_of_shared: u64 = shared.parameters(1).into_iter().map(held).sum();
        assert_eq!(quarter_of_shared - quarter, matrices);
    }

    #[test]
    fn counts_of_experts_have_limits() {
        let with = |count, active| {
            let model = ModelSpec { experts: experts(count, active), ..mixtral() };
            model.check().map_err(|e| e.field)
        };
        assert_eq!(with(8, 2), Ok(()));
        assert_eq!(with(1, 1), Err("experts.count".to_owned()));
        assert_eq!(with(u32::MAX, 2), Err("experts.count".to_owned()));
        assert_eq!(with(8, 9), Err("experts.active".to_owned()));
        let experts = experts(1 << 12, 1);
        let huge = ModelSpec { layers: 10_000, hidden: 1 << 20, ffn: 1 << 22, experts, ..mixtral() };
        assert_eq!(huge.check().unwrap_err().field, "total number of parameters");
    }

    #[test]
    fn a_list_of_runs_repeats_over_the_layers() {
        let run = |count, window| BlockRun { count, window, ..BlockRun::default() };
        let runs = vec![run(Some(2), Some(64)), run(None, None)];
        let model = ModelSpec { layers: 7, blocks: runs, ..catalog::model("llama3-8b").unwrap() };
        model.check().unwrap();
        let windows: Vec<_> = (0..9).map(|layer| model.block(layer).window).collect();
        let (local, global) = (Some(64), None);
        // The ends have the shape of the first block.
        assert_eq!(windows, [local, local, local, global, local, local, global, local, local]);
        assert!(!model.is_uniform());
        assert_eq!(model.alike(), [0, 1, 1, 3, 1, 1, 3, 1, 8]);
        assert_eq!(model.distinct_blocks(), [(1, 5), (3, 2)]);
        // A query attends to as many tokens as its window has, if the sequence has more.
        let flops = |layer| model.forward_flops(layer, 256, 128).0;
        let core = 4.0 * 256.0 * f64::from(model.heads * model.head_dim);
        assert_eq!(flops(3) - flops(1), core * 64.0);
        assert_eq!(model.forward_flops(3, 256, 64), model.forward_flops(1, 256, 64));
    }

    #[test]
    fn blocks_are_written_in_the_shortest_form() {
        let model = mixtral();
        let (sparse, dense) = (model.block(1), BlockSpec { experts: None, ffn: 32, ..model.block(1) });
        let local = BlockSpec { window: Some(8), ..dense };
        for (blocks, runs) in [
            (vec![sparse; 3], 0),
            (vec![local; 2], 0),
            (vec![dense, sparse, sparse, sparse], 2),
            (vec![dense, sparse, dense, sparse], 2),
            (vec![local, local, dense, local, local], 2),
            (vec![dense, sparse, local], 3),
        ] {
            let written = model.clone().with_blocks(&blocks);
            let read: Vec<_> = (1..=blocks.len()).map(|layer| written.block(layer)).collect();
            assert_eq!((read, written.blocks.len()), (blocks, runs));
            written.check().unwrap();
        }
    }

    #[test]
    fn blocks_of_a_model_are_checked_by_name() {
        let refused = |run: BlockRun| {
            let error = ModelSpec { blocks: vec![run], ..mixtral() }.check().unwrap_err();
            assert!(!error.hint.is_empty(), "{error}");
            error.field
        };
        let none = BlockRun::default();
        assert_eq!(refused(BlockRun { ffn: Some(0), ..none }), "blocks[0].ffn");
        assert_eq!(refused(BlockRun { window: Some(0), ..none }), "blocks[0].window");
        assert_eq!(refused(BlockRun { kv_heads: Some(5), ..none }), "blocks[0].kv_heads");
        assert_eq!(refused(BlockRun { head_dim: Some(3), ..none }), "blocks[0].head_dim");
        assert_eq!(refused(BlockRun { experts: experts(8, 9), ..none }), "blocks[0].experts.active");
        assert_eq!(refused(BlockRun { count: Some(0), ..none }), "blocks[0].count");
        assert_eq!(refused(BlockRun { count: Some(33), ..none }), "blocks");
    }

    #[test]
    fn additions_are_listed_once_and_not_beside_the_biases_that_they_are() {
        use Addition::{HeadNorm, OutputBias, PostNorm, QkvBias};
        let refused = |bias, additions: &[Addition]| {
            let usual = catalog::model("llama3-8b").unwrap();
            let model = ModelSpec { bias, additions: additions.to_vec(), ..usual };
            model.check().map_err(|error| (error.field, error.value, error.hint))
        };
        let error =
            |field: &str, value: &str, hint: &str| Err((field.to_owned(), value.to_owned(), hint.to_owned()));
        assert_eq!(refused(false, &[QkvBias, OutputBias, HeadNorm]), Ok(()));
        let once = "list each addition once";
        assert_eq!(refused(false, &[HeadNorm, PostNorm, HeadNorm]), error("additions[2]", "head_norm", once));
        let hint = "remove it, or set bias to false";
        assert_eq!(refused(true, &[HeadNorm]), Ok(()));
        assert_eq!(refused(true, &[HeadNorm, QkvBias]), error("additions[1]", "qkv_bias", hint));
        assert_eq!(refused(true, &[OutputBias]), error("additions[0]", "output_bias", hint));
    }

    #[test]
    fn latent_attention_has_the_parameters_of_its_paper() {
        // DeepSeek-V2 (2405.04434, table 6 and section 3.1.2): 128 heads of 128 + 64, ranks 1536 and 512.
        let latent = Latent { query_rank: Some(1536), kv_rank: 512, rope_dim: 64, value_dim: 128 };
        let (heads, head_dim, hidden) = (128, 192, 5120);
        let model = ModelSpec { heads, kv_heads: heads, head_dim, hidden, latent: Some(latent), ..mixtral() };
        model.check().unwrap();
        let block = model.block(1);
        let matrices =
            5120 * 1536 + 1536 * 128 * 192 + 5120 * (512 + 64) + 512 * 128 * 256 + 128 * 128 * 5120;
        let attention = model.kernels(&block, Segment::Attention, &Shard::whole(1, 1));
        assert_eq!(attention.weights() as u64, matrices);
        let of_attention = |one: &Parameter| one.name.starts_with("attention.");
        let counted: u64 =
            model.parameters(1).iter().filter(|one| of_attention(one)).map(Parameter::elements).sum();
        assert_eq!(counted, matrices + 1536 + 512);
        let wrong = ModelSpec { kv_heads: 64, ..model };
        assert_eq!(wrong.check().unwrap_err().field, "kv_heads");
    }
}
