//! Ranks of the PyTorch engine: processes of a Python interpreter in which `autodist_torch` is installed.
//!
//! Each reads its assignments from its standard input and answers each with a line of JSON on its standard output. They
//! find each other by a file, and die with this process as native ranks do.

use super::orders::{Answer, End};
use super::process::Process;
use super::{GRACE, LOOK_AGAIN, LaunchError, LaunchOptions};
use crate::external::random_token;
use autodist_spec::DeviceKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

/// A Python interpreter that has PyTorch and this release's package.
#[derive(Debug, Clone)]
pub struct Torch {
    python: PathBuf,
    /// Of PyTorch.
    version: String,
}

/// Prints the version of PyTorch, which takes seconds to import, if it and the package are there.
const CHECK: &str = "import importlib.metadata as known, autodist_torch; print(known.version('torch'))";

/// What a rank says, or that it says no more.
type Word = (usize, Option<Result<Answer, String>>);

impl Torch {
    /// # Errors
    /// The interpreter cannot be started, or misses something: what it says of that.
    pub fn find(python: &Path) -> Result<Self, String> {
        let output = Command::new(python)
            .args(["-c", CHECK])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot be started: {error}"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().last().unwrap_or("it ends without a word").to_owned();
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
        mut done: impl FnMut(usize, Vec<Value>),
    ) -> Result<(), LaunchError> {
        let meeting = Meeting(std::env::temp_dir().join(format!("autodist-{}", random_token())));
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
        let mut ranks = Vec::new();
        for rank in 0..world {
            ranks.push(self.start(rank, world, &orders, say.clone())?);
        }
        drop(say);
        let mut answers: BTreeMap<usize, Vec<Option<Value>>> = BTreeMap::new();
        let mut left = world;
        while left > 0 {
            if options.stop.load(Ordering::Relaxed) {
                return Err(LaunchError::Interrupted);
            }
            match hear.recv_timeout(LOOK_AGAIN) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Ok((_, None)) => left -= 1,
                Ok((rank, Some(Ok(Answer::Done { assignment, value })))) => {
                    let of_all = answers.entry(assignment).or_insert_with(|| vec![None; world]);
                    of_all[rank] = Some(value);
                    if of_all.iter().all(Option::is_some) {
                        let of_all = answers.remove(&assignment).unwrap_or_default();
                        done(assignment, of_all.into_iter().flatten().collect());
                    }
                }
                Ok((rank, Some(Ok(Answer::Failed { message, consequence })))) => {
                    let error = LaunchError::RankFailed { rank, message };
                    return Err(if consequence { cause(&hear, &mut ranks, error, rank) } else { error });
                }
                Ok((rank, Some(Err(detail)))) => return Err(LaunchError::Answer { rank, detail }),
            }
            if let Some((rank, error)) = dead(&mut ranks) {
                return Err(cause(&hear, &mut ranks, error, rank));
            }
        }
        // Nothing is left to hear, so all have closed their ways: they end by themselves, or badly.
        let until = Instant::now() + GRACE;
        while Instant::now() < until && ranks.iter_mut().any(|rank| rank.end().is_none()) {
            std::thread::sleep(LOOK_AGAIN);
        }
        dead(&mut ranks).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn start(
        &self,
        rank: usize,
        world: usize,
        orders: &[u8],
        say: Sender<Word>,
    ) -> Result<Process, LaunchError> {
        let mut program = Command::new(&self.python);
        program
            .args(["-m", "autodist_torch"])
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
            std::thread::spawn(move || {
                for line in BufReader::new(answers).lines().map_while(Result::ok) {
                    let answer = serde_json::from_str(&line).map_err(|error| error.to_string());
                    if say.send((rank, Some(answer))).is_err() {
                        return;
                    }
                }
                let _ = say.send((rank, None));
            });
        }
        Ok(process)
    }
}

/// The first rank that has ended badly.
fn dead(ranks: &mut [Process]) -> Option<(usize, LaunchError)> {
    let (rank, what) = ranks.iter_mut().enumerate().find_map(|(rank, process)| match process.end()? {
        End::Signal(signal) => Some((rank, format!("was killed by signal {signal}"))),
        End::Code(0) => None,
        End::Code(code) => Some((rank, format!("ended with exit code {code}"))),
        _ => None,
    })?;
    // What it said last of all may come after its end.
    let output = ranks[rank].output();
    let output = if output.is_empty() { output } else { format!("; it wrote:\n{output}") };
    Some((rank, LaunchError::RankEnded { rank, what, output }))
}

/// Of rank `rank` was heard first that it ends, which may be for another's sake: a rank's own words, or the signal that
/// killed it, say why.
fn cause(hear: &Receiver<Word>, ranks: &mut [Process], first: LaunchError, rank: usize) -> LaunchError {
    if matches!(ranks[rank].end(), Some(End::Signal(_))) {
        return first;
    }
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        if let Ok((rank, Some(Ok(Answer::Failed { message, consequence: false })))) =
            hear.recv_timeout(LOOK_AGAIN)
        {
            return LaunchError::RankFailed { rank, message };
        }
        for (rank, process) in ranks.iter_mut().enumerate() {
            if let Some(End::Signal(signal)) = process.end() {
                let (what, output) = (format!("was killed by signal {signal}"), String::new());
                return LaunchError::RankEnded { rank, what, output };
            }
        }
    }
    first
}

/// The file by which ranks find each other.
struct Meeting(PathBuf);

impl Drop for Meeting {
    fn drop(&mut self) {
        // The ranks may have removed it themselves.
        let _ = std::fs::remove_file(&self.0);
    }
}
