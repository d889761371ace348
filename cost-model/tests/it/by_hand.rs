//! Small cases whose step time and memory can be computed by hand.

use autodist_cost_model::{CostModel, synthetic::SyntheticMachine};
use autodist_program::{Instruction, Op, Program, stages};
use autodist_spec::profile::{CollectiveCost, PipeliningCost, Sample};
use autodist_spec::{
    Bytes, Collective, Job, ModelSpec, Network, OperationKind, ParallelStrategy, Path, Profile, Provenance,
    Recompute, ScheduleKind, Seconds, Stream, catalog,
};

/// Every layer of the chain takes 1 ms forward and 2 ms backward; nothing else takes time.
fn unit_profile(model: &ModelSpec, job: &Job) -> Profile {
    let mut machine = SyntheticMachine::new(24);
    (machine.launch_s, machine.latency_s, machine.handover_s, machine.overhead_s) = (0.0, 0.0, 0.0, 0.0);
    (machine.compute_slowdown, machine.communication_slowdown) = (1.0, 1.0);
    (machine.bytes_per_s, machine.elements_per_s) = (1e30, 1e30);
    let mut profile = machine.profile(model, job);
    for cell in &mut profile.segments {
        use autodist_spec::{Pass, Segment};
        let forward = match cell.segment {
            Segment::Embedding | Segment::Attention | Segment::Logits => 1e-3,
            _ => 0.0,
        };
        cell.time.median_s = Seconds(match cell.pass {
            Pass::Backward if cell.segment == Segment::Loss => 2e-3,
            Pass::Backward => 2.0 * forward,
            _ => forward,
        });
        (cell.time.low_s, cell.time.high_s) = (cell.time.median_s, cell.time.median_s);
    }
    profile
}

fn compile(model: &ModelSpec, job: &Job, devices: u32, strategy: &ParallelStrategy) -> Program {
    let stages = stages::balanced(model, strategy.chunks() as usize, strategy.recompute, &|_| 1.0).unwrap();
    Program::compile(model, job, devices, strategy, &stages).unwrap()
}

fn close(actual: Seconds, expected: f64) {
    assert!((actual.0 - expected).abs() < 1e-9, "{} s, by hand {expected} s", actual.0);
}

fn tiny() -> ModelSpec {
    catalog::model("tiny-llama").unwrap()
}

#[test]
fn the_bubble_is_that_of_the_papers() {
    // Six layers on two or three ranks: tf = 6/p ms, tb = 12/p ms, bubble (p − 1)(tf + tb) for both
    // schedules.
    let job = Job::new(8, 128);
    let model = tiny();
    let costs = CostModel::new(&unit_profile(&model, &job));
    for pipeline in [2, 3] {
        for schedule in [ScheduleKind::OneFOneB, ScheduleKind::GPipe] {
            let strategy = ParallelStrategy { pipeline, schedule, ..ParallelStrategy::data_parallel(1, 1) };
            let program = compile(&model, &job, pipeline, &strategy);
            let simulation = costs.price(&program).unwrap().simulate();
            let (p, m) = (f64::from(pipeline), 8.0);
            let each = 18e-3 / p;
            close(simulation.step_time_s, (m + p - 1.0) * each);
            for rank in &simulation.ranks {
                close(rank.bubble_s, (p - 1.0) * each);
                close(rank.compute_s, m * each);
            }
            close(costs.lower_bound(&program).unwrap(), (m + p - 1.0) * each);
        }
    }
}

#[test]
fn virtual_stages_divide_the_bubble() {
    // SC'21, section 2.2.2: the bubble of interleaved 1F1B is (p − 1)(tf + tb) / v.
    let model = ModelSpec { layers: 6, ..tiny() };
    let job = Job::new(8, 128);
    let costs = CostModel::new(&unit_profile(&model, &job));
    let strategy = ParallelStrategy {
        pipeline: 2,
        virtual_stages: 2,
        schedule: ScheduleKind::Interleaved,
        ..ParallelStrategy::data_parallel(1, 1)
    };
    let simulation = costs.price(&compile(&model, &job, 2, &strategy)).unwrap().simulate();
    close(simulation.step_time_s, 8.0 * 12e-3 + 12e-3 / 2.0);
}

#[test]
fn what_an_engine_does_around_a_pass_is_in_every_pass() {
    let (model, job) = (tiny(), Job::new(8, 128));
    let mut profile = unit_profile(&model, &job);
    let strategy = ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 1) };
    let program = compile(&model, &job, 2, &strategy);
    for (schedule, around) in [(ScheduleKind::GPipe, 0.0), (ScheduleKind::OneFOneB, 0.5e-3)] {
        let time = Sample::of(&[0.5e-3]);
        profile.pipelining = vec![PipeliningCost { schedule, time }];
        let costs = CostModel::new(&profile);
        let simulation = costs.price(&program).unwrap().simulate();
        // Half of six layers, forward and backward, 8 micro-batches and the pipeline's fill.
        close(simulation.step_time_s, 9.0 * (9e-3 + 2.0 * around));
        close(costs.lower_bound(&program).unwrap(), simulation.step_time_s.0);
        close(simulation.ranks[0].pipeline_communication_s, 16.0 * around);
    }
}

