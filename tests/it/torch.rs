//! `--engine torch` through the binary: refusals, which need no PyTorch; and with PyTorch (AUTODIST_PYTHON,
//! or the one of `.ci/torch`) a training from the profile to the record, and ranks that end with their
//! launcher.

use crate::common;
use crate::lab::{Lab, Uplink};
use crate::namespaces::{DELAY, inputs, run_within};

use common::processes::{alive, busy, children, kill, wait};
use common::{Finished, autodist, edited, line, write};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

static PYTHON: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python");
    let python = std::env::var_os("AUTODIST_PYTHON").map_or(installed, PathBuf::from);
    let seen = "import autodist_torch, importlib.util as known; assert known.find_spec('torch')";
    let output = Command::new(&python).args(["-c", seen]).output();
    let there = output.is_ok_and(|output| output.status.success());
    if !there {
        // Printed directly, because the harness hides the output of passing tests.
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: the binary has not trained with PyTorch: {} has none. To let it, run .ci/torch.\n",
            python.display()
        );
    }
    there.then_some(python)
});

/// A plan for two ranks whose strategy has these fields.
fn plan(folder: &Path, fields: &Value) {
    let mut plan = line(folder, "plan --model model.json --job job.toml --top 1 --json").json();
    plan["strategy"] = json!({"data": 2, "tensor": 1, "pipeline": 1, "micro_batch": 2});
    for (key, value) in fields.as_object().unwrap() {
        plan["strategy"][key] = value.clone();
    }
    let part = |field: &str| plan["strategy"][field].as_u64().unwrap();
    plan["micro_batches"] =
        (plan["job"]["global_batch"].as_u64().unwrap() / part("data") / part("micro_batch")).into();
    plan["stages"] =
        json!([{"first_layer": 0, "end_layer": 4, "recompute": ["none", "none", "none", "none"]}]);
    write(folder, "plan.json", plan.to_string());
}

#[track_caller]
fn refused(finished: Finished, code: i32, parts: &[&str]) {
    assert_eq!(finished.code, Some(code), "{}", finished.err);
    assert_eq!(finished.out, "");
    for part in parts {
        assert!(finished.err.contains(part), "{part}: {}", finished.err);
    }
}

#[test]
fn a_plan_that_torch_cannot_run_is_refused_before_anything_starts() {
    let folder = common::folder(2);
    for (fields, parts) in [
        (json!({"zero_stage": 1, "shard": 2}), ["zero_stage = 1", "use zero_stage 2"]),
        (json!({"communication": {"placement": [1, 0]}}), ["communication.placement", "remove it"]),
        (
            json!({"communication": {"reduce": {"codec": "one_bit"}}}),
            ["communication.reduce.codec = one-bit", "powersgd, or --engine native"],
        ),
    ] {
        plan(folder.path(), &fields);
        for command in ["train", "validate"] {
            let finished =
                line(folder.path(), &format!("{command} plan.json --engine torch --python /nowhere"));
            refused(finished, 2, &[parts[0], parts[1], "`strategy`"]);
        }
    }
}

#[test]
fn a_python_without_pytorch_is_refused_with_the_command_that_installs_it() {
    let folder = common::folder(2);
    plan(folder.path(), &json!({}));
    let train = "train plan.json --engine torch --python";
    let finished = line(folder.path(), &format!("{train} /nowhere/python"));
    refused(finished, 2, &["/nowhere/python", "cannot be started", "pip install ./executor/torch"]);
    let script = "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'autodist_torch'\" >&2\nexit 1\n";
    write(folder.path(), "python", script);
    assert!(
        Command::new("chmod").args(["+x", "python"]).current_dir(folder.path()).status().unwrap().success()
    );
    let finished = line(folder.path(), &format!("{train} ./python"));
    refused(finished, 2, &["No module named 'autodist_torch'", "pip install ./executor/torch"]);
    assert!(!folder.path().join("run.json").exists());
}

/// A script that replaces a Python interpreter.
fn script(folder: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_plan_runs_no_code_that_lies_beside_it() {
    let folder = common::folder(2);
    let folder = folder.path();
    plan(folder, &json!({}));
    let mut document: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("plan.json")).unwrap()).unwrap();
    document["cost_source"]["profile"]["engine"] = json!("torch");
    write(folder, "plan.json", document.to_string());
    let trap = "echo > PWNED; echo trapped >&2; exit 1";
    script(folder, ".venv/bin/python", trap);
    script(folder, "python3", trap);
    write(folder, "autodist_torch.py", "open('PWNED', 'w')");
    write(folder, "runpy.py", "open('PWNED', 'w')");
    let path = std::env::var("PATH").unwrap();
    for (path, python_path) in [(path.clone(), None), (format!(":.:{path}"), Some(":")), (path, Some(""))] {
        for command in ["train plan.json --steps 2", "validate plan.json --top 1"] {
            let mut program = common::command(folder, &command.split(' ').collect::<Vec<_>>());
            program.env("PATH", &path).env_remove("AUTODIST_PYTHON");
            if let Some(python_path) = python_path {
                program.env("PYTHONPATH", python_path);
            }
            let output = program.output().unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{err}");
            // The Python that was tried, and why the local one was not.
            assert!(err.contains("`--python` is `python3`") && err.contains("--engine torch"), "{err}");
            assert!(!folder.join("PWNED").exists(), "{command}: {err}");
        }
    }
    // The command line may request it.
    let asked = ["train", "plan.json", "--steps", "2", "--engine", "torch"];
    let output = common::command(folder, &asked).env_remove("AUTODIST_PYTHON").output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("`--python` is `.venv/bin/python`") && err.contains("trapped"), "{err}");
    assert!(folder.join("PWNED").exists());
}

