//! Plain text for the terminal: the answer first, readable without colour, no wider than the view.

use crate::answer;
use crate::changes;
use crate::communication;
use crate::screen::{LABEL, Screen};
use crate::tables;
use crate::verdict;
use crate::view::TerminalView;
use crate::words::{self, percent, plural};
use autodist_spec::{Plan, Seconds, Validation};
use std::path::Path;

pub use crate::machine::{compressions, profile_summary, run_summary};

/// Characters of the longest assumption that is shown with an answer: two lines of the usual width.
const ASSUMPTION: usize = 2 * (TerminalView::USUAL - LABEL);

/// The answer, the plan's rivals, and the commands that come next; with [`TerminalView::verbose`] also the parts of
/// its time and memory, and all rejected strategies. `file` is where the plan was written.
pub fn plan_summary(plan: &Plan, file: Option<&Path>, view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    screen.lines(answer::of_plan(plan, file, view.verbose));
    basis(&mut screen, plan, view);
    if let Some(given) = &plan.given {
        screen.section(changes::title(given), &changes::table(plan, given));
        for (index, note) in changes::by_hand(given).into_iter().enumerate() {
            screen.prose(&changes::by_hand_words(index, note));
        }
    }
    if view.verbose {
        all_tables(&mut screen, plan);
    } else {
        deciding(&mut screen, plan);
        let next = answer::next(plan, file);
        if !next.is_empty() {
            screen.blank();
        }
        screen.commands("next", &next);
        screen.line(if next.is_empty() { "more" } else { "" }, words::MORE);
    }
    screen.finish()
}

/// Rates, warnings and assumptions; what is longer than two lines is for verbose views.
fn basis(screen: &mut Screen, plan: &Plan, view: &TerminalView) {
    let estimate = &plan.estimate;
    if let Some(kinds) = words::kinds_of_blocks(&plan.model) {
        screen.line("blocks", kinds);
    }
    let utilisation = plan.utilisation(estimate);
    if let Some(all) = utilisation {
        screen.line("speed", all.to_string());
    }
    if let Some(kernels) = words::kernels(plan, view.verbose) {
        screen.line("kernels", kernels);
    }
    if estimate.caution_s > Seconds::ZERO {
        let words = "of the step is a safety margin: segments not known to ±25 % are priced at the top of their intervals";
        screen.line("margin", format!("{} {words}", estimate.caution_s));
    }
    if let Some(contradiction) = utilisation.and_then(|all| all.contradiction()) {
        screen.warning(&contradiction);
    }
    if view.verbose {
        screen.line("costs", format!("{} (the least trusted part of the step time)", estimate.provenance));
        screen.line("profile", words::profile_source(plan));
    }
    let assumed = plan.assumptions.iter();
    let (short, long): (Vec<&String>, Vec<&String>) =
        assumed.partition(|text| view.verbose || text.chars().count() <= ASSUMPTION);
    for (index, assumption) in short.iter().enumerate() {
        screen.line(if index == 0 { "assumed" } else { "" }, *assumption);
    }
    if !long.is_empty() {
        let more = if short.is_empty() { "" } else { "more " };
        let what = plural(long.len() as u64, &format!("{more}assumption"));
        screen.line(if short.is_empty() { "assumed" } else { "" }, format!("{what}: --verbose lists them"));
    }
}

/// The other plans, and why no others.
fn deciding(screen: &mut Screen, plan: &Plan) {
    if !plan.alternatives.is_empty() {
        screen.section("Runners-up", &tables::runners_up(plan));
    }
    if !plan.rejected.is_empty() {
        screen.blank();
        screen.line("refused", format!("{}; --verbose lists them", words::refused(&plan.rejected)));
    }
}

