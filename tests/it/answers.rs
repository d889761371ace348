//! Answers to the questions that people come with: how long, how much, what to change, which to buy, what differs.

use crate::common;

use common::{folder, line, write};
use serde_json::Value;

const JOB: &str = "--model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps --seq-len 8192";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn tokens_and_a_price_give_days_device_hours_and_money() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = format!("plan {JOB} --global-batch 128");
    let document = line(folder, &format!("{plan} --tokens 1T --price 2.50 --json")).json();
    let training = &document["training"];
    let steps = 1e12_f64 / (128.0 * 8192.0);
    assert_eq!(number(&training["steps"]), steps.ceil());
    let step = number(&document["estimate"]["step_time_s"]);
    let hours = 16.0 * step * steps.ceil() / 3600.0;
    assert!((number(&training["device_hours"]) / hours - 1.0).abs() < 1e-9);
    assert!((number(&training["cost_usd"]) / (2.5 * hours) - 1.0).abs() < 1e-9);
    // The error bar of the step time is that of the money.
    let bar = number(&document["estimate"]["step_time_spread_s"]) / step;
    let part = number(&training["cost_spread_usd"]) / number(&training["cost_usd"]);
    assert!((part / bar - 1.0).abs() < 1e-9);
    let text = line(folder, &format!("{plan} --tokens 1T --price 2.50")).ok();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["1 T tokens", "days", "device hours", "at $2.50 per device hour", "without failures"] {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
    // Without them there is no such line, and a price alone changes nothing.
    assert!(!line(folder, &plan).ok().contains("device hours"));
    // A plan that is priced again has the flags' tokens and price.
    line(folder, &format!("{plan} -o plan.json")).ok();
    let again = line(folder, "estimate plan.json --tokens 2T --price 2.50 --json").json();
    let twice = number(&again["training"]["cost_usd"]) / number(&training["cost_usd"]);
    assert!((twice - 2.0).abs() < 1e-5, "{twice}");
    assert_eq!(line(folder, "estimate plan.json --global-batch-tokens 8M").code, Some(2));
    // By device, in a file or in a list; the cost of a cluster file's own prices.
    write(folder, "prices.toml", "\"h100-80gb-sxm\" = 2.5\n\"b200-180gb-sxm\" = 4.0\n");
    for price in ["prices.toml", "h100-80gb-sxm=2.5,b200-180gb-sxm=4"] {
        let other = line(folder, &format!("{plan} --tokens 1T --price {price} --json")).json();
        assert_eq!(other["training"], *training);
    }
    for (price, words) in [
        ("cheap", "is not a price"),
        ("-1", "is not a price"),
        ("2.50EUR", "is not a price"),
        ("2000000", "must be a price in US dollars"),
        ("v100-32gb-sxm=2", "the cluster has h100-80gb-sxm"),
        ("absent.toml", "absent.toml"),
        ("h100=2,h100=3", "two prices"),
        ("h100=2,abacus=3", "abacus"),
    ] {
        let run = line(folder, &format!("{plan} --tokens 1T --price={price}"));
        assert_eq!(run.code, Some(2), "{price}: {}", run.err);
        assert!(run.err.contains(words), "{price}: {}", run.err);
    }
}

#[test]
fn the_tokens_of_a_batch_are_whole_sequences() {
    let folder = tempfile::tempdir().unwrap();
    // 4M is 512 sequences of 8,192 tokens, as people write it; a decimal number of them is taken as it is.
    for (tokens, sequences, noted) in
        [("4M", 512, true), ("4194304", 512, false), ("3.2768M", 400, false), ("999999", 122, true)]
    {
        let run = line(folder.path(), &format!("plan {JOB} --global-batch-tokens {tokens} --json"));
        assert_eq!(run.err.contains("--global-batch-tokens"), noted, "{tokens}: {}", run.err);
        assert_eq!(run.json()["job"]["global_batch"], sequences, "{tokens}");
    }
    for (flags, words) in [
        ("--global-batch-tokens 10", "less than one sequence"),
        ("--global-batch-tokens 4M --global-batch 8", "cannot be used with"),
        ("--global-batch-tokens many", "many"),
    ] {
        let run = line(folder.path(), &format!("plan {JOB} {flags}"));
        assert_eq!(run.code, Some(2), "{flags}: {}", run.err);
        assert!(run.err.contains(words), "{flags}: {}", run.err);
    }
}

