//! nanotron's YAML.

use crate::document::{Document, above_zero, product, quotient, rounded};
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, FieldMapping, OptimizerKeys, PARAMETERS_AS_THEY_ARE, ReadRate, UnsupportedField,
    clip, full_recompute, instead, note_tf32, precision, refuse, seed, size, without_fp16,
};
use crate::settings::Field;
use crate::states;
use crate::trainable;
use crate::unsupported::{KeyRule, approximated, ignored, refused};
use crate::{Ask, Export, Exporter, File, Files};
use autodist_spec::{
    Activation, BlockSpec, Experts, Hyperparameter, InputError, LearningRate, ModelSpec, Norm, Optimizer,
    Positions, Precision, Recompute, ScheduleKind,
};
use serde_json::json;

pub struct Nanotron;

impl Exporter for Nanotron {
    fn version(&self) -> &'static str {
        "nanotron 2026-04"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        // Settings that nanotron requires and a plan does not contain.
        let mut whole = Document::default();
        whole.set("general.project", "autodist");
        whole.set("general.run", format!("{}_%date_%jobid", job.plan.model.name));
        for (key, value) in document.entries() {
            whole.set(key, value.clone());
        }
        if !document.has("checkpoints.checkpoint_interval") {
            whole.set("checkpoints.checkpoint_interval", NEVER);
            whole.set("checkpoints.checkpoints_path", "checkpoints");
        }
        let mut data = json!({
            "dataset": { "hf_dataset_or_datasets": "${DATASET}", "text_column_name": "text" },
            "num_loading_workers": 1,
        });
        if job.settings.gives(Hyperparameter::Seed) {
            data["seed"] = job.settings.seed.into();
        }
        whole.set("data_stages", json!([{ "name": "training", "start_training_step": 1, "data": data }]));
        whole.set("tokenizer.tokenizer_name_or_path", "${TOKENIZER}");
        whole.set("logging.log_level", "info");
        whole.set("logging.iteration_step_info_interval", 1);
        let purpose =
            format!("nanotron trains {} as planned: {}", job.plan.model.name, job.plan.strategy.label());
        let setup = [
            "export CUDA_DEVICE_MAX_CONNECTIONS=1",
            ": \"${DATASET:?text to train on: a folder, or a name on the hub, which datasets.load_dataset takes}\"",
            ": \"${TOKENIZER:?its tokenizer: a folder, or a name on the hub}\"",
        ];
        let command = format!("{} run_train.py", job.machines.torchrun());
        let mut script = Script::new(&purpose, job.machines, &setup).asking(job);
        let mut variables = vec!["DATASET", "TOKENIZER"];
        for ask in job.asked() {
            whole.set(ask.key, format!("${{{}}}", ask.variable));
            variables.push(ask.variable);
        }
        // Its file cannot read the environment. Each node fills in its own copy, because the folder may be
        // shared.
        let fill: String = variables.iter().map(|name| format!(" -e \"s|\\${{{name}}}|${name}|\"")).collect();
        script = script.line("filled=$(mktemp --suffix=.yaml)");
        script = script.line(&format!("sed{fill} \"$(dirname \"$0\")/nanotron.yaml\" > \"$filled\""));
        // In quotes, a number would be a string.
        let yaml = job.asked().fold(whole.yaml(), |yaml, ask| {
            yaml.replace(&format!("\"${{{}}}\"", ask.variable), &format!("${{{}}}", ask.variable))
        });
        let arguments = ["--config-file \"$filled\"".to_owned()];
        vec![File::text("nanotron.yaml", yaml), File::script("nanotron.sh", script.run(&command, &arguments))]
    }

    fn asks(&self) -> &'static [Ask] {
        &ASKS
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES]
    }

    fn parse(&self, text: &str, _open: Files) -> Result<Document, InputError> {
        Document::of_yaml(text)
    }
}

