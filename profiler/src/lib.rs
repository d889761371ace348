//! Measures the operations that the executor will run, on the devices and links that it will use, with all
//! ranks running at once. Layers are measured inside real training steps: a probe is a training [`Task`] with
//! every instruction timed and its memory counted. Links, send/recv and the interference of compute and
//! communication are measured by separate tasks. Rounds repeat until the medians are accurate enough or the
//! budget is spent.

#![forbid(unsafe_code)]

mod assemble;
mod coding;
mod forget;
mod hardware;
mod links;
mod machines;
mod network;
mod overlap;
mod patterns;
mod probes;
mod quality;

pub use coding::CodingTask;
pub use forget::forget;
pub use hardware::{HardwareAnswer, HardwareTask};
pub use links::{CollectiveTimings, KINDS, LinkAnswer, LinkTask, MessageTimings};
pub use network::NetworkTask;
pub use overlap::{OverlapAnswer, OverlapTask};
pub use patterns::PatternTask;
pub use quality::{doubts, judge};

use autodist_executor::cuda::{self, Survey};
use autodist_executor::launcher::{LaunchError, LaunchOptions, News, Worker, launch};
use autodist_executor::{ExecutionError, RankOutcome, Task, Tell, TrainingDevice, devices, host, train};
use autodist_spec::profile::{DeviceKind, Environment};
use autodist_spec::{Cluster, Engine, Job, Machine, ModelSpec, Network, Precision, Profile};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Instant;

/// The assignments of the profiler to a rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignment {
    Train(Box<Task>),
    Links(LinkTask),
    Overlap(OverlapTask),
    Hardware(HardwareTask),
    Network(NetworkTask),
    Patterns(PatternTask),
    Coding(CodingTask),
}

impl Assignment {
    /// Whether it measures links between machines, not an engine.
    fn is_of_links(&self) -> bool {
        matches!(self, Self::Network(_))
    }

    fn precision(&self) -> Precision {
        match self {
            Self::Train(task) => task.job.precision,
            Self::Links(task) => task.precision,
            Self::Overlap(task) => task.precision,
            Self::Hardware(task) => task.precision,
            Self::Network(_) | Self::Patterns(_) | Self::Coding(_) => Precision::Fp32,
        }
    }
}

/// A rank's answer to an assignment, by the handler of [`autodist_executor::launcher::serve`].
///
/// # Errors
/// The error that ends the assignment early.
pub fn handle(worker: &mut Worker, index: usize, assignment: &Value) -> Result<Value, ExecutionError> {
    let broken = |error: serde_json::Error| ExecutionError::System {
        what: "reading an assignment",
        source: error.into(),
    };
    let assignment = Assignment::deserialize(assignment).map_err(broken)?;
    let precision = assignment.precision();
    let answer = match worker.devices.kind() {
        DeviceKind::Cpu => on_device(&devices::cpu(precision)?, worker, index, assignment)?,
        DeviceKind::Cuda => {
            let device = worker.devices.cuda(&mut worker.endpoint, precision)?;
            on_device(&device, worker, index, assignment)?
        }
    };
    answer.map_err(broken)
}

fn on_device<D: TrainingDevice>(
    device: &D,
    worker: &mut Worker,
    index: usize,
    assignment: Assignment,
) -> Result<serde_json::Result<Value>, ExecutionError> {
    let name = format!("a{index}");
    Ok(match assignment {
        Assignment::Train(task) => {
            let Worker { endpoint, placement, teller, .. } = worker;
            // A probe is short; only its complete outcome is needed.
            let mut tell = |outcome: &RankOutcome| teller.tell(outcome);
            let tell: Option<Tell<'_>> = if task.detail { None } else { Some(&mut tell) };
            let mut outcome = train(device, &task, endpoint, &name, *placement, tell)?;
            outcome.route = worker.devices.route();
            serde_json::to_value(outcome)
        }
        Assignment::Links(task) => serde_json::to_value(links::measure(device, &task, worker, &name)?),
        Assignment::Overlap(task) => serde_json::to_value(overlap::measure(device, &task, worker, &name)?),
        Assignment::Hardware(task) => serde_json::to_value(hardware::measure(device, &task)?),
        Assignment::Coding(task) => serde_json::to_value(coding::measure(device, &task, worker, &name)?),
        Assignment::Patterns(task) => serde_json::to_value(patterns::measure(&task, worker, &name)?),
        Assignment::Network(task) => serde_json::to_value(network::measure(device, &task, worker, &name)?),
    })
}

