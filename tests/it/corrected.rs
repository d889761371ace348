//! `calibrate` with a profile: step times of a training correct later predictions.

use crate::common;

use common::{line, write};
use serde_json::{Value, json};
use std::path::Path;

/// A profile of two synthetic devices, a plan of it, and another one.
fn planned() -> tempfile::TempDir {
    let folder = common::folder(2);
    line(folder.path(), "plan --profile profile.json --model model.json --job job.toml -o plan.json").ok();
    line(
        folder.path(),
        "estimate --profile profile.json --model model.json --job job.toml --tp 2 --micro-batch 4 -o other.json",
    )
    .ok();
    folder
}

fn estimate(folder: &Path, args: &str) -> (f64, f64) {
    let plan = line(folder, &format!("estimate {args} --json")).json();
    let of = |field: &str| plan["estimate"][field].as_f64().unwrap();
    (of("step_time_s"), of("step_time_spread_s"))
}

/// A log as `train --log` writes it.
fn log(folder: &Path, name: &str, seconds: f64) {
    let line = |step: u32| json!({"step": step, "loss": 4.0, "step_time_s": seconds}).to_string() + "\n";
    write(folder, name, (0..8).map(line).collect::<String>());
}

#[test]
fn the_log_of_a_training_corrects_the_profile() {
    let folder = common::folder(2);
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    line(folder, "profile --model model.json --job job.toml --budget 1s --no-realtime --timeout 20").ok();
    line(folder, "plan --profile profile.json --model model.json --job job.toml -o plan.json").ok();
    line(folder, "train plan.json --steps 12 --no-realtime --timeout 20 --log train.jsonl -o run.json").ok();
    for log in ["train.jsonl", "run.json"] {
        let args = format!("calibrate --plan-file plan.json --log {log} -o corrected-{log} --json");
        let report = line(folder, &args);
        if report.code == Some(2) {
            // Other load: steps of very different times, or five times as long as predicted.
            let load = ["times the predicted", "no steady state"];
            assert!(load.iter().any(|problem| report.err.contains(problem)), "{}", report.err);
            continue;
        }
        let report = report.json();
        let measured = report["runs"][0]["measured_s"].as_f64().unwrap();
        let (before, _) = estimate(folder, "plan.json");
        assert!((report["runs"][0]["before_s"].as_f64().unwrap() / before - 1.0).abs() < 1e-9);
        let (after, spread) = estimate(folder, &format!("plan.json --profile corrected-{log}"));
        assert!((after / measured - 1.0).abs() < 1e-3, "{after} instead of {measured}");
        let bar = report["error_bar"].as_f64().unwrap();
        assert!(bar > 0.04 && spread >= 0.99 * bar * after, "{bar}, {spread} of {after}");
    }
}

#[test]
fn all_plans_of_the_profile_are_corrected_and_say_so() {
    let folder = planned();
    let folder = folder.path();
    let (own, _) = estimate(folder, "plan.json");
    let (other, spread) = estimate(folder, "other.json");
    log(folder, "train.jsonl", 1.25 * own);
    let text = line(folder, "calibrate --plan-file plan.json --log train.jsonl -o corrected.json").ok();
    assert!(text.contains("steps take 25 % longer than profile.json predicts"), "{text}");
    let (corrected, wider) = estimate(folder, "other.json --profile corrected.json");
    assert!((corrected / other - 1.25).abs() < 1e-3, "{corrected} of {other}");
    assert!(wider / corrected > 0.15 && wider / corrected > spread / other, "{wider} of {corrected}");
    // New plans have it, too, and their documents name it.
    line(folder, "plan --profile corrected.json --model model.json --job job.toml -o new.json").ok();
    let plan: Value = serde_json::from_slice(&std::fs::read(folder.join("new.json")).unwrap()).unwrap();
    assert_eq!(plan["cost_source"]["profile"]["correction"]["fitted_to"], "1 run of train.jsonl, plan.json");
    let explained = line(folder, "estimate new.json").ok();
    let explained = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(explained.contains("like the one run of the calibration"), "{explained}");
    // A second correction starts from the first.
    line(
        folder,
        &format!(
            "calibrate --profile corrected.json --plan-file plan.json --measured {} -o twice.json",
            1.5 * own
        ),
    )
    .ok();
    let (twice, _) = estimate(folder, "other.json --profile twice.json");
    assert!((twice / other - 1.5).abs() < 2e-3, "{twice} of {other}");
}

