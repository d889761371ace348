use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;

use crate::door::Door;
use crate::error::{CommunicationError, Result};
use crate::secret::Role;
use crate::supervisor::{Supervisor, Warn};
use crate::switch::Switch;

/// Where the ranks of one job find each other, run by the process that starts them (or by rank 0 beside its own
/// work). It is the ranks' [`Supervisor`] too, for as long as it lives.
pub struct Rendezvous {
    address: SocketAddr,
    supervisor: Supervisor,
}

impl Rendezvous {
    /// Listens at `address` (port 0 takes a free one) for the `world` ranks that know `token`, on a thread of
    /// its own, until all have come. Nothing is said of strangers.
    ///
    /// # Errors
    /// [`CommunicationError::AddressInUse`] naming the address.
    pub fn bind(address: SocketAddr, world: usize, token: &str) -> Result<Self> {
        Self::bind_with(address, world, token, None, |_| {})
    }

    /// As [`Rendezvous::bind`]; the ranks reach each other through `switch`, if there is one, and `warn` hears of
    /// everybody who tried to come in, here or at a rank, and does not know the token.
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

    /// Where it listens.
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
