//! Malicious or malformed files, through the binary: refused with exit code 2, the file and the field, before
//! anything is written, run or allocated.

use crate::common;

use autodist_spec::parse::{self, Check};
use autodist_spec::run::Ended;
use autodist_spec::{
    Cluster, Job, ModelSpec, Plan, Profile, RunRecord, Validation, catalog, huggingface, to_json,
};
use common::{
    Finished, TRAINERS, autodist, edited, folder, line, plan, profile, run_record, small_model, validation,
    write,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

const HIDDEN: [&str; 9] = ["\n", "\r", "\t", "\0", "\u{1b}[31m", "\u{7f}", "\u{85}", "\u{2028}", "\u{202e}"];

/// Checks for exit code 2, and one message with all of `expected`, without hidden characters.
#[track_caller]
fn refused(run: &Finished, expected: &[&str]) {
    assert_eq!(run.code, Some(2), "{expected:?}: {}{}", run.out, run.err);
    assert!(run.err.contains("\nhint: "), "no way out: {}", run.err);
    assert!(!run.err.contains("panicked"), "{}", run.err);
    let hidden = |c: char| c != '\n' && autodist_spec::text::is_hidden(c);
    assert!(!run.err.contains(hidden), "{:?}", run.err);
    for text in expected {
        assert!(run.err.contains(text), "`{text}` is not in: {}", run.err);
    }
}

/// Pointers (RFC 6901) to all strings inside.
fn texts(value: &Value, at: &str, list: &mut Vec<String>) {
    match value {
        Value::String(_) => list.push(at.to_owned()),
        Value::Array(items) => {
            items
                .iter()
                .take(2)
                .enumerate()
                .for_each(|(index, item)| texts(item, &format!("{at}/{index}"), list));
        }
        Value::Object(map) => {
            map.iter().for_each(|(key, item)| texts(item, &format!("{at}/{}", key.replace('/', "~1")), list));
        }
        _ => {}
    }
}

/// Checks that the document is refused with hidden characters in any of its strings, or a very long name.
fn check_texts<T: Check + DeserializeOwned>(document: &impl serde::Serialize) {
    let right = serde_json::to_value(document).unwrap();
    let read = |document: &Value| parse::json::<T>("file.json", document.to_string().as_bytes()).map(drop);
    read(&right).unwrap();
    let mut pointers = Vec::new();
    texts(&right, "", &mut pointers);
    assert!(!pointers.is_empty(), "{} has no texts", T::WHAT);
    for pointer in pointers {
        let field = pointer.rsplit('/').find(|part| part.parse::<usize>().is_err()).unwrap().to_owned();
        for hidden in HIDDEN {
            let error = read(&edited(&right, &pointer, Some(json!(format!("a{hidden}b"))))).unwrap_err();
            assert!(error.field.contains(&field), "{}: {pointer}: {error}", T::WHAT);
            assert!(error.problem.contains("hidden character"), "{}: {pointer}: {error}", T::WHAT);
            assert_eq!(error.source_name, "file.json");
        }
        assert!(read(&edited(&right, &pointer, Some(json!("x".repeat(20_000))))).is_err(), "{pointer}");
    }
    let key = edited(&right, "/a\u{202e}b", Some(json!(1)));
    assert_eq!(read(&key).unwrap_err().field, "key");
}

#[test]
fn no_text_of_any_document_hides_anything() {
    check_texts::<Plan>(&plan());
    check_texts::<Profile>(&profile(2));
    check_texts::<RunRecord>(&run_record());
    check_texts::<Validation>(&validation());
    check_texts::<ModelSpec>(&small_model());
    let model = json!({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 64, "vocab_size": 64, "_name_or_path": "x", "architectures": ["y"]});
    for pointer in ["/model_type", "/_name_or_path", "/architectures/0"] {
        for hidden in HIDDEN {
            let text = edited(&model, pointer, Some(json!(format!("llama{hidden}")))).to_string();
            let error = huggingface::model_from_config("config.json", "m", text.as_bytes()).unwrap_err();
            assert!(error.problem.contains("hidden character"), "{error}");
        }
    }
    // TOML strings have the same escapes.
    for hidden in ["\\n", "\\t", "\\u001b", "\\u2028", "\\u202e", "\\u0085"] {
        let cluster = format!(
            "schema_version = 1\nname = \"a{hidden}b\"\n[[nodes]]\ncount = 1\ndevices = 1\ndevice = \"h100-80gb-sxm\"\n"
        );
        let error = Cluster::read("c.toml", cluster.as_bytes(), catalog::devices()).unwrap_err();
        assert!(error.to_string().starts_with("c.toml: `name`"), "{error}");
        let device = cluster.replace(&format!("a{hidden}b"), "c").replace("h100", &format!("h{hidden}100"));
        let error = Cluster::read("c.toml", device.as_bytes(), catalog::devices()).unwrap_err();
        assert!(!error.to_string().contains(|c: char| c.is_control() && c != '\n'), "{error:?}");
        let job =
            format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\nobjective = \"step{hidden}time\"\n");
        assert!(parse::toml::<Job>("j.toml", job.as_bytes()).unwrap_err().field.contains("objective"));
        let devices = format!("[[device]]\nname = \"a{hidden}b\"\n");
        let error = catalog::read_devices("d.toml", devices.as_bytes()).unwrap_err();
        assert_eq!(error.field, "device[0].name", "{error}");
    }
}