#[test]
fn several_runs_share_a_factor_and_leave_each_other_out() {
    let folder = planned();
    let folder = folder.path();
    let (own, _) = estimate(folder, "plan.json");
    let (other, _) = estimate(folder, "other.json");
    log(folder, "a.jsonl", 1.1 * own);
    log(folder, "b.jsonl", 1.3 * other);
    let list = "id,plan_file,log\na,plan.json,a.jsonl\nb,other.json,b.jsonl\n";
    write(folder, "runs.csv", list);
    let report = line(folder, "calibrate runs.csv -o corrected.json --json").json();
    let factor = report["correction"]["factor"].as_f64().unwrap();
    assert!((factor - (1.1_f64 * 1.3).sqrt()).abs() < 1e-3, "{factor}");
    assert!((report["runs"][0]["error_left_out"].as_f64().unwrap() - (1.3 / 1.1 - 1.0)).abs() < 1e-6);
    // The flags of a strategy describe a run, too.
    let flags = "calibrate --profile profile.json --model model.json --job job.toml --tp 2 --micro-batch 4";
    let report = line(folder, &format!("{flags} --measured {} -o flags.json --json", 1.3 * other)).json();
    assert!((report["correction"]["factor"].as_f64().unwrap() - 1.3).abs() < 1e-3);
}

#[test]
fn what_has_no_effect_or_cannot_be_meant_is_refused() {
    let folder = planned();
    let folder = folder.path();
    for (args, expected) in [
        ("calibrate plan.json --measured 1ms -o c.json", "--plan-file plan.json"),
        ("calibrate profile.json --measured 1ms -o c.json", "--profile profile.json"),
        ("calibrate --plan-file plan.json --tp 2 --measured 1ms -o c.json", "--tp"),
        ("calibrate --plan-file plan.json --measured 1h -o c.json", "times the predicted"),
        ("calibrate --plan-file plan.json --from-priors --measured 1ms -o c.json", "--from-priors"),
        ("calibrate --plan-file plan.json --log plan.json -o c.json", "plan.json"),
        ("calibrate --profile profile.json --plan 2 --measured 1ms -o c.json", "--plan-file"),
        ("calibrate --plan-file plan.json --measured 1ms -o profile.json", "profile.json"),
    ] {
        let finished = line(folder, args);
        assert_eq!(finished.code, Some(2), "{args}: {}", finished.err);
        assert!(finished.err.contains(expected), "{args}: {}", finished.err);
    }
    assert!(!folder.join("c.json").exists());
}

/// The table that `calibrate --template` prints is judged by `backtest` as by `calibrate`, and drawn.
#[test]
fn backtest_reads_the_template_and_draws_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "runs.csv", line(folder, "calibrate --template").ok());
    let judged = line(folder, "backtest runs.csv --figure runs.png --json").json();
    assert!(std::fs::read(folder.join("runs.png")).unwrap().starts_with(b"\x89PNG"));
    let fitted = line(folder, "calibrate runs.csv -o mine.toml --json").json();
    let (rows, runs) = (judged["rows"].as_array().unwrap(), fitted["runs"].as_array().unwrap());
    assert_eq!((rows.len(), runs.len()), (3, 3));
    for (row, run) in rows.iter().zip(runs) {
        assert_eq!(row["measured_s"], run["measured_s"]);
        let (row, before) = (row["predicted_s"].as_f64().unwrap(), run["before_s"].as_f64().unwrap());
        assert!((row / before - 1.0).abs() < 1e-9, "{row} and {before}");
    }
    let after = line(folder, "backtest runs.csv --calibration mine.toml --json").json();
    let error = |judged: &Value| judged["summary"]["all"]["errors"]["median"].as_f64().unwrap();
    assert!(error(&after) < error(&judged), "{after}");
    let refused = line(folder, "backtest runs.csv --figure runs.csv");
    assert_eq!(refused.code, Some(2), "a figure over its own table: {}", refused.err);
}
