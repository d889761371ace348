//! Megatron-LM's command line.

use crate::document::Document;
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, Lack, PARAMETERS_AS_THEY_ARE, Row, count, real, refuse_fp16, seed,
};
use crate::settings::Field;
use crate::stages::{blocks_of_layout, layout, leading_full, uniform_recompute};
use crate::{Export, Exporter, File};
use autodist_spec::{
    Activation, Codec, InputError, LearningRate, ModelSpec, Norm, Optimizer, Positions, Precision, Recompute,
    ScheduleKind,
};

pub struct Megatron;

impl Exporter for Megatron {
    fn version(&self) -> &'static str {
        "megatron-core 0.19"
    }

    fn rows(&self) -> &'static [Row] {
        ROWS
    }

    fn lacks(&self) -> &'static [Lack] {
        LACKS
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let mut setup = connections(job.settings.zero_stage);
        if job.settings.precision == Precision::Tf32 {
            setup.push(TF32);
        }
        let purpose =
            format!("Megatron-LM trains {} as planned: {}", job.plan.model.name, job.plan.strategy.label());
        let command = format!("{} pretrain_gpt.py", job.machines.torchrun());
        vec![File::script(
            "megatron.sh",
            Script::new(&purpose, job.machines, &setup).run(&command, &document.flags()),
        )]
    }

    fn parse(&self, text: &str) -> Result<Document, InputError> {
        Document::of_flags(text)
    }
}

/// Kernels of tensor and sequence parallelism must begin in the order in which they were queued; Megatron's FSDP will not have
/// that.
pub(crate) fn connections(zero_stage: u8) -> Vec<&'static str> {
    if zero_stage > 1 {
        vec!["unset CUDA_DEVICE_MAX_CONNECTIONS"]
    } else {
        vec!["export CUDA_DEVICE_MAX_CONNECTIONS=1"]
    }
}

pub(crate) const TF32: &str = "export NVIDIA_TF32_OVERRIDE=1";

static LACKS: &[Lack] = &[PARAMETERS_AS_THEY_ARE, ACTIVATIONS_AS_THEY_ARE];

