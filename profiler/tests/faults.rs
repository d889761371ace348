//! Faulty measurements: the profile detects and reports them, measures again, and no plan uses those that
//! stay wrong.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use autodist_planner::Planner;
use autodist_profiler::{covers, doubts, judge};
use autodist_spec::{
    Collective, DoubtKind, DoubtedCell, Pass, Profile, Recompute, Sample, Seconds, Segment, SegmentCost,
    parse, to_json,
};
use lab::{Asked, Lab, sound, sound_links};

/// Noise of every time.
const NOISE: f64 = 0.1;
/// Tolerance of a median of noisy times; the cells with fewest times have six.
const OFF: f64 = 0.2;

fn measured_again(profile: &Profile) -> Vec<&String> {
    profile.environment.warnings.iter().filter(|line| line.starts_with("measured again")).collect()
}

/// The fault was detected and reported, the probe measured again, and the profile is as if there had been no
/// fault.
fn assert_mended(lab: &Lab, profile: &Profile) {
    let again = measured_again(profile);
    assert!(again.iter().any(|line| line.contains("tp2 sp mb2, recompute none")), "{again:?}");
    assert!(lab.runs_of_victim() >= 2, "{} runs", lab.runs_of_victim());
    assert_eq!(profile.doubts, []);
    lab.assert_true(profile, OFF);
}

#[test]
fn noise_alone_gives_no_doubts_and_times_are_found_again() {
    for seed in 0..8 {
        let mut lab = Lab::new(seed, NOISE);
        let profile = lab.profile(None, &sound, &sound_links);
        assert_eq!(profile.doubts, [], "seed {seed}");
        assert_eq!(measured_again(&profile), [""; 0], "seed {seed}");
        assert_eq!((lab.probes_run(), lab.links_run()), (lab.probes(), 1), "seed {seed}");
        assert_eq!(profile.repeatability, None, "one round repeats nothing");
        assert!(covers(&profile, &lab.request));
        lab.assert_true(&profile, OFF);
    }
    let mut lab = Lab::of_rounds(8, NOISE);
    let profile = lab.profile(None, &sound, &sound_links);
    assert_eq!((profile.doubts.as_slice(), lab.probes_run()), (&[][..], 6 * lab.probes()));
    let differ = profile.repeatability.unwrap();
    assert!(differ > 0.0 && differ < NOISE, "{differ}");
    lab.assert_true(&profile, 0.08);
}

#[test]
fn a_machine_that_runs_faster_and_slower_is_corrected_without_a_doubt() {
    for seed in 0..4 {
        let mut lab = Lab::new(seed, NOISE);
        let moods = |asked: &Asked| {
            let speed = [1.0, 1.25, 0.85, 1.1][asked.count % 4];
            (speed, speed)
        };
        let profile = lab.profile(None, &moods, &sound_links);
        assert_eq!((profile.doubts.as_slice(), measured_again(&profile).len()), (&[][..], 0), "seed {seed}");
        // All times are relative to the same usual speed.
        let ratio = |cell: &SegmentCost| {
            let truth = lab.truth.segments.iter().find(|c| DoubtedCell::from(*c) == DoubtedCell::from(cell));
            cell.time.median_s / truth.unwrap().time.median_s
        };
        let ratios = Sample::of(&profile.segments.iter().map(ratio).collect::<Vec<_>>());
        let usual = ratios.median_s.0;
        assert!(profile.segments.iter().all(|cell| (ratio(cell) / usual - 1.0).abs() < 0.25));
    }
}

#[test]
fn cells_that_were_too_fast_in_one_probe_are_measured_again() {
    for factor in [7.0, 3.0] {
        let mut lab = Lab::new(1, NOISE);
        let fast = |asked: &Asked| {
            if asked.is_victim() && asked.before == 0 { (1.0 / factor, 1.0) } else { (1.0, 1.0) }
        };
        let profile = lab.profile(None, &fast, &sound_links);
        assert_mended(&lab, &profile);
    }
}

