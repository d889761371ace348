//! `autodist`: on these machines, how should this model be split, and how fast will it go?
//!
//! Parse, resolve settings once into typed specs, call one library function, hand the result to `reports`. Results go
//! to standard output, progress and warnings to standard error.

mod agreement;
mod cli;
mod commands;
mod devices;
mod engine;
mod external;
mod failure;
mod gains;
mod input;
mod output;
mod probe;
mod progress;
mod train;

use autodist_executor::External;
use autodist_executor::memory::CountingAllocator;
use clap::Parser;
use failure::Failure;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() {
    if autodist_executor::launcher::is_rank() {
        std::process::exit(autodist_executor::launcher::serve(autodist_profiler::handle));
    }
    // On a host of a file, the place in the job comes on standard input; then this does not return.
    if let Err(error) = autodist_executor::launcher::enter_environment() {
        std::process::exit(code(Err(Failure::Run(format!("reading what ssh should hand over: {error}")))));
    }
    let code = match External::from_environment() {
        Ok(Some(external)) if external.is_agent() => external::attend(&external),
        Ok(external) => {
            let cli = cli::Cli::parse();
            let code = code(external::open(&cli, external.as_ref()).and_then(|()| commands::run(&cli)));
            // Whatever went wrong before says more.
            match self::code(external::dismiss()) {
                0 => code,
                other if code == 0 => other,
                _ => code,
            }
        }
        Err(error) => code(Err(error.into())),
    };
    std::process::exit(code);
}

fn code(outcome: Result<(), Failure>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            output::error(&failure);
            failure.exit_code()
        }
    }
}
