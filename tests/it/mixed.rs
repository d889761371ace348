//! Plans for clusters with more than one kind of node.

use crate::common;

use common::{line, write};
use serde_json::Value;
use std::path::Path;

const JOB: &str = "--model llama2-7b --global-batch 64 --seq-len 4096 --json";

fn plan(folder: &Path, cluster: &str, flags: &str) -> Value {
    line(folder, &format!("plan --cluster {cluster} {JOB} {flags}")).json()
}

fn step(plan: &Value) -> f64 {
    plan["estimate"]["step_time_s"].as_f64().unwrap()
}

fn layers(plan: &Value) -> Vec<u64> {
    let stages = plan["stages"].as_array().unwrap().iter();
    stages
        .map(|stage| stage["end_layer"].as_u64().unwrap() - stage["first_layer"].as_u64().unwrap())
        .collect()
}

#[test]
fn each_stage_has_the_price_and_the_memory_of_its_own_devices() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let both = plan(
        at,
        "1x8xh100-80gb-sxm+1x8xa100-40gb-sxm@8x400gbps",
        "--pp 2 --dp 2 --tp 4 --vpp 1 -o plan.json",
    );
    let fast = plan(at, "2x8xh100-80gb-sxm@8x400gbps", "--pp 2 --dp 2 --tp 4 --vpp 1");
    let slow = plan(at, "2x8xa100-40gb-sxm@8x400gbps", "--pp 2 --dp 2 --tp 4 --vpp 1");
    assert!(step(&fast) < step(&both) && step(&both) < step(&slow), "{both}");
    let counts = layers(&both);
    assert!(counts[0] > counts[1] + 4, "the faster devices have more layers: {counts:?}");
    let text = line(at, "estimate plan.json").ok();
    assert!(text.contains("80.0 GiB (h100-80gb-sxm)"), "{text}");
    let memory = |rank: usize| both["estimate"]["stages"][rank]["memory"].as_object().unwrap().values();
    let total = |rank: usize| memory(rank).map(|bytes| bytes.as_u64().unwrap()).sum::<u64>();
    assert!(total(0) > 30 << 30, "the first stage needs more than its neighbour has: {}", total(0));
    assert!(total(1) < 40 << 30);
    for view in ["explain plan.json", "report plan.json -o report", "export plan.json --to megatron -o out"] {
        line(at, view).ok();
    }

    let script = std::fs::read_to_string(at.join("out/megatron.sh")).unwrap();
    assert!(script.contains("this order: node 0: 8 x h100-80gb-sxm; node 1: 8 x a100-40gb-sxm"), "{script}");
}

#[test]
fn the_order_of_the_nodes_is_searched() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let flags = "--pp 2 --dp 2 --tp 4 --vpp 1";
    let orders =
        ["1x8xh100-80gb-sxm+1x8xa100-40gb-sxm@8x400gbps", "1x8xa100-40gb-sxm+1x8xh100-80gb-sxm@8x400gbps"];
    let answers = orders.map(|cluster| line(at, &format!("plan --cluster {cluster} {JOB} {flags}")));
    let plans = answers.each_ref().map(|answer| -> Value { serde_json::from_str(&answer.out).unwrap() });
    for part in ["stages", "strategy", "estimate"] {
        assert_eq!(plans[0][part], plans[1][part], "{part}");
    }
    assert_eq!(plans[0]["cluster"]["nodes"], plans[1]["cluster"]["nodes"]);
    let note = "the order of the nodes is changed to";
    let changed = answers.each_ref().map(|answer| answer.err.contains(note));
    assert_eq!(changed, [false, true], "{}", answers[1].err);
}

#[test]
fn equal_nodes_at_both_ends_have_the_price_of_their_own_devices() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let apart = "1x8xh100-80gb-sxm+1x8xa100-80gb-sxm+1x8xh100-80gb-sxm@8x400gbps";
    let job = JOB.replace("--global-batch 64", "--global-batch 96");
    let of = |cluster: &str, more: &str| line(at, &format!("plan --cluster {cluster} {job} {more}")).json();
    let (apart, beside) =
        (of(apart, "-o plan.json"), of("2x8xh100-80gb-sxm+1x8xa100-80gb-sxm@8x400gbps", ""));
    assert!((step(&apart) / step(&beside) - 1.0).abs() < 1e-9, "{} {}", step(&apart), step(&beside));
    for view in ["estimate plan.json", "explain plan.json"] {
        line(at, view).ok();
    }
}