#[test]
fn cells_that_were_too_slow_in_one_probe_are_measured_again() {
    let mut lab = Lab::new(2, NOISE);
    let slow = |asked: &Asked| if asked.is_victim() && asked.before == 0 { (4.0, 1.0) } else { (1.0, 1.0) };
    let profile = lab.profile(None, &slow, &sound_links);
    assert_mended(&lab, &profile);
}

#[test]
fn one_slow_reference_changes_nothing() {
    let mut lab = Lab::new(3, NOISE);
    let slow = |asked: &Asked| if asked.rank == 1 && asked.step == 1 { (1.0, 7.0) } else { (1.0, 1.0) };
    let profile = lab.profile(None, &slow, &sound_links);
    assert_eq!(profile.doubts, []);
    lab.assert_true(&profile, OFF);
}

#[test]
fn a_probe_whose_references_were_all_slow_is_measured_again() {
    let mut lab = Lab::new(4, NOISE);
    let slow = |asked: &Asked| if asked.is_victim() && asked.before == 0 { (1.0, 7.0) } else { (1.0, 1.0) };
    let profile = lab.profile(None, &slow, &sound_links);
    assert_mended(&lab, &profile);
    assert!(measured_again(&profile).iter().any(|line| line.contains("reference benchmark")));
}

#[test]
fn a_slow_moment_that_the_references_saw_is_no_doubt_where_the_cells_agree() {
    // The machine is slow whenever this probe runs: the correction is large, and right.
    let mut lab = Lab::new(5, NOISE);
    let slow = |asked: &Asked| if asked.is_victim() { (5.0, 5.0) } else { (1.0, 1.0) };
    let profile = lab.profile(None, &slow, &sound_links);
    assert!(lab.runs_of_victim() > 1);
    assert_eq!(profile.doubts, []);
    lab.assert_true(&profile, OFF);
}

#[test]
fn a_step_that_stalled_changes_nothing() {
    let mut lab = Lab::new(6, NOISE);
    let stall = |asked: &Asked| {
        if asked.is_victim() && asked.rank == 0 && asked.step == 2 { (20.0, 1.0) } else { (1.0, 1.0) }
    };
    let profile = lab.profile(None, &stall, &sound_links);
    assert_eq!(profile.doubts, []);
    lab.assert_true(&profile, OFF);
}

#[test]
fn a_rank_that_was_slow_is_noticed_whether_its_reference_saw_it_or_not() {
    for reference in [1.0, 3.0] {
        let mut lab = Lab::new(7, NOISE);
        let slow = |asked: &Asked| {
            if asked.is_victim() && asked.rank == 1 && asked.before == 0 {
                (3.0, reference)
            } else {
                (1.0, 1.0)
            }
        };
        let profile = lab.profile(None, &slow, &sound_links);
        assert_mended(&lab, &profile);
    }
}

#[test]
fn a_round_that_was_slow_as_a_whole_does_not_count() {
    let probes = {
        let mut lab = Lab::new(8, 0.0);
        lab.profile(None, &sound, &sound_links);
        lab.probes()
    };
    for reference in [1.0, 3.0] {
        let mut lab = Lab::of_rounds(8, NOISE);
        let slow = |asked: &Asked| if asked.count < probes { (3.0, reference) } else { (1.0, 1.0) };
        let profile = lab.profile(None, &slow, &sound_links);
        assert_eq!(profile.doubts, [], "reference {reference}");
        // Faults that the reference benchmarks correct need no repetition.
        assert!(reference > 1.0 || !measured_again(&profile).is_empty());
        lab.assert_true(&profile, 0.1);
    }
}

