//! Plans for other trainers, through the binary: `export`, and `estimate --from`.

use crate::common;

use common::{command, folder, line, write};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const GIVEN: &str = "estimate --model model.json --job job.toml -o plan.json";

/// The command line that a launch script runs, recorded by a mock program.
fn started(folder: &Path, script: &str, program: &str) -> String {
    let output = start(folder, script, program, &[("LR", "3e-4"), ("TRAIN_ITERS", "1000")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn start(folder: &Path, script: &str, program: &str, given: &[(&str, &str)]) -> Output {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    write(&bin, program, "#!/bin/bash\necho \"$0\" \"$@\"\n");
    std::fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Command::new("bash")
        .arg(folder.join(script))
        .args(["--data-path", "my data"])
        .env("PATH", path)
        .env("TRAIN_SCRIPT", "train.py")
        .envs(given.iter().copied())
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn scripts_carry_what_was_given_and_ask_for_what_the_trainer_needs() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --micro-batch 2")).ok();
    let out = line(folder.path(), "export plan.json --to megatron -o out").ok();
    assert!(out.contains("learning_rate.peak: not given; the script asks for LR\n"), "{out}");
    assert!(out.contains("seed: not given; the trainer's defaults apply\n"), "{out}");
    // No built-in defaults: 0.003, 200 steps, 10 of warm-up.
    let script = std::fs::read_to_string(folder.path().join("out/megatron.sh")).unwrap();
    for built_in in ["3e-3", "0.003", "200", "warmup", "cosine", "beta", "--weight-decay", "--clip", "--seed"]
    {
        assert!(!script.contains(built_in), "{built_in} in {script}");
    }
    let output = start(folder.path(), "out/megatron.sh", "torchrun", &[("LR", "3e-4")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(said.contains("TRAIN_ITERS: steps to train"), "{said}");
    let words = started(folder.path(), "out/megatron.sh", "torchrun");
    assert!(words.contains("--lr 3e-4") && words.contains("--train-iters 1000"), "{words}");

    // By flag and by job file, even if the value equals the built-in one.
    let head = "schema_version = 1\nglobal_batch = 8\nseq_len = 16\n";
    let rate = "[learning_rate]\ntotal_steps = 200\nfinal_fraction = 0.1\n";
    write(folder.path(), "job.toml", format!("{head}gradient_clip = 1.0\n{rate}"));
    line(folder.path(), &format!("{GIVEN} --micro-batch 2 --learning-rate 0.003 --seed 0")).ok();
    let out = line(folder.path(), "export plan.json --to megatron -o out").ok();
    assert!(!out.contains("asks for"), "{out}");
    let words = started(folder.path(), "out/megatron.sh", "torchrun");
    for given in [
        "--lr 3e-3",
        "--min-lr 3e-4",
        "--lr-decay-style cosine",
        "--train-iters 200",
        "--clip-grad 1.0",
        "--seed 0",
    ] {
        assert!(words.contains(given), "{given} is not in {words}");
    }
    assert!(!words.contains("warmup") && !words.contains("beta"), "{words}");
    // The given values are read back.
    let back = "estimate --from megatron out/megatron.sh --profile profile.json --json";
    let given = &line(folder.path(), back).json()["job"]["given"];
    let mut expected = vec![
        "learning_rate.peak",
        "learning_rate.total_steps",
        "learning_rate.final_fraction",
        "gradient_clip",
        "seed",
    ];
    let mut given: Vec<_> = given.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    given.sort_unstable();
    expected.sort_unstable();
    assert_eq!(given, expected);
}

#[test]
fn what_nanotron_has_no_default_for_is_filled_in_by_its_script() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --micro-batch 2 --learning-rate 0.0002")).ok();
    let out = line(folder.path(), "export plan.json --to nanotron -o out").ok();
    assert!(
        out.contains("optimizer.betas: not given; the script asks for ADAM_BETA1 and ADAM_BETA2\n"),
        "{out}"
    );
    let given = [
        ("DATASET", "wikitext"),
        ("TOKENIZER", "gpt2"),
        ("TRAIN_STEPS", "500"),
        ("WEIGHT_DECAY", "0.05"),
        ("ADAM_BETA1", "0.9"),
        ("ADAM_BETA2", "0.98"),
        ("ADAM_EPS", "0.000001"),
    ];
    let output = start(folder.path(), "out/nanotron.sh", "torchrun", &given[..6]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("ADAM_EPS"));
    let output = start(folder.path(), "out/nanotron.sh", "torchrun", &given);
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let config = words.split_whitespace().skip_while(|word| *word != "--config-file").nth(1).unwrap();
    let filled = std::fs::read_to_string(config).unwrap();
    std::fs::remove_file(config).unwrap();
    for expected in
        ["learning_rate: 0.0002\n", "train_steps: 500\n", "weight_decay: 0.05\n", "adam_beta2: 0.98\n"]
    {
        assert!(filled.contains(expected), "{expected} is not in {filled}");
    }
    assert!(!filled.contains('$') && !filled.contains("seed"), "{filled}");
    common::write(folder.path(), "out/nanotron.filled.yaml", &filled);
    // Both files are read; the one with variables contains no values for them.
    for (file, steps) in [("nanotron.yaml", None), ("nanotron.filled.yaml", Some(500))] {
        let back = line(
            folder.path(),
            &format!("estimate --from nanotron out/{file} --profile profile.json --json"),
        );
        let job = back.json()["job"].clone();
        let gives = |name: &str| job["given"].as_array().unwrap().contains(&json!(name));
        assert!(gives("learning_rate.peak"), "{job}");
        assert_eq!(gives("learning_rate.total_steps"), steps.is_some(), "{job}");
    }
}

#[test]
fn plans_of_older_releases_export_what_differs_from_the_defaults() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --micro-batch 2 --learning-rate 0.0002")).ok();
    let text = std::fs::read_to_string(folder.path().join("plan.json")).unwrap();
    let old = common::edited(&serde_json::from_str(&text).unwrap(), "/job/given", None);
    write(folder.path(), "plan.json", old.to_string());
    let document = line(folder.path(), "export plan.json --to megatron -o out --json").json();
    let asked: Vec<_> = document["not_given"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|one| one["asked_as"].as_array().unwrap())
        .collect();
    assert_eq!(asked, [&json!("TRAIN_ITERS")]);
    let script = std::fs::read_to_string(folder.path().join("out/megatron.sh")).unwrap();
    assert!(script.contains("--lr 2e-4") && !script.contains("--min-lr"), "{script}");
}

#[test]
fn a_trainers_file_hands_its_own_values_on_to_another_trainer() {
    let folder = folder(2);
    let config = json!({
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
        "optimizer": { "type": "AdamW", "params": { "lr": 1.5e-5, "weight_decay": 0.03 } },
        "gradient_clipping": 0.7,
    });
    write(folder.path(), "ds.json", config.to_string());
    for price in ["--profile profile.json", "--cluster 1x2xh100-80gb-sxm --precision fp32"] {
        let from = "estimate --from deepspeed ds.json --model model.json --seq-len 16 -o plan.json";
        line(folder.path(), &format!("{from} {price}")).ok();
        line(folder.path(), "export plan.json --to megatron -o out").ok();
        let words = started(folder.path(), "out/megatron.sh", "torchrun");
        for given in ["--lr 1.5e-5", "--weight-decay 0.03", "--clip-grad 0.7", "--train-iters 1000"] {
            assert!(words.contains(given), "{price}: {given} is not in {words}");
        }
        assert!(!words.contains("beta") && !words.contains("--seed"), "{price}: {words}");
    }
}

#[test]
fn what_is_exported_comes_back_as_the_same_estimate() {
    let folder = folder(4);
    let step = |run: common::Finished| run.json()["estimate"]["step_time_s"].as_f64().unwrap();
    let given = step(line(
        folder.path(),
        &format!("{GIVEN} --tp 2 --pp 2 --micro-batch 2 --sp --recompute full --json"),
    ));
    let out = line(folder.path(), "export plan.json --to megatron -o out").ok();
    assert!(out.contains("wrote out/megatron.sh, which starts it"), "{out}");
    assert!(!out.contains("instead"), "{out}");
    let words = started(folder.path(), "out/megatron.sh", "torchrun");
    for expected in
        ["--nproc-per-node 4", "pretrain_gpt.py", "--tensor-model-parallel-size 2", "--data-path my data"]
    {
        assert!(words.contains(expected), "`{expected}` is not in {words}");
    }
    let back = line(folder.path(), "estimate --from megatron out/megatron.sh --profile profile.json --json");
    assert!(back.err.is_empty(), "{}", back.err);
    assert_eq!(step(back), given);
    // Typical queries of users with a configuration.
    let text = line(folder.path(), "estimate --from megatron out/megatron.sh --profile profile.json").ok();
    assert!(
        text.contains("Compared with the best plan of its search space\n") && text.contains("% slower: "),
        "{text}"
    );
    // A flag overrides the file.
    let other = line(
        folder.path(),
        "estimate --from megatron out/megatron.sh --profile profile.json --recompute none --json",
    );
    assert!(step(other) < given);
}

#[test]
fn stages_and_recomputation_of_a_file_are_those_of_the_estimate() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --pp 2 --micro-batch 2")).ok();
    line(folder.path(), "export plan.json --to megatron -o out").ok();
    let script = std::fs::read_to_string(folder.path().join("out/megatron.sh")).unwrap();
    let uneven = script.replace(
        "--pipeline-model-parallel-size 2",
        "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'E,t*2|L'",
    );
    assert_ne!(uneven, script);
    write(folder.path(), "uneven.sh", uneven);
    let plan = line(folder.path(), "estimate --from megatron uneven.sh --profile profile.json --json").json();
    let ends: Vec<_> = plan["stages"].as_array().unwrap().iter().map(|s| s["end_layer"].clone()).collect();
    assert_eq!(ends, [json!(3), json!(4)]);
}

#[test]
fn a_configuration_that_people_have_is_priced_without_a_profile() {
    let folder = folder(2);
    write(
        folder.path(),
        "pretrain.sh",
        "TP=8\nDATA=$(pwd)/data\nARGS=(\n  --tensor-model-parallel-size $TP --pipeline-model-parallel-size 8\n  \
         --num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048\n  \
         --max-position-embeddings 2048 --vocab-size 51200 --micro-batch-size 1 --global-batch-size 1536\n  \
         --num-layers-per-virtual-pipeline-stage 4 --recompute-granularity full --recompute-method uniform --bf16\n  \
         --recompute-num-layers 1 --data-path $DATA --lr 0.00006\n)\n\
         torchrun --nproc_per_node 8 --nnodes 64 pretrain_gpt.py ${ARGS[@]}\n",
    );
    let run = line(
        folder.path(),
        "estimate --from megatron pretrain.sh --cluster 64x8xa100-80gb-sxm@8x200gbps --trainer megatron --json",
    );
    assert!(run.err.contains("not used: data-path"), "{}", run.err);
    let given = run.json()["estimate"]["step_time_s"].as_f64().unwrap();
    let flags = line(
        folder.path(),
        "estimate --model gpt3-175b --cluster 64x8xa100-80gb-sxm@8x200gbps --tp 8 --pp 8 --vpp 3 --dp 8 \
         --micro-batch 1 --global-batch 1536 --seq-len 2048 --recompute full --zero 0 --trainer megatron --json",
    );
    let by_flags = flags.json()["estimate"]["step_time_s"].as_f64().unwrap();
    assert!((given / by_flags - 1.0).abs() < 0.02, "{given} {by_flags}");
}

/// What `plan` chooses, an exported file says, and `estimate --from` understands: blocks that recompute one by
/// one, and stages.
#[test]
fn an_exported_plan_is_priced_as_it_was_planned() {
    let folder = folder(1);
    let folder = folder.path();
    let job = "--model llama2-7b --cluster 1x8xh100-80gb-sxm --global-batch 64 --seq-len 4096 --device-memory 34000000000";
    let plan = line(folder, &format!("plan {job} --tp 2 --pp 2 --json -o plan.json")).json();
    let modes: Vec<_> = plan["stages"].as_array().unwrap().iter().map(|stage| &stage["recompute"]).collect();
    let some = modes.iter().flat_map(|stage| stage.as_array().unwrap()).filter(|mode| **mode == "full");
    assert!((1..32).contains(&some.count()), "{modes:?}");
    line(folder, "export plan.json --to megatron -o out").ok();
    let read = line(folder, &format!("estimate --from megatron out/megatron.sh {job} --json")).json();
    assert_eq!(read["stages"], plan["stages"]);
    let step = |plan: &serde_json::Value| plan["estimate"]["step_time_s"].as_f64().unwrap();
    assert!((step(&read) / step(&plan) - 1.0).abs() < 1e-9, "{} {}", step(&read), step(&plan));
}

/// Experts and FP8 come back as they were planned, without `--model` and `--precision`.
#[test]
fn an_exported_plan_of_experts_is_priced_as_it_was_planned() {
    let folder = folder(1);
    let folder = folder.path();
    let cluster = "--cluster 2x8xh100-80gb-sxm@8x400gbps";
    let job = "--model mixtral-8x7b --global-batch 128 --seq-len 4096 --precision fp8 --trainer nemo";
    let plan = line(folder, &format!("plan {job} {cluster} --tp 2 --sp --json -o plan.json")).json();
    assert!(plan["strategy"]["expert"].as_u64().unwrap() > 1, "{}", plan["strategy"]);
    line(folder, "export plan.json --to megatron -o out").ok();
    line(folder, "export plan.json --to megatron-bridge -o out").ok();
    let step = |plan: &serde_json::Value| plan["estimate"]["step_time_s"].as_f64().unwrap();
    for from in ["megatron out/megatron.sh", "megatron-bridge out/megatron-bridge.yaml --model mixtral-8x7b"]
    {
        let read = line(folder, &format!("estimate --from {from} {cluster} --trainer nemo --json")).json();
        assert_eq!(read["job"]["precision"], "fp8", "{from}");
        assert_eq!(read["model"]["experts"], plan["model"]["experts"], "{from}");
        assert_eq!(read["strategy"], plan["strategy"], "{from}");
        assert!((step(&read) / step(&plan) - 1.0).abs() < 1e-9, "{from}: {} {}", step(&read), step(&plan));
    }
    // The router that Megatron has by default is that of the model; another number of experts is not.
    let script = std::fs::read_to_string(folder.join("out/megatron.sh")).unwrap();
    write(folder, "other.sh", script.replace("--num-experts 8", "--num-experts 16"));
    let other = line(folder, &format!("estimate --from megatron other.sh {cluster} --model mixtral-8x7b"));
    assert_eq!(other.code, Some(2), "{}", other.out);
    assert!(other.err.contains("num-experts") && other.err.contains("16 experts"), "{}", other.err);
    // Megatron refuses experts with tensor parallelism without sequence parallelism.
    let plain = format!("estimate {job} {cluster} --tp 2 --ep 8 --zero 1");
    let refused = line(folder, &plain);
    assert_eq!(refused.code, Some(2), "{}", refused.out);
    assert!(refused.err.contains("`--sp` is `false`: trains no experts with tp=2"), "{}", refused.err);
    let other = plain.replace("nemo", "internevo").replace("fp8", "bf16").replace("2x8x", "8x8x");
    line(folder, &format!("{other} -o plain.json")).ok();
    let refused = line(folder, "export plain.json --to megatron -o plain");
    assert_eq!(refused.code, Some(2), "{}", refused.out);
    assert!(refused.err.contains("sequence_parallel"), "{}", refused.err);
}

const H100: &str = "--cluster 1x8xh100-80gb-sxm --model gpt2 --seq-len 1024 --global-batch 64 --json";

/// The assumptions of an estimate from a trainer's file.
fn assumptions(folder: &std::path::Path, from: &str) -> String {
    line(folder, &format!("estimate --from {from} {H100}")).json()["assumptions"].to_string()
}

#[test]
fn the_framework_is_that_of_the_file_unless_a_flag_gives_another() {
    let folder = folder(2);
    let folder = folder.path();
    write(folder, "ds.json", r#"{"train_batch_size": 64, "bf16": {"enabled": true}}"#);
    write(folder, "args.json", r#"{"per_device_train_batch_size": 8, "bf16": true, "fsdp": true}"#);
    write(folder, "zero.json", r#"{"per_device_train_batch_size": 8, "bf16": true, "deepspeed": "ds.json"}"#);
    write(folder, "acc.yaml", "{distributed_type: DEEPSPEED, mixed_precision: bf16}");
    write(folder, "max.yml", "{per_device_batch_size: 8}");
    write(folder, "run.sh", "torchrun pretrain_gpt.py --micro-batch-size 1 --bf16");
    write(folder, "titan.sh", "torchrun -m torchtitan.train --training.local_batch_size 8");
    write(folder, "bridge.yaml", "{train: {micro_batch_size: 1}, model: {bf16: true}}");
    for (from, trainer) in [
        ("deepspeed ds.json", "trainer deepspeed: as files of deepspeed"),
        ("transformers args.json", "trainer fsdp2: as files of transformers"),
        ("transformers zero.json", "trainer deepspeed: as files of transformers"),
        ("accelerate acc.yaml", "trainer deepspeed: as files of accelerate"),
        ("megatron run.sh", "trainer megatron-core: as files of megatron"),
        ("megatron-bridge bridge.yaml", "trainer nemo: as files of megatron-bridge"),
        ("torchtitan titan.sh", "trainer fsdp2: as files of torchtitan"),
        ("maxtext max.yml", "trainer megatron-core: maxtext is not modelled"),
    ] {
        let said = assumptions(folder, from);
        assert!(said.contains(trainer), "{from}: {said}");
        let given = assumptions(folder, &format!("{from} --trainer nemo"));
        assert!(!given.contains("trainer "), "{from}: {given}");
    }
}

#[test]
fn a_search_of_layouts_needs_no_valid_layout_in_the_file() {
    let folder = folder(2);
    write(
        folder.path(),
        "run.sh",
        "torchrun pretrain_gpt.py --tensor-model-parallel-size 7 --pipeline-model-parallel-layout 'E|x' --micro-batch-size 0 --bf16",
    );
    let found = line(folder.path(), &format!("estimate --from megatron run.sh {H100} --best 2"));
    assert_eq!(found.json()["alternatives"].as_array().unwrap().len(), 1);
    let fixed = line(folder.path(), &format!("estimate --from megatron run.sh {H100}"));
    assert_eq!(fixed.code, Some(2), "{}", fixed.err);
}

#[test]
fn keys_without_a_field_are_named_by_what_is_known_of_them() {
    let folder = folder(2);
    let folder = folder.path();
    let ds = |more: &str| format!("{{\"train_batch_size\": 64, \"bf16\": {{\"enabled\": true}}, {more}}}");
    write(folder, "ds.json", ds("\"steps_per_print\": 10, \"compile\": {\"backend\": \"x\"}, \"colour\": 3"));
    let run = line(folder, &format!("estimate --from deepspeed ds.json {H100}"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    for expected in [
        "not part of a plan and are not used: steps_per_print",
        "does not depend on them: compile.backend",
        "ds.json: not known to autodist: ignored: colour",
    ] {
        assert!(run.err.contains(expected), "`{expected}` is not in {}", run.err);
    }
    write(folder, "ds.json", ds("\"ring_parallel_size\": 4"));
    let run = line(folder, &format!("estimate --from deepspeed ds.json {H100}"));
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("ds.json: `ring_parallel_size` is `4`: is not known"), "{}", run.err);
    // A file that another one names is a regular file.
    write(folder, "args.json", r#"{"bf16": true, "deepspeed": "there"}"#);
    std::fs::create_dir(folder.join("there")).unwrap();
    let run = line(folder, &format!("estimate --from transformers args.json {H100}"));
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("`deepspeed` is `there`: is a folder"), "{}", run.err);
}

#[test]
fn a_job_file_gives_the_precision_only_if_it_has_one() {
    let folder = folder(2);
    let folder = folder.path();
    write(folder, "run.sh", "torchrun pretrain_gpt.py --micro-batch-size 1 --fp16");
    let job = "schema_version = 1\nglobal_batch = 64\nseq_len = 1024\n";
    let estimate =
        "estimate --from megatron run.sh --cluster 1x8xh100-80gb-sxm --model gpt2 --job own.toml --json";
    let precision = |own: &str| {
        write(folder, "own.toml", own);
        line(folder, estimate).json()["job"]["precision"].clone()
    };
    // Without one that of the trainer's file holds.
    assert_eq!(precision(job), "fp16");
    assert_eq!(precision(&format!("{job}precision = \"bf16\"\n")), "bf16");
}

#[test]
fn a_warm_up_that_is_longer_than_the_training_is_refused() {
    let folder = folder(2);
    let folder = folder.path();
    let flags = |warmup: u32| {
        format!(
            "torchrun pretrain_gpt.py --micro-batch-size 1 --bf16 --train-iters 100 --lr-warmup-iters {warmup}"
        )
    };
    write(folder, "run.sh", flags(200));
    let run = line(folder, &format!("estimate --from megatron run.sh {H100}"));
    assert_eq!(run.code, Some(2), "{}", run.err);
    for expected in ["run.sh", "lr-warmup-iters", "train-iters", "200", "100"] {
        assert!(run.err.contains(expected), "`{expected}` is not in {}", run.err);
    }
    write(folder, "run.sh", flags(100));
    assert_eq!(line(folder, &format!("estimate --from megatron run.sh {H100}")).code, Some(0));
}

#[test]
fn what_cannot_be_said_is_refused_and_nothing_is_written() {
    let folder = folder(4);
    line(folder.path(), &format!("{GIVEN} --pp 2 --dp 2 --zero 1 --micro-batch 2")).ok();
    let run = line(folder.path(), "export plan.json --to accelerate -o out");
    assert_eq!(run.code, Some(2));
    for expected in
        ["accelerate cannot train this plan", "pipeline 2: ", "--pp 1", "zero_stage 1: ", "--zero 2 or 3"]
    {
        assert!(run.err.contains(expected), "`{expected}` is not in {}", run.err);
    }
    assert!(!folder.path().join("out").exists());
    let run = line(folder.path(), "export plan.json --to abacus");
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("torchtitan"), "{}", run.err);
}

#[test]
fn what_is_not_told_is_listed() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --micro-batch 2")).ok();
    let document =
        line(folder.path(), "export plan.json --to deepspeed -o out --checkpoint-interval 100 --json").json();
    let instead = document["instead"].as_array().unwrap();
    let field = |name: &str| instead.iter().find(|note| note["field"] == name).unwrap();
    assert_eq!(field("checkpoint_interval")["value"], "100");
    assert!(field("seq_len")["instead"].as_str().unwrap().contains("training script"));
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("out/ds_config.json")).unwrap())
            .unwrap();
    assert_eq!(config["train_batch_size"], 8);
    assert!(started(folder.path(), "out/deepspeed.sh", "torchrun").contains("--nproc-per-node 2"));
}

#[test]
fn wrong_files_are_told_with_a_way_out() {
    let folder = folder(2);
    write(folder.path(), "bad.json", "{\"train_batch_size\": \"many\"}");
    write(folder.path(), "other.json", "{\"colour\": 3}");
    write(folder.path(), "list.json", "[1]");
    write(folder.path(), "open.sh", "torchrun --tensor-model-parallel-size '2");
    write(folder.path(), "late.sh", "torchrun --tensor-model-parallel-size $(nproc)");
    for (arguments, expected) in [
        ("deepspeed bad.json", "bad.json: `train_batch_size` is `many`: expected a whole number"),
        ("deepspeed other.json", "contains no setting of"),
        ("deepspeed list.json", "expected a JSON mapping"),
        ("deepspeed none.json", "none.json: cannot be read"),
        ("megatron open.sh", "has an opening quote without a closing one"),
        ("megatron late.sh", "not known before the script runs"),
        ("slurm bad.json", "is not a trainer whose files autodist reads"),
    ] {
        let run = line(
            folder.path(),
            &format!("estimate --from {arguments} --model model.json --profile profile.json"),
        );
        assert_eq!(run.code, Some(2), "{arguments}: {}", run.err);
        assert!(run.err.contains(expected) && run.err.contains("hint: "), "{arguments}: {}", run.err);
    }
    write(folder.path(), "ds.json", "{\"train_batch_size\": 8, \"train_micro_batch_size_per_gpu\": 2}");
    let run = line(folder.path(), "estimate --from deepspeed ds.json --profile profile.json");
    assert!(run.err.contains("does not describe the model"), "{}", run.err);
}

#[test]
fn launchers_get_the_plan_or_a_script() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --micro-batch 2")).ok();
    line(folder.path(), "export plan.json --to slurm -o own").ok();
    let own = std::fs::read_to_string(folder.path().join("own/job.sbatch")).unwrap();
    assert!(
        own.contains("#SBATCH --ntasks-per-node=2")
            && own.contains("srun autodist train plan.json --steps \"$TRAIN_STEPS\"")
            && own.contains("${TRAIN_STEPS:?"),
        "{own}"
    );
    // The export contains the unchanged plan.
    let plan = |path: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.path().join(path)).unwrap()).unwrap()
    };
    assert_eq!(plan("own/plan.json"), plan("plan.json"));
    line(folder.path(), "export plan.json --to megatron -o other").ok();
    // A relative path is one in this folder, and the job runs in its own.
    line(folder.path(), "export plan.json --to slurm -o other --script other/megatron.sh").ok();
    let other = std::fs::read_to_string(folder.path().join("other/job.sbatch")).unwrap();
    assert!(other.contains("--ntasks-per-node=1") && other.contains("SCRIPT=megatron.sh\n"), "{other}");
    let missing = line(folder.path(), "export plan.json --to slurm -o other --script x.sh");
    assert!(missing.code == Some(2) && missing.err.contains("is not a file"), "{}", missing.err);
    for script in ["own/job.sbatch", "other/job.sbatch"] {
        let checked = Command::new("bash").arg("-n").arg(folder.path().join(script)).status().unwrap();
        assert!(checked.success());
    }
    let refused = command(folder.path(), &["export", "plan.json", "--to", "megatron", "--script", "x.sh"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    line(folder.path(), "export plan.json --to kubernetes -o k8s --image registry/image:1").ok();
    let manifest = std::fs::read_to_string(folder.path().join("k8s/jobset.yaml")).unwrap();
    assert!(manifest.contains("kind: JobSet") && manifest.contains("registry/image:1"), "{manifest}");
}
