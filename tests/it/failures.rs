//! However a job fails, it ends soon, reports why, and leaves no process and no half-written file.

use crate::common;

use common::processes::{alive, busy, children, kill, ticks, wait};
use common::{Finished, command, heed, line};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// A job that would take minutes.
struct Job {
    folder: tempfile::TempDir,
    launcher: Child,
    ranks: Vec<i32>,
}

impl Job {
    /// With two ranks, started and training.
    fn start() -> Self {
        Self::of(2, 20, |_| ())
    }

    fn of(ranks: usize, timeout: u32, set_up: impl FnOnce(&mut Command)) -> Self {
        let folder = common::folder(ranks as u32);
        let estimate = format!("estimate --model model.json --job job.toml --dp {ranks} -o plan.json");
        line(folder.path(), &estimate).ok();
        let args =
            format!("train plan.json --steps 2000000 --no-realtime --timeout {timeout} -o out/run.json");
        let mut program = command(folder.path(), &args.split(' ').collect::<Vec<_>>());
        set_up(&mut program);
        let launcher = program.spawn().unwrap();
        let mut job = Self { folder, launcher, ranks: Vec::new() };
        wait(Duration::from_secs(30), || {
            job.ranks = children(job.launcher.id() as i32);
            job.ranks.len() == ranks && job.ranks.iter().all(|rank| busy(*rank))
        });
        job
    }

    fn launcher(&self) -> i32 {
        self.launcher.id() as i32
    }

    fn signal_ranks(&self, signal: i32) {
        self.ranks.iter().for_each(|rank| kill(*rank, signal));
    }

    /// Whether all ranks and the launcher keep working.
    #[track_caller]
    fn goes_on(&self) {
        let before: Vec<u64> = self.ranks.iter().map(|rank| ticks(*rank)).collect();
        wait(Duration::from_secs(20), || {
            assert!(alive(self.launcher()), "the launcher has ended");
            self.ranks.iter().zip(&before).all(|(rank, before)| ticks(*rank) > before + 5)
        });
    }

    /// The result of the launcher, which must end soon without leftovers.
    #[track_caller]
    fn end(mut self) -> Finished {
        let mut code = None;
        wait(2 * SOON, || {
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
    fn leaves_no_rank(&self) {
        wait(SOON, || self.ranks.iter().all(|rank| !alive(*rank)));
    }

    #[track_caller]
    fn leaves_nothing(&self) {
        self.leaves_no_rank();
        let out = self.folder.path().join("out");
        let left: Vec<_> =
            std::fs::read_dir(out).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
        // The record of the measurements so far: `kept.rs`.
        assert!(left.iter().all(|name| name == "run.partial.json"), "{left:?}");
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Kill the processes even if the test fails.
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
        assert!(out.is_empty() || out.contains("ended      early"), "{out}");
        assert!(err.contains("error: rank ") && err.contains("was killed by signal 9"), "{err}");
        assert!(err.contains("out-of-memory killer"), "{err}");
    }
}

#[test]
fn a_stopped_job_ends_in_order() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let job = Job::start();
        kill(job.launcher.id() as i32, signal);
        let Finished { code, out, err } = job.end();
        assert_eq!(code, Some(130), "{err}");
        assert!(out.is_empty() || out.contains("ended      early"), "{out}");
        assert!(err.contains("interrupted"), "{err}");
    }
}

#[test]
fn ranks_that_give_no_sign_of_life_are_given_up() {
    // The only rank; all ranks; one of them.
    for (ranks, stopped) in [(1, 0..1), (2, 0..2), (2, 1..2)] {
        let job = Job::of(ranks, 2, |_| ());
        job.ranks[stopped].iter().for_each(|rank| kill(*rank, libc::SIGSTOP));
        let Finished { code, out, err } = job.end();
        assert_eq!(code, Some(4), "{err}");
        assert!(out.is_empty() || out.contains("ended      early"), "{out}");
        // A rank that waits for another may be the first to report it.
        assert!(err.contains("no heartbeat for 2 s") || err.contains("was silent for 2"), "{err}");
    }
}

#[test]
fn a_job_that_was_suspended_for_longer_than_its_time_out_goes_on() {
    let job = Job::of(2, 2, |_| ());
    kill(job.launcher(), libc::SIGSTOP);
    job.signal_ranks(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    job.signal_ranks(libc::SIGCONT);
    kill(job.launcher(), libc::SIGCONT);
    job.goes_on();
    kill(job.launcher(), libc::SIGTERM);
    assert_eq!(job.end().code, Some(130));
}

#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        static ALL: [[i32; 1]; 3] = [[libc::SIGHUP], [libc::SIGINT], [libc::SIGTERM]];
        let ignored = ALL.iter().find(|known| known[0] == signal).unwrap();
        let job = Job::of(1, 20, |program| heed(program, libc::SIG_IGN, ignored));
        kill(job.launcher(), signal);
        job.goes_on();
        // Other signals still work.
        kill(job.launcher(), if signal == libc::SIGTERM { libc::SIGHUP } else { libc::SIGTERM });
        assert_eq!(job.end().code, Some(130));
    }
}