#[test]
fn a_time_limit_says_which_orders_of_the_nodes_it_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = "1x8xa100-80gb-sxm+1x8xh100-80gb-sxm+1x8xl40s@8x400gbps";
    let stopped = line(folder.path(), &format!("plan --cluster {cluster} {JOB} --time-limit 0"));
    match stopped.code {
        Some(0) => {
            let plan: Value = serde_json::from_str(&stopped.out).unwrap();
            assert_eq!(plan["search"]["stop_reason"], "time_limit");
            assert!(stopped.err.contains("orders of the nodes unsearched"), "{}", stopped.err);
        }
        code => {
            assert_eq!(code, Some(3), "{}", stopped.err);
            assert!(stopped.err.contains("the search reached its limit"), "{}", stopped.err);
        }
    }
}

#[test]
fn replicas_wait_for_the_slowest_device() {
    let folder = tempfile::tempdir().unwrap();
    let flags = "--pp 1 --tp 8 --dp 2 --trainer fsdp2";
    let both = plan(folder.path(), "1x8xh100-80gb-sxm+1x8xa100-80gb-sxm@8x400gbps", flags);
    let slow = plan(folder.path(), "2x8xa100-80gb-sxm@8x400gbps", flags);
    let ratio = step(&both) / step(&slow);
    assert!((0.999..1.001).contains(&ratio), "{ratio}");
    // Their memory is that of the smallest.
    let cluster = "1x8xh100-80gb-sxm+1x8xa100-40gb-sxm@8x400gbps";
    let large = "plan --model llama2-13b --tp 1 --dp 16 --pp 1 --global-batch 16 --seq-len 4096 --trainer megatron-core";
    let refused = line(folder.path(), &format!("{large} --cluster {cluster}"));
    assert_eq!(refused.code, Some(3), "{}", refused.err);
    assert!(refused.err.contains("40.0 GiB"), "{}", refused.err);
}

#[test]
fn groups_of_equal_nodes_are_one_kind() {
    let folder = tempfile::tempdir().unwrap();
    let one = plan(folder.path(), "4x8xh100-80gb-sxm@8x400gbps", "");
    let two = plan(folder.path(), "1x8xh100-80gb-sxm+3x8xh100-80gb-sxm@8x400gbps", "");
    for part in ["estimate", "strategy", "stages", "search", "alternatives"] {
        assert_eq!(one[part], two[part], "{part}");
    }
}

#[test]
fn nodes_that_differ_only_in_their_links_are_of_two_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = |rate: &str| {
        format!(
            "[[nodes]]\ncount = 1\ndevices = 8\ndevice = \"h100-80gb-sxm\"\nuplink = {{ bytes_per_s = {rate} }}\n"
        )
    };
    let with = |name: &str, rates: [&str; 2]| {
        let text = format!("schema_version = 1\nname = \"two\"\n{}{}", nodes(rates[0]), nodes(rates[1]));
        write(folder.path(), name, text);
        step(&plan(folder.path(), name, "--tp 1 --pp 1 --dp 16"))
    };
    let (fast, slow) = (with("fast.toml", ["400e9", "400e9"]), with("slow.toml", ["2e9", "2e9"]));
    let both = [with("a.toml", ["400e9", "2e9"]), with("b.toml", ["2e9", "400e9"])];
    assert!(slow > 1.2 * fast, "{slow} {fast}");
    assert!(both.iter().all(|step| (step / slow - 1.0).abs() < 1e-6), "{both:?} {slow}");
}

#[test]
fn a_profile_has_the_prices_of_one_kind_only() {
    let folder = common::folder(2);
    let mixed = "schema_version = 1\nname = \"two\"\nnetwork = { bytes_per_s = 1e9 }\n\
                 [[nodes]]\ncount = 1\ndevices = 1\ndevice = { name = \"a\", memory_bytes = 8589934592 }\n\
                 [[nodes]]\ncount = 1\ndevices = 1\ndevice = { name = \"b\", memory_bytes = 8589934592 }\n";
    write(folder.path(), "mixed.toml", mixed);
    let refused = line(folder.path(), "plan --cluster mixed.toml --profile profile.json");
    assert!(refused.err.contains("profile"), "{}", refused.err);
}
