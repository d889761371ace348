//! DeepSpeed's `ds_config.json`.

mod rules;

use crate::document::{Document, product, quotient};
use crate::launch::Script;
use crate::recompute;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, FieldMapping, NO_PIPELINE, ReadRate, UnsupportedField, clip, instead, note_tf32,
    refuse, sixteen_bits,
};
use crate::settings::Field;
use crate::stages::uniform_recompute;
use crate::states;
use crate::trainable;
use crate::unsupported::KeyRule;
use crate::{Export, Exporter, File, Files};
use autodist_spec::{Codec, Hyperparameter, InputError, LearningRate, Optimizer, Precision, Recompute};
use rules::RULES;

pub struct DeepSpeed;

impl Exporter for DeepSpeed {
    fn version(&self) -> &'static str {
        "DeepSpeed 0.19"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let purpose = format!("DeepSpeed trains as planned: {}", job.plan.strategy.label());
        let setup = [": \"${TRAIN_SCRIPT:?script that passes --deepspeed_config to deepspeed.initialize}\""];
        let mut files = vec![File::text("ds_config.json", document.json())];
        let mut program = "\"$TRAIN_SCRIPT\"".to_owned();
        if document.has(CHECKPOINTS) {
            files.push(recompute::file("deepspeed.initialize", job.settings.blocks()));
            program = recompute::program(&program);
        }
        let command = format!("{} {program}", job.machines.torchrun());
        let arguments = ["--deepspeed_config \"$(dirname \"$0\")/ds_config.json\"".to_owned()];
        let script = Script::new(&purpose, job.machines, &setup).run(&command, &arguments);
        files.push(File::script("deepspeed.sh", script));
        files
    }

    fn uses_deepspeed(&self, _document: &Document) -> bool {
        true
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES]
    }

    fn parse(&self, text: &str, _open: Files) -> Result<Document, InputError> {
        // The launcher determines "auto" values, so they are taken from the command line.
        Ok(Document::of_json(text)?.without_auto())
    }
}

const MICRO: &str = "train_micro_batch_size_per_gpu";
const TOTAL: &str = "train_batch_size";
const STEPS: &str = "gradient_accumulation_steps";
const CHECKPOINTS: &str = "activation_checkpointing.number_checkpoints";
const UNTESTED: &str = "zero_allow_untested_optimizer";
const DECAY: Hyperparameter = Hyperparameter::WeightDecay;

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::BY_SCRIPT,
    NO_PIPELINE[0],
    NO_PIPELINE[1],
    NO_PIPELINE[2],
    NO_PIPELINE[3],
    instead(Field::Model, "the training script builds the model"),
    instead(Field::SeqLen, "the training script sets the sequence length"),
    instead(Field::Seed, "the training script sets it"),
    instead(Field::CheckpointInterval, "the training script saves checkpoints: engine.save_checkpoint"),
    refuse(Field::Context, "its configuration has no context parallelism", "plan with --cp 1"),
    refuse(Field::Expert, "its configuration has no expert parallelism", "plan with --ep 1"),
    refuse(
        Field::SequenceParallel,
        "it has no sequence parallelism, so activations need more memory than planned",
        "plan with allow.sequence_parallel = [false]",
    ),
    ACTIVATIONS_AS_THEY_ARE,
];

/// Steps of gradient accumulation, which are 1 if they are missing; unknown if they, or the batch under
/// `key`, are left to the launcher.
fn steps(document: &Document, key: &str) -> Result<Option<u32>, InputError> {
    let steps = document.size(STEPS)?;
    let open = document.has(STEPS) || document.has(key);
    Ok(steps.or((!open).then_some(1)))
}

