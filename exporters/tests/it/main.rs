//! Tests of trainers' files, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod axolotl;
mod blocks;
mod branches;
mod command_line;
mod common;
mod counting;
mod documentation;
mod hostile;
mod notations;
mod real_trainers;
mod real_training;
mod refusals;
mod round_trip;
mod starts;
mod states;
mod trainable;
