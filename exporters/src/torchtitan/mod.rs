//! torchtitan's command line; stages of different sizes need a Python module.

mod toml;

use crate::document::{Document, product, quotient};
use crate::kernels::{self, KernelNames};
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, FieldMapping, PARAMETERS_AS_THEY_ARE, ReadRate, UnsupportedField, clip, instead,
    note_tf32, precision, refuse, seed, size, thirty_two_bits, without_fp16,
};
use crate::settings::Field;
use crate::stages::uniform_recompute;
use crate::states;
use crate::trainable;
use crate::unsupported::{KeyRule, LAUNCHERS, approximated, ignored, refused};
use crate::{Export, Exporter, File, Files};
use autodist_spec::{
    Hyperparameter, InputError, LearningRate, ModelSpec, Optimizer, Precision, Recompute, ScheduleKind,
    catalog, parse,
};

pub struct Torchtitan;

/// Key of the stages' modules in a document, which is not a flag.
const PARTS: &str = "module_fqns_per_model_part";
/// Whether GEMMs are in FP8: a key of ours for what older files say in several ways.
const FLOAT8: &str = "float8";
const RECOMPUTE: &str = "activation_checkpoint";

impl Exporter for Torchtitan {
    fn kernels(&self, document: &Document) -> Result<KernelNames, InputError> {
        kernels::of_torchtitan(document)
    }

    fn version(&self) -> &'static str {
        "torchtitan 0.3"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let purpose =
            format!("torchtitan trains {} as planned: {}", job.plan.model.name, job.plan.strategy.label());
        let mut flags = Document::default();
        let mut last = Vec::new();
        let mut parts = None;
        for (key, value) in document.entries() {
            match key.as_str() {
                PARTS => parts = Some(value),
                // A subcommand: its parser takes no option after it.
                RECOMPUTE => last.push(format!("activation_checkpoint:{}", value.as_str().unwrap_or("none"))),
                _ => flags.set(key, value.clone()),
            }
        }
        let mut setup = vec![match shipped(&job.plan.model) {
            Some((_, setup)) => *setup,
            None => {
                ": \"${MODULE:?module with the planned model, of torchtitan.models such as llama3, or your own}\" \
                 \"${CONFIG:?its configuration of the planned model, a function in the config_registry of that module}\""
            }
        }];
        let mut files = Vec::new();
        if let Some(parts) = parts {
            files.push(File::text("autodist_stages.py", module(parts)));
            setup.extend([
                "export AUTODIST_BASE=\"$MODULE:$CONFIG\" PYTHONPATH=\"$(dirname \"$0\")${PYTHONPATH:+:$PYTHONPATH}\"",
                "MODULE=autodist_stages CONFIG=config",
            ]);
        }
        let mut arguments = vec!["--module \"$MODULE\" --config \"$CONFIG\"".to_owned()];
        arguments.extend(flags.flags());
        let command = format!("{} -m torchtitan.train", job.machines.torchrun());
        files.push(File::script(
            "torchtitan.sh",
            Script::new(&purpose, job.machines, &setup).run_before(&command, &arguments, &last),
        ));
        files
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES]
    }

    fn forms(&self) -> &'static str {
        "the command line of torchtitan 0.3, as a shell script with flags such as `--training.seq_len 8192`, or a TOML file of torchtitan 0.2 or older"
    }

    fn model_name(&self, document: &Document) -> Option<(&'static str, String)> {
        toml::model_name(document)
    }

    fn parse(&self, text: &str, open: Files) -> Result<Document, InputError> {
        if toml::is_toml(text) {
            return toml::read(text);
        }
        // The module of the stages may be in the same text as the command line.
        let parts = text.lines().find_map(|line| line.trim().strip_prefix("PARTS = "));
        let flags: String = text.lines().filter(|line| !line.trim().starts_with("PARTS = ")).fold(
            String::new(),
            |mut all, line| {
                all += line;
                all.push('\n');
                all
            },
        );
        let said = Document::of_script(&flags, open)?;
        let mut document = toml::of_script(&said, text, open)?;
        for (key, value) in said.entries() {
            // Its parser takes both spellings.
            let spelled = match key.contains('.') {
                true if key.starts_with("optimizer.param") => key.replace('_', "-"),
                true => key.replace('-', "_"),
                false => key.clone(),
            };
            document.set(&spelled, value.clone());
        }
        if let Some(parts) = parts {
            let value: serde_json::Value = serde_json::from_str(parts).map_err(|error| {
                InputError::new("PARTS", parts, format!("expected a list of lists of names: {error}")).hint(
                    "write it as [[\"tok_embeddings\", \"layers.0\"], [\"layers.1\", \"norm\", \"lm_head\"]]",
                )
            })?;
            // The values need no further parsing.
            let _ = parse::look_over(&value)?;
            document.set(PARTS, value);
        }
        Ok(document)
    }
}

