//! The whole workflow in real processes: profile, plan, train, validate, tune.

use crate::common;

use common::{line, write};
use serde_json::Value;
use std::path::Path;

/// Trains the plan of those flags for five steps and returns the losses.
fn losses(folder: &Path, name: &str, flags: &str) -> Vec<f64> {
    line(folder, &format!("estimate --model model.json --job job.toml {flags} -o {name}.json")).ok();
    let args = format!("train {name}.json --steps 5 --no-realtime --timeout 20 --json -o {name}-run.json");
    let printed = line(folder, &args).ok();
    assert_eq!(std::fs::read_to_string(folder.join(format!("{name}-run.json"))).unwrap(), printed);
    let record: Value = serde_json::from_str(&printed).unwrap();
    let losses: Vec<f64> =
        record["steps"].as_array().unwrap().iter().map(|s| s["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 5, "{name}");
    losses
}

#[test]
fn every_split_trains_as_one_device_does() {
    let alone = losses(common::folder(1).path(), "alone", "--micro-batch 8");
    assert!(alone[4] < alone[0], "nothing is learnt: {alone:?}");
    let folder = common::folder(2);
    for (name, flags) in [
        ("dp2", "--dp 2 --micro-batch 2"),
        ("tp2", "--tp 2"),
        ("tp2-sp", "--tp 2 --sp --micro-batch 4"),
        ("pp2-1f1b", "--pp 2 --micro-batch 2 --schedule 1f1b"),
        ("pp2-gpipe", "--pp 2 --micro-batch 2 --schedule gpipe"),
        ("pp2-interleaved", "--pp 2 --micro-batch 2 --vpp 2"),
        ("pp2-recompute", "--pp 2 --micro-batch 2 --recompute full"),
        ("zero1", "--zero 1 --micro-batch 2"),
        ("zero2", "--zero 2 --micro-batch 2"),
        ("zero3", "--zero 3 --micro-batch 4 --recompute selective --bucket-bytes 1024"),
    ] {
        let split = losses(folder.path(), name, flags);
        for (step, (ours, expected)) in split.iter().zip(&alone).enumerate() {
            let error = (ours / expected - 1.0).abs();
            assert!(error < 1e-4, "{name}, step {step}: {ours} against {expected}");
        }
    }
}

const RANKS: &str = "--no-realtime --timeout 20";

/// Every run has a measurement and a prediction.
#[track_caller]
fn check_validation(validation: &Value, at_least: usize) {
    let runs = validation["runs"].as_array().unwrap();
    assert!(runs.len() >= at_least, "only {} runs", runs.len());
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
    for run in runs {
        for pointer in [
            "/measured/step_time_s",
            "/measured/peak_memory_bytes",
            "/predicted/step_time_s",
            "/predicted/peak_memory_bytes",
        ] {
            assert!(
                run.pointer(pointer).and_then(Value::as_f64).unwrap() > 0.0,
                "{pointer} of {}",
                run["label"]
            );
        }
        assert!(run["measured"]["final_loss"].as_f64().unwrap().is_finite());
        assert!(run["regret"].as_f64().unwrap() >= 0.0);
    }
}

#[test]
fn measure_plan_train_validate_explain_report() {
    let folder = common::folder(2);
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    // A space with every kind of strategy that still trains in seconds.
    let allow = "[allow]\nmicro_batch = [2, 4]\nrecompute = [\"none\", \"full\"]\nuneven_stages = false\n";
    write(folder, "space.toml", format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\n{allow}"));
    let measure = format!("profile --model model.json --job space.toml --ranks 2 --budget 1 {RANKS}");
    let profile = line(folder, &format!("{measure} --json")).json();
    assert_eq!(profile["cluster"]["nodes"][0]["devices"], 2);
    assert!(line(folder, &measure).err.contains("reused"));

    let plan = line(folder, "plan --model model.json --job space.toml -o plan.json --json").json();
    assert_eq!(plan["search"]["stop_reason"], "optimal");
    let record = line(folder, &format!("train plan.json --steps 4 {RANKS} --json")).json();
    assert_eq!(record["strategy"], plan["strategy"]);
    assert_eq!(record["ranks"].as_array().unwrap().len(), 2);

    let validation =
        line(folder, &format!("validate plan.json --all --steps 2 {RANKS} --json -o runs")).measured();
    check_validation(&validation, 30);
    assert_eq!(validation["runs"][0]["strategy"], plan["strategy"], "the planner's choice comes first");
    let kept: Value =
        serde_json::from_slice(&std::fs::read(folder.join("runs/validation.json")).unwrap()).unwrap();
    assert_eq!(kept, validation);

    for args in [
        "explain plan.json",
        "report plan.json runs/validation.json run.json -o report",
        "estimate plan.json",
    ] {
        line(folder, args).ok();
    }
    assert!(folder.join("report/report.html").exists());
}

/// Names of the files in a folder of the output, of one kind.
fn files(folder: &Path, kind: &str) -> Vec<String> {
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(kind)).collect()
}

#[test]
fn tune_does_it_all() {
    let folder = common::folder(2);
    let args = format!(
        "tune --model model.json --job job.toml --ranks 2 --budget 1 --top 3 --steps 4 {RANKS} -o tuned --json"
    );
    let tuned = line(folder.path(), &args).measured();
    check_validation(&tuned["validated"], 1);
    let made = folder.path().join("tuned");
    for name in
        ["profile.json", "plan.json", "runs/validation.json", "runs/validation.csv", "report/report.html"]
    {
        assert!(made.join(name).metadata().unwrap().len() > 0, "{name}");
    }
    let plan: Value = serde_json::from_slice(&std::fs::read(made.join("plan.json")).unwrap()).unwrap();
    assert_eq!(tuned["best"], plan);
    assert_eq!(
        files(&made.join("runs"), ".json").len(),
        1 + tuned["validated"]["runs"].as_array().unwrap().len()
    );
    assert!(!files(&made.join("report"), ".png").is_empty());
    assert!(files(&made.join("report"), ".csv").len() >= 3);
    for folder in ["", "runs", "report"] {
        assert_eq!(files(&made.join(folder), ".tmp"), Vec::<String>::new());
    }
    // The folder can be used where it is: the plan contains the path of its profile.
    line(&made, "explain plan.json").ok();
    line(folder.path(), "explain tuned/plan.json").ok();
}
