//! Connections over streams.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::calls::Buffer;
use super::hub::{Hub, Key, Purpose, Trouble};
use crate::connection::Connection;
use crate::endpoint::Transport;
use crate::error::{CommunicationError, Peer, Result};
use crate::poll::nap;

const CONNECT: &str = "connect";

/// The transport of one launch, to all other ranks.
pub(super) struct MpiTransport {
    hub: Arc<Hub>,
    session: String,
    timeout: Duration,
}

impl MpiTransport {
    pub fn open(hub: &Arc<Hub>, session: &str, timeout: Duration) -> Result<Self> {
        hub.begin().map_err(|source| CommunicationError::Io {
            peer: Peer::Rank(hub.rank),
            lane: "mpi".to_owned(),
            operation: "starting a thread",
            source: Arc::new(source),
        })?;
        Ok(Self { hub: hub.clone(), session: session.to_owned(), timeout })
    }

    /// Waits until the peer, a lower rank, opens a stream.
    fn wait_for(&self, peer: usize, purpose: &Purpose, deadline: Instant) -> Result<Key> {
        let began = Instant::now();
        loop {
            let opened = self.hub.opened(peer, purpose);
            if let Some(key) = opened.map_err(|trouble| error(trouble, peer, &purpose.lane, CONNECT))? {
                return Ok(key);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CommunicationError::TimedOut {
                    peer: Peer::Rank(peer),
                    lane: purpose.lane.clone(),
                    operation: CONNECT,
                    waited: self.timeout,
                });
            }
            nap(began.elapsed(), left);
        }
    }
}

impl Transport for MpiTransport {
    /// The lower of two ranks opens the stream. All streams are opened before the first wait, so ranks cannot
    /// deadlock.
    fn connect(&mut self, lane: &str, peers: &[usize]) -> Result<Vec<Arc<dyn Connection>>> {
        let deadline = Instant::now() + self.timeout;
        let purpose = |index: usize| Purpose {
            session: self.session.clone(),
            lane: lane.to_owned(),
            channel: peers[..index].iter().filter(|&&peer| peer == peers[index]).count(),
        };
        let connection = |(peer, key): (usize, Key)| MpiConnection {
            hub: self.hub.clone(),
            key,
            peer: Peer::Rank(peer),
            lane: lane.to_owned(),
            timeout: self.timeout,
            begun: Mutex::default(),
        };
        let mut opened: Vec<Option<MpiConnection>> = Vec::new();
        for (index, &peer) in peers.iter().enumerate() {
            opened.push(if peer > self.hub.rank {
                let key = self.hub.open(peer, purpose(index));
                Some(connection((peer, key.map_err(|trouble| error(trouble, peer, lane, CONNECT))?)))
            } else {
                None
            });
        }
        let mut connections: Vec<Arc<dyn Connection>> = Vec::new();
        for (index, (&peer, opened)) in peers.iter().zip(opened).enumerate() {
            connections.push(Arc::new(match opened {
                Some(connection) => connection,
                None => connection((peer, self.wait_for(peer, &purpose(index), deadline)?)),
            }));
        }
        Ok(connections)
    }
}

impl Drop for MpiTransport {
    fn drop(&mut self) {
        self.hub.end(&self.session);
    }
}

struct MpiConnection {
    hub: Arc<Hub>,
    key: Key,
    peer: Peer,
    lane: String,
    timeout: Duration,
    /// A message that has been consumed in part.
    begun: Mutex<Option<(Buffer, usize)>>,
}

impl MpiConnection {
    fn error(&self, trouble: Trouble, operation: &'static str) -> CommunicationError {
        error(trouble, self.key.0, &self.lane, operation)
    }
}

impl Connection for MpiConnection {
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
        let room = self.hub.room(self.key).map_err(|trouble| self.error(trouble, operation))?;
        let Some(mut buffer) = room else { return Ok(0) };
        let taken = buffer.fill(bytes);
        self.hub.send(self.key, buffer).map_err(|trouble| self.error(trouble, operation))?;
        Ok(taken)
    }
    fn try_receive(&self, buffer: &mut [u8], operation: &'static str) -> Result<usize> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        while filled < buffer.len() {
            let (message, done) = match begun.take() {
                Some(begun) => begun,
                None => match self.hub.receive(self.key) {
                    Ok(Some(message)) => (message, 0),
                    Ok(None) => break,
                    // Data received before the close is returned first.
                    Err(Trouble::Closed) if filled > 0 => break,
                    Err(trouble) => return Err(self.error(trouble, operation)),
                },
            };
            let rest = &message.bytes()[done..];
            let part = rest.len().min(buffer.len() - filled);
            buffer[filled..filled + part].copy_from_slice(&rest[..part]);
            filled += part;
            if part < rest.len() {
                *begun = Some((message, done + part));
            } else {
                self.hub.keep(message);
            }
        }
        Ok(filled)
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn shutdown(&self) {
        self.hub.close(self.key);
    }
}

impl Drop for MpiConnection {
    fn drop(&mut self) {
        self.hub.close(self.key);
    }
}

fn error(trouble: Trouble, peer: usize, lane: &str, operation: &'static str) -> CommunicationError {
    let peer = Peer::Rank(peer);
    match trouble {
        Trouble::Closed => CommunicationError::PeerClosed { peer, lane: lane.to_owned(), operation },
        Trouble::Mpi(detail) => {
            CommunicationError::Mpi { peer, lane: lane.into(), operation, detail: detail.into() }
        }
    }
}
