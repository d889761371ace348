//! State in fewer bits or away from the devices: its bytes and its time.

use autodist_analytic::{
    CataloguePrices, FreeParameters, NodeModel, ParallelDims, StepEstimate, Trainer, TrainingRun, Uplink,
    states,
};
use autodist_program::{Program, stages};
use autodist_spec::{
    Job, MemoryTier, Optimizer, ParallelStrategy, Precision, Recompute, StateStorage, catalog,
};
use std::sync::Arc;

const HOST: MemoryTier = MemoryTier::Host;

fn usual() -> StateStorage {
    StateStorage::default()
}

/// Llama-3-8B on eight A100.
fn run(trainer: Trainer, zero_stage: u8, states: StateStorage) -> TrainingRun {
    let network = Uplink { fabric: "infiniband".into(), bytes_per_s: 200e9, nics: 8 };
    let machine = Arc::new(NodeModel::named("a100-80gb-sxm", 8, Some(&network)).unwrap());
    let model = catalog::model("llama3-8b").unwrap();
    let layout = ParallelDims { data: 8, shard: 8, zero_stage, ..ParallelDims::default() };
    TrainingRun {
        seq_len: 4096,
        global_batch: 16,
        recompute: Recompute::Full,
        states,
        ..TrainingRun::new(&model, machine, layout, trainer)
    }
}

fn estimate(trainer: Trainer, zero_stage: u8, states: StateStorage) -> StepEstimate {
    run(trainer, zero_stage, states).estimate(FreeParameters::shipped())
}

/// Bytes for each of all parameters of weights, gradients and optimizer state on the device.
fn held(trainer: Trainer, zero_stage: u8, states: StateStorage) -> f64 {
    let memory = estimate(trainer, zero_stage, states).memory;
    (memory.weights + memory.gradients + memory.optimizer) / 8.03e9
}

#[test]
fn bits_are_counted() {
    let close =
        |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.01, "{found} {expected}");
    let (core, fsdp, deepspeed) = (Trainer::MegatronCore, Trainer::Fsdp2, Trainer::Deepspeed);
    let moments = |bits| StateStorage { moment_bits: Some(bits), ..usual() };
    // 16-bit weights, fp32 gradients; master weights and moments of an eighth.
    close(held(core, 1, usual()), 6.0 + 12.0 / 8.0);
    close(held(core, 1, moments([16, 16])), 6.0 + 8.0 / 8.0);
    close(held(core, 1, moments([16, 8])), 6.0 + (4.0 + 3.0 + 4.0 / 256.0) / 8.0);
    let narrow = StateStorage { master_bits: Some(16), gradient_bits: Some(16), ..moments([16, 16]) };
    close(held(core, 1, narrow), 4.0 + 6.0 / 8.0);
    // All in 16 bits, with gradients, and with moments in 8.
    let all = || StateStorage { master_bits: Some(0), ..usual() };
    close(held(fsdp, 3, usual()), 16.0 / 8.0);
    close(held(fsdp, 3, all()), 8.0 / 8.0);
    close(held(fsdp, 3, StateStorage { moment_bits: Some([8, 8]), ..all() }), (6.0 + 8.0 / 256.0) / 8.0);
    // DeepSpeed's ZeRO-3 has no whole copy of the model.
    close(held(deepspeed, 3, usual()), 16.0 / 8.0);
    // What is given and equals the trainer's default changes nothing.
    let same = StateStorage { master_bits: Some(32), moment_bits: Some([32, 32]), ..usual() };
    for trainer in [core, fsdp] {
        let stage = if trainer == core { 1 } else { 3 };
        let (one, other) = (estimate(trainer, stage, usual()), estimate(trainer, stage, same.clone()));
        assert_eq!(one.memory, other.memory);
        close(one.step.0, other.step.0);
    }
}

