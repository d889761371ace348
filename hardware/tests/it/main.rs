//! Tests of the hardware model, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod held_out;
mod physics;
