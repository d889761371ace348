//! Tests of the kernels, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod layers;
mod memory;
mod optimizer;
mod selftest;
