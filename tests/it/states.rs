//! Bits and places of weights, gradients and optimizer state, from the command line and from trainers' files.

use crate::common;

use common::{line, write};
use serde_json::Value;

const LLAMA: &str = "estimate --model llama3-70b --cluster 1x8xa100-80gb-sxm --zero 3 --dp 8 --micro-batch 1 --global-batch 8 \
                     --seq-len 4096 --recompute full";

#[test]
fn a_model_that_does_not_fit_is_trained_with_its_state_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let on_device = line(folder.path(), &format!("{LLAMA} --trainer deepspeed"));
    assert!(on_device.out.contains("does NOT fit"), "{}", on_device.out);
    let flags = "--trainer deepspeed --offload-optimizer --offload-parameters";
    let run = line(folder.path(), &format!("{LLAMA} {flags} -o plan.json"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    for text in [
        "fits: ",
        "optimizer state in host memory, parameters in host memory",
        "of each node's host",
        "25 GB/s",
    ] {
        assert!(run.out.contains(text), "`{text}` is not in {}", run.out);
    }
    let document: Value = line(folder.path(), &format!("{LLAMA} {flags} --json")).json();
    let gib = document["estimate"]["host_memory_bytes"].as_f64().unwrap() / f64::from(1 << 30);
    // 18 bytes a parameter: weights, gradients in fp32, master weights and moments.
    assert!((gib / (18.0 * 70.55e9 / f64::from(1 << 30)) - 1.0).abs() < 0.02, "{gib}");
    assert_eq!(document["job"]["states"], serde_json::json!({"optimizer": "host", "parameters": "host"}));
    // The plan is priced again as it was, and exported; engines of autodist refuse to train it.
    let again = line(folder.path(), "estimate plan.json");
    assert!(again.out.contains("optimizer state in host memory"), "{}{}", again.out, again.err);
    let exported = line(folder.path(), "export plan.json --to deepspeed -o out");
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    let config = std::fs::read_to_string(folder.path().join("out/ds_config.json")).unwrap();
    assert!(config.contains("offload_param"), "{config}");
    let refused = line(folder.path(), "export plan.json --to megatron -o other");
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("job.states.parameters"), "{}", refused.err);
    let trained = line(folder.path(), "train plan.json --steps 1");
    assert_eq!(trained.code, Some(2), "{}", trained.err);
    assert!(trained.err.contains("states.optimizer"), "{}", trained.err);
}

#[test]
fn the_memory_of_a_known_host_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = |bytes: &str| {
        format!(
            "schema_version = 1\nname = \"known hosts\"\n[[nodes]]\ncount = 1\ndevices = 8\ndevice = \"a100-80gb-sxm\"\n\
             host = {{ memory_bytes = \"{bytes}\", link_bytes_per_s = 20e9 }}\n"
        )
    };
    write(folder.path(), "small.toml", cluster("512GiB"));
    write(folder.path(), "large.toml", cluster("2TiB"));
    let flags = "--trainer deepspeed --offload-optimizer --offload-parameters";
    let on =
        |file: &str| line(folder.path(), &LLAMA.replace("1x8xa100-80gb-sxm", &format!("{file} {flags}")));
    let (small, large) = (on("small.toml"), on("large.toml"));
    assert_eq!(large.code, Some(0), "{}", large.err);
    assert!(large.out.contains("of 2.00 TiB") && !large.out.contains("25 GB/s"), "{}", large.out);
    assert_eq!(small.code, Some(3), "{}", small.out);
    assert!(small.out.contains("does NOT fit into the memory of the host"), "{}", small.out);
    assert!(small.err.contains("512 GiB"), "{}", small.err);
    let best =
        format!("plan --model llama3-70b --cluster small.toml {flags} --global-batch 8 --seq-len 4096");
    assert_eq!(line(folder.path(), &best).code, Some(3));
}

#[test]
fn wrong_settings_are_refused_with_the_flag_or_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, field) in [
        ("--trainer deepspeed --moment-bits 4", "--moment-bits"),
        ("--trainer megatron-core --master-bits 0", "--master-bits"),
        ("--trainer fsdp2 --offload-optimizer", "--offload-optimizer"),
        ("--trainer fsdp2 --offload-parameters nvme", "--offload-parameters"),
        ("--trainer deepspeed --offload-part 0.5", "--offload-part"),
        ("--trainer fsdp2 --second-shard 8", "--second-shard"),
    ] {
        let run = line(folder.path(), &format!("{LLAMA} {flags}"));
        assert_eq!(run.code, Some(2), "{flags}: {}{}", run.out, run.err);
        assert!(run.err.contains(field), "{flags}: {}", run.err);
    }
    let file = r#"{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true},
                   "zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}"#;
    write(folder.path(), "ds.json", file);
    let from =
        "estimate --from deepspeed ds.json --model llama3-8b --cluster 1x8xa100-80gb-sxm --seq-len 2048";
    let run = line(folder.path(), from);
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("ds.json") && run.err.contains("offload_param.device"), "{}", run.err);
    // A flag overrides the file.
    let run = line(folder.path(), &format!("{from} --offload-parameters device"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    // Profiles are of the engines' own training.
    write(
        folder.path(),
        "job.toml",
        "schema_version = 1\nglobal_batch = 8\nseq_len = 64\n[states]\nmoment_bits = [8, 8]\n",
    );
    let run = line(folder.path(), "profile --job job.toml");
    assert_ne!(run.code, Some(0));
    assert!(run.err.contains("states.moment_bits"), "{}", run.err);
}
