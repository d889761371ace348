//! 200 steps on the synthetic language reduce the loss to within 5 % of the language's entropy, under every
//! strategy. The entropy is the minimum: a loss below it would be as wrong as one far above it.

use crate::common;

use autodist_compute::Cpu;
use autodist_executor::{CodecOptions, DataSource, SyntheticLanguage, Task, local};
use autodist_program::stages;
use autodist_spec::{Job, Optimizer, ParallelStrategy};
use common::learner;
use std::time::Duration;

fn final_loss(strategy: ParallelStrategy, optimizer: Optimizer, peak: f64) -> f64 {
    let model = learner();
    let mut job = Job { optimizer, ..Job::new(16, 64) };
    job.learning_rate.peak = peak;
    let stages = stages::even(&model, &strategy);
    let data = DataSource::Synthetic;
    let task = Task {
        model,
        job,
        strategy,
        stages,
        data,
        start_step: 0,
        steps: 200,
        warmup_steps: 0,
        detail: false,
        count_memory: false,
        emulated_flops_per_s: None,
        coding: CodecOptions::default(),
    };
    let (record, _) =
        local::train(&Cpu::<f32>::new(), &task, Duration::from_secs(60)).expect("training goes through");
    let last = &record.steps[190..];
    last.iter().map(|s| s.loss).sum::<f64>() / last.len() as f64
}

fn check(strategy: ParallelStrategy) {
    let floor = SyntheticLanguage::new(64).entropy();
    let label = strategy.label();
    let loss = final_loss(strategy, Optimizer::default(), 5e-3);
    assert!((0.98 * floor..1.05 * floor).contains(&loss), "{label}: loss {loss}, entropy {floor}");
}

#[test]
fn one_device() {
    check(ParallelStrategy::data_parallel(1, 8));
}

#[test]
fn data_parallel_at_length() {
    check(ParallelStrategy::data_parallel(2, 8));
}

#[test]
fn tensor_parallel_at_length() {
    check(ParallelStrategy { tensor: 2, ..ParallelStrategy::data_parallel(1, 16) });
}

#[test]
fn pipeline_parallel_at_length() {
    check(ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 4) });
}

#[test]
fn momentum_sgd_learns_too_but_more_slowly_at_length() {
    let floor = SyntheticLanguage::new(64).entropy();
    let untrained = f64::from(learner().vocab).ln();
    let optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };
    let loss = final_loss(ParallelStrategy::data_parallel(1, 16), optimizer, 0.3);
    assert!(
        loss > 0.98 * floor && loss < 0.7 * untrained,
        "loss {loss}, floor {floor}, untrained {untrained}"
    );
}
