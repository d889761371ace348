//! Runs of a trainer against the predictions of a measured profile: the profile is corrected by one factor, because few
//! step times cannot tell a slow link from a slow GEMM.

use super::lists::Listed;
use super::run::{plausible, time};
use super::{Judged, words};
use crate::cli::{CalibrateArgs, MeasuredRunArgs, PriceArgs};
use crate::commands::estimate::AskedMeasured;
use crate::commands::from_trainer::FlagsAndFile;
use crate::commands::{judged, planner, profile_of, refused, without_profile};
use crate::failure::Failure;
use crate::{input, look, output};
use autodist_analytic::few;
use autodist_exporters::logs::StepTime;
use autodist_reports::{Screen, plural};
use autodist_spec::{Check, InputError, Plan, Profile, ProfileCorrection, to_json};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The least error bar of predictions from a profile before any correction: nine of ten plans that were trained on the
/// machine of their profile are within it (docs/validation.md). Runs of one trainer may agree by chance.
const LEAST_BAR: f64 = 0.06;

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    runs: Vec<Judged>,
    findings: Vec<words::Finding>,
    error_bar: f64,
    output: String,
    correction: &'a ProfileCorrection,
}

/// A run, and its prediction by the profile as it is.
struct ProfiledRun {
    id: String,
    measured_s: f64,
    log: Option<StepTime>,
    predicted_s: f64,
    /// Of the prediction, relative.
    bar: f64,
}

impl ProfiledRun {
    /// Logarithm of measured over predicted time.
    fn slower(&self) -> f64 {
        (self.measured_s / self.predicted_s).ln()
    }
}

/// The profile of `--profile`, or the one from which a run's plan was made; nothing if neither is given.
pub fn of_runs(args: &CalibrateArgs, runs: &[Listed]) -> Result<Option<(Profile, PathBuf)>, Failure> {
    if let Some(path) = &args.profile {
        return Ok(Some((judged(input::profile(path)?), path.clone())));
    }
    for run in runs {
        let Some(file) = &run.run.plan_file else { continue };
        let plan = input::nth_plan(file, run.run.number)?;
        if plan.cost_source.profile().is_some() {
            return profile_of(&plan, file, None).map(Some);
        }
    }
    Ok(None)
}

/// Corrects a profile by the runs, and writes it.
pub fn run(
    args: &CalibrateArgs,
    path: &Path,
    (profile, file): (Profile, PathBuf),
    runs: &[Listed],
    name: &str,
) -> Result<(), Failure> {
    let software = crate::cli::SoftwareArgs::default();
    without_profile(software, &args.figures)?;
    if args.from_priors {
        let error = InputError::new("--from-priors", "", "has no effect with a profile");
        return Err(error.hint("remove this option: a profile has no fitted efficiencies").into());
    }
    let runs: Vec<ProfiledRun> =
        runs.iter().map(|one| of_run(one, &profile, &file)).collect::<Result<_, _>>()?;
    let correction = correction(&profile, &runs, name);
    let before = profile.correction.as_ref().map_or(1.0, |correction| correction.factor);
    let factor = correction.factor / before;
    let judged = judge(&runs, factor);
    let findings = vec![words::of_profile(factor, &file.display().to_string())];
    let corrected = Profile { correction: Some(correction.clone()), ..profile };
    corrected.check().map_err(|error| error.in_file(name))?;
    let written =
        output::check_no_input(path).and_then(|()| output::write(path, to_json(&corrected).as_bytes()));
    let text = if args.json {
        to_json(&Report {
            runs: judged,
            findings,
            error_bar: correction.error_bar,
            output: path.display().to_string(),
            correction: &correction,
        })
    } else {
        text(&judged, &findings, &correction, written.is_ok().then_some(path))
    };
    output::print_with(&text, written)
}

fn of_run(listed: &Listed, profile: &Profile, file: &Path) -> Result<ProfiledRun, Failure> {
    let Listed { id, run, .. } = listed;
    let predicted = predicted(run, profile, file).map_err(|failure| listed.blame(failure))?;
    let (measured_s, log) = time(id, run, &predicted, None).map_err(|failure| listed.blame(failure))?;
    plausible(id, &predicted, measured_s)?;
    let estimate = &predicted.estimate;
    Ok(ProfiledRun {
        id: id.clone(),
        measured_s,
        log,
        predicted_s: estimate.step_time_s.0,
        bar: estimate.step_time_spread_s / estimate.step_time_s,
    })
}

