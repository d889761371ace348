//! Starts ranks as processes of this very program, hands them assignments, watches them, and leaves none behind.
//!
//! An assignment is any JSON value; the ranks run them in turn over one endpoint and answer each with another JSON
//! value. What it means is between the caller of [`launch`] and the handler that [`serve`] is given.

use crate::host::{self, Placement};
use crate::{ExecutionError, memory};
use autodist_communication::tcp::{self, Rendezvous, TcpOptions};
use autodist_communication::{CommunicationError, ControlEvent, Endpoint};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ENVIRONMENT: &str = "AUTODIST_RANK_ENVIRONMENT";
/// How long ranks may take to end by themselves once they are asked to.
const GRACE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Of what a rank writes to its standard error, the end is kept for the message.
const KEPT_OUTPUT: usize = 4096;

/// How ranks are started and watched.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// Program and arguments of a rank; it must call [`serve`].
    pub command: Vec<OsString>,
    /// Where the ranks find each other; port 0 takes a free one.
    pub rendezvous: SocketAddr,
    /// A peer that moves no byte for so long is an error.
    pub timeout: Duration,
    /// Whether ranks ask for real-time priority.
    pub realtime: bool,
    /// Set from outside (Ctrl-C) to end the job.
    pub stop: Arc<AtomicBool>,
}

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("interrupted: all ranks have been stopped")]
    Interrupted,
    #[error("cannot start rank {rank} ({program}): {source}")]
    Spawn { rank: usize, program: String, source: std::io::Error },
    #[error(transparent)]
    Rendezvous(#[from] CommunicationError),
    #[error("rank {rank} {what}; all other ranks have been stopped{output}")]
    RankEnded { rank: usize, what: String, output: String },
    #[error("rank {rank} failed: {message}; all other ranks have been stopped")]
    RankFailed { rank: usize, message: String },
    #[error("rank {rank} answered something that is no answer: {detail}")]
    Answer { rank: usize, detail: String },
}

/// What a rank needs to know besides its assignments.
#[derive(Serialize, Deserialize)]
struct RankEnvironment {
    rank: usize,
    world: usize,
    rendezvous: SocketAddr,
    token: String,
    timeout_s: f64,
    realtime: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done { assignment: usize, value: Value },
    Failed { message: String, consequence: bool },
}