static ROWS: &[FieldMapping] = &[
    FieldMapping {
        field: Field::Tensor,
        theirs: "tensor_parallel.autotp_size",
        write: |settings, draft| {
            if settings.tensor > 1 {
                draft.set("tensor_parallel.autotp_size", settings.tensor);
            }
        },
        read: |document, settings| {
            settings.tensor = document.size("tensor_parallel.autotp_size")?.unwrap_or(1);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::GlobalBatch,
        theirs: TOTAL,
        write: |settings, draft| {
            // Where the file asks for tensor parallelism, it counts all ranks as data-parallel ones when it checks
            // the total, which then follows from the other two numbers.
            if settings.tensor == 1 {
                draft.set(TOTAL, settings.global_batch);
            }
        },
        read: |document, settings| {
            if let Some(total) = document.size(TOTAL)? {
                settings.global_batch = total;
                return Ok(true);
            }
            let given = settings.overridden(Field::MicroBatch).then_some(settings.micro_batch);
            let Some(ranks) = settings.ranks() else { return Ok(false) };
            let (Some(micro), Some(steps)) = (given.or(document.size(MICRO)?), steps(document, TOTAL)?)
            else {
                return Ok(false);
            };
            let what = "train_micro_batch_size_per_gpu x gradient_accumulation_steps x data-parallel ranks";
            settings.global_batch = product(what, &[micro, steps, ranks])?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::MicroBatch,
        theirs: MICRO,
        write: |settings, draft| draft.set(MICRO, settings.micro_batch),
        read: |document, settings| {
            if let Some(micro) = document.size(MICRO)? {
                settings.micro_batch = micro;
                return Ok(true);
            }
            let total = document.text(TOTAL).map(|_| settings.global_batch);
            let (Some(total), Some(ranks), Some(steps)) = (total, settings.ranks(), steps(document, MICRO)?)
            else {
                return Ok(false);
            };
            let what = "gradient_accumulation_steps x data-parallel ranks";
            let rounds = product(what, &[steps, ranks])?;
            settings.micro_batch = quotient(TOTAL, total.into(), rounds.into(), what)?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Data,
        theirs: STEPS,
        write: |settings, draft| draft.set(STEPS, settings.micro_batches()),
        read: |document, settings| {
            // With a batch or a degree changed, the steps differ from those of the file.
            let changed =
                [Field::MicroBatch, Field::GlobalBatch, Field::Tensor, Field::Pipeline, Field::Context];
            if settings.command.devices.is_some() && changed.iter().any(|field| settings.overridden(*field)) {
                document.get(STEPS);
                return Ok(false);
            }
            let (Some(total), Some(micro)) = (document.size(TOTAL)?, document.size(MICRO)?) else {
                document.size(STEPS)?;
                return Ok(false);
            };
            if let Some(steps) = document.size(STEPS)? {
                let what = "train_micro_batch_size_per_gpu x gradient_accumulation_steps";
                settings.data = quotient(TOTAL, total.into(), product(what, &[steps, micro])?.into(), what)?;
                return Ok(true);
            }
            if let Some(ranks) = settings.ranks() {
                let what = "train_micro_batch_size_per_gpu x data-parallel ranks";
                quotient(TOTAL, total.into(), product(what, &[micro, ranks])?.into(), what)?;
            }
            Ok(false)
        },
    },
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "zero_optimization.stage",
        write: |settings, draft| {
            draft.set("zero_optimization.stage", settings.zero_stage);
            draft.set("zero_optimization.overlap_comm", true);
        },
        read: |document, settings| {
            settings.zero_stage = document.zero_stage("zero_optimization.stage")?.unwrap_or(0);
            document.flag("zero_optimization.overlap_comm")?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "zero_optimization.stage",
        write: |settings, draft| {
            if !settings.does_without(Field::Shard) {
                draft.refuse(
                    Field::Shard,
                    "ZeRO shards over all data-parallel ranks; MiCS, which did not, was removed",
                    "plan with `--shard` equal to the data-parallel degree",
                );
            }
        },
        read: |_, settings| {
            settings.shard = if settings.zero_stage > 0 { settings.data } else { 1 };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::BucketBytes,
        theirs: "zero_optimization.reduce_bucket_size",
        // In elements; a plan's bytes are for fp32.
        write: |settings, draft| {
            draft.set("zero_optimization.reduce_bucket_size", settings.bucket_bytes.div_ceil(4));
        },
        read: |document, settings| {
            let Some(bytes) = document.bucket("zero_optimization.reduce_bucket_size", 4)? else {
                return Ok(false);
            };
            settings.bucket_bytes = bytes;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Gradients,
        theirs: "communication_data_type",
        write: |settings, draft| match settings.gradients {
            Codec::None => draft.set("communication_data_type", "fp32"),
            Codec::Fp16 => draft.set("communication_data_type", "fp16"),
            Codec::Bf16 => draft.set("communication_data_type", "bf16"),
            _ => draft.refuse(
                Field::Gradients,
                "gradients are reduced in fp32, fp16 or bf16; its 1-bit optimizers were removed",
                "plan with allow.codecs = [\"none\", \"fp16\", \"bf16\"]",
            ),
        },
        read: |document, settings| {
            let Some(kind) = document.text("communication_data_type") else { return Ok(false) };
            settings.gradients = match kind.as_str() {
                "fp32" => Codec::None,
                "fp16" => Codec::Fp16,
                "bf16" | "bfp16" => Codec::Bf16,
                _ => {
                    return Err(InputError::new(
                        "communication_data_type",
                        kind,
                        "is not a precision of DeepSpeed",
                    )
                    .hint("use fp32, fp16 or bf16"));
                }
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Parameters,
        theirs: "zero_optimization.zero_quantized_weights",
        write: |settings, draft| match settings.parameters {
            Codec::None => {}
            // ZeRO++ quantises in blocks, too, and chooses their size.
            Codec::Int8 { .. } => draft.set("zero_optimization.zero_quantized_weights", true),
            _ => draft.refuse(
                Field::Parameters,
                "parameters are gathered uncompressed or as int8",
                "plan with allow.parameter_codecs of none and int8",
            ),
        },
        read: |document, settings| {
            let quantised = document.flag("zero_optimization.zero_quantized_weights")?.unwrap_or(false);
            settings.parameters = if quantised { Codec::Int8 { block: 256 } } else { Codec::None };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "bf16.enabled, fp16.enabled",
        write: |settings, draft| {
            draft.set("bf16.enabled", settings.precision == Precision::Bf16);
            if settings.precision == Precision::Fp16 {
                draft.set("fp16.enabled", true);
            }
            note_tf32(settings, draft);
        },
        read: |document, settings| {
            let found = sixteen_bits(document, "bf16.enabled", "fp16.enabled")?;
            settings.precision = found.unwrap_or(Precision::Fp32);
            // The launcher determines "auto".
            let given = |key| Ok::<_, InputError>(document.flag(key)?.is_some() || !document.has(key));
            Ok(found.is_some() || (given("bf16.enabled")? && given("fp16.enabled")?))
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: CHECKPOINTS,
        // The key only sizes buffers of DeepSpeed's own function; blocks are recomputed by the module that
        // `files` adds.
        write: |settings, draft| {
            if uniform_recompute(settings, draft, false) == Recompute::Full {
                draft.set(CHECKPOINTS, settings.blocks());
            }
        },
        read: |document, settings| {
            let Some(blocks) = document.blocks(CHECKPOINTS)? else {
                return Ok(false);
            };
            settings.recompute = vec![Recompute::Full; blocks as usize];
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Optimizer,
        theirs: "optimizer.type, optimizer.params.betas, optimizer.params.eps, optimizer.params.momentum, \
                 optimizer.params.weight_decay",
        write: |settings, draft| {
            if !settings.gives(Hyperparameter::PeakLearningRate) {
                // If it were set here, it would train at its own learning rate.
                draft.instead(
                    Field::Optimizer,
                    "the training script creates it, because no learning rate was given",
                );
                return;
            }
            match settings.optimizer {
                Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                    draft.set("optimizer.type", "AdamW");
                    draft.set_given(Hyperparameter::Betas, "optimizer.params.betas", vec![beta1, beta2]);
                    draft.set_given(Hyperparameter::Epsilon, "optimizer.params.eps", epsilon);
                    draft.set_given(DECAY, "optimizer.params.weight_decay", weight_decay);
                }
                Optimizer::Sgd { momentum, weight_decay } => {
                    draft.set("optimizer.type", "SGD");
                    if settings.zero_stage > 0 {
                        // Otherwise it stops: it tests ZeRO with Adam alone.
                        draft.set(UNTESTED, true);
                    }
                    draft.set_given(Hyperparameter::Momentum, "optimizer.params.momentum", momentum);
                    draft.set_given(DECAY, "optimizer.params.weight_decay", weight_decay);
                }
            }
        },
        read: |document, settings| {
            let Some(kind) = document.text("optimizer.type") else { return Ok(false) };
            let weight_decay = document.real("optimizer.params.weight_decay")?;
            settings.give(DECAY, weight_decay.is_some());
            let weight_decay = weight_decay.unwrap_or(0.0);
            settings.optimizer = match kind.as_str() {
                "SGD" => {
                    document.flag(UNTESTED)?;
                    let momentum = document.real("optimizer.params.momentum")?;
                    settings.give(Hyperparameter::Momentum, momentum.is_some());
                    Optimizer::Sgd { momentum: momentum.unwrap_or(0.0), weight_decay }
                }
                "Adam" | "AdamW" => {
                    let betas = document.reals("optimizer.params.betas")?;
                    let epsilon = document.real("optimizer.params.eps")?;
                    settings.give(Hyperparameter::Betas, betas.is_some());
                    settings.give(Hyperparameter::Epsilon, epsilon.is_some());
                    let betas = betas.unwrap_or_default();
                    Optimizer::AdamW {
                        beta1: betas.first().copied().unwrap_or(0.9),
                        beta2: betas.get(1).copied().unwrap_or(0.999),
                        epsilon: epsilon.unwrap_or(1e-8),
                        weight_decay,
                    }
                }
                _ => {
                    return Err(InputError::new(
                        "optimizer.type",
                        kind,
                        "is not an optimizer that plans support",
                    )
                    .hint("use AdamW or SGD: a plan's memory depends on the optimizer state"));
                }
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::LearningRate,
        theirs: "optimizer.params.lr, scheduler.type, scheduler.params.warmup_num_steps, \
                 scheduler.params.total_num_steps, scheduler.params.cos_min_ratio",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            draft.set_given(Hyperparameter::PeakLearningRate, "optimizer.params.lr", peak);
            let parts =
                [Hyperparameter::FinalFraction, Hyperparameter::TotalSteps, Hyperparameter::WarmupSteps];
            if parts.iter().all(|part| settings.gives(*part)) {
                draft.set("scheduler.type", "WarmupCosineLR");
                draft.set("scheduler.params.warmup_num_steps", warmup_steps);
                draft.set("scheduler.params.warmup_type", "linear");
                draft.set("scheduler.params.total_num_steps", total_steps);
                draft.set("scheduler.params.cos_min_ratio", final_fraction);
                if warmup_steps > 0 {
                    draft.instead(
                        Field::LearningRate,
                        "its warm-up starts at 0, and is two steps behind the plan's",
                    );
                }
            } else if parts.iter().any(|part| settings.gives(*part)) {
                // DeepSpeed's scheduler has its own defaults for missing values.
                draft.instead(
                    Field::LearningRate,
                    "the training script creates the scheduler, because not all of its settings were given",
                );
            }
        },
        read: |document, settings| {
            let cosine = document.text("scheduler.type").is_some_and(|kind| kind == "WarmupCosineLR");
            document.text("scheduler.params.warmup_type");
            let ratio = document.real("scheduler.params.cos_min_ratio")?;
            let rate = ReadRate {
                peak: document.real("optimizer.params.lr")?,
                warmup_steps: document.count("scheduler.params.warmup_num_steps")?,
                total_steps: document.count("scheduler.params.total_num_steps")?,
                final_fraction: ratio.filter(|_| cosine),
            };
            Ok(rate.take(settings))
        },
    },
    states::DEEPSPEED,
    clip!("gradient_clipping"),
];
