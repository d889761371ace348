//! Arguments of what of a model is trained.

use super::values::one_of;
use autodist_spec::{BaseBits, FrozenPart, InputError, Lora, LoraTarget, Trainable};
use clap::Args;

/// Without any of them the whole model is trained.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Parts of the model that are trained (without a profile)")]
pub struct TrainableArgs {
    /// Train low-rank adapters of this rank in place of the weights (LoRA), e.g., 16
    #[arg(long, value_name = "RANK")]
    pub lora_rank: Option<u32>,
    /// Linear layers of a block that have adapters, e.g., q,k,v,o, or all-linear [default: q,v]
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', value_parser = targets())]
    pub lora_targets: Vec<LoraTarget>,
    /// Bits of the frozen weights of linear layers under LoRA: 16, 8, 4.5 (NF4), or 4 (NF4 with double quantisation)
    /// [default: the training precision]
    #[arg(long, value_name = "BITS")]
    pub base_bits: Option<BaseBits>,
    /// Freeze parts of the model: embedding, head, all-but-head, or blocks such as blocks:0-15, counted from 0
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    pub freeze: Vec<FrozenPart>,
}

fn targets() -> impl clap::builder::TypedValueParser<Value = LoraTarget> {
    one_of(LoraTarget::ALL.iter().map(|target| target.name()))
}

/// The flags, by the fields of a job file.
pub const FLAGS: [(&str, &str); 4] = [
    ("trainable.lora.rank", "--lora-rank"),
    ("trainable.lora.targets", "--lora-targets"),
    ("trainable.base_bits", "--base-bits"),
    ("trainable.freeze", "--freeze"),
];

impl TrainableArgs {
    /// The flag of a field, if it is given.
    pub fn flag(&self, field: &str) -> Option<&'static str> {
        let (_, flag) = FLAGS.into_iter().find(|(name, _)| *name == field)?;
        let given = match flag {
            "--lora-rank" => self.lora_rank.is_some(),
            "--lora-targets" => !self.lora_targets.is_empty(),
            "--base-bits" => self.base_bits.is_some(),
            _ => !self.freeze.is_empty(),
        };
        given.then_some(flag)
    }

    /// Whether they say which parts are trained, and not only in how many bits the others are.
    pub fn gives_parts(&self) -> bool {
        self.lora_rank.is_some() || !self.lora_targets.is_empty() || !self.freeze.is_empty()
    }

    /// Overrides what a file says by what is given.
    ///
    /// # Errors
    /// Layers are to have adapters, but no rank is known.
    pub fn apply(&self, trainable: &mut Trainable) -> Result<(), InputError> {
        if let Some(rank) = self.lora_rank {
            let targets = trainable.lora.map(|lora| lora.targets).unwrap_or_default();
            trainable.lora = Some(Lora { rank, targets });
        }
        if !self.lora_targets.is_empty() {
            let targets = self.lora_targets.iter().copied().collect();
            let Some(lora) = &mut trainable.lora else {
                let listed: Vec<_> = self.lora_targets.iter().map(|target| target.name()).collect();
                let problem = "names layers with adapters, whose rank is not known";
                return Err(InputError::new("trainable.lora.targets", listed.join(","), problem)
                    .hint("give `--lora-rank`, too, e.g. 16"));
            };
            lora.targets = targets;
        }
        trainable.base_bits = self.base_bits.unwrap_or(trainable.base_bits);
        if !self.freeze.is_empty() {
            trainable.freeze.clone_from(&self.freeze);
        }
        Ok(())
    }
}
