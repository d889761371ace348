//! Invalid input is refused with exit code 2 and a message that names the file, the field, the value and a
//! remedy; nothing is printed on standard output and nothing panics.

use crate::common;

use autodist_spec::to_json;
use common::{Finished, autodist, edited, line, plan, run_record, validation, write};
use serde_json::{Value, json};
use std::path::Path;

/// Checks for exit code 2, an empty standard output, and one message that contains all `expected` texts and a
/// hint.
#[track_caller]
fn refused(run: &Finished, expected: &[&str]) {
    let Finished { code, out, err } = run;
    assert_eq!(*code, Some(2), "{expected:?}: {err}");
    assert!(out.is_empty(), "{expected:?}: {out}");
    assert_eq!(err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{err}");
    assert!(err.contains("\nhint: ") || err.contains("try '--help'"), "no way out: {err}");
    assert!(!err.contains("panicked"), "{err}");
    for text in expected {
        assert!(err.contains(text), "`{text}` is not in: {err}");
    }
}

/// A command that reads `file`, and valid content of it.
struct Reader<'a> {
    folder: &'a Path,
    file: &'a str,
    args: &'a str,
}

impl Reader<'_> {
    /// Checks that the file is refused if it has `content`.
    #[track_caller]
    fn check(&self, content: impl AsRef<[u8]>, expected: &[&str]) {
        write(self.folder, self.file, content);
        let mut all = vec![self.file];
        all.extend(expected);
        refused(&line(self.folder, self.args), &all);
    }

    /// Checks that the document is refused with `value` at `pointer`.
    #[track_caller]
    fn change(&self, document: &Value, pointer: &str, value: Value, expected: &[&str]) {
        self.check(edited(document, pointer, Some(value)).to_string(), expected);
    }

    #[track_caller]
    fn remove(&self, document: &Value, pointer: &str) {
        let field = pointer.rsplit('/').next().unwrap();
        self.check(edited(document, pointer, None).to_string(), &[field, "missing"]);
    }

    /// Errors of JSON files of any kind.
    fn check_any_json(&self, document: &Value) {
        write(self.folder, self.file, document.to_string());
        let right = line(self.folder, self.args);
        assert_eq!(right.code, Some(0), "the right {} is refused: {}", self.file, right.err);
        let text = document.to_string();
        self.check("", &["empty"]);
        self.check(" \n\t ", &["empty"]);
        self.check(b"{\"schema_version\": 1, \"name\": \"\xff\xfe\"}", &["UTF-8"]);
        self.check(&text[..text.len() / 2], &["ends too early"]);
        self.check(format!("[{text}]"), &["one object"]);
        self.check("null", &["one object"]);
        self.check("\"text\"", &["one object"]);
        self.check(format!("{text}{text}"), &["not valid JSON"]);
        self.check(text.replacen(':', ": NaN, \"x\":", 1), &["not valid JSON"]);
        self.check(text.replacen(':', ": 1e400, \"x\":", 1), &["not valid JSON"]);
        self.check("{".repeat(300), &["JSON"]);
        self.check("[".repeat(100_000), &["JSON"]);
        let mut unknown = document.clone();
        unknown.as_object_mut().unwrap().insert("surprise".to_owned(), json!(1));
        self.check(unknown.to_string(), &["surprise", "unknown field"]);
        if document.get("schema_version").is_some() {
            self.remove(document, "/schema_version");
            for version in [json!(0), json!(2), json!("1"), json!(-1), json!(1.5), json!(null), json!(1e300)]
            {
                let shown = version.to_string();
                self.change(document, "/schema_version", version, &["schema_version", &shown, "expected 1"]);
            }
        }
        self.check_no_file();
    }

    /// A missing file, a folder instead of it, and an endless file.
    fn check_no_file(&self) {
        let path = self.folder.join(self.file);
        std::fs::remove_file(&path).unwrap();
        refused(&line(self.folder, self.args), &[self.file]);
        std::fs::create_dir(&path).unwrap();
        refused(&line(self.folder, self.args), &[self.file]);
        std::fs::remove_dir(&path).unwrap();
    }
}

fn right() -> (tempfile::TempDir, Value) {
    let folder = common::folder(2);
    let plan = serde_json::to_value(plan()).unwrap();
    write(folder.path(), "plan.json", plan.to_string());
    (folder, plan)
}

fn parsed(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
}

#[test]
fn models() {
    let (folder, _) = right();
    let folder = folder.path();
    let args = "estimate --model model.json --global-batch 8 --micro-batch 4";
    let reader = Reader { folder, file: "model.json", args };
    let model = parsed(folder, "model.json");
    reader.check_any_json(&model);
    for (pointer, value, expected) in [
        ("/layers", json!(0), &["`layers`", "`0`", "at least 1"][..]),
        ("/layers", json!(-1), &["`layers`", "`-1`"]),
        ("/layers", json!("two"), &["`layers`", "two", "invalid type"]),
        ("/layers", json!(2.5), &["`layers`", "2.5"]),
        ("/layers", json!(4_294_967_296_u64), &["`layers`", "4294967296"]),
        ("/layers", json!(u64::MAX), &["`layers`", "18446744073709551615"]),
        ("/layers", json!(null), &["`layers`"]),
        ("/layers", json!([2]), &["`layers`"]),
        ("/hidden", json!(u32::MAX), &["`hidden`", "4294967295"]),
        ("/vocab", json!(0), &["`vocab`", "`0`"]),
        ("/kv_heads", json!(3), &["`kv_heads`", "`3`", "divide"]),
        ("/head_dim", json!(7), &["`head_dim`", "`7`", "even"]),
        ("/norm", json!("batch_norm"), &["`norm`", "batch_norm", "layer_norm"]),
        ("/norm_epsilon", json!(0.0), &["`norm_epsilon`", "`0`"]),
        ("/norm_epsilon", json!(1e300), &["`norm_epsilon`", "1e30"]),
        ("/positions", json!({"kind": "sinus"}), &["`positions", "sinus"]),
        ("/positions/theta", json!(-1.0), &["theta", "-1"]),
        ("/positions/phi", json!(1.0), &["phi", "unknown field"]),
        ("/bias", json!("yes"), &["`bias`", "yes"]),
        ("/name", json!(7), &["`name`", "`7`"]),
    ] {
        reader.change(&model, pointer, value, expected);
    }
    for field in ["name", "layers", "vocab", "norm", "positions", "tied_embeddings"] {
        reader.remove(&model, &format!("/{field}"));
    }
    // Each field is valid alone, but the combination is not a model.
    let mut huge = model.clone();
    for (field, value) in
        [("hidden", 1 << 20), ("heads", 1 << 16), ("kv_heads", 1 << 16), ("head_dim", 1 << 16)]
    {
        huge[field] = json!(value);
    }
    reader.check(huge.to_string(), &["head_dim", "4294967296"]);
    for (name, expected) in [
        ("lama2-7b", "did you mean `llama2-7b`"),
        ("no-such-model", "catalogue"),
        ("no/such.json", "no/such.json"),
    ] {
        refused(&line(folder, &format!("estimate --global-batch 8 --model {name}")), &[name, expected]);
    }
    refused(&autodist(folder, &["estimate", "--global-batch", "8", "--model", ""]), &["model", "catalogue"]);
}