#[test]
fn tensor_collectives_on_a_network_cost_what_they_took_in_steps() {
    let (model, job) = (tiny(), Job::new(1, 128));
    let strategy = ParallelStrategy { tensor: 2, ..ParallelStrategy::data_parallel(1, 1) };
    let program = compile(&model, &job, 2, &strategy);
    let mut profile = unit_profile(&model, &job);
    let at_once = Path { links: Vec::new(), latency_s: Seconds(0.0) };
    profile.network = Some(Network {
        nodes: vec![0, 1],
        links: Vec::new(),
        paths: vec![vec![at_once; 2]; 2],
        patterns: Vec::new(),
    });
    let alone = CostModel::new(&profile).price(&program).unwrap().simulate();
    let took = |bytes, milliseconds: f64, times| CollectiveCost {
        kind: Collective::AllReduce,
        group: 2,
        stride: 1,
        bytes: Bytes(bytes),
        time: Sample::of(&vec![1e-3 * milliseconds; times]),
    };
    // Links cost nothing here, so all of the time is beyond them: 3 ms on average.
    profile.within_steps = vec![took(1024, 1.0, 1), took(65_536, 4.0, 2)];
    let in_steps = CostModel::new(&profile).price(&program).unwrap().simulate();
    let is_collective =
        |i: &&Instruction| matches!(i, Instruction::Tensor { .. } | Instruction::SumReplicated { .. });
    let rank = &program.ranks[0];
    let of_op = |op: &Op| match op {
        Op::Run { body, .. } => rank.bodies[*body].instructions.iter().filter(is_collective).count(),
        _ => 0,
    };
    let collectives: usize = rank.ops.iter().map(of_op).sum();
    close(in_steps.step_time_s, alone.step_time_s.0 + 3e-3 * collectives as f64);
}

/// The unit profile, with `launch` seconds of the host for each of the six segments that take time.
fn launched(model: &ModelSpec, job: &Job, launch: f64) -> Profile {
    let mut profile = unit_profile(model, job);
    for cell in profile.segments.iter_mut().filter(|cell| cell.time.median_s.0 > 0.0) {
        cell.launch_s = Seconds(launch);
    }
    profile
}

#[test]
fn a_device_waits_for_a_slow_host_alone() {
    let (model, job) = (tiny(), Job::new(8, 128));
    let program = compile(&model, &job, 1, &ParallelStrategy::data_parallel(1, 1));
    for (launch, step, waiting) in [
        // 12 launches for 18 ms of work: the host runs ahead after the first.
        (0.5e-3, 0.5e-3 + 8.0 * 18e-3, 0.5e-3),
        // The last of all launches ends after 8 · 12 · 3 ms, and its backward takes 2 ms.
        (3e-3, 8.0 * 36e-3 + 2e-3, 8.0 * 18e-3 + 2e-3),
        // The device waits for the first launch, and half a millisecond for each of the next six; in its first
        // backward pass the host gets ahead for the rest of the step.
        (1.5e-3, 4.5e-3 + 8.0 * 18e-3, 4.5e-3),
    ] {
        let costs = CostModel::new(&launched(&model, &job, launch));
        let simulation = costs.price(&program).unwrap().simulate();
        close(simulation.step_time_s, step);
        close(simulation.ranks[0].host_s, waiting);
        close(simulation.ranks[0].compute_s, 8.0 * 18e-3);
        let bound = costs.lower_bound(&program).unwrap();
        assert!(bound <= simulation.step_time_s && bound.0 > 0.97 * step, "{bound}");
        let timeline = costs.timeline(&program).unwrap();
        let host: f64 = timeline
            .iter()
            .filter(|event| event.stream == Stream::Host)
            .map(|e| (e.end_s - e.start_s).0)
            .sum();
        close(Seconds(host), 8.0 * 12.0 * launch);
    }
    // Twice as fast a host is as good as half of the launches' time.
    let slow = CostModel::new(&launched(&model, &job, 3e-3));
    let half = CostModel::new(&launched(&model, &job, 1.5e-3));
    let step = |costs: &CostModel| costs.price(&program).unwrap().simulate().step_time_s;
    close(step(&slow.faster(1.0, 1.0, 2.0)), step(&half).0);
}

