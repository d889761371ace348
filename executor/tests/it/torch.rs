//! PyTorch trains the same model: for the same plan, seed and data its losses and gradient norms equal those
//! of the native engine.

use crate::common;

use autodist_compute::Cpu;
use autodist_executor::launcher::{LaunchError, LaunchOptions, News, Runner, Torch, is_rank, launch, serve};
use autodist_executor::{Growing, Task, local};
use autodist_program::{engine, stages};
use autodist_spec::profile::Environment;
use autodist_spec::run::StepRecord;
use autodist_spec::{
    Bytes, Codec, DeviceKind, Engine, Job, Optimizer, ParallelStrategy, Recompute, ScheduleKind,
};
use common::{model, strategy};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

const STEPS: u32 = 10;
const TOLERANCE: f64 = 1e-3;
const TIMEOUT: Duration = Duration::from_secs(120);

/// The Python of `.ci/torch`, or that of AUTODIST_PYTHON.
static TORCH: LazyLock<Option<Torch>> = LazyLock::new(|| {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    let python = std::env::var_os("AUTODIST_PYTHON").map_or(installed, PathBuf::from);
    let found = Torch::find(&python);
    if let Err(missing) = &found {
        // Written directly to stderr, because the harness hides the output of passing tests.
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: nothing is trained with PyTorch. {}: {missing}\nTo let it, run .ci/torch, which installs it.\n",
            python.display()
        );
    }
    found.ok()
});

fn options(torch: &Torch) -> LaunchOptions {
    LaunchOptions {
        runner: Runner::Program {
            // This program, which as a rank runs only the test that serves.
            command: [
                std::env::current_exe().unwrap().into_os_string(),
                "torch::a_rank_must_be_started_by_autodist".into(),
                "--exact".into(),
                "--nocapture".into(),
            ]
            .into(),
            python: torch.python().to_owned(),
        },
        rendezvous: "127.0.0.1:0".parse().unwrap(),
        timeout: TIMEOUT,
        realtime: false,
        devices: DeviceKind::Cpu,
        stop: std::sync::Arc::default(),
        agents: None,
        network: None,
        engine: Engine::Torch,
        warn: |_| {},
    }
}

#[test]
fn a_rank_must_be_started_by_autodist() {
    let started = is_rank();
    let code = serve(|_, _, _| unreachable!("PyTorch answers"));
    if started {
        std::process::exit(code);
    }
    assert_eq!(code, 1);
}

fn task(llama: bool, strategy: ParallelStrategy) -> Task {
    let stages = stages::even(&model(llama), &strategy);
    Task { steps: STEPS, ..common::task(&model(llama), strategy, stages) }
}

/// Trains all tasks in one launch; the steps of each.
fn train(torch: &Torch, tasks: &[Task]) -> Result<Vec<Vec<StepRecord>>, LaunchError> {
    let assignments: Vec<_> = tasks.iter().map(|task| serde_json::json!({ "train": task })).collect();
    let mut growing: Vec<Growing> = tasks.iter().map(Growing::new).collect();
    launch(tasks[0].world(), &assignments, &options(torch), |news| match news {
        News::Progress { assignment, rank, value } => {
            growing[assignment].take(rank, serde_json::from_value(value).unwrap());
        }
        News::Done { assignment, answers } => {
            for (rank, answer) in answers.into_iter().enumerate() {
                growing[assignment].take(rank, serde_json::from_value(answer).unwrap());
            }
        }
    })?;
    let records = growing.iter().map(|growing| growing.record(Environment::default(), None).steps).collect();
    Ok(records)
}

fn check(cases: &[(Task, f64)]) {
    let Some(torch) = &*TORCH else { return };
    let tasks: Vec<Task> = cases.iter().map(|(task, _)| task.clone()).collect();
    let trained = train(torch, &tasks).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(trained.len(), cases.len());
    let mut worst = Vec::new();
    for ((task, tolerance), steps) in cases.iter().zip(trained) {
        let Task { model, job, strategy, .. } = task;
        assert_eq!(engine::check(Engine::Torch, model, job, strategy), Ok(()));
        let (native, _) = local::train(&Cpu::<f32>::new(), task, TIMEOUT).unwrap();
        let apart = |of: fn(&StepRecord) -> f64| {
            steps.iter().zip(&native.steps).map(|(a, b)| (of(a) / of(b) - 1.0).abs()).fold(0.0, f64::max)
        };
        assert_eq!(steps.len(), STEPS as usize);
        let (loss, norm) = (apart(|step| step.loss), apart(|step| step.gradient_norm));
        worst.push(format!("{} {}: loss {loss:.1e}, norm {norm:.1e}", strategy.label(), model.name));
        assert!(loss <= *tolerance && norm <= 10.0 * tolerance, "{}", worst.join("\n"));
    }
}

