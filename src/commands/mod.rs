//! One file per subcommand, each thin.

mod backtest;
mod by_hand;
mod calibrate;
mod catalog;
mod catalogue;
mod compare;
mod completions;
mod diff;
mod doctor;
mod estimate;
mod estimate_unmeasured;
mod explain;
mod export;
mod fewer;
mod from_trainer;
mod next;
mod orders;
mod plan;
mod profile;
mod report;
mod request;
mod schema;
mod selftest;
mod train;
mod tune;
mod understood;
mod validate;

use crate::cli::{Cli, Command, FigureArgs, PriceArgs, SoftwareArgs, StrategyArgs};
use crate::failure::Failure;
use crate::{input, output, price};
use autodist_cost_model::{CostModel, Unpriced};
use autodist_hardware::Catalogue;
use autodist_planner::{Infeasible, PlanError, Planner, with_threads};
use autodist_spec::{
    Bytes, Check, Cluster, InputError, Job, ModelSpec, NodeGroup, ParallelStrategy, Plan, Profile, doubt,
};
use std::path::{Path, PathBuf};

/// The default model.
const DEFAULT_MODEL: &str = "tiny-llama";

pub fn run(cli: &Cli) -> Result<(), Failure> {
    dispatch(cli).map_err(|failure| match failure {
        Failure::Input(error) => Failure::Input(in_inputs(error, &cli.command)),
        other => other,
    })
}

/// Names the files that an invalid value may have come from, if the error has no file name: values of a
/// trainer's file replace flags, and missing rates of a device or a model without a valid layout are detected
/// after the files were read.
fn in_inputs(mut error: InputError, command: &Command) -> InputError {
    if !["", input::FLAGS].contains(&error.source_name.as_str()) {
        return error;
    }
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
    let mut files: Vec<String> = match command {
        Command::Plan(args) => {
            if let [_, file] = args.from.as_slice() {
                return InputError { source_name: format!("{file} and the flags"), ..error };
            }
            let others = [args.model.clone(), args.price.cluster.clone()];
            let given = [&args.job.job, &args.price.profile, &args.figures.calibration].map(path);
            let devices: Vec<String> = paths(&args.figures.catalogue.devices);
            others.into_iter().chain(given).flatten().chain(devices).collect()
        }
        Command::Estimate(args) => {
            if let [_, file] = args.from.as_slice() {
                return InputError { source_name: format!("{file} and the flags"), ..error };
            }
            let named = [args.model.clone(), args.price.cluster.clone()];
            let given = [&args.plan, &args.job.job, &args.price.profile, &args.figures.calibration].map(path);
            let devices: Vec<String> = paths(&args.figures.catalogue.devices);
            named.into_iter().chain(given).flatten().chain(devices).collect()
        }
        Command::Explain(args) => {
            let given = [path(&args.profile), path(&args.figures.calibration)];
            [Some(args.plan.display().to_string())].into_iter().chain(given).flatten().collect()
        }
        Command::Export(args) => paths(std::slice::from_ref(&args.plan)),
        Command::Backtest(args) => paths(&args.runs),
        Command::Calibrate(args) => paths(&args.runs),
        _ => Vec::new(),
    };
    files.retain(|file| Path::new(file).is_file());
    if !error.field.starts_with("--") && error.source_name.is_empty() {
        error.source_name = files.join(", ");
    }
    error
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Profile(args) => profile::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Estimate(args) => estimate::run(args),
        Command::Compare(args) => compare::run(args),
        // Folds are fitted in parallel.
        Command::Backtest(args) => with_threads(0, || backtest::run(args)),
        Command::Calibrate(args) => with_threads(0, || calibrate::run(args)),
        Command::Validate(args) => validate::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Export(args) => export::run(args),
        Command::Report(args) => report::run(args),
        Command::Train(args) => train::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Catalog(args) => catalog::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Completions(args) => completions::completions(args),
        Command::Man(args) => completions::man(args),
    }
}

/// The profile that prices plans, its path, and the cluster of the plans.
struct Prices {
    profile: Profile,
    path: PathBuf,
    cluster: Cluster,
}

