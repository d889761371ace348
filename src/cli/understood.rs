//! What was understood of quantities whose suffix has more than one meaning elsewhere: the user reads the number.

use autodist_reports::plural;
use autodist_spec::{Bytes, text};
use clap::ArgMatches;
use clap::parser::ValueSource;

/// How the number is shown.
#[derive(Clone, Copy)]
enum Shown {
    Count(&'static str),
    Size,
}

/// Arguments with suffixes.
const ARGUMENTS: [(&str, Shown); 6] = [
    ("global_batch", Shown::Count("sequence")),
    ("seq_len", Shown::Count("token")),
    ("micro_batch", Shown::Count("sequence")),
    ("checkpoint_interval", Shown::Count("step")),
    ("bucket_bytes", Shown::Size),
    ("device_memory", Shown::Size),
];

/// One note for every value that was not written as a plain number, e.g. `--seq-len 8k is 8,192 tokens`.
pub fn understood(matches: &ArgMatches) -> Vec<String> {
    let Some((_, matches)) = matches.subcommand() else { return Vec::new() };
    let mut notes = Vec::new();
    for (name, shown) in ARGUMENTS {
        // Only arguments that this command has.
        if !matches!(matches.try_contains_id(name), Ok(true))
            || matches.value_source(name) != Some(ValueSource::CommandLine)
        {
            continue;
        }
        let written = matches.get_raw(name).into_iter().flatten().map(|text| text.to_string_lossy());
        let numbers: Vec<u64> = match shown {
            Shown::Size => matches.get_many::<u64>(name).into_iter().flatten().copied().collect(),
            Shown::Count(_) => {
                matches.get_many::<u32>(name).into_iter().flatten().map(|n| u64::from(*n)).collect()
            }
        };
        for (text, number) in written.zip(numbers) {
            if text.parse::<u64>().is_ok() {
                continue;
            }
            let flag = name.replace('_', "-");
            let means = match shown {
                Shown::Count(unit) => plural(number, unit),
                Shown::Size => format!("{} ({})", plural(number, "byte"), Bytes(number)),
            };
            notes.push(format!("--{flag} {} is {means}", text::shown(&text, 40)));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn suffixes_are_restated_and_plain_numbers_are_not() {
        let command = "autodist plan --seq-len 8k --global-batch 512 --micro-batch 1,1k --device-memory 80G --bucket-bytes 25MB";
        let matches = Cli::command().try_get_matches_from(command.split(' ')).unwrap();
        assert_eq!(
            understood(&matches),
            [
                "--seq-len 8k is 8,192 tokens",
                "--micro-batch 1k is 1,024 sequences",
                "--bucket-bytes 25MB is 25,000,000 bytes (23.8 MiB)",
                "--device-memory 80G is 85,899,345,920 bytes (80.0 GiB)",
            ]
        );
        let matches = Cli::command().try_get_matches_from("autodist catalog".split(' ')).unwrap();
        assert!(understood(&matches).is_empty());
    }
}
