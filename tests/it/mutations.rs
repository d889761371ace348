//! Randomly changed files of every kind, through the program's own readers: each is accepted, or refused by
//! name. `just fuzz` tries a hundred thousand; `AUTODIST_MUTATIONS` is the number, `AUTODIST_MUTATIONS_FROM`
//! the first.
//!
//! A case is determined by its number: the same file and command on every machine. Failures are printed with
//! it, and kept in the folder `AUTODIST_MUTATIONS_KEEP`, if set.

use crate::common;

use autodist_spec::{Codec, CodecProbe, Coded, Plan, to_json};
use common::{AUTODIST, TRAINERS, line, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Default number of cases: some ten of each kind.
const USUAL: u64 = 280;
/// Maximum address space of a case, in bytes. Its memory is less.
const MOST_MEMORY: u64 = 1 << 30;
/// Maximum processor time of a case, in seconds.
const MOST_SECONDS: u64 = 10;
/// Timeout of a case that uses no processor time: far longer than any case takes on a busy machine.
const HANGS: Duration = Duration::from_secs(300);

const FIGURES: &str = "--cluster 2x2xh100-80gb-sxm@2x400gbps";
const JOB: &str = "--global-batch 8 --seq-len 16";

/// A kind of file: a valid one, and commands that read it at the position of `@`.
struct Kind {
    name: String,
    file: String,
    seed: String,
    commands: Vec<String>,
}

fn kind(name: &str, file: &str, seed: impl Into<String>, commands: &[String]) -> Kind {
    Kind { name: name.to_owned(), file: file.to_owned(), seed: seed.into(), commands: commands.to_vec() }
}

/// The first lines of a shipped table.
fn head(table: &str, lines: usize) -> String {
    table.lines().take(lines).map(|line| format!("{line}\n")).collect()
}

/// All kinds; their commands find other files in `folder`.
fn kinds(folder: &Path) -> Vec<Kind> {
    let here = |args: &str| args.to_owned();
    let of_profile = "--model model.json --job job.toml";
    line(folder, &format!("estimate {of_profile} --dp 2 --micro-batch 2 -o plan.json")).ok();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    // One rank: two with invalid host addresses would wait for each other.
    let ssh = folder.join("ssh");
    write(folder, "ssh", "#!/bin/sh\nexit 255\n");
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let value =
        |text: String| serde_json::to_string_pretty(&serde_json::from_str::<Value>(&text).unwrap()).unwrap();
    let cluster = "schema_version = 1\nname = \"lab\"\n\n[[nodes]]\ncount = 2\ndevices = 2\nnics = 2\n\
                   link = { bytes_per_s = 4.5e11, latency_s = 1e-6 }\nuplink = { bytes_per_s = 1e11 }\n\
                   [nodes.device]\nname = \"mine\"\nmemory_bytes = 80000000000\npeak_flops_per_s = 9.9e14\n\
                   memory_bytes_per_s = 3.3e12\n\n[network]\nbytes_per_s = 1e11\nlatency_s = 5e-6\n";
    let job = "schema_version = 1\nglobal_batch = 8\nseq_len = 16\nprecision = \"fp32\"\ngradient_clip = 1.0\nseed = 3\n\
               memory_reserve = 0.04\n\n[optimizer]\nkind = \"adamw\"\nbeta1 = 0.9\nbeta2 = 0.95\nepsilon = 1e-8\nweight_decay = 0.1\n\n[learning_rate]\npeak = 1e-3\nwarmup_steps = 2\n\
               total_steps = 100\nfinal_fraction = 0.1\n\n[allow]\ntensor = [1, 2]\nmicro_batch = [1, 2, 4]\nzero_stage = [0, 1]\n";
    let devices = "[[device]]\nname = \"mine\"\nmemory_bytes = 96000000000\npeak_flops_per_s = 8.0e14\n\
                   achievable_flops_per_s = 6.5e14\nmemory_bytes_per_s = 2.4e12\nl2_bytes = 50000000\nprocessors = 132\n\
                   architecture = \"hopper\"\nlink_bytes_per_s = 4.5e11\nlink = \"nv_switch\"\nsource = \"a test\"\n\
                   [device.peaks]\nfp8 = 1.6e15\n";
    let config = json!({"model_type": "llama", "_name_or_path": "small", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false});
    let runs = head(include_str!("../../catalog/published/training_runs.csv"), 8);
    let later = head(include_str!("../../catalog/published/later_runs.csv"), 8);
    let measured: Value =
        serde_json::from_str(include_str!("../../catalog/published/measured_plans.json")).unwrap();
    let of = |what: &str, count: usize| {
        measured[what].as_array().unwrap().iter().take(count).cloned().collect::<Vec<_>>()
    };
    let measured = json!({"source": "a test", "models": measured["models"], "profiles": of("profiles", 6),
        "links": of("links", 4), "plans": of("plans", 4)});
    let figures = |args: &str| format!("estimate {FIGURES} {args}");
    let mut validation = common::validation();
    let plan: Plan = serde_json::from_str(&read("plan.json")).unwrap();
    validation.runs[0].strategy = plan.strategy;
    validation.probes.push(CodecProbe {
        noise: Some(0.1),
        codec: Codec::Bf16,
        coded: Coded::default(),
        steps: 20,
        exact_loss: 3.5,
        loss: 3.6,
        slowdown: 1.1,
        reached: true,
    });
    let mut kinds = vec![
        kind(
            "plan",
            "mutant.json",
            read("plan.json"),
            &[
                here("explain @"),
                here("estimate @ -o out.json"),
                here("report @ -o report"),
                here("export @ --to megatron -o out"),
                here("export @ --to kubernetes -o out"),
                here("export @ --to nanotron -o out"),
            ],
        ),
        kind(
            "profile",
            "mutant.json",
            read("profile.json"),
            &[
                format!("plan --profile @ {of_profile} -o out.json"),
                format!("estimate --profile @ {of_profile} --dp 2"),
            ],
        ),
        kind(
            "run",
            "mutant.json",
            value(to_json(&common::run_record())),
            &[here("report plan.json @ -o report")],
        ),
        kind(
            "validation",
            "mutant.json",
            value(to_json(&validation)),
            &[here("report plan.json @ -o report"), format!("plan {of_profile} --probes @")],
        ),
        kind(
            "cluster",
            "mutant.toml",
            cluster,
            &[
                format!("estimate --cluster @ --model gpt2 {JOB} -o out.json"),
                format!("estimate --cluster @ --model gpt2 {JOB} --best -o out.json"),
            ],
        ),
        kind(
            "job",
            "mutant.toml",
            job,
            &[here("plan --model model.json --job @"), figures("--model gpt2 --job @")],
        ),
        kind(
            "devices",
            "mutant.toml",
            devices,
            &[
                format!("estimate --devices @ --cluster 2x2xmine@2x400gbps --model gpt2 {JOB} -o out.json"),
                format!("estimate --devices @ --cluster 1x8xmine --model gpt2 {JOB} --best"),
            ],
        ),
        kind(
            "calibration",
            "mutant.toml",
            include_str!("../../catalog/training.toml"),
            &[
                figures(&format!("--model gpt2 {JOB} --calibration @ -o out.json")),
                here("backtest few.csv --calibration @"),
            ],
        ),
        kind(
            "run table",
            "mutant.csv",
            &runs,
            &[here("backtest @"), here("backtest @ --json"), here("calibrate @ -o out.toml")],
        ),
        kind("later runs", "mutant.csv", &later, &[here("backtest @ few.csv --leave-one-group-out")]),
        kind(
            "choice sets",
            "mutant.csv",
            head(include_str!("../../catalog/published/choice_sets.csv"), 6),
            &[here("backtest few.csv --choice-sets @")],
        ),
        kind(
            "measured plans",
            "mutant.json",
            serde_json::to_string_pretty(&measured).unwrap(),
            &[here("backtest --measured-plans @"), here("backtest --measured-plans @ --json")],
        ),
        kind(
            "Hugging Face",
            "mutant.json",
            serde_json::to_string_pretty(&config).unwrap(),
            &[figures(&format!("--model @ {JOB} -o out.json")), here("plan --model @ --job job.toml")],
        ),
        kind(
            "model",
            "mutant.json",
            to_json(&common::small_model()),
            &[figures(&format!("--model @ {JOB}")), here("plan --model @ --job job.toml -o out.json")],
        ),
        kind(
            "hosts",
            "mutant.txt",
            "# two machines\none slots=1\nme@two slots=1\n",
            &[format!("train plan.json --steps 2 --timeout 1 --hosts @ --ssh {}", ssh.display())],
        ),
    ];
    write(folder, "few.csv", &runs);
    line(
        folder,
        &format!("estimate {FIGURES} --model llama2-7b --global-batch 32 --seq-len 512 --tp 2 --micro-batch 1 -o large.json"),
    )
    .ok();
    for (trainer, file) in TRAINERS {
        // Not every trainer supports tensor parallelism.
        let plan = ["large.json", "data.json"].into_iter().find(|plan| {
            if *plan == "data.json" {
                let args = "--model llama2-7b --global-batch 32 --seq-len 512 --micro-batch 1 --zero 3 --recompute full";
                line(folder, &figures(&format!("{args} -o data.json"))).ok();
            }
            line(folder, &format!("export {plan} --to {trainer} -o {trainer}")).code == Some(0)
        });
        assert!(plan.is_some(), "{trainer} takes neither plan");
        let seed = std::fs::read_to_string(folder.join(trainer).join(file)).unwrap();
        let flags = "--model llama2-7b --global-batch 32 --seq-len 512";
        let from = format!("--from {trainer} @");
        let commands =
            [figures(&format!("{from} {flags} --json")), figures(&from), figures(&format!("{from} --best"))];
        kinds.push(kind(trainer, &format!("mutant.{}", file.rsplit('.').next().unwrap()), seed, &commands));
    }
    kinds
}

/// Numbers from a seed (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "8.9",
    "0.5",
    "1e308",
    "1e-308",
    "5e-324",
    "1e999",
    "1e30",
    "1e-30",
    "nan",
    "-INF",
    "INF",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999999999",
    "0x10",
    "1_000",
    "1048576",
    "16777216",
    "null",
    "true",
    "\"8\"",
    "[]",
    "{}",
    "",
];

