//! Parsers of named values, with their descriptions in the help.

use autodist_analytic::{AttentionChoice, BlockKind, LossKind, Trainer};
use autodist_spec::quantity::{self, NotAQuantity};
use autodist_spec::{Engine, Objective, Precision, Recompute, ScheduleKind};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::error::Error;
use std::str::FromStr;

/// Parses the names of some values.
pub fn one_of<T>(
    names: impl IntoIterator<Item = impl Into<PossibleValue>>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// Training frameworks, also by the names of the projects that use them.
pub fn trainers() -> impl TypedValueParser<Value = Trainer> {
    one_of(Trainer::ALL.iter().map(|trainer| {
        let value = PossibleValue::new(trainer.name());
        match trainer {
            Trainer::Fsdp2 => value.alias("torchtitan"),
            Trainer::Nemo => value.alias("megatron-bridge"),
            _ => value,
        }
    }))
}

pub fn attention_kinds() -> impl TypedValueParser<Value = AttentionChoice> {
    one_of([
        described(AttentionChoice::Unfused, "GEMMs and a softmax, with the scores in memory"),
        described(AttentionChoice::Flash, "FlashAttention, of the generation that the trainer uses"),
        described(AttentionChoice::Cudnn, "cuDNN's fused kernels"),
    ])
}

pub fn loss_kinds() -> impl TypedValueParser<Value = LossKind> {
    one_of([
        described(LossKind::Fused, "One fused kernel, which keeps logits in 16 bits"),
        described(LossKind::Whole, "Separate kernels over whole logits in 32 bits"),
    ])
}

pub fn block_kinds() -> impl TypedValueParser<Value = BlockKind> {
    one_of([
        described(BlockKind::Fused, "Norms and activations are one kernel each (torch.compile, Liger)"),
        described(
            BlockKind::Eager,
            "Each operation of the modelling code is a kernel, and keeps its own tensors",
        ),
    ])
}

/// A value's name and its description in the help.
fn described(value: impl Into<&'static str>, help: &'static str) -> PossibleValue {
    PossibleValue::new(value.into()).help(help)
}

pub fn objectives() -> impl TypedValueParser<Value = Objective> {
    one_of([
        described(Objective::StepTime, "Time of one optimizer step"),
        described(
            Objective::TimeToLoss,
            "Step time, multiplied by how many more steps lossy gradients need to reach the same loss",
        ),
    ])
}

pub fn own_precisions() -> impl TypedValueParser<Value = Precision> {
    one_of(Precision::OWN.map(described_precision))
}

pub fn precisions() -> impl TypedValueParser<Value = Precision> {
    one_of(Precision::ALL.iter().copied().map(described_precision))
}

fn described_precision(precision: Precision) -> PossibleValue {
    let help = match precision {
        Precision::Fp32 => "32-bit floats; the only precision on CPUs",
        Precision::Tf32 => "32-bit floats, with GEMM operands rounded to TF32 (GPUs only)",
        Precision::Fp16 => {
            "fp16 parameters and activations, with fp32 master weights and optimizer state (other trainers only)"
        }
        Precision::Bf16 => {
            "bf16 parameters and activations, with fp32 master weights, gradients and optimizer state (GPUs only)"
        }
        Precision::Fp8 => "As bf16, with the GEMMs of linear layers in FP8 (other trainers only)",
    };
    described(precision, help)
}

pub fn recompute_modes() -> impl TypedValueParser<Value = Recompute> {
    one_of([
        described(Recompute::None, "Keep all activations until the backward pass"),
        described(Recompute::Selective, "Recompute the attention core"),
        described(Recompute::Full, "Recompute whole transformer blocks"),
    ])
}

pub fn schedules() -> impl TypedValueParser<Value = ScheduleKind> {
    one_of([
        described(ScheduleKind::GPipe, "All forward passes, then all backward passes"),
        described(ScheduleKind::OneFOneB, "One forward, one backward"),
        described(ScheduleKind::Interleaved, "1F1B with several virtual stages per pipeline rank"),
    ])
}

pub fn engines() -> impl TypedValueParser<Value = Engine> {
    one_of([
        described(Engine::Native, "autodist's own executor"),
        described(Engine::Torch, "PyTorch, with the package in executor/torch"),
    ])
}

/// A number of steps, of which there must be one.
pub fn above_zero(text: &str) -> Result<u32, NotAQuantity> {
    let wrong =
        || NotAQuantity { problem: "must be at least 1".to_owned(), hint: "write e.g. 500 or 2k".to_owned() };
    quantity::count(text).and_then(|value| if value == 0 { Err(wrong()) } else { Ok(value) })
}

/// The degree of a kind of parallelism; whether it divides the devices is known later.
pub fn degree(text: &str) -> Result<u32, NotAQuantity> {
    text.trim().parse().map_err(|_| NotAQuantity {
        problem: "is not a whole number".to_owned(),
        hint: "write e.g. 4, or in a search a list such as 1,2,4".to_owned(),
    })
}
