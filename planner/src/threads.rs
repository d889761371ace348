//! Threads of a search.

use rayon::ThreadPoolBuilder;
use std::thread::available_parallelism;

/// Runs `work`, whose parallel parts use `threads` threads (0: one for each core). If the system provides
/// fewer threads, these do all the work; the calling thread alone is enough.
pub fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let most = if threads == 0 { available_parallelism().map_or(1, usize::from) } else { threads };
    let fewer = std::iter::successors(Some(most), |threads| Some(threads / 2).filter(|threads| *threads > 1));
    let first = std::iter::once(threads);
    for threads in first.chain(fewer.skip(1)) {
        if let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads).build() {
            return pool.install(work);
        }
    }
    // Fails only if the calling thread already belongs to a pool, which is then used.
    let _alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    work()
}
