//! The algorithms, each as a sequence of messages that is correct when they are sent one at a time (see
//! [`Builder`]).

use std::ops::Range;

use autodist_spec::{Algorithm, Collective};

use crate::builder::Builder;
use crate::choice::{Unsuitable, suits};
use crate::schedule::{Schedule, shard_range};

/// The maximum number of elements of one message in a tree. Members forward data message by message, so a
/// tree of depth `d` takes `d` messages longer than the data alone. With 128 KiB, a message takes 100 us on a
/// 10 Gbit/s link, a few times the latency of a message, and transfers of one megabyte already overlap.
const CHUNK: usize = 32 << 10;

impl Schedule {
    /// Builds the schedule of `collective` over `size` members on `length` elements by `algorithm`. Empty
    /// messages are left out, so a length below `size` has fewer messages.
    ///
    /// In an all-reduce, one member computes the final value of an element, in an order that depends only on
    /// the schedule, and the others copy it: all members get the same bits, every time.
    ///
    /// # Errors
    /// The reason why the algorithm does not support this collective, or a group of this size.
    pub fn build(
        algorithm: Algorithm,
        collective: Collective,
        length: usize,
        size: usize,
    ) -> Result<Self, Unsuitable> {
        build_chunked(algorithm, collective, length, size, CHUNK)
    }
}

pub(crate) fn build_chunked(
    algorithm: Algorithm,
    collective: Collective,
    length: usize,
    size: usize,
    chunk: usize,
) -> Result<Schedule, Unsuitable> {
    suits(algorithm, collective, size)?;
    let mut builder = Builder::new(length, size);
    match algorithm {
        Algorithm::Ring => grid(&mut builder, collective, length, size, size),
        Algorithm::Hierarchical { inner: columns } | Algorithm::Torus { columns } => {
            grid(&mut builder, collective, length, size, columns as usize);
        }
        Algorithm::HalvingDoubling => halving_doubling(&mut builder, collective, length, size),
        Algorithm::DoubleBinaryTree => double_tree(&mut builder, length, size, chunk),
    }
    Ok(builder.finish())
}

/// Ranges of elements that move together.
type Block = Vec<Range<usize>>;

fn send_block(builder: &mut Builder, from: usize, to: usize, block: &Block, combine: bool) {
    for range in block {
        builder.message(from, to, range.clone(), combine);
    }
}

/// Afterwards, each member holds the reduction of its block.
fn ring_reduce_scatter(builder: &mut Builder, members: &[usize], blocks: &[Block]) {
    let size = members.len();
    for step in 0..size - 1 {
        for place in 0..size {
            let block = &blocks[(place + 2 * size - 1 - step) % size];
            send_block(builder, members[place], members[(place + 1) % size], block, true);
        }
    }
}

/// Each member starts with its block; afterwards, all members hold all blocks.
fn ring_all_gather(builder: &mut Builder, members: &[usize], blocks: &[Block]) {
    let size = members.len();
    for step in 0..size - 1 {
        for place in 0..size {
            let block = &blocks[(place + size - step) % size];
            send_block(builder, members[place], members[(place + 1) % size], block, false);
        }
    }
}

/// Rings of `columns` consecutive members, and rings across the members with the same position in them. One
/// row is a plain ring. A hierarchy and a torus send the same messages; they are for different topologies.
fn grid(builder: &mut Builder, collective: Collective, length: usize, size: usize, columns: usize) {
    let rows = size / columns;
    let row = |row: usize| -> Vec<usize> { (row * columns..(row + 1) * columns).collect() };
    let column = |column: usize| -> Vec<usize> { (0..rows).map(|row| row * columns + column).collect() };
    // For every column, by row, the blocks that its members end up with. An all-reduce can choose contiguous
    // blocks; otherwise the members' shards are fixed, and the shards of a column are not contiguous.
    let shards: Vec<Vec<Block>> = (0..columns)
        .map(|column| {
            let share = shard_range(length, columns, column);
            let shard = |row| match collective {
                Collective::AllReduce => {
                    let part = shard_range(share.len(), rows, row);
                    share.start + part.start..share.start + part.end
                }
                _ => shard_range(length, size, row * columns + column),
            };
            (0..rows).map(|row| vec![shard(row)]).collect()
        })
        .collect();
    let blocks: Vec<Block> = (0..columns)
        .map(|column| match collective {
            Collective::AllReduce => vec![shard_range(length, columns, column)],
            _ => shards[column].concat(),
        })
        .collect();
    if collective != Collective::AllGather {
        (0..rows).for_each(|index| ring_reduce_scatter(builder, &row(index), &blocks));
        (0..columns).for_each(|index| ring_reduce_scatter(builder, &column(index), &shards[index]));
    }
    if collective != Collective::ReduceScatter {
        (0..columns).for_each(|index| ring_all_gather(builder, &column(index), &shards[index]));
        (0..rows).for_each(|index| ring_all_gather(builder, &row(index), &blocks));
    }
}

/// The members that take part in recursive halving and doubling, and those that are folded into a partner.
pub(crate) struct Folding {
    /// Number of pairs at the start of the group; the second member of a pair is folded into the first.
    pub(crate) pairs: usize,
    /// Number of participants, a power of two.
    pub(crate) participants: usize,
}

impl Folding {
    pub(crate) fn of(size: usize) -> Self {
        let participants = 1 << size.ilog2();
        Self { pairs: size - participants, participants }
    }

