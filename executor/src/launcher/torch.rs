//! Ranks of the PyTorch engine: processes of a Python interpreter in which `autodist_torch` is installed.
//!
//! Each reads its assignments from its standard input and answers each with a line of JSON on its standard
//! output. Their rendezvous is a file, and they die with this process, like native ranks.

use super::orders::{Answer, End};
use super::process::Process;
use super::silence::Silence;
use super::watch::killed_by;
use super::{GRACE, LOOK_AGAIN, LaunchError, LaunchOptions, News};
use crate::host;
use autodist_communication::{Patience, random_token};
use autodist_spec::DeviceKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
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

/// A message of a rank, or the end of its output.
type Word = (usize, Option<Result<Answer, String>>);

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

    /// Like [`super::launch`].
    pub(super) fn launch(
        &self,
        world: usize,
        assignments: &[Value],
        options: &LaunchOptions,
        mut heard: impl FnMut(News),
    ) -> Result<(), LaunchError> {
        let name = random_token().map_err(LaunchError::Random)?;
        let meeting = Meeting(std::env::temp_dir().join(format!("autodist-{name}")));
        let orders = json!({
            // The equivalent of a native rank's real-time priority.
            "preferred": options.realtime,
            "cuda": options.devices == DeviceKind::Cuda,
            "meeting": &meeting.0,
            "timeout_s": options.timeout.as_secs_f64(),
            "assignments": assignments,
        });
        let orders = serde_json::to_vec(&orders)
            .map_err(|error| LaunchError::Answer { rank: 0, detail: error.to_string() })?;
        let (say, hear) = channel();
        let mut ranks = Together(Vec::new());
        for rank in 0..world {
            ranks.0.push(self.start(rank, world, &orders, say.clone())?);
        }
        drop(say);
        let mut answers: BTreeMap<usize, Vec<Option<Value>>> = BTreeMap::new();
        let mut answered = vec![0; world];
        // Ranks that have closed their output.
        let mut closed = vec![false; world];
        let mut silence = Silence::new(world, options.timeout);
        // Python and its libraries start slowly, and no heartbeat can be sent meanwhile.
        let mut starting = Silence::new(world, options.timeout.max(START_WITHIN));
        let mut started = vec![false; world];
        let mut looked = Instant::now();
        while closed.contains(&false) {
            if options.stop.load(Ordering::Relaxed) {
                hand_on(&hear, &mut heard);
                return Err(LaunchError::Interrupted);
            }
            match hear.recv_timeout(LOOK_AGAIN) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Ok((rank, None)) => {
                    closed[rank] = true;
                    if answered[rank] < assignments.len() {
                        let error = self.unfinished(&mut ranks.0, rank);
                        return Err(cause(&hear, &mut heard, &mut ranks.0, error, rank));
                    }
                }
                Ok((rank, Some(Ok(Answer::Alive)))) => {
                    silence.heard(rank);
                    started[rank] = true;
                }
                Ok((rank, Some(Ok(Answer::Progress { assignment, value })))) => {
                    silence.heard(rank);
                    heard(News::Progress { assignment, rank, value });
                }
                Ok((rank, Some(Ok(Answer::Done { assignment, value })))) => {
                    silence.heard(rank);
                    answered[rank] += 1;
                    let of_all = answers.entry(assignment).or_insert_with(|| vec![None; world]);
                    of_all[rank] = Some(value);
                    if of_all.iter().all(Option::is_some) {
                        let of_all = answers.remove(&assignment).unwrap_or_default();
                        heard(News::Done { assignment, answers: of_all.into_iter().flatten().collect() });
                    }
                }
                Ok((rank, Some(Ok(Answer::Failed { message, consequence })))) => {
                    let error = LaunchError::RankFailed { rank, message };
                    if !consequence {
                        hand_on(&hear, &mut heard);
                        return Err(error);
                    }
                    return Err(cause(&hear, &mut heard, &mut ranks.0, error, rank));
                }
                Ok((rank, Some(Err(detail)))) => return Err(LaunchError::Answer { rank, detail }),
            }
            if looked.elapsed() < LOOK_AGAIN {
                continue;
            }
            looked = Instant::now();
            if let Some((rank, error)) = self.dead(&mut ranks.0) {
                return Err(cause(&hear, &mut heard, &mut ranks.0, error, rank));
            }
            let late = starting.look(|rank| started[rank] || closed[rank]).first().copied();
            let silent = silence.look(|rank| !started[rank] || closed[rank]).first().copied();
            if let Some((rank, limit)) =
                silent.map(|rank| (rank, silence.limit())).or(late.map(|rank| (rank, starting.limit())))
            {
                hand_on(&hear, &mut heard);
                let what = format!(
                    "has sent no heartbeat for {} s: it was stopped, or it hangs{}",
                    limit.as_secs_f64(),
                    self.named()
                );
                return Err(LaunchError::RankEnded { rank, what, output: String::new() });
            }
        }
        // All ranks have closed their outputs: they end by themselves, or with an error.
        let until = Instant::now() + GRACE;
        while Instant::now() < until && ranks.0.iter_mut().any(|rank| rank.end().is_none()) {
            std::thread::sleep(LOOK_AGAIN);
        }
        self.dead(&mut ranks.0).map_or(Ok(()), |(_, error)| Err(error))
    }

    /// The Python interpreter, for messages.
    fn named(&self) -> String {
        format!(" (engine torch, run by {})", self.python.display())
    }

    /// The error of a rank that has closed its connection before it has sent all answers.
    fn unfinished(&self, ranks: &mut [Process], rank: usize) -> LaunchError {
        let until = Instant::now() + GRACE;
        while Instant::now() < until && ranks[rank].end().is_none() {
            std::thread::sleep(LOOK_AGAIN);
        }
        if let Some((_, error)) = self.dead(&mut ranks[rank..=rank]) {
            return match error {
                LaunchError::RankEnded { what, output, .. } => LaunchError::RankEnded { rank, what, output },
                other => other,
            };
        }
        let what = format!("ended before the training was complete{}", self.named());
        LaunchError::RankEnded { rank, what, output: String::new() }
    }

    /// The first rank that has ended badly.
    fn dead(&self, ranks: &mut [Process]) -> Option<(usize, LaunchError)> {
        let (rank, what) =
            ranks.iter_mut().enumerate().find_map(|(rank, process)| match process.end()? {
                End::Signal(signal) => Some((rank, killed_by(signal))),
                End::Code(0) => None,
                End::Code(code) => Some((rank, format!("ended with exit code {code}{}", self.named()))),
                _ => None,
            })?;
        // Its last output may arrive after its end.
        let output = ranks[rank].output();
        let output = if output.is_empty() { output } else { format!("; it wrote:\n{output}") };
        Some((rank, LaunchError::RankEnded { rank, what, output }))
    }

    fn start(
        &self,
        rank: usize,
        world: usize,
        orders: &[u8],
        say: Sender<Word>,
    ) -> Result<Process, LaunchError> {
        let mut program = isolated(&self.python, RANK);
        program
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("WORLD_SIZE", world.to_string())
            .env("OMP_NUM_THREADS", "1")
            .stdout(Stdio::piped());
        if std::env::var_os("GLOO_SOCKET_IFNAME").is_none() {
            // All ranks are on this machine; the host's own name may resolve to any address.
            program.env("GLOO_SOCKET_IFNAME", "lo");
        }
        let failed = |source| LaunchError::Spawn { rank, program: self.python.display().to_string(), source };
        let mut process = Process::spawn(program, orders).map_err(failed)?;
        if let Some(answers) = process.answers() {
            let listen = move || {
                for line in BufReader::new(answers).lines().map_while(Result::ok) {
                    let answer = serde_json::from_str(&line).map_err(|error| error.to_string());
                    if say.send((rank, Some(answer))).is_err() {
                        return;
                    }
                }
                let _ = say.send((rank, None));
            };
            std::thread::Builder::new().name("answers".to_owned()).spawn(listen).map_err(failed)?;
        }
        Ok(process)
    }
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

