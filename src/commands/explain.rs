//! `autodist explain`

use super::{profile_of, refused};
use crate::cli::ExplainArgs;
use crate::failure::Failure;
use crate::{input, output};
use autodist_spec::to_json;

pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let plan = input::nth_plan(&args.plan, args.number)?;
    let (profile, _) = profile_of(&plan, &args.plan, args.profile.as_ref())?;
    let against = args.against.as_deref().map(input::plan).transpose()?;
    let explanation = autodist_planner::explain(&plan, &profile, against.as_ref().map(|p| &p.strategy))
        .map_err(|error| refused(&plan.strategy, error))?;
    output::print(&if args.json { to_json(&explanation) } else { explanation.to_string() })?;
    Ok(())
}
