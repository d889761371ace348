//! How a process runs a rank: in a child process, or on a thread.

use super::orders::{End, RankEnvironment};
use super::process::Process;
use super::serve::{Worker, work};
use super::{ExecutionError, GRACE};
use crate::{host, memory};
use autodist_communication::mpi::Mpi;
use autodist_spec::Engine;
use serde_json::Value;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The handler that computes the answer to an assignment.
pub type Handler = fn(&mut Worker, usize, &Value) -> Result<Value, ExecutionError>;

/// How ranks are run.
#[derive(Debug, Clone)]
pub enum Runner {
    /// Each rank in its own process, over TCP.
    Program {
        /// Program and arguments; the program must call [`super::serve`].
        command: Vec<OsString>,
        /// The interpreter that ranks of the PyTorch engine start.
        python: PathBuf,
    },
    /// Each rank on a thread of its `mpirun` process, over MPI: MPI is initialised once per process, and not
    /// in a child, however many ranks the process runs one after another.
    Thread { mpi: Mpi, handle: Handler },
}

impl Runner {
    /// The transport between ranks, as named in records: empty for TCP, or the MPI library.
    #[must_use]
    pub fn transport(&self) -> &str {
        match self {
            Self::Program { .. } => "",
            Self::Thread { mpi, .. } => mpi.library(),
        }
    }

    /// The name for errors when a rank cannot be started.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Program { command, .. } => match std::env::current_exe() {
                Ok(own) if Path::new(&command[0]) == Path::new(host::OWN_PROGRAM) => {
                    own.display().to_string()
                }
                _ => command[0].to_string_lossy().into_owned(),
            },
            Self::Thread { .. } => "a thread".to_owned(),
        }
    }

    pub(super) fn start(&self, environment: RankEnvironment, assignments: &[Value]) -> io::Result<Running> {
        match self {
            Self::Program { command, python } => {
                let python = match environment.engine {
                    Engine::Native => None,
                    Engine::Torch => Some(host::find_program(python)?),
                };
                let environment = RankEnvironment { python, ..environment };
                Process::start(command, &environment, assignments).map(Running::Process)
            }
            Self::Thread { mpi, handle } => {
                RankThread::start(mpi, *handle, environment, assignments.to_vec()).map(Running::Thread)
            }
        }
    }
}

/// A rank of this process. Dropping it ends the rank.
pub(super) enum Running {
    Process(Process),
    Thread(RankThread),
}

impl Running {
    /// How the rank ended, if it has.
    pub fn end(&mut self) -> Option<End> {
        match self {
            Self::Process(process) => process.end(),
            Self::Thread(thread) => thread.end(),
        }
    }

    /// Requests the rank to end, without waiting.
    pub fn tell_to_end(&mut self) {
        match self {
            Self::Process(process) => process.tell_to_end(),
            Self::Thread(_) => {}
        }
    }

    /// Ends the rank now, unless it has ended.
    pub fn kill(&mut self) -> End {
        match self {
            Self::Process(process) => process.kill(),
            Self::Thread(thread) => thread.stop(),
        }
    }

    /// The last part of its output, once it has ended.
    pub fn output(&mut self) -> String {
        match self {
            Self::Process(process) => process.output(),
            Self::Thread(thread) => thread.output.clone(),
        }
    }
}

/// Stack size, the same as that of a process's first thread.
const STACK: usize = 8 << 20;
/// Whether a rank is running in this process. Memory counts and core pinning are per process, so there can be
/// only one.
static BUSY: AtomicBool = AtomicBool::new(false);

pub(super) struct RankThread {
    mpi: Mpi,
    thread: Option<JoinHandle<Result<(), String>>>,
    end: Option<End>,
    output: String,
}

/// Frees the process for the next rank, however this rank ends.
struct Busy;

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

impl RankThread {
    fn start(
        mpi: &Mpi,
        handle: Handler,
        environment: RankEnvironment,
        assignments: Vec<Value>,
    ) -> io::Result<Self> {
        if BUSY.swap(true, Ordering::AcqRel) {
            return Err(io::Error::other(
                "the previous rank has not ended, and with MPI both share one process",
            ));
        }
        let busy = Busy;
        let of_rank = mpi.clone();
        let run = move || {
            let _busy = busy;
            memory::keep_freed_memory();
            // Memory of the launcher in this process does not count for the rank.
            memory::exclude_all();
            work(environment, &assignments, Some(&of_rank), handle)
        };
        let thread = std::thread::Builder::new().name("rank".to_owned()).stack_size(STACK).spawn(run)?;
        Ok(Self { mpi: mpi.clone(), thread: Some(thread), end: None, output: String::new() })
    }

    fn end(&mut self) -> Option<End> {
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            let (end, output) = match thread.join() {
                Ok(Ok(())) => (End::Code(0), String::new()),
                Ok(Err(message)) => (End::Code(1), message),
                // The message has been written to standard error.
                Err(_) => (End::Code(101), "its thread panicked".to_owned()),
            };
            (self.end, self.output) = (Some(end), output);
        }
        self.end.clone()
    }

    /// A thread cannot be killed: its connections are closed, and it ends at its next communication.
    fn stop(&mut self) -> End {
        let until = Instant::now() + GRACE;
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            if Instant::now() >= until {
                return End::Stuck;
            }
            self.mpi.interrupt();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RankThread {
    fn drop(&mut self) {
        self.stop();
    }
}