#[test]
fn hugging_face_configurations() {
    let (folder, _) = right();
    let folder = folder.path();
    let config = json!({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false});
    // A valid configuration is then refused because the profile is of another model.
    let args = "estimate --model config.json --global-batch 8";
    let reader = Reader { folder, file: "config.json", args };
    write(folder, "config.json", config.to_string());
    refused(&line(folder, args), &["the profile measured model `small`"]);
    for (pointer, value, expected) in [
        ("/model_type", json!("bert"), &["`model_type`", "bert", "gpt2"][..]),
        ("/model_type", json!(1), &["`model_type`", "`1`"]),
        ("/hidden_size", json!("32"), &["`hidden_size`", "32", "whole number"]),
        ("/hidden_size", json!(0), &["`hidden_size`", "`0`"]),
        ("/hidden_size", json!(-32), &["`hidden_size`", "-32"]),
        ("/hidden_size", json!(u64::MAX), &["`hidden_size`", "18446744073709551615"]),
        ("/hidden_size", json!(1e19), &["`hidden_size`", "1e+19"]),
        ("/hidden_size", json!(2_000_000_000), &["`hidden_size`", "2000000000"]),
        ("/num_attention_heads", json!(5), &["`num_attention_heads`", "`5`", "divide"]),
        ("/num_key_value_heads", json!(3), &["`num_key_value_heads`", "`3`"]),
        ("/hidden_act", json!("sinus"), &["`hidden_act`", "sinus", "silu"]),
        ("/hidden_act", json!(3), &["`hidden_act`", "`3`"]),
        ("/rms_norm_eps", json!(-1.0), &["`rms_norm_eps`", "-1"]),
        ("/rms_norm_eps", json!("small"), &["`rms_norm_eps`", "small"]),
        ("/rope_theta", json!(0), &["`rope_theta`", "`0`"]),
        ("/rope_parameters", json!({"rope_theta": "many"}), &["`rope_parameters`"]),
        ("/attention_bias", json!("no"), &["`attention_bias`", "no"]),
        ("/tie_word_embeddings", json!(0), &["`tie_word_embeddings`", "`0`"]),
    ] {
        reader.change(&config, pointer, value, expected);
    }
    let text = config.to_string();
    reader.check("", &["empty"]);
    reader.check(b"\xff{}", &["UTF-8"]);
    reader.check(&text[..40], &["ends too early"]);
    reader.check(format!("[{text}]"), &["one object"]);
    reader.check(text.replace("\"hidden_size\":32", "\"hidden_size\":NaN"), &["not valid JSON"]);
    reader.check(text.replace("\"hidden_size\":32", "\"hidden_size\":1e400"), &["not valid JSON"]);
    reader.check_no_file();
    // A folder is accepted instead of the configuration in it.
    refused(&line(folder, "estimate --model . --global-batch 8"), &["config.json", "cannot be read"]);
}

