//! Laws that hold for every program.

use autodist_cost_model::{CostModel, Outline, in_flight, synthetic::SyntheticMachine};
use autodist_program::schedule::Extent;
use autodist_program::{Program, stages};
use autodist_spec::{Bytes, Job, ParallelStrategy, Recompute, ScheduleKind, catalog};
use proptest::prelude::*;

fn strategies() -> impl Strategy<Value = ParallelStrategy> {
    let degrees = (0..3_u32, 0..2_u32, 0..3_u32, 0..3_u32, 0..4_u8, 0..3_u32);
    let switches = (any::<bool>(), 0..3_u8, 0..3_u8, prop_oneof![Just(4_u64), Just(1 << 19), Just(1 << 30)]);
    (degrees, switches).prop_map(|((d, t, p, mb, zero, shard), (sp, recompute, schedule, bucket))| {
        let (data, tensor, pipeline) = (1 << d, 1 << t, [1, 2, 3][p as usize]);
        let zero = if data > 1 { zero } else { 0 };
        let schedule = match (pipeline, schedule) {
            (1, _) | (_, 0) => ScheduleKind::OneFOneB,
            (_, 1) => ScheduleKind::GPipe,
            _ => ScheduleKind::Interleaved,
        };
        ParallelStrategy {
            tensor,
            pipeline,
            zero_stage: zero,
            shard: if zero > 0 { data >> shard.min(d - 1) } else { 1 },
            virtual_stages: if schedule == ScheduleKind::Interleaved { 2 } else { 1 },
            sequence_parallel: sp && tensor > 1,
            recompute: [Recompute::None, Recompute::Selective, Recompute::Full][recompute as usize],
            schedule,
            bucket_bytes: Bytes(bucket),
            ..ParallelStrategy::data_parallel(data, 1 << mb)
        }
    })
}

fn machines() -> impl Strategy<Value = SyntheticMachine> {
    // A host that takes no time, or up to ten times as long as a small segment.
    let hosts = prop_oneof![Just(0.0), (-6.0..-2.0_f64).prop_map(|exponent| 10_f64.powf(exponent))];
    (7.0..11.0_f64, 5.0..11.0_f64, -7.0..-3.0_f64, 1.0..2.0_f64, 1.0..2.0_f64, hosts).prop_map(
        |(speed, rate, latency, c, t, host_s)| SyntheticMachine {
            host_s,
            flops_per_s: 10_f64.powf(speed),
            bytes_per_s: 10_f64.powf(rate),
            latency_s: 10_f64.powf(latency),
            compute_slowdown: c,
            communication_slowdown: t,
            ..SyntheticMachine::new(48)
        },
    )
}

fn program(model: &str, strategy: &ParallelStrategy) -> Program {
    let model = catalog::model(model).unwrap();
    let job = Job::new(96, 128);
    let stages = stages::even(&model, strategy);
    Program::compile(&model, &job, strategy.devices() as u32, strategy, &stages).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn breakdowns_sum_and_bounds_bound(strategy in strategies(), machine in machines(), tied in any::<bool>()) {
        let program = program(if tied { "tiny-gpt" } else { "tiny-llama" }, &strategy);
        let job = Job::new(96, 128);
        let profile = machine.profile(&program.model, &job);
        let costs = CostModel::new(&profile);
        let estimate = costs.estimate(&program, &job, &profile.cluster).unwrap();
        let step = estimate.step_time_s;
        for stage in &estimate.stages {
            prop_assert!((stage.cost.total() / step - 1.0).abs() < 1e-9, "{:?} against {step}", stage.cost);
            prop_assert!(stage.cost.parts().iter().all(|(_, part)| part.0 >= -1e-12), "{:?}", stage.cost);
            prop_assert!(stage.memory.total() <= estimate.peak_memory_bytes);
        }
        prop_assert!(estimate.lower_bound_s <= step, "{} above {step}", estimate.lower_bound_s);
        let fast_links = machine.bytes_per_s > 1e9 && machine.latency_s < 1e-5;
        prop_assert!(!fast_links || estimate.lower_bound_s.0 > 0.4 * step.0, "{} is far below {step}", estimate.lower_bound_s);
        prop_assert_eq!(estimate.memory.total(), estimate.peak_memory_bytes);
        let layers = costs.layer_costs(&program.model, &job, &strategy).unwrap();
        let outline = Outline::new(&program.model, &strategy, &program.stages, &layers, &job);
        let quick = costs.outline_bound(&outline, &program.model, &strategy, program.micro_batches).unwrap();
        prop_assert!(quick <= estimate.lower_bound_s, "{quick} above {}", estimate.lower_bound_s);
        let floors = outline.memory_floor(&job, &strategy, costs.parameter_bytes(&strategy), &in_flight(&strategy, program.micro_batches));
        let floor = floors[0].max(floors[1]);
        prop_assert!(floor <= estimate.peak_memory_bytes.0, "{floor} above {}", estimate.peak_memory_bytes.0);
        let devices = strategy.devices() as u32;
        let period = Program::compile_extent(Extent::Period, &program.model, &job, devices, &strategy, &program.stages).unwrap();
        prop_assert_eq!(costs.memory(&period).unwrap(), costs.memory(&program).unwrap());
        prop_assert_eq!(costs.lower_bound(&period).unwrap(), estimate.lower_bound_s);
        let timeline = costs.timeline(&program).unwrap();
        prop_assert!(timeline.iter().all(|event| event.start_s <= event.end_s && event.end_s <= step));
    }

    #[test]
    fn more_bandwidth_is_never_slower(strategy in strategies(), machine in machines(), factor in 1.0..8.0_f64) {
        let program = program("tiny-llama", &strategy);
        let job = Job::new(96, 128);
        let step = |machine: &SyntheticMachine| {
            let profile = machine.profile(&program.model, &job);
            CostModel::new(&profile).price(&program).unwrap().simulate().step_time_s.0
        };
        let faster = SyntheticMachine { bytes_per_s: machine.bytes_per_s * factor, ..machine.clone() };
        prop_assert!(step(&faster) <= step(&machine) * (1.0 + 1e-9));
    }
}
