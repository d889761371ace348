//! Predictions for hardware that is not here: `estimate` without a profile, `backtest`, `calibrate`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{line, write};
use serde_json::Value;

const GPT3: &str = "estimate --model gpt3-175b --cluster 64x8xa100-80gb-sxm@8x200gbps --tp 8 --pp 8 --vpp 3 --dp 8 \
                    --micro-batch 1 --global-batch 1536 --seq-len 2048";

#[test]
fn a_cluster_that_nobody_measured_is_priced_by_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let run = line(folder.path(), GPT3);
    assert_eq!(run.code, Some(0), "{}", run.err);
    for text in
        ["step ", "± ", "memory ", "pipeline bubble", "shipped calibration", "assumed", "recomputation"]
    {
        assert!(run.out.contains(text), "`{text}` is not in: {}", run.out);
    }
    let run = line(folder.path(), &format!("{GPT3} --json --trainer megatron --recompute full"));
    let document: Value = serde_json::from_str(&run.out).unwrap();
    let step = document["estimate"]["step"].as_f64().unwrap();
    assert!((40.0..80.0).contains(&step), "{step}");
    assert!(document["mfu"].as_f64().unwrap() < 1.0);
}

#[test]
fn what_is_wrong_is_said_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    for (left_out, flags, expected) in [
        (&["--tp", "--dp"][..], "--tp 3", "does not divide"),
        (&["--dp"], "--dp 4", "cluster has 512"),
        (&[], "--ep 2", "no experts"),
        (&[], "--calibration none.toml", "none.toml"),
    ] {
        let words: Vec<&str> = GPT3.split_whitespace().collect();
        let of_flag =
            |at: usize| left_out.contains(&words[at]) || at > 0 && left_out.contains(&words[at - 1]);
        let others: Vec<&str> = (0..words.len()).filter(|at| !of_flag(*at)).map(|at| words[at]).collect();
        let run = line(folder.path(), &format!("{} {flags}", others.join(" ")));
        assert_eq!(run.code, Some(2), "{flags}: {} {}", run.out, run.err);
        assert!(run.err.contains(expected) && run.err.contains("hint: "), "{flags}: {}", run.err);
    }
}

#[test]
fn a_backtest_is_one_document() {
    let folder = tempfile::tempdir().unwrap();
    let run = line(folder.path(), "backtest --json");
    assert_eq!(run.code, Some(0), "{}", run.err);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    let rows = document["rows"].as_array().unwrap();
    assert!(rows.len() > 1000);
    for row in rows {
        assert!(row["id"].is_string());
        let predicted = row["predicted_s"].is_f64() && row["assumptions"].is_array();
        assert!(predicted || row["reason"].is_string(), "{row}");
    }
    let summary = &document["summary"];
    assert!(
        summary["all"]["constant_mfu"]["median"].as_f64().unwrap()
            > summary["all"]["errors"]["median"].as_f64().unwrap()
    );
    assert!(summary["choices"]["mean_kendall_tau"].is_f64());
    assert!(summary["memory"]["median"].is_f64());
    let text = line(folder.path(), "backtest");
    assert!(text.out.contains("constant") && text.out.contains("choice sets"), "{}", text.out);
}

#[test]
fn a_calibration_learns_from_runs_and_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let header = "id,group,source,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,precision,tp,pp,dp,recompute,micro_batch,global_batch,iteration_s";
    // A cluster that is slower than what is shipped says.
    let runs: Vec<String> = (0..12)
        .map(|i| {
            let (layers, micro_batch) = (12 + 2 * (i % 4), 1 << (i % 3));
            let seconds = 0.055 * f64::from(layers) * 1.3;
            format!("r{i},mine,Megatron-LM,{layers},4096,32,16384,51200,2048,A100-80GB-SXM,8,8,bf16,8,1,1,full,{micro_batch},32,{seconds}")
        })
        .collect();
    write(folder.path(), "runs.csv", format!("{header}\n{}\n", runs.join("\n")));
    let run = line(folder.path(), "calibrate runs.csv -o mine.toml");
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("left out of the fit"), "{}", run.out);
    let run = line(folder.path(), &format!("{GPT3} --calibration mine.toml"));
    assert!(run.out.contains("mine.toml"), "{} {}", run.out, run.err);
    let before = line(folder.path(), "backtest runs.csv --json");
    let after = line(folder.path(), "backtest runs.csv --json --calibration mine.toml");
    let bias = |text: &str| {
        serde_json::from_str::<Value>(text).unwrap()["summary"]["all"]["errors"]["mean"].as_f64().unwrap()
    };
    assert!(bias(&after.out) < bias(&before.out), "{} {}", bias(&after.out), bias(&before.out));
}
