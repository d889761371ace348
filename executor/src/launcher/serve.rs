//! The rank's side of [`super::launch`].

use super::ENVIRONMENT;
use super::orders::{Answer, RankEnvironment, Word};
use super::pulse::Pulse;
use super::torch::{self, Ended};
use crate::devices::RankDevices;
use crate::host::{self, Placement};
use crate::{ExecutionError, memory};
use autodist_communication::mpi::Mpi;
use autodist_communication::tcp;
use autodist_communication::{Control, Endpoint};
use autodist_spec::DeviceKind;
use serde::Serialize;
use serde_json::Value;
use std::io::{Read, Write};

/// The arguments of a rank's handler.
pub struct Worker {
    pub endpoint: Endpoint,
    pub placement: Placement,
    pub devices: RankDevices,
    pub teller: Teller,
}

/// Reports progress of a running assignment to the launcher.
pub struct Teller {
    control: Control,
    assignment: usize,
}

impl Teller {
    /// Sends a value, which the launcher passes on as [`super::News::Progress`].
    ///
    /// # Errors
    /// The launcher has disconnected.
    pub fn tell<T: Serialize>(&self, value: &T) -> Result<(), ExecutionError> {
        let word = Word::Progress { assignment: self.assignment, value };
        let bytes = serde_json::to_vec(&word).map_err(|source| ExecutionError::System {
            what: "reporting progress to the launcher",
            source: source.into(),
        })?;
        Ok(self.control.send(&bytes)?)
    }
}

/// Whether this process was started as a rank.
pub fn is_rank() -> bool {
    std::env::var_os(ENVIRONMENT).is_some()
}

/// Runs a rank: joins the job, runs the assignments with `handle`, and sends the answers. Returns the
/// process's exit code.
pub fn serve(handle: impl FnMut(&mut Worker, usize, &Value) -> Result<Value, ExecutionError>) -> i32 {
    host::die_with_parent();
    // Without this, the process would be listed as `exe`.
    let _ = std::fs::write("/proc/self/comm", "autodist");
    memory::keep_freed_memory();
    // Ctrl-C reaches the whole process group; the launcher ends its ranks in order.
    // SAFETY: ignoring a signal has no memory effect.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
    let before = memory::live();
    let (environment, assignments) = match instructions() {
        Ok(instructions) => instructions,
        Err(message) => return complain(&message),
    };
    memory::exclude_since(before);
    if let Some(python) = environment.python.clone() {
        return match torch::keep(environment, &python, &assignments) {
            Ok(()) => 0,
            Err(Ended { message, code }) => {
                complain(&message);
                code
            }
        };
    }
    match work(environment, &assignments, None, handle) {
        Ok(()) => 0,
        Err(message) => complain(&message),
    }
}

/// A rank's work, on any thread; an error is a message for the launcher, after the connections are closed.
pub(super) fn work(
    environment: RankEnvironment,
    assignments: &[Value],
    mpi: Option<&Mpi>,
    mut handle: impl FnMut(&mut Worker, usize, &Value) -> Result<Value, ExecutionError>,
) -> Result<(), String> {
    let devices = RankDevices::new(environment.devices, environment.local_rank);
    let placement = match environment.devices {
        DeviceKind::Cpu => host::place(environment.local_rank, environment.realtime),
        // A rank with a GPU waits most of the time, and its driver's threads need cores of their own.
        DeviceKind::Cuda => Placement { core: None, realtime: false },
    };
    let (options, timeout) = (environment.tcp(), environment.timeout());
    let joined = match mpi {
        None => tcp::join(options),
        Some(mpi) => mpi.join(options),
    };
    let endpoint = joined
        .map_err(|error| format!("rank {} cannot connect to the other ranks: {error}", environment.rank))?;
    let control = endpoint.control().clone();
    let pulse = Pulse::start(control.clone(), timeout)
        .map_err(|error| format!("cannot start the heartbeat thread: {error}"))?;
    let teller = Teller { control: control.clone(), assignment: 0 };
    let mut worker = Worker { endpoint, placement, devices, teller };
    memory::reset_peak();
    for (index, assignment) in assignments.iter().enumerate() {
        worker.teller.assignment = index;
        let answer = match handle(&mut worker, index, assignment) {
            Ok(value) => Answer::Done { assignment: index, value },
            Err(error) => Answer::Failed { message: error.to_string(), consequence: error.is_consequence() },
        };
        let failed = matches!(answer, Answer::Failed { .. });
        let bytes = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
        control.send(&bytes).map_err(|error| error.to_string())?;
        if failed {
            break;
        }
    }
    // After it has left, a rank sends nothing more.
    drop(pulse);
    worker.endpoint.close().map_err(|error| error.to_string())
}

fn instructions() -> Result<(RankEnvironment, Vec<Value>), String> {
    let environment =
        std::env::var(ENVIRONMENT).map_err(|_| "a rank must be started by autodist itself".to_owned())?;
    let environment = serde_json::from_str(&environment).map_err(|e| format!("{ENVIRONMENT}: {e}"))?;
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(|e| format!("reading the assignments: {e}"))?;
    let assignments = serde_json::from_slice(&text).map_err(|e| format!("reading the assignments: {e}"))?;
    Ok((environment, assignments))
}

/// Writes a message for the launcher, which shows it when it reports this rank's end.
fn complain(message: &str) -> i32 {
    // If standard error is closed, the message cannot be delivered.
    let _ = writeln!(std::io::stderr(), "{message}");
    1
}
