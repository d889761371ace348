//! The file of `accelerate launch --config_file`.

use crate::document::{Document, product, quotient};
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, Draft, FieldMapping, NO_PIPELINE, PARAMETERS_AS_THEY_ARE, UnsupportedField,
    instead, note_tf32, refuse,
};
use crate::settings::{Field, Settings};
use crate::stages::uniform_recompute;
use crate::{Export, Exporter, File};
use autodist_spec::{InputError, Precision, Recompute};

pub struct Accelerate;

impl Exporter for Accelerate {
    fn version(&self) -> &'static str {
        "Accelerate 1.15"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let purpose = format!("Accelerate trains as planned: {}", job.plan.strategy.label());
        let setup = [": \"${TRAIN_SCRIPT:?script that creates an Accelerator}\""];
        let script =
            Script::new(&purpose, job.machines, &setup).run(&launch(job), &["\"$TRAIN_SCRIPT\"".to_owned()]);
        vec![File::text("accelerate.yaml", document.yaml()), File::script("accelerate.sh", script)]
    }

    fn parse(&self, text: &str) -> Result<Document, InputError> {
        Document::of_yaml(text)
    }
}

/// The command that starts the processes with the file beside the script.
pub(crate) fn launch(job: &Export<'_>) -> String {
    let mut command = "accelerate launch --config_file \"$(dirname \"$0\")/accelerate.yaml\"".to_owned();
    if job.machines.nodes > 1 {
        command += " --machine_rank \"$NODE_RANK\" --main_process_ip \"$MASTER_ADDR\"";
        command += " --main_process_port \"${MASTER_PORT:-29500}\"";
    }
    command
}

/// Refuses options that FSDP2 and its device mesh do not support.
pub(crate) fn refuse_zero(settings: &Settings, draft: &mut Draft) {
    if settings.zero_stage == 1 {
        draft.refuse(
            Field::ZeroStage,
            "FSDP shards gradients together with the optimizer's state",
            "plan with --zero 2 or 3, or export to deepspeed",
        );
    }
    if settings.zero_stage == 0 && settings.data > 1 && settings.tensor.saturating_mul(settings.context) > 1 {
        draft.refuse(
            Field::ZeroStage,
            "data parallelism combined with tensor or context parallelism needs FSDP",
            "plan with --zero 2 or 3, or with data, tensor or context parallelism alone",
        );
    }
}

static UNSUPPORTED: &[UnsupportedField] = &[
    NO_PIPELINE[0],
    NO_PIPELINE[1],
    NO_PIPELINE[2],
    NO_PIPELINE[3],
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
    refuse(Field::Expert, "its configuration has no expert parallelism", "plan with --ep 1"),
    refuse(
        Field::SequenceParallel,
        "it has no sequence parallelism, so activations need more memory than planned",
        "plan with allow.sequence_parallel = [false]",
    ),
    refuse(
        Field::Gradients,
        "the training script must set communication hooks with DistributedDataParallelKwargs",
        "plan with allow.codecs = [\"none\"], or train with `--engine torch`",
    ),
    instead(Field::Model, "the training script builds the model"),
    instead(Field::MicroBatch, "the training script sets the micro-batch: per_device_train_batch_size"),
    instead(
        Field::GlobalBatch,
        "the training script sets gradient accumulation: gradient_accumulation_steps",
    ),
    instead(Field::SeqLen, "the training script sets the sequence length"),
    instead(Field::Optimizer, "the training script creates the optimizer"),
    instead(Field::LearningRate, "the training script sets it"),
    instead(Field::GradientClip, "the training script clips gradients: accelerator.clip_grad_norm_"),
    instead(Field::Seed, "the training script sets it: set_seed"),
    instead(
        Field::BucketBytes,
        "one bucket per block with FSDP; with DDP the training script sets bucket_cap_mb",
    ),
    instead(Field::CheckpointInterval, "the training script saves checkpoints: accelerator.save_state"),
];

