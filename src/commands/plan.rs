//! `autodist plan`

use super::by_hand::OwnFormat;
use super::catalogue::{Figures, Software};
use super::estimate::AskedMeasured;
use super::estimate_unmeasured::Asked;
use super::fewer::FewerDevices;
use super::from_trainer::FlagsAndFile;
use super::request::JobRequest;
use super::{Prices, check_own_engines, check_prices, orders, without_profile};
use crate::cli::{PlanArgs, StrategyArgs};
use crate::failure::Failure;
use crate::{devices, engine, input, look, output, price};
use autodist_analytic::software;
use autodist_planner::{MemoryShortfall, PlanError, Planner, SearchLimits};
use autodist_reports::terminal;
use autodist_spec::error::in_range;
use autodist_spec::{
    Bytes, Change, CodecProbe, GivenStrategy, InputError, Job, ModelSpec, Plan, Variant, to_json,
};
use std::path::Path;
use std::time::{Duration, Instant};

pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    in_range("--top", args.top as u64, 1, 100_000)?;
    in_range("--threads", args.threads as u64, 0, 1024)?;
    let limit = args.time_limit.map(limit).transpose()?;
    let began = Instant::now();
    let expired = || limit.is_some_and(|limit| began.elapsed() >= limit);
    price::note_without_tokens(args.price.price.as_ref(), &args.job);
    let limits = SearchLimits {
        deadline: Some(&expired),
        top: args.top,
        threads: args.threads,
        ..SearchLimits::default()
    };
    let plan = match (&args.price.profile, &args.price.cluster) {
        (None, Some(cluster)) => of_figures(args, cluster, limits)?,
        _ => of_profile(args, limits)?,
    };
    let written = write_new(&plan, args.output.as_deref());
    let file = args.output.as_deref().filter(|_| written.is_ok());
    let text = if args.json { to_json(&plan) } else { terminal::plan_summary(&plan, file, &look::view()) };
    output::print_with(&text, written)
}

/// Plans for machines that were measured.
fn of_profile(args: &PlanArgs, limits: SearchLimits) -> Result<Plan, Failure> {
    without_profile(args.software, &args.figures)?;
    let probes = args.probes.as_deref().map(input::validation).transpose()?.map(|v| v.probes);
    if probes.as_ref().is_some_and(Vec::is_empty) {
        let path = args.probes.as_deref().unwrap_or(Path::new("")).display();
        let error = InputError::new("--probes", path, "contains no probes");
        return Err(error.hint("create it with `autodist validate PLAN --probe`").into());
    }
    let probes = probes.unwrap_or_default();
    let asked = AskedMeasured::of(FlagsAndFile::of_plan(args), &args.price)?;
    let AskedMeasured { prices, request: JobRequest { model, job, .. } } = &asked;
    let search = |flags, all| fastest_measured(prices, model, job.clone(), flags, &probes, (limits, all));
    if args.from.is_empty() {
        return search(&args.strategy, args.fewer.all(true));
    }
    let (given, shortfall) = asked.plan()?;
    note_understood(args, &asked.request, &given);
    let mut job = job.clone();
    devices::leave_out(prices.profile.environment.devices, &mut job);
    engine::leave_out(prices.profile.environment.engine, &mut job);
    let planner = super::planner(model, &prices.cluster, &job, &prices.profile).limits(limits);
    let variants = planner.variants((&given.strategy, &given.stages, &given.estimate), shortfall.is_none());
    let all = args.fewer.all(true);
    with_given(search(&StrategyArgs::default(), all), given, shortfall, variants, &args.from)
}

/// The fastest plan of the space that a job, the flags and the engine of a profile have in common.
pub fn fastest_measured(
    prices: &Prices,
    model: &ModelSpec,
    mut job: Job,
    flags: &StrategyArgs,
    probes: &[CodecProbe],
    (limits, all_devices): (SearchLimits, bool),
) -> Result<Plan, Failure> {
    check_own_engines(flags)?;
    input::narrow(&mut job, flags, prices.cluster.device_count())?;
    devices::leave_out(prices.profile.environment.devices, &mut job);
    engine::leave_out(prices.profile.environment.engine, &mut job);
    check_prices(prices, model, &job)?;
    let planner = super::planner(model, &prices.cluster, &job, &prices.profile).probes(probes).limits(limits);
    let whole = planner.plan().map_err(Failure::from);
    let search = FewerDevices { model, job: &job, cluster: &prices.cluster, limits, all_devices };
    let mut plan = search.choose(whole, |part, limits| {
        super::planner(model, &part.cluster, &job, &prices.profile).probes(probes).limits(limits).plan()
    })?;
    plan.name_profile(&prices.path.display().to_string());
    Ok(plan)
}

