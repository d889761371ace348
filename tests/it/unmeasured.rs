//! Predictions for hardware without measurements: `estimate` without a profile, `backtest`, `calibrate`.

use crate::common;

use common::{line, write};
use serde_json::Value;

const GPT3: &str = "estimate --model gpt3-175b --cluster 64x8xa100-80gb-sxm@8x200gbps --tp 8 --pp 8 --vpp 3 --dp 8 \
                    --micro-batch 1 --global-batch 1536 --seq-len 2048";

#[test]
fn a_cluster_that_nobody_measured_is_priced_by_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let run = line(folder.path(), &format!("{GPT3} --verbose"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    for text in
        ["step time ", "± ", "memory ", "bubble", "efficiencies fitted", "recomputation", "--sp not given"]
    {
        assert!(run.out.contains(text), "`{text}` is not in: {}", run.out);
    }
    let run = line(folder.path(), &format!("{GPT3} --json --trainer megatron --recompute full"));
    let document: Value = serde_json::from_str(&run.out).unwrap();
    let step = document["estimate"]["step_time_s"].as_f64().unwrap();
    assert!((40.0..80.0).contains(&step), "{step}");
    assert!(document["estimate"]["mfu"].as_f64().unwrap() < 1.0);
    assert_eq!(document["search"]["stop_reason"], "given");
}

#[test]
fn a_slow_host_keeps_devices_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = "schema_version = 1\nname = \"slow host\"\n[[nodes]]\ncount = 1\ndevices = 1\n\
                   device = \"h200-141gb-sxm\"\nhost_slowness = ";
    let job = "--model gpt2-xl --trainer fsdp2 --global-batch 4 --seq-len 1024 --dp 1 --micro-batch 4";
    let mut steps = Vec::new();
    for (slowness, waits) in [("0.5", false), ("5", true)] {
        write(folder.path(), "cluster.toml", format!("{cluster}{slowness}"));
        let estimate = format!("estimate --cluster cluster.toml {job} -o plan.json --json");
        let plan = line(folder.path(), &estimate).json();
        let cost = &plan["estimate"]["cost"];
        let host = cost["host_s"].as_f64().unwrap_or(0.0);
        let step = plan["estimate"]["step_time_s"].as_f64().unwrap();
        assert_eq!(host > 0.3 * step, waits, "{slowness}: {cost}");
        let text = line(folder.path(), "explain plan.json").ok();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in ["launch-bound: the device waits", "compile the model, or use a larger micro-batch"] {
            assert_eq!(text.contains(words), waits, "{text}");
        }
        assert!(!waits || text.contains("twice as fast a host: the same plan"), "{text}");
        steps.push(step);
    }
    assert!(steps[1] > 1.4 * steps[0], "{steps:?}");
    write(folder.path(), "cluster.toml", format!("{cluster}0"));
    let run = line(folder.path(), &format!("estimate --cluster cluster.toml {job}"));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("nodes[0].host_slowness"), "{}", run.err);
}

/// The flags that describe a strategy of a plan document.
fn flags(strategy: &Value) -> String {
    let mut flags = String::new();
    for (flag, field) in [
        ("tp", "tensor"),
        ("pp", "pipeline"),
        ("dp", "data"),
        ("cp", "context"),
        ("vpp", "virtual_stages"),
        ("zero", "zero_stage"),
        ("shard", "shard"),
        ("micro-batch", "micro_batch"),
        ("schedule", "schedule"),
        ("recompute", "recompute"),
    ] {
        let value = strategy[field].to_string();
        flags += &format!("--{flag} {} ", value.trim_matches('"'));
    }
    if strategy["sequence_parallel"] == true { flags + "--sp" } else { flags }
}

