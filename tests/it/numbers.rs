//! Invalid or implausible numbers in files, and the files and messages that result: each is refused by name
//! or gives a result that can be read again; no text of a file controls a terminal or a spreadsheet.

use crate::common;

use common::{AUTODIST, Finished, autodist, edited, line, write};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

const ON_FIGURES: &str =
    "estimate --model gpt2 --cluster 2x8xh100-80gb-sxm@8x400gbps --global-batch 32 --seq-len 512 --tp 2";

const COLUMNS: &str = "id,group,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,inter_link,precision,tp,pp,\
                       cp,micro_batch,global_batch,iteration_s,peak_mem_gb";

/// A valid run except for one column.
fn table(column: &str, value: &str) -> String {
    let right = "a,g,24,2048,16,8192,51200,2048,A100-80GB-SXM,16,8,8 x 200 Gb/s,bf16,2,1,1,4,64,2.0,30";
    let cells: Vec<&str> = COLUMNS
        .split(',')
        .zip(right.split(','))
        .map(|(name, cell)| if name == column { value } else { cell })
        .collect();
    format!("{COLUMNS}\n{}\n", cells.join(","))
}

fn measured_plans() -> Value {
    json!({
        "source": "a test",
        "models": {"m": {"hidden": 64, "heads": 4, "seq_len": 32, "vocab": 128}},
        "profiles": [{"model": "m", "device": "d", "micro_batch": 1, "tensor": 1, "layers": [
            {"forward_s": 1e-3, "backward_s": 2e-3, "update_s": 1e-4, "parameters": 1e6, "result": 2048.0, "times": 3}]}],
        "links": [{"from": {"device": "d", "tensor": 1}, "to": {"device": "d", "tensor": 1},
            "rates": [[1024.0, 1e9], [1048576.0, 1e10]]}],
        "plans": [{"id": "p", "model": "m", "micro_batch": 1, "global_batch": 4,
            "stages": [{"layers": [0, 1], "replicas": [{"device": "d", "tensor": 1}]},
                {"layers": [2], "replicas": [{"device": "d", "tensor": 1}]}],
            "measured_s": 0.02, "measured_memory_bytes": 1e9}]
    })
}

/// No result contains a number that is not finite; quoted text is the file's.
#[track_caller]
fn sane(run: &Finished, case: &str) {
    let ours: String = run.out.split('`').step_by(2).collect();
    let none = ours.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| matches!(word, "NaN" | "inf"));
    assert!(!none, "{case}: {}", run.out);
    assert!(!run.err.contains("panicked"), "{case}: {}", run.err);
}

#[track_caller]
fn refused(run: &Finished, expected: &[&str]) {
    assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{expected:?}: {}", run.err);
    assert!(run.err.contains("hint: "), "{}", run.err);
    for text in expected {
        assert!(run.err.contains(text), "`{text}` is not in: {}", run.err);
    }
}

#[test]
fn counts_of_a_table_never_wrap() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "right.csv", table("", ""));
    assert!(line(folder, "backtest right.csv --json").json()["rows"][0]["predicted_s"].is_f64());
    for (column, value) in [
        ("tp", "4294967295"),
        ("tp", "67108864"),
        ("pp", "65536"),
        ("cp", "67108864"),
        ("gpus_total", "4294967295"),
        ("hidden", "1000000000"),
        ("heads", "67108864"),
        ("heads", "1"),
        ("micro_batch", "67108864"),
        ("global_batch", "67108864"),
        ("seq_len", "67108864"),
        ("vocab", "1e308"),
        ("layers", "8.9"),
        ("inter_link", "4000000000 x 999999 Gb/s"),
        ("inter_link", "0 Gb/s"),
        ("ffn", "1"),
    ] {
        write(folder, "runs.csv", table(column, value));
        for args in
            ["backtest runs.csv", "backtest runs.csv --json", "backtest runs.csv --leave-one-group-out"]
        {
            let run = line(folder, args);
            assert_eq!(run.code, Some(0), "{column} {value}: {}", run.err);
            sane(&run, &format!("{args}: {column} {value}"));
            let predicted = !args.contains("json") || run.out.contains("predicted_s");
            assert!(predicted || run.out.contains("reason"), "{column} {value}: {}", run.out);
        }
    }
    // Two degrees whose product is 2^32.
    write(folder, "runs.csv", table("tp", "65536").replace(",1,1,4,64,", ",65536,1,4,64,"));
    let run = line(folder, "backtest runs.csv");
    assert!(
        run.out.contains("refused: tp x pp x cp = 4294967296 does not divide"),
        "{} {}",
        run.out,
        run.err
    );
}

