//! End-to-end tests of the program, in one program, so that shared code is compiled and linked once.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod answers;
mod architecture;
mod bad_input;
mod beyond;
mod blocks;
mod catalogue;
mod common;
mod contract;
mod corpus;
mod corrected;
mod cross_check;
mod doubts;
mod emulation;
mod end_to_end;
mod export;
mod external;
mod external_failures;
mod failures;
mod fewer;
mod field;
mod gpu;
mod hostile_files;
mod hosts;
mod kept;
mod lab;
mod legality;

mod mixed;
mod mpi;
mod mutations;
mod names;
mod namespaces;
mod numbers;
mod parsers;
mod proposals;
mod real_gpu;
mod slurm;
mod snapshots;
mod states;
mod strangers;
mod terminal;
mod torch;
mod trainable;
mod transcripts;
mod twin;
mod typing;
mod unmeasured;
mod verdict;