#[test]
fn the_fastest_plans_of_a_job_are_found_and_can_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let job = "--model gpt3-175b --cluster 64x8xa100-80gb-sxm@8x200gbps --global-batch 1536 --seq-len 2048";
    let best = line(folder.path(), &format!("estimate {job} --best 5 --json")).json();
    // It is the planner's search.
    assert_eq!(best, line(folder.path(), &format!("plan {job} --top 5 --json")).json());
    let others = best["alternatives"].as_array().unwrap();
    assert_eq!(others.len(), 4);
    let step = |document: &Value| document["estimate"]["step_time_s"].as_f64().unwrap();
    // Each that recomputes all blocks or none, in equal stages, matches its flags.
    let mut asked = 0;
    for plan in [&best].into_iter().chain(others) {
        let modes = |stage: &Value| stage["recompute"].as_array().unwrap().clone();
        let stages = plan["stages"].as_array().unwrap();
        let blocks: Vec<usize> = stages.iter().map(|stage| modes(stage).len()).collect();
        let recomputes = plan["strategy"]["recompute"] != "none";
        if recomputes || blocks.windows(2).any(|pair| pair[0].abs_diff(pair[1]) > 1) {
            continue;
        }
        let flags = flags(&plan["strategy"]);
        let alone = line(folder.path(), &format!("estimate {job} {flags} --json")).json();
        assert!((step(&alone) / step(plan) - 1.0).abs() < 0.02, "{flags}: {} {}", step(&alone), step(plan));
        asked += 1;
    }
    assert!(asked > 0);
    // The search must not miss a given layout.
    let known = line(folder.path(), &format!("{GPT3} --zero 1 --sp --recompute none --json"));
    assert!(step(&best) <= step(&known.json()));

    let text = line(folder.path(), &format!("estimate {job} --tp 4 --best -v")).ok();
    assert!(text.contains("strategies explored") && text.contains("Runners-up"), "{text}");
    assert!(text.lines().filter(|l| l.contains(" mb")).all(|l| l.contains(" tp4 ")), "{text}");
    for (flags, code, expected) in [
        ("--tp 5", 2, "`--tp` is `5`: must divide the 512 devices"),
        ("--pp 256", 3, "no plan fits"),
        ("--device-memory 4000000000", 3, "is usable"),
    ] {
        let run = line(folder.path(), &format!("estimate {job} {flags} --best"));
        assert_eq!(run.code, Some(code), "{flags}: {}", run.out);
        assert_eq!(run.out, "", "{flags}");
        assert!(run.err.contains(expected) && run.err.contains("hint: "), "{flags}: {}", run.err);
    }
}

#[test]
fn a_configuration_is_called_as_it_says_or_as_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("my-llama");
    std::fs::create_dir(&place).unwrap();
    let config = |name: &str| {
        format!(
            "{{{name}\"model_type\": \"llama\", \"hidden_size\": 64, \"num_attention_heads\": 4, \"num_hidden_layers\": 2, \
             \"intermediate_size\": 128, \"vocab_size\": 64, \"max_position_embeddings\": 16, \"rms_norm_eps\": 1e-5, \
             \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": false}}"
        )
    };
    let called = |at: &std::path::Path, model: &str| {
        let args = "--cluster 1x2xh100-80gb-sxm --global-batch 8 --seq-len 16 -o plan.json";
        line(at, &format!("estimate --model {model} {args}")).ok();
        let plan: Value =
            serde_json::from_str(&std::fs::read_to_string(at.join("plan.json")).unwrap()).unwrap();
        plan["model"]["name"].as_str().unwrap().to_owned()
    };
    write(&place, "config.json", config(""));
    assert_eq!(called(&place, "config.json"), "my-llama");
    assert_eq!(called(&place, "."), "my-llama");
    assert_eq!(called(folder.path(), "my-llama"), "my-llama");
    write(&place, "other.json", config(""));
    assert_eq!(called(&place, "other.json"), "other");
    write(&place, "config.json", config("\"_name_or_path\": \"someone/Their-Llama\", "));
    assert_eq!(called(&place, "config.json"), "Their-Llama");
}

