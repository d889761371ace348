//! DeepSpeed's `ds_config.json`.

use crate::document::Document;
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, Lack, NO_PIPELINE, Row, count, instead, note_tf32, real, refuse, refuse_fp16,
};
use crate::settings::Field;
use crate::stages::uniform_recompute;
use crate::{Export, Exporter, File};
use autodist_spec::{Codec, InputError, LearningRate, Optimizer, Precision, Recompute};

pub struct DeepSpeed;

impl Exporter for DeepSpeed {
    fn version(&self) -> &'static str {
        "DeepSpeed 0.19"
    }

    fn rows(&self) -> &'static [Row] {
        ROWS
    }

    fn lacks(&self) -> &'static [Lack] {
        LACKS
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let purpose = format!("DeepSpeed trains as planned: {}", job.plan.strategy.label());
        let setup =
            [": \"${TRAIN_SCRIPT:?script that hands its --deepspeed_config to deepspeed.initialize}\""];
        let command = format!("{} \"$TRAIN_SCRIPT\"", job.machines.torchrun());
        let arguments = ["--deepspeed_config \"$(dirname \"$0\")/ds_config.json\"".to_owned()];
        vec![
            File::text("ds_config.json", document.json()),
            File::script(
                "deepspeed.sh",
                Script::new(&purpose, job.machines, &setup).run(&command, &arguments),
            ),
        ]
    }

    fn parse(&self, text: &str) -> Result<Document, InputError> {
        Document::of_json(text)
    }
}

static LACKS: &[Lack] = &[
    NO_PIPELINE[0],
    NO_PIPELINE[1],
    NO_PIPELINE[2],
    NO_PIPELINE[3],
    instead(Field::Model, "the training script builds the model"),
    instead(Field::SeqLen, "the training script cuts sequences"),
    instead(Field::Seed, "the training script seeds"),
    instead(Field::CheckpointInterval, "the training script saves: engine.save_checkpoint"),
    refuse(Field::Context, "context parallelism is not in its configuration", "plan with --cp 1"),
    refuse(Field::Expert, "expert parallelism is not in its configuration", "plan with --ep 1"),
    refuse(
        Field::SequenceParallel,
        "its tensor parallelism keeps whole sequences, which needs more memory than planned",
        "plan with allow.sequence_parallel = [false]",
    ),
    ACTIVATIONS_AS_THEY_ARE,
];

