//! The rules that make a strategy legal, each with its reason.

use crate::schedule;
use autodist_collectives::suits;
use autodist_spec::{
    Algorithm, Codec, Collective, Communication, Job, LayerKind, ModelSpec, Optimizer, ParallelStrategy,
    Positions, Recompute, Reduction, ScheduleKind, Stage,
};
use std::fmt;

/// Why a strategy cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Illegal {
    pub rule: Rule,
    /// The reason, with all numbers involved.
    pub reason: String,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Short names of the rules; a report groups rejected plans by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    Devices,
    TensorDivides,
    SequenceParallel,
    Context,
    Experts,
    Batch,
    Stages,
    Schedule,
    Zero,
    Positions,
    Recompute,
    Communication,
    Engine,
    Framework,
}

impl Rule {
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "degrees multiply to the number of devices",
            Self::TensorDivides => "tensor-parallel degree divides the model",
            Self::SequenceParallel => "sequence parallelism follows tensor parallelism",
            Self::Context => "context parallelism splits the sequence",
            Self::Experts => "expert-parallel degree divides the experts and the ranks",
            Self::Batch => "micro-batches divide the global batch",
            Self::Stages => "stages cover the layers",
            Self::Schedule => "schedule fits the pipeline",
            Self::Zero => "ZeRO shards over data-parallel ranks",
            Self::Positions => "sequence fits the model",
            Self::Recompute => "only blocks recompute",
            Self::Communication => "communication fits its groups",
            Self::Engine => "supported by the engine",
            Self::Framework => "supported by the trainer",
        }
    }
}

fn ensure(rule: Rule, holds: bool, reason: impl FnOnce() -> String) -> Result<(), Illegal> {
    if holds { Ok(()) } else { Err(Illegal { rule, reason: reason() }) }
}

/// Rules about the strategy alone, before the layers are cut into stages.
///
/// # Errors
/// The first rule that is broken.
pub fn check_strategy(
    model: &ModelSpec,
    job: &Job,
    devices: u32,
    s: &ParallelStrategy,
) -> Result<(), Illegal> {
    let (data, tensor, pipeline) = (s.data, s.tensor, s.pipeline);
    ensure(Rule::Devices, s.devices() == u64::from(devices), || {
        format!(
            "dp={data} x tp={tensor} x pp={pipeline}{} uses {} devices, but there are {devices}",
            if s.context > 1 { format!(" x cp={}", s.context) } else { String::new() },
            s.devices()
        )
    })?;
    let context = s.context;
    // Every rank has an early and a late part of the sequence, so that all attend to equally many tokens.
    ensure(Rule::Context, context == 1 || job.seq_len.is_multiple_of(context.saturating_mul(2)), || {
        format!(
            "cp={context} splits a sequence into {} equal parts, which does not divide its {} tokens",
            2 * u64::from(context),
            job.seq_len
        )
    })?;
    for block in model.block_kinds() {
        for (what, size) in [
            ("query heads", block.heads),
            ("key/value heads", block.kv_heads),
            ("MLP width", block.ffn),
            ("width of shared experts", block.experts.map_or(0, |experts| experts.shared_ffn)),
        ] {
            ensure(Rule::TensorDivides, size % tensor == 0, || {
                format!("tp={tensor} does not divide the {what} ({size})")
            })?;
        }
    }
    ensure(Rule::TensorDivides, tensor <= model.vocab, || {
        format!("tp={tensor} is larger than the vocabulary of {} tokens", model.vocab)
    })?;
    ensure(Rule::SequenceParallel, !s.sequence_parallel || tensor > 1, || {
        "sequence parallelism needs tensor parallelism, but tp=1".to_owned()
    })?;
    check_experts(model, s)?;
    let local = job.seq_len / context;
    ensure(Rule::SequenceParallel, !s.sequence_parallel || local % tensor == 0, || {
        format!("sequence parallelism splits the sequence, but tp={tensor} does not divide {local} tokens")
    })?;
    let per_round = u64::from(data) * u64::from(s.micro_batch);
    ensure(Rule::Batch, u64::from(job.global_batch) % per_round == 0, || {
        format!(
            "dp={data} x micro-batch {} = {per_round} sequences, which does not divide the global batch of {}",
            s.micro_batch, job.global_batch
        )
    })?;
    let learned = model.positions == Positions::Learned;
    ensure(Rule::Positions, !learned || job.seq_len <= model.max_seq_len, || {
        format!(
            "a sequence of {} tokens is longer than the {} learned positions of the model",
            job.seq_len, model.max_seq_len
        )
    })?;
    check_schedule(model, job, s)?;
    let (zero, shard) = (s.zero_stage, s.shard);
    ensure(Rule::Zero, zero > 0 || shard == 1, || {
        format!("zero=0 shards nothing, but the shard group has {shard} ranks")
    })?;
    ensure(Rule::Zero, zero == 0 || s.shards() > 1, || {
        format!("zero={zero} shards over data-parallel ranks, but the shard group has one rank (dp={data})")
    })?;
    ensure(Rule::Zero, data % shard == 0, || {
        format!("a shard group of {shard} ranks does not divide dp={data}")
    })?;
    check_communication(job, devices, s)?;
    check_one_bit_adam(job, s)?;
    check_dgc(job, s)
}

