//! Refuted predictions are reported, measured again, and not handed over: the resulting plan is the fastest
//! measured one.

use crate::common;

use common::processes::{children, kill, wait};
use common::{AUTODIST, Finished, command, edited, line, write};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

const RANKS: &str = "--no-realtime --timeout 20";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Plans of a document, its choice first.
fn plans(document: &Value) -> Vec<Value> {
    let alternatives = document["alternatives"].as_array().unwrap().iter().map(|a| a["strategy"].clone());
    std::iter::once(document["strategy"].clone()).chain(alternatives).collect()
}

/// Plans of a validation, the fastest first.
fn fastest_first(validation: &Value) -> Vec<Value> {
    let mut runs = validation["runs"].as_array().unwrap().clone();
    let time = |run: &Value| run["measured"]["adjusted_step_time_s"].as_f64().unwrap();
    runs.sort_by(|a, b| time(a).total_cmp(&time(b)));
    runs.iter().map(|run| run["strategy"].clone()).collect()
}

/// Multiplies all times of an estimate.
fn scale(estimate: &mut Value, factor: f64) {
    let Value::Object(fields) = estimate else {
        estimate.as_array_mut().into_iter().flatten().for_each(|one| scale(one, factor));
        return;
    };
    for (name, value) in fields {
        match value.as_f64() {
            Some(rate) if name == "tokens_per_s" => *value = json!(rate / factor),
            Some(time) if name.ends_with("_s") => *value = json!(time * factor),
            _ => scale(value, factor),
        }
    }
}

/// A folder with a plan document of `top` strategies, whose choice is predicted to take `factor` times its
/// true step time.
fn folder(top: usize, factor: f64) -> tempfile::TempDir {
    let folder = common::folder(2);
    let search = format!("plan --model model.json --job job.toml --top {top} -o plan.json --json");
    let mut plan = line(folder.path(), &search).json();
    scale(&mut plan["estimate"], factor);
    write(folder.path(), "plan.json", plan.to_string());
    folder
}

#[test]
fn a_refuted_choice_is_named_and_the_document_begins_with_the_fastest_measured_plan() {
    let folder = folder(3, 1e-3);
    let folder = folder.path();
    let before = read(&folder.join("plan.json"));
    let found = line(folder, &format!("validate plan.json --top 3 --steps 6 {RANKS}"));
    assert_eq!(found.code, Some(5), "{}", found.err);
    assert!(found.err.contains("error: REFUTED: the planner's choice"), "{}", found.err);
    let lines: Vec<&str> = found.out.lines().collect();
    assert!(
        lines[0].starts_with("plan ") && found.out.find("REFUTED") < found.out.find("\n#"),
        "{}",
        found.out
    );

    let validation = read(&folder.join("runs/validation.json"));
    assert_eq!(
        (&validation["verdict"], &validation["runs"][0]["verdict"]),
        (&json!("refuted"), &json!("refuted"))
    );
    let after = read(&folder.join("plan.json"));
    assert_eq!(plans(&after), fastest_first(&validation));
    assert_eq!(after["measured"]["verdict"], "refuted");
    assert!(after["measured"]["refuted"].as_array().unwrap().contains(&before["strategy"]));
    // `train` and `export` use that plan.
    let record = line(folder, &format!("train plan.json --steps 2 {RANKS} --json")).json();
    assert_eq!(record["strategy"], fastest_first(&validation)[0]);

    line(folder, "report plan.json runs/validation.json -o report").ok();
    let page = std::fs::read_to_string(folder.join("report/report.html")).unwrap();
    let first_screen = &page[..page.find("<main").unwrap()];
    assert!(first_screen.contains("REFUTED") && !first_screen.contains("ptimal"), "{first_screen}");
    // A plan document in the folder is not one of the runs of a report.
    std::fs::copy(folder.join("plan.json"), folder.join("runs/plan.json")).unwrap();
    line(folder, "report plan.json runs/plan.json runs/validation.json -o report").ok();
}