#[test]
fn a_file_that_does_not_fit_gets_the_smallest_change_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(
        folder,
        "ds.json",
        r#"{"train_batch_size": 128, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4,
            "zero_optimization": {"stage": 1}, "bf16": {"enabled": true}}"#,
    );
    let plan = "plan --from deepspeed ds.json --model llama2-13b --cluster 1x8xa100-80gb-sxm --seq-len 4096";
    let run = line(folder, &format!("{plan} --json"));
    let given = &run.json()["given"];
    assert_eq!((given["fits"].as_bool(), given["strategy"]["zero_stage"].as_u64()), (Some(false), Some(1)));
    assert!(number(&given["missing_bytes"]) > 1e9);
    let variants = given["variants"].as_array().unwrap();
    // The file does not ask for recomputation, so it has none.
    let expected = serde_json::json!([
        {"setting": "zero", "from": "1", "to": "3"},
        {"setting": "micro_batch", "from": "4", "to": "1"}
    ]);
    assert_eq!(variants[0]["changes"], expected);
    let usable = 0.96 * 80.0 * f64::from(1 << 30);
    for variant in variants {
        assert!(number(&variant["estimate"]["peak_memory_bytes"]) <= usable);
    }
    let text = line(folder, plan).ok();
    for words in ["does NOT fit", "zero 1 -> 3", "assumed of it: trainer deepspeed", "recomputation none"] {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
    // If nothing fits at all, both reasons are given.
    let run = line(folder, &format!("{plan} --device-memory 8589934592"));
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(run.err.contains("ds.json") && run.err.contains("no other strategy fits"), "{}", run.err);
}

#[test]
fn a_script_that_fits_gets_the_changes_that_make_it_faster() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(
        folder,
        "pretrain.sh",
        "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py --tensor-model-parallel-size 4 --sequence-parallel \
         --use-distributed-optimizer --micro-batch-size 1 --global-batch-size 128 --seq-length 8192 --bf16 \
         --recompute-granularity full --recompute-method uniform --recompute-num-layers 1\n",
    );
    let plan = "plan --from megatron pretrain.sh --model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps";
    let document = line(folder, &format!("{plan} --json")).json();
    let given = &document["given"];
    let own = number(&given["estimate"]["step_time_s"]);
    let best = number(&document["estimate"]["step_time_s"]);
    let variants = given["variants"].as_array().unwrap();
    let (mut changes, mut one) = (0, f64::INFINITY);
    for variant in variants {
        let time = number(&variant["estimate"]["step_time_s"]);
        let more = variant["changes"].as_array().unwrap().len();
        // Fewest changes first; more changes only if they are worth it, and none beats the best.
        assert!(more >= changes && time < own && time >= best * (1.0 - 1e-9), "{variant}");
        assert!(more == changes || time < one, "{variant}");
        (changes, one) = (more, one.min(time));
    }
    assert_eq!(variants[0]["changes"][0]["setting"], "recompute");
    // A variant is what `estimate` predicts for the file with those changes.
    let flags = "--recompute none";
    let estimate = format!("{} {flags} --json", plan.replacen("plan", "estimate", 1));
    let changed = number(&line(folder, &estimate).json()["estimate"]["step_time_s"]);
    let predicted = number(&variants[0]["estimate"]["step_time_s"]);
    assert!((predicted / changed - 1.0).abs() < 1e-9, "{predicted} {changed}");
}