static ROWS: &[FieldMapping] = &[
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "distributed_type, fsdp_config.fsdp_version, fsdp_config.fsdp_reshard_after_forward",
        write: |settings, draft| {
            refuse_zero(settings, draft);
            let (machines, mesh) = (
                draft.machines,
                settings.zero_stage > 0 || settings.tensor.saturating_mul(settings.context) > 1,
            );
            draft.set("compute_environment", "LOCAL_MACHINE");
            let plain = if machines.gpus { "MULTI_GPU" } else { "MULTI_CPU" };
            draft.set("distributed_type", if mesh { "FSDP" } else { plain });
            draft.set("num_machines", machines.nodes);
            draft.set("num_processes", machines.devices());
            draft.set("machine_rank", 0);
            draft.set("rdzv_backend", "static");
            draft.set("use_cpu", !machines.gpus);
            if mesh {
                draft.set("fsdp_config.fsdp_version", 2);
                draft.set("fsdp_config.fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP");
                draft.set("fsdp_config.fsdp_state_dict_type", "SHARDED_STATE_DICT");
                draft.set("fsdp_config.fsdp_offload_params", false);
                draft.set("fsdp_config.fsdp_reshard_after_forward", settings.zero_stage == 3);
            }
        },
        read: |document, settings| {
            for key in [
                "compute_environment",
                "num_machines",
                "machine_rank",
                "rdzv_backend",
                "use_cpu",
                "fsdp_config.fsdp_auto_wrap_policy",
                "fsdp_config.fsdp_state_dict_type",
                "fsdp_config.fsdp_version",
            ] {
                document.get(key);
            }
            let Some(kind) = document.text("distributed_type") else { return Ok(false) };
            let resharded = match document.get("fsdp_config.fsdp_reshard_after_forward") {
                None => true,
                Some(serde_json::Value::String(old)) => old == "FULL_SHARD" || old == "true",
                Some(value) => value == &serde_json::Value::Bool(true),
            };
            let sharded = document.size(SHARD)?.is_none_or(|size| size > 1);
            settings.zero_stage = match kind.as_str() {
                "FSDP" if sharded => {
                    if resharded {
                        3
                    } else {
                        2
                    }
                }
                _ => 0,
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Tensor,
        theirs: "parallelism_config.parallelism_config_tp_size",
        write: |settings, draft| {
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set(TENSOR, settings.tensor);
            }
        },
        read: |document, settings| {
            settings.tensor = document.size(TENSOR)?.unwrap_or(1);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Context,
        theirs: "parallelism_config.parallelism_config_cp_size",
        write: |settings, draft| {
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set(CONTEXT, settings.context);
            }
        },
        read: |document, settings| {
            settings.context = document.size(CONTEXT)?.unwrap_or(1);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Data,
        theirs: "num_processes, parallelism_config.parallelism_config_dp_replicate_size",
        write: |settings, draft| {
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set(REPLICATE, settings.data / settings.shard);
            }
        },
        read: |document, settings| {
            let Some(processes) = document.size("num_processes")? else { return Ok(false) };
            let what = "parallelism_config_tp_size x parallelism_config_cp_size";
            let others = product(what, &[settings.tensor, settings.context])?;
            settings.data = quotient("num_processes", processes.into(), others.into(), what)?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "parallelism_config.parallelism_config_dp_shard_size",
        write: |settings, draft| {
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set(SHARD, settings.shard);
            }
        },
        read: |document, settings| {
            let replicas = document.size(REPLICATE)?.unwrap_or(1);
            let shard = match document.size(SHARD)? {
                Some(shard) => shard,
                None => quotient("data-parallel ranks", settings.data.into(), replicas.into(), REPLICATE)?,
            };
            settings.shard = if settings.zero_stage > 0 { shard } else { 1 };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "mixed_precision",
        write: |settings, draft| {
            draft.set("mixed_precision", if settings.precision == Precision::Bf16 { "bf16" } else { "no" });
            note_tf32(settings, draft);
        },
        read: |document, settings| {
            let Some(kind) = document.text("mixed_precision") else { return Ok(false) };
            settings.precision = match kind.as_str() {
                "no" => Precision::Fp32,
                "bf16" => Precision::Bf16,
                _ => {
                    return Err(InputError::new(
                        "mixed_precision",
                        kind,
                        "is not a precision that plans support",
                    )
                    .hint("use bf16, or no for fp32"));
                }
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: "fsdp_config.fsdp_activation_checkpointing",
        write: |settings, draft| {
            let full = uniform_recompute(settings, draft, false) == Recompute::Full;
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set("fsdp_config.fsdp_activation_checkpointing", full);
            } else if full {
                draft.instead(
                    Field::Recompute,
                    "without FSDP the training script enables it: model.gradient_checkpointing_enable()",
                );
            }
        },
        read: |document, settings| {
            let Some(full) = document.flag("fsdp_config.fsdp_activation_checkpointing")? else {
                return Ok(false);
            };
            settings.recompute =
                vec![if full { Recompute::Full } else { Recompute::None }; settings.blocks() as usize];
            Ok(settings.blocks() > 0)
        },
    },
];

const REPLICATE: &str = "parallelism_config.parallelism_config_dp_replicate_size";
const SHARD: &str = "parallelism_config.parallelism_config_dp_shard_size";
const TENSOR: &str = "parallelism_config.parallelism_config_tp_size";
const CONTEXT: &str = "parallelism_config.parallelism_config_cp_size";