/// Models that torchtitan has under the same name, with the script line that selects them.
static SHIPPED: [(&str, &str); 3] = [
    ("llama3-8b", "MODULE=${MODULE:-llama3} CONFIG=${CONFIG:-llama3_8b}"),
    ("llama3-70b", "MODULE=${MODULE:-llama3} CONFIG=${CONFIG:-llama3_70b}"),
    ("llama3-405b", "MODULE=${MODULE:-llama3} CONFIG=${CONFIG:-llama3_405b}"),
];

/// The entry of the same model: the name alone is not enough, because any model may use it.
fn shipped(model: &ModelSpec) -> Option<&'static (&'static str, &'static str)> {
    SHIPPED
        .iter()
        .find(|(name, _)| *name == model.name && catalog::model(name).is_ok_and(|known| known == *model))
}

/// A module with a configuration that differs only in its stages.
fn module(parts: &serde_json::Value) -> String {
    format!(
        "\"\"\"The configuration that AUTODIST_BASE names as module:config, with pipeline stages as planned.\"\"\"\n\
         import os\n\n\
         from torchtitan.config import ConfigManager\n\n\
         PARTS = {parts}\n\n\n\
         def config():\n    \
             module, name = os.environ[\"AUTODIST_BASE\"].rsplit(\":\", 1)\n    \
             base, _ = ConfigManager()._load_config([\"--module\", module, \"--config\", name])\n    \
             base.parallelism.module_fqns_per_model_part = PARTS\n    \
             return base\n"
    )
}

static RULES: &[KeyRule] = &[
    refused(
        &["pipeline_parallel_schedule_csv", "expert_tensor_parallel_degree"],
        &["1"],
        "changes the schedule or the split, and is not read",
        "remove it from the file",
    ),
    refused(
        &["optimizer.name", "optimizer_name", "optimizer.param_groups.0.name"],
        &["adamw", "adam"],
        "is not an optimizer that is read: memory depends on the optimizer state",
        "use AdamW, or remove it from the file",
    ),
    approximated(&[
        "compile.",
        "training.compile",
        "disable_loss_parallel",
        "enable_loss_parallel",
        "enable_async_tensor_parallel",
        "enable_compiled_autograd",
        "enable_fsdp_symm_mem",
        "enable_symm_mem",
        "context_parallel_load_balancer",
        "context_parallel_ptrr_mask_key",
        "context_parallel_rotate_method",
        "expert_parallel_comm_backend",
        "mixed_precision_reduce",
        "moe_force_load_balance",
        "per_op_sac_force_recompute_mm_shapes_by_fqns",
        "selective_ac_option",
        "deterministic",
        "early_stop",
        "preserve_rng_state",
    ]),
    ignored(&[
        "batch_invariant",
        "checkpoint.",
        "comm.",
        "toml",
        "config",
        "dataloader.",
        "debug.",
        "experimental.",
        "fault_tolerance.",
        "hf_assets_path",
        "inference.",
        "job.",
        "lr_scheduler.",
        "memory_estimation.",
        "metrics.",
        "model.",
        "dump_folder",
        "print_config",
        "profiling.",
        "profiler.",
        "spmd_backend",
        "spmd_typechecking",
        "tokenizer.",
        "training.dataset",
        "training.dataset_path",
        "training.gc_freq",
        "training.gc_debug",
        "training.seed",
        "validation.",
        "validator.",
    ]),
    LAUNCHERS,
];

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::NO_TRAINABLE,
    instead(
        Field::Model,
        "the function given by MODULE and CONFIG builds the model: give the one of this model",
    ),
    refuse(
        Field::Gradients,
        "gradients are reduced in fp32",
        "plan with allow.codecs = [\"none\"], or train with `--engine torch`",
    ),
    instead(Field::BucketBytes, "one bucket per block with FSDP; buckets of 100 MB with DDP"),
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
];

