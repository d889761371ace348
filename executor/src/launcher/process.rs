//! One rank's process on this machine.

use super::ENVIRONMENT;
use super::orders::{End, RankEnvironment};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Lets recent versions of NCCL put several ranks on one GPU, if the user has not said otherwise.
const SHARED_GPU: &str = "NCCL_MULTI_RANK_GPU_ENABLE";
/// Of what a rank writes to its standard error, the end is kept for the message.
const KEPT_OUTPUT: usize = 4096;

/// Dropping it kills it.
pub(super) struct Process {
    child: Child,
    end: Option<End>,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
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
        let mut child = program
            .args(&command[1..])
            .env(ENVIRONMENT, serde_json::to_string(environment)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take();
        let errors = child.stderr.take();
        let output = Arc::new(Mutex::new(Vec::new()));
        let kept = output.clone();
        let reader = std::thread::spawn(move || {
            let mut portion = [0; 1024];
            let Some(mut errors) = errors else { return };
            while let Ok(n @ 1..) = errors.read(&mut portion) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&portion[..n]);
                let surplus = kept.len().saturating_sub(KEPT_OUTPUT);
                kept.drain(..surplus);
            }
        });
        let process = Self { child, end: None, output, reader: Some(reader) };
        let text = serde_json::to_vec(assignments)?;
        // A rank that dies while it reads is noticed as dead: its pipe says nothing that its status does not.
        let _ = input.as_mut().map(|input| input.write_all(&text));
        Ok(process)
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
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let kept = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim_end().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.output();
    }
}
