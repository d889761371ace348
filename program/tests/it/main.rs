//! Tests of programs, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod goldens;
mod messages;
mod text_form;