#[test]
fn clusters() {
    let (folder, _) = right();
    let folder = folder.path();
    let args = "estimate --model model.json --global-batch 8 --profile profile.json --cluster cluster.toml";
    let reader = Reader { folder, file: "cluster.toml", args };
    let right = "schema_version = 1\nname = \"c\"\n[[nodes]]\ncount = 1\ndevices = 2\n\
        device = { name = \"d\", memory_bytes = 1073741824 }\nlink = { bytes_per_s = 1e9 }\n";
    write(folder, "cluster.toml", right);
    line(folder, args).ok();
    for (from, to, expected) in [
        ("devices = 2", "devices = 0", &["nodes[0].devices", "`0`"][..]),
        ("devices = 2", "devices = \"2\"", &["nodes[0].devices", "invalid type"]),
        ("devices = 2", "devices = -2", &["nodes[0].devices", "-2"]),
        ("devices = 2", "devices = 4294967296", &["nodes[0].devices", "4294967296"]),
        ("devices = 2", "devices = 99999999999999999999", &["not valid TOML"]),
        ("devices = 2", "devices = nan", &["nodes[0].devices", "NaN", "finite"]),
        ("devices = 2", "devices = 1979-05-27", &["nodes[0].devices"]),
        ("devices = 2\n", "", &["devices", "missing"]),
        ("devices = 2", "devices = 4", &["--cluster", "has d", "measured on synthetic"]),
        ("count = 1", "count = 1048576", &["total number of devices", "2097152"]),
        ("count = 1", "count = 1\nspeed = 3", &["speed", "unknown field"]),
        ("bytes_per_s = 1e9", "bytes_per_s = inf", &["nodes[0].link.bytes_per_s", "inf", "finite"]),
        ("bytes_per_s = 1e9", "bytes_per_s = 1e400", &["cluster.toml"]),
        ("bytes_per_s = 1e9", "bytes_per_s = -1.0", &["nodes[0].link.bytes_per_s", "-1"]),
        ("bytes_per_s = 1e9", "bytes_per_s = 0", &["nodes[0].link.bytes_per_s", "`0`"]),
        ("bytes_per_s = 1e9", "latency_s = 1e-6", &["bytes_per_s", "missing"]),
        ("{ name = \"d\", memory_bytes = 1073741824 }", "\"abacus\"", &["abacus", "did you mean"]),
        ("memory_bytes = 1073741824", "memory_bytes = 12", &["device.memory_bytes", "`12`"]),
        ("memory_bytes = 1073741824", "memory = 1", &["memory", "unknown field"]),
        ("schema_version = 1", "schema_version = 2", &["schema_version", "`2`", "expected 1"]),
        ("schema_version = 1\n", "", &["schema_version", "missing"]),
        ("name = \"c\"", "name = 3", &["`name`", "`3`"]),
        ("name = \"c\"", "name = \"c", &["not valid TOML"]),
        ("[[nodes]]", "[nodes]", &["nodes"]),
        ("[[nodes]]", "[[node]]", &["node", "unknown field"]),
    ] {
        assert!(right.contains(from), "{from}");
        reader.check(right.replace(from, to), expected);
    }
    reader.check("", &["empty"]);
    reader.check(b"\xff", &["UTF-8"]);
    reader.check("schema_version = 1\nname = \"c\"\nnodes = []\n", &["nodes", "at least one node"]);
    let two = format!("{right}[[nodes]]\ncount = 1\ndevices = 1\ndevice = \"a100-80gb-sxm\"\n");
    reader.check(&two, &["network", "missing"]);
    reader.check_no_file();
    write(folder, "cluster.toml", right);
    refused(
        &line(folder, "plan --model model.json --global-batch 8 --cluster cluster.toml"),
        &["nodes[0].device.peak_flops_per_s", "catalogue"],
    );
    for (short, expected) in [
        ("2x", "devices per node"),
        ("1x2xabacus", "abacus"),
        ("1x2", "device name is missing"),
        ("0x2xabacus", "nodes"),
    ] {
        let args = format!("estimate --model model.json --global-batch 8 --cluster {short}");
        refused(&line(folder, &args), &["--cluster", short, expected]);
    }
}

#[test]
fn jobs() {
    let (folder, _) = right();
    let folder = folder.path();
    let args = "plan --model model.json --job job.toml --threads 1";
    let reader = Reader { folder, file: "job.toml", args };
    let right = "schema_version = 1\nglobal_batch = 8\nseq_len = 16\ngradient_clip = 1.0\nmemory_reserve = 0.04\n\
        [learning_rate]\npeak = 0.003\ntotal_steps = 200\n\
        [optimizer]\nkind = \"adamw\"\nbeta1 = 0.9\nbeta2 = 0.95\nepsilon = 1e-8\nweight_decay = 0.1\n\
        [allow]\ntensor = [1, 2]\nzero_stage = [0, 1]\nschedule = [\"1f1b\"]\nrecompute = [\"none\"]\n";
    write(folder, "job.toml", right);
    line(folder, args).ok();
    for (from, to, expected) in [
        ("global_batch = 8", "global_batch = 0", &["`global_batch`", "`0`", "at least 1"][..]),
        ("global_batch = 8", "global_batch = \"eight\"", &["`global_batch`", "eight", "is not a number"]),
        ("global_batch = 8", "global_batch = -8", &["`global_batch`", "-8"]),
        ("global_batch = 8", "global_batch = 8.5", &["`global_batch`", "8.5"]),
        ("global_batch = 8", "global_batch = nan", &["`global_batch`", "NaN"]),
        ("global_batch = 8", "global_batch = 5000000000", &["`global_batch`", "5000000000"]),
        ("global_batch = 8\n", "", &["global_batch", "missing"]),
        ("global_batch = 8", "global_batches = 8", &["global_batches", "unknown field"]),
        ("seq_len = 16", "seq_len = 0", &["`seq_len`", "`0`"]),
        ("seq_len = 16", "seq_len = 99999999", &["`seq_len`", "99999999"]),
        ("gradient_clip = 1.0", "gradient_clip = -1.0", &["`gradient_clip`", "-1"]),
        ("memory_reserve = 0.04", "memory_reserve = 1.5", &["`memory_reserve`", "1.5"]),
        ("memory_reserve = 0.04", "memory_reserve = -inf", &["`memory_reserve`", "-inf"]),
        ("peak = 0.003", "peak = nan", &["`learning_rate.peak`", "NaN"]),
        ("peak = 0.003", "peak = 0", &["`learning_rate.peak`", "`0`"]),
        ("peak = 0.003", "speed = 0.003", &["speed", "unknown field"]),
        ("total_steps = 200", "total_steps = 0", &["`learning_rate.total_steps`", "`0`"]),
        ("kind = \"adamw\"", "kind = \"lion\"", &["optimizer", "lion", "adamw"]),
        ("beta1 = 0.9", "beta1 = 1.0", &["`optimizer.beta1`", "`1`", "below 1"]),
        ("beta1 = 0.9\n", "", &["optimizer", "beta1", "missing"]),
        ("epsilon = 1e-8", "epsilon = 0", &["`optimizer.epsilon`", "`0`"]),
        ("tensor = [1, 2]", "tensor = []", &["`allow.tensor`", "must not be empty"]),
        ("tensor = [1, 2]", "tensor = [0]", &["`allow.tensor[0]`", "`0`"]),
        ("tensor = [1, 2]", "tensor = 2", &["`allow.tensor`", "`2`"]),
        ("zero_stage = [0, 1]", "zero_stage = [4]", &["`allow.zero_stage[0]`", "`4`"]),
        ("zero_stage = [0, 1]", "zero_stage = [300]", &["`allow.zero_stage[0]`", "300"]),
        ("schedule = [\"1f1b\"]", "schedule = [\"2f2b\"]", &["`allow.schedule[0]`", "2f2b", "1f1b"]),
        ("recompute = [\"none\"]", "recompute = \"none\"", &["`allow.recompute`"]),
        ("schema_version = 1", "schema_version = 9", &["`schema_version`", "`9`"]),
        ("schema_version = 1\n", "", &["schema_version", "missing"]),
        ("[allow]", "[allow", &["not valid TOML"]),
        ("seq_len = 16", "seq_len = 16\nseq_len = 16", &["not valid TOML", "duplicate"]),
        ("seq_len = 16", "seq_len = 16\nprecision = \"fp5\"", &["`precision`", "fp5"]),
    ] {
        assert!(right.contains(from), "{from}");
        reader.check(right.replace(from, to), expected);
    }
    let long = "schema_version = 1\nglobal_batch = 1048576\nseq_len = 16777216\n";
    reader.check(long, &["global_batch x seq_len", "17592186044416"]);
    reader.check("", &["empty"]);
    reader.check(b"seq_len = \"\xc3\x28\"", &["UTF-8"]);
    reader.check(&right[..right.len() - 4], &["not valid TOML"]);
    reader.check_no_file();
}

