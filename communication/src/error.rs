use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The result of everything that talks to another rank.
pub type Result<T, E = CommunicationError> = std::result::Result<T, E>;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// A rank of the job, by its number in the world.
    Rank(usize),
    /// The process that runs the rendezvous and the control channel.
    Launcher,
    /// A connection that has not said yet who it is.
    Unidentified(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Rank(rank) => write!(formatter, "rank {rank}"),
            Peer::Launcher => write!(formatter, "the launcher"),
            Peer::Unidentified(address) => write!(formatter, "{address}"),
        }
    }
}

/// Why ranks could not talk. It can be cloned, because the thread that meets an error is often not the one
/// that has to report it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CommunicationError {
    /// The peer is connected, but no byte moved for as long as the endpoint allows.
    #[error("{operation} on `{lane}`: {peer} was silent for {:.1} s", waited.as_secs_f64())]
    TimedOut { peer: Peer, lane: String, operation: &'static str, waited: Duration },

    /// The peer's end of the connection is gone: its process ended, or it gave up after an error of its own.
    #[error("{operation} on `{lane}`: {peer} closed the connection")]
    PeerClosed { peer: Peer, lane: String, operation: &'static str },

    /// Nobody listens at the address, or who listens does not want this rank.
    #[error("{address} refused: {reason}")]
    Refused { address: SocketAddr, reason: String },

    /// The launcher ends the job before all ranks have joined.
    #[error("{address}: the job is being stopped")]
    Stopped { address: SocketAddr },

    /// Who listens at the address does not know this job's token: another job, or a stranger.
    #[error("{address} does not know this job's token: it belongs to another job")]
    BadToken { address: SocketAddr },

    /// Who listens at the address does not take part in the handshake: it is no process of this program, or has no time.
    #[error("the process at {address} has not proved that it knows this job's token: {detail}")]
    Unproven { address: SocketAddr, detail: String },

    /// No way leads to the address at which somebody listens: a firewall, or an address of another network.
    #[error(
        "{peer} cannot be reached at {address}: {reason}; a firewall must let the ranks connect to free ports of each other's machines"
    )]
    Unreachable { peer: Peer, address: SocketAddr, reason: String },

    /// This rank has joined, and others have not.
    #[error("not all ranks have connected to the rendezvous at {address} within {:.1} s", waited.as_secs_f64())]
    RanksMissing { address: SocketAddr, waited: Duration },

    /// Another process listens there already.
    #[error("cannot listen on {address}: the address is in use")]
    AddressInUse { address: SocketAddr },

    /// The peer sent what no version of this crate would send at this point.
    #[error("{peer} on `{lane}` broke the protocol: {detail}")]
    Protocol { peer: Peer, lane: String, detail: String },

    /// A group or a lane that cannot exist.
    #[error("cannot open `{lane}` between ranks {members:?} at rank {rank} of {world}: {reason}")]
    InvalidGroup { lane: String, members: Vec<usize>, rank: usize, world: usize, reason: &'static str },

    /// A peer or root that is not part of the lane.
    #[error("{operation} on `{lane}` names {index}, but the lane has {members:?}")]
    NotAMember { operation: &'static str, lane: String, index: usize, members: Vec<usize> },

    /// An algorithm that is not for this group, or whose connections it was not opened with. Nothing was sent.
    #[error("{operation} on `{lane}` by {way}: {reason}")]
    Unsuitable { lane: String, operation: &'static str, way: Box<str>, reason: Box<str> },

    /// An earlier error left the lane in the middle of a message; it cannot be used any more.
    #[error("{operation} on `{lane}`: the lane failed before and is closed")]
    Broken { lane: String, operation: &'static str },

    /// The operating system said no.
    #[error("{operation} with {peer} on `{lane}`: {source}")]
    Io { peer: Peer, lane: String, operation: &'static str, source: Arc<io::Error> },

    /// The MPI library said no.
    #[error("{operation} with {peer} on `{lane}`: MPI says: {detail}")]
    Mpi { peer: Peer, lane: Box<str>, operation: &'static str, detail: Box<str> },

    /// The operating system said no before there was a peer.
    #[error("{operation} at {address}: {source}")]
    Address { address: SocketAddr, operation: &'static str, source: Arc<io::Error> },
}

impl CommunicationError {
    /// The rank this error accuses, if it accuses one.
    #[must_use]
    pub fn accused_rank(&self) -> Option<usize> {
        match self {
            Self::TimedOut { peer, .. }
            | Self::PeerClosed { peer, .. }
            | Self::Protocol { peer, .. }
            | Self::Mpi { peer, .. }
            | Self::Io { peer, .. } => match peer {
                Peer::Rank(rank) => Some(*rank),
                _ => None,
            },
            _ => None,
        }
    }

    /// Gives an error of the system at `address` its name.
    pub(crate) fn at_address(address: SocketAddr, operation: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse { address },
            io::ErrorKind::ConnectionRefused => {
                Self::Refused { address, reason: "no process listens there".to_owned() }
            }
            _ => Self::Address { address, operation, source: Arc::new(source) },
        }
    }
}
