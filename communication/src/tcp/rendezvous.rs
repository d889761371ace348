use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;

use crate::door::Door;
use crate::error::{CommunicationError, Result};
use crate::secret::Role;
use crate::supervisor::{Supervisor, Warn};
use crate::switch::Switch;

/// The rendezvous of a job's ranks, run by the process that starts them (or by rank 0 in addition to its own
/// work). It is also the ranks' [`Supervisor`] as long as it lives.
pub struct Rendezvous {
    address: SocketAddr,
    supervisor: Supervisor,
}

impl Rendezvous {
    /// Listens at `address` (port 0 takes a free one) for the `world` ranks that have `token`, on a separate
    /// thread, until all have joined. Rejected connections are not reported.
    ///
    /// # Errors
    /// [`CommunicationError::AddressInUse`] naming the address.
    pub fn bind(address: SocketAddr, world: usize, token: &str) -> Result<Self> {
        Self::bind_with(address, world, token, None, |_| {})
    }

    /// Like [`Rendezvous::bind`]; ranks communicate through `switch`, if given, and `warn` is called for
    /// every connection, here or at a rank, that does not prove the token.
    ///
    /// # Errors
    /// As [`Rendezvous::bind`].
    pub fn bind_with(
        address: SocketAddr,
        world: usize,
        token: &str,
        switch: Option<Arc<Switch>>,
        warn: Warn,
    ) -> Result<Self> {
        let start = || {
            let listener = TcpListener::bind(address)?;
            let bound = listener.local_addr()?;
            let door = Door::new(listener, token, Role::Rendezvous)?;
            let supervisor = Supervisor::start(world, Some(door), Vec::new(), switch, warn)?;
            Ok(Self { address: bound, supervisor })
        };
        start().map_err(|source| CommunicationError::at_address(address, "listening", source))
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Deref for Rendezvous {
    type Target = Supervisor;
    fn deref(&self) -> &Supervisor {
        &self.supervisor
    }
}
