//! Ring algorithms over two connections: to the next and from the previous member.
//!
//! Each of them is a *pass*: a member sends its *head* into the ring, then forwards the values that arrive,
//! combined with its own values if the pass requires it. Values are forwarded as soon as they are combined,
//! in portions as they arrive, so reduction, receiving and sending overlap and no step waits for another.
//!
//! With `p` members and `n` bytes a member sends `(p − 1)/p · n` in a reduce-scatter or an all-gather and
//! twice that in an all-reduce, which is the minimum for any algorithm (Patarasuk and Yuan, "Bandwidth
//! optimal all-reduce algorithms for clusters of workstations", 2009, theorem 1). The order in which a value
//! is reduced depends only on its position and on the ring, and one member computes the final value, so all
//! members get the same bits.

use std::ops::Range;

use autodist_collectives::shard_range;
use bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::communicator::Counters;
use crate::connection::{Connection, Idle};
use crate::error::Result;

/// Maximum bytes per system call: small enough that sends and receives alternate and that received data is
/// still in the core's cache when it is combined. Between 16 KiB and 1 MiB, 64 to 96 KiB were the fastest for
/// 2 and 4 ranks on 2 cores, the ends of that range half as fast (example `bandwidth`).
pub(crate) const PORTION: usize = 96 << 10;

/// One member's part of one collective.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    /// The name of the collective, for error messages.
    operation: &'static str,
    /// The elements this member sends without having received anything.
    head: Piece,
    /// The elements that arrive, in order.
    incoming: Vec<Piece>,
    /// How many of `incoming` are forwarded.
    forwarded: usize,
}

/// Consecutive elements.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    range: Range<usize>,
    /// Whether received values are combined with the member's own, or overwrite them.
    combine: bool,
}

impl Piece {
    fn combined(range: Range<usize>) -> Self {
        Self { range, combine: true }
    }

    fn whole(range: Range<usize>) -> Self {
        Self { range, combine: false }
    }
}

impl Pass {
    /// Afterwards, member `rank` holds shard `rank`, reduced; other shards hold partial results.
    pub(crate) fn reduce_scatter(length: usize, size: usize, rank: usize) -> Self {
        let shard = |behind: usize| shard_range(length, size, (rank + 2 * size - behind) % size);
        Self {
            operation: "reduce-scatter",
            head: Piece::whole(shard(1)),
            incoming: (2..=size).map(|behind| Piece::combined(shard(behind))).collect(),
            forwarded: size - 2,
        }
    }

    /// Member `rank` starts with shard `rank`; afterwards, all members hold all shards.
    pub(crate) fn all_gather(length: usize, size: usize, rank: usize) -> Self {
        Self::all_gather_of(size, rank, |owner| shard_range(length, size, owner))
    }

    /// An all-gather with other ranges than shards; they must not overlap.
    pub(crate) fn all_gather_of(size: usize, rank: usize, range: impl Fn(usize) -> Range<usize>) -> Self {
        let piece = |behind: usize| Piece::whole(range((rank + size - behind) % size));
        Self {
            operation: "all-gather",
            head: piece(0),
            incoming: (1..size).map(piece).collect(),
            forwarded: size - 2,
        }
    }

    /// A reduce-scatter whose last arrival is the head of an all-gather.
    pub(crate) fn all_reduce(length: usize, size: usize, rank: usize) -> Self {
        let mut pass = Self::reduce_scatter(length, size, rank);
        pass.incoming.extend(Self::all_gather(length, size, rank).incoming);
        Self { operation: "all-reduce", forwarded: pass.incoming.len() - 1, ..pass }
    }

    /// A chain from `root` around the ring, without the last link.
    pub(crate) fn broadcast(length: usize, size: usize, rank: usize, root: usize) -> Self {
        let hops = (rank + size - root) % size;
        let (head, incoming) = match hops {
            0 => (Piece::whole(0..length), Vec::new()),
            _ => (Piece::whole(0..0), vec![Piece::whole(0..length)]),
        };
        let forwarded = usize::from(hops > 0 && hops + 1 < size);
        Self { operation: "broadcast", head, incoming, forwarded }
    }

