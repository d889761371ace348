//! Runs all ranks as threads of this process: for tests, and for first experiments without processes. Memory
//! is counted for the process as a whole, not for each rank.

use crate::device::TrainingDevice;
use crate::host::Placement;
use crate::rank::train_and;
use crate::record::{RankOutcome, merge};
use crate::state::{ModelState, StateShard};
use crate::{ExecutionError, Task};
use autodist_communication::local::mesh;
use autodist_spec::RunRecord;
use autodist_spec::profile::Environment;
use std::time::Duration;

/// Trains `task` on threads and returns the record, and the state of the training.
///
/// # Errors
/// The first cause among the ranks' errors.
pub fn train<B: TrainingDevice>(
    device: &B,
    task: &Task,
    timeout: Duration,
) -> Result<(RunRecord, ModelState), ExecutionError> {
    run(device, task, None, timeout)
}

/// As [`train`], from the state of another training of the same model and optimizer, under any strategy.
///
/// # Errors
/// A state that does not fit; the first cause among the ranks' errors.
pub fn resume<B: TrainingDevice>(
    device: &B,
    task: &Task,
    state: &ModelState,
    timeout: Duration,
) -> Result<(RunRecord, ModelState), ExecutionError> {
    state.check(&task.model, &task.job.optimizer)?;
    run(device, &Task { start_step: state.step, ..task.clone() }, Some(state), timeout)
}

fn run<B: TrainingDevice>(
    device: &B,
    task: &Task,
    from: Option<&ModelState>,
    timeout: Duration,
) -> Result<(RunRecord, ModelState), ExecutionError> {
    task.program()?;
    let (endpoints, supervisor) = mesh(task.world(), timeout)?;
    let nowhere = Placement { core: None, realtime: false };
    // With a single queue, ranks of one device would deadlock.
    let queues = (0..task.world()).map(|_| device.queue()).collect::<Result<Vec<_>, _>>()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let run = |(rank, (mut endpoint, device))| {
            scope.spawn(move || {
                // Threads that share cores cannot tell a core's speed, and the benchmark would take longer
                // than the steps of a small model.
                let result =
                    train_and(&device, task, &mut endpoint, "local", nowhere, false, None, from, |store| {
                        store.export()
                    });
                (rank, result)
            })
        };
        let threads: Vec<_> = endpoints.into_iter().zip(queues).enumerate().map(run).collect();
        threads
            .into_iter()
            .enumerate()
            .map(|(rank, thread)| thread.join().map_err(|payload| panicked(rank, &payload)))
            .collect()
    });
    drop(supervisor);
    let mut outcomes: Vec<RankOutcome> = Vec::new();
    let mut shards: Vec<StateShard> = Vec::new();
    let mut failure: Option<ExecutionError> = None;
    for result in results {
        match result {
            Ok((_, Ok((outcome, shard)))) => {
                outcomes.push(outcome);
                shards.push(shard);
            }
            Ok((_, Err(error))) | Err(error) => {
                let better = failure.as_ref().is_none_or(|f| f.is_consequence() && !error.is_consequence());
                failure = if better { Some(error) } else { failure };
            }
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let record = merge(task, &outcomes, Environment::default());
    let trained = task.start_step + task.steps;
    Ok((record, ModelState::of(&task.model, &task.job.optimizer, trained, &shards)))
}

fn panicked(rank: usize, payload: &(dyn std::any::Any + Send)) -> ExecutionError {
    let message = payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default();
    ExecutionError::Panicked { rank, message }
}
