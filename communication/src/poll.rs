//! Waiting without spinning: for descriptors with `poll(2)`, for connections without descriptors by short
//! sleeps.

use std::cell::Cell;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;

use crate::connection::Connection;

/// A nap lasts this fraction of the time waited already, so the delay is at most that fraction,
const NAP_PART: u32 = 4;
/// but at least the cost of a poll and a context switch, and at most a negligible delay.
const SHORTEST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_micros(500);
/// Nanoseconds by which the system may prolong a sleep. Its own 50 us would more than double the shortest
/// nap.
const SLACK: u64 = 1_000;

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
        Some(mut descriptors) => Ok(wait(&mut descriptors, Some(left))?.contains(&true)),
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
        be_punctual();
    }
    std::thread::sleep((waited / NAP_PART).clamp(SHORTEST_NAP, LONGEST_NAP).min(left));
}

/// Gives this thread exact timers. If it fails, sleeps are longer.
pub(crate) fn be_punctual() {
    let _ = set_current_timer_slack(NonZeroU64::new(SLACK));
}

/// The poll request of one descriptor.
pub(crate) fn interest(descriptor: BorrowedFd<'_>, readable: bool, writable: bool) -> PollFd<'_> {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, readable);
    events.set(PollFlags::OUT, writable);
    PollFd::from_borrowed_fd(descriptor, events)
}

/// Sleeps until one of `descriptors` is ready (or broken), at most `timeout`; `None` waits for ever. Returns
/// which ones are ready.
pub(crate) fn wait(descriptors: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match event::poll(descriptors, left.as_ref()) {
            Ok(_) => return Ok(descriptors.iter().map(|one| !one.revents().is_empty()).collect()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
