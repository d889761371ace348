//! Compares measured step times with predictions.

use crate::{agreement, gains, verdict};
use autodist_spec::profile::Sample;
use autodist_spec::run::{FailedRun, Measured, StepRecord, ValidatedRun};
use autodist_spec::strategy::label;
use autodist_spec::{Alternative, Plan, RunRecord, SCHEMA_VERSION, Validation};

/// The steps after the warm-up.
pub fn measured_steps(record: &RunRecord) -> &[StepRecord] {
    // A long record does not contain every step.
    let first = record.steps.iter().position(|step| step.step >= record.warmup_steps);
    &record.steps[first.unwrap_or(record.steps.len())..]
}

/// Step times at the machine speed at which the reference benchmark takes `reference` seconds, and the run's
/// speed relative to it. The steps of a round are consecutive and share one speed.
fn adjusted(record: &RunRecord, reference: f64, per_round: usize) -> (Sample, f64) {
    let steps = measured_steps(record);
    let of = |steps: &[StepRecord]| {
        Sample::of(&steps.iter().map(|s| s.reference_s.0).collect::<Vec<_>>()).median_s.0
    };
    if reference <= 0.0 || of(steps) <= 0.0 {
        return (record.step_time, 1.0);
    }
    let times = steps.chunks(per_round.max(1)).flat_map(|round| {
        let speed = reference / of(round);
        round.iter().map(move |s| s.time_s.0 * speed)
    });
    (Sample::of(&times.collect::<Vec<_>>()), reference / of(steps))
}