/// Plans for a cluster that was not measured, from published figures of its devices and links.
fn of_figures(args: &PlanArgs, cluster: &str, limits: SearchLimits) -> Result<Plan, Failure> {
    if let Some(path) = &args.probes {
        let error = InputError::new("--probes", path.display(), "has no effect without a profile");
        return Err(error.hint("remove this option, or give `--profile`").into());
    }
    let figures = Figures::of(cluster, &args.figures, &args.price)?;
    let asked = Asked::of(FlagsAndFile::of_plan(args), args.software, &figures)?;
    let software = asked.software_of_search();
    let JobRequest { model, job: job_asked, .. } = &asked.request;
    if args.from.is_empty() {
        let mut job = job_asked.clone();
        input::narrow(&mut job, &args.strategy, figures.cluster.device_count())?;
        let limits = (limits, args.fewer.all(false));
        return fastest_part(&figures, model, job, &software, limits);
    }
    let (given, shortfall) = asked.plan(&figures)?;
    note_understood(args, &asked.request, &given);
    let mut job = job_asked.clone();
    software::narrow(&mut job, software.trainer)?;
    let (costs, reference) = figures.costs(model, &job, &software);
    let planner = Planner::of_catalogue(model, &figures.cluster, &job, costs, &reference).limits(limits);
    let variants = planner.variants((&given.strategy, &given.stages, &given.estimate), shortfall.is_none());
    // The user's job has these devices; fewer are named if they are as fast.
    let limits = (limits, args.fewer.all(true));
    let best = fastest_part(&figures, model, job_asked.clone(), &software, limits);
    with_given(best, given, shortfall, variants, &args.from)
}

/// Prints what was understood of a trainer's file; the document has it, too.
fn note_understood(args: &PlanArgs, request: &JobRequest<'_>, theirs: &Plan) {
    if let Some(given) = request.given.as_ref().filter(|_| !args.json) {
        super::understood::note(given, theirs);
    }
}

/// The best plan, with the strategy of a trainer's file and the smallest changes to it.
fn with_given(
    best: Result<Plan, Failure>,
    given: Plan,
    shortfall: Option<MemoryShortfall>,
    mut variants: Vec<Variant>,
    from: &[String],
) -> Result<Plan, Failure> {
    let file = from.last().map_or("", String::as_str);
    let format = from.first().and_then(|name| name.parse().ok());
    let format = format.map(|target| OwnFormat::new(&given, target));
    if let Some(format) = &format {
        variants.iter_mut().for_each(|one| one.by_hand = format.by_hand(&one.strategy, &one.stages));
    }
    let missing_bytes = shortfall.as_ref().map_or(Bytes::ZERO, MemoryShortfall::missing);
    let mut plan = match (best, shortfall) {
        (Ok(plan), _) => plan,
        (Err(Failure::Infeasible(none)), Some(shortfall)) => {
            let own = PlanError::OutOfMemory(Box::new(shortfall));
            let problem = format!("{file}: {own}\nno other strategy fits: {none}");
            return Err(Failure::Infeasible(problem));
        }
        (Err(failure), _) => return Err(failure),
    };
    let by_hand = format.as_ref().map_or_else(Vec::new, |format| format.of(&plan));
    let Plan { strategy, stages, estimate, fits, assumptions, understood, .. } = given;
    plan.understood = understood;
    let changes = Change::between((&strategy, &stages), (&plan.strategy, &plan.stages));
    let source = file.to_owned();
    let given = GivenStrategy {
        source,
        strategy,
        stages,
        estimate,
        fits,
        missing_bytes,
        assumptions,
        changes,
        by_hand,
        variants,
    };
    plan.given = Some(Box::new(given));
    Ok(plan)
}

/// The fastest plan of the space that a job and a trainer have in common, on all devices of the cluster or on a part of
/// them.
pub fn fastest_part(
    figures: &Figures,
    model: &ModelSpec,
    mut job: Job,
    software: &Software,
    (limits, all_devices): (SearchLimits, bool),
) -> Result<Plan, Failure> {
    let whole = fastest(figures, model, job.clone(), software, limits);
    // As in the search of the whole.
    software::narrow(&mut job, software.trainer)?;
    let search = FewerDevices { model, job: &job, cluster: &figures.cluster, limits, all_devices };
    search.choose(whole, |part, limits| {
        let figures = figures.part(part);
        let (costs, reference) = figures.costs(model, &job, software);
        let planner = Planner::of_catalogue(model, &figures.cluster, &job, costs, &reference);
        let mut plan = planner.limits(limits).plan()?;
        // One node has no network.
        if figures.cluster.node_count() > 1 {
            plan.assume(figures.assumptions);
        }
        Ok(plan)
    })
}

/// The fastest plan of the space that a job and a trainer have in common on all devices, with the nodes in the order
/// that suits it best.
pub fn fastest(
    figures: &Figures,
    model: &ModelSpec,
    mut job: Job,
    software: &Software,
    limits: SearchLimits,
) -> Result<Plan, Failure> {
    figures.check(job.precision)?;
    software::check_precision(software.trainer, job.precision)?;
    software::narrow(&mut job, software.trainer)?;
    let plan = |figures: &Figures| {
        let (costs, reference) = figures.costs(model, &job, software);
        Planner::of_catalogue(model, &figures.cluster, &job, costs, &reference).limits(limits).plan()
    };
    let mut plan = orders::search(figures, limits, plan)?;
    plan.assume(figures.assumptions.clone());
    Ok(plan)
}

fn limit(seconds: f64) -> Result<Duration, Failure> {
    if seconds.is_finite() && (0.0..1e9).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(InputError::new("--time-limit", seconds, "must be a number of seconds of at least 0")
        .hint("give a number of seconds, e.g. 10")
        .into())
}

/// Like [`write`], but never over an input of the command.
pub fn write_new(plan: &Plan, path: Option<&Path>) -> Result<(), Failure> {
    path.map_or(Ok(()), output::check_no_input)?;
    write(plan, path)
}

pub fn write(plan: &Plan, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    output::write(path, to_json(plan).as_bytes())?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}
