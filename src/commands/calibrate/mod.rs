//! `autodist calibrate`: "the prediction says X, my trainer measures Y".

mod lists;
mod of_profile;
mod run;
mod words;

use super::backtest::fold;
use crate::cli::{CalibrateArgs, MeasuredRunArgs};
use crate::failure::Failure;
use crate::{input, look, output};
use autodist_analytic::table::TableRow;
use autodist_analytic::{Calibration, Fold, FreeParameters, Generation, few, fit, usual_fold};
use autodist_reports::{Align, Screen, Table, plural, terminal};
use autodist_spec::{Check, InputError, Seconds, one_line, to_json};
use lists::Listed;
pub use run::OwnRun;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// A fit without the built-in efficiencies needs as many runs.
const FEWEST: usize = 3;

/// The prediction of one run.
#[derive(Debug, Serialize)]
struct Judged {
    id: String,
    measured_s: f64,
    before_s: f64,
    after_s: f64,
    /// Predicted over measured, - 1.
    error_before: f64,
    error_after: f64,
    /// By a fit to the other runs; absent for a single run.
    error_left_out: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<autodist_exporters::logs::StepTime>,
}

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    runs: Vec<Judged>,
    findings: Vec<words::Finding>,
    /// Of plans on the same devices with the same trainer.
    error_bar: f64,
    /// Of all other plans, as before.
    error_bar_elsewhere: f64,
    output: String,
    calibration: &'a Calibration,
}

/// Where the runs are from.
struct Runs<'a> {
    own: Vec<OwnRun<'a>>,
    rows: Vec<TableRow>,
    name: String,
}

pub fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let output = match (&args.output, args.template) {
        (Some(path), false) => path,
        _ => return output::print(lists::TEMPLATE),
    };
    output::check_writable(output)?;
    let (base, middle) = match &args.figures.calibration {
        Some(path) => input::calibration(path)?,
        None if args.from_priors => (Calibration::shipped().clone(), FreeParameters::prior()),
        None => (Calibration::shipped().clone(), *FreeParameters::shipped()),
    };
    let (tables, mut listed) = self::tables(&args.runs, args.profile.is_some())?;
    if is_given(&args.run) {
        let run = args.run.clone();
        let file = run.log.as_ref().or(run.plan_file.as_ref());
        let id = file.map_or("run".to_owned(), |path| path.display().to_string());
        listed.push(Listed { id, place: String::new(), run });
    }
    if let Some(one) = listed.iter().find(|one| one.run.number.number != 1 && one.run.plan_file.is_none()) {
        let error = InputError::new("--plan", one.run.number.number, "has no effect without --plan-file");
        return Err(one.blame(error.hint("give the plan document by `--plan-file`").into()));
    }
    let name = name(args);
    if let Some(profile) = of_profile::of_runs(args, &listed)? {
        if let Some(table) = tables.first() {
            let error =
                InputError::new("", "", "is a table of sizes, which a profile of one model does not have");
            return Err(error
                .hint("give runs of the profile's model: a table with the columns `plan_file` or `tp`, `pp`, … and `log` or `measured`")
                .in_file(&table.display().to_string())
                .into());
        }
        return of_profile::run(args, output, profile, &listed, &name);
    }
    let own = listed.iter().map(|one| {
        OwnRun::of(&one.id, &one.run, &args.figures, &middle).map_err(|failure| one.blame(failure))
    });
    let own: Vec<OwnRun> = own.collect::<Result<_, _>>()?;
    let mut rows: Vec<TableRow> = own.iter().map(|one| one.row.clone()).collect();
    rows.extend(if tables.is_empty() {
        Vec::new()
    } else {
        input::runs(&tables, &input::catalogue(&args.figures.catalogue)?)?
    });
    let runs = Runs { own, rows, name };
    check_count(&runs, args.from_priors)?;
    calibrate(args, output, &runs, &base, &middle)
}

fn is_given(run: &MeasuredRunArgs) -> bool {
    !run.from.is_empty() || run.plan_file.is_some() || run.measured.is_some() || run.log.is_some()
}

/// The files of the runs.
fn name(args: &CalibrateArgs) -> String {
    let mut names: Vec<String> = args.runs.iter().map(|path| path.display().to_string()).collect();
    names.extend(args.run.log.iter().map(|path| path.display().to_string()));
    names.extend(args.run.from.get(1).cloned());
    names.extend(args.run.plan_file.iter().map(|path| path.display().to_string()));
    if names.is_empty() { "the command line".to_owned() } else { names.join(", ") }
}

