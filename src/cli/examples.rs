//! The examples at the end of each command's help. Each line is a command that works; a test parses them all.

pub const ALL: &str = "\
Examples:
  autodist tune                                           # profile, plan, train and compare on this machine
  autodist plan --model llama3-70b --cluster 4x8xh100 --global-batch 512 --seq-len 8k
  autodist estimate --from megatron pretrain.sh --cluster 4x8xh100
  autodist plan --help                                    # every command has examples";

pub const PROFILE: &str = "\
Examples:
  autodist profile
  autodist profile --model config.json --global-batch 16 --seq-len 256 --budget 2m
  autodist profile --devices cuda --precision bf16 -o gpus.json";

pub const PLAN: &str = "\
Examples:
  autodist plan --global-batch 8 -o plan.json             # with the profile.json in this folder
  autodist plan --model llama3-70b --cluster 4x8xh100 --global-batch 512 --seq-len 8k
  autodist plan --model llama3-70b --cluster 4x8xh100 --global-batch-tokens 4M --seq-len 8k --tokens 1T --price 2.50
  autodist plan --from megatron pretrain.sh --cluster 2x8xh100
  autodist plan --model llama3-8b --cluster 64xa100 --global-batch 1k --seq-len 4k --tp 1,2,4 --zero 1,2
  autodist plan --model mixtral-8x7b --cluster 2xp5.48xlarge --global-batch 256 --seq-len 8k --trainer nemo --time-limit 10m";

pub const ESTIMATE: &str = "\
Examples:
  autodist estimate --global-batch 8 --tp 2 --micro-batch 4
  autodist estimate --model llama3-70b --cluster 4x8xh100 --global-batch 128 --seq-len 8k --tp 4 --pp 4 --sp
  autodist estimate --model llama3-70b --cluster 4x8xh100 --global-batch 128 --seq-len 8k --best 10 --tp 4,8
  autodist estimate --from deepspeed ds_config.json --model llama2-13b --cluster 8xa100 --seq-len 4k";

pub const COMPARE: &str = "\
Examples:
  autodist compare 32x8xb200 64x8xh100 --model llama3-70b --global-batch 1k --seq-len 8k --tokens 1T --price h100=2.50,b200=4.50
  autodist compare 1x8xh100 --scale 8..4096 --model llama3-8b --global-batch 1k --seq-len 8k --figure curve.png";

pub const DIFF: &str = "\
Examples:
  autodist diff plan.json other.json
  autodist diff last_week.json profile.json";

pub const DOCTOR: &str = "\
Examples:
  autodist doctor
  autodist doctor --model config.json --global-batch 16 --seq-len 256";

pub const BACKTEST: &str = "\
Examples:
  autodist backtest                                       # the published runs
  autodist backtest --leave-one-group-out
  autodist backtest my_runs.csv --calibration my_cluster.toml";

pub const CALIBRATE: &str = "\
Examples:
  autodist calibrate --from megatron pretrain.sh --log train.log --cluster 2x8xh100 -o my_cluster.toml
  autodist calibrate my_runs.csv -o my_cluster.toml
  autodist calibrate --plan-file plan.json --log train.jsonl -o corrected.json";

pub const VALIDATE: &str = "\
Examples:
  autodist validate plan.json --top 5
  autodist validate plan.json --all --steps 50 -o runs
  autodist validate plan.json --all --resume";

pub const TUNE: &str = "\
Examples:
  autodist tune
  autodist tune --model config.json --global-batch 16 --seq-len 256 --budget 2m
  autodist tune --model gpt2 --ranks 2 --global-batch 4 --seq-len 64 --tp 1,2";

pub const EXPORT: &str = "\
Examples:
  autodist export plan.json --to megatron -o megatron
  autodist export plan.json --to torchtitan --checkpoint-interval 1k
  autodist export plan.json --plan 2 --to slurm --script train.sh";

pub const EXPLAIN: &str = "\
Examples:
  autodist explain plan.json
  autodist explain plan.json --plan 2
  autodist explain plan.json --against other.json";

pub const REPORT: &str = "\
Examples:
  autodist report plan.json
  autodist report plan.json runs/1.json runs/validation.json -o report";

pub const TRAIN: &str = "\
Examples:
  autodist train plan.json --steps 200
  autodist train plan.json --plan 2 --data book.txt --steps 1k";

pub const SELFTEST: &str = "\
Examples:
  autodist selftest
  autodist selftest --device cuda --precision bf16";

pub const CATALOG: &str = "\
Examples:
  autodist catalog
  autodist catalog --json";

pub const SCHEMA: &str = "\
Examples:
  autodist schema job";

pub const COMPLETIONS: &str = "\
Examples:
  autodist completions bash > ~/.local/share/bash-completion/completions/autodist
  autodist completions zsh > ~/.zfunc/_autodist
  autodist completions fish > ~/.config/fish/completions/autodist.fish";

pub const MAN: &str = "\
Examples:
  autodist man | man -l -
  autodist man ~/.local/share/man/man1";

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::{CommandFactory, Parser};

    /// The words of an example, without its comment and without what the shell does with the output.
    fn words(line: &str) -> Vec<&str> {
        let command = line.split(['#', '>', '|']).next().unwrap_or(line);
        command.split_whitespace().collect()
    }

    #[test]
    fn every_command_has_examples_which_the_command_line_accepts() {
        let mut program = Cli::command();
        program.build();
        let own = std::iter::once(&program);
        let mut count = 0;
        for command in own.chain(program.get_subcommands()).filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            let help = command.get_after_help().unwrap_or_else(|| panic!("{name} has no examples"));
            let help = help.to_string();
            let examples: Vec<&str> = help.lines().filter(|line| line.starts_with("  autodist")).collect();
            assert!(help.starts_with("Examples:\n") && !examples.is_empty(), "{name}: {help}");
            for example in examples {
                match Cli::try_parse_from(words(example)) {
                    Ok(_) => count += 1,
                    Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {}
                    Err(error) => panic!("{example}\n{error}"),
                }
                assert!(name == "autodist" || example.contains(&format!("autodist {name}")), "{example}");
            }
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
