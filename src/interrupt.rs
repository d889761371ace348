//! Ctrl-C and termination signals.

use crate::failure::Failure;
use crate::{external, output};
use autodist_executor::host;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A flag that Ctrl-C and termination signals set, except signals that this process was started to ignore, as
/// with `nohup`.
pub fn stop_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if !host::is_ignored(signal) {
                // Without a handler the signal still ends this process, and the kernel then ends its ranks.
                let _ = signal_hook::flag::register(signal, flag.clone());
            }
        }
        flag
    });
    flag.clone()
}

/// Lets writes beyond the limit of the size of a file (`ulimit -f`) fail like writes to a full disk, instead
/// of ending this process.
pub fn survive_file_limit() {
    // Without the handler, such a write ends the process.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Runs work that does not check for signals; a signal ends this process at once. So no rank may be running,
/// and no file may be written meanwhile.
///
/// # Errors
/// A signal has arrived.
pub fn promptly<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    let (stop, over) = (stop_flag(), Arc::new(AtomicBool::new(false)));
    let ended = over.clone();
    let watch = move || {
        while !ended.load(Ordering::Acquire) {
            if stop_flag().load(Ordering::Relaxed) {
                output::error(&Failure::Interrupted);
                external::send_home();
                std::process::exit(Failure::Interrupted.exit_code());
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    };
    // Without a thread for it, a signal is handled after the work.
    let watcher = std::thread::Builder::new().name("signals".to_owned()).spawn(watch);
    let result = work();
    over.store(true, Ordering::Release);
    if let Ok(watcher) = watcher {
        watcher.thread().unpark();
        let _ = watcher.join();
    }
    if stop.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(result) }
}