/// A request for a profile.
#[derive(Debug, Clone)]
pub struct Request {
    pub model: ModelSpec,
    pub job: Job,
    /// Number of ranks that run at once, one device each.
    pub ranks: u32,
    /// Whether some machine has more ranks than devices.
    pub shared: bool,
    /// Seconds after which no further round starts, except for doubtful cells: at most three more rounds, the
    /// later ones within twice this time.
    pub budget_s: f64,
    /// Target width of a median's confidence interval, relative to the median.
    pub interval: f64,
    /// The cluster that the ranks emulate, if any.
    pub emulated: Option<Cluster>,
    /// The engine to measure.
    pub engine: Engine,
    /// The machines over which a launcher has distributed the ranks; empty if there is only one. Rank r is
    /// device r.
    pub machines: Vec<Machine>,
}

impl Request {
    /// Which devices share which link, if devices are on several machines, real or emulated. Bandwidths and
    /// latencies of real links are not measured yet.
    pub fn structure(&self) -> Option<Network> {
        match &self.emulated {
            Some(cluster) => Network::of(cluster),
            None if self.machines.len() > 1 => {
                let mut nodes = vec![0; self.ranks as usize];
                for (node, machine) in self.machines.iter().enumerate() {
                    for rank in &machine.ranks {
                        *nodes.get_mut(*rank as usize)? = node as u32;
                    }
                }
                let names: Vec<String> = self.machines.iter().map(|machine| machine.name.clone()).collect();
                Network::unmeasured(&nodes, &names)
            }
            None => None,
        }
    }

    /// See [`Task::emulated_flops_per_s`].
    pub fn emulated_flops_per_s(&self) -> Option<f64> {
        self.emulated.as_ref()?.nodes.first()?.device.peak_flops_per_s.map(|rate| rate.0)
    }
}

/// The progress of the profiler.
#[derive(Debug, Clone, Copy)]
pub struct ProfilingProgress<'a> {
    /// Counted from 1.
    pub round: usize,
    /// Finished measurements of this round.
    pub done: usize,
    /// Measurements of this round.
    pub of: usize,
    /// The current measurement.
    pub what: &'a str,
    /// Seconds since the start.
    pub used_s: f64,
    /// Seconds after which no further round starts.
    pub budget_s: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("a rank sent an invalid measurement: {0}")]
    Answer(#[from] serde_json::Error),
    #[error(
        "nothing can be measured, because no micro-batch size and tensor-parallel degree fit {ranks} ranks and a global batch of {global_batch}"
    )]
    Nothing { ranks: u32, global_batch: u32 },
}

/// Extra rounds for doubtful cells, after the others.
const ROUNDS_AGAIN: usize = 3;
/// The second and third extra round start only within this multiple of the budget.
const BUDGETS_AGAIN: f64 = 2.0;