fn both(strategies: impl IntoIterator<Item = ParallelStrategy>) -> Vec<(Task, f64)> {
    let of =
        |strategy: ParallelStrategy| [false, true].map(|llama| (task(llama, strategy.clone()), TOLERANCE));
    strategies.into_iter().flat_map(of).collect()
}

fn with(strategy: ParallelStrategy, change: impl FnOnce(&mut ParallelStrategy)) -> ParallelStrategy {
    let mut strategy = strategy;
    change(&mut strategy);
    strategy
}

fn coded(codec: Codec) -> ParallelStrategy {
    with(strategy(2, 1, 1, 2), |s| s.communication.reduce.codec = codec)
}

#[test]
fn two_ranks_train_the_native_engines_model() {
    let pipeline = |schedule, virtual_stages| {
        with(strategy(1, 1, 2, 2), |s| (s.schedule, s.virtual_stages) = (schedule, virtual_stages))
    };
    let mut cases = both([
        strategy(2, 1, 1, 4),
        with(strategy(2, 1, 1, 1), |s| s.bucket_bytes = Bytes(4000)),
        with(strategy(2, 1, 1, 2), |s| s.recompute = Recompute::Full),
        with(strategy(2, 1, 1, 2), |s| s.recompute = Recompute::Selective),
        with(strategy(2, 1, 1, 2), |s| (s.zero_stage, s.shard) = (2, 2)),
        with(strategy(2, 1, 1, 2), |s| (s.zero_stage, s.shard) = (3, 2)),
        strategy(1, 2, 1, 4),
        with(strategy(1, 2, 1, 4), |s| s.sequence_parallel = true),
        with(strategy(1, 2, 1, 4), |s| (s.sequence_parallel, s.recompute) = (true, Recompute::Full)),
        pipeline(ScheduleKind::GPipe, 1),
        pipeline(ScheduleKind::OneFOneB, 1),
        pipeline(ScheduleKind::Interleaved, 2),
    ]);
    // One layer in the first stage, four in the other.
    let mut uneven = task(true, strategy(1, 1, 2, 1));
    uneven.stages = stages::from_ends(&uneven.model, &[0, 1, 5], Recompute::None);
    cases.push((uneven, TOLERANCE));
    let sgd = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.01 };
    let mut other = task(true, strategy(2, 1, 1, 2));
    other.job = Job { optimizer: sgd, gradient_clip: 0.0, ..other.job };
    cases.push((other, TOLERANCE));
    cases.extend([Codec::Fp16, Codec::Bf16].map(|codec| (task(true, coded(codec)), TOLERANCE)));
    // Both approximate from random numbers, which are not the same: hence the larger tolerance.
    cases.push((task(true, coded(Codec::PowerSgd { rank: 4, start_step: 2 })), 3e-2));
    check(&cases);
}

#[test]
fn four_ranks_train_the_native_engines_model() {
    check(&both([
        with(strategy(4, 1, 1, 1), |s| (s.zero_stage, s.shard) = (3, 2)),
        with(strategy(4, 1, 1, 1), |s| (s.zero_stage, s.shard) = (2, 4)),
        with(strategy(2, 2, 1, 2), |s| (s.zero_stage, s.shard, s.sequence_parallel) = (3, 2, true)),
        strategy(2, 2, 1, 2),
        strategy(2, 1, 2, 1),
        with(strategy(2, 1, 2, 1), |s| (s.zero_stage, s.shard) = (2, 2)),
        with(strategy(1, 2, 2, 2), |s| s.sequence_parallel = true),
        with(strategy(1, 1, 4, 1), |s| s.schedule = ScheduleKind::GPipe),
    ]));
}

#[test]
fn a_rank_that_refuses_says_why() {
    let Some(torch) = &*TORCH else { return };
    let refused = task(true, with(strategy(2, 1, 1, 2), |s| (s.zero_stage, s.shard) = (1, 2)));
    let error = train(torch, &[refused]).unwrap_err().to_string();
    assert!(error.contains("strategy.zero_stage = 1") && error.contains("use zero_stage 2"), "{error}");
}

#[test]
fn an_interpreter_without_the_package_is_refused_in_its_own_words() {
    let missing = Torch::find(Path::new("/nonexistent/python")).unwrap_err();
    assert!(missing.contains("cannot be started"), "{missing}");
}
