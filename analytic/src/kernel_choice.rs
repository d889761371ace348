//! Which kernels a run has for attention and the loss: what somebody says of them, or what its trainer had by default.

use crate::machine::Generation;
use crate::trainer::{AttentionKind, Trainer};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// How attention is computed, as people say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum AttentionChoice {
    /// GEMMs and a softmax, with the scores in memory.
    Unfused,
    /// FlashAttention, of the generation that the trainer uses.
    Flash,
    /// cuDNN's fused kernels.
    Cudnn,
}

/// How the loss is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum LossKind {
    /// One fused kernel, which keeps logits in 16 bits.
    Fused,
    /// Separate kernels over whole logits in 32 bits.
    Whole,
}

/// How the elementwise operations of a block are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum BlockKind {
    /// Norms and activations are one kernel each, by torch.compile, Transformer Engine, Liger or Apex.
    Fused,
    /// Each operation of the modelling code is a kernel of its own, and keeps what its backward pass needs.
    Eager,
}

/// The kernels that somebody named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelChoice {
    pub attention: Option<AttentionChoice>,
    pub loss: Option<LossKind>,
    pub blocks: Option<BlockKind>,
}

impl AttentionChoice {
    pub fn of(kind: AttentionKind) -> Self {
        match kind {
            AttentionKind::Unfused => Self::Unfused,
            AttentionKind::FirstFlash | AttentionKind::SecondFlash | AttentionKind::Flash => Self::Flash,
            AttentionKind::Cudnn => Self::Cudnn,
        }
    }
}

impl Trainer {
    /// The kernel that somebody named, as this trainer has it.
    pub fn attention_as(self, named: AttentionChoice, generation: Generation) -> AttentionKind {
        match (named, self.attention_on(generation)) {
            (AttentionChoice::Unfused, _) => AttentionKind::Unfused,
            (AttentionChoice::Cudnn, _) => AttentionKind::Cudnn,
            (AttentionChoice::Flash, AttentionKind::Unfused) => AttentionKind::Flash,
            (AttentionChoice::Flash, AttentionKind::Cudnn) => AttentionKind::SecondFlash,
            (AttentionChoice::Flash, usual) => usual,
        }
    }

    /// The kernel that this trainer had by default in a year; of today if that is not known.
    pub fn attention_of(self, year: Option<u32>, generation: Generation) -> AttentionKind {
        match self.attention_on(generation) {
            // PyTorch has preferred cuDNN's attention on Hopper and later since 2.10, of January 2026
            // (`check_prefer_cudnn_attention` of `sdp_utils.cpp`).
            AttentionKind::Cudnn if year.is_some_and(|year| year <= 2025) => AttentionKind::SecondFlash,
            _ if self.had_unfused(year, generation) => AttentionKind::Unfused,
            usual => usual,
        }
    }

    /// Whether it is of the years in which Megatron used fused attention only on request: until it became the default with
    /// Transformer Engine on Hopper.
    pub fn had_unfused(self, year: Option<u32>, generation: Generation) -> bool {
        let last = if generation == Generation::Ampere { 2024 } else { 2022 };
        self == Self::MegatronCore && year.is_some_and(|year| year <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_follows_the_trainer_and_its_year() {
        use Generation::{Ampere, Hopper, Volta};
        for (trainer, year, generation, expected) in [
            (Trainer::Fsdp2, None, Hopper, AttentionKind::Cudnn),
            (Trainer::Fsdp2, Some(2024), Hopper, AttentionKind::SecondFlash),
            (Trainer::Fsdp2, Some(2024), Volta, AttentionKind::Unfused),
            (Trainer::MegatronCore, Some(2024), Ampere, AttentionKind::Unfused),
            (Trainer::MegatronCore, Some(2024), Hopper, AttentionKind::Flash),
            (Trainer::MegatronDeepspeed, None, Ampere, AttentionKind::Unfused),
        ] {
            assert_eq!(trainer.attention_of(year, generation), expected, "{trainer} {year:?}");
        }
    }

    #[test]
    fn what_is_named_is_the_kernel_that_the_trainer_has() {
        let of = |trainer: Trainer, named| trainer.attention_as(named, Generation::Hopper);
        assert_eq!(of(Trainer::MegatronDeepspeed, AttentionChoice::Flash), AttentionKind::Flash);
        assert_eq!(of(Trainer::Fsdp2, AttentionChoice::Flash), AttentionKind::SecondFlash);
        assert_eq!(of(Trainer::Fsdp, AttentionChoice::Flash), AttentionKind::FirstFlash);
        assert_eq!(of(Trainer::MegatronCore, AttentionChoice::Unfused), AttentionKind::Unfused);
        for kind in [AttentionKind::Unfused, AttentionKind::FirstFlash, AttentionKind::Cudnn] {
            let named: &str = AttentionChoice::of(kind).into();
            assert_eq!(named.parse::<AttentionChoice>(), Ok(AttentionChoice::of(kind)));
        }
    }
}