/// The tables of sizes, and the runs of lists.
///
/// # Errors
/// A file cannot be read, or is neither; with `of_profile` every table has to name plans or strategies.
pub fn tables(paths: &[PathBuf], of_profile: bool) -> Result<(Vec<PathBuf>, Vec<Listed>), Failure> {
    let (mut tables, mut listed) = (Vec::new(), Vec::new());
    for path in paths {
        let file = path.display().to_string();
        if path.extension().is_some_and(|ext| ext == "toml") {
            listed.extend(lists::toml(&input::bytes(path, "run table")?, &file)?);
            continue;
        }
        let content = input::bytes(path, "run table")?;
        refuse_document(&file, &content)?;
        if of_profile || lists::is_list(&content) {
            listed.extend(lists::csv(&content, &file)?)
        } else {
            tables.push(path.clone())
        }
    }
    Ok((tables, listed))
}

/// # Errors
/// A document of autodist in place of a table.
fn refuse_document(file: &str, content: &[u8]) -> Result<(), InputError> {
    if !content.trim_ascii_start().starts_with(b"{") {
        return Ok(());
    }
    let hint = match input::kind(file, content) {
        Some("plan") => format!("give it by `--plan-file {file}`, with `--log` or `--measured`"),
        Some("profile") => format!("give it by `--profile {file}`"),
        Some("run") => format!("give it by `--log {file}`, and its plan by `--plan-file`"),
        _ => "`autodist calibrate --template` prints a table".to_owned(),
    };
    Err(InputError::new("", "", "is a JSON document, not a table of runs").hint(hint).in_file(file))
}

fn check_count(runs: &Runs, from_priors: bool) -> Result<(), InputError> {
    let needed = if from_priors { FEWEST } else { 1 };
    let usable = runs.rows.iter().filter(|row| row.is_for_fitting()).count();
    if usable >= needed {
        return Ok(());
    }
    let reason = runs.rows.iter().find_map(|row| row.run.as_ref().err());
    let problem =
        format!("has {usable} usable runs of {}, but a fit needs at least {needed}", runs.rows.len());
    let hint = reason.map_or("add measured runs of dense models in 16 or 8 bits".to_owned(), |r| {
        format!("one of the unusable rows: {}", one_line(r))
    });
    Err(InputError::new("", "", problem).in_file(&runs.name).hint(hint))
}

fn calibrate(
    args: &CalibrateArgs,
    path: &std::path::Path,
    runs: &Runs,
    base: &Calibration,
    middle: &FreeParameters,
) -> Result<(), Failure> {
    let rows = &runs.rows;
    let usable = rows.iter().filter(|row| row.is_for_fitting()).count();
    let count = if usable == 1 { "1 run".to_owned() } else { format!("{usable} runs") };
    let fitted_to = format!("{count} of {}", runs.name);
    let left_out = few::left_out(rows, middle);
    let calibration = if args.from_priors {
        let usual = usual_fold(rows);
        let named = fold(&args.half_of_jobs);
        let by_group = |group: &str| if usual == Fold::Group { named(group) } else { usual };
        Calibration::of(rows, middle, &fit::cross_validated(rows, middle, by_group), &fitted_to)
    } else {
        base.with_own_runs(rows, middle, &left_out, &fitted_to)
    };
    let mut content = String::from(
        "# Efficiencies of training runs, fitted by `autodist calibrate`. docs/files.md explains every number.\n\n",
    );
    content.push_str(&calibration.to_toml());
    // Ensures that the file can be read again.
    calibration.check().map_err(|error| {
        let problem = format!("the fitted `{}` is `{}`: {}", error.field, error.value, error.problem);
        let hint = "look for runs with an implausible time or size; `autodist backtest` lists every run";
        InputError::new("", "", problem).hint(hint).in_file(&runs.name)
    })?;
    let fitted = FreeParameters::from_table(&calibration.parameters)?;
    let judged = judge(runs, middle, &fitted, &left_out)?;
    let findings = findings(rows, middle, &fitted);
    let written = output::check_no_input(path).and_then(|()| output::write(path, content.as_bytes()));
    let bar = calibration.own.as_ref().map_or(calibration.error_bar, |own| own.error_bar);
    let text = if args.json {
        to_json(&Report {
            runs: judged,
            findings,
            error_bar: bar,
            error_bar_elsewhere: calibration.error_bar,
            output: path.display().to_string(),
            calibration: &calibration,
        })
    } else {
        let mut text = text(&judged, &findings, &calibration, rows.len());
        let _ = match &written {
            Ok(()) => {
                let used = format!(
                    "\nwrote {0}; use it with `autodist plan --cluster … --calibration {0}`",
                    path.display()
                );
                write!(text, "{}", terminal::wrapped(&used, &look::view()))
            }
            // The fit took minutes, so it is printed for the user to keep.
            Err(_) => write!(text, "\nnot written to {}:\n{content}", path.display()),
        };
        text
    };
    output::print_with(&text, written)
}

