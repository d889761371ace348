//! Transformers' `TrainingArguments` as JSON, started by Accelerate.

use crate::document::{Document, plain, product};
use crate::kernels::{self, KernelNames};
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, Draft, FieldMapping, NO_PIPELINE, OptimizerKeys, PARAMETERS_AS_THEY_ARE,
    ReadRate, UnsupportedField, clip, instead, refuse, seed, sixteen_bits,
};
use crate::settings::{Field, Settings};
use crate::stages::uniform_recompute;
use crate::states;
use crate::trainable;
use crate::unsupported::{KeyRule, approximated, ignored, refused, refused_degree, refused_unless};
use crate::{DeepSpeedKeys, Export, Exporter, File, Files, accelerate, axolotl};
use autodist_spec::{Hyperparameter, InputError, LearningRate, Optimizer, Precision, Recompute};
use serde_json::Value;

pub struct Transformers;

impl Exporter for Transformers {
    fn kernels(&self, document: &Document) -> Result<KernelNames, InputError> {
        kernels::of_transformers(document)
    }

    fn version(&self) -> &'static str {
        "Transformers 5.23"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        // Our rows refuse the same settings, and our unsupported fields contain the same notes.
        let mut draft = Draft::new(job.settings, job.machines);
        for row in accelerate::Accelerate.rows() {
            (row.write)(job.settings, &mut draft);
        }
        let purpose = format!("Transformers trains as planned: {}", job.plan.strategy.label());
        let mut setup = vec![": \"${TRAIN_SCRIPT:?script that reads TrainingArguments from a JSON file}\""];
        setup.extend(accelerate::on_cpus(job));
        let arguments =
            ["\"$TRAIN_SCRIPT\"".to_owned(), "\"$(dirname \"$0\")/training_args.json\"".to_owned()];
        let script = Script::new(&purpose, job.machines, &setup).run(&accelerate::launch(job), &arguments);
        vec![
            File::text("training_args.json", document.json()),
            File::text("accelerate.yaml", draft.document.yaml()),
            File::script("transformers.sh", script),
        ]
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES, trainable::RULES, axolotl::RULES]
    }

    fn model_name(&self, document: &Document) -> Option<(&'static str, String)> {
        let key = if document.has("model_name_or_path") { "model_name_or_path" } else { "model" };
        Some((key, document.text(key)?))
    }

    fn deepspeed(&self) -> Option<DeepSpeedKeys> {
        Some(DeepSpeedKeys { file: "deepspeed", section: "deepspeed", inline: true, splits: false })
    }

    fn uses_deepspeed(&self, document: &Document) -> bool {
        document.has("deepspeed.zero_optimization.stage")
    }

    fn parse(&self, text: &str, open: Files) -> Result<Document, InputError> {
        let document = if text.trim_start().starts_with('{') {
            Document::of_json(text)?
        } else if is_command_line(text) {
            let said = Document::of_script(text, open)?;
            let mut document = said.like();
            for (key, value) in said.entries() {
                document.set(&key.replace('-', "_"), value.clone());
            }
            document
        } else {
            // As `HfArgumentParser.parse_yaml_file` reads it.
            let document = Document::of_yaml(text)?;
            if axolotl::is_axolotl(&document) { axolotl::as_transformers(&document) } else { document }
        };
        Ok(document.without_auto())
    }
}

/// Whether it is a script or a list of flags, and no YAML.
fn is_command_line(text: &str) -> bool {
    text.starts_with("#!")
        || text.lines().any(|line| line.trim_start().starts_with("--") && line.trim().len() > 3)
        || text
            .lines()
            .any(|line| line.contains(" --per_device_train_batch_size") || line.contains(" --output_dir"))
}

