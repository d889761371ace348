//! `autodist plan`

use super::catalogue::{Figures, Software};
use super::{Prices, check_experts, check_own_engines, check_prices, orders, prices, without_profile};
use crate::cli::{PlanArgs, StrategyArgs};
use crate::failure::Failure;
use crate::{devices, engine, input, output};
use autodist_analytic::software;
use autodist_planner::{Planner, SearchLimits};
use autodist_reports::terminal;
use autodist_spec::error::in_range;
use autodist_spec::{CodecProbe, InputError, Job, ModelSpec, Plan, to_json};
use std::path::Path;
use std::time::{Duration, Instant};

pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    in_range("--top", args.top as u64, 1, 100_000)?;
    in_range("--threads", args.threads as u64, 0, 1024)?;
    let limit = args.time_limit.map(limit).transpose()?;
    let began = Instant::now();
    let expired = || limit.is_some_and(|limit| began.elapsed() >= limit);
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
    let text = if args.json { to_json(&plan) } else { terminal::plan_summary(&plan) };
    output::print_with(&text, write_new(&plan, args.output.as_deref()))
}

/// Plans for machines that were measured.
fn of_profile(args: &PlanArgs, limits: SearchLimits) -> Result<Plan, Failure> {
    without_profile(args.trainer, &args.figures)?;
    let prices = prices(&args.price)?;
    let model = input::model(&args.model.model)?;
    check_experts(&model, args.strategy.ep)?;
    let job = input::job(&args.job, None, Some(prices.profile.seq_len), Some(prices.profile.precision))?;
    let probes = args.probes.as_deref().map(input::validation).transpose()?.map(|v| v.probes);
    if probes.as_ref().is_some_and(Vec::is_empty) {
        let path = args.probes.as_deref().unwrap_or(Path::new("")).display();
        let error = InputError::new("--probes", path, "contains no probes");
        return Err(error.hint("create it with `autodist validate PLAN --probe`").into());
    }
    fastest_measured(&prices, &model, job, &args.strategy, &probes.unwrap_or_default(), limits)
}

/// The fastest plan of the space that a job, the flags and the engine of a profile have in common.
pub fn fastest_measured(
    prices: &Prices,
    model: &ModelSpec,
    mut job: Job,
    flags: &StrategyArgs,
    probes: &[CodecProbe],
    limits: SearchLimits,
) -> Result<Plan, Failure> {
    check_own_engines(flags)?;
    input::narrow(&mut job, flags, prices.cluster.device_count())?;
    devices::leave_out(prices.profile.environment.devices, &mut job);
    engine::leave_out(prices.profile.environment.engine, &mut job);
    check_prices(prices, model, &job)?;
    let planner = super::planner(model, &prices.cluster, &job, &prices.profile).probes(probes).limits(limits);
    let mut plan = planner.plan()?;
    plan.name_profile(&prices.path.display().to_string());
    Ok(plan)
}

/// Plans for a cluster that was not measured, from published figures of its devices and links.
fn of_figures(args: &PlanArgs, cluster: &str, limits: SearchLimits) -> Result<Plan, Failure> {
    if let Some(path) = &args.probes {
        let error = InputError::new("--probes", path.display(), "has no effect without a profile");
        return Err(error.hint("remove this option, or give `--profile`").into());
    }
    let figures = Figures::of(cluster, &args.figures, args.price.device_memory)?;
    let model = input::model(&args.model.model)?;
    check_experts(&model, args.strategy.ep)?;
    let mut job = input::job(&args.job, None, None, Some(figures.precision_for(&args.job)?))?;
    input::narrow(&mut job, &args.strategy, figures.cluster.device_count())?;
    let software = Software::of(args.trainer);
    if args.trainer.is_none() {
        output::note(&format!("the plan is for {}, because --trainer is not given", software.trainer));
    }
    fastest(&figures, &model, job, &software, limits)
}

/// The fastest plan of the space that a job and a trainer have in common, with the nodes in the order that suits
/// it best.
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
    orders::search(figures, limits, plan)
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