#[test]
fn profiles() {
    let (folder, plan) = right();
    let folder = folder.path();
    let args = "plan --model model.json --global-batch 8 --profile profile.json --threads 1";
    let reader = Reader { folder, file: "profile.json", args };
    let profile = parsed(folder, "profile.json");
    reader.check_any_json(&profile);
    for (pointer, value, expected) in [
        ("/seq_len", json!(0), &["`seq_len`", "`0`"][..]),
        ("/seq_len", json!("16"), &["`seq_len`", "16", "invalid type"]),
        ("/complete", json!(1), &["`complete`", "`1`"]),
        ("/model/blocks", json!([{"ffn": 8}, {}]), &["`model.blocks`", "blocks that differ", "--cluster"]),
        ("/segments", json!({}), &["`segments`"]),
        ("/segments/0/segment", json!("heart"), &["`segments[0].segment`", "heart"]),
        ("/segments/0/tensor", json!(0), &["`segments[0].tensor`", "`0`"]),
        ("/segments/1/time/median_s", json!(-1.0), &["`segments[1].time.median_s`", "-1"]),
        ("/segments/1/time/median_s", json!(1e300), &["`segments[1].time.median_s`", "1e30"]),
        ("/segments/1/time/median_s", json!(null), &["`segments[1].time.median_s`", "null"]),
        ("/segments/1/time/median", json!(1), &["segments[1].time", "unknown field"]),
        ("/segments/1/growth_bytes", json!(i64::MIN), &["`segments[1].growth_bytes`", "9223372036854775808"]),
        ("/segments/1/growth_bytes", json!(1e30), &["`segments[1].growth_bytes`", "1e+30"]),
        ("/segments/1/peak_bytes", json!(u64::MAX), &["`segments[1].peak_bytes`", "18446744073709551615"]),
        ("/segments/1/peak_bytes", json!(-1), &["`segments[1].peak_bytes`", "-1"]),
        ("/collectives/0/group", json!(1), &["`collectives[0].group`", "`1`"]),
        ("/collectives/0/kind", json!("gossip"), &["`collectives[0].kind`", "gossip"]),
        ("/collectives/0/bytes", json!(u64::MAX), &["`collectives[0].bytes`", "18446744073709551615"]),
        ("/fits/0/what", json!("gossip"), &["`fits[0].what`", "gossip", "all_reduce"]),
        ("/optimizer/0/elements", json!(0), &["`optimizer[0].elements`", "`0`"]),
        ("/interference/compute_slowdown", json!(0.5), &["`interference.compute_slowdown`", "0.5"]),
        ("/repeatability", json!(-0.1), &["`repeatability`", "-0.1"]),
        ("/baseline_bytes", json!(u64::MAX), &["`baseline_bytes`", "18446744073709551615"]),
        ("/cluster/nodes", json!([]), &["`cluster.nodes`", "at least one node"]),
        ("/cluster/nodes/0/devices", json!(0), &["`cluster.nodes[0].devices`", "`0`"]),
        ("/cluster/nodes/0/device", json!("abacus"), &["cluster.nodes[0].device", "abacus"]),
        ("/model/layers", json!(0), &["`model.layers`", "`0`"]),
        ("/model/layers", json!(3), &["the profile measured model"]),
        ("/environment/weather", json!("rain"), &["weather", "unknown field"]),
        ("/environment/devices", json!("abacus"), &["`environment.devices`", "abacus", "cuda"]),
        ("/environment/accelerators", json!([{"name": 3}]), &["environment.accelerators[0].name", "3"]),
        ("/precision", json!("fp5"), &["`precision`", "fp5"]),
        ("/hardware", json!({"products": [{}]}), &["hardware.products[0]", "missing field"]),
        ("/hardware", json!({"copies": [{"kind": "sideways"}]}), &["hardware.copies[0].kind", "sideways"]),
        ("/optimizer_kind/kind", json!("lion"), &["optimizer_kind", "lion"]),
    ] {
        // The error for another model is about two files, and names neither.
        if expected[0].starts_with("the profile") {
            write(folder, "profile.json", edited(&profile, pointer, Some(value)).to_string());
            refused(&line(folder, args), expected);
        } else {
            reader.change(&profile, pointer, value, expected);
        }
    }
    for field in ["model", "segments", "optimizer", "interference", "step_overhead", "cluster"] {
        reader.remove(&profile, &format!("/{field}"));
    }
    let mut still = profile.clone();
    for cell in still["segments"].as_array_mut().unwrap() {
        for field in ["median_s", "low_s", "high_s"] {
            cell["time"][field] = json!(0.0);
        }
    }
    reader.check(still.to_string(), &["segments", "longer than 0 s"]);
    // A plan belongs to one profile.
    write(folder, "plan.json", plan.to_string());
    write(folder, "profile.json", edited(&profile, "/repeatability", Some(json!(0.5))).to_string());
    for command in ["explain plan.json", "estimate plan.json", "validate plan.json --all"] {
        refused(&line(folder, command), &["profile.json", "fingerprint", "not the profile"]);
    }
}