/// Runs `assignments` on `world` new ranks. `done` gets the answers to each assignment, in rank order, as soon as all
/// ranks have given theirs.
///
/// # Errors
/// A rank that cannot be started, fails, or is killed: the error names it and why. All ranks have ended when this
/// returns, whatever it returns.
pub fn launch(
    world: usize,
    assignments: &[Value],
    options: &LaunchOptions,
    mut done: impl FnMut(usize, Vec<Value>),
) -> Result<(), LaunchError> {
    let token = random_token();
    let rendezvous = Rendezvous::bind(options.rendezvous, world, &token)?;
    let mut ranks = Ranks::default();
    for rank in 0..world {
        let environment = RankEnvironment {
            rank,
            world,
            rendezvous: rendezvous.address(),
            token: token.clone(),
            timeout_s: options.timeout.as_secs_f64(),
            realtime: options.realtime,
        };
        ranks.start(rank, &environment, assignments, options)?;
    }
    let mut watch = Watch { world, answers: BTreeMap::new(), left: 0, cause: None };
    while watch.left < world && watch.cause.is_none() {
        if options.stop.load(Ordering::Relaxed) {
            watch.cause = Some(Cause { error: LaunchError::Interrupted, consequence: false });
            break;
        }
        match rendezvous.events().recv_timeout(LOOK_AGAIN) {
            Ok(event) => watch.take(event, &mut ranks, &mut done)?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => watch.look_for_dead(&mut ranks),
        }
    }
    if watch.cause.is_some() {
        // The first news may be a consequence: listen for the cause while the ranks end.
        rendezvous.stop_all();
        let until = Instant::now() + GRACE;
        while Instant::now() < until && !ranks.all_ended() {
            if let Ok(event) = rendezvous.events().recv_timeout(LOOK_AGAIN) {
                watch.take(event, &mut ranks, &mut done)?;
            }
            watch.look_for_dead(&mut ranks);
        }
    }
    ranks.end(if watch.cause.is_some() { Duration::ZERO } else { GRACE });
    match watch.cause.map(|cause| cause.error) {
        Some(LaunchError::RankEnded { rank, what, .. }) => {
            let output = ranks.output(rank);
            Err(LaunchError::RankEnded { rank, what, output })
        }
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What has been heard of the ranks.
struct Watch {
    world: usize,
    answers: BTreeMap<usize, Vec<Option<Value>>>,
    left: usize,
    cause: Option<Cause>,
}

/// Why the job ends early.
struct Cause {
    error: LaunchError,
    /// Whether something else, not heard of yet, may have led to it.
    consequence: bool,
}

impl Watch {
    fn take(
        &mut self,
        event: ControlEvent,
        ranks: &mut Ranks,
        done: &mut impl FnMut(usize, Vec<Value>),
    ) -> Result<(), LaunchError> {
        match event {
            ControlEvent::Joined(_) => {}
            ControlEvent::Left(_) => self.left += 1,
            ControlEvent::Lost(rank) => {
                // Its process ends at about the same time; how it ended is the better message.
                let status = ranks.wait(rank, GRACE);
                self.ended(rank, status);
            }
            ControlEvent::Message(rank, bytes) => match serde_json::from_slice(&bytes) {
                Ok(Answer::Done { assignment, value }) => self.answered(rank, assignment, value, done),
                Ok(Answer::Failed { message, consequence }) => {
                    self.cause_is(LaunchError::RankFailed { rank, message }, consequence);
                }
                Err(error) => return Err(LaunchError::Answer { rank, detail: error.to_string() }),
            },
        }
        Ok(())
    }

    fn answered(
        &mut self,
        rank: usize,
        assignment: usize,
        value: Value,
        done: &mut impl FnMut(usize, Vec<Value>),
    ) {
        let answers = self.answers.entry(assignment).or_insert_with(|| vec![None; self.world]);
        answers[rank] = Some(value);
        if answers.iter().all(Option::is_some) {
            let answers = self.answers.remove(&assignment).unwrap_or_default();
            done(assignment, answers.into_iter().flatten().collect());
        }
    }

    fn look_for_dead(&mut self, ranks: &mut Ranks) {
        for (rank, status) in ranks.newly_dead() {
            self.ended(rank, Some(status));
        }
    }

    fn ended(&mut self, rank: usize, status: Option<ExitStatus>) {
        let signal = status.and_then(|status| status.signal());
        let what = match (status, signal) {
            (None, _) => "closed its connection".to_owned(),
            (Some(status), _) if status.success() => return,
            (Some(_), Some(signal)) => format!("was killed by signal {signal}"),
            (Some(status), None) => format!("ended with exit code {}", status.code().unwrap_or(-1)),
        };
        // A rank that has said why it fails ends with an exit code: that says no more.
        let explained = matches!(&self.cause, Some(Cause { error: LaunchError::RankFailed { .. }, .. }));
        let consequence = explained && signal.is_none();
        self.cause_is(LaunchError::RankEnded { rank, what, output: String::new() }, consequence);
    }

    /// Keeps the first cause; a consequence of something else gives way to it.
    fn cause_is(&mut self, error: LaunchError, consequence: bool) {
        if self.cause.as_ref().is_none_or(|known| known.consequence && !consequence) {
            self.cause = Some(Cause { error, consequence });
        }
    }
}

/// The processes. Dropping them kills them.
#[derive(Default)]
struct Ranks {
    processes: Vec<Process>,
}

struct Process {
    child: Child,
    status: Option<ExitStatus>,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Ranks {
    fn start(
        &mut self,
        rank: usize,
        environment: &RankEnvironment,
        assignments: &[Value],
        options: &LaunchOptions,
    ) -> Result<(), LaunchError> {
        let program = options.command[0].to_string_lossy().into_owned();
        let failed = |source| LaunchError::Spawn { rank, program: program.clone(), source };
        let environment = serde_json::to_string(environment).map_err(|e| failed(e.into()))?;
        let mut child = Command::new(&options.command[0])
            .args(&options.command[1..])
            .env(ENVIRONMENT, environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let text = serde_json::to_vec(assignments).map_err(|e| failed(e.into()))?;
        let mut input = child.stdin.take();
        let errors = child.stderr.take();
        let output = Arc::new(Mutex::new(Vec::new()));
        let kept = output.clone();
        let reader = std::thread::spawn(move || {
            let mut portion = [0; 1024];
            let Some(mut errors) = errors else { return };
            while let Ok(n @ 1..) = errors.read(&mut portion) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&portion[..n]);
                let surplus = kept.len().saturating_sub(KEPT_OUTPUT);
                kept.drain(..surplus);
            }
        });
        self.processes.push(Process { child, status: None, output, reader: Some(reader) });
        // A rank that dies while it reads is noticed as dead: its pipe says nothing that its status does not.
        let _ = input.as_mut().map(|input| input.write_all(&text));
        Ok(())
    }

    fn newly_dead(&mut self) -> Vec<(usize, ExitStatus)> {
        let mut dead = Vec::new();
        for (rank, process) in self.processes.iter_mut().enumerate().filter(|(_, p)| p.status.is_none()) {
            if let Ok(Some(status)) = process.child.try_wait() {
                process.status = Some(status);
                dead.push((rank, status));
            }
        }
        dead
    }

    fn all_ended(&mut self) -> bool {
        self.newly_dead();
        self.processes.iter().all(|p| p.status.is_some())
    }

    /// Waits for one rank's end.
    fn wait(&mut self, rank: usize, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            self.newly_dead();
            if self.processes[rank].status.is_some() || Instant::now() >= until {
                return self.processes[rank].status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets the ranks end by themselves for `grace`, then kills them.
    fn end(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        while !self.all_ended() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        for process in &mut self.processes {
            if process.status.is_none() {
                // It may have ended between the look and the kill.
                let _ = process.child.kill();
                process.status = process.child.wait().ok();
            }
            if let Some(reader) = process.reader.take() {
                let _ = reader.join();
            }
        }
    }

    fn output(&self, rank: usize) -> String {
        let kept = self.processes[rank].output.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        if text.trim().is_empty() { String::new() } else { format!("; it wrote:\n{}", text.trim_end()) }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// A token that other users of the machine cannot guess.
fn random_token() -> String {
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() {
        // Without a source of randomness the process and the time still tell jobs of one user apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = (now.as_nanos() ^ (u128::from(std::process::id()) << 64)).to_le_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a rank's handler works with.
pub struct Worker {
    pub endpoint: Endpoint,
    pub placement: Placement,
}

/// Whether this process was started as a rank.
pub fn is_rank() -> bool {
    std::env::var_os(ENVIRONMENT).is_some()
}

/// A rank's life: joins the job, runs the assignments through `handle`, and answers. Returns the process's exit code.
pub fn serve(mut handle: impl FnMut(&mut Worker, usize, &Value) -> Result<Value, ExecutionError>) -> i32 {
    host::die_with_parent();
    memory::keep_freed_memory();
    // Ctrl-C reaches the whole process group; the launcher ends its ranks in order.
    // SAFETY: ignoring a signal has no memory effect.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
    let before = memory::live();
    let (environment, assignments) = match orders() {
        Ok(orders) => orders,
        Err(message) => return complain(&message),
    };
    memory::exclude_since(before);
    let placement = host::place(environment.rank, environment.realtime);
    let joined = tcp::join(TcpOptions {
        rendezvous: environment.rendezvous,
        rank: environment.rank,
        world: environment.world,
        token: environment.token,
        timeout: Duration::from_secs_f64(environment.timeout_s),
        bind: None,
    });
    let endpoint = match joined {
        Ok(endpoint) => endpoint,
        Err(error) => return complain(&error.to_string()),
    };
    let control = endpoint.control().clone();
    let mut worker = Worker { endpoint, placement };
    memory::reset_peak();
    for (index, assignment) in assignments.iter().enumerate() {
        let answer = match handle(&mut worker, index, assignment) {
            Ok(value) => Answer::Done { assignment: index, value },
            Err(error) => Answer::Failed { message: error.to_string(), consequence: error.is_consequence() },
        };
        let failed = matches!(answer, Answer::Failed { .. });
        let sent = serde_json::to_vec(&answer)
            .map_err(|e| e.to_string())
            .and_then(|b| control.send(&b).map_err(|e| e.to_string()));
        if let Err(message) = sent {
            return complain(&message);
        }
        if failed {
            break;
        }
    }
    match worker.endpoint.close() {
        Ok(()) => 0,
        Err(error) => complain(&error.to_string()),
    }
}

fn orders() -> Result<(RankEnvironment, Vec<Value>), String> {
    let environment =
        std::env::var(ENVIRONMENT).map_err(|_| "a rank is started by autodist itself".to_owned())?;
    let environment = serde_json::from_str(&environment).map_err(|e| format!("{ENVIRONMENT}: {e}"))?;
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(|e| format!("reading the assignments: {e}"))?;
    let assignments = serde_json::from_slice(&text).map_err(|e| format!("reading the assignments: {e}"))?;
    Ok((environment, assignments))
}

/// Leaves a message for the launcher, which shows it when it reports this rank's end.
fn complain(message: &str) -> i32 {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{message}");
    1
}
