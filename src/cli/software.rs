//! Arguments of the training software.

use super::values::{attention_kinds, block_kinds, loss_kinds, trainers};
use autodist_analytic::{AttentionChoice, BlockKind, KernelChoice, LossKind, Trainer};
use clap::Args;

/// The training software whose steps are priced without a profile.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Search")]
pub struct SoftwareArgs {
    /// Training framework to plan for (megatron: Megatron-LM of 2021; megatron-core: since 2023); only without a
    /// profile [default: that of the file in --from, else megatron-core]
    #[arg(long, value_parser = trainers())]
    pub trainer: Option<Trainer>,
    /// Attention kernel; only without a profile [default: the trainer's]
    #[arg(long, value_name = "KERNEL", value_parser = attention_kinds())]
    pub attention: Option<AttentionChoice>,
    /// How the loss is computed; only without a profile [default: whole]
    #[arg(long, value_name = "KERNEL", value_parser = loss_kinds())]
    pub loss: Option<LossKind>,
    /// Norms and activations of blocks; only without a profile [default: that of the file in --from, else the trainer's]
    #[arg(long, value_name = "KERNELS", value_parser = block_kinds())]
    pub blocks: Option<BlockKind>,
}

impl SoftwareArgs {
    pub fn kernels(&self) -> KernelChoice {
        KernelChoice { attention: self.attention, loss: self.loss, blocks: self.blocks }
    }
}