/// The errors before and after; of runs with a plan by its simulation, else by the closed form.
fn judge(
    runs: &Runs,
    middle: &FreeParameters,
    fitted: &FreeParameters,
    left_out: &[f64],
) -> Result<Vec<Judged>, Failure> {
    let mut judged = Vec::new();
    let usable = runs.rows.iter().enumerate().filter(|(_, row)| row.is_for_fitting());
    for ((index, row), left_out) in usable.zip(left_out) {
        let (Ok(run), Some(scaled_s)) = (&row.run, row.measured_s) else { continue };
        let own = runs.own.get(index);
        let work = autodist_analytic::StepWork::of(run);
        let (measured_s, before_s, after_s) = match own {
            Some(own) => (own.measured_s, own.before_s, own.predicted_s(fitted)?),
            None => (scaled_s, fit::seconds(run, &work, middle), fit::seconds(run, &work, fitted)),
        };
        judged.push(Judged {
            id: row.id.clone(),
            measured_s,
            before_s,
            after_s,
            error_before: before_s / measured_s - 1.0,
            error_after: after_s / measured_s - 1.0,
            error_left_out: (left_out_is_known(runs)).then(|| left_out.exp_m1()),
            log: own.and_then(|own| own.log.clone()),
        });
    }
    Ok(judged)
}

fn left_out_is_known(runs: &Runs) -> bool {
    runs.rows.iter().filter(|row| row.is_for_fitting()).count() > 1
}

fn findings(rows: &[TableRow], before: &FreeParameters, after: &FreeParameters) -> Vec<words::Finding> {
    let runs = || rows.iter().filter(|row| row.is_for_fitting()).filter_map(|row| row.run.as_ref().ok());
    let mut devices: Vec<(String, Generation)> =
        runs().map(|run| (run.machine.device_name.clone(), run.machine.generation)).collect();
    devices.sort();
    devices.dedup();
    let nodes = runs().any(|run| run.layout.devices() > run.machine.devices_per_node);
    words::findings(before, after, &devices, nodes)
}

/// What the runs tell, and each of them.
fn fitted(screen: &mut Screen, judged: &[Judged], findings: &[words::Finding], refused: usize) {
    let others = match refused {
        0 => String::new(),
        1 => "; 1 other row cannot be used".to_owned(),
        _ => format!("; {refused} other rows cannot be used"),
    };
    screen.paragraph(format!("fitted to {}{others}", plural(judged.len() as u64, "run")));
    findings.iter().for_each(|finding| screen.prose(&format!("  {}", finding.text)));
    if judged.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("run", Align::Left),
        ("measured", Align::Right),
        ("predicted before", Align::Right),
        ("after", Align::Right),
        ("left out", Align::Right),
    ]);
    let percent = |error: f64| format!("{:+.1} %", 100.0 * error);
    let with = |seconds: f64, error: f64| format!("{} {}", Seconds(seconds), percent(error));
    for one in judged {
        table.row([
            one.id.clone(),
            Seconds(one.measured_s).to_string(),
            with(one.before_s, one.error_before),
            with(one.after_s, one.error_after),
            one.error_left_out.map_or("-".to_owned(), percent),
        ]);
    }
    screen.blank();
    screen.table(&table);
}

/// What a single run lacks.
fn alone(screen: &mut Screen, runs: usize) {
    if runs == 1 {
        screen.paragraph(
            "one run has nothing to be compared with: more runs, of other layouts, make the fit surer",
        );
    }
}

fn text(judged: &[Judged], findings: &[words::Finding], calibration: &Calibration, rows: usize) -> String {
    let view = look::view();
    let mut screen = Screen::new(&view);
    fitted(&mut screen, judged, findings, rows - judged.len());
    screen.blank();
    let usual = 100.0 * calibration.error_bar;
    match &calibration.own {
        Some(own) => {
            screen.paragraph(format!(
                "plans on {} with {}: ± {:.1} %, from {} and what the scatter of published runs leaves open; nine of ten further \
                 runs are expected within it",
                own.devices.join(", "),
                own.trainers.join(", "),
                100.0 * own.error_bar,
                plural(own.runs as u64, "run")
            ));
            screen.paragraph(format!(
                "other devices, trainers and precisions: not changed by these runs; they keep the shipped efficiencies, with ± \
                 {usual:.1} % or more"
            ));
        }
        None => screen.paragraph(format!(
            "plans: ± {usual:.1} %: nine of ten of these runs, each predicted by a fit to other ones, and a margin for groups \
             that were not seen; their median error is {:.1} %",
            100.0 * calibration.median_error
        )),
    }
    alone(&mut screen, judged.len());
    screen.finish()
}