fn check_experts(model: &ModelSpec, s: &ParallelStrategy) -> Result<(), Illegal> {
    let (expert, replicas) = (s.expert, s.replicas());
    ensure(Rule::Experts, expert == 1 || model.has_experts(), || {
        format!("ep={expert} distributes experts, but the model has no experts")
    })?;
    for count in model.block_kinds().filter_map(|block| Some(block.experts?.count)) {
        ensure(Rule::Experts, count.is_multiple_of(expert), || {
            format!("ep={expert} does not divide the {count} experts")
        })?;
    }
    ensure(Rule::Experts, replicas.is_multiple_of(expert), || {
        format!(
            "ep={expert} does not divide dp x cp = {replicas}, the ranks over which experts are distributed"
        )
    })?;
    ensure(Rule::Experts, s.zero_stage == 0 || s.shards().is_multiple_of(expert), || {
        format!(
            "a shard group of {} ranks does not hold all experts: ep={expert} does not divide it",
            s.shards()
        )
    })
}

fn check_communication(job: &Job, devices: u32, s: &ParallelStrategy) -> Result<(), Illegal> {
    let communication = &s.communication;
    let placed = communication.placement.len();
    ensure(Rule::Communication, placed == 0 || placed == devices as usize, || {
        format!("the placement lists {placed} devices, but there are {devices} ranks")
    })?;
    let fits = |what: &str, algorithm: Algorithm, collective: Collective, group: u32| {
        suits(algorithm, collective, group as usize).map_err(|unsuitable| Illegal {
            rule: Rule::Communication,
            reason: format!("{what} over {group} ranks: {unsuitable}"),
        })
    };
    fits("tensor all-reduce", communication.tensor, Collective::AllReduce, s.tensor)?;
    if s.sequence_parallel {
        fits("tensor reduce-scatter", communication.tensor, Collective::ReduceScatter, s.tensor)?;
        fits("tensor all-gather", communication.tensor, Collective::AllGather, s.tensor)?;
    }
    if s.zero_stage > 0 {
        fits("parameter all-gather", communication.gather, Collective::AllGather, s.shards())?;
    }
    for Reduction { algorithm, codec } in communication.reductions() {
        if s.zero_stage == 0 {
            fits("gradient all-reduce", algorithm, Collective::AllReduce, s.replicas())?;
        } else {
            fits("gradient reduce-scatter", algorithm, Collective::ReduceScatter, s.shards())?;
        }
        ensure(Rule::Communication, codec == Codec::None || s.zero_stage == 0 || rounds(codec), || {
            format!(
                "codec {} needs whole gradients, but zero={} leaves each rank a shard of them: {ROUNDING}",
                codec.name(),
                s.zero_stage
            )
        })?;
        ensure(Rule::Communication, codec == Codec::None || s.data > 1, || {
            format!("codec {} compresses the gradient all-reduce, but dp=1", codec.name())
        })?;
    }
    check_rounding(job, s)
}

