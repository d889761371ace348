//! The families of models whose configurations are read, and how they differ from Llama.

use crate::block::Addition::{self, *};

/// One `model_type`.
pub(super) struct Family {
    pub name: &'static str,
    pub experts: ExpertKeys,
    pub windows: Windows,
    pub additions: &'static [Addition],
    /// Whether attention is multi-head latent attention.
    pub latent: bool,
    /// Width of a head, if it is neither given nor `hidden_size / num_attention_heads`.
    pub head_dim: Option<u32>,
    /// Whether the table is tied if the configuration does not say it.
    pub tied: bool,
}

/// The keys that describe experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpertKeys {
    None,
    Mixtral,
    Olmoe,
    /// `decoder_sparse_step` and `mlp_only_layers`.
    Qwen,
    /// `first_k_dense_replace` and `moe_layer_freq`.
    Deepseek,
    /// `moe_layers` or `interleave_moe_layer_step`.
    Llama4,
}

impl ExpertKeys {
    /// The key of the number of experts.
    pub fn count(self) -> &'static str {
        match self {
            Self::Qwen | Self::Olmoe => "num_experts",
            Self::Deepseek => "n_routed_experts",
            Self::None | Self::Mixtral | Self::Llama4 => "num_local_experts",
        }
    }

    /// The key of the width of one expert.
    pub fn width(self) -> &'static str {
        match self {
            Self::Qwen | Self::Deepseek => "moe_intermediate_size",
            Self::None | Self::Mixtral | Self::Olmoe | Self::Llama4 => "intermediate_size",
        }
    }

    /// The keys whose product is the width of the shared experts.
    pub fn shared(self) -> &'static str {
        match self {
            Self::Qwen => "shared_expert_intermediate_size",
            Self::Deepseek => "n_shared_experts x moe_intermediate_size",
            Self::None | Self::Mixtral | Self::Olmoe | Self::Llama4 => "intermediate_size",
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
    experts: ExpertKeys::None,
    windows: Windows::All,
    additions: &[],
    latent: false,
    head_dim: None,
    tied: false,
};
const DEEPSEEK: Family = Family { name: "deepseek_v3", experts: ExpertKeys::Deepseek, latent: true, ..LLAMA };
const GEMMA: &[Addition] = &[PostNorm, GeluGate];
const WITH_HEAD_NORMS: &[Addition] = &[HeadNorm, PostNorm, GeluGate];
const GPT_OSS: &[Addition] = &[QkvBias, OutputBias, AttentionSink, ExpertBias];

pub(super) static FAMILIES: [Family; 16] = [
    LLAMA,
    Family { name: "mistral", ..LLAMA },
    Family { name: "mixtral", experts: ExpertKeys::Mixtral, ..LLAMA },
    Family { name: "qwen2", additions: &[QkvBias], windows: Windows::IfUsed, ..LLAMA },
    Family { name: "qwen3", additions: &[HeadNorm], windows: Windows::IfUsed, ..LLAMA },
    Family {
        name: "qwen2_moe",
        experts: ExpertKeys::Qwen,
        additions: &[QkvBias, SharedGate],
        windows: Windows::IfUsed,
        ..LLAMA
    },
    Family {
        name: "qwen3_moe",
        experts: ExpertKeys::Qwen,
        additions: &[HeadNorm],
        windows: Windows::IfUsed,
        ..LLAMA
    },
    Family { name: "olmoe", experts: ExpertKeys::Olmoe, additions: &[QueryKeyNorm], ..LLAMA },
    Family { name: "deepseek", latent: false, ..DEEPSEEK },
    Family { name: "deepseek_v2", ..DEEPSEEK },
    DEEPSEEK,
    Family { name: "kimi_k2", ..DEEPSEEK },
    Family {
        name: "llama4_text",
        experts: ExpertKeys::Llama4,
        windows: Windows::Chunks,
        head_dim: Some(128),
        ..LLAMA
    },
    Family {
        name: "gemma2",
        additions: GEMMA,
        windows: Windows::Every(2),
        head_dim: Some(256),
        tied: true,
        ..LLAMA
    },
    Family {
        name: "gemma3_text",
        additions: WITH_HEAD_NORMS,
        windows: Windows::Every(6),
        head_dim: Some(256),
        tied: true,
        ..LLAMA
    },
    Family {
        name: "gpt_oss",
        experts: ExpertKeys::Mixtral,
        additions: GPT_OSS,
        windows: Windows::Every(2),
        head_dim: Some(64),
        ..LLAMA
    },
];
