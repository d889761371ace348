//! Adapters and frozen parts, from the command line, job files and trainers' files.

use crate::common;

use common::{line, write};
use serde_json::{Value, json};

const QLORA: &str = "--model llama3-8b --cluster 1x1xrtx4090 --trainer fsdp2 --global-batch 8 --micro-batch 1 --seq-len 2048 --recompute full \
                     --lora-rank 16 --lora-targets all-linear";

#[test]
fn a_model_is_tuned_on_a_gaming_card() {
    let folder = tempfile::tempdir().unwrap();
    let run = |flags: &str| line(folder.path(), flags);
    // Of 24 GB, weights in 16 bits leave nothing.
    let whole = run(&format!("estimate {QLORA}"));
    assert_eq!(whole.code, Some(3), "{}{}", whole.out, whole.err);
    let fits = run(&format!("estimate {QLORA} --base-bits 4 -o plan.json"));
    assert_eq!(fits.code, Some(0), "{}{}", fits.out, fits.err);
    for text in ["LoRA rank 16 on all-linear", "41.9 M of 8.0 B parameters", "NF4"] {
        assert!(fits.out.contains(text), "`{text}` is not in {}", fits.out);
    }
    let document: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("plan.json")).unwrap()).unwrap();
    let said = json!({"lora": {"rank": 16, "targets": ["all-linear"]}, "base_bits": 4.0});
    assert_eq!(document["job"]["trainable"], said);
    let again = run("estimate plan.json");
    assert!(again.out.contains("LoRA rank 16"), "{}{}", again.out, again.err);
    // Training scripts make adapters; trainers without are refused, and so are engines of autodist.
    let exported = run("export plan.json --to transformers -o out");
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    assert!(format!("{}{}", exported.out, exported.err).contains("PEFT"), "{}{}", exported.out, exported.err);
    for (command, field) in [
        ("export plan.json --to megatron -o other", "trainable"),
        ("train plan.json --steps 1", "trainable"),
        ("profile --lora-rank 8 -o profile.json", "trainable"),
    ] {
        let refused = run(command);
        assert_eq!(refused.code, Some(2), "{command}: {}", refused.err);
        assert!(refused.err.contains(field), "{command}: {}", refused.err);
    }
}

#[test]
fn a_job_file_and_a_trainer_file_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let job = "schema_version = 1\nglobal_batch = 64\nseq_len = 4096\nprecision = \"bf16\"\n\
               [trainable]\nfreeze = [\"embedding\", \"blocks:0-15\"]\n";
    write(folder.path(), "job.toml", job);
    let run = |flags: &str| line(folder.path(), flags);
    let cluster = "--cluster 1x8xh100-80gb-sxm --trainer fsdp2";
    let frozen = run(&format!("plan --model llama3-8b {cluster} --job job.toml"));
    assert_eq!(frozen.code, Some(0), "{}", frozen.err);
    assert!(frozen.out.contains("all but embedding, blocks:0-15"), "{}", frozen.out);
    let args = "{\"bf16\": true, \"per_device_train_batch_size\": 1, \"use_peft\": true, \"lora_r\": 16, \
                \"lora_target_modules\": [\"q_proj\", \"v_proj\"], \"gradient_checkpointing\": true}";
    write(folder.path(), "args.json", args);
    let from = "--from transformers args.json --model llama3-8b --cluster 1x8xh100-80gb-sxm --seq-len 4096";
    let read = run(&format!("estimate {from}"));
    assert_eq!(read.code, Some(0), "{}", read.err);
    assert!(read.out.contains("LoRA rank 16 on q, v: 6.8 M"), "{}", read.out);
    let flags = "estimate --model llama3-8b --cluster 1x8xh100-80gb-sxm --trainer fsdp2 --dp 8 --zero 0 --micro-batch 1 --global-batch 8 \
                 --seq-len 4096 --recompute full --lora-rank 16 --blocks eager --json";
    let step = |document: Value| document["estimate"]["step_time_s"].as_f64().unwrap();
    let by_file = step(run(&format!("estimate {from} --json")).json());
    assert_eq!(by_file, step(run(flags).json()));
    // A flag replaces what the file says.
    let wider = run(&format!("estimate {from} --lora-rank 64 --lora-targets all-linear"));
    assert!(wider.out.contains("LoRA rank 64 on all-linear"), "{}{}", wider.out, wider.err);
}

#[test]
fn what_cannot_be_is_refused_by_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let base = "--model gpt2 --cluster 1x8xh100-80gb-sxm --global-batch 64 --seq-len 1024";
    for (flags, text) in [
        ("--base-bits 4", "--base-bits"),
        ("--lora-targets q", "--lora-targets"),
        ("--lora-rank 0", "--lora-rank"),
        ("--lora-rank 8 --lora-targets gate", "--lora-targets"),
        ("--freeze blocks:0-12", "--freeze"),
        ("--freeze embedding", "--freeze"),
        ("--freeze all-but-head,head", "--freeze"),
        ("--freeze some", "--freeze"),
        ("--lora-rank 8 --trainer megatron", "--lora-rank"),
        ("--lora-rank 8 --base-bits 4 --trainer megatron-core", "base-bits"),
    ] {
        let refused = line(folder.path(), &format!("plan {base} {flags}"));
        assert_eq!(refused.code, Some(2), "{flags}: {}{}", refused.out, refused.err);
        assert!(refused.err.contains(text), "{flags}: {}", refused.err);
    }
    let compared = "compare 1x1xa100-80gb-sxm 1x1xh100-80gb-sxm --model gpt2 --global-batch 8 --seq-len 512";
    for (flags, text) in [
        ("--freeze blocks:0-99", "--freeze"),
        ("--lora-rank 8 --lora-targets gate", "--lora-targets"),
        ("--lora-rank 8 --base-bits 4", "--base-bits"),
    ] {
        let refused = line(folder.path(), &format!("{compared} {flags}"));
        assert_eq!(refused.code, Some(2), "{flags}: {}{}", refused.out, refused.err);
        assert!(refused.err.contains(text), "{flags}: {}", refused.err);
    }
    let adapted = line(folder.path(), &format!("{compared} --lora-rank 8"));
    assert!(adapted.out.contains("gpt2 (LoRA rank 8 on q, v) in bf16"), "{}{}", adapted.out, adapted.err);
    let split = line(
        folder.path(),
        &format!("estimate {base} --lora-rank 8 --base-bits 4 --trainer fsdp2 --tp 2 --dp 4 --micro-batch 1"),
    );
    assert_eq!(split.code, Some(2), "{}", split.out);
    assert!(split.err.contains("quantised layers are not split"), "{}", split.err);
}
