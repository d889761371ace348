//! Emulation of slow and asymmetric networks: profile, plan and train.

use crate::common;

use autodist_spec::{ModelSpec, to_json};
use common::{line, write};
use serde_json::Value;

/// Three machines of one device each; the last has a slow uplink.
const CLUSTER: &str = r#"
schema_version = 1
name = "slow"

[[nodes]]
count = 2
devices = 1
device = { name = "emulated", memory_bytes = 1073741824, peak_flops_per_s = 5e9 }
uplink = { bytes_per_s = 50e6, latency_s = 0.0002 }

[[nodes]]
count = 1
devices = 1
device = { name = "emulated", memory_bytes = 1073741824, peak_flops_per_s = 5e9 }
uplink = { bytes_per_s = 10e6, latency_s = 0.0002 }
"#;

const JOB: &str = r#"
schema_version = 1
global_batch = 6
seq_len = 16

[allow]
tensor = [1]
pipeline = [1]
micro_batch = [2]
recompute = ["none"]
zero_stage = [0]
codecs = ["none", "bf16", { powersgd = { rank = 2, start_step = 0 } }]
"#;

/// A folder with that cluster, that job, and a model whose gradients take tens of milliseconds on the slow
/// link.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = ModelSpec { hidden: 64, head_dim: 16, ffn: 128, ..common::small_model() };
    write(folder.path(), "model.json", to_json(&model));
    write(folder.path(), "slow.toml", CLUSTER);
    write(folder.path(), "job.toml", JOB);
    folder
}

#[test]
fn a_slow_link_is_measured_planned_around_and_trained_over() {
    let folder = folder();
    let flags = "--model model.json --job job.toml --emulate slow.toml --budget 1 --timeout 30 --json";
    let profile = line(folder.path(), &format!("profile {flags}")).json();
    assert_eq!(profile["environment"]["emulated"], true);
    let rate = |name: &str| {
        let links = profile["network"]["links"].as_array().unwrap();
        links.iter().find(|link| link["name"] == name).unwrap()["bytes_per_s"].as_f64().unwrap()
    };
    // Emulated links are never faster than specified, and the slow one is identified.
    assert!(rate("node 2 up") < 1.1 * 10e6 && rate("node 0 up") < 1.1 * 50e6, "{}", profile["network"]);
    assert!(rate("node 0 up") > 1.5 * rate("node 2 up"), "{}", profile["network"]);

    let plan = line(
        folder.path(),
        "plan --model model.json --job job.toml --profile profile.json -o plan.json --json",
    )
    .json();
    assert_eq!(plan["cost_source"]["profile"]["emulated"], true);
    for share in plan["collectives"].as_array().unwrap() {
        assert!(share["lower_bound_s"].as_f64() <= share["time_s"].as_f64(), "{share}");
    }
    let codecs = plan["codecs"].as_array().unwrap();
    assert_eq!(codecs.len(), 2);
    assert!(codecs.iter().all(|verdict| !verdict["reason"].as_str().unwrap().is_empty()));

    let validation =
        line(folder.path(), "validate plan.json --all --steps 2 --timeout 30 --json -o runs").measured();
    let runs = validation["runs"].as_array().unwrap();
    assert!(validation["failed"].as_array().unwrap().is_empty(), "{}", validation["failed"]);
    // Without a codec and with each codec; every placement loads the links of a ring equally.
    assert_eq!(runs.len(), 3);
    let gains = validation["gains"].as_array().unwrap();
    assert!(gains.len() == 2 && gains.iter().all(|gain| gain["predicted"].is_f64()), "{gains:?}");
    let records = std::fs::read_dir(folder.path().join("runs")).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.file_name()?.to_str()?.starts_with("00").then_some(path)
    });
    for path in records {
        let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(record["environment"]["emulated"], true);
    }
}

#[test]
fn what_a_codec_costs_in_steps_is_a_prior_until_it_is_probed() {
    let folder = folder();
    let flags = "--model model.json --job job.toml --emulate slow.toml --budget 1 --timeout 30 --json";
    line(folder.path(), &format!("profile {flags}")).json();
    let search = "plan --model model.json --job job.toml --profile profile.json -o plan.json --json";
    let codecs = |plan: &Value| plan["codecs"].as_array().unwrap().clone();
    let before = line(folder.path(), search).json();
    assert!(codecs(&before).iter().all(|verdict| verdict["slowdown"]["provenance"] == "assumed"));
    let validation =
        line(folder.path(), "validate plan.json --probe 20 --steps 2 --timeout 30 --json -o runs").measured();
    let probes = validation["probes"].as_array().unwrap();
    assert_eq!(probes.len(), 2);
    // Rounding to bfloat16 hardly affects the loss.
    let of = |list: &[Value], codec: &str| list.iter().find(|p| p["codec"] == codec).unwrap().clone();
    let bf16 = of(probes, "bf16");
    let (loss, exact) = (bf16["loss"].as_f64().unwrap(), bf16["exact_loss"].as_f64().unwrap());
    assert!((loss / exact - 1.0).abs() < 0.02, "{bf16}");
    let after = line(folder.path(), &format!("{search} --probes runs/validation.json")).json();
    let measured = of(&codecs(&after), "bf16")["slowdown"].clone();
    assert_eq!(measured["provenance"], "measured");
    assert_eq!(measured["factor"].as_f64().unwrap(), bf16["slowdown"].as_f64().unwrap().max(1.0));
    let refused = line(folder.path(), &format!("{search} --probes plan.json"));
    assert_eq!(refused.code, Some(2), "{}", refused.err);
}

#[test]
fn what_cannot_be_emulated_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    for (name, from, to, expected) in [
        ("speed", ", peak_flops_per_s = 5e9", "", "nodes[0].device.peak_flops_per_s"),
        ("uplink", "uplink = { bytes_per_s = 50e6, latency_s = 0.0002 }", "", "network"),
        ("kinds", "10e6", "10e6, kind = 1", "kind"),
        ("rate", "bytes_per_s = 10e6", "bytes_per_s = 0", "nodes[1].uplink.bytes_per_s"),
        ("shape", "devices = 1\n", "devices = 2\n", "nodes[0].link"),
    ] {
        let file = format!("{name}.toml");
        write(folder.path(), &file, CLUSTER.replace(from, to));
        let finished = line(folder.path(), &format!("profile --emulate {file}"));
        assert_eq!(finished.code, Some(2), "{name}: {}", finished.err);
        assert!(
            finished.err.contains(expected) && finished.err.contains("hint:"),
            "{name}: {}",
            finished.err
        );
    }
}