fn predicted(run: &MeasuredRunArgs, profile: &Profile, file: &Path) -> Result<Plan, Failure> {
    if let Some(plan) = &run.plan_file {
        let given = input::nth_plan(plan, run.number)?;
        let planner = planner(&given.model, &given.cluster, &given.job, profile);
        let (plan, _) = planner
            .priced(&given.strategy, Some(&given.stages))
            .map_err(|error| refused(&given.strategy, error))?;
        return Ok(plan);
    }
    if let Some(trainer) = run.trainer {
        let error = InputError::new("--trainer", trainer, "has no effect with a profile");
        return Err(error.hint("remove this option, or `--profile`").into());
    }
    let price = PriceArgs {
        profile: Some(file.to_owned()),
        cluster: run.cluster.clone(),
        device_memory: None,
        price: None,
    };
    let flags = FlagsAndFile {
        from: &run.from,
        model: run.model.as_deref(),
        job: &run.job,
        strategy: &run.strategy,
        search: false,
    };
    Ok(AskedMeasured::of(flags, &price)?.plan()?.0)
}

fn correction(profile: &Profile, runs: &[ProfiledRun], name: &str) -> ProfileCorrection {
    let common = mean(runs.iter().map(ProfiledRun::slower));
    let left_out: Vec<f64> = (0..runs.len()).map(|index| left_out(runs, index)).collect();
    // Predictions that the runs refute were no better than by how much they do.
    let stated = runs.iter().map(|run| run.bar).fold(LEAST_BAR.max(common.abs()), f64::max);
    let before = profile.correction.as_ref().map_or(1.0, |correction| correction.factor);
    ProfileCorrection {
        fitted_to: format!("{} of {name}", plural(runs.len() as u64, "run")),
        runs: runs.len() as u32,
        factor: rounded(before * common.exp()),
        error_bar: rounded(few::bar_of_own_runs(stated, &left_out)),
    }
}

/// Logarithm of predicted over measured time of one run, corrected by the others.
fn left_out(runs: &[ProfiledRun], index: usize) -> f64 {
    let others = runs.iter().enumerate().filter(|(other, _)| *other != index);
    mean(others.map(|(_, run)| run.slower())) - runs[index].slower()
}

/// 0 of no values.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// Four digits: more would be noise.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn judge(runs: &[ProfiledRun], factor: f64) -> Vec<Judged> {
    let of = |(index, run): (usize, &ProfiledRun)| Judged {
        id: run.id.clone(),
        measured_s: run.measured_s,
        before_s: run.predicted_s,
        after_s: run.predicted_s * factor,
        error_before: run.predicted_s / run.measured_s - 1.0,
        error_after: run.predicted_s * factor / run.measured_s - 1.0,
        error_left_out: (runs.len() > 1).then(|| left_out(runs, index).exp_m1()),
        log: run.log.clone(),
    };
    runs.iter().enumerate().map(of).collect()
}

fn text(
    judged: &[Judged],
    findings: &[words::Finding],
    correction: &ProfileCorrection,
    written: Option<&Path>,
) -> String {
    let view = look::view();
    let mut screen = Screen::new(&view);
    super::fitted(&mut screen, judged, findings, 0);
    screen.blank();
    screen.paragraph(format!(
        "plans with this profile: ± {:.1} %, from {} and what the scatter of trained plans leaves open; nine of ten further \
         runs are expected within it",
        100.0 * correction.error_bar,
        plural(u64::from(correction.runs), "run"),
    ));
    screen.paragraph("memory: not changed; its measurements stay as they are");
    super::alone(&mut screen, judged.len());
    if let Some(path) = written {
        screen.blank();
        let path = path.display();
        screen.paragraph(format!("wrote {path}; use it with `autodist plan --profile {path}`"));
    }
    screen.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_cost_model::synthetic::SyntheticMachine;
    use autodist_spec::{Job, catalog};

    fn of(measured: &[f64]) -> ProfileCorrection {
        let profile =
            SyntheticMachine::new(1).profile(&catalog::model("tiny-gpt").unwrap(), &Job::new(8, 64));
        let run = |seconds: &f64| ProfiledRun {
            id: String::new(),
            measured_s: *seconds,
            log: None,
            predicted_s: 1.0,
            bar: 0.02,
        };
        correction(&profile, &measured.iter().map(run).collect::<Vec<_>>(), "log")
    }

    #[test]
    fn the_factor_is_common_and_few_runs_leave_a_bar() {
        let one = of(&[1.2]);
        assert_eq!((one.factor, one.runs), (1.2, 1));
        // A profile that was 20 % off is not known to 2 % by one run.
        assert!(one.error_bar > 0.12, "{one:?}");
        let three = of(&[1.2, 1.2, 1.2]);
        assert!(three.error_bar < one.error_bar && three.error_bar > 0.08, "{three:?}");
        // As sure as the trained plans of docs/validation.md, and no surer.
        let exact = of(&[1.0, 1.0, 1.0]);
        assert!(exact.error_bar > 0.03 && exact.error_bar <= LEAST_BAR, "{exact:?}");
        // Runs that contradict each other widen it.
        assert!(of(&[0.8, 1.3, 1.1]).error_bar > 0.25);
    }
}