#[test]
fn plans() {
    let (folder, plan) = right();
    let folder = folder.path();
    let reader = Reader { folder, file: "plan.json", args: "estimate plan.json" };
    reader.check_any_json(&plan);
    let one = json!([{"first_layer": 0, "end_layer": 3, "recompute": ["none", "none", "none"]}]);
    for (pointer, value, expected) in [
        ("/strategy/data", json!(0), &["`strategy.data`", "`0`", "at least 1"][..]),
        ("/strategy/data", json!("2"), &["`strategy.data`", "2", "invalid type"]),
        ("/strategy/data", json!(3), &["`strategy`", "dp3", "uses 3 devices, but there are 2"]),
        ("/strategy/tensor", json!(1_048_576), &["strategy.", "1048576"]),
        ("/strategy/tensor", json!(1e300), &["`strategy.tensor`"]),
        ("/strategy/pipeline", json!(-1), &["`strategy.pipeline`", "-1"]),
        ("/strategy/context", json!(2), &["strategy", "uses 4 devices"]),
        ("/strategy/micro_batch", json!(3), &["strategy", "does not divide the global batch of 8"]),
        ("/strategy/micro_batch", json!(u64::MAX), &["`strategy.micro_batch`", "18446744073709551615"]),
        ("/strategy/zero_stage", json!(4), &["`strategy.zero_stage`", "`4`"]),
        ("/strategy/schedule", json!("2f2b"), &["`strategy.schedule`", "2f2b"]),
        ("/strategy/speed", json!(9), &["speed", "unknown field"]),
        ("/stages", json!([]), &["strategy", "0 stages"]),
        ("/stages", one, &["strategy", "hold 3 layers, but the model has 4"]),
        ("/stages/0/end_layer", json!(0), &["`stages[0]`", "at least one layer"]),
        ("/stages/0/end_layer", json!(u32::MAX), &["`stages[0]`", "4294967295"]),
        ("/stages/0/recompute", json!(["some"]), &["`stages[0].recompute[0]`", "some"]),
        ("/stages/0/recompute/0", json!("full"), &["strategy", "layer 0 is not a block"]),
        ("/estimate/step_time_s", json!(0.0), &["`estimate.step_time_s`", "`0`"]),
        ("/estimate/step_time_s", json!(null), &["`estimate.step_time_s`", "null"]),
        ("/estimate/cost/compute_s", json!(1e300), &["`estimate.cost.compute_s`", "1e30"]),
        (
            "/estimate/memory/weights_bytes",
            json!(u64::MAX),
            &["`estimate.memory.weights_bytes`", "18446744073709551615"],
        ),
        (
            "/estimate/stages/0/memory/weights_bytes",
            json!(u64::MAX),
            &["`estimate.stages[0].memory.weights_bytes`"],
        ),
        ("/search/stop_reason", json!("tired"), &["`search.stop_reason`", "tired"]),
        ("/search/mood", json!("good"), &["mood", "unknown field"]),
        ("/alternatives/0/strategy/data", json!(0), &["`alternatives[0].strategy.data`", "`0`"]),
        (
            "/alternatives/0/strategy/data",
            json!(7),
            &["`alternatives[0].strategy`", "devices, but there are 2"],
        ),
        ("/alternatives/1/stages", json!([]), &["`alternatives[1].strategy`", "0 stages"]),
        (
            "/alternatives/1/estimate/step_time_s",
            json!(-1),
            &["`alternatives[1].estimate.step_time_s`", "-1"],
        ),
        ("/cluster/nodes/0/devices", json!(4), &["strategy", "but there are 4"]),
        ("/cluster/nodes/0/devices", json!(5000), &["`cluster.nodes[0].devices`", "5000"]),
        ("/job/global_batch", json!(0), &["`job.global_batch`", "`0`"]),
        ("/job/seq_len", json!(-1), &["`job.seq_len`", "-1"]),
        ("/model/heads", json!(0), &["`model.heads`", "`0`"]),
        ("/cost_source/profile/path", json!(3), &["`cost_source.profile.path`", "`3`"]),
        (
            "/micro_batches",
            json!(777),
            &[
                "`micro_batches` is `777`",
                "`job.global_batch` 8",
                "`strategy.data` 2",
                "`strategy.micro_batch`",
            ],
        ),
        (
            "/estimate/tokens_per_s",
            json!(1.0),
            &["`estimate.tokens_per_s` is `1`", "`step_time_s`", "`job.seq_len`"],
        ),
        ("/estimate/step_time_s", json!(1e-9), &["`estimate.tokens_per_s`", "`step_time_s` 0.000000001"]),
        ("/estimate/cost/compute_s", json!(7.5), &["`estimate.step_time_s`", "`cost` sum to 7.5"]),
        ("/estimate/memory/weights_bytes", json!(1), &["`estimate.peak_memory_bytes`", "`memory` sum to"]),
        ("/estimate/peak_memory_bytes", json!(17), &["`estimate.peak_memory_bytes` is `17`", "sum to"]),
        ("/estimate/lower_bound_s", json!(99.5), &["`estimate.lower_bound_s` is `99.5`", "`step_time_s`"]),
        (
            "/estimate/stages",
            json!([plan["estimate"]["stages"][0], plan["estimate"]["stages"][0]]),
            &["`estimate.stages` is `2 entries`", "`strategy.pipeline`"],
        ),
        (
            "/estimate/stages/0/memory/weights_bytes",
            json!(1),
            &["`estimate.peak_memory_bytes`", "fullest of `stages`"],
        ),
        ("/estimate/time_to_loss_s", json!(7.0), &["`estimate.time_to_loss_s` is `7`", "`convergence`"]),
        (
            "/alternatives/0/estimate/tokens_per_s",
            json!(1.0),
            &["`alternatives[0].estimate.tokens_per_s`", "`1`"],
        ),
        ("/job/seq_len", json!(8), &["`estimate.tokens_per_s`", "`job.seq_len` 8"]),
    ] {
        reader.change(&plan, pointer, value, expected);
    }
    for field in ["model", "cluster", "job", "strategy", "stages", "estimate", "search", "cost_source"] {
        reader.remove(&plan, &format!("/{field}"));
    }
    // Every command that reads a plan refuses an illegal one before it starts anything.
    let illegal = edited(&plan, "/strategy/data", Some(json!(3)));
    for args in ["train plan.json", "validate plan.json", "explain plan.json", "report plan.json"] {
        Reader { folder, file: "plan.json", args }
            .check(illegal.to_string(), &["`strategy`", "but there are 2"]);
    }
    write(folder, "plan.json", plan.to_string());
    let reader = Reader { folder, file: "other.json", args: "explain plan.json --against other.json" };
    reader.check("{}", &["schema_version"]);
    write(folder, "plan.json", edited(&plan, "/cost_source/profile/path", Some(json!(""))).to_string());
    refused(&line(folder, "explain plan.json"), &["--profile", "does not name a profile"]);
    write(
        folder,
        "plan.json",
        edited(&plan, "/cost_source/profile/path", Some(json!("gone.json"))).to_string(),
    );
    refused(&line(folder, "explain plan.json"), &["gone.json"]);
}