#[test]
fn ranks_of_another_program_that_say_nothing_or_end_early_are_given_up() {
    let folder = common::folder(2);
    let folder = folder.path();
    plan(folder, &json!({}));
    for (rank, expected) in [
        ("echo '\"alive\"'; exec sleep 1000", "no heartbeat for 1 s"),
        ("exit 0", "ended before the training was complete"),
        ("kill -9 $$", "out-of-memory killer"),
        ("echo nonsense; exec sleep 1000", "sent an invalid answer"),
    ] {
        script(folder, "python", &format!("case \"$*\" in *give_signs*) echo 2.15.0;; *) {rank};; esac"));
        let finished = line(folder, "train plan.json --engine torch --python ./python --timeout 1");
        refused(finished, 4, &[expected, "error: rank"]);
    }
}

#[test]
fn emulated_devices_are_no_place_for_torch() {
    let folder = common::folder(2);
    let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("catalog/clusters/four-1gbit.toml");
    let args = ["profile", "--engine", "torch", "--model", "model.json", "--seq-len", "16", "--emulate"];
    let finished = autodist(folder.path(), &[&args[..], &[cluster.to_str().unwrap()]].concat());
    refused(finished, 2, &["--engine", "cannot emulate", "--engine native"]);
}

#[test]
fn a_plan_of_a_torch_profile_is_one_that_torch_can_run() {
    let folder = common::folder(4);
    let profile: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("profile.json")).unwrap()).unwrap();
    write(
        folder.path(),
        "profile.json",
        edited(&profile, "/environment/engine", Some(json!("torch"))).to_string(),
    );
    let found = line(folder.path(), "plan --model model.json --job job.toml --top 1000 --json").json();
    assert_eq!(found["cost_source"]["profile"]["engine"], "torch");
    let alternatives = found["alternatives"].as_array().unwrap();
    assert!(alternatives.len() > 20, "{}", alternatives.len());
    for strategy in alternatives.iter().map(|a| &a["strategy"]).chain([&found["strategy"]]) {
        assert_ne!(strategy["zero_stage"], 1, "{strategy}");
        assert_ne!(strategy["recompute"], "selective", "{strategy}");
    }
    let rules: Vec<&Value> = found["rejected"].as_array().unwrap().iter().map(|r| &r["rule"]).collect();
    assert!(rules.contains(&&json!("supported by the engine")), "{rules:?}");
    // A given strategy is refused with the same reason.
    let given = line(folder.path(), "estimate --model model.json --job job.toml --dp 4 --zero 1");
    refused(given, 2, &["zero_stage = 1", "use zero_stage 2"]);
}

#[test]
fn torch_profiles_plans_trains_and_compares() {
    let Some(python) = &*PYTHON else { return };
    let folder = common::folder(2);
    let python = python.to_str().unwrap();
    let run = |args: &str| line(folder.path(), &format!("{args} --python {python} --no-realtime"));
    let profile = run(
        "profile --engine torch --model model.json --job job.toml --ranks 2 --budget 1 --fresh -o torch.json --json",
    )
    .json();
    assert_eq!(profile["environment"]["engine"], "torch");
    assert!(profile["environment"]["collectives"].as_str().unwrap().starts_with("PyTorch 2."), "{profile}");
    assert!(profile["sharding"]["count"].as_u64().unwrap() > 0);
    let around_passes = profile["pipelining"].as_array().unwrap();
    assert!(around_passes.iter().any(|cost| cost["schedule"] == "1f1b"), "{profile}");
    for cost in around_passes {
        assert!(cost["time"]["median_s"].as_f64().unwrap() > 0.0, "{cost}");
    }
    let plan = "plan --model model.json --job job.toml --profile torch.json -o plan.json --json";
    let plan = line(folder.path(), plan).json();
    assert_eq!(plan["cost_source"]["profile"]["engine"], "torch");
    let validation = run("validate plan.json --top 2 --steps 2 --json").measured();
    assert_eq!(validation["runs"].as_array().unwrap().len(), 2, "{validation}");
    for run in validation["runs"].as_array().unwrap() {
        assert!(run["measured"]["peak_memory_bytes"].as_u64().unwrap() > 0);
        // Memory does not depend on the machine's load.
        assert!(run["peak_memory_error"].as_f64().unwrap().abs() < 0.25, "{run}");
    }
    let record = run("train plan.json --steps 5 --json").json();
    assert_eq!(record["environment"]["engine"], "torch");
    let native = line(folder.path(), "train plan.json --steps 5 --json --engine native --no-realtime").json();
    assert_eq!(native["environment"].get("engine"), None);
    for (torch, native) in record["steps"].as_array().unwrap().iter().zip(native["steps"].as_array().unwrap())
    {
        let (torch, native) = (torch["loss"].as_f64().unwrap(), native["loss"].as_f64().unwrap());
        assert!((torch / native - 1.0).abs() < 1e-3, "{torch} {native}");
    }
}

