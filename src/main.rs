//! `autodist`: finds the fastest parallel strategy of a model on given machines, and predicts and measures
//! its speed.
//!
//! Parse, resolve settings once into typed specs, call one library function, hand the result to `reports`.
//! Results go to standard output, progress and warnings to standard error.

#![forbid(unsafe_code)]

mod agreement;
mod cli;
mod commands;
mod compare;
mod devices;
mod engine;
mod external;
mod failure;
mod gains;
mod handover;
mod input;
mod interrupt;
mod keep;
mod look;
mod output;
mod price;
mod probe;
mod progress;
mod rounds;
mod step_log;
mod train;
mod verdict;

use autodist_executor::External;
use autodist_executor::memory::{self, CountingAllocator};
use clap::{CommandFactory, FromArgMatches};
use failure::Failure;
use std::panic::AssertUnwindSafe;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() {
    memory::say_when_exhausted();
    if autodist_executor::launcher::is_rank() {
        std::process::exit(autodist_executor::launcher::serve(autodist_profiler::handle));
    }
    interrupt::survive_file_limit();
    // On a host of a host file, the process gets its rank from standard input; then this does not return.
    if let Err(error) = autodist_executor::launcher::enter_environment() {
        std::process::exit(code(Err(Failure::Run(format!("reading the environment from ssh: {error}")))));
    }
    let code = match External::from_environment() {
        Ok(Some(external)) if external.is_agent() => external::attend(&external),
        Ok(external) => {
            let (cli, notes) = parse();
            look::begin(cli.look);
            notes.iter().for_each(|note| output::note(note));
            let code = code(external::open(&cli, external.as_ref()).and_then(|()| run(&cli)));
            // An earlier error is more informative.
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

/// Parses the command line; also returns notes of what was understood. An error message quotes the arguments, without control characters.
fn parse() -> (cli::Cli, Vec<String>) {
    let mut program = cli::Cli::command();
    let parsed = program.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let notes = cli::understood(&matches);
        Ok((cli::Cli::from_arg_matches(&matches)?, notes))
    });
    parsed.unwrap_or_else(|error| {
        let error = cli::explained(error, &program);
        let text = error.to_string();
        if error.use_stderr() && autodist_spec::printable(&text) != text {
            output::say(text.trim_end());
            std::process::exit(error.exit_code());
        }
        error.exit()
    })
}

/// A panic is a bug in autodist; it is reported like any other failure.
fn run(cli: &cli::Cli) -> Result<(), Failure> {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| commands::run(cli)));
    outcome.unwrap_or_else(|_| {
        let problem = "this is a bug in autodist: please report it with the lines above and the command";
        Err(Failure::Run(problem.to_owned()))
    })
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