/// Rank `rank` ended first, possibly because of another rank. The cause is a rank's own error, or the signal
/// that killed it.
fn cause(
    hear: &Receiver<Word>,
    heard: &mut impl FnMut(News),
    ranks: &mut [Process],
    first: LaunchError,
    rank: usize,
) -> LaunchError {
    if matches!(ranks[rank].end(), Some(End::Signal(_))) {
        hand_on(hear, heard);
        return first;
    }
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        match hear.recv_timeout(LOOK_AGAIN) {
            Ok((rank, Some(Ok(Answer::Failed { message, consequence: false })))) => {
                return LaunchError::RankFailed { rank, message };
            }
            Ok((rank, Some(Ok(Answer::Progress { assignment, value })))) => {
                heard(News::Progress { assignment, rank, value });
            }
            // All ranks have closed their outputs.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_AGAIN),
            _ => {}
        }
        for (rank, process) in ranks.iter_mut().enumerate() {
            if let Some(End::Signal(signal)) = process.end() {
                let (what, output) = (killed_by(signal), String::new());
                return LaunchError::RankEnded { rank, what, output };
            }
        }
    }
    first
}

/// Passes on the progress that ranks reported before the launch ended.
fn hand_on(hear: &Receiver<Word>, heard: &mut impl FnMut(News)) {
    for (rank, word) in hear.try_iter() {
        if let Some(Ok(Answer::Progress { assignment, value })) = word {
            heard(News::Progress { assignment, rank, value });
        }
    }
}

/// The ranks of a launch, which end together when this is dropped.
struct Together(Vec<Process>);

impl Drop for Together {
    fn drop(&mut self) {
        // Waits for all remaining ranks concurrently.
        self.0.iter_mut().for_each(Process::tell_to_end);
    }
}

/// The rendezvous file of the ranks.
struct Meeting(PathBuf);

impl Drop for Meeting {
    fn drop(&mut self) {
        // The ranks may have removed it themselves.
        let _ = std::fs::remove_file(&self.0);
    }
}
