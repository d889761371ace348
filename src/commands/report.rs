//! `autodist report`

use super::profile_of;
use crate::cli::ReportArgs;
use crate::failure::Failure;
use crate::{input, output};
use autodist_cost_model::CostModel;
use autodist_program::Program;
use autodist_reports::{
    ReportInput, chrome_trace, csv_copies, csv_links, csv_plans, csv_products, csv_segments, csv_timeline,
    csv_validation, figures, html,
};
use autodist_spec::{Plan, Profile, RunRecord, TimelineEvent, Validation, parse};
use std::path::{Path, PathBuf};

pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let plan = input::plan(&args.plan)?;
    let profile = match (&args.profile, plan.profile.path.is_empty()) {
        (None, true) => None,
        (given, _) => match profile_of(&plan, &args.plan, given.as_ref()) {
            Ok((profile, _)) => Some(profile),
            // A report can do without a profile that has moved, but not without one that was asked for.
            Err(failure) if given.is_none() => {
                output::warn(&format!("the report has no profile in it: {failure}"));
                None
            }
            Err(failure) => return Err(failure),
        },
    };
    let (mut runs, mut validation) = (Vec::new(), None);
    for path in &args.runs {
        let value = parse::json_value(&path.display().to_string(), &input::bytes(path, "run")?, "run")?;
        if value.get("runs").is_some() {
            validation = Some(input::validation(path)?);
        } else {
            runs.push(input::run(path)?);
        }
    }
    let page = write(&plan, profile.as_ref(), validation.as_ref(), &runs, &args.output)?;
    if args.json {
        output::print(&parse::to_json(&serde_json::json!({ "report": page })))?;
    } else {
        output::print(&format!("wrote {}", page.display()))?;
    }
    Ok(())
}

/// Writes the page, its figures and the tables, and returns the page's path.
pub fn write(
    plan: &Plan,
    profile: Option<&Profile>,
    validation: Option<&Validation>,
    runs: &[RunRecord],
    folder: &Path,
) -> Result<PathBuf, Failure> {
    let predicted = profile.map(|profile| timeline(plan, profile)).unwrap_or_default();
    let report = ReportInput { plan, predicted_timeline: &predicted, validation, runs, profile };
    let drawing = |error: autodist_reports::ReportError| Failure::Run(format!("drawing the report: {error}"));
    let page = folder.join("report.html");
    output::write(&page, html(&report).map_err(drawing)?.as_bytes())?;
    for (name, png) in figures(&report).map_err(drawing)? {
        output::write(&folder.join(name), &png)?;
    }
    let measured = runs.first().map(|run| run.timeline.as_slice()).unwrap_or_default();
    let mut tables = vec![
        ("plans.csv", csv_plans(plan)),
        ("timeline_predicted.csv", csv_timeline(&predicted)),
        ("timeline_measured.csv", csv_timeline(measured)),
        ("trace.json", chrome_trace(&predicted, measured)),
    ];
    tables.extend(validation.map(|v| ("validation.csv", csv_validation(v))));
    if let Some(profile) = profile {
        tables.extend([
            ("segments.csv", csv_segments(profile)),
            ("links.csv", csv_links(profile)),
            ("products.csv", csv_products(profile)),
            ("copies.csv", csv_copies(profile)),
        ]);
    }
    for (name, table) in tables {
        output::write(&folder.join(name), table.as_bytes())?;
    }
    Ok(page)
}

/// The simulated step of a plan; empty where the profile cannot price it.
fn timeline(plan: &Plan, profile: &Profile) -> Vec<TimelineEvent> {
    let devices = plan.cluster.device_count();
    Program::compile(&plan.model, &plan.job, devices, &plan.strategy, &plan.stages)
        .ok()
        .and_then(|program| CostModel::new(profile).timeline(&program).ok())
        .unwrap_or_default()
}
