//! Tests that need a real GPU. Without one, each test prints why it was skipped, without the test runner's
//! capture of output. `just test-gpu` runs this list.

use crate::common;

use common::line;
use serde_json::Value;
use std::io::Write;

/// Number of usable GPUs of this machine; `None` without any, after printing the reason.
fn gpus(test: &str) -> Option<usize> {
    let reason = match autodist_executor::cuda::survey() {
        Err(absent) => absent.brief,
        Ok(found) if found.accelerators[0].name.starts_with("Software") => {
            "this is the software GPU".to_owned()
        }
        Ok(found) => return Some(found.accelerators.len()),
    };
    // The harness hides the output of passing tests.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: it needs a GPU, and {reason}");
    None
}

#[test]
fn every_kernel_and_layer_computes_what_the_cpu_computes() {
    let Some(_) = gpus("the self-test") else { return };
    let report = line(common::folder(1).path(), "selftest --device cuda --json").json();
    assert_eq!(report["passed"], true, "{report}");
}

/// Profiles, plans, and trains every plan on `ranks` ranks; returns the validation.
fn validated(ranks: usize, precision: &str, more: &str) -> Value {
    let folder = common::folder(1);
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    let common = format!("--model tiny-llama --precision {precision} --global-batch 8 --seq-len 128");
    line(folder, &format!("profile {common} --devices cuda --ranks {ranks} {more} --budget 30")).ok();
    line(folder, &format!("plan {common} -o plan.json --json")).ok();
    let validation = line(folder, "validate plan.json --all --steps 10 --json -o runs").measured();
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
    validation
}

/// Every plan of the space is trained to the same loss in about the predicted memory.
#[track_caller]
fn check(validation: &Value, rounding: f64) {
    let runs = validation["runs"].as_array().unwrap();
    let loss = |run: &Value| run["measured"]["final_loss"].as_f64().unwrap();
    for run in runs {
        assert!((loss(run) / loss(&runs[0]) - 1.0).abs() < rounding, "{}", run["label"]);
        let error = run["peak_memory_error"].as_f64().unwrap();
        assert!(error.abs() < 0.05, "{}: {error}", run["label"]);
    }
}

#[test]
fn one_gpu_trains_every_plan_in_every_precision() {
    let Some(_) = gpus("every plan on one GPU") else { return };
    for (precision, rounding) in [("fp32", 1e-3), ("tf32", 1e-2), ("bf16", 1e-2)] {
        check(&validated(1, precision, ""), rounding);
    }
}

#[test]
fn two_ranks_share_a_gpu() {
    let Some(_) = gpus("two ranks on one GPU") else { return };
    check(&validated(2, "fp32", "--oversubscribe"), 1e-3);
}

#[test]
fn several_gpus_train_every_plan_over_nccl() {
    let Some(count) = gpus("several GPUs") else { return };
    if count < 2 {
        let _ = writeln!(std::io::stderr(), "SKIPPED several GPUs: this machine has one");
        return;
    }
    check(&validated(2, "bf16", ""), 1e-2);
}
