//! `autodist validate`

use super::profile_of;
use crate::cli::{SelectionArgs, ValidateArgs};
use crate::failure::Failure;
use crate::{engine, external, input, output, probe, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_planner::Planner;
use autodist_reports::{csv_validation, terminal};
use autodist_spec::error::in_range;
use autodist_spec::{Alternative, Engine, Plan, Profile, RunRecord, Validation, to_json};
use std::path::Path;

pub fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let plan = input::plan(&args.plan)?;
    in_range("--top", args.selection.top as u64, 1, 100_000)?;
    let engine = engine::of_plan(&args.run, &plan);
    let candidates = candidates(&plan, &args.plan, &args.selection, args.profile.as_ref())?;
    let candidates = runnable(engine, &plan, candidates, args.selection.all)?;
    let options = train::options(&args.run, engine, plan.profile.devices, plan.emulated())?;
    if engine != plan.profile.engine {
        output::warn(&format!(
            "the plan's predictions are of engine {}, but engine {} trains: errors say how the two differ",
            plan.profile.engine.name(),
            engine.name()
        ));
    }
    external::compare_machines(&plan)?;
    let (validation, records) =
        validate(&plan, &candidates, &args.selection, args.probe, &options, &args.output)?;
    if args.json {
        output::print(&to_json(&validation))?;
        return Ok(());
    }
    output::print(&(terminal::validation_table(&validation) + &terminal::compressions(&records)))?;
    Ok(())
}

/// The plans that are to be run, the planner's choice first.
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
            "the plan has {} alternatives: make it with --top {} for more",
            candidates.len(),
            selection.top
        ));
    }
    candidates.truncate(selection.top);
    Ok(candidates)
}

/// Of a whole space what the engine has a way for; a plan that was asked for by itself is refused instead.
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
        output::note(&format!("left out: {} of {count} plans, such as {reason}", count - candidates.len()));
    }
    Ok(candidates)
}

/// Every plan of the space that the document's job allows.
pub fn all(plan: &Plan, profile: &Profile) -> Result<Vec<Alternative>, Failure> {
    Ok(Planner::new(&plan.model, &plan.cluster, &plan.job, profile).feasible()?)
}

/// Runs the candidates and leaves their records, the comparison and its table in `folder`.
pub fn validate(
    plan: &Plan,
    candidates: &[Alternative],
    selection: &SelectionArgs,
    probe_steps: Option<u32>,
    options: &LaunchOptions,
    folder: &Path,
) -> Result<(Validation, Vec<RunRecord>), Failure> {
    in_range("--steps", u64::from(selection.steps), 2, u64::from(u32::MAX))?;
    output::check_writable(&folder.join("validation.json"))?;
    input::check_data_file(selection.data.as_ref())?;
    let data = train::data(selection.data.as_ref(), &plan.model, &plan.job)?;
    let probes = match probe_steps {
        Some(steps) => probe::probe(plan, &data, steps, options)?,
        None => Vec::new(),
    };
    let (validation, records) = train::validate(plan, candidates, &data, selection.steps, options)?;
    let validation = Validation { probes, ..validation };
    for (index, record) in records.iter().enumerate() {
        let name = record.label.replace(['=', '/'], "-").replace(' ', "_");
        output::write(&folder.join(format!("{index:03}-{name}.json")), to_json(record).as_bytes())?;
    }
    output::write(&folder.join("validation.json"), to_json(&validation).as_bytes())?;
    output::write(&folder.join("validation.csv"), csv_validation(&validation).as_bytes())?;
    output::note(&format!(
        "wrote {} run records, validation.json and validation.csv to {}",
        records.len(),
        folder.display()
    ));
    if records.is_empty() {
        let reason =
            validation.failed.first().map_or_else(String::new, |f| format!("{}: {}", f.label, f.reason));
        return Err(Failure::Run(format!("no plan could be run; {reason}")));
    }
    Ok((validation, records))
}
