//! Results on terminals of several widths, with and without colour: `tests/it/snapshots/terminal_*`.

use crate::common;

use common::shown::shown_at;
use common::{command, folder, line, write};
use std::path::Path;

const WIDTHS: [usize; 4] = [60, 80, 100, 160];
const SEARCH: &str = "plan --profile profile.json --model model.json --job job.toml --threads 1 --top 3";
const LARGE: &str =
    "plan --model llama3-70b --cluster 4x8xh100-80gb-sxm@8x400gbps --global-batch 512 --seq-len 8192 --top 3";
const TOO_LARGE: &str = "estimate --model gpt3-175b --cluster 64x8xa100-80gb-sxm@8x200gbps --global-batch 1536 --seq-len 2048 \
                         --tp 8 --recompute none";

/// The command at each width, without and with colour.
#[track_caller]
fn snapshot(folder: &Path, name: &str, args: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    for (colour, flags) in [("", ""), ("_colour", " --color always")] {
        let shown: Vec<String> = WIDTHS
            .iter()
            .map(|width| {
                let shown = shown_at(folder, &format!("{args}{flags}"), *width);
                format!("{}\n{}", "=".repeat(*width), shown.replace('\u{1b}', "^"))
            })
            .collect();
        settings.bind(|| insta::assert_snapshot!(format!("terminal_{name}{colour}"), shown.join("\n")));
    }
}

#[test]
fn results_fit_the_screen() {
    let folder = folder(4);
    let folder = folder.path();
    line(folder, &format!("{SEARCH} -o plan.json")).ok();
    snapshot(folder, "plan", SEARCH);
    snapshot(folder, "explain", "explain plan.json");
    snapshot(folder, "plan_large", LARGE);
    snapshot(folder, "too_large", TOO_LARGE);
}

/// Two runs of a profile, the plans of which are in this folder.
const CALIBRATE: &str = "calibrate runs.csv -o corrected.json";
const CATALOG: &str = "catalog -v";
const BACKTEST: &str = "backtest template.csv";

/// A folder with a table of each kind.
fn tables() -> tempfile::TempDir {
    let folder = folder(4);
    let at = folder.path();
    line(at, &format!("{SEARCH} -o plan.json")).ok();
    write(at, "runs.csv", "id,plan_file,plan,measured\nfirst,plan.json,1,1.2ms\nsecond,plan.json,2,1.1ms\n");
    write(at, "template.csv", line(at, "calibrate --template").ok());
    folder
}

#[test]
fn tables_fit_the_screen() {
    let folder = tables();
    let folder = folder.path();
    snapshot(folder, "calibrate", CALIBRATE);
    snapshot(folder, "backtest", BACKTEST);
}

/// Standard output of a command on a screen of so many columns.
fn out(folder: &Path, args: &str, columns: usize) -> String {
    let args: Vec<&str> = args.split_whitespace().collect();
    let output = command(folder, &args).env("COLUMNS", columns.to_string()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn no_line_is_too_long_and_no_word_is_broken() {
    let folder = tables();
    let folder = folder.path();
    for args in [
        SEARCH.to_owned(),
        format!("{SEARCH} --verbose"),
        format!("{LARGE} -v"),
        TOO_LARGE.to_owned(),
        "explain plan.json".to_owned(),
        CALIBRATE.to_owned(),
        BACKTEST.to_owned(),
        CATALOG.to_owned(),
        "backtest --in-fit".to_owned(),
        "selftest".to_owned(),
    ] {
        // What a wide screen shows has all words whole.
        let words: std::collections::BTreeSet<String> = (out(folder, &args, 160).split_whitespace())
            .filter(|word| !word.starts_with(['-', '#']))
            .map(str::to_owned)
            .collect();
        assert!(words.len() > 30, "{args}");
        for width in [60, 61, 70, 80, 90, 100, 120] {
            let text = out(folder, &args, width);
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{args} at {width}: {line}");
            }
            let broken: Vec<_> = text
                .split_whitespace()
                .filter(|word| !word.starts_with(['-', '#']) && !words.contains(*word))
                .collect();
            assert!(broken.is_empty(), "{args} at {width}: {broken:?}\n{text}");
        }
    }
}

#[test]
fn colour_obeys_the_flag_and_the_environment() {
    let folder = folder(4);
    let args: Vec<&str> = SEARCH.split_whitespace().collect();
    let coloured = |flag: &[&str], variables: &[(&str, &str)]| {
        let mut command = command(folder.path(), &[&args, flag].concat());
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM"] {
            command.env_remove(name);
        }
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout.contains(&0x1b)
    };
    assert!(!coloured(&[], &[]), "a pipe");
    assert!(coloured(&[], &[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&["--color", "never"], &[("CLICOLOR_FORCE", "1")]));
    assert!(coloured(&["--color=always"], &[("NO_COLOR", "1")]));
    assert!(!coloured(&["--json", "--color=always"], &[]), "JSON is never coloured");
}

#[test]
fn quiet_leaves_warnings_and_errors() {
    let folder = folder(4);
    let quiet = line(folder.path(), &format!("{SEARCH} -o plan.json --quiet"));
    assert_eq!((quiet.code, quiet.err.as_str()), (Some(0), ""));
    let warned = line(folder.path(), "validate plan.json --top 9 --steps 1 -q");
    assert!(warned.err.contains("warning: ") && warned.err.contains("error: "), "{}", warned.err);
}

#[test]
fn the_log_of_a_training_has_a_line_per_step() {
    let folder = folder(2);
    let folder = folder.path();
    line(
        folder,
        "estimate --profile profile.json --model model.json --job job.toml --micro-batch 2 -o plan.json",
    )
    .ok();
    let train = "train plan.json --no-realtime --timeout 30 --log log/train.jsonl --steps";
    let trained = line(folder, &format!("{train} 5"));
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert!(trained.err.contains("/5, ") && trained.err.contains("tokens/s"), "progress: {}", trained.err);
    let lines = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let log = lines("log/train.jsonl");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("run.json")).unwrap()).unwrap();
    assert_eq!(log.len(), 5);
    for (line, step) in log.iter().zip(record["steps"].as_array().unwrap()) {
        assert_eq!((&line["step"], &line["loss"]), (&step["step"], &step["loss"]));
        assert_eq!((&line["step_time_s"], &line["learning_rate"]), (&step["time_s"], &step["learning_rate"]));
        assert!(line["tokens_per_s"].as_f64().unwrap() > 0.0);
    }
    // A second training does not destroy the log of the first.
    let again = line(folder, &format!("{train} 3"));
    assert!(again.err.contains("kept in") && again.err.contains("train.2.jsonl"), "{}", again.err);
    assert_eq!((lines("log/train.jsonl").len(), lines("log/train.2.jsonl").len()), (3, 5));
    let same = line(folder, "train plan.json --log ./run.json");
    assert_eq!(same.code, Some(2), "{}", same.err);
    assert!(same.err.contains("--log") && same.err.contains("--output"), "{}", same.err);
    let full = line(folder, "train plan.json --steps 2 --no-realtime --log /dev/full");
    assert_eq!(full.code, Some(4), "{}", full.err);
    assert!(full.err.contains("/dev/full") && full.out.contains("step time"), "{}", full.err);
}
