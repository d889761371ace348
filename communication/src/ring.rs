//! Ring algorithms over two connections: to the next and from the previous member.
//!
//! All of them are one thing: a *pass*. A member puts its *head* into the ring, and then sends on what arrives,
//! combined with its own values where the pass says so. Values are sent on as soon as they are combined, in
//! whatever portions arrive, so reduction, receiving and sending overlap and no step waits for another.
//!
//! With `p` members and `n` bytes a member sends `(p − 1)/p · n` in a reduce-scatter or an all-gather and twice
//! that in an all-reduce, which is the least any algorithm can do (Patarasuk and Yuan, "Bandwidth optimal
//! all-reduce algorithms for clusters of workstations", 2009, theorem 1). The order in which a value is reduced
//! depends on its place and on the ring alone, and one member finishes it, so all members get the same bits.

use std::ops::Range;

use crate::communicator::{Counters, shard_range};
use crate::connection::{Connection, Idle};
use crate::element::{Element, as_bytes, as_bytes_mut};
use crate::error::Result;

/// The most that one system call moves: small enough that what was received is still in the core's cache when
/// it is combined, and that the peer has work meanwhile.
const PORTION: usize = 256 << 10;

/// What one member does in one collective.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    /// For error messages.
    operation: &'static str,
    /// The elements this member sends without having received anything.
    head: Range<usize>,
    /// The elements that arrive, in order.
    incoming: Vec<Incoming>,
    /// How many of `incoming` are sent on.
    forwarded: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Incoming {
    range: Range<usize>,
    /// Combined with the member's own values, or written over them.
    combine: bool,
}

impl Pass {
    /// Ends with member `rank` holding shard `rank`, reduced; other shards hold partial results.
    pub(crate) fn reduce_scatter(length: usize, size: usize, rank: usize) -> Self {
        let shard = |behind: usize| shard_range(length, size, (rank + 2 * size - behind) % size);
        Self {
            operation: "reduce-scatter",
            head: shard(1),
            incoming: (2..=size).map(|behind| Incoming { range: shard(behind), combine: true }).collect(),
            forwarded: size - 2,
        }
    }

    /// Starts with member `rank` holding shard `rank`, ends with all holding all.
    pub(crate) fn all_gather(length: usize, size: usize, rank: usize) -> Self {
        let shard = |behind: usize| shard_range(length, size, (rank + size - behind) % size);
        Self {
            operation: "all-gather",
            head: shard(0),
            incoming: (1..size).map(|behind| Incoming { range: shard(behind), combine: false }).collect(),
            forwarded: size - 2,
        }
    }

    /// A reduce-scatter whose last arrival is the head of an all-gather.
    pub(crate) fn all_reduce(length: usize, size: usize, rank: usize) -> Self {
        let mut pass = Self::reduce_scatter(length, size, rank);
        pass.incoming.extend(Self::all_gather(length, size, rank).incoming);
        Self { operation: "all-reduce", forwarded: pass.incoming.len() - 1, ..pass }
    }

    /// A chain from `root` once round, without the last link.
    pub(crate) fn broadcast(length: usize, size: usize, rank: usize, root: usize) -> Self {
        let hops = (rank + size - root) % size;
        let (head, incoming) = match hops {
            0 => (0..length, Vec::new()),
            _ => (0..0, vec![Incoming { range: 0..length, combine: false }]),
        };
        let forwarded = usize::from(hops > 0 && hops + 1 < size);
        Self { operation: "broadcast", head, incoming, forwarded }
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.operation
    }

