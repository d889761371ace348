//! Arguments of the bits and places of weights, gradients and optimizer state.

use super::values::one_of;
use autodist_spec::{MemoryTier, StateStorage, quantity};
use clap::Args;

/// What is not given is as the trainer has it by default.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "State of the training (without a profile)")]
pub struct StateArgs {
    /// Bits of Adam's moments: 8, 16 or 32; or of the first and the second one, e.g., 16,8 [default: the trainer's]
    #[arg(long, value_name = "BITS", value_delimiter = ',', num_args = 1..=2)]
    pub moment_bits: Vec<u8>,
    /// Bits of the master weights in 16-bit training: 32, 16, or 0 for none [default: the trainer's]
    ///
    /// With 0 the optimizer updates the 16-bit weights themselves, and its moments have 16 bits unless --moment-bits
    /// is given.
    #[arg(long, value_name = "BITS")]
    pub master_bits: Option<u8>,
    /// Bits of gradients in accumulation and reduction: 16 or 32 [default: the trainer's]
    #[arg(long, value_name = "BITS")]
    pub gradient_bits: Option<u8>,
    /// Keep the optimizer's state in host memory, or on NVMe, and update it on the host [default: on the device]
    #[arg(long, value_name = "PLACE", num_args = 0..=1, default_missing_value = "host", value_parser = places())]
    pub offload_optimizer: Option<MemoryTier>,
    /// Part of the optimizer's state that --offload-optimizer moves, e.g., 0.5 [default: all of it]
    #[arg(long, value_name = "PART")]
    pub offload_part: Option<f64>,
    /// Keep the shards of ZeRO-3's parameters in host memory, or on NVMe [default: on the device]
    #[arg(long, value_name = "PLACE", num_args = 0..=1, default_missing_value = "host", value_parser = places())]
    pub offload_parameters: Option<MemoryTier>,
    /// Keep activations in host memory between forward and backward pass
    #[arg(long)]
    pub offload_activations: bool,
    /// Parameters that DeepSpeed's ZeRO-3 keeps gathered at most (`stage3_max_live_parameters`) [default: 1e9]
    #[arg(long, value_name = "COUNT", value_parser = quantity::tokens)]
    pub live_parameters: Option<u64>,
    /// Ranks over which DeepSpeed's ZeRO-3 shards a second copy of the parameters (hpZ) [default: no second copy]
    #[arg(long, value_name = "RANKS")]
    pub second_shard: Option<u32>,
    /// Bits in which DeepSpeed's ZeRO-3 gathers parameters: 8 (quantised) or 16 [default: 16]
    #[arg(long, value_name = "BITS")]
    pub gather_bits: Option<u8>,
}

fn places() -> impl clap::builder::TypedValueParser<Value = MemoryTier> {
    one_of([MemoryTier::Device, MemoryTier::Host, MemoryTier::Nvme].map(MemoryTier::name))
}

/// The flags, by the fields of a job file.
pub const FLAGS: [(&str, &str); 10] = [
    ("states.live_parameters", "--live-parameters"),
    ("states.second_shard", "--second-shard"),
    ("states.gather_bits", "--gather-bits"),
    ("states.moment_bits", "--moment-bits"),
    ("states.master_bits", "--master-bits"),
    ("states.gradient_bits", "--gradient-bits"),
    ("states.optimizer_part", "--offload-part"),
    ("states.optimizer", "--offload-optimizer"),
    ("states.parameters", "--offload-parameters"),
    ("states.activations", "--offload-activations"),
];

impl StateArgs {
    /// The flag of a field, if it is given.
    pub fn flag(&self, field: &str) -> Option<&'static str> {
        let (_, flag) = FLAGS.into_iter().find(|(name, _)| *name == field)?;
        let given = match flag {
            "--moment-bits" => !self.moment_bits.is_empty(),
            "--master-bits" => self.master_bits.is_some(),
            "--gradient-bits" => self.gradient_bits.is_some(),
            "--offload-part" => self.offload_part.is_some(),
            "--offload-optimizer" => self.offload_optimizer.is_some(),
            "--live-parameters" => self.live_parameters.is_some(),
            "--second-shard" => self.second_shard.is_some(),
            "--gather-bits" => self.gather_bits.is_some(),
            "--offload-parameters" => self.offload_parameters.is_some(),
            _ => self.offload_activations,
        };
        given.then_some(flag)
    }

    /// Overrides the settings of a file by those that are given.
    pub fn apply(&self, states: &mut StateStorage) {
        if let [first, ..] = *self.moment_bits {
            states.moment_bits = Some([first, self.moment_bits.get(1).copied().unwrap_or(first)]);
        }
        states.master_bits = self.master_bits.or(states.master_bits);
        states.gradient_bits = self.gradient_bits.or(states.gradient_bits);
        states.optimizer = self.offload_optimizer.unwrap_or(states.optimizer);
        states.parameters = self.offload_parameters.unwrap_or(states.parameters);
        if self.offload_optimizer == Some(MemoryTier::Device) {
            states.optimizer_part = 1.0;
        }
        states.optimizer_part = self.offload_part.unwrap_or(states.optimizer_part);
        states.live_parameters = self.live_parameters.or(states.live_parameters);
        states.second_shard = self.second_shard.or(states.second_shard);
        states.gather_bits = self.gather_bits.or(states.gather_bits);
        if self.offload_activations {
            states.activations = MemoryTier::Host;
        }
    }
}
