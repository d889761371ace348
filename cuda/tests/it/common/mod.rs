//! Tests on emulated machines. The environment of a process defines its software GPUs once, so a test that
//! needs a certain machine runs itself again in a new process.

use autodist_compute::selftest::{self, SelftestResult, UnitRoundoff};
use autodist_compute::{Backend, Region};
use autodist_cuda::{Buffer, Cuda, Libraries, OVERRIDE, Search};
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

/// Environment variable set in the processes that tests start.
const INSIDE: &str = "AUTODIST_CUDA_TEST_INSIDE";
/// Exit code of a process that completed its work; if no test ran, or one failed, the code differs.
const DONE: i32 = 42;
/// Much longer than any of them takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `inside` in a process of its own on `machine`, and returns its stderr. A test must call it first; it
/// panics if `inside` does.
#[track_caller]
pub fn on(machine: impl FnOnce() -> SoftwareGpus, inside: impl FnOnce()) -> String {
    let output = start(machine, inside);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(DONE), "{}{errors}", String::from_utf8_lossy(&output.stdout));
    errors
}

/// Like [`on`], for work that is expected to crash its process and to print `what`.
#[track_caller]
pub fn aborts_on(machine: impl FnOnce() -> SoftwareGpus, inside: impl FnOnce(), what: &str) {
    let output = start(machine, inside);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), None, "ended by a signal:\n{errors}");
    assert!(errors.contains(what), "no `{what}` in\n{errors}");
}

fn start(machine: impl FnOnce() -> SoftwareGpus, inside: impl FnOnce()) -> Output {
    if std::env::var_os(INSIDE).is_some() {
        // A process that hangs fails too.
        std::thread::spawn(|| {
            std::thread::sleep(PATIENCE);
            let _ = writeln!(std::io::stderr(), "this takes too long");
            std::process::exit(1);
        });
        inside();
        std::process::exit(DONE);
    }
    let (thread, machine) = (std::thread::current(), machine());
    let test = thread.name().expect("a test runs in a thread of its name");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    command.env(OVERRIDE, machine.folder()).env("XDG_CACHE_HOME", scratch().join("cache"));
    machine.apply(&mut command).output().unwrap()
}

/// The folder for files of tests, in cargo's target folder.
fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A folder of this name, empty when the test starts.
pub fn folder(name: &str) -> PathBuf {
    let folder = scratch().join(name);
    if std::env::var_os(INSIDE).is_none() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
    }
    folder
}

/// Searches only the libraries of this process's machine.
pub fn search() -> Search {
    Search::only(std::env::var_os(OVERRIDE).unwrap())
}

pub fn libraries() -> Arc<Libraries> {
    Libraries::load(&search()).unwrap()
}

/// This process's first GPU.
pub fn open(precision: Precision) -> Cuda {
    Cuda::open(libraries(), 0, precision).unwrap()
}

/// The contents of a buffer; panics if work on the device has failed.
pub fn host(cuda: &Cuda, buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![0.0; cuda.len(buffer)];
    cuda.download(Region::start(buffer), &mut values);
    cuda.synchronise().unwrap();
    values
}

/// The checks of the self-test that fail, or the error that ends it.
pub fn failed(cuda: &Cuda, precision: Precision) -> Result<Vec<SelftestResult>, String> {
    let cuda = cuda.in_precision(precision);
    let mut checks =
        selftest::run(&cuda, UnitRoundoff::of(precision), |_| ()).map_err(|error| error.to_string())?;
    assert!(checks.len() > 800, "{} checks", checks.len());
    let codecs = autodist_cuda::selftest::codecs_match(&cuda, |_| ()).map_err(|error| error.to_string())?;
    assert!(codecs.len() > 150, "{} checks of codecs", codecs.len());
    checks.extend(codecs);
    checks.retain(|check| !check.passed());
    Ok(checks)
}

/// The operations and layers that the self-test finds wrong, or the error that ends it.
pub fn wrong(cuda: &Cuda, precision: Precision) -> Result<BTreeSet<&'static str>, String> {
    Ok(failed(cuda, precision)?.into_iter().map(|check| check.what).collect())
}