#[test]
fn a_record_of_what_failed_is_read_again_whatever_a_rank_said() {
    let mut failed = validation();
    let reason = "rank 0 ended with exit code 1; it wrote:\n\u{1b}[31mTraceback\n  line 1\n".to_owned();
    failed.failed.push(autodist_spec::run::FailedRun { label: "dp2".to_owned(), reason });
    let mut record = run_record();
    record.ended = Some(Ended { step: 3, reason: failed.failed[0].reason.clone() });
    let read: RunRecord = parse::json("run.json", to_json(&record).as_bytes()).unwrap();
    assert!(read.ended.unwrap().reason.ends_with("Traceback;   line 1"));
    let again: Validation = parse::json("validation.json", to_json(&failed).as_bytes()).unwrap();
    assert_eq!(
        again.failed[0].reason,
        "rank 0 ended with exit code 1; it wrote:; \\u{1b}[31mTraceback;   line 1"
    );
}

#[test]
fn a_name_runs_nothing() {
    let folder = folder(2);
    let right = serde_json::to_value(plan()).unwrap();
    let hostile = edited(&right, "/model/name", Some(json!("m\ntouch HARM\n#SBATCH --wrap=x")));
    write(folder.path(), "plan.json", hostile.to_string());
    for target in ["megatron", "nanotron", "galvatron", "maxtext", "slurm", "kubernetes"] {
        let run = line(folder.path(), &format!("export plan.json --to {target} -o out"));
        refused(&run, &["plan.json: `model.name` is `m\\ntouch HARM"]);
    }
    for command in ["explain", "report", "train", "validate"] {
        refused(&line(folder.path(), &format!("{command} plan.json")), &["plan.json: `model.name`"]);
    }
    assert!(!folder.path().join("out").exists());
    // The name of the folder of a configuration becomes the name of the model.
    let config = json!({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 64, "vocab_size": 64});
    let harm = folder.path().join("m\ntouch HARM");
    std::fs::create_dir(&harm).unwrap();
    write(&harm, "config.json", config.to_string());
    let job = ["--cluster", "1x2xh100-80gb-sxm", "--global-batch", "8", "--seq-len", "16", "-o", "made.json"];
    let run = autodist(folder.path(), &[&["estimate", "--model", "m\ntouch HARM"][..], &job].concat());
    refused(&run, &["name of the file"]);
    // From inside the folder, the name is not in the given path.
    let run = autodist(&harm, &[&["estimate", "--model", "config.json"][..], &job].concat());
    assert!(run.code == Some(2) || !parsed(&harm, "made.json").contains("touch"), "{}", run.err);
    let long = "x".repeat(255);
    std::fs::create_dir(folder.path().join(&long)).unwrap();
    write(&folder.path().join(&long), "config.json", config.to_string());
    // Accepted names are at most as long as folder names.
    autodist(folder.path(), &[&["estimate", "--model", &long][..], &job].concat()).ok();
    write(folder.path(), "plan.json", right.to_string());
    for flag in ["--image", "--script"] {
        let run = autodist(folder.path(), &["export", "plan.json", "--to", "kubernetes", flag, "a\nb"]);
        refused(&run, &[&format!("`{flag}` is `a\\nb`")]);
    }
    for args in [
        &["--model", "a\nb"][..],
        &["--cluster", "1x2xh100\n"],
        &["--cluster", "2x8xh100-80gb-sxm@8x400\u{1b}gbps"],
    ] {
        let run = autodist(
            folder.path(),
            &[&["estimate"][..], args, &["--global-batch", "8", "--seq-len", "8"]].concat(),
        );
        refused(&run, &[]);
    }
}

