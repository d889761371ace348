//! Ranks that are processes, on one machine or several, over TCP.

mod rendezvous;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use rendezvous::Rendezvous;

use crate::connection::{Connection, SocketConnection};
use crate::control::Control;
use crate::endpoint::{Endpoint, Transport};
use crate::error::{CommunicationError, Peer, Result};
use crate::keep_alive::keep_alive;
use crate::poll;
use crate::wire::{
    Hello, Kind, LONGEST_FRAME, LONGEST_HELLO, Purpose, Refusal, frame_of, parse, receive_frame, send_frame,
};

const RENDEZVOUS: &str = "rendezvous";
/// A stray connection to a rank's listener may hold it up for this long.
const HELLO_WITHIN: Duration = Duration::from_secs(2);
/// Between two attempts to reach a rendezvous that does not listen yet.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// What a rank must know to find the others.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    /// Where the [`Rendezvous`] listens.
    pub rendezvous: SocketAddr,
    /// This rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world: usize,
    /// The job's secret, the same at all ranks and the rendezvous.
    pub token: String,
    /// How long the ranks may take to find each other, and then how long a peer that is waited for may be
    /// silent. So it must be longer than a rank ever computes between two communications.
    pub timeout: Duration,
    /// The address of this machine at which the peers reach it. By default the one that leads to the
    /// rendezvous.
    pub bind: Option<IpAddr>,
}

/// Joins the job: returns when all its ranks have.
///
/// The rendezvous may start later than the ranks: it is tried again until the time-out.
///
/// # Errors
/// [`CommunicationError::Refused`] when nobody listens there or the job has no place for this rank,
/// [`CommunicationError::BadToken`] when it is another job's, [`CommunicationError::TimedOut`] when a rank is
/// missing, [`CommunicationError::Stopped`] when the job ends before it begins.
pub fn join(options: TcpOptions) -> Result<Endpoint> {
    let (rank, world) = (options.rank, options.world);
    let (transport, control) = enter(options)?;
    Ok(Endpoint::new(rank, world, Box::new(transport), control))
}

/// The ways to the other ranks and to the launcher.
fn enter(options: TcpOptions) -> Result<(TcpTransport, Control)> {
    let TcpOptions { rendezvous, rank, world, token, timeout, bind } = options;
    let deadline = Instant::now() + timeout;
    let socket = reach(rendezvous, deadline)?;
    let failed = |operation| move |source| CommunicationError::at_address(rendezvous, operation, source);
    keep_alive(&socket).map_err(failed("rendezvous"))?;
    let bind = match bind {
        Some(bind) => bind,
        None => socket.local_addr().map_err(failed("rendezvous"))?.ip(),
    };
    let bind = SocketAddr::new(bind, 0);
    let listen = || -> std::io::Result<_> {
        let listener = TcpListener::bind(bind)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, listens) =
        listen().map_err(|source| CommunicationError::at_address(bind, "listening", source))?;
    let control = SocketConnection::tcp(socket, Peer::Launcher, "control", timeout)
        .map_err(failed("rendezvous"))?
        .with_timeout(deadline.saturating_duration_since(Instant::now()));
    let hello = Hello::new(&token, world, rank, Purpose::Join { listens });
    send_frame(&control, &frame_of(Kind::Hello, &hello), RENDEZVOUS)?;
    let table = match receive_frame(&control, LONGEST_FRAME, RENDEZVOUS)? {
        (Kind::Table, payload) => parse::<Vec<SocketAddr>>(&control, &payload)?,
        (Kind::Refused, payload) => return Err(parse::<Refusal>(&control, &payload)?.into_error(rendezvous)),
        (Kind::Stop, _) => return Err(CommunicationError::Stopped { address: rendezvous }),
        (kind, _) => {
            return Err(CommunicationError::Protocol {
                peer: Peer::Launcher,
                lane: "control".to_owned(),
                detail: format!("a {kind:?} where the table of ranks belongs"),
            });
        }
    };
    let control = Control::new(Arc::new(control.with_timeout(timeout)));
    let transport =
        TcpTransport { rank, world, token, timeout, listener, listens, table, early: BTreeMap::new() };
    Ok((transport, control))
}

