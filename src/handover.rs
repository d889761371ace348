//! After training: puts the fastest measured plan first in the document, and determines how the command ends.

use crate::failure::Failure;
use crate::{commands, output, verdict};
use autodist_reports::terminal;
use autodist_spec::run::{FailedRun as Failed, Verdict};
use autodist_spec::strategy::label;
use autodist_spec::{
    Alternative, MeasuredChoice, ParallelStrategy, Plan, Profile, RunRecord, Seconds, Training, ValidatedRun,
    Validation, to_json,
};
use std::path::{Path, PathBuf};

/// Prefix of the reason of a plan that was not trained.
const UNMEASURED: &str = "not trained; as predicted: ";

/// `plan` with its measured plans in measured order: the fastest becomes the choice. Plans that were not
/// trained follow, plans that could not run are last. At most `keep` alternatives. Without any run, `plan` is
/// unchanged.
///
/// The comparisons of collectives, placement and codecs belong to one plan: they are computed again with
/// `profile`, or left out.
pub fn measured_first(
    plan: &Plan,
    candidates: &[Alternative],
    (validation, records): (&Validation, &[RunRecord]),
    profile: Option<&Profile>,
    keep: usize,
) -> Plan {
    let objective = plan.job.objective;
    let mut order: Vec<(&ValidatedRun, &Alternative)> = validation
        .runs
        .iter()
        .zip(records)
        .filter_map(|(run, record)| Some((run, find(candidates, &record.strategy, &record.stages)?)))
        .collect();
    // The sort is stable: of two equally fast plans, the planner's order is kept.
    order.sort_by(|a, b| verdict::order(objective, a.0, b.0));
    let Some((fastest, best)) = order.first().copied() else { return plan.clone() };
    let mut document = plan.clone();
    if (&plan.strategy, &plan.stages) != (&best.strategy, &best.stages) {
        let given = profile.and_then(|profile| {
            let planner = commands::planner(&plan.model, &plan.cluster, &plan.job, profile);
            planner.given(&best.strategy, Some(&best.stages)).ok()
        });
        (document.collectives, document.placement) =
            given.map(|given| (given.collectives, given.placement)).unwrap_or_default();
        document.codecs.clear();
        document.micro_batches = best.strategy.micro_batches(plan.job.global_batch);
        document.strategy.clone_from(&best.strategy);
        document.stages.clone_from(&best.stages);
        document.estimate.clone_from(&best.estimate);
    }
    let measured = order.iter().skip(1).map(|(run, other)| Alternative {
        reason: format!(
            "measured {}, {:+.1} %",
            time(run),
            100.0 * (verdict::score(objective, run) / verdict::score(objective, fastest) - 1.0)
        ),
        ..(*other).clone()
    });
    let ran = |one: &Alternative| order.iter().any(|(_, run)| same(one, &run.strategy, &run.stages));
    let failed = |one: &Alternative| {
        let label = label(&one.strategy, &one.stages);
        validation.failed.iter().find(|failed| failed.label == label)
    };
    let others: Vec<Alternative> = crate::train::candidates(plan);
    let left: Vec<&Alternative> = others.iter().filter(|one| !ran(one)).collect();
    let unmeasured = left.iter().filter(|one| failed(one).is_none()).map(|one| Alternative {
        reason: format!("{UNMEASURED}{}", one.reason.trim_start_matches(UNMEASURED)),
        ..(*one).clone()
    });
    let broken = left.iter().filter_map(|one| {
        let reason = format!("failed: {}", failed(one)?.reason);
        Some(Alternative { reason, ..(*one).clone() })
    });
    document.alternatives = measured.chain(unmeasured).chain(broken).take(keep).collect();
    let measured = &fastest.measured;
    let (step, spread) = (measured.adjusted_step_time_s, measured.adjusted_step_time_spread_s);
    document.training = Training::of(&document.job, &document.cluster, step, spread);
    document.measured = Some(MeasuredChoice {
        step_time_s: fastest.measured.adjusted_step_time_s,
        step_time_spread_s: fastest.measured.adjusted_step_time_spread_s,
        plans: order.len() as u32,
        first_choice: candidates.first().map_or_else(String::new, |one| label(&one.strategy, &one.stages)),
        verdict: validation.verdict,
        reason: reason(validation, fastest),
        refuted: in_doubt(plan, validation),
    });
    document
}

