//! Collectives as data: who sends which elements to whom, and after what.
//!
//! A [`Schedule`] is the program of one collective over one group. `communication` executes it over connections, and
//! `cost-model` simulates it over a network, so that bytes on the wire and predicted bytes are the same by construction.
//!
//! [`Schedule::build`] writes an algorithm down as messages in one order that would do if they were sent one at a
//! time; what each member must really wait for follows from which elements they touch. So no schedule can deadlock or
//! depend on who is faster, whatever the algorithm.

#![forbid(unsafe_code)]

mod algorithms;
mod builder;
mod choice;
mod schedule;
#[cfg(test)]
mod tests;

pub use choice::{Unsuitable, candidates, peers, sent_elements, suits};
pub use schedule::{Receive, Schedule, Send, shard_range};
