//! An agent: in a job that a cluster's launcher has started, a process other than the first, which starts
//! ranks, one after another, on orders of rank 0's launcher.

use super::agents::{presence, resolve};
use super::orders::{End, Order, Report};
use super::runner::{Runner, Running as Rank};
use super::{GRACE, LOOK_AGAIN, RankEnvironment};
use crate::external::External;
use autodist_communication::tcp::{self, TcpOptions};
use autodist_communication::{CommunicationError, Control, ControlOrder, derived_token};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two attempts to resolve the address of rank 0's machine.
const RESOLVE_AGAIN: Duration = Duration::from_millis(500);

/// The reason why an agent ended without an order of its launcher.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(
        "cannot resolve {host}, the name of the launcher's machine: {source}; set MASTER_ADDR to a name or address that all machines can resolve"
    )]
    Unresolved { host: String, source: std::io::Error },
    #[error(
        "cannot reach rank 0 within {waited_s} s ({source}): the same command must run on its machine, MASTER_ADDR and AUTODIST_PORT must be its address, and --timeout sets how long to try"
    )]
    Absent { waited_s: f64, source: Box<CommunicationError> },
    #[error(
        "the process at {address} does not know this job's token, so it belongs to another job: set AUTODIST_PORT to a port that only this job uses, and AUTODIST_TOKEN, if at all, to the same text for all processes"
    )]
    OtherJob { address: SocketAddr },
    #[error(
        "rank 0 is reachable at {address}, but not all of the {world} processes have connected within {waited_s} s"
    )]
    Incomplete { address: SocketAddr, world: usize, waited_s: f64 },
    #[error("the connection to rank 0 at {address} was lost ({source})")]
    Gone { address: SocketAddr, source: Box<CommunicationError> },
    #[error("cannot read a request from rank 0 at {address}, which may be another version: {detail}")]
    Order { address: SocketAddr, detail: String },
    #[error("interrupted")]
    Interrupted,
}

/// An agent process, which waits for orders.
pub struct Agent {
    external: External,
    address: SocketAddr,
    control: Control,
}

/// The rank of the last order.
struct Running {
    launch: u64,
    rank: Rank,
}

impl Agent {
    /// Joins the launcher and waits until all agents have joined; `None` if the launcher ends the job before.
    ///
    /// # Errors
    /// The launcher cannot be reached within `timeout` and a short grace period.
    pub fn join(external: &External, timeout: Duration) -> Result<Option<Self>, AgentError> {
        // If other agents do not join, the launcher gives up first and sends the reason.
        let patience = timeout + GRACE;
        let deadline = Instant::now() + patience;
        let waited_s = patience.as_secs_f64();
        let address = loop {
            match resolve(external) {
                Ok(address) => break address,
                // If machines start together, their names may not be resolvable at first.
                Err(source) if Instant::now() + RESOLVE_AGAIN >= deadline => {
                    return Err(AgentError::Unresolved { host: external.host.clone(), source });
                }
                Err(_) => std::thread::sleep(RESOLVE_AGAIN),
            }
        };
        // No information is sent, and no order accepted, before rank 0 has proved the token.
        let joined = tcp::attend(&TcpOptions {
            rendezvous: address,
            rank: external.rank - external.first_agent(),
            world: external.world - external.first_agent(),
            token: external.token.clone(),
            timeout: deadline.saturating_duration_since(Instant::now()),
            bind: None,
        });
        let control = match joined {
            Ok(control) => control,
            Err(CommunicationError::Stopped { .. }) => return Ok(None),
            Err(CommunicationError::BadToken { address }) => return Err(AgentError::OtherJob { address }),
            Err(CommunicationError::RanksMissing { .. }) => {
                return Err(AgentError::Incomplete { address, world: external.world, waited_s });
            }
            Err(source @ CommunicationError::PeerClosed { .. }) => {
                return Err(AgentError::Gone { address, source: source.into() });
            }
            Err(source) => return Err(AgentError::Absent { waited_s, source: source.into() }),
        };
        let agent = Self { external: external.clone(), address, control };
        agent.report(&Report::Present(presence(address.ip())))?;
        Ok(Some(agent))
    }

    /// Starts ranks by `runner`, one after another, until the launcher ends the job.
    ///
    /// # Errors
    /// The launcher has disconnected; `stop` is set. All ranks have ended in any case.
    pub fn work(self, runner: &Runner, stop: &AtomicBool) -> Result<(), AgentError> {
        let mut running: Option<Running> = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(AgentError::Interrupted);
            }
            let gone = |source: CommunicationError| AgentError::Gone {
                address: self.address,
                source: source.into(),
            };
            match self.control.receive(LOOK_AGAIN).map_err(gone)? {
                None => {}
                Some(ControlOrder::Message(order)) => self.obey(&order, runner, &mut running)?,
                Some(ControlOrder::Stop) => break,
            }
            if let Some(Running { launch, rank }) = &mut running
                && let Some(end) = rank.end()
            {
                let output = rank.output();
                self.report(&Report::Ended { launch: *launch, end, output })?;
                running = None;
            }
        }
        drop(running);
        // The launcher may have ended before.
        let _ = self.control.leave();
        Ok(())
    }

    fn obey(&self, order: &[u8], runner: &Runner, running: &mut Option<Running>) -> Result<(), AgentError> {
        let order = serde_json::from_slice(order)
            .map_err(|error| AgentError::Order { address: self.address, detail: error.to_string() })?;
        match order {
            Order::Start { launch, environment, assignments } => {
                // Kills the previous rank if it has not ended.
                *running = None;
                let External { rank, local_rank, .. } = self.external;
                let token = derived_token(&self.external.token, &environment.token);
                let environment = RankEnvironment { rank, local_rank, token, ..environment };
                match runner.start(environment, &assignments) {
                    Ok(rank) => *running = Some(Running { launch, rank }),
                    Err(error) => {
                        let end = End::NotStarted(error.to_string());
                        self.report(&Report::Ended { launch, end, output: String::new() })?;
                    }
                }
            }
            Order::Kill { launch } => {
                // Its end is reported as usual.
                if let Some(running) = running.as_mut().filter(|running| running.launch == launch) {
                    running.rank.kill();
                }
            }
        }
        Ok(())
    }

    fn report(&self, report: &Report) -> Result<(), AgentError> {
        // Our own types have string keys and finite numbers only, so JSON can express all of their values.
        let report = serde_json::to_vec(report).unwrap_or_default();
        let gone =
            |source: CommunicationError| AgentError::Gone { address: self.address, source: source.into() };
        self.control.send(&report).map_err(gone)
    }
}
