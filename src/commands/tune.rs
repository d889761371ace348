//! `autodist tune`: profile → plan → validate → report.

use super::{plan as plan_command, profile as profile_command, report, validate};
use crate::cli::{SelectionArgs, TuneArgs};
use crate::failure::Failure;
use crate::{devices, engine, input, output, train};
use autodist_planner::{Planner, SearchLimits};
use autodist_reports::terminal;
use autodist_spec::error::in_range;
use autodist_spec::{Plan, Profile, Validation, to_json};
use serde::Serialize;

/// The stable shape of `tune --json`.
#[derive(Serialize)]
struct Tuned<'a> {
    profile: &'a Profile,
    best: &'a Plan,
    validated: &'a Validation,
}

/// Medians of the default run are known to about this; more would cost minutes.
const INTERVAL: f64 = 0.05;

pub fn run(args: &TuneArgs) -> Result<(), Failure> {
    let model = input::model(&args.model.model)?;
    let seq_len = profile_command::DEFAULT_SEQ_LEN.min(model.max_seq_len);
    let job = input::job(&args.job, Some(profile_command::DEFAULT_BATCH), Some(seq_len), None)?;
    let devices = devices::choose(args.ranks.kind())?;
    let engine = engine::asked_for(&args.run);
    let mut request =
        profile_command::request(model, job, &args.ranks, &devices, engine, args.budget, INTERVAL)?;
    input::narrow(&mut request.job, &args.strategy, request.ranks)?;
    // Hours of profiling come first: everything that can be wrong is looked at before them.
    in_range("--top", args.top as u64, 1, 100_000)?;
    in_range("--steps", u64::from(args.steps), 2, u64::from(u32::MAX))?;
    input::check_data_file(args.data.as_ref())?;
    train::data(args.data.as_ref(), &request.model, &request.job)?;
    let options = train::options(&args.run, engine, devices.kind, request.emulated.as_ref())?;
    let folder = &args.output;
    output::check_writable(&folder.join("plan.json"))?;
    let profile = profile_command::obtain(&request, &options, &folder.join("profile.json"), false)?;

    let limits = SearchLimits { top: args.top, ..SearchLimits::default() };
    let planner = Planner::new(&request.model, &profile.cluster, &request.job, &profile).limits(limits);
    let mut plan = planner.plan()?;
    plan.profile.path = "profile.json".to_owned();
    plan_command::write(&plan, Some(&folder.join("plan.json")))?;

    let selection = SelectionArgs { top: args.top, all: false, steps: args.steps, data: args.data.clone() };
    let candidates = train::candidates(&plan);
    let (validation, records) =
        validate::validate(&plan, &candidates, &selection, None, &options, &folder.join("runs"))?;
    let page = report::write(&plan, Some(&profile), Some(&validation), &records, &folder.join("report"))?;

    if args.json {
        output::print(&to_json(&Tuned { profile: &profile, best: &plan, validated: &validation }))?;
        return Ok(());
    }
    output::print(&terminal::profile_summary(&profile))?;
    output::print(&terminal::plan_summary(&plan))?;
    output::print(&terminal::validation_table(&validation))?;
    output::print(&format!("Everything is in {}; open {}", folder.display(), page.display()))
}
