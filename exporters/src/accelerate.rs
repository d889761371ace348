//! The file of `accelerate launch --config_file`.

use crate::document::{Document, product, quotient};
use crate::kernels::{self, KernelNames};
use crate::launch::Script;
use crate::recompute;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, Draft, FieldMapping, NO_PIPELINE, PARAMETERS_AS_THEY_ARE, UnsupportedField,
    instead, note_tf32, refuse,
};
use crate::settings::{Field, Settings};
use crate::stages::uniform_recompute;
use crate::states;
use crate::trainable;
use crate::unsupported::{KeyRule, approximated, ignored, refused};
use crate::{DeepSpeedKeys, Export, Exporter, File, Files};
use autodist_spec::{InputError, Precision, Recompute};

pub struct Accelerate;

impl Exporter for Accelerate {
    fn kernels(&self, document: &Document) -> Result<KernelNames, InputError> {
        kernels::of_transformers(document)
    }

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
        let mut setup = vec![": \"${TRAIN_SCRIPT:?script that creates an Accelerator}\""];
        setup.extend(on_cpus(job));
        let mut files = vec![File::text("accelerate.yaml", document.yaml())];
        let mut program = "\"$TRAIN_SCRIPT\"".to_owned();
        if recomputes(job.settings) && !document.has(FSDP_RECOMPUTE) {
            files.push(recompute::file("accelerate.Accelerator.prepare", job.settings.blocks()));
            program = recompute::program(&program);
        }
        let script = Script::new(&purpose, job.machines, &setup).run(&launch(job), &[program]);
        files.push(File::script("accelerate.sh", script));
        files
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES]
    }

    fn deepspeed(&self) -> Option<DeepSpeedKeys> {
        Some(DeepSpeedKeys {
            file: "deepspeed_config.deepspeed_config_file",
            section: "deepspeed_config",
            inline: false,
            splits: false,
        })
    }

    fn uses_deepspeed(&self, document: &Document) -> bool {
        document.text("distributed_type").as_deref() == Some("DEEPSPEED")
    }

    fn parse(&self, text: &str, _open: Files) -> Result<Document, InputError> {
        Ok(Document::of_yaml(text)?.without_auto())
    }
}

static RULES: &[KeyRule] = &[
    refused(
        &["parallelism_config_sp_size"],
        &["1"],
        "splits sequences between ranks by Ulysses, which is not read",
        "set it to 1, and give context parallelism by `--cp`",
    ),
    refused(
        &["megatron_lm_config."],
        &[],
        "is a setting of Megatron-LM, which is not read from Accelerate's files",
        "read Megatron-LM's own command line: `--from megatron FILE`",
    ),
    approximated(&[
        "dynamo_backend",
        "dynamo_config.",
        "fsdp_backward_prefetch",
        "fsdp_forward_prefetch",
        "fsdp_limit_all_gathers",
        "fsdp_use_orig_params",
        "fsdp_min_num_params",
        "fsdp_transformer_layer_cls_to_wrap",
        "parallelism_config_cp_comm_strategy",
        "parallelism_config_cp_backend",
    ]),
    ignored(&[
        "fsdp_cpu_ram_efficient_loading",
        "fsdp_sync_module_states",
        "fsdp_state_dict_type",
        "parallelism_config_sp_backend",
        "parallelism_config_sp_seq_length",
        "parallelism_config_sp_seq_length_is_variable",
        "parallelism_config_sp_attn_implementation",
        "use_parallelism_config",
        "downcast_bf16",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "zero3_init_flag",
        "zero3_save_16bit_model",
        "deepspeed_hostfile",
        "deepspeed_multinode_launcher",
        "deepspeed_exclusion_filter",
        "deepspeed_inclusion_filter",
        "debug",
        "enable_cpu_affinity",
        "gpu_ids",
        "log_dir",
        "main_process_ip",
        "main_process_port",
        "main_training_function",
        "max_restarts",
        "monitor_interval",
        "mpirun_config.",
        "num_cpu_threads_per_process",
        "same_network",
        "tpu_env",
        "tpu_name",
        "tpu_zone",
        "tpu_use_cluster",
        "tpu_use_sudo",
        "commands",
        "command_file",
    ]),
];