fn same(one: &Alternative, strategy: &ParallelStrategy, stages: &[autodist_spec::Stage]) -> bool {
    one.strategy == *strategy && one.stages == stages
}

fn find<'a>(
    candidates: &'a [Alternative],
    strategy: &ParallelStrategy,
    stages: &[autodist_spec::Stage],
) -> Option<&'a Alternative> {
    candidates.iter().find(|one| same(one, strategy, stages))
}

fn time(run: &ValidatedRun) -> Seconds {
    run.measured.adjusted_step_time_s
}

fn reason(validation: &Validation, fastest: &ValidatedRun) -> String {
    let time = time(fastest);
    match (validation.choice(), validation.choice_failed()) {
        (Some(choice), _) if choice.label != fastest.label => format!(
            "measured fastest: {time}; the planner's first choice, {}, took {}",
            choice.label,
            self::time(choice)
        ),
        (None, Some(failed)) => {
            format!("measured fastest: {time}; the planner's first choice, {}, did not run", failed.label)
        }
        _ if validation.runs.len() == 1 => format!("measured: {time}"),
        _ => {
            format!("measured fastest of {} plans: {time}; the planner's first choice", validation.runs.len())
        }
    }
}

/// Strategies whose cells are to be measured again; doubts from before remain, because the profile is
/// unchanged.
fn in_doubt(plan: &Plan, validation: &Validation) -> Vec<ParallelStrategy> {
    let mut doubtful = plan.measured.as_ref().map(|earlier| earlier.refuted.clone()).unwrap_or_default();
    if validation.verdict == Some(Verdict::Refuted) {
        let first = validation.choice().map(|run| run.label.as_str());
        let accused = validation.runs.iter().filter(|run| {
            let label = Some(run.label.as_str());
            run.verdict == Some(Verdict::Refuted)
                || label == first
                || label == validation.beaten_by.as_deref()
        });
        for run in accused {
            if !doubtful.contains(&run.strategy) {
                doubtful.push(run.strategy.clone());
            }
        }
    }
    doubtful
}

/// Replaces the document that was read, as a whole; if it is not a file that can be replaced, writes into
/// `folder`. Returns the path.
pub fn replace(path: &Path, plan: &Plan, folder: &Path) -> Result<PathBuf, Failure> {
    let text = to_json(plan);
    // The target of a symbolic link is replaced, not the link. A pipe cannot be replaced.
    let file = std::fs::canonicalize(path)
        .ok()
        .filter(|file| file.is_file() && !["/dev", "/proc"].iter().any(|system| file.starts_with(system)));
    if let Some(file) = file {
        match output::write(&file, text.as_bytes()) {
            Ok(()) => return Ok(path.to_owned()),
            Err(failure) => {
                output::warn(&format!("{failure}: the plans in measured order are written to another file"))
            }
        }
    }
    let other = folder.join("plan.json");
    output::write(&other, text.as_bytes())?;
    Ok(other)
}