#[test]
fn what_stays_wrong_is_thrown_out_by_name_and_no_plan_rests_on_it() {
    for (factor, reference, expected) in
        [(1.0 / 7.0, 1.0, DoubtKind::Rate), (1.0, 7.0, DoubtKind::Rate), (2.5, 1.0, DoubtKind::Policy)]
    {
        let mut lab = Lab::new(9, NOISE);
        let wrong = |asked: &Asked| if asked.is_victim() { (factor, reference) } else { (1.0, 1.0) };
        let profile = lab.profile(None, &wrong, &sound_links);
        // Once in its turn, and once more: the budget is spent.
        assert_eq!(lab.runs_of_victim(), 2);
        let of_victim = |cell: &DoubtedCell| {
            matches!(
                cell,
                DoubtedCell::Segment {
                    tensor: 2,
                    sequence_parallel: true,
                    micro_batch: 2,
                    recompute: Recompute::None,
                    ..
                }
            )
        };
        assert!(!profile.doubts.is_empty() && profile.doubts.iter().all(|doubt| !doubt.used));
        assert!(profile.doubts.iter().all(|doubt| of_victim(&doubt.cell)), "{:#?}", profile.doubts);
        let mlp = profile.doubts.iter().find(|doubt| {
            matches!(doubt.cell, DoubtedCell::Segment { segment: Segment::Mlp, pass: Pass::Forward, .. })
        });
        let mlp = mlp.unwrap();
        assert_eq!(mlp.kind, expected, "{}", mlp.reason);
        assert!(
            ["ms", "µs"].iter().any(|unit| mlp.reason.contains(unit)) && mlp.figure > 0.0 && mlp.limit > 0.0,
            "{}",
            mlp.reason
        );
        assert!(!covers(&profile, &lab.request), "it is to be measured again");

        let (plan, truly) = lab.plan(&profile);
        let (best, least) = lab.plan(&lab.truth);
        let s = &plan.strategy;
        assert!((s.tensor, s.sequence_parallel, s.micro_batch, s.recompute) != (2, true, 2, Recompute::None));
        assert!(truly.0 <= 1.05 * least.0, "{} against {}", s.label(), best.strategy.label());
        let refused = plan
            .rejected
            .iter()
            .find(|rejection| rejection.rule == "based on a doubtful measurement")
            .unwrap();
        assert!(refused.count > 0 && refused.example.contains("is doubtful"), "{refused:?}");

        // The document has the same content when it is read again.
        let mut read: Profile = parse::json("profile.json", to_json(&profile).as_bytes()).unwrap();
        judge(&mut read);
        assert_eq!(read, profile);
        assert_eq!(read.fingerprint(), Profile { doubts: Vec::new(), ..profile }.fingerprint());
    }
}

/// A profile without checks: true times, but those of one probe too fast by `factor`.
fn written(lab: &Lab, factor: f64) -> Profile {
    let mut own = Lab::new(10, NOISE);
    own.request = lab.request.clone();
    let mut profile = own.profile(None, &sound, &sound_links);
    for cell in profile.segments.iter_mut().filter(|cell| {
        (cell.tensor, cell.sequence_parallel, cell.micro_batch) == (2, true, 2)
            && cell.recompute == Recompute::None
            && matches!(
                cell.segment,
                Segment::Attention | Segment::Mlp | Segment::AttentionNorm | Segment::MlpNorm
            )
    }) {
        for part in [&mut cell.time.median_s, &mut cell.time.low_s, &mut cell.time.high_s] {
            *part = *part / factor;
        }
    }
    profile
}

#[test]
fn an_old_profile_in_doubt_is_not_reused_but_gone_on_with() {
    let mut lab = Lab::new(11, NOISE);
    let bad = written(&lab, 7.0);
    assert!(!doubts(&bad).is_empty());
    assert!(!covers(&bad, &lab.request));
    assert!(covers(&written(&lab, 1.0), &lab.request));
    let profile = lab.profile(Some(bad), &sound, &sound_links);
    assert_eq!(lab.probes(), 1, "only the probe in doubt is run");
    assert_eq!(lab.runs_of_victim(), 1);
    assert_eq!((lab.links_run(), profile.doubts.as_slice()), (0, &[][..]));
    lab.assert_true(&profile, OFF);
}