/// The ZeRO stage of an FSDP sharding strategy, and whether it shards only within a node.
///
/// # Errors
/// If there is no such strategy.
pub(crate) fn sharding(key: &str, word: &str) -> Result<(u8, bool), InputError> {
    match word.to_ascii_uppercase().as_str() {
        "1" | "FULL_SHARD" => Ok((3, false)),
        "2" | "SHARD_GRAD_OP" => Ok((2, false)),
        "3" | "NO_SHARD" => Ok((0, false)),
        "4" | "HYBRID_SHARD" => Ok((3, true)),
        "5" | "HYBRID_SHARD_ZERO2" => Ok((2, true)),
        _ => Err(InputError::new(key, word, "is not a sharding strategy of FSDP")
            .hint("use FULL_SHARD, SHARD_GRAD_OP, NO_SHARD, HYBRID_SHARD or HYBRID_SHARD_ZERO2")),
    }
}

/// The key of the sharding strategy that holds: FSDP2 has another one.
fn strategy_key(document: &Document) -> &'static str {
    let first = document.text("fsdp_config.fsdp_version").as_deref() != Some("2");
    if first && document.has(STRATEGY) { STRATEGY } else { RESHARD }
}

/// The ZeRO stage of `fsdp_config`, and whether FSDP shards only within a node.
fn fsdp_stage(document: &Document) -> Result<(u8, bool), InputError> {
    let strategy = document.text(STRATEGY);
    let resharded = document.text(RESHARD).map(|text| text.to_ascii_lowercase());
    let first = document.text("fsdp_config.fsdp_version").as_deref() != Some("2");
    match (strategy, resharded.as_deref()) {
        (Some(strategy), _) if first => sharding(STRATEGY, &strategy),
        (_, Some("true") | None) => Ok((3, false)),
        (_, Some("false")) => Ok((2, false)),
        (_, Some(strategy)) => sharding(RESHARD, strategy),
    }
}

const STRATEGY: &str = "fsdp_config.fsdp_sharding_strategy";
const RESHARD: &str = "fsdp_config.fsdp_reshard_after_forward";

const FSDP_RECOMPUTE: &str = "fsdp_config.fsdp_activation_checkpointing";

fn recomputes(settings: &Settings) -> bool {
    settings.recompute.iter().any(|mode| *mode != Recompute::None)
}

