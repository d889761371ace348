//! The lowest layer: an ordered stream of bytes to one peer, and waiting for several of them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{CommunicationError, Peer, Result};
use crate::patience::Patience;
use crate::poll;

/// A duplex, ordered, reliable stream of bytes to one peer.
///
/// The methods do not block; [`send_all`], [`receive_exact`] and [`exchange`] do, on any mixture of
/// connections. One thread may send while another receives; two threads must not send (or receive) at once,
/// since their bytes would mix.
pub trait Connection: Send + Sync {
    /// The peer at the other end.
    fn peer(&self) -> Peer;

    /// The lane of this connection, as named in errors.
    fn lane(&self) -> &str;

    /// The time without progress after which the peer counts as lost.
    fn timeout(&self) -> Duration;

    /// Sends as many of `bytes` as possible without blocking, and returns their number; 0 means "not now".
    fn try_send(&self, bytes: &[u8], operation: &'static str) -> Result<usize>;

    /// Fills as much of `buffer` as possible without blocking, and returns the number of bytes; 0 means "not
    /// now". The end of the stream is [`CommunicationError::PeerClosed`].
    fn try_receive(&self, buffer: &mut [u8], operation: &'static str) -> Result<usize>;

    /// The descriptor that becomes ready when `try_send` or `try_receive` can go on; `None` if there is no
    /// descriptor, as under MPI: the caller then sleeps and tries again.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Closes both directions, so that the peer and all threads that wait on this connection notice at once.
    fn shutdown(&self);
}

/// Sends all of `bytes`.
///
/// # Errors
/// [`CommunicationError::TimedOut`] if the peer accepts no bytes for the connection's time-out,
/// [`CommunicationError::PeerClosed`] if it has disconnected.
pub fn send_all(connection: &dyn Connection, mut bytes: &[u8], operation: &'static str) -> Result<()> {
    let mut idle = Idle::default();
    while !bytes.is_empty() {
        match connection.try_send(bytes, operation)? {
            0 => idle.wait(Some(connection), None, operation)?,
            sent => {
                bytes = &bytes[sent..];
                idle = Idle::default();
            }
        }
    }
    Ok(())
}

/// Receives exactly as many bytes as `buffer` holds.
///
/// # Errors
/// As [`send_all`].
pub fn receive_exact(connection: &dyn Connection, buffer: &mut [u8], operation: &'static str) -> Result<()> {
    let mut received = 0;
    let mut idle = Idle::default();
    while received < buffer.len() {
        match connection.try_receive(&mut buffer[received..], operation)? {
            0 => idle.wait(None, Some(connection), operation)?,
            more => {
                received += more;
                idle = Idle::default();
            }
        }
    }
    Ok(())
}

/// Like [`receive_exact`], but all bytes must arrive before `deadline`: single bytes do not extend it.
pub(crate) fn receive_by(
    connection: &dyn Connection,
    buffer: &mut [u8],
    deadline: Instant,
    operation: &'static str,
) -> Result<()> {
    let began = Instant::now();
    let mut received = 0;
    while received < buffer.len() {
        match connection.try_receive(&mut buffer[received..], operation)? {
            0 => {
                let left = deadline.saturating_duration_since(Instant::now());
                let ready = !left.is_zero()
                    && poll::ready(&[], &[connection], began.elapsed(), left).map_err(|source| {
                        CommunicationError::Io {
                            peer: connection.peer(),
                            lane: connection.lane().to_owned(),
                            operation,
                            source: Arc::new(source),
                        }
                    })?;
                if !ready {
                    return Err(CommunicationError::TimedOut {
                        peer: connection.peer(),
                        lane: connection.lane().to_owned(),
                        operation,
                        waited: began.elapsed(),
                    });
                }
            }
            more => received += more,
        }
    }
    Ok(())
}

/// The number of elements to allocate next for a message, of which `come` of `announced` have arrived: first
/// enough for most messages, then at most as many as have arrived. So an announced length uses no memory
/// until the data arrives.
pub(crate) fn next_room(come: usize, announced: usize, element: usize) -> usize {
    const AT_ONCE: usize = 16 << 20;
    announced.min(come + come.max(AT_ONCE / element))
}

/// Sends `outgoing` to `next` while it receives `incoming` from `previous`, so that a ring of such calls
/// cannot deadlock with any sizes. Both may be the same connection: a ring of two.
///
/// # Errors
/// As [`send_all`], naming the peer that failed.
pub fn exchange(
    next: &dyn Connection,
    previous: &dyn Connection,
    outgoing: &[u8],
    incoming: &mut [u8],
    operation: &'static str,
) -> Result<()> {
    let (mut sent, mut received) = (0, 0);
    let mut idle = Idle::default();
    loop {
        let mut moved = 0;
        if sent < outgoing.len() {
            let step = next.try_send(&outgoing[sent..], operation)?;
            sent += step;
            moved += step;
        }
        if received < incoming.len() {
            let step = previous.try_receive(&mut incoming[received..], operation)?;
            received += step;
            moved += step;
        }
        let (sending, receiving) = (sent < outgoing.len(), received < incoming.len());
        if !sending && !receiving {
            return Ok(());
        }
        if moved > 0 {
            idle = Idle::default();
        } else {
            idle.wait(sending.then_some(next), receiving.then_some(previous), operation)?;
        }
    }
}

/// The time without progress; replaced by a new one whenever a byte moves.
#[derive(Default)]
pub(crate) struct Idle {
    patience: Option<Patience>,
}

impl Idle {
    /// Sleeps until `sending` accepts bytes or `receiving` has some, or until it is time to try again. At
    /// least one of them must be given.
    pub(crate) fn wait(
        &mut self,
        sending: Option<&dyn Connection>,
        receiving: Option<&dyn Connection>,
        operation: &'static str,
    ) -> Result<()> {
        self.wait_any(sending.as_slice(), receiving.as_slice(), operation)
    }

    /// Waits until one of several connections is ready.
    pub(crate) fn wait_any(
        &mut self,
        sending: &[&dyn Connection],
        receiving: &[&dyn Connection],
        operation: &'static str,
    ) -> Result<()> {
        // A peer that we receive from is the more likely cause: our sends are blocked only because of it.
        let Some(suspect) = receiving.first().or(sending.first()) else { return Ok(()) };
        let patience = self.patience.get_or_insert_with(|| Patience::new(suspect.timeout()));
        loop {
            let nap = patience.nap();
            if nap.is_zero() {
                return Err(CommunicationError::TimedOut {
                    peer: suspect.peer(),
                    lane: suspect.lane().to_owned(),
                    operation,
                    waited: patience.waited(),
                });
            }
            let ready = poll::ready(sending, receiving, patience.waited(), nap).map_err(|source| {
                CommunicationError::Io {
                    peer: suspect.peer(),
                    lane: suspect.lane().to_owned(),
                    operation,
                    source: Arc::new(source),
                }
            })?;
            patience.count(nap);
            if ready {
                return Ok(());
            }
        }
    }
}

/// The operations of a non-blocking socket that this crate uses.
pub(crate) trait Socket: AsFd + Send + Sync {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn shutdown(&self);
}

impl Socket for TcpStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }
    fn shutdown(&self) {
        // It fails only if the peer has already closed the connection.
        let _ = TcpStream::shutdown(self, Shutdown::Both);
    }
}

