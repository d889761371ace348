//! Tests of the hardware model, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod held_out;
mod physics;