#[test]
fn utilisation_is_of_the_peak_of_the_arithmetic_that_is_trained_in() {
    let folder = tempfile::tempdir().unwrap();
    let on = |device: &str, flags: &str| {
        let job = "--model gpt2-xl --global-batch 64 --seq-len 1024 --dp 8 --micro-batch 8";
        let job = format!("estimate --cluster 1x8x{device} {job} {flags}");
        let text = line(folder.path(), &job).ok();
        (
            text.split_whitespace().collect::<Vec<_>>().join(" "),
            line(folder.path(), &format!("{job} --json")).json(),
        )
    };
    let mut of_bf16 = None;
    for (flags, arithmetic, peak) in
        [("", "bf16", 989e12), ("--precision fp8", "fp8", 1979e12), ("--precision tf32", "tf32", 494.5e12)]
    {
        let (text, document) = on("h100-80gb-sxm", flags);
        assert!(
            text.contains(&format!("({arithmetic}, published): MFU with attention GEMMs counted in full")),
            "{text}"
        );
        let estimate = &document["estimate"];
        let (mfu, speed) = (estimate["mfu"].as_f64().unwrap(), estimate["tokens_per_s"].as_f64().unwrap());
        assert!(mfu <= 1.0, "{mfu}");
        // FLOPs per token do not depend on the arithmetic.
        let flops = mfu * peak / speed;
        let known = *of_bf16.get_or_insert(flops);
        assert!((flops / known - 1.0).abs() < 1e-9, "{flops} {known}");
    }
    // Devices without bf16 train in fp16, unless they are told otherwise.
    let (text, document) = on("v100-32gb-sxm", "");
    assert!(text.contains("125 TFLOP/s (fp16, published)"), "{text}");
    assert_eq!(document["job"]["precision"], "fp16");
    for (device, precision) in
        [("a100-80gb-sxm", "fp8"), ("v100-32gb-sxm", "tf32"), ("v100-32gb-sxm", "bf16")]
    {
        for search in ["", "--best"] {
            let job = "--model gpt2-xl --global-batch 64 --seq-len 1024";
            let command = format!("estimate --cluster 1x8x{device} {job} --precision {precision} {search}");
            let run = line(folder.path(), &command);
            assert_eq!(run.code, Some(2), "{}", run.out);
            let expected = ["`--precision`", precision, device, "no published peak", "hint: "];
            assert!(expected.iter().all(|part| run.err.contains(part)), "{}", run.err);
        }
    }
    // What a framework's search does not have, an estimate does not price.
    let job = "estimate --cluster 1x8xh100-80gb-sxm --model gpt2-xl --global-batch 64 --seq-len 1024";
    for (flags, named) in [
        ("--trainer megatron --recompute selective", "--recompute"),
        ("--trainer megatron --precision fp8", "--precision"),
    ] {
        let run = line(folder.path(), &format!("{job} {flags}"));
        assert_eq!(run.code, Some(2), "{}", run.out);
        assert!(run.err.contains(named) && run.err.contains("not supported by megatron"), "{}", run.err);
    }
    let best = "estimate --cluster 1x8xh100-80gb-sxm --model gpt2-xl --global-batch 64 --seq-len 1024 --precision fp8 --best 3";
    let best = line(folder.path(), best).ok();
    assert!(best.contains("1.98 PFLOP/s (fp8, published)"), "{best}");
}