#[test]
fn a_host_runs_ahead_while_its_rank_waits_in_a_pipeline() {
    let (model, job) = (tiny(), Job::new(1, 128));
    let strategy = ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 1) };
    let program = compile(&model, &job, 2, &strategy);
    let costs = CostModel::new(&launched(&model, &job, 0.9e-3));
    let simulation = costs.price(&program).unwrap().simulate();
    // One micro-batch: only the first launch of the first rank is waited for.
    close(simulation.step_time_s, 0.9e-3 + 18e-3);
    close(simulation.ranks[1].host_s, 0.0);
}

/// Data parallelism over two ranks, one micro-batch, a bucket for every layer, each reduction `transfer`
/// seconds.
fn data_parallel(transfer: f64, slowdown: (f64, f64)) -> (CostModel, Program) {
    let (model, job) = (tiny(), Job::new(2, 128));
    let mut profile = unit_profile(&model, &job);
    profile.fits.clear();
    for cell in &mut profile.collectives {
        // Constant in the size, except for the one element of the gradient norm.
        cell.time.median_s = Seconds(if cell.bytes.0 > 4 { transfer } else { 0.0 });
    }
    (profile.interference.compute_slowdown, profile.interference.communication_slowdown) = slowdown;
    let strategy = ParallelStrategy { bucket_bytes: Bytes(4), ..ParallelStrategy::data_parallel(2, 1) };
    (CostModel::new(&profile), compile(&model, &job, 2, &strategy))
}

#[test]
fn reductions_hide_behind_the_backward_but_for_the_last() {
    let (costs, program) = data_parallel(1e-3, (1.0, 1.0));
    let simulation = costs.price(&program).unwrap().simulate();
    close(simulation.step_time_s, 6e-3 + 12e-3 + 1e-3);
    close(simulation.ranks[0].data_communication_s, 1e-3);
    // Reductions of 3 ms: six of them, the first starts after the head's backward.
    let (costs, program) = data_parallel(3e-3, (1.0, 1.0));
    let simulation = costs.price(&program).unwrap().simulate();
    close(simulation.step_time_s, 6e-3 + 2e-3 + 6.0 * 3e-3);
    close(costs.lower_bound(&program).unwrap(), simulation.step_time_s.0);
    let timeline = costs.timeline(&program).unwrap();
    let reduces: Vec<f64> = timeline
        .iter()
        .filter(|e| e.operation == OperationKind::Reduce)
        .map(|e| (e.start_s.0 * 1e3).round())
        .collect();
    assert_eq!(reduces, [8.0, 11.0, 14.0, 17.0, 20.0, 23.0]);
}

#[test]
fn streams_that_run_together_slow_each_other() {
    // Transfers of 1 ms take 1.5 ms when they overlap with compute, which runs at 1/1.25 of its speed: in
    // that time, compute does 1.2 ms of its 2 ms. The remaining 0.8 ms of each of the five later layers run
    // alone; the last transfer overlaps with nothing.
    let (costs, program) = data_parallel(1e-3, (1.25, 1.5));
    let simulation = costs.price(&program).unwrap().simulate();
    close(simulation.step_time_s, 6e-3 + 2e-3 + 5.0 * (1.5e-3 + 0.8e-3) + 1e-3);
    close(simulation.ranks[0].interference_s, 5.0 * 0.3e-3);
    close(simulation.ranks[0].data_communication_s, 1e-3);
}

#[test]
fn a_message_on_its_way_is_no_bubble() {
    let (model, job) = (tiny(), Job::new(1, 128));
    let mut profile = unit_profile(&model, &job);
    for cell in &mut profile.messages {
        cell.time.median_s = Seconds(0.5e-3);
    }
    let strategy = ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 1) };
    let program = compile(&model, &job, 2, &strategy);
    let costs = CostModel::new(&profile);
    let simulation = costs.price(&program).unwrap().simulate();
    close(simulation.step_time_s, 18e-3 + 2.0 * 0.5e-3);
    // Rank 0 waits until the other has sent, after the first send/recv and 9 ms of work, and then for the
    // transfer.
    close(simulation.ranks[0].bubble_s, 9.5e-3);
    close(simulation.ranks[0].pipeline_communication_s, 0.5e-3);
    close(simulation.ranks[1].bubble_s, 3e-3 + 6.5e-3);
    close(simulation.ranks[1].pipeline_communication_s, 0.5e-3);
}

