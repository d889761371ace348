//! Tests of trainers' files, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod beside;
mod common;
mod documentation;
mod hostile;
mod lost;
mod real_trainers;
mod round_trip;