#[test]
fn a_measured_time_is_a_time_or_the_row_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (column, value) in [
        ("iteration_s", "1e-308"),
        ("iteration_s", "-1"),
        ("iteration_s", "nan"),
        ("iteration_s", "inf"),
        ("iteration_s", "1e300"),
        ("iteration_s", "soon"),
        ("peak_mem_gb", "1e-300"),
        ("peak_mem_gb", "-inf"),
    ] {
        write(folder, "runs.csv", table(column, value));
        let run = line(folder, "backtest runs.csv");
        assert_eq!(run.code, Some(0), "{}", run.err);
        sane(&run, value);
        assert!(
            run.out.contains(&format!("refused: `{column}` is `{value}`")),
            "{column} {value}: {}",
            run.out
        );
        let row = |number: u32| {
            let one = table(column, value);
            format!("{number}{}\n", one.lines().nth(1).unwrap())
        };
        let all: String = (0..4).map(row).collect();
        write(folder, "all.csv", format!("{COLUMNS}\n{all}"));
        refused(&line(folder, "calibrate all.csv -o fit.toml"), &["all.csv", column]);
        assert!(!folder.join("fit.toml").exists());
    }
    for nothing in ["", "0"] {
        write(folder, "runs.csv", table("iteration_s", nothing));
        assert!(line(folder, "backtest runs.csv").ok().contains("not measured"));
    }
}

#[test]
fn sizes_and_times_of_measured_plans_have_ranges() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let right = measured_plans();
    let args = "backtest --measured-plans plans.json";
    write(folder, "plans.json", right.to_string());
    assert!(line(folder, args).ok().contains("median error"));
    let layer = "/profiles/0/layers/0";
    for (pointer, value, field) in [
        (format!("{layer}/times"), json!(1_u64 << 32), "profiles[0].layers[0].times"),
        (format!("{layer}/times"), json!(0), "profiles[0].layers[0].times"),
        (format!("{layer}/times"), json!(2.5), "profiles[0].layers[0].times"),
        (format!("{layer}/forward_s"), json!(1e308), "profiles[0].layers[0].forward_s"),
        (format!("{layer}/parameters"), json!(-1), "profiles[0].layers[0].parameters"),
        ("/profiles/0/layers".to_owned(), json!([]), "profiles[0].layers"),
        ("/profiles/0/tensor".to_owned(), json!(0), "profiles[0].tensor"),
        ("/models/m/hidden".to_owned(), json!(u32::MAX), "models.m.hidden"),
        ("/links/0/rates".to_owned(), json!([]), "links[0].rates"),
        ("/links/0/rates/0/1".to_owned(), json!(0.0), "links[0].rates[0][1]"),
        ("/links/0/rates/0/0".to_owned(), json!(1e7), "links[0].rates[1][0]"),
        ("/plans/0/measured_s".to_owned(), json!(0.0), "plans[0].measured_s"),
        ("/plans/0/global_batch".to_owned(), json!(0), "plans[0].global_batch"),
        ("/plans/0/stages/0/layers".to_owned(), json!([]), "plans[0].stages[0].layers"),
    ] {
        write(folder, "plans.json", edited(&right, &pointer, Some(value)).to_string());
        refused(&line(folder, args), &["plans.json", field]);
    }
    // Values that are valid alone but overflow together are refused by name.
    for (pointer, value) in [
        (format!("{layer}/forward_s"), json!(1e30)),
        (format!("{layer}/parameters"), json!(1e30)),
        ("/plans/0/micro_batch".to_owned(), json!(8)),
        ("/plans/0/stages/0/layers/0".to_owned(), json!(1_u64 << 40)),
    ] {
        write(folder, "plans.json", edited(&right, &pointer, Some(value)).to_string());
        let run = line(folder, args);
        sane(&run, &pointer);
        assert!(run.out.contains("refused: p: "), "{pointer}: {} {}", run.out, run.err);
    }
    // No list is allocated before its length is checked.
    let layers = vec![edited(&right["profiles"][0]["layers"][0], "/times", Some(json!(600_000))); 2];
    write(folder, "plans.json", edited(&right, "/profiles/0/layers", Some(json!(layers))).to_string());
    refused(&line(folder, args), &["plans.json", "layers of all profiles", "1200000"]);
}

