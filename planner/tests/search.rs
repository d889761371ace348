//! Compares the search with brute force, with other numbers of threads, and with its own plan files.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use autodist_cost_model::synthetic::SyntheticMachine;
use autodist_planner::{PlanError, Planner, SearchLimits, explain};
use autodist_program::stages;
use autodist_spec::profile::CodecCost;
use autodist_spec::{
    Alternative, Bytes, Codec, CodecProbe, Coded, Job, ModelSpec, Objective, ParallelStrategy, Plan, Profile,
    Recompute, Sample, Seconds, StopReason, catalog, parse, to_json,
};
use std::sync::atomic::{AtomicU32, Ordering};

fn model() -> ModelSpec {
    catalog::model("tiny-llama").unwrap()
}

fn machines() -> Vec<(&'static str, SyntheticMachine)> {
    let base = SyntheticMachine::new(4);
    vec![
        ("balanced", base.clone()),
        ("slow links", SyntheticMachine { bytes_per_s: 1e7, ..base.clone() }),
        ("fast links", SyntheticMachine { bytes_per_s: 1e12, latency_s: 1e-7, ..base.clone() }),
        ("long latency", SyntheticMachine { latency_s: 5e-3, ..base.clone() }),
        ("small memory", SyntheticMachine { memory_bytes: Bytes(14 << 20), ..base.clone() }),
        (
            "interference",
            SyntheticMachine { compute_slowdown: 1.8, communication_slowdown: 2.5, bytes_per_s: 1e8, ..base },
        ),
    ]
}

fn job() -> Job {
    let mut job = Job::new(8, 128);
    job.allow.bucket_bytes = vec![Bytes(1 << 18), Bytes(1 << 20), Bytes(25 << 20)];
    job
}

fn plan_with(machine: &SyntheticMachine, job: &Job, limits: SearchLimits) -> Plan {
    let model = model();
    let profile = machine.profile(&model, job);
    Planner::new(&model, &profile.cluster, job, &profile).limits(limits).plan().unwrap()
}

#[test]
fn brute_force_agrees_with_the_search() {
    for (name, machine) in machines() {
        for gpt in [false, true] {
            let model = if gpt { catalog::model("tiny-gpt").unwrap() } else { model() };
            let job = job();
            let profile = machine.profile(&model, &job);
            let planner = Planner::new(&model, &profile.cluster, &job, &profile);
            let all = planner.feasible().unwrap();
            let plan = planner.limits(SearchLimits { top: 4, ..SearchLimits::default() }).plan().unwrap();
            assert_eq!(plan.strategy, all[0].strategy, "{name}");
            let time = |one: &Alternative| one.estimate.step_time_s.0;
            let least = all.iter().map(time).fold(f64::INFINITY, f64::min);
            // The choice may be a simpler plan that is as fast; the bound is that of the fastest.
            assert!(time(&all[0]) <= 1.01 * least, "{name}: {} {least}", time(&all[0]));
            assert!((plan.search.lower_bound_s.0 / least - 1.0).abs() < 1e-9, "{name}");
            assert!((plan.search.gap - (time(&all[0]) / least - 1.0)).abs() < 1e-9, "{name}");
            assert_eq!(
                (plan.stages, plan.estimate),
                (all[0].stages.clone(), all[0].estimate.clone()),
                "{name}"
            );
            assert!(all[1..].windows(2).all(|pair| time(&pair[0]) <= time(&pair[1]) + 1e-9), "{name}");
            // The runners-up are the best that differ in more than bucket size.
            let kind = |s: &ParallelStrategy| ParallelStrategy { bucket_bytes: Bytes(1), ..s.clone() };
            let mut kinds = Vec::new();
            for a in &all {
                let of = (kind(&a.strategy), a.stages.clone());
                if !kinds.contains(&of) {
                    kinds.push(of);
                }
            }
            let found: Vec<_> =
                plan.alternatives.iter().map(|a| (kind(&a.strategy), a.stages.clone())).collect();
            assert_eq!(found, kinds[1..4], "{name}");
            let search = &plan.search;
            assert_eq!(search.stop_reason, StopReason::Optimal);
            assert_eq!(search.explored, search.pruned + search.simulated);
            assert_eq!(
                search.pruned,
                plan.rejected.iter().map(|r| r.count).sum::<u64>(),
                "{name}: {:#?}",
                plan.rejected
            );
            assert!(
                search.simulated < all.len() as u64 / 2,
                "{name}: {} of {} simulated",
                search.simulated,
                all.len()
            );
        }
    }
}

#[test]
fn threads_change_no_byte_and_a_file_changes_nothing() {
    for (name, machine) in machines() {
        let plans = [1, 4]
            .map(|threads| plan_with(&machine, &job(), SearchLimits { threads, ..SearchLimits::default() }));
        let texts = [to_json(&plans[0]), to_json(&plans[1])];
        assert_eq!(texts[0], texts[1], "{name}");
        let read: Plan = parse::json("plan.json", texts[0].as_bytes()).unwrap();
        assert_eq!(read, plans[0]);
    }
}

