//! The operations that an engine supports. Every engine trains the same programs, but not each supports all
//! of them: each gap is a rule, with its reason and an alternative, which planner, commands and the engine
//! itself check.

use crate::rules::{Illegal, Rule};
use autodist_spec::{
    Addition, Algorithm, Bytes, Codec, Communication, Engine, Job, ModelSpec, ParallelStrategy, Positions,
    Precision,
};

/// # Errors
/// The first part of a legal strategy that the engine does not support.
pub fn check(
    engine: Engine,
    model: &ModelSpec,
    job: &Job,
    strategy: &ParallelStrategy,
) -> Result<(), Illegal> {
    let checked = match engine {
        Engine::Native => both(model, job, strategy),
        Engine::Torch => both(model, job, strategy).and_then(|()| torch(model, job, strategy)),
    };
    checked.map_err(|reason| Illegal {
        rule: Rule::Engine,
        reason: format!("engine {}: {reason}", engine.name()),
    })
}

/// What neither engine supports.
fn both(model: &ModelSpec, job: &Job, s: &ParallelStrategy) -> Result<(), String> {
    let instead = "export the plan to a trainer that does";
    if !job.precision.is_own() {
        let name = job.precision.name();
        return Err(format!(
            "precision = {name}: it trains in fp32, tf32 and bf16; use one of them, or {instead}"
        ));
    }
    if let Some((field, value)) = job.states.settings().into_iter().next() {
        return Err(format!(
            "{field} = {value}: its state is in fp32, in the memory of the device; remove it, or {instead}"
        ));
    }
    if !job.trainable.is_all() {
        let label = job.trainable.label();
        return Err(format!("trainable = {label}: it trains whole models; remove it, or {instead}"));
    }
    if let Err(Untrained { what, way_out }) = check_model(model, job.seq_len) {
        let use_this = way_out.as_deref().unwrap_or("use another model");
        return Err(format!("{} {what}, which it does not train; {use_this}, or {instead}", model.name));
    }
    if s.context > 1 {
        let context = s.context;
        return Err(format!("cp={context}: it does not support context parallelism; use cp=1, or {instead}"));
    }
    Ok(())
}

/// A part of a model that no engine supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrained {
    /// As said of the model: `has experts`.
    pub what: String,
    /// How the engines train a model that is almost the same.
    pub way_out: Option<String>,
}

/// # Errors
/// The part of a model, trained on sequences of `seq_len` tokens, that no engine supports.
pub fn check_model(model: &ModelSpec, seq_len: u32) -> Result<(), Untrained> {
    let window = model.window.filter(|window| *window < seq_len);
    let (what, way_out) = if model.has_experts() {
        ("has experts".to_owned(), None)
    } else if !model.is_uniform() {
        ("has blocks that differ".to_owned(), None)
    } else if model.additions.contains(&Addition::ScaledPositions) {
        let plain = "set rope_type to default in its config.json to train plain positions";
        ("has scaled rotary positions".to_owned(), Some(plain.to_owned()))
    } else if model.positions == Positions::Alibi {
        ("has linear biases of attention in place of positions".to_owned(), None)
    } else if let Some(addition) = model.additions.first() {
        (format!("has the addition {}", addition.name()), None)
    } else if model.latent.is_some() {
        ("has multi-head latent attention".to_owned(), None)
    } else if let Some(window) = window {
        let shorter = format!("use a seq_len of {window} or less");
        (format!("has a window of {window} tokens in sequences of {seq_len}"), Some(shorter))
    } else {
        return Ok(());
    };
    Err(Untrained { what, way_out })
}

fn torch(model: &ModelSpec, job: &Job, s: &ParallelStrategy) -> Result<(), String> {
    if s.zero_stage == 1 {
        return Err(
            "zero_stage = 1: ZeroRedundancyOptimizer hands out whole parameters, not equal shards; use zero_stage 2, \
             which FSDP2 runs"
                .to_owned(),
        );
    }
    if job.precision != Precision::Fp32 {
        return Err(format!(
            "precision = {}: it is verified against the native engine only in fp32; use fp32, or --engine native",
            job.precision.name()
        ));
    }
    if s.pipeline > 1 && s.micro_batches(job.global_batch) < s.pipeline {
        return Err(format!(
            "micro_batch = {} makes {} micro-batches, and torch.distributed.pipelining needs at least one for each of {} stages; use \
             a smaller micro_batch",
            s.micro_batch,
            s.micro_batches(job.global_batch),
            s.pipeline
        ));
    }
    communication(model, s)
}

