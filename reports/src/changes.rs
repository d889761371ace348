//! A given strategy beside the plan, and the smallest changes to it.

use crate::table::{Align, Table};
use crate::words::{percent, signed_percent};
use autodist_spec::strategy::label;
use autodist_spec::{Change, Estimate, GivenStrategy, ParallelStrategy, Plan, Seconds, Setting, estimate};

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

/// `zero 2 -> 3, micro-batch 2 -> 1 (gradient accumulation 4 -> 8)`: the global batch stays as it is.
fn described(plan: &Plan, given: &GivenStrategy, changes: &[Change], to: &ParallelStrategy) -> String {
    let steps = |strategy: &ParallelStrategy| strategy.micro_batches(plan.job.global_batch);
    let words: Vec<String> = changes
        .iter()
        .map(|change| {
            let words = format!("{} {} -> {}", change.setting.name(), change.from, change.to);
            let (from, to) = (steps(&given.strategy), steps(to));
            if change.setting != Setting::MicroBatch || from == to {
                return words;
            }
            format!("{words} (gradient accumulation {from} -> {to})")
        })
        .collect();
    words.join(", ")
}

/// `; about 1 in 14 runs like it would run out of memory`, if that is likely enough to be said.
fn risk(estimate: &Estimate) -> String {
    match estimate.memory_risk {
        Some(risk) if risk >= 0.02 => format!("; {}", estimate::memory_risk(risk)),
        _ => String::new(),
    }
}

pub(crate) fn title(given: &GivenStrategy) -> &'static str {
    if given.variants.is_empty() {
        "Yours, and the plan"
    } else if given.fits {
        "Yours, with the fewest changes that make it faster, and the plan"
    } else {
        "Yours, with the fewest changes that make it fit, and the plan"
    }
}

/// What the format of the file cannot express of the strategies in the table, in their order.
pub(crate) fn by_hand(given: &GivenStrategy) -> Vec<&String> {
    let own = (!given.changes.is_empty()).then_some(&given.by_hand);
    let of_variants = given.variants.iter().map(|variant| &variant.by_hand);
    let mut notes: Vec<&String> = Vec::new();
    for note in of_variants.chain(own).flatten() {
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}

/// The sentence to which `[1]` in the table refers.
pub(crate) fn by_hand_words(index: usize, note: &str) -> String {
    let note = crate::words::clean(note);
    format!("[{}] by hand, as the format of the file cannot express it: {note}", index + 1)
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
    let notes = by_hand(given);
    let mark = |lacks: &[String]| -> String {
        let marks = notes.iter().enumerate().filter(|(_, note)| lacks.contains(*note));
        marks.map(|(index, _)| format!(" [{}]", index + 1)).collect()
    };
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
        let is_plan = variant.strategy == plan.strategy && variant.stages == plan.stages;
        table.row([
            format!(
                "{}{}{}",
                if is_plan { "the plan: " } else { "" },
                described(plan, given, &variant.changes, &variant.strategy),
                mark(&variant.by_hand)
            ),
            variant.estimate.step_time_s.to_string(),
            against(variant.estimate.step_time_s),
            variant.estimate.peak_memory_bytes.to_string(),
            format!("{}{}", label(&variant.strategy, &variant.stages), risk(&variant.estimate)),
        ]);
    }
    let listed = given.variants.iter().any(|one| one.strategy == plan.strategy && one.stages == plan.stages);
    if !listed && !given.changes.is_empty() {
        table.row([
            format!(
                "the plan: {}{}",
                described(plan, given, &given.changes, &plan.strategy),
                mark(&given.by_hand)
            ),
            plan.estimate.step_time_s.to_string(),
            against(plan.estimate.step_time_s),
            plan.estimate.peak_memory_bytes.to_string(),
            format!("{}{}", label(&plan.strategy, &plan.stages), risk(&plan.estimate)),
        ]);
    }
    table
}
