//! Collectives as data: which elements each member sends to which other, and the dependencies between
//! transfers.
//!
//! A [`Schedule`] is the program of one collective over one group. `communication` executes it over
//! connections, and `cost-model` simulates it over a network, so that bytes on the wire and predicted bytes
//! are the same by construction.
//!
//! [`Schedule::build`] lists an algorithm's messages in an order that is correct if they are sent one at a
//! time, and derives the dependencies of each member from the elements they touch. So no schedule of any
//! algorithm can deadlock, or give results that depend on timing.

#![forbid(unsafe_code)]

mod algorithms;
mod builder;
mod choice;
mod schedule;
#[cfg(test)]
mod tests;

pub use choice::{Unsuitable, candidates, peers, sent_elements, suits};
pub use schedule::{Receive, Schedule, Send, shard_range};
