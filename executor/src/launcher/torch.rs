//! Ranks of the PyTorch engine: processes of a Python interpreter in which `autodist_torch` is installed.
//!
//! Each reads its assignments from its standard input and answers each with a line of JSON on its standard output. They
//! find each other by a file, and die with this process as native ranks do.

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

/// A Python interpreter that has PyTorch and this release's package.
#[derive(Debug, Clone)]
pub struct Torch {
    python: PathBuf,
    /// Version of PyTorch.
    version: String,
}

/// Prints the version of PyTorch, which takes seconds to import, if it and the package are there.
const CHECK: &str = "import importlib.metadata as known; from autodist_torch.lifetime import give_signs; print(known.version('torch'))";
/// Runs a rank.
const RANK: &str = "import runpy; runpy.run_module('autodist_torch', run_name='__main__', alter_sys=True)";
/// What a Python before 3.11 puts first where it looks for modules is the working folder, whatever lies there.
const NOT_FROM_HERE: &str = "import sys; sys.path[:] = [folder for folder in sys.path if folder]; ";
/// How long Python may take to say whether all is there; a cold file server has been seen to take a minute.
const CHECK_WITHIN: Duration = Duration::from_secs(300);
/// How long a rank may take to its first sign of life, while it starts Python, at least.
const START_WITHIN: Duration = Duration::from_secs(60);

/// What a rank says, or that it says no more.
type Word = (usize, Option<Result<Answer, String>>);

impl Torch {
    /// Nothing of the working folder is run for it, unless `python` itself lies there.
    ///
    /// # Errors
    /// The interpreter cannot be started, or misses something: what it says of that.
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

    /// As [`super::launch`].
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
            // Where a native rank asks for real-time priority.
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
        // Who has closed its way to say more.
        let mut closed = vec![false; world];
        let mut silence = Silence::new(world, options.timeout);
        // Python and its libraries take their time, in which nothing can be said.
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
        // Nothing is left to hear, so all have closed their ways: they end by themselves, or badly.
        let until = Instant::now() + GRACE;
        while Instant::now() < until && ranks.0.iter_mut().any(|rank| rank.end().is_none()) {
            std::thread::sleep(LOOK_AGAIN);
        }
        self.dead(&mut ranks.0).map_or(Ok(()), |(_, error)| Err(error))
    }

    /// For messages: which Python ran.
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
        // What it said last of all may come after its end.
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
            // All ranks are here; a host's own name may lead anywhere.
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

/// A Python that runs `code` and imports nothing from the working folder: whoever trains a plan that came with a folder
/// does not want to run what lies in that folder. What the user's `PYTHONPATH` names is his own affair, but an entry
/// without a name, which comes from a stray colon, stands for the working folder too.
fn isolated(python: &Path, code: &str) -> Command {
    let mut command = Command::new(python);
    command.arg("-c").arg(format!("{NOT_FROM_HERE}{code}")).env("PYTHONSAFEPATH", "1");
    if let Some(path) = std::env::var_os("PYTHONPATH") {
        let named = std::env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty());
        command.env("PYTHONPATH", std::env::join_paths(named).unwrap_or_else(|_| OsString::new()));
    }
    command
}

/// What the check says, within its time.
fn checked(python: &Path) -> Result<Output, String> {
    let failed = |error: std::io::Error| format!("cannot be started: {error}");
    let mut command = isolated(python, CHECK);
    host::tie(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut patience = Patience::new(CHECK_WITHIN);
    // What it says is short, and waits in the pipes.
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

/// Rank `rank` ended first, perhaps because of another rank. The cause is a rank's own error, or the signal that
/// killed it.
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
            // All have closed their ways to say more.
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

/// Hands on what ranks have told of their work before the launch ended.
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
        // Those that do not end are waited for side by side.
        self.0.iter_mut().for_each(Process::tell_to_end);
    }
}

/// The file by which ranks find each other.
struct Meeting(PathBuf);

impl Drop for Meeting {
    fn drop(&mut self) {
        // The ranks may have removed it themselves.
        let _ = std::fs::remove_file(&self.0);
    }
}