fn parsed(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap_or_default()
}

#[test]
fn tables_and_lists_hide_nothing_either() {
    let folder = folder(2);
    let header = "id,group,source,gpu,layers,hidden,heads,iteration_s";
    for (column, hidden) in [(0, "\n"), (1, "\u{1b}"), (2, "\u{202e}"), (3, "\u{85}"), (4, "\r\n")] {
        let mut cells = ["a", "g", "s", "A100-80GB-SXM", "24", "2048", "16", "1"].map(str::to_owned);
        cells[column] = format!("\"x{hidden}y\"");
        write(folder.path(), "runs.csv", format!("{header}\n{}\n", cells.join(",")));
        let name = header.split(',').nth(column).unwrap();
        for command in ["backtest", "calibrate -o c.toml"] {
            refused(
                &line(folder.path(), &format!("{command} runs.csv")),
                &[&format!("runs.csv: `{name}, line 2`")],
            );
        }
    }
    write(folder.path(), "sets.csv", "set_id,ids_best_first\n\"s\u{1b}\",a b\n");
    refused(&line(folder.path(), "backtest --choice-sets sets.csv"), &["sets.csv: `set_id, line 2`"]);
    write(folder.path(), "plans.json", json!({"source": "s", "plans": [{"id": "a\nb"}]}).to_string());
    refused(&line(folder.path(), "backtest --measured-plans plans.json"), &["plans.json: `plans[0].id`"]);
    let long = format!("id\n{}", "a\n".repeat(60_000));
    write(folder.path(), "runs.csv", long);
    refused(&line(folder.path(), "backtest runs.csv"), &["runs.csv: has more than 50000 lines"]);
}

#[test]
fn a_file_larger_than_its_kind_is_refused_by_its_size() {
    let folder = folder(2);
    let plan = serde_json::to_value(plan()).unwrap();
    write(folder.path(), "plan.json", plan.to_string());
    let large = |bytes: usize| format!("{{\"schema_version\": 1, \"x\": [{}1]}}", "1,".repeat(bytes / 2));
    for (bytes, args, expected) in [
        (
            2 << 20,
            "estimate --cluster x.toml --model gpt2",
            "larger than 1 MiB, the limit for a cluster file",
        ),
        (2 << 20, "plan --job x.toml --model model.json", "larger than 1 MiB, the limit for a job file"),
        (2 << 20, "train plan.json --hosts x.toml", "larger than 1 MiB"),
        (
            5 << 20,
            "estimate --model x.json --cluster 1x1xh100-80gb-sxm",
            "larger than 4 MiB, the limit for a model file",
        ),
        (
            5 << 20,
            "estimate --from deepspeed x.json --model gpt2 --cluster 1x1xh100-80gb-sxm",
            "larger than 4 MiB",
        ),
        (17 << 20, "backtest x.json", "larger than 16 MiB, the limit for a run table file"),
        (65 << 20, "plan --profile x.json", "larger than 64 MiB, the limit for a profile file"),
        // The file is small enough, but each value would take many times its bytes.
        (12 << 20, "plan --profile x.json", "holds more than 4000000 values"),
        (12 << 20, "export x.json --to slurm", "holds more than 4000000 values"),
        (12 << 20, "report plan.json x.json", "holds more than 4000000 values"),
        (3 << 20, "estimate --model x.json --cluster 1x1xh100-80gb-sxm", "holds more than 500000 values"),
    ] {
        let file = args.split(' ').find(|word| word.starts_with("x.")).unwrap();
        write(folder.path(), file, large(bytes));
        refused(&line(folder.path(), args), &[file, expected]);
    }
}

