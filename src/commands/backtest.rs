//! `autodist backtest`

use crate::cli::BacktestArgs;
use crate::failure::Failure;
use crate::{input, look, output};
use autodist_analytic::backtest::{AccuracySlice, Answer, Backtest, Coverage, ErrorStatistics};
use autodist_analytic::few::{self, FewRuns};
use autodist_analytic::measured::{MeasuredPlans, PlanEstimate};
use autodist_analytic::table::{self, TableRow};
use autodist_analytic::{
    Basis, Calibration, Fold, FreeParameters, StepWork, backtest, fit, left_out_bars, reserve, sets,
};
use autodist_spec::{Bytes, Seconds, one_line, to_json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

const SHIPPED_RUNS: &str = include_str!("../../catalog/published/training_runs.csv");
/// They are in the fit, too.
const SHIPPED_LATER_RUNS: &str = include_str!("../../catalog/published/later_runs.csv");
const SHIPPED_SETS: &str = include_str!("../../catalog/published/choice_sets.csv");

pub fn run(args: &BacktestArgs) -> Result<(), Failure> {
    if let Some(path) = &args.measured_plans {
        return measured_plans(path, args.json);
    }
    let catalogue = input::catalogue(&args.catalogue)?;
    let shipped = args.runs.is_empty();
    let rows = if shipped {
        table::read(SHIPPED_RUNS.as_bytes(), "the shipped runs", &catalogue)?
    } else {
        input::runs(&args.runs, &catalogue)?
    };
    let sets = match &args.choice_sets {
        Some(path) => sets::read(&input::bytes(path, "choice set")?, &path.display().to_string())?,
        None if shipped => sets::read(SHIPPED_SETS.as_bytes(), "the shipped choice sets")?,
        None => sets::of_rows(&rows),
    };
    if args.few_runs {
        let results = few::simulated(&rows, &FEW);
        return output::print(&if args.json { to_json(&results) } else { few_text(&results) });
    }
    // Rows that are in the fit are not judged by it, unless that is asked for.
    let in_the_fit = shipped && args.calibration.is_none() && !args.in_fit;
    let result = if args.leave_one_group_out || !args.half_of_jobs.is_empty() || in_the_fit {
        let fold = fold(&args.half_of_jobs);
        let predicted = fit::cross_validated(&rows, &FreeParameters::prior(), fold);
        let bars = left_out_bars(&rows, &predicted, FreeParameters::shipped());
        backtest(
            &rows,
            &predicted,
            Some(&reserve::cross_validated(&rows)),
            &bars,
            &sets,
            &left_out_words(&args.half_of_jobs),
        )
    } else {
        let (calibration, parameters, mode) = match &args.calibration {
            Some(path) => {
                let (calibration, parameters) = input::calibration(path)?;
                let fitted_to = one_line(&calibration.fitted_to);
                let mode = format!(
                    "calibration {}, fitted to {fitted_to}: errors of runs that are in that fit are smaller than those of others",
                    path.display()
                );
                (calibration, parameters, mode)
            }
            None => {
                let known = fitted_ids();
                let in_fit = rows.iter().filter(|row| known.contains(&row.id)).count();
                let mode = match in_fit {
                    0 => "shipped calibration, which was not fitted to these runs".to_owned(),
                    _ => format!(
                        "IN THE FIT: the shipped calibration was fitted to {in_fit} of these {} runs; errors of other runs are larger, see --leave-one-group-out",
                        rows.len()
                    ),
                };
                (Calibration::shipped().clone(), *FreeParameters::shipped(), mode)
            }
        };
        let seconds = |row: &TableRow| {
            row.run.as_ref().ok().map(|run| fit::seconds(run, &StepWork::of(run), &parameters))
        };
        let predicted: Vec<Option<f64>> = rows.iter().map(seconds).collect();
        let bars = calibration.error_bars_of(&rows, &parameters);
        backtest(&rows, &predicted, None, &bars, &sets, &mode)
    };
    output::print(&if args.json { to_json(&result) } else { text(&result, look::view().verbose) })
}

/// The names of the runs to which the shipped calibration was fitted.
fn fitted_ids() -> BTreeSet<String> {
    let ids = |table: &str| {
        let mut reader = ::csv::Reader::from_reader(table.as_bytes());
        let at = reader.headers().ok().and_then(|header| header.iter().position(|name| name == "id"));
        let records = reader.into_records().filter_map(Result::ok);
        records.filter_map(|record| record.get(at?).map(str::to_owned)).collect::<Vec<_>>()
    };
    [SHIPPED_RUNS, SHIPPED_LATER_RUNS].into_iter().flat_map(ids).collect()
}

/// Numbers of own runs of which the error bars are tested.
const FEW: [usize; 6] = [0, 1, 2, 3, 5, 10];

fn left_out_words(halves: &[String]) -> String {
    let words = "LEFT OUT: every group predicted by a fit to the other groups";
    if halves.is_empty() {
        words.to_owned()
    } else {
        format!("{words}; of {}, half of the jobs at a time", halves.join(", "))
    }
}

fn few_text(results: &[FewRuns]) -> String {
    let mut text = format!(
        "every group left out, and calibrated with some of its own runs: errors of the rest\n\n{:>8} {:>14} {:>13} {:>13} {:>8}  {:>13}  {}\n",
        "own runs", "calibrations", "median error", "error bar", "needed", "within bar", "lowest group"
    );
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    for one in results {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:>8} {:>14} {:>13} {:>13} {:>8}  {:>13}  {} ({})",
            one.runs,
            one.calibrations,
            percent(one.median_error),
            percent(one.median_bar),
            percent(one.needed),
            percent(one.covered),
            one_line(&one.lowest.0),
            percent(one.lowest.1)
        );
    }
    text
}

