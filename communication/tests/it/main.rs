//! Tests of the transport between ranks, in one binary, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod algorithms;
mod collectives;
mod common;
mod failures;
mod mailboxes;
mod orders;
mod switch;
