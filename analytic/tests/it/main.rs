//! Tests of the closed form, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod documentation;
mod figures;
mod lora;
mod physics;
mod states;
