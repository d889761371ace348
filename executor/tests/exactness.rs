//! Every way of splitting a model trains the same model: losses and parameters equal those of one device.

use autodist_compute::Cpu;
use autodist_executor::local::{self, Parameters};
use autodist_executor::{DataSource, Task};
use autodist_program::{rules, stages};
use autodist_spec::{
    Activation, Bytes, Job, ModelSpec, Norm, ParallelStrategy, Positions, Recompute, RunRecord, ScheduleKind,
    Stage,
};
use proptest::prelude::*;
use std::sync::LazyLock;
use std::time::Duration;

/// Two families; sizes that no vector width divides, and a vocabulary that no tensor degree divides.
fn model(llama: bool) -> ModelSpec {
    ModelSpec {
        name: if llama { "llama-like" } else { "gpt-like" }.to_owned(),
        layers: 3,
        hidden: 24,
        heads: 4,
        kv_heads: if llama { 2 } else { 4 },
        head_dim: 6,
        ffn: 36,
        vocab: 33,
        max_seq_len: 12,
        positions: if llama { Positions::Rotary { theta: 10_000.0 } } else { Positions::Learned },
        norm: if llama { Norm::RmsNorm } else { Norm::LayerNorm },
        norm_epsilon: 1e-5,
        activation: if llama { Activation::SwiGlu } else { Activation::Gelu },
        bias: !llama,
        tied_embeddings: !llama,
    }
}

fn job() -> Job {
    Job::new(8, 12)
}

fn task(model: &ModelSpec, strategy: ParallelStrategy, stages: Vec<Stage>) -> Task {
    let data = DataSource::Synthetic;
    Task {
        model: model.clone(),
        job: job(),
        strategy,
        stages,
        data,
        steps: 3,
        warmup_steps: 0,
        detail: false,
    }
}

fn train(task: &Task) -> (RunRecord, Parameters) {
    match local::train(&Cpu::<f32>::new(), task, Duration::from_secs(20)) {
        Ok(trained) => trained,
        Err(error) => panic!("{}: {error}", task.strategy.label()),
    }
}

/// One device, whole batch at once.
static REFERENCE: LazyLock<[(RunRecord, Parameters); 2]> = LazyLock::new(|| {
    [false, true].map(|llama| {
        let model = model(llama);
        let strategy = ParallelStrategy::data_parallel(1, 8);
        let stages = stages::even(&model, &strategy);
        train(&task(&model, strategy, stages))
    })
});

const TOLERANCE: f64 = 1e-4;

fn check(llama: bool, strategy: ParallelStrategy, stages: Vec<Stage>) {
    let label = format!("{} {}", strategy.label(), if llama { "llama" } else { "gpt" });
    let (expected, expected_parameters) = &REFERENCE[usize::from(llama)];
    let (record, parameters) = train(&task(&model(llama), strategy, stages));
    for (ours, reference) in record.steps.iter().zip(&expected.steps) {
        let error = (ours.loss / reference.loss - 1.0).abs();
        assert!(
            error <= TOLERANCE,
            "{label}: loss {} against {} in step {}",
            ours.loss,
            reference.loss,
            ours.step
        );
        let error = (ours.gradient_norm / reference.gradient_norm - 1.0).abs();
        assert!(
            error <= TOLERANCE,
            "{label}: norm {} against {}",
            ours.gradient_norm,
            reference.gradient_norm
        );
    }
    assert_eq!(parameters.len(), expected_parameters.len());
    let (mut difference, mut size) = (0.0, 0.0);
    for (key, reference) in expected_parameters {
        for (a, b) in parameters[key].iter().zip(reference) {
            assert!(a.is_finite(), "{label}: nobody holds an element of {key:?}");
            difference += f64::from(a - b).powi(2);
            size += f64::from(*b).powi(2);
        }
    }
    let error = (difference / size).sqrt();
    assert!(error <= TOLERANCE, "{label}: parameters differ by {error:.2e}");
}

fn strategy(data: u32, tensor: u32, pipeline: u32, micro_batch: u32) -> ParallelStrategy {
    ParallelStrategy { tensor, pipeline, ..ParallelStrategy::data_parallel(data, micro_batch) }
}

fn check_even(strategy: ParallelStrategy) {
    for llama in [false, true] {
        let stages = stages::even(&model(llama), &strategy);
        check(llama, strategy.clone(), stages);
    }
}

#[test]
fn gradient_accumulation() {
    check_even(strategy(1, 1, 1, 1));
}