#[test]
fn the_longest_line_of_a_file_is_not_its_error() {
    let folder = folder(2);
    let long = "x".repeat(100_000);
    for (file, content, args) in [
        (
            "job.toml",
            format!("schema_version = 1\nglobal_batch = {long}\n"),
            "plan --model model.json --job job.toml",
        ),
        ("job.toml", format!("schema_version = 1\n{long} = 1\n"), "plan --model model.json --job job.toml"),
        ("job.toml", format!("a = \"{long}\n"), "plan --model model.json --job job.toml"),
        ("cluster.toml", format!("name = {long}"), "estimate --cluster cluster.toml --model gpt2"),
        ("model.json", format!("{{\"name\": \"{long}\"}}"), "estimate --model model.json"),
        ("model.json", format!("{{\"{long}\": 1}}"), "estimate --model model.json"),
        (
            "ds.json",
            format!("{{\"train_batch_size\": \"{}\"}}", &long[..10_000]),
            "estimate --from deepspeed ds.json --model gpt2",
        ),
        ("a.yaml", format!("a: b: {long}"), "estimate --from nanotron a.yaml --model gpt2"),
    ] {
        write(folder.path(), file, content);
        let run = line(folder.path(), args);
        refused(&run, &[file]);
        assert!(run.err.len() < 3000, "{} bytes: {}", run.err.len(), &run.err[..1000]);
    }
}

/// Every reader, with a file of another kind.
#[test]
fn every_error_about_a_file_names_it() {
    let folder = folder(2);
    write(folder.path(), "plan.json", to_json(&plan()));
    let cluster = "1x1xh100-80gb-sxm";
    let trainers = [
        "megatron",
        "megatron-bridge",
        "torchtitan",
        "deepspeed",
        "accelerate",
        "transformers",
        "nanotron",
        "galvatron",
        "maxtext",
    ];
    let mut commands: Vec<String> = trainers
        .iter()
        .map(|trainer| format!("estimate --from {trainer} F --model gpt2 --cluster {cluster}"))
        .collect();
    commands.extend(
        [
            "estimate F",
            "estimate --model F --cluster 1x1xh100-80gb-sxm --global-batch 8 --seq-len 8",
            "estimate --cluster F.toml --model gpt2 --global-batch 8 --seq-len 8",
            "estimate --cluster 1x1xh100-80gb-sxm --devices F --model gpt2 --global-batch 8 --seq-len 8",
            "estimate --cluster 1x1xh100-80gb-sxm --calibration F --model gpt2 --global-batch 8 --seq-len 8",
            "estimate --profile F --model model.json --global-batch 8",
            "plan --profile F --model model.json --global-batch 8",
            "plan --job F --model model.json",
            "plan --probes F --model model.json --global-batch 8",
            "explain F",
            "explain plan.json --against F",
            "explain plan.json --profile F",
            "report F",
            "report plan.json F",
            "export F --to slurm",
            "train F",
            "train plan.json --hosts F",
            "validate F",
            "profile --emulate F.toml",
            "backtest F",
            "backtest --choice-sets F",
            "backtest --measured-plans F",
            "backtest --calibration F",
            "calibrate F -o c.toml",
        ]
        .map(str::to_owned),
    );
    for content in [&b""[..], b"\xff\xfe", b"{", b"{\"surprise\": 1}"] {
        for name in ["F", "F.toml"] {
            write(folder.path(), name, content);
        }
        for command in &commands {
            let run = line(folder.path(), command);
            assert_eq!(run.code, Some(2), "{command}, {content:?}: {}{}", run.out, run.err);
            let error = run.err.lines().find(|line| line.starts_with("error: ")).unwrap();
            let named = error.starts_with("error: F: ")
                || error.starts_with("error: F.toml: ")
                || error.starts_with("error: F:1: ");
            assert!(named, "{command}, {content:?}: {error}");
            assert!(run.err.contains("\nhint: "), "{command}, {content:?}: {}", run.err);
        }
    }
    write(
        folder.path(),
        "F.toml",
        "schema_version = 1\nname = \"x\"\n[[nodes]]\ncount = 1\ndevices = 2\n\
        device = { name = \"mine\", memory_bytes = 8000000000 }\n",
    );
    let run = line(folder.path(), "estimate --cluster F.toml --model gpt2 --global-batch 8 --seq-len 8");
    refused(&run, &["error: F.toml: `nodes[0].device.peak_flops_per_s`"]);
}

