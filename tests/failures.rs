//! Whatever happens to a job, it ends soon, says why, and leaves no process and no half-written file.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::processes::{alive, busy, children, kill, wait};
use common::{Finished, command, line};
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// A job of two ranks that would take minutes.
struct Job {
    folder: tempfile::TempDir,
    launcher: Child,
    ranks: Vec<i32>,
}

impl Job {
    /// Started, and both ranks at work.
    fn start() -> Self {
        let folder = common::folder(2);
        plan(folder.path());
        let args = "train plan.json --steps 2000000 --no-realtime --timeout 20 -o out/run.json";
        let launcher = command(folder.path(), &args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
        let mut job = Self { folder, launcher, ranks: Vec::new() };
        wait(Duration::from_secs(30), || {
            job.ranks = children(job.launcher.id() as i32);
            job.ranks.len() == 2 && job.ranks.iter().all(|rank| busy(*rank))
        });
        job
    }

    /// How the launcher ends, which it must do soon, with nothing left behind.
    #[track_caller]
    fn end(mut self) -> Finished {
        let mut code = None;
        wait(SOON, || {
            code = self.launcher.try_wait().unwrap();
            code.is_some()
        });
        self.leaves_nothing();
        let (mut out, mut err) = (String::new(), String::new());
        self.launcher.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.launcher.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Finished { code: code.unwrap().code(), out, err }
    }

    #[track_caller]
    fn leaves_nothing(&self) {
        wait(SOON, || self.ranks.iter().all(|rank| !alive(*rank)));
        let out = self.folder.path().join("out");
        let left: Vec<_> =
            std::fs::read_dir(out).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A test that failed leaves no process either.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn plan(folder: &Path) {
    line(folder, "estimate --model model.json --job job.toml --dp 2 -o plan.json").ok();
}

#[test]
fn a_killed_rank_ends_the_job_and_is_named() {
    for victim in [0, 1] {
        let job = Job::start();
        kill(job.ranks[victim], libc::SIGKILL);
        let Finished { code, out, err } = job.end();
        assert_eq!(code, Some(4), "{err}");
        assert_eq!(out, "");
        assert!(err.contains("error: rank ") && err.contains("was killed by signal 9"), "{err}");
    }
}

#[test]
fn a_stopped_job_ends_in_order() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let job = Job::start();
        kill(job.launcher.id() as i32, signal);
        let Finished { code, out, err } = job.end();
        assert_eq!(code, Some(130), "{err}");
        assert_eq!(out, "");
        assert!(err.contains("interrupted"), "{err}");
    }
}

#[test]
fn ranks_do_not_outlive_their_launcher() {
    let mut job = Job::start();
    kill(job.launcher.id() as i32, libc::SIGKILL);
    job.launcher.wait().unwrap();
    job.leaves_nothing();
}

/// Exit code 4, the cause by name, nothing on standard output.
#[track_caller]
fn failed(run: &Finished, expected: &str) {
    assert_eq!(run.code, Some(4), "{}", run.err);
    assert_eq!(run.out, "");
    assert!(run.err.starts_with("error: ") || run.err.contains("\nerror: "), "{}", run.err);
    assert!(run.err.contains(expected) && !run.err.contains("panicked"), "{}", run.err);
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = common::folder(2);
    plan(folder.path());
    let train = "train plan.json --steps 2 --no-realtime --timeout 20";
    failed(&line(folder.path(), &format!("{train} --rendezvous {address}")), &address);
    // An address of another machine (TEST-NET-1, RFC 5737).
    failed(&line(folder.path(), &format!("{train} --rendezvous 192.0.2.1:4000")), "192.0.2.1:4000");
    assert!(!folder.path().join("run.json").exists());
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let folder = common::folder(2);
    let folder = folder.path();
    plan(folder);
    std::fs::create_dir(folder.join("folder")).unwrap();
    for output in ["model.json/plan.json", "/proc/none/plan.json", "/dev/full", "folder"] {
        let estimate = format!("estimate --model model.json --job job.toml -o {output}");
        failed(&line(folder, &estimate), &format!("cannot write {output}"));
        let train = format!("train plan.json --steps 2 --no-realtime --timeout 20 -o {output}");
        failed(&line(folder, &train), &format!("cannot write {output}"));
    }
    for args in [
        "report plan.json -o model.json",
        "validate plan.json --steps 2 --no-realtime -o model.json",
        "tune --model model.json --job job.toml --ranks 2 --no-realtime -o model.json",
        "profile --model model.json --job job.toml --ranks 2 --no-realtime -o model.json/profile.json",
    ] {
        failed(&line(folder, args), "cannot write model.json/");
    }
    // A device is written to, never replaced.
    use std::os::unix::fs::FileTypeExt;
    assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
    line(folder, "estimate plan.json -o /dev/null").ok();
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
}

/// A disk of 64 KiB: the plan fits nowhere on it. Mounting needs a user namespace or root; without, nothing is tested.
#[test]
fn a_full_disk_leaves_no_half_written_file() {
    let folder = common::folder(2);
    plan(folder.path());
    let script = format!(
        "mount -t tmpfs -o size=64k none disk && echo mounted >&2 && cat /dev/zero > disk/ballast; \
         {} estimate plan.json -o disk/other.json; echo code=$? left=$(ls -A disk | tr '\\n' ' ') >&2",
        common::AUTODIST
    );
    std::fs::create_dir(folder.path().join("disk")).unwrap();
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .current_dir(folder.path())
        .output();
    let err = output.map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).unwrap_or_default();
    if !err.contains("mounted") {
        eprintln!(
            "SKIPPED a_full_disk_leaves_no_half_written_file: this system lets nobody mount a tmpfs: {err}"
        );
        return;
    }
    assert!(err.contains("cannot write disk/other.json: No space left on device"), "{err}");
    assert!(err.contains("code=4 left=ballast"), "{err}");
}

#[test]
fn a_result_that_nobody_can_read_is_an_error_but_a_closed_pipe_is_none() {
    let folder = common::folder(2);
    let args: Vec<&str> = "plan --model model.json --job job.toml --json".split(' ').collect();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(folder.path(), &args).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write standard output"));

    let mut child = command(folder.path(), &args).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