fn prices(args: &PriceArgs) -> Result<Prices, Failure> {
    let default = Path::new("profile.json");
    let path = match &args.profile {
        Some(path) => path.clone(),
        None if default.exists() => default.to_owned(),
        None => {
            let error = InputError::new(
                "--profile",
                "",
                "is required, because there is no profile.json in this folder",
            );
            return Err(error
                .hint("measure this machine with `autodist profile`, give the path of a profile, or plan for a machine \
                       that was not measured with `--cluster`")
                .into());
        }
    };
    if args.profile.is_none() {
        input::check_plain(&path, "profile")?;
    }
    let profile = judged(input::profile(&path)?);
    for line in doubt::lines(&profile.doubts) {
        output::warn(&format!("{}: {line}", path.display()));
    }
    let mut cluster = profile.cluster.clone();
    if let Some(text) = &args.cluster {
        let catalogue = Catalogue::shipped();
        let given = input::cluster(text, &catalogue, Some(&cluster.nodes[0]))?;
        given.assumptions.iter().for_each(|assumption| output::note(assumption));
        let given = given.cluster;
        let own = &cluster.device().name;
        let resized =
            given.device_count() != cluster.device_count() || given.node_count() != cluster.node_count();
        // A file may call the devices of the profile by another name, but not by that of others.
        let other = |group: &&NodeGroup| {
            let name = &group.device.name;
            !catalogue.is_same_device(name, own) && (resized || catalogue.device(name).is_ok())
        };
        if let Some(group) = given.nodes.iter().find(other) {
            let problem = format!("has {}, but the profile was measured on {own}", group.device.name);
            return Err(InputError::new("--cluster", text, problem)
                .hint(format!(
                    "leave out the device, e.g. `--cluster 4x2@1x10gbps`, or name it `{own}` in a cluster file, for devices \
                     like the profile's; or remove `--profile`"
                ))
                .into());
        }
        cluster = given;
    }
    if let Some(text) = &args.price {
        price::set(&mut cluster, text, &Catalogue::shipped())?;
    }
    if let Some(bytes) = args.device_memory {
        cluster.nodes.iter_mut().for_each(|group| group.device.memory_bytes = Bytes(bytes));
        cluster.check().map_err(|e| e.in_file("--device-memory"))?;
    }
    Ok(Prices { profile, path, cluster })
}

/// The profile of a plan: the given one, or the one that the plan names.
fn profile_of(plan: &Plan, plan_path: &Path, given: Option<&PathBuf>) -> Result<(Profile, PathBuf), Failure> {
    let path = match given {
        Some(path) => path.clone(),
        None => {
            let named =
                plan.cost_source.profile().map(|profile| PathBuf::from(&profile.path)).unwrap_or_default();
            let beside = plan_path.parent().map(|folder| folder.join(&named)).unwrap_or_default();
            if named.is_relative() && beside.exists() { beside } else { named }
        }
    };
    let plan_name = plan_path.display();
    if path.as_os_str().is_empty() {
        let error = InputError::new(
            "--profile",
            "",
            format!("is required, because {plan_name} does not name a profile"),
        );
        return Err(error.hint("give the profile that the plan was made from with `--profile`").into());
    }
    // A document may contain any path, so that must be a regular file; a path on the command line may be a
    // pipe.
    let read = match given {
        Some(_) => input::profile(&path),
        None => {
            input::check_plain(&path, "profile").map_err(Failure::from).and_then(|()| input::profile(&path))
        }
    };
    let profile = judged(read.map_err(|failure| match failure {
        Failure::Input(error) if given.is_none() => {
            let problem = format!("{}\n{plan_name} refers to this file as its profile", error.problem);
            Failure::Input(InputError { problem, ..error })
        }
        other => other,
    })?);
    let found = profile.fingerprint();
    let own = plan.cost_source.profile().map(|profile| profile.fingerprint.as_str());
    if own != Some(&found) {
        let own = own.map_or("none".to_owned(), |own| format!("fingerprint {own}"));
        let problem = format!("is not the profile that {plan_name} was made from ({own})");
        let error = InputError::new("fingerprint", found, problem).in_file(&path.display().to_string());
        return Err(error
            .hint("plan again with this profile, or give the original profile with `--profile`")
            .into());
    }
    Ok((profile, path))
}

