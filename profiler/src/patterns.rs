//! Measures whole collectives of all devices, with every algorithm and at a few sizes. The cost model uses
//! their time relative to the simulation on the links as a factor of the pattern.

use autodist_collectives::{candidates, suits};
use autodist_communication::{Communicator, GroupOptions, ReduceOp};
use autodist_executor::launcher::Worker;
use autodist_executor::{ExecutionError, host};
use autodist_spec::profile::Sample;
use autodist_spec::{Algorithm, Bytes, Collective, Pattern, PatternTiming};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Patterns to measure over all devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PatternTask {
    pub algorithms: Vec<Algorithm>,
    pub repetitions: usize,
}

/// Seconds of one pattern at one size, measured by one rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PatternSeconds {
    pub pattern: Pattern,
    pub bytes: usize,
    pub seconds: Vec<f64>,
}

const REPETITIONS: usize = 4;
/// Consecutive runs in one measurement: ranks leave a barrier one after the other, and a single run would
/// include their waiting for each other.
const RUNS: usize = 4;
/// Bytes of a tensor: all algorithms are measured at the first, and at the others while the ring takes at
/// most [`LONGEST_S`].
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 512 << 10, 4 << 20];
/// Larger sizes are skipped on slow links: the fixed cost of a send is negligible there.
const LONGEST_S: f64 = 0.02;

impl PatternTask {
    /// `None` if groups have at most two members: their send/recv are those of a link. `nodes` are those of
    /// the devices.
    pub fn of(nodes: &[u32]) -> Option<Self> {
        let nodes: Vec<usize> = nodes.iter().map(|node| *node as usize).collect();
        (nodes.len() > 2)
            .then(|| Self { algorithms: candidates(nodes.len(), &nodes), repetitions: REPETITIONS })
    }
}

/// All patterns of a group of `size`, the ring's all-reduce first.
fn patterns(task: &PatternTask, size: usize) -> Vec<Pattern> {
    let mut patterns: Vec<Pattern> = task.algorithms.iter().map(|a| Pattern::AllReduce(*a)).collect();
    for algorithm in &task.algorithms {
        if suits(*algorithm, Collective::ReduceScatter, size).is_ok() {
            patterns.extend([Pattern::ReduceScatter(*algorithm), Pattern::AllGather(*algorithm)]);
        }
    }
    patterns.push(Pattern::AllToAll);
    patterns
}

pub fn measure(
    task: &PatternTask,
    worker: &mut Worker,
    name: &str,
) -> Result<Vec<PatternSeconds>, ExecutionError> {
    host::enter_communication(worker.placement);
    let everyone: Vec<usize> = (0..worker.endpoint.world()).collect();
    let options = GroupOptions { algorithms: task.algorithms.clone(), all_to_all: true };
    let mut group = worker.endpoint.group_for(&format!("{name}.patterns"), &everyone, &options)?;
    let patterns = patterns(task, everyone.len());
    let mut answer = Vec::new();
    for bytes in SIZES {
        let mut longest = 0.0_f64;
        for pattern in &patterns {
            let mut seconds = Vec::new();
            for repetition in 0..=task.repetitions {
                let taken = once(&mut *group, *pattern, bytes)?;
                // The first repetition warms up the connections.
                if repetition > 0 {
                    seconds.push(taken);
                    longest = longest.max(taken);
                }
            }
            answer.push(PatternSeconds { pattern: *pattern, bytes, seconds });
        }
        // All members must agree on whether there is a next size.
        let mut slowest = [longest as f32];
        group.all_reduce(&mut slowest, ReduceOp::Max)?;
        if f64::from(slowest[0]) > LONGEST_S {
            break;
        }
    }
    Ok(answer)
}

/// Seconds of one run, of several consecutive ones.
fn once(group: &mut dyn Communicator, pattern: Pattern, bytes: usize) -> Result<f64, ExecutionError> {
    let size = group.size();
    let mut values = vec![1.0_f32; bytes / 4];
    let parts = match pattern {
        Pattern::AllToAll => vec![vec![0_u8; bytes / size]; size],
        _ => Vec::new(),
    };
    group.barrier()?;
    let start = Instant::now();
    for _ in 0..RUNS {
        match pattern {
            // The maximum of ones stays one in every run.
            Pattern::AllReduce(algorithm) => group.all_reduce_by(algorithm, &mut values, ReduceOp::Max)?,
            Pattern::ReduceScatter(algorithm) => {
                group.reduce_scatter_by(algorithm, &mut values, ReduceOp::Max)?;
            }
            Pattern::AllGather(algorithm) => group.all_gather_by(algorithm, &mut values)?,
            Pattern::AllToAll => drop(group.all_to_all_bytes(&parts)?),
        }
    }
    Ok(start.elapsed().as_secs_f64() / RUNS as f64)
}

/// A run takes as long as its slowest rank.
pub fn assemble(answers: &[Vec<PatternSeconds>]) -> Vec<PatternTiming> {
    let Some(first) = answers.first() else { return Vec::new() };
    let slowest = |index: usize, run: usize| {
        let of = |answer: &Vec<PatternSeconds>| answer.get(index)?.seconds.get(run).copied();
        answers.iter().filter_map(of).fold(0.0, f64::max)
    };
    first
        .iter()
        .enumerate()
        .map(|(index, PatternSeconds { pattern, bytes, seconds })| {
            let runs: Vec<f64> = (0..seconds.len()).map(|run| slowest(index, run)).collect();
            PatternTiming { pattern: *pattern, bytes: Bytes(*bytes as u64), time: Sample::of(&runs) }
        })
        .collect()
}