static RULES: &[KeyRule] = &[
    refused_degree(
        Field::Context,
        &["context_parallel_size"],
        "splits every sequence over ranks, which is not read from these files",
        "give the ranks that share a sequence by `--cp`",
    ),
    refused_degree(
        Field::Shard,
        &["dp_replicate_size", "dp_shard_size"],
        "is a part of the ranks, which is not read from these files",
        "give the ranks that shard by `--shard`",
    ),
    refused_degree(
        Field::Context,
        &["sequence_parallel_size"],
        "splits every sequence over ranks, which is not read from these files",
        "give the ranks that share a sequence by `--cp`",
    ),
    refused_unless(
        Field::MicroBatch,
        &["auto_find_batch_size"],
        "chooses the micro-batch when training starts",
        "give the micro-batch by `--micro-batch`",
    ),
    refused_degree(
        Field::Tensor,
        &["tp_size"],
        "is tensor parallelism, which is not read from these files",
        "remove it from the file, and give the degree by `--tp`",
    ),
    refused(
        &["fp16_opt_level", "half_precision_backend"],
        &["o1", "o0", "auto", "apex", "cuda_amp", "cpu_amp"],
        "is NVIDIA's Apex or a backend of it, whose casts are not known",
        "remove it from the file: `fp16` alone is read",
    ),
    refused(
        &["parallelism_config."],
        &["1"],
        "splits the model or sequences between ranks, which is not read from these files",
        "read Accelerate's file instead: `--from accelerate FILE`, or give the degrees by `--tp` and `--cp`",
    ),
    approximated(&[
        "attn_implementation",
        "torch_dtype",
        "use_liger",
        "packing",
        "bf16_full_eval",
        "fp16_full_eval",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
        "group_by_length",
        "train_sampling_strategy",
        "gradient_checkpointing_kwargs.",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "use_liger_kernel",
        "liger_kernel_config.",
        "backward_prefetch",
        "forward_prefetch",
        "limit_all_gathers",
        "use_orig_params",
        "fsdp_min_num_params",
        "min_num_params",
        "fsdp_transformer_layer_cls_to_wrap",
        "transformer_layer_cls_to_wrap",
        "xla",
        "xla_fsdp_v2",
        "xla_fsdp_settings.",
        "xla_fsdp_grad_ckpt",
    ]),
    ignored(&[
        // Of the training script.
        "max_prompt_length",
        "max_completion_length",
        "use_fast_tokenizer",
        // Of generation beside the training.
        "vllm_*",
        "accelerator_config.",
        "batch_eval_metrics",
        "per_device_eval_batch_size",
        "per_gpu_eval_batch_size",
        "eval_*",
        "do_*",
        "data_seed",
        "dataloader_*",
        "debug",
        "disable_tqdm",
        "enable_jit_checkpoint",
        "full_determinism",
        "greater_is_better",
        "hub_*",
        "push_to_hub*",
        "ignore_data_skip",
        "include_*",
        "jit_mode_eval",
        "label_names",
        "length_column_name",
        "load_best_model_at_end",
        "local_rank",
        "log_*",
        "logging_*",
        "lr_scheduler_kwargs.",
        "metric_for_best_model",
        "neftune_noise_alpha",
        "no_cuda",
        "num_train_epochs",
        "output_dir",
        "overwrite_output_dir",
        "past_index",
        "prediction_loss_only",
        "project",
        "ray_scope",
        "remove_unused_columns",
        "report_to",
        "restore_callback_states_from_checkpoint",
        "resume_from_checkpoint",
        "run_name",
        "save_*",
        "skip_memory_metrics",
        "trackio_*",
        "use_cpu",
        "use_cache",
        "use_mps_device",
        "warmup_ratio",
        "cpu_ram_efficient_loading",
        "fsdp_cpu_ram_efficient_loading",
        "state_dict_type",
        "sync_module_states",
        "ddp_backend",
        "ddp_timeout",
        "average_tokens_across_devices",
        "label_smoothing_factor",
        "optim_args",
    ]),
];