#[test]
fn run_records() {
    let (folder, _) = right();
    let folder = folder.path();
    let reader = Reader { folder, file: "run.json", args: "report plan.json run.json -o report" };
    let record: Value = serde_json::from_str(&to_json(&run_record())).unwrap();
    reader.check_any_json(&record);
    for (pointer, value, expected) in [
        ("/steps/0/time_s", json!(-1.0), &["`steps[0].time_s`", "-1"][..]),
        ("/steps/0/time_s", json!("fast"), &["`steps[0].time_s`", "fast"]),
        ("/steps/1/loss", json!(null), &["`steps[1].loss`", "null"]),
        ("/steps/1/loss", json!(1e300), &["`steps[1].loss`", "1e30"]),
        ("/steps/0/mood", json!(1), &["mood", "unknown field"]),
        ("/step_time/median_s", json!(-1.0), &["`step_time.median_s`", "-1"]),
        ("/step_time", json!(1.0), &["`step_time`", "`1.0`"]),
        (
            "/ranks/0/peak_memory_bytes",
            json!(u64::MAX),
            &["`ranks[0].peak_memory_bytes`", "18446744073709551615"],
        ),
        ("/timeline/0/rank", json!(4_000_000_000_u32), &["`timeline[0].rank`", "4000000000"]),
        ("/timeline/0/end_s", json!(-1.0), &["`timeline[0].end_s`", "-1"]),
        ("/timeline/0/start_s", json!(0.5), &["`timeline[0].end_s`", "before its start"]),
        ("/timeline/0/stream", json!("river"), &["`timeline[0].stream`", "river"]),
        ("/strategy/data", json!(0), &["`strategy.data`", "`0`"]),
        ("/stages/0/end_layer", json!(0), &["`stages[0]`"]),
        ("/label", json!([]), &["`label`"]),
    ] {
        reader.change(&record, pointer, value, expected);
    }
    for field in ["label", "strategy", "steps", "step_time", "ranks"] {
        reader.remove(&record, &format!("/{field}"));
    }
}

#[test]
fn validations() {
    let (folder, _) = right();
    let folder = folder.path();
    let reader =
        Reader { folder, file: "validation.json", args: "report plan.json validation.json -o report" };
    let validation: Value = serde_json::from_str(&to_json(&validation())).unwrap();
    reader.check_any_json(&validation);
    for (pointer, value, expected) in [
        ("/runs", json!({}), &["`runs`"][..]),
        ("/runs/0", json!(3), &["`runs[0]`", "`3`"]),
        ("/runs/0/measured/step_time_s", json!(0.0), &["`runs[0].measured.step_time_s`", "`0`"]),
        ("/runs/0/measured/final_loss", json!(null), &["`runs[0].measured.final_loss`", "null"]),
        ("/runs/0/measured/steps", json!(-1), &["`runs[0].measured.steps`", "-1"]),
        ("/runs/0/measured/mood", json!(1), &["mood", "unknown field"]),
        ("/runs/0/predicted/step_time_s", json!(-1.0), &["`runs[0].predicted.step_time_s`", "-1"]),
        ("/runs/0/predicted/provenance", json!("rumour"), &["`runs[0].predicted.provenance`", "rumour"]),
        ("/runs/0/strategy/tensor", json!(0), &["`runs[0].strategy.tensor`", "`0`"]),
        ("/runs/0/step_time_error", json!(1e300), &["`runs[0].step_time_error`", "1e30"]),
        ("/median_error", json!("small"), &["`median_error`", "small"]),
        ("/regret", json!(-1), &["`regret`", "-1"]),
    ] {
        reader.change(&validation, pointer, value, expected);
    }
    for field in ["median_error", "median_adjusted_error"] {
        reader.remove(&validation, &format!("/{field}"));
    }
    for field in ["label", "strategy", "measured", "predicted"] {
        reader.remove(&validation, &format!("/runs/0/{field}"));
    }
}

