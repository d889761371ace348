//! Shared code of the binary's tests: running the binary, and valid inputs.

pub mod cluster;
pub mod processes;
pub mod shown;

use autodist_cost_model::synthetic::SyntheticMachine;
use autodist_planner::{Planner, SearchLimits};
use autodist_spec::profile::Environment;
use autodist_spec::run::{Measured, RankRecord, StepRecord, ValidatedRun};
use autodist_spec::{
    Activation, Bytes, Job, ModelSpec, Norm, OperationKind, Plan, Positions, Precision, Profile, RunRecord,
    SCHEMA_VERSION, Sample, Seconds, Stream, TimelineEvent, Validation, Verdict, to_json,
};
use std::path::Path;
use std::process::{Command, Stdio};

pub const AUTODIST: &str = env!("CARGO_BIN_EXE_autodist");

/// The trainers with export, and the file of each that is read back.
pub const TRAINERS: [(&str, &str); 9] = [
    ("megatron", "megatron.sh"),
    ("megatron-bridge", "megatron-bridge.yaml"),
    ("torchtitan", "torchtitan.sh"),
    ("deepspeed", "ds_config.json"),
    ("accelerate", "accelerate.yaml"),
    ("transformers", "training_args.json"),
    ("nanotron", "nanotron.yaml"),
    ("galvatron", "galvatron.json"),
    ("maxtext", "maxtext.yml"),
];

/// The output of a run of the program.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// The output of a successful run.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }

    /// The output of a validation: on a shared machine, measurements may refute the predictions, which is
    /// exit code 5.
    #[track_caller]
    pub fn measured(self) -> serde_json::Value {
        assert!([Some(0), Some(5)].contains(&self.code), "{:?}: {}", self.code, self.err);
        serde_json::from_str(&self.out).unwrap()
    }

    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

/// `autodist` with the signal handlers of a terminal, independent of those of the tests.
pub fn command<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: &[S]) -> Command {
    let mut command = Command::new(AUTODIST);
    heed(&mut command, libc::SIG_DFL, &[libc::SIGHUP, libc::SIGINT, libc::SIGTERM]);
    // The width of the terminal that runs the tests.
    command.env_remove("COLUMNS");
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Sets the handling of those signals for the command.
pub fn heed(command: &mut Command, way: libc::sighandler_t, signals: &'static [i32]) {
    use std::os::unix::process::CommandExt;
    // SAFETY: signal may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for signal in signals {
                libc::signal(*signal, way);
            }
            Ok(())
        });
    }
}

pub fn autodist<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: &[S]) -> Finished {
    let output = command(folder, args).output().unwrap();
    Finished {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `autodist` with arguments without spaces.
pub fn line(folder: &Path, args: &str) -> Finished {
    autodist(folder, &args.split_whitespace().collect::<Vec<_>>())
}

/// A model so small that a step takes a millisecond.
pub fn small_model() -> ModelSpec {
    ModelSpec {
        name: "small".to_owned(),
        layers: 2,
        hidden: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 64,
        vocab: 64,
        max_seq_len: 16,
        positions: Positions::Rotary { theta: 10_000.0 },
        norm: Norm::RmsNorm,
        norm_epsilon: 1e-5,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: false,
        window: None,
        latent: None,
        experts: None,
        blocks: Vec::new(),
        additions: Vec::new(),
    }
}

pub fn small_job() -> Job {
    Job::new(8, 16)
}

pub fn profile(devices: u32) -> Profile {
    SyntheticMachine::new(devices).profile(&small_model(), &small_job())
}

/// The best plan on two synthetic devices, with two runners-up.
pub fn plan() -> Plan {
    let (model, job, profile) = (small_model(), small_job(), profile(2));
    let planner = Planner::new(&model, &profile.cluster, &job, &profile);
    let mut plan =
        planner.limits(SearchLimits { top: 3, threads: 1, ..SearchLimits::default() }).plan().unwrap();
    plan.name_profile("profile.json");
    plan
}

/// A made-up record of two steps of that plan.
pub fn run_record() -> RunRecord {
    let plan = plan();
    let step = |step| StepRecord {
        step,
        time_s: Seconds(1e-3),
        loss: 4.0,
        gradient_norm: 1.0,
        learning_rate: 1e-3,
        reference_s: Seconds(1e-5),
    };
    let event = TimelineEvent {
        rank: 0,
        stream: Stream::Compute,
        operation: OperationKind::Forward,
        chunk: 0,
        micro_batch: 0,
        start_s: Seconds(0.0),
        end_s: Seconds(1e-3),
    };
    let rank =
        |rank| RankRecord { rank, peak_memory_bytes: Bytes(1 << 20), bytes_sent_per_step: Bytes(1 << 10) };
    RunRecord {
        schema_version: SCHEMA_VERSION,
        label: plan.strategy.label(),
        strategy: plan.strategy,
        stages: plan.stages,
        precision: Precision::Fp32,
        environment: Environment::default(),
        steps: (0..3).map(step).collect(),
        warmup_steps: 1,
        step_time: Sample::of(&[1e-3, 1e-3]),
        ranks: (0..2).map(rank).collect(),
        compression: Vec::new(),
        timeline: vec![event],
        rounds: None,
        ended: None,
    }
}

/// That plan, run and compared.
pub fn validation() -> Validation {
    let plan = plan();
    let run = ValidatedRun {
        label: plan.strategy.label(),
        strategy: plan.strategy,
        measured: Measured {
            step_time_s: Seconds(1e-3),
            step_time_spread_s: Seconds(1e-5),
            machine_speed: 1.0,
            adjusted_step_time_s: Seconds(1e-3),
            adjusted_step_time_spread_s: Seconds(1e-5),
            peak_memory_bytes: Bytes(1 << 20),
            final_loss: 4.0,
            steps: 3,
        },
        predicted: plan.estimate,
        verdict: Some(Verdict::Holds),
        bar_s: Seconds(1e-3),
        step_time_error: 0.1,
        adjusted_error: 0.1,
        peak_memory_error: 0.1,
        regret: 0.0,
    };
    Validation {
        schema_version: SCHEMA_VERSION,
        runs: vec![run],
        median_error: 0.1,
        median_adjusted_error: 0.1,
        verdict: Some(Verdict::Holds),
        beaten_by: None,
        regret: Some(0.0),
        agreement: None,
        gains: Vec::new(),
        probes: Vec::new(),
        failed: Vec::new(),
        ended: None,
    }
}

pub fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(folder.join(name), content).unwrap();
}

/// A folder with the small model, its synthetic profile on `devices` devices, and a job.
pub fn folder(devices: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "model.json", to_json(&small_model()));
    write(folder.path(), "profile.json", to_json(&profile(devices)));
    write(folder.path(), "job.toml", "schema_version = 1\nglobal_batch = 8\nseq_len = 16\n");
    folder
}

/// Changes the value at `pointer` (RFC 6901); `None` removes it. A pointer to a missing value adds it.
#[track_caller]
pub fn edited(
    document: &serde_json::Value,
    pointer: &str,
    value: Option<serde_json::Value>,
) -> serde_json::Value {
    let mut document = document.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap_or_else(|| panic!("no {pointer}"));
    match (parent, value) {
        (serde_json::Value::Object(map), Some(value)) => drop(map.insert(key.to_owned(), value)),
        (serde_json::Value::Object(map), None) => drop(map.remove(key)),
        (serde_json::Value::Array(list), Some(value)) => list[key.parse::<usize>().unwrap()] = value,
        (serde_json::Value::Array(list), None) => drop(list.remove(key.parse().unwrap())),
        _ => panic!("no {pointer}"),
    }
    document
}
