//! A mock of a cluster's launcher: it sets its variables and starts this program once for each rank.

use super::processes::{alive, busy, children, kill, wait};
use super::{AUTODIST, Finished, line};
use std::fs::File;
use std::io::{Read, Seek};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const SOON: Duration = Duration::from_secs(8);
pub const RANKS: &str = "--no-realtime --timeout 20";

/// Environment variables of one process, as a shell list of `NAME=value`.
pub type Variables<'a> = &'a dyn Fn(usize) -> String;

pub fn torchrun(world: usize, port: u16) -> impl Fn(usize) -> String {
    move |rank| {
        format!(
            "RANK={rank} WORLD_SIZE={world} LOCAL_RANK={rank} LOCAL_WORLD_SIZE={world} MASTER_ADDR=localhost \
             MASTER_PORT=1 TORCHELASTIC_RUN_ID=test AUTODIST_PORT={port}"
        )
    }
}

/// A port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One process of the launcher.
pub struct Started {
    child: Child,
    /// Files, because pipes are not read while it runs.
    out: File,
    err: File,
}

pub fn start(folder: &Path, variables: &str, args: &str) -> Started {
    start_by(&[AUTODIST], folder, variables, args)
}

pub fn start_by(program: &[&str], folder: &Path, variables: &str, args: &str) -> Started {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]);
    spawn(command, folder, variables, args)
}

/// Starts `command` with those arguments and variables, and no other variables than the path.
pub fn spawn(mut command: Command, folder: &Path, variables: &str, args: &str) -> Started {
    let words = variables.split_whitespace().map(|word| word.split_once('=').unwrap());
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let child = command
        .args(args.split_whitespace())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap();
    Started { child, out, err }
}

impl Started {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The result of the process, which must end within `limit`.
    #[track_caller]
    pub fn end(&mut self, limit: Duration) -> Finished {
        let mut code = None;
        wait(limit, || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        let text = |file: &mut File| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        Finished { code: code.unwrap().code(), out: text(&mut self.out), err: text(&mut self.err) }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Kill the process even if the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All processes of one job; all but the first work in an empty folder of their own.
pub struct Job {
    pub folder: tempfile::TempDir,
    elsewhere: tempfile::TempDir,
    pub processes: Vec<Started>,
    ranks: Vec<i32>,
}

impl Job {
    pub fn start(folder: tempfile::TempDir, world: usize, variables: Variables<'_>, args: &str) -> Self {
        let elsewhere = tempfile::tempdir().unwrap();
        let mut processes = Vec::new();
        for rank in 0..world {
            let folder = if rank == 0 { folder.path() } else { elsewhere.path() };
            processes.push(start(folder, &variables(rank), args));
        }
        Self { folder, elsewhere, processes, ranks: Vec::new() }
    }

    /// A job that would take minutes, with all ranks training.
    pub fn long(world: usize) -> Self {
        let folder = super::folder(world as u32);
        plan(folder.path(), world);
        let args = format!("train plan.json --steps 2000000 {RANKS} -o out/run.json");
        let mut job = Self::start(folder, world, &torchrun(world, free_port()), &args);
        wait(Duration::from_secs(30), || {
            job.ranks = job.processes.iter().flat_map(|process| children(process.pid())).collect();
            job.ranks.len() == world && job.ranks.iter().all(|rank| busy(*rank))
        });
        job
    }

    pub fn signal(&self, process: usize, signal: i32) {
        kill(self.processes[process].pid(), signal);
    }

    /// The result of a rank's process, which must end soon.
    #[track_caller]
    pub fn end(&mut self, rank: usize) -> Finished {
        self.processes[rank].end(SOON)
    }

    /// All but the first process have succeeded and printed nothing.
    #[track_caller]
    pub fn agents_end_in_silence(&mut self, code: i32) {
        for rank in 1..self.processes.len() {
            let Finished { code: found, out, err } = self.end(rank);
            assert_eq!((found, out.as_str(), err.as_str()), (Some(code), "", ""), "rank {rank}");
        }
        self.leaves_nothing();
    }

    #[track_caller]
    pub fn leaves_nothing(&self) {
        wait(SOON, || self.ranks.iter().all(|rank| !alive(*rank)));
        assert_eq!(std::fs::read_dir(&self.elsewhere).unwrap().count(), 0, "agents write nothing");
        let out = std::fs::read_dir(self.folder.path().join("out"));
        let left: Vec<_> = out.into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "run.partial.json"), "no half of a result: {left:?}");
    }
}

/// Writes a plan for that many ranks.
pub fn plan(folder: &Path, ranks: usize) {
    line(folder, &format!("estimate --model model.json --job job.toml --dp {ranks} -o plan.json")).ok();
}
