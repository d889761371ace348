//! Full evaluations (time, memory, breakdown) a second on one core.

#![allow(clippy::unwrap_used, reason = "a bench")]

use autodist_analytic::{FreeParameters, NodeModel, ParallelDims, Trainer, TrainingRun, Uplink};
use autodist_spec::{Recompute, catalog};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;

/// GPT-3 175B on 512 A100s with every tensor-parallel and pipeline degree: the queries of a typical search.
fn runs() -> Vec<TrainingRun> {
    let network = Uplink { fabric: "infiniband".to_owned(), bytes_per_s: 200e9, nics: 8 };
    let machine = Arc::new(NodeModel::named("a100-80gb-sxm", 8, Some(&network)).unwrap());
    let model = catalog::model("gpt3-175b").unwrap();
    let mut runs = Vec::new();
    for tensor in [1, 2, 4, 8] {
        for pipeline in [4, 8, 16, 32] {
            for micro_batch in [1, 2, 4] {
                let data = 512 / tensor / pipeline;
                let layout = ParallelDims {
                    tensor,
                    pipeline,
                    data,
                    zero_stage: 1,
                    shard: data,
                    ..ParallelDims::default()
                };
                for trainer in [Trainer::Megatron, Trainer::MegatronCore] {
                    let mut run = TrainingRun::new(&model, Arc::clone(&machine), layout, trainer);
                    (run.global_batch, run.micro_batch) = (1536, micro_batch);
                    run.recompute =
                        if trainer == Trainer::Megatron { Recompute::Full } else { Recompute::None };
                    runs.push(run);
                }
            }
        }
    }
    runs
}

fn bench(criterion: &mut Criterion) {
    let runs = runs();
    let parameters = FreeParameters::shipped();
    let mut group = criterion.benchmark_group("estimate");
    group.throughput(Throughput::Elements(runs.len() as u64));
    group.bench_function("gpt3-175b", |bencher| {
        bencher.iter(|| {
            runs.iter().for_each(|run| {
                black_box(black_box(run).estimate(parameters));
            });
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