/// The ZeRO stage of the `fsdp` setting, which is true, or words such as "full_shard auto_wrap".
fn fsdp_stage(document: &Document, settings: &Settings) -> Result<u8, InputError> {
    let value = document.get("fsdp").cloned().unwrap_or_default();
    let words = match &value {
        Value::Bool(true) => vec!["true".to_owned()],
        Value::Array(list) => list.iter().map(plain).collect(),
        Value::String(text) => {
            text.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        }
        Value::Bool(false) | Value::Null => Vec::new(),
        _ => {
            return Err(InputError::new("fsdp", plain(&value), "is not a value of FSDP")
                .hint("use true, false, or words such as \"full_shard auto_wrap\""));
        }
    };
    let resharded = document.flag("fsdp_config.reshard_after_forward")?;
    let mut stage = 0;
    for word in words.iter().map(|word| word.to_ascii_lowercase()) {
        let refused =
            |problem: &str, hint: &str| Err(InputError::new("fsdp", plain(&value), problem).hint(hint));
        stage = match word.as_str() {
            // The row of states reads the offload.
            "auto_wrap" | "offload" | "false" | "no" => continue,
            "true" => 3,
            strategy => match accelerate::sharding("fsdp", strategy)? {
                (_, true) if !settings.overridden(Field::Shard) => {
                    return refused(
                        "shards within a node, whose devices are not in the file",
                        "give the devices of a node by `--shard`, e.g. `--shard 8`",
                    );
                }
                (stage, _) => stage,
            },
        };
    }
    Ok(match resharded {
        Some(resharded) if stage > 0 => {
            if resharded {
                3
            } else {
                2
            }
        }
        _ => stage,
    })
}

const OPTIMIZER: OptimizerKeys = OptimizerKeys {
    betas: ["adam_beta1", "adam_beta2"],
    epsilon: "adam_epsilon",
    weight_decay: "weight_decay",
};

static UNSUPPORTED: &[UnsupportedField] = &[
    NO_PIPELINE[0],
    NO_PIPELINE[1],
    NO_PIPELINE[2],
    NO_PIPELINE[3],
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
    refuse(Field::Expert, "its training arguments have no expert parallelism", "plan with --ep 1"),
    refuse(
        Field::SequenceParallel,
        "it has no sequence parallelism, so activations need more memory than planned",
        "plan with allow.sequence_parallel = [false]",
    ),
    refuse(
        Field::Gradients,
        "its training arguments have no communication hooks",
        "plan with allow.codecs = [\"none\"], or train with `--engine torch`",
    ),
    instead(Field::Model, "the training script builds the model"),
    instead(Field::Data, "set in accelerate.yaml, which is written to the same folder"),
    refuse(
        Field::Tensor,
        "a model is split where the training script loads it, or not at all",
        "plan with --tp 1, or export to torchtitan or megatron",
    ),
    instead(Field::Context, "set in accelerate.yaml, which is written to the same folder"),
    instead(Field::Shard, "set in accelerate.yaml, which is written to the same folder"),
    instead(
        Field::BucketBytes,
        "one bucket per block with FSDP; buckets of 25 MB with DDP, the default of ddp_bucket_cap_mb",
    ),
];

