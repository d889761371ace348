//! Trains tasks on processes of this very program, and compares plans with what they really took.

use crate::cli::RunArgs;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{agreement, devices, engine, external, gains};
use autodist_executor::launcher::{LaunchError, LaunchOptions, launch};
use autodist_executor::{DataSource, RankOutcome, Task, merge};
use autodist_profiler::Assignment;
use autodist_spec::plan::label;
use autodist_spec::profile::{Environment, Sample};
use autodist_spec::run::{FailedRun, Measured, StepRecord, ValidatedRun};
use autodist_spec::{
    Alternative, Cluster, DeviceKind, Engine, InputError, Job, ModelSpec, Network, Plan, RunRecord,
    SCHEMA_VERSION, Validation,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const WARMUP_STEPS: u32 = 2;

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

/// How ranks of `engine` on `devices` are run, which must be there; standing for the devices and links of `emulated`.
pub fn options(
    run: &RunArgs,
    engine: Engine,
    devices: DeviceKind,
    emulated: Option<&Cluster>,
) -> Result<LaunchOptions, Failure> {
    let timeout = timeout(run)?;
    let torch = match engine {
        Engine::Native => None,
        Engine::Torch => Some(engine::torch(run, emulated.is_some())?),
    };
    // PyTorch finds its GPUs itself.
    if torch.is_none() {
        devices::check(devices)?;
    }
    Ok(LaunchOptions {
        runner: external::runner()?,
        rendezvous: run.rendezvous,
        timeout,
        realtime: !run.no_realtime && devices == DeviceKind::Cpu,
        devices,
        stop: stop_flag(),
        agents: external::agents(),
        network: emulated.and_then(Network::of),
        torch,
    })
}

/// How long a silent rank is waited for.
pub fn timeout(run: &RunArgs) -> Result<Duration, Failure> {
    if !(0.1..=1e6).contains(&run.timeout) {
        let error =
            InputError::new("--timeout", run.timeout, "must be a number of seconds from 0.1 to 1000000");
        return Err(error.hint("60 suits most jobs").into());
    }
    Ok(Duration::from_secs_f64(run.timeout))
}

/// The data that the flag names.
pub fn data(path: Option<&PathBuf>, model: &ModelSpec, job: &Job) -> Result<DataSource, Failure> {
    let source = path.map_or(DataSource::Synthetic, |path| DataSource::Text(path.clone()));
    match autodist_executor::Data::open(&source, model.vocab, job.seq_len as usize, job.seed) {
        Ok(_) => Ok(source),
        Err(error) => {
            let value = path.map_or_else(|| "the synthetic language".to_owned(), |p| p.display().to_string());
            Err(InputError::new("--data", value, error.to_string())
                .hint("give a text file of at least a few sequences")
                .into())
        }
    }
}

/// Trains one task.
pub fn run(task: &Task, options: &LaunchOptions) -> Result<RunRecord, LaunchError> {
    let broken = |detail: String| LaunchError::Answer { rank: 0, detail };
    let assignment =
        serde_json::to_value(Assignment::Train(Box::new(task.clone()))).map_err(|e| broken(e.to_string()))?;
    let mut result = Err(broken("no answer".to_owned()));
    launch(task.world(), &[assignment], options, |_, answers| {
        result = autodist_profiler::outcomes(task, answers).map_err(|e| broken(e.to_string()));
    })?;
    let outcomes = result?;
    Ok(merge(task, &outcomes, environment(&outcomes, options)))
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

/// Rounds over all plans: a machine that others share runs faster and slower for seconds at a time, so every plan is
/// measured many times for a short while, in turn with the others, and not once for long.
const ROUNDS: u32 = 5;
const EMULATED_ROUNDS: u32 = 2;

/// Trains every candidate in rounds, every other one in reverse order, and compares.
pub fn validate(
    plan: &Plan,
    candidates: &[Alternative],
    data: &DataSource,
    steps: u32,
    options: &LaunchOptions,
) -> Result<(Validation, Vec<RunRecord>), Failure> {
    if steps < 2 {
        return Err(InputError::new("--steps", steps, "must be at least 2")
            .hint("20 gives a usable median")
            .into());
    }
    // An emulated device is always equally fast.
    let rounds = if options.network.is_some() { EMULATED_ROUNDS } else { ROUNDS }.min(steps);
    let measured = steps.div_ceil(rounds);
    let mut tasks: Vec<Task> = candidates
        .iter()
        .map(|candidate| {
            // The prediction is of the steps after a codec's warm-up.
            let warmup = WARMUP_STEPS.max(candidate.strategy.communication.warmup_steps());
            Task {
                strategy: candidate.strategy.clone(),
                stages: candidate.stages.clone(),
                ..Task::of_plan(plan, data.clone(), warmup + measured, warmup)
            }
        })
        .collect();
    let mut records: Vec<Result<Option<RunRecord>, String>> = vec![Ok(None); tasks.len()];
    let mut progress = Progress::new("validate");
    for round in 0..rounds as usize {
        let mut order: Vec<usize> = (0..tasks.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        if round == 1 {
            // It is the same in every round.
            tasks.iter_mut().for_each(|task| task.count_memory = false);
        }
        run_round(&tasks, &order, options, &mut records, |done| {
            progress.at(
                round * tasks.len() + done,
                rounds as usize * tasks.len(),
                "training the plans in turn",
            );
        })?;
    }
    drop(progress);
    let records =
        records.into_iter().map(|r| r.and_then(|record| record.ok_or_else(|| "no answer".to_owned())));
    Ok(compare(plan, candidates, records.collect(), measured as usize))
}

/// Runs the tasks of `order` that have not failed, in one launch while all goes well. A plan whose ranks fail is
/// marked, and the others go on with new ranks.
fn run_round(
    tasks: &[Task],
    order: &[usize],
    options: &LaunchOptions,
    records: &mut [Result<Option<RunRecord>, String>],
    mut at: impl FnMut(usize),
) -> Result<(), Failure> {
    let mut left: Vec<usize> = order.iter().copied().filter(|index| records[*index].is_ok()).collect();
    while let Some(first) = left.first() {
        let assignments: Vec<_> = left
            .iter()
            .map(|index| serde_json::json!(Assignment::Train(Box::new(tasks[*index].clone()))))
            .collect();
        let mut answered = 0;
        let result = launch(tasks[*first].world(), &assignments, options, |position, answers| {
            let index = left[position];
            take_round(&tasks[index], answers, options, &mut records[index]);
            answered = position + 1;
            at(order.len() - left.len() + answered);
        });
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.ends_all() => return Err(error.into()),
            Err(error) => {
                // Answers come in order: the plan after the last one that answered is the one that failed.
                if let Some(failed) = left.get(answered) {
                    records[*failed] = Err(error.to_string());
                }
                left.drain(..(answered + 1).min(left.len()));
            }
        }
    }
    Ok(())
}

fn take_round(
    task: &Task,
    answers: Vec<serde_json::Value>,
    options: &LaunchOptions,
    record: &mut Result<Option<RunRecord>, String>,
) {
    let outcomes = match autodist_profiler::outcomes(task, answers) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            *record = Err(error.to_string());
            return;
        }
    };
    let new = merge(task, &outcomes, environment(&outcomes, options));
    match record {
        Ok(Some(known)) => add_round(known, &new),
        other => *other = Ok(Some(new)),
    }
}