/// Connects to the rendezvous, again and again until `deadline`.
fn reach(address: SocketAddr, deadline: Instant) -> Result<TcpStream> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(source) => {
                if Instant::now() + RETRY_AFTER >= deadline {
                    return Err(CommunicationError::at_address(address, RENDEZVOUS, source));
                }
                std::thread::sleep(RETRY_AFTER);
            }
        }
    }
}

struct TcpTransport {
    rank: usize,
    world: usize,
    token: String,
    timeout: Duration,
    listener: TcpListener,
    listens: SocketAddr,
    /// Where each rank listens.
    table: Vec<SocketAddr>,
    /// Connections that were made to us before we asked for them.
    early: BTreeMap<Caller, SocketConnection>,
}

/// What an accepted connection is for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Caller {
    lane: String,
    rank: usize,
    channel: usize,
}

const CONNECT: &str = "connect";

impl TcpTransport {
    /// Connects to a rank that accepts.
    fn dial(&self, lane: &str, peer: usize, channel: usize) -> Result<SocketConnection> {
        let address = *self.table.get(peer).ok_or_else(|| CommunicationError::NotAMember {
            operation: CONNECT,
            lane: lane.to_owned(),
            index: peer,
            members: (0..self.world).collect(),
        })?;
        let failed = |source: std::io::Error| match source.kind() {
            // It listened when it joined.
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => {
                CommunicationError::PeerClosed {
                    peer: Peer::Rank(peer),
                    lane: lane.to_owned(),
                    operation: CONNECT,
                }
            }
            std::io::ErrorKind::TimedOut => self.timed_out(lane, peer),
            _ => CommunicationError::Io {
                peer: Peer::Rank(peer),
                lane: lane.to_owned(),
                operation: CONNECT,
                source: Arc::new(source),
            },
        };
        let socket = TcpStream::connect_timeout(&address, self.timeout).map_err(failed)?;
        let connection =
            SocketConnection::tcp(socket, Peer::Rank(peer), lane, self.timeout).map_err(failed)?;
        let purpose = Purpose::Lane { name: lane.to_owned(), channel };
        let hello = Hello::new(&self.token, self.world, self.rank, purpose);
        send_frame(&connection, &frame_of(Kind::Hello, &hello), CONNECT)?;
        Ok(connection)
    }

