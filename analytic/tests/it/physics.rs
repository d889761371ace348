//! Laws that hold for all parameter values.

use autodist_analytic::{FreeParameters, Memory, NodeModel, ParallelDims, Trainer, TrainingRun, Uplink};
use autodist_spec::{ModelSpec, Precision, Recompute};
use std::sync::Arc;

fn gpt3(layout: ParallelDims, trainer: Trainer) -> TrainingRun {
    let network = Uplink { fabric: "infiniband".to_owned(), bytes_per_s: 200e9, nics: 8 };
    let machine = Arc::new(NodeModel::named("a100-80gb-sxm", 8, Some(&network)).unwrap());
    let model = autodist_spec::catalog::model("gpt3-175b").unwrap();
    let mut run = TrainingRun::new(&model, machine, layout, trainer);
    run.global_batch = 1536;
    run.recompute = Recompute::Full;
    run
}

fn step(run: &TrainingRun) -> f64 {
    run.estimate(FreeParameters::shipped()).step.0
}

const LAYOUT: ParallelDims = ParallelDims {
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
fn recomputation_costs_time_and_saves_memory() {
    let with = |recompute| TrainingRun { recompute, ..gpt3(LAYOUT, Trainer::Megatron) };
    let modes = [Recompute::None, Recompute::Selective, Recompute::Full].map(with);
    assert!(step(&modes[0]) < step(&modes[1]) && step(&modes[1]) < step(&modes[2]));
    let memory = modes.each_ref().map(|run| Memory::of(run).total());
    assert!(memory[0] > memory[1] && memory[1] > memory[2], "{memory:?}");
}

#[test]
fn interleaving_shrinks_the_bubble() {
    let plain = gpt3(LAYOUT, Trainer::Megatron);
    let interleaved = gpt3(ParallelDims { virtual_stages: 3, ..LAYOUT }, Trainer::Megatron);
    let bubble = |run: &TrainingRun| run.estimate(FreeParameters::shipped()).breakdown.bubble_s;
    assert!((bubble(&plain) / bubble(&interleaved) - 3.0).abs() < 1e-6);
}

#[test]
fn sharding_and_sequence_parallelism_save_memory() {
    let total = |layout, trainer| Memory::of(&gpt3(layout, trainer)).total();
    let sharded = ParallelDims { zero_stage: 1, shard: 8, ..LAYOUT };
    assert!(total(sharded, Trainer::MegatronCore) < total(LAYOUT, Trainer::MegatronCore));
    let sequence = ParallelDims { sequence_parallel: true, ..sharded };
    assert!(total(sequence, Trainer::MegatronCore) < total(sharded, Trainer::MegatronCore));
    let fsdp = ParallelDims { tensor: 1, pipeline: 1, data: 512, zero_stage: 3, shard: 512, ..LAYOUT };
    let hybrid = ParallelDims { shard: 64, ..fsdp };
    assert!(total(fsdp, Trainer::Fsdp2) < total(hybrid, Trainer::Fsdp2));
}

#[test]
fn sums_beside_products_cost_less_than_sums_alone() {
    let sequence = ParallelDims { sequence_parallel: true, ..LAYOUT };
    let tensor =
        |layout, trainer| gpt3(layout, trainer).estimate(FreeParameters::shipped()).breakdown.tensor_s;
    let [classic, core, nemo] =
        [Trainer::Megatron, Trainer::MegatronCore, Trainer::Nemo].map(|trainer| tensor(sequence, trainer));
    assert!(nemo < core && core < classic, "{nemo} {core} {classic}");
    // The same number of bytes with and without sequence parallelism, and one more all-gather, which overlaps
    // (Korthikanti et al. 2022, 4.2.2).
    let ratio = tensor(sequence, Trainer::MegatronCore) / tensor(LAYOUT, Trainer::MegatronCore);
    assert!((0.8..2.0).contains(&ratio), "{ratio}");
}

#[test]
fn context_parallel_ranks_share_a_causal_mask_evenly() {
    let attention = |context: u32| {
        let layout = ParallelDims { context, data: 8 / context, pipeline: 8, ..LAYOUT };
        let mut run = gpt3(layout, Trainer::MegatronCore);
        (run.seq_len, run.global_batch, run.recompute) = (32_768, 64, Recompute::None);
        run.estimate(FreeParameters::shipped()).breakdown.attention_s / run.micro_batches()
    };
    let ratio = attention(1) / attention(4);
    assert!((ratio - 4.0).abs() < 0.05, "{ratio}");
}

#[test]
fn eight_bits_are_faster_where_the_device_has_them() {
    let machine = Arc::new(NodeModel::named("h100-80gb-sxm", 8, None).unwrap());
    let layout = ParallelDims { data: 8, zero_stage: 1, shard: 8, ..ParallelDims::default() };
    let with = |dtype| {
        let model = autodist_spec::catalog::model("llama3-8b").unwrap();
        let mut run = TrainingRun::new(&model, Arc::clone(&machine), layout, Trainer::Nemo);
        (run.seq_len, run.global_batch, run.dtype) = (8192, 128, dtype);
        step(&run)
    };
    let ratio = with(Precision::Bf16) / with(Precision::Fp8);
    assert!((1.1..1.9).contains(&ratio), "{ratio}");
}

#[test]
fn deepspeed_reduces_gradients_of_bf16_in_fp32() {
    let data = |trainer, dtype| {
        let run = TrainingRun { dtype, ..gpt3(LAYOUT, trainer) };
        run.estimate(FreeParameters::shipped()).breakdown.data_s
    };
    let over = |trainer| data(trainer, Precision::Bf16) / data(trainer, Precision::Fp16);
    assert!((over(Trainer::MegatronDeepspeed) - 2.0).abs() < 0.02, "{}", over(Trainer::MegatronDeepspeed));
    assert_eq!(over(Trainer::Megatron), 1.0);
}

#[test]
fn pipelines_gather_shards_once() {
    let layout = ParallelDims { zero_stage: 3, shard: 8, ..LAYOUT };
    let gathers = |batch| {
        let run = TrainingRun { global_batch: batch, ..gpt3(layout, Trainer::Fsdp2) };
        run.estimate(FreeParameters::shipped()).breakdown.gather_s
    };
    assert_eq!(gathers(512), gathers(1024));
    assert!(gathers(512) > 0.0);
}

#[test]
fn the_ends_of_a_pipeline_may_hold_fewer_blocks() {
    let with = |layers: u32| {
        let mut run = gpt3(LAYOUT, Trainer::MegatronCore);
        run.model = Arc::new(ModelSpec { layers, ..(*run.model).clone() });
        run
    };
    assert_eq!(with(96).blocks(), (12.0, 0.0));
    assert_eq!(with(94).blocks(), (12.0, 1.0));
    assert_eq!(with(95).blocks(), (95.0 / 8.0, 0.0));
    // Fewer blocks on the first and last rank reduce the wait for the last rank.
    assert!(step(&with(94)) < step(&with(96)));
    // The second rank is then the fullest, with one micro-batch less than the first would hold.
    let mut run = with(94);
    run.recompute = Recompute::None;
    let (uneven, even) = (
        Memory::of(&run).activations,
        Memory::of(&TrainingRun { recompute: Recompute::None, ..with(96) }).activations,
    );
    assert!(uneven < even && uneven > 0.8 * even, "{uneven} {even}");
}

#[test]
fn context_parallel_ranks_hold_a_part_of_each_shard() {
    let optimizer = |context: u32, data: u32| {
        let layout = ParallelDims { context, data, zero_stage: 1, shard: data, ..LAYOUT };
        Memory::of(&gpt3(layout, Trainer::MegatronCore)).optimizer
    };
    assert_eq!(optimizer(4, 2), optimizer(1, 8));
}

#[test]
fn twice_the_batch_takes_less_than_twice_the_time() {
    let once = gpt3(LAYOUT, Trainer::Megatron);
    let twice = TrainingRun { global_batch: 2 * once.global_batch, ..once.clone() };
    let ratio = step(&twice) / step(&once);
    assert!((1.8..2.0).contains(&ratio), "{ratio}");
}

#[test]
fn experts_cost_what_is_active() {
    let machine = Arc::new(NodeModel::named("h100-80gb-sxm", 8, None).unwrap());
    let mixtral = autodist_spec::catalog::model("mixtral-8x7b").unwrap();
    let dense = ModelSpec { ffn: 2 * 14336, experts: None, ..mixtral.clone() };
    let layout = ParallelDims { data: 8, expert: 8, zero_stage: 1, shard: 8, ..ParallelDims::default() };
    let run = |model: &ModelSpec, expert| {
        let mut run = TrainingRun::new(
            model,
            Arc::clone(&machine),
            ParallelDims { expert, ..layout },
            Trainer::MegatronCore,
        );
        (run.seq_len, run.global_batch) = (4096, 256);
        run
    };
    let (sparse, dense) = (run(&mixtral, 8), run(&dense, 1));
    let exchange = sparse.estimate(FreeParameters::shipped()).breakdown.expert_s;
    assert!(exchange > 0.0);
    let ratio = step(&sparse) / step(&dense);
    assert!(
        (1.0..1.8).contains(&ratio),
        "two of eight experts as an MLP of twice the width, and more: {ratio}"
    );
}

#[test]
fn what_cannot_be_is_refused_with_the_rule() {
    let reason = |run: &TrainingRun, took_place| run.check(took_place).unwrap_err().problem;
    let of = |layout: ParallelDims| reason(&gpt3(layout, Trainer::Megatron), true);
    assert!(
        of(ParallelDims { pipeline: 128, ..LAYOUT }).contains("128 chunks, but there are only 98 layers")
    );
    assert!(of(ParallelDims { expert: 2, ..LAYOUT }).contains("the model has no experts"));
    let alone = of(ParallelDims { pipeline: 1, virtual_stages: 2, ..LAYOUT });
    assert!(alone.contains("need pp > 1"), "{alone}");
    let mut small = gpt3(LAYOUT, Trainer::Megatron);
    small.global_batch = 4;
    assert!(reason(&small, true).contains("does not divide the global batch of 4"));
}

#[test]
fn what_took_place_is_priced_although_it_breaks_a_rule_and_what_did_not_is_refused() {
    let run = gpt3(ParallelDims { sequence_parallel: true, ..LAYOUT }, Trainer::Megatron);
    assert!(run.check(false).unwrap_err().problem.contains("sp=true is not supported by megatron"));
    let assumption = run.check(true).unwrap().unwrap();
    assert!(assumption.starts_with("although megatron: sp=true"), "{assumption}");
    let mut uneven = gpt3(LAYOUT, Trainer::Megatron);
    uneven.global_batch = 1500;
    assert!(uneven.check(false).is_err() && uneven.check(true).unwrap().is_some());
    assert_eq!(gpt3(LAYOUT, Trainer::Megatron).check(false).unwrap(), None);
}
