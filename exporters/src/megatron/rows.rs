//! Megatron's flags for the fields of a plan.

use super::blocks;
use crate::document::{above_zero, product, quotient, rounded};
use crate::row::{
    FieldMapping, OptimizerKeys, ReadRate, clip, seed, sixteen_bits, size, thirty_two_bits, whole_theta,
};
use crate::settings::Field;
use crate::stages::{blocks_of_layout, layout, leading_full, uniform_recompute};
use crate::states;
use crate::trainable;
use autodist_program::schedule::round_of;
use autodist_spec::{
    Activation, Codec, Hyperparameter, InputError, LearningRate, ModelSpec, Norm, Optimizer, Positions,
    Precision, Recompute, ScheduleKind,
};

/// Micro-batches of a round of the interleaved schedule.
pub(crate) const ROUND: &str = "microbatch-group-size-per-virtual-pipeline-stage";

/// Flags that rows read besides those that they name.
pub(super) const ALSO_READ: [&str; 10] = [
    "num-key-value-heads",
    "zero-stage",
    "checkpoint-activations",
    "activations-checkpoint-method",
    "activations-checkpoint-num-layers",
    "num-layers-per-virtual-pipeline-stage",
    "recompute-activations",
    "use-rotary-position-embeddings",
    "overlap-grad-reduce",
    "overlap-param-gather",
];

const OPTIMIZER: OptimizerKeys =
    OptimizerKeys { betas: ["adam-beta1", "adam-beta2"], epsilon: "adam-eps", weight_decay: "weight-decay" };

