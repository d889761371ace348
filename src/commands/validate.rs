//! `autodist validate`

use super::profile_of;
use crate::cli::{SelectionArgs, ValidateArgs};
use crate::failure::Failure;
use crate::{external, input, output, probe, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_planner::Planner;
use autodist_reports::{csv_validation, terminal};
use autodist_spec::error::in_range;
use autodist_spec::{Alternative, Plan, Profile, RunRecord, Validation, to_json};
use std::path::Path;

pub fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let plan = input::plan(&args.plan)?;
    in_range("--top", args.selection.top as u64, 1, 100_000)?;
    let candidates = candidates(&plan, &args.plan, &args.selection, args.profile.as_ref())?;
    let options = train::options(&args.run, plan.profile.devices, plan.emulated())?;
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