const ROUNDING: &str = "only codecs that round each number by itself (fp16, bf16, int8) can be used";

/// Whether a codec encodes every element alone, or with its neighbours, without state.
pub fn rounds(codec: Codec) -> bool {
    matches!(codec, Codec::Fp16 | Codec::Bf16 | Codec::Int8 { .. })
}

/// Parameters and activations allow no error feedback: their copies have no next step to which the lost part
/// could be added.
fn check_rounding(job: &Job, s: &ParallelStrategy) -> Result<(), Illegal> {
    let Communication { parameters, activations, .. } = s.communication;
    let mixed = job.precision.is_mixed();
    if parameters != Codec::None {
        let name = parameters.name();
        ensure(Rule::Communication, rounds(parameters), || {
            format!("parameters cannot be sent as {name}: {ROUNDING}")
        })?;
        ensure(Rule::Communication, s.zero_stage == 3, || {
            format!(
                "parameters={name} rounds copies that are gathered for one pass (zero=3); zero={} keeps the gathered copies, \
                 so that the owner of a shard would have other values than the other ranks",
                s.zero_stage
            )
        })?;
        ensure(Rule::Communication, !mixed, || {
            format!("parameters={name}: parameters are sent in {} already", job.precision.name())
        })?;
    }
    if activations != Codec::None {
        let name = activations.name();
        ensure(Rule::Communication, matches!(activations, Codec::Fp16 | Codec::Bf16), || {
            format!("activations cannot be sent as {name}: only fp16 and bf16 can be used")
        })?;
        ensure(Rule::Communication, s.pipeline > 1, || {
            format!("activations={name} compresses the send/recv between pipeline ranks, but pp=1")
        })?;
        ensure(Rule::Communication, !mixed, || {
            format!("activations={name}: activations are sent in {} already", job.precision.name())
        })?;
    }
    Ok(())
}

/// The second moments that the codec freezes are Adam's, and it already sends the momentum.
fn check_one_bit_adam(job: &Job, s: &ParallelStrategy) -> Result<(), Illegal> {
    let used = s.communication.reductions().map(|r| r.codec).find(|c| matches!(c, Codec::OneBitAdam { .. }));
    let Some(codec) = used else { return Ok(()) };
    ensure(Rule::Communication, matches!(job.optimizer, Optimizer::AdamW { .. }), || {
        format!("codec {} sends Adam's momentum, but the job's optimizer is not AdamW", codec.name())
    })?;
    ensure(Rule::Communication, job.gradient_clip == 0.0, || {
        format!(
            "codec {} reduces momentum instead of gradients, so that gradient_clip = {} cannot be applied to the gradient norm; \
             set gradient_clip = 0",
            codec.name(),
            job.gradient_clip
        )
    })
}

/// Momentum correction replaces the optimizer's momentum (1712.01887, section 3.2).
fn check_dgc(job: &Job, s: &ParallelStrategy) -> Result<(), Illegal> {
    let used = s.communication.reductions().map(|r| r.codec).find(|c| matches!(c, Codec::Dgc { .. }));
    let Some(codec) = used else { return Ok(()) };
    let (name, instead) = (codec.name(), "use top_k, which keeps no momentum");
    ensure(Rule::Communication, matches!(job.optimizer, Optimizer::Sgd { .. }), || {
        format!("codec {name} replaces the momentum of SGD, but the job's optimizer is AdamW; {instead}")
    })?;
    ensure(Rule::Communication, job.gradient_clip == 0.0, || {
        format!(
            "codec {name} reduces velocities instead of gradients, so that gradient_clip = {} cannot be applied; set \
             gradient_clip = 0, or {instead}",
            job.gradient_clip
        )
    })
}

