//! However a training or a validation ends, the measurements so far are in a readable file, and printed.

use crate::common;

use common::processes::{children, kill, wait};
use common::{Finished, command, edited, line, write};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const RANKS: &str = "--no-realtime --timeout 20";

/// A folder with a plan of two ranks.
fn folder() -> tempfile::TempDir {
    let folder = common::folder(2);
    line(folder.path(), "estimate --model model.json --job job.toml --dp 2 -o plan.json").ok();
    folder
}

/// A running command.
struct Running(Child);

impl Running {
    fn start(folder: &Path, args: &str) -> Self {
        Self(command(folder, &args.split_whitespace().collect::<Vec<_>>()).spawn().unwrap())
    }

    fn signal(&self, signal: i32) {
        kill(self.0.id() as i32, signal);
    }

    #[track_caller]
    fn end(mut self) -> Finished {
        let (mut out, mut err) = (String::new(), String::new());
        // A full pipe would block its end.
        self.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Finished { code: self.0.wait().unwrap().code(), out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Kill the process even if the test fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(path: impl AsRef<Path>) -> Option<Value> {
    // Files are replaced atomically: an existing file is always a complete document.
    std::fs::read(path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

fn steps(record: &Value) -> usize {
    record["steps"].as_array().unwrap().len()
}

/// The files of a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Makes a folder of results inaccessible during a write: not even root can create a file below a file.
fn take_away(path: &Path) {
    std::fs::rename(path, path.with_extension("gone")).unwrap();
    std::fs::write(path, "").unwrap();
}

const TRAIN: &str = "train plan.json --steps 4294967295 -o out/run.json";

/// An endless training, after its first write.
fn endless(folder: &Path) -> Running {
    let running = Running::start(folder, &format!("{TRAIN} {RANKS}"));
    let file = folder.join("out/run.partial.json");
    wait(LIMIT, || read(&file).is_some_and(|record| steps(&record) > 2));
    running
}

#[test]
fn what_a_stopped_training_measured_is_kept_and_printed() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let folder = folder();
        let running = endless(folder.path());
        let before = steps(&read(folder.path().join("out/run.partial.json")).unwrap());
        running.signal(signal);
        let Finished { code, out, err } = running.end();
        assert_eq!(code, Some(130), "{err}");
        assert!(err.contains("train 1/4294967295") && err.contains("loss 4."), "progress: {err}");
        assert!(err.contains("to out/run.partial.json") && err.contains("interrupted"), "{err}");
        assert!(out.contains("ended      early, after") && out.contains("interrupted"), "{out}");
        let kept = read(folder.path().join("out/run.partial.json")).unwrap();
        assert!(steps(&kept) >= before);
        assert_eq!(kept["ended"]["step"].as_u64().unwrap() as usize, steps(&kept));
        assert!(kept["ended"]["reason"].as_str().unwrap().contains("interrupted"), "{}", kept["ended"]);
        assert!(kept["ranks"][1]["peak_memory_bytes"].as_u64().unwrap() > 0);
        assert_eq!(names(&folder.path().join("out")), ["run.partial.json"]);
        line(folder.path(), "report plan.json out/run.partial.json -o report").ok();
    }
}

#[test]
fn what_a_training_measured_before_a_rank_was_killed_is_kept() {
    let folder = folder();
    let running = endless(folder.path());
    kill(children(running.0.id() as i32)[1], libc::SIGKILL);
    let Finished { code, out, err } = running.end();
    assert_eq!(code, Some(4), "{err}");
    assert!(err.contains("error: rank ") && err.contains("was killed by signal 9"), "{err}");
    assert!(out.contains("killed by signal 9"), "{out}");
    let kept = read(folder.path().join("out/run.partial.json")).unwrap();
    assert!(steps(&kept) > 2 && kept["ended"]["reason"].as_str().unwrap().contains("signal 9"));
}

#[test]
fn what_a_training_measured_before_its_launcher_was_killed_is_kept() {
    let folder = folder();
    let running = endless(folder.path());
    running.signal(libc::SIGKILL);
    running.end();
    let kept = read(folder.path().join("out/run.partial.json")).unwrap();
    assert!(steps(&kept) > 2 && kept["ended"]["reason"].as_str().unwrap().contains("under way"));
    assert!(!names(&folder.path().join("out")).contains(&"run.json".to_owned()));
    line(folder.path(), "report plan.json out/run.partial.json -o report").ok();
}

#[test]
fn one_process_at_a_time_writes_an_output() {
    let folder = folder();
    let first = endless(folder.path());
    let second = line(folder.path(), "train plan.json --steps 2 -o out/run.json");
    assert_eq!(second.code, Some(2), "{}", second.err);
    assert!(second.err.contains("out/run.json") && second.err.contains("another autodist"), "{}", second.err);
    line(folder.path(), "train plan.json --steps 2 -o out/other.json").ok();
    first.signal(libc::SIGKILL);
    first.end();
    // The output is free again, and the measurements of the killed training are kept.
    let third = line(folder.path(), "train plan.json --steps 2 -o out/run.json");
    assert_eq!(third.code, Some(0), "{}", third.err);
    assert!(third.err.contains("run.partial.2.json"), "{}", third.err);
    assert_eq!(names(&folder.path().join("out")), ["other.json", "run.json", "run.partial.2.json"]);
    assert_eq!(steps(&read(folder.path().join("out/run.json")).unwrap()), 2);
}

#[test]
fn no_result_replaces_an_input_of_its_command() {
    let folder = folder();
    let several = "plan --model model.json --job job.toml --profile profile.json --top 3 -o plan.json";
    line(folder.path(), several).ok();
    for (args, input) in [
        ("plan --model model.json --job job.toml --profile profile.json -o profile.json", "profile.json"),
        ("plan --model model.json --job job.toml --profile profile.json -o ./model.json", "model.json"),
        ("estimate plan.json -o plan.json", "plan.json"),
        ("train plan.json --steps 2 -o plan.json", "plan.json"),
        ("profile --model model.json --job job.toml -o job.toml", "job.toml"),
        ("export plan.json --plan 2 --to slurm -o .", "plan.json"),
    ] {
        let before = std::fs::read(folder.path().join(input)).unwrap();
        let run = line(folder.path(), args);
        assert_eq!(run.code, Some(2), "{args}: {}", run.err);
        assert!(run.err.contains(input) && run.err.contains("give another path"), "{args}: {}", run.err);
        assert_eq!(std::fs::read(folder.path().join(input)).unwrap(), before, "{args}");
    }
}

#[test]
fn a_profile_of_something_else_is_kept() {
    let folder = folder();
    let before = std::fs::read(folder.path().join("profile.json")).unwrap();
    let args = "profile --model model.json --job job.toml --ranks 1 --budget 1 -o profile.json --no-realtime";
    let run = line(folder.path(), args);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("kept as profile.2.json"), "{}", run.err);
    assert_eq!(std::fs::read(folder.path().join("profile.2.json")).unwrap(), before);
    // So is a file that is no profile.
    write(folder.path(), "profile.json", "notes");
    let run = line(folder.path(), args);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("kept as profile.3.json"), "{}", run.err);
    assert_eq!(std::fs::read(folder.path().join("profile.3.json")).unwrap(), b"notes");
}

#[test]
fn a_training_that_diverges_says_where_and_keeps_its_finite_steps() {
    let folder = folder();
    let folder = folder.path();
    let mut plan = read(folder.join("plan.json")).unwrap();
    plan["job"]["learning_rate"] =
        serde_json::json!({"peak": 1e30, "warmup_steps": 0, "total_steps": 10, "final_fraction": 1.0});
    plan["job"]["gradient_clip"] = serde_json::json!(0.0);
    write(folder, "hot.json", plan.to_string());
    let Finished { code, out, err } = line(folder, &format!("train hot.json --steps 50 --json {RANKS}"));
    assert_eq!(code, Some(4), "{err}");
    assert!(err.contains("of step ") && err.contains("training diverged; lower the learning rate"), "{err}");
    let kept = read(folder.join("run.partial.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), kept);
    let ended = kept["ended"]["step"].as_u64().unwrap() as usize;
    assert!(ended >= 1 && ended == steps(&kept) && ended < 50, "{}", kept["ended"]);
    assert!(kept["steps"].as_array().unwrap().iter().all(|step| step["loss"].is_f64()));
    assert!(!folder.join("run.json").exists());
    line(folder, "report hot.json run.partial.json -o report").ok();

    let all = "validate hot.json --steps 50 --json";
    let Finished { code, out, err } = line(folder, &format!("{all} {RANKS}"));
    assert_eq!(code, Some(4), "{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert!(found["failed"][0]["reason"].as_str().unwrap().contains("diverged"), "{out}");
    assert_eq!(read(folder.join("runs/validation.json")).unwrap(), found);
}

#[test]
fn a_training_that_is_done_leaves_one_file() {
    let folder = folder();
    // Long enough for the partial record to be written.
    let running =
        Running::start(folder.path(), &format!("train plan.json --steps 300 -o out/run.json {RANKS}"));
    let out = folder.path().join("out");
    wait(LIMIT, || out.join("run.partial.json").exists() || out.join("run.json").exists());
    let Finished { code, err, .. } = running.end();
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(names(&folder.path().join("out")), ["run.json"]);
    let record = read(folder.path().join("out/run.json")).unwrap();
    assert_eq!((steps(&record), &record["ended"]), (300, &Value::Null));
    let of =
        |rank: u64| record["timeline"].as_array().unwrap().iter().filter(move |e| e["rank"] == rank).count();
    assert!(of(0) > 0 && of(0) == of(1), "one step's timeline, of both ranks");
}

#[test]
fn what_cannot_be_written_is_printed() {
    let folder = folder();
    let folder = folder.path();
    let plan = line(folder, "plan --model model.json --job job.toml --json -o /dev/full");
    assert_eq!(plan.code, Some(4));
    assert!(plan.err.contains("cannot write /dev/full"), "{}", plan.err);
    assert!(serde_json::from_str::<Value>(&plan.out).unwrap()["strategy"].is_object());

    let train = "train plan.json --steps 300 --json -o away/run.json";
    let running = Running::start(folder, &format!("{train} {RANKS}"));
    wait(LIMIT, || folder.join("away/run.partial.json").exists() || folder.join("away/run.json").exists());
    take_away(&folder.join("away"));
    let Finished { code, out, err } = running.end();
    if code == Some(0) {
        // It ended before this test.
        assert_eq!(names(&folder.join("away.gone")), ["run.json"]);
    } else {
        assert_eq!(code, Some(4), "{err}");
        assert!(err.contains("error: cannot write away/run.json"), "{err}");
    }
    assert_eq!(steps(&serde_json::from_str(&out).unwrap()), 300);
}

#[test]
fn a_profile_that_cannot_be_written_is_printed() {
    let folder = folder();
    let folder = folder.path();
    let space = "[allow]\ntensor = [1]\npipeline = [1]\nmicro_batch = [2]\n";
    write(folder, "job.toml", format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\n{space}"));
    let profile =
        "profile --model model.json --job job.toml --ranks 2 --budget 0.1 --json -o away/profile.json";
    let running = Running::start(folder, &format!("{profile} {RANKS}"));
    wait(LIMIT, || folder.join("away/profile.json").exists());
    take_away(&folder.join("away"));
    let Finished { code, out, err } = running.end();
    assert_eq!(code, Some(4), "{err}");
    assert!(
        err.contains("cannot write away/profile.json") && err.contains("profile links and collectives, 0 of"),
        "{err}"
    );
    let printed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(printed["complete"], true);
    assert!(!printed["segments"].as_array().unwrap().is_empty());
}

/// The records of a validation.
fn records(folder: &Path) -> Vec<(PathBuf, Value)> {
    let numbered = |name: &String| name.starts_with(|c: char| c.is_ascii_digit());
    let paths = names(folder).into_iter().filter(numbered).map(|name| folder.join(name));
    paths.filter_map(|path| read(&path).map(|record| (path, record))).collect()
}

fn rounds(folder: &Path) -> Vec<u64> {
    records(folder).iter().map(|(_, record)| record["rounds"]["done"].as_u64().unwrap()).collect()
}

fn plans(folder: &Path) {
    line(folder, "plan --model model.json --job job.toml --top 3 -o plan.json").ok();
}

#[test]
fn an_interrupted_validation_is_kept_and_can_be_resumed() {
    let folder = folder();
    let folder = folder.path();
    plans(folder);
    let runs = folder.join("runs");
    let validate = format!("validate plan.json --top 3 --steps 100 {RANKS}");
    let running = Running::start(folder, &validate);
    wait(LIMIT, || rounds(&runs).len() == 3);
    running.signal(libc::SIGINT);
    let Finished { code, out, err } = running.end();
    assert_eq!(code, Some(130), "{err}");
    assert!(out.contains("ended      early: interrupted") && out.contains("profile speed"), "{out}");
    assert!(err.contains("--resume continues from there"), "{err}");
    let done = rounds(&runs);
    assert!(done.iter().sum::<u64>() < 15, "{done:?}");
    let kept = read(runs.join("validation.json")).unwrap();
    assert_eq!(kept["runs"].as_array().unwrap().len(), 3);
    assert!(kept["ended"].as_str().unwrap().contains("3 of 3 plans"), "{}", kept["ended"]);
    line(folder, "report plan.json runs/validation.json -o report").ok();

    // Mismatches are refused, by name, and nothing is changed.
    let other = edited(&read(folder.join("plan.json")).unwrap(), "/job/seed", Some(7.into()));
    write(folder, "other.json", other.to_string());
    for (args, field) in [
        (validate.replace("100", "50"), "`rounds.steps`"),
        (validate.replace("plan.json", "other.json"), "`rounds.fingerprint`"),
    ] {
        let refused = line(folder, &format!("{args} --resume"));
        assert_eq!(refused.code, Some(2), "{}", refused.err);
        assert!(refused.err.contains(field) && refused.err.contains("000-"), "{}", refused.err);
    }
    assert_eq!(rounds(&runs), done);

    let resumed = line(folder, &format!("{validate} --resume --json"));
    assert!(
        resumed.err.contains(&format!("holds {} of 15 trainings", done.iter().sum::<u64>())),
        "{}",
        resumed.err
    );
    let found = resumed.measured();
    assert_eq!((&found["ended"], found["runs"].as_array().unwrap().len()), (&Value::Null, 3));
    assert_eq!(rounds(&runs), [5, 5, 5]);
    for (_, record) in records(&runs) {
        assert_eq!(steps(&record), 102);
    }
    // Everything is done, in any order of plans: a validation writes them in measured order.
    let mut plan = read(folder.join("plan.json")).unwrap();
    for field in ["strategy", "stages", "estimate"] {
        let other = plan["alternatives"][0][field].take();
        plan["alternatives"][0][field] = std::mem::replace(&mut plan[field], other);
    }
    let size = |field: &str| plan["strategy"][field].as_u64().unwrap();
    let of_step = plan["job"]["global_batch"].as_u64().unwrap() / size("data") / size("micro_batch");
    plan["micro_batches"] = of_step.into();
    write(folder, "plan.json", plan.to_string());
    let files = |()| records(&runs).into_iter().map(|(path, _)| path.metadata().unwrap().modified().unwrap());
    let before: Vec<_> = files(()).collect();
    let again = line(folder, &format!("{validate} --resume --json")).measured();
    assert_eq!(again["runs"].as_array().unwrap().len(), 3);
    assert_eq!(files(()).collect::<Vec<_>>(), before);
}

#[test]
fn rounds_before_a_rank_died_are_kept_and_used() {
    let folder = folder();
    let folder = folder.path();
    plans(folder);
    let runs = folder.join("runs");
    let running = Running::start(folder, &format!("validate plan.json --top 2 --steps 250 --json {RANKS}"));
    // Every second round has the reverse order: the first plan is being trained for the second time.
    wait(LIMIT, || rounds(&runs) == [1, 2]);
    let launcher = running.0.id() as i32;
    kill(children(launcher)[1], libc::SIGKILL);
    let Finished { code, out, err } = running.end();
    // The predictions of these plans are made up: the measurement refutes them, which comes first.
    assert!(matches!(code, Some(4 | 5)), "{err}");
    assert!(err.contains("failed in round ") && err.contains("was killed by signal 9"), "{err}");
    assert!(err.contains("are kept; the other plans continue"), "{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["runs"].as_array().unwrap().len(), 2, "{out}");
    assert!(found["failed"][0]["reason"].as_str().unwrap().contains("signal 9"), "{out}");
    assert_eq!(rounds(&runs), [1, 5]);
    let failed: Vec<_> =
        records(&runs).into_iter().filter(|(_, record)| record["ended"].is_object()).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(read(runs.join("validation.json")).unwrap(), found);
}

#[test]
fn a_validation_that_cannot_be_written_is_printed() {
    let folder = folder();
    let folder = folder.path();
    plans(folder);
    let runs = folder.join("runs");
    let running = Running::start(folder, &format!("validate plan.json --top 2 --steps 100 {RANKS}"));
    wait(LIMIT, || !rounds(&runs).is_empty());
    take_away(&runs);
    let Finished { code, out, err } = running.end();
    assert_eq!(code, Some(4), "{err}");
    assert!(
        err.contains("warning: cannot write runs/") && err.contains("error: cannot write runs/"),
        "{err}"
    );
    assert!(out.contains("profile speed") && !out.contains("ended      early"), "{out}");
    assert!(!rounds(&folder.join("runs.gone")).is_empty());
}

#[test]
fn a_validation_whose_program_is_deleted_keeps_what_it_has() {
    let folder = folder();
    let folder = folder.path();
    plans(folder);
    let program = folder.join("autodist");
    if std::fs::hard_link(common::AUTODIST, &program).is_err() {
        std::fs::copy(common::AUTODIST, &program).unwrap();
    }
    let args = format!("validate plan.json --top 2 --steps 100 {RANKS}");
    let mut command = std::process::Command::new(&program);
    command.args(args.split_whitespace()).current_dir(folder);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let running = Running(command.spawn().unwrap());
    let runs = folder.join("runs");
    wait(LIMIT, || rounds(&runs).len() == 1);
    std::fs::remove_file(&program).unwrap();
    let Finished { code, out, err } = running.end();
    // Some systems can start ranks without a file descriptor.
    assert!(matches!(code, Some(0 | 4 | 5)), "{err}");
    assert!(out.contains("profile speed"), "{out}");
    assert!(read(runs.join("validation.json")).is_some() && rounds(&runs).len() == 2);
}
