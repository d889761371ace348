//! Ranks that are the processes of an MPI job: what they say to each other goes over MPI, what they and the launcher say
//! over TCP, as ever.
//!
//! | file | says |
//! |---|---|
//! | `calls` | the few MPI calls that are used, none of which waits |
//! | `hub` | all streams of this process behind one guard, and how they begin and end |
//! | `transport` | connections over streams, and the thread that keeps MPI going while nobody waits |
//!
//! A connection is a stream of messages in each direction, with a tag of its own between the two processes, which the
//! lower rank chooses and tells the other together with the lane's name; so lanes may be opened from several threads and
//! in any order. A message is sent synchronously (`MPI_Issend`) and a receiver takes in a few at most, so what a stream
//! keeps in memory is bounded at both ends. MPI tells nobody that a peer has closed: a stream's end is a message that
//! says how many came before it.
//!
//! All calls are made under one guard, for which `MPI_THREAD_SERIALIZED` is enough. None of them waits. MPI has no
//! descriptor to wait for, so whoever waits sleeps for a part of what it has waited already and looks again.
//!
//! Without the feature `mpi` everything here exists, and [`Mpi::initialise`] says that it was not built in.

#[cfg(feature = "mpi")]
mod calls;
#[cfg(feature = "mpi")]
mod hub;
#[cfg(feature = "mpi")]
mod transport;

use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::tcp::TcpOptions;

/// Why this process cannot use MPI.
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

/// This process's part in an MPI job. Clones share it.
#[derive(Clone)]
pub struct Mpi {
    #[cfg(feature = "mpi")]
    hub: std::sync::Arc<hub::Hub>,
    /// There is none without the feature.
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
    /// Takes part in the job that `mpirun` has started; waits until all its processes do. Once in a process's life.
    ///
    /// # Errors
    /// A second call; an MPI that cannot be used by several threads.
    pub fn initialise() -> Result<Self, MpiError> {
        Ok(Self { hub: std::sync::Arc::new(hub::Hub::new(calls::Calls::initialise()?)) })
    }

    /// This process's number in `MPI_COMM_WORLD`.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.hub.rank
    }

    /// Processes of the job.
    #[must_use]
    pub fn size(&self) -> usize {
        self.hub.size
    }

    /// Name and version of the library.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.hub.library
    }

    /// As [`crate::tcp::join`], but what the ranks say to each other goes over MPI. Ranks are numbered as MPI numbers processes.
    /// A process may join again after its rank has ended, with another token.
    ///
    /// # Errors
    /// As [`crate::tcp::join`]; [`crate::CommunicationError::Mpi`] where the system gives no thread.
    pub fn join(&self, options: TcpOptions) -> Result<Endpoint> {
        let TcpOptions { rank, world, timeout, .. } = options;
        // Streams say to which launch they belong, and MPI sends that in the clear: it must not be the token.
        let session = crate::derived_token(&options.token, "mpi session");
        let transport = transport::MpiTransport::open(&self.hub, &session, timeout)?;
        Ok(Endpoint::new(rank, world, Box::new(transport), crate::tcp::attend(&options)?))
    }

    /// Closes all connections of this process: threads that wait for peers notice, and so do the peers.
    pub fn interrupt(&self) {
        self.hub.interrupt();
    }

    /// Leaves the job, once all processes do. Everything opened over MPI must have been dropped.
    ///
    /// # Errors
    /// [`MpiError::Unfinished`] if others do not come, or do not take what was sent to them: `mpirun` will end the job.
    pub fn finalise(&self) -> Result<(), MpiError> {
        self.hub.finalise()
    }
}

#[cfg(not(feature = "mpi"))]
impl Mpi {
    /// Takes part in the job that `mpirun` has started.
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

    /// Processes of the job.
    #[must_use]
    pub fn size(&self) -> usize {
        match self.none {}
    }

    /// Name and version of the library.
    #[must_use]
    pub fn library(&self) -> &str {
        match self.none {}
    }

    /// As [`crate::tcp::join`], but what the ranks say to each other goes over MPI.
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
