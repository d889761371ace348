//! One file per subcommand, thin.

mod backtest;
mod calibrate;
mod catalog;
mod estimate;
mod estimate_best;
mod estimate_unmeasured;
mod explain;
mod export;
mod from_trainer;
mod plan;
mod profile;
mod report;
mod schema;
mod selftest;
mod train;
mod tune;
mod unmeasured_plan;
mod validate;

use crate::cli::{Cli, Command, PriceArgs};
use crate::failure::Failure;
use crate::input;
use autodist_cost_model::{CostModel, Unpriced};
use autodist_planner::{Infeasible, PlanError};
use autodist_spec::{
    Bytes, Cluster, InputError, Job, ModelSpec, ParallelStrategy, Plan, Profile, fingerprint,
};
use std::path::{Path, PathBuf};

/// What is trained if nothing says it.
const DEFAULT_MODEL: &str = "tiny-llama";

pub fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Profile(args) => profile::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Estimate(args) => estimate::run(args),
        Command::Backtest(args) => backtest::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Export(args) => export::run(args),
        Command::Report(args) => report::run(args),
        Command::Train(args) => train::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Catalog(args) => catalog::run(args),
        Command::Schema(args) => schema::run(args),
    }
}

/// The profile that prices plans, where it was read from, and the cluster that they are for.
struct Prices {
    profile: Profile,
    path: PathBuf,
    cluster: Cluster,
}

fn prices(args: &PriceArgs) -> Result<Prices, Failure> {
    let default = Path::new("profile.json");
    let path = match (&args.profile, &args.cluster) {
        (Some(path), _) => path.clone(),
        (None, None) if default.exists() => default.to_owned(),
        (None, None) => {
            let error = InputError::new("--profile", "", "is missing, and there is no profile.json here");
            return Err(error.hint("measure this machine first: `autodist profile`").into());
        }
        (None, Some(text)) => {
            // A wrong cluster is reported as such before what this release cannot do.
            let cluster = input::cluster(text)?;
            let error = InputError::new(
                "--cluster",
                &cluster.name,
                "nothing says what layers and links cost there: searches price plans with measured profiles only",
            );
            return Err(error
                .hint("measure on the cluster with `autodist profile`, and give --profile; `autodist estimate` prices one given way without, and `estimate --best` the fastest")
                .into());
        }
    };
    let profile = input::profile(&path)?;
    let mut cluster = profile.cluster.clone();
    if let Some(text) = &args.cluster {
        let given = input::cluster(text)?;
        if given.device_count() != cluster.device_count() || given.node_count() != cluster.node_count() {
            let problem = format!(
                "has {} devices on {} nodes, but the profile was measured on {} devices on {} nodes",
                given.device_count(),
                given.node_count(),
                cluster.device_count(),
                cluster.node_count()
            );
            return Err(InputError::new("--cluster", text, problem)
                .hint("leave --cluster out: the profile names its own")
                .into());
        }
        cluster = given;
    }
    if let Some(bytes) = args.device_memory {
        cluster.nodes.iter_mut().for_each(|group| group.device.memory_bytes = Bytes(bytes));
        autodist_spec::Check::check(&cluster).map_err(|e| e.in_file("--device-memory"))?;
    }
    Ok(Prices { profile, path, cluster })
}

/// The profile that a plan was made from: the one given, or the one that the plan names.
fn profile_of(plan: &Plan, plan_path: &Path, given: Option<&PathBuf>) -> Result<(Profile, PathBuf), Failure> {
    let path = match given {
        Some(path) => path.clone(),
        None => {
            let named = PathBuf::from(&plan.profile.path);
            let beside = plan_path.parent().map(|folder| folder.join(&named)).unwrap_or_default();
            if named.is_relative() && beside.exists() { beside } else { named }
        }
    };
    if path.as_os_str().is_empty() {
        let error = InputError::new("--profile", "", "is missing, and the plan names none");
        return Err(error.hint("give the profile that the plan was made from").into());
    }
    let profile = input::profile(&path)?;
    let found = fingerprint(&profile);
    if found != plan.profile.fingerprint {
        let problem = format!(
            "is not the profile that the plan was made from (fingerprint {})",
            plan.profile.fingerprint
        );
        let error = InputError::new("fingerprint", found, problem).in_file(&path.display().to_string());
        return Err(error.hint("plan again with this profile, or give the original with --profile").into());
    }
    Ok((profile, path))
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

/// A way of training that was asked for, and why it is no plan.
fn refused(strategy: &ParallelStrategy, error: PlanError) -> Failure {
    match error {
        PlanError::Illegal(broken) => Failure::Input(
            InputError::new("strategy", strategy.label(), broken.reason)
                .hint(format!("keep to the rule “{}”, or let `autodist plan` choose", broken.rule.name())),
        ),
        PlanError::Unpriced(error) => {
            Failure::Input(InputError::new("strategy", strategy.label(), error.what).hint(error.hint))
        }
        PlanError::OutOfMemory(_) | PlanError::Infeasible(_) => Failure::Infeasible(error.to_string()),
    }
}

/// Whether the prices speak of this training at all: a profile of another model is no answer, whatever fits.
fn check_prices(prices: &Prices, model: &ModelSpec, job: &Job) -> Result<(), Failure> {
    Ok(CostModel::new(&prices.profile).check(model, job)?)
}