#[test]
fn what_is_away_is_not_on_the_device_and_takes_time() {
    let optimizer = |part| StateStorage { optimizer: HOST, optimizer_part: part, ..usual() };
    let core = |states| estimate(Trainer::MegatronCore, 1, states);
    let (all, half, none) = (core(optimizer(1.0)), core(optimizer(0.5)), core(usual()));
    assert_eq!(all.memory.optimizer, 0.0);
    assert!((half.memory.optimizer / none.memory.optimizer - 0.5).abs() < 1e-9);
    assert!(all.breakdown.optimizer_s > 1.9 * half.breakdown.optimizer_s);
    assert!(half.breakdown.optimizer_s > 10.0 * none.breakdown.optimizer_s);
    // 1 billion parameters for each device, eight at once: 30 bytes each at half of 410 GB/s, and copies of gradients
    // and weights.
    let seconds = 8.03e9 * 30.0 / 205e9 + 1.004e9 * 6.0 / 25.2e9;
    assert!((all.breakdown.optimizer_s / seconds - 1.0).abs() < 0.02, "{:?}", all.breakdown);
    let deepspeed = |states| estimate(Trainer::Deepspeed, 3, states);
    let both = |tier| StateStorage { optimizer: tier, parameters: tier, ..usual() };
    let (host, nvme) = (deepspeed(both(HOST)), deepspeed(both(MemoryTier::Nvme)));
    assert_eq!((host.memory.weights, host.memory.gradients, host.memory.optimizer), (0.0, 0.0, 0.0));
    assert!(nvme.step.0 > 1.5 * host.step.0, "{} {}", nvme.step.0, host.step.0);
    assert!(host.step.0 > deepspeed(usual()).step.0);
    let away = |trainer, stage| estimate(trainer, stage, StateStorage { activations: HOST, ..usual() });
    let kept = |one: &StepEstimate| one.memory.activations;
    assert!(kept(&away(Trainer::Fsdp2, 3)) < 0.6 * kept(&estimate(Trainer::Fsdp2, 3, usual())));
    // Copies hide behind the passes of whole blocks, except where the trainer waits for them.
    assert_eq!(away(Trainer::Fsdp2, 3).breakdown.away_s, 0.0);
    assert!(away(Trainer::Deepspeed, 3).breakdown.away_s > 0.0);
}

#[test]
fn settings_of_gathers_trade_memory_for_time() {
    let of = |states| estimate(Trainer::Deepspeed, 3, states);
    let live = |live| of(StateStorage { live_parameters: Some(live), ..usual() });
    assert!(live(0).memory.buffers < live(2_000_000_000).memory.buffers);
    assert_eq!(live(1_000_000_000).memory, of(usual()).memory);
    let second = of(StateStorage { second_shard: Some(4), ..usual() });
    let more = second.memory.buffers - of(usual()).memory.buffers;
    assert!((more / (2.0 * 8.03e9 / 4.0) - 1.0).abs() < 0.01, "{more}");
    let quantised = of(StateStorage { gather_bits: Some(8), ..usual() });
    assert!(quantised.step.0 <= of(usual()).step.0);
}

/// Plans are priced by the cost model, tables of runs by the closed form.
#[test]
fn cost_model_and_closed_form_agree() {
    let optimizer = || StateStorage { optimizer: HOST, ..usual() };
    for (trainer, zero_stage, states) in [
        (
            Trainer::MegatronCore,
            1,
            StateStorage { moment_bits: Some([16, 16]), gradient_bits: Some(16), ..usual() },
        ),
        (Trainer::MegatronCore, 1, optimizer()),
        (Trainer::Fsdp2, 3, StateStorage { master_bits: Some(0), moment_bits: Some([8, 8]), ..usual() }),
        (Trainer::Fsdp2, 3, StateStorage { parameters: HOST, ..optimizer() }),
        (Trainer::Fsdp2, 3, StateStorage { activations: HOST, ..usual() }),
        (Trainer::Deepspeed, 3, StateStorage { parameters: HOST, ..optimizer() }),
        (Trainer::Deepspeed, 3, StateStorage { activations: HOST, second_shard: Some(4), ..usual() }),
    ] {
        let run = run(trainer, zero_stage, states.clone());
        let closed = run.estimate(FreeParameters::shipped());
        let job = Job { precision: Precision::Bf16, states, ..Job::new(run.global_batch, run.seq_len) };
        let strategy = ParallelStrategy {
            zero_stage,
            shard: 8,
            recompute: Recompute::Full,
            bucket_bytes: autodist_analytic::software::BUCKET,
            ..ParallelStrategy::data_parallel(8, 1)
        };
        let whole = stages::even(&run.model, &strategy);
        let program = Program::compile(&run.model, &job, 8, &strategy, &whole).unwrap();
        let costs =
            CataloguePrices::new(&run, 8, FreeParameters::shipped()).cost_model(&run.model, &job, 0.1);
        let cluster = autodist_spec::Cluster::from_short_form("1x8xa100-80gb-sxm").unwrap();
        let simulated = costs.estimate(&program, &job, &cluster).unwrap();
        let words = job.states.words();
        let time = simulated.step_time_s.0 / closed.step.0;
        assert!((0.85..1.15).contains(&time), "{trainer} {words}: {time}");
        let memory = simulated.peak_memory_bytes.as_f64() / closed.memory.total();
        assert!(
            (0.85..1.2).contains(&memory),
            "{trainer} {words}: {memory} {simulated:?} {:?}",
            closed.memory
        );
        let away = job.states.part_away() > 0.0 || job.states.activations.is_away();
        assert_eq!(simulated.host_memory_bytes.is_some(), away, "{words}");
        assert!(simulated.lower_bound_s <= simulated.step_time_s);
    }
}