fn check_schedule(model: &ModelSpec, job: &Job, s: &ParallelStrategy) -> Result<(), Illegal> {
    let (pipeline, virtual_stages, kind) = (s.pipeline, s.virtual_stages, s.schedule);
    let chunks = u64::from(pipeline) * u64::from(virtual_stages);
    ensure(Rule::Stages, chunks <= model.chain_len() as u64, || {
        format!(
            "pp={pipeline} x vpp={virtual_stages} makes {chunks} chunks, but there are only {} layers",
            model.chain_len()
        )
    })?;
    ensure(Rule::Schedule, pipeline > 1 || (kind == ScheduleKind::OneFOneB && virtual_stages == 1), || {
        format!(
            "schedule {} and vpp={virtual_stages} need pp > 1; with pp=1 the schedule is 1f1b and vpp is 1",
            kind.name()
        )
    })?;
    let interleaved = kind == ScheduleKind::Interleaved;
    ensure(Rule::Schedule, interleaved == (virtual_stages > 1), || {
        format!(
            "schedule {} and vpp={virtual_stages} contradict each other: `interleaved` needs vpp > 1, and other schedules vpp=1",
            kind.name()
        )
    })?;
    let micro_batches = s.micro_batches(job.global_batch) as usize;
    let rounds = schedule::rounds(pipeline as usize, micro_batches);
    ensure(Rule::Schedule, !interleaved || micro_batches % rounds == 0, || {
        format!(
            "the interleaved schedule runs {rounds} equal rounds, but {micro_batches} micro-batches are not a multiple of that (pp={pipeline})"
        )
    })
}

