//! What the engine calls: collectives over one group of ranks.

use std::ops::{Add, Range, Sub};
use std::sync::Arc;

use crate::connection::{Connection, exchange};
use crate::error::{CommunicationError, Result};
use crate::ring::Pass;

/// How values of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum, in the order of the ring; in f32, so it rounds.
    Sum,
    /// The greatest; NaN if any is NaN, so that a bad value is not hidden.
    Max,
}

impl Reduction {
    fn combine(self) -> fn(&mut [f32], &[f32]) {
        match self {
            Reduction::Sum => |own, arrived| {
                for (own, arrived) in own.iter_mut().zip(arrived) {
                    *own += arrived;
                }
            },
            Reduction::Max => |own, arrived| {
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
    /// Bytes handed to the transport.
    pub sent: u64,
    /// Bytes taken from the transport.
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
    /// What was moved since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self { sent: self.sent - earlier.sent, received: self.received - earlier.received }
    }
}

/// The elements of `length` that belong to member `index` of `size`: consecutive, as equal as they can be, the
/// first `length mod size` members having one more.
///
/// ```
/// use autodist_communication::shard_range;
/// assert_eq!([0, 1, 2].map(|index| shard_range(7, 3, index)), [0..3, 3..5, 5..7]);
/// ```
#[must_use]
pub fn shard_range(length: usize, size: usize, index: usize) -> Range<usize> {
    let (share, extra) = (length / size, length % size);
    let start = index * share + index.min(extra);
    start..start + share + usize::from(index < extra)
}

/// Collectives over one group of ranks.
///
/// All members make the same calls in the same order, with the same lengths. Results are the same bits on all
/// members. In a group of one, everything is a no-op.
///
/// # Errors
/// Every collective returns [`CommunicationError::PeerClosed`] as soon as a neighbour is gone and
/// [`CommunicationError::TimedOut`] when a neighbour moves no byte for the endpoint's time-out. After an error
/// the buffer holds anything, the group's connections are closed, so that the other members notice too, and
/// later calls return [`CommunicationError::Broken`].
pub trait Communicator: Send {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// How many members the group has.
    fn size(&self) -> usize;

    /// The members' ranks in the world, in the order of the group.
    fn members(&self) -> &[usize];

    /// Replaces `values` by their reduction over all members. Any length.
    fn all_reduce(&mut self, values: &mut [f32], reduction: Reduction) -> Result<()>;

    /// Reduces in place and keeps one shard: on return `values[range]` is reduced, where `range`, which is
    /// returned, is [`shard_range`] of this member. The rest of `values` holds partial results.
    fn reduce_scatter(&mut self, values: &mut [f32], reduction: Reduction) -> Result<Range<usize>>;

    /// Fills `values`, of which this member holds its [`shard_range`], with the shards of all.
    fn all_gather(&mut self, values: &mut [f32]) -> Result<()>;

    /// Replaces `values` by those of the member with place `root`.
    fn broadcast(&mut self, values: &mut [f32], root: usize) -> Result<()>;

    /// Returns once all members have called it. Moves no payload.
    fn barrier(&mut self) -> Result<()>;

    /// Payload moved by this member since the group was made.
    fn counters(&self) -> Counters;
}

/// [`Communicator`] by ring algorithms over any connections.
pub(crate) struct RingCommunicator {
    lane: String,
    members: Vec<usize>,
    rank: usize,
    /// To the next and from the previous member; none in a group of one. In a group of two they are two as well:
    /// with one for both directions, small all-reduces took twice as long over loopback.
    neighbours: Option<(Arc<dyn Connection>, Arc<dyn Connection>)>,
    scratch: Vec<f32>,
    counters: Counters,
    broken: bool,
}

impl RingCommunicator {
    pub(crate) fn new(
        lane: &str,
        members: &[usize],
        rank: usize,
        neighbours: Option<(Arc<dyn Connection>, Arc<dyn Connection>)>,
    ) -> Self {
        Self {
            lane: lane.to_owned(),
            members: members.to_vec(),
            rank,
            neighbours,
            scratch: Vec::new(),
            counters: Counters::default(),
            broken: false,
        }
    }

    /// Runs a pass, and closes the lane if it fails.
    fn run(&mut self, pass: &Pass, values: &mut [f32], combine: fn(&mut [f32], &[f32])) -> Result<()> {
        let Some((next, previous)) = &self.neighbours else { return Ok(()) };
        if self.broken {
            return Err(CommunicationError::Broken { lane: self.lane.clone(), operation: pass.operation() });
        }
        let outcome = pass.run(&**next, &**previous, values, combine, &mut self.scratch, &mut self.counters);
        self.settle(outcome)
    }

    fn settle(&mut self, outcome: Result<()>) -> Result<()> {
        if outcome.is_err()
            && let Some((next, previous)) = &self.neighbours
        {
            self.broken = true;
            next.shutdown();
            previous.shutdown();
        }
        outcome
    }
}

impl Communicator for RingCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn members(&self) -> &[usize] {
        &self.members
    }

    fn all_reduce(&mut self, values: &mut [f32], reduction: Reduction) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let pass = Pass::all_reduce(values.len(), self.size(), self.rank);
        self.run(&pass, values, reduction.combine())
    }

    fn reduce_scatter(&mut self, values: &mut [f32], reduction: Reduction) -> Result<Range<usize>> {
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
        let Some((next, previous)) = &self.neighbours else { return Ok(()) };
        if self.broken {
            return Err(CommunicationError::Broken { lane: self.lane.clone(), operation: OPERATION });
        }
        // After k rounds this member has heard, through its neighbour, of the k members before it.
        let mut arrived = [0];
        let outcome =
            (1..self.size()).try_for_each(|_| exchange(&**next, &**previous, &[1], &mut arrived, OPERATION));
        self.settle(outcome)
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
