//! MaxText's YAML, which overrides its `base.yml`.

mod names;
mod rules;

use crate::document::{Document, product, quotient, rounded};
use crate::launch::{Machines, Script};
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, FieldMapping, OptimizerKeys, PARAMETERS_AS_THEY_ARE, ReadRate, UnsupportedField,
    clip, instead, precision, refuse, size, whole_theta, without_fp16,
};
use crate::settings::{Field, Settings};
use crate::stages::uniform_recompute;
use crate::states;
use crate::trainable;
use crate::unsupported::KeyRule;
use crate::{Export, Exporter, File, Files};
use autodist_spec::{
    Activation, Hyperparameter, InputError, LearningRate, ModelSpec, Norm, Optimizer, Positions, Precision,
    Recompute, ScheduleKind,
};
use rules::RULES;
use std::collections::BTreeMap;

pub struct MaxText;

impl Exporter for MaxText {
    fn version(&self) -> &'static str {
        "MaxText 0.2.5"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let purpose =
            format!("MaxText trains {} as planned: {}", job.plan.model.name, job.plan.strategy.label());
        let mut setup = vec![
            ": \"${OUTPUT_DIRECTORY:?where checkpoints and logs go}\"",
            "BASE=$(python3 -c 'import maxtext, os; print(os.path.join(list(maxtext.__path__)[0], \"configs/base.yml\"))')",
            "cp \"$BASE\" \"$(dirname \"$0\")/base.yml\"",
        ];
        let mut arguments = vec![
            "\"$(dirname \"$0\")/maxtext.yml\"".to_owned(),
            "base_output_directory=\"$OUTPUT_DIRECTORY\"".to_owned(),
            format!("hardware={}", if job.machines.gpus { "gpu" } else { "cpu" }),
        ];
        let (nodes, devices) = (job.machines.nodes, job.machines.devices);
        let (joining, cores);
        if nodes > 1 {
            arguments.push("jax_distributed_initialization_timeout=300".to_owned());
            // Without them each node trains alone.
            joining = if job.machines.gpus {
                format!(
                    "export JAX_COORDINATOR_IP=\"$MASTER_ADDR\" JAX_COORDINATOR_PORT=\"${{MASTER_PORT:-29500}}\" NNODES={nodes} NODE_RANK"
                )
            } else {
                format!(
                    "export JAX_COORDINATOR_ADDRESS=\"$MASTER_ADDR\" JOB_INDEX=0 JOB_COMPLETION_INDEX=\"$NODE_RANK\" PROCESSES_IN_JOB={nodes}"
                )
            };
            setup.push(&joining);
        } else if !job.machines.gpus {
            arguments.push("skip_jax_distributed_system=true".to_owned());
        }
        if !job.machines.gpus {
            // The devices of its one process.
            cores = format!(
                "export XLA_FLAGS=\"--xla_force_host_platform_device_count={devices}${{XLA_FLAGS:+ $XLA_FLAGS}}\""
            );
            setup.push(&cores);
        }
        let mut whole = Document::default();
        whole.set("base_config", "base.yml");
        whole.set("run_name", "autodist");
        for (key, value) in split(document, job.machines).entries() {
            whole.set(key, value.clone());
        }
        vec![
            File::text("maxtext.yml", whole.yaml()),
            File::script(
                "maxtext.sh",
                Script::new(&purpose, job.machines, &setup)
                    .run("python3 -m maxtext.trainers.pre_train.train", &arguments),
            ),
        ]
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES]
    }

    fn parse(&self, text: &str, open: Files) -> Result<Document, InputError> {
        names::read(text, open)
    }

    fn model_name(&self, document: &Document) -> Option<(&'static str, String)> {
        Some(("model_name", names::catalogued(&document.text("model_name")?)))
    }
}

/// Axes of the mesh, the one with the most traffic first, with the field that a flag gives.
const AXES: [(&str, Option<Field>); 6] = [
    ("tensor", Some(Field::Tensor)),
    ("context", Some(Field::Context)),
    ("expert", Some(Field::Expert)),
    ("fsdp", None),
    ("data", None),
    ("pipeline", Some(Field::Pipeline)),
];

