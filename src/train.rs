//! Trains tasks on processes of this very program, and compares plans with what they really took.

use crate::cli::RunArgs;
use crate::failure::Failure;
use crate::progress::Progress;
use autodist_executor::launcher::{LaunchError, LaunchOptions, launch};
use autodist_executor::{DataSource, Task, merge};
use autodist_profiler::Assignment;
use autodist_spec::plan::label;
use autodist_spec::profile::Sample;
use autodist_spec::run::{FailedRun, Measured, ValidatedRun};
use autodist_spec::{Alternative, InputError, Job, ModelSpec, Plan, RunRecord, SCHEMA_VERSION, Validation};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const WARMUP_STEPS: u32 = 3;

/// Set by Ctrl-C and termination signals.
pub fn stop_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let set = flag.clone();
        // Without a handler Ctrl-C still ends this process, and the kernel ends its ranks with it.
        let _ = ctrlc::set_handler(move || set.store(true, Ordering::Relaxed));
        flag
    });
    flag.clone()
}

pub fn options(run: &RunArgs) -> Result<LaunchOptions, Failure> {
    if !(run.timeout.is_finite() && run.timeout > 0.0 && run.timeout < 1e6) {
        let error = InputError::new("--timeout", run.timeout, "must be a number of seconds above zero");
        return Err(error.hint("60 suits most jobs").into());
    }
    let program = std::env::current_exe().map_err(|e| Failure::Run(format!("cannot find this program's file: {e}")))?;
    Ok(LaunchOptions {
        command: vec![program.into()],
        rendezvous: run.rendezvous,
        timeout: Duration::from_secs_f64(run.timeout),
        realtime: !run.no_realtime,
        stop: stop_flag(),
    })
}

/// The data that the flag names.
pub fn data(path: Option<&PathBuf>, model: &ModelSpec, job: &Job) -> Result<DataSource, Failure> {
    let source = path.map_or(DataSource::Synthetic, |path| DataSource::Text(path.clone()));
    match autodist_executor::Data::open(&source, model.vocab, job.seq_len as usize, job.seed) {
        Ok(_) => Ok(source),
        Err(error) => {
            let value = path.map_or_else(|| "the synthetic language".to_owned(), |p| p.display().to_string());
            Err(InputError::new("--data", value, error.to_string()).hint("give a text file of at least a few sequences").into())
        }
    }
}

/// Trains one task.
pub fn run(task: &Task, options: &LaunchOptions) -> Result<RunRecord, LaunchError> {
    let broken = |detail: String| LaunchError::Answer { rank: 0, detail };
    let assignment = serde_json::to_value(Assignment::Train(Box::new(task.clone()))).map_err(|e| broken(e.to_string()))?;
    let mut result = Err(broken("no answer".to_owned()));
    launch(task.world(), &[assignment], options, |_, answers| {
        result = autodist_profiler::outcomes(answers).map_err(|e| broken(e.to_string()));
    })?;
    let outcomes = result?;
    let mut environment = autodist_profiler::environment(outcomes.iter().all(|o| o.realtime));
    if options.realtime && !environment.realtime {
        environment.warnings.push("ranks had no real-time priority: other load on this machine is in the figures".to_owned());
    }
    Ok(merge(task, &outcomes, environment))
}

/// The plans of a document: its choice first, then the runners-up.
pub fn candidates(plan: &Plan) -> Vec<Alternative> {
    let best = Alternative {
        strategy: plan.strategy.clone(),
        stages: plan.stages.clone(),
        estimate: plan.estimate.clone(),
        reason: "best".to_owned(),
    };
    std::iter::once(best).chain(plan.alternatives.iter().cloned()).collect()
}

