//! Rank 0's side of a job that a cluster's launcher has started: the processes of all other ranks, waiting
//! for orders.
//!
//! They join a separate rendezvous, which lasts as long as this process, and use its control channel in both
//! directions. The ranks have another rendezvous, a new one for each launch.

use super::orders::{End, Order, Presence, RankEnvironment, Report};
use super::remote::{Ssh, Starter, address_for};
use super::{GRACE, LOOK_AGAIN, LaunchError};
use crate::external::External;
use crate::host;
use crate::hosts::HostEntry;
use autodist_communication::switch::Switch;
use autodist_communication::tcp::Rendezvous;
use autodist_communication::{CommunicationError, ControlEvent, Warn};
use autodist_spec::InputError;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The processes of all ranks but the first (of all ranks with a host file); each starts its rank on an
/// order.
pub struct Agents {
    external: External,
    timeout: Duration,
    /// The deadline for all agents to join.
    deadline: Instant,
    meeting: Mutex<Meeting>,
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the agents of {:?}", self.external)
    }
}

/// A machine of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobMachine {
    /// The host's name; numbered if two hosts have the same name.
    pub name: String,
    pub ranks: Vec<usize>,
    pub processor: String,
    /// Free memory when its first agent joined, bytes.
    pub free_memory: u64,
    /// The union of the cores that its ranks may use.
    pub cores: BTreeSet<usize>,
    /// The visible-GPU settings of its ranks: one entry if all have the same.
    pub visible_gpus: BTreeSet<String>,
}

/// The state of the agents. An agent has number `rank - first` at the rendezvous; `first` is 1 if this
/// process runs rank 0.
struct Meeting {
    first: usize,
    /// The ssh processes of the agents, if we have started them.
    starters: Vec<Starter>,
    /// The name of the ssh program.
    ssh: String,
    rendezvous: Rendezvous,
    here: BTreeSet<usize>,
    /// Agents that have joined at any time.
    came: BTreeSet<usize>,
    /// Whether all agents have been connected at the same time.
    complete: bool,
    present: BTreeMap<usize, Presence>,
    lost: BTreeSet<usize>,
    ended: Vec<(u64, usize, End, String)>,
    launches: u64,
}

impl Agents {
    /// Listens for the agents, which may start before or after, at `requested` unless that is the loopback.
    /// Rejected connections are reported to `warn`.
    ///
    /// # Errors
    /// The port is in use; `requested` is not an address of this machine.
    pub fn open(
        external: &External,
        requested: IpAddr,
        timeout: Duration,
        warn: Warn,
    ) -> Result<Self, LaunchError> {
        let addresses: Vec<SocketAddr> = listening(external, requested)
            .into_iter()
            .map(|address| SocketAddr::new(address, external.port))
            .collect();
        let first = external.first_agent();
        let rendezvous =
            listen_at(&addresses, external.world - first, &external.token, None, warn).map_err(|source| {
                match source {
                    CommunicationError::AddressInUse { .. } => LaunchError::Port { source },
                    source => LaunchError::Rendezvous(source),
                }
            })?;
        let meeting = Meeting {
            first,
            starters: Vec::new(),
            ssh: String::new(),
            rendezvous,
            here: BTreeSet::new(),
            came: BTreeSet::new(),
            complete: false,
            present: BTreeMap::new(),
            lost: BTreeSet::new(),
            ended: Vec::new(),
            launches: 0,
        };
        Ok(Self {
            external: external.clone(),
            timeout,
            deadline: Instant::now() + timeout,
            meeting: Mutex::new(meeting),
        })
    }

    /// Starts an agent for every slot of the hosts.
    ///
    /// # Errors
    /// No free port, or no ssh.
    pub fn open_on(
        hosts: &[HostEntry],
        ssh: &Ssh,
        requested: IpAddr,
        timeout: Duration,
        warn: Warn,
    ) -> Result<Result<Self, LaunchError>, InputError> {
        let world = hosts.iter().map(|host| host.slots).sum();
        let external = External::by_ssh(world, || address_for(hosts))?;
        Ok(Self::open(&external, requested, timeout, warn).and_then(|mut agents| {
            let meeting = agents.meeting.get_mut().unwrap_or_else(PoisonError::into_inner);
            agents.external.port = meeting.rendezvous.address().port();
            meeting.ssh = ssh.command.join(" ");
            let mut first = 0;
            for host in hosts {
                let started = Starter::start(host, first, ssh, &agents.external);
                meeting.starters.push(started.map_err(|error| LaunchError::Host {
                    place: host.place.clone(),
                    ssh: meeting.ssh.clone(),
                    host: host.name.clone(),
                    what: format!("cannot be started ({error})"),
                    output: String::new(),
                })?);
                first += host.slots;
            }
            Ok(agents)
        }))
    }