#[test]
fn training_data() {
    // The model's vocabulary is too small for bytes, so a larger model is used first.
    let (folder, plan) = right();
    let folder = folder.path();
    write(folder, "text", "a text of more than sixteen letters");
    refused(
        &line(folder, "train plan.json --data text --steps 2"),
        &["--data", "text", "vocabulary of at least 256"],
    );
    refused(
        &line(folder, "validate plan.json --data text --steps 2"),
        &["--data", "text", "vocabulary of at least 256"],
    );
    write(folder, "plan.json", edited(&plan, "/model/vocab", Some(json!(256))).to_string());
    std::fs::create_dir(folder.join("folder")).unwrap();
    write(folder, "empty", "");
    write(folder, "short", "sixteen letters.");
    for (name, expected) in [
        ("gone", "No such file"),
        ("text/file", "Not a directory"),
        ("empty", "0 bytes"),
        ("short", "16 bytes; a sequence needs 17"),
        ("folder", "folder"),
        ("/dev/null", "not a regular file"),
    ] {
        refused(
            &line(folder, &format!("train plan.json --steps 2 --data {name}")),
            &["--data", name, expected],
        );
    }
}

#[test]
fn flags() {
    let (folder, plan) = right();
    let folder = folder.path();
    let estimate = "estimate --model model.json --global-batch 8";
    let search = "plan --model model.json --global-batch 8 --threads 1";
    let profile = "profile --model model.json --global-batch 8 -o other.json";
    let tune = "tune --model model.json --global-batch 8 -o tuned";
    for (args, expected) in [
        (format!("{estimate} --tp 3"), &["--tp", "tp=3", "2 devices"][..]),
        (format!("{estimate} --tp 0"), &["--tp", "`0`"]),
        (format!("{estimate} --dp 0"), &["--dp", "`0`"]),
        (format!("{estimate} --dp 3"), &["dp=3", "there are 2"]),
        (format!("{estimate} --dp -1"), &["-1"]),
        (format!("{estimate} --tp 4294967296"), &["--tp", "4294967296"]),
        (format!("{estimate} --tp 4294967295 --pp 4294967295 --cp 4294967295"), &["--tp", "4294967295"]),
        (format!("{estimate} --cp 2"), &["cp=2", "context parallelism"]),
        (format!("{estimate} --ep 2"), &["--ep", "no experts"]),
        (format!("{estimate} --zero 4"), &["--zero", "4"]),
        (format!("{estimate} --zero 1 --tp 2"), &["zero=1", "one rank"]),
        (format!("{estimate} --sp"), &["tp=1"]),
        (format!("{estimate} --pp 2 --vpp 3"), &["vpp=3", "6 chunks, but there are only 4 layers"]),
        (format!("{estimate} --pp 2 --vpp 0"), &["--vpp", "`0`"]),
        (format!("{estimate} --pp 2 --vpp 4294967295"), &["--vpp", "4294967295"]),
        (format!("{estimate} --schedule gpipe"), &["gpipe", "pp > 1"]),
        (format!("{estimate} --schedule zigzag"), &["--schedule", "zigzag", "1f1b"]),
        (format!("{estimate} --micro-batch 3"), &["micro-batch 3", "global batch of 8"]),
        (format!("{estimate} --micro-batch 0"), &["--micro-batch", "`0`"]),
        (format!("{estimate} --bucket-bytes 0"), &["--bucket-bytes", "`0`"]),
        (format!("{estimate} --recompute most"), &["--recompute", "most"]),
        (format!("{estimate} --shard 2"), &["zero=0", "shard"]),
        (format!("{estimate} --device-memory 5"), &["--device-memory", "`5`"]),
        (format!("{estimate} --seq-len 0"), &["--seq-len", "`0`"]),
        (format!("{estimate} --seq-len 32"), &["16 tokens, not 32"]),
        (format!("{estimate} --learning-rate nan"), &["--learning-rate", "NaN"]),
        (format!("{estimate} --learning-rate 1e400"), &["--learning-rate", "inf"]),
        (format!("{estimate} --seed -1"), &["-1"]),
        ("estimate --model model.json".to_owned(), &["--global-batch", "required"]),
        ("estimate --model model.json --global-batch 0".to_owned(), &["--global-batch", "`0`"]),
        ("estimate --model model.json --global-batch many".to_owned(), &["--global-batch", "many"]),
        ("estimate --model tiny-gpt --global-batch 8".to_owned(), &["tiny-gpt", "small"]),
        ("estimate plan.json --tp 2".to_owned(), &["--tp", "cannot be used with"]),
        ("estimate plan.json --model gpt2".to_owned(), &["--model", "cannot be used with"]),
        ("plan --model tiny-gpt --global-batch 8".to_owned(), &["tiny-gpt", "small"]),
        (format!("{search} --tp 3"), &["--tp", "`3`", "2 devices"]),
        (format!("{search} --pp 0"), &["--pp", "`0`"]),
        (format!("{search} --cp 2"), &["--cp", "`2`"]),
        (format!("{search} --vpp 0"), &["--vpp", "`0`"]),
        (format!("{search} --micro-batch 0"), &["--micro-batch", "`0`"]),
        (format!("{search} --top 0"), &["--top", "`0`"]),
        (format!("{search} --top 99999999999999"), &["--top", "99999999999999"]),
        (format!("{search} --threads 0 --threads 1"), &["--threads", "multiple times"]),
        ("plan --model model.json --global-batch 8 --threads 1000000".to_owned(), &["--threads", "1000000"]),
        (format!("{search} --time-limit nan"), &["--time-limit", "nan"]),
        (format!("{search} --time-limit=-1"), &["--time-limit", "-1"]),
        (format!("{search} --time-limit 1e300"), &["--time-limit"]),
        (format!("{search} --profile gone.json"), &["gone.json", "cannot be read"]),
        (format!("{profile} --ranks 0"), &["--ranks", "`0`"]),
        (format!("{profile} --ranks 65"), &["--ranks", "`65`"]),
        (format!("{profile} --ranks 2.5"), &["--ranks", "2.5"]),
        (format!("{profile} --ranks 2 --budget nan"), &["--budget", "nan"]),
        (format!("{profile} --ranks 2 --budget 0"), &["--budget", "`0`"]),
        (format!("{profile} --ranks 2 --interval -1"), &["-1"]),
        (format!("{profile} --ranks 2 --timeout nan"), &["--timeout", "nan"]),
        (format!("{profile} --ranks 2 --timeout inf"), &["--timeout", "inf"]),
        (format!("{profile} --ranks 2 --timeout 0"), &["--timeout", "`0`"]),
        (format!("{profile} --ranks 2 --rendezvous here"), &["--rendezvous", "here"]),
        (format!("{profile} --ranks 2 --rendezvous 127.0.0.1"), &["--rendezvous", "127.0.0.1"]),
        (format!("{profile} --ranks 2 --rendezvous 127.0.0.1:70000"), &["--rendezvous", "70000"]),
        (format!("{profile} --devices cpu --precision bf16"), &["--precision", "bf16", "--devices cuda"]),
        (format!("{profile} --precision fp8"), &["--precision", "fp8", "bf16"]),
        (format!("{search} --precision tf32"), &["measured fp32, not tf32", "precision"]),
        ("selftest --device cpu --precision bf16".to_owned(), &["--precision", "bf16"]),
        ("selftest --device abacus".to_owned(), &["--device", "abacus"]),
        ("selftest --ordinal -1".to_owned(), &["-1"]),
        (format!("{profile} --devices tpu"), &["--devices", "tpu"]),
        (format!("{tune} --ranks 0"), &["--ranks", "`0`"]),
        (format!("{tune} --ranks 2 --steps 1"), &["--steps", "`1`"]),
        (format!("{tune} --ranks 2 --top 0"), &["--top", "`0`"]),
        (format!("{tune} --ranks 2 --tp 3"), &["--tp", "`3`"]),
        (format!("{tune} --ranks 2 --budget -3"), &["-3"]),
        (format!("{tune} --ranks 2 --data gone"), &["--data", "gone"]),
        ("train plan.json --steps 0".to_owned(), &["--steps", "`0`"]),
        ("train plan.json --steps -5".to_owned(), &["-5"]),
        ("train plan.json --timeout nan".to_owned(), &["--timeout", "nan"]),
        ("train plan.json --timeout=-1".to_owned(), &["--timeout", "-1"]),
        ("train".to_owned(), &["PLAN"]),
        ("validate plan.json --steps 0".to_owned(), &["--steps", "`0`"]),
        ("validate plan.json --steps 1".to_owned(), &["--steps", "`1`"]),
        ("validate plan.json --top 0".to_owned(), &["--top", "`0`"]),
        ("validate plan.json --all --top 2".to_owned(), &["--all", "--top"]),
        ("schema poem".to_owned(), &["poem", "plan"]),
        ("paln".to_owned(), &["paln", "plan"]),
        ("plan --frobnicate".to_owned(), &["--frobnicate"]),
    ] {
        refused(&line(folder, &args), expected);
    }
    write(folder, "plan.json", plan.to_string());
    let made: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for name in made {
        let known = ["model.json", "profile.json", "job.toml", "plan.json"].contains(&name.as_str());
        assert!(known, "a refused command left {name}");
    }
}

