//! The results of `backtest` as text.

use crate::look;
use autodist_analytic::Basis;
use autodist_analytic::backtest::{
    AccuracySlice, Answer, Backtest, Coverage, ErrorStatistics, MemoryErrors, Outcome,
};
use autodist_analytic::few::FewRuns;
use autodist_analytic::measured::PlanEstimate;
use autodist_reports::{Align, Screen, Table};
use autodist_spec::{Bytes, Seconds};

/// Tables of so many rows are always listed.
const FEW_ROWS: usize = 40;
/// Narrower views leave out columns: the errors of a constant utilisation, the means, what was refused.
const WIDE: usize = 120;
const MEDIUM: usize = 90;
const NARROW: usize = 80;

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

fn signed(error: Option<f64>) -> String {
    error.map_or(String::new(), |error| format!("{:+.1} %", 100.0 * error))
}

/// The summary, and with `rows` every run below it.
pub fn of_backtest(result: &Backtest, rows: bool) -> String {
    let view = look::view();
    let mut screen = Screen::new(&view);
    summary(&mut screen, result, view.width);
    screen.blank();
    if !rows && result.rows.len() > FEW_ROWS {
        let refused = result.rows.iter().filter(|row| matches!(row.answer, Answer::Refused { .. })).count();
        screen.paragraph(format!(
            "`--verbose` lists the {} runs, {refused} of which are refused with the reason",
            result.rows.len()
        ));
    } else {
        screen.table(&all_rows(&result.rows));
    }
    screen.finish()
}

fn all_rows(rows: &[Outcome]) -> Table {
    let mut table = Table::new(&[
        ("run", Align::Left),
        ("measured", Align::Right),
        ("predicted", Align::Right),
        ("error", Align::Right),
        ("assumed, or why it is refused", Align::Left),
    ]);
    for row in rows {
        let measured = row.measured_s.map_or("not measured".to_owned(), |time| Seconds(time).to_string());
        match &row.answer {
            Answer::Predicted { predicted_s, error, assumptions, .. } => table.row([
                row.id.clone(),
                measured,
                Seconds(*predicted_s).to_string(),
                signed(*error),
                assumptions.join("; "),
            ]),
            Answer::Refused { reason } => table.row([
                row.id.clone(),
                measured,
                "-".to_owned(),
                String::new(),
                format!("refused: {reason}"),
            ]),
        }
    }
    table
}

fn summary(screen: &mut Screen, result: &Backtest, width: usize) {
    let summary = &result.summary;
    screen.paragraph(format!("{}: relative errors of predicted times", summary.mode));
    screen.blank();
    let mut table = Table::new(&[
        ("runs", Align::Left),
        ("count", Align::Right),
        ("refused", Align::Right),
        ("bias", Align::Right),
        ("median", Align::Right),
        ("mean", Align::Right),
        ("p90", Align::Right),
        ("constant", Align::Right),
        ("its p90", Align::Right),
    ]);
    summary.parts.iter().chain([&summary.all]).for_each(|part| slice(&mut table, part));
    let columns = [("constant", WIDE), ("its p90", WIDE), ("mean", MEDIUM), ("refused", NARROW)];
    for (column, _) in columns.iter().filter(|(_, least)| width < *least) {
        table.leave_out(column);
    }
    if summary.all.refused == 0 {
        table.leave_out("refused");
    }
    screen.table(&table);
    if width >= WIDE {
        screen.paragraph(
            "constant: median error of one utilisation per device and precision, fitted to the same runs",
        );
    }
    coverage(screen, summary.covered, &summary.covered_by);
    let learnt =
        summary.memory_left_out.as_ref().map(|memory| (", its reserve fitted to the other groups", memory));
    let own = summary.memory.as_ref().map(|memory| ("", memory));
    own.into_iter().chain(learnt).for_each(|(how, memory)| of_memory(screen, how, memory));
    if let Some(choices) = &summary.choices {
        screen.paragraph(format!(
            "{} choice sets: mean regret of the predicted best {}, at most {}; Kendall tau {}; errors within a set scatter \
             by {}",
            choices.sets.len(),
            percent(choices.mean_regret),
            percent(choices.max_regret),
            choices.mean_kendall_tau.map_or("-".to_owned(), |tau| format!("{tau:.2}")),
            percent(choices.median_scatter)
        ));
    }
}