#[test]
fn ranks_do_not_outlive_a_launcher_that_is_killed_at_once() {
    let folder = common::folder(1);
    line(folder.path(), "estimate --model model.json --job job.toml --dp 1 -o plan.json").ok();
    let args: Vec<&str> = "train plan.json --steps 2000000 --no-realtime --timeout 60".split(' ').collect();
    let mut all = Vec::new();
    for after in 0..40 {
        let mut launcher = command(folder.path(), &args).spawn().unwrap();
        let mut ranks = Vec::new();
        wait(Duration::from_secs(20), || {
            ranks = children(launcher.id() as i32);
            !ranks.is_empty()
        });
        std::thread::sleep(Duration::from_micros(100 * after));
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        all.extend(ranks);
    }
    wait(SOON, || all.iter().all(|rank| !alive(*rank)));
}

/// Without checking its parent it would wait for its assignments forever.
#[test]
fn a_rank_whose_launcher_is_gone_when_it_starts_ends() {
    let mut rank = Command::new(common::AUTODIST)
        .env("AUTODIST_RANK_ENVIRONMENT", "{}")
        .env("AUTODIST_PARENT", "1")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut code = None;
    wait(SOON, || {
        code = rank.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(4));
}

#[test]
fn ranks_are_this_very_program_even_if_its_file_is_gone() {
    let folder = common::folder(2);
    plan(folder.path());
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("deleted-{}", std::process::id()));
    std::fs::hard_link(common::AUTODIST, &copy)
        .or_else(|_| std::fs::copy(common::AUTODIST, &copy).map(drop))
        .unwrap();
    let script = "exec 3< \"$0\"; rm \"$0\"; exec /proc/self/fd/3 train plan.json --steps 2 --no-realtime --timeout 20 --json";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(&copy)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Commands with few resources, run by a user with limits, which do not apply to root.
struct Scarce {
    folder: tempfile::TempDir,
    /// The path of this program, where that user can access it.
    program: std::path::PathBuf,
    user: Option<u32>,
}

impl Scarce {
    fn new() -> Self {
        let folder = common::folder(2);
        plan(folder.path());
        let program = folder.path().join("autodist");
        std::fs::copy(common::AUTODIST, &program).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let root = rustix::process::geteuid().is_root();
        // A user without other processes.
        Self { folder, program, user: root.then(|| 20_000 + std::process::id() % 40_000) }
    }

    /// `None` if the system cannot start it with so few resources.
    fn run(&self, resource: libc::__rlimit_resource_t, amount: u64, args: &str) -> Option<Output> {
        let mut program = Command::new(&self.program);
        program.args(args.split(' ')).current_dir(self.folder.path()).stdin(Stdio::null());
        if let Some(user) = self.user {
            program.uid(user);
        }
        // SAFETY: setrlimit may be called between fork and exec.
        unsafe {
            program.pre_exec(move || {
                let limit = libc::rlimit { rlim_cur: amount, rlim_max: amount };
                match libc::setrlimit(resource, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        program.output().ok()
    }

    /// Every command ends with a message and a documented exit code; returns the number of failures.
    #[track_caller]
    fn all_end_well(&self, resource: libc::__rlimit_resource_t, amounts: &[u64], commands: &[&str]) -> usize {
        let mut failures = 0;
        for amount in amounts.iter().copied() {
            for args in commands {
                let Some(output) = self.run(resource, amount, args) else { continue };
                let (code, err) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
                assert!(matches!(code, Some(0 | 4)), "{amount}: {args}: {:?}: {err}", output.status);
                assert!(!err.contains("panicked"), "{amount}: {args}: {err}");
                assert!(code == Some(0) || err.contains("error: "), "{amount}: {args}: {err}");
                failures += usize::from(code == Some(4));
            }
        }
        failures
    }
}

const SHORT_TRAINING: &str = "train plan.json --steps 2 --no-realtime --timeout 20 -o run.json";
const SEARCH: &str = "plan --model model.json --job job.toml -o other.json";

#[test]
fn few_processes_are_an_error_with_a_message() {
    let scarce = Scarce::new();
    let commands = [
        SHORT_TRAINING,
        "validate plan.json --top 1 --steps 2 --no-realtime --timeout 20 -o runs",
        SEARCH,
        "plan --model model.json --job job.toml --threads 16 -o other.json",
    ];
    assert!(scarce.all_end_well(libc::RLIMIT_NPROC, &[1, 2, 3, 4, 6, 9], &commands) > 0);
}

#[test]
fn little_memory_is_an_error_with_a_message() {
    const MIB: u64 = 1 << 20;
    let scarce = Scarce::new();
    let starts = |mib: &u64| {
        let output = scarce.run(libc::RLIMIT_AS, mib * MIB, "--version");
        output.is_some_and(|output| output.status.success())
    };
    // The size of its code depends on the build.
    let least = (8..2000).step_by(8).find(starts).unwrap();
    let amounts = [0, 2, 4, 8, 16, 32].map(|more| (least + more) * MIB);
    let commands = [SHORT_TRAINING, SEARCH, "estimate --model model.json --job job.toml --dp 2"];
    scarce.all_end_well(libc::RLIMIT_AS, &amounts, &commands);
    assert!(scarce.run(libc::RLIMIT_AS, 64 << 30, SHORT_TRAINING).unwrap().status.success());
}

#[test]
fn a_step_count_beyond_all_memory_takes_none_in_advance() {
    let job = {
        let folder = common::folder(1);
        line(folder.path(), "estimate --model model.json --job job.toml --dp 1 -o plan.json").ok();
        let args: Vec<&str> = "train plan.json --steps 4294967295 --no-realtime --timeout 20 -o out/run.json"
            .split(' ')
            .collect();
        let launcher = command(folder.path(), &args).spawn().unwrap();
        let mut job = Job { folder, launcher, ranks: Vec::new() };
        wait(Duration::from_secs(30), || {
            job.ranks = children(job.launcher());
            job.ranks.len() == 1 && busy(job.ranks[0])
        });
        job
    };
    job.goes_on();
    kill(job.launcher(), libc::SIGTERM);
    assert_eq!(job.end().code, Some(130));
}

/// Nothing opens it for writing, so opening it for reading blocks forever.
#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_by_name() {
    let folder = common::folder(2);
    plan(folder.path());
    assert!(Command::new("mkfifo").arg("pipe").current_dir(folder.path()).status().unwrap().success());
    for args in [
        "train plan.json --data pipe",
        "train pipe",
        "validate plan.json --data pipe",
        "plan --model pipe --job job.toml",
        "plan --model model.json --job pipe",
        "plan --model model.json --job job.toml --profile pipe",
        "report plan.json pipe",
        "report pipe",
        "export pipe --to megatron",
        "train plan.json --hosts pipe",
        "backtest pipe",
        "estimate --from deepspeed pipe --model gpt2 --cluster 1x8xh100-80gb-sxm",
        "estimate --cluster pipe --model gpt2 --global-batch 8 --seq-len 128",
    ] {
        let mut child = command(folder.path(), &args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
        let mut code = None;
        wait(SOON, || {
            code = child.try_wait().unwrap();
            code.is_some()
        });
        let err = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(code.unwrap().code(), Some(2), "{args}: {err}");
        assert!(err.contains("pipe") && err.contains("is a pipe, not a regular file"), "{args}: {err}");
    }
}

#[test]
fn ranks_do_not_outlive_their_launcher() {
    let mut job = Job::start();
    kill(job.launcher.id() as i32, libc::SIGKILL);
    job.launcher.wait().unwrap();
    job.leaves_no_rank();
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
        let mut estimated = line(folder, &estimate);
        assert!(estimated.out.contains("step time"), "{}", estimated.out);
        estimated.out.clear();
        failed(&estimated, &format!("cannot write {output}"));
        let train = format!("train plan.json --steps 2 --no-realtime --timeout 20 -o {output}");
        let mut trained = line(folder, &train);
        if output == "/dev/full" {
            // A full disk is detected at the first write, after the training: the measurements are printed.
            assert!(trained.out.contains("step time"), "{}", trained.out);
            trained.out.clear();
        }
        failed(&trained, &format!("cannot write {output}"));
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

/// A disk of 64 KiB, too small for the plan. Mounting needs a user namespace or root; otherwise the test is
/// skipped.
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