static ROWS: &[FieldMapping] = &[
    size!(SeqLen, seq_len, "training.seq_len"),
    size!(Tensor, tensor, "parallelism.tensor_parallel_degree"),
    size!(Context, context, "parallelism.context_parallel_degree"),
    FieldMapping {
        field: Field::Expert,
        theirs: EXPERT,
        write: |settings, draft| {
            draft.set(EXPERT, settings.expert);
        },
        read: |document, settings| {
            let found = document.size(EXPERT)?;
            settings.expert = found.unwrap_or(settings.expert);
            Ok(found.is_some())
        },
    },
    size!(Pipeline, pipeline, "parallelism.pipeline_parallel_degree"),
    FieldMapping {
        field: Field::MicroBatch,
        theirs: "training.local_batch_size, parallelism.pipeline_parallel_microbatch_size",
        write: |settings, draft| {
            // A pipeline splits its local batch into micro-batches; otherwise a local batch is one
            // micro-batch, and gradients accumulate.
            if settings.pipeline > 1 {
                draft.set(
                    "training.local_batch_size",
                    settings.micro_batch.saturating_mul(settings.micro_batches()),
                );
                draft.set("parallelism.pipeline_parallel_microbatch_size", settings.micro_batch);
                // The parser requires it.
                draft.set("training.disable_cuda_graphs", true);
            } else {
                draft.set("training.local_batch_size", settings.micro_batch);
            }
        },
        read: |document, settings| {
            document.flag("training.disable_cuda_graphs")?;
            let key = if settings.pipeline > 1 {
                // Marks the key as read.
                document.size("training.local_batch_size")?;
                "parallelism.pipeline_parallel_microbatch_size"
            } else {
                "training.local_batch_size"
            };
            let found = document.size(key)?;
            settings.micro_batch = found.unwrap_or(1);
            Ok(found.is_some())
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "parallelism.data_parallel_shard_degree",
        write: |settings, draft| draft.set(SHARD, if settings.zero_stage > 0 { settings.shard } else { 1 }),
        read: |document, settings| {
            if let Some(shard) = document.size_or_rest(SHARD)? {
                settings.shard = shard;
                return Ok(true);
            }
            // By default, it is the number of devices divided by the other degrees.
            let Some(ranks) = settings.ranks() else { return Ok(false) };
            let replicas = document.size(REPLICATE)?.unwrap_or(1);
            settings.shard = quotient("data-parallel ranks", ranks.into(), replicas.into(), REPLICATE)?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Data,
        theirs: "parallelism.data_parallel_replicate_degree",
        write: |settings, draft| draft.set(REPLICATE, settings.data / settings.shard),
        read: |document, settings| {
            let found = document.size(REPLICATE)?;
            let Some(shard) = document.size_or_rest(SHARD)? else { return Ok(false) };
            let both = [found.unwrap_or(1), shard];
            settings.data = product("data_parallel_replicate_degree x data_parallel_shard_degree", &both)?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "parallelism.fsdp_reshard_after_forward",
        write: |settings, draft| match settings.zero_stage {
            0 => {}
            1 => draft.refuse(
                Field::ZeroStage,
                "FSDP shards gradients together with the optimizer's state",
                "plan with --zero 2 or 3, or export to megatron or deepspeed",
            ),
            stage => draft
                .set("parallelism.fsdp_reshard_after_forward", if stage == 3 { "always" } else { "never" }),
        },
        read: |document, settings| {
            // Context-parallel ranks shard, too. A group of all ranks counts as sharded if their number is
            // not given.
            let all = document.has(SHARD) && document.size_or_rest(SHARD)?.is_none();
            let sharded = settings.shard > 1 || settings.context > 1 || (all && settings.ranks().is_none());
            let policy = document.text("parallelism.fsdp_reshard_after_forward");
            settings.zero_stage = match policy.as_deref() {
                _ if !sharded => 0,
                Some("never") => 2,
                // By default it keeps parameters where a pipeline would otherwise gather them for every
                // micro-batch.
                None | Some("default") if settings.pipeline > 1 => 2,
                None | Some("default" | "always") => 3,
                Some(other) => {
                    return Err(InputError::new(
                        "parallelism.fsdp_reshard_after_forward",
                        other,
                        "is not a policy of torchtitan",
                    )
                    .hint("use default, always or never"));
                }
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::GlobalBatch,
        theirs: "training.global_batch_size, training.local_batch_size",
        write: |settings, draft| draft.set("training.global_batch_size", settings.global_batch),
        read: |document, settings| {
            if let Some(total) = document.size_or_rest("training.global_batch_size")? {
                settings.global_batch = total;
                return Ok(true);
            }
            // By default, gradients do not accumulate.
            let (Some(local), Some(ranks)) = (document.size("training.local_batch_size")?, settings.ranks())
            else {
                return Ok(false);
            };
            settings.global_batch = product("local_batch_size x data-parallel ranks", &[local, ranks])?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::SequenceParallel,
        theirs: "parallelism.enable_sequence_parallel, parallelism.no_enable_sequence_parallel",
        write: |settings, draft| {
            if settings.tensor > 1 {
                let no = if settings.sequence_parallel { "" } else { "no_" };
                draft.set(&format!("parallelism.{no}enable_sequence_parallel"), true);
            }
        },
        read: |document, settings| {
            let off = document.flag("parallelism.no_enable_sequence_parallel")?.unwrap_or(false);
            let on = document.flag("parallelism.enable_sequence_parallel")?.unwrap_or(true);
            settings.sequence_parallel = settings.tensor > 1 && on && !off;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Schedule,
        theirs: "parallelism.pipeline_parallel_schedule",
        write: |settings, draft| {
            if settings.pipeline > 1 {
                let name = match settings.schedule {
                    ScheduleKind::GPipe => "GPipe",
                    ScheduleKind::OneFOneB => "1F1B",
                    ScheduleKind::Interleaved => "Interleaved1F1B",
                };
                draft.set("parallelism.pipeline_parallel_schedule", name);
            }
        },
        read: |document, settings| {
            let name = document.text("parallelism.pipeline_parallel_schedule");
            settings.schedule = match name.as_deref() {
                _ if settings.pipeline == 1 => ScheduleKind::OneFOneB,
                None | Some("1F1B") => ScheduleKind::OneFOneB,
                Some("GPipe") => ScheduleKind::GPipe,
                Some("Interleaved1F1B") => ScheduleKind::Interleaved,
                Some(other) => {
                    return Err(InputError::new(
                        "parallelism.pipeline_parallel_schedule",
                        other,
                        "is not a schedule that plans support",
                    )
                    .hint("use GPipe, 1F1B or Interleaved1F1B"));
                }
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Stages,
        theirs: "parallelism.pipeline_parallel_layers_per_stage, module_fqns_per_model_part",
        write: |settings, draft| {
            if settings.pipeline == 1 {
                return;
            }
            if settings.model.as_ref().is_some_and(|model| model.tied_embeddings) {
                let problem = "are not supported by torchtitan together with pipeline parallelism";
                let error = InputError::new("model.tied_embeddings", true, problem);
                draft.refusals.push(error.hint("plan with `--pp 1`, or export to megatron"));
            }
            if settings.does_without(Field::Stages) {
                // By default it would give the first and last stage fewer layers, for the embedding and the
                // head.
                draft.set(PER_STAGE, settings.stages.first().copied().unwrap_or(1));
                draft.set("parallelism.pipeline_parallel_first_stage_less_layers", 0);
                draft.set("parallelism.pipeline_parallel_last_stage_less_layers", 0);
            } else {
                draft.set(PARTS, parts(&settings.stages));
            }
        },
        read: |document, settings| {
            let [first, last] = ["first", "last"].map(|end| {
                document.blocks(&format!("parallelism.pipeline_parallel_{end}_stage_less_layers"))
            });
            let (first, last) = (first?.unwrap_or(1), last?.unwrap_or(1));
            let blocks = |names: &serde_json::Value| {
                let names = names.as_array().map_or(&[][..], Vec::as_slice);
                names.iter().filter(|name| name.as_str().is_some_and(|n| n.starts_with("layers."))).count()
                    as u32
            };
            if let Some(parts) = document.get(PARTS).and_then(|value| value.as_array()) {
                settings.stages = parts.iter().map(blocks).collect();
                let (parts, stages) = (settings.stages.len() as u64, settings.pipeline.into());
                let what = "pipeline_parallel_degree";
                settings.virtual_stages = quotient("parts of the pipeline", parts, stages, what)?;
                return Ok(true);
            }
            let Some(most) = document.blocks(PER_STAGE)?.filter(|most| *most > 0) else { return Ok(false) };
            // The number of stages depends on the model, which is not in this file.
            let blocks = settings.blocks();
            let other =
                [Field::Pipeline, Field::VirtualStages].iter().any(|field| settings.overridden(*field));
            if settings.pipeline == 1 || blocks == 0 || other {
                return Ok(false);
            }
            // Embedding and head count as blocks.
            let all = blocks + first + last;
            let stages = all.div_ceil(most);
            let (what, pipeline) = ("pipeline_parallel_degree", settings.pipeline.into());
            settings.virtual_stages = quotient("stages of the model", stages.into(), pipeline, what)?;
            let mut counts: Vec<_> =
                (0..stages).map(|index| all / stages + u32::from(index < all % stages)).collect();
            let less = |count: &mut u32, less: u32| match count.checked_sub(less) {
                Some(rest) => {
                    *count = rest;
                    Ok(())
                }
                None => Err(InputError::new(
                    PER_STAGE,
                    most,
                    "leaves no blocks for the first or the last stage",
                )
                .hint("use more blocks per stage, or set pipeline_parallel_first_stage_less_layers to 0")),
            };
            counts.first_mut().map_or(Ok(()), |count| less(count, first))?;
            counts.last_mut().map_or(Ok(()), |count| less(count, last))?;
            settings.stages = counts;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::VirtualStages,
        theirs: "parallelism.pipeline_parallel_schedule, parallelism.pipeline_parallel_layers_per_stage",
        // Determined by the number of layers per stage.
        write: |_, _| {},
        read: |document, settings| {
            // Two is the default for interleaved schedules.
            let listed = document.get(PARTS).is_some() || !settings.stages.is_empty();
            let said = listed || settings.schedule != ScheduleKind::Interleaved;
            if !said {
                settings.virtual_stages = 2;
            }
            Ok(said)
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: "activation_checkpoint, activation_checkpoint.mode",
        write: |settings, draft| match uniform_recompute(settings, draft, true) {
            Recompute::None => draft.set(RECOMPUTE, "none"),
            Recompute::Selective => {
                draft.set(RECOMPUTE, "selective");
                draft.instead(
                    Field::Recompute,
                    "its own selection: it keeps the results of GEMMs and recomputes the rest",
                );
            }
            Recompute::Full => draft.set(RECOMPUTE, "full"),
        },
        read: |document, settings| {
            let older = document.text("activation_checkpoint.mode");
            let mode = match document.text(RECOMPUTE).or(older).as_deref() {
                None if !document.has(toml::KEY) => return Ok(false),
                Some("none") => Recompute::None,
                // The default of the TOML files.
                None | Some("selective") => Recompute::Selective,
                Some("full") => Recompute::Full,
                Some(other) => {
                    return Err(InputError::new(RECOMPUTE, other, "is not a mode that plans support")
                        .hint("use none, selective or full"));
                }
            };
            settings.recompute_all(mode);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "training.mixed_precision_param, float8",
        write: |settings, draft| {
            without_fp16(settings, draft);
            let bf16 = settings.precision == Precision::Bf16;
            draft.set("training.mixed_precision_param", if bf16 { "bfloat16" } else { "float32" });
            note_tf32(settings, draft);
        },
        read: |document, settings| {
            let wide = thirty_two_bits(document)?;
            settings.precision = match precision(document, "training.mixed_precision_param")? {
                Precision::Fp32 => wide,
                Precision::Bf16 if document.flag(FLOAT8)?.unwrap_or(false) => Precision::Fp8,
                other => other,
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Optimizer,
        theirs: "optimizer.param-groups.0.optimizer-kwargs.betas, optimizer.param-groups.0.optimizer-kwargs.eps, \
                 optimizer.param-groups.0.optimizer-kwargs.weight-decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                draft.set_given(Hyperparameter::Betas, &kwargs("betas"), vec![beta1, beta2]);
                draft.set_given(Hyperparameter::Epsilon, &kwargs("eps"), epsilon);
                draft.set_given(Hyperparameter::WeightDecay, &kwargs("weight-decay"), weight_decay);
            }
            Optimizer::Sgd { .. } => draft.refuse(
                Field::Optimizer,
                "it supports only AdamW and Muon",
                "train with adamw, or export to deepspeed or transformers",
            ),
        },
        read: |document, settings| {
            let betas = document.reals(&kwargs("betas"))?;
            let (epsilon, weight_decay) =
                (document.real(&kwargs("eps"))?, document.real(&kwargs("weight-decay"))?);
            settings.give(Hyperparameter::Betas, betas.is_some());
            settings.give(Hyperparameter::Epsilon, epsilon.is_some());
            settings.give(Hyperparameter::WeightDecay, weight_decay.is_some());
            let betas = betas.unwrap_or_default();
            settings.optimizer = Optimizer::AdamW {
                beta1: betas.first().copied().unwrap_or(0.9),
                beta2: betas.get(1).copied().unwrap_or(0.95),
                epsilon: epsilon.unwrap_or(1e-8),
                weight_decay: weight_decay.unwrap_or(0.1),
            };
            // It supports no other one.
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::LearningRate,
        theirs: "optimizer.param-groups.0.optimizer-kwargs.lr, lr_scheduler.warmup_steps, lr_scheduler.decay_type, \
                 lr_scheduler.min_lr_factor, lr_scheduler.total_steps, training.steps",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            use Hyperparameter::{FinalFraction, PeakLearningRate, TotalSteps, WarmupSteps};
            draft.set_given(PeakLearningRate, &kwargs("lr"), peak);
            draft.set_given(WarmupSteps, "lr_scheduler.warmup_steps", warmup_steps);
            draft.set_given(FinalFraction, "lr_scheduler.decay_type", "cosine");
            draft.set_given(FinalFraction, "lr_scheduler.min_lr_factor", final_fraction);
            draft.set_given(TotalSteps, "training.steps", total_steps);
        },
        read: |document, settings| {
            let cosine = document.text("lr_scheduler.decay_type").is_some_and(|kind| kind == "cosine");
            let steps = document.known_count("training.steps")?;
            let lowest = document.known_real("lr_scheduler.min_lr_factor")?;
            let rate = ReadRate {
                peak: document.known_real(&kwargs("lr"))?,
                warmup_steps: document.known_count("lr_scheduler.warmup_steps")?,
                total_steps: document.known_count("lr_scheduler.total_steps")?.or(steps),
                final_fraction: cosine.then(|| lowest.unwrap_or(0.0)),
            };
            Ok(rate.take(settings))
        },
    },
    states::TORCHTITAN,
    clip!("training.max_norm", Word("inf")),
    seed!("debug.seed"),
    FieldMapping {
        field: Field::CheckpointInterval,
        theirs: "checkpoint.enable, checkpoint.interval",
        write: |settings, draft| {
            if let Some(steps) = settings.checkpoint_interval {
                draft.set("checkpoint.enable", true);
                draft.set("checkpoint.interval", steps);
            }
        },
        read: |document, settings| {
            let on = document.flag("checkpoint.enable")?.unwrap_or(false);
            settings.checkpoint_interval = document.count("checkpoint.interval")?.filter(|_| on);
            Ok(true)
        },
    },
];

const EXPERT: &str = "parallelism.expert_parallel_degree";
const SHARD: &str = "parallelism.data_parallel_shard_degree";
const REPLICATE: &str = "parallelism.data_parallel_replicate_degree";
const PER_STAGE: &str = "parallelism.pipeline_parallel_layers_per_stage";

fn kwargs(name: &str) -> String {
    format!("optimizer.param-groups.0.optimizer-kwargs.{name}")
}

/// Names of the modules of every stage.
fn parts(stages: &[u32]) -> Vec<Vec<String>> {
    let mut next = 0;
    let mut parts: Vec<Vec<String>> = stages
        .iter()
        .map(|count| {
            let names = (next..next + count).map(|layer| format!("layers.{layer}")).collect();
            next += count;
            names
        })
        .collect();
    if let Some(first) = parts.first_mut() {
        first.insert(0, "tok_embeddings".to_owned());
    }
    if let Some(last) = parts.last_mut() {
        last.extend(["norm".to_owned(), "lm_head".to_owned()]);
    }
    parts
}
