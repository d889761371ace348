//! Tests of the cost model, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod by_hand;
mod extended;
mod laws;