#[test]
fn a_limit_says_how_far_from_optimal_it_can_be() {
    let machine = SyntheticMachine::new(4);
    let best = plan_with(&machine, &job(), SearchLimits::default());
    let few = plan_with(
        &machine,
        &job(),
        SearchLimits { max_simulations: Some(6), top: 1, ..SearchLimits::default() },
    );
    assert_eq!(few.search.stop_reason, StopReason::SimulationLimit);
    assert!(few.search.simulated <= 6);
    assert_eq!(few.search.pruned, few.rejected.iter().map(|r| r.count).sum::<u64>());
    assert!(few.rejected.iter().any(|r| r.rule == "not explored before the limit"), "{:#?}", few.rejected);
    let floor = few.estimate.step_time_s / (1.0 + few.search.gap);
    assert!(floor.0 <= best.estimate.step_time_s.0 * (1.0 + 1e-9));
    let asked = AtomicU32::new(0);
    let is_over = || asked.fetch_add(1, Ordering::Relaxed) > 0;
    let limits = SearchLimits { deadline: Some(&is_over), threads: 1, ..SearchLimits::default() };
    let machine = SyntheticMachine { bytes_per_s: 1e7, ..machine };
    assert_eq!(plan_with(&machine, &job(), limits).search.stop_reason, StopReason::TimeLimit);
}

/// The best plan if only data parallelism with micro-batch 8 is allowed, by device memory.
fn shrinking(memory: u64, change: impl FnOnce(&mut Job)) -> Result<Plan, String> {
    let model = model();
    let mut job = Job::new(16, 128);
    (job.allow.data, job.allow.micro_batch) = (Some(vec![2]), Some(vec![8]));
    change(&mut job);
    let machine = SyntheticMachine { memory_bytes: Bytes(memory << 20), ..SyntheticMachine::new(2) };
    let profile = machine.profile(&model, &job);
    Planner::new(&model, &profile.cluster, &job, &profile).plan().map_err(|error| error.to_string())
}

#[test]
fn scarce_memory_is_met_by_recomputation_and_sharding() {
    let no_zero = |job: &mut Job| job.allow.zero_stage = vec![0];
    let label = |memory| shrinking(memory, no_zero).unwrap();
    assert_eq!(label(200).strategy.recompute, Recompute::None);
    let mixed = label(36);
    assert_ne!(mixed.strategy.recompute, Recompute::None);
    let recomputed = mixed.stages[0].recompute.iter().filter(|r| **r != Recompute::None).count();
    assert!((1..4).contains(&recomputed), "{recomputed} of 4 blocks: {}", mixed.strategy.label());
    let full = label(25);
    assert_eq!(full.strategy.recompute, Recompute::Full);
    assert!(full.estimate.step_time_s > mixed.estimate.step_time_s);
    // Without recomputation, sharding is used.
    let sharded = shrinking(20, |job| job.allow.micro_batch = None).unwrap();
    assert!(
        sharded.strategy.zero_stage > 0 || sharded.strategy.micro_batch < 8,
        "{}",
        sharded.strategy.label()
    );
    let zero = shrinking(44, |job| job.allow.recompute = vec![Recompute::None]).unwrap();
    assert!(zero.strategy.zero_stage > 0, "{}", zero.strategy.label());
}

#[test]
fn a_refusal_names_the_closest_plan_and_the_way_out() {
    let refused = shrinking(24, |job| {
        job.allow.zero_stage = vec![0, 1];
        job.allow.recompute = vec![Recompute::None];
    });
    assert_eq!(
        refused.unwrap_err(),
        "no plan fits `tiny-llama` on `2 synthetic devices`\n  \
         ├─ 2 of 2 strategies: memory: dp2 tp1 pp1 mb8 zero1 needs 41.8 MiB on pipeline rank 0; 23.0 MiB is usable \
         (24.0 MiB less a 4 % reserve); activations are 30.0 MiB of that\n  \
         ╰─ closest strategy: dp2 tp1 pp1 mb8 zero1, short by 18.8 MiB\n\
         hint: allow `recompute = \"full\"`, or allow `zero_stage = 3`, or lower `micro_batch` to 4, or remove the restrictions of \
         degrees (`allow` in the job file, or flags such as `--tp`)"
    );
    let refused = shrinking(1000, |job| job.global_batch = 7).unwrap_err();
    assert!(refused.contains("16 sequences, which does not divide the global batch of 7"), "{refused}");
}

#[test]
fn a_given_way_is_estimated_or_refused() {
    let (model, job) = (model(), Job::new(8, 128));
    let profile = SyntheticMachine::new(4).profile(&model, &job);
    let planner = Planner::new(&model, &profile.cluster, &job, &profile);
    let strategy = ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(2, 2) };
    let plan = planner.given(&strategy, None).unwrap();
    assert_eq!((plan.search.stop_reason, plan.strategy.clone()), (StopReason::Given, strategy));
    let again: Plan = parse::json("plan.json", to_json(&plan).as_bytes()).unwrap();
    assert_eq!(again, plan);
    let illegal = planner.given(&ParallelStrategy::data_parallel(3, 2), None).unwrap_err();
    assert!(matches!(illegal, PlanError::Illegal(_)), "{illegal}");
}

