//! The families of models whose configurations are read, and how they differ from Llama.

use crate::block::Addition::{self, *};
use crate::model::Norm;

/// One `model_type`.
pub(super) struct Family {
    pub name: &'static str,
    /// The `model_type` whose absent keys mean the same, if not its own (catalog/families.toml).
    pub like: &'static str,
    pub experts: ExpertKeys,
    pub windows: Windows,
    pub additions: &'static [Addition],
    /// Whether attention is multi-head latent attention.
    pub latent: bool,
    pub norm: Norm,
    /// Whether the MLP has a gate.
    pub gated: bool,
    pub biases: Biases,
    /// The norms that `use_qk_norm` adds.
    pub qk_norm: Option<Addition>,
    pub table: Table,
}

/// The linear layers that have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    /// With this key: queries, keys, values and the result of attention.
    Attention(&'static str),
    /// With this key: queries, keys and values.
    Qkv(&'static str),
    /// With this key: all.
    Whole(&'static str),
    /// Without this key: all.
    Unless(&'static str),
    /// All.
    Always,
    /// Those of the family's additions.
    Own,
}

/// How positions are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Rotary,
    Learned,
    /// A learned table with this many rows more than positions.
    Longer(u32),
    Alibi,
}

/// The keys that describe experts, by their usual names (`keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpertKeys {
    None,
    /// In every block, each as wide as `intermediate_size`.
    Every,
    /// `decoder_sparse_step` and `mlp_only_layers`.
    Qwen,
    /// `first_k_dense_replace` and `moe_layer_freq`.
    Deepseek,
    /// `moe_layers` or `interleave_moe_layer_step`.
    Llama4,
    /// `moe_layer_start_index`, `moe_layer_end_index` and `moe_layer_interval`.
    Ernie,
}

impl ExpertKeys {
    /// The key of the width of one expert.
    pub fn width(self) -> &'static str {
        match self {
            Self::Qwen | Self::Deepseek | Self::Ernie => "moe_intermediate_size",
            Self::None | Self::Every | Self::Llama4 => "intermediate_size",
        }
    }

    /// The keys whose product is the width of the shared experts.
    pub fn shared(self) -> &'static str {
        match self {
            Self::Qwen => "shared_expert_intermediate_size",
            Self::Deepseek | Self::Ernie => "n_shared_experts x moe_intermediate_size",
            Self::None | Self::Every | Self::Llama4 => "intermediate_size",
        }
    }

    /// The key of the width of an MLP.
    pub fn dense(self) -> &'static str {
        if self == Self::Llama4 { "intermediate_size_mlp" } else { "intermediate_size" }
    }
}

/// Which blocks attend within `sliding_window`, if `layer_types` does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    All,
    /// Only with `use_sliding_window`, and from block `max_window_layers` on.
    IfUsed,
    /// All but the last of so many, or of `sliding_window_pattern`.
    Every(u32),
    /// Attention within chunks of `attention_chunk_size`, which is whole in sequences of at most one.
    Chunks,
}

const LLAMA: Family = Family {
    name: "llama",
    like: "",
    experts: ExpertKeys::None,
    windows: Windows::All,
    additions: &[],
    latent: false,
    norm: Norm::RmsNorm,
    gated: true,
    biases: Biases::Attention("attention_bias"),
    qk_norm: None,
    table: Table::Rotary,
};
const QWEN: Family = Family { windows: Windows::IfUsed, ..LLAMA };
const QWEN2: Family = Family { additions: &[QkvBias], biases: Biases::Own, ..QWEN };
const QWEN3: Family = Family { additions: &[HeadNorm], ..QWEN };
const DEEPSEEK: Family = Family { name: "deepseek_v3", experts: ExpertKeys::Deepseek, latent: true, ..LLAMA };
const GPT: Family = Family {
    name: "gpt2",
    norm: Norm::LayerNorm,
    gated: false,
    biases: Biases::Always,
    table: Table::Learned,
    ..LLAMA
};
/// Attention and the MLP side by side behind one norm.
const SIDE: &[Addition] = &[ParallelMlp, SharedNorm];
const GPT_J: Family = Family {
    additions: &[ParallelMlp, SharedNorm, MlpBias, HeadBias],
    biases: Biases::Own,
    table: Table::Rotary,
    ..GPT
};
const COHERE: Family = Family {
    name: "cohere",
    norm: Norm::LayerNorm,
    additions: &[ParallelMlp, SharedNorm, NormWithoutBias],
    qk_norm: Some(QueryKeyNorm),
    ..LLAMA
};
const GLM: Family = Family { name: "glm", biases: Biases::Qkv("attention_bias"), ..LLAMA };
const OLMO2: Family = Family { name: "olmo2", additions: &[QueryKeyNorm, NormAfter], ..LLAMA };
const GEMMA: &[Addition] = &[PostNorm];
const WITH_HEAD_NORMS: &[Addition] = &[HeadNorm, PostNorm];
const GPT_OSS: &[Addition] = &[QkvBias, OutputBias, AttentionSink, ExpertBias];
const ROTARY_GPT: Family = Family { table: Table::Rotary, ..GPT };

