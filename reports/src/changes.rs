//! A given strategy beside the plan, and the smallest changes to it.

use crate::table::{Align, Table};
use crate::words::{percent, signed_percent};
use autodist_spec::strategy::label;
use autodist_spec::{Change, GivenStrategy, Plan, Seconds};

/// What the given strategy lacks, or how much slower than the plan it is.
pub(crate) fn verdict(plan: &Plan, given: &GivenStrategy) -> String {
    let name = label(&given.strategy, &given.stages);
    let (own, best) = (given.estimate.step_time_s, plan.estimate.step_time_s);
    let memory = given.estimate.peak_memory_bytes;
    if !given.fits {
        let missing = given.missing_bytes;
        return format!("{name}: does NOT fit: it needs {memory}, {missing} more than is usable");
    }
    let compared = if given.changes.is_empty() {
        "this is the plan".to_owned()
    } else if best >= own {
        "no strategy is predicted to be faster".to_owned()
    } else {
        format!("the plan takes {} less time", percent(1.0 - best / own))
    };
    format!("{name}: fits, {own} per step, {memory}; {compared}")
}

/// `--zero 2 -> 3`; a strategy that differs in nothing is the given one.
pub(crate) fn changes(changes: &[Change]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|change| format!("{} {} -> {}", change.setting.name(), change.from, change.to))
        .collect();
    words.join(", ")
}

pub(crate) fn title(given: &GivenStrategy) -> &'static str {
    if given.fits {
        "Yours, with the fewest changes that make it faster, and the plan"
    } else {
        "Yours, with the fewest changes that make it fit, and the plan"
    }
}

/// The given strategy, those with the fewest changes, and the plan.
pub(crate) fn table(plan: &Plan, given: &GivenStrategy) -> Table {
    let mut table = Table::new(&[
        ("change", Align::Left),
        ("step time", Align::Right),
        ("against yours", Align::Right),
        ("peak memory", Align::Right),
        ("strategy", Align::Left),
    ]);
    let own = given.estimate.step_time_s;
    let against = |time: Seconds| signed_percent(time / own - 1.0);
    let none = if given.fits { "none (yours)" } else { "none (yours): does NOT fit" };
    table.row([
        none.to_owned(),
        own.to_string(),
        String::new(),
        given.estimate.peak_memory_bytes.to_string(),
        label(&given.strategy, &given.stages),
    ]);
    for variant in &given.variants {
        table.row([
            changes(&variant.changes),
            variant.estimate.step_time_s.to_string(),
            against(variant.estimate.step_time_s),
            variant.estimate.peak_memory_bytes.to_string(),
            label(&variant.strategy, &variant.stages),
        ]);
    }
    let listed = given.variants.iter().any(|one| one.strategy == plan.strategy && one.stages == plan.stages);
    if !listed && !given.changes.is_empty() {
        table.row([
            format!("the plan: {}", changes(&given.changes)),
            plan.estimate.step_time_s.to_string(),
            against(plan.estimate.step_time_s),
            plan.estimate.peak_memory_bytes.to_string(),
            label(&plan.strategy, &plan.stages),
        ]);
    }
    table
}
