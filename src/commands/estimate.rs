//! `autodist estimate`

use super::catalogue::Figures;
use super::from_trainer::{self, FlagsAndFile};
use super::request::JobRequest;
use super::{Prices, check_prices, prices, profile_of, refused, without_profile};
use crate::cli::{EstimateArgs, PriceArgs};
use crate::failure::Failure;
use crate::{input, look, output, price};
use autodist_cost_model::ParameterBytes;
use autodist_planner::{Comparison, MemoryShortfall, PlanError, Planner, SearchLimits};
use autodist_reports::terminal;
use autodist_spec::error::in_range;
use autodist_spec::{Plan, to_json};
use std::path::Path;

pub fn run(args: &EstimateArgs) -> Result<(), Failure> {
    if let Some(top) = args.best {
        in_range("--best", top as u64, 1, 10_000)?;
    }
    match (&args.plan, &args.price.profile, &args.price.cluster) {
        (Some(path), ..) => {
            let (plan, shortfall) = of_plan(args, path)?;
            print(args, &plan, shortfall, "")
        }
        // A cluster without a profile is priced from published figures of its devices.
        (None, None, Some(cluster)) => super::estimate_unmeasured::run(args, cluster),
        (None, ..) => of_profile(args),
    }
}

/// Prints the plan, and writes it if it fits.
pub fn print(
    args: &EstimateArgs,
    plan: &Plan,
    shortfall: Option<MemoryShortfall>,
    comparison: &str,
) -> Result<(), Failure> {
    let written = match shortfall {
        None => super::plan::write_new(plan, args.output.as_deref()),
        Some(shortfall) => Err(too_large(args, shortfall)),
    };
    let file = args.output.as_deref().filter(|_| written.is_ok()).or(args.plan.as_deref());
    let text = if args.json {
        to_json(plan)
    } else {
        let view = look::view();
        terminal::plan_summary(plan, file, &view) + &terminal::wrapped(comparison, &view)
    };
    output::print_with(&text, written)
}

/// Why a plan that is printed is not written.
fn too_large(args: &EstimateArgs, shortfall: MemoryShortfall) -> Failure {
    let written = args.output.as_ref().map_or(String::new(), |path| {
        format!("; no plan was written to {}, because it could not be trained", path.display())
    });
    let error = PlanError::OutOfMemory(Box::new(shortfall)).to_string();
    let (problem, hint) = error.split_once("\nhint: ").unwrap_or((error.as_str(), ""));
    Failure::Infeasible(format!("{problem}{written}\nhint: {hint}, or let `--best` search"))
}

/// The strategy of a plan document, priced again: by a profile, or as it was made.
fn of_plan(args: &EstimateArgs, path: &Path) -> Result<(Plan, Option<MemoryShortfall>), Failure> {
    let mut given = input::plan(path)?;
    given.job.training_tokens = args.job.tokens.or(given.job.training_tokens);
    if let Some(text) = &args.price.price {
        price::set(&mut given.cluster, text, &input::catalogue(&args.figures.catalogue)?)?;
    }
    let refused = |error| refused(&given.strategy, error);
    let (strategy, stages) = (&given.strategy, Some(given.stages.as_slice()));
    if let Some((figures, software)) =
        Figures::unless_profile(args.price.profile.as_ref(), &given, &args.figures)?
    {
        let (costs, reference) = figures.costs(&given.model, &given.job, &software);
        let planner = Planner::of_catalogue(&given.model, &given.cluster, &given.job, costs, &reference);
        let (mut plan, shortfall) = planner.priced(strategy, stages).map_err(refused)?;
        plan.assume(software.assumptions);
        return Ok((plan, shortfall));
    }
    without_profile(args.software, &args.figures)?;
    let (profile, profile_path) = match &args.price.profile {
        Some(_) => {
            let Prices { profile, path, .. } = prices(&args.price)?;
            (profile, path)
        }
        None => profile_of(&given, path, None)?,
    };
    let planner = super::planner(&given.model, &given.cluster, &given.job, &profile);
    let (mut plan, shortfall) = planner.priced(strategy, stages).map_err(refused)?;
    plan.name_profile(&profile_path.display().to_string());
    Ok((plan, shortfall))
}