#[test]
fn what_a_trainer_does_not_do_is_refused_by_name() {
    let adam = Optimizer::default();
    let refused = |trainer, states: StateStorage, precision| {
        states::check_states(trainer, &states, &adam, precision).map_err(|error| error.field).err()
    };
    let bf16 = |trainer, states| refused(trainer, states, Precision::Bf16);
    let optimizer = |tier| StateStorage { optimizer: tier, ..usual() };
    let moments = || StateStorage { moment_bits: Some([8, 8]), ..usual() };
    let masters = |bits| StateStorage { master_bits: Some(bits), ..usual() };
    let field = |name: &str| Some(format!("states.{name}"));
    for trainer in Trainer::ALL {
        assert_eq!(bf16(*trainer, usual()), None);
    }
    assert_eq!(bf16(Trainer::Megatron, moments()), field("moment_bits"));
    assert_eq!(bf16(Trainer::MegatronCore, moments()), None);
    assert_eq!(bf16(Trainer::MegatronCore, masters(0)), field("master_bits"));
    assert_eq!(bf16(Trainer::Fsdp2, masters(16)), field("master_bits"));
    assert_eq!(bf16(Trainer::Fsdp2, masters(0)), None);
    assert_eq!(refused(Trainer::Fsdp2, masters(0), Precision::Fp32), field("master_bits"));
    assert_eq!(bf16(Trainer::Fsdp2, optimizer(HOST)), field("optimizer"));
    assert_eq!(bf16(Trainer::MegatronCore, optimizer(MemoryTier::Nvme)), field("optimizer"));
    assert_eq!(bf16(Trainer::Deepspeed, optimizer(MemoryTier::Nvme)), None);
    assert_eq!(bf16(Trainer::Nemo, StateStorage { parameters: HOST, ..usual() }), field("parameters"));
    assert_eq!(
        bf16(Trainer::Fsdp2, StateStorage { second_shard: Some(8), ..usual() }),
        field("second_shard")
    );
    let strategy = |zero_stage| ParallelStrategy { zero_stage, ..ParallelStrategy::data_parallel(8, 1) };
    let of = |trainer, states: StateStorage, stage| {
        states::check_strategy(trainer, &states, &strategy(stage)).map_err(|error| error.field).err()
    };
    let parameters = || StateStorage { parameters: HOST, optimizer: HOST, ..usual() };
    assert_eq!(of(Trainer::Fsdp2, parameters(), 2), field("parameters"));
    assert_eq!(of(Trainer::Fsdp2, parameters(), 3), None);
    assert_eq!(of(Trainer::Deepspeed, optimizer(HOST), 0), field("optimizer"));
    assert_eq!(of(Trainer::Deepspeed, optimizer(MemoryTier::Nvme), 2), field("optimizer"));
    assert_eq!(
        of(Trainer::Deepspeed, StateStorage { second_shard: Some(3), ..usual() }, 3),
        field("second_shard")
    );
    // FSDP has the optimizer's state where the parameters are.
    let alone = StateStorage { parameters: HOST, ..usual() };
    let (all, follows) = states::completed(Trainer::Fsdp2, &alone);
    assert_eq!((all.optimizer, follows.is_some()), (HOST, true));
    assert_eq!(states::completed(Trainer::Deepspeed, &alone), (alone.clone(), None));
}
