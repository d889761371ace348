//! Differences between trainers with the same layout.

use crate::machine::Generation;
use autodist_spec::Precision;
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
    #[strum(to_string = "nemo", serialize = "megatron-bridge")]
    Nemo,
    /// Megatron on DeepSpeed's pipeline, as BLOOM was trained.
    MegatronDeepspeed,
    /// DeepSpeed ZeRO with a plain model.
    Deepspeed,
    /// PyTorch FSDP of 2022 and 2023, run operation by operation, with the first fused attention.
    Fsdp,
    /// PyTorch FSDP2 with scaled_dot_product_attention and compiled blocks.
    #[strum(to_string = "fsdp2", serialize = "torchtitan")]
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
    /// FlashAttention 2, which does not use the new instructions of Hopper.
    SecondFlash,
    /// What Transformer Engine chooses: FlashAttention 2 up to Ampere, the first kernels for Hopper there.
    Flash,
    /// What PyTorch chooses since 2.10: FlashAttention 2 up to Ampere, cuDNN's kernels of 2025 from Hopper on.
    Cudnn,
}

/// What launches a step's kernels, as far as the host's time per block depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    Megatron,
    MegatronDeepspeed,
    /// PyTorch's own modules, operation by operation.
    Eager,
}

/// A row of the table of training frameworks.
#[derive(Debug, Clone, Copy)]
pub struct TrainerTraits {
    pub attention: AttentionKind,
    /// Whether unfused attention has Megatron's fused masked softmax.
    pub fused_softmax: bool,
    /// Whether it uses kernel libraries from before 2023.
    pub classic: bool,
    /// Whether each operation is a separate kernel by default.
    pub eager: bool,
    pub host: HostKind,
    /// Whether the host waits for a receive, instead of only the device: Megatron synchronises the device after
    /// every batch of send/recv (`batch_p2p_sync` of Megatron-Core, and always before it). Assumed of
    /// Megatron-DeepSpeed, whose published steps agree with it.
    pub receives_block: bool,
    /// Whether it is Megatron-Core or based on it.
    pub core: bool,
    /// Whether parameters are sharded and all-gathered layer by layer, as FSDP does.
    pub shards_parameters: bool,
    /// Whether it reduces gradients through flat buffers, as DeepSpeed does.
    pub flat_buffers: bool,
    /// Whether the gradient reduction overlaps with the backward pass.
    pub overlaps_gradients: bool,
    pub tensor_overlap: TensorOverlap,
    /// Whether a search has tensor parallelism: that of DeepSpeed is only priced if it is asked for.
    pub tensor: bool,
    /// Whether a search has pipelines: those of FSDP2 are uncommon, and only priced if they are asked for.
    pub pipelines: bool,
    /// Whether only some blocks of a stage can be recomputed.
    pub recomputes_some: bool,
    /// Its default ZeRO stage.
    pub usual_zero_stage: u8,
    /// Stages that a search tries unless the job lists others: no published run in 16 bits shows what
    /// Megatron-FSDP costs.
    pub searched_zero_stages: &'static [u8],
}

const MEGATRON: TrainerTraits = TrainerTraits {
    attention: AttentionKind::Unfused,
    fused_softmax: true,
    classic: true,
    eager: false,
    host: HostKind::Megatron,
    receives_block: true,
    core: false,
    shards_parameters: false,
    flat_buffers: false,
    overlaps_gradients: false,
    tensor_overlap: TensorOverlap::None,
    tensor: true,
    pipelines: true,
    recomputes_some: true,
    usual_zero_stage: 0,
    searched_zero_stages: &[0, 1],
};

const MEGATRON_CORE: TrainerTraits = TrainerTraits {
    attention: AttentionKind::Flash,
    classic: false,
    core: true,
    overlaps_gradients: true,
    tensor_overlap: TensorOverlap::Gradients,
    usual_zero_stage: 1,
    ..MEGATRON
};

const NEMO: TrainerTraits = TrainerTraits { tensor_overlap: TensorOverlap::All, ..MEGATRON_CORE };

const MEGATRON_DEEPSPEED: TrainerTraits =
    TrainerTraits { host: HostKind::MegatronDeepspeed, flat_buffers: true, ..MEGATRON };

const DEEPSPEED: TrainerTraits = TrainerTraits {
    fused_softmax: false,
    eager: true,
    host: HostKind::Eager,
    receives_block: false,
    flat_buffers: true,
    tensor: false,
    pipelines: false,
    recomputes_some: false,
    searched_zero_stages: &[0, 1, 2, 3],
    ..MEGATRON
};

const FSDP: TrainerTraits = TrainerTraits {
    attention: AttentionKind::FirstFlash,
    fused_softmax: false,
    classic: false,
    eager: true,
    host: HostKind::Eager,
    receives_block: false,
    shards_parameters: true,
    overlaps_gradients: true,
    tensor: false,
    pipelines: false,
    recomputes_some: false,
    usual_zero_stage: 3,
    searched_zero_stages: &[0, 3],
    ..MEGATRON
};

const FSDP2: TrainerTraits =
    TrainerTraits { attention: AttentionKind::Cudnn, eager: false, tensor: true, ..FSDP };

const INTERNEVO: TrainerTraits = TrainerTraits {
    attention: AttentionKind::Flash,
    fused_softmax: false,
    classic: false,
    flat_buffers: true,
    overlaps_gradients: true,
    usual_zero_stage: 1,
    ..MEGATRON
};

const ONEFLOW: TrainerTraits =
    TrainerTraits { fused_softmax: false, receives_block: false, overlaps_gradients: true, ..MEGATRON };

impl Trainer {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What it supports, and how its steps differ from those of others.
    pub fn traits(self) -> &'static TrainerTraits {
        match self {
            Self::Megatron => &MEGATRON,
            Self::MegatronCore => &MEGATRON_CORE,
            Self::Nemo => &NEMO,
            Self::MegatronDeepspeed => &MEGATRON_DEEPSPEED,
            Self::Deepspeed => &DEEPSPEED,
            Self::Fsdp => &FSDP,
            Self::Fsdp2 => &FSDP2,
            Self::Internevo => &INTERNEVO,
            Self::Oneflow => &ONEFLOW,
        }
    }

    /// The attention kernel on devices of the given generation: FlashAttention 2 needs Ampere or newer (Dao
    /// 2023, 2307.08691).
    pub fn attention_on(self, generation: Generation) -> AttentionKind {
        match (self.traits().attention, generation) {
            (AttentionKind::Flash | AttentionKind::Cudnn, Generation::Volta) => AttentionKind::Unfused,
            (usual, _) => usual,
        }
    }

    /// Whether Megatron's fused masked softmax does not support this number of heads of a micro-batch or this
    /// sequence length, so that separate kernels are used (`is_kernel_available` of
    /// `megatron/model/fused_softmax.py`, 2021).
    pub fn softmax_is_apart(self, heads: u64, keys: u64) -> bool {
        let supported = heads.is_multiple_of(4) && keys.is_multiple_of(4) && (17..=2048).contains(&keys);
        self.traits().fused_softmax && !supported
    }

    /// Bytes per gradient in accumulation and reduction: DeepSpeed's optimizer for bf16 accumulates in fp32.
    pub fn gradient_bytes(self, dtype: Precision) -> f64 {
        match self {
            _ if matches!(dtype, Precision::Fp32 | Precision::Tf32) => 4.0,
            Self::MegatronCore => 4.0,
            Self::MegatronDeepspeed | Self::Deepspeed if dtype == Precision::Bf16 => 4.0,
            _ => 2.0,
        }
    }
}