#[test]
fn a_layout_that_nobody_measured_goes_to_trainers_and_reports() {
    let folder = tempfile::tempdir().unwrap();
    let job = "estimate --model llama3-70b --cluster 32x8xh100-80gb-sxm@8x400gbps --global-batch 1024 --seq-len 8192";
    let run = line(folder.path(), &format!("{job} --tp 8 --pp 4 --vpp 5 --sp --recompute none -o plan.json"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    let run = line(folder.path(), "export plan.json --to megatron -o out");
    assert_eq!(run.code, Some(0), "{}", run.err);
    let script = std::fs::read_to_string(folder.path().join("out/megatron.sh")).unwrap();
    for text in
        ["--tensor-model-parallel-size 8", "--num-virtual-stages-per-pipeline-rank 5", "--sequence-parallel"]
    {
        assert!(script.contains(text), "`{text}` is not in: {script}");
    }
    let run = line(folder.path(), "report plan.json -o report");
    assert_eq!(run.code, Some(0), "{}", run.err);
    let page = std::fs::read_to_string(folder.path().join("report/report.html")).unwrap();
    assert!(page.contains("priced for megatron-core from published figures"));
    // The same figure everywhere, from the device in the catalogue.
    let plan: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("plan.json")).unwrap()).unwrap();
    let mfu = format!(
        "{:.1} % of its 989 TFLOP/s (bf16, published)",
        100.0 * plan["estimate"]["mfu"].as_f64().unwrap()
    );
    assert!(page.contains(&mfu), "{mfu} is not in the page");
    // No default value of a small job appears in the script of a large one.
    for built_in in ["0.003", "3e-3", "--train-iters 200", "warmup", "--seed"] {
        assert!(!script.contains(built_in), "{built_in} in {script}");
    }

    // Sequences that are split over ranks, and GEMMs in 8 bits, are plans, too; no file of a trainer has the
    // settings of the latter.
    line(folder.path(), &format!("{job} --tp 8 --cp 2 -o split.json")).ok();
    let script = line(folder.path(), "export split.json --to megatron -o split").ok();
    assert!(script.contains("cp2"), "{script}");
    let script = std::fs::read_to_string(folder.path().join("split/megatron.sh")).unwrap();
    assert!(script.contains("--context-parallel-size 2"), "{script}");
    line(folder.path(), &format!("{job} --tp 8 --precision fp8 -o eight.json")).ok();
    let run = line(folder.path(), "export eight.json --to torchtitan -o eight");
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("job.precision") && run.err.contains("hint: "), "{}", run.err);
    let run = line(folder.path(), "train split.json --steps 1");
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("cp=2") && run.err.contains("context parallelism"), "{}", run.err);

    let run = line(folder.path(), &format!("{job} --tp 8 --pp 3 --dp 10 -o none.json"));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("hint: "), "{}", run.err);
    assert!(!folder.path().join("none.json").exists());

    // A layout that does not fit is reported with all available figures.
    let large = format!("{job} --pp 4 --tp 2 --recompute none");
    let run = line(folder.path(), &format!("{large} -o none.json"));
    assert_eq!(run.code, Some(3), "{}", run.out);
    assert!(run.out.contains("does NOT fit") && run.err.contains("is usable"), "{}", run.err);
    assert!(
        run.err.contains("no plan was written to none.json") && run.err.contains("hint: "),
        "{}",
        run.err
    );
    assert!(!folder.path().join("none.json").exists());
    let run = line(folder.path(), &format!("{large} --json"));
    assert_eq!(
        (run.code, serde_json::from_str::<Value>(&run.out).unwrap()["fits"].as_bool()),
        (Some(3), Some(false))
    );
    let run = line(folder.path(), &format!("{job} --pp 4 --tp 8 --sp --json")).json();
    assert_eq!(run["fits"], true);
}

#[test]
fn products_in_8_bits_are_faster_and_tables_of_runs_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let job = "estimate --model llama3-8b --cluster 1x8xh100-80gb-sxm --global-batch 128 --seq-len 8192 --recompute none \
               --trainer nemo --json";
    let step = |flags: &str| {
        let run = line(folder.path(), &format!("{job} {flags}"));
        serde_json::from_str::<Value>(&run.out).unwrap()["estimate"]["step_time_s"].as_f64().unwrap()
    };
    assert!(step("--precision fp8") < 0.95 * step(""));

    let header = "id,group,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,precision,tp,pp,micro_batch,global_batch,iteration_s";
    let row =
        |id: &str| format!("{header}\n{id},g,24,2048,16,8192,51200,2048,A100-80GB-SXM,8,bf16,1,1,4,64,2.0\n");
    write(folder.path(), "one.csv", row("a"));
    write(folder.path(), "two.csv", row("b"));
    let run = line(folder.path(), "backtest one.csv two.csv --json");
    let document: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(document["rows"].as_array().unwrap().len(), 2);
    write(folder.path(), "two.csv", row("a"));
    let run = line(folder.path(), "backtest one.csv two.csv");
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("two.csv") && run.err.contains("another table"), "{}", run.err);
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