/// The circumstances of a run that just ended.
fn environment(outcomes: &[RankOutcome], options: &LaunchOptions) -> Environment {
    let realtime = outcomes.iter().all(|o| o.realtime);
    let mut environment = autodist_profiler::environment(realtime, options.devices);
    environment.emulated = options.network.is_some();
    options.transport().clone_into(&mut environment.transport);
    environment.engine = options.engine();
    // They have all come, or there would be no outcomes.
    environment.machines = external::machines().unwrap_or_default();
    environment.collectives = outcomes.first().map(|o| o.route.clone()).unwrap_or_default();
    if options.realtime && !environment.realtime {
        environment
            .warnings
            .push("ranks had no real-time priority: other load on this machine is in the figures".to_owned());
    }
    environment
}

/// The steps after the warm-up.
fn measured_steps(record: &RunRecord) -> &[StepRecord] {
    &record.steps[(record.warmup_steps as usize).min(record.steps.len())..]
}

fn add_round(record: &mut RunRecord, second: &RunRecord) {
    record.steps.extend_from_slice(measured_steps(second));
    record.step_time = Sample::of(&measured_steps(record).iter().map(|s| s.time_s.0).collect::<Vec<_>>());
    for (rank, again) in record.ranks.iter_mut().zip(&second.ranks) {
        rank.peak_memory_bytes = rank.peak_memory_bytes.max(again.peak_memory_bytes);
    }
    // Every round trains from the start: what the first one says holds for all, but for the worst of each.
    for (bucket, again) in record.compression.iter_mut().zip(&second.compression) {
        bucket.contraction_lowest = bucket.contraction_lowest.min(again.contraction_lowest);
        bucket.error_growth = bucket.error_growth.max(again.error_growth);
        bucket.fallback = bucket.fallback.or(again.fallback);
    }
}

