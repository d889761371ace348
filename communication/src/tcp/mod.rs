//! Ranks as processes on one machine or several, over TCP.

mod reception;
mod rendezvous;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use rendezvous::Rendezvous;

use crate::connection::{Connection, SocketConnection, send_all};
use crate::control::Control;
use crate::endpoint::{Endpoint, Transport};
use crate::error::{CommunicationError, Peer, Result};
use crate::keep_alive::keep_alive;
use crate::secret::{Role, Secret, nonce};
use crate::wire::{
    Greeting, Hello, Kind, LONGEST_FRAME, LONGEST_HELLO, Purpose, Refusal, parse, parse_challenge,
    receive_frame,
};
use reception::{Caller, Reception, listen};

const RENDEZVOUS: &str = "rendezvous";
const CONNECT: &str = "connect";
/// Time between two attempts to reach a process that does not listen yet, or was too busy.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Time limit for an answer; then the call is repeated.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Maximum number of calls to a listening rank that does not admit this one.
const CALLS: usize = 20;

/// The options that a rank needs to join a job.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    /// The address of the [`Rendezvous`].
    pub rendezvous: SocketAddr,
    /// This rank's number.
    pub rank: usize,
    /// The number of ranks.
    pub world: usize,
    /// The job's secret, the same at all ranks and the rendezvous.
    pub token: String,
    /// Time limit for all ranks to join, and then for waiting for a silent peer. So it must be longer than
    /// any compute between two transfers.
    pub timeout: Duration,
    /// The address of this machine at which the peers reach it. By default the one that leads to the
    /// rendezvous.
    pub bind: Option<IpAddr>,
}

/// Joins the job: returns when all its ranks have.
///
/// The rendezvous may start later than the ranks: it is tried again until the time-out. Only a nonce is sent
/// before the rendezvous has proved the token; the same holds for connections to ranks.
///
/// # Errors
/// [`CommunicationError::Refused`] if no process listens there or the job has no free place for this rank,
/// [`CommunicationError::BadToken`] if it belongs to another job, [`CommunicationError::Unproven`] if the
/// listening process does not answer, [`CommunicationError::Unreachable`] if the address is not reachable,
/// [`CommunicationError::RanksMissing`] when a rank is missing, [`CommunicationError::Stopped`] when the job
/// ends before it begins.
pub fn join(options: TcpOptions) -> Result<Endpoint> {
    let (rank, world) = (options.rank, options.world);
    let (transport, control) = enter(options)?;
    Ok(Endpoint::new(rank, world, Box::new(transport), control))
}

/// Joins the job only for the control channel: other ranks cannot connect to this one, and it opens no port.
///
/// # Errors
/// As [`join`].
pub fn attend(options: &TcpOptions) -> Result<Control> {
    meet(options, |_| Ok(None)).map(|(control, _)| control)
}

/// The transport to the other ranks and the control channel.
fn enter(options: TcpOptions) -> Result<(TcpTransport, Control)> {
    let mut listener: Option<TcpListener> = None;
    let (control, table) = meet(&options, |here| {
        let bind = SocketAddr::new(options.bind.unwrap_or(here), 0);
        let failed = |source| CommunicationError::at_address(bind, "listening", source);
        if let Some(listener) = &listener {
            return listener.local_addr().map(Some).map_err(failed);
        }
        let (opened, address) = listen(bind).map_err(failed)?;
        listener = Some(opened);
        Ok(Some(address))
    })?;
    let TcpOptions { rendezvous, rank, world, token, timeout, .. } = options;
    let failed = |source| CommunicationError::at_address(rendezvous, "starting to listen", source);
    let listener = listener.ok_or_else(|| failed(std::io::ErrorKind::NotConnected.into()))?;
    let reception =
        Reception::open(listener, (rank, world), &token, timeout, control.clone()).map_err(failed)?;
    let secret = Secret::new(&token);
    Ok((TcpTransport { rank, world, secret, timeout, table, reception }, control))
}

