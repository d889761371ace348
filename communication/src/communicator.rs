//! Collectives over one group of ranks, the interface of the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Range, Sub};
use std::sync::Arc;

use autodist_collectives::{Schedule, peers, shard_range, suits};
use autodist_spec::{Algorithm, Collective};

use crate::blobs;
use crate::connection::{Connection, exchange};
use crate::error::{CommunicationError, Result};
use crate::ring::Pass;
use crate::scheduled::Part;

/// The operation of a reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum, in the order of the ring; rounded in f32.
    Sum,
    /// The maximum; NaN if any value is NaN, so that a bad value is not hidden.
    Max,
}

impl ReduceOp {
    fn combine(self) -> fn(&mut [f32], &[f32]) {
        match self {
            ReduceOp::Sum => |own, arrived| {
                for (own, arrived) in own.iter_mut().zip(arrived) {
                    *own += arrived;
                }
            },
            ReduceOp::Max => |own, arrived| {
                for (own, &arrived) in own.iter_mut().zip(arrived) {
                    *own = if *own > arrived || own.is_nan() { *own } else { arrived };
                }
            },
        }
    }
}

/// Payload bytes that one rank moved; headers and handshakes do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes passed to the transport.
    pub sent: u64,
    /// Bytes received from the transport.
    pub received: u64,
}

impl Add for Counters {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { sent: self.sent + other.sent, received: self.received + other.received }
    }
}

impl Sub for Counters {
    type Output = Self;
    /// The bytes moved since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self { sent: self.sent - earlier.sent, received: self.received - earlier.received }
    }
}

/// Collectives over one group of ranks.
///
/// All members make the same calls in the same order, with the same lengths. Results are the same bits on all
/// members. In a group of one, everything is a no-op.
///
/// # Errors
/// Every collective returns [`CommunicationError::PeerClosed`] as soon as a neighbour has disconnected and
/// [`CommunicationError::TimedOut`] when a neighbour moves no byte for the endpoint's time-out. After an
/// error, the buffer is undefined and the group's connections are closed, so that the other members fail too;
/// later calls return [`CommunicationError::Broken`].
pub trait Communicator: Send {
    /// This rank's index in the group.
    fn rank(&self) -> usize;

    /// The number of members.
    fn size(&self) -> usize;

    /// The members' ranks in the world, in the order of the group.
    fn members(&self) -> &[usize];

    /// All-reduce: replaces `values`, of any length, by their reduction over all members.
    fn all_reduce(&mut self, values: &mut [f32], reduction: ReduceOp) -> Result<()>;

    /// Reduce-scatter in place, which keeps one shard: on return `values[range]` is reduced, where `range`,
    /// which is returned, is [`shard_range`] of this member. The rest of `values` holds partial results.
    fn reduce_scatter(&mut self, values: &mut [f32], reduction: ReduceOp) -> Result<Range<usize>>;

    /// All-gather: fills `values`, of which this member holds its [`shard_range`], with the shards of all
    /// members.
    fn all_gather(&mut self, values: &mut [f32]) -> Result<()>;

    /// [`Communicator::all_reduce`] by another algorithm than the ring, for which the group was opened
    /// ([`GroupOptions`]); otherwise [`CommunicationError::Unsuitable`], after which the group is as usable
    /// as before. The order of summation differs, so rounding may differ.
    fn all_reduce_by(&mut self, algorithm: Algorithm, values: &mut [f32], reduction: ReduceOp) -> Result<()>;

    /// [`Communicator::reduce_scatter`] by another algorithm.
    fn reduce_scatter_by(
        &mut self,
        algorithm: Algorithm,
        values: &mut [f32],
        reduction: ReduceOp,
    ) -> Result<Range<usize>>;

    /// [`Communicator::all_gather`] by another algorithm.
    fn all_gather_by(&mut self, algorithm: Algorithm, values: &mut [f32]) -> Result<()>;

