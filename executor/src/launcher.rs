//! Starts ranks as processes of this program, sends them assignments, watches them, and ends them all.
//!
//! An assignment is any JSON value; the ranks run them in turn over one endpoint and answer each with another
//! JSON value. Their meaning is defined by the caller of [`launch`] and the handler of [`serve`].

mod agent;
mod agents;
mod orders;
mod process;
mod pulse;
mod ranks;
mod remote;
mod runner;
mod serve;
mod silence;
mod tail;
mod torch;
mod watch;

pub use agent::{Agent, AgentError};
pub use agents::{Agents, JobMachine};
pub use remote::{HostLeader, Ssh, enter_environment};
pub use runner::{Handler, Runner};
pub use serve::{Teller, Worker, is_rank, serve};
pub use torch::Torch;

use crate::ExecutionError;
use crate::external::Launcher;
use autodist_communication::switch::{Switch, SwitchLinks, SwitchRoute};
use autodist_communication::{CommunicationError, Warn, derived_token, random_token};
use autodist_spec::{DeviceKind, Engine, Network, Path};
use orders::RankEnvironment;
use ranks::Ranks;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use watch::{Cause, Watch};

const ENVIRONMENT: &str = "AUTODIST_RANK_ENVIRONMENT";
/// Time for ranks to end by themselves after a stop request.
const GRACE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Options to start and watch ranks.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    pub runner: Runner,
    /// The address of the ranks' rendezvous; port 0 takes a free one.
    pub rendezvous: SocketAddr,
    /// The time-out for peers without progress.
    pub timeout: Duration,
    /// Whether ranks request real-time priority.
    pub realtime: bool,
    /// The devices that ranks compute on.
    pub devices: DeviceKind,
    /// A flag to end the job (Ctrl-C).
    pub stop: Arc<AtomicBool>,
    /// The processes that start all ranks but the first, if a cluster's launcher has started them.
    pub agents: Option<Arc<Agents>>,
    /// The emulated network for all traffic between ranks, if devices are emulated.
    pub network: Option<Network>,
    /// What trains: this program's executor, or PyTorch.
    pub engine: Engine,
    /// Callback for rejected connections, called on any thread.
    pub warn: Warn,
}

impl LaunchOptions {
    /// The transport between ranks, as named in records.
    #[must_use]
    pub fn transport(&self) -> &str {
        if self.engine == Engine::Torch { "" } else { self.runner.transport() }
    }
}

/// The reason why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("interrupted: all ranks have been stopped")]
    Interrupted,
    #[error("cannot start rank {rank} ({program}): {source}")]
    Spawn { rank: usize, program: String, source: std::io::Error },
    #[error("cannot make the job's token, because the system provides no random bytes: {0}")]
    Random(std::io::Error),
    #[error("cannot emulate the network: {0}")]
    Switch(std::io::Error),
    #[error(transparent)]
    Rendezvous(#[from] CommunicationError),
    #[error("rank {rank} {what}; all other ranks have been stopped{output}")]
    RankEnded { rank: usize, what: String, output: String },
    #[error(
        "rank {ranks} has not connected to the rendezvous at {address} within {waited_s} s; all other ranks have been stopped{}", firewall(*address)
    )]
    RanksMissing { ranks: String, address: SocketAddr, waited_s: f64 },
    #[error("rank {rank} failed: {message}; all other ranks have been stopped")]
    RankFailed { rank: usize, message: String },
    #[error("rank {rank} sent an invalid answer: {detail}")]
    Answer { rank: usize, detail: String },
    #[error(
        "the plan is for {ranks} ranks, but {launcher} started {processes} processes: {}", other_world(*launcher, *ranks)
    )]
    World { ranks: usize, launcher: Launcher, processes: usize },
    #[error("{source}: set AUTODIST_PORT to a free port of rank 0's machine, the same for all processes")]
    Port { source: CommunicationError },
    #[error(
        "{launcher} should have started autodist for rank {ranks}, too, but it has not connected to {address} within {waited_s} s: all machines must be able to reach MASTER_ADDR at AUTODIST_PORT"
    )]
    AgentsMissing { launcher: Launcher, ranks: String, address: String, waited_s: f64 },
    #[error(
        "rank {rank} is lost with the autodist process that ran it: it was killed, or its machine is gone; all other ranks have been stopped"
    )]
    AgentLost { rank: usize },
    #[error(
        "{place}: {ssh} {host} {what}, and autodist has not connected from there{output}\nhint: check that `{ssh} -o BatchMode=yes {host} true` works, and that this program and this folder exist there, too"
    )]
    Host { place: String, ssh: String, host: String, what: String, output: String },
}

impl LaunchError {
    /// Whether other tasks would fail too.
    pub fn ends_all(&self) -> bool {
        !matches!(self, Self::RankEnded { .. } | Self::RankFailed { .. } | Self::Answer { .. })
    }
}