/// Joins at the rendezvous. `listens` returns the address at which peers reach this rank, given this
/// machine's address towards the rendezvous. Returns the connection to the launcher and the addresses of all
/// ranks.
fn meet(
    options: &TcpOptions,
    mut listens: impl FnMut(IpAddr) -> Result<Option<SocketAddr>>,
) -> Result<(Control, Vec<SocketAddr>)> {
    let TcpOptions { rendezvous, rank, world, timeout, .. } = *options;
    let deadline = Instant::now() + timeout;
    let secret = Secret::new(&options.token);
    let failed = |source| CommunicationError::at_address(rendezvous, RENDEZVOUS, source);
    let connection = loop {
        let socket = reach(rendezvous, deadline)?;
        keep_alive(&socket).map_err(failed)?;
        let listens = listens(socket.local_addr().map_err(failed)?.ip())?;
        let hello = Hello { world, rank, purpose: Purpose::Join { listens } };
        let connection = SocketConnection::tcp(socket, Peer::Launcher, "control", timeout).map_err(failed)?;
        match introduce(&connection, rendezvous, &secret, Role::Rendezvous, &hello, deadline) {
            Ok(()) => break connection,
            Err(error) if is_an_answer(&error) => return Err(error),
            // The process may have been too busy, or may be one that ends soon.
            Err(error) if Instant::now() + RETRY_AFTER >= deadline => {
                return Err(CommunicationError::Unproven { address: rendezvous, detail: error.to_string() });
            }
            Err(_) => std::thread::sleep(RETRY_AFTER),
        }
    };
    let came = receive_frame(&connection, LONGEST_FRAME, deadline, RENDEZVOUS);
    let table = match came {
        Ok((Kind::Table, payload)) => parse::<Vec<SocketAddr>>(&connection, &payload)?,
        Ok((Kind::Refused, payload)) => {
            return Err(parse::<Refusal>(&connection, &payload)?.into_error(rendezvous));
        }
        Ok((Kind::Stop, _)) => return Err(CommunicationError::Stopped { address: rendezvous }),
        Ok((kind, _)) => {
            return Err(CommunicationError::Protocol {
                peer: Peer::Launcher,
                lane: "control".to_owned(),
                detail: format!("a {kind:?} where the table of ranks belongs"),
            });
        }
        Err(CommunicationError::TimedOut { .. }) => {
            return Err(CommunicationError::RanksMissing { address: rendezvous, waited: timeout });
        }
        Err(error) => return Err(error),
    };
    Ok((Control::new(Arc::new(connection)), table))
}

/// Connects to the rendezvous, again and again until `deadline`.
fn reach(address: SocketAddr, deadline: Instant) -> Result<TcpStream> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(source) => {
                if Instant::now() + RETRY_AFTER >= deadline {
                    return Err(not_reached(Peer::Launcher, address, source));
                }
                std::thread::sleep(RETRY_AFTER);
            }
        }
    }
}

/// The error for a connection that could not be established.
fn not_reached(peer: Peer, address: SocketAddr, source: std::io::Error) -> CommunicationError {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    match source.kind() {
        TimedOut | HostUnreachable | NetworkUnreachable => {
            let reason = match source.kind() {
                TimedOut => "no answer".to_owned(),
                _ => source.to_string(),
            };
            CommunicationError::Unreachable { peer, address, reason }
        }
        _ => CommunicationError::at_address(address, CONNECT, source),
    }
}