#[test]
fn what_a_file_answers_alone_it_answers_with_a_search() {
    let folder = folder(2);
    let job = "--cluster 2x8xh100-80gb-sxm@8x400gbps --global-batch 32 --seq-len 128 --model llama2-7b";
    for (trainer, file) in TRAINERS {
        // All targets but one support this stage; that one shards only the optimizer state.
        let zero = if trainer == "nanotron" { 1 } else { 3 };
        line(folder.path(), &format!("estimate {job} --micro-batch 1 --zero {zero} -o plan.json")).ok();
        line(folder.path(), &format!("export plan.json --to {trainer} -o out")).ok();
        let given = format!("estimate --from {trainer} out/{file} {job}");
        line(folder.path(), &given).ok();
        let best = line(folder.path(), &format!("{given} --best"));
        assert_eq!(best.code, Some(0), "{trainer}: {}", best.err);
        let note = format!("out/{file}: not used, because --best searches these settings: ");
        assert!(best.err.contains(&note), "{trainer}: {}", best.err);
        // Flags still fix parts of the layout.
        let fixed = line(folder.path(), &format!("{given} --best --micro-batch 1")).ok();
        assert!(fixed.contains(" mb1 ") && !fixed.contains(" mb2 "), "{trainer}: {fixed}");
    }
}