fn of_profile(args: &EstimateArgs) -> Result<(), Failure> {
    without_profile(args.software, &args.figures)?;
    let asked = AskedMeasured::of(FlagsAndFile::of_estimate(args), &args.price)?;
    if let Some(top) = args.best {
        if let Some(given) = &asked.request.given {
            given.note_layout();
        }
        let limits = SearchLimits { top, ..SearchLimits::default() };
        let AskedMeasured { prices, request: JobRequest { model, job, .. } } = &asked;
        let limits = (limits, args.fewer().all(true));
        let plan = super::plan::fastest_measured(prices, model, job.clone(), &args.strategy, &[], limits)?;
        return print(args, &plan, None, "");
    }
    let (plan, shortfall) = asked.plan()?;
    if let Some(given) = asked.request.given.as_ref().filter(|_| !args.json) {
        super::understood::note(given, &plan);
    }
    let comparison = if asked.request.given.is_some() && !args.json && plan.fits {
        compared_with_the_best(&plan, &asked.prices)
    } else {
        String::new()
    };
    print(args, &plan, shortfall, &comparison)
}

/// Compares a given configuration with the best plan of the same space.
fn compared_with_the_best(plan: &Plan, prices: &Prices) -> String {
    let limits = SearchLimits { top: 1, ..SearchLimits::default() };
    let planner = super::planner(&plan.model, &prices.cluster, &plan.job, &prices.profile).limits(limits);
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

/// What is asked of the prices of a profile.
pub struct AskedMeasured<'a> {
    pub prices: Prices,
    pub request: JobRequest<'a>,
}

impl<'a> AskedMeasured<'a> {
    /// # Errors
    /// A file cannot be read, its content or the flags are not valid, or the profile is of another model.
    pub fn of(flags: FlagsAndFile<'a>, price: &PriceArgs) -> Result<Self, Failure> {
        // Report errors in the file before missing flags.
        let prices = prices(price);
        let devices = prices.as_ref().ok().map(|prices| prices.cluster.device_count());
        let given = from_trainer::read(flags, devices)?;
        let prices = prices?;
        let profile = &prices.profile;
        let request = JobRequest::of(flags, given, Some(profile), profile.precision)?;
        request.check_experts(&flags.strategy.ep)?;
        check_prices(&prices, &request.model, &request.job)?;
        Ok(Self { prices, request })
    }

    /// The plan of the strategy that is asked for, and the memory that it lacks.
    ///
    /// # Errors
    /// The strategy is not legal or not priced.
    pub fn plan(&self) -> Result<(Plan, Option<MemoryShortfall>), Failure> {
        let Self { prices, request } = self;
        let JobRequest { model, job, given, .. } = request;
        let devices = prices.cluster.device_count();
        let blame = |failure| request.blame(failure);
        let flags = request.flags.strategy.one()?;
        let (strategy, stages) = match given {
            None => (input::strategy(&flags, devices)?, None),
            Some(given) => {
                let mut strategy = input::strategy(&given.strategy(&flags), devices).map_err(blame)?;
                given.code(&mut strategy);
                let stages = given.stages(&flags, model);
                if stages.is_none() {
                    given.one_recompute()?;
                }
                (strategy, stages)
            }
        };
        let planner = super::planner(model, &prices.cluster, job, &prices.profile);
        let (mut plan, shortfall) =
            planner.priced(&strategy, stages.as_deref()).map_err(|error| blame(refused(&strategy, error)))?;
        plan.name_profile(&prices.path.display().to_string());
        if let Some(given) = given {
            let each = ParameterBytes::of(job.precision, job.optimizer);
            plan.understood = super::understood::settings(given, request.flags, &plan, &each);
        }
        Ok((plan, shortfall))
    }
}
