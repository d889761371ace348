//! Ranks of the PyTorch engine: processes of a Python interpreter in which `autodist_torch` is installed.
//!
//! A rank of this program keeps each: it joins the job as a native rank does, starts Python, and passes on its
//! answers, which are lines of JSON on Python's standard output. Python ends with it.

use super::orders::{Answer, End, RankEnvironment};
use super::process::Process;
use super::pulse::Pulse;
use super::{GRACE, LOOK_AGAIN};
use crate::host;
use autodist_communication::{Control, Endpoint, Patience, tcp};
use autodist_spec::DeviceKind;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A Python interpreter with PyTorch and this release's package.
#[derive(Debug, Clone)]
pub struct Torch {
    python: PathBuf,
    /// Version of PyTorch.
    version: String,
}

/// Prints the version of PyTorch if it and the package are installed; the import takes seconds.
const CHECK: &str = "import importlib.metadata as known; from autodist_torch.lifetime import give_signs; print(known.version('torch'))";
/// Runs a rank.
const RANK: &str = "import runpy; runpy.run_module('autodist_torch', run_name='__main__', alter_sys=True)";
/// Before 3.11, Python always searches the working folder first for modules.
const NOT_FROM_HERE: &str = "import sys; sys.path[:] = [folder for folder in sys.path if folder]; ";
/// Time limit of the check; with a cold file server, it has taken a minute.
const CHECK_WITHIN: Duration = Duration::from_secs(300);
/// Minimum time limit for the first heartbeat of a rank, which includes the start of Python.
const START_WITHIN: Duration = Duration::from_secs(60);

impl Torch {
    /// Finds and checks the interpreter. No code of the working folder is run, unless `python` itself is
    /// there.
    ///
    /// # Errors
    /// The interpreter cannot be started, or a module is missing, with its message.
    pub fn find(python: &Path) -> Result<Self, String> {
        let python = &host::find_program(python).map_err(|error| format!("cannot be started: {error}"))?;
        let output = checked(python)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().last().unwrap_or("it ended without output").to_owned();
            return Err(last);
        }
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { python: python.to_owned(), version })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn python(&self) -> &Path {
        &self.python
    }
}

/// Why a rank ends early: a message for the launcher, and the exit code.
pub(super) struct Ended {
    pub message: String,
    pub code: i32,
}

impl From<String> for Ended {
    fn from(message: String) -> Self {
        Self { message, code: 1 }
    }
}

/// Runs a rank of the PyTorch engine by `python`.
///
/// # Errors
/// It cannot join the job, or Python does not start or ends early. If a signal has ended Python, it ends this
/// process, too.
pub(super) fn keep(environment: RankEnvironment, python: &Path, assignments: &[Value]) -> Result<(), Ended> {
    let mut endpoint = tcp::join(environment.tcp())
        .map_err(|error| format!("rank {} cannot connect to the other ranks: {error}", environment.rank))?;
    let control = endpoint.control().clone();
    // Python and its libraries start slowly, and give no heartbeat meanwhile.
    let pulse = Pulse::start(control.clone(), environment.timeout())
        .map_err(|error| format!("cannot start the heartbeat thread: {error}"))?;
    let store = Store::agree(&environment, &mut endpoint)?;
    let mut process = start(&environment, python, &store, assignments)
        .map_err(|error| format!("cannot start {}: {error}", python.display()))?;
    // Python's own copy remains.
    drop(store);
    let kept = Kept { control: &control, python, limit: environment.timeout().max(START_WITHIN) };
    kept.pass_on(&mut process, pulse, assignments.len())?;
    endpoint.close().map_err(|error| error.to_string().into())
}

/// The place where PyTorch's ranks find each other (`TCPStore`).
struct Store {
    address: SocketAddr,
    /// The socket of rank 0 that listens there.
    listener: Option<TcpListener>,
    /// The address of this machine that leads to the others.
    own: IpAddr,
}

impl Store {
    /// Rank 0 opens it, and tells the others.
    fn agree(environment: &RankEnvironment, endpoint: &mut Endpoint) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
        let own = source_address(environment.rendezvous)
            .map_err(|error| failed("find the address of this machine", &error))?;
        let first = environment.rank == 0;
        let listener = first
            .then(|| TcpListener::bind(SocketAddr::new(own, 0)))
            .transpose()
            .map_err(|error| failed("open a port for PyTorch's ranks", &error))?;
        let address = match &listener {
            Some(listener) => {
                listener.local_addr().map_err(|error| failed("read a port", &error))?.to_string()
            }
            None => String::new(),
        };
        let everyone: Vec<usize> = (0..environment.world).collect();
        let told = endpoint
            .group("store", &everyone)
            .and_then(|mut group| group.all_gather_bytes(address.as_bytes()))
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&told[0]).into_owned();
        let address = text.parse().map_err(|_| format!("rank 0 named no address: `{text}`"))?;
        Ok(Self { address, listener, own })
    }
}