#[test]
fn a_wrong_value_of_a_trainers_file_is_blamed_on_the_file_and_its_key() {
    let folder = folder(2);
    let layers =
        "num-layers 4 --hidden-size 64 --num-attention-heads 4 --vocab-size 64 --max-position-embeddings 64";
    let megatron = |more: &str| format!("--{layers} --seq-length 64 --micro-batch-size 1 {more}\n");
    let one = "--cluster 1x8xh100-80gb-sxm";
    for (trainer, content, flags, expected) in [
        (
            "megatron",
            megatron("--global-batch-size 33554432"),
            one,
            "`global-batch-size` is `33554432`: must be at most",
        ),
        (
            "megatron",
            megatron("--global-batch-size 8 --tensor-model-parallel-size 3"),
            one,
            "`tensor-model-parallel-size",
        ),
        (
            "megatron",
            megatron("--global-batch-size 8 --expert-model-parallel-size 2"),
            one,
            "`expert-model-parallel-size` is `2`",
        ),
        ("megatron", megatron("--global-batch-size 8 --lr -1"), one, "`lr"),
        (
            "megatron",
            megatron("--global-batch-size 8 --lr 1 --adam-beta1 7"),
            "--profile profile.json",
            "`adam-beta1` is `7`",
        ),
        (
            "megatron",
            megatron("--global-batch-size 8 --num-layers 8.9"),
            one,
            "`num-layers` is `8.9`: expected a whole number",
        ),
        (
            "megatron",
            megatron(
                "--global-batch-size 8 --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Ett|L'",
            ),
            one,
            "`pipeline-model-parallel-layout` is `2, 0`: assigns 2 blocks, but the model has 4",
        ),
        (
            "megatron-bridge",
            "{train: {global_batch_size: 33554432, micro_batch_size: 1}}".to_owned(),
            "--model gpt2 --seq-len 64 --cluster 1x8xh100-80gb-sxm",
            "`train.global_batch_size` is `33554432`",
        ),
        (
            "megatron-bridge",
            "{model: {tensor_model_parallel_size: 2.7}}".to_owned(),
            "--model gpt2 --cluster 1x8xh100-80gb-sxm",
            "`model.tensor_model_parallel_size` is `2.7`",
        ),
        (
            "torchtitan",
            "--training.seq_len 99999999 --training.global_batch_size 8".to_owned(),
            "--model gpt2 --cluster 1x8xh100-80gb-sxm",
            "`training.seq_len` is `99999999`",
        ),
        (
            "deepspeed",
            "{\"train_batch_size\": 33554432, \"train_micro_batch_size_per_gpu\": 1}".to_owned(),
            "--model gpt2 --seq-len 64 --cluster 1x8xh100-80gb-sxm",
            "`train_batch_size` is `33554432`",
        ),
        (
            "maxtext",
            "{per_device_batch_size: 4194304, ici_data_parallelism: 8, max_target_length: 64}".to_owned(),
            "--model gpt2 --cluster 1x8xh100-80gb-sxm",
            "`per_device_batch_size` is `33554432`",
        ),
        (
            "nanotron",
            "{parallelism: {tp: 5}, tokens: {sequence_length: 64, micro_batch_size: 1}}".to_owned(),
            "--model gpt2 --global-batch 8 --cluster 1x8xh100-80gb-sxm",
            "`parallelism.tp",
        ),
        (
            "galvatron",
            "{\"pp_deg\": 3, \"global_bsz\": 8}".to_owned(),
            "--model gpt2 --seq-len 64 --cluster 1x8xh100-80gb-sxm",
            "`pp_deg",
        ),
        (
            "transformers",
            "{\"per_device_train_batch_size\": 9000000, \"bf16\": true}".to_owned(),
            "--model gpt2 --seq-len 64 --global-batch 8 --cluster 1x8xh100-80gb-sxm",
            "`per_device_train_batch_size` is `9000000`",
        ),
    ] {
        write(folder.path(), "theirs", content);
        let run = line(folder.path(), &format!("estimate --from {trainer} theirs {flags}"));
        refused(&run, &["error: theirs: ", expected]);
        assert!(
            !run.err.lines().any(|line| line.starts_with("error: ") && line.contains("`--")),
            "{}",
            run.err
        );
    }
    // An error in a given flag names the flag.
    write(folder.path(), "theirs", megatron("--global-batch-size 8"));
    let run = line(folder.path(), &format!("estimate --from megatron theirs {one} --tp 0"));
    refused(&run, &["`--tp"]);
}

#[test]
fn a_report_of_very_many_micro_batches_shows_some_and_says_so() {
    let folder = folder(2);
    let global = 1 << 16;
    let args = format!(
        "estimate --model model.json --seq-len 16 --global-batch {global} --micro-batch 1 --pp 2 -o plan.json"
    );
    line(folder.path(), &args).ok();
    let run = line(folder.path(), "report plan.json -o report");
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("of the 65536 micro-batches of a step"), "{}", run.err);
    let page = parsed(folder.path(), "report/report.html");
    assert!(page.contains("of its 65536 micro-batches"), "the page does not say what is left out");
    for name in ["report.html", "timeline_predicted.csv", "trace.json"] {
        let bytes = std::fs::metadata(folder.path().join("report").join(name)).unwrap().len();
        assert!(bytes < 40 << 20, "{name} has {bytes} bytes");
    }
}