/// How a command that trained plans ends: a failure of the planner's choice comes before refuted predictions,
/// and these before failures of other plans.
pub fn outcome(validation: &Validation) -> Result<(), Failure> {
    let kept = "; the measurements of the others are kept";
    if let Some(failed) = validation.choice_failed() {
        let Failed { label, reason } = failed;
        return Err(Failure::Run(format!("the planner's choice, {label}, did not run: {reason}{kept}")));
    }
    if validation.verdict == Some(Verdict::Refuted) {
        return Err(Failure::Refuted(terminal::verdict(validation)));
    }
    match validation.failed.as_slice() {
        [] => Ok(()),
        [Failed { label, reason }] => Err(Failure::Run(format!("{label} failed: {reason}{kept}"))),
        [Failed { label, reason }, others @ ..] => {
            let others = others.len();
            Err(Failure::Run(format!("{label} failed: {reason}; {others} more failed, too{kept}")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::compare::tests::{compared, with_reference};

    const BAD: f64 = f64::NAN;

    fn handed_over(plan: &Plan, took: &[f64]) -> (Vec<Alternative>, Plan) {
        let (candidates, validation, records) = compared(plan, took);
        let document = measured_first(plan, &candidates, (&validation, &records), None, 10);
        (candidates, document)
    }

    /// Indices of the candidates, in the order of the document.
    fn order(candidates: &[Alternative], document: &Plan) -> Vec<usize> {
        let number =
            |one: &Alternative| candidates.iter().position(|c| c.strategy == one.strategy).unwrap_or(9);
        crate::train::candidates(document).iter().map(number).collect()
    }

    #[test]
    fn the_fastest_measured_plan_is_the_choice_and_the_others_follow() {
        let plan = with_reference();
        let (candidates, document) = handed_over(&plan, &[300.0, 120.0, 110.0, 130.0]);
        assert_eq!(order(&candidates, &document), [2, 1, 3, 0]);
        assert_eq!((&document.stages, &document.estimate), (&candidates[2].stages, &candidates[2].estimate));
        assert_eq!(document.micro_batches, document.strategy.micro_batches(plan.job.global_batch));
        let measured = document.measured.unwrap();
        assert_eq!(measured.verdict, Some(Verdict::Refuted));
        assert_eq!(measured.first_choice, label(&candidates[0].strategy, &candidates[0].stages));
        assert!(measured.reason.contains("planner's first choice"), "{}", measured.reason);
        assert_eq!(measured.refuted, [candidates[0].strategy.clone(), candidates[2].strategy.clone()]);
        assert!(
            document.alternatives[0].reason.starts_with("measured"),
            "{}",
            document.alternatives[0].reason
        );
    }

    #[test]
    fn equal_times_keep_the_planners_order_and_nothing_is_in_doubt() {
        let (candidates, document) = handed_over(&with_reference(), &[100.0, 100.0, 100.0]);
        assert_eq!(order(&candidates, &document)[..3], [0, 1, 2]);
        assert_eq!(document.measured.unwrap().refuted, []);
    }

    #[test]
    fn what_did_not_run_comes_last_and_what_was_not_trained_before_it() {
        let plan = with_reference();
        let (_, document) = handed_over(&plan, &[BAD, 110.0, 105.0]);
        let all = crate::train::candidates(&plan);
        assert_eq!(order(&all, &document), [2, 1, 3, 0]);
        let reasons: Vec<&str> = document.alternatives.iter().map(|a| a.reason.as_str()).collect();
        assert!(reasons[1].starts_with(UNMEASURED) && reasons[2].starts_with("failed: "), "{reasons:?}");
        assert_eq!(document.measured.unwrap().verdict, None);
        let nothing = handed_over(&plan, &[BAD, BAD]).1;
        assert_eq!(nothing, plan, "without a measurement there is nothing to hand over");
    }

    #[test]
    fn commands_end_with_what_they_found() {
        let code = |took: &[f64]| {
            outcome(&compared(&with_reference(), took).1).map_or_else(|failure| failure.exit_code(), |()| 0)
        };
        assert_eq!(code(&[100.0, 120.0]), 0);
        assert_eq!(code(&[100.0, 99.0]), 0);
        assert_eq!(code(&[100.0, 80.0]), 5);
        assert_eq!(code(&[400.0]), 5);
        assert_eq!(code(&[BAD, 80.0]), 4);
        assert_eq!(code(&[100.0, BAD]), 4);
        assert_eq!(code(&[400.0, BAD]), 5);
    }
}
