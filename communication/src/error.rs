use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The result of operations that communicate with another rank.
pub type Result<T, E = CommunicationError> = std::result::Result<T, E>;

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// A rank of the job, by its number in the world.
    Rank(usize),
    /// The process that runs the rendezvous and the control channel.
    Launcher,
    /// A connection before its handshake.
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

/// Errors of communication. They can be cloned, because the thread that meets an error is often not the one
/// that reports it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CommunicationError {
    /// The peer is connected, but no byte moved for the endpoint's time-out.
    #[error("{operation} on `{lane}`: {peer} was silent for {:.1} s", waited.as_secs_f64())]
    TimedOut { peer: Peer, lane: String, operation: &'static str, waited: Duration },

    /// The peer closed the connection: its process ended, or stopped after an error.
    #[error("{operation} on `{lane}`: {peer} closed the connection")]
    PeerClosed { peer: Peer, lane: String, operation: &'static str },

    /// No process listens at the address, or the listening process rejected this rank.
    #[error("{address} refused: {reason}")]
    Refused { address: SocketAddr, reason: String },

    /// The launcher ends the job before all ranks have joined.
    #[error("{address}: the job is being stopped")]
    Stopped { address: SocketAddr },

    /// The process that listens at the address does not have this job's token: it belongs to another job, or
    /// is not a part of any job.
    #[error("{address} does not know this job's token: it belongs to another job")]
    BadToken { address: SocketAddr },

    /// The process that listens at the address did not answer the handshake: it is another program, or too
    /// busy.
    #[error("the process at {address} has not proved that it knows this job's token: {detail}")]
    Unproven { address: SocketAddr, detail: String },

    /// The address of a listening process is not reachable: a firewall, or an address of another network.
    #[error(
        "{peer} cannot be reached at {address}: {reason}; a firewall must let the ranks connect to free ports of each other's machines"
    )]
    Unreachable { peer: Peer, address: SocketAddr, reason: String },

    /// This rank has joined, but others have not.
    #[error("not all ranks have connected to the rendezvous at {address} within {:.1} s", waited.as_secs_f64())]
    RanksMissing { address: SocketAddr, waited: Duration },

    /// Another process already listens at the address.
    #[error("cannot listen on {address}: the address is in use")]
    AddressInUse { address: SocketAddr },

    /// The peer sent data that no version of this crate sends at this point.
    #[error("{peer} on `{lane}` broke the protocol: {detail}")]
    Protocol { peer: Peer, lane: String, detail: String },

    /// A group or a lane that cannot exist.
    #[error("cannot open `{lane}` between ranks {members:?} at rank {rank} of {world}: {reason}")]
    InvalidGroup { lane: String, members: Vec<usize>, rank: usize, world: usize, reason: &'static str },

    /// The peer or root is not part of the lane.
    #[error("{operation} on `{lane}` names {index}, but the lane has {members:?}")]
    NotAMember { operation: &'static str, lane: String, index: usize, members: Vec<usize> },

    /// The algorithm does not suit this group, or the group was opened without its connections. Nothing was
    /// sent.
    #[error("{operation} on `{lane}` by {way}: {reason}")]
    Unsuitable { lane: String, operation: &'static str, way: Box<str>, reason: Box<str> },

    /// An earlier error left the lane in the middle of a message; it cannot be used any more.
    #[error("{operation} on `{lane}`: the lane failed before and is closed")]
    Broken { lane: String, operation: &'static str },

    /// The operating system returned an error.
    #[error("{operation} with {peer} on `{lane}`: {source}")]
    Io { peer: Peer, lane: String, operation: &'static str, source: Arc<io::Error> },

    /// The MPI library returned an error.
    #[error("{operation} with {peer} on `{lane}`: MPI says: {detail}")]
    Mpi { peer: Peer, lane: Box<str>, operation: &'static str, detail: Box<str> },

    /// The operating system returned an error before there was a peer.
    #[error("{operation} at {address}: {source}")]
    Address { address: SocketAddr, operation: &'static str, source: Arc<io::Error> },
}

impl CommunicationError {
    /// The rank that caused this error, if known.
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

    /// Converts a system error at `address` to the matching variant.
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
