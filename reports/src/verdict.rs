//! Verdicts of measurements on predictions, in words.

use crate::words::{clean, percent, plural, signed_percent, tokens_per_second, with_spread};
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{MeasuredChoice, Plan, ValidatedRun, Validation};

/// Whether the document's plan is still the search's first choice, and not refuted.
pub(crate) fn stands(plan: &Plan, measured: &MeasuredChoice) -> bool {
    measured.first_choice == label(&plan.strategy, &plan.stages) && measured.verdict != Some(Verdict::Refuted)
}

/// The run of the plan itself.
pub(crate) fn of_plan<'a>(plan: &Plan, validation: &'a Validation) -> Option<&'a ValidatedRun> {
    // Plans of one strategy may differ in the recomputation of stages.
    let own = label(&plan.strategy, &plan.stages);
    validation.runs.iter().find(|run| run.label == own)
}

/// `648 ms ± 25.2 ms measured, 1,580 tokens/s; predicted 608 ms ± 98.1 ms, -6.2 %`.
pub(crate) fn time(plan: &Plan, run: &ValidatedRun) -> String {
    let tokens = plan.job.tokens() as f64 / run.measured.adjusted_step_time_s.0;
    format!(
        "{} measured{}, {}; predicted {}, {}",
        measured(run),
        if run.measured.machine_speed == 1.0 { "" } else { " (at profile speed)" },
        tokens_per_second(tokens),
        predicted(run),
        signed_percent(run.adjusted_error)
    )
}

pub(crate) fn measured(run: &ValidatedRun) -> String {
    with_spread(run.measured.adjusted_step_time_s, run.measured.adjusted_step_time_spread_s)
}

/// With its bar, or with its own interval in files without bars.
fn predicted(run: &ValidatedRun) -> String {
    let bar = if run.bar_s.0 > 0.0 { run.bar_s } else { run.predicted.step_time_spread_s };
    with_spread(run.predicted.step_time_s, bar)
}

/// The verdict on the planner's choice.
pub(crate) fn of_choice(validation: &Validation) -> String {
    let Some(choice) = validation.choice() else {
        return validation.choice_failed().map_or("no plan ran".to_owned(), |failed| {
            format!(
                "unknown: the planner's choice, {}, DID NOT RUN: {}",
                clean(&failed.label),
                clean(&failed.reason)
            )
        });
    };
    let name = clean(&choice.label);
    let own = format!("predicted {} and measured {}", predicted(choice), measured(choice));
    let beaten = validation.runs.iter().find(|run| Some(&run.label) == validation.beaten_by.as_ref());
    let faster = beaten.map(|run| {
        format!("{} is faster, {} ({})", clean(&run.label), measured(run), percent_less(choice, run))
    });
    match (validation.verdict, faster) {
        (None, _) => "none: the predictions are for another engine than the one that trained".to_owned(),
        (Some(Verdict::Refuted), Some(faster)) => {
            format!("REFUTED: the planner's choice, {name}, was {own}; {faster}")
        }
        (Some(Verdict::Refuted), None) => format!("REFUTED: the planner's choice, {name}, was {own}"),
        (Some(Verdict::WithinNoise), _) if choice.verdict == Some(Verdict::Holds) => format!(
            "within noise: the planner's choice, {name}, was {own}; the fastest is {} less than that, which may be noise",
            percent(validation.regret.map_or(0.0, |regret| regret / (1.0 + regret)))
        ),
        (Some(Verdict::WithinNoise), _) => {
            format!("within noise: the planner's choice, {name}, was {own}; use more --steps to decide")
        }
        (Some(Verdict::Holds), _) => format!("holds: the planner's choice, {name}, was {own}"),
    }
}

/// How much less time `run` takes, in percent.
fn percent_less(choice: &ValidatedRun, run: &ValidatedRun) -> String {
    let less = 1.0 - run.measured.adjusted_step_time_s / choice.measured.adjusted_step_time_s;
    format!("{} less", percent(less))
}

/// How much was measured, and the distance to the next plan.
pub(crate) fn sure(plan: &Plan, validation: &Validation) -> String {
    let count = validation.runs.len();
    let Some(run) = of_plan(plan, validation) else {
        return "there is no measurement of this plan".to_owned();
    };
    let steps = plural(u64::from(run.measured.steps), "step");
    let next = validation
        .runs
        .iter()
        .filter(|other| other.label != run.label)
        .min_by(|a, b| a.measured.adjusted_step_time_s.0.total_cmp(&b.measured.adjusted_step_time_s.0));
    let failed = match validation.failed.len() {
        0 => String::new(),
        failed => format!("; {} failed", plural(failed as u64, "plan")),
    };
    match next {
        None => format!("the only plan that ran, {steps}{failed}"),
        Some(next) => format!(
            "the fastest of {count} plans that were trained, {steps} each; the next, {}, takes {}{failed}",
            clean(&next.label),
            measured(next)
        ),
    }
}
