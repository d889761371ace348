//! The algorithms that suit a group, the connections they need and the elements they send.

use std::collections::BTreeSet;
use std::fmt;

use autodist_spec::{Algorithm, Collective};

use crate::algorithms::{Folding, parent};
use crate::schedule::shard_range;

/// The reason why an algorithm does not suit a group or a collective, as a sentence that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsuitable {
    pub reason: String,
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for Unsuitable {}

/// Checks that an algorithm supports a collective in a group of `size`.
///
/// # Errors
/// The reason why it does not.
pub fn suits(algorithm: Algorithm, collective: Collective, size: usize) -> Result<(), Unsuitable> {
    let name = algorithm.name();
    let refuse = |reason| Err(Unsuitable { reason });
    if size == 0 {
        return refuse(format!("{name} needs a group with members"));
    }
    match (algorithm, collective) {
        (_, Collective::AllToAll | Collective::Broadcast | Collective::SendRecv) => {
            refuse(format!("{name} reduces and gathers, so it does no {}", collective.name()))
        }
        (Algorithm::DoubleBinaryTree, Collective::ReduceScatter | Collective::AllGather) => {
            refuse(format!("{name} brings everything to a root, so it is an all-reduce only"))
        }
        (Algorithm::Hierarchical { inner: part } | Algorithm::Torus { columns: part }, _) => {
            match part as usize {
                0 => refuse(format!("{name} needs a number that is not 0")),
                columns if size % columns != 0 => {
                    refuse(format!("{name} needs a group that {columns} divides, not {size}"))
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// The all-reduce algorithms for a group of `size`, the ring first, without those that send the same messages
/// as an earlier one. `nodes` are the nodes of the members, by rank; a hierarchy needs equally many
/// consecutive members on each node.
pub fn candidates(size: usize, nodes: &[usize]) -> Vec<Algorithm> {
    let mut found = vec![Algorithm::Ring];
    if size <= 2 {
        // With two members, every algorithm exchanges halves twice.
        return found;
    }
    found.extend([Algorithm::DoubleBinaryTree, Algorithm::HalvingDoubling]);
    let inner = per_node(&nodes[..size.min(nodes.len())])
        .filter(|&inner| nodes.len() >= size && 1 < inner && inner < size);
    found.extend(inner.map(|inner| Algorithm::Hierarchical { inner: inner as u32 }));
    let shorter = (2..=size.isqrt()).rev().find(|columns| size.is_multiple_of(*columns));
    if let Some(shorter) = shorter {
        let both = BTreeSet::from([shorter, size / shorter]);
        let other = both.into_iter().filter(|columns| Some(*columns) != inner);
        found.extend(other.map(|columns| Algorithm::Torus { columns: columns as u32 }));
    }
    found
}

/// The number of consecutive members per node, if it is the same for all nodes.
fn per_node(nodes: &[usize]) -> Option<usize> {
    let runs: Vec<&[usize]> = nodes.chunk_by(|a, b| a == b).collect();
    let distinct: BTreeSet<usize> = runs.iter().map(|run| run[0]).collect();
    let inner = runs.first()?.len();
    (distinct.len() == runs.len() && runs.iter().all(|run| run.len() == inner)).then_some(inner)
}

/// The members that a member exchanges messages with in any collective by `algorithm`; empty if it does not
/// suit the group.
pub fn peers(algorithm: Algorithm, size: usize, rank: usize) -> BTreeSet<usize> {
    if rank >= size || suits(algorithm, Collective::AllReduce, size).is_err() {
        return BTreeSet::new();
    }
    let mut found: BTreeSet<usize> = match algorithm {
        Algorithm::Ring => BTreeSet::from([(rank + 1) % size, (rank + size - 1) % size]),
        Algorithm::Hierarchical { inner: columns } | Algorithm::Torus { columns } => {
            let columns = columns as usize;
            let (row, column) = (rank / columns * columns, rank % columns);
            BTreeSet::from([
                row + (column + 1) % columns,
                row + (column + columns - 1) % columns,
                (rank + columns) % size,
                (rank + size - columns) % size,
            ])
        }
        Algorithm::HalvingDoubling => {
            let folding = Folding::of(size);
            let pair = (rank < 2 * folding.pairs).then_some(rank ^ 1);
            let partners = folding.participant(rank).into_iter().flat_map(|own| {
                let distances = (0..folding.participants.ilog2()).map(|bit| 1 << bit);
                distances.map(|distance: usize| folding.member(own ^ distance)).collect::<Vec<_>>()
            });
            partners.chain(pair).collect()
        }
        Algorithm::DoubleBinaryTree => {
            let of_tree = |tree| {
                (0..size).filter(move |&other| {
                    parent(tree, size, other) == Some(rank) || parent(tree, size, rank) == Some(other)
                })
            };
            (0..2).flat_map(of_tree).collect()
        }
    };
    found.remove(&rank);
    found
}

/// The elements that a member sends, as [`crate::Schedule::sent`] counts them, without building a schedule; 0
/// if there is none.
pub fn sent_elements(
    algorithm: Algorithm,
    collective: Collective,
    length: usize,
    size: usize,
    member: usize,
) -> usize {
    if member >= size || suits(algorithm, collective, size).is_err() {
        return 0;
    }
    let reduces = collective != Collective::AllGather;
    let gathers = collective != Collective::ReduceScatter;
    match algorithm {
        Algorithm::Ring => grid_sent(collective, length, size, size, member),
        Algorithm::Hierarchical { inner: columns } | Algorithm::Torus { columns } => {
            grid_sent(collective, length, size, columns as usize, member)
        }
        Algorithm::HalvingDoubling => {
            let folding = Folding::of(size);
            let shard = |member: usize| shard_range(length, size, member).len();
            let Some(own) = folding.participant(member) else {
                // A folded member sends all its elements, or only its shard.
                return if reduces { length } else { shard(member) };
            };
            let bounds = folding.bounds(collective, length);
            let doubled = (0..folding.participants.ilog2()).map(|bit| {
                let first = own >> bit << bit;
                bounds[first + (1 << bit)] - bounds[first]
            });
            let mut sent = 0;
            if reduces {
                // Halving sends every block except the member's own once.
                sent += length - (bounds[own + 1] - bounds[own]);
            }
            if gathers {
                sent += doubled.sum::<usize>();
            }
            if member < 2 * folding.pairs {
                let aside = shard(member + 1);
                sent += match collective {
                    Collective::ReduceScatter => length / 2 + aside,
                    Collective::AllGather => length - aside,
                    // Only all-reduce: `suits` has rejected all others.
                    _ => length / 2 + length,
                };
            }
            sent
        }
        Algorithm::DoubleBinaryTree => (0..2)
            .map(|tree| {
                let children = (0..size).filter(|&other| parent(tree, size, other) == Some(member)).count();
                let edges = children + usize::from(parent(tree, size, member).is_some());
                shard_range(length, 2, tree).len() * edges
            })
            .sum(),
    }
}

/// The reduce-scatter of a ring sends every block except the member's own, the all-gather every block except
/// the next member's.
fn grid_sent(collective: Collective, length: usize, size: usize, columns: usize, member: usize) -> usize {
    let rows = size / columns;
    let (row, column) = (member / columns, member % columns);
    let shard = |row: usize, column: usize| match collective {
        Collective::AllReduce => shard_range(shard_range(length, columns, column).len(), rows, row).len(),
        _ => shard_range(length, size, row * columns + column).len(),
    };
    let block = |column: usize| -> usize {
        match collective {
            Collective::AllReduce => shard_range(length, columns, column).len(),
            _ => (0..rows).map(|row| shard(row, column)).sum(),
        }
    };
    let own = block(column);
    let reduce = (length - own) + (own - shard(row, column));
    // In a row or a column of one, the next member is the member itself, and nothing is sent.
    let across = if rows > 1 { own - shard((row + 1) % rows, column) } else { 0 };
    let along = if columns > 1 { length - block((column + 1) % columns) } else { 0 };
    match collective {
        Collective::ReduceScatter => reduce,
        Collective::AllGather => across + along,
        _ => reduce + across + along,
    }
}