fn all_tables(screen: &mut Screen, plan: &Plan) {
    let estimate = &plan.estimate;
    screen.section("Stages", &tables::stages(plan));
    screen.section("Time of a step, on the busiest pipeline rank", &tables::cost(&estimate.cost));
    screen.section("Memory, on the fullest device", &tables::memory(&estimate.memory));
    if let Some(placement) = &plan.placement {
        screen.blank();
        screen.line("placement", words::placement(&plan.strategy, placement));
    }
    if !plan.collectives.is_empty() {
        screen.section("Collectives, with lower bounds from the network", &communication::collectives(plan));
    }
    if !plan.codecs.is_empty() {
        screen.section("Compression: step times, and the cost in steps", &communication::codecs(plan));
    }
    if !plan.alternatives.is_empty() {
        screen.section("Runners-up", &tables::alternatives(plan));
    }
    if !plan.rejected.is_empty() {
        screen.section("Refused", &tables::rejected(plan));
    }
}

/// The result, at the top: the plan to use, its step time, whether the measurement confirms the planner's
/// choice, and the certainty. `plan` is the document with its measured plans in measured order; `files` lists
/// the files of the results, and what comes next.
pub fn answer(plan: &Plan, validation: &Validation, files: &[(&str, String)], view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    screen.lines(answer::of_validation(plan, validation));
    for (label, value) in files {
        screen.line(label, value);
    }
    screen.finish()
}

/// Any text, broken into lines of the view's width.
pub fn wrapped(text: &str, view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    screen.prose(text);
    screen.finish()
}

/// The same, where the first line is the decision.
pub fn prose(text: &str, view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    let (decision, rest) = text.split_once('\n').unwrap_or((text, ""));
    screen.decision(decision);
    screen.prose(rest);
    screen.finish()
}

/// The verdict on the planner's choice, in a sentence.
pub fn verdict(validation: &Validation) -> String {
    verdict::of_choice(validation)
}

/// Measured and predicted times, with signed errors: plus means the prediction was too high.
pub fn validation_table(validation: &Validation, view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    if let Some(ended) = &validation.ended {
        screen.line("ended", format!("early: {ended}"));
    }
    if validation.runs.is_empty() {
        screen.paragraph("no plan ran");
    } else {
        compared(&mut screen, validation, view);
    }
    if !validation.probes.is_empty() {
        screen.section(
            "Cost of compression in steps, from training with and without codecs",
            &communication::probes(validation),
        );
    }
    if !validation.failed.is_empty() {
        screen.section("Failed", &tables::failed(validation));
    }
    screen.finish()
}

fn compared(screen: &mut Screen, validation: &Validation, view: &TerminalView) {
    let same = "error is predicted / measured - 1; ± is half of the 95 % interval of the median";
    if view.verbose {
        let mut table = tables::validation(validation);
        // The quotient of two other columns.
        table.leave_out("speed");
        screen.table(&table);
        screen.paragraph(format!("at the machine's speed during the profile (profile speed), {same}"));
        screen.blank();
        screen.table(&tables::validation_memory(validation));
    } else {
        screen.table(&tables::validated(validation));
        screen.paragraph(format!("measured at profile speed; {same}"));
    }
    screen.blank();
    let runs = plural(validation.runs.len() as u64, "run");
    screen.line(
        "error",
        format!(
            "median |error| of the step time {} over {runs} ({} as timed)",
            percent(validation.median_adjusted_error),
            percent(validation.median_error)
        ),
    );
    if validation.runs.len() > 1 || validation.regret.is_none() {
        screen.line("regret", words::regret(validation));
    }
    if let Some(agreement) = validation.agreement.as_ref().filter(|_| validation.runs.len() > 1) {
        if let Some(plain) = words::plain_data_parallelism(agreement) {
            screen.line("", plain);
        }
        if view.verbose {
            screen.line("agreement", words::agreement(agreement));
        }
    }
    if !validation.gains.is_empty() {
        screen.section(
            "Gain from compression: step time without the codec / with it - 1",
            &communication::gains(validation),
        );
    }
}

/// Labelled lines, such as the findings about a machine.
pub fn labelled(lines: &[(&str, String)], view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    lines.iter().for_each(|(label, value)| screen.line(label, value));
    screen.finish()
}