/// Step times at the speed at which the reference arithmetic takes `reference` seconds, and the run's speed over that.
/// The steps of a round, which lie close together in time, share one speed.
fn adjusted(record: &RunRecord, reference: f64, per_round: usize) -> (Sample, f64) {
    let steps = measured_steps(record);
    let of = |steps: &[StepRecord]| {
        Sample::of(&steps.iter().map(|s| s.reference_s.0).collect::<Vec<_>>()).median_s.0
    };
    if reference <= 0.0 || of(steps) <= 0.0 {
        return (record.step_time, 1.0);
    }
    let times = steps.chunks(per_round.max(1)).flat_map(|round| {
        let speed = reference / of(round);
        round.iter().map(move |s| s.time_s.0 * speed)
    });
    (Sample::of(&times.collect::<Vec<_>>()), reference / of(steps))
}

fn compare(
    plan: &Plan,
    candidates: &[Alternative],
    records: Vec<Result<RunRecord, String>>,
    per_round: usize,
) -> (Validation, Vec<RunRecord>) {
    // Between machines steps wait for links, which are no slower when a core is; and a core that has waited is not as
    // fast at once. Such steps are left as they were timed.
    let reference = if plan.cluster.node_count() > 1 { 0.0 } else { plan.profile.reference_s.0 };
    let at_profile_speed = |record: &RunRecord| adjusted(record, reference, per_round);
    let best =
        records.iter().flatten().map(|r| at_profile_speed(r).0.median_s.0).fold(f64::INFINITY, f64::min);
    let (mut runs, mut kept, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (candidate, record) in candidates.iter().zip(records) {
        let label = label(&candidate.strategy, &candidate.stages);
        match record {
            Err(reason) => failed.push(FailedRun { label, reason }),
            Ok(record) => {
                let time = record.step_time;
                let (at_speed, machine_speed) = at_profile_speed(&record);
                let peak = record.peak_memory();
                let predicted = &candidate.estimate;
                runs.push(ValidatedRun {
                    label,
                    strategy: candidate.strategy.clone(),
                    measured: Measured {
                        step_time_s: time.median_s,
                        step_time_spread_s: (time.high_s - time.low_s) / 2.0,
                        machine_speed,
                        adjusted_step_time_s: at_speed.median_s,
                        adjusted_step_time_spread_s: (at_speed.high_s - at_speed.low_s) / 2.0,
                        peak_memory_bytes: peak,
                        final_loss: record.steps.last().map_or(f64::NAN, |s| s.loss),
                        steps: time.count,
                    },
                    predicted: predicted.clone(),
                    step_time_error: predicted.step_time_s / time.median_s - 1.0,
                    adjusted_error: predicted.step_time_s / at_speed.median_s - 1.0,
                    peak_memory_error: predicted.peak_memory_bytes.as_f64() / peak.as_f64().max(1.0) - 1.0,
                    regret: at_speed.median_s.0 / best - 1.0,
                });
                kept.push(record);
            }
        }
    }
    let median = |of: fn(&ValidatedRun) -> f64| {
        Sample::of(&runs.iter().map(|r| of(r).abs()).collect::<Vec<_>>()).median_s.0
    };
    let validation = Validation {
        schema_version: SCHEMA_VERSION,
        median_error: median(|r| r.step_time_error),
        median_adjusted_error: median(|r| r.adjusted_error),
        regret: runs.first().map_or(0.0, |r| r.regret),
        agreement: agreement::of(plan, &runs),
        gains: gains::of(&runs),
        probes: Vec::new(),
        runs,
        failed,
    };
    (validation, kept)
}
