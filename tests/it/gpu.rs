//! The whole workflow on GPUs, with the software GPU as a mock: profile, plan, train, validate, and all
//! errors of unusable GPUs. The measured times here have no meaning.

use crate::common;

use autodist_software_gpu::{SoftwareGpus, without};
use common::{AUTODIST, Finished, command};
use serde_json::{Value, json};
use std::path::Path;

/// `autodist` with these arguments on that machine.
fn on(machine: &SoftwareGpus, folder: &Path, args: &str) -> Finished {
    let mut command = command(folder, &args.split_whitespace().collect::<Vec<_>>());
    // Kernels are cached in the tests' own folder.
    let output = machine.apply(&mut command).env("XDG_CACHE_HOME", folder).output().unwrap();
    Finished {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder with a small model, a job, and a profile of GPUs in `precision` (its times are made up).
fn folder(devices: u32, precision: &str) -> tempfile::TempDir {
    let folder = common::folder(devices);
    let path = folder.path().join("profile.json");
    let mut profile: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    profile["environment"]["devices"] = "cuda".into();
    profile["precision"] = precision.into();
    std::fs::write(path, profile.to_string()).unwrap();
    folder
}

const RANKS: &str = "--timeout 60";

/// Writes the plan of those flags and trains it for five steps.
fn train(machine: &SoftwareGpus, folder: &Path, flags: &str) -> Finished {
    let precision =
        serde_json::from_slice::<Value>(&std::fs::read(folder.join("profile.json")).unwrap()).unwrap();
    let precision = precision["precision"].as_str().unwrap();
    let estimate =
        format!("estimate --model model.json --job job.toml --precision {precision} {flags} -o plan.json");
    common::line(folder, &estimate).ok();
    on(machine, folder, &format!("train plan.json --steps 5 {RANKS} --json -o run.json"))
}

#[track_caller]
fn losses(record: &Value) -> Vec<f64> {
    record["steps"].as_array().unwrap().iter().map(|s| s["loss"].as_f64().unwrap()).collect()
}

/// The largest relative difference.
fn apart(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
}

/// The losses of training on one CPU core.
fn of_the_cpu() -> Vec<f64> {
    let folder = common::folder(1);
    common::line(folder.path(), "estimate --model model.json --job job.toml --micro-batch 8 -o plan.json")
        .ok();
    let args = "train plan.json --steps 5 --no-realtime --timeout 60 --json -o run.json";
    losses(&common::line(folder.path(), args).json())
}

const SPLITS: [&str; 8] = [
    "--dp 2 --micro-batch 2",
    "--tp 2",
    "--tp 2 --sp --micro-batch 4",
    "--pp 2 --micro-batch 2 --schedule 1f1b",
    "--pp 2 --micro-batch 2 --vpp 2",
    "--zero 1 --micro-batch 2 --recompute full",
    "--zero 2 --micro-batch 2",
    "--zero 3 --micro-batch 4 --bucket-bytes 1024",
];

#[test]
fn two_gpus_train_what_a_cpu_trains_over_nccl() {
    let expected = of_the_cpu();
    let folder = folder(2, "fp32");
    for flags in SPLITS {
        let record = train(&SoftwareGpus::new().devices(2), folder.path(), flags).json();
        assert!(apart(&losses(&record), &expected) < 1e-4, "{flags}: {:?}", losses(&record));
        let environment = &record["environment"];
        assert_eq!(environment["devices"], "cuda");
        assert!(environment["collectives"].as_str().unwrap().starts_with("NCCL 2."), "{environment}");
        assert_eq!(environment["accelerators"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn without_nccl_they_talk_through_the_host_and_say_so() {
    let expected = of_the_cpu();
    let machine = SoftwareGpus::with_libraries(without("libnccl.so.2")).devices(2);
    let folder = folder(2, "fp32");
    for flags in SPLITS {
        let record = train(&machine, folder.path(), flags).json();
        assert!(apart(&losses(&record), &expected) < 1e-4, "{flags}: {:?}", losses(&record));
        let route = record["environment"]["collectives"].as_str().unwrap().to_owned();
        assert!(route.contains("host's memory") && route.contains("nvidia-nccl"), "{route}");
    }
}

#[test]
fn when_nccl_does_not_start_they_talk_through_the_host() {
    let machine = SoftwareGpus::new().devices(2).fault("ncclCommInitRank", 1, 2);
    let folder = folder(2, "fp32");
    let record = train(&machine, folder.path(), "--dp 2 --micro-batch 2").json();
    let route = record["environment"]["collectives"].as_str().unwrap().to_owned();
    assert!(route.contains("ncclCommInitRank"), "{route}");
}

#[test]
fn two_ranks_may_share_a_gpu() {
    let folder = folder(2, "fp32");
    let record = train(&SoftwareGpus::new(), folder.path(), "--dp 2 --micro-batch 2").json();
    assert_eq!(record["environment"]["accelerators"].as_array().unwrap().len(), 1);
    assert!(apart(&losses(&record), &of_the_cpu()) < 1e-4);
    assert!(record["environment"]["collectives"].as_str().unwrap().starts_with("NCCL 2."), "{record}");
}

/// Codecs of every kind: payloads of two phases, all-reduces, sparse entries and quantisation levels.
fn codecs() -> [Value; 6] {
    [
        json!("fp16"),
        json!({"int8": {"block": 64}}),
        json!({"powersgd": {"rank": 2, "start_step": 0}}),
        json!({"top_k": {"per_mille": 100}}),
        json!("one_bit"),
        json!({"qsgd": {"levels": 15, "bucket": 64}}),
    ]
}

#[test]
fn encoded_gradients_go_through_the_host_with_and_without_nccl() {
    let folder = folder(2, "fp32");
    let folder = folder.path();
    let without_nccl = SoftwareGpus::with_libraries(without("libnccl.so.2")).devices(2);
    let over_nccl = SoftwareGpus::new().devices(2);
    let exact = train(&over_nccl, folder, "--dp 2 --micro-batch 2").json();
    let plan: Value = serde_json::from_slice(&std::fs::read(folder.join("plan.json")).unwrap()).unwrap();
    let sent = |record: &Value| record["ranks"][0]["bytes_sent_per_step"].as_u64().unwrap();
    for codec in codecs() {
        let communication = json!({"reduce": {"codec": codec}});
        let coded = common::edited(&plan, "/strategy/communication", Some(communication));
        common::write(folder, "plan.json", coded.to_string());
        let args = format!("train plan.json --steps 5 {RANKS} --json -o run.json");
        let [nccl, host] = [&over_nccl, &without_nccl].map(|machine| on(machine, folder, &args).json());
        // The same FLOPs in the same order: only the transport differs.
        assert!(apart(&losses(&nccl), &losses(&host)) < 1e-6, "{codec}");
        assert!(sent(&nccl) < sent(&exact), "{codec}: {} of {}", sent(&nccl), sent(&exact));
        assert!(nccl["environment"]["collectives"].as_str().unwrap().starts_with("NCCL 2."), "{nccl}");
        // It differs from training with exact gradients, but only a little.
        let error = apart(&losses(&nccl), &losses(&exact));
        assert!((1e-9..0.05).contains(&error), "{codec}: {error:e}");
    }
}

#[test]
fn codecs_are_measured_planned_and_validated_on_gpus() {
    let folder = common::folder(2);
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    let codecs = "codecs = [\"none\", \"bf16\", { powersgd = { rank = 2, start_step = 0 } }, { top_k = { per_mille = 10 } }]\n";
    let space = "micro_batch = [4]\nrecompute = [\"none\"]\nzero_stage = [0]\nbucket_bytes = [1048576]\ntensor = [1]\npipeline = [1]\n";
    let job = format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\n[allow]\n{space}{codecs}");
    common::write(folder, "job.toml", job);
    let machine = SoftwareGpus::new().devices(2);
    let measure = format!("profile --model model.json --job job.toml --budget 1 {RANKS} --json");
    let profile = on(&machine, folder, &measure).json();
    assert!(profile["codecs"].as_array().unwrap().len() >= 3, "{}", profile["codecs"]);
    // NCCL transports uncompressed gradients, the host those of codecs: both are measured.
    let kinds: Vec<&str> =
        profile["exchanges"].as_array().unwrap().iter().map(|cost| cost["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"all_reduce") && kinds.contains(&"all_gather"), "{kinds:?}");
    let plan = on(&machine, folder, "plan --model model.json --job job.toml -o plan.json --json").json();
    assert_eq!(plan["codecs"].as_array().unwrap().len(), 3, "{}", plan["codecs"]);
    let validation =
        on(&machine, folder, &format!("validate plan.json --all --steps 2 {RANKS} --json -o runs"))
            .measured();
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
    let runs = validation["runs"].as_array().unwrap();
    let of = |codec: &str| runs.iter().find(|run| run["label"].as_str().unwrap().contains(codec));
    for codec in ["bf16", "powersgd", "top-k"] {
        let run = of(codec).unwrap_or_else(|| panic!("no plan with {codec}: {runs:?}"));
        let error = run["peak_memory_error"].as_f64().unwrap();
        assert!(error.abs() < 0.02, "{}: {error}", run["label"]);
    }
}

#[test]
fn in_bf16_they_train_what_a_cpu_trains_but_for_rounding() {
    let expected = of_the_cpu();
    let folder = folder(2, "bf16");
    for flags in ["--dp 2 --micro-batch 2", "--tp 2 --sp --micro-batch 4", "--zero 3 --micro-batch 4"] {
        let record = train(&SoftwareGpus::new().devices(2), folder.path(), flags).json();
        let error = apart(&losses(&record), &expected);
        assert!((1e-7..1.0 / 256.0).contains(&error), "{flags}: {error:e}");
    }
}

#[test]
fn measure_plan_validate() {
    measure_plan_validate_all("[4]", 15);
}

#[test]
fn measure_plan_validate_at_length() {
    measure_plan_validate_all("[2, 4]", 30);
}

/// The whole space with those micro-batches, which contains at least `plans` plans.
fn measure_plan_validate_all(micro_batches: &str, plans: usize) {
    let folder = common::folder(2);
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    let allow = format!(
        "[allow]\nmicro_batch = {micro_batches}\nrecompute = [\"none\", \"full\"]\nuneven_stages = false\n"
    );
    let job = format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\nprecision = \"bf16\"\n{allow}");
    common::write(folder, "space.toml", job);
    let machine = SoftwareGpus::new().devices(2);
    let measure = format!("profile --model model.json --job space.toml --precision bf16 --budget 1 {RANKS}");
    let profile = on(&machine, folder, &format!("{measure} --json")).json();
    assert_eq!(profile["environment"]["devices"], "cuda");
    assert_eq!(profile["precision"], "bf16");
    assert_eq!(profile["cluster"]["nodes"][0]["devices"], 2);
    assert_eq!(profile["cluster"]["nodes"][0]["device"]["name"], "Software GPU");
    // The host's time to queue a segment is beside the device's.
    let segments = profile["segments"].as_array().unwrap();
    assert!(segments.iter().all(|cell| cell["launch_s"].as_f64().unwrap() > 0.0), "{segments:?}");
    assert!(profile["hardware"]["products"].as_array().unwrap().len() >= 3);
    let copies = profile["hardware"]["copies"].as_array().unwrap();
    for kind in ["device", "host_to_device", "device_to_host"] {
        assert!(copies.iter().any(|copy| copy["kind"] == kind), "{kind}");
    }
    assert!(on(&machine, folder, &measure).err.contains("reused"));

    on(&machine, folder, "plan --model model.json --job space.toml -o plan.json --json").ok();
    let validation =
        on(&machine, folder, &format!("validate plan.json --all --steps 2 {RANKS} --json -o runs"))
            .measured();
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
    let runs = validation["runs"].as_array().unwrap();
    assert!(runs.len() >= plans, "{}", runs.len());
    // Every plan of the space is trained to the same loss.
    let loss = |run: &Value| run["measured"]["final_loss"].as_f64().unwrap();
    for run in runs {
        assert!((loss(run) / loss(&runs[0]) - 1.0).abs() < 1.0 / 256.0, "{}", run["label"]);
        // Memory is counted, not timed: predicted and measured memory are equal.
        let error = run["peak_memory_error"].as_f64().unwrap();
        assert!(error.abs() < 0.02, "{}: {error}", run["label"]);
    }
    // The plan is for GPUs: without them, it is refused and not trained on other devices.
    let elsewhere = common::line(folder, &format!("train plan.json --steps 2 {RANKS}"));
    assert_eq!(elsewhere.code, Some(2));
    assert!(elsewhere.err.contains("libcuda.so.1"), "{}", elsewhere.err);
}

#[test]
fn the_selftest_passes_and_prints_a_table() {
    let folder = common::folder(1);
    let report = on(&SoftwareGpus::new(), folder.path(), "selftest --device cuda --json").json();
    assert_eq!(report["passed"], true);
    assert_eq!(report["precisions"].as_array().unwrap().len(), 3);
    let table = on(&SoftwareGpus::new(), folder.path(), "selftest --device cuda --precision bf16").ok();
    assert!(table.contains("fused_attention backward") && table.contains("checks passed"), "{table}");
    assert!(table.contains("codec powersgd-half") && table.contains("against the host's"), "{table}");
}

#[test]
fn the_selftest_finds_a_wrong_layout_and_says_so() {
    let machine = SoftwareGpus::new().set("SOFTWARE_GPU_TRANSPOSE_BUG", "1");
    let folder = common::folder(1);
    let found = on(&machine, folder.path(), "selftest --device cuda --precision fp32");
    assert_eq!(found.code, Some(4));
    assert!(found.out.contains("matmul") && found.out.contains("WRONG"), "{}", found.out);
    assert!(found.err.contains("do not train on it"), "{}", found.err);
}

/// A machine with a fault trains to other losses, or fails; the fault is never undetected.
#[test]
fn a_removed_wait_a_transposed_layout_and_a_wrong_index_are_each_caught() {
    let expected = of_the_cpu();
    let folder = folder(2, "fp32");
    let sound = SoftwareGpus::new().devices(2);
    for (what, machine, words) in [
        (
            "no wait",
            sound.clone().set("SOFTWARE_GPU_IGNORE_WAIT", "all").set("SOFTWARE_GPU_STANDSTILL", "2000"),
            "failed",
        ),
        ("transposed", sound.clone().set("SOFTWARE_GPU_TRANSPOSE_BUG", "1"), ""),
        ("index", sound.clone().set("SOFTWARE_GPU_SHORT_ALLOCATION", "all"), "failed"),
    ] {
        let trained = train(&machine, folder.path(), "--zero 3 --micro-batch 2 --bucket-bytes 1024");
        if trained.code == Some(0) {
            let ours = losses(&trained.json());
            assert!(apart(&ours, &expected) > 1e-3, "{what} was not noticed");
        } else {
            assert_eq!(trained.code, Some(4), "{what}: {}", trained.err);
            assert!(trained.err.contains(words), "{what}: {}", trained.err);
        }
    }
}

#[test]
fn what_goes_wrong_on_a_gpu_is_named() {
    let folder = folder(2, "fp32");
    let sound = SoftwareGpus::new().devices(2);
    for (machine, words) in [
        (sound.clone().memory((32 << 20) + (300 << 10)), &["out of GPU memory", "free"][..]),
        (sound.clone().fault("ncclAllReduce", 3, 3), &["ncclAllReduce", "rank"]),
        (sound.clone().fault("adamw", 2, 719), &["CUDA_ERROR_LAUNCH_FAILED"]),
        (sound.clone().fault("cublasLtMatmul", 5, 14), &["cublasLtMatmul"]),
        (sound.clone().fault("cuModuleGetFunction", 1, 500), &["cuModuleGetFunction", "NOT_FOUND"]),
    ] {
        let failed = train(&machine, folder.path(), "--dp 2 --micro-batch 2");
        assert_eq!(failed.code, Some(4), "{words:?}: {}", failed.err);
        for word in words {
            assert!(failed.err.contains(word), "`{word}` is not in: {}", failed.err);
        }
        assert!(!folder.path().join("run.json").exists());
    }
}

#[test]
fn what_is_missing_is_named_with_where_it_was_looked_for() {
    let folder = common::folder(1);
    for (library, words) in [
        ("libcuda.so.1", &["NVIDIA's driver is missing", "install NVIDIA's driver"][..]),
        ("libnvrtc.so.12", &["NVRTC", "is missing", "nvidia-cuda-nvrtc"]),
        ("libcublasLt.so.12", &["cuBLASLt is missing", "nvidia-cublas"]),
    ] {
        let machine = SoftwareGpus::with_libraries(without(library));
        let refused = on(&machine, folder.path(), "profile --devices cuda --model model.json --job job.toml");
        assert_eq!(refused.code, Some(2), "{library}");
        let searched = machine.folder().display().to_string();
        for word in words.iter().copied().chain([library, searched.as_str(), "hint: "]) {
            assert!(refused.err.contains(word), "{library}: `{word}` is not in: {}", refused.err);
        }
    }
    let none = SoftwareGpus::new().devices(0);
    let refused = on(&none, folder.path(), "profile --devices cuda --model model.json --job job.toml");
    assert!(refused.err.contains("finds no GPU"), "{}", refused.err);
}

/// A hint names only flags of the command.
#[test]
fn what_to_do_without_a_gpu_is_a_flag_of_that_command() {
    let folder = folder(1, "fp32");
    let none = SoftwareGpus::with_libraries(without("libcuda.so.1"));
    let hint = |args: &str| {
        let refused = on(&none, folder.path(), args);
        assert_eq!(refused.code, Some(2), "{args}: {}", refused.err);
        refused.err.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap().to_owned()
    };
    assert!(hint("selftest --device cuda").starts_with("use --device cpu,"));
    assert!(
        hint("profile --devices cuda --model model.json --job job.toml").starts_with("use --devices cpu,")
    );
    // It trains on the devices of the plan.
    common::line(folder.path(), "estimate --model model.json --job job.toml --micro-batch 8 -o plan.json")
        .ok();
    let trained = hint("train plan.json --steps 2");
    assert!(trained.starts_with("plan for CPU cores, from `autodist profile --devices cpu`"), "{trained}");
}

#[test]
fn auto_falls_back_to_cpus_in_one_line() {
    let folder = common::folder(1);
    let none = SoftwareGpus::with_libraries(without("libcuda.so.1"));
    let tested = on(&none, folder.path(), "selftest --json");
    let lines: Vec<&str> = tested.err.lines().filter(|line| !line.starts_with("selftest")).collect();
    assert_eq!(lines, ["ranks compute on CPU cores: NVIDIA's driver is missing"]);
    assert_eq!(tested.json()["devices"], "cpu");
}

#[test]
fn a_throttled_or_shared_gpu_is_reported_beside_the_figures() {
    let machine =
        SoftwareGpus::new().set("SOFTWARE_GPU_THROTTLE", "1").set("SOFTWARE_GPU_OTHER_PROCESS", "1");
    let folder = folder(1, "fp32");
    let record = train(&machine, folder.path(), "--micro-batch 8").json();
    let warnings = record["environment"]["warnings"].to_string();
    assert!(warnings.contains("throttled") && warnings.contains("other process"), "{warnings}");
}

#[test]
fn precisions_that_the_devices_lack_are_refused() {
    let folder = common::folder(1);
    let args = "profile --devices cpu --precision bf16 --model model.json --job job.toml";
    let refused = common::line(folder.path(), args);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("--precision") && refused.err.contains("--devices cuda"), "{}", refused.err);
}

/// One binary for machines with and without a GPU.
#[test]
fn the_program_links_nothing_of_nvidias() {
    let libraries = std::process::Command::new("ldd").arg(AUTODIST).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    assert!(libraries.contains("libc.so"), "{libraries}");
    for name in ["cuda", "nvrtc", "cublas", "nccl", "nvidia"] {
        assert!(!libraries.contains(name), "{libraries}");
    }
}