impl Socket for UnixStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }
    fn shutdown(&self) {
        let _ = UnixStream::shutdown(self, Shutdown::Both);
    }
}

/// A [`Connection`] over a non-blocking socket: TCP between processes, a socket pair between threads.
pub(crate) struct SocketConnection {
    socket: Box<dyn Socket>,
    peer: Peer,
    lane: String,
    timeout: Duration,
}

impl SocketConnection {
    /// Takes ownership of a socket and makes it non-blocking.
    pub(crate) fn tcp(socket: TcpStream, peer: Peer, lane: &str, timeout: Duration) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self { socket: Box::new(socket), peer, lane: lane.to_owned(), timeout })
    }

    /// Like [`SocketConnection::tcp`], within one machine.
    pub(crate) fn unix(socket: UnixStream, peer: Peer, lane: &str, timeout: Duration) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Box::new(socket), peer, lane: lane.to_owned(), timeout })
    }

    /// The same socket, with the peer that the handshake has identified.
    pub(crate) fn identified(self, peer: Peer, lane: &str) -> Self {
        Self { peer, lane: lane.to_owned(), ..self }
    }

    /// The same socket with another timeout.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The descriptor to wait for.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn moved(&self, outcome: io::Result<usize>, operation: &'static str) -> Result<usize> {
        match outcome {
            Ok(0) => Err(self.closed(operation)),
            Ok(moved) => Ok(moved),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected => Err(self.closed(operation)),
                _ => Err(CommunicationError::Io {
                    peer: self.peer,
                    lane: self.lane.clone(),
                    operation,
                    source: Arc::new(error),
                }),
            },
        }
    }

    fn closed(&self, operation: &'static str) -> CommunicationError {
        CommunicationError::PeerClosed { peer: self.peer, lane: self.lane.clone(), operation }
    }
}

impl Connection for SocketConnection {
    fn peer(&self) -> Peer {
        self.peer
    }
    fn lane(&self) -> &str {
        &self.lane
    }
    fn timeout(&self) -> Duration {
        self.timeout
    }
    fn try_send(&self, bytes: &[u8], operation: &'static str) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.moved(self.socket.write(bytes), operation)
    }
    fn try_receive(&self, buffer: &mut [u8], operation: &'static str) -> Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.moved(self.socket.read(buffer), operation)
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket())
    }
    fn shutdown(&self) {
        self.socket.shutdown();
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A connection that moves few bytes at a time, so that elements arrive in parts.
    struct Trickle {
        inner: SocketConnection,
        most: usize,
    }

    impl Connection for Trickle {
        fn peer(&self) -> Peer {
            self.inner.peer()
        }
        fn lane(&self) -> &str {
            self.inner.lane()
        }
        fn timeout(&self) -> Duration {
            self.inner.timeout()
        }
        fn try_send(&self, bytes: &[u8], operation: &'static str) -> Result<usize> {
            self.inner.try_send(&bytes[..bytes.len().min(self.most)], operation)
        }
        fn try_receive(&self, buffer: &mut [u8], operation: &'static str) -> Result<usize> {
            let most = buffer.len().min(self.most);
            self.inner.try_receive(&mut buffer[..most], operation)
        }
        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            self.inner.descriptor()
        }
        fn shutdown(&self) {
            self.inner.shutdown();
        }
    }

    /// Both ends of a connection between two ranks.
    pub(crate) fn trickle(
        one: usize,
        other: usize,
        most: usize,
    ) -> (Arc<dyn Connection>, Arc<dyn Connection>) {
        let (here, there) = UnixStream::pair().unwrap();
        let end = |socket, peer| -> Arc<dyn Connection> {
            let timeout = Duration::from_secs(10);
            let inner = SocketConnection::unix(socket, Peer::Rank(peer), "data", timeout).unwrap();
            Arc::new(Trickle { inner, most })
        };
        (end(here, other), end(there, one))
    }
}