/// Compares every record with its candidate's prediction; `per_round` steps of a record are consecutive.
pub fn compare(
    plan: &Plan,
    candidates: &[Alternative],
    records: Vec<Result<RunRecord, String>>,
    per_round: usize,
) -> (Validation, Vec<RunRecord>) {
    // Between machines, steps wait for links, which do not slow down with a core; and a core that has waited
    // is not immediately at full speed. Such steps are not adjusted.
    let of_profile = plan.cost_source.profile().map_or(0.0, |profile| profile.reference_s.0);
    let reference = if plan.cluster.node_count() > 1 { 0.0 } else { of_profile };
    let at_profile_speed = |record: &RunRecord| adjusted(record, reference, per_round);
    let best =
        records.iter().flatten().map(|r| at_profile_speed(r).0.median_s.0).fold(f64::INFINITY, f64::min);
    let ran_first = records.first().is_some_and(Result::is_ok);
    let (mut runs, mut kept, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (candidate, record) in candidates.iter().zip(records) {
        let label = label(&candidate.strategy, &candidate.stages);
        match record {
            Err(reason) => failed.push(FailedRun { label, reason }),
            Ok(record) => {
                let time = record.step_time;
                let (at_speed, machine_speed) = at_profile_speed(&record);
                let peak = record.peak_memory();
                let predicted = &candidate.estimate;
                let measured = Measured {
                    step_time_s: time.median_s,
                    step_time_spread_s: (time.high_s - time.low_s) / 2.0,
                    machine_speed,
                    adjusted_step_time_s: at_speed.median_s,
                    adjusted_step_time_spread_s: (at_speed.high_s - at_speed.low_s) / 2.0,
                    peak_memory_bytes: peak,
                    final_loss: record
                        .rounds()
                        .next()
                        .and_then(|first| first.last())
                        .map_or(f64::NAN, |s| s.loss),
                    steps: time.count,
                };
                let bar = verdict::bar(plan, predicted, &record, &measured);
                // Times of another engine do not validate the prediction.
                let same_engine = record.environment.engine == plan.cost_source.engine();
                let judged = verdict::of_prediction(predicted.step_time_s, bar, &measured);
                runs.push(ValidatedRun {
                    label,
                    strategy: candidate.strategy.clone(),
                    verdict: same_engine.then_some(judged),
                    bar_s: bar,
                    measured,
                    predicted: predicted.clone(),
                    step_time_error: predicted.step_time_s / time.median_s - 1.0,
                    adjusted_error: predicted.step_time_s / at_speed.median_s - 1.0,
                    peak_memory_error: predicted.peak_memory_bytes.as_f64() / peak.as_f64().max(1.0) - 1.0,
                    regret: at_speed.median_s.0 / best - 1.0,
                });
                kept.push(record);
            }
        }
    }
    let median = |of: fn(&ValidatedRun) -> f64| {
        Sample::of(&runs.iter().map(|r| of(r).abs()).collect::<Vec<_>>()).median_s.0
    };
    // The choice is the first candidate; if it did not run, it cannot be judged.
    let chosen = runs.first().filter(|_| ran_first);
    let beaten_by = chosen
        .filter(|c| c.verdict.is_some())
        .and_then(|choice| verdict::beats(plan.job.objective, choice, &runs));
    let validation = Validation {
        schema_version: SCHEMA_VERSION,
        verdict: chosen.and_then(|choice| verdict::of_choice(plan.job.objective, choice, &runs)),
        beaten_by: beaten_by.map(|run| run.label.clone()),
        median_error: median(|r| r.step_time_error),
        median_adjusted_error: median(|r| r.adjusted_error),
        regret: chosen.map(|choice| choice.regret),
        agreement: agreement::of(plan, &runs),
        gains: gains::of(&runs),
        probes: Vec::new(),
        runs,
        failed,
        ended: None,
    };
    (validation, kept)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::train;
    use crate::verdict::tests::plan;
    use autodist_spec::profile::Environment;
    use autodist_spec::run::{RankRecord, Verdict};
    use autodist_spec::{Bytes, Engine, Precision, Seconds};

    /// A synthetic record of a candidate, with `milliseconds` per step.
    pub fn record(candidate: &Alternative, milliseconds: f64) -> RunRecord {
        let step = |step: u32| StepRecord {
            step,
            time_s: Seconds(1e-3 * milliseconds * (1.0 + 1e-3 * f64::from(step % 3))),
            loss: 4.0,
            gradient_norm: 1.0,
            learning_rate: 1e-3,
            reference_s: Seconds(2e-3),
        };
        let steps: Vec<StepRecord> = (0..20).map(step).collect();
        let rank = |rank| RankRecord { rank, peak_memory_bytes: Bytes(1), bytes_sent_per_step: Bytes(1) };
        RunRecord {
            schema_version: SCHEMA_VERSION,
            label: label(&candidate.strategy, &candidate.stages),
            strategy: candidate.strategy.clone(),
            stages: candidate.stages.clone(),
            precision: Precision::Fp32,
            environment: Environment { cores: 2, ..Environment::default() },
            step_time: Sample::of(&steps.iter().map(|s| s.time_s.0).collect::<Vec<_>>()),
            steps,
            warmup_steps: 0,
            ranks: (0..2).map(rank).collect(),
            compression: Vec::new(),
            rounds: None,
            ended: None,
            timeline: Vec::new(),
        }
    }

    /// The plan's candidates with predictions of 100, 110, … ms, and their measured times; `NaN` for a failed
    /// one.
    pub fn compared(plan: &Plan, took: &[f64]) -> (Vec<Alternative>, Validation, Vec<RunRecord>) {
        let mut candidates = train::candidates(plan);
        candidates.truncate(took.len());
        for (index, candidate) in candidates.iter_mut().enumerate() {
            candidate.estimate.step_time_s = Seconds(0.1 + 0.01 * index as f64);
            candidate.estimate.step_time_spread_s = Seconds(0.0);
        }
        let one = |(candidate, took): (&Alternative, &f64)| match took.is_nan() {
            true => Err("rank 0 was killed".to_owned()),
            false => Ok(record(candidate, *took)),
        };
        let records = candidates.iter().zip(took).map(one).collect();
        let (validation, records) = compare(plan, &candidates, records, 5);
        (candidates, validation, records)
    }

    /// With a usable reference, and the same machine speed as in the profile.
    pub fn with_reference() -> Plan {
        let mut plan = plan();
        plan.cost_source.profile_mut().unwrap().reference_s = Seconds(2.02e-3);
        plan
    }

    #[test]
    fn a_choice_that_did_not_run_is_not_judged() {
        let (_, validation, _) = compared(&with_reference(), &[f64::NAN, 110.0, 120.0]);
        assert_eq!((validation.verdict, validation.regret, &validation.beaten_by), (None, None, &None));
        assert_eq!(validation.choice(), None);
        assert_eq!(validation.choice_failed().map(|f| f.reason.as_str()), Some("rank 0 was killed"));
        assert_eq!(validation.runs.len(), 2);
        // The failure of another plan does not affect the verdict on the choice.
        let (_, validation, _) = compared(&with_reference(), &[100.0, f64::NAN, 120.0]);
        assert_eq!((validation.verdict, validation.regret), (Some(Verdict::Holds), Some(0.0)));
        assert_eq!(validation.choice_failed(), None);
        let (_, validation, _) = compared(&with_reference(), &[f64::NAN, f64::NAN]);
        assert_eq!((validation.verdict, validation.regret, validation.choice()), (None, None, None));
    }

    #[test]
    fn a_choice_is_judged_by_itself_and_beside_the_others() {
        let judge = |took: &[f64]| {
            let (_, validation, _) = compared(&with_reference(), took);
            (validation.verdict, validation.beaten_by.is_some())
        };
        assert_eq!(judge(&[100.0]), (Some(Verdict::Holds), false));
        assert_eq!(judge(&[300.0]), (Some(Verdict::Refuted), false));
        assert_eq!(judge(&[100.0, 112.0]), (Some(Verdict::Holds), false));
        assert_eq!(judge(&[100.0, 99.0]), (Some(Verdict::WithinNoise), false));
        assert_eq!(judge(&[100.0, 80.0]), (Some(Verdict::Refuted), true));
        assert_eq!(judge(&[300.0, 112.0]), (Some(Verdict::Refuted), true));
    }

    #[test]
    fn another_engine_refutes_nothing() {
        let plan = with_reference();
        let candidates = train::candidates(&plan);
        let mut other = record(&candidates[0], 1e5);
        other.environment.engine = Engine::Torch;
        let (validation, _) = compare(&plan, &candidates[..1], vec![Ok(other)], 5);
        assert_eq!((validation.verdict, validation.runs[0].verdict), (None, None));
    }

    #[test]
    fn without_a_reference_the_machines_drift_is_in_the_bar() {
        let bar = |plan: &Plan| compared(plan, &[100.0]).1.runs[0].bar_s.0;
        let unknown = bar(&plan());
        assert!(unknown > 1.5 * bar(&with_reference()) && unknown <= 0.05, "{unknown}");
    }
}
