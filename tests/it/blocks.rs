//! Models whose blocks differ, from their file to the files of trainers.

use crate::common;

use common::{Finished, line, write};
use serde_json::{Value, json};

/// A model file with dense blocks and blocks with experts, a window in every second one.
fn model() -> Value {
    json!({"name": "unlike", "layers": 8, "hidden": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 4096,
        "vocab": 32000, "max_seq_len": 4096, "positions": {"kind": "rotary", "theta": 10000.0}, "norm": "rms_norm",
        "norm_epsilon": 1e-5, "activation": "swi_glu", "bias": false, "tied_embeddings": false,
        "blocks": [{"window": 1024}, {"ffn": 512, "experts": {"count": 8, "active": 2, "shared_ffn": 1024}}]})
}

const CLUSTER: &str = "--cluster 1x8xh100-80gb-sxm --global-batch 64 --seq-len 4096";

#[track_caller]
fn refused(run: &Finished, expected: &[&str]) {
    let Finished { code, err, .. } = run;
    assert_eq!(*code, Some(2), "{expected:?}: {err}");
    for text in expected.iter().chain(&["hint: "]) {
        assert!(err.contains(text), "`{text}` is not in: {err}");
    }
}

#[test]
fn they_are_planned_explained_reported_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "model.json", model().to_string());
    let text = line(folder, &format!("plan --model model.json {CLUSTER} -o plan.json")).ok();
    let kinds = "4 with an MLP of 4,096, window of 1,024 tokens; 4 with 8 experts of 512, 2 active and";
    assert!(text.contains(kinds) && text.contains("gap 0.0 %"), "{text}");
    let plan: Value = serde_json::from_slice(&std::fs::read(folder.join("plan.json")).unwrap()).unwrap();
    // The model is kept as it was written.
    assert_eq!(plan["model"], model());
    let explained = line(folder, "explain plan.json").ok();
    for text in ["the largest part is compute", "exposed expert communication"] {
        assert!(explained.contains(text), "`{text}` is not in: {explained}");
    }
    line(folder, "report plan.json -o report").ok();
    let page = std::fs::read_to_string(folder.join("report/report.html")).unwrap();
    assert!(page.contains("4 with 8 experts of 512"));
    line(folder, "export plan.json --to megatron -o out").ok();
    let script = std::fs::read_to_string(folder.join("out/megatron.sh")).unwrap();
    for flag in [
        "--moe-layer-freq '([0]*1+[1]*1)*4'",
        "--moe-shared-expert-intermediate-size 1024",
        "--ffn-hidden-size 4096",
        "--moe-ffn-hidden-size 512",
        "--window-size 1023,0",
        "--window-attn-skip-freq '([1]*1+[0]*1)*4'",
    ] {
        assert!(script.contains(flag), "{flag} is not in {script}");
    }
    let read =
        line(folder, "estimate --from megatron out/megatron.sh --cluster 1x8xh100-80gb-sxm --json").json();
    let step = |plan: &Value| plan["estimate"]["step_time_s"].as_f64().unwrap();
    assert!((step(&read) / step(&plan) - 1.0).abs() < 1e-9, "{} {}", step(&read), step(&plan));
    refused(&line(folder, "export plan.json --to maxtext -o jax"), &["model.name", "megatron"]);
}

#[test]
fn a_file_with_other_attention_than_the_named_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let script = |flags: &str| {
        format!(
            "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 32 --hidden-size 4096 --num-attention-heads 32 \
             --vocab-size 32000 --seq-length 8192 --max-position-embeddings 8192 --micro-batch-size 1 \
             --global-batch-size 8 --bf16 {flags}\n"
        )
    };
    let estimate = |flags: &str, model: &str| {
        write(folder, "train.sh", script(flags));
        line(
            folder,
            &format!("estimate --from megatron train.sh --model {model} --cluster 1x8xh100-80gb-sxm"),
        )
    };
    for (flags, key, found, expected) in [
        ("--window-size 63,0", "window-size", "`a window of 64 tokens`", "a window of 4096 tokens"),
        (
            "--multi-latent-attention",
            "multi-latent-attention",
            "`multi-head latent attention`",
            "no multi-head latent attention",
        ),
    ] {
        let run = estimate(flags, "mistral-7b");
        refused(&run, &["train.sh", key, found, "contradicts mistral-7b, which has", expected]);
    }
    let same = estimate("--window-size 4095,0 --tensor-model-parallel-size 8", "mistral-7b");
    assert!(same.code == Some(0) && !same.err.contains("contradicts"), "{:?} {}", same.code, same.err);
}

#[test]
fn bad_lists_of_blocks_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (blocks, expected) in [
        (json!([{"count": 9}]), &["`blocks`", "9 blocks", "has 8"][..]),
        (json!([{"count": 0}]), &["`blocks[0].count`", "`0`", "at least 1"]),
        (json!([{"count": u32::MAX}, {"count": u32::MAX}]), &["`blocks[0].count`", "4294967295"]),
        (json!([{}, {"ffn": 0}]), &["`blocks[1].ffn`", "`0`"]),
        (json!([{"heads": 6}]), &["`blocks[0].kv_heads`", "`4`", "divide"]),
        (json!([{"window": -1}]), &["blocks[0].window", "-1"]),
        (json!([{"experts": {"count": 8, "active": 9}}]), &["`blocks[0].experts.active`", "`9`"]),
        (json!([{"experts": {"count": 8}}]), &["blocks[0].experts", "active"]),
        (json!([{"layers": 2}]), &["blocks[0].layers", "unknown field"]),
        (json!({}), &["blocks"]),
    ] {
        let mut model = model();
        model["blocks"] = blocks;
        write(folder, "model.json", model.to_string());
        refused(&line(folder, &format!("plan --model model.json {CLUSTER}")), expected);
    }
}

#[test]
fn autodists_own_engines_refuse_them_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let refuses = |change: &dyn Fn(&mut Value), expected: &[&str]| {
        let mut model = model();
        model["blocks"] = json!([]);
        change(&mut model);
        write(folder, "model.json", model.to_string());
        let run = line(folder, "profile --model model.json --ranks 1 --seq-len 128 -o profile.json");
        refused(&run, &[&["unlike", "plan --cluster"], expected].concat());
    };
    refuses(&|model| model["blocks"] = json!([{"ffn": 512}, {}]), &["has blocks that differ"]);
    refuses(
        &|model| model["window"] = json!(64),
        &["a window of 64 tokens in sequences of 128", "seq_len of 64 or less"],
    );
    refuses(&|model| model["additions"] = json!(["qkv_bias"]), &["qkv_bias"]);
    let latent = json!({"kv_rank": 8, "rope_dim": 4, "value_dim": 64});
    refuses(
        &|model| (model["latent"], model["kv_heads"]) = (latent.clone(), json!(16)),
        &["multi-head latent attention"],
    );
    refuses(&|model| model["blocks"] = json!([{}, {"experts": {"count": 8, "active": 2}}]), &["has experts"]);
    refuses(
        &|model| model["additions"] = json!(["scaled_positions"]),
        &["scaled rotary positions", "rope_type"],
    );
}