    #[must_use]
    pub fn external(&self) -> &External {
        &self.external
    }

    /// The machines of the job, in the order of their first ranks. Waits for all agents.
    ///
    /// # Errors
    /// Those of [`super::launch`]: agents that do not join or are lost; `stop` is set.
    pub fn machines(&self, stop: &AtomicBool) -> Result<Vec<JobMachine>, LaunchError> {
        self.gather(stop)?;
        let here = presence(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let meeting = self.meeting();
        let own = (meeting.first > 0).then_some(&here).into_iter().map(|presence| (0, presence));
        let present = own.chain(meeting.present.iter().map(|(rank, presence)| (*rank, presence)));
        Ok(machines(present, self.external.on_one_machine()))
    }

    /// Waits until all agents have joined.
    pub(super) fn gather(&self, stop: &AtomicBool) -> Result<(), LaunchError> {
        let mut meeting = self.meeting();
        while meeting.hear(Duration::ZERO) {}
        while meeting.present.len() + meeting.first < self.external.world && meeting.lost.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Err(LaunchError::Interrupted);
            }
            if Instant::now() >= self.deadline {
                return Err(self.missing(&meeting));
            }
            meeting.look_for_dead()?;
            meeting.hear(LOOK_AGAIN);
        }
        match meeting.lost.first() {
            Some(rank) => Err(LaunchError::AgentLost { rank: *rank }),
            None => Ok(()),
        }
    }

    fn missing(&self, meeting: &Meeting) -> LaunchError {
        let External { launcher, world, host, port, .. } = &self.external;
        let first = meeting.first;
        let absent: Vec<usize> = (first..*world).filter(|rank| !meeting.came.contains(rank)).collect();
        // All agents have joined, but not at the same time.
        let gone = (first..*world).filter(|rank| !meeting.here.contains(rank)).collect();
        let missing = if absent.is_empty() { gone } else { absent };
        let missing: Vec<String> = missing.iter().map(usize::to_string).collect();
        LaunchError::AgentsMissing {
            launcher: *launcher,
            ranks: missing.join(", "),
            address: format!("{host}:{port}"),
            waited_s: self.timeout.as_secs_f64(),
        }
    }

    /// The candidate addresses of a launch's rendezvous, the best first, and the advertised address if it
    /// differs.
    pub(super) fn place(&self, requested: SocketAddr) -> (Vec<SocketAddr>, Option<IpAddr>) {
        let loopback = requested.ip().is_loopback();
        if self.external.on_one_machine() || !(loopback || requested.ip().is_unspecified()) {
            return (vec![requested], None);
        }
        // The address used by agents of other machines works for ranks too. This machine's own name may
        // resolve to the loopback here, so the address used by local agents is the last choice.
        let meeting = self.meeting();
        let reached: Vec<IpAddr> = meeting.present.values().map(|presence| presence.reached).collect();
        let from_outside = reached.iter().find(|address| !address.is_loopback()).or(reached.first());
        let address = from_outside.copied().unwrap_or(requested.ip());
        // The address that other machines use may not be an address of this one, because of address
        // translation (NAT).
        let bind = if loopback { vec![address, unspecified(address)] } else { vec![requested.ip()] };
        (bind.into_iter().map(|bind| SocketAddr::new(bind, requested.port())).collect(), Some(address))
    }

    /// Orders all agents to start their ranks; returns the number of the launch.
    pub(super) fn start(
        &self,
        environment: &RankEnvironment,
        salt: &str,
        assignments: &[Value],
    ) -> Result<u64, LaunchError> {
        let mut meeting = self.meeting();
        meeting.launches += 1;
        meeting.ended.clear();
        let launch = meeting.launches;
        let order = Order::Start {
            launch,
            environment: RankEnvironment { token: salt.to_owned(), ..environment.clone() },
            assignments: Cow::Borrowed(assignments),
        };
        self.tell_all(&meeting, &order)?;
        Ok(launch)
    }

    pub(super) fn kill(&self, launch: u64) {
        // An order this short is never rejected.
        let _ = self.tell_all(&self.meeting(), &Order::Kill { launch });
    }

    fn tell_all(&self, meeting: &Meeting, order: &Order<'_>) -> Result<(), LaunchError> {
        let order = serde_json::to_vec(order)
            .map_err(|error| LaunchError::Answer { rank: 0, detail: error.to_string() })?;
        for agent in 0..self.external.world - meeting.first {
            meeting.rendezvous.send(agent, &order)?;
        }
        Ok(())
    }

    /// The ranks of a launch that have ended since the last call, with their output; ranks of lost agents are
    /// always included.
    pub(super) fn ended(&self, launch: u64) -> Vec<(usize, End, String)> {
        let mut meeting = self.meeting();
        while meeting.hear(Duration::ZERO) {}
        let ended = std::mem::take(&mut meeting.ended).into_iter().filter(|(of, ..)| *of == launch);
        let ended = ended.map(|(_, rank, end, output)| (rank, end, output));
        ended.chain(meeting.lost.iter().map(|rank| (*rank, End::AgentLost, String::new()))).collect()
    }

    /// Ends all agents. An agent that has not joined yet would wait in vain, so this waits for it, unless
    /// `stop` is set.
    pub fn dismiss(&self, stop: &AtomicBool) {
        let mut meeting = self.meeting();
        // Agents that we have started end with their ssh processes.
        let on_their_way = meeting.starters.is_empty();
        while on_their_way
            && !meeting.complete
            && Instant::now() < self.deadline
            && !stop.load(Ordering::Relaxed)
        {
            meeting.hear(LOOK_AGAIN);
        }
        meeting.rendezvous.stop_all();
        let until = Instant::now() + GRACE;
        while !meeting.here.is_empty() && Instant::now() < until {
            meeting.hear(LOOK_AGAIN);
        }
        let until = if meeting.complete { Instant::now() + GRACE } else { Instant::now() };
        meeting.starters.iter_mut().for_each(|starter| starter.end(until));
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meeting {
    /// Waits for one event; returns whether there was one.
    fn hear(&mut self, limit: Duration) -> bool {
        match self.rendezvous.events().recv_timeout(limit) {
            Ok(event) => {
                self.take(event);
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                // No agent is connected, so the call returns at once: sleep, so that callers do not spin.
                std::thread::sleep(limit);
                false
            }
        }
    }

    /// An ssh process that has ended before all agents have joined.
    fn look_for_dead(&mut self) -> Result<(), LaunchError> {
        for starter in &mut self.starters {
            if let Some((what, output)) = starter.ended() {
                return Err(LaunchError::Host {
                    place: starter.host.place.clone(),
                    ssh: self.ssh.clone(),
                    host: starter.host.name.clone(),
                    what,
                    output: if output.is_empty() { output } else { format!("; it wrote:\n{output}") },
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, event: ControlEvent) {
        let first = self.first;
        match event {
            ControlEvent::Alive(_) => {}
            ControlEvent::Joined(agent) => {
                self.here.insert(agent + first);
                self.came.insert(agent + first);
            }
            ControlEvent::Left(agent) | ControlEvent::Lost(agent) => {
                self.here.remove(&(agent + first));
                // Before all have joined, another agent may take the place of one that gives up.
                if self.complete {
                    self.lost.insert(agent + first);
                }
            }
            ControlEvent::Message(agent, bytes) => {
                // Agents send messages only after all have joined.
                self.complete = true;
                match serde_json::from_slice(&bytes) {
                    Ok(Report::Present(presence)) => drop(self.present.insert(agent + first, presence)),
                    Ok(Report::Ended { launch, end, output }) => {
                        self.ended.push((launch, agent + first, end, output));
                    }
                    // Another version of this program, which cannot be used.
                    Err(_) => drop(self.lost.insert(agent + first)),
                }
            }
        }
    }
}

/// Groups agents by machine; if `one`, all are on one machine, regardless of their reports.
fn machines<'a>(present: impl Iterator<Item = (usize, &'a Presence)>, one: bool) -> Vec<JobMachine> {
    // Name and boot id of each machine.
    let mut known: Vec<(&str, &str)> = Vec::new();
    let mut machines: Vec<JobMachine> = Vec::new();
    for (rank, presence) in present {
        let identity = (presence.machine.as_str(), presence.boot.as_str());
        let index = known.iter().position(|other| one || *other == identity).unwrap_or_else(|| {
            let namesakes = known.iter().filter(|(name, _)| *name == presence.machine).count();
            known.push(identity);
            machines.push(JobMachine {
                name: match namesakes {
                    0 => presence.machine.clone(),
                    _ => format!("{} ({})", presence.machine, namesakes + 1),
                },
                ranks: Vec::new(),
                processor: presence.processor.clone(),
                free_memory: presence.free_memory,
                cores: BTreeSet::new(),
                visible_gpus: BTreeSet::new(),
            });
            machines.len() - 1
        });
        let machine = &mut machines[index];
        machine.ranks.push(rank);
        machine.cores.extend(&presence.cores);
        machine.visible_gpus.insert(presence.visible_gpus.clone().unwrap_or_default());
    }
    machines
}

/// The description of this process's host, by rank 0 and by agents.
pub(super) fn presence(reached: IpAddr) -> Presence {
    Presence {
        machine: host::name(),
        boot: host::boot(),
        processor: host::processor(),
        free_memory: host::available_memory(),
        reached,
        cores: host::cores(),
        visible_gpus: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
    }
}

/// Opens a rendezvous at the first of `addresses` that belongs to this machine.
pub(super) fn listen_at(
    addresses: &[SocketAddr],
    world: usize,
    token: &str,
    switch: Option<Arc<Switch>>,
    warn: Warn,
) -> Result<Rendezvous, CommunicationError> {
    let mut rest = addresses.iter();
    let mut at = rest.next().copied().unwrap_or_else(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    loop {
        match (Rendezvous::bind_with(at, world, token, switch.clone(), warn), rest.next()) {
            (Err(CommunicationError::Address { source, .. }), Some(next))
                if source.kind() == std::io::ErrorKind::AddrNotAvailable =>
            {
                at = *next;
            }
            (outcome, _) => return outcome,
        }
    }
}

/// The addresses on which rank 0 may listen for agents, the best first: the address that agents use, if it is
/// known, else all addresses of this machine.
fn listening(external: &External, requested: IpAddr) -> Vec<IpAddr> {
    if external.on_one_machine() {
        return vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    }
    if !requested.is_loopback() {
        return vec![requested];
    }
    // A name that cannot be resolved here may be resolvable elsewhere.
    let Ok(known) = addresses(external) else { return vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)] };
    let all = known.first().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |first| unspecified(first.ip()));
    match known.as_slice() {
        // A machine's own name often resolves to its loopback there, but to another address elsewhere.
        [one] if !one.ip().is_loopback() => vec![one.ip(), all],
        _ => vec![all],
    }
}

/// The wildcard address of the same kind (IPv4 or IPv6).
fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The address of rank 0, as resolved on this machine. IPv4 is preferred, because both sides must choose the
/// same kind.
pub(super) fn resolve(external: &External) -> std::io::Result<SocketAddr> {
    let first = addresses(external)?.into_iter().next();
    first.ok_or_else(|| std::io::Error::other("the name has no address"))
}

/// All addresses of rank 0's machine, of the chosen kind.
fn addresses(external: &External) -> std::io::Result<Vec<SocketAddr>> {
    let mut known: Vec<SocketAddr> = Vec::new();
    for address in (external.host.as_str(), external.port).to_socket_addrs()? {
        if !known.contains(&address) {
            known.push(address);
        }
    }
    if known.iter().any(SocketAddr::is_ipv4) {
        known.retain(SocketAddr::is_ipv4);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_apart_by_name_and_start_and_keep_the_launchers_order() {
        let presence = |machine: &str, boot: &str, core: usize| Presence {
            machine: machine.to_owned(),
            boot: boot.to_owned(),
            processor: String::new(),
            free_memory: 1,
            reached: IpAddr::V4(Ipv4Addr::LOCALHOST),
            cores: vec![core],
            visible_gpus: None,
        };
        let present =
            [presence("pc", "a", 0), presence("box", "b", 0), presence("pc", "a", 1), presence("pc", "c", 0)];
        let of = |one: bool| -> Vec<(String, Vec<usize>, usize)> {
            let machines = machines(present.iter().enumerate(), one);
            machines.into_iter().map(|m| (m.name, m.ranks, m.cores.len())).collect()
        };
        let expected = [("pc", vec![0, 2], 2), ("box", vec![1], 1), ("pc (2)", vec![3], 1)];
        assert_eq!(of(false), expected.map(|(name, ranks, cores)| (name.to_owned(), ranks, cores)));
        assert_eq!(of(true), [("pc".to_owned(), vec![0, 1, 2, 3], 2)]);
    }
}