#[test]
fn a_plan_that_cannot_be_replaced_is_written_beside_its_runs() {
    let folder = folder(2, 1.0);
    let folder = folder.path();
    let shell = format!("{AUTODIST} validate /dev/stdin --top 2 --steps 2 {RANKS} < plan.json");
    let before = read(&folder.join("plan.json"));
    let output = std::process::Command::new("sh").args(["-c", &shell]).current_dir(folder).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!([Some(0), Some(5)].contains(&output.status.code()), "{err}");
    let after = match read(&folder.join("plan.json")) {
        same if same == before => read(&folder.join("runs/plan.json")),
        replaced => replaced,
    };
    assert!(after["measured"].is_object(), "{err}");
}

#[test]
fn a_choice_that_did_not_run_is_unknown_and_the_others_are_kept() {
    let folder = folder(3, 1.0);
    let folder = folder.path();
    let args = format!("validate plan.json --top 3 --steps 10 {RANKS}");
    let mut job = command(folder, &args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
    let mut ranks = Vec::new();
    wait(Duration::from_secs(30), || {
        ranks = children(job.id() as i32);
        ranks.len() == 2
    });
    // The first plan of the first round is the choice.
    kill(ranks[1], libc::SIGKILL);
    let mut code = None;
    wait(Duration::from_secs(120), || {
        code = job.try_wait().unwrap();
        code.is_some()
    });
    let (mut out, mut err) = (String::new(), String::new());
    job.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    job.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let Finished { code, out, err } = Finished { code: code.unwrap().code(), out, err };
    assert_eq!(code, Some(4), "{err}");
    for text in ["DID NOT RUN", "(the planner's choice)", "unknown: the planner's choice did not run"] {
        assert!(out.contains(text), "`{text}` is missing in\n{out}");
    }
    assert!(!out.contains("was the fastest"), "{out}");
    let validation = read(&folder.join("runs/validation.json"));
    assert_eq!((validation.get("verdict"), validation.get("regret")), (None, None));
    assert_eq!(validation["runs"].as_array().unwrap().len(), 2);
    assert_eq!(validation["failed"].as_array().unwrap().len(), 1);
    let after = read(&folder.join("plan.json"));
    assert_eq!(plans(&after)[..2], fastest_first(&validation));
}

#[test]
fn one_plan_alone_is_not_the_fastest_of_any() {
    let folder = folder(1, 1.0);
    let found = line(folder.path(), &format!("validate plan.json --steps 2 {RANKS}"));
    assert!([Some(0), Some(5)].contains(&found.code), "{}", found.err);
    assert!(
        found.out.contains("the only plan that ran") && !found.out.contains("fastest of"),
        "{}",
        found.out
    );
}

#[test]
fn any_plan_of_the_document_can_be_taken_by_its_number() {
    let folder = folder(3, 1.0);
    let folder = folder.path();
    let plans = plans(&read(&folder.join("plan.json")));
    for (number, expected) in plans.iter().enumerate() {
        let args = format!("train plan.json --plan {} --steps 2 {RANKS} --json", number + 1);
        assert_eq!(line(folder, &args).json()["strategy"], *expected);
    }
    let export = |number: usize| {
        line(folder, &format!("export plan.json --plan {number} --to slurm -o export-{number}")).ok()
    };
    assert_ne!(export(1).lines().next(), export(2).lines().next());
    line(folder, "explain plan.json --plan 2").ok();
    line(folder, "report plan.json --plan 2 -o report").ok();
    for (number, problem) in [("4", "plan.json holds only 3 plans"), ("0", "from 1 to 3")] {
        let refused = line(folder, &format!("train plan.json --plan {number} --steps 2"));
        assert_eq!(refused.code, Some(2), "{}", refused.err);
        assert!(refused.err.contains("--plan") && refused.err.contains(problem), "{}", refused.err);
    }
}

/// Makes the cells of one tensor degree and micro-batch so fast that noise cannot hide it.
fn doctor(profile: &Value) -> Value {
    let mut profile = profile.clone();
    for cell in profile["segments"].as_array_mut().unwrap() {
        if cell["tensor"] == 2 && cell["micro_batch"] == 8 {
            for part in ["median_s", "low_s", "high_s"] {
                cell["time"][part] = json!(cell["time"][part].as_f64().unwrap() / 30.0);
            }
        }
    }
    profile
}

#[test]
fn tune_measures_again_what_a_refuted_plan_stands_on_and_hands_over_the_fastest_measured() {
    let folder = common::folder(2);
    let folder = folder.path();
    let model = edited(&read(&folder.join("model.json")), "/ffn", Some(json!(512)));
    let model = edited(&edited(&model, "/hidden", Some(json!(128))), "/head_dim", Some(json!(32)));
    write(folder, "model.json", edited(&model, "/max_seq_len", Some(json!(64))).to_string());
    let allow = "[allow]\npipeline = [1]\nmicro_batch = [4, 8]\nrecompute = [\"none\"]\nzero_stage = [0]\n";
    write(folder, "job.toml", format!("schema_version = 1\nglobal_batch = 8\nseq_len = 64\n{allow}"));
    let job = format!("--model model.json --job job.toml --ranks 2 --budget 0.5 {RANKS}");
    let profile = line(folder, &format!("profile {job} -o tuned/profile.json --json")).json();
    let doctored = doctor(&profile);
    write(&folder.join("tuned"), "profile.json", doctored.to_string());
    let tune = format!("tune {job} --top 3 --steps 10 -o tuned");
    let found = line(folder, &tune);
    assert!([Some(0), Some(5)].contains(&found.code), "{}", found.err);
    let made = folder.join("tuned");
    let repaired = read(&made.join("profile.json"));
    assert_ne!(repaired["segments"], doctored["segments"], "{}", found.err);
    // On a quiet machine the cells are detected before any plan uses them; otherwise by training a plan.
    let said = ["measuring those again", "REFUTED"];
    assert!(said.iter().any(|words| found.err.contains(words)), "the wrong cells are said: {}", found.err);
    let validation = read(&made.join("runs/validation.json"));
    let plan = read(&made.join("plan.json"));
    assert_eq!(plans(&plan), fastest_first(&validation));
    assert_eq!(validation["verdict"] == "refuted", found.code == Some(5), "{}", found.err);
    // The norms, which only other probes measure, are still in the profile.
    for cost in repaired["optimizer"].as_array().unwrap() {
        assert!(cost["norm"]["median_s"].as_f64().unwrap() > 0.0, "{cost}");
    }
    // The result comes first.
    let lines: Vec<&str> = found.out.lines().collect();
    assert!(
        lines[0].starts_with("plan ") && found.out.find("verdict ") < found.out.find("\n#"),
        "{}",
        found.out
    );
    line(&made, "explain plan.json").ok();
}

#[test]
fn a_profile_that_led_to_a_refuted_plan_is_not_used_again_as_it_is() {
    let folder = common::folder(2);
    let folder = folder.path();
    let job = format!(
        "--model model.json --job job.toml --ranks 2 --tp 1 --pp 1 --micro-batch 2 --budget 0.2 {RANKS}"
    );
    let tune = format!("tune {job} --top 1 --steps 2 -o tuned --json");
    line(folder, &tune).measured();
    let path = folder.join("tuned/plan.json");
    let plan = read(&path);
    let refuted = json!([plan["strategy"]]);
    write(&folder.join("tuned"), "plan.json", edited(&plan, "/measured/refuted", Some(refuted)).to_string());
    let again = line(folder, &tune);
    assert!(again.err.contains("led to plans that the measurement refuted"), "{}", again.err);
    assert!(again.err.contains("continuing with it"), "{}", again.err);
    again.measured();
}
