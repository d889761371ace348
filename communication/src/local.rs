//! Ranks as threads of one process: for tests, and for jobs that fit into one process.
//!
//! Connections are socket pairs, so the layers above see the same partial reads, full buffers and closed
//! connections as over TCP, only sooner.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::connection::{Connection, SocketConnection};
use crate::control::Control;
use crate::endpoint::{Endpoint, Transport};
use crate::error::{CommunicationError, Peer, Result};
use crate::supervisor::Supervisor;

/// The time-out of [`mesh`] for silent peers.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Endpoints for `world` threads, in the order of their ranks, and the supervisor at the other end of their
/// control channels.
///
/// ```
/// use autodist_communication::{ReduceOp, local};
///
/// # fn main() -> Result<(), autodist_communication::CommunicationError> {
/// let (endpoints, _supervisor) = local::mesh(2, local::DEFAULT_TIMEOUT)?;
/// std::thread::scope(|scope| {
///     for mut endpoint in endpoints {
///         scope.spawn(move || {
///             let mut group = endpoint.group("data", &[0, 1])?;
///             let mut values = [endpoint.rank() as f32 + 1.0; 3];
///             group.all_reduce(&mut values, ReduceOp::Sum)?;
///             assert_eq!(values, [3.0; 3]);
///             endpoint.close()
///         });
///     }
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`CommunicationError::Io`] if the process's descriptor limit is too low.
pub fn mesh(world: usize, timeout: Duration) -> Result<(Vec<Endpoint>, Supervisor)> {
    let failed = |source: io::Error| CommunicationError::Io {
        peer: Peer::Launcher,
        lane: "control".to_owned(),
        operation: "opening a socket pair",
        source: Arc::new(source),
    };
    let switchboard = Arc::new(Mutex::new(Switchboard::default()));
    let mut endpoints = Vec::new();
    let mut ends = Vec::new();
    for rank in 0..world {
        let (here, there) = UnixStream::pair().map_err(failed)?;
        let here = SocketConnection::unix(here, Peer::Launcher, "control", timeout).map_err(failed)?;
        let there = SocketConnection::unix(there, Peer::Rank(rank), "control", timeout).map_err(failed)?;
        ends.push((rank, there));
        let transport = LocalTransport { rank, timeout, switchboard: switchboard.clone() };
        endpoints.push(Endpoint::new(rank, world, Box::new(transport), Control::new(Arc::new(here))));
    }
    let supervisor = Supervisor::start(world, None, ends, None, |_| {}).map_err(failed)?;
    Ok((endpoints, supervisor))
}

struct LocalTransport {
    rank: usize,
    timeout: Duration,
    switchboard: Arc<Mutex<Switchboard>>,
}

/// Shared storage in which the first of two ranks that open a lane leaves the peer's end.
#[derive(Default)]
struct Switchboard {
    /// The peers' ends by (lane, rank that takes them, rank that left them), in the order in which they were
    /// left.
    waiting: BTreeMap<(String, usize, usize), VecDeque<UnixStream>>,
    gone: BTreeSet<usize>,
}

impl LocalTransport {
    fn board(&self) -> MutexGuard<'_, Switchboard> {
        self.switchboard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect_one(&self, lane: &str, peer: usize) -> Result<Arc<dyn Connection>> {
        const OPERATION: &str = "connect";
        let failed = |source: io::Error| CommunicationError::Io {
            peer: Peer::Rank(peer),
            lane: lane.to_owned(),
            operation: OPERATION,
            source: Arc::new(source),
        };
        let mut board = self.board();
        let socket =
            match board.waiting.get_mut(&(lane.to_owned(), self.rank, peer)).and_then(VecDeque::pop_front) {
                Some(socket) => socket,
                None if board.gone.contains(&peer) => {
                    return Err(CommunicationError::PeerClosed {
                        peer: Peer::Rank(peer),
                        lane: lane.to_owned(),
                        operation: OPERATION,
                    });
                }
                None => {
                    let (here, there) = UnixStream::pair().map_err(failed)?;
                    board.waiting.entry((lane.to_owned(), peer, self.rank)).or_default().push_back(there);
                    here
                }
            };
        drop(board);
        let connection = SocketConnection::unix(socket, Peer::Rank(peer), lane, self.timeout);
        Ok(Arc::new(connection.map_err(failed)?))
    }
}

impl Transport for LocalTransport {
    fn connect(&mut self, lane: &str, peers: &[usize]) -> Result<Vec<Arc<dyn Connection>>> {
        peers.iter().map(|&peer| self.connect_one(lane, peer)).collect()
    }
}

impl Drop for LocalTransport {
    fn drop(&mut self) {
        let rank = self.rank;
        let mut board = self.board();
        board.gone.insert(rank);
        // Ends that this rank will never take are closed, so that the ranks that left them do not wait for
        // the time-out.
        board.waiting.retain(|&(_, fetches, _), _| fetches != rank);
    }
}
