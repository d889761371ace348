//! Waiting without spinning: for descriptors with `poll(2)`, for connections without descriptors by short
//! sleeps.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::connection::Connection;

/// A nap lasts this fraction of the time waited already, so the delay is at most that fraction,
const NAP_PART: u32 = 4;
/// but at least the cost of a poll and a context switch, and at most a negligible delay.
const SHORTEST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_micros(500);
/// Nanoseconds by which the system may prolong a sleep. Its own 50 us would more than double the shortest
/// nap.
const SLACK: libc::c_ulong = 1_000;

/// Sleeps until one of the connections can go on, or until it is time to try again because one has no
/// descriptor; at most for `left`, when `waited` has passed already. Returns false if `left` has passed and
/// no connection was ready.
pub(crate) fn ready(
    sending: &[&dyn Connection],
    receiving: &[&dyn Connection],
    waited: Duration,
    left: Duration,
) -> io::Result<bool> {
    let to_send = sending.iter().map(|connection| (connection, false, true));
    let all = to_send.chain(receiving.iter().map(|connection| (connection, true, false)));
    let known = all.map(|(connection, readable, writable)| {
        connection.descriptor().map(|descriptor| interest(descriptor, readable, writable))
    });
    match known.collect::<Option<Vec<_>>>() {
        Some(mut descriptors) => wait(&mut descriptors, Some(left)),
        // Connections of one group have the same transport, so there are no other descriptors to poll
        // meanwhile.
        None => {
            nap(waited, left);
            Ok(true)
        }
    }
}

/// Sleeps for a time that depends on the time waited already.
pub(crate) fn nap(waited: Duration, left: Duration) {
    thread_local!(static PUNCTUAL: Cell<bool> = const { Cell::new(false) });
    if !PUNCTUAL.replace(true) {
        // SAFETY: this sets one number of the calling thread. If it fails, naps are longer.
        unsafe {
            libc::prctl(libc::PR_SET_TIMERSLACK, SLACK);
        }
    }
    std::thread::sleep((waited / NAP_PART).clamp(SHORTEST_NAP, LONGEST_NAP).min(left));
}

/// The poll request of one descriptor.
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
                // Rounded up, to avoid a wake-up just before the deadline and a sleep of zero.
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
