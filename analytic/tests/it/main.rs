//! Tests of the closed form, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod documentation;
mod figures;
mod physics;
