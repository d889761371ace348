//! Training with rounded transfers of gradient shards, gathered parameters and activations: it differs from
//! exact training only by the rounding, under every strategy, and sends as many bytes as the formulas
//! predict.

use crate::common;

use autodist_codecs::{Form, rounding};
use autodist_compute::Cpu;
use autodist_executor::{CodecOptions, DataSource, Task, local};
use autodist_program::{Op, Program, stages};
use autodist_spec::{Codec, Job, ParallelStrategy, RunRecord, ScheduleKind};
use common::learner;
use std::time::Duration;

const STEPS: u32 = 12;

fn train(strategy: ParallelStrategy) -> RunRecord {
    let model = learner();
    let stages = stages::even(&model, &strategy);
    let task = Task {
        model,
        job: Job::new(8, 32),
        strategy,
        stages,
        data: DataSource::Synthetic,
        start_step: 0,
        steps: STEPS,
        warmup_steps: 0,
        detail: false,
        count_memory: false,
        emulated_flops_per_s: None,
        coding: CodecOptions::default(),
    };
    let label = task.strategy.label();
    let trained = local::train(&Cpu::<f32>::new(), &task, Duration::from_secs(60));
    trained.unwrap_or_else(|error| panic!("{label}: {error}")).0
}

fn zero(stage: u8) -> ParallelStrategy {
    ParallelStrategy { zero_stage: stage, shard: 2, ..ParallelStrategy::data_parallel(2, 2) }
}

fn pipeline() -> ParallelStrategy {
    ParallelStrategy {
        pipeline: 2,
        schedule: ScheduleKind::OneFOneB,
        ..ParallelStrategy::data_parallel(1, 2)
    }
}

fn losses(record: &RunRecord) -> Vec<f64> {
    record.steps.iter().map(|step| step.loss).collect()
}

fn sent(record: &RunRecord) -> u64 {
    record.ranks.iter().map(|rank| rank.bytes_sent_per_step.0).sum()
}

/// The largest relative difference of two trainings' losses.
fn apart(one: &RunRecord, other: &RunRecord) -> f64 {
    let pairs = losses(one).into_iter().zip(losses(other));
    pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn rounded_gradient_shards_train_alike_under_every_zero_stage() {
    for stage in 1..=3 {
        let exact = train(zero(stage));
        for (codec, tolerance) in
            [(Codec::Fp16, 1e-3), (Codec::Bf16, 2e-3), (Codec::Int8 { block: 64 }, 1e-2)]
        {
            let mut strategy = zero(stage);
            strategy.communication.reduce.codec = codec;
            let rounded = train(strategy);
            let apart = apart(&rounded, &exact);
            assert!(apart < tolerance, "zero{stage} {}: {apart}", codec.name());
            // The test fails if nothing was rounded.
            assert_ne!(losses(&rounded), losses(&exact), "zero{stage} {}", codec.name());
            assert!(sent(&rounded) < sent(&exact), "zero{stage} {}", codec.name());
        }
    }
}

#[test]
fn rounded_parameters_train_alike_and_owners_keep_theirs_exact() {
    let exact = train(zero(3));
    for (codec, tolerance) in [(Codec::Bf16, 1e-2), (Codec::Int8 { block: 64 }, 3e-2)] {
        let mut strategy = zero(3);
        strategy.communication.parameters = codec;
        let rounded = train(strategy);
        let apart = apart(&rounded, &exact);
        assert!(apart < tolerance && apart > 0.0, "{}: {apart}", codec.name());
        // Updates are far below the resolution of bf16: if they were added to rounded parameters, nothing
        // would be learnt.
        let (first, last) = (rounded.steps[0].loss, rounded.steps[STEPS as usize - 1].loss);
        let exactly = exact.steps[STEPS as usize - 1].loss;
        assert!(first - last > 0.9 * (exact.steps[0].loss - exactly), "{first} to {last}, not {exactly}");
        assert!(sent(&rounded) < sent(&exact));
    }
}

#[test]
fn rounded_activations_train_alike_in_half_the_bytes() {
    let exact = train(pipeline());
    for (codec, tolerance) in [(Codec::Fp16, 1e-3), (Codec::Bf16, 1e-2)] {
        let mut strategy = pipeline();
        strategy.communication.activations = codec;
        let program = Program::compile(
            &learner(),
            &Job::new(8, 32),
            2,
            &strategy,
            &stages::even(&learner(), &strategy),
        );
        let program = program.unwrap_or_else(|illegal| panic!("{illegal}"));
        let rounded = train(strategy);
        let apart = apart(&rounded, &exact);
        assert!(apart < tolerance && apart > 0.0, "{}: {apart}", codec.name());
        let Some(form) = Form::of(codec) else { panic!("{} rounds", codec.name()) };
        let saved = program.ranks.iter().flat_map(|rank| &rank.ops).map(|op| match op {
            Op::Send(message) => 4 * message.elements - rounding::message_bytes(form, message.elements),
            Op::Receive(_) | Op::Run { .. } => 0,
        });
        assert_eq!(sent(&exact) - sent(&rounded), saved.sum::<usize>() as u64);
    }
}
