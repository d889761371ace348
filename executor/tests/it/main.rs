//! Tests of training, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod codecs;
mod common;
mod exactness;
mod gpu;
mod learning;
mod rounding;
mod torch;
