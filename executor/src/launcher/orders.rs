//! The messages between launcher, agents and ranks, as JSON.

use autodist_communication::tcp::TcpOptions;
use autodist_spec::{DeviceKind, Engine};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The environment of a rank, in addition to its assignments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RankEnvironment {
    pub rank: usize,
    /// The rank's number on its machine.
    pub local_rank: usize,
    pub world: usize,
    pub rendezvous: SocketAddr,
    pub token: String,
    pub timeout_s: f64,
    pub realtime: bool,
    pub devices: DeviceKind,
    pub engine: Engine,
    /// The interpreter of the PyTorch engine. Every process uses its own: one that an order names is ignored.
    #[serde(default)]
    pub python: Option<PathBuf>,
}

impl RankEnvironment {
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_s)
    }

    pub fn tcp(&self) -> TcpOptions {
        TcpOptions {
            rendezvous: self.rendezvous,
            rank: self.rank,
            world: self.world,
            token: self.token.clone(),
            timeout: self.timeout(),
            bind: None,
        }
    }
}

/// A message from a rank to the launcher.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// Progress of a running assignment.
    Progress {
        assignment: usize,
        value: Value,
    },
    Done {
        assignment: usize,
        value: Value,
    },
    Failed {
        message: String,
        consequence: bool,
    },
    /// A heartbeat, for ranks without a control channel.
    Alive,
}

/// [`Answer::Progress`] with a value that is not converted to a JSON value, which would take several times
/// the memory.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word<'a, T> {
    Progress { assignment: usize, value: &'a T },
}

/// An order from the launcher to an agent. Orders do not name a program: an agent starts its own.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order<'a> {
    /// Starts the agent's rank. The agent sets rank and local rank in the environment; the token there is the
    /// salt from which the launch's token is derived with the job's.
    Start { launch: u64, environment: RankEnvironment, assignments: Cow<'a, [Value]> },
    /// Kills the rank, unless it has ended.
    Kill { launch: u64 },
}

/// A message from an agent to the launcher.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    Present(Presence),
    Ended { launch: u64, end: End, output: String },
}

/// The host on which a rank will run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Presence {
    /// Name of the machine.
    pub machine: String,
    /// The boot id, which distinguishes machines with the same name.
    pub boot: String,
    pub processor: String,
    /// Available memory, bytes.
    pub free_memory: u64,
    /// The address at which the agent has reached the launcher.
    pub reached: IpAddr,
    /// The cores that its processes may use.
    pub cores: Vec<usize>,
    /// The GPUs that its launcher has made visible to it, if set.
    pub visible_gpus: Option<String>,
}

/// How a rank's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    Code(i32),
    Signal(i32),
    NotStarted(String),
    /// Lost with the agent that had started it.
    AgentLost,
    /// It did not end on request: it is a thread, or it hangs in a system call.
    Stuck,
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal) => Self::Signal(signal),
            None => Self::Code(status.code().unwrap_or(-1)),
        }
    }
}