/// The section of a documentation page under a heading.
fn section(page: &'static str, heading: &str) -> &'static str {
    let after = page.split_once(heading).unwrap().1;
    after.split("\n## ").next().unwrap()
}

#[test]
fn a_device_of_ones_own_is_priced_as_the_documentation_says() {
    let folder = tempfile::tempdir().unwrap();
    let page = section(include_str!("../../docs/hardware.md"), "## A device of your own\n");
    let file = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    write(folder.path(), "mine.toml", file);
    let command = page.lines().find_map(|line| line.strip_prefix("    autodist ")).unwrap();
    let run = line(folder.path(), command);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("(h100-96gb-500w)"), "{}", run.out);

    // The same result from a cluster file; a slower device of the same name is slower.
    let cluster = "schema_version = 1\nname = \"lab\"\n[[nodes]]\ncount = 16\ndevices = 8\ndevice = \"h100-96gb-500w\"\n\
                   [network]\nbytes_per_s = 4e11\n";
    write(folder.path(), "lab.toml", cluster);
    write(folder.path(), "slower.toml", file.replace("8.0e14", "4.0e14").replace("6.5e14", "3.2e14"));
    let by_file = command.replace("16x8xh100-96gb-500w@8x400gbps", "lab.toml");
    let step =
        |command: &str| line(folder.path(), command).json()["estimate"]["step_time_s"].as_f64().unwrap();
    let known = step(&format!("{command} --json"));
    assert_eq!(known, step(&format!("{by_file} --json")));
    let slower = step(&format!("{command} --devices slower.toml --json"));
    assert!(slower > 1.3 * known, "the last file of a name counts: {slower} after {known}");

    // Runs on it are parsed, and used in a fit.
    let runs: Vec<String> = (1..=4)
        .map(|i| {
            format!(
                "r{i},mine,Megatron-LM,{},4096,32,2048,H100-96GB-500W,8,bf16,8,1,1,full,1,32,{}",
                12 * i,
                0.35 * f64::from(i)
            )
        })
        .collect();
    let header = "id,group,source,layers,hidden,heads,seq_len,gpu,gpus_total,precision,tp,pp,dp,recompute,micro_batch,global_batch,iteration_s";
    write(folder.path(), "runs.csv", format!("{header}\n{}\n", runs.join("\n")));
    let guessed = |command: &str| line(folder.path(), command).ok().contains("device taken to be");
    assert!(guessed("backtest runs.csv") && !guessed("backtest runs.csv --devices mine.toml"));
    let run = line(folder.path(), "calibrate runs.csv --devices mine.toml -o calibration.toml");
    assert_eq!(run.code, Some(0), "{}", run.err);
}

#[test]
fn a_wrong_file_of_devices_is_refused_with_file_field_and_value() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "bad.toml",
        "[[device]]\nname = \"x1\"\nmemory_bytes = 1000000000\npeak_flops_per_s = -1.0\nmemory_bytes_per_s = 1e12\nlink_bytes_per_s = 1e11\nsource = \"\"\n",
    );
    let runs = "backtest --devices bad.toml";
    for (command, expected) in [
        (format!("{GPT3} --devices bad.toml"), &["bad.toml", "peak_flops_per_s", "-1"][..]),
        (runs.to_owned(), &["bad.toml", "peak_flops_per_s", "-1"]),
        ("backtest --devices none.toml".to_owned(), &["none.toml", "cannot be read"]),
        (GPT3.replace("a100-80gb-sxm", "x1"), &["x1", "--devices"]),
    ] {
        let run = line(folder.path(), &command);
        assert_eq!(run.code, Some(2), "{command}: {} {}", run.out, run.err);
        let told = expected.iter().all(|text| run.err.contains(text));
        assert!(told && run.err.contains("hint: "), "{command}: {}", run.err);
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
    let text = line(folder.path(), "backtest").ok();
    assert!(text.starts_with("LEFT OUT") && text.contains("choice sets"), "{text}");
    assert!(text.lines().count() < 60 && text.contains("--verbose"), "{text}");
    let text = line(folder.path(), "backtest --in-fit --verbose").ok();
    assert!(text.starts_with("IN THE FIT") && text.lines().count() > 1000, "{text}");
}

