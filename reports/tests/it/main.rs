//! Tests of reports, in one program: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod figures;
mod fixture;
mod html;
mod text;