#[test]
fn a_calibration_is_near_what_is_known_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let shipped = include_str!("../../catalog/training.toml");
    let at = |name: &str, value: &str| {
        let changed = |line: &str| {
            if line.starts_with(&format!("{name} =")) { format!("{name} = {value}") } else { line.to_owned() }
        };
        shipped.lines().map(changed).collect::<Vec<_>>().join("\n")
    };
    for (name, value) in [
        ("logit_bytes", "1e308"),
        ("logit_bytes", "1e-300"),
        ("link", "-1.0"),
        ("step_s", "0.0"),
        ("error_bar", "1e300"),
        ("median_error", "-1.0"),
        ("gemm_efficiency", "nan"),
    ] {
        write(folder, "fit.toml", at(name, value));
        for json in ["", "--json", "-o plan.json"] {
            refused(
                &line(folder, &format!("{ON_FIGURES} --calibration fit.toml {json}")),
                &["fit.toml", name],
            );
        }
        refused(&line(folder, "backtest --calibration fit.toml"), &["fit.toml", name]);
    }
    write(folder, "fit.toml", at("logit_bytes", "40.0"));
    sane(&line(folder, &format!("{ON_FIGURES} --calibration fit.toml")), "as it is known");
}

#[test]
fn rates_of_devices_and_links_are_rates() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let cluster = |link: &str, network: &str, latency: &str, peak: &str| {
        format!(
            "schema_version = 1\nname = \"lab\"\n[[nodes]]\ncount = 2\ndevices = 8\nlink = {{ bytes_per_s = {link} }}\n\
             device = {{ name = \"mine\", memory_bytes = 80000000000, peak_flops_per_s = {peak}, memory_bytes_per_s = 2e12 }}\n\
             [network]\nbytes_per_s = {network}\nlatency_s = {latency}\n"
        )
    };
    let job = "estimate --cluster lab.toml --model gpt2 --global-batch 32 --seq-len 512 --tp 2 -o plan.json";
    for (text, field) in [
        (cluster("1e-320", "4e11", "1e-6", "1e14"), "nodes[0].link.bytes_per_s"),
        (cluster("1e11", "1e-320", "1e-6", "1e14"), "network.bytes_per_s"),
        (cluster("1e11", "0.5", "1e-6", "1e14"), "network.bytes_per_s"),
        (cluster("1e11", "4e11", "1e300", "1e14"), "network.latency_s"),
        (cluster("1e11", "4e11", "1e-6", "1e-300"), "nodes[0].device.peak_flops_per_s"),
    ] {
        write(folder, "lab.toml", text);
        for args in [job.to_owned(), format!("{job} --best").replace(" --tp 2", "")] {
            refused(&line(folder, &args), &["lab.toml", field]);
        }
    }
    // Slow, but possible: a document that can be read again, or a refusal that names the implausible value.
    for text in [
        cluster("1.0", "1.0", "1e-6", "1.0"),
        cluster("1e30", "1e30", "0.0", "1e30"),
        cluster("1e11", "4e11", "1e30", "1e14"),
    ] {
        write(folder, "lab.toml", text);
        let run = line(folder, job);
        sane(&run, "in range");
        match run.code {
            Some(0) => drop(line(folder, "report plan.json -o report").ok()),
            code => {
                assert_eq!(code, Some(2), "{}", run.err);
                assert!(
                    run.err.contains("lab.toml: ") && run.err.contains("implausible number"),
                    "{}",
                    run.err
                );
            }
        }
        let _ = fs::remove_file(folder.join("plan.json"));
    }
}