const BYTES: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\x1b[2J",
    b"\xc2\x9b",
    "\u{202e}".as_bytes(),
    b"\"",
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"=",
    b"\n",
    b"\r",
    b"\t",
    b"#",
    b"&a",
    b"*a",
    b"$(x)",
    b"${x}",
    b"\\",
    b"-",
    b"- ",
    b"  ",
    b"9",
    b"e",
    b".",
];

/// Positions of numbers.
fn numbers(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    let part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let end = at + text[at..].iter().take_while(|byte| part(**byte)).count();
        let word = at > 0 && text[at - 1].is_ascii_alphabetic();
        if !word && text[at..end].iter().any(u8::is_ascii_digit) {
            found.push(at..end);
        }
        at = end.max(at + 1);
    }
    found
}

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Changes one value of a JSON document: removes, replaces, wraps, repeats, or swaps it with another.
fn structure(document: &mut Value, random: &mut Random) {
    let mut at = document;
    // Descends to a nested value, not always to a leaf.
    loop {
        let deeper: Vec<Value> = match &*at {
            Value::Object(map) => map.iter().filter(|(_, v)| holds(v)).map(|(key, _)| json!(key)).collect(),
            Value::Array(list) => {
                (0..list.len()).filter(|index| holds(&list[*index])).map(|index| json!(index)).collect()
            }
            _ => Vec::new(),
        };
        if deeper.is_empty() || random.below(4) == 0 {
            break;
        }
        at = match deeper[random.below(deeper.len())].clone() {
            Value::String(key) => &mut at[key],
            index => &mut at[index.as_u64().unwrap() as usize],
        };
    }
    let other = |value: &Value, random: &mut Random| match random.below(5) {
        0 => json!([value, value]),
        1 => json!({"nested": value}),
        2 => Value::Null,
        3 => serde_json::from_str(NUMBERS[random.below(NUMBERS.len())]).unwrap_or_else(|_| json!("text")),
        _ => json!("x".repeat(1 << random.below(17))),
    };
    match at {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(random.below(map.len())).unwrap().clone();
            match random.below(4) {
                0 => drop(map.remove(&key)),
                1 => {
                    let value = map[&key].clone();
                    map.insert(format!("{key}2"), value);
                }
                _ => {
                    let value = other(&map[&key], random);
                    map.insert(key, value);
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let index = random.below(list.len());
            match random.below(4) {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                2 => list.clear(),
                _ => list[index] = other(&list[index], random),
            }
        }
        _ => *at = json!([]),
    }
}

fn holds(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

/// A valid text, changed in one to three places.
fn mutated(seed: &str, random: &mut Random) -> Vec<u8> {
    let mut text = seed.as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        match random.below(8) {
            0 => {
                let at = random.below(text.len() + 1);
                text.splice(at..at, random.of(BYTES).iter().copied());
            }
            1 => {
                let at = random.below(text.len());
                if let Some(byte) = text.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
            2 => text.truncate(random.below(text.len())),
            3 => {
                let mut lines = lines(&text);
                if lines.is_empty() {
                    continue;
                }
                let (one, other) = (random.below(lines.len()), random.below(lines.len()));
                match random.below(4) {
                    0 => drop(lines.remove(one)),
                    1 => lines.insert(other, lines[one].clone()),
                    2 => lines.swap(one, other),
                    _ => lines[one].splice(0..0, *b"    ").for_each(drop),
                }
                text = lines.concat();
            }
            4 => {
                let mut document = match serde_json::from_slice::<Value>(&text) {
                    Ok(document) => document,
                    Err(_) => continue,
                };
                structure(&mut document, random);
                text = serde_json::to_vec_pretty(&document).unwrap();
            }
            _ => {
                let found = numbers(&text);
                if !found.is_empty() {
                    let place = found[random.below(found.len())].clone();
                    text.splice(place, random.of(NUMBERS).bytes());
                }
            }
        }
    }
    text
}

/// The result of a case.
struct End {
    /// Its category in the counts.
    outcome: String,
    /// Why it is a failure, if it is one.
    wrong: Option<String>,
}

fn try_one(folder: &Path, kind: &Kind, command: &str, text: &[u8]) -> End {
    write(folder, &kind.file, text);
    let (out, err) = (folder.join("stdout"), folder.join("stderr"));
    let create = |path| std::fs::File::create(path).unwrap();
    let mut run = Command::new(AUTODIST);
    run.args(command.split_whitespace().map(|word| if word == "@" { kind.file.as_str() } else { word }))
        .current_dir(folder)
        // Each thread uses address space for its stack and its heap.
        .env("RAYON_NUM_THREADS", "2")
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::null())
        .stdout(create(&out))
        .stderr(create(&err));
    // SAFETY: setrlimit may be called between fork and exec, and changes nothing of the parent.
    unsafe {
        run.pre_exec(|| {
            for (what, most) in
                [(libc::RLIMIT_AS, MOST_MEMORY), (libc::RLIMIT_CPU, MOST_SECONDS), (libc::RLIMIT_CORE, 0)]
            {
                let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
                if libc::setrlimit(what, &limit) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = run.spawn().unwrap();
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if began.elapsed() > HANGS => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let text = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let (out, err) = (text(&out), text(&err));
    let code = status.and_then(|status| status.code());
    let outcome = match (status, code) {
        (None, _) => "hangs".to_owned(),
        (Some(_), Some(code)) => format!("exit {code}"),
        (Some(status), None) => format!("signal {}", status.signal().unwrap_or_default()),
    };
    let word =
        |text: &str, what: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == what);
    // Quoted text is from the file, not from autodist.
    let ours: String = out.split('`').step_by(2).collect();
    let number = ["NaN", "inf"].into_iter().find(|number| word(&ours, number));
    let control = |text: &str| text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    // A renamed device is valid, but the cluster that uses it is not.
    let renamed = kind.name == "devices" && err.contains("has no device `mine`");
    let longest = err.lines().map(str::len).max().unwrap_or_default();
    let wrong = match code {
        _ if err.contains("panicked") => Some("it panics".to_owned()),
        Some(0 | 2 | 3 | 4) => match () {
            () if number.is_some() => Some(format!("it prints {}", number.unwrap_or_default())),
            () if control(&out) || control(&err) => Some("it prints control characters".to_owned()),
            () if longest > 20_000 => Some("its message is endless".to_owned()),
            () if code == Some(2) && !err.contains(&kind.file) && !renamed => {
                Some("it refuses without the file's name".to_owned())
            }
            () => None,
        },
        _ => Some(outcome.clone()),
    };
    let wrong = wrong.map(|why| {
        let shown: String = err.chars().take(1_000).collect();
        format!("{why}: {}: autodist {command}\n{outcome}\n{shown}", kind.name)
    });
    End { outcome, wrong }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`: no number")))
}

#[test]
fn no_changed_file_of_any_kind_is_taken_for_what_it_is_not() {
    let first = variable("AUTODIST_MUTATIONS_FROM").unwrap_or(0);
    let end = first + variable("AUTODIST_MUTATIONS").unwrap_or(USUAL);
    let keep = std::env::var_os("AUTODIST_MUTATIONS_KEEP");
    let (counts, failures) = (Mutex::new(BTreeMap::<String, u64>::new()), Mutex::new(Vec::new()));
    let next = AtomicU64::new(first);
    let work = || {
        let folder = common::folder(2);
        let folder = folder.path();
        let kinds = kinds(folder);
        loop {
            let case = next.fetch_add(1, Ordering::Relaxed);
            if case >= end {
                break;
            }
            let kind = &kinds[(case % kinds.len() as u64) as usize];
            let mut random = Random(case);
            let command = &kind.commands[random.below(kind.commands.len())];
            let text = mutated(&kind.seed, &mut random);
            let End { outcome, wrong } = try_one(folder, kind, command, &text);
            *counts.lock().unwrap().entry(format!("{:<16} {outcome}", kind.name)).or_default() += 1;
            *counts.lock().unwrap().entry(format!("{:<16} {outcome}", "all")).or_default() += 1;
            if let Some(why) = wrong {
                if let Some(keep) = &keep {
                    std::fs::create_dir_all(keep).unwrap();
                    std::fs::write(Path::new(keep).join(format!("{case}.{}", kind.file)), &text).unwrap();
                }
                failures.lock().unwrap().push(format!("case {case}: {why}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    for (what, count) in counts.lock().unwrap().iter() {
        println!("{what}: {count}");
    }
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), end - first, failures.join("\n\n"));
}

/// The unchanged files are valid, so that refusals are caused by the changes. `scripts/fuzz.sh` starts with
/// them, too: they are kept in the folder `AUTODIST_MUTATIONS_SEEDS`, one folder per target.
#[test]
fn every_right_file_is_taken() {
    let folder = common::folder(2);
    let folder = folder.path();
    let seeds = std::env::var_os("AUTODIST_MUTATIONS_SEEDS");
    for kind in kinds(folder) {
        if let Some(seeds) = &seeds {
            let name = kind.name.to_lowercase().replace([' ', '-'], "_");
            // Tables of runs have one reader.
            let target = if name == "later_runs" { "run_table" } else { &name };
            let of_target = Path::new(seeds).join(target);
            std::fs::create_dir_all(&of_target).unwrap();
            write(&of_target, &name, &kind.seed);
        }
        // Not every trainer's file contains the model: alone, some are refused as incomplete.
        let whole = |command: &&String| !command.contains("--from ") || command.contains("--model ");
        for command in kind.commands.iter().filter(whole) {
            let End { outcome, wrong } = try_one(folder, &kind, command, kind.seed.as_bytes());
            assert_eq!(wrong.as_deref().unwrap_or_default(), "", "{}: {command}", kind.name);
            assert!(
                kind.name == "hosts" || matches!(outcome.as_str(), "exit 0" | "exit 3"),
                "{}: {command}: {outcome}",
                kind.name
            );
        }
    }
}
