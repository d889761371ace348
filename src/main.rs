//! `autodist`: on these machines, how should this model be split, and how fast will it go?
//!
//! Parse, resolve settings once into typed specs, call one library function, hand the result to `reports`. Results go
//! to standard output, progress and warnings to standard error.

mod cli;
mod commands;
mod failure;
mod input;
mod output;
mod progress;
mod train;

use autodist_executor::memory::CountingAllocator;
use clap::Parser;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() {
    if autodist_executor::launcher::is_rank() {
        std::process::exit(autodist_executor::launcher::serve(autodist_profiler::handle));
    }
    let cli = cli::Cli::parse();
    let code = match commands::run(&cli) {
        Ok(()) => 0,
        Err(failure) => {
            output::error(&failure);
            failure.exit_code()
        }
    };
    std::process::exit(code);
}