    /// All-gather of bytes around the ring, ordered by rank in the group. Lengths may differ; they are sent
    /// first, and do not count as payload.
    fn all_gather_bytes(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// All-to-all of bytes: sends `parts[i]` to member `i` and returns the parts for this member, ordered by
    /// rank in the group. Lengths may differ. Needs a connection to every member
    /// ([`GroupOptions::all_to_all`]), which groups of up to three have anyway.
    fn all_to_all_bytes(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>>;

    /// Broadcast: replaces `values` by those of member `root`.
    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<()>;

    /// Returns once all members have called it. Moves no payload.
    fn barrier(&mut self) -> Result<()>;

    /// Payload moved by this member since the group was made.
    fn counters(&self) -> Counters;
}

/// The collectives of a group in addition to rings, which every group supports. More algorithms need more
/// connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// Algorithms for the collectives that take one. All must suit the group.
    pub algorithms: Vec<Algorithm>,
    /// Whether to open the connections for [`Communicator::all_to_all_bytes`].
    pub all_to_all: bool,
}

impl GroupOptions {
    /// The members that the member at `rank` needs connections to, in addition to those of the ring.
    pub(crate) fn others(&self, size: usize, rank: usize) -> BTreeSet<usize> {
        let mut others: BTreeSet<usize> =
            self.algorithms.iter().flat_map(|&algorithm| peers(algorithm, size, rank)).collect();
        if self.all_to_all {
            others.extend(0..size);
        }
        for near in [rank, (rank + 1) % size, (rank + size - 1) % size] {
            others.remove(&near);
        }
        others
    }
}

/// One member's connections, by the index of the peer in the group.
///
/// There is one connection to each of its two neighbours. A group of two also has two connections, one for
/// each direction: with one for both, small all-reduces took twice as long over loopback.
#[derive(Default)]
pub(crate) struct Links {
    to: BTreeMap<usize, Arc<dyn Connection>>,
    from: BTreeMap<usize, Arc<dyn Connection>>,
}

impl Links {
    /// A connection for both directions.
    pub(crate) fn insert(&mut self, place: usize, connection: Arc<dyn Connection>) {
        self.insert_to(place, connection.clone());
        self.insert_from(place, connection);
    }

    pub(crate) fn insert_to(&mut self, place: usize, connection: Arc<dyn Connection>) {
        self.to.insert(place, connection);
    }

    pub(crate) fn insert_from(&mut self, place: usize, connection: Arc<dyn Connection>) {
        self.from.insert(place, connection);
    }

    /// The connection to send on.
    pub(crate) fn to(&self, place: usize) -> Option<&dyn Connection> {
        self.to.get(&place).map(|connection| &**connection)
    }

    /// The connection to receive on.
    pub(crate) fn from(&self, place: usize) -> Option<&dyn Connection> {
        self.from.get(&place).map(|connection| &**connection)
    }

    fn shutdown(&self) {
        self.to.values().chain(self.from.values()).for_each(|connection| connection.shutdown());
    }
}

/// Maximum number of schedules that a group caches. A training step repeats a few lengths; the limit bounds
/// memory for callers whose lengths always change.
const REMEMBERED: usize = 64;

/// [`Communicator`] over any connections.
pub(crate) struct GroupCommunicator {
    lane: String,
    members: Vec<usize>,
    rank: usize,
    options: GroupOptions,
    links: Links,
    parts: BTreeMap<(Algorithm, Collective, usize), Arc<Part>>,
    scratch: Vec<f32>,
    counters: Counters,
    broken: bool,
}

impl GroupCommunicator {
    pub(crate) fn new(
        lane: &str,
        members: &[usize],
        rank: usize,
        options: &GroupOptions,
        links: Links,
    ) -> Self {
        Self {
            lane: lane.to_owned(),
            members: members.to_vec(),
            rank,
            options: options.clone(),
            links,
            parts: BTreeMap::new(),
            scratch: Vec::new(),
            counters: Counters::default(),
            broken: false,
        }
    }

    /// Runs a pass; closes the lane if it fails.
    fn run(&mut self, pass: &Pass, values: &mut [f32], combine: fn(&mut [f32], &[f32])) -> Result<()> {
        let size = self.size();
        self.usable(pass.operation())?;
        let next = self.links.to((self.rank + 1) % size);
        let Some((next, previous)) = next.zip(self.links.from((self.rank + size - 1) % size)) else {
            return Ok(());
        };
        let outcome = pass.run(next, previous, values, combine, &mut self.scratch, &mut self.counters);
        self.settle(outcome)
    }

    /// Runs this member's part of a schedule, like [`GroupCommunicator::run`] for a pass.
    fn run_by(
        &mut self,
        algorithm: Algorithm,
        collective: Collective,
        operation: &'static str,
        values: &mut [f32],
        combine: fn(&mut [f32], &[f32]),
    ) -> Result<()> {
        let size = self.size();
        let refuse = |reason: String| CommunicationError::Unsuitable {
            lane: self.lane.clone(),
            operation,
            way: algorithm.name().into(),
            reason: reason.into(),
        };
        suits(algorithm, collective, size).map_err(|unsuitable| refuse(unsuitable.reason))?;
        // Checks the options, not this member's connections: other members may lack connections, and would
        // wait.
        if !self.options.algorithms.contains(&algorithm) {
            return Err(refuse("the group was not opened for it".to_owned()));
        }
        if size == 1 {
            return Ok(());
        }
        self.usable(operation)?;
        let key = (algorithm, collective, values.len());
        let part = match self.parts.get(&key) {
            Some(part) => part.clone(),
            None => {
                let schedule = Schedule::build(algorithm, collective, values.len(), size)
                    .map_err(|unsuitable| refuse(unsuitable.reason))?;
                if self.parts.len() >= REMEMBERED {
                    self.parts.clear();
                }
                let part = Arc::new(Part::of(schedule, self.rank));
                self.parts.insert(key, part.clone());
                part
            }
        };
        let outcome = part
            .run(&self.links, values, combine, &mut self.scratch, &mut self.counters, operation)
            .and_then(
                |whole| if whole { Ok(()) } else { Err(refuse("its schedule cannot go on".to_owned())) },
            );
        self.settle(outcome)
    }