    /// Does the pass on `values`. `combine(own, arrived)` reduces into `own`; `scratch` is kept by the caller so
    /// that it is allocated once; `counters` grows by the payload moved, also when the pass fails.
    pub(crate) fn run<E: Element>(
        &self,
        next: &dyn Connection,
        previous: &dyn Connection,
        values: &mut [E],
        combine: fn(&mut [E], &[E]),
        scratch: &mut Vec<E>,
        counters: &mut Counters,
    ) -> Result<()> {
        let width = size_of::<E>();
        let mut outgoing = Cursor::new(
            std::iter::once(&self.head).chain(self.incoming[..self.forwarded].iter().map(|i| &i.range)),
            width,
        );
        let mut arriving = Cursor::new(self.incoming.iter().map(|i| &i.range), width);
        // Bytes of the outgoing stream whose values are ready to go.
        let mut ready = self.head.len() * width;
        // Bytes of the element that has arrived in part, at the start of `scratch`.
        let mut partial = 0;
        let mut idle = Idle::default();
        loop {
            let mut moved = 0;
            let mut sendable = outgoing.portion(ready);
            if !sendable.is_empty() {
                let sent = next.try_send(&as_bytes(values)[sendable.clone()], self.operation)?;
                outgoing.advance(sent);
                counters.sent += sent as u64;
                moved += sent;
                sendable = outgoing.portion(ready);
            }
            let place = arriving.portion(usize::MAX);
            if !place.is_empty() {
                let received = if self.incoming[arriving.index].combine {
                    if scratch.is_empty() {
                        scratch.resize(PORTION / width, E::default());
                    }
                    let buffer = &mut as_bytes_mut(scratch)[partial..place.len()];
                    let received = previous.try_receive(buffer, self.operation)?;
                    let whole = (partial + received) / width;
                    if whole > 0 {
                        let start = place.start / width;
                        combine(&mut values[start..start + whole], &scratch[..whole]);
                        as_bytes_mut(scratch).copy_within(whole * width..partial + received, 0);
                    }
                    partial = partial + received - whole * width;
                    arriving.advance(whole * width);
                    ready += whole * width;
                    received
                } else {
                    let received = previous.try_receive(&mut as_bytes_mut(values)[place], self.operation)?;
                    arriving.advance(received);
                    ready += received;
                    received
                };
                counters.received += received as u64;
                moved += received;
            }
            if outgoing.done() && arriving.done() {
                return Ok(());
            }
            if moved > 0 {
                idle = Idle::default();
            } else {
                let sending = (!sendable.is_empty()).then_some(next);
                let receiving = (!arriving.done()).then_some(previous);
                idle.wait(sending, receiving, self.operation)?;
            }
        }
    }
}

/// A place in a stream of bytes that is laid out as several ranges of one buffer.
struct Cursor {
    /// In bytes; none is empty.
    ranges: Vec<Range<usize>>,
    /// Which element of the list that was given each range is.
    index: usize,
    origin: Vec<usize>,
    at: usize,
    /// Bytes of the stream that lie behind.
    behind: usize,
}

impl Cursor {
    fn new<'a>(ranges: impl Iterator<Item = &'a Range<usize>>, width: usize) -> Self {
        let (origin, ranges): (Vec<_>, Vec<_>) = ranges
            .enumerate()
            .filter(|(_, range)| !range.is_empty())
            .map(|(index, range)| (index, range.start * width..range.end * width))
            .unzip();
        Self { index: origin.first().copied().unwrap_or(0), ranges, origin, at: 0, behind: 0 }
    }

    fn done(&self) -> bool {
        self.at == self.ranges.len()
    }

    /// The bytes of the buffer that come next: not beyond `limit` in the stream, nor more than a portion.
    fn portion(&self, limit: usize) -> Range<usize> {
        match self.ranges.get(self.at) {
            Some(range) => {
                let length = range.len().min(PORTION).min(limit - self.behind);
                range.start..range.start + length
            }
            None => 0..0,
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.behind += bytes;
        if let Some(range) = self.ranges.get_mut(self.at) {
            range.start += bytes;
            if range.start == range.end {
                self.at += 1;
                if let Some(&index) = self.origin.get(self.at) {
                    self.index = index;
                }
            }
        }
    }
}
