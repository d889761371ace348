//! A profile file with impossible measurements: every command that reads it reports them, and no plan uses
//! them.

use crate::common;

use autodist_cost_model::synthetic::SyntheticMachine;
use autodist_spec::{Job, Plan, Profile, Recompute, catalog, parse, to_json};
use common::{autodist, line};

/// Two devices, and segments of one probe too fast by `factor`.
fn profile(factor: f64) -> Profile {
    let model = catalog::model("tiny-llama").unwrap();
    let machine = SyntheticMachine { flops_per_s: 5e9, ..SyntheticMachine::new(2) };
    let mut profile = machine.profile(&model, &Job::new(8, 128));
    for cell in profile.segments.iter_mut().filter(|cell| {
        (cell.tensor, cell.sequence_parallel, cell.micro_batch) == (2, true, 2)
            && cell.recompute == Recompute::None
    }) {
        for part in [&mut cell.time.median_s, &mut cell.time.low_s, &mut cell.time.high_s] {
            *part = *part / factor;
        }
    }
    profile
}

const PLAN: [&str; 8] =
    ["plan", "--model", "tiny-llama", "--profile", "profile.json", "--global-batch", "8", "--json"];

#[test]
fn no_plan_rests_on_a_measurement_in_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = |factor: f64| {
        std::fs::write(folder.join("profile.json"), to_json(&profile(factor))).unwrap();
        let done = autodist(folder, &PLAN);
        let said = done.err.clone();
        let plan: Plan = parse::json("plan.json", done.ok().as_bytes()).unwrap();
        (plan, said)
    };
    let (right, said) = plan(1.0);
    assert!(!said.contains("doubt"), "{said}");
    let (careful, said) = plan(7.0);
    for word in [
        "profile.json",
        "doubtful measurement",
        "forward at ",
        "tp2 sp mb2, recompute none",
        "no plan uses it",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let s = &careful.strategy;
    assert!((s.tensor, s.sequence_parallel, s.micro_batch, s.recompute) != (2, true, 2, Recompute::None));
    assert_eq!(careful.strategy, right.strategy);
    assert!(
        careful.rejected.iter().any(|r| r.rule == "based on a doubtful measurement"),
        "{:?}",
        careful.rejected
    );

    let given = line(
        folder,
        "estimate --model tiny-llama --profile profile.json --global-batch 8 --tp 2 --sp --micro-batch 2",
    );
    assert_eq!(given.code, Some(2), "{}", given.err);
    assert!(given.err.contains("is doubtful") && given.err.contains("autodist profile"), "{}", given.err);
}

#[test]
fn noise_that_was_not_measured_is_not_called_zero() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // A missing field, an empty one, and the form of earlier versions.
    let mut document = serde_json::to_value(profile(1.0)).unwrap();
    for value in [None, Some(serde_json::Value::Null), Some(serde_json::json!(0.0))] {
        let fields = document.as_object_mut().unwrap();
        match value {
            None => fields.remove("repeatability"),
            Some(value) => fields.insert("repeatability".to_owned(), value),
        };
        std::fs::write(folder.join("profile.json"), document.to_string()).unwrap();
        autodist(folder, &[&PLAN[..], &["-o", "plan.json"]].concat()).ok();
        line(folder, "report plan.json --profile profile.json -o report").ok();
        let page = std::fs::read_to_string(folder.join("report/report.html")).unwrap();
        assert!(page.contains("not known (one round)"), "the page speaks of noise that nobody measured");
        assert!(!page.contains("0.0 %</td><td>no model"), "nobody ran a plan twice");
    }
}
