//! Why another plan than the planner's first choice was the fastest in training: the settings in which they differ, and
//! which of them was predicted wrongly.

use crate::verdict;
use crate::words::{clean, percent, plural};
use autodist_spec::{Change, Plan, Seconds, Setting, ValidatedRun, Validation};

/// Differences between mean errors below this are noise.
const NOTABLE: f64 = 0.01;

/// `zero 1 -> 2, micro-batch 4 -> 2 made it faster: …`; nothing if the first choice is the fastest.
pub(crate) fn part(plan: &Plan, validation: &Validation) -> Option<String> {
    let (first, best) = (validation.choice()?, verdict::of_plan(plan, validation)?);
    if first.label == best.label {
        return None;
    }
    let changes = between(first, best);
    if changes.is_empty() {
        return Some(
            "it differs from the first choice only in how the layers are cut or recomputed".to_owned(),
        );
    }
    let words: Vec<String> = changes
        .iter()
        .map(|change| format!("{} {} -> {}", change.setting.name(), change.from, change.to))
        .collect();
    let mut text = format!("{} made it faster than the first choice", words.join(", "));
    if let Some(misjudged) = misjudged(&changes, first, best, validation) {
        text += &format!(": {misjudged}");
    }
    if let Some((name, counted, other)) = counted_on(first, best) {
        text += &format!(
            "; the first choice was predicted to be faster by less {name} ({counted} against {other})"
        );
    }
    Some(clean(&text))
}

fn between(from: &ValidatedRun, to: &ValidatedRun) -> Vec<Change> {
    Change::between((&from.strategy, &[]), (&to.strategy, &[]))
}

/// Runs with the same value of a setting, and the mean error of their predictions.
fn alike(run: &ValidatedRun, setting: Setting, validation: &Validation) -> (usize, f64) {
    let errors: Vec<f64> = validation
        .runs
        .iter()
        .filter(|other| between(run, other).iter().all(|change| change.setting != setting))
        .map(|other| other.adjusted_error)
        .collect();
    (errors.len(), errors.iter().sum::<f64>() / errors.len().max(1) as f64)
}

/// The setting of which the old value was predicted too fast, compared with the new one.
fn misjudged(
    changes: &[Change],
    first: &ValidatedRun,
    best: &ValidatedRun,
    validation: &Validation,
) -> Option<String> {
    let judged = changes.iter().map(|change| {
        (change, alike(first, change.setting, validation), alike(best, change.setting, validation))
    });
    let gap = |(_, old, new): &(&Change, (usize, f64), (usize, f64))| new.1 - old.1;
    let (change, old, new) =
        judged.max_by(|a, b| gap(a).total_cmp(&gap(b))).filter(|one| gap(one) > NOTABLE)?;
    let of = |value: &str, (runs, error): (usize, f64)| {
        let how = if error < 0.0 { "more" } else { "less" };
        // The error is relative to the measured time.
        let off = (1.0 / (1.0 + error) - 1.0).abs();
        let name = change.setting.name();
        format!(
            "with {name} {value}, {} took {} {how} time than predicted",
            plural(runs as u64, "plan"),
            percent(off)
        )
    };
    Some(format!("{}; {}", of(&change.from, old), of(&change.to, new)))
}

/// The part of the step that gave the first choice its predicted advantage.
fn counted_on(first: &ValidatedRun, best: &ValidatedRun) -> Option<(&'static str, Seconds, Seconds)> {
    if first.predicted.step_time_s >= best.predicted.step_time_s {
        return None;
    }
    let parts = first.predicted.cost.parts().into_iter().zip(best.predicted.cost.parts());
    let (of_first, of_best) = parts.max_by(|a, b| (a.1.1.0 - a.0.1.0).total_cmp(&(b.1.1.0 - b.0.1.0)))?;
    (of_first.1 < of_best.1).then_some((of_first.0, of_first.1, of_best.1))
}