#[test]
fn an_explanation_says_what_binds_and_what_would_help() {
    let machine = SyntheticMachine { bytes_per_s: 3e7, ..SyntheticMachine::new(4) };
    let (model, job) = (model(), job());
    let profile = machine.profile(&model, &job);
    let planner = Planner::new(&model, &profile.cluster, &job, &profile);
    let plan = planner.plan().unwrap();
    let other = ParallelStrategy { tensor: 2, ..ParallelStrategy::data_parallel(2, 2) };
    let stages = stages::even(&model, &other);
    let explanation = explain(&planner, &plan, Some((&other, &stages))).unwrap();
    assert_eq!(explanation.what_ifs.len(), 3);
    assert!(explanation.what_ifs.iter().all(|what_if| what_if.speedup >= 1.0 - 1e-9), "{explanation}");
    let text = explanation.to_string();
    for expected in
        ["the largest part is", "why not", "slower: ", "against dp2 tp2 pp1 mb2", "twice the bandwidth"]
    {
        assert!(text.contains(expected), "{text}");
    }
    let given = planner.given(&other, None).unwrap();
    let explanation = explain(&planner, &given, None).unwrap();
    assert!(explanation.what_ifs.iter().all(|what_if| what_if.same_plan));
}

/// A profile of slow links that has the times of a codec.
fn with_codec(model: &ModelSpec, job: &Job) -> Profile {
    let machine = SyntheticMachine { bytes_per_s: 1e7, ..SyntheticMachine::new(4) };
    let mut profile = machine.profile(model, job);
    let some = profile.segments[0].time;
    let cost = |coded: Coded, group: u32, elements: u64| CodecCost {
        codec: Codec::Bf16,
        coded,
        group,
        elements,
        time: Sample { median_s: Seconds(1e-10 * elements as f64), ..some },
    };
    for coded in [Coded::Gradients, Coded::GradientShards] {
        for group in [2, 4] {
            profile.codecs.extend([0, 1 << 24].map(|elements| cost(coded, group, elements)));
        }
    }
    profile
}

#[test]
fn a_codec_is_an_option_until_a_probe_has_measured_it() {
    let mut job = job();
    // Data parallelism only, so that gradients are what takes time.
    (job.allow.tensor, job.allow.pipeline) = (Some(vec![1]), Some(vec![1]));
    let model = model();
    let profile = with_codec(&model, &job);
    let exact = Planner::new(&model, &profile.cluster, &job, &profile).plan().unwrap();
    job.allow.codecs = vec![Codec::None, Codec::Bf16];
    let plan = |objective: Objective, probes: &[CodecProbe]| {
        let job = Job { objective, ..job.clone() };
        Planner::new(&model, &profile.cluster, &job, &profile).probes(probes).plan().unwrap()
    };
    for objective in [Objective::TimeToLoss, Objective::StepTime] {
        let plan = plan(objective, &[]);
        assert_eq!(
            (&plan.strategy, &plan.estimate),
            (&exact.strategy, &exact.estimate),
            "the prior has not won"
        );
        // The bound is that of plans whose cost in steps is known.
        assert_eq!(plan.search.lower_bound_s, exact.search.lower_bound_s);
        let lossy: Vec<bool> = plan.alternatives.iter().map(|other| other.estimate.is_unverified()).collect();
        let first = lossy.iter().position(|lossy| *lossy).unwrap();
        assert!(lossy[first..].iter().all(|lossy| *lossy), "they are last: {lossy:?}");
        let option = plan.alternatives.last().unwrap();
        assert!(option.estimate.step_time_s < plan.estimate.step_time_s);
        assert!(
            option.reason.contains("nobody measured: verify it with `validate --probe`"),
            "{}",
            option.reason
        );
    }
    let probe = |slowdown| CodecProbe {
        codec: Codec::Bf16,
        coded: Coded::Gradients,
        steps: 100,
        exact_loss: 1.0,
        loss: 1.0,
        slowdown,
        reached: true,
        noise: Some(0.2),
    };
    // Fewer steps are noise: the step time decides.
    let measured = plan(Objective::TimeToLoss, &[probe(0.82)]);
    let slowdown = measured.estimate.slowdown.unwrap();
    assert_eq!((slowdown.factor, slowdown.noise), (1.0, Some(0.2)));
    assert_eq!(measured.search.merit(), measured.estimate.step_time_s);
    let dear = plan(Objective::TimeToLoss, &[probe(3.0)]);
    assert_eq!(dear.strategy, exact.strategy);
    assert_eq!(plan(Objective::StepTime, &[probe(3.0)]).strategy, measured.strategy);
}