    fn usable(&self, operation: &'static str) -> Result<()> {
        if self.broken {
            return Err(CommunicationError::Broken { lane: self.lane.clone(), operation });
        }
        Ok(())
    }

    fn settle<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.broken = true;
            self.links.shutdown();
        }
        outcome
    }
}

impl Communicator for GroupCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn members(&self) -> &[usize] {
        &self.members
    }

    fn all_reduce(&mut self, values: &mut [f32], reduction: ReduceOp) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let pass = Pass::all_reduce(values.len(), self.size(), self.rank);
        self.run(&pass, values, reduction.combine())
    }

    fn reduce_scatter(&mut self, values: &mut [f32], reduction: ReduceOp) -> Result<Range<usize>> {
        let own = shard_range(values.len(), self.size(), self.rank);
        if self.size() > 1 {
            let pass = Pass::reduce_scatter(values.len(), self.size(), self.rank);
            self.run(&pass, values, reduction.combine())?;
        }
        Ok(own)
    }

    fn all_gather(&mut self, values: &mut [f32]) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let pass = Pass::all_gather(values.len(), self.size(), self.rank);
        self.run(&pass, values, |_, _| ())
    }

    fn all_reduce_by(&mut self, algorithm: Algorithm, values: &mut [f32], reduction: ReduceOp) -> Result<()> {
        match algorithm {
            Algorithm::Ring => self.all_reduce(values, reduction),
            _ => self.run_by(algorithm, Collective::AllReduce, "all-reduce", values, reduction.combine()),
        }
    }

    fn reduce_scatter_by(
        &mut self,
        algorithm: Algorithm,
        values: &mut [f32],
        reduction: ReduceOp,
    ) -> Result<Range<usize>> {
        if algorithm == Algorithm::Ring {
            return self.reduce_scatter(values, reduction);
        }
        let own = shard_range(values.len(), self.size(), self.rank);
        self.run_by(algorithm, Collective::ReduceScatter, "reduce-scatter", values, reduction.combine())?;
        Ok(own)
    }

    fn all_gather_by(&mut self, algorithm: Algorithm, values: &mut [f32]) -> Result<()> {
        match algorithm {
            Algorithm::Ring => self.all_gather(values),
            _ => self.run_by(algorithm, Collective::AllGather, "all-gather", values, |_, _| ()),
        }
    }

    fn all_gather_bytes(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.usable(blobs::ALL_GATHER)?;
        let outcome = blobs::all_gather(&self.links, self.rank, self.size(), own, &mut self.counters);
        self.settle(outcome)
    }

    fn all_to_all_bytes(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let size = self.size();
        let refuse = |reason: String| CommunicationError::Unsuitable {
            lane: self.lane.clone(),
            operation: blobs::ALL_TO_ALL,
            way: "direct connections".into(),
            reason: reason.into(),
        };
        if parts.len() != size {
            return Err(refuse(format!("{} parts are not one for each of {size} members", parts.len())));
        }
        if size > 3 && !self.options.all_to_all {
            return Err(refuse("the group was not opened for it".to_owned()));
        }
        self.usable(blobs::ALL_TO_ALL)?;
        let outcome = blobs::all_to_all(&self.links, self.rank, parts, &mut self.counters);
        self.settle(outcome)
    }

    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<()> {
        if root >= self.size() {
            return Err(CommunicationError::NotAMember {
                operation: "broadcast",
                lane: self.lane.clone(),
                index: root,
                members: self.members.clone(),
            });
        }
        if self.size() == 1 {
            return Ok(());
        }
        let pass = Pass::broadcast(values.len(), self.size(), self.rank, root);
        self.run(&pass, values, |_, _| ())
    }

    fn barrier(&mut self) -> Result<()> {
        const OPERATION: &str = "barrier";
        let size = self.size();
        self.usable(OPERATION)?;
        let next = self.links.to((self.rank + 1) % size);
        let Some((next, previous)) = next.zip(self.links.from((self.rank + size - 1) % size)) else {
            return Ok(());
        };
        // After k rounds, this member has received a signal that depends on the k members before it.
        let mut arrived = [0];
        let outcome = (1..size).try_for_each(|_| exchange(next, previous, &[1], &mut arrived, OPERATION));
        self.settle(outcome)
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
