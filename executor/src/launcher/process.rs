//! One rank's process on this machine.

use super::ENVIRONMENT;
use super::orders::{End, RankEnvironment};
use super::tail::Tail;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Lets recent versions of NCCL put several ranks on one GPU, if the user has not said otherwise.
const SHARED_GPU: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Dropping it kills it.
pub(super) struct Process {
    child: Child,
    end: Option<End>,
    /// Of its standard error.
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
        program
            .args(&command[1..])
            .env(ENVIRONMENT, serde_json::to_string(environment)?)
            .stdout(Stdio::null());
        Self::spawn(program, &serde_json::to_vec(assignments)?)
    }

    /// Starts a program that reads `input` from its standard input.
    pub fn spawn(mut program: Command, input: &[u8]) -> io::Result<Self> {
        let mut child = program.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut pipe = child.stdin.take();
        let output = Tail::follow(child.stderr.take());
        let process = Self { child, end: None, output };
        // A rank that dies while it reads is noticed as dead: its pipe says nothing that its status does not.
        let _ = pipe.as_mut().map(|pipe| pipe.write_all(input));
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

    /// Ends it now, unless it has ended.
    pub fn kill(&mut self) -> End {
        if let Some(end) = self.end() {
            return end;
        }
        // It may have ended between the look and the kill.
        let _ = self.child.kill();
        let end = self.child.wait().map_or_else(|error| End::NotStarted(error.to_string()), End::from);
        self.end.insert(end).clone()
    }

    /// What it wrote last, once it has ended.
    pub fn output(&mut self) -> String {
        self.output.whole()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.output();
    }
}
