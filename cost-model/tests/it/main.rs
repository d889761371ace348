//! Tests of the cost model, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod by_hand;
mod laws;
