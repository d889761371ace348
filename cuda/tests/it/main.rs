//! Tests of the CUDA backend, in one binary, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bugs;
mod common;
mod compiling;
mod errors;
mod installations;
mod kernels;
mod memory;
mod nccl;
mod nvml;
mod nvrtc;
