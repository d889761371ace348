//! Tests of trainers' files, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod common;
mod documentation;
mod hostile;
mod real_trainers;
mod round_trip;
