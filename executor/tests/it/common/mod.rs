//! Shared code of the training tests: small models, strategies for them, and the difference of two trainings.

use autodist_collectives::suits;
use autodist_executor::state::ModelState;
use autodist_executor::{CodecOptions, DataSource, Task};
use autodist_program::{rules, stages};
use autodist_spec::{
    Activation, Algorithm, Bytes, Collective, Communication, Job, ModelSpec, Norm, ParallelStrategy,
    Positions, Recompute, Reduction, RunRecord, ScheduleKind, Stage,
};
use proptest::prelude::*;

/// Small, but large enough to learn the synthetic language.
pub fn learner() -> ModelSpec {
    ModelSpec {
        name: "small".to_owned(),
        layers: 2,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        vocab: 64,
        max_seq_len: 64,
        positions: Positions::Rotary { theta: 10_000.0 },
        norm: Norm::RmsNorm,
        norm_epsilon: 1e-5,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: false,
        window: None,
        latent: None,
        experts: None,
        blocks: Vec::new(),
        additions: Vec::new(),
    }
}

/// Two families; sizes that no vector width divides, and a vocabulary that no tensor degree divides.
pub fn model(llama: bool) -> ModelSpec {
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
        window: None,
        latent: None,
        experts: None,
        blocks: Vec::new(),
        additions: Vec::new(),
    }
}

pub fn job() -> Job {
    Job::new(8, 12)
}

/// Three steps.
pub fn task(model: &ModelSpec, strategy: ParallelStrategy, stages: Vec<Stage>) -> Task {
    let data = DataSource::Synthetic;
    Task {
        model: model.clone(),
        job: job(),
        strategy,
        stages,
        data,
        start_step: 0,
        steps: 3,
        warmup_steps: 0,
        detail: false,
        count_memory: false,
        emulated_flops_per_s: None,
        coding: CodecOptions::default(),
    }
}

pub type Trained = (RunRecord, ModelState);

/// The largest relative difference of a step's loss, of its gradient norm, and the relative Euclidean
/// distance of the trained parameters.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    pub loss: f64,
    pub norm: f64,
    pub parameters: f64,
}

impl Difference {
    pub fn of((record, state): &Trained, (expected, expected_state): &Trained) -> Self {
        assert_eq!(record.steps.len(), expected.steps.len());
        assert_eq!(state.tensors.len(), expected_state.tensors.len());
        let apart = |of: fn(&autodist_spec::run::StepRecord) -> f64| {
            let pairs = record.steps.iter().zip(&expected.steps);
            pairs.map(|(a, b)| (of(a) / of(b) - 1.0).abs()).fold(0.0, f64::max)
        };
        let (mut difference, mut size) = (0.0, 0.0);
        for (key, reference) in &expected_state.tensors {
            for (a, b) in state.tensors[key].values.iter().zip(&reference.values) {
                assert!(a.is_finite(), "nobody holds an element of {key:?}");
                difference += f64::from(a - b).powi(2);
                size += f64::from(*b).powi(2);
            }
        }
        Self {
            loss: apart(|step| step.loss),
            norm: apart(|step| step.gradient_norm),
            parameters: (difference / size).sqrt(),
        }
    }

    pub fn largest(self) -> f64 {
        self.loss.max(self.norm).max(self.parameters)
    }
}

pub fn strategy(data: u32, tensor: u32, pipeline: u32, micro_batch: u32) -> ParallelStrategy {
    ParallelStrategy { tensor, pipeline, ..ParallelStrategy::data_parallel(data, micro_batch) }
}

