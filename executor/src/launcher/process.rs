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

/// Environment variable that lets recent versions of NCCL run several ranks on one GPU, unless the user has
/// set it.
const SHARED_GPU: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// The process of one rank. Dropping it kills the process.
pub(super) struct Process {
    child: Child,
    end: Option<End>,
    /// The time of the kill, if any.
    killed: Option<Instant>,
    /// The last part of its standard error.
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
            // The name in process lists.
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
            // If the rank dies while it reads, its exit status has the reason, so the error of the pipe is
            // ignored.
            let _ = pipe.map(|mut pipe| pipe.write_all(&input));
        })?;
        Ok(process)
    }

    /// Takes its standard output, if that is a pipe.
    pub fn answers(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The exit status, if the process has ended.
    pub fn end(&mut self) -> Option<End> {
        if self.end.is_none() {
            self.end = self.child.try_wait().ok().flatten().map(End::from);
        }
        self.end.clone()
    }

    /// Kills the process without waiting for its end.
    pub fn tell_to_end(&mut self) {
        if self.end().is_none() && self.killed.is_none() {
            // It may have ended just before the kill.
            let _ = self.child.kill();
            self.killed = Some(Instant::now());
        }
    }

    /// Kills the process and waits, unless it has ended.
    pub fn kill(&mut self) -> End {
        self.tell_to_end();
        // A process that hangs in a system call ends when the call returns.
        loop {
            match self.end() {
                Some(end) => return end,
                None if self.killed.is_none_or(|killed| killed.elapsed() >= GRACE) => return End::Stuck,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// The last part of its output, once it has ended.
    pub fn output(&mut self) -> String {
        self.output.whole()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