/// Fewer devices than the file's job has, and changes that its format cannot express.
#[test]
fn a_file_is_answered_with_fewer_devices_and_with_what_is_left_to_do_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = r#"{"train_batch_size": 128, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2},
        "bf16": {"enabled": true}}"#;
    write(folder, "ds.json", config);
    let slow = "plan --from deepspeed ds.json --model gpt2-medium --cluster 2x1xrtx4090@1x1gbps --seq-len 1024 --json";
    let plan = line(folder, slow).json();
    let choice = &plan["device_choice"];
    assert_eq!((&choice["devices"], &choice["other_devices"]), (&Value::from(2), &Value::from(1)));
    assert!(choice["reason"].as_str().unwrap().contains("`--fewer-devices` plans for it"), "{choice}");
    let fewer = line(folder, &format!("{slow} --fewer-devices")).json();
    assert_eq!(fewer["strategy"]["data"], 1);
    assert_eq!(fewer["given"]["strategy"]["data"], 2);
    let left: f64 = number(&fewer["estimate"]["step_time_s"]) / number(&choice["other_step_time_s"]);
    assert!((left - 1.0).abs() < 1e-9);

    // FSDP's own configuration has neither the micro-batch nor selective recomputation.
    let accelerate = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n  \
                      fsdp_activation_checkpointing: true\nmixed_precision: bf16\nnum_machines: 2\nnum_processes: 16\n";
    write(folder, "acc.yaml", accelerate);
    let args = format!("plan --from accelerate acc.yaml {JOB} --micro-batch 1 --global-batch 128");
    let plan = line(folder, &format!("{args} --json")).json();
    let by_hand = |setting: &str| -> Vec<String> {
        let variants = plan["given"]["variants"].as_array().unwrap().iter();
        let of =
            variants.filter(|one| one["changes"].as_array().unwrap().iter().all(|c| c["setting"] == setting));
        of.flat_map(|one| one["by_hand"].as_array().cloned().unwrap_or_default())
            .map(|note| note.as_str().unwrap().to_owned())
            .collect()
    };
    assert!(
        by_hand("micro_batch")[0].contains("per_device_train_batch_size"),
        "{:?}",
        by_hand("micro_batch")
    );
    let text = line(folder, &args).ok();
    assert!(text.contains("[1] by hand, as the format of the file cannot express it"), "{text}");
    // Megatron's flags express all of its own changes.
    write(
        folder,
        "pretrain.sh",
        "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py --tensor-model-parallel-size 2 \
        --micro-batch-size 1 --global-batch-size 128 --seq-length 8192 --bf16 --recompute-granularity selective\n",
    );
    let text = line(folder, &format!("plan --from megatron pretrain.sh {JOB}")).ok();
    assert!(text.contains("Yours, with") && !text.contains("by hand"), "{text}");
}

#[test]
fn a_profile_answers_what_to_change_too() {
    let folder = folder(4);
    let folder = folder.path();
    let given =
        "estimate --profile profile.json --model model.json --job job.toml --tp 2 --pp 2 -o plan.json";
    line(folder, given).ok();
    line(folder, "export plan.json --to megatron -o out").ok();
    let plan = "plan --from megatron out/megatron.sh --profile profile.json --model model.json --global-batch 8 --seq-len 16";
    let document = line(folder, &format!("{plan} --json")).json();
    let strategy = &document["given"]["strategy"];
    assert_eq!((strategy["tensor"].as_u64(), strategy["pipeline"].as_u64()), (Some(2), Some(2)));
    assert!(!document["given"]["changes"].as_array().unwrap().is_empty());
}