/// Measures a profile. `earlier` is a profile to continue: its cells are not measured again, except doubtful
/// ones. `partial` is called with the profile after every measurement, so that an interruption loses little.
///
/// # Errors
/// Ranks cannot be started or fail, or there is nothing to measure.
pub fn profile(
    request: &Request,
    options: &LaunchOptions,
    earlier: Option<Profile>,
    progress: impl FnMut(ProfilingProgress<'_>),
    partial: impl FnMut(&Profile),
) -> Result<Profile, ProfileError> {
    let environment = Environment {
        emulated: request.emulated.is_some(),
        transport: options.transport().to_owned(),
        engine: options.engine,
        machines: request.machines.clone(),
        ..environment(options.realtime, options.devices)
    };
    let ranks = request.ranks as usize;
    let ask = |pieces: &[Assignment], done: &mut dyn FnMut(usize, Vec<Value>)| -> Result<(), ProfileError> {
        let mut first = 0;
        // Links are those of the machines, not of an engine: ranks of this program measure them.
        for pieces in pieces.chunk_by(|one, next| one.is_of_links() == next.is_of_links()) {
            let engine = if pieces[0].is_of_links() { Engine::Native } else { options.engine };
            let options = LaunchOptions { engine, ..options.clone() };
            let values: Vec<Value> = pieces.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
            launch(ranks, &values, &options, |news| {
                if let News::Done { assignment, answers } = news {
                    done(first + assignment, answers);
                }
            })?;
            first += pieces.len();
        }
        Ok(())
    };
    profile_by(request, environment, earlier, ask, progress, partial)
}

/// Like [`profile`], with any ranks: `ask` sends each of the assignments to every rank, and passes on an
/// assignment's index with the ranks' answers.
///
/// # Errors
/// As for `profile`, and errors of `ask`.
pub fn profile_by(
    request: &Request,
    environment: Environment,
    earlier: Option<Profile>,
    mut ask: impl FnMut(&[Assignment], &mut dyn FnMut(usize, Vec<Value>)) -> Result<(), ProfileError>,
    mut progress: impl FnMut(ProfilingProgress<'_>),
    mut partial: impl FnMut(&Profile),
) -> Result<Profile, ProfileError> {
    let began = Instant::now();
    let mut assembly = assemble::Assembly::new(request, earlier, environment);
    let mut measure = |assembly: &mut assemble::Assembly,
                       pieces: &[Assignment],
                       round,
                       why: &str|
     -> Result<(), ProfileError> {
        let mut failure = None;
        let mut at = |done: usize| {
            let next = pieces.get(done).map_or_else(|| "putting it together".to_owned(), describe);
            let (used_s, budget_s) = (began.elapsed().as_secs_f64(), request.budget_s);
            let what = format!("{why}{next}");
            progress(ProfilingProgress { round, done, of: pieces.len(), what: &what, used_s, budget_s });
        };
        at(0);
        ask(pieces, &mut |index, answers| {
            if let Err(error) = assembly.take(&pieces[index], answers) {
                failure = Some(error);
            }
            at(index + 1);
            partial(&assembly.profile(false));
        })?;
        assembly.review();
        failure.map_or(Ok(()), |error| Err(ProfileError::Answer(error)))
    };
    let mut round = 0;
    loop {
        let pieces = probes::round(request, &assembly, round);
        if round == 0 && pieces.is_empty() && assembly.is_empty() {
            return Err(ProfileError::Nothing {
                ranks: request.ranks,
                global_batch: request.job.global_batch,
            });
        }
        if pieces.is_empty() {
            break;
        }
        measure(&mut assembly, &pieces, round + 1, "")?;
        round += 1;
        if began.elapsed().as_secs_f64() > request.budget_s {
            break;
        }
    }
    for again in 0..ROUNDS_AGAIN {
        let pieces = probes::again(request, &assembly);
        let late = began.elapsed().as_secs_f64() > BUDGETS_AGAIN * request.budget_s;
        if pieces.is_empty() || again > 0 && late {
            break;
        }
        round += 1;
        measure(&mut assembly, &pieces, round, "measuring again: ")?;
    }
    Ok(assembly.profile(true))
}

fn describe(assignment: &Assignment) -> String {
    match assignment {
        Assignment::Train(task) => {
            let s = &task.strategy;
            let sp = if s.sequence_parallel { " sp" } else { "" };
            format!("layers at tp{}{sp} mb{}, recompute {}", s.tensor, s.micro_batch, s.recompute.name())
        }
        Assignment::Links(_) => "links and collectives".to_owned(),
        Assignment::Overlap(_) => "compute overlapped with communication".to_owned(),
        Assignment::Hardware(_) => "GEMMs and copies".to_owned(),
        Assignment::Coding(_) => "coding of gradients".to_owned(),
        Assignment::Network(_) => "every link between devices".to_owned(),
        Assignment::Patterns(_) => "collectives of all devices".to_owned(),
    }
}

/// The environment of a measurement that starts now.
pub fn environment(realtime: bool, devices: DeviceKind) -> Environment {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let gpus = match devices {
        DeviceKind::Cpu => Survey::default(),
        // Ranks that cannot use them report the reason.
        DeviceKind::Cuda => cuda::survey().unwrap_or_default(),
    };
    Environment {
        host: host::name(),
        processor: host::processor(),
        cores: host::cores().len() as u32,
        realtime,
        started_unix_s: now.as_secs(),
        autodist_version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: Engine::Native,
        emulated: false,
        devices,
        accelerators: gpus.accelerators,
        accelerator_paths: gpus.paths,
        collectives: String::new(),
        transport: String::new(),
        machines: Vec::new(),
        warnings: gpus.warnings,
    }
}

/// Whether `profile` matches what `request` would measure on this machine.
///
/// # Errors
/// The first difference.
pub fn matches(profile: &Profile, request: &Request, options: &LaunchOptions) -> Result<(), String> {
    let devices = options.devices;
    let here = environment(false, devices);
    let differs = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
        Err(format!("its {what} is {theirs}, not {ours}"))
    };
    if profile.model != request.model {
        return differs("model", &profile.model.name, &request.model.name);
    }
    if profile.seq_len != request.job.seq_len {
        return differs("sequence length", &profile.seq_len, &request.job.seq_len);
    }
    if profile.precision != request.job.precision {
        return differs("precision", &profile.precision.name(), &request.job.precision.name());
    }
    if profile.environment.devices != devices {
        return differs("devices", &profile.environment.devices.name(), &devices.name());
    }
    if profile.environment.engine != options.engine {
        return differs("engine", &profile.environment.engine.name(), &options.engine.name());
    }
    let (theirs, ours) = (profile.environment.transport.as_str(), options.transport());
    if theirs != ours {
        let name = |transport: &str| if transport.is_empty() { "TCP" } else { transport }.to_owned();
        return differs("transport", &name(theirs), &name(ours));
    }
    if profile.environment.accelerators.first().map(|gpu| &gpu.name)
        != here.accelerators.first().map(|gpu| &gpu.name)
    {
        return Err("it was measured on another GPU".to_owned());
    }
    if profile.optimizer_kind.state_elements() != request.job.optimizer.state_elements() {
        return Err("it was measured with another optimizer".to_owned());
    }
    if profile.cluster.device_count() != request.ranks {
        return differs("number of devices", &profile.cluster.device_count(), &request.ranks);
    }
    if profile.environment.emulated != request.emulated.is_some()
        || request.emulated.as_ref().is_some_and(|cluster| *cluster != profile.cluster)
    {
        return Err("it was measured with other emulated devices or links, or without emulation".to_owned());
    }
    let (theirs, ours) = (places(&profile.environment.machines), places(&request.machines));
    if theirs != ours {
        return differs("machines", &theirs, &ours);
    }
    if profile.environment.processor != here.processor || profile.environment.cores != here.cores {
        return differs("processor", &profile.environment.processor, &here.processor);
    }
    if profile.environment.autodist_version != here.autodist_version {
        return differs("autodist version", &profile.environment.autodist_version, &here.autodist_version);
    }
    Ok(())
}

/// The distribution of ranks over machines, which a profile of several machines depends on.
fn places(machines: &[Machine]) -> String {
    let ranks = |machine: &Machine| {
        let ranks: Vec<String> = machine.ranks.iter().map(u32::to_string).collect();
        let Machine { name, processor, cores, .. } = machine;
        format!("{name} ({processor}, {cores} cores) with ranks {}", ranks.join(", "))
    };
    match machines {
        [] => "one alone".to_owned(),
        several => several.iter().map(ranks).collect::<Vec<_>>().join(" and "),
    }
}

/// The outcomes of a training assignment.
///
/// # Errors
/// An answer is not an outcome.
pub fn outcomes(task: &Task, answers: Vec<Value>) -> Result<Vec<RankOutcome>, serde_json::Error> {
    let mut outcomes: Vec<RankOutcome> =
        answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    // The task ran, so it compiles.
    if let Ok(program) = task.program() {
        outcomes.iter_mut().filter(|o| !o.named.is_empty()).for_each(|o| o.resolve(&program));
    }
    Ok(outcomes)
}

/// Whether a finished profile has every cell that `request` would measure.
pub fn covers(profile: &Profile, request: &Request) -> bool {
    let assembly = assemble::Assembly::new(request, Some(profile.clone()), Environment::default());
    let links = profile.network.is_some() || !assembly.wants_links(0);
    links && probes::all(request).iter().all(|probe| !assembly.wants(probe, 0))
}
