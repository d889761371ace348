//! `autodist validate`

use super::profile_of;
use crate::cli::{SelectionArgs, ValidateArgs};
use crate::compare::compare;
use crate::failure::Failure;
use crate::rounds::{Earlier, MOST_STEPS, Session};
use crate::{devices, engine, external, handover, input, look, output, probe, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_reports::{csv_validation, plural, terminal};
use autodist_spec::error::in_range;
use autodist_spec::run::FailedRun;
use autodist_spec::{Alternative, CodecProbe, Engine, Plan, Profile, RunRecord, Validation, text, to_json};
use std::path::Path;

pub fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let plan = input::plan(&args.plan)?;
    in_range("--top", args.selection.top as u64, 1, 100_000)?;
    let engine = engine::of_plan(&args.run, &plan);
    let candidates = candidates(&plan, &args.plan, &args.selection, args.profile.as_ref())?;
    let candidates = runnable(engine, &plan, candidates, args.selection.all)?;
    devices::check_precision_of(&plan)?;
    let options = train::options(&args.run, engine, plan.cost_source.devices(), plan.emulated())?;
    if engine != plan.cost_source.engine() {
        output::warn(&format!(
            "the plan's predictions are for engine {}, but engine {} trains: errors show how the two engines differ",
            plan.cost_source.engine().name(),
            engine.name()
        ));
    }
    external::compare_machines(&plan)?;
    let _claim = output::claim(&args.output.join("validation.json"))?;
    let earlier = if args.resume { Earlier::Resume } else { Earlier::Replace };
    let Validated { validation, records, mut failure } =
        validate(&plan, &candidates, &args.selection, args.probe, &options, &args.output, earlier)?;
    if let Some(failure) = failure.take_if(|_| records.is_empty() && validation.is_empty()) {
        return Err(failure);
    }
    let mut answer = String::new();
    // If it ended early, the document stays unchanged, so that --resume can continue.
    if engine == plan.cost_source.engine() && validation.ended.is_none() {
        let measured = (&validation, records.as_slice());
        let profile = profile_of(&plan, &args.plan, args.profile.as_ref()).ok().map(|(profile, _)| profile);
        let keep = plan.alternatives.len().max(FEWEST_KEPT);
        let plan = handover::measured_first(&plan, &candidates, measured, profile.as_ref(), keep);
        let written = handover::replace(&args.plan, &plan, &args.output).map(|written| {
            let order = format!("{}: the fastest measured plan now comes first", written.display());
            output::note(&order);
            ("written", order)
        });
        let lines = written.as_ref().map_or(&[][..], std::slice::from_ref);
        answer = terminal::answer(&plan, &validation, lines, &look::view()) + "\n";
        failure = failure.or(written.err());
    }
    let view = look::view();
    output::show(&if args.json {
        to_json(&validation)
    } else {
        answer + &terminal::validation_table(&validation, &view) + &terminal::compressions(&records, &view)
    })?;
    failure.map_or_else(|| handover::outcome(&validation), Err)
}

/// Minimum number of alternatives that a document keeps of all trained plans.
const FEWEST_KEPT: usize = 4;

/// The plans to train, the planner's choice first.
fn candidates(
    plan: &Plan,
    path: &Path,
    selection: &SelectionArgs,
    profile: Option<&std::path::PathBuf>,
) -> Result<Vec<Alternative>, Failure> {
    if selection.all {
        let (profile, _) = profile_of(plan, path, profile)?;
        return all(plan, &profile);
    }
    let mut candidates = train::candidates(plan);
    if candidates.len() < selection.top {
        output::warn(&format!(
            "the plan document holds only {}: create it with `autodist plan --top {}` for more",
            plural(candidates.len() as u64, "plan"),
            selection.top
        ));
    }
    candidates.truncate(selection.top);
    Ok(candidates)
}

/// The plans of a whole space that the engine supports. An unsupported plan outside `--all` is refused
/// instead.
fn runnable(
    engine: Engine,
    plan: &Plan,
    mut candidates: Vec<Alternative>,
    all: bool,
) -> Result<Vec<Alternative>, Failure> {
    if !all {
        for (index, candidate) in candidates.iter().enumerate() {
            let field = if index == 0 {
                "strategy".to_owned()
            } else {
                format!("alternatives[{}].strategy", index - 1)
            };
            engine::check(engine, plan, &candidate.strategy, &field)?;
        }
        return Ok(candidates);
    }
    let count = candidates.len();
    let mut reason = None;
    candidates.retain(|candidate| {
        let broken = engine::check(engine, plan, &candidate.strategy, "strategy").err();
        reason = reason.take().or_else(|| broken.as_ref().map(ToString::to_string));
        broken.is_none()
    });
    if let Some(reason) = reason {
        output::note(&format!(
            "not trained: {} of {count} plans, for example {reason}",
            count - candidates.len()
        ));
    }
    Ok(candidates)
}