#[test]
fn data_parallel_with_small_buckets() {
    check_even(ParallelStrategy { bucket_bytes: Bytes(1), ..strategy(2, 1, 1, 2) });
    check_even(strategy(4, 1, 1, 1));
}

#[test]
fn zero_stages() {
    for zero_stage in 1..=3 {
        check_even(ParallelStrategy { zero_stage, shard: 2, ..strategy(2, 1, 1, 2) });
        check_even(ParallelStrategy { zero_stage, shard: 2, ..strategy(4, 1, 1, 1) });
    }
}

#[test]
fn tensor_and_sequence_parallel() {
    check_even(strategy(1, 2, 1, 4));
    check_even(ParallelStrategy { sequence_parallel: true, ..strategy(1, 2, 1, 4) });
}

#[test]
fn pipelines() {
    for schedule in [ScheduleKind::GPipe, ScheduleKind::OneFOneB] {
        check_even(ParallelStrategy { schedule, ..strategy(1, 1, 2, 2) });
        check_even(ParallelStrategy { schedule, ..strategy(1, 1, 4, 1) });
    }
    check_even(ParallelStrategy {
        schedule: ScheduleKind::Interleaved,
        virtual_stages: 2,
        ..strategy(1, 1, 2, 2)
    });
}

#[test]
fn recomputation() {
    for recompute in [Recompute::Selective, Recompute::Full] {
        check_even(ParallelStrategy { recompute, ..strategy(1, 1, 1, 2) });
        check_even(ParallelStrategy { recompute, sequence_parallel: true, ..strategy(1, 2, 1, 4) });
    }
}

/// A way of training, drawn from the whole space and kept if the rules allow it.
fn any_way() -> impl Strategy<Value = (bool, ParallelStrategy, Vec<Stage>)> {
    let degrees = prop::sample::select(vec![
        (1, 1, 1),
        (2, 1, 1),
        (1, 2, 1),
        (1, 1, 2),
        (4, 1, 1),
        (2, 2, 1),
        (2, 1, 2),
        (1, 2, 2),
        (1, 1, 4),
        (1, 1, 3),
        (3, 1, 1),
    ]);
    let choices = (
        degrees,
        prop::sample::select(vec![1_u32, 2, 4, 8]),
        0_u8..=3,
        prop::sample::select(vec![1_u32, 2, 4]),
        any::<bool>(),
        prop::sample::select(vec![ScheduleKind::GPipe, ScheduleKind::OneFOneB, ScheduleKind::Interleaved]),
        prop::sample::select(vec![1_u64, 4000, 25 << 20]),
        any::<bool>(),
    );
    (choices, prop::collection::vec(0_usize..3, 5), prop::collection::vec(1_usize..5, 3)).prop_filter_map(
        "not a legal way of training",
        |(
            (degrees, micro_batch, zero_stage, shard, sequence_parallel, schedule, bucket, llama),
            policies,
            cuts,
        )| {
            let (data, tensor, pipeline) = degrees;
            let virtual_stages = if schedule == ScheduleKind::Interleaved { 2 } else { 1 };
            let strategy = ParallelStrategy {
                zero_stage,
                shard: if zero_stage > 0 { shard } else { 1 },
                sequence_parallel,
                schedule,
                virtual_stages,
                bucket_bytes: Bytes(bucket),
                ..strategy(data, tensor, pipeline, micro_batch)
            };
            let model = model(llama);
            // Random cuts, and a random policy for every block.
            let chunks = strategy.chunks() as usize;
            let mut ends: Vec<usize> = cuts.into_iter().take(chunks.saturating_sub(1)).collect();
            ends.extend([0, model.chain_len()]);
            ends.sort_unstable();
            ends.dedup();
            let mut stages = stages::from_ends(&model, &ends, Recompute::None);
            let recompute = [Recompute::None, Recompute::Selective, Recompute::Full];
            for stage in &mut stages {
                let first = stage.first_layer as usize;
                for (index, entry) in stage.recompute.iter_mut().enumerate() {
                    let block = (1..=model.layers as usize).contains(&(first + index));
                    *entry = if block { recompute[policies[first + index]] } else { Recompute::None };
                }
            }
            let devices = strategy.devices() as u32;
            rules::check(&model, &job(), devices, &strategy, &stages).ok()?;
            Some((llama, strategy, stages))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn any_legal_way_of_training_trains_the_same_model((llama, strategy, stages) in any_way()) {
        check(llama, strategy, stages);
    }
}
