//! Tests of the codecs, in one binary, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod codecs;
mod common;
mod parity;