/// The stages of a file with a pipeline stay as they are cut.
#[test]
fn changes_are_those_that_estimate_predicts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(
        folder,
        "pretrain.sh",
        "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py --tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 \
         --sequence-parallel --use-distributed-optimizer --micro-batch-size 1 --global-batch-size 128 --seq-length 8192 \
         --bf16 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1\n",
    );
    let from = "--from megatron pretrain.sh --model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps";
    let given = line(folder, &format!("plan {from} --json")).json()["given"].clone();
    for variant in given["variants"].as_array().unwrap() {
        let changes = variant["changes"].as_array().unwrap();
        let flags = changes.iter().map(|change| {
            let (setting, to) = (change["setting"].as_str().unwrap(), change["to"].as_str().unwrap());
            match (setting, to) {
                ("tensor", to) => Some(format!("--tp {to}")),
                ("context", to) => Some(format!("--cp {to}")),
                ("recompute", "none" | "selective" | "full") => Some(format!("--recompute {to}")),
                ("sequence_parallel", "off") => Some("--no-sp".to_owned()),
                // Other flags change more than one setting, or also the number of chunks.
                _ => None,
            }
        });
        let Some(flags) = flags.collect::<Option<Vec<_>>>() else { continue };
        let flags = flags.join(" ");
        let changed = line(folder, &format!("estimate {from} {flags} --json")).json();
        let [predicted, expected] = [variant, &changed].map(|one| number(&one["estimate"]["step_time_s"]));
        assert!((predicted / expected - 1.0).abs() < 1e-9, "{flags}: {predicted} {expected}");
    }
}

#[test]
fn clusters_are_compared_with_the_errors_of_both() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = "--model llama3-8b --global-batch 256 --seq-len 8192";
    let clusters = "4x8xh100-80gb-sxm@8x400gbps 4x8xa100-80gb-sxm@8x200gbps";
    let document = line(folder, &format!("compare {clusters} {job} --tokens 100B --price 2 --json")).json();
    let [one, other] = [0, 1].map(|index| document["clusters"][index].clone());
    let time = |cluster: &Value| number(&cluster["best"]["step_time_s"]);
    let faster = &document["faster"][0];
    assert_eq!(faster["cluster"], one["cluster"]);
    assert!((number(&faster["times"]) - time(&other) / time(&one)).abs() < 1e-9);
    assert!(number(&faster["times_low"]) < number(&faster["times"]));
    assert_eq!(document["cheaper"].as_array().unwrap().len(), 1);
    // Each is the plan of `plan`.
    let plan = format!("plan {job} --cluster 4x8xh100-80gb-sxm@8x400gbps --json");
    assert_eq!(number(&line(folder, &plan).json()["estimate"]["step_time_s"]), time(&one));
    let text = line(folder, &format!("compare {clusters} {job} --tokens 100B --price 2")).ok();
    for words in ["fastest", "cheapest", "with the error bars of both", "is faster"] {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
    // Different prices by device; a cluster without one has no cost to compare.
    let run = line(folder, &format!("compare {clusters} {job} --tokens 100B --price a100-80gb-sxm=1"));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(
        run.err.contains("has prices of a100-80gb-sxm, but the cluster has h100-80gb-sxm"),
        "{}",
        run.err
    );
    let run = line(folder, &format!("compare 4x8xh100-80gb-sxm@8x400gbps {job}"));
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("--scale"), "{}", run.err);
}

