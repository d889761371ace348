//! Counts the memory of the process with its own allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static EXCLUDED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with counts of live bytes and their peak. If memory is exhausted, it ends the
/// process with a message and exit code 4. A binary that measures memory installs it: `#[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;`
pub struct CountingAllocator;

/// The exit code of a process that could not get the memory it needs, as of any other failed run.
const NO_MEMORY: libc::c_int = 4;

/// Bytes of address space without which an allocation or the start of a thread may fail: the allocator takes
/// 16 MiB at a time ([`keep_freed_memory`]).
const LEAST: usize = 32 << 20;

/// Counts an allocation; if it has failed (a null pointer), this does not return.
fn grew(pointer: *mut u8, bytes: usize) {
    if pointer.is_null() {
        give_up(format_args!("cannot allocate {bytes} bytes"));
    }
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

/// Ends this process, which cannot continue without the memory. Without a message, it would end by SIGABRT.
#[cold]
fn give_up(problem: fmt::Arguments) -> ! {
    let mut text = Line { bytes: [0; 160], len: 0 };
    // Writing cannot fail: text that does not fit is left out.
    let _ = writeln!(
        text,
        "error: out of memory: {problem}; check `ulimit -v`, the container's limit and free memory"
    );
    // SAFETY: the pointer and the length are those of a live array, and no destructor is run that could
    // allocate.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.len);
        libc::_exit(NO_MEMORY)
    }
}

/// Ends this process with the message and the exit code of exhausted memory where the standard library would
/// panic or the C library would abort for want of it: both allocate past the allocator of this module when a
/// thread starts. Panics and aborts with memory to spare stay as they are.
pub fn say_when_exhausted() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        give_up_if_exhausted();
        usual(info);
    }));
    let handler: extern "C" fn(libc::c_int) = aborted;
    // SAFETY: the handler calls only functions that are safe in a signal handler: mmap, munmap, write, _exit,
    // signal and raise.
    unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
}

extern "C" fn aborted(signal: libc::c_int) {
    give_up_if_exhausted();
    // SAFETY: restores the default action, and ends the process by it.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn give_up_if_exhausted() {
    // SAFETY: a new mapping that nothing accesses, and that is removed again.
    let left = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapped = libc::mmap(std::ptr::null_mut(), LEAST, libc::PROT_NONE, flags, -1, 0);
        mapped != libc::MAP_FAILED && libc::munmap(mapped, LEAST) == 0
    };
    if !left {
        give_up(format_args!("less than {} MiB of address space are left", LEAST >> 20));
    }
}

/// A line of text that does not allocate.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let taken = text.len().min(room.len());
        room[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting has no side effect on memory.
// If the system has no memory left, the process ends.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        let pointer = unsafe { System.alloc(layout) };
        grew(pointer, layout.size());
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        grew(pointer, layout.size());
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        let new = unsafe { System.realloc(pointer, layout, new_size) };
        if new.is_null() {
            give_up(format_args!("cannot allocate {new_size} bytes"));
        }
        grew(new, new_size.saturating_sub(layout.size()));
        LIVE.fetch_sub(layout.size().saturating_sub(new_size), Relaxed);
        new
    }
}

/// Keeps freed memory in the process instead of returning it to the system: a training step frees and
/// allocates the same buffers repeatedly, and every new page costs a page fault.
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

/// Excludes allocations since `live` was [`live`] from all later counts: they belong to the measurement
/// itself.
pub fn exclude_since(live_then: usize) {
    EXCLUDED.fetch_add(live().saturating_sub(live_then), Relaxed);
}

/// Excludes everything that is live now from all later counts, and resets the peak.
pub fn exclude_all() {
    EXCLUDED.store(LIVE.load(Relaxed), Relaxed);
    reset_peak();
}

/// Bytes of heap in use; 0 if the counting allocator is not installed.
pub fn live() -> usize {
    LIVE.load(Relaxed).saturating_sub(EXCLUDED.load(Relaxed))
}

/// Highest [`live`] since the last [`reset_peak`].
pub fn peak() -> usize {
    PEAK.load(Relaxed).saturating_sub(EXCLUDED.load(Relaxed))
}

/// Resets the peak to the live memory, and returns the old peak.
pub fn reset_peak() -> usize {
    PEAK.swap(LIVE.load(Relaxed), Relaxed).saturating_sub(EXCLUDED.load(Relaxed))
}
