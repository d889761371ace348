//! `autodist backtest`

mod text;

use super::calibrate::{self, OwnRun};
use crate::cli::{BacktestArgs, FigureArgs};
use crate::failure::Failure;
use crate::{input, look, output};
use autodist_analytic::backtest::{Answer, Backtest, Outcome};
use autodist_analytic::few;
use autodist_analytic::measured::MeasuredPlans;
use autodist_analytic::table::{self, TableRow};
use autodist_analytic::{
    Calibration, Fold, FreeParameters, StepWork, backtest, fit, left_out_bars, reserve, sets,
};
use autodist_hardware::Catalogue;
use autodist_reports::{BacktestPoint, backtest_figure};
use autodist_spec::{one_line, to_json};
use std::collections::BTreeSet;
use std::path::Path;

const SHIPPED_RUNS: &str = include_str!("../../../catalog/published/training_runs.csv");
/// They are in the fit, too.
const SHIPPED_LATER_RUNS: &str = include_str!("../../../catalog/published/later_runs.csv");
const SHIPPED_SETS: &str = include_str!("../../../catalog/published/choice_sets.csv");

pub fn run(args: &BacktestArgs) -> Result<(), Failure> {
    if let Some(path) = &args.measured_plans {
        return measured_plans(path, args.json);
    }
    let catalogue = input::catalogue(&args.catalogue)?;
    let shipped = args.runs.is_empty();
    let (mut rows, own) = if shipped {
        (table::read(SHIPPED_RUNS.as_bytes(), "the shipped runs", &catalogue)?, Vec::new())
    } else {
        given(args, &catalogue)?
    };
    let sets = match &args.choice_sets {
        Some(path) => sets::read(&input::bytes(path, "choice set")?, &path.display().to_string())?,
        None if shipped => sets::read(SHIPPED_SETS.as_bytes(), "the shipped choice sets")?,
        None => sets::of_rows(&rows),
    };
    if args.few_runs {
        let results = few::simulated(&rows, &FEW);
        return if args.json {
            output::print(&to_json(&results))
        } else {
            output::show(&text::of_few_runs(&results))
        };
    }
    // Rows that are in the fit are not judged by it, unless that is asked for.
    let in_the_fit = shipped && args.calibration.is_none() && !args.in_fit;
    let result = if args.leave_one_group_out || !args.half_of_jobs.is_empty() || in_the_fit {
        let fold = fold(&args.half_of_jobs);
        let predicted = fit::cross_validated(&rows, &FreeParameters::prior(), fold);
        let predicted = as_simulated(&mut rows, &own, predicted);
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
        let predicted = as_simulated(&mut rows, &own, predicted);
        let bars = calibration.error_bars_of(&rows, &parameters);
        backtest(&rows, &predicted, None, &bars, &sets, &mode)
    };
    let drawn = args.figure.as_deref().map_or(Ok(()), |path| figure(&result, path));
    let text = if args.json { to_json(&result) } else { text::of_backtest(&result, look::view().verbose) };
    output::print_with(&text, drawn)
}

/// The rows of the tables; the first ones are of runs that name models and clusters, with their measured times.
fn given(args: &BacktestArgs, catalogue: &Catalogue) -> Result<(Vec<TableRow>, Vec<f64>), Failure> {
    let (tables, listed) = calibrate::tables(&args.runs, false)?;
    let figures = FigureArgs { calibration: None, catalogue: args.catalogue.clone() };
    let parameters = match &args.calibration {
        Some(path) => input::calibration(path)?.1,
        None => *FreeParameters::shipped(),
    };
    let (mut rows, mut own) = (Vec::new(), Vec::new());
    for one in &listed {
        let run =
            OwnRun::of(&one.id, &one.run, &figures, &parameters).map_err(|failure| one.blame(failure))?;
        own.push(run.measured_s);
        rows.push(run.row);
    }
    if !tables.is_empty() {
        rows.extend(input::runs(&tables, catalogue)?);
    }
    Ok((rows, own))
}

/// The times of rows that name models and clusters are those of their closed form: brings them, measured and predicted,
/// to those of the simulated plan.
fn as_simulated(rows: &mut [TableRow], own: &[f64], predicted: Vec<Option<f64>>) -> Vec<Option<f64>> {
    let mut predicted = predicted;
    for ((row, predicted), measured_s) in rows.iter_mut().zip(&mut predicted).zip(own) {
        if let Some(closed_s) = row.measured_s.replace(*measured_s) {
            *predicted = predicted.map(|seconds| seconds * measured_s / closed_s);
        }
    }
    predicted
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

/// Plans over layer times measured by others.
fn measured_plans(path: &Path, json: bool) -> Result<(), Failure> {
    let content = input::bytes(path, "measured plans")?;
    let estimates = MeasuredPlans::read(&path.display().to_string(), &content)?.estimate();
    let priced: Vec<_> = estimates.iter().filter_map(|estimate| estimate.as_ref().ok()).collect();
    if json {
        let refused: Vec<_> = estimates.iter().filter_map(|estimate| estimate.as_ref().err()).collect();
        return output::print(&to_json(&serde_json::json!({ "plans": priced, "refused": refused })));
    }
    output::show(&text::of_plans(&estimates))
}

/// How runs of a group are held out: all, or half of the jobs at a time for the named groups.
pub fn fold(halves: &[String]) -> impl Fn(&str) -> Fold + Sync + '_ {
    |group| if halves.iter().any(|half| half == group) { Fold::Jobs(2) } else { Fold::Group }
}

/// Predicted against measured times of the rows.
fn figure(result: &Backtest, path: &Path) -> Result<(), Failure> {
    output::check_no_input(path)?;
    let point = |row: &Outcome| match (&row.answer, row.measured_s) {
        (Answer::Predicted { predicted_s, .. }, Some(measured_s)) => {
            Some(BacktestPoint { kind: row.device.clone(), measured_s, predicted_s: *predicted_s })
        }
        _ => None,
    };
    let points: Vec<BacktestPoint> = result.rows.iter().filter_map(point).collect();
    let finding = match &result.summary.all.errors {
        None => "No run was measured and predicted".to_owned(),
        Some(errors) => format!(
            "{} runs: median error {:.1} %, nine of ten within {:.1} %",
            errors.rows,
            100.0 * errors.median,
            100.0 * errors.p90
        ),
    };
    let drawn = backtest_figure(&finding, &result.summary.mode, &points);
    let drawn = drawn.map_err(|error| Failure::Run(format!("drawing the figure: {error}")))?;
    output::write(path, &drawn)?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}
