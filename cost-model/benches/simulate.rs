//! One step of GPT-3 175B, 8 pipeline ranks of 6 chunks, 192 micro-batches: 18,432 passes of chunks, with
//! send/recv; and the bounds of one strategy before it is compiled, of which a search computes the most.

#![allow(clippy::unwrap_used, reason = "a bench")]

use autodist_cost_model::{CostModel, Outline, in_flight, synthetic::SyntheticMachine};
use autodist_program::{Program, stages};
use autodist_spec::{Bytes, Job, ParallelStrategy, Recompute, ScheduleKind, catalog};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

fn bench(criterion: &mut Criterion) {
    let model = catalog::model("gpt3-175b").unwrap();
    let job = Job::new(192, 2048);
    let machine = SyntheticMachine {
        memory_bytes: Bytes(80 << 30),
        flops_per_s: 1e14,
        bytes_per_s: 2e11,
        micro_batches: vec![1],
        ..SyntheticMachine::new(64)
    };
    let costs = CostModel::new(&machine.profile(&model, &job));
    let strategy = ParallelStrategy {
        tensor: 8,
        pipeline: 8,
        virtual_stages: 6,
        schedule: ScheduleKind::Interleaved,
        recompute: Recompute::Full,
        ..ParallelStrategy::data_parallel(1, 1)
    };
    let stages = stages::even(&model, &strategy);
    let compile = || Program::compile(&model, &job, 64, &strategy, &stages).unwrap();
    let program = compile();
    let priced = costs.price(&program).unwrap();

    let mut group = criterion.benchmark_group("gpt3-175b, pp 8, vpp 6, 192 micro-batches");
    group.bench_function("compile", |bencher| bencher.iter(|| black_box(compile())));
    group.bench_function("price", |bencher| {
        bencher.iter(|| {
            black_box(costs.price(black_box(&program)).unwrap());
        });
    });
    group.bench_function("simulate", |bencher| bencher.iter(|| black_box(black_box(&priced).simulate())));
    let layers = costs.layer_costs(&model, &job, &strategy).unwrap();
    let outline = Outline::new(&model, &strategy, &stages, &layers, &job);
    let orders = in_flight(&strategy, program.micro_batches);
    group.bench_function("bounds of time and memory", |bencher| {
        bencher.iter(|| {
            let (outline, strategy) = (black_box(&outline), black_box(&strategy));
            let time = costs.outline_bound(outline, &model, strategy, program.micro_batches).unwrap();
            black_box((time, outline.memory_floor(&job, strategy, costs.parameter_bytes(strategy), &orders)))
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
