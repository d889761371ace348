//! Threads of a search.

use rayon::ThreadPoolBuilder;
use std::thread::available_parallelism;

/// Does `work`, whose parallel parts go to `threads` threads (0: one for each core). Where the system gives fewer, fewer
/// do the same work; the calling thread alone does, too.
pub fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let most = if threads == 0 { available_parallelism().map_or(1, usize::from) } else { threads };
    let fewer = std::iter::successors(Some(most), |threads| Some(threads / 2).filter(|threads| *threads > 1));
    let first = std::iter::once(threads);
    for threads in first.chain(fewer.skip(1)) {
        if let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads).build() {
            return pool.install(work);
        }
    }
    // This fails only where the calling thread belongs to a pool already, which is used then.
    let _alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    work()
}