/// # Errors
/// An option that has an effect only without a profile.
fn without_profile(software: SoftwareArgs, figures: &FigureArgs) -> Result<(), Failure> {
    let given = [
        ("--trainer", software.trainer.map(|trainer| trainer.name().to_owned())),
        ("--attention", software.attention.map(|kernel| kernel.to_string())),
        ("--loss", software.loss.map(|kernel| kernel.to_string())),
        ("--calibration", figures.calibration.as_ref().map(|path| path.display().to_string())),
        ("--devices", figures.catalogue.devices.first().map(|path| path.display().to_string())),
    ];
    for (flag, value) in given {
        if let Some(value) = value {
            let error = InputError::new(flag, value, "has no effect with a profile");
            return Err(error.hint("remove this option, or give `--cluster` without `--profile`").into());
        }
    }
    Ok(())
}

/// # Errors
/// A search for autodist's own engines is restricted to what they do not support.
fn check_own_engines(flags: &StrategyArgs) -> Result<(), InputError> {
    match flags.cp.iter().find(|degree| **degree > 1) {
        None => Ok(()),
        Some(degree) => Err(InputError::new("--cp", degree, "is not supported by autodist's own engines")
            .hint("remove `--cp`, or plan for another trainer: `plan --cluster` without `--profile`")),
    }
}

/// # Errors
/// Experts are to be distributed that the model does not have, or not evenly.
fn check_experts(model: &ModelSpec, degrees: &[u32]) -> Result<(), InputError> {
    degrees.iter().filter(|degree| **degree > 1).try_for_each(|degree| check_degree(model, *degree))
}

fn check_degree(model: &ModelSpec, degree: u32) -> Result<(), InputError> {
    if !model.has_experts() {
        return Err(InputError::new("--ep", degree, format!("{} has no experts", model.name))
            .hint("remove `--ep`, or use a model with experts (`autodist catalog`)"));
    }
    let mut counts = model.block_kinds().filter_map(|block| Some(block.experts?.count));
    match counts.find(|count| !count.is_multiple_of(degree)) {
        None => Ok(()),
        Some(count) => Err(InputError::new("--ep", degree, format!("must divide the {count} experts"))
            .hint("use a divisor of the number of experts, or remove `--ep`")),
    }
}

/// The planner of a model and a job with the prices of a profile, extrapolated by the catalogue to a larger
/// cluster.
pub fn planner<'a>(
    model: &'a ModelSpec,
    cluster: &'a Cluster,
    job: &'a Job,
    profile: &'a Profile,
) -> Planner<'a> {
    Planner::extended(model, cluster, job, profile, catalogue::beyond(profile, cluster))
}

/// Adds doubts to the profile: the writer of the file may not have checked it.
fn judged(mut profile: Profile) -> Profile {
    autodist_profiler::judge(&mut profile);
    profile
}

impl From<Infeasible> for Failure {
    fn from(error: Infeasible) -> Self {
        Self::Infeasible(error.to_string())
    }
}

impl From<Unpriced> for Failure {
    fn from(error: Unpriced) -> Self {
        Self::Input(InputError::new("", "", error.what).hint(error.hint))
    }
}

/// A given strategy, and why it is not a valid plan.
fn refused(strategy: &ParallelStrategy, error: PlanError) -> Failure {
    match error {
        PlanError::Illegal(broken) => {
            Failure::Input(InputError::new("strategy", strategy.label(), broken.reason).hint(format!(
                "choose a strategy that satisfies the rule “{}”, or let `autodist plan` choose one",
                broken.rule.name()
            )))
        }
        PlanError::Unpriced(error) => {
            Failure::Input(InputError::new("strategy", strategy.label(), error.what).hint(error.hint))
        }
        PlanError::OutOfMemory(_) | PlanError::Infeasible(_) => Failure::Infeasible(error.to_string()),
    }
}

/// Whether the prices apply to this model and job: a profile of another model is an error, even if a plan
/// fits.
fn check_prices(prices: &Prices, model: &ModelSpec, job: &Job) -> Result<(), Failure> {
    Ok(CostModel::new(&prices.profile).check(model, job)?)
}
