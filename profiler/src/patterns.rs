//! Times whole collectives of all devices, by every algorithm and at a few sizes. What they take beyond what the links
//! between the devices explain is a figure of the pattern, which the cost model takes along.

use autodist_collectives::{candidates, suits};
use autodist_communication::{Communicator, GroupOptions, ReduceOp};
use autodist_executor::launcher::Worker;
use autodist_executor::{ExecutionError, host};
use autodist_spec::profile::Sample;
use autodist_spec::{Algorithm, Bytes, Collective, Pattern, PatternTiming};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Patterns to time over all devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PatternTask {
    pub algorithms: Vec<Algorithm>,
    pub repetitions: usize,
}

/// Seconds of one pattern at one size, as one rank saw them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PatternSeconds {
    pub pattern: Pattern,
    pub bytes: usize,
    pub seconds: Vec<f64>,
}

const REPETITIONS: usize = 4;
/// Runs that are timed at once, one right after the other: ranks leave a barrier one after the other, and one run alone
/// would count their waiting for each other.
const RUNS: usize = 4;
/// Bytes of a tensor: the first is timed by all, the others as long as the ring takes no more than [`LONGEST_S`].
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 512 << 10, 4 << 20];
/// Sizes above are left out on slow links: what a message costs in itself no longer counts there.
const LONGEST_S: f64 = 0.02;

impl PatternTask {
    /// `None` where groups have two members at the most: their messages are those of a link. `nodes` are those of the
    /// devices.
    pub fn of(nodes: &[u32]) -> Option<Self> {
        let nodes: Vec<usize> = nodes.iter().map(|node| *node as usize).collect();
        (nodes.len() > 2)
            .then(|| Self { algorithms: candidates(nodes.len(), &nodes), repetitions: REPETITIONS })
    }
}

/// Everything that is timed in a group of `size`, the ring's all-reduce first.
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
                // The first warms the connections up.
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

/// Seconds of one run, of several that were begun together.
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
            // The greatest of ones stays one, however often.
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
