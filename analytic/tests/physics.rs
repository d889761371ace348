//! What must hold whatever the numbers are.

#![allow(clippy::unwrap_used, reason = "tests")]

use autodist_analytic::{
    Layout, Machine, Memory, Parameters, Recompute, Run, Shape, Trainer, Uplink, catalog,
};
use std::sync::Arc;

fn gpt3(layout: Layout, trainer: Trainer) -> Run {
    let network = Uplink { fabric: "infiniband".to_owned(), bytes_per_s: 200e9, nics: 8 };
    let machine = Arc::new(Machine::named("a100-80gb-sxm", 8, Some(&network)).unwrap());
    let model = autodist_spec::catalog::model("gpt3-175b").unwrap();
    let mut run = Run::new(Shape::from(&model), machine, layout, trainer);
    run.global_batch = 1536;
    run.recompute = Recompute::Full;
    run
}

fn step(run: &Run) -> f64 {
    run.estimate(Parameters::shipped(), 0.2).step.0
}

const LAYOUT: Layout = Layout {
    tensor: 8,
    context: 1,
    data: 8,
    pipeline: 8,
    virtual_stages: 1,
    expert: 1,
    sequence_parallel: false,
    zero_stage: 0,
    shard: 1,
};

#[test]
fn parts_add_up_to_the_step() {
    for trainer in Trainer::ALL {
        let run = gpt3(LAYOUT, trainer);
        let estimate = run.estimate(Parameters::shipped(), 0.2);
        let sum: f64 = estimate.breakdown.parts().iter().map(|part| part.1).sum();
        assert!((sum / estimate.step.0 - 1.0).abs() < 1e-9, "{trainer}: {sum} of {}", estimate.step);
        assert!(estimate.breakdown.parts().iter().all(|part| part.1.is_finite()), "{trainer}");
    }
}

#[test]
fn recomputation_costs_time_and_saves_memory() {
    let with = |recompute| Run { recompute, ..gpt3(LAYOUT, Trainer::Megatron) };
    let modes = [Recompute::None, Recompute::Selective, Recompute::Full].map(with);
    assert!(step(&modes[0]) < step(&modes[1]) && step(&modes[1]) < step(&modes[2]));
    let memory = modes.each_ref().map(|run| Memory::of(run).total());
    assert!(memory[0] > memory[1] && memory[1] > memory[2], "{memory:?}");
}

#[test]
fn interleaving_shrinks_the_bubble() {
    let plain = gpt3(LAYOUT, Trainer::Megatron);
    let interleaved = gpt3(Layout { virtual_stages: 3, ..LAYOUT }, Trainer::Megatron);
    let bubble = |run: &Run| run.estimate(Parameters::shipped(), 0.2).breakdown.bubble_s;
    assert!((bubble(&plain) / bubble(&interleaved) - 3.0).abs() < 1e-6);
}

#[test]
fn sharding_and_sequence_parallelism_save_memory() {
    let total = |layout, trainer| Memory::of(&gpt3(layout, trainer)).total();
    let sharded = Layout { zero_stage: 1, shard: 8, ..LAYOUT };
    assert!(total(sharded, Trainer::MegatronCore) < total(LAYOUT, Trainer::MegatronCore));
    let sequence = Layout { sequence_parallel: true, ..sharded };
    assert!(total(sequence, Trainer::MegatronCore) < total(sharded, Trainer::MegatronCore));
    let fsdp = Layout { tensor: 1, pipeline: 1, data: 512, zero_stage: 3, shard: 512, ..LAYOUT };
    let hybrid = Layout { shard: 64, ..fsdp };
    assert!(total(fsdp, Trainer::Fsdp2) < total(hybrid, Trainer::Fsdp2));
}

#[test]
fn twice_the_batch_takes_less_than_twice_the_time() {
    let once = gpt3(LAYOUT, Trainer::Megatron);
    let twice = Run { global_batch: 2 * once.global_batch, ..once.clone() };
    let ratio = step(&twice) / step(&once);
    assert!((1.8..2.0).contains(&ratio), "{ratio}");
}

#[test]
fn experts_cost_what_is_active() {
    let machine = Arc::new(Machine::named("h100-80gb-sxm", 8, None).unwrap());
    let mixtral = catalog::expert_models()[0].shape();
    let dense = Shape { ffn: 2 * 14336, experts: None, ..mixtral.clone() };
    let layout = Layout { data: 8, expert: 8, zero_stage: 1, shard: 8, ..Layout::default() };
    let run = |shape: &Shape, expert| {
        let mut run =
            Run::new(shape.clone(), Arc::clone(&machine), Layout { expert, ..layout }, Trainer::MegatronCore);
        (run.seq_len, run.global_batch) = (4096, 256);
        run
    };
    let (sparse, dense) = (run(&mixtral, 8), run(&dense, 1));
    let exchange = sparse.estimate(Parameters::shipped(), 0.2).breakdown.expert_s;
    assert!(exchange > 0.0);
    let ratio = step(&sparse) / step(&dense);
    assert!(
        (1.0..1.8).contains(&ratio),
        "two of eight experts as an MLP of twice the width, and more: {ratio}"
    );
}

#[test]
fn what_cannot_be_is_refused_with_the_field() {
    let fields = |layout: Layout| gpt3(layout, Trainer::Megatron).check().unwrap_err().field;
    assert_eq!(fields(Layout { pipeline: 128, ..LAYOUT }), "pp");
    assert_eq!(fields(Layout { expert: 2, ..LAYOUT }), "ep");
    assert_eq!(fields(Layout { pipeline: 1, virtual_stages: 2, ..LAYOUT }), "vpp");
    let mut small = gpt3(LAYOUT, Trainer::Megatron);
    small.global_batch = 4;
    assert_eq!(small.check().unwrap_err().field, "global_batch");
}