/// All rules.
///
/// # Errors
/// The first rule that is broken.
pub fn check(
    model: &ModelSpec,
    job: &Job,
    devices: u32,
    strategy: &ParallelStrategy,
    stages: &[Stage],
) -> Result<(), Illegal> {
    check_strategy(model, job, devices, strategy)?;
    let chunks = strategy.chunks() as usize;
    ensure(Rule::Stages, stages.len() == chunks, || {
        format!("{} stages are given, but pp x vpp is {chunks}", stages.len())
    })?;
    let mut next = 0;
    for (index, stage) in stages.iter().enumerate() {
        ensure(Rule::Stages, stage.first_layer as usize == next && !stage.is_empty(), || {
            format!(
                "stage {index} holds layers {}..{}, but must begin at layer {next} and not be empty",
                stage.first_layer, stage.end_layer
            )
        })?;
        next = stage.end_layer as usize;
        ensure(Rule::Recompute, stage.recompute.len() == stage.len(), || {
            format!(
                "stage {index} has {} layers but {} recompute entries",
                stage.len(),
                stage.recompute.len()
            )
        })?;
        for (layer, recompute) in stage.layers().zip(&stage.recompute) {
            // Out of range layers are reported by the next rule.
            let other = layer < model.chain_len() && model.kind(layer) != LayerKind::Block;
            ensure(Rule::Recompute, !(other && *recompute != Recompute::None), || {
                format!("layer {layer} is not a block, so it cannot use recompute={}", recompute.name())
            })?;
        }
    }
    ensure(Rule::Stages, next == model.chain_len(), || {
        format!("the stages hold {next} layers, but the model has {}", model.chain_len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::catalog;

    fn check_one(change: impl FnOnce(&mut ParallelStrategy), expected: &str) {
        let model = catalog::model("tiny-llama").unwrap();
        let mut strategy = ParallelStrategy::data_parallel(2, 2);
        change(&mut strategy);
        let error = check_strategy(&model, &Job::new(8, 128), 2, &strategy).unwrap_err();
        assert!(error.reason.contains(expected), "{error}");
    }

    #[test]
    fn one_bit_adam_is_for_adam_without_clipping() {
        let model = catalog::model("tiny-llama").unwrap();
        let mut strategy = ParallelStrategy::data_parallel(2, 2);
        strategy.communication.reduce.codec = Codec::OneBitAdam { warmup_steps: 20 };
        let mut job = Job::new(8, 128);
        let refusal = |job: &Job, s: &ParallelStrategy| check_strategy(&model, job, 2, s).unwrap_err().reason;
        assert!(refusal(&job, &strategy).contains("gradient_clip = 1 cannot"));
        job.gradient_clip = 0.0;
        assert_eq!(check_strategy(&model, &job, 2, &strategy), Ok(()));
        let sharded = ParallelStrategy { zero_stage: 1, shard: 2, ..strategy.clone() };
        assert!(refusal(&job, &sharded).contains("zero=1 leaves each rank a shard"));
        job.optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };
        assert!(refusal(&job, &strategy).contains("is not AdamW"));
    }

    #[test]
    fn momentum_correction_is_for_sgd_without_clipping() {
        let model = catalog::model("tiny-llama").unwrap();
        let mut strategy = ParallelStrategy::data_parallel(2, 2);
        strategy.communication.reduce.codec = Codec::Dgc { per_mille: 10, start_step: 0 };
        let mut job = Job::new(8, 128);
        let refusal = |job: &Job| check_strategy(&model, job, 2, &strategy).unwrap_err().reason;
        assert!(refusal(&job).contains("optimizer is AdamW; use top_k"));
        job.optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };
        assert!(refusal(&job).contains("gradient_clip = 1 cannot"));
        job.gradient_clip = 0.0;
        assert_eq!(check_strategy(&model, &job, 2, &strategy), Ok(()));
    }

    #[test]
    fn every_refusal_names_its_numbers() {
        check_one(|s| s.tensor = 3, "dp=2 x tp=3 x pp=1 uses 6 devices, but there are 2");
        check_one(|s| (s.data, s.tensor) = (1, 4), "uses 4 devices");
        check_one(|s| s.micro_batch = 3, "6 sequences, which does not divide the global batch of 8");
        check_one(|s| s.sequence_parallel = true, "tp=1");
        check_one(|s| s.schedule = ScheduleKind::GPipe, "need pp > 1");
        check_one(|s| (s.data, s.pipeline, s.virtual_stages) = (1, 2, 2), "contradict");
        check_one(|s| s.zero_stage = 1, "shard group has one rank");
        check_one(|s| (s.zero_stage, s.shard) = (1, 4), "does not divide dp=2");
    }

    #[test]
    fn what_is_not_kept_may_be_rounded_and_what_is_may_not() {
        let zero = |stage| {
            move |s: &mut ParallelStrategy| {
                (s.zero_stage, s.shard, s.communication.parameters) = (stage, 2, Codec::Bf16)
            }
        };
        check_one(zero(1), "zero=1 keeps the gathered copies");
        check_one(
            |s| {
                zero(3)(s);
                s.communication.parameters = Codec::OneBit;
            },
            "parameters cannot be sent as one-bit",
        );
        check_one(|s| s.communication.activations = Codec::Bf16, "pp=1");
        check_one(
            |s| s.communication.activations = Codec::Int8 { block: 64 },
            "activations cannot be sent as int8/64",
        );
        let model = catalog::model("tiny-llama").unwrap();
        let mut strategy = ParallelStrategy::data_parallel(2, 2);
        zero(3)(&mut strategy);
        check_strategy(&model, &Job::new(8, 128), 2, &strategy).unwrap();
        let job = Job { precision: autodist_spec::Precision::Bf16, ..Job::new(8, 128) };
        let refused = check_strategy(&model, &job, 2, &strategy).unwrap_err().reason;
        assert!(refused.contains("sent in bf16 already"), "{refused}");
    }
}
