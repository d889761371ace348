//! Transport between ranks, in four layers, each of which uses only the one below:
//!
//! | layer | here |
//! |---|---|
//! | bytes to one peer | [`Connection`]: TCP ([`tcp`]) or MPI ([`mpi`]) between processes, socket pairs between threads ([`local`]) |
//! | algorithms over connections | rings, and the schedules of `collectives` (private) |
//! | interface of the engine | [`Communicator`] for groups, [`Mailbox`] for pipeline stages |
//! | rendezvous and control | [`Endpoint`], [`tcp::Rendezvous`], [`Control`] and [`Supervisor`] |
//!
//! The crate does not interpret payloads, does not use plans, and does not choose which ranks communicate.
//! Every wait has a time-out and sleeps instead of spinning; every error names the peer, the lane and the
//! operation.
//!
//! Groups may be used by different threads at the same time, since each has its own connections. See
//! [`local::mesh`] for an example.

mod blobs;
mod communicator;
mod connection;
mod control;
mod door;
mod endpoint;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod hostile;
mod keep_alive;
pub mod local;
mod mailbox;
pub mod mpi;
mod patience;
mod poll;
pub mod queue;
mod ring;
mod scheduled;
mod secret;
mod supervisor;
pub mod switch;
pub mod tcp;
mod wire;

pub use autodist_collectives::shard_range;
pub use communicator::{Communicator, Counters, GroupOptions, ReduceOp};
pub use connection::{Connection, exchange, receive_exact, send_all};
pub use control::{Control, ControlEvent, ControlOrder};
pub use endpoint::{Endpoint, Transport};
pub use error::{CommunicationError, Peer, Result};
pub use mailbox::{Mailbox, SendRecord};
pub use patience::Patience;
pub use secret::{derived_token, random_token};
pub use supervisor::{StopHandle, Supervisor, Warn};