#[test]
fn degrees_that_are_given_never_wrap() {
    let folder = tempfile::tempdir().unwrap();
    for flags in [
        "--tp 65536 --pp 65536",
        "--tp 65536 --pp 65536 --best",
        "--tp 4294967295 --best",
        "--cp 1048576 --best",
        "--shard 1048576 --cp 16 --tp 1",
        "--micro-batch 4294967295 --best",
        "--vpp 4294967295 --best",
        "--dp 0 --best",
    ] {
        let run = line(folder.path(), &format!("{} {flags}", ON_FIGURES.replace(" --tp 2", "")));
        refused(&run, &[]);
    }
}

#[test]
fn products_of_a_trainers_counts_never_wrap() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let torchtitan = "torchrun -m torchtitan.train --training.seq_len 512 --training.global_batch_size 32 \\\n \
                      --training.local_batch_size 1 --parallelism.data_parallel_shard_degree 65536 \\\n \
                      --parallelism.data_parallel_replicate_degree 65536\n";
    let deepspeed = r#"{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 16,
        "bf16": {"enabled": true}, "zero_optimization": {"stage": 1, "reduce_bucket_size": 18446744073709551616}}"#;
    let rounds = deepspeed
        .replace("18446744073709551616", "1000")
        .replace(": 1,", ": 65536,")
        .replace("16,", "65536,");
    for (trainer, text) in [("torchtitan", torchtitan), ("deepspeed", deepspeed), ("deepspeed", &rounds)] {
        write(folder, "theirs", text);
        let cluster = "--cluster 2x8xh100-80gb-sxm@8x400gbps --model llama2-7b --seq-len 512";
        refused(&line(folder, &format!("estimate --from {trainer} theirs {cluster}")), &["theirs"]);
    }
}