/// The environment of ranks on CPUs: `accelerate launch` would start a single process for all of them.
pub(crate) fn on_cpus(job: &Export<'_>) -> Vec<&'static str> {
    match (job.machines.gpus, job.settings.precision) {
        (true, _) => Vec::new(),
        (false, Precision::Bf16) => vec!["export ACCELERATE_USE_CPU=true ACCELERATE_MIXED_PRECISION=bf16"],
        (false, _) => vec!["export ACCELERATE_USE_CPU=true ACCELERATE_MIXED_PRECISION=no"],
    }
}

/// The command that starts the processes with the file in the script's folder.
pub(crate) fn launch(job: &Export<'_>) -> String {
    if !job.machines.gpus {
        return job.machines.torchrun();
    }
    let mut command = "accelerate launch --config_file \"$(dirname \"$0\")/accelerate.yaml\"".to_owned();
    if job.machines.nodes > 1 {
        command += " --machine_rank \"$NODE_RANK\" --main_process_ip \"$MASTER_ADDR\"";
        command += " --main_process_port \"${MASTER_PORT:-29500}\"";
    }
    command
}

/// Refuses options that FSDP2 and its device mesh do not support.
pub(crate) fn refuse_zero(settings: &Settings, draft: &mut Draft) {
    if !draft.machines.gpus && settings.zero_stage > 1 {
        draft.refuse(
            Field::ZeroStage,
            "it has FSDP for GPUs alone, and the plan is for CPUs",
            "plan with --zero 0, or train with autodist",
        );
    }
    if settings.zero_stage == 1 {
        draft.refuse(
            Field::ZeroStage,
            "FSDP shards gradients together with the optimizer's state",
            "plan with --zero 2 or 3, or export to deepspeed",
        );
    }
    if settings.zero_stage == 0 && settings.context > 1 {
        draft.refuse(
            Field::ZeroStage,
            "its context parallelism needs FSDP, which shards over the ranks of a sequence too",
            "plan with --zero 2 or 3, or with --cp 1",
        );
    }
}

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::BY_SCRIPT,
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
        theirs: "distributed_type, fsdp_config.fsdp_version, fsdp_config.fsdp_reshard_after_forward, \
                 fsdp_config.fsdp_sharding_strategy, deepspeed_config.zero_stage, \
                 deepspeed_config.zero_optimization.stage",
        write: |settings, draft| {
            refuse_zero(settings, draft);
            let (machines, mesh) = (draft.machines, settings.zero_stage > 0);
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
            ] {
                document.get(key);
            }
            document.choice("fsdp_config.fsdp_version", &[("1", ()), ("2", ())])?;
            let Some(kind) = document.text("distributed_type") else { return Ok(false) };
            let context = document.size(CONTEXT)?.unwrap_or(1).max(settings.context);
            let sharded = document.size(SHARD)?.is_none_or(|size| size > 1) || context > 1;
            settings.zero_stage = match kind.as_str() {
                "FSDP" => {
                    if sharded {
                        fsdp_stage(document)?.0
                    } else {
                        0
                    }
                }
                "DEEPSPEED" => {
                    let own = document.zero_stage("deepspeed_config.zero_stage")?;
                    let file = document.zero_stage("deepspeed_config.zero_optimization.stage")?;
                    // 2 is its default.
                    file.or(own).unwrap_or(2)
                }
                "NO" => 0,
                "MULTI_GPU" | "MULTI_CPU" | "MULTI_XPU" | "MULTI_NPU" | "MULTI_MLU" | "MULTI_SDAA"
                | "MULTI_MUSA" | "MULTI_HPU" => 0,
                "MEGATRON_LM" => {
                    return Err(InputError::new(
                        "distributed_type",
                        kind,
                        "is not read from Accelerate's files",
                    )
                    .hint("read Megatron-LM's own command line: `--from megatron FILE`"));
                }
                _ => {
                    return Err(InputError::new("distributed_type", kind, "is not supported")
                        .hint("use FSDP, DEEPSPEED, MULTI_GPU, MULTI_CPU or NO"));
                }
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Tensor,
        theirs: "parallelism_config.parallelism_config_tp_size",
        write: |settings, draft| {
            if settings.tensor > 1 {
                draft.refuse(
                    Field::Tensor,
                    "its setting only makes a mesh: a model is split where the training script loads it, or not at all",
                    "plan with --tp 1, or export to torchtitan or megatron",
                );
            }
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set(TENSOR, 1);
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
                if settings.context > 1 {
                    draft.instead(
                        Field::Context,
                        "the training script splits each batch by accelerator.maybe_context_parallel",
                    );
                }
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
            // The cluster says how many there are: templates have the number of somebody else's machine.
            if settings.command.devices.is_some_and(|devices| devices != processes) {
                return Ok(false);
            }
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
            let fsdp = document.text("distributed_type").as_deref() == Some("FSDP");
            let hybrid = fsdp && fsdp_stage(document)?.1;
            let shard = match document.size(SHARD)? {
                Some(shard) => shard,
                None if hybrid => {
                    let Some(machines) = document.size("num_machines")? else {
                        let problem = "shards within a node, but `num_machines` is missing";
                        let key = strategy_key(document);
                        let value = document.text(key).unwrap_or_default();
                        return Err(InputError::new(key, value, problem).hint("add it to the file"));
                    };
                    quotient("data-parallel ranks", settings.data.into(), machines.into(), "num_machines")?
                }
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
            let kind = match settings.precision {
                Precision::Bf16 => "bf16",
                Precision::Fp16 => "fp16",
                Precision::Fp32 | Precision::Tf32 | Precision::Fp8 => "no",
            };
            draft.set("mixed_precision", kind);
            note_tf32(settings, draft);
        },
        read: |document, settings| {
            let Some(kind) = document.text("mixed_precision") else { return Ok(false) };
            settings.precision = match kind.as_str() {
                "no" => Precision::Fp32,
                "bf16" => Precision::Bf16,
                "fp16" => Precision::Fp16,
                "fp8" if settings.command.fp8 => Precision::Fp8,
                _ => {
                    return Err(InputError::new(
                        "mixed_precision",
                        kind,
                        "is not a precision that plans support",
                    )
                    .hint("use bf16, fp16, or no for fp32; `--precision fp8` prices FP8"));
                }
            };
            Ok(true)
        },
    },
    states::ACCELERATE,
    FieldMapping {
        field: Field::Recompute,
        theirs: "fsdp_config.fsdp_activation_checkpointing",
        write: |settings, draft| {
            let full = uniform_recompute(settings, draft, false) == Recompute::Full;
            // Without FSDP it is the module that `files` adds.
            if draft.document.get("fsdp_config.fsdp_version").is_some() {
                draft.set(FSDP_RECOMPUTE, full);
            }
        },
        read: |document, settings| {
            let Some(full) = document.flag(FSDP_RECOMPUTE)? else { return Ok(false) };
            settings.recompute_all(if full { Recompute::Full } else { Recompute::None });
            Ok(true)
        },
    },
];

const REPLICATE: &str = "parallelism_config.parallelism_config_dp_replicate_size";
const SHARD: &str = "parallelism_config.parallelism_config_dp_shard_size";
const TENSOR: &str = "parallelism_config.parallelism_config_tp_size";
const CONTEXT: &str = "parallelism_config.parallelism_config_cp_size";
