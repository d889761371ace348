//! Differences between trainers with the same layout.

use crate::machine::Generation;
use autodist_hardware::Dtype;
use autodist_spec::Recompute;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// The training software, as far as it affects time or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Trainer {
    /// Megatron-LM up to 2022: attention in separate kernels, no overlap.
    Megatron,
    /// Megatron-Core since 2023: fused attention; the gradient reduction and the parameter all-gather overlap
    /// with compute.
    MegatronCore,
    /// Megatron-Core as NVIDIA tunes it in NeMo and Megatron-Bridge: tensor-parallel collectives are split
    /// and overlapped with the GEMMs, gradients are in 16 bits.
    Nemo,
    /// Megatron on DeepSpeed's pipeline, as BLOOM was trained.
    MegatronDeepspeed,
    /// DeepSpeed ZeRO with a plain model.
    Deepspeed,
    /// PyTorch FSDP of 2022 and 2023, run operation by operation, with the first fused attention.
    Fsdp,
    /// PyTorch FSDP2 with scaled_dot_product_attention and compiled blocks.
    Fsdp2,
    /// InternEvo: ZeRO-1 within groups, fused kernels.
    Internevo,
    /// OneFlow: a static graph with fused kernels.
    Oneflow,
}

/// Tensor-parallel collectives that overlap with GEMMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorOverlap {
    None,
    /// All-reduces of the backward pass, which overlap with the weight gradient GEMMs.
    Gradients,
    /// With sequence parallelism all of them, split into pieces that alternate with pieces of GEMMs.
    All,
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionKind {
    /// Two batched GEMMs with masked softmax between; the scores are written to memory.
    Unfused,
    /// FlashAttention's first generation.
    FirstFlash,
    Flash,
}

impl Trainer {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The trainer named in a source's text: the first of these phrases that occurs in it.
    pub fn of_words(words: &str) -> Option<Self> {
        let words = words.to_ascii_lowercase();
        let known = [
            ("oneflow;", Self::Oneflow),
            ("internevo", Self::Internevo),
            ("megatron-deepspeed", Self::MegatronDeepspeed),
            ("megatron deepspeed", Self::MegatronDeepspeed),
            ("bigscience", Self::MegatronDeepspeed),
            ("megatron-bridge", Self::Nemo),
            ("megatron bridge", Self::Nemo),
            ("dgxc-benchmarking", Self::Nemo),
            ("nemo", Self::Nemo),
            ("torchtitan", Self::Fsdp2),
            ("fsdp2", Self::Fsdp2),
            ("llm-foundry", Self::Fsdp),
            ("fsdp", Self::Fsdp),
            ("megatron-core", Self::MegatronCore),
            ("mcore", Self::MegatronCore),
            ("simumax", Self::MegatronCore),
            ("megascale", Self::MegatronCore),
            ("megatron", Self::Megatron),
            ("deepspeed", Self::Deepspeed),
        ];
        known.into_iter().find(|(phrase, _)| words.contains(phrase)).map(|(_, trainer)| trainer)
    }

    pub fn attention(self) -> AttentionKind {
        match self {
            Self::Megatron | Self::MegatronDeepspeed | Self::Deepspeed | Self::Oneflow => {
                AttentionKind::Unfused
            }
            Self::Fsdp => AttentionKind::FirstFlash,
            Self::MegatronCore | Self::Nemo | Self::Fsdp2 | Self::Internevo => AttentionKind::Flash,
        }
    }

    /// The attention kernel on devices of the given generation: FlashAttention 2 needs Ampere or newer (Dao
    /// 2023, 2307.08691).
    pub fn attention_on(self, generation: Generation) -> AttentionKind {
        match (self.attention(), generation) {
            (AttentionKind::Flash, Generation::Volta) => AttentionKind::Unfused,
            (usual, _) => usual,
        }
    }

    /// Whether Megatron's fused masked softmax does not support this number of heads of a micro-batch or this
    /// sequence length, so that separate kernels are used (`is_kernel_available` of
    /// `megatron/model/fused_softmax.py`, 2021).
    pub fn softmax_is_apart(self, heads: u64, keys: u64) -> bool {
        let has_kernel =
            matches!(self, Self::Megatron | Self::MegatronCore | Self::Nemo | Self::MegatronDeepspeed);
        has_kernel && !(heads.is_multiple_of(4) && keys.is_multiple_of(4) && (17..=2048).contains(&keys))
    }