#[test]
fn what_is_written_can_be_read_again() {
    let folder = common::folder(2);
    let folder = folder.path();
    let of_profile = "--model model.json --job job.toml";
    line(folder, &format!("plan {of_profile} -o plan.json")).ok();
    line(folder, &format!("estimate {of_profile} --tp 2 -o estimate.json")).ok();
    line(folder, &format!("{ON_FIGURES} -o figures.json")).ok();
    line(folder, &format!("{} --best -o best.json", ON_FIGURES.replace(" --tp 2", ""))).ok();
    for file in ["plan.json", "estimate.json", "figures.json", "best.json"] {
        line(folder, &format!("report {file} -o report")).ok();
    }
    let rows: String = (1..6)
        .map(|row| {
            let seconds = format!("{}", 0.9 * f64::from(row));
            let text = table("iteration_s", &seconds).lines().nth(1).unwrap().replacen(
                "a,g,24",
                &format!("r{row},g,{}", 12 * row),
                1,
            );
            text + "\n"
        })
        .collect();
    write(folder, "runs.csv", format!("{COLUMNS}\n{rows}"));
    line(folder, "calibrate runs.csv -o fit.toml").ok();
    line(folder, &format!("{ON_FIGURES} --calibration fit.toml")).ok();
    line(folder, "train plan.json --steps 2 -o run.json").ok();
    line(folder, "report plan.json run.json -o report").ok();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

/// Runs `autodist` under another umask.
fn with_umask(folder: &Path, umask: &str, args: &str) -> Finished {
    let script = format!("umask {umask}; exec {AUTODIST} {args}");
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap();
    Finished {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn files_are_open_to_whom_the_umask_says_and_keep_their_mode() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = folder.join("plan.json");
    for (umask, expected) in [("077", 0o600), ("002", 0o664), ("022", 0o644)] {
        let _ = fs::remove_file(&plan);
        with_umask(folder, umask, &format!("{ON_FIGURES} -o plan.json")).ok();
        assert_eq!(mode(&plan), expected, "{umask}");
    }
    for kept in [0o600, 0o640, 0o666] {
        fs::set_permissions(&plan, fs::Permissions::from_mode(kept)).unwrap();
        with_umask(folder, "022", &format!("{ON_FIGURES} -o plan.json")).ok();
        assert_eq!(mode(&plan), kept);
    }
    let export = format!("{} -o plan.json", ON_FIGURES.replace("gpt2", "llama2-7b"));
    with_umask(folder, "022", &export).ok();
    with_umask(folder, "027", "export plan.json --to megatron-bridge -o out").ok();
    let modes: Vec<u32> =
        fs::read_dir(folder.join("out")).unwrap().map(|entry| mode(&entry.unwrap().path())).collect();
    assert!(modes.contains(&0o750) && modes.contains(&0o640) && modes.len() == 2, "{modes:?}");
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("kept")).unwrap();
    write(folder, "kept/plan.json", "old");
    symlink("kept/plan.json", folder.join("first")).unwrap();
    symlink("first", folder.join("second")).unwrap();
    symlink("kept/new.json", folder.join("dangling")).unwrap();
    symlink("loop", folder.join("loop")).unwrap();
    for (link, target) in [("second", "kept/plan.json"), ("dangling", "kept/new.json")] {
        line(folder, &format!("{ON_FIGURES} -o {link}")).ok();
        assert!(folder.join(link).is_symlink(), "{link}");
        let written: Value = serde_json::from_str(&fs::read_to_string(folder.join(target)).unwrap()).unwrap();
        assert!(written["strategy"].is_object());
    }
    let run = line(folder, &format!("{ON_FIGURES} -o loop"));
    assert_eq!(run.code, Some(4), "{}", run.err);
}

#[test]
fn what_killed_processes_left_is_removed_after_an_hour() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let old = SystemTime::now() - Duration::from_secs(2 * 3600);
    for name in [".autodist-aged00.tmp", ".autodist-young0.tmp", ".autodist-notes.txt", "mine.tmp"] {
        let file = fs::File::create(folder.join(name)).unwrap();
        if !name.contains("young") {
            file.set_modified(old).unwrap();
        }
    }
    line(folder, &format!("{ON_FIGURES} -o plan.json")).ok();
    let mut left: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".autodist-notes.txt", ".autodist-young0.tmp", "mine.tmp", "plan.json"]);
}

#[test]
fn what_cannot_be_written_is_printed_all_the_same() {
    let folder = common::folder(2);
    let folder = folder.path();
    // A file in the position of a folder.
    for args in [
        "plan --model model.json --job job.toml",
        "estimate --model model.json --job job.toml --tp 2",
        ON_FIGURES,
        &format!("{} --best", ON_FIGURES.replace(" --tp 2", "")),
    ] {
        let printed = line(folder, args).ok();
        let run = line(folder, &format!("{args} -o job.toml/plan.json"));
        assert_eq!(run.code, Some(4), "{args}: {}", run.err);
        assert!(run.err.contains("cannot write job.toml/plan.json"), "{}", run.err);
        assert_eq!(run.out, printed, "{args}");
    }
}

