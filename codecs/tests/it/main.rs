//! Tests of the codecs, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod codecs;
mod common;
mod parity;