#[test]
fn a_calibration_learns_from_runs_and_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let header = "id,group,source,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,precision,tp,pp,dp,recompute,micro_batch,global_batch,iteration_s";
    // A cluster that is slower than the built-in calibration predicts.
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
    for words in
        ["fitted to 12 runs", "GEMMs on a100-80gb-sxm", "left out", "± ", "not changed by these runs"]
    {
        assert!(run.out.contains(words), "`{words}` is not in: {}", run.out);
    }
    let run = line(folder.path(), &format!("{GPT3} --calibration mine.toml --json"));
    assert!(run.out.contains("12 runs of runs.csv"), "{} {}", run.out, run.err);
    let before = line(folder.path(), "backtest runs.csv --json");
    let after = line(folder.path(), "backtest runs.csv --json --calibration mine.toml");
    let bias = |text: &str| {
        serde_json::from_str::<Value>(text).unwrap()["summary"]["all"]["errors"]["mean"].as_f64().unwrap()
    };
    assert!(bias(&after.out) < bias(&before.out), "{} {}", bias(&after.out), bias(&before.out));
}

/// A log in the form that Megatron-LM prints, of steps that take so many milliseconds.
fn megatron_log(ms: f64) -> String {
    let line = |step: u32| {
        let ms = if step < 3 { 3.0 * ms } else { ms };
        format!(
            " iteration {step:8}/    5000 | elapsed time per iteration (ms): {ms:.1} | global batch size:   128 | lm loss: 2.3E+00 |\n"
        )
    };
    (1..=20).map(line).collect()
}

#[test]
fn a_trainers_log_calibrates_its_own_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = "--model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps --global-batch 128 --seq-len 8192 --tp 2 --sp \
               --recompute none";
    let estimate = |more: &str| -> Value { line(folder, &format!("estimate {run} {more} --json")).json() };
    let step = |plan: &Value| plan["estimate"]["step_time_s"].as_f64().unwrap();
    let before = estimate("");
    let measured = 1.2 * step(&before);
    write(folder, "train.log", megatron_log(1e3 * measured));
    let told = line(folder, &format!("calibrate {run} --log train.log -o mine.toml"));
    assert_eq!(told.code, Some(0), "{}", told.err);
    for words in ["a log of megatron", "warm-up", "17 lines"] {
        assert!(told.err.contains(words), "`{words}` is not in: {}", told.err);
    }
    assert!(
        told.out.contains("GEMMs on h100-80gb-sxm") && told.out.contains("slower than before"),
        "{}",
        told.out
    );
    let after = estimate("--calibration mine.toml");
    assert!((step(&after) / measured - 1.0).abs() < 0.03, "{} instead of {measured}", step(&after));
    // One run says little of the next.
    let bar = |plan: &Value| plan["estimate"]["step_time_spread_s"].as_f64().unwrap() / step(plan);
    assert!(bar(&after) < bar(&before) + 1e-3 && bar(&after) > 0.1, "{} {}", bar(&after), bar(&before));
    let document =
        line(folder, &format!("calibrate {run} --measured {measured}s -o mine.toml --json")).json();
    assert!(
        (document["runs"][0]["error_before"].as_f64().unwrap() + 1.0 - 1.0 / 1.2).abs() < 0.01,
        "{document}"
    );
    // The log of another job is no measurement of this one.
    write(folder, "other.log", megatron_log(1e3).replace("   128", "   256"));
    let run = line(folder, &format!("calibrate {run} --log other.log -o mine.toml"));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("other.log") && run.err.contains("--global-batch 256"), "{}", run.err);
}

#[test]
fn the_template_is_a_table_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "runs.csv", line(folder, "calibrate --template").ok());
    let text = line(folder, "calibrate runs.csv -o mine.toml").ok();
    assert!(text.contains("fitted to 3 runs") && text.contains("run-3"), "{text}");
    let wrong =
        "id,model,cluster,global_batch,seq_len,tp,measured\na,llama3-8b,1x8xh100-80gb-sxm,64,8192,two,9s\n";
    write(folder, "wrong.csv", wrong);
    let run = line(folder, "calibrate wrong.csv -o mine.toml");
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(run.err.contains("wrong.csv, line 2") && run.err.contains("--tp"), "{}", run.err);
    let runs = "[[run]]\nmodel = \"llama3-8b\"\ncluster = \"1x8xh100-80gb-sxm\"\nglobal_batch = 64\nseq_len = 8192\ntp = 2\n\
                sp = true\nmeasured = \"9.5s\"\n";
    write(folder, "runs.toml", runs);
    assert!(line(folder, "calibrate runs.toml -o mine.toml").ok().contains("run[0]"));
}