#[test]
fn sizes_of_a_cluster_make_a_curve() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let compare = "compare 1x8xh100-80gb-sxm@8x400gbps --model llama3-8b --global-batch 128 --seq-len 8192";
    let run = line(folder, &format!("{compare} --scale 4..64 --figure curve.png --json"));
    let document = run.json();
    let sizes: Vec<_> =
        document["clusters"].as_array().unwrap().iter().map(|one| one["devices"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [4, 8, 16, 32, 64]);
    let picture = std::fs::read(folder.join("curve.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    let text = line(folder, &format!("{compare} --scale 4..64")).ok();
    assert!(text.contains("scaling") && text.contains("tokens/s per device on 4"), "{text}");
    // Sizes without a plan have a row with the reason; wrong sizes are refused.
    let large = compare.replace("llama3-8b", "llama3-70b");
    let text = line(folder, &format!("{large} --scale 8..64")).ok();
    assert!(text.contains("no plan fits"), "{text}");
    for (scale, words) in [("9..64", "multiple of the 8 devices"), ("64..8", "the smaller first")] {
        let run = line(folder, &format!("{compare} --scale {scale}"));
        assert_eq!(run.code, Some(2), "{scale}: {}", run.out);
        assert!(run.err.contains(words), "{scale}: {}", run.err);
    }
    // Several nodes have the usual network, if none is given.
    let alone = compare.replace("@8x400gbps", "");
    let run = line(folder, &format!("{alone} --scale 8..64"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("assumed: network"), "{}", run.err);
    assert!(run.out.contains("h100-80gb-sxm: 8 NICs of 400 Gb/s in every node"), "{}", run.out);
    // Machines that are named have their own network.
    let rented = compare.replace("1x8xh100-80gb-sxm@8x400gbps", "p5.48xlarge");
    let run = line(folder, &format!("{rented} --scale 8..64"));
    assert!(run.out.contains("32 NICs of 100 Gb/s in every node"), "{}", run.out);
    assert!(!run.err.contains("assumed: network"), "{}", run.err);
}

#[test]
fn documents_of_one_kind_are_compared() {
    let folder = folder(2);
    let folder = folder.path();
    let plan = "plan --profile profile.json --model model.json --job job.toml";
    line(folder, &format!("{plan} -o one.json")).ok();
    line(folder, &format!("{plan} --global-batch 16 -o two.json")).ok();
    let document = line(folder, "diff one.json two.json --json").json();
    assert_eq!(document["kind"], "plan");
    let batch =
        document["settings"].as_array().unwrap().iter().find(|one| one["setting"] == "job.global_batch");
    assert_eq!(batch.unwrap()["after"], 16);
    let step = &document["numbers"][0];
    assert_eq!(step["what"], "step time");
    assert!(number(&step["ratio"]) > 1.0);
    let text = line(folder, "diff one.json two.json").ok();
    assert!(text.contains("job.global_batch") && text.contains("step time"), "{text}");
    assert!(line(folder, "diff one.json one.json").ok().contains("do not differ"));
    assert!(line(folder, "diff profile.json profile.json").ok().contains("do not differ"));
    // A slower machine.
    let mut profile: Value =
        serde_json::from_slice(&std::fs::read(folder.join("profile.json")).unwrap()).unwrap();
    for cell in profile["segments"].as_array_mut().unwrap() {
        for part in ["median_s", "low_s", "high_s"] {
            cell["time"][part] = (2.0 * number(&cell["time"][part])).into();
        }
    }
    write(folder, "slow.json", profile.to_string());
    let document = line(folder, "diff profile.json slow.json --json").json();
    let numbers = document["numbers"].as_array().unwrap();
    assert!(!numbers.is_empty());
    for one in numbers.iter().filter(|one| one["what"].as_str().unwrap().contains("MLP forward")) {
        assert_eq!((number(&one["ratio"]), one["clear"].as_bool()), (2.0, Some(true)));
    }
    write(folder, "run.json", autodist_spec::to_json(&common::run_record()));
    assert!(line(folder, "diff run.json run.json").ok().contains("do not differ"));
    for (files, words) in [
        ("one.json profile.json", "one.json is a plan"),
        ("one.json absent.json", "absent.json"),
        ("one.json model.json", "is not a plan, a profile or a run record"),
    ] {
        let run = line(folder, &format!("diff {files}"));
        assert_eq!(run.code, Some(2), "{files}: {}", run.out);
        assert!(run.err.contains(words), "{files}: {}", run.err);
    }
}

#[test]
fn doctor_tells_what_is_here() {
    let folder = folder(2);
    let folder = folder.path();
    let findings = line(folder, "doctor --json").json()["findings"].clone();
    let of = |what: &str| findings.as_array().unwrap().iter().find(|one| one["what"] == what).cloned();
    assert!(of("processor").unwrap()["says"].as_str().unwrap().contains("cores for ranks"));
    for what in ["GPUs", "priority", "PyTorch", "transports", "profile"] {
        assert!(of(what).is_some(), "{what}: {findings}");
    }
    let here = of("folder").unwrap();
    assert_eq!(here["state"], "ok");
    assert!(here["says"].as_str().unwrap().contains("profile.json"), "{here}");
    // Nothing is left behind.
    assert!(!folder.join("autodist-doctor").exists());
    assert_eq!(line(folder, "doctor --model absent").code, Some(2));
}

#[test]
fn times_that_no_step_takes_do_not_calibrate() {
    let folder = tempfile::tempdir().unwrap();
    let run = "--model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps --global-batch 128 --seq-len 8192 --tp 2 --sp -o mine.toml";
    for (time, words) in
        [("0", "1e-6 to 1e6 seconds"), ("100ms", "less than a fifth"), ("1h", "times the predicted")]
    {
        let run = line(folder.path(), &format!("calibrate {run} --measured {time}"));
        assert_eq!(run.code, Some(2), "{time}: {} {}", run.out, run.err);
        assert!(run.err.contains(words), "{time}: {}", run.err);
    }
    assert!(!folder.path().join("mine.toml").exists());
    // A calibration of runs on H100 leaves predictions of A100 as they are, and says so.
    line(folder.path(), &format!("calibrate {run} --measured 9.5s")).ok();
    let job = "--model llama3-8b --global-batch 128 --seq-len 8192 --tp 2 --sp --json";
    for (cluster, changes) in [("2x8xa100-80gb-sxm@8x200gbps", false), ("2x8xh100-80gb-sxm@8x400gbps", true)]
    {
        let estimate = format!("estimate --cluster {cluster} {job}");
        let before = line(folder.path(), &estimate).json();
        let run = line(folder.path(), &format!("{estimate} --calibration mine.toml"));
        assert_eq!(run.err.contains("the shipped efficiencies are used"), !changes, "{}", run.err);
        let after = run.json();
        let [before, after] = [before, after].map(|one| number(&one["estimate"]["step_time_s"]));
        assert_eq!(before != after, changes, "{cluster}: {before} {after}");
    }
}

#[test]
fn refusals_name_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    for (job, words) in [
        ("--model llama3-8b --cluster 1x1xh100-80gb-sxm --global-batch 8 --seq-len 4096", "use more devices"),
        ("--model gpt2 --cluster 1x8xh100-80gb-sxm --global-batch 8 --seq-len 16k", "a shorter `--seq-len`"),
        (
            "--model gpt2 --cluster 1x8xh100-80gb-sxm --global-batch 8 --seq-len 1k --micro-batch 16 --all-devices",
            "a lower `--micro-batch`",
        ),
    ] {
        let run = line(folder.path(), &format!("plan {job}"));
        assert_eq!(run.code, Some(3), "{job}: {}", run.err);
        assert!(run.err.contains(words), "{job}: {}", run.err);
        assert!(!run.err.contains("hint: plan for a trainer"), "{job}: {}", run.err);
    }
    // A cluster without a price is named.
    let compare = "compare 1x8xh100-80gb-sxm 1x8xa100-80gb-sxm --model llama3-8b --global-batch 64 --seq-len 4k --tokens 1B";
    write(
        folder.path(),
        "priced.toml",
        "schema_version = 1\nname = \"priced\"\n[[nodes]]\ncount = 1\ndevices = 8\ndevice = \"h100-80gb-sxm\"\n\
         usd_per_device_hour = 2.5\n",
    );
    let run = line(folder.path(), &compare.replace("1x8xh100-80gb-sxm", "priced.toml"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("1x8xa100-80gb-sxm has no price"), "{}", run.err);
}