/// The address of this machine from which packets to `address` are sent.
fn source_address(address: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    // Sends nothing.
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

fn start(
    environment: &RankEnvironment,
    python: &Path,
    store: &Store,
    assignments: &[Value],
) -> io::Result<Process> {
    let RankEnvironment { rank, local_rank, world, .. } = environment;
    if let Some(listener) = &store.listener {
        // Python inherits it.
        fcntl_setfd(listener, FdFlags::empty())?;
    }
    let orders = json!({
        // The equivalent of a native rank's real-time priority.
        "preferred": environment.realtime,
        "cuda": environment.devices == DeviceKind::Cuda,
        "store": {
            "host": store.address.ip().to_string(),
            "port": store.address.port(),
            "listener": store.listener.as_ref().map(AsRawFd::as_raw_fd),
        },
        "timeout_s": environment.timeout_s,
        "assignments": assignments,
    });
    let mut program = isolated(python, RANK);
    program
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", local_rank.to_string())
        .env("WORLD_SIZE", world.to_string())
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::piped());
    if std::env::var_os("GLOO_SOCKET_IFNAME").is_none() {
        // Otherwise Gloo takes the address of the host's name, which may be any.
        let interfaces = if_addrs::get_if_addrs()?;
        if let Some(interface) = interfaces.iter().find(|interface| interface.ip() == store.own) {
            program.env("GLOO_SOCKET_IFNAME", &interface.name);
        }
    }
    Process::spawn(program, &serde_json::to_vec(&orders)?)
}

/// What the keeper of a rank needs to pass on its answers.
struct Kept<'a> {
    control: &'a Control,
    python: &'a Path,
    /// Time limit for the first heartbeat.
    limit: Duration,
}

impl Kept<'_> {
    /// Passes on what Python says, until it has done all assignments or has failed. `pulse` gives heartbeats
    /// until Python does.
    fn pass_on(&self, process: &mut Process, pulse: Pulse, assignments: usize) -> Result<(), Ended> {
        let mut pulse = Some(pulse);
        let lines = lines_of(process).map_err(|error| format!("cannot read Python's answers: {error}"))?;
        let until = Instant::now() + self.limit;
        let mut done = 0;
        let mut failed = false;
        loop {
            if self.control.stop_requested() {
                return Err("was stopped".to_owned().into());
            }
            let line = match lines.recv_timeout(LOOK_AGAIN) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if pulse.is_some() && Instant::now() > until => {
                    let limit = self.limit.as_secs_f64();
                    let message = format!("has sent no heartbeat for {limit} s: it was stopped, or it hangs");
                    return self.fail(message + &self.named());
                }
                Err(RecvTimeoutError::Timeout) => continue,
            };
            match serde_json::from_str(&line) {
                Ok(Answer::Alive) => {
                    pulse = None;
                    self.control.alive().map_err(|error| error.to_string())?;
                    continue;
                }
                Ok(Answer::Progress { .. }) => {}
                Ok(Answer::Done { .. }) => done += 1,
                Ok(Answer::Failed { .. }) => failed = true,
                Err(error) => return self.fail(format!("sent an invalid answer: {error}{}", self.named())),
            }
            self.control.send(line.as_bytes()).map_err(|error| error.to_string())?;
        }
        if failed {
            return Ok(());
        }
        let until = Instant::now() + GRACE;
        while process.end().is_none() && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
        }
        match process.end() {
            Some(End::Code(0)) | None if done == assignments => Ok(()),
            Some(End::Signal(signal)) => self.end_by(signal, &process.output()),
            Some(End::Code(code)) if code != 0 => {
                Err(Ended { message: process.output() + &self.named(), code })
            }
            _ => Err(format!("ended before the training was complete{}", self.named()).into()),
        }
    }

    /// The rank ends like Python, so that the launcher sees how.
    fn end_by(&self, signal: i32, output: &str) -> Result<(), Ended> {
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
        }
        // A signal that this process ignores.
        Err(format!("Python was killed by signal {signal}{}{output}", self.named()).into())
    }

    fn fail(&self, message: String) -> Result<(), Ended> {
        let answer = serde_json::to_vec(&Answer::Failed { message, consequence: false });
        let answer = answer.map_err(|error| error.to_string())?;
        self.control.send(&answer).map_err(|error| error.to_string().into())
    }

    /// The interpreter, for messages.
    fn named(&self) -> String {
        format!(" (engine torch, run by {})", self.python.display())
    }
}

/// The lines of a process's standard output.
fn lines_of(process: &mut Process) -> io::Result<Receiver<String>> {
    let (say, hear) = channel();
    if let Some(answers) = process.answers() {
        let listen = move || {
            for line in BufReader::new(answers).lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("answers".to_owned()).spawn(listen)?;
    }
    Ok(hear)
}

/// A Python that runs `code` and imports nothing from the working folder: training a plan from a downloaded
/// folder must not run code of that folder. The entries of the user's `PYTHONPATH` are kept, except empty
/// ones (from a stray colon), which mean the working folder too.
fn isolated(python: &Path, code: &str) -> Command {
    let mut command = Command::new(python);
    command.arg("-c").arg(format!("{NOT_FROM_HERE}{code}")).env("PYTHONSAFEPATH", "1");
    if let Some(path) = std::env::var_os("PYTHONPATH") {
        let named = std::env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty());
        command.env("PYTHONPATH", std::env::join_paths(named).unwrap_or_else(|_| OsString::new()));
    }
    command
}

/// The output of the check, within its time limit.
fn checked(python: &Path) -> Result<Output, String> {
    let failed = |error: std::io::Error| format!("cannot be started: {error}");
    let mut command = isolated(python, CHECK);
    host::tie(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut patience = Patience::new(CHECK_WITHIN);
    // The output is short and fits the pipes' buffers.
    while child.try_wait().map_err(failed)?.is_none() {
        if patience.is_over() {
            let _ = child.kill();
            return Err(format!(
                "has not reported within {} s whether it has PyTorch",
                CHECK_WITHIN.as_secs()
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
        patience.count(LOOK_AGAIN);
    }
    child.wait_with_output().map_err(failed)
}