/// Trains every candidate in two rounds, the second in reverse order so that a drift of the machine hits all alike,
/// and compares.
pub fn validate(
    plan: &Plan,
    candidates: &[Alternative],
    data: &DataSource,
    steps: u32,
    options: &LaunchOptions,
) -> Result<(Validation, Vec<RunRecord>), Failure> {
    if steps < 2 {
        return Err(InputError::new("--steps", steps, "must be at least 2").hint("20 gives a usable median").into());
    }
    let mut progress = Progress::new("validate");
    let mut records: Vec<Result<RunRecord, String>> = Vec::new();
    let task = |candidate: &Alternative, measured: u32| Task {
        strategy: candidate.strategy.clone(),
        stages: candidate.stages.clone(),
        ..Task::of_plan(plan, data.clone(), WARMUP_STEPS + measured, WARMUP_STEPS)
    };
    let total = 2 * candidates.len();
    for (index, candidate) in candidates.iter().enumerate() {
        progress.at(index, total, &candidate.strategy.label());
        records.push(one(run(&task(candidate, steps.div_ceil(2)), options))?);
    }
    for (index, candidate) in candidates.iter().enumerate().rev() {
        progress.at(total - 1 - index, total, &candidate.strategy.label());
        if let Ok(record) = &mut records[index] {
            match one(run(&task(candidate, steps / 2), options))? {
                Ok(second) => add_round(record, &second),
                Err(reason) => records[index] = Err(reason),
            }
        }
    }
    drop(progress);
    Ok(compare(candidates, records))
}

/// A run that fails says why and the others go on; an interruption ends all.
fn one(result: Result<RunRecord, LaunchError>) -> Result<Result<RunRecord, String>, Failure> {
    match result {
        Ok(record) => Ok(Ok(record)),
        Err(LaunchError::Interrupted) => Err(Failure::Interrupted),
        Err(error @ (LaunchError::Rendezvous(_) | LaunchError::Spawn { .. })) => Err(error.into()),
        Err(error) => Ok(Err(error.to_string())),
    }
}

fn measured_seconds(record: &RunRecord) -> impl Iterator<Item = f64> {
    record.steps.iter().skip(record.warmup_steps as usize).map(|s| s.time_s.0)
}

fn add_round(record: &mut RunRecord, second: &RunRecord) {
    let all: Vec<f64> = measured_seconds(record).chain(measured_seconds(second)).collect();
    record.step_time = Sample::of(&all);
    for (rank, again) in record.ranks.iter_mut().zip(&second.ranks) {
        rank.peak_memory_bytes = rank.peak_memory_bytes.max(again.peak_memory_bytes);
    }
}

fn compare(candidates: &[Alternative], records: Vec<Result<RunRecord, String>>) -> (Validation, Vec<RunRecord>) {
    let best = records.iter().flatten().map(|r| r.step_time.median_s.0).fold(f64::INFINITY, f64::min);
    let (mut runs, mut kept, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (candidate, record) in candidates.iter().zip(records) {
        let label = label(&candidate.strategy, &candidate.stages);
        match record {
            Err(reason) => failed.push(FailedRun { label, reason }),
            Ok(record) => {
                let time = record.step_time;
                let peak = record.peak_memory();
                let predicted = &candidate.estimate;
                runs.push(ValidatedRun {
                    label,
                    strategy: candidate.strategy.clone(),
                    measured: Measured {
                        step_time_s: time.median_s,
                        step_time_spread_s: (time.high_s - time.low_s) / 2.0,
                        peak_memory_bytes: peak,
                        final_loss: record.steps.last().map_or(f64::NAN, |s| s.loss),
                        steps: time.count,
                    },
                    predicted: predicted.clone(),
                    step_time_error: predicted.step_time_s / time.median_s - 1.0,
                    peak_memory_error: predicted.peak_memory_bytes.as_f64() / peak.as_f64().max(1.0) - 1.0,
                    regret: time.median_s.0 / best - 1.0,
                });
                kept.push(record);
            }
        }
    }
    let errors: Vec<f64> = runs.iter().map(|r| r.step_time_error.abs()).collect();
    let validation = Validation {
        schema_version: SCHEMA_VERSION,
        median_error: Sample::of(&errors).median_s.0,
        regret: runs.first().map_or(0.0, |r| r.regret),
        runs,
        failed,
    };
    (validation, kept)
}
