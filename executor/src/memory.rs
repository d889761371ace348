//! How much memory the process holds: a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static EXCLUDED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting live bytes and their peak. A binary that measures memory installs it:
/// `#[global_allocator] static ALLOCATOR: CountingAllocator = CountingAllocator;`
pub struct CountingAllocator;

fn grew(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting has no side effect on memory.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size >= layout.size() {
            grew(new_size - layout.size());
        } else {
            LIVE.fetch_sub(layout.size() - new_size, Relaxed);
        }
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Keeps freed memory in the process instead of giving it back to the system: a training step frees and takes the same
/// buffers again and again, and fresh pages cost a fault each.
pub fn keep_freed_memory() {
    // SAFETY: mallopt only changes thresholds of the allocator. A value that it refuses leaves it as it was.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 16 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Leaves what has been allocated since `live` was [`live`] out of all later counts: it belongs to the measurement, not
/// to what is measured.
pub fn exclude_since(live_then: usize) {
    EXCLUDED.fetch_add(live().saturating_sub(live_then), Relaxed);
}

/// Leaves everything that is live now out of all later counts, and begins a new peak.
pub fn exclude_all() {
    EXCLUDED.store(LIVE.load(Relaxed), Relaxed);
    reset_peak();
}

/// Bytes of heap in use; 0 where the counting allocator is not installed.
pub fn live() -> usize {
    LIVE.load(Relaxed).saturating_sub(EXCLUDED.load(Relaxed))
}

/// Highest [`live`] since the last [`reset_peak`].
pub fn peak() -> usize {
    PEAK.load(Relaxed).saturating_sub(EXCLUDED.load(Relaxed))
}

/// Begins a new peak at what is live now, and returns the old one.
pub fn reset_peak() -> usize {
    PEAK.swap(LIVE.load(Relaxed), Relaxed).saturating_sub(EXCLUDED.load(Relaxed))
}