/// Settings without defaults in its configuration.
const ASKS: [Ask; 6] = [
    Ask {
        what: Hyperparameter::PeakLearningRate,
        key: "optimizer.learning_rate_scheduler.learning_rate",
        variable: "LR",
    },
    Ask { what: Hyperparameter::TotalSteps, key: "tokens.train_steps", variable: "TRAIN_STEPS" },
    Ask { what: Hyperparameter::WeightDecay, key: "optimizer.weight_decay", variable: "WEIGHT_DECAY" },
    Ask {
        what: Hyperparameter::Betas,
        key: "optimizer.optimizer_factory.adam_beta1",
        variable: "ADAM_BETA1",
    },
    Ask {
        what: Hyperparameter::Betas,
        key: "optimizer.optimizer_factory.adam_beta2",
        variable: "ADAM_BETA2",
    },
    Ask { what: Hyperparameter::Epsilon, key: "optimizer.optimizer_factory.adam_eps", variable: "ADAM_EPS" },
];

const OPTIMIZER: OptimizerKeys = OptimizerKeys {
    betas: ["optimizer.optimizer_factory.adam_beta1", "optimizer.optimizer_factory.adam_beta2"],
    epsilon: "optimizer.optimizer_factory.adam_eps",
    weight_decay: "optimizer.weight_decay",
};

static RULES: &[KeyRule] = &[
    refused(
        &["sliding_window_size", "sliding_window"],
        &[],
        "is attention over a window, which is not read",
        "remove it from the file: the estimate is for full attention",
    ),
    approximated(&[
        "_attn_implementation",
        "_fused_rms_norm",
        "_fused_rotary_emb",
        "_use_doc_masking",
        "_use_qkv_packed",
        "attention_bias",
        "flex_attention_mask",
        "moe_layer_recompute",
        "ring_attn_heads_k_stride",
        "tp_recompute_allgather",
    ]),
    ignored(&[
        "checkpoints.",
        "data.",
        "data_stages",
        "data_stages.",
        "general.",
        "lighteval.",
        "logging.",
        "metrics_logging.",
        "profiler.",
        "s3_upload.",
        "slurm.",
        "tokenizer.",
        "limit_test_batches",
        "limit_val_batches",
        "val_check_interval",
        "init_method.",
        "make_vocab_size_divisible_by",
        "weight_decay_exclude_named_params",
        "pad_token_id",
        "rope_interleaved",
        "rope_scaling",
        "z_loss_coefficient",
        "z_loss_enabled",
    ]),
];

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::NO_TRAINABLE,
    refuse(Field::VirtualStages, "it runs one stage per pipeline rank", "plan with --vpp 1"),
    instead(Field::Stages, "it splits the blocks by its own cost model, as evenly as possible"),
    refuse(Field::Gradients, "it has no gradient compression", "plan with allow.codecs = [\"none\"]"),
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
];

