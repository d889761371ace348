//! The step time of a log: the median of its steps without warm-up and pauses.

use super::{Sample, Speed, TrainerLog};
use autodist_spec::InputError;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a log does not say of a job, but rates are relative to.
#[derive(Debug, Clone, Copy)]
pub struct LoggedJob {
    /// Sequences per step.
    pub global_batch: u32,
    pub seq_len: u32,
    pub devices: u32,
}

/// Lines that are not in the median, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    pub lines: usize,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    pub seconds: f64,
    /// Half the distance between the quartiles, relative to the median; nothing for fewer than four lines.
    pub spread: Option<f64>,
    /// Lines in the median.
    pub lines: usize,
    pub dropped: Vec<Dropped>,
}

/// Lines at the start that count as warm-up: allocators, compilers and caches fill in the first steps.
const WARM_UP: usize = 3;
/// Logs with fewer lines lose only the first.
const SHORT: usize = 10;
/// Among fewer lines nothing is called unusual.
const FEW: usize = 4;
/// A line slower than the median by this factor has a pause in it.
const PAUSE: f64 = 1.3;
/// A line faster by this factor is not a whole step.
const PARTIAL: f64 = 0.6;

impl TrainerLog {
    /// # Errors
    /// The log is of a job with another batch, or its steps have no typical time.
    pub fn step_time(&self, job: &LoggedJob) -> Result<StepTime, InputError> {
        let mut dropped = Vec::new();
        let mut drop = |lines: usize, why: &str| {
            if lines > 0 {
                dropped.push(Dropped { lines, why: why.to_owned() });
            }
        };
        drop(self.unreadable, "cannot be read");
        let of_job = |sample: &&Sample| sample.global_batch.is_none_or(|batch| batch == job.global_batch);
        let samples: Vec<&Sample> = self.samples.iter().filter(of_job).collect();
        if samples.is_empty() {
            let other = self.samples.iter().find_map(|sample| sample.global_batch).unwrap_or_default();
            let problem =
                format!("is not the batch of the job, which has {} sequences per step", job.global_batch);
            let hint = format!("give `--global-batch {other}`, or the log of this job");
            return Err(InputError::new("global batch size", other, problem).hint(hint));
        }
        drop(self.samples.len() - samples.len(), "with another global batch");
        let mut steps = by_step(&samples, job);
        drop(samples.len() - steps.len(), "of other ranks for the same steps (the slowest rank counts)");
        let warm_up = match steps.len() {
            _ if self.whole => 0,
            0..=2 => 0,
            count if count < SHORT => 1,
            _ => WARM_UP,
        };
        steps.drain(..warm_up);
        drop(warm_up, "at the start (warm-up)");
        if steps.len() >= FEW {
            let whole = steps.len();
            let middle = typical(&steps);
            steps.retain(|seconds| *seconds <= PAUSE * middle);
            drop(
                whole - steps.len(),
                "slower than the median by 30 % (a checkpoint, an evaluation or a stall)",
            );
            let without = steps.len();
            steps.retain(|seconds| *seconds >= PARTIAL * middle);
            drop(without - steps.len(), "faster than the median by 40 % (not whole steps)");
            if steps.len() * 2 < whole {
                let problem =
                    format!("most of the {whole} step times are far from their median: no steady state");
                let hint = "give a log of a longer run, or the step time itself by `--measured`";
                return Err(
                    InputError::new("step times", format!("median {middle:.4} s"), problem).hint(hint)
                );
            }
        }
        let seconds = quantile(&steps, 0.5);
        let spread =
            (steps.len() >= 4).then(|| (quantile(&steps, 0.75) - quantile(&steps, 0.25)) / 2.0 / seconds);
        Ok(StepTime { seconds, spread, lines: steps.len(), dropped })
    }
}

fn seconds(speed: Speed, job: &LoggedJob) -> f64 {
    let sequences = f64::from(job.global_batch);
    let tokens = sequences * f64::from(job.seq_len);
    match speed {
        Speed::Seconds(seconds) => seconds,
        Speed::SequencesPerS(rate) => sequences / rate,
        Speed::TokensPerS(rate) => tokens / rate,
        Speed::TokensPerSPerDevice(rate) => tokens / rate / f64::from(job.devices),
    }
}

/// Seconds of each step in the log's order. Ranks end a step together, so of several lines of one step the slowest
/// counts.
fn by_step(samples: &[&Sample], job: &LoggedJob) -> Vec<f64> {
    let mut at: BTreeMap<u64, usize> = BTreeMap::new();
    let mut steps: Vec<f64> = Vec::new();
    for sample in samples {
        let seconds = seconds(sample.speed, job);
        match sample.step.and_then(|step| at.get(&step)) {
            Some(index) => steps[*index] = steps[*index].max(seconds),
            None => {
                if let Some(step) = sample.step {
                    at.insert(step, steps.len());
                }
                steps.push(seconds);
            }
        }
    }
    steps
}

/// The median as one of the values, so that it is near some.
fn typical(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * at.fract()
}