pub(super) static FAMILIES: [Family; 63] = [
    GPT,
    LLAMA,
    Family { name: "mistral", ..LLAMA },
    Family { name: "ministral3", ..LLAMA },
    Family { name: "mixtral", experts: ExpertKeys::Every, ..LLAMA },
    Family { name: "qwen2", ..QWEN2 },
    Family { name: "qwen2_vl", like: "qwen2_vl_text", ..QWEN2 },
    Family { name: "qwen2_vl_text", ..QWEN2 },
    Family { name: "qwen2_5_vl", like: "qwen2_5_vl_text", ..QWEN2 },
    Family { name: "qwen2_5_vl_text", ..QWEN2 },
    Family { name: "mimo", like: "qwen2", ..QWEN2 },
    Family { name: "qwen3", ..QWEN3 },
    Family { name: "qwen3_vl_text", ..QWEN3 },
    Family {
        name: "qwen2_moe",
        experts: ExpertKeys::Qwen,
        additions: &[SharedGate],
        biases: Biases::Qkv("qkv_bias"),
        ..QWEN
    },
    Family { name: "qwen3_moe", experts: ExpertKeys::Qwen, ..QWEN3 },
    Family { name: "qwen3_vl_moe_text", experts: ExpertKeys::Qwen, ..QWEN3 },
    Family { name: "olmo", norm: Norm::LayerNorm, additions: &[NormWithoutParameters], ..LLAMA },
    OLMO2,
    Family { name: "olmo3", windows: Windows::Every(4), ..OLMO2 },
    Family { name: "olmoe", experts: ExpertKeys::Every, additions: &[QueryKeyNorm], ..LLAMA },
    Family { name: "deepseek", latent: false, ..DEEPSEEK },
    Family { name: "deepseek_v2", ..DEEPSEEK },
    DEEPSEEK,
    Family { name: "kimi_k2", like: "deepseek_v3", ..DEEPSEEK },
    Family { name: "dots1", latent: false, additions: &[HeadNorm], windows: Windows::IfUsed, ..DEEPSEEK },
    Family { name: "llama4_text", experts: ExpertKeys::Llama4, windows: Windows::Chunks, ..LLAMA },
    Family { name: "gemma", ..LLAMA },
    Family { name: "gemma2", additions: GEMMA, windows: Windows::Every(2), ..LLAMA },
    Family { name: "gemma3_text", additions: WITH_HEAD_NORMS, windows: Windows::Every(6), ..LLAMA },
    Family {
        name: "gpt_oss",
        experts: ExpertKeys::Every,
        additions: GPT_OSS,
        biases: Biases::Own,
        windows: Windows::Every(2),
        ..LLAMA
    },
    Family { name: "phi", additions: &[ParallelMlp, SharedNorm, HeadBias], ..ROTARY_GPT },
    Family { name: "phi3", ..LLAMA },
    Family { name: "phimoe", experts: ExpertKeys::Every, norm: Norm::LayerNorm, ..LLAMA },
    Family { name: "falcon", biases: Biases::Whole("bias"), ..ROTARY_GPT },
    Family { name: "RefinedWeb", like: "falcon", biases: Biases::Whole("bias"), ..ROTARY_GPT },
    Family { name: "RefinedWebModel", like: "falcon", biases: Biases::Whole("bias"), ..ROTARY_GPT },
    Family { name: "gpt_neox", ..ROTARY_GPT },
    Family { name: "gptj", ..GPT_J },
    Family { name: "codegen", ..GPT_J },
    Family { name: "opt", biases: Biases::Whole("enable_bias"), table: Table::Longer(2), ..GPT },
    Family { name: "bloom", additions: &[EmbeddingNorm], table: Table::Alibi, ..GPT },
    Family { name: "mpt", biases: Biases::Unless("no_bias"), table: Table::Alibi, ..GPT },
    Family { name: "gpt_bigcode", ..GPT },
    Family { name: "starcoder2", biases: Biases::Whole("use_bias"), ..ROTARY_GPT },
    Family { name: "granite", ..LLAMA },
    Family { name: "granitemoe", experts: ExpertKeys::Every, ..LLAMA },
    COHERE,
    Family { name: "cohere2", windows: Windows::Every(4), ..COHERE },
    Family { name: "nemotron", norm: Norm::LayerNorm, gated: false, ..LLAMA },
    Family { name: "smollm3", windows: Windows::IfUsed, ..LLAMA },
    Family { name: "ernie4_5", biases: Biases::Whole("use_bias"), ..LLAMA },
    Family {
        name: "ernie4_5_moe",
        experts: ExpertKeys::Ernie,
        biases: Biases::Attention("use_bias"),
        ..LLAMA
    },
    GLM,
    Family { name: "glm4", additions: &[PostNorm], ..GLM },
    Family { name: "glm4_moe", experts: ExpertKeys::Deepseek, qk_norm: Some(HeadNorm), ..GLM },
    Family { name: "minimax_m2", experts: ExpertKeys::Every, additions: &[QueryKeyNorm], ..LLAMA },
    Family { name: "stablelm", norm: Norm::LayerNorm, biases: Biases::Qkv("use_qkv_bias"), ..LLAMA },
    Family { name: "seed_oss", biases: Biases::Qkv("attention_bias"), ..LLAMA },
    Family { name: "hunyuan_v1_dense", additions: &[HeadNorm], ..LLAMA },
    Family { name: "exaone4", additions: &[HeadNorm, NormAfter], windows: Windows::Every(4), ..LLAMA },
    Family { name: "arcee", gated: false, ..LLAMA },
    Family { name: "internlm2", like: "llama", ..LLAMA },
    Family { name: "minicpm", like: "llama", ..LLAMA },
];

impl Family {
    /// The additions that a family has with keys of its own.
    pub fn side_by_side(one_norm: bool) -> &'static [Addition] {
        if one_norm { SIDE } else { &[ParallelMlp] }
    }
}