    pub(crate) fn operation(&self) -> &'static str {
        self.operation
    }

    /// Runs the pass on `values`. `combine(own, arrived)` reduces into `own`; the caller keeps `scratch`, so
    /// that it is allocated once; `counters` grows by the payload moved, even if the pass fails.
    pub(crate) fn run<E: Pod>(
        &self,
        next: &dyn Connection,
        previous: &dyn Connection,
        values: &mut [E],
        combine: fn(&mut [E], &[E]),
        scratch: &mut Vec<E>,
        counters: &mut Counters,
    ) -> Result<()> {
        let width = size_of::<E>();
        let mut outgoing =
            Cursor::new(std::iter::once(&self.head).chain(&self.incoming[..self.forwarded]), width);
        let mut arriving = Cursor::new(&self.incoming, width);
        // Bytes of the outgoing stream that are ready to send.
        let mut ready = self.head.range.len() * width;
        // Bytes of the element that has arrived in part, at the start of `scratch`.
        let mut partial = 0;
        let mut idle = Idle::default();
        loop {
            let mut moved = 0;
            let mut sendable = outgoing.portion(ready);
            if !sendable.is_empty() {
                let sent = next.try_send(&cast_slice(values)[sendable.clone()], self.operation)?;
                outgoing.advance(sent);
                counters.sent += sent as u64;
                moved += sent;
                sendable = outgoing.portion(ready);
            }
            let place = arriving.portion(usize::MAX);
            if !place.is_empty() {
                let received = if arriving.combines() {
                    if scratch.is_empty() {
                        scratch.resize(PORTION / width, E::zeroed());
                    }
                    let buffer = &mut cast_slice_mut(scratch)[partial..place.len()];
                    let received = previous.try_receive(buffer, self.operation)?;
                    let whole = (partial + received) / width;
                    if whole > 0 {
                        let start = place.start / width;
                        combine(&mut values[start..start + whole], &scratch[..whole]);
                        cast_slice_mut::<E, u8>(scratch).copy_within(whole * width..partial + received, 0);
                    }
                    partial = partial + received - whole * width;
                    arriving.advance(whole * width);
                    ready += whole * width;
                    received
                } else {
                    let received =
                        previous.try_receive(&mut cast_slice_mut(values)[place], self.operation)?;
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

/// A position in a stream of bytes that is stored as several pieces of one buffer.
struct Cursor {
    /// The remaining pieces, in bytes, in reverse order; none is empty.
    ahead: Vec<Piece>,
    /// Bytes of the stream before the position.
    behind: usize,
}

impl Cursor {
    fn new<'a, I>(pieces: I, width: usize) -> Self
    where
        I: IntoIterator<Item = &'a Piece, IntoIter: DoubleEndedIterator>,
    {
        let in_bytes = |piece: &Piece| Piece {
            range: piece.range.start * width..piece.range.end * width,
            combine: piece.combine,
        };
        let pieces = pieces.into_iter().rev().filter(|piece| piece.range.start < piece.range.end);
        Self { ahead: pieces.map(in_bytes).collect(), behind: 0 }
    }

    fn done(&self) -> bool {
        self.ahead.is_empty()
    }

    fn combines(&self) -> bool {
        self.ahead.last().is_some_and(|piece| piece.combine)
    }

    /// The bytes of the buffer that come next: not beyond `limit` in the stream, nor more than a portion.
    fn portion(&self, limit: usize) -> Range<usize> {
        match self.ahead.last() {
            Some(Piece { range, .. }) => {
                range.start..range.start + range.len().min(PORTION).min(limit - self.behind)
            }
            None => 0..0,
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.behind += bytes;
        if let Some(Piece { range, .. }) = self.ahead.last_mut() {
            range.start += bytes;
            if range.start == range.end {
                self.ahead.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::testing::trickle;

    #[test]
    fn elements_may_arrive_in_parts() {
        const SIZE: usize = 3;
        const LENGTH: usize = 100;
        for most in [1, 2, 3, 5, 7, 1000] {
            // Edge i is from member i to the next one.
            let (mut next, mut previous) = (Vec::new(), Vec::new());
            for rank in 0..SIZE {
                let (from, to) = trickle(rank, (rank + 1) % SIZE, most);
                next.push(from);
                previous.push(to);
            }
            previous.rotate_right(1);
            let members = next.into_iter().zip(previous).enumerate().map(|(rank, (next, previous))| {
                std::thread::spawn(move || {
                    let mut values: Vec<f32> =
                        (0..LENGTH).map(|place| (place * SIZE + rank) as f32).collect();
                    let mut counters = Counters::default();
                    let add = |own: &mut [f32], arrived: &[f32]| {
                        own.iter_mut().zip(arrived).for_each(|(own, arrived)| *own += arrived);
                    };
                    Pass::all_reduce(LENGTH, SIZE, rank)
                        .run(&*next, &*previous, &mut values, add, &mut Vec::new(), &mut counters)
                        .unwrap();
                    values
                })
            });
            for member in members.collect::<Vec<_>>() {
                let expected: Vec<_> = (0..LENGTH).map(|place| (9 * place + 3) as f32).collect();
                assert_eq!(member.join().unwrap(), expected, "{most} bytes at a time");
            }
        }
    }

    #[test]
    fn what_is_sent_is_the_head_and_then_what_arrives() {
        let shards = |pieces: &[Piece]| pieces.iter().map(|piece| piece.range.start).collect::<Vec<_>>();
        let pass = Pass::all_reduce(4, 4, 1);
        assert_eq!(pass.head.range, 0..1);
        // Three to combine, the last of which is the member's own shard, and three to keep.
        assert_eq!(shards(&pass.incoming), [3, 2, 1, 0, 3, 2]);
        assert_eq!(pass.forwarded, 5);
        let chain = Pass::broadcast(4, 4, 1, 2);
        assert_eq!(
            (chain.head.range.len(), chain.forwarded),
            (0, 0),
            "the last of the chain sends nothing on"
        );
    }
}
