//! One rank's connections to all others.

use autodist_spec::Collective;
use std::collections::BTreeSet;
use std::sync::Arc;

use autodist_collectives::suits;

use crate::communicator::{Communicator, GroupCommunicator, GroupOptions, Links};
use crate::connection::Connection;
use crate::control::Control;
use crate::error::{CommunicationError, Result};
use crate::mailbox::{Mailbox, StreamMailbox};

/// The source of an [`Endpoint`]'s connections.
pub trait Transport: Send {
    /// Connects this rank with each of `peers` on `lane`. All of them make the same call, in any order. Two
    /// ranks that name each other `k` times get `k` connections, in the same order at both.
    ///
    /// # Errors
    /// [`CommunicationError::TimedOut`] when a peer does not make the call in time, and other errors of a
    /// connection between two processes.
    fn connect(&mut self, lane: &str, peers: &[usize]) -> Result<Vec<Arc<dyn Connection>>>;
}

/// A rank's access to all others. Groups and mailboxes opened from it are independent of it and may move to
/// other threads.
pub struct Endpoint {
    rank: usize,
    world: usize,
    transport: Box<dyn Transport>,
    control: Control,
    lanes: BTreeSet<String>,
}

impl Endpoint {
    /// Makes an endpoint over any transport. Use [`crate::tcp::join`] or [`crate::local::mesh`] for those of
    /// this crate.
    #[must_use]
    pub fn new(rank: usize, world: usize, transport: Box<dyn Transport>, control: Control) -> Self {
        Self { rank, world, transport, control, lanes: BTreeSet::new() }
    }

    /// This rank's number in the world.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks of the job.
    #[must_use]
    pub fn world(&self) -> usize {
        self.world
    }

    /// The control channel to the launcher.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Opens a group with connections of its own. All members call it with the same name and the same
    /// members, whose order is the order of the ring. Disjoint groups may share a name; a rank can use a name
    /// only once.
    ///
    /// # Errors
    /// [`CommunicationError::InvalidGroup`] for an invalid list of members, and those of
    /// [`Transport::connect`].
    pub fn group(&mut self, name: &str, members: &[usize]) -> Result<Box<dyn Communicator>> {
        self.group_for(name, members, &GroupOptions::default())
    }

    /// Opens a group with the connections that `options` need in addition to the ring's. All members give the
    /// same options.
    ///
    /// # Errors
    /// Those of [`Endpoint::group`], and [`CommunicationError::Unsuitable`] for an algorithm that this group
    /// cannot run.
    pub fn group_for(
        &mut self,
        name: &str,
        members: &[usize],
        options: &GroupOptions,
    ) -> Result<Box<dyn Communicator>> {
        self.check(name, members)?;
        let place = members.iter().position(|&member| member == self.rank);
        let Some(place) = place else {
            return Err(self.invalid(name, members, "this rank is not among them"));
        };
        let size = members.len();
        for &algorithm in &options.algorithms {
            suits(algorithm, Collective::AllReduce, size).map_err(|unsuitable| {
                CommunicationError::Unsuitable {
                    lane: name.to_owned(),
                    operation: "opening a group",
                    way: algorithm.name().into(),
                    reason: unsuitable.reason.into(),
                }
            })?;
        }
        let mut links = Links::default();
        if size > 1 {
            let (next, previous) = ((place + 1) % size, (place + size - 1) % size);
            let places: Vec<usize> =
                [next, previous].into_iter().chain(options.others(size, place)).collect();
            let peers: Vec<usize> = places.iter().map(|&place| members[place]).collect();
            let mut connections = self.transport.connect(name, &peers)?;
            if size == 2 && place == 1 {
                // One connection for each direction: the first one is from the first member to the second.
                connections.reverse();
            }
            let mut connections = places.into_iter().zip(connections);
            if size == 2 {
                connections.next().into_iter().for_each(|(place, link)| links.insert_to(place, link));
                connections.next().into_iter().for_each(|(place, link)| links.insert_from(place, link));
            }
            connections.for_each(|(place, link)| links.insert(place, link));
        }
        self.lanes.insert(name.to_owned());
        Ok(Box::new(GroupCommunicator::new(name, members, place, options, links)))
    }

    /// Opens tagged send/recv with `peers`. Every peer calls it with the same name and with this rank among
    /// its peers.
    ///
    /// # Errors
    /// Those of [`Endpoint::group`].
    pub fn point_to_point(&mut self, name: &str, peers: &[usize]) -> Result<Box<dyn Mailbox>> {
        self.check(name, peers)?;
        if peers.contains(&self.rank) {
            return Err(self.invalid(name, peers, "a rank needs no lane to itself"));
        }
        let connections = self.transport.connect(name, peers)?;
        self.lanes.insert(name.to_owned());
        let mailbox = StreamMailbox::start(name, peers.iter().copied().zip(connections).collect())?;
        Ok(Box::new(mailbox))
    }

    /// Leaves the job and notifies the launcher, if it still runs, that this rank ends normally. Groups and
    /// mailboxes stay usable.
    ///
    /// # Errors
    /// Those of [`Control::send`], except for a launcher that has disconnected.
    pub fn close(self) -> Result<()> {
        self.control.leave()
    }

    fn check(&self, name: &str, ranks: &[usize]) -> Result<()> {
        let distinct: BTreeSet<_> = ranks.iter().collect();
        let reason = if distinct.len() < ranks.len() {
            "a rank is named twice"
        } else if ranks.iter().any(|&rank| rank >= self.world) {
            "a rank lies outside the world"
        } else if self.lanes.contains(name) {
            "the name is in use"
        } else {
            return Ok(());
        };
        Err(self.invalid(name, ranks, reason))
    }

    fn invalid(&self, name: &str, ranks: &[usize], reason: &'static str) -> CommunicationError {
        CommunicationError::InvalidGroup {
            lane: name.to_owned(),
            members: ranks.to_vec(),
            rank: self.rank,
            world: self.world,
            reason,
        }
    }
}