    /// Waits for a rank that dials.
    fn accept(&mut self, wanted: &Caller, deadline: Instant) -> Result<SocketConnection> {
        loop {
            if let Some(connection) = self.early.remove(wanted) {
                return Ok(connection);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut descriptors = [poll::interest(self.listener.as_fd(), true, false)];
            let failed =
                |source| CommunicationError::at_address(self.listens, "accepting connections", source);
            if left.is_zero() || !poll::wait(&mut descriptors, Some(left)).map_err(failed)? {
                return Err(self.timed_out(&wanted.lane, wanted.rank));
            }
            let Ok((socket, address)) = self.listener.accept() else { continue };
            // Whoever cannot say a proper hello is no rank of this job and no reason to fail.
            if let Ok((caller, connection)) = self.welcome(socket, address) {
                self.early.insert(caller, connection);
            }
        }
    }

    /// Asks a caller who it is.
    fn welcome(&self, socket: TcpStream, address: SocketAddr) -> Result<(Caller, SocketConnection)> {
        let connection = SocketConnection::tcp(socket, Peer::Unidentified(address), CONNECT, HELLO_WITHIN)
            .map_err(|source| CommunicationError::at_address(address, CONNECT, source))?;
        let (_, payload) = receive_frame(&connection, LONGEST_HELLO, CONNECT)?;
        let hello: Hello = parse(&connection, &payload)?;
        hello.check(&self.token, self.world).map_err(|refusal| refusal.into_error(address))?;
        match hello.purpose {
            Purpose::Lane { name, channel } => {
                let connection =
                    connection.identified(Peer::Rank(hello.rank), &name).with_timeout(self.timeout);
                Ok((Caller { lane: name, rank: hello.rank, channel }, connection))
            }
            Purpose::Join { .. } => Err(CommunicationError::Refused {
                address,
                reason: "this is a rank, not the rendezvous".to_owned(),
            }),
        }
    }

    fn timed_out(&self, lane: &str, peer: usize) -> CommunicationError {
        CommunicationError::TimedOut {
            peer: Peer::Rank(peer),
            lane: lane.to_owned(),
            operation: CONNECT,
            waited: self.timeout,
        }
    }
}

impl Transport for TcpTransport {
    /// Of two ranks the lower one dials. All dialling is done before any waiting, so nobody waits in a circle.
    fn connect(&mut self, lane: &str, peers: &[usize]) -> Result<Vec<Arc<dyn Connection>>> {
        let deadline = Instant::now() + self.timeout;
        let channel = |index: usize| peers[..index].iter().filter(|&&peer| peer == peers[index]).count();
        let mut dialled = BTreeMap::new();
        for (index, &peer) in peers.iter().enumerate().filter(|&(_, &peer)| peer > self.rank) {
            dialled.insert(index, self.dial(lane, peer, channel(index))?);
        }
        let mut opened: Vec<Arc<dyn Connection>> = Vec::new();
        for (index, &rank) in peers.iter().enumerate() {
            opened.push(Arc::new(match dialled.remove(&index) {
                Some(connection) => connection,
                None => {
                    self.accept(&Caller { lane: lane.to_owned(), rank, channel: channel(index) }, deadline)?
                }
            }));
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{receive_exact, send_all};
    use std::io::{ErrorKind, Read};

    /// Two ranks that have joined.
    fn pair(rendezvous: &Rendezvous) -> [TcpTransport; 2] {
        let ranks = [0, 1].map(|rank| {
            let options = TcpOptions {
                rendezvous: rendezvous.address(),
                rank,
                world: 2,
                token: "secret".to_owned(),
                timeout: Duration::from_secs(10),
                bind: None,
            };
            std::thread::spawn(move || enter(options).unwrap().0)
        });
        ranks.map(|rank| rank.join().unwrap())
    }

    /// A caller that calls itself rank 0 and says this.
    fn call(address: SocketAddr, hello: &Hello) -> TcpStream {
        let socket = TcpStream::connect(address).unwrap();
        let clone = socket.try_clone().unwrap();
        let connection =
            SocketConnection::tcp(clone, Peer::Rank(1), "test", Duration::from_secs(10)).unwrap();
        send_frame(&connection, &frame_of(Kind::Hello, hello), "test").unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    #[test]
    fn a_rank_lets_nobody_in_who_does_not_know_the_token() {
        let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), 2, "secret").unwrap();
        let [mut zero, mut one] = pair(&rendezvous);
        let lane = || Purpose::Lane { name: "data".to_owned(), channel: 0 };
        // They come first, and each claims the place of rank 0.
        let join = Purpose::Join { listens: zero.listens };
        let strangers = [
            Hello::new("guess", 2, 0, lane()),
            Hello::new("", 2, 0, lane()),
            Hello::new("secret but longer", 2, 0, lane()),
            Hello::new("secret", 3, 0, lane()),
            Hello::new("secret", 2, 2, lane()),
            Hello::new("secret", 2, 0, join),
        ]
        .map(|hello| call(one.listens, &hello));
        let dials = std::thread::spawn(move || {
            let connection = zero.connect("data", &[1]).unwrap().remove(0);
            send_all(&*connection, b"it is me", "test").unwrap();
            connection
        });
        let connection = one.connect("data", &[0]).unwrap().remove(0);
        let mut heard = [0; 8];
        receive_exact(&*connection, &mut heard, "test").unwrap();
        assert_eq!(&heard, b"it is me");
        for (index, mut stranger) in strangers.into_iter().enumerate() {
            let end = stranger.read(&mut [0; 8]);
            let closed = match &end {
                Ok(read) => *read == 0,
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            };
            assert!(closed, "stranger {index}: {end:?}");
        }
        dials.join().unwrap();
    }
}