pub(crate) static ROWS: &[Row] = &[
    Row {
        field: Field::Model,
        theirs: "num-layers, hidden-size, ffn-hidden-size, num-attention-heads, kv-channels, group-query-attention, \
                 num-query-groups, max-position-embeddings, vocab-size, position-embedding-type, rotary-base, \
                 normalization, norm-epsilon, swiglu, disable-bias-linear, untie-embeddings-and-output-weights",
        write: |settings, draft| {
            let Some(model) = &settings.model else { return };
            draft.set("num-layers", model.layers);
            draft.set("hidden-size", model.hidden);
            draft.set("ffn-hidden-size", model.ffn);
            draft.set("num-attention-heads", model.heads);
            draft.set("kv-channels", model.head_dim);
            if model.kv_heads != model.heads {
                draft.set("group-query-attention", true);
                draft.set("num-query-groups", model.kv_heads);
            }
            draft.set("max-position-embeddings", model.max_seq_len);
            draft.set("vocab-size", model.vocab);
            match model.positions {
                Positions::Learned => draft.set("position-embedding-type", "learned_absolute"),
                Positions::Rotary { theta } => {
                    draft.set("position-embedding-type", "rope");
                    draft.set("rotary-base", theta as u64);
                }
            }
            draft.set("normalization", if model.norm == Norm::RmsNorm { "RMSNorm" } else { "LayerNorm" });
            draft.set("norm-epsilon", model.norm_epsilon);
            draft.set("swiglu", model.activation == Activation::SwiGlu);
            draft.set("disable-bias-linear", !model.bias);
            draft.set("untie-embeddings-and-output-weights", !model.tied_embeddings);
        },
        read: |document, settings| {
            let (Some(layers), Some(hidden), Some(heads)) = (
                document.count("num-layers")?,
                document.count("hidden-size")?,
                document.count("num-attention-heads")?,
            ) else {
                return Ok(false);
            };
            let swiglu = document.flag("swiglu")?.unwrap_or(false);
            let learned =
                document.text("position-embedding-type").is_none_or(|kind| kind == "learned_absolute");
            let theta = document.real("rotary-base")?.unwrap_or(10_000.0);
            let rms = document.text("normalization").is_some_and(|norm| norm == "RMSNorm");
            let grouped = document.flag("group-query-attention")?.unwrap_or(false);
            let groups = document.count("num-query-groups")?.filter(|_| grouped);
            settings.model = Some(ModelSpec {
                name: "megatron".to_owned(),
                layers,
                hidden,
                heads,
                kv_heads: groups.unwrap_or(heads),
                head_dim: document.count("kv-channels")?.unwrap_or(hidden / heads.max(1)),
                // Two thirds, so that SwiGLU's three matrices weigh as much as two.
                ffn: document.count("ffn-hidden-size")?.unwrap_or(if swiglu {
                    (4 * hidden * 2 / 3) / 64 * 64
                } else {
                    4 * hidden
                }),
                vocab: document.count("vocab-size")?.unwrap_or(0),
                max_seq_len: document.count("max-position-embeddings")?.unwrap_or(0),
                positions: if learned { Positions::Learned } else { Positions::Rotary { theta } },
                norm: if rms { Norm::RmsNorm } else { Norm::LayerNorm },
                norm_epsilon: document.real("norm-epsilon")?.unwrap_or(1e-5),
                activation: if swiglu { Activation::SwiGlu } else { Activation::Gelu },
                bias: !document.flag("disable-bias-linear")?.unwrap_or(false),
                tied_embeddings: !document.flag("untie-embeddings-and-output-weights")?.unwrap_or(false),
            });
            Ok(true)
        },
    },
    count!(SeqLen, seq_len, "seq-length"),
    count!(MicroBatch, micro_batch, "micro-batch-size"),
    count!(GlobalBatch, global_batch, "global-batch-size"),
    count!(Tensor, tensor, "tensor-model-parallel-size"),
    count!(Pipeline, pipeline, "pipeline-model-parallel-size"),
    count!(Context, context, "context-parallel-size"),
    count!(Expert, expert, "expert-model-parallel-size"),
    Row {
        field: Field::Data,
        theirs: "nnodes, nproc-per-node",
        // What is left of the processes that torchrun starts.
        write: |_, _| {},
        read: |document, settings| {
            let per_node = match document.count("nproc-per-node")? {
                Some(count) => Some(count),
                None => document.count("nproc_per_node")?,
            };
            let Some(per_node) = per_node else { return Ok(false) };
            let world = u64::from(per_node) * u64::from(document.count("nnodes")?.unwrap_or(1));
            let others = [settings.tensor, settings.pipeline, settings.context].map(u64::from);
            let others: u64 = others.iter().product();
            if others == 0 || world % others != 0 {
                return Err(InputError::new(
                    "nnodes x nproc-per-node",
                    world,
                    format!("is no multiple of tensor x pipeline x context, {others}"),
                )
                .hint("choose degrees whose product divides the number of processes"));
            }
            settings.data = (world / others).min(u64::from(u32::MAX)) as u32;
            Ok(true)
        },
    },
    Row {
        field: Field::SequenceParallel,
        theirs: "sequence-parallel",
        write: |settings, draft| draft.set("sequence-parallel", settings.sequence_parallel),
        read: |document, settings| {
            settings.sequence_parallel = document.flag("sequence-parallel")?.unwrap_or(false);
            Ok(true)
        },
    },
    Row {
        field: Field::VirtualStages,
        theirs: "num-virtual-stages-per-pipeline-rank",
        write: |settings, draft| {
            // A layout says it by the number of its stages.
            if settings.virtual_stages > 1 && settings.does_without(Field::Stages) {
                draft.set("num-virtual-stages-per-pipeline-rank", settings.virtual_stages);
            }
        },
        read: |document, settings| {
            if let Some(text) = document.text("pipeline-model-parallel-layout") {
                let chunks = blocks_of_layout(&text)?.len() as u32;
                settings.virtual_stages = (chunks / settings.pipeline.max(1)).max(1);
            } else if let Some(stages) = document.count("num-virtual-stages-per-pipeline-rank")? {
                settings.virtual_stages = stages;
            } else if let (Some(layers), Some(model)) =
                (document.count("num-layers-per-virtual-pipeline-stage")?, &settings.model)
            {
                settings.virtual_stages = model.layers / (layers * settings.pipeline).max(1);
            }
            Ok(true)
        },
    },
    Row {
        field: Field::Schedule,
        theirs: "num-virtual-stages-per-pipeline-rank",
        write: |settings, draft| {
            if settings.schedule == ScheduleKind::GPipe {
                draft.refuse(
                    Field::Schedule,
                    "Megatron runs 1F1B, or its interleaved form",
                    "plan with --schedule 1f1b",
                );
            }
        },
        read: |_, settings| {
            settings.schedule =
                if settings.virtual_stages > 1 { ScheduleKind::Interleaved } else { ScheduleKind::OneFOneB };
            Ok(true)
        },
    },
    Row {
        field: Field::Stages,
        theirs: "pipeline-model-parallel-layout, decoder-first-pipeline-num-layers, decoder-last-pipeline-num-layers",
        write: |settings, draft| {
            if !settings.does_without(Field::Stages) {
                draft.set("pipeline-model-parallel-layout", layout(&settings.stages));
            }
        },
        read: |document, settings| {
            let layers = settings.blocks();
            let chunks = settings.pipeline * settings.virtual_stages;
            let first = document.count("decoder-first-pipeline-num-layers")?;
            let last = document.count("decoder-last-pipeline-num-layers")?;
            if let Some(text) = document.text("pipeline-model-parallel-layout") {
                settings.stages = blocks_of_layout(&text)?;
            } else if first.is_some() || last.is_some() {
                let ends = first.into_iter().chain(last).collect::<Vec<_>>();
                let between = chunks.saturating_sub(ends.len() as u32).max(1);
                let rest = layers.saturating_sub(ends.iter().sum());
                if settings.virtual_stages > 1 || !rest.is_multiple_of(between) {
                    let shown = format!("{first:?}, {last:?}");
                    return Err(InputError::new(
                        "decoder-first-pipeline-num-layers, decoder-last-pipeline-num-layers",
                        shown,
                        format!("leave {rest} layers for {between} stages"),
                    )
                    .hint("write the stages as --pipeline-model-parallel-layout"));
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
    Row {
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
            let blocks = settings.blocks() as usize;
            let short = document.flag("recompute-activations")?.unwrap_or(false);
            let kind = document.text("recompute-granularity");
            let method = document.text("recompute-method");
            let number = document.count("recompute-num-layers")?;
            settings.recompute = match kind.as_deref().or(short.then_some("selective")) {
                None => vec![Recompute::None; blocks],
                Some("selective") => vec![Recompute::Selective; blocks],
                Some("full") if method.as_deref() == Some("block") => settings
                    .stages
                    .iter()
                    .flat_map(|count| {
                        (0..*count).map(|index| {
                            if index < number.unwrap_or(1) { Recompute::Full } else { Recompute::None }
                        })
                    })
                    .collect(),
                Some("full") => vec![Recompute::Full; blocks],
                Some(other) => {
                    return Err(InputError::new(
                        "recompute-granularity",
                        other,
                        "is none that Megatron knows",
                    )
                    .hint("give full or selective"));
                }
            };
            Ok(blocks > 0)
        },
    },
    Row {
        field: Field::ZeroStage,
        theirs: "use-distributed-optimizer, use-megatron-fsdp, data-parallel-sharding-strategy",
        write: |settings, draft| {
            draft.set("use-distributed-optimizer", settings.zero_stage > 0);
            if settings.zero_stage > 1 {
                draft.set("use-megatron-fsdp", true);
                let what = if settings.zero_stage == 2 { "optim_grads" } else { "optim_grads_params" };
                draft.set("data-parallel-sharding-strategy", what);
                // The one format in which its shards are saved.
                draft.set("ckpt-format", "fsdp_dtensor");
            }
            // Gradients and parameters travel beside compute, as the plan has them.
            draft.set("overlap-grad-reduce", settings.data > 1);
            draft.set("overlap-param-gather", settings.data > 1 && settings.zero_stage > 0);
        },
        read: |document, settings| {
            let distributed = document.flag("use-distributed-optimizer")?.unwrap_or(false);
            let fsdp = document.flag("use-megatron-fsdp")?.unwrap_or(false);
            let strategy = document.text("data-parallel-sharding-strategy");
            for key in ["overlap-grad-reduce", "overlap-param-gather", "ckpt-format"] {
                document.get(key);
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
                        "is none that Megatron knows",
                    )
                    .hint("give optim, optim_grads or optim_grads_params"));
                }
                (false, _) => u8::from(distributed),
            };
            // One data rank has nobody to share with.
            if settings.data == 1 {
                settings.zero_stage = 0;
            }
            Ok(true)
        },
    },
    Row {
        field: Field::Shard,
        theirs: "num-distributed-optimizer-instances",
        write: |settings, draft| {
            if !settings.does_without(Field::Shard) {
                draft.set("num-distributed-optimizer-instances", settings.data / settings.shard);
            }
        },
        read: |document, settings| {
            let instances = document.count("num-distributed-optimizer-instances")?.unwrap_or(1).max(1);
            settings.shard = if settings.zero_stage > 0 { settings.data / instances } else { 1 };
            Ok(true)
        },
    },
    Row {
        field: Field::BucketBytes,
        theirs: "ddp-bucket-size",
        // In elements, of four bytes: gradients are summed in fp32.
        write: |settings, draft| draft.set("ddp-bucket-size", settings.bucket_bytes.div_ceil(4)),
        read: |document, settings| {
            let Some(elements) = document.count("ddp-bucket-size")? else { return Ok(false) };
            settings.bucket_bytes = 4 * u64::from(elements);
            Ok(true)
        },
    },
    Row {
        field: Field::Gradients,
        theirs: "grad-reduce-in-bf16",
        write: |settings, draft| {
            match settings.gradients {
            Codec::None => {}
            Codec::Bf16 => draft.set("grad-reduce-in-bf16", true),
            _ => draft.refuse(
                Field::Gradients,
                "gradients travel as fp32 or bf16",
                "plan with allow.codecs = [\"none\", \"bf16\"], or export to torchtitan's or PyTorch's engine",
            ),
        }
        },
        read: |document, settings| {
            let bf16 = document.flag("grad-reduce-in-bf16")?.unwrap_or(false);
            settings.gradients = if bf16 { Codec::Bf16 } else { Codec::None };
            Ok(true)
        },
    },
    Row {
        field: Field::Precision,
        theirs: "bf16",
        write: |settings, draft| match settings.precision {
            Precision::Bf16 => draft.set("bf16", true),
            Precision::Fp32 => {}
            Precision::Tf32 => {
                draft.instead(Field::Precision, "fp32 by the flags; the script sets NVIDIA_TF32_OVERRIDE=1")
            }
        },
        read: |document, settings| {
            refuse_fp16(document, "fp16")?;
            settings.precision =
                if document.flag("bf16")?.unwrap_or(false) { Precision::Bf16 } else { Precision::Fp32 };
            Ok(true)
        },
    },
    Row {
        field: Field::Optimizer,
        theirs: "optimizer, adam-beta1, adam-beta2, adam-eps, sgd-momentum, weight-decay",
        write: |settings, draft| match settings.optimizer {
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                draft.set("optimizer", "adam");
                draft.set("adam-beta1", beta1);
                draft.set("adam-beta2", beta2);
                draft.set("adam-eps", epsilon);
                draft.set("weight-decay", weight_decay);
            }
            Optimizer::Sgd { momentum, weight_decay } => {
                draft.set("optimizer", "sgd");
                draft.set("sgd-momentum", momentum);
                draft.set("weight-decay", weight_decay);
            }
        },
        read: |document, settings| {
            let weight_decay = document.real("weight-decay")?.unwrap_or(0.01);
            settings.optimizer = if document.text("optimizer").is_some_and(|name| name == "sgd") {
                Optimizer::Sgd { momentum: document.real("sgd-momentum")?.unwrap_or(0.9), weight_decay }
            } else {
                Optimizer::AdamW {
                    beta1: document.real("adam-beta1")?.unwrap_or(0.9),
                    beta2: document.real("adam-beta2")?.unwrap_or(0.999),
                    epsilon: document.real("adam-eps")?.unwrap_or(1e-8),
                    weight_decay,
                }
            };
            Ok(true)
        },
    },
    Row {
        field: Field::LearningRate,
        theirs: "lr, min-lr, lr-decay-style, lr-warmup-iters, lr-decay-iters, train-iters",
        write: |settings, draft| {
            let LearningRate { peak, warmup_steps, total_steps, final_fraction } = settings.learning_rate;
            draft.set("lr", peak);
            draft.set("min-lr", peak * final_fraction);
            draft.set("lr-decay-style", "cosine");
            draft.set("lr-warmup-iters", warmup_steps);
            draft.set("lr-decay-iters", total_steps);
            draft.set("train-iters", total_steps);
        },
        read: |document, settings| {
            let (peak, lowest) = (document.real("lr")?, document.real("min-lr")?.unwrap_or(0.0));
            document.text("lr-decay-style");
            let Some(peak) = peak.filter(|peak| *peak > 0.0) else { return Ok(false) };
            let train = document.count("train-iters")?;
            settings.learning_rate = LearningRate {
                peak,
                warmup_steps: document.count("lr-warmup-iters")?.unwrap_or(0),
                total_steps: document.count("lr-decay-iters")?.or(train).unwrap_or(1),
                final_fraction: lowest / peak,
            };
            Ok(true)
        },
    },
    real!(GradientClip, gradient_clip, "clip-grad"),
    seed!("seed"),
    Row {
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
