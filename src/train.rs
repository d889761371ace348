//! Trains tasks on processes of this program.

use crate::cli::RunArgs;
use crate::failure::Failure;
use crate::{devices, engine, external, interrupt};
use autodist_executor::launcher::{LaunchError, LaunchOptions, News, launch};
use autodist_executor::{DataSource, Growing, Task};
use autodist_profiler::Assignment;
use autodist_spec::profile::Environment;
use autodist_spec::{
    Alternative, Cluster, DeviceKind, Engine, InputError, Job, ModelSpec, Network, Plan, RunRecord,
};
use std::path::PathBuf;
use std::time::Duration;

pub const WARMUP_STEPS: u32 = 2;

/// How ranks of `engine` run on `devices`, which must exist; emulates the devices and links of `emulated`.
pub fn options(
    run: &RunArgs,
    engine: Engine,
    devices: DeviceKind,
    emulated: Option<&Cluster>,
) -> Result<LaunchOptions, Failure> {
    let timeout = timeout(run)?;
    let python = match engine {
        Engine::Native => {
            devices::check(devices)?;
            PathBuf::new()
        }
        // PyTorch finds its GPUs itself.
        Engine::Torch => engine::torch(run, emulated.is_some())?.python().to_owned(),
    };
    Ok(LaunchOptions {
        runner: external::runner(python)?,
        rendezvous: run.rendezvous,
        timeout,
        realtime: !run.no_realtime && devices == DeviceKind::Cpu,
        devices,
        stop: interrupt::stop_flag(),
        agents: external::agents(),
        network: emulated.and_then(Network::of),
        engine,
        warn: crate::output::warn,
    })
}

/// The timeout for a silent rank.
pub fn timeout(run: &RunArgs) -> Result<Duration, Failure> {
    if !(0.1..=1e6).contains(&run.timeout) {
        let error =
            InputError::new("--timeout", run.timeout, "must be a number of seconds from 0.1 to 1000000");
        return Err(error.hint("60 is suitable for most jobs").into());
    }
    Ok(Duration::from_secs_f64(run.timeout))
}

/// The training data of the flag.
pub fn data(path: Option<&PathBuf>, model: &ModelSpec, job: &Job) -> Result<DataSource, Failure> {
    let source = path.map_or(DataSource::Synthetic, |path| DataSource::Text(path.clone()));
    match autodist_executor::Data::open(&source, model.vocab, job.seq_len as usize, job.seed) {
        Ok(_) => Ok(source),
        Err(error) => {
            let value = path.map_or_else(|| "the synthetic language".to_owned(), |p| p.display().to_string());
            Err(InputError::new("--data", value, error.to_string())
                .hint("give a text file that holds at least a few sequences")
                .into())
        }
    }
}

/// A training, complete or partial.
pub struct Trained {
    /// `None` if it has no complete step.
    pub record: Option<RunRecord>,
    /// Why it ended early.
    pub failure: Option<Failure>,
}

/// Trains one task; `watch` is called as its record grows.
pub fn run(task: &Task, options: &LaunchOptions, mut watch: impl FnMut(&Growing)) -> Trained {
    let mut growing = Growing::new(task);
    let mut broken = None;
    let trained = serde_json::to_value(Assignment::Train(Box::new(task.clone())))
        .map_err(|error| LaunchError::Answer { rank: 0, detail: error.to_string() })
        .and_then(|assignment| {
            launch(task.world(), &[assignment], options, |news| {
                if let Err(error) = hear(&mut growing, task, news) {
                    broken = Some(LaunchError::Answer { rank: 0, detail: error.to_string() });
                }
                watch(&growing);
            })
        });
    let failure = trained.err().or(broken).map(Failure::from);
    let reason = failure.as_ref().map(ToString::to_string);
    let record =
        (growing.done() > 0).then(|| growing.record(environment(&growing, options), reason.as_deref()));
    Trained { record, failure }
}

/// Adds news of the training of `task`.
pub fn hear(growing: &mut Growing, task: &Task, news: News) -> Result<(), serde_json::Error> {
    growing.forget_news();
    match news {
        News::Progress { rank, value, .. } => growing.take(rank, serde_json::from_value(value)?),
        News::Done { answers, .. } => {
            for (rank, outcome) in autodist_profiler::outcomes(task, answers)?.into_iter().enumerate() {
                growing.take(rank, outcome);
            }
        }
    }
    Ok(())
}

/// The plans of a document: its choice first, then the runners-up.
pub fn candidates(plan: &Plan) -> Vec<Alternative> {
    let best = Alternative {
        strategy: plan.strategy.clone(),
        stages: plan.stages.clone(),
        estimate: plan.estimate.clone(),
        reason: "best".to_owned(),
    };
    std::iter::once(best).chain(plan.alternatives.iter().cloned()).collect()
}

/// The environment of a training, as reported by its ranks.
pub fn environment(growing: &Growing, options: &LaunchOptions) -> Environment {
    let outcomes = growing.outcomes();
    let realtime = outcomes.iter().all(|o| o.realtime);
    let mut environment = autodist_profiler::environment(realtime, options.devices);
    environment.emulated = options.network.is_some();
    options.transport().clone_into(&mut environment.transport);
    environment.engine = options.engine;
    // All processes have connected, or there would be no outcomes.
    environment.machines = external::machines().unwrap_or_default();
    environment.collectives = outcomes.first().map(|o| o.route.clone()).unwrap_or_default();
    // PyTorch's ranks never have it.
    if options.realtime && options.engine == Engine::Native && !environment.realtime {
        environment.warnings.push(
            "ranks had no real-time priority: measured times include other load on this machine".to_owned(),
        );
    }
    environment
}
