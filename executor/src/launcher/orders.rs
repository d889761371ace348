//! What the launcher, its agents and the ranks write to each other, as JSON.

use autodist_spec::DeviceKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// What a rank needs to know besides its assignments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RankEnvironment {
    pub rank: usize,
    /// Among the ranks of its machine.
    pub local_rank: usize,
    pub world: usize,
    pub rendezvous: SocketAddr,
    pub token: String,
    pub timeout_s: f64,
    pub realtime: bool,
    pub devices: DeviceKind,
}

/// From a rank to the launcher.
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
    /// A sign of life, of ranks that have no other way for it.
    Alive,
}

/// [`Answer::Progress`] of a value that is not JSON yet: made as one, it would take several times its memory.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word<'a, T> {
    Progress { assignment: usize, value: &'a T },
}

/// From the launcher to an agent. No order names a program: an agent starts its own.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order<'a> {
    /// Start your rank; the rank and its place in the environment are your own, and the token there is only what its
    /// token is made of, along with the job's.
    Start { launch: u64, environment: RankEnvironment, assignments: Cow<'a, [Value]> },
    /// Kill it, unless it has ended.
    Kill { launch: u64 },
}

/// From an agent to the launcher.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    Present(Presence),
    Ended { launch: u64, end: End, output: String },
}

/// Where a rank will run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Presence {
    /// Name of the machine.
    pub machine: String,
    /// Tells machines of one name apart: another for every start of a system.
    pub boot: String,
    pub processor: String,
    /// That nobody uses, bytes.
    pub free_memory: u64,
    /// The address at which it has found the launcher.
    pub reached: IpAddr,
    /// That its processes may use.
    pub cores: Vec<usize>,
    /// Which GPUs its launcher lets it see, if it says so.
    pub visible_gpus: Option<String>,
}

/// How a rank's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    Code(i32),
    Signal(i32),
    NotStarted(String),
    /// With the agent that had started it.
    AgentLost,
    /// It has not, though it was told to: it is a thread, or it hangs in the system.
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