#[test]
fn a_step_frees_what_it_keeps() {
    let model = tiny();
    let job = Job::new(8, 128);
    let costs = CostModel::new(&SyntheticMachine::new(4).profile(&model, &job));
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
        for (tensor, pipeline, sequence_parallel) in
            [(1, 1, false), (2, 1, true), (2, 2, true), (1, 2, false), (2, 1, false)]
        {
            let strategy = ParallelStrategy {
                tensor,
                pipeline,
                sequence_parallel,
                recompute,
                ..ParallelStrategy::data_parallel(1, 1)
            };
            let of = |batch: u32| {
                let job = Job { global_batch: batch, ..job.clone() };
                costs.memory(&compile(&model, &job, tensor * pipeline, &strategy)).unwrap()
            };
            // If memory leaked, longer steps would have higher peaks.
            assert_eq!(of(4), of(16), "{}", strategy.label());
        }
    }
}

#[test]
fn zero_stages_need_less_and_less_memory() {
    let model = ModelSpec { hidden: 512, ffn: 1408, ..tiny() };
    let job = Job::new(8, 128);
    let costs = CostModel::new(&SyntheticMachine::new(4).profile(&model, &job));
    let strategy = |zero_stage: u8| ParallelStrategy {
        zero_stage,
        shard: if zero_stage > 0 { 4 } else { 1 },
        ..ParallelStrategy::data_parallel(4, 1)
    };
    let memory: Vec<_> = (0..4)
        .map(|zero| costs.memory(&compile(&model, &job, 4, &strategy(zero))).unwrap().remove(0))
        .collect();
    assert!(memory.windows(2).all(|pair| pair[0].total() > pair[1].total()), "{memory:#?}");
    let weights = model.total_parameters() * 4;
    assert_eq!(memory[0].weights_bytes, Bytes(weights));
    assert_eq!(memory[0].optimizer_state_bytes, Bytes(2 * weights));
    // Every layer's region divides by four, so there is no padding.
    assert_eq!(memory[1].optimizer_state_bytes, Bytes(2 * weights / 4));
    assert_eq!(memory[3].weights_bytes, Bytes(weights / 4));
}

#[test]
fn one_f_one_b_holds_at_most_p_micro_batches() {
    let (model, job) = (tiny(), Job::new(16, 128));
    let costs = CostModel::new(&SyntheticMachine::new(2).profile(&model, &job));
    let activations = |schedule, micro_batches: u32| {
        let job = Job::new(micro_batches, 128);
        let strategy = ParallelStrategy { pipeline: 2, schedule, ..ParallelStrategy::data_parallel(1, 1) };
        costs.memory(&compile(&model, &job, 2, &strategy)).unwrap()[0].activations_bytes.0
    };
    assert_eq!(activations(ScheduleKind::OneFOneB, 4), activations(ScheduleKind::OneFOneB, 16));
    let (four, eight) = (activations(ScheduleKind::GPipe, 4), activations(ScheduleKind::GPipe, 8));
    assert!(eight > 19 * four / 10, "{four} then {eight}");
}

#[test]
fn a_missing_cell_is_named_with_the_way_out() {
    let (model, job) = (tiny(), Job::new(8, 128));
    let profile = SyntheticMachine::new(1).profile(&model, &job);
    let strategy = ParallelStrategy { tensor: 2, ..ParallelStrategy::data_parallel(1, 1) };
    let program = compile(&model, &job, 2, &strategy);
    let error = CostModel::new(&profile).estimate(&program, &job, &profile.cluster).unwrap_err();
    assert_eq!(error.what, "the profile has no Forward of Embedding at tensor=2, recompute=none");
    assert!(error.hint.contains("--ranks 2"), "{}", error.hint);
}

#[test]
fn a_micro_batch_between_two_cells_is_interpolated() {
    let (model, job) = (tiny(), Job::new(12, 128));
    let mut profile = SyntheticMachine::new(1).profile(&model, &job);
    for cell in &mut profile.segments {
        cell.time.provenance = Provenance::Measured;
    }
    for cell in &mut profile.optimizer {
        (cell.update.provenance, cell.norm.provenance) = (Provenance::Measured, Provenance::Measured);
    }
    profile.step_overhead.provenance = Provenance::Measured;
    let costs = CostModel::new(&profile);
    let provenance = |micro_batch| {
        let job = Job::new(4 * micro_batch, 128);
        let program = compile(&model, &job, 1, &ParallelStrategy::data_parallel(1, micro_batch));
        assert!(!program.ranks[0].ops.iter().any(|op| matches!(op, Op::Receive(_))));
        let estimate = costs.estimate(&program, &job, &profile.cluster).unwrap();
        (estimate.provenance, estimate.step_time_s.0)
    };
    let ((two, t2), (three, t3), (four, t4)) = (provenance(2), provenance(3), provenance(4));
    assert_eq!(
        (two, three, four),
        (Provenance::Interpolated, Provenance::Interpolated, Provenance::Interpolated)
    );
    assert!(t2 < t3 && t3 < t4);
    assert_eq!(provenance(32).0, Provenance::Modelled);
}
