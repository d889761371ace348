//! Tests of reports, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod figures;
mod fixture;
mod html;
mod text;
mod widths;