/// Plans over layer times measured by others.
fn measured_plans(path: &Path, json: bool) -> Result<(), Failure> {
    let content = input::bytes(path, "measured plans")?;
    let estimates = MeasuredPlans::read(&path.display().to_string(), &content)?.estimate();
    let priced: Vec<_> = estimates.iter().filter_map(|estimate| estimate.as_ref().ok()).collect();
    if json {
        let refused: Vec<_> = estimates.iter().filter_map(|estimate| estimate.as_ref().err()).collect();
        return output::print(&to_json(&serde_json::json!({ "plans": priced, "refused": refused })));
    }
    let mut text = String::new();
    let percent =
        |error: Option<f64>| error.map_or(String::new(), |error| format!("{:+.1} %", 100.0 * error));
    for estimate in &estimates {
        // Writing to a String cannot fail.
        let _ = match estimate {
            Ok(plan) => writeln!(
                text,
                "{:<52} {:>9}  {:>8}  {:>9}  {:>8}",
                one_line(&plan.id),
                Seconds(plan.predicted_s).to_string(),
                percent(plan.error),
                Bytes(plan.predicted_memory_bytes as u64).to_string(),
                percent(plan.memory_error)
            ),
            Err(reason) => writeln!(text, "refused: {}", one_line(reason)),
        };
    }
    for (name, of) in
        [("time", errors_of(&priced, |p| p.error)), ("memory", errors_of(&priced, |p| p.memory_error))]
    {
        if let Some(errors) = of {
            let _ = writeln!(
                text,
                "{name} of {} plans: median error {:.1} %, mean {:.1} %, largest {:.1} %",
                errors.rows,
                100.0 * errors.median,
                100.0 * errors.mean,
                100.0 * errors.max
            );
        }
    }
    output::print(&text)
}

fn errors_of(plans: &[&PlanEstimate], of: fn(&PlanEstimate) -> Option<f64>) -> Option<ErrorStatistics> {
    ErrorStatistics::of(plans.iter().filter_map(|plan| of(plan)))
}

/// How runs of a group are held out: all, or half of the jobs at a time for the named groups.
pub fn fold(halves: &[String]) -> impl Fn(&str) -> Fold + Sync + '_ {
    |group| if halves.iter().any(|half| half == group) { Fold::Jobs(2) } else { Fold::Group }
}

/// Tables of so many rows are always listed.
const FEW_ROWS: usize = 40;