pub(crate) static ROWS: &[FieldMapping] = &[
    FieldMapping {
        field: Field::Model,
        theirs: "num-layers, hidden-size, ffn-hidden-size, num-attention-heads, kv-channels, group-query-attention, \
                 num-query-groups, max-position-embeddings, vocab-size, position-embedding-type, rotary-base, \
                 normalization, norm-epsilon, swiglu, disable-bias-linear, untie-embeddings-and-output-weights, num-experts, \
                 moe-router-topk, moe-ffn-hidden-size, moe-layer-freq, moe-shared-expert-intermediate-size, window-size, \
                 window-attn-skip-freq, multi-latent-attention, q-lora-rank, kv-lora-rank, qk-head-dim, \
                 qk-pos-emb-head-dim, v-head-dim, qk-layernorm, rope-type, add-qkv-bias, softmax-type, \
                 moe-shared-expert-gate, attention-dropout, hidden-dropout",
        write: |settings, draft| {
            let Some(model) = &settings.model else { return };
            draft.set("num-layers", model.layers);
            draft.set("hidden-size", model.hidden);
            let block = model.block(1);
            draft.set("num-attention-heads", block.heads);
            if model.latent.is_none() {
                draft.set("kv-channels", block.head_dim);
            }
            if block.kv_heads != block.heads {
                draft.set("group-query-attention", true);
                draft.set("num-query-groups", block.kv_heads);
            }
            // Rotary positions have no table: a longer sequence is legal for the model, but not for the trainer.
            draft.set("max-position-embeddings", model.max_seq_len.max(settings.seq_len));
            draft.set("vocab-size", model.vocab);
            match model.positions {
                Positions::Learned => draft.set("position-embedding-type", "learned_absolute"),
                Positions::Alibi => {
                    let problem = "is a kind of positions that Megatron does not have";
                    let error = InputError::new("model.positions", "alibi", problem);
                    draft
                        .refusals
                        .push(error.hint("train it with a trainer that takes the whole model by its name"));
                }
                Positions::Rotary { theta } => {
                    draft.set("position-embedding-type", "rope");
                    if let Some(theta) = whole_theta(theta, draft) {
                        draft.set("rotary-base", theta);
                    }
                }
            }
            draft.set("normalization", if model.norm == Norm::RmsNorm { "RMSNorm" } else { "LayerNorm" });
            draft.set("norm-epsilon", model.norm_epsilon);
            draft.set("swiglu", model.activation == Activation::SwiGlu);
            draft.set("disable-bias-linear", !model.bias);
            draft.set("untie-embeddings-and-output-weights", !model.tied_embeddings);
            // Its own default is 0.1.
            draft.set("attention-dropout", 0.0);
            draft.set("hidden-dropout", 0.0);
            blocks::write(model, draft);
        },
        read: |document, settings| {
            // Dropout changes neither time nor memory much, and is not read.
            for key in ["attention-dropout", "hidden-dropout"] {
                document.get(key);
            }
            let (Some(layers), Some(hidden), Some(heads)) = (
                document.blocks("num-layers")?,
                document.size("hidden-size")?,
                document.size("num-attention-heads")?,
            ) else {
                return Ok(false);
            };
            let swiglu = document.flag("swiglu")?.unwrap_or(false);
            // With `--model`, they are not those of the model.
            let given = settings.model.is_some();
            let one_of = |key: &str, words: &[(&str, bool)]| match document.choice(key, words) {
                Err(_) if given => Ok(None),
                other => other,
            };
            let rotary = document.flag("use-rotary-position-embeddings")?.unwrap_or(false);
            let learned = one_of("position-embedding-type", &[("learned_absolute", true), ("rope", false)])?;
            let learned = learned.unwrap_or(!rotary) && !rotary;
            let theta = document.real("rotary-base")?.unwrap_or(10_000.0);
            let rms = one_of(
                "normalization",
                &[("LayerNorm", false), ("RMSNorm", true), ("layernorm", false), ("rmsnorm", true)],
            )?
            .unwrap_or(false);
            let grouped = document.flag("group-query-attention")?.unwrap_or(false);
            // Megatron-DeepSpeed's flag needs no other.
            let groups = match document.size("num-key-value-heads")? {
                Some(groups) => Some(groups),
                None => document.size("num-query-groups")?.filter(|_| grouped),
            };
            let usual = ModelSpec {
                name: "megatron".to_owned(),
                kv_heads: groups.unwrap_or(heads),
                head_dim: blocks::channels(document, hidden, heads)?,
                // Two thirds, so that SwiGLU's three matrices have as many parameters as two.
                ffn: document.size("ffn-hidden-size")?.unwrap_or(if swiglu {
                    (4 * hidden * 2 / 3) / 64 * 64
                } else {
                    hidden.saturating_mul(4)
                }),
                vocab: document.size("vocab-size")?.unwrap_or(0),
                max_seq_len: document.size("max-position-embeddings")?.unwrap_or(0),
                positions: if learned { Positions::Learned } else { Positions::Rotary { theta } },
                norm: if rms { Norm::RmsNorm } else { Norm::LayerNorm },
                norm_epsilon: document.real("norm-epsilon")?.unwrap_or(1e-5),
                activation: if swiglu { Activation::SwiGlu } else { Activation::Gelu },
                bias: !document.flag("disable-bias-linear")?.unwrap_or(false),
                tied_embeddings: !document.flag("untie-embeddings-and-output-weights")?.unwrap_or(false),
                ..ModelSpec::gpt(layers, hidden, heads, 0, 0)
            };
            settings.model = Some(blocks::read(document, usual)?);
            Ok(true)
        },
    },
    states::MEGATRON,
    trainable::MEGATRON,
    size!(SeqLen, seq_len, "seq-length"),
    size!(MicroBatch, micro_batch, "micro-batch-size"),
    size!(GlobalBatch, global_batch, "global-batch-size"),
    size!(Tensor, tensor, "tensor-model-parallel-size"),
    size!(Pipeline, pipeline, "pipeline-model-parallel-size"),
    size!(Context, context, "context-parallel-size"),
    size!(Expert, expert, "expert-model-parallel-size"),
    FieldMapping {
        field: Field::Data,
        theirs: "nnodes, nproc-per-node",
        // It follows from the number of processes that torchrun starts.
        write: |_, _| {},
        read: |document, settings| {
            let is_open = |key: &str| document.text(key).is_some_and(|text| text.starts_with('$'));
            let keys = ["nproc-per-node", "nproc_per_node", "num_gpus"];
            let key = keys.into_iter().find(|key| document.has(key));
            let per_node = match key {
                Some(key) if !is_open(key) => document.size(key)?,
                _ => None,
            };
            let Some(per_node) = per_node else { return Ok(false) };
            // How many nodes there are, only the launcher knows; the cluster says it, too.
            if document.text("nnodes").is_some_and(|nodes| nodes.starts_with('$')) {
                return Ok(false);
            }
            let key = "nnodes x nproc-per-node";
            let world = product(key, &[per_node, document.size("nnodes")?.unwrap_or(1)])?;
            // The cluster says how many processes there are: scripts leave the nodes to the user.
            if settings.command.devices.is_some_and(|devices| devices != world) {
                return Ok(false);
            }
            let others = product(
                "tensor x pipeline x context",
                &[settings.tensor, settings.pipeline, settings.context],
            )?;
            settings.data = quotient(key, world.into(), others.into(), "tensor x pipeline x context")?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::SequenceParallel,
        theirs: "sequence-parallel",
        write: |settings, draft| draft.set("sequence-parallel", settings.sequence_parallel),
        read: |document, settings| {
            // Megatron turns it off without tensor parallelism.
            let on = document.flag("sequence-parallel")?.unwrap_or(false);
            settings.sequence_parallel = on && settings.tensor > 1;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::VirtualStages,
        theirs: "num-virtual-stages-per-pipeline-rank",
        write: |settings, draft| {
            // A layout determines it by the number of its stages.
            if settings.virtual_stages > 1 && settings.does_without(Field::Stages) {
                draft.set("num-virtual-stages-per-pipeline-rank", settings.virtual_stages);
            }
        },
        read: |document, settings| {
            if let Some(text) = document.text("pipeline-model-parallel-layout") {
                let chunks = blocks_of_layout(&text)?.len() as u64;
                let what = "pipeline-model-parallel-size";
                let stages = settings.pipeline.into();
                settings.virtual_stages =
                    quotient("stages of pipeline-model-parallel-layout", chunks, stages, what)?;
            } else if let Some(stages) = document.size("num-virtual-stages-per-pipeline-rank")? {
                settings.virtual_stages = stages;
            } else if let (Some(layers), Some(model)) =
                (document.size("num-layers-per-virtual-pipeline-stage")?, &settings.model)
            {
                let what = "num-layers-per-virtual-pipeline-stage x pipeline-model-parallel-size";
                let each = product(what, &[layers, settings.pipeline])?;
                settings.virtual_stages = quotient("num-layers", model.layers.into(), each.into(), what)?;
            }
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Schedule,
        theirs: "num-virtual-stages-per-pipeline-rank",
        write: |settings, draft| {
            if settings.schedule == ScheduleKind::GPipe {
                draft.refuse(
                    Field::Schedule,
                    "Megatron supports only 1F1B and interleaved 1F1B",
                    "plan with --schedule 1f1b",
                );
            }
            // By default its rounds have as many micro-batches as there are stages.
            let round = round_of(settings.pipeline, settings.micro_batches());
            if settings.schedule == ScheduleKind::Interleaved && round > settings.pipeline {
                draft.set(ROUND, round);
            }
        },
        read: |_, settings| {
            settings.schedule =
                if settings.virtual_stages > 1 { ScheduleKind::Interleaved } else { ScheduleKind::OneFOneB };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Stages,
        theirs: "pipeline-model-parallel-layout, decoder-first-pipeline-num-layers, decoder-last-pipeline-num-layers",
        write: |settings, draft| {
            if !settings.does_without(Field::Stages) {
                draft.set("pipeline-model-parallel-layout", layout(&settings.stages));
            }
        },
        read: |document, settings| {
            let layers = settings.blocks();
            let chunks = settings.pipeline.saturating_mul(settings.virtual_stages);
            let first = document.blocks("decoder-first-pipeline-num-layers")?;
            let last = document.blocks("decoder-last-pipeline-num-layers")?;
            if let Some(text) = document.text("pipeline-model-parallel-layout") {
                settings.stages = blocks_of_layout(&text)?;
            } else if layers > 0 && (first.is_some() || last.is_some()) {
                let ends = first.into_iter().chain(last).collect::<Vec<_>>();
                let between = chunks.saturating_sub(ends.len() as u32).max(1);
                let rest = layers.saturating_sub(ends.iter().sum());
                // Each of the inner stages has at least one block, so there are at most as many stages as
                // blocks.
                if settings.virtual_stages > 1 || !rest.is_multiple_of(between) || chunks > layers {
                    let shown = format!("{first:?}, {last:?}");
                    return Err(InputError::new(
                        "decoder-first-pipeline-num-layers, decoder-last-pipeline-num-layers",
                        shown,
                        format!("leave {rest} layers for {between} stages"),
                    )
                    .hint("choose numbers that divide evenly, or write the stages as --pipeline-model-parallel-layout"));
                }
                settings.stages = vec![rest / between; chunks as usize];
                if let (Some(first), Some(stage)) = (first, settings.stages.first_mut()) {
                    *stage = first;
                }
                if let (Some(last), Some(stage)) = (last, settings.stages.last_mut()) {
                    *stage = last;
                }
            } else {
                let Some(equal) = settings.equal_stages() else { return Ok(false) };
                settings.stages = equal;
            }
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: "recompute-granularity, recompute-method, recompute-num-layers",
        write: |settings, draft| {
            if let Some(leading) = leading_full(settings).filter(|n| *n > 0) {
                let all = settings.recompute.iter().all(|r| *r == Recompute::Full);
                draft.set("recompute-granularity", "full");
                draft.set("recompute-method", if all { "uniform" } else { "block" });
                draft.set("recompute-num-layers", if all { 1 } else { leading });
                return;
            }
            match uniform_recompute(settings, draft, true) {
                Recompute::None => {}
                Recompute::Selective => draft.set("recompute-granularity", "selective"),
                Recompute::Full => {
                    draft.set("recompute-granularity", "full");
                    draft.set("recompute-method", "uniform");
                    draft.set("recompute-num-layers", 1);
                }
            }
        },
        read: |document, settings| {
            let short = document.flag("recompute-activations")?.unwrap_or(false);
            let kind = document.text("recompute-granularity");
            let block = document.choice("recompute-method", &[("uniform", false), ("block", true)])?;
            let number = document.blocks("recompute-num-layers")?;
            if let Some(number) = number.filter(|number| block == Some(false) && *number > 1) {
                return Err(InputError::new(
                    "recompute-num-layers",
                    number,
                    "recomputes several blocks at once, which plans do not do",
                )
                .hint("use 1 with the method uniform"));
            }
            if kind.as_deref() == Some("full") && block == Some(true) && settings.stages.is_empty() {
                return Err(InputError::new(
                    "recompute-method",
                    "block",
                    "recomputes the first blocks of each stage, but the blocks of the stages are not known",
                )
                .hint("use the method uniform"));
            }
            // Older spellings: `--checkpoint-activations`, and a method without a granularity.
            let older = document.flag("checkpoint-activations")?.unwrap_or(false);
            let method = document.text("activations-checkpoint-method").is_some_and(|text| text != "none");
            for key in ["activations-checkpoint-num-layers", "checkpoint-num-layers"] {
                document.get(key);
            }
            let older = (older || method).then_some("full").or(short.then_some("selective"));
            let all = match kind.as_deref().or(older) {
                None => Recompute::None,
                Some("selective") => Recompute::Selective,
                Some("full") => Recompute::Full,
                Some(other) => {
                    return Err(InputError::new(
                        "recompute-granularity",
                        other,
                        "is not a value of Megatron",
                    )
                    .hint("use full or selective"));
                }
            };
            settings.recompute_all(all);
            if all == Recompute::Full && block == Some(true) {
                let first = number.unwrap_or(1);
                let mode = |index| if index < first { Recompute::Full } else { Recompute::None };
                settings.recompute = settings.stages.iter().flat_map(|count| (0..*count).map(mode)).collect();
            }
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "use-distributed-optimizer, use-megatron-fsdp, use-torch-fsdp2, data-parallel-sharding-strategy",
        write: |settings, draft| {
            draft.set("use-distributed-optimizer", settings.zero_stage > 0);
            if settings.zero_stage > 1 {
                draft.set("use-megatron-fsdp", true);
                let what = if settings.zero_stage == 2 { "optim_grads" } else { "optim_grads_params" };
                draft.set("data-parallel-sharding-strategy", what);
                // The only format in which its shards are saved.
                draft.set("ckpt-format", "fsdp_dtensor");
            }
            // Gradient and parameter collectives overlap with compute, as in the plan.
            let replicas = settings.data.saturating_mul(settings.context);
            draft.set("overlap-grad-reduce", replicas > 1);
            draft.set("overlap-param-gather", replicas > 1 && settings.zero_stage > 0);
        },
        read: |document, settings| {
            let distributed = document.flag("use-distributed-optimizer")?.unwrap_or(false);
            let fsdp = document.flag("use-megatron-fsdp")?.unwrap_or(false);
            let strategy = document.text("data-parallel-sharding-strategy");
            for key in ["overlap-grad-reduce", "overlap-param-gather", "ckpt-format"] {
                document.get(key);
            }
            // Megatron-DeepSpeed: its configuration, else its own flag.
            let stage = document.zero_stage("deepspeed_config.zero_optimization.stage")?;
            let own = document.zero_stage("zero-stage")?;
            if let Some(stage) = stage.or(own.filter(|_| document.has("deepspeed"))) {
                settings.zero_stage = stage;
                return Ok(true);
            }
            settings.zero_stage = match (fsdp, strategy.as_deref()) {
                (true, Some("optim_grads")) => 2,
                (true, Some("optim_grads_params")) => 3,
                (true, Some("optim")) => 1,
                (true, Some("no_shard") | None) => u8::from(distributed),
                (true, Some(other)) => {
                    return Err(InputError::new(
                        "data-parallel-sharding-strategy",
                        other,
                        "is not a value of Megatron",
                    )
                    .hint("use optim, optim_grads or optim_grads_params"));
                }
                (false, _) => u8::from(distributed),
            };
            if document.flag("use-torch-fsdp2")?.unwrap_or(false) {
                settings.zero_stage = 3;
            }
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "num-distributed-optimizer-instances",
        write: |settings, draft| {
            if !settings.does_without(Field::Shard) {
                draft.set("num-distributed-optimizer-instances", settings.data / settings.shard);
            }
        },
        read: |document, settings| {
            let key = "num-distributed-optimizer-instances";
            let instances = document.size(key)?.unwrap_or(1);
            settings.shard = if settings.zero_stage > 0 {
                quotient("data-parallel ranks", settings.data.into(), instances.into(), key)?
            } else {
                1
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::BucketBytes,
        theirs: "ddp-bucket-size",
        // In elements of four bytes: gradients are reduced in fp32.
        write: |settings, draft| draft.set("ddp-bucket-size", settings.bucket_bytes.div_ceil(4)),
        read: |document, settings| {
            let Some(bytes) = document.bucket("ddp-bucket-size", 4)? else { return Ok(false) };
            settings.bucket_bytes = bytes;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Gradients,
        theirs: "grad-reduce-in-bf16",
        write: |settings, draft| match settings.gradients {
            Codec::None => {}
            Codec::Bf16 => draft.set("grad-reduce-in-bf16", true),
            _ => draft.refuse(
                Field::Gradients,
                "gradients are reduced in fp32 or bf16",
                "plan with allow.codecs = [\"none\", \"bf16\"], or train with `--engine torch`",
            ),
        },
        read: |document, settings| {
            let bf16 = document.flag("grad-reduce-in-bf16")?.unwrap_or(false);
            settings.gradients = if bf16 { Codec::Bf16 } else { Codec::None };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Precision,
        theirs: "bf16, fp16, fp8-format",
        write: |settings, draft| match settings.precision {
            Precision::Bf16 => draft.set("bf16", true),
            Precision::Fp16 => draft.set("fp16", true),
            Precision::Fp8 => {
                draft.set("bf16", true);
                draft.set("fp8-format", "hybrid");
            }
            Precision::Fp32 => {}
            Precision::Tf32 => draft
                .instead(Field::Precision, "the flags say fp32, and the script sets NVIDIA_TF32_OVERRIDE=1"),
        },
        read: |document, settings| {
            let wide = sixteen_bits(document, "bf16", "fp16")?.unwrap_or(thirty_two_bits(document)?);
            let fp8 = document.choice("fp8-format", &[("hybrid", true), ("e4m3", true), ("none", false)])?;
            settings.precision = match (fp8, wide) {
                (Some(true), Precision::Bf16) => Precision::Fp8,
                (Some(true), _) => {
                    let problem = "is priced beside bf16, but the file has no `--bf16`";
                    let written = document.text("fp8-format").unwrap_or_default();
                    let hint = if wide == Precision::Fp16 {
                        "write `--bf16` in place of `--fp16`"
                    } else {
                        "add `--bf16`"
                    };
                    return Err(InputError::new("fp8-format", written, problem).hint(hint));
                }
                _ => wide,
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Optimizer,
        theirs: "optimizer, adam-beta1, adam-beta2, adam-eps, sgd-momentum, weight-decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { .. } => {
                draft.set("optimizer", "adam");
                OPTIMIZER.write(settings, draft);
            }
            Optimizer::Sgd { momentum, .. } => {
                if settings.zero_stage > 0 {
                    draft.refuse(
                        Field::Optimizer,
                        "its distributed optimizer stops with SGD",
                        "train with adamw, or plan with --zero 0",
                    );
                }
                draft.set("optimizer", "sgd");
                draft.set_given(Hyperparameter::Momentum, "sgd-momentum", momentum);
                OPTIMIZER.write(settings, draft);
            }
        },
        read: |document, settings| {
            let sgd = document.choice("optimizer", &[("adam", false), ("sgd", true)])?.unwrap_or(false);
            settings.optimizer = if sgd {
                let momentum = document.known_real("sgd-momentum")?;
                settings.give(Hyperparameter::Momentum, momentum.is_some());
                let weight_decay = OPTIMIZER.read_decay(document, settings)?.unwrap_or(0.01);
                Optimizer::Sgd { momentum: momentum.unwrap_or(0.9), weight_decay }
            } else {
                OPTIMIZER.read_adam(document, settings, [0.9, 0.999, 1e-8, 0.01])?
            };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::LearningRate,
        theirs: "lr, min-lr, lr-decay-style, lr-warmup-iters, lr-decay-iters, train-iters",
        write: |settings, draft| {
            use Hyperparameter::{FinalFraction, PeakLearningRate, TotalSteps, WarmupSteps};
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            draft.set_given(PeakLearningRate, "lr", peak);
            if settings.gives(FinalFraction) {
                draft.set("lr-decay-style", "cosine");
                if settings.gives(PeakLearningRate) {
                    draft.set("min-lr", rounded(peak * final_fraction));
                } else {
                    draft.instead(
                        Field::LearningRate,
                        "min-lr keeps its default of 0, because the peak was not given; give --min-lr to the script to \
                         change it",
                    );
                }
            }
            draft.set_given(WarmupSteps, "lr-warmup-iters", warmup_steps);
            draft.set_given(TotalSteps, "lr-decay-iters", total_steps);
            draft.set_given(TotalSteps, "train-iters", total_steps);
        },
        read: |document, settings| {
            let peak = document.known_real("lr")?;
            if let Some(peak) = peak {
                above_zero("lr", peak)?;
            }
            let lowest = document.known_real("min-lr")?;
            let cosine = document.text("lr-decay-style").is_some_and(|style| style == "cosine");
            let train = document.known_count("train-iters")?;
            let rate = ReadRate {
                peak,
                warmup_steps: document.known_count("lr-warmup-iters")?,
                total_steps: document.known_count("lr-decay-iters")?.or(train),
                final_fraction: peak.filter(|_| cosine).map(|peak| rounded(lowest.unwrap_or(0.0) / peak)),
            };
            Ok(rate.take(settings))
        },
    },
    clip!("clip-grad"),
    seed!("seed"),
    FieldMapping {
        field: Field::CheckpointInterval,
        theirs: "save-interval",
        write: |settings, draft| {
            if let Some(steps) = settings.checkpoint_interval {
                draft.set("save-interval", steps);
            }
        },
        read: |document, settings| {
            settings.checkpoint_interval = document.count("save-interval")?;
            Ok(true)
        },
    },
];