static ROWS: &[FieldMapping] = &[
    FieldMapping {
        field: Field::MicroBatch,
        theirs: "per_device_train_batch_size",
        write: |settings, draft| draft.set("per_device_train_batch_size", settings.micro_batch),
        read: |document, settings| {
            let key = "per_device_train_batch_size";
            // Its default is 8; with "auto" it is undefined.
            settings.micro_batch = document.size(key)?.unwrap_or(if document.has(key) { 1 } else { 8 });
            Ok(!document.has(key) || document.get(key).is_some())
        },
    },
    FieldMapping {
        field: Field::GlobalBatch,
        theirs: "gradient_accumulation_steps",
        write: |settings, draft| draft.set("gradient_accumulation_steps", settings.micro_batches()),
        read: |document, settings| {
            let key = "gradient_accumulation_steps";
            let steps = document.size(key)?.unwrap_or(1);
            // The number of ranks is not in this file; without it, this is the batch of one rank.
            let ranks = settings.ranks();
            let what = "gradient_accumulation_steps x per_device_train_batch_size x data-parallel ranks";
            settings.global_batch = product(what, &[steps, settings.micro_batch, ranks.unwrap_or(1)])?;
            let open = document.has(key) && document.get(key).is_none();
            Ok(ranks.is_some() && !open)
        },
    },
    FieldMapping {
        field: Field::SeqLen,
        theirs: "max_length, max_seq_length, cutoff_len, model_max_length",
        write: |_, draft| {
            draft.unsupported(&instead(Field::SeqLen, "the training script sets the sequence length"));
        },
        // The longest sequence that these trainers make; whether the data has such is not known.
        read: |document, settings| {
            let keys = ["max_length", "max_seq_length", "cutoff_len", "model_max_length"];
            for key in keys {
                if let Some(length) = document.size(key)? {
                    settings.seq_len = length;
                    return Ok(true);
                }
            }
            Ok(false)
        },
    },
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "fsdp, fsdp_config.version, fsdp_config.reshard_after_forward, deepspeed.zero_optimization.stage",
        write: |settings, draft| {
            accelerate::refuse_zero(settings, draft);
            if settings.zero_stage > 0 {
                draft.set("fsdp", true);
                draft.set("fsdp_config.version", 2);
                draft.set("fsdp_config.reshard_after_forward", settings.zero_stage == 3);
                draft.set("fsdp_config.auto_wrap_policy", "TRANSFORMER_BASED_WRAP");
            }
        },
        read: |document, settings| {
            for key in ["fsdp_config.version", "fsdp_config.auto_wrap_policy"] {
                document.get(key);
            }
            settings.zero_stage = if document.has("deepspeed.zero_optimization.stage") {
                document.zero_stage("deepspeed.zero_optimization.stage")?.unwrap_or(0)
            } else {
                fsdp_stage(document, settings)?
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "bf16, fp16, tf32, pure_bf16",
        write: |settings, draft| {
            if !draft.machines.gpus {
                draft.set("use_cpu", true);
            }
            draft.set("bf16", settings.precision == Precision::Bf16);
            if settings.precision == Precision::Fp16 {
                draft.set("fp16", true);
            }
            if settings.precision == Precision::Tf32 {
                draft.set("tf32", true);
            }
        },
        read: |document, settings| {
            let tf32 = document.flag("tf32")?.unwrap_or(false);
            let wide = if tf32 { Precision::Tf32 } else { Precision::Fp32 };
            settings.precision = sixteen_bits(document, "bf16", "fp16")?.unwrap_or(wide);
            // LLaMA-Factory: the weights, too, have 16 bits.
            if document.flag("pure_bf16")? == Some(true) {
                settings.precision = Precision::Bf16;
            }
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: "gradient_checkpointing, activation_checkpointing, fsdp_config.activation_checkpointing",
        write: |settings, draft| {
            let full = uniform_recompute(settings, draft, false) == Recompute::Full;
            // It stops if both are on.
            let fsdp = settings.zero_stage > 0;
            draft.set("gradient_checkpointing", full && !fsdp);
            if fsdp {
                draft.set("fsdp_config.activation_checkpointing", full);
            }
        },
        read: |document, settings| {
            let older = document.flag("gradient_checkpointing")?.unwrap_or(false);
            let own = document.flag("activation_checkpointing")?.unwrap_or(older);
            let full = document.flag("fsdp_config.activation_checkpointing")?.unwrap_or(false) || own;
            let mode = if full { Recompute::Full } else { Recompute::None };
            settings.recompute_all(mode);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Optimizer,
        theirs: "optim, adam_beta1, adam_beta2, adam_epsilon, weight_decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { .. } => {
                draft.set("optim", "adamw_torch");
                OPTIMIZER.write(settings, draft);
            }
            Optimizer::Sgd { momentum, .. } => {
                draft.set("optim", "sgd");
                OPTIMIZER.write(settings, draft);
                draft.set_given(Hyperparameter::Momentum, "optim_args", format!("momentum={momentum}"));
            }
        },
        read: |document, settings| {
            let kind = document.text("optim").unwrap_or_else(|| "adamw_torch".to_owned());
            settings.optimizer = if kind == "sgd" {
                let weight_decay = OPTIMIZER.read_decay(document, settings)?.unwrap_or(0.0);
                let arguments = document.text("optim_args").unwrap_or_default();
                let momentum = arguments.split(',').find_map(|part| part.trim().strip_prefix("momentum="));
                let wrong = || {
                    InputError::new("optim_args", &arguments, "expected momentum as a number")
                        .hint("write it as momentum=0.9")
                };
                let momentum = momentum.map(|text| text.parse().map_err(|_| wrong())).transpose()?;
                settings.give(Hyperparameter::Momentum, momentum.is_some());
                Optimizer::Sgd { momentum: momentum.unwrap_or(0.0), weight_decay }
            } else if ["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"]
                .contains(&kind.as_str())
                || states::IN_8_BITS.contains(&kind.as_str())
                || ["paged_adamw", "paged_adamw_32bit"].contains(&kind.as_str())
            {
                OPTIMIZER.read_adam(document, settings, [0.9, 0.999, 1e-8, 0.0])?
            } else {
                return Err(InputError::new("optim", kind, "is not an optimizer that plans support").hint(
                    "use adamw_torch, adamw_torch_fused or sgd: memory depends on the optimizer state",
                ));
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::LearningRate,
        theirs: "learning_rate, lr_scheduler_type, lr_scheduler_kwargs.min_lr_rate, warmup_steps, max_steps",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            use Hyperparameter::{FinalFraction, PeakLearningRate, TotalSteps, WarmupSteps};
            draft.set_given(PeakLearningRate, "learning_rate", peak);
            draft.set_given(FinalFraction, "lr_scheduler_type", "cosine_with_min_lr");
            draft.set_given(FinalFraction, "lr_scheduler_kwargs.min_lr_rate", final_fraction);
            draft.set_given(WarmupSteps, "warmup_steps", warmup_steps);
            if settings.gives(WarmupSteps) && warmup_steps > 0 {
                draft.instead(
                    Field::LearningRate,
                    "its warm-up starts at 0, and is one step behind the plan's",
                );
            }
            draft.set_given(TotalSteps, "max_steps", total_steps);
        },
        read: |document, settings| {
            let kind = document.text("lr_scheduler_type").unwrap_or_default();
            let lowest = document.real("lr_scheduler_kwargs.min_lr_rate")?;
            let rate = ReadRate {
                peak: document.real("learning_rate")?,
                // Below 1 it is a part of the steps, whose number is not known.
                warmup_steps: match document.real("warmup_steps")? {
                    Some(part) if part > 0.0 && part < 1.0 => None,
                    _ => document.count("warmup_steps")?,
                },
                // -1 means "by epochs".
                total_steps: match document.real("max_steps")? {
                    Some(-1.0) => None,
                    _ => document.count("max_steps")?,
                },
                final_fraction: kind.starts_with("cosine").then(|| lowest.unwrap_or(0.0)),
            };
            Ok(rate.take(settings))
        },
    },
    states::TRANSFORMERS,
    trainable::TRANSFORMERS,
    clip!("max_grad_norm"),
    seed!("seed"),
    FieldMapping {
        field: Field::CheckpointInterval,
        theirs: "save_strategy, save_steps",
        write: |settings, draft| {
            if let Some(steps) = settings.checkpoint_interval {
                draft.set("save_strategy", "steps");
                draft.set("save_steps", steps);
            }
        },
        read: |document, settings| {
            let on = document.text("save_strategy").is_some_and(|kind| kind == "steps");
            settings.checkpoint_interval = document.count("save_steps")?.filter(|_| on);
            Ok(true)
        },
    },
];