/// The key of an axis inside a node (`ici`) or across nodes (`dcn`).
fn axis_key(place: &str, axis: &str) -> String {
    format!("{place}_{axis}_parallelism")
}

/// Splits each axis into the part inside a node (ici) and the part across nodes (dcn).
fn split(document: &Document, machines: Machines) -> Document {
    let mut all = Document::default();
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    let inside: Vec<String> = AXES.iter().map(|(axis, _)| axis_key("ici", axis)).collect();
    for (key, value) in document.entries() {
        if inside.contains(key) {
            sizes.insert(key.clone(), value.as_u64().unwrap_or(1));
        } else {
            all.set(key, value.clone());
        }
    }
    if machines.nodes > 1 {
        all.set("num_slices", machines.nodes);
    }
    let mut room = u64::from(machines.devices);
    for (axis, _) in AXES {
        let ici = axis_key("ici", axis);
        let size = sizes.get(&ici).copied().unwrap_or(1);
        let part = greatest_common_divisor(size, room).max(1);
        room /= part;
        all.set(&ici, part);
        all.set(&axis_key("dcn", axis), size / part);
    }
    all
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The parts of an axis inside a node and across nodes; `None` for one that takes the devices that the others
/// leave: it is -1, or fsdp inside a node if it is missing.
fn parts(document: &Document, axis: &str) -> Result<[Option<u32>; 2], InputError> {
    let part = |place: &str| {
        let key = axis_key(place, axis);
        let (size, rest) = (document.size_or_rest(&key)?, axis == "fsdp" && place == "ici");
        Ok(if document.has(&key) || rest { size } else { Some(1) })
    };
    Ok([part("ici")?, part("dcn")?])
}

/// The total size of an axis.
fn axis(document: &Document, settings: &Settings, name: &str) -> Result<u32, InputError> {
    let own = parts(document, name)?;
    let command = &settings.command;
    let rest = own.contains(&None) && !command.search;
    let Some(devices) = command.devices.filter(|_| rest) else {
        let what = format!("{} x {}", axis_key("ici", name), axis_key("dcn", name));
        return product(&what, &own.map(|part| part.unwrap_or(1)));
    };
    let mut others = 1_u64;
    for (other, field) in AXES.into_iter().filter(|(other, _)| *other != name) {
        let given = field.and_then(|field| command.fields.get(&field)).copied().map(u64::from);
        let size = match given {
            Some(degree) => degree,
            None => parts(document, other)?.iter().map(|part| u64::from(part.unwrap_or(1))).product(),
        };
        others = others.saturating_mul(size);
    }
    quotient("devices of the cluster", devices.into(), others, "the product of the other axes")
}

const OPTIMIZER: OptimizerKeys =
    OptimizerKeys { betas: ["adam_b1", "adam_b2"], epsilon: "adam_eps", weight_decay: "adam_weight_decay" };

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::NO_TRAINABLE,
    refuse(
        Field::Stages,
        "all stages hold the same number of blocks",
        "plan with allow.uneven_stages = false and a --pp that divides the blocks",
    ),
    instead(Field::BucketBytes, "the compiler groups collectives"),
    refuse(Field::Gradients, "it has no gradient compression", "plan with allow.codecs = [\"none\"]"),
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
];

macro_rules! mesh_axis {
    ($field:ident, $member:ident, $name:literal) => {
        FieldMapping {
            field: Field::$field,
            theirs: concat!("ici_", $name, "_parallelism, dcn_", $name, "_parallelism"),
            write: |settings, draft| draft.set(concat!("ici_", $name, "_parallelism"), settings.$member),
            read: |document, settings| {
                settings.$member = axis(document, settings, $name)?;
                Ok(true)
            },
        }
    };
}

