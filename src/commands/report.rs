//! `autodist report`

use super::catalogue::{Figures, beyond};
use super::{next, profile_of};
use crate::cli::ReportArgs;
use crate::failure::Failure;
use crate::input::MeasurementFile;
use crate::{input, interrupt, output, train};
use autodist_cost_model::CostModel;
use autodist_program::Program;
use autodist_reports::{
    NextCommand, ReportInput, chrome_trace, csv_copies, csv_links, csv_plans, csv_products, csv_segments,
    csv_timeline, csv_validation, figures, html,
};
use autodist_spec::strategy::label;
use autodist_spec::{InputError, Plan, Profile, RunRecord, TimelineEvent, Validation, parse};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

const PAGE: &str = "report.html";

pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let plan = input::nth_plan(&args.plan, args.number)?;
    let figures = Figures::unless_profile(args.profile.as_ref(), &plan, &args.figures)?;
    let costs = figures.map(|(figures, software)| figures.costs(&plan.model, &plan.job, &software).0);
    let profile =
        match (&args.profile, plan.cost_source.profile().is_none_or(|profile| profile.path.is_empty())) {
            (None, true) => None,
            (given, _) => match profile_of(&plan, &args.plan, given.as_ref()) {
                Ok((profile, _)) => Some(profile),
                // A missing profile is an error only if it was given explicitly.
                Err(failure) if given.is_none() => {
                    output::warn(&format!("the report does not include the profile: {failure}"));
                    None
                }
                Err(failure) => return Err(failure),
            },
        };
    let (mut runs, mut validation) = (Vec::new(), None);
    for path in &args.runs {
        match input::measured(path)? {
            MeasurementFile::Run(run) => runs.push(*run),
            MeasurementFile::Validation(found) => {
                check_validation(&plan, &found)
                    .map_err(|error| error.in_file(&path.display().to_string()))?;
                validation = Some(*found);
            }
            // A plan document in the folder of records is ignored.
            MeasurementFile::Plan => {}
        }
    }
    let costs = costs.or_else(|| profile.as_ref().and_then(|profile| costs_of(profile, &plan)));
    let commands = next::commands(&plan, &args.plan, args.number.number);
    let views = Views { plan: &plan, commands: &commands, costs: costs.as_ref(), profile: profile.as_ref() };
    let page = write(views, validation.as_ref(), &runs, &args.output)?;
    if args.json {
        output::print(&parse::to_json(&serde_json::json!({ "report": page })))?;
    } else {
        output::print(&format!("wrote {}", page.display()))?;
    }
    Ok(())
}

/// The costs of a plan with the profile's prices; `None` if the profile does not reach that far.
pub fn costs_of(profile: &Profile, plan: &Plan) -> Option<CostModel> {
    CostModel::of_cluster(profile, &plan.cluster, beyond(profile, &plan.cluster)).ok()
}

/// # Errors
/// The validation trained none of the plans of the document.
fn check_validation(plan: &Plan, validation: &Validation) -> Result<(), InputError> {
    let plans = train::candidates(plan);
    let trained = validation.runs.iter().any(|run| plans.iter().any(|plan| plan.strategy == run.strategy));
    let failed = validation.failed.iter().map(|run| &run.label);
    let tried =
        failed.clone().any(|tried| plans.iter().any(|one| label(&one.strategy, &one.stages) == *tried));
    let first = validation.runs.iter().map(|run| &run.label).chain(failed).next();
    let Some(first) = first.filter(|_| !trained && !tried) else { return Ok(()) };
    let problem = "is not a plan of the document, nor is any other that this validation trained";
    Err(InputError::new("runs", first, problem)
        .hint("give the validation of this plan, or the plan of this validation"))
}

/// A plan, and what is known beside its measurements.
#[derive(Clone, Copy)]
pub struct Views<'a> {
    pub plan: &'a Plan,
    pub commands: &'a [NextCommand],
    pub costs: Option<&'a CostModel>,
    pub profile: Option<&'a Profile>,
}

/// Writes the page, its figures and the tables, and returns the page's path.
pub fn write(
    views: Views<'_>,
    validation: Option<&Validation>,
    runs: &[RunRecord],
    folder: &Path,
) -> Result<PathBuf, Failure> {
    let page = folder.join(PAGE);
    let files = interrupt::promptly(|| contents(views, validation, runs))??;
    for (name, content) in &files {
        output::write(&folder.join(name), content)?;
    }
    Ok(page)
}

/// The names and contents of all files of a report.
fn contents(
    views: Views<'_>,
    validation: Option<&Validation>,
    runs: &[RunRecord],
) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let Views { plan, commands, costs, profile } = views;
    let predicted = costs.map(|costs| timeline(&shortened(plan), costs)).unwrap_or_default();
    let report = ReportInput { plan, predicted_timeline: &predicted, validation, runs, profile, commands };
    let drawing = |error: autodist_reports::ReportError| Failure::Run(format!("drawing the report: {error}"));
    let mut files = vec![(PAGE.to_owned(), html(&report).map_err(drawing)?.into_bytes())];
    files.extend(figures(&report).map_err(drawing)?);
    let own = runs.iter().find(|run| run.strategy == plan.strategy && run.stages == plan.stages);
    let measured = own.map(|run| run.timeline.as_slice()).unwrap_or_default();
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
    files.extend(tables.into_iter().map(|(name, table)| (name.to_owned(), table.into_bytes())));
    Ok(files)
}

/// Maximum passes of micro-batches through chunks in the simulated step of a report: more could not be
/// distinguished in the figure, and each is a line in the tables.
const MOST_PASSES: u32 = 20_000;

/// The plan, with fewer micro-batches if a step has more passes than a report shows.
fn shortened(plan: &Plan) -> Cow<'_, Plan> {
    let strategy = &plan.strategy;
    let (all, room) = (strategy.micro_batches(plan.job.global_batch), MOST_PASSES / strategy.chunks().max(1));
    if all <= room.max(1) {
        return Cow::Borrowed(plan);
    }
    // Whole rounds of the pipeline, which interleaved schedules require.
    let kept = if room >= strategy.pipeline { room - room % strategy.pipeline } else { room.max(1) };
    output::note(&format!(
        "the predicted timeline of the report shows {kept} of the {all} micro-batches of a step"
    ));
    let mut short = plan.clone();
    short.job.global_batch = kept * strategy.data * strategy.micro_batch;
    Cow::Owned(short)
}

/// The simulated step of a plan; empty if it has no price.
fn timeline(plan: &Plan, costs: &CostModel) -> Vec<TimelineEvent> {
    let devices = plan.cluster.device_count();
    Program::compile(&plan.model, &plan.job, devices, &plan.strategy, &plan.stages)
        .ok()
        .and_then(|program| costs.timeline(&program).ok())
        .unwrap_or_default()
}