    pub(crate) fn member(&self, participant: usize) -> usize {
        if participant < self.pairs { 2 * participant } else { participant + self.pairs }
    }

    /// The member's index among the participants; `None` if it is folded into its partner.
    pub(crate) fn participant(&self, member: usize) -> Option<usize> {
        match member {
            member if member >= 2 * self.pairs => Some(member - self.pairs),
            member => member.is_multiple_of(2).then_some(member / 2),
        }
    }

    /// The start of each participant's block, and the end of the last one. In an all-reduce, blocks are as
    /// equal as possible; otherwise they are the shards of a participant and of the neighbour folded into it.
    pub(crate) fn bounds(&self, collective: Collective, length: usize) -> Vec<usize> {
        let size = self.pairs + self.participants;
        let start = |participant| match collective {
            Collective::AllReduce => shard_range(length, self.participants, participant).start,
            _ => shard_range(length, size, self.member(participant)).start,
        };
        (0..self.participants).map(start).chain([length]).collect()
    }
}

fn halving_doubling(builder: &mut Builder, collective: Collective, length: usize, size: usize) {
    let folding = Folding::of(size);
    let count = folding.participants;
    let bounds = folding.bounds(collective, length);
    let shard = |member| shard_range(length, size, member);
    // The blocks of the aligned group of `distance` participants that contains this one.
    let around = |participant: usize, distance: usize| {
        let first = participant / distance * distance;
        bounds[first]..bounds[first + distance]
    };
    let pairs = (0..folding.pairs).map(|pair| (2 * pair, 2 * pair + 1));
    let distances = || (0..count.ilog2()).map(|bit| 1 << bit);
    if collective != Collective::AllGather {
        // Each member of a pair reduces one half, so that folding takes the time of two transfers of half the
        // data.
        let (first, second) = (shard_range(length, 2, 0), shard_range(length, 2, 1));
        for (stays, leaves) in pairs.clone() {
            builder.message(leaves, stays, first.clone(), true);
            builder.message(stays, leaves, second.clone(), true);
            builder.message(leaves, stays, second.clone(), false);
        }
        for distance in distances().rev() {
            for own in 0..count {
                let partner = own ^ distance;
                let elements = around(partner, distance);
                builder.message(folding.member(own), folding.member(partner), elements, true);
            }
        }
    }
    match collective {
        Collective::ReduceScatter => {
            pairs.clone().for_each(|(stays, leaves)| builder.message(stays, leaves, shard(leaves), false));
        }
        Collective::AllGather => {
            pairs.clone().for_each(|(stays, leaves)| builder.message(leaves, stays, shard(leaves), false));
        }
        // Only all-reduce: `suits` has rejected all others.
        _ => {}
    }
    if collective != Collective::ReduceScatter {
        for distance in distances() {
            for own in 0..count {
                let partner = own ^ distance;
                let elements = around(own, distance);
                builder.message(folding.member(own), folding.member(partner), elements, false);
            }
        }
        for (stays, leaves) in pairs {
            let known = match collective {
                Collective::AllGather => shard(leaves),
                _ => length..length,
            };
            builder.message(stays, leaves, 0..known.start, false);
            builder.message(stays, leaves, known.end..length, false);
        }
    }
}

/// The parent of a member in one of the two trees; the root has no parent.
///
/// The first tree is the in-order binary tree over the ranks, in which odd ranks are leaves. The second is
/// its mirror image, or, for an odd number of members, the first one shifted by one rank, so that members
/// that forward much in one tree forward little in the other: no member sends more than four halves.
pub(crate) fn parent(tree: usize, size: usize, member: usize) -> Option<usize> {
    let in_order = |node: usize| {
        if node == 0 {
            return None;
        }
        let low = node & node.wrapping_neg();
        let above = (node ^ low) | (low << 1);
        Some(if above < size { above } else { node ^ low })
    };
    match (tree, size % 2) {
        (0, _) => in_order(member),
        (_, 0) => in_order(size - 1 - member).map(|node| size - 1 - node),
        (_, _) => in_order((member + size - 1) % size).map(|node| (node + 1) % size),
    }
}

/// Every chunk is reduced up to the root, then broadcast down.
fn double_tree(builder: &mut Builder, length: usize, size: usize, chunk: usize) {
    let depth = |tree: usize, member: usize| {
        std::iter::successors(Some(member), |&node| parent(tree, size, node)).count() - 1
    };
    let deepest = (0..2).flat_map(|tree| (0..size).map(move |member| depth(tree, member))).max().unwrap_or(0);
    // (when, from, to, elements, combine). Two members may be each other's parents in the two trees. Messages
    // between them are sent in order, so they must be listed in the order in which they become ready.
    let mut messages = Vec::new();
    for tree in 0..2 {
        let half = shard_range(length, 2, tree);
        let chunks = half.len().div_ceil(chunk);
        for member in 0..size {
            let Some(parent) = parent(tree, size, member) else { continue };
            let depth = depth(tree, member);
            for index in 0..chunks {
                let part = shard_range(half.len(), chunks, index);
                let elements = half.start + part.start..half.start + part.end;
                messages.push((index + deepest - depth, member, parent, elements.clone(), true));
                messages.push((index + deepest + depth, parent, member, elements, false));
            }
        }
    }
    messages.sort_by_key(|(when, ..)| *when);
    for (_, from, to, elements, combine) in messages {
        builder.message(from, to, elements, combine);
    }
}
