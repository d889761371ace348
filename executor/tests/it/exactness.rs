//! Every parallel strategy trains the same model: losses and parameters equal those of one device.

use crate::common;

use autodist_compute::Cpu;
use autodist_executor::{Task, local};
use autodist_program::stages;
use autodist_spec::{ParallelStrategy, Stage};
use common::{Difference, Trained, any_way, model, task, ways};
use proptest::prelude::*;
use std::sync::LazyLock;
use std::time::Duration;

fn train(task: &Task) -> Trained {
    match local::train(&Cpu::<f32>::new(), task, Duration::from_secs(20)) {
        Ok(trained) => trained,
        Err(error) => panic!("{}: {error}", task.strategy.label()),
    }
}

/// One device, whole batch at once.
static REFERENCE: LazyLock<[Trained; 2]> = LazyLock::new(|| {
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
    let trained = train(&task(&model(llama), strategy, stages));
    let difference = Difference::of(&trained, &REFERENCE[usize::from(llama)]);
    assert!(difference.largest() <= TOLERANCE, "{label}: {difference:?}");
}

fn check_all(about: &str) {
    let ways: Vec<_> = ways().into_iter().filter(|(what, _)| *what == about).collect();
    assert!(!ways.is_empty(), "no way is about {about}");
    for (_, strategy) in ways {
        for llama in [false, true] {
            let stages = stages::even(&model(llama), &strategy);
            check(llama, strategy.clone(), stages);
        }
    }
}

/// Trains a step with one strategy, and the others with another one from the state of the first.
fn check_continued(llama: bool, before: &ParallelStrategy, after: &ParallelStrategy) {
    let model = model(llama);
    let of = |strategy: &ParallelStrategy| task(&model, strategy.clone(), stages::even(&model, strategy));
    let (mut first, mut rest) = (of(before), of(after));
    (first.steps, rest.steps) = (1, 2);
    let label = format!("{} after {}", after.label(), before.label());
    let (mut record, state) = train(&first);
    assert_eq!(state.step, 1);
    let device = Cpu::<f32>::new();
    let resumed = local::resume(&device, &rest, &state, Duration::from_secs(20));
    let (others, state) = resumed.unwrap_or_else(|error| panic!("{label}: {error}"));
    assert_eq!(state.step, 3);
    record.steps.extend(others.steps);
    let difference = Difference::of(&(record, state), &REFERENCE[usize::from(llama)]);
    assert!(difference.largest() <= TOLERANCE, "{label}: {difference:?}");
}

#[test]
fn a_training_continues_under_any_other_strategy() {
    let ways = ways();
    // Each way once before and once after another one of a different kind.
    for (index, (_, before)) in ways.iter().enumerate() {
        let (_, after) = &ways[(index * 5 + 3) % ways.len()];
        check_continued(index % 2 == 0, before, after);
    }
}

#[test]
fn a_foreign_state_is_refused() {
    let [gpt, llama] = [false, true].map(|llama| {
        let strategy = ParallelStrategy::data_parallel(1, 8);
        let model = model(llama);
        let stages = stages::even(&model, &strategy);
        task(&model, strategy, stages)
    });
    let (_, state) = train(&gpt);
    let refused = local::resume(&Cpu::<f32>::new(), &llama, &state, Duration::from_secs(20));
    let message = refused.map(|_| ()).unwrap_err().to_string();
    let expected = "the state to continue from lacks `attention.key.weight` of layer 1: expected 288 elements with 2 \
                    values of optimizer state each";
    assert_eq!(message, expected);
}

#[test]
fn gradient_accumulation() {
    check_all("gradient accumulation");
}

#[test]
fn data_parallel_with_small_buckets() {
    check_all("data parallel");
}

#[test]
fn zero_stages() {
    check_all("zero");
}

#[test]
fn tensor_and_sequence_parallel() {
    check_all("tensor parallel");
}

#[test]
fn pipelines() {
    check_all("pipeline");
}

#[test]
fn algorithms_and_placements() {
    check_all("algorithms and placement");
}

#[test]
fn recomputation() {
    check_all("recomputation");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn any_legal_way_of_training_trains_the_same_model((llama, strategy, stages) in any_way()) {
        check(llama, strategy, stages);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn any_legal_way_of_training_trains_the_same_model_at_length((llama, strategy, stages) in any_way()) {
        check(llama, strategy, stages);
    }
}
