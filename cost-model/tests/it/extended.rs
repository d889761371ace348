//! A profile of few devices, extended to more, against a profile of all of them.

use autodist_cost_model::{CostModel, synthetic::SyntheticMachine};
use autodist_program::{Program, stages};
use autodist_spec::{BytesPerSecond, Cluster, Job, Link, ModelSpec, ParallelStrategy, Seconds, catalog};

const DEVICES: u32 = 8;

fn model() -> ModelSpec {
    ModelSpec { heads: 8, kv_heads: 8, ..catalog::model("tiny-llama").unwrap() }
}

fn strategies() -> Vec<ParallelStrategy> {
    let split = |tensor, pipeline, sequence_parallel| ParallelStrategy {
        tensor,
        pipeline,
        sequence_parallel,
        ..ParallelStrategy::data_parallel(DEVICES / tensor / pipeline, 2)
    };
    let sharded = ParallelStrategy { zero_stage: 3, shard: DEVICES, ..split(1, 1, false) };
    vec![
        split(8, 1, false),
        split(8, 1, true),
        split(4, 2, true),
        split(2, 4, false),
        split(1, 4, false),
        split(1, 1, false),
        sharded,
    ]
}

/// Step time of a strategy, and its half-width.
fn estimate(costs: &CostModel, strategy: &ParallelStrategy, cluster: &Cluster) -> (f64, f64) {
    let (model, job) = (model(), Job::new(64, 128));
    let stages = stages::even(&model, strategy);
    let program = Program::compile(&model, &job, DEVICES, strategy, &stages).unwrap();
    let estimate = costs.estimate(&program, &job, cluster).unwrap();
    (estimate.step_time_s.0, estimate.step_time_spread_s.0)
}

#[test]
fn a_profile_of_few_devices_predicts_more_of_them() {
    let (model, job) = (model(), Job::new(64, 128));
    let machine = SyntheticMachine { launch_s: 0.0, ..SyntheticMachine::new(DEVICES) };
    let all = machine.profile(&model, &job);
    let truth = CostModel::new(&all);
    for few in [2, 4] {
        let part = SyntheticMachine { devices: few, ..machine.clone() }.profile(&model, &job);
        let costs = CostModel::of_cluster(&part, &all.cluster, None).unwrap();
        for strategy in strategies() {
            let (step, bar) = estimate(&costs, &strategy, &all.cluster);
            let (own, _) = estimate(&truth, &strategy, &all.cluster);
            let label = strategy.label();
            assert!((step / own - 1.0).abs() < 0.05, "{label} of {few}: {step} and {own}");
            assert!((step - own).abs() <= bar, "{label} of {few}: {step} ± {bar} and {own}");
            assert_eq!(costs.extensions(&strategy).is_empty(), strategy.tensor.max(strategy.data) <= few);
        }
        assert!(truth.extensions(&strategies()[0]).is_empty());
    }
}

#[test]
fn links_that_nobody_measured_are_those_of_the_cluster_or_refused() {
    let (model, job) = (model(), Job::new(64, 128));
    let machine = SyntheticMachine::new(2);
    let profile = machine.profile(&model, &job);
    let mut cluster = machine.cluster();
    cluster.nodes[0].count = 4;
    let refused = CostModel::of_cluster(&profile, &cluster, None).unwrap_err();
    assert!(refused.what.contains("were not measured") && refused.hint.contains("`link`"), "{refused}");
    let link = |rate: f64| Link { bytes_per_s: BytesPerSecond(rate), latency_s: Seconds(1e-5) };
    (cluster.nodes[0].link, cluster.network) = (Some(link(1e9)), Some(link(1e7)));
    let slow = CostModel::of_cluster(&profile, &cluster, None).unwrap();
    cluster.network = Some(link(1e9));
    let fast = CostModel::of_cluster(&profile, &cluster, None).unwrap();
    let strategy = ParallelStrategy::data_parallel(DEVICES, 2);
    let (slow_step, bar) = estimate(&slow, &strategy, &cluster);
    let (fast_step, _) = estimate(&fast, &strategy, &cluster);
    assert!(slow_step > 2.0 * fast_step, "{slow_step} {fast_step}");
    assert!(bar > 0.1 * slow_step, "a step of communication alone is as sure as its links: {bar}");
    assert!(slow.extensions(&strategy)[0].contains("given by `--cluster`"));
    // Beyond 32 devices, rings on the described links take the place of their simulation.
    (cluster.nodes[0].count, cluster.network) = (500, Some(link(1e7)));
    let many = CostModel::of_cluster(&profile, &cluster, None).unwrap();
    assert!(many.network().is_none() && many.extensions(&strategy)[0].contains("given by `--cluster`"));
    cluster.network = None;
    assert!(CostModel::of_cluster(&profile, &cluster, None).is_err());
}
