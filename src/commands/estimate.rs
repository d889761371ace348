//! `autodist estimate`

use super::{Prices, check_prices, prices, profile_of, refused};
use crate::cli::EstimateArgs;
use crate::failure::Failure;
use crate::{input, output};
use autodist_planner::Planner;
use autodist_reports::terminal;
use autodist_spec::{InputError, Plan, to_json};

pub fn run(args: &EstimateArgs) -> Result<(), Failure> {
    // A cluster that nobody measured is priced by its devices' figures.
    if let (None, None, Some(cluster)) = (&args.plan, &args.price.profile, &args.price.cluster) {
        return super::estimate_unmeasured::run(args, cluster);
    }
    if let Some(path) = args.catalogue.devices.first() {
        let error = InputError::new("--devices", path.display(), "says nothing where a profile was measured");
        return Err(error.hint("leave it out; or leave --profile out, and give --cluster").into());
    }
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
        None => of_flags(args)?,
    };
    super::plan::write(&plan, args.output.as_deref())?;
    output::print(&if args.json { to_json(&plan) } else { terminal::plan_summary(&plan) })?;
    Ok(())
}

fn of_flags(args: &EstimateArgs) -> Result<Plan, Failure> {
    let prices = prices(&args.price)?;
    let model = input::model(&args.model.model)?;
    let job = input::job(&args.job, None, Some(prices.profile.seq_len), Some(prices.profile.precision))?;
    let strategy = input::strategy(&args.strategy, prices.cluster.device_count())?;
    check_prices(&prices, &model, &job)?;
    let planner = Planner::new(&model, &prices.cluster, &job, &prices.profile);
    let mut plan = planner.given(&strategy, None).map_err(|error| refused(&strategy, error))?;
    plan.profile.path = prices.path.display().to_string();
    Ok(plan)
}