#[test]
fn ranks_end_with_their_launcher_and_leave_no_record() {
    let Some(python) = &*PYTHON else { return };
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let folder = common::folder(2);
        plan(folder.path(), &json!({}));
        let args = ["train", "plan.json", "--engine", "torch", "--steps", "1000000", "--python"];
        let mut launcher = common::command(folder.path(), &[&args[..], &[python.to_str().unwrap()]].concat())
            .spawn()
            .unwrap();
        let ranks = training(launcher.id());
        kill(launcher.id() as i32, signal);
        let status = launcher.wait().unwrap();
        if signal == libc::SIGINT {
            assert_eq!(status.code(), Some(130));
        }
        wait(Duration::from_secs(20), || ranks.iter().all(|rank| !alive(*rank)));
        assert!(!folder.path().join("run.json").exists());
    }
}

#[test]
fn a_rank_that_is_killed_is_named() {
    let Some(python) = &*PYTHON else { return };
    let folder = common::folder(2);
    plan(folder.path(), &json!({}));
    let args = ["train", "plan.json", "--engine", "torch", "--steps", "1000000", "--python"];
    let launcher =
        common::command(folder.path(), &[&args[..], &[python.to_str().unwrap()]].concat()).spawn().unwrap();
    let ranks = training(launcher.id());
    kill(ranks[1], libc::SIGKILL);
    let output = launcher.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{err}");
    assert!(err.contains("was killed by signal 9"), "{err}");
    wait(Duration::from_secs(20), || ranks.iter().all(|rank| !alive(*rank)));
}

/// The processes of two ranks that train: those of this program, then their Pythons.
fn training(launcher: u32) -> Vec<i32> {
    let mut ranks = Vec::new();
    wait(Duration::from_secs(60), || {
        let keepers = children(launcher as i32);
        let pythons: Vec<i32> = keepers.iter().flat_map(|keeper| children(*keeper)).collect();
        let all_train = pythons.len() == 2 && pythons.iter().all(|python| busy(*python));
        ranks = [pythons, keepers].concat();
        all_train
    });
    ranks
}

#[test]
fn machines_are_measured_planned_for_and_trained_over() {
    let Some(python) = &*PYTHON else { return };
    let link = Uplink::even(200.0, 2 * DELAY);
    let Some(lab) = Lab::new("torch on two machines", &[link, link]) else { return };
    let of = [0, 1];
    let job = "schema_version = 1\nglobal_batch = 8\nseq_len = 32\n[allow]\ntensor = [1, 2]\npipeline = [1, 2]\n\
               micro_batch = [2, 4]\nrecompute = [\"none\"]\nzero_stage = [0, 3]\nsequence_parallel = [false]\n\
               schedule = [\"1f1b\"]\n";
    let folder = inputs(job);
    let files = format!("--timeout 60 --no-realtime --python {}", python.display());
    let run = |args: &str| {
        run_within(Duration::from_secs(200), &lab, &of, folder.path(), &format!("{args} {files} --json"))
    };
    let profile = run("profile --engine torch --devices cpu --model model.json --job job.toml --budget 1");
    assert_eq!(profile["environment"]["engine"], "torch");
    let machines = profile["environment"]["machines"].as_array().unwrap();
    assert_eq!(machines.iter().map(|machine| &machine["name"]).collect::<Vec<_>>(), ["one", "two"]);
    let nodes = profile["cluster"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2, "{}", profile["cluster"]);
    // Gloo's collectives are timed by group; the links describe the cluster.
    assert!(profile.get("network").is_none_or(Value::is_null));
    let kinds: Vec<&Value> = profile["collectives"].as_array().unwrap().iter().map(|c| &c["kind"]).collect();
    assert!(kinds.contains(&&json!("all_reduce")), "{kinds:?}");

    let plan = "plan --model model.json --job job.toml --profile profile.json --top 3 -o plan.json --json";
    let plan = line(folder.path(), plan).json();
    assert_eq!(plan["cost_source"]["profile"]["engine"], "torch");
    let before = lab.counters()[0].payload;
    let validation = run("validate plan.json --all --steps 4 -o runs");
    assert!(validation["failed"].as_array().unwrap().is_empty(), "{}", validation["failed"]);
    for run in validation["runs"].as_array().unwrap() {
        let error = run["step_time_error"].as_f64().unwrap();
        // Printed directly, because the harness hides the output of passing tests.
        let _ = writeln!(std::io::stderr(), "  {}: {:+.1} %", run["label"], 100.0 * error);
        let memory = run["peak_memory_error"].as_f64().unwrap();
        assert!(memory.abs() < 0.25, "{run}");
    }
    // The ranks' traffic crossed the links.
    assert!(lab.counters()[0].payload > before);
}
