//! What users type: units, lists, names of devices and models, flags of other programs; and what the program tells about
//! itself.

use crate::common;

use common::{Finished, folder, line, write};
use std::path::Path;

const LLAMA: &str = "--model llama3-8b --global-batch 64 --seq-len 4k";

#[track_caller]
fn refused(run: &Finished, expected: &[&str]) {
    assert_eq!(run.code, Some(2), "{expected:?}: {}{}", run.out, run.err);
    for text in expected {
        assert!(run.err.contains(text), "`{text}` is not in: {}", run.err);
    }
}

#[track_caller]
fn noted(run: &Finished, expected: &[&str]) {
    assert_eq!(run.code, Some(0), "{expected:?}: {}", run.err);
    for text in expected {
        assert!(
            run.err.contains(text) || run.out.contains(text),
            "`{text}` is not in: {}{}",
            run.err,
            run.out
        );
    }
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn quantities_have_units_in_flags_and_files() {
    let place = folder(2);
    let of = |args: &str| line(place.path(), args);
    let written =
        of("plan --model model.json --global-batch 8 --device-memory 1GiB --bucket-bytes 1MiB --json").json();
    let numbers = of(
        "plan --model model.json --global-batch 8 --device-memory 1073741824 --bucket-bytes 1048576 --json",
    )
    .json();
    assert_eq!(written["strategy"], numbers["strategy"]);
    assert_eq!(written["cluster"], numbers["cluster"]);
    assert_eq!(written["job"]["allow"]["bucket_bytes"], serde_json::json!([1 << 20]));
    write(
        place.path(),
        "job.toml",
        "schema_version = 1\nglobal_batch = 8\nseq_len = 16\n[allow]\nbucket_bytes = [\"1MiB\"]\n",
    );
    let file =
        of("plan --model model.json --job job.toml --device-memory 1GiB --time-limit 1m --json").json();
    assert_eq!(file["job"]["allow"]["bucket_bytes"], serde_json::json!([1 << 20]));
    noted(
        &of("plan --model model.json --global-batch 8 --device-memory 1G"),
        &["--device-memory 1G is 1,073,741,824 bytes (1.00 GiB)"],
    );
    for (args, expected) in [
        ("plan --model model.json --device-memory 16Gb", ["16Gb", "16GB if b is bytes", "2GB"]),
        ("plan --model model.json --device-memory 16Q", ["16Q", "no unit `Q`", "16GiB"]),
        ("plan --seq-len 8z", ["8z", "4096", "8k"]),
        ("plan --global-batch many", ["many", "4096", "8k"]),
        ("plan --time-limit 5M", ["5M", "`5m`", "90s"]),
        ("profile --budget soon", ["soon", "90s", "10m"]),
        ("train plan.json --timeout 1h30", ["1h30", "90s", "1h30m"]),
        ("export plan.json --to megatron --checkpoint-interval 0", ["'0'", "at least 1", "2k"]),
        ("plan --bucket-bytes 1MB,oops", ["oops", "16GiB", "16GB"]),
    ] {
        refused(&of(args), &expected);
    }
    write(place.path(), "bad.toml", "schema_version = 1\nglobal_batch = \"8 apples\"\nseq_len = 16\n");
    refused(&of("plan --model model.json --job bad.toml"), &["bad.toml", "global_batch", "8 apples", "8k"]);
}

#[test]
fn lists_restrict_searches_and_are_refused_where_one_strategy_is_priced() {
    let place = folder(4);
    let of = |args: &str| line(place.path(), args);
    let allowed = |args: &str, field: &str| of(args).json()["job"]["allow"][field].clone();
    let two = serde_json::json!([1, 2]);
    assert_eq!(allowed("plan --model model.json --global-batch 8 --tp 1,2 --json", "tensor"), two);
    assert_eq!(allowed("plan --model model.json --global-batch 8 --tp 1 --tp 2 --json", "tensor"), two);
    assert_eq!(
        allowed("plan --model model.json --global-batch 8 --zero 0,1 --json", "zero_stage"),
        serde_json::json!([0, 1])
    );
    assert_eq!(
        allowed("plan --model model.json --global-batch 8 --no-sp --json", "sequence_parallel"),
        serde_json::json!([false])
    );
    assert_eq!(
        allowed("plan --model model.json --global-batch 8 --sp false --json", "sequence_parallel"),
        serde_json::json!([false])
    );
    let best = of("estimate --model model.json --global-batch 8 --best 3 --micro-batch 1,2 --recompute none,full --json").json();
    assert_eq!(best["job"]["allow"]["recompute"], serde_json::json!(["none", "full"]));
    refused(
        &of("estimate --model model.json --global-batch 8 --tp 1,2"),
        &["--tp", "1,2", "--best", "autodist plan"],
    );
    refused(
        &of("estimate --model model.json --global-batch 8 --schedule gpipe,1f1b"),
        &["--schedule", "gpipe,1f1b", "--best"],
    );
    refused(
        &of("plan --model model.json --global-batch 8 --tp 1,3"),
        &["--tp", "3", "must divide the 4 devices"],
    );
    refused(
        &of("plan --model model.json --global-batch 8 --tp 4 --pp 2,4"),
        &["have no product that divides the 4 devices", "4 x 2,4"],
    );
    refused(
        &of("plan --model model.json --global-batch 8 --micro-batch 1,0"),
        &["--micro-batch", "at least 1"],
    );
    refused(&of("plan --model model.json --global-batch 8 --sp --no-sp"), &["--no-sp"]);
}

#[test]
fn clusters_and_models_have_the_names_that_people_use() {
    let place = empty();
    let of = |cluster: &str| line(place.path(), &format!("plan {LLAMA} --cluster {cluster}"));
    let full =
        line(place.path(), &format!("plan {LLAMA} --cluster 2x8xh100-80gb-sxm@8x400gbps --json")).json();
    let short = line(place.path(), &format!("plan {LLAMA} --cluster 2x8xh100 --json")).json();
    assert_eq!(full["cluster"], short["cluster"]);
    assert_eq!(full["estimate"]["step_time_s"], short["estimate"]["step_time_s"]);
    noted(&of("2x8xh100"), &["`h100` is read as h100-80gb-sxm", "h100-80gb-pcie", "as dgx-h100 has"]);
    noted(&of("16xh100"), &["16 devices: 2 nodes of 8"]);
    noted(&of("2xp5.48xlarge"), &["a node with 8 h100-80gb-sxm", "32 NICs of 100 Gb/s"]);
    refused(&of("12xh100"), &["--cluster", "12 devices do not fill nodes of 8", "2x8xh100"]);
    refused(&of("h100"), &["does not say how many devices", "4x8xh100"]);
    refused(&of("2x8xh100-64gb"), &["no device `h100-64gb`", "h100-"]);
    refused(&of("2x8x4090"), &["need a network"]);
    let model = |name: &str| {
        line(place.path(), &format!("estimate --model {name} --cluster 8xh100 --global-batch 8 --seq-len 1k"))
    };
    noted(&model("meta-llama/Llama-3.1-8B-Instruct"), &["is read as llama3.1-8b of the catalogue"]);
    refused(&model("llama-70b"), &["`llama3.1-70b`", "config.json", "autodist catalog"]);
    refused(&model("EleutherAI/pythia-2.8b"), &["`pythia-6.9b`", "config.json"]);
}

#[test]
fn flags_of_other_programs_are_answered_with_ours() {
    let place = empty();
    for (args, expected) in [
        ("plan --batch-size 8", "`--global-batch`"),
        ("plan --sequence-length 4096", "`--seq-len`"),
        ("plan --gpus 8", "--cluster 4x8xh100"),
        ("tune --gpus 8", "--ranks 8"),
        ("plan --nodes=4", "`--cluster`"),
        ("plan --zero-stage 3", "`--zero`"),
        ("plan --dtype bf16", "`--precision`"),
        ("plan --bf16", "--precision bf16"),
        ("plan --lr 3e-4", "`--learning-rate`"),
        ("plan --tensor-model-parallel-size 8", "`--tp`"),
        ("plan --micro_batch 2", "`--micro-batch`"),
        ("selftest --devices cpu", "`--device`"),
        ("profile --device cpu", "`--devices`"),
    ] {
        refused(&line(place.path(), args), &[expected, "unexpected argument"]);
    }
}

#[test]
fn the_program_describes_itself() {
    let place = empty();
    let of = |args: &str| line(place.path(), args).ok();
    let version = of("--version");
    for expected in [concat!("autodist ", env!("CARGO_PKG_VERSION")), "commit", "features", "target", "mpi"] {
        assert!(version.contains(expected), "{version}");
    }
    assert_eq!(of("-V").trim(), concat!("autodist ", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = of(&format!("completions {shell}"));
        assert!(script.contains("autodist") && script.contains("global-batch"), "{shell}");
    }
    refused(&line(place.path(), "completions tcsh"), &["tcsh", "bash"]);
    of("man pages");
    let page = std::fs::read_to_string(place.path().join("pages/autodist-plan.1")).unwrap();
    for expected in [".TH autodist-plan 1", "\\-\\-global\\-batch", "Examples:"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(of("man").contains(".TH autodist 1"));
    let (short, long) = (of("plan -h"), of("plan --help"));
    assert!(short.len() < long.len());
    for heading in ["Model and job:", "Cluster and prices:", "Strategy:", "Search:", "Output:", "Examples:"] {
        assert!(short.contains(heading) && long.contains(heading), "{heading}");
    }
    assert!(Path::new(&place.path().join("pages/autodist.1")).exists());
}
