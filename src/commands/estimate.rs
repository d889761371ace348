//! `autodist estimate`

use super::from_trainer::{self, Given};
use super::{
    DEFAULT_MODEL, Prices, check_experts, check_prices, prices, profile_of, refused, without_profile,
};
use crate::cli::EstimateArgs;
use crate::failure::Failure;
use crate::{input, output};
use autodist_planner::{Comparison, Planner, SearchLimits};
use autodist_reports::terminal;
use autodist_spec::{InputError, Plan, to_json};

pub fn run(args: &EstimateArgs) -> Result<(), Failure> {
    // A cluster without a profile is priced from published figures of its devices.
    if let (None, None, Some(cluster)) = (&args.plan, &args.price.profile, &args.price.cluster) {
        return super::estimate_unmeasured::run(args, cluster);
    }
    without_profile(args.trainer, args.fp8, &args.figures)?;
    if let Some(count) = args.best {
        let error = InputError::new("--best", count, "works only without a profile");
        return Err(error
            .hint("use `autodist plan` to search with a profile, or give `--cluster` without `--profile`")
            .into());
    }
    let mut comparison = String::new();
    let plan = match &args.plan {
        Some(path) => {
            let given = input::plan(path)?;
            let (profile, profile_path) = match &args.price.profile {
                Some(_) => {
                    let Prices { profile, path, .. } = prices(&args.price)?;
                    (profile, path)
                }
                None => profile_of(&given, path, None)?,
            };
            let planner = Planner::new(&given.model, &given.cluster, &given.job, &profile);
            let mut plan = planner
                .given(&given.strategy, Some(&given.stages))
                .map_err(|error| refused(&given.strategy, error))?;
            plan.profile.path = profile_path.display().to_string();
            plan
        }
        None => {
            // Report errors in the file before missing flags.
            let prices = prices(&args.price);
            let devices = prices.as_ref().ok().map(|prices| prices.cluster.device_count());
            let given = from_trainer::read(args, devices)?;
            let prices = prices?;
            let plan = of_flags(args, given.as_ref(), &prices)?;
            if !args.from.is_empty() && !args.json {
                comparison = compared_with_the_best(&plan, &prices);
            }
            plan
        }
    };
    let text = if args.json { to_json(&plan) } else { terminal::plan_summary(&plan) + &comparison };
    output::print_with(&text, super::plan::write_new(&plan, args.output.as_deref()))
}

/// Compares a given configuration with the best plan of the same space.
fn compared_with_the_best(plan: &Plan, prices: &Prices) -> String {
    let limits = SearchLimits { top: 1, ..SearchLimits::default() };
    let planner = Planner::new(&plan.model, &prices.cluster, &plan.job, &prices.profile).limits(limits);
    let Ok(best) = planner.plan() else { return String::new() };
    let title = "\nCompared with the best plan of its search space\n";
    if best.estimate.step_time_s.0 >= plan.estimate.step_time_s.0 {
        return format!("{title}no other plan without lossy codecs is predicted to be faster\n");
    }
    let comparison = Comparison::of(&best.estimate, &plan.estimate);
    format!(
        "{title}{} takes {} per step; this one is {comparison}\n`autodist plan` with the same job writes that plan\n",
        best.strategy.label(),
        best.estimate.step_time_s
    )
}

fn of_flags(args: &EstimateArgs, given: Option<&Given>, prices: &Prices) -> Result<Plan, Failure> {
    let measured = (Some(prices.profile.seq_len), Some(prices.profile.precision));
    let devices = prices.cluster.device_count();
    let (model, job, strategy, stages) = match given {
        None => {
            let model = input::model(args.model.as_deref().unwrap_or(DEFAULT_MODEL))?;
            let job = input::job(&args.job, None, measured.0, measured.1)?;
            (model, job, input::strategy(&args.strategy, devices)?, None)
        }
        Some(given) => {
            let model = given.model(args.model.as_deref(), Some(&prices.profile.model))?;
            let blame = |failure| given.blame(args, failure);
            let mut job =
                input::job(&given.job_flags(&args.job)?, None, measured.0, measured.1).map_err(blame)?;
            given.complete(&mut job).map_err(blame)?;
            let mut strategy = input::strategy(&given.strategy(&args.strategy), devices).map_err(blame)?;
            given.code(&mut strategy);
            let stages = given.stages(&args.strategy, &model);
            if stages.is_none() {
                given.one_recompute()?;
            }
            (model.clone(), job, strategy, stages)
        }
    };
    check_experts(&model, args.strategy.ep)?;
    check_prices(prices, &model, &job)?;
    let planner = Planner::new(&model, &prices.cluster, &job, &prices.profile);
    let blame = |failure| match given {
        Some(given) => given.blame(args, failure),
        None => failure,
    };
    let mut plan =
        planner.given(&strategy, stages.as_deref()).map_err(|error| blame(refused(&strategy, error)))?;
    plan.profile.path = prices.path.display().to_string();
    Ok(plan)
}
