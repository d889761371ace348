//! Plans with a profile for more devices than it measured.

use crate::common;

use common::{line, write};
use serde_json::Value;
use std::path::Path;

const PLAN: &str = "plan --model model.json --profile profile.json --global-batch 32 --json -o plan.json";

fn assumptions(plan: &Value) -> String {
    plan["assumptions"].as_array().map_or(String::new(), |all| {
        all.iter().map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join("\n")
    })
}

/// The profile of a folder, as if it had been measured on a device of the catalogue.
fn on_a_gpu(folder: &Path) {
    let path = folder.join("profile.json");
    let mut profile: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    profile["cluster"]["nodes"][0]["device"]["name"] = "NVIDIA H100 80GB HBM3".into();
    write(folder, "profile.json", profile.to_string());
}

#[test]
fn a_profile_of_two_devices_plans_for_more_and_says_what_is_not_measured() {
    let folder = common::folder(2);
    let at = folder.path();
    let own: Value = line(at, PLAN).json();
    assert_eq!(assumptions(&own), "");
    let plan: Value = line(at, &format!("{PLAN} --cluster 1x4")).json();
    assert_eq!(plan["search"]["stop_reason"], "optimal");
    assert_eq!(plan["cluster"]["nodes"][0]["devices"], 4);
    assert!(assumptions(&plan).contains("more than 2 ranks are modelled as rings"), "{}", assumptions(&plan));
    let step = |plan: &Value| plan["estimate"]["step_time_s"].as_f64().unwrap();
    assert!(step(&plan) < step(&own), "{} {}", step(&plan), step(&own));
    let again: Value = line(at, "estimate plan.json --json").json();
    assert_eq!(again["estimate"], plan["estimate"]);
    assert_eq!(again["assumptions"], plan["assumptions"]);
    assert!(line(at, "explain plan.json").ok().contains("twice the bandwidth"));
    line(at, "report plan.json -o report").ok();
    assert!(at.join("report/timeline_predicted.csv").exists());
}

#[test]
fn machines_like_the_measured_one_are_joined_by_the_described_network() {
    let folder = common::folder(2);
    let with = |network: &str| -> Value {
        line(folder.path(), &format!("{PLAN} --dp 8 --cluster 4x2@{network}")).json()
    };
    let (fast, slow) = (with("1x100gbps"), with("1x1gbps"));
    assert!(assumptions(&fast).contains("given by `--cluster`"), "{}", assumptions(&fast));
    let estimate = |plan: &Value, field: &str| plan["estimate"][field].as_f64().unwrap();
    assert!(estimate(&slow, "step_time_s") > estimate(&fast, "step_time_s"));
    let bar = |plan: &Value| estimate(plan, "step_time_spread_s") / estimate(plan, "step_time_s");
    assert!(bar(&slow) > bar(&fast), "the more of a step is unmeasured, the wider its bar");
}

#[test]
fn a_device_that_the_catalogue_knows_is_extended_by_it() {
    let folder = common::folder(2);
    let at = folder.path();
    on_a_gpu(at);
    let plan: Value =
        line(at, &format!("{PLAN} --tp 1 --pp 1 --cluster 32x1xh100-80gb-sxm@1x400gbps")).json();
    let words = assumptions(&plan);
    assert!(words.contains("between nodes is priced by the hardware catalogue"), "{words}");
    line(at, "explain plan.json").ok();
}

#[test]
fn other_devices_and_undescribed_links_are_refused() {
    let folder = common::folder(2);
    let file = "schema_version = 1\nname = \"four\"\nnetwork = { bytes_per_s = 1e9 }\n\
                [[nodes]]\ncount = 4\ndevices = 1\ndevice = { name = \"other\", memory_bytes = 8589934592 }\n";
    write(folder.path(), "four.toml", file);
    for (cluster, code, parts) in [
        ("1x4xh100-80gb-sxm", 2, ["--cluster", "h100-80gb-sxm", "synthetic"]),
        ("1x2xh100-80gb-sxm", 2, ["--cluster", "h100-80gb-sxm", "synthetic"]),
        ("four.toml", 2, ["--cluster", "other", "synthetic"]),
        ("4x2", 2, ["--cluster", "need a network", "@"]),
    ] {
        let refused = line(folder.path(), &format!("{PLAN} --cluster {cluster}"));
        assert_eq!(refused.code, Some(code), "{cluster}: {}", refused.err);
        assert!(parts.iter().all(|part| refused.err.contains(part)), "{cluster}: {}", refused.err);
    }
}
