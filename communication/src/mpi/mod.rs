//! Ranks as processes of an MPI job: traffic between ranks uses MPI; the control channel to the launcher uses
//! TCP, as always.
//!
//! | file | content |
//! |---|---|
//! | `calls` | the few MPI calls in use, none of which blocks |
//! | `hub` | all streams of this process under one lock, and the thread that advances them |
//! | `transport` | connections over streams |
//!
//! A connection is a stream of messages in each direction, with a tag of its own between the two processes,
//! which the lower rank chooses and sends to the other with the lane's name; so lanes may be opened from
//! several threads and in any order. Messages are sent synchronously (`MPI_Issend`) and a receiver buffers
//! only a few, so the memory of a stream is bounded at both ends. MPI does not report that a peer has closed
//! a stream, so a stream ends with a message that contains the number of messages before it.
//!
//! All calls are made under one lock, for which `MPI_THREAD_SERIALIZED` is enough. None of them blocks. MPI
//! has no descriptor to wait for, so a waiting thread polls, and sleeps in between for a fraction of the time
//! it has waited already.
//!
//! Without the feature `mpi`, the API is the same, and [`Mpi::initialise`] returns an error.

#[cfg(feature = "mpi")]
mod calls;
#[cfg(feature = "mpi")]
mod hub;
#[cfg(feature = "mpi")]
mod transport;

use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::tcp::TcpOptions;

/// The reason why this process cannot use MPI.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    #[error("this autodist was built without MPI")]
    NotBuilt,
    #[error("MPI was already initialised in this process, and it can be only once")]
    Twice,
    #[error("{library} supports only one thread: MPI_THREAD_SERIALIZED is needed")]
    Threads { library: String },
    #[error("MPI says: {0}")]
    Library(String),
    #[error("after {waited_s} s other processes were still communicating over MPI")]
    Unfinished { waited_s: f64 },
}

/// This process's membership in an MPI job. Clones share it.
#[derive(Clone)]
pub struct Mpi {
    #[cfg(feature = "mpi")]
    hub: std::sync::Arc<hub::Hub>,
    /// Has no values without the feature.
    #[cfg(not(feature = "mpi"))]
    none: std::convert::Infallible,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of {} of {}", self.rank(), self.size(), self.library())
    }
}

impl Mpi {
    /// Whether the feature was built in.
    #[must_use]
    pub const fn is_built() -> bool {
        cfg!(feature = "mpi")
    }
}

#[cfg(feature = "mpi")]
impl Mpi {
    /// Joins the job that `mpirun` has started; waits until all its processes do. A process can call it only
    /// once.
    ///
    /// # Errors
    /// A second call; an MPI without support for several threads.
    pub fn initialise() -> Result<Self, MpiError> {
        Ok(Self { hub: std::sync::Arc::new(hub::Hub::new(calls::Calls::initialise()?)) })
    }

    /// This process's number in `MPI_COMM_WORLD`.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.hub.rank
    }

    /// The number of processes of the job.
    #[must_use]
    pub fn size(&self) -> usize {
        self.hub.size
    }

    /// Name and version of the library.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.hub.library
    }

    /// Like [`crate::tcp::join`], but ranks communicate over MPI. Ranks have the numbers of the MPI
    /// processes. A process may join again after its rank has ended, with another token.
    ///
    /// # Errors
    /// As [`crate::tcp::join`]; [`crate::CommunicationError::Mpi`] if no thread can be started.
    pub fn join(&self, options: TcpOptions) -> Result<Endpoint> {
        let TcpOptions { rank, world, timeout, .. } = options;
        // Streams carry an identifier of their launch, which MPI sends unencrypted, so it must not be the
        // token.
        let session = crate::derived_token(&options.token, "mpi session");
        let transport = transport::MpiTransport::open(&self.hub, &session, timeout)?;
        Ok(Endpoint::new(rank, world, Box::new(transport), crate::tcp::attend(&options)?))
    }

    /// Closes all connections of this process, which ends the waits of its threads and of the peers.
    pub fn interrupt(&self) {
        self.hub.interrupt();
    }

    /// Leaves the job, once all processes do. Everything opened over MPI must have been dropped.
    ///
    /// # Errors
    /// [`MpiError::Unfinished`] if other processes do not finalise, or do not receive the data sent to them:
    /// `mpirun` will end the job.
    pub fn finalise(&self) -> Result<(), MpiError> {
        self.hub.finalise()
    }
}

#[cfg(not(feature = "mpi"))]
impl Mpi {
    /// Joins the job that `mpirun` has started.
    ///
    /// # Errors
    /// [`MpiError::NotBuilt`].
    pub fn initialise() -> Result<Self, MpiError> {
        Err(MpiError::NotBuilt)
    }

    /// This process's number in `MPI_COMM_WORLD`.
    #[must_use]
    pub fn rank(&self) -> usize {
        match self.none {}
    }

    /// The number of processes of the job.
    #[must_use]
    pub fn size(&self) -> usize {
        match self.none {}
    }

    /// Name and version of the library.
    #[must_use]
    pub fn library(&self) -> &str {
        match self.none {}
    }

    /// Like [`crate::tcp::join`], but ranks communicate over MPI.
    ///
    /// # Errors
    /// As [`crate::tcp::join`].
    pub fn join(&self, _: TcpOptions) -> Result<Endpoint> {
        match self.none {}
    }

    /// Closes all connections of this process.
    pub fn interrupt(&self) {
        match self.none {}
    }

    /// Leaves the job.
    ///
    /// # Errors
    /// [`MpiError::Unfinished`].
    pub fn finalise(&self) -> Result<(), MpiError> {
        match self.none {}
    }
}
