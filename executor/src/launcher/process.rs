//! One rank's process on this machine.

use super::ENVIRONMENT;
use super::GRACE;
use super::orders::{End, RankEnvironment};
use super::tail::Tail;
use crate::host;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Lets recent versions of NCCL put several ranks on one GPU, if the user has not said otherwise.
const SHARED_GPU: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Dropping it kills it.
pub(super) struct Process {
    child: Child,
    end: Option<End>,
    /// Since when it is to have ended.
    killed: Option<Instant>,
    /// The end of its standard error.
    output: Tail,
}

impl Process {
    pub fn start(
        command: &[OsString],
        environment: &RankEnvironment,
        assignments: &[Value],
    ) -> io::Result<Self> {
        let mut program = Command::new(&command[0]);
        if std::env::var_os(SHARED_GPU).is_none() {
            program.env(SHARED_GPU, "1");
        }
        if Path::new(&command[0]) == Path::new(host::OWN_PROGRAM) {
            // As whoever lists processes knows it.
            program.arg0(std::env::args_os().next().unwrap_or_default());
        }
        program
            .args(&command[1..])
            .env(ENVIRONMENT, serde_json::to_string(environment)?)
            .stdout(Stdio::null());
        Self::spawn(program, &serde_json::to_vec(assignments)?)
    }

    /// Starts a program that reads `input` from its standard input.
    pub fn spawn(mut program: Command, input: &[u8]) -> io::Result<Self> {
        host::tie(&mut program);
        let mut child = program
            .env(host::PARENT, std::process::id().to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipe = child.stdin.take();
        let mut process = Self { child, end: None, killed: None, output: Tail::default() };
        process.output = Tail::follow(process.child.stderr.take())?;
        // A process that does not read must not hold this one up.
        let input = input.to_vec();
        std::thread::Builder::new().name("input".to_owned()).spawn(move || {
            // A rank that dies while it reads is noticed as dead: its pipe says nothing that its status does not.
            let _ = pipe.map(|mut pipe| pipe.write_all(&input));
        })?;
        Ok(process)
    }

    /// What it writes to its standard output, where that is a pipe; once.
    pub fn answers(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, if it has.
    pub fn end(&mut self) -> Option<End> {
        if self.end.is_none() {
            self.end = self.child.try_wait().ok().flatten().map(End::from);
        }
        self.end.clone()
    }

    /// Tells it to end now, and does not wait for that.
    pub fn tell_to_end(&mut self) {
        if self.end().is_none() && self.killed.is_none() {
            // It may have ended between the look and the kill.
            let _ = self.child.kill();
            self.killed = Some(Instant::now());
        }
    }

    /// Ends it now, unless it has ended.
    pub fn kill(&mut self) -> End {
        self.tell_to_end();
        // One that hangs in the system ends when that lets it go.
        loop {
            match self.end() {
                Some(end) => return end,
                None if self.killed.is_none_or(|killed| killed.elapsed() >= GRACE) => return End::Stuck,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// What it wrote last, once it has ended.
    pub fn output(&mut self) -> String {
        self.output.whole()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