/// The summary, and with `rows` every run below it.
fn text(result: &Backtest, rows: bool) -> String {
    let mut text = summary(result);
    if !rows && result.rows.len() > FEW_ROWS {
        let refused = result.rows.iter().filter(|row| matches!(row.answer, Answer::Refused { .. })).count();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n`--verbose` lists the {} runs, {refused} of which are refused with the reason",
            result.rows.len()
        );
        return text;
    }
    text.push('\n');
    for row in &result.rows {
        let line = match (&row.answer, row.measured_s) {
            (Answer::Predicted { predicted_s, error, assumptions, .. }, measured) => {
                let measured = measured.map_or("not measured".to_owned(), |s| format!("{s:.4} s"));
                let error = error.map_or(String::new(), |error| format!("{:+.1} %", 100.0 * error));
                format!("{measured:>12}  {predicted_s:>10.4} s  {error:>8}  {}", assumptions.join("; "))
            }
            (Answer::Refused { reason }, _) => format!("refused: {}", one_line(reason)),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<22} {line}", one_line(&row.id));
    }
    text
}

fn summary(result: &Backtest) -> String {
    let mut text = String::new();
    let summary = &result.summary;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{}: relative errors of predicted times, compared with those of one utilisation per device and precision\n",
        summary.mode
    );
    let _ = writeln!(
        text,
        "{:<16} {:<25} {:<9} {:>5} {:>4}  {:>7} {:>7} {:>7} {:>7}   {:>7} {:>7}",
        "group", "device", "precision", "rows", "ref.", "bias", "median", "mean", "p90", "constant", "p90"
    );
    for part in summary.parts.iter().chain([&summary.all]) {
        let _ = writeln!(text, "{}", part_line(part));
    }
    if let Some(covered) = summary.covered {
        let _ = writeln!(text, "\nwithin their error bars: {:.1} %", 100.0 * covered);
        let several = summary.covered_by.len() > 1;
        for Coverage { basis, rows, covered } in summary.covered_by.iter().filter(|_| several) {
            let words = basis.map_or("to which none of the following applies", Basis::words);
            let _ = writeln!(text, "  {:>5.1} % of {rows} {words}", 100.0 * covered);
        }
    }
    let learnt =
        summary.memory_left_out.as_ref().map(|memory| (", its reserve fitted to the other groups", memory));
    for (how, memory) in summary.memory.as_ref().map(|memory| ("", memory)).into_iter().chain(learnt) {
        let _ = writeln!(
            text,
            "memory of {} rows{how}: median {:.1} %, lowest {:+.1} %, {} more than 5 % under",
            memory.errors.rows,
            100.0 * memory.errors.median,
            100.0 * memory.lowest,
            memory.more_than_5_percent_under
        );
    }
    if let Some(choices) = &summary.choices {
        let _ = writeln!(
            text,
            "{} choice sets: mean regret of the predicted best {:.1} %, at most {:.1} %; Kendall tau {}; errors within a set scatter by {:.1} %",
            choices.sets.len(),
            100.0 * choices.mean_regret,
            100.0 * choices.max_regret,
            choices.mean_kendall_tau.map_or("-".to_owned(), |tau| format!("{tau:.2}")),
            100.0 * choices.median_scatter
        );
    }
    text
}

fn part_line(part: &AccuracySlice) -> String {
    let percent = |value: f64| format!("{:.1} %", 100.0 * value);
    let of = |errors: &Option<ErrorStatistics>, value: fn(&ErrorStatistics) -> f64| {
        errors.as_ref().map_or("-".to_owned(), |e| percent(value(e)))
    };
    format!(
        "{:<16} {:<25} {:<9} {:>5} {:>4}  {:>7} {:>7} {:>7} {:>7}   {:>7} {:>7}",
        one_line(&part.group),
        one_line(&part.device),
        one_line(&part.precision),
        part.rows,
        part.refused,
        of(&part.errors, |e| e.bias),
        of(&part.errors, |e| e.median),
        of(&part.errors, |e| e.mean),
        of(&part.errors, |e| e.p90),
        of(&part.constant_mfu, |e| e.median),
        of(&part.constant_mfu, |e| e.p90),
    )
}
