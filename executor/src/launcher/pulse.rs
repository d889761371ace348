//! A rank's heartbeats, sent by a separate thread, so that a computing rank is not mistaken for one that
//! hangs. The time-out of its peers applies in any case.

use autodist_communication::Control;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Number of heartbeats within the time limit for silent ranks.
const SIGNS: u32 = 8;
const LONGEST: Duration = Duration::from_secs(1);

/// Sends heartbeats until it is dropped.
pub(super) struct Pulse {
    over: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Starts heartbeats for the calling thread, whose work the launcher waits for.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(control: Control, timeout: Duration) -> io::Result<Self> {
        let every = (timeout / SIGNS).min(LONGEST);
        let mut worker = Worker::this_thread();
        let over = Arc::new((Mutex::new(false), Condvar::new()));
        let ended = over.clone();
        let beat = move || {
            let (over, ring) = &*ended;
            let mut over = over.lock().unwrap_or_else(PoisonError::into_inner);
            while !*over {
                over = ring.wait_timeout(over, every).unwrap_or_else(PoisonError::into_inner).0;
                // If the launcher has disconnected, heartbeats are useless, and the working thread notices by
                // itself.
                if !*over && !worker.is_stuck() && control.alive().is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("pulse".to_owned()).spawn(beat)?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let (over, ring) = &*self.over;
        *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        ring.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The working thread, as described by the system.
struct Worker {
    /// Its state file (proc(5)); `None` if the system does not have it.
    status: Option<PathBuf>,
    /// Its number of voluntary context switches at the last check.
    sleeps: u64,
}

impl Worker {
    fn this_thread() -> Self {
        let own = std::fs::read_link("/proc/thread-self").ok();
        Self { status: own.map(|own| PathBuf::from("/proc").join(own).join("status")), sleeps: u64::MAX }
    }

    /// Whether it has been in the same uninterruptible wait since the last check: for a file server that has
    /// failed, or in a driver that hangs. Does not allocate.
    fn is_stuck(&mut self) -> bool {
        let mut text = [0; 4096];
        let read = self.status.as_ref().and_then(|path| File::open(path).ok()?.read(&mut text).ok());
        let Some((uninterruptible, sleeps)) = read.and_then(|read| parse(&text[..read])) else {
            return false;
        };
        let before = std::mem::replace(&mut self.sleeps, sleeps);
        uninterruptible && before == sleeps
    }
}

/// Reads from a thread's `status` whether it waits uninterruptibly, and its number of voluntary context
/// switches.
fn parse(status: &[u8]) -> Option<(bool, u64)> {
    let value = |name: &[u8]| {
        let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
        std::str::from_utf8(line).ok().map(str::trim)
    };
    Some((value(b"State:")?.starts_with('D'), value(b"voluntary_ctxt_switches:")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_stuck_only_while_one_uninterruptible_wait_lasts() {
        let status = |state: &str, sleeps: u64| {
            format!(
                "Name:\tautodist\nState:\t{state}\nPid:\t7\nvoluntary_ctxt_switches:\t{sleeps}\nnonvoluntary_ctxt_switches:\t9\n"
            )
        };
        let folder = std::env::temp_dir().join(format!("autodist-pulse-{}", std::process::id()));
        let mut worker = Worker { status: Some(folder.clone()), sleeps: u64::MAX };
        for (state, sleeps, stuck) in [
            ("D (disk sleep)", 4, false),
            ("D (disk sleep)", 4, true),
            ("D (disk sleep)", 5, false),
            ("S (sleeping)", 5, false),
            ("R (running)", 5, false),
        ] {
            std::fs::write(&folder, status(state, sleeps)).unwrap();
            assert_eq!(worker.is_stuck(), stuck, "{state} {sleeps}");
        }
        std::fs::remove_file(&folder).unwrap();
        assert!(!worker.is_stuck());
        // The system's status of this thread can be read.
        let own = std::fs::read(Worker::this_thread().status.unwrap()).unwrap();
        assert!(parse(&own).is_some());
    }
}
