//! Plans on fewer devices than there are.

use crate::common;

use autodist_cost_model::synthetic::SyntheticMachine;
use autodist_spec::{Bytes, Job, catalog, to_json};
use common::{line, write};
use serde_json::Value;

const PAIR: &str = "--cluster 2x1xrtx4090@1x1gbps --model gpt2-medium --global-batch 64 --seq-len 1024";

fn step(plan: &Value) -> f64 {
    plan["estimate"]["step_time_s"].as_f64().unwrap()
}

fn devices(plan: &Value) -> u64 {
    let groups = plan["cluster"]["nodes"].as_array().unwrap().iter();
    groups.map(|group| group["count"].as_u64().unwrap() * group["devices"].as_u64().unwrap()).sum()
}

#[test]
fn a_slow_network_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let fewer = line(at, &format!("plan {PAIR} -o fewer.json --json")).json();
    let all = line(at, &format!("plan {PAIR} --all-devices -o all.json --json")).json();
    let alone = line(at, &format!("plan {} -o alone.json --json", PAIR.replace("2x1x", "1x1x"))).json();
    assert_eq!((devices(&fewer), devices(&all)), (1, 2));
    assert_eq!(fewer["estimate"], alone["estimate"]);
    assert_eq!(fewer["alternatives"], alone["alternatives"]);
    let gain = step(&all) / step(&fewer);
    assert!(gain > 1.5, "{gain}");
    let choice = &fewer["device_choice"];
    assert_eq!((choice["devices"].as_u64(), choice["other_devices"].as_u64()), (Some(2), Some(2)));
    assert_eq!(choice["other_step_time_s"].as_f64(), Some(step(&all)));
    let reason = choice["reason"].as_str().unwrap();
    let expected = format!("1 of 2 devices is {gain:.2} times as fast as both");
    assert!(reason.starts_with(&expected) && reason.ends_with("the other is left off"), "{reason}");
    // Who must use all of them is told the same.
    let told = &all["device_choice"];
    assert_eq!(
        (told["other_devices"].as_u64(), told["other_step_time_s"].as_f64()),
        (Some(1), Some(step(&fewer)))
    );
    assert!(told["reason"].as_str().unwrap().starts_with(&expected), "{told}");
    assert!(line(at, &format!("plan {PAIR}")).ok().contains("devices    1 of 2 devices is"));
    // The search of `estimate --best` is the same, and one strategy has no choice of devices.
    assert_eq!(line(at, &format!("estimate {PAIR} --best 5 --json")).json(), fewer);
    let refused = line(at, &format!("estimate {PAIR} --all-devices"));
    assert_eq!(refused.code, Some(2), "{}", refused.out);
    assert!(refused.err.contains("--best"), "{}", refused.err);
    // The plan of a part is a plan like any other.
    for view in
        ["explain fewer.json", "report fewer.json -o report", "export fewer.json --to megatron -o out"]
    {
        line(at, view).ok();
    }
    let script = std::fs::read_to_string(at.join("out/megatron.sh")).unwrap();
    assert!(!script.contains("NNODES=2") && !script.contains("--nnodes 2"), "{script}");
}

#[test]
fn a_slow_kind_of_nodes_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let job = "--model gpt2-xl --global-batch 64 --seq-len 1024 --json";
    let both = "1x4xh100-80gb-sxm+1x1xrtx4090@1x1gbps";
    let plan = line(folder.path(), &format!("plan --cluster {both} {job}")).json();
    let devices: Vec<&str> = plan["cluster"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["device"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(devices, ["h100-80gb-sxm"]);
    assert_eq!(plan["device_choice"]["devices"], 5);
    let alone = line(folder.path(), &format!("plan --cluster 1x4xh100-80gb-sxm@1x1gbps {job}")).json();
    assert_eq!(step(&plan), step(&alone));
}

#[test]
fn a_batch_that_all_devices_do_not_divide_is_trained_on_fewer() {
    let folder = tempfile::tempdir().unwrap();
    let job = "plan --cluster 1x5xh100-80gb-sxm --model gpt2 --global-batch 64 --seq-len 1024 --tp 1 --pp 1";
    let plan = line(folder.path(), &format!("{job} --json")).json();
    assert_eq!(devices(&plan), 4);
    let reason = plan["device_choice"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("no plan uses all 5 devices (") && reason.contains("batch"), "{reason}");
    let refused = line(folder.path(), &format!("{job} --all-devices"));
    assert_eq!(refused.code, Some(3), "{}", refused.out);
}

#[test]
fn many_devices_that_all_help_are_all_used() {
    let folder = tempfile::tempdir().unwrap();
    let job = "plan --cluster 2x8xh100-80gb-sxm@8x400gbps --model llama2-7b --global-batch 128 --seq-len 4096 --json";
    let plan = line(folder.path(), job).json();
    assert_eq!(devices(&plan), 16);
    assert!(plan["device_choice"].is_null(), "{}", plan["device_choice"]);
    assert_eq!(plan, line(folder.path(), &format!("{job} --all-devices")).json());
}

/// A profile of four ranks whose links are so slow that one of them is faster.
#[test]
fn a_measured_machine_uses_fewer_ranks_if_that_is_faster() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (model, job) = (catalog::model("tiny-llama").unwrap(), Job::new(8, 64));
    let slow = SyntheticMachine {
        bytes_per_s: 1e5,
        latency_s: 5e-2,
        memory_bytes: Bytes(1 << 30),
        ..SyntheticMachine::new(4)
    };
    write(at, "profile.json", to_json(&slow.profile(&model, &job)));
    let plan = line(at, "plan --global-batch 8 --fewer-devices -o plan.json --json").json();
    assert_eq!(devices(&plan), 1, "{}", plan["device_choice"]);
    let reason = plan["device_choice"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("1 of 4 devices is ") && reason.contains("times as fast as all 4"),
        "{reason}"
    );
    // Ranks that were measured are all used unless fewer are asked for, but the answer says so.
    let all = line(at, "plan --global-batch 8 --json").json();
    assert_eq!(devices(&all), 4);
    let told = all["device_choice"]["reason"].as_str().unwrap();
    assert!(
        told.starts_with("1 of 4 devices is ") && told.ends_with("`--fewer-devices` plans for it"),
        "{told}"
    );
    assert_eq!(all, line(at, "plan --global-batch 8 --all-devices --json").json());
    assert_eq!(line(at, "plan --global-batch 8 --all-devices --fewer-devices").code, Some(2));
    assert!(step(&all) > 1.01 * step(&plan), "{} {}", step(&all), step(&plan));
    // It can be trained, and validated, on as many ranks as it uses.
    let run = line(at, "train plan.json --steps 2 --no-realtime -o run.json --json").json();
    assert_eq!(run["ranks"].as_array().unwrap().len(), 1);
    line(at, "explain plan.json").ok();
}