static ROWS: &[FieldMapping] = &[
    FieldMapping {
        field: Field::Model,
        theirs: "base_emb_dim, base_mlp_dim, base_num_decoder_layers, base_num_query_heads, base_num_kv_heads, head_dim, \
                 vocab_size, normalization_layer_epsilon, rope_max_timescale, logits_via_embedding, decoder_block, \
                 mlp_activations",
        write: |settings, draft| {
            let Some(model) = &settings.model else { return };
            let Positions::Rotary { theta } = model.positions else {
                draft.refuse(Field::Model, LLAMA, "use a model with rotary positions, or export to megatron");
                return;
            };
            if model.norm != Norm::RmsNorm || model.activation != Activation::SwiGlu || model.bias {
                draft.refuse(Field::Model, LLAMA, "use a Llama-type model, or export to megatron");
                return;
            }
            draft.set("decoder_block", "llama2");
            draft.set("mlp_activations", vec!["silu", "linear"]);
            draft.set("base_emb_dim", model.hidden);
            draft.set("base_mlp_dim", model.ffn);
            draft.set("base_num_decoder_layers", model.layers);
            draft.set("base_num_query_heads", model.heads);
            draft.set("base_num_kv_heads", model.kv_heads);
            draft.set("head_dim", model.head_dim);
            draft.set("vocab_size", model.vocab);
            draft.set("normalization_layer_epsilon", model.norm_epsilon);
            if let Some(theta) = whole_theta(theta, draft) {
                draft.set("rope_max_timescale", theta);
            }
            draft.set("logits_via_embedding", model.tied_embeddings);
        },
        read: |document, settings| {
            for key in ["base_config", "run_name", "num_slices"] {
                document.get(key);
            }
            let block = document.choice("decoder_block", &[("llama2", ()), ("mistral", ())]);
            let activations = document.get("mlp_activations");
            // With `--model`, they are not those of the model.
            if settings.model.is_none() {
                block?;
                let swiglu = serde_json::json!(["silu", "linear"]);
                if let Some(other) = activations.filter(|value| **value != swiglu) {
                    return Err(InputError::new(
                        "mlp_activations",
                        other,
                        "is not SwiGLU, which is all that is read",
                    )
                    .hint("use [silu, linear], or remove it from the file and give `--model`"));
                }
            }
            if document.text("model_name").is_some_and(|name| name != "default") {
                return Ok(false);
            }
            let (Some(hidden), Some(layers), Some(heads), Some(ffn)) = (
                document.size("base_emb_dim")?,
                document.blocks("base_num_decoder_layers")?,
                document.size("base_num_query_heads")?,
                document.size("base_mlp_dim")?,
            ) else {
                return Ok(false);
            };
            settings.model = Some(ModelSpec {
                name: "maxtext".to_owned(),
                kv_heads: document.size("base_num_kv_heads")?.unwrap_or(heads),
                head_dim: document.size("head_dim")?.unwrap_or(128),
                ffn,
                vocab: document.size("vocab_size")?.unwrap_or(32_000),
                // Rotary embeddings have no table; the maximum sequence length is taken from the next
                // setting.
                max_seq_len: document.size("max_target_length")?.unwrap_or(2048),
                positions: Positions::Rotary {
                    theta: document.real("rope_max_timescale")?.unwrap_or(10_000.0),
                },
                norm: Norm::RmsNorm,
                norm_epsilon: document.real("normalization_layer_epsilon")?.unwrap_or(1e-5),
                activation: Activation::SwiGlu,
                bias: false,
                tied_embeddings: document.flag("logits_via_embedding")?.unwrap_or(false),
                ..ModelSpec::gpt(layers, hidden, heads, 0, 0)
            });
            Ok(true)
        },
    },
    mesh_axis!(Tensor, tensor, "tensor"),
    mesh_axis!(Context, context, "context"),
    mesh_axis!(Expert, expert, "expert"),
    mesh_axis!(Pipeline, pipeline, "pipeline"),
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "ici_fsdp_parallelism, dcn_fsdp_parallelism, shard_optimizer_over_data",
        write: |settings, draft| {
            if settings.zero_stage == 2 {
                draft.refuse(
                    Field::ZeroStage,
                    "it shards the optimizer state only, or also gradients and parameters",
                    "plan with --zero 0, 1 or 3",
                );
            }
            draft.set("ici_fsdp_parallelism", if settings.zero_stage == 3 { settings.shard } else { 1 });
            draft.set("shard_optimizer_over_data", settings.zero_stage == 1);
        },
        read: |document, settings| {
            let optimizer = document.flag("shard_optimizer_over_data")?.unwrap_or(false);
            settings.zero_stage = if axis(document, settings, "fsdp")? > 1 { 3 } else { u8::from(optimizer) };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Data,
        theirs: "ici_data_parallelism, dcn_data_parallelism",
        write: |settings, draft| {
            let replicas =
                if settings.zero_stage == 3 { settings.data / settings.shard } else { settings.data };
            draft.set("ici_data_parallelism", replicas);
        },
        read: |document, settings| {
            settings.data = product(
                "data x fsdp parallelism",
                &[axis(document, settings, "data")?, axis(document, settings, "fsdp")?],
            )?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "ici_fsdp_parallelism, dcn_fsdp_parallelism",
        write: |settings, draft| {
            if settings.zero_stage == 1 && !settings.does_without(Field::Shard) {
                draft.refuse(
                    Field::Shard,
                    "it shards the optimizer state over all data-parallel ranks",
                    "plan with `--shard` equal to the data-parallel degree, or with --zero 3",
                );
            }
        },
        read: |document, settings| {
            settings.shard = match settings.zero_stage {
                0 => 1,
                3 => axis(document, settings, "fsdp")?,
                _ => settings.data,
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::VirtualStages,
        theirs: "num_layers_per_pipeline_stage, num_pipeline_repeats",
        write: |settings, draft| {
            if settings.pipeline > 1 {
                let blocks = settings.stages.first().copied().unwrap_or(1);
                draft.set("num_layers_per_pipeline_stage", blocks);
                draft.set("num_pipeline_repeats", settings.virtual_stages);
                // Scanned, blocks of a stage would need a loop of their own; a single one must be.
                draft.set("scan_layers", blocks == 1);
            }
        },
        read: |document, settings| {
            document.get("scan_layers");
            let key = "num_layers_per_pipeline_stage";
            let each = if settings.pipeline > 1 { document.size(key)? } else { document.get(key).and(None) };
            let repeats = document.size_or_rest("num_pipeline_repeats")?;
            settings.virtual_stages = repeats.unwrap_or(1);
            if let Some(each) =
                each.filter(|_| settings.blocks() > 0 && !settings.overridden(Field::Pipeline))
            {
                let what = "num_layers_per_pipeline_stage x pipeline parallelism x num_pipeline_repeats";
                let parts = product(what, &[each, settings.pipeline, repeats.unwrap_or(1)])?;
                let rounds =
                    quotient("base_num_decoder_layers", settings.blocks().into(), parts.into(), what)?;
                if repeats.is_some() && rounds != 1 {
                    let problem = format!("leaves {} blocks of the model out", settings.blocks() - parts);
                    return Err(InputError::new(key, each, problem)
                        .hint("give every block to a stage, or remove `num_pipeline_repeats`"));
                }
                settings.virtual_stages = repeats.unwrap_or(rounds);
            }
            if let Some(equal) = settings.equal_stages() {
                settings.stages = equal;
            }
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Schedule,
        theirs: "num_pipeline_repeats",
        write: |settings, draft| {
            if settings.pipeline > 1 && settings.schedule != ScheduleKind::GPipe {
                draft.instead(
                    Field::Schedule,
                    "it runs all forward passes, then all backward passes: slower, and with more memory than planned",
                );
            }
        },
        read: |_, settings| {
            settings.schedule = match (settings.pipeline, settings.virtual_stages) {
                (1, _) => ScheduleKind::OneFOneB,
                (_, 1) => ScheduleKind::GPipe,
                _ => ScheduleKind::Interleaved,
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::MicroBatch,
        theirs: "num_pipeline_microbatches, gradient_accumulation_steps",
        write: |settings, draft| {
            let count = settings.micro_batches();
            if settings.pipeline == 1 {
                draft.set("gradient_accumulation_steps", count);
                return;
            }
            draft.set("gradient_accumulation_steps", 1);
            draft.set("num_pipeline_microbatches", count);
        },
        // The global batch, which is read next, determines the number of sequences in a micro-batch.
        read: |_, _| Ok(true),
    },
    FieldMapping {
        field: Field::GlobalBatch,
        theirs: "per_device_batch_size, gradient_accumulation_steps",
        write: |settings, draft| {
            let steps = if settings.pipeline == 1 { settings.micro_batches() } else { 1 };
            let sequences = f64::from(settings.global_batch) / f64::from(steps.max(1));
            draft.set("per_device_batch_size", sequences / f64::from(settings.devices()));
        },
        read: |document, settings| {
            // The default of base.yml.
            let per_device = document.real("per_device_batch_size")?.unwrap_or(12.0);
            let steps = document.size("gradient_accumulation_steps")?.unwrap_or(1);
            let count = document.size("num_pipeline_microbatches")?;
            let count = if settings.pipeline == 1 { steps } else { count.unwrap_or(settings.pipeline) };
            let devices = product("devices", &settings.degrees())?;
            // The axes of a layout that is searched are not those of the file.
            let devices = settings.command.devices.filter(|_| settings.command.search).unwrap_or(devices);
            let sequences = per_device * f64::from(devices) * f64::from(steps);
            // A fraction of a sequence per device is written as a decimal, whose product with the devices may
            // not be exact.
            let whole = sequences.round();
            if !(1.0..=f64::from(1 << 26)).contains(&whole) || (sequences - whole).abs() > 1e-6 * whole {
                let problem = format!(
                    "gives {sequences} sequences per step with {devices} devices and {steps} accumulation steps"
                );
                return Err(InputError::new("per_device_batch_size", per_device, problem).hint(
                    "choose a value for which a step has a whole number of sequences, at most 67108864",
                ));
            }
            settings.global_batch = whole as u32;
            if settings.overridden(Field::MicroBatch) || settings.command.search {
                return Ok(true);
            }
            let what = "num_pipeline_microbatches or gradient_accumulation_steps, x data-parallel ranks";
            let parts = product(what, &[count, settings.data])?;
            let key = "per_device_batch_size x devices x gradient_accumulation_steps";
            settings.micro_batch = quotient(key, settings.global_batch.into(), parts.into(), what)?;
            Ok(true)
        },
    },
    size!(SeqLen, seq_len, "max_target_length"),
    FieldMapping {
        field: Field::SequenceParallel,
        theirs: "ici_tensor_parallelism",
        write: |settings, draft| {
            if settings.tensor > 1 && !settings.sequence_parallel {
                draft.instead(
                    Field::SequenceParallel,
                    "it also splits the norms along the sequence: less memory",
                );
            }
        },
        read: |_, settings| {
            settings.sequence_parallel = settings.tensor > 1;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: "remat_policy",
        write: |settings, draft| {
            let policy = match uniform_recompute(settings, draft, true) {
                Recompute::None => "minimal_with_context",
                Recompute::Selective => "minimal",
                Recompute::Full => "full",
            };
            draft.set("remat_policy", policy);
        },
        read: |document, settings| {
            let policy = document.text("remat_policy").unwrap_or_else(|| "full".to_owned());
            let mode = match policy.as_str() {
                "minimal_with_context" => Recompute::None,
                "minimal" => Recompute::Selective,
                "full" => Recompute::Full,
                _ => {
                    return Err(InputError::new(
                        "remat_policy",
                        policy,
                        "is not a policy that plans support",
                    )
                    .hint("use minimal_with_context (none), minimal (attention) or full"));
                }
            };
            settings.recompute_all(mode);
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "dtype, weight_dtype",
        write: |settings, draft| {
            without_fp16(settings, draft);
            draft.set("dtype", if settings.precision == Precision::Bf16 { "bfloat16" } else { "float32" });
            draft.set("weight_dtype", "float32");
            if settings.precision == Precision::Tf32 {
                draft.set("matmul_precision", "default");
            }
        },
        read: |document, settings| {
            // In fewer bits the weights and the optimizer's state take less memory.
            document.choice("weight_dtype", &[("float32", ())])?;
            let words = [("default", true), ("high", false), ("highest", false)];
            let tf32 = document.choice("matmul_precision", &words)?.unwrap_or(false);
            settings.precision = match precision(document, "dtype")? {
                Precision::Fp32 if tf32 => Precision::Tf32,
                other => other,
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Optimizer,
        theirs: "opt_type, adam_b1, adam_b2, adam_eps, adam_weight_decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { .. } => {
                draft.set("opt_type", "adamw");
                OPTIMIZER.write(settings, draft);
            }
            Optimizer::Sgd { momentum, weight_decay } => {
                if settings.gives(Hyperparameter::WeightDecay) && weight_decay != 0.0 {
                    draft.instead(Field::Optimizer, "its SGD has no weight decay");
                }
                if momentum != 0.0 {
                    draft.refuse(
                        Field::Optimizer,
                        "its SGD has no momentum",
                        "train with adamw, or with momentum = 0",
                    );
                }
                draft.set("opt_type", "sgd");
            }
        },
        read: |document, settings| {
            let sgd = document.choice("opt_type", &[("adamw", false), ("sgd", true)])?.unwrap_or(false);
            settings.optimizer = if sgd {
                Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 }
            } else {
                OPTIMIZER.read_adam(document, settings, [0.9, 0.95, 1e-8, 0.1])?
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::LearningRate,
        theirs: "learning_rate, learning_rate_final_fraction, warmup_steps_fraction, learning_rate_schedule_steps, steps",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            use Hyperparameter::{FinalFraction, PeakLearningRate, TotalSteps, WarmupSteps};
            draft.set_given(PeakLearningRate, "learning_rate", peak);
            draft.set_given(FinalFraction, "learning_rate_final_fraction", final_fraction);
            if settings.gives(WarmupSteps) {
                if settings.gives(TotalSteps) {
                    let fraction = rounded(f64::from(warmup_steps) / f64::from(total_steps));
                    draft.set("warmup_steps_fraction", fraction);
                } else {
                    draft.instead(
                        Field::LearningRate,
                        "its default warm-up: it is a fraction of the steps, and their number was not given",
                    );
                }
            }
            draft.set_given(TotalSteps, "learning_rate_schedule_steps", total_steps);
            draft.set_given(TotalSteps, "steps", total_steps);
        },
        read: |document, settings| {
            let steps = document.count("steps")?;
            let total_steps = document.size_or_rest("learning_rate_schedule_steps")?.or(steps);
            let warmup = document.real("warmup_steps_fraction")?;
            if let Some(part) = warmup.filter(|part| !(0.0..=1.0).contains(part)) {
                return Err(InputError::new(
                    "warmup_steps_fraction",
                    part,
                    "expected a fraction of the steps",
                )
                .hint("use a number from 0 to 1"));
            }
            let rate = ReadRate {
                peak: document.real("learning_rate")?,
                warmup_steps: warmup
                    .zip(total_steps)
                    .map(|(part, steps)| (part * f64::from(steps)).round() as u32),
                total_steps,
                final_fraction: document.real("learning_rate_final_fraction")?,
            };
            Ok(rate.take(settings))
        },
    },
    states::MAXTEXT,
    clip!("gradient_clipping_threshold"),
    FieldMapping {
        field: Field::Seed,
        theirs: "init_weights_seed, data_shuffle_seed",
        write: |settings, draft| {
            draft.set_given(Hyperparameter::Seed, "init_weights_seed", settings.seed);
            draft.set_given(Hyperparameter::Seed, "data_shuffle_seed", settings.seed);
        },
        read: |document, settings| {
            document.get("data_shuffle_seed");
            let found = document.seed("init_weights_seed")?;
            settings.seed = found.unwrap_or(settings.seed);
            Ok(settings.give(Hyperparameter::Seed, found.is_some()))
        },
    },
    FieldMapping {
        field: Field::CheckpointInterval,
        theirs: "enable_checkpointing, checkpoint_period",
        write: |settings, draft| {
            if let Some(steps) = settings.checkpoint_interval {
                draft.set("enable_checkpointing", true);
                draft.set("checkpoint_period", steps);
            }
        },
        read: |document, settings| {
            let on = document.flag("enable_checkpointing")?.unwrap_or(true);
            settings.checkpoint_interval = document.count("checkpoint_period")?.filter(|_| on);
            Ok(true)
        },
    },
];

const LLAMA: &str = "only Llama-type models are supported: RMSNorm, SwiGLU, rotary positions, no biases";