/// The caller's side of the handshake: after the listening side has proved the token, proves it too and sends
/// `hello`.
pub(crate) fn introduce(
    connection: &SocketConnection,
    address: SocketAddr,
    secret: &Secret,
    role: Role,
    hello: &Hello,
    deadline: Instant,
) -> Result<()> {
    let deadline = deadline.min(Instant::now() + ANSWER_WITHIN);
    let unexpected = |kind: Kind, due: &str| CommunicationError::Protocol {
        peer: connection.peer(),
        lane: connection.lane().to_owned(),
        detail: format!("a {kind:?} where {due} belongs"),
    };
    let own = nonce().map_err(|source| CommunicationError::at_address(address, "random bytes", source))?;
    send_all(connection, &Greeting::new(own).frame(), CONNECT)?;
    let called = match receive_frame(connection, LONGEST_HELLO, deadline, CONNECT)? {
        (Kind::Challenge, payload) => match parse_challenge(&payload) {
            Some((called, proof)) if secret.holds_challenge(role, &own, &called, &proof) => called,
            Some(_) => return Err(CommunicationError::BadToken { address }),
            None => return Err(unexpected(Kind::Challenge, "one of another length")),
        },
        // The sender is not authenticated, so its text must be sanitised before it is shown.
        (Kind::Refused, payload) => {
            return Err(parse::<Refusal>(connection, &payload)?.made_harmless().into_error(address));
        }
        (kind, _) => return Err(unexpected(kind, "the challenge")),
    };
    send_all(connection, &hello.frame(secret, role, &own, &called), CONNECT)?;
    match receive_frame(connection, LONGEST_HELLO, deadline, CONNECT)? {
        (Kind::Welcome, _) => Ok(()),
        (Kind::Refused, payload) => Err(parse::<Refusal>(connection, &payload)?.into_error(address)),
        (kind, _) => Err(unexpected(kind, "the welcome")),
    }
}

/// Whether an error of [`introduce`] is a definite answer, so that a retry is useless.
fn is_an_answer(error: &CommunicationError) -> bool {
    matches!(error, CommunicationError::BadToken { .. } | CommunicationError::Refused { .. })
}

struct TcpTransport {
    rank: usize,
    world: usize,
    secret: Secret,
    timeout: Duration,
    /// The address of each rank.
    table: Vec<SocketAddr>,
    reception: Reception,
}

impl TcpTransport {
    /// Connects to a rank that accepts connections from this one.
    fn dial(&self, lane: &str, peer: usize, channel: usize, deadline: Instant) -> Result<SocketConnection> {
        let address = *self.table.get(peer).ok_or_else(|| CommunicationError::NotAMember {
            operation: CONNECT,
            lane: lane.to_owned(),
            index: peer,
            members: (0..self.world).collect(),
        })?;
        let to = Peer::Rank(peer);
        let failed = |source: std::io::Error| match source.kind() {
            // The rank listened when it joined, so it has ended.
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => {
                CommunicationError::PeerClosed { peer: to, lane: lane.to_owned(), operation: CONNECT }
            }
            _ => not_reached(to, address, source),
        };
        let purpose = Purpose::Lane { name: lane.to_owned(), channel };
        let hello = Hello { world: self.world, rank: self.rank, purpose };
        let mut calls = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let socket = TcpStream::connect_timeout(&address, left).map_err(failed)?;
            let connection = SocketConnection::tcp(socket, to, lane, self.timeout).map_err(failed)?;
            calls += 1;
            match introduce(&connection, address, &self.secret, Role::Rank(peer), &hello, deadline) {
                Ok(()) => return Ok(connection),
                Err(error) if is_an_answer(&error) || calls == CALLS => return Err(error),
                Err(error) if Instant::now() + RETRY_AFTER >= deadline => return Err(error),
                Err(_) => std::thread::sleep(RETRY_AFTER),
            }
        }
    }

    /// Waits for a connection from another rank.
    fn accept(&self, wanted: &Caller, deadline: Instant) -> Result<SocketConnection> {
        self.reception.wait(wanted, deadline).ok_or_else(|| CommunicationError::TimedOut {
            peer: Peer::Rank(wanted.rank),
            lane: wanted.lane.clone(),
            operation: CONNECT,
            waited: self.timeout,
        })
    }
}

impl Transport for TcpTransport {
    /// The lower of two ranks connects. All connections are started before the first wait, so ranks cannot
    /// deadlock.
    fn connect(&mut self, lane: &str, peers: &[usize]) -> Result<Vec<Arc<dyn Connection>>> {
        let deadline = Instant::now() + self.timeout;
        let channel = |index: usize| peers[..index].iter().filter(|&&peer| peer == peers[index]).count();
        let mut dialled = BTreeMap::new();
        for (index, &peer) in peers.iter().enumerate().filter(|&(_, &peer)| peer > self.rank) {
            dialled.insert(index, self.dial(lane, peer, channel(index), deadline)?);
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
mod tests;
