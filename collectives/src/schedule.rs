//! The form of a schedule.

use std::ops::Range;

/// A message to another member. A member's sends to one peer leave in the order of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Place in the group.
    pub to: usize,
    pub elements: Range<usize>,
    /// Indices of this member's receives that must be done before.
    pub after: Vec<usize>,
}

/// A message from another member. A member's receives from one peer arrive in the order of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receive {
    /// Place in the group.
    pub from: usize,
    pub elements: Range<usize>,
    /// Whether it is combined with the member's own values, or written over them.
    pub combine: bool,
    /// Indices of this member's receives that must be done before this one touches the buffer: sums are made in an
    /// order that does not depend on who is first.
    pub after: Vec<usize>,
    /// Indices of this member's sends that must have left before this one touches the buffer.
    pub after_sends: Vec<usize>,
}

/// What every member does in one collective. Element counts are exact: `bytes on the wire = width x elements`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// By place in the group.
    pub sends: Vec<Vec<Send>>,
    pub receives: Vec<Vec<Receive>>,
}

impl Schedule {
    /// Elements that a member sends.
    pub fn sent(&self, member: usize) -> usize {
        self.sends[member].iter().map(|send| send.elements.len()).sum()
    }
}

/// The elements of `length` that belong to member `index` of `size`: consecutive, as equal as they can be, the
/// first `length mod size` members having one more.
#[must_use]
pub fn shard_range(length: usize, size: usize, index: usize) -> Range<usize> {
    let (share, extra) = (length / size, length % size);
    let start = index * share + index.min(extra);
    start..start + share + usize::from(index < extra)
}