static ROWS: &[Row] = &[
    count!(MicroBatch, micro_batch, "train_micro_batch_size_per_gpu"),
    count!(GlobalBatch, global_batch, "train_batch_size"),
    Row {
        field: Field::Data,
        theirs: "gradient_accumulation_steps",
        write: |settings, draft| draft.set("gradient_accumulation_steps", settings.micro_batches()),
        read: |document, settings| {
            let Some(steps) = document.count("gradient_accumulation_steps")? else { return Ok(false) };
            let round = steps * settings.micro_batch;
            if round == 0 || !settings.global_batch.is_multiple_of(round) {
                return Err(InputError::new(
                    "train_batch_size",
                    settings.global_batch,
                    format!(
                        "is no multiple of train_micro_batch_size_per_gpu {} x gradient_accumulation_steps {steps}",
                        settings.micro_batch
                    ),
                )
                .hint("their quotient is the number of data-parallel ranks"));
            }
            settings.data = settings.global_batch / round;
            Ok(true)
        },
    },
    Row {
        field: Field::Tensor,
        theirs: "tensor_parallel.autotp_size",
        write: |settings, draft| {
            if settings.tensor > 1 {
                draft.set("tensor_parallel.autotp_size", settings.tensor);
            }
        },
        read: |document, settings| {
            settings.tensor = document.count("tensor_parallel.autotp_size")?.unwrap_or(1);
            Ok(true)
        },
    },
    Row {
        field: Field::ZeroStage,
        theirs: "zero_optimization.stage",
        write: |settings, draft| {
            draft.set("zero_optimization.stage", settings.zero_stage);
            draft.set("zero_optimization.overlap_comm", true);
        },
        read: |document, settings| {
            let stage = document.count("zero_optimization.stage")?.unwrap_or(0);
            document.flag("zero_optimization.overlap_comm")?;
            if stage > 3 {
                return Err(InputError::new("zero_optimization.stage", stage, "is none that there is")
                    .hint("give 0, 1, 2 or 3"));
            }
            // One data rank has nobody to share with.
            settings.zero_stage = if settings.data > 1 { stage as u8 } else { 0 };
            Ok(true)
        },
    },
    Row {
        field: Field::Shard,
        theirs: "zero_optimization.stage",
        write: |settings, draft| {
            if !settings.does_without(Field::Shard) {
                draft.refuse(
                    Field::Shard,
                    "ZeRO shards over all data-parallel ranks; MiCS, which did not, is gone",
                    "plan with shard = the data degree",
                );
            }
        },
        read: |_, settings| {
            settings.shard = if settings.zero_stage > 0 { settings.data } else { 1 };
            Ok(true)
        },
    },
    Row {
        field: Field::BucketBytes,
        theirs: "zero_optimization.reduce_bucket_size",
        // In elements; a plan's bytes are of fp32.
        write: |settings, draft| {
            draft.set("zero_optimization.reduce_bucket_size", settings.bucket_bytes.div_ceil(4));
        },
        read: |document, settings| {
            let Some(elements) = document.real("zero_optimization.reduce_bucket_size")? else {
                return Ok(false);
            };
            settings.bucket_bytes = 4 * elements.max(1.0) as u64;
            Ok(true)
        },
    },
    Row {
        field: Field::Gradients,
        theirs: "communication_data_type",
        write: |settings, draft| match settings.gradients {
            Codec::None => draft.set("communication_data_type", "fp32"),
            Codec::Fp16 => draft.set("communication_data_type", "fp16"),
            Codec::Bf16 => draft.set("communication_data_type", "bf16"),
            _ => draft.refuse(
                Field::Gradients,
                "gradients travel as fp32, fp16 or bf16; its 1-bit optimizers are gone",
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
                        "is none that DeepSpeed knows",
                    )
                    .hint("give fp32, fp16 or bf16"));
                }
            };
            Ok(true)
        },
    },
    Row {
        field: Field::Parameters,
        theirs: "zero_optimization.zero_quantized_weights",
        write: |settings, draft| match settings.parameters {
            Codec::None => {}
            // ZeRO++ quantises by blocks, too; it chooses their size.
            Codec::Int8 { .. } => draft.set("zero_optimization.zero_quantized_weights", true),
            _ => draft.refuse(
                Field::Parameters,
                "gathered parameters travel as they are, or as int8",
                "plan with parameter_codecs of none and int8",
            ),
        },
        read: |document, settings| {
            let quantised = document.flag("zero_optimization.zero_quantized_weights")?.unwrap_or(false);
            settings.parameters = if quantised { Codec::Int8 { block: 256 } } else { Codec::None };
            Ok(true)
        },
    },
    Row {
        field: Field::Precision,
        theirs: "bf16.enabled",
        write: |settings, draft| {
            draft.set("bf16.enabled", settings.precision == Precision::Bf16);
            note_tf32(settings, draft);
        },
        read: |document, settings| {
            refuse_fp16(document, "fp16.enabled")?;
            let bf16 = document.flag("bf16.enabled")?.unwrap_or(false);
            settings.precision = if bf16 { Precision::Bf16 } else { Precision::Fp32 };
            Ok(true)
        },
    },
    Row {
        field: Field::Recompute,
        theirs: "activation_checkpointing.number_checkpoints",
        write: |settings, draft| {
            if uniform_recompute(settings, draft, false) == Recompute::Full {
                draft.set("activation_checkpointing.number_checkpoints", settings.blocks());
            }
        },
        read: |document, settings| {
            let Some(blocks) = document.count("activation_checkpointing.number_checkpoints")? else {
                return Ok(false);
            };
            settings.recompute = vec![Recompute::Full; blocks as usize];
            Ok(true)
        },
    },
    Row {
        field: Field::Optimizer,
        theirs: "optimizer.type, optimizer.params.betas, optimizer.params.eps, optimizer.params.momentum, \
                 optimizer.params.weight_decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                draft.set("optimizer.type", "AdamW");
                draft.set("optimizer.params.betas", vec![beta1, beta2]);
                draft.set("optimizer.params.eps", epsilon);
                draft.set("optimizer.params.weight_decay", weight_decay);
            }
            Optimizer::Sgd { momentum, weight_decay } => {
                draft.set("optimizer.type", "SGD");
                draft.set("optimizer.params.momentum", momentum);
                draft.set("optimizer.params.weight_decay", weight_decay);
            }
        },
        read: |document, settings| {
            let Some(kind) = document.text("optimizer.type") else { return Ok(false) };
            let weight_decay = document.real("optimizer.params.weight_decay")?.unwrap_or(0.0);
            settings.optimizer = match kind.as_str() {
                "SGD" => Optimizer::Sgd {
                    momentum: document.real("optimizer.params.momentum")?.unwrap_or(0.0),
                    weight_decay,
                },
                "Adam" | "AdamW" => {
                    let betas = document.reals("optimizer.params.betas")?.unwrap_or_default();
                    Optimizer::AdamW {
                        beta1: betas.first().copied().unwrap_or(0.9),
                        beta2: betas.get(1).copied().unwrap_or(0.999),
                        epsilon: document.real("optimizer.params.eps")?.unwrap_or(1e-8),
                        weight_decay,
                    }
                }
                _ => {
                    return Err(InputError::new("optimizer.type", kind, "is none that plans have")
                        .hint("plans know AdamW and SGD; a plan's memory is that of its optimizer's state"));
                }
            };
            Ok(true)
        },
    },
    Row {
        field: Field::LearningRate,
        theirs: "optimizer.params.lr, scheduler.type, scheduler.params.warmup_num_steps, \
                 scheduler.params.total_num_steps, scheduler.params.cos_min_ratio",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            draft.set("optimizer.params.lr", peak);
            draft.set("scheduler.type", "WarmupCosineLR");
            draft.set("scheduler.params.warmup_num_steps", warmup_steps);
            draft.set("scheduler.params.warmup_type", "linear");
            draft.set("scheduler.params.total_num_steps", total_steps);
            draft.set("scheduler.params.cos_min_ratio", final_fraction);
        },
        read: |document, settings| {
            let Some(peak) = document.real("optimizer.params.lr")? else { return Ok(false) };
            let cosine = document.text("scheduler.type").is_some_and(|kind| kind == "WarmupCosineLR");
            document.text("scheduler.params.warmup_type");
            settings.learning_rate = LearningRate {
                peak,
                warmup_steps: document.count("scheduler.params.warmup_num_steps")?.unwrap_or(0),
                total_steps: document.count("scheduler.params.total_num_steps")?.unwrap_or(1),
                final_fraction: document.real("scheduler.params.cos_min_ratio")?.unwrap_or(1.0),
            };
            Ok(cosine)
        },
    },
    real!(GradientClip, gradient_clip, "gradient_clipping"),
];