    /// Whether it uses kernel libraries from before 2023.
    pub fn is_classic(self) -> bool {
        matches!(self, Self::Megatron | Self::MegatronDeepspeed | Self::Deepspeed | Self::Oneflow)
    }

    /// Whether each operation is a separate kernel by default.
    pub fn is_eager(self) -> bool {
        matches!(self, Self::Fsdp | Self::Deepspeed)
    }

    /// Whether parameters are sharded and all-gathered layer by layer.
    pub fn shards_parameters(self) -> bool {
        matches!(self, Self::Fsdp | Self::Fsdp2)
    }

    /// Whether the gradient reduction overlaps with the backward pass.
    pub fn overlaps_gradients(self) -> bool {
        !matches!(self, Self::Megatron | Self::MegatronDeepspeed | Self::Deepspeed)
    }

    pub fn tensor_overlap(self) -> TensorOverlap {
        match self {
            Self::MegatronCore => TensorOverlap::Gradients,
            Self::Nemo => TensorOverlap::All,
            _ => TensorOverlap::None,
        }
    }

    /// Whether it supports tensor parallelism.
    pub fn splits_layers(self) -> bool {
        !matches!(self, Self::Fsdp | Self::Deepspeed)
    }

    /// Whether it supports pipelines that are modelled here: those of FSDP2 are uncommon and are not.
    pub fn has_pipelines(self) -> bool {
        !matches!(self, Self::Fsdp | Self::Fsdp2 | Self::Deepspeed)
    }

    /// Whether it supports virtual stages.
    pub fn interleaves(self) -> bool {
        matches!(self, Self::Megatron | Self::MegatronCore | Self::Nemo)
    }

    /// Whether it is Megatron-Core or based on it.
    pub fn is_core(self) -> bool {
        matches!(self, Self::MegatronCore | Self::Nemo)
    }

    /// Whether it supports sequence parallelism (with tensor parallelism) and context parallelism.
    pub fn splits_sequences(self) -> bool {
        self.is_core() || self == Self::Fsdp2
    }

    /// Its default ZeRO stage.
    pub fn usual_zero_stage(self) -> u8 {
        match self {
            Self::Fsdp | Self::Fsdp2 => 3,
            Self::MegatronCore | Self::Nemo | Self::Internevo => 1,
            _ => 0,
        }
    }

    /// ZeRO stages that it supports: Megatron-Core's distributed optimizer is stage 1, its Megatron-FSDP
    /// shards gradients (`optim_grads`) and parameters (`optim_grads_params`), too.
    pub fn zero_stages(self) -> &'static [u8] {
        match self {
            Self::Fsdp | Self::Fsdp2 => &[0, 3],
            Self::MegatronCore | Self::Nemo | Self::Deepspeed => &[0, 1, 2, 3],
            _ => &[0, 1],
        }
    }

    /// Stages that a search tries unless the job lists others: no published run in 16 bits shows what
    /// Megatron-FSDP costs.
    pub fn searched_zero_stages(self) -> &'static [u8] {
        if self.is_core() { &[0, 1] } else { self.zero_stages() }
    }

    /// Modes of recomputation, cheapest first: software from before 2022 recomputes whole blocks or nothing.
    pub fn recompute_modes(self) -> &'static [Recompute] {
        if self.is_classic() {
            &[Recompute::None, Recompute::Full]
        } else {
            &[Recompute::None, Recompute::Selective, Recompute::Full]
        }
    }

    /// Bytes per gradient in accumulation and reduction: DeepSpeed's optimizer for bf16 accumulates in fp32.
    pub fn gradient_bytes(self, dtype: Dtype) -> f64 {
        match self {
            _ if matches!(dtype, Dtype::Fp32 | Dtype::Tf32) => 4.0,
            Self::MegatronCore => 4.0,
            Self::MegatronDeepspeed | Self::Deepspeed if dtype == Dtype::Bf16 => 4.0,
            _ => 2.0,
        }
    }
}
