//! `autodist explain`

use super::catalogue::Figures;
use super::{profile_of, refused};
use crate::cli::ExplainArgs;
use crate::failure::Failure;
use crate::{input, look, output};
use autodist_planner::{self as planner, Planner};
use autodist_reports::terminal;
use autodist_spec::to_json;

pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let plan = input::nth_plan(&args.plan, args.number)?;
    let against = args.against.as_deref().map(input::plan).transpose()?;
    let against = against.as_ref().map(|plan| (&plan.strategy, plan.stages.as_slice()));
    let explanation = match Figures::unless_profile(args.profile.as_ref(), &plan, &args.figures)? {
        Some((figures, software)) => {
            let (costs, reference) = figures.costs(&plan.model, &plan.job, &software);
            let planner = Planner::of_catalogue(&plan.model, &plan.cluster, &plan.job, costs, &reference);
            planner::explain(&planner, &plan, against).map(|mut explanation| {
                explanation.uncertainties = figures.doubts(&plan, &software);
                explanation
            })
        }
        None => {
            let (profile, _) = profile_of(&plan, &args.plan, args.profile.as_ref())?;
            planner::explain(&super::planner(&plan.model, &plan.cluster, &plan.job, &profile), &plan, against)
        }
    };
    let explanation = explanation.map_err(|error| refused(&plan.strategy, error))?;
    if args.json {
        return output::print(&to_json(&explanation));
    }
    output::show(&terminal::prose(&explanation.to_string(), &look::view()))
}