/// Events of a running launch.
#[derive(Debug)]
pub enum News {
    /// Progress that a rank reported before an assignment was done ([`Teller::tell`]).
    Progress { assignment: usize, rank: usize, value: Value },
    /// The answers to an assignment, in rank order, as soon as all ranks have answered.
    Done { assignment: usize, answers: Vec<Value> },
}

/// Runs `assignments` on `world` new ranks. `heard` is called with their events, even just before the launch
/// fails.
///
/// # Errors
/// A rank that cannot be started, fails, or is killed: the error names it and why. All ranks have ended when
/// this returns, with or without an error.
pub fn launch(
    world: usize,
    assignments: &[Value],
    options: &LaunchOptions,
    mut heard: impl FnMut(News),
) -> Result<(), LaunchError> {
    let salt = random_token().map_err(LaunchError::Random)?;
    let (token, bind, advertised) = match &options.agents {
        None => (salt.clone(), vec![options.rendezvous], None),
        Some(agents) => {
            let (launcher, processes) = (agents.external().launcher, agents.external().world);
            if processes != world {
                return Err(LaunchError::World { ranks: world, launcher, processes });
            }
            agents.gather(&options.stop)?;
            let (bind, advertised) = agents.place(options.rendezvous);
            // Orders are sent unencrypted: they contain a salt, from which the launch's token can be derived
            // only with the job's token.
            (derived_token(&agents.external().token, &salt), bind, advertised)
        }
    };
    let switch = options.network.as_ref().map(links).map(Switch::start).transpose().map(|s| s.map(Arc::new));
    let switch = switch.map_err(LaunchError::Switch)?;
    let rendezvous = agents::listen_at(&bind, world, &token, switch, options.warn)?;
    let bound = rendezvous.address();
    let environment = RankEnvironment {
        rank: 0,
        local_rank: 0,
        world,
        rendezvous: advertised.map_or(bound, |address| SocketAddr::new(address, bound.port())),
        token,
        timeout_s: options.timeout.as_secs_f64(),
        realtime: options.realtime,
        devices: options.devices,
        engine: options.engine,
        python: None,
    };
    let mut ranks = Ranks::new(options);
    ranks.start(&environment, &salt, assignments)?;
    let mut watch = Watch::new(world, options.timeout);
    while !watch.is_over() && watch.cause.is_none() {
        if options.stop.load(Ordering::Relaxed) {
            watch.cause = Some(Cause { error: LaunchError::Interrupted, consequence: false });
            break;
        }
        match rendezvous.events().recv_timeout(LOOK_AGAIN) {
            Ok(event) => {
                watch.take(event, &mut ranks, &mut heard)?;
                while let Ok(event) = rendezvous.events().try_recv() {
                    watch.take(event, &mut ranks, &mut heard)?;
                }
            }
            // The exit status of the processes is not available yet.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_AGAIN),
            Err(RecvTimeoutError::Timeout) => {}
        }
        watch.look(&mut ranks);
    }
    if watch.cause.is_some() {
        // The first event may be a consequence: wait for the cause while the ranks end.
        rendezvous.stop_all();
        let until = Instant::now() + GRACE;
        loop {
            // The last rank may have sent something before it ended.
            let last = Instant::now() >= until || ranks.all_ended();
            while let Ok(event) = rendezvous.events().try_recv() {
                watch.take(event, &mut ranks, &mut heard)?;
            }
            watch.look_for_dead(&mut ranks);
            if last {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        watch.give_up_all();
    }
    ranks.end(if watch.cause.is_some() { Duration::ZERO } else { GRACE });
    let missing = watch.waited_for();
    match watch.cause.map(|cause| cause.error) {
        // A cluster's launcher stops all processes at once, so the end of other ranks is not their failure.
        Some(_) if options.stop.load(Ordering::Relaxed) => Err(LaunchError::Interrupted),
        Some(LaunchError::RankEnded { rank, what, .. }) => Err(match missing {
            // The rank that failed was waiting for the missing ones.
            Some(ranks) => LaunchError::RanksMissing {
                ranks,
                address: environment.rendezvous,
                waited_s: environment.timeout_s,
            },
            None => LaunchError::RankEnded { rank, what, output: ranks.output(rank) },
        }),
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn firewall(address: SocketAddr) -> &'static str {
    match address.ip().is_loopback() {
        true => "",
        false => ": a firewall must let the ranks connect to free ports of each other's machines",
    }
}

fn other_world(launcher: Launcher, ranks: usize) -> String {
    match launcher {
        Launcher::Ssh => format!("make the slots of the host file add up to {ranks}"),
        _ => {
            format!("start {ranks} processes, or set AUTODIST_LAUNCHER=none to run all ranks on this machine")
        }
    }
}

fn links(network: &Network) -> SwitchLinks {
    let route = |path: &Path| SwitchRoute {
        links: path.links.iter().map(|link| *link as usize).collect(),
        delay: Duration::from_secs_f64(path.latency_s.0),
    };
    SwitchLinks {
        rates: network.links.iter().map(|link| link.bytes_per_s.0).collect(),
        routes: network.paths.iter().map(|row| row.iter().map(route).collect()).collect(),
    }
}