/// Every plan of the space that the document's job allows.
pub fn all(plan: &Plan, profile: &Profile) -> Result<Vec<Alternative>, Failure> {
    Ok(super::planner(&plan.model, &plan.cluster, &plan.job, profile).feasible()?)
}

/// The result of a validation, complete or partial.
pub struct Validated {
    pub validation: Validation,
    pub records: Vec<RunRecord>,
    /// Why the result is incomplete or not saved: returned after the results are printed.
    pub failure: Option<Failure>,
}

/// Runs the candidates and writes their records, the comparison and its table to `folder`, each as soon as it
/// is complete.
pub fn validate(
    plan: &Plan,
    candidates: &[Alternative],
    selection: &SelectionArgs,
    probe_steps: Option<u32>,
    options: &LaunchOptions,
    folder: &Path,
    earlier: Earlier,
) -> Result<Validated, Failure> {
    in_range("--steps", u64::from(selection.steps), 2, MOST_STEPS)?;
    output::check_writable(&folder.join("validation.json"))?;
    input::check_data_file(selection.data.as_ref())?;
    let data = train::data(selection.data.as_ref(), &plan.model, &plan.job)?;
    let mut session = Session::new(plan, candidates, &data, selection.steps, options, folder, earlier)?;
    let mut probes = Vec::new();
    if let Some(steps) = probe_steps {
        session.ended = probe::probe(plan, &data, steps, options, &mut probes)?;
    }
    if session.ended.is_none() {
        session.train(options, |session| {
            // Write errors are reported at the end.
            let (validation, _) = found(plan, candidates, session, &probes);
            let _ = output::write_growing(&folder.join("validation.json"), to_json(&validation).as_bytes());
        });
    }
    let (validation, records) = found(plan, candidates, &session, &probes);
    let written = write(&mut session, &validation, &records);
    Ok(Validated { failure: failure(session, written), validation, records })
}

/// The comparison of the measured plans; a plan that failed after some rounds is included with those.
fn found(
    plan: &Plan,
    candidates: &[Alternative],
    session: &Session<'_>,
    probes: &[CodecProbe],
) -> (Validation, Vec<RunRecord>) {
    let (mut tried, mut outcomes) = (Vec::new(), Vec::new());
    let mut failed = Vec::new();
    for (candidate, trial) in candidates.iter().zip(&session.plans) {
        match (&trial.record, &trial.failed) {
            (Some(record), later) => {
                outcomes.push(Ok(record.clone()));
                let of = |reason: &String| FailedRun { label: trial.label.clone(), reason: reason.clone() };
                failed.extend(later.as_ref().map(of));
            }
            (None, Some(reason)) => outcomes.push(Err(reason.clone())),
            // It has not run yet.
            (None, None) => continue,
        }
        tried.push(candidate.clone());
    }
    let (mut validation, records) = compare(plan, &tried, outcomes, session.per_round as usize);
    validation.failed.extend(failed);
    validation.probes = probes.to_vec();
    validation.ended = session.ended.as_ref().map(|failure| {
        text::joined(&format!("{failure}; {} of {} plans were trained", records.len(), candidates.len()))
    });
    (validation, records)
}

fn write(session: &mut Session<'_>, validation: &Validation, records: &[RunRecord]) -> Result<(), Failure> {
    if records.is_empty() && validation.probes.is_empty() && validation.failed.is_empty() {
        return Ok(());
    }
    session.unsaved()?;
    let folder = session.folder;
    output::write(&folder.join("validation.json"), to_json(validation).as_bytes())?;
    output::write(&folder.join("validation.csv"), csv_validation(validation).as_bytes())?;
    output::note(&format!(
        "wrote {}, validation.json and validation.csv to {}{}",
        plural(records.len() as u64, "run record"),
        folder.display(),
        if session.ended.is_some() { ": the same command with --resume continues from there" } else { "" }
    ));
    Ok(())
}

/// The error that ended the validation or a write error; if there are both, the first is returned and the
/// second printed.
fn failure(session: Session<'_>, written: Result<(), Failure>) -> Option<Failure> {
    let mut failures = session.ended.into_iter().chain(written.err());
    let worst = failures.next();
    failures.for_each(|failure| output::error(&failure));
    worst
}