/// Strategies of every kind, each with the name of its kind.
pub fn ways() -> Vec<(&'static str, ParallelStrategy)> {
    let mut ways = vec![
        ("gradient accumulation", strategy(1, 1, 1, 1)),
        ("data parallel", ParallelStrategy { bucket_bytes: Bytes(1), ..strategy(2, 1, 1, 2) }),
        ("data parallel", strategy(4, 1, 1, 1)),
        ("tensor parallel", strategy(1, 2, 1, 4)),
        ("tensor parallel", ParallelStrategy { sequence_parallel: true, ..strategy(1, 2, 1, 4) }),
        (
            "pipeline",
            ParallelStrategy {
                schedule: ScheduleKind::Interleaved,
                virtual_stages: 2,
                ..strategy(1, 1, 2, 2)
            },
        ),
    ];
    for zero_stage in 1..=3 {
        ways.push(("zero", ParallelStrategy { zero_stage, shard: 2, ..strategy(2, 1, 1, 2) }));
        ways.push(("zero", ParallelStrategy { zero_stage, shard: 2, ..strategy(4, 1, 1, 1) }));
    }
    for schedule in [ScheduleKind::GPipe, ScheduleKind::OneFOneB] {
        ways.push(("pipeline", ParallelStrategy { schedule, ..strategy(1, 1, 2, 2) }));
        ways.push(("pipeline", ParallelStrategy { schedule, ..strategy(1, 1, 4, 1) }));
    }
    for algorithm in [
        Algorithm::DoubleBinaryTree,
        Algorithm::HalvingDoubling,
        Algorithm::Hierarchical { inner: 2 },
        Algorithm::Torus { columns: 2 },
    ] {
        let communication = Communication {
            placement: vec![2, 0, 3, 1],
            reduce: Reduction { algorithm, ..Reduction::default() },
            ..Communication::default()
        };
        ways.push(("algorithms and placement", ParallelStrategy { communication, ..strategy(4, 1, 1, 1) }));
        let tensor =
            if algorithm == (Algorithm::Hierarchical { inner: 2 }) { Algorithm::Ring } else { algorithm };
        let communication = Communication { placement: vec![3, 1, 0, 2], tensor, ..Communication::default() };
        ways.push(("algorithms and placement", ParallelStrategy { communication, ..strategy(1, 2, 2, 4) }));
    }
    for recompute in [Recompute::Selective, Recompute::Full] {
        ways.push(("recomputation", ParallelStrategy { recompute, ..strategy(1, 1, 1, 2) }));
        let sharded = ParallelStrategy { recompute, sequence_parallel: true, ..strategy(1, 2, 1, 4) };
        ways.push(("recomputation", sharded));
    }
    ways
}

/// A strategy, drawn at random from the whole space and kept if the rules allow it.
pub fn any_way() -> impl Strategy<Value = (bool, ParallelStrategy, Vec<Stage>)> {
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
    let algorithms = prop::sample::select(vec![
        Algorithm::Ring,
        Algorithm::DoubleBinaryTree,
        Algorithm::HalvingDoubling,
        Algorithm::Hierarchical { inner: 2 },
        Algorithm::Torus { columns: 2 },
    ]);
    // Devices in any order; the first of them are used.
    let order = Just((0_u32..4).collect::<Vec<_>>()).prop_shuffle();
    let communication = (order, prop::collection::vec(algorithms, 3));
    (choices, prop::collection::vec(0_usize..3, 5), prop::collection::vec(1_usize..5, 3), communication)
        .prop_filter_map(
            "not a legal way of training",
            |(
                (degrees, micro_batch, zero_stage, shard, sequence_parallel, schedule, bucket, llama),
                policies,
                cuts,
                (order, algorithms),
            )| {
                let (data, tensor, pipeline) = degrees;
                let virtual_stages = if schedule == ScheduleKind::Interleaved { 2 } else { 1 };
                let world = data * tensor * pipeline;
                // An algorithm that does not suit the group would only be refused.
                let suited = |index: usize, collectives: &[Collective], group: u32| {
                    let algorithm: Algorithm = algorithms[index];
                    let suits = collectives.iter().all(|c| suits(algorithm, *c, group as usize).is_ok());
                    if suits { algorithm } else { Algorithm::Ring }
                };
                let sharded = if zero_stage > 0 { shard } else { 1 };
                let (all, scattered) = (Collective::AllReduce, Collective::ReduceScatter);
                let reduces =
                    if zero_stage > 0 { suited(2, &[scattered], sharded) } else { suited(2, &[all], data) };
                let communication = Communication {
                    placement: order.into_iter().filter(|device| *device < world).collect(),
                    tensor: suited(0, &[all, scattered, Collective::AllGather], tensor),
                    gather: suited(1, &[Collective::AllGather], sharded),
                    reduce: Reduction { algorithm: reduces, ..Reduction::default() },
                    ..Communication::default()
                };
                let strategy = ParallelStrategy {
                    communication,
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
