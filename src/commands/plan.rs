//! `autodist plan`

use super::{check_prices, prices};
use crate::cli::PlanArgs;
use crate::failure::Failure;
use crate::{devices, engine, input, output};
use autodist_planner::{Planner, SearchLimits};
use autodist_reports::terminal;
use autodist_spec::error::in_range;
use autodist_spec::{InputError, Plan, to_json};
use std::path::Path;
use std::time::{Duration, Instant};

pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let prices = prices(&args.price)?;
    let model = input::model(&args.model.model)?;
    let mut job = input::job(&args.job, None, Some(prices.profile.seq_len), Some(prices.profile.precision))?;
    input::narrow(&mut job, &args.strategy, prices.cluster.device_count())?;
    devices::leave_out(prices.profile.environment.devices, &mut job);
    engine::leave_out(prices.profile.environment.engine, &mut job);
    check_prices(&prices, &model, &job)?;
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
    let probes = args.probes.as_deref().map(input::validation).transpose()?.map(|v| v.probes);
    if probes.as_ref().is_some_and(Vec::is_empty) {
        let path = args.probes.as_deref().unwrap_or(Path::new("")).display();
        let error = InputError::new("--probes", path, "contains no probes");
        return Err(error.hint("create it with `autodist validate PLAN --probe`").into());
    }
    let planner = Planner::new(&model, &prices.cluster, &job, &prices.profile)
        .probes(&probes.unwrap_or_default())
        .limits(limits);
    let mut plan = planner.plan()?;
    plan.profile.path = prices.path.display().to_string();
    let text = if args.json { to_json(&plan) } else { terminal::plan_summary(&plan) };
    output::print_with(&text, write(&plan, args.output.as_deref()))
}

fn limit(seconds: f64) -> Result<Duration, Failure> {
    if seconds.is_finite() && (0.0..1e9).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(InputError::new("--time-limit", seconds, "must be a number of seconds of at least 0")
        .hint("give a number of seconds, e.g. 10")
        .into())
}

pub fn write(plan: &Plan, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    output::write(path, to_json(plan).as_bytes())?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}
