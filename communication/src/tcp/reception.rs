//! A rank's listener: a separate thread answers connections, so that a caller never waits for the rank's
//! compute, and unauthenticated connections do not delay it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::connection::{Socket, SocketConnection};
use crate::control::Control;
use crate::door::{Arrival, Door};
use crate::error::Peer;
use crate::poll;
use crate::secret::Role;
use crate::wire::{Purpose, Refusal};

/// The key of an accepted connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Caller {
    pub lane: String,
    pub rank: usize,
    pub channel: usize,
}

/// Dropping it closes the listener.
pub(super) struct Reception {
    shared: Arc<Shared>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Connections that have not been taken yet.
    arrived: Mutex<BTreeMap<Caller, SocketConnection>>,
    changed: Condvar,
}

impl Shared {
    fn arrived(&self) -> MutexGuard<'_, BTreeMap<Caller, SocketConnection>> {
        // State under this lock stays consistent if a thread panics.
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens on a free port at this address of the machine.
pub(super) fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Reception {
    /// Accepts connections to `rank` in a job of `world`; reports rejected ones to the launcher over
    /// `control`.
    pub fn open(
        listener: TcpListener,
        (rank, world): (usize, usize),
        token: &str,
        timeout: Duration,
        control: Control,
    ) -> io::Result<Self> {
        let mut door = Door::new(listener, token, Role::Rank(rank))?;
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("reception".to_owned()).spawn(move || {
            loop {
                let mut descriptors = vec![poll::interest(woken.as_fd(), true, false)];
                door.watch(&mut descriptors);
                let Ok(ready) = poll::wait(&mut descriptors, door.due()) else { return };
                if ready[0] {
                    return;
                }
                for arrival in door.tend(&ready[1..]) {
                    of_thread.receive(arrival, world, timeout);
                }
                for stranger in door.strangers() {
                    control.tell_of_stranger(&stranger);
                }
            }
        })?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    /// Waits for a connection until `deadline`.
    pub fn wait(&self, wanted: &Caller, deadline: Instant) -> Option<SocketConnection> {
        let mut arrived = self.shared.arrived();
        loop {
            if let Some(connection) = arrived.remove(wanted) {
                return Some(connection);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(arrived, left);
            arrived = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        // If the pipe is full, the thread is about to wake anyway.
        let _ = Socket::write(&self.wake, &[1]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn receive(&self, arrival: Arrival, world: usize, timeout: Duration) {
        if let Err(refusal) = arrival.hello.check(world) {
            return arrival.refuse(&refusal);
        }
        let rank = arrival.hello.rank;
        let Purpose::Lane { name: lane, channel } = arrival.hello.purpose.clone() else {
            return arrival.refuse(&Refusal("this is a rank, not the rendezvous".to_owned()));
        };
        let connection = arrival.welcome().identified(Peer::Rank(rank), &lane).with_timeout(timeout);
        // A repeated call replaces the first, for which the caller got no answer.
        self.arrived().insert(Caller { lane, rank, channel }, connection);
        self.changed.notify_all();
    }
}
