//! Jobs over MPI: the test binary runs again under `mpirun`, as many times as there are ranks. Every process
//! runs the same tests in the same order; in each job a process is the rank of its number, or idle. Results
//! and barriers are files in a folder of the run, so that the tests do not depend on the code under test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use autodist_communication::Endpoint;
use autodist_communication::mpi::Mpi;
use autodist_communication::tcp::Rendezvous;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::options;

/// Environment variable with the folder, for the processes that `mpirun` starts.
const FOLDER: &str = "AUTODIST_COMMUNICATION_TEST_MPI";
/// Environment variable with the name of `mpirun`.
const MPIRUN: &str = "AUTODIST_TEST_MPIRUN";
/// Longer than any of the tests takes, on a machine that is busy with something else.
const LIMIT: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Whether `mpirun` has started this process.
pub fn started() -> bool {
    std::env::var_os(FOLDER).is_some()
}

/// Runs the tests of this binary whose names contain one of the words as `processes` processes. If there is
/// no `mpirun`, prints a note and tests nothing.
pub fn again(processes: usize, words: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mpi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let log = folder.join("log");
    let output = std::fs::File::create(&log).unwrap();
    let mpirun = std::env::var(MPIRUN).unwrap_or_else(|_| "mpirun".to_owned());
    let child = Command::new(&mpirun)
        .args(["-n", &processes.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--test-threads=1", "--nocapture", "--skip", "over_mpi"])
        .args(words.split_whitespace())
        .env(FOLDER, &folder)
        // Every process draws the same cases.
        .env("PROPTEST_RNG_SEED", "7")
        // Open MPI: more processes than cores, and root may.
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            // Written directly to stderr, because the test harness hides the output of macros.
            let text = format!("SKIPPED: nothing is tested over MPI: {mpirun} cannot be started: {error}\n");
            std::io::stderr().write_all(text.as_bytes()).unwrap();
            return std::fs::remove_dir_all(folder).unwrap();
        }
    };
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > LIMIT => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let log = std::fs::read_to_string(log).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert!(status.success(), "{status} after {:?}:\n{log}", began.elapsed());
    let passed = log.matches("test result: ok").count();
    assert_eq!(passed, processes, "{log}");
    assert!(!log.contains(" 0 passed"), "{log}");
}

/// This process in the job of `mpirun`.
struct Process {
    mpi: Mpi,
    folder: PathBuf,
    /// Jobs and gates so far: the same in all processes.
    jobs: AtomicUsize,
}

fn process() -> &'static Process {
    static PROCESS: OnceLock<Process> = OnceLock::new();
    PROCESS.get_or_init(|| {
        // A test that fails here would leave the others waiting for this process: mpirun ends them.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            // SAFETY: it ends the process.
            unsafe { libc::_exit(101) }
        }));
        // SAFETY: the function takes nothing and ends; this process has no other such.
        assert_eq!(unsafe { libc::atexit(finalise) }, 0);
        let folder = std::env::var_os(FOLDER).unwrap().into();
        Process { mpi: Mpi::initialise().unwrap(), folder, jobs: AtomicUsize::new(0) }
    })
}

extern "C" fn finalise() {
    if let Err(error) = process().mpi.finalise() {
        let _ = writeln!(std::io::stderr(), "{error}");
        // SAFETY: it ends the process.
        unsafe { libc::_exit(102) }
    }
}

impl Process {
    /// Writes a file for all processes.
    fn leave(&self, name: &str, content: &[u8]) {
        let unfinished = self.folder.join(format!("{name}.{}", self.mpi.rank()));
        std::fs::write(&unfinished, content).unwrap();
        std::fs::rename(unfinished, self.folder.join(name)).unwrap();
    }

    /// Waits for a file of another process.
    fn find(&self, name: &str) -> Vec<u8> {
        let began = Instant::now();
        loop {
            if let Ok(content) = std::fs::read(self.folder.join(name)) {
                return content;
            }
            assert!(began.elapsed() < LIMIT, "{name} never came");
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

pub fn job<T: Serialize + DeserializeOwned>(
    world: usize,
    timeout: Duration,
    work: impl Fn(Endpoint) -> T,
) -> Vec<T> {
    let process = process();
    let rank = process.mpi.rank();
    assert!(world <= process.mpi.size(), "{world} ranks, but {} processes", process.mpi.size());
    let number = process.jobs.fetch_add(1, Ordering::Relaxed);
    let rendezvous = (rank == 0).then(|| {
        let rendezvous =
            Rendezvous::bind(([127, 0, 0, 1], 0).into(), world, &format!("job {number}")).unwrap();
        process.leave(&format!("job-{number}"), rendezvous.address().to_string().as_bytes());
        rendezvous
    });
    if rank < world {
        let address = String::from_utf8(process.find(&format!("job-{number}"))).unwrap();
        let mut options = options(address.parse().unwrap(), rank, world, timeout);
        options.token = format!("job {number}");
        let result = work(process.mpi.join(options).unwrap());
        process.leave(&format!("result-{number}-{rank}"), &serde_json::to_vec(&result).unwrap());
    }
    let result = |rank| serde_json::from_slice(&process.find(&format!("result-{number}-{rank}"))).unwrap();
    let results = (0..world).map(result).collect();
    drop(rendezvous);
    results
}

pub struct Gate {
    number: usize,
    ranks: usize,
    passages: AtomicUsize,
}

impl Gate {
    pub fn new(ranks: usize) -> Self {
        Self { number: process().jobs.fetch_add(1, Ordering::Relaxed), ranks, passages: AtomicUsize::new(0) }
    }

    pub fn wait(&self) {
        let (process, passage) = (process(), self.passages.fetch_add(1, Ordering::Relaxed));
        let name = |rank: usize| format!("gate-{}-{passage}-{rank}", self.number);
        process.leave(&name(process.mpi.rank()), b"");
        (0..self.ranks).for_each(|rank| drop(process.find(&name(rank))));
    }
}