fn slice(table: &mut Table, part: &AccuracySlice) {
    let of = |errors: &Option<ErrorStatistics>, value: fn(&ErrorStatistics) -> f64| {
        errors.as_ref().map_or("-".to_owned(), |errors| percent(value(errors)))
    };
    let names = [&part.group, &part.device, &part.precision].map(String::as_str);
    let names: Vec<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
    table.row([
        names.join(", "),
        part.rows.to_string(),
        part.refused.to_string(),
        of(&part.errors, |e| e.bias),
        of(&part.errors, |e| e.median),
        of(&part.errors, |e| e.mean),
        of(&part.errors, |e| e.p90),
        of(&part.constant_mfu, |e| e.median),
        of(&part.constant_mfu, |e| e.p90),
    ]);
}

fn coverage(screen: &mut Screen, covered: Option<f64>, by: &[Coverage]) {
    let Some(covered) = covered else { return };
    screen.blank();
    screen.paragraph(format!("within their error bars: {}", percent(covered)));
    let several = by.len() > 1;
    for Coverage { basis, rows, covered } in by.iter().filter(|_| several) {
        let words = basis.map_or("to which none of the following applies", Basis::words);
        screen.prose(&format!("  {} of {rows} {words}", percent(*covered)));
    }
}

fn of_memory(screen: &mut Screen, how: &str, memory: &MemoryErrors) {
    screen.paragraph(format!(
        "memory of {} rows{how}: median {}, lowest {}, {} more than 5 % under",
        memory.errors.rows,
        percent(memory.errors.median),
        signed(Some(memory.lowest)),
        memory.more_than_5_percent_under
    ));
}

/// How the error bars of few own runs hold.
pub fn of_few_runs(results: &[FewRuns]) -> String {
    let view = look::view();
    let mut screen = Screen::new(&view);
    screen.paragraph("every group left out, and calibrated with some of its own runs: errors of the rest");
    screen.blank();
    let mut table = Table::new(&[
        ("own runs", Align::Right),
        ("calibrations", Align::Right),
        ("median error", Align::Right),
        ("error bar", Align::Right),
        ("needed", Align::Right),
        ("within bar", Align::Right),
        ("lowest group", Align::Left),
    ]);
    for one in results {
        table.row([
            one.runs.to_string(),
            one.calibrations.to_string(),
            percent(one.median_error),
            percent(one.median_bar),
            percent(one.needed),
            percent(one.covered),
            format!("{} ({})", one.lowest.0, percent(one.lowest.1)),
        ]);
    }
    screen.table(&table);
    screen.finish()
}

/// Plans over layer times that others measured.
pub fn of_plans(estimates: &[Result<PlanEstimate, String>]) -> String {
    let view = look::view();
    let mut screen = Screen::new(&view);
    let mut table = Table::new(&[
        ("plan", Align::Left),
        ("step time", Align::Right),
        ("error", Align::Right),
        ("memory", Align::Right),
        ("its error", Align::Right),
    ]);
    let priced: Vec<&PlanEstimate> = estimates.iter().filter_map(|estimate| estimate.as_ref().ok()).collect();
    for plan in &priced {
        table.row([
            plan.id.clone(),
            Seconds(plan.predicted_s).to_string(),
            signed(plan.error),
            Bytes(plan.predicted_memory_bytes as u64).to_string(),
            signed(plan.memory_error),
        ]);
    }
    screen.table(&table);
    for reason in estimates.iter().filter_map(|estimate| estimate.as_ref().err()) {
        screen.prose(&format!("refused: {reason}"));
    }
    let errors =
        |of: fn(&PlanEstimate) -> Option<f64>| ErrorStatistics::of(priced.iter().filter_map(|plan| of(plan)));
    for (name, of) in [("time", errors(|p| p.error)), ("memory", errors(|p| p.memory_error))] {
        if let Some(errors) = of {
            screen.paragraph(format!(
                "{name} of {} plans: median error {}, mean {}, largest {}",
                errors.rows,
                percent(errors.median),
                percent(errors.mean),
                percent(errors.max)
            ));
        }
    }
    screen.finish()
}
