//! Tests of the kernels, in one binary, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod layers;
mod memory;
mod optimizer;
mod selftest;