#[test]
fn host_files_and_transports() {
    let (folder, _) = right();
    let folder = folder.path();
    let args = "train plan.json --hosts hosts.txt";
    let reader = Reader { folder, file: "hosts.txt", args };
    reader.check("", &["no host is listed"]);
    reader.check("# none\n\n", &["no host is listed"]);
    reader.check(b"node\xff", &["UTF-8"]);
    reader.check("one\ntwo slots=0\n", &["hosts.txt:2: `slots` is `0`", "from 1 to 64"]);
    reader.check("one slots=two\n", &["hosts.txt:1: `slots` is `two`"]);
    reader.check("one 2\n", &["hosts.txt:1", "`2`: expected `slots=<ranks>`"]);
    reader.check("# a\none:2\n", &["hosts.txt:2", "write `one slots=2`"]);
    reader.check("one\none\n", &["hosts.txt:2", "already listed at hosts.txt:1"]);
    reader.check("-oProxyCommand=id\n", &["hosts.txt:1", "must not begin with `-`"]);
    reader.check("a;id\n", &["hosts.txt:1", "must not contain `;`"]);
    reader.check("one slots=40\ntwo slots=40\n", &["`80`", "at most 64"]);
    write(folder, "hosts.txt", "one\n");
    for (args, expected) in [
        ("train plan.json --hosts none.txt", &["none.txt", "cannot be read"][..]),
        ("train plan.json --hosts .", &["is a folder"]),
        ("train plan.json --hosts hosts.txt --ssh=", &["--ssh"]),
        // Built without MPI, or not started by mpirun.
        ("train plan.json --transport mpi", &["`--transport` is `mpi`"]),
        ("train plan.json --transport udp", &["--transport", "udp", "tcp"]),
    ] {
        refused(&line(folder, args), expected);
    }
}

/// A legal plan that does not fit is not bad input: exit code 3, with a hint.
#[test]
fn what_does_not_fit_is_told_apart_from_what_is_wrong() {
    let (folder, _) = right();
    let folder = folder.path();
    // What was asked for is printed all the same; a search has nothing to print.
    for (args, printed, expected) in [
        ("estimate --model model.json --global-batch 8 --device-memory 1048576", "does NOT fit", "needs"),
        ("plan --model model.json --global-batch 8 --device-memory 1048576", "", "no plan fits"),
    ] {
        let Finished { code, out, err } = line(folder, args);
        assert_eq!(code, Some(3), "{err}");
        assert!(
            out.contains(printed)
                && out.is_empty() == printed.is_empty()
                && err.starts_with("error: ")
                && err.contains(expected)
                && err.contains("\nhint: "),
            "{err}"
        );
    }
}

#[test]
fn best_is_the_search_of_plan() {
    let (folder, _) = right();
    let job = "--model model.json --global-batch 8";
    let best = line(folder.path(), &format!("estimate {job} --best 3 --json")).ok();
    assert_eq!(best, line(folder.path(), &format!("plan {job} --top 3 --json")).ok());
}