fn communication(model: &ModelSpec, s: &ParallelStrategy) -> Result<(), String> {
    let Communication { placement, tensor, gather, parameters, activations, reduce, buckets } =
        &s.communication;
    if !placement.is_empty() {
        return Err("communication.placement: rank r always runs on device r; remove it".to_owned());
    }
    for (field, algorithm) in
        [("tensor", tensor), ("gather", gather), ("reduce.algorithm", &reduce.algorithm)]
    {
        if *algorithm != Algorithm::Ring {
            return Err(format!(
                "communication.{field} = {}: Gloo and NCCL choose the algorithm of a collective themselves; remove it",
                algorithm.name()
            ));
        }
    }
    for (field, codec) in [("parameters", parameters), ("activations", activations)] {
        if *codec != Codec::None {
            return Err(format!(
                "communication.{field} = {}: FSDP2 and pipelining send the training precision; remove it, or use \
                 --engine native",
                codec.name()
            ));
        }
    }
    if !buckets.is_empty() {
        return Err(
            "communication.buckets: one communication hook serves all buckets; remove them".to_owned()
        );
    }
    let name = reduce.codec.name();
    match reduce.codec {
        Codec::None => Ok(()),
        Codec::Fp16 | Codec::Bf16 | Codec::PowerSgd { .. } if s.zero_stage > 0 => Err(format!(
            "communication.reduce.codec = {name}: only DistributedDataParallel has communication hooks, FSDP2 has \
             none; use zero_stage 0"
        )),
        Codec::Fp16 | Codec::Bf16 => Ok(()),
        Codec::PowerSgd { start_step, .. } if start_step < 2 => Err(format!(
            "communication.reduce.codec = {name} from step {start_step}: PyTorch's hook keeps no error before its third \
             step; use start_step 2 or more"
        )),
        Codec::PowerSgd { .. } if s.bucket_bytes < Bytes::of_f32(model.total_parameters()) => Err(format!(
            "communication.reduce.codec = {name}: over Gloo PyTorch's hook crashes with more than one bucket; use \
             bucket_bytes of {} or more",
            Bytes::of_f32(model.total_parameters()).0
        )),
        Codec::PowerSgd { .. } => Ok(()),
        _ => Err(format!(
            "communication.reduce.codec = {name}: PyTorch has no communication hook for it; use none, fp16, bf16 or \
             powersgd, or --engine native"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::catalog;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut ParallelStrategy, &mut Job), field: &str, way_out: &str) {
        let model = catalog::model("tiny-llama").unwrap();
        let (mut strategy, mut job) = (ParallelStrategy::data_parallel(2, 2), Job::new(8, 128));
        assert_eq!(check(Engine::Torch, &model, &job, &strategy), Ok(()));
        change(&mut strategy, &mut job);
        assert_eq!(check(Engine::Native, &model, &job, &strategy), Ok(()));
        let Illegal { rule, reason } = check(Engine::Torch, &model, &job, &strategy).unwrap_err();
        assert_eq!(rule, Rule::Engine);
        assert!(reason.contains(field) && reason.contains(way_out), "{reason}");
    }

    #[test]
    fn what_torch_has_no_way_for_is_refused_with_the_field_and_the_way_out() {
        let coded = |codec| move |s: &mut ParallelStrategy, _: &mut Job| s.communication.reduce.codec = codec;
        refused(|s, _| (s.zero_stage, s.shard) = (1, 2), "zero_stage = 1", "use zero_stage 2");
        refused(|_, job| job.precision = Precision::Bf16, "precision = bf16", "--engine native");
        refused(
            |s, _| (s.data, s.pipeline, s.micro_batch) = (1, 2, 8),
            "micro_batch = 8",
            "a smaller micro_batch",
        );
        refused(|s, _| s.communication.placement = vec![1, 0], "placement", "remove it");
        refused(|s, _| s.communication.gather = Algorithm::HalvingDoubling, "gather", "remove it");
        refused(|s, _| s.communication.activations = Codec::Bf16, "activations = bf16", "--engine native");
        refused(coded(Codec::OneBit), "one-bit", "powersgd");
        refused(coded(Codec::PowerSgd { rank: 2, start_step: 0 }), "powersgd/2", "start_step 2");
        refused(
            |s, _| {
                s.bucket_bytes = Bytes(1 << 20);
                s.communication.reduce.codec = Codec::PowerSgd { rank: 2, start_step: 10 };
            },
            "powersgd/2",
            "bucket_bytes of 3215872",
        );
        refused(
            |s, _| {
                (s.zero_stage, s.shard) = (2, 2);
                s.communication.reduce.codec = Codec::Fp16;
            },
            "fp16",
            "use zero_stage 0",
        );
    }

    #[test]
    fn blocks_that_no_engine_runs_are_refused_with_a_way_out() {
        let usual = catalog::model("tiny-llama").unwrap();
        let job = Job::new(8, 128);
        let strategy = ParallelStrategy::data_parallel(2, 2);
        let (block, layers) = (usual.block(1), usual.layers as usize);
        let mut unlike = vec![block; layers];
        unlike[1].ffn = 64;
        let window = |window| ModelSpec { window: Some(window), ..usual.clone() };
        let with = |addition| ModelSpec { additions: vec![addition], ..usual.clone() };
        for (model, reason) in [
            (
                usual.clone().with_blocks(&unlike),
                "tiny-llama has blocks that differ, which it does not train; use another model",
            ),
            (
                window(127),
                "a window of 127 tokens in sequences of 128, which it does not train; use a seq_len of 127",
            ),
            (with(Addition::PostNorm), "has the addition post_norm"),
            (
                with(Addition::ScaledPositions),
                "has scaled rotary positions, which it does not train; set rope_type to default",
            ),
        ] {
            for engine in [Engine::Native, Engine::Torch] {
                let refused = check(engine, &model, &job, &strategy).unwrap_err().reason;
                assert!(refused.contains(reason) && refused.contains("export the plan"), "{refused}");
            }
        }
        // A window of the whole sequence is none.
        assert_eq!(check(Engine::Native, &window(128), &job, &strategy), Ok(()));
    }
}
