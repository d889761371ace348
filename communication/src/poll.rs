//! Waiting for descriptors with `poll(2)`, the one system call this crate makes by itself.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What a caller waits for on one descriptor.
pub(crate) fn interest(descriptor: BorrowedFd<'_>, readable: bool, writable: bool) -> libc::pollfd {
    let events = if readable { libc::POLLIN } else { 0 } | if writable { libc::POLLOUT } else { 0 };
    libc::pollfd { fd: descriptor.as_raw_fd(), events, revents: 0 }
}

/// Sleeps until one of `descriptors` is ready (or broken), at most `timeout`; `None` waits for ever.
/// Returns whether any was ready. The ready ones have `revents != 0`.
pub(crate) fn wait(descriptors: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let milliseconds = match deadline {
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that it never wakes before the deadline to sleep for zero again.
                i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
            }
        };
        // SAFETY: the pointer and the length are those of one live, exclusively borrowed slice.
        let ready =
            unsafe { libc::poll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, milliseconds) };
        if ready >= 0 {
            return Ok(ready > 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
