//! A rank's signs of life: from a thread of their own, so that a rank that computes is not taken for one that hangs.
//! Its peers wait for the time-out all the same.

use autodist_communication::Control;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Signs within the time after which a silent rank is given up.
const SIGNS: u32 = 8;
const LONGEST: Duration = Duration::from_secs(1);

/// Gives signs of life until it is dropped.
pub(super) struct Pulse {
    over: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// For the thread that calls this, whose work is what the launcher waits for.
    ///
    /// # Errors
    /// The system gives no thread.
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
                // A launcher that is gone needs none, and the work notices by itself.
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

/// The thread that works, as the system sees it.
struct Worker {
    /// Its state (proc(5)); none where the system does not tell.
    status: Option<PathBuf>,
    /// How often it had gone to sleep by the last look.
    sleeps: u64,
}

impl Worker {
    fn this_thread() -> Self {
        let own = std::fs::read_link("/proc/thread-self").ok();
        Self { status: own.map(|own| PathBuf::from("/proc").join(own).join("status")), sleeps: u64::MAX }
    }

    /// Whether it has been in one uninterruptible wait of the kernel since the last look: for a file server that is
    /// gone, or in a driver that hangs. Takes no memory.
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

/// Reads from a thread's `status` whether it waits uninterruptibly, and how often it has gone to sleep.
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
        // What the system says of this thread can be read.
        let own = std::fs::read(Worker::this_thread().status.unwrap()).unwrap();
        assert!(parse(&own).is_some());
    }
}
