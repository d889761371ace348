//! The data structure of a schedule.

use std::ops::Range;

/// A send to another member. A member's sends to one peer happen in the order of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Place in the group.
    pub to: usize,
    pub elements: Range<usize>,
    /// Indices of this member's receives that must complete before this send.
    pub after: Vec<usize>,
}

/// A receive from another member. A member's receives from one peer happen in the order of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receive {
    /// Place in the group.
    pub from: usize,
    pub elements: Range<usize>,
    /// Whether the received values are combined with the member's own, or overwrite them.
    pub combine: bool,
    /// Indices of this member's receives that must complete before this one touches the buffer, so that
    /// values are reduced in an order that does not depend on arrival.
    pub after: Vec<usize>,
    /// Indices of this member's sends that must complete before this one touches the buffer.
    pub after_sends: Vec<usize>,
}

/// The sends and receives of every member in one collective. Element counts are exact: `bytes on the wire =
/// width x elements`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// By place in the group.
    pub sends: Vec<Vec<Send>>,
    pub receives: Vec<Vec<Receive>>,
}

impl Schedule {
    /// Number of elements that a member sends.
    pub fn sent(&self, member: usize) -> usize {
        self.sends[member].iter().map(|send| send.elements.len()).sum()
    }
}

/// The elements of `length` that belong to member `index` of `size`: consecutive ranges, as equal as
/// possible; the first `length mod size` members have one more.
#[must_use]
pub fn shard_range(length: usize, size: usize, index: usize) -> Range<usize> {
    let (share, extra) = (length / size, length % size);
    let start = index * share + index.min(extra);
    start..start + share + usize::from(index < extra)
}