#[test]
fn a_cell_is_used_all_the_same_where_nothing_else_is_left() {
    let mut lab = Lab::new(12, 0.0);
    lab.request.job.allow.tensor = Some(vec![1]);
    lab.request.job.allow.micro_batch = Some(vec![2]);
    lab.request.job.allow.recompute = vec![Recompute::None];
    let profile = lab.profile(None, &|_: &Asked| (1.0 / 7.0, 1.0), &sound_links);
    assert!(
        !profile.doubts.is_empty() && profile.doubts.iter().all(|doubt| doubt.used),
        "{:?}",
        profile.doubts
    );
    assert!(Planner::new(&lab.request.model, &lab.truth.cluster, &lab.request.job, &profile).plan().is_ok());
}

#[test]
fn a_collective_that_cannot_be_so_fast_is_measured_again_or_left_out() {
    let largest = |lab: &Lab| lab.truth.model.total_parameters() as usize * 4;
    for kind in [Collective::AllReduce, Collective::ReduceScatter] {
        let mut lab = Lab::new(13, NOISE);
        let most = largest(&lab);
        let hit = move |of: Collective, bytes: usize| of == kind && bytes >= most;
        let once = move |turn: usize, of: Collective, bytes: usize| {
            if turn == 0 && hit(of, bytes) { 1.0 / 7.0 } else { 1.0 }
        };
        let profile = lab.profile(None, &sound, &once);
        assert_eq!((lab.links_run(), profile.doubts.as_slice()), (2, &[][..]), "{kind:?}");
        assert!(measured_again(&profile).iter().any(|line| line.contains(kind.name())));

        let mut lab = Lab::new(13, NOISE);
        let always =
            move |_: usize, of: Collective, bytes: usize| if hit(of, bytes) { 1.0 / 7.0 } else { 1.0 };
        let profile = lab.profile(None, &sound, &always);
        assert_eq!(lab.links_run(), 2);
        let [doubt] = profile.doubts.as_slice() else { panic!("{:?}", profile.doubts) };
        assert!(matches!(doubt.cell, DoubtedCell::Collective { kind: of, .. } if of == kind), "{doubt:?}");
        assert_eq!((doubt.kind, doubt.used), (DoubtKind::Collective, false));
    }
}

#[test]
fn a_wide_interval_lowers_a_plans_rank() {
    let lab = Lab::new(14, 0.0);
    let widened = |strategy: &autodist_spec::ParallelStrategy, high: f64| {
        let mut profile = lab.truth.clone();
        for cell in profile.segments.iter_mut().filter(|cell| {
            (cell.tensor, cell.sequence_parallel) == (strategy.tensor, strategy.sequence_parallel)
        }) {
            cell.time.low_s = cell.time.median_s / high;
            cell.time.high_s = cell.time.median_s * high;
        }
        profile
    };
    let (best, _) = lab.plan(&lab.truth);
    let (same, _) = lab.plan(&widened(&best.strategy, 1.1));
    assert_eq!((&same.strategy, same.estimate.caution_s), (&best.strategy, Seconds::ZERO));
    let profile = widened(&best.strategy, 3.0);
    let (other, _) = lab.plan(&profile);
    let key = |s: &autodist_spec::ParallelStrategy| (s.tensor, s.sequence_parallel);
    assert_ne!(key(&other.strategy), key(&best.strategy));
    assert_eq!(other.search.gap, 0.0);
    let planner = Planner::new(&lab.request.model, &lab.truth.cluster, &lab.request.job, &profile);
    let given = planner.given(&best.strategy, Some(&best.stages)).unwrap();
    assert!(given.estimate.caution_s > best.estimate.step_time_s, "{}", given.estimate.caution_s);
    assert!(given.estimate.lower_bound_s <= given.estimate.step_time_s);
}
