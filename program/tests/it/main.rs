//! Tests of programs, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod goldens;
mod messages;
mod text_form;