static ROWS: &[FieldMapping] = &[
    FieldMapping {
        field: Field::Model,
        theirs: "model.model_config.hidden_size, model.model_config.intermediate_size, \
                 model.model_config.num_hidden_layers, model.model_config.num_attention_heads, \
                 model.model_config.num_key_value_heads, model.model_config.vocab_size, \
                 model.model_config.max_position_embeddings, model.model_config.rms_norm_eps, \
                 model.model_config.rope_theta, model.model_config.tie_word_embeddings",
        write: |settings, draft| {
            let Some(model) = &settings.model else { return };
            let Positions::Rotary { theta } = model.positions else {
                draft.refuse(Field::Model, LLAMA, "use a model with rotary positions, or export to megatron");
                return;
            };
            let llama = model.norm == Norm::RmsNorm && model.activation == Activation::SwiGlu && !model.bias;
            if !llama || model.head_dim.saturating_mul(model.heads) != model.hidden {
                draft.refuse(Field::Model, LLAMA, "use a Llama-type model, or export to megatron");
                return;
            }
            draft.set("model.init_method.std", 0.02);
            draft.set("model.make_vocab_size_divisible_by", 1);
            draft.set(&config("is_llama_config"), true);
            draft.set(&config("hidden_act"), "silu");
            draft.set(&config("initializer_range"), 0.02);
            draft.set(&config("bos_token_id"), 1);
            draft.set(&config("eos_token_id"), 2);
            draft.set(&config("pretraining_tp"), 1);
            draft.set(&config("use_cache"), false);
            draft.set(&config("hidden_size"), model.hidden);
            draft.set(&config("intermediate_size"), model.ffn);
            draft.set(&config("num_hidden_layers"), model.layers);
            draft.set(&config("num_attention_heads"), model.heads);
            draft.set(&config("num_key_value_heads"), model.kv_heads);
            draft.set(&config("vocab_size"), model.vocab);
            draft.set(&config("max_position_embeddings"), model.max_seq_len.max(settings.seq_len));
            draft.set(&config("rms_norm_eps"), model.norm_epsilon);
            draft.set(&config("rope_theta"), theta);
            draft.set(&config("tie_word_embeddings"), model.tied_embeddings);
        },
        read: |document, settings| {
            let count = |name: &str| document.size(&config(name));
            let act = document.choice(&config("hidden_act"), &[("silu", ())]);
            if settings.model.is_none() {
                act?;
            }
            for name in ["is_llama_config", "initializer_range", "bos_token_id", "eos_token_id"] {
                document.get(&config(name));
            }
            for name in ["pretraining_tp", "use_cache", "pad_token_id"] {
                document.get(&config(name));
            }
            let (Some(hidden), Some(layers), Some(heads), Some(ffn), Some(vocab)) = (
                count("hidden_size")?,
                document.blocks(&config("num_hidden_layers"))?,
                count("num_attention_heads")?,
                count("intermediate_size")?,
                count("vocab_size")?,
            ) else {
                return Ok(false);
            };
            settings.model = Some(ModelSpec {
                name: "nanotron".to_owned(),
                kv_heads: count("num_key_value_heads")?.unwrap_or(heads),
                head_dim: quotient(
                    &config("hidden_size"),
                    hidden.into(),
                    heads.into(),
                    "num_attention_heads",
                )?,
                ffn,
                vocab,
                max_seq_len: count("max_position_embeddings")?.unwrap_or(2048),
                positions: Positions::Rotary {
                    theta: document.real(&config("rope_theta"))?.unwrap_or(10_000.0),
                },
                norm: Norm::RmsNorm,
                norm_epsilon: document.real(&config("rms_norm_eps"))?.unwrap_or(1e-6),
                activation: Activation::SwiGlu,
                bias: false,
                tied_embeddings: document.flag(&config("tie_word_embeddings"))?.unwrap_or(false),
                ..ModelSpec::gpt(layers, hidden, heads, 0, 0)
            });
            if let Some((width, experts)) = experts(document)?
                && let Some(model) = settings.model.take()
            {
                let ffn = width.unwrap_or(model.ffn);
                let block = BlockSpec { experts: Some(experts), ffn, ..model.block(1) };
                settings.model = Some(model.clone().with_blocks(&vec![block; model.layers as usize]));
            }
            Ok(true)
        },
    },
    size!(Tensor, tensor, "parallelism.tp"),
    size!(Pipeline, pipeline, "parallelism.pp"),
    size!(Context, context, "parallelism.context_parallel_size"),
    size!(Expert, expert, "parallelism.expert_parallel_size"),
    size!(Data, data, "parallelism.dp"),
    FieldMapping {
        field: Field::Schedule,
        theirs: "parallelism.pp_engine",
        write: |settings, draft| {
            let gpipe = settings.schedule == ScheduleKind::GPipe;
            draft.set("parallelism.pp_engine", if gpipe { "afab" } else { "1f1b" });
        },
        read: |document, settings| {
            let engine = document.choice("parallelism.pp_engine", &[("1f1b", false), ("afab", true)])?;
            settings.schedule = if engine == Some(true) && settings.pipeline > 1 {
                ScheduleKind::GPipe
            } else {
                ScheduleKind::OneFOneB
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::SequenceParallel,
        theirs: "parallelism.tp_mode",
        write: |settings, draft| {
            let mode = if settings.sequence_parallel { "REDUCE_SCATTER" } else { "ALL_REDUCE" };
            draft.set("parallelism.tp_mode", mode);
            draft.set("parallelism.tp_linear_async_communication", false);
        },
        read: |document, settings| {
            document.flag("parallelism.tp_linear_async_communication")?;
            let words = [
                ("ALL_REDUCE", false),
                ("REDUCE_SCATTER", true),
                ("all_reduce", false),
                ("reduce_scatter", true),
            ];
            let scatter = document.choice("parallelism.tp_mode", &words)?.unwrap_or(false);
            settings.sequence_parallel = settings.tensor > 1 && scatter;
            Ok(true)
        },
    },
    full_recompute!("parallelism.recompute_layer"),
    size!(MicroBatch, micro_batch, "tokens.micro_batch_size"),
    FieldMapping {
        field: Field::GlobalBatch,
        theirs: "tokens.batch_accumulation_per_replica",
        write: |settings, draft| draft.set("tokens.batch_accumulation_per_replica", settings.micro_batches()),
        read: |document, settings| {
            let key = "tokens.batch_accumulation_per_replica";
            let Some(steps) = document.size(key)? else { return Ok(false) };
            settings.global_batch = product(key, &[settings.micro_batch, steps, settings.data])?;
            Ok(true)
        },
    },
    size!(SeqLen, seq_len, "tokens.sequence_length"),
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "optimizer.zero_stage",
        write: |settings, draft| {
            if settings.zero_stage > 1 {
                draft.refuse(
                    Field::ZeroStage,
                    "it shards only the optimizer state",
                    "plan with --zero 0 or 1",
                );
            }
            draft.set("optimizer.zero_stage", settings.zero_stage);
        },
        read: |document, settings| {
            settings.zero_stage = document.zero_stage("optimizer.zero_stage")?.unwrap_or(0);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "optimizer.zero_stage",
        write: |settings, draft| {
            if !settings.does_without(Field::Shard) {
                draft.refuse(
                    Field::Shard,
                    "it shards over all data-parallel ranks",
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
        theirs: "model.ddp_bucket_cap_mb",
        write: |settings, draft| {
            draft.set("model.ddp_bucket_cap_mb", settings.bucket_bytes.div_ceil(1 << 20))
        },
        read: |document, settings| {
            let Some(bytes) = document.bucket("model.ddp_bucket_cap_mb", 1 << 20)? else { return Ok(false) };
            settings.bucket_bytes = bytes;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "model.dtype",
        write: |settings, draft| {
            without_fp16(settings, draft);
            let bf16 = settings.precision == Precision::Bf16;
            draft.set("model.dtype", if bf16 { "bfloat16" } else { "float32" });
            draft.set("optimizer.accumulate_grad_in_fp32", true);
            note_tf32(settings, draft);
        },
        read: |document, settings| {
            settings.precision = precision(document, "model.dtype")?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Optimizer,
        theirs: "optimizer.optimizer_factory.name, optimizer.optimizer_factory.adam_beta1, \
                 optimizer.optimizer_factory.adam_beta2, optimizer.optimizer_factory.adam_eps, optimizer.weight_decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { .. } => {
                draft.set(&factory("name"), "adamW");
                draft.set(&factory("torch_adam_is_fused"), true);
                OPTIMIZER.write(settings, draft);
            }
            Optimizer::Sgd { momentum, .. } => {
                if momentum != 0.0 {
                    draft.refuse(
                        Field::Optimizer,
                        "its SGD has no momentum",
                        "train with adamw, or with momentum = 0",
                    );
                }
                draft.set(&factory("name"), "sgd");
                OPTIMIZER.write(settings, draft);
            }
        },
        read: |document, settings| {
            let words = [("adamW", false), ("sgd", true)];
            let Some(sgd) = document.choice(&factory("name"), &words)? else { return Ok(false) };
            document.get(&factory("torch_adam_is_fused"));
            settings.optimizer = if sgd {
                let weight_decay = OPTIMIZER.read_decay(document, settings)?.unwrap_or(0.0);
                Optimizer::Sgd { momentum: 0.0, weight_decay }
            } else {
                OPTIMIZER.read_adam(document, settings, [0.9, 0.95, 1e-8, 0.0])?
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::LearningRate,
        theirs: "optimizer.learning_rate_scheduler.learning_rate, optimizer.learning_rate_scheduler.lr_warmup_steps, \
                 optimizer.learning_rate_scheduler.lr_decay_steps, optimizer.learning_rate_scheduler.lr_decay_style, \
                 optimizer.learning_rate_scheduler.min_decay_lr, tokens.train_steps",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            use Hyperparameter::{FinalFraction, PeakLearningRate, TotalSteps, WarmupSteps};
            draft.set_given(PeakLearningRate, &scheduler("learning_rate"), peak);
            draft.set_given(WarmupSteps, &scheduler("lr_warmup_steps"), warmup_steps);
            draft.set_given(WarmupSteps, &scheduler("lr_warmup_style"), "linear");
            draft.set_given(TotalSteps, "tokens.train_steps", total_steps);
            if settings.gives(FinalFraction) {
                draft.set(&scheduler("lr_decay_style"), "cosine");
                if settings.gives(TotalSteps) {
                    let warmup = if settings.gives(WarmupSteps) { warmup_steps } else { 0 };
                    draft.set(&scheduler("lr_decay_steps"), total_steps.saturating_sub(warmup));
                }
                if settings.gives(PeakLearningRate) {
                    draft.set(&scheduler("min_decay_lr"), rounded(peak * final_fraction));
                } else {
                    draft.instead(
                        Field::LearningRate,
                        "min_decay_lr is not written, because the peak was not given, and defaults to the peak; add it \
                         to the file to change it",
                    );
                }
            }
        },
        read: |document, settings| {
            let peak = document.known_real(&scheduler("learning_rate"))?;
            if let Some(peak) = peak {
                above_zero(&scheduler("learning_rate"), peak)?;
            }
            let cosine = document.text(&scheduler("lr_decay_style")).is_some_and(|kind| kind == "cosine");
            document.text(&scheduler("lr_warmup_style"));
            let warmup_steps = document.known_count(&scheduler("lr_warmup_steps"))?;
            let steps = document.known_count("tokens.train_steps")?;
            let decay = document.known_count(&scheduler("lr_decay_steps"))?;
            let decay = decay.map(|steps| warmup_steps.unwrap_or(0).saturating_add(steps));
            let lowest = document.known_real(&scheduler("min_decay_lr"))?;
            let rate = ReadRate {
                peak,
                warmup_steps,
                total_steps: decay.or(steps),
                final_fraction: peak
                    .zip(lowest)
                    .filter(|_| cosine)
                    .map(|(peak, lowest)| rounded(lowest / peak)),
            };
            Ok(rate.take(settings))
        },
    },
    states::NANOTRON,
    clip!("optimizer.clip_grad", Null),
    seed!("general.seed"),
    FieldMapping {
        field: Field::CheckpointInterval,
        theirs: "checkpoints.checkpoint_interval",
        write: |settings, draft| {
            if let Some(steps) = settings.checkpoint_interval {
                draft.set("checkpoints.checkpoint_interval", steps);
                draft.set("checkpoints.checkpoints_path", "checkpoints");
            }
        },
        read: |document, settings| {
            document.get("checkpoints.checkpoints_path");
            let steps = document.count("checkpoints.checkpoint_interval")?;
            settings.checkpoint_interval = steps.filter(|steps| *steps < NEVER);
            Ok(true)
        },
    },
];

/// The experts of `moe_config`, and their width if it has one of its own.
fn experts(document: &Document) -> Result<Option<(Option<u32>, Experts)>, InputError> {
    let moe = |name: &str| config(&format!("moe_config.{name}"));
    let Some(count) = document.size(&moe("num_experts"))?.filter(|count| *count > 1) else { return Ok(None) };
    let active = document.size(&moe("top_k"))?.unwrap_or(1);
    let width = document.size(&moe("moe_intermediate_size"))?;
    let shared = document.flag(&moe("enable_shared_expert"))?.unwrap_or(false);
    let shared_ffn = document.size(&moe("shared_expert_intermediate_size"))?.filter(|_| shared).unwrap_or(0);
    Ok(Some((width, Experts { count, active, shared_ffn })))
}

/// Steps between checkpoints of a job without them: it requires a number.
const NEVER: u32 = 1_000_000_000;

const LLAMA: &str = "it supports only Llama-type models: RMSNorm, SwiGLU, rotary positions, no biases";

fn config(name: &str) -> String {
    format!("model.model_config.{name}")
}

fn factory(name: &str) -> String {
    format!("optimizer.optimizer_factory.{name}")
}

fn scheduler(name: &str) -> String {
    format!("optimizer.learning_rate_scheduler.{name}")
}
