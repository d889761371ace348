//! Ctrl-C and termination signals.

use crate::failure::Failure;
use crate::{external, output};
use autodist_executor::host;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Set by Ctrl-C and termination signals, but for those that this process was started to ignore, as `nohup` has it.
pub fn stop_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if !host::is_ignored(signal) {
                // Without a handler the signal still ends this process, and the kernel ends its ranks with it.
                let _ = signal_hook::flag::register(signal, flag.clone());
            }
        }
        flag
    });
    flag.clone()
}

/// Does work that does not look for signals itself; one of them ends this process meanwhile. So no rank may run, and
/// nothing may be written.
///
/// # Errors
/// A signal has come.
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
    // Without a thread for it a signal is heeded when the work is done.
    let watcher = std::thread::Builder::new().name("signals".to_owned()).spawn(watch);
    let result = work();
    over.store(true, Ordering::Release);
    if let Ok(watcher) = watcher {
        watcher.thread().unpark();
        let _ = watcher.join();
    }
    if stop.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(result) }
}