#[test]
fn no_pipe_that_a_document_names_is_waited_for() {
    let folder = common::folder(2);
    let folder = folder.path();
    line(folder, "plan --model model.json --job job.toml -o plan.json").ok();
    let pipe = folder.join("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    let plan: Value = serde_json::from_str(&fs::read_to_string(folder.join("plan.json")).unwrap()).unwrap();
    let began = Instant::now();
    for (named, is) in
        [("pipe", "a pipe"), ("socket", "a socket"), ("/dev/zero", "a device"), ("/", "a folder")]
    {
        write(
            folder,
            "named.json",
            edited(&plan, "/cost_source/profile/path", Some(json!(named))).to_string(),
        );
        for args in ["explain named.json", "estimate named.json"] {
            refused(&line(folder, args), &[named, is]);
        }
        let run = line(folder, "report named.json -o report");
        assert!(run.err.contains(&format!("{named}: is {is}")), "{}", run.err);
        assert_eq!(run.code, Some(0), "a report can do without");
    }
    // A pipe at a path where a file is searched for is refused, too.
    fs::create_dir(folder.join("model")).unwrap();
    fs::rename(&pipe, folder.join("model/config.json")).unwrap();
    let run =
        line(folder, "estimate --model model/ --cluster 1x8xh100-80gb-sxm --global-batch 8 --seq-len 16");
    refused(&run, &["model/config.json", "is a pipe"]);
    assert!(began.elapsed() < Duration::from_secs(60));

    // A pipe on the command line is read to its end.
    let mut reading = Command::new(AUTODIST)
        .args(["explain", "/dev/stdin", "--profile", "profile.json", "--json"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    reading.stdin.take().unwrap().write_all(plan.to_string().as_bytes()).unwrap();
    let output = reading.wait_with_output().unwrap();
    assert!(output.status.success() && serde_json::from_slice::<Value>(&output.stdout).is_ok());
}

/// Characters that a terminal interprets.
const ESCAPES: [char; 5] = ['\u{1b}', '\u{9b}', '\u{7}', '\r', '\u{202e}'];

#[test]
fn no_text_of_a_file_drives_the_terminal() {
    let folder = common::folder(2);
    let folder = folder.path();
    let bad: String = ESCAPES.iter().collect::<String>() + "[2Jx";
    let quiet = |run: &Finished, case: &str| {
        for text in [&run.out, &run.err] {
            assert!(!text.contains(ESCAPES), "{case}: {text:?}");
        }
    };
    write(folder, "runs.csv", table("id", &format!("\"{bad}\nerror: all is well\"")));
    let run = line(folder, "backtest runs.csv");
    quiet(&run, "backtest");
    refused(&run, &["runs.csv", "U+001B"]);
    assert!(!run.err.contains("\nerror: all is well"), "{}", run.err);
    quiet(&line(folder, "backtest runs.csv --json"), "backtest --json");
    write(folder, "runs.csv", table("gpu", &bad));
    quiet(&line(folder, "backtest runs.csv"), "device");

    let name = format!("{bad}.json");
    write(folder, &name, "{");
    let run = autodist(folder, &["report", &name]);
    quiet(&run, "file name");
    assert!(run.err.contains("\\u{1b}"), "{}", run.err);
    write(folder, "key.json", json!({"schema_version": 1, bad.clone(): 1}).to_string());
    quiet(&line(folder, "report key.json"), "key");
    write(
        folder,
        "value.toml",
        format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\nprecision = {:?}\n", "x"),
    );
    quiet(&autodist(folder, &["report", "plan.json", &format!("--{bad}")]), "flag");
    write(folder, "named.json", edited(&measured_plans(), "/plans/0/id", Some(json!(bad))).to_string());
    quiet(&line(folder, "backtest --measured-plans named.json"), "id");
    let run = line(folder, "backtest --measured-plans named.json --json");
    quiet(&run, "id, JSON");
    refused(&run, &["named.json", "U+001B"]);

    // autodist's own output contains line breaks.
    assert!(line(folder, "plan --model model.json --job job.toml").ok().lines().count() > 5);
}

#[test]
fn messages_are_cut_to_what_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let long = "x".repeat(100_000);
    write(folder, "long.toml", format!("schema_version = 1 {long}"));
    write(folder, "key.json", json!({"schema_version": 1, long.clone(): 1}).to_string());
    write(folder, "cells.csv", table("gpu", &long));
    for args in [
        "plan --profile key.json --global-batch 8",
        "estimate --cluster long.toml --model gpt2 --global-batch 8 --seq-len 16",
        "calibrate cells.csv -o fit.toml",
        "backtest cells.csv",
    ] {
        let run = line(folder, args);
        let longest = run.err.lines().chain(run.out.lines()).map(|line| line.chars().count()).max().unwrap();
        assert!(longest < 1_500, "{args}: {longest}");
    }
    let run = line(folder, &format!("report {}", "y/".repeat(3_000)));
    assert!(run.err.len() < 10_000, "{}", run.err.len());
}
