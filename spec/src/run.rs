//! What an execution measured, and how it stands beside the prediction.

use crate::error::{InputError, not_negative};
use crate::parse::Check;
use crate::plan::{Estimate, ParallelStrategy, Stage};
use crate::profile::{Environment, Sample};
use crate::units::{Bytes, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One operation on one stream of one rank, in a step that begins at 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineEvent {
    /// Pipeline rank in a prediction, world rank in a measurement.
    pub rank: u32,
    pub stream: Stream,
    pub operation: OperationKind,
    /// Model chunk; 0 for operations of the whole rank.
    pub chunk: u32,
    pub micro_batch: u32,
    pub start_s: Seconds,
    pub end_s: Seconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Compute,
    Communication,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Forward,
    Backward,
    /// Waiting for a pipeline message.
    Receive,
    Send,
    /// Gradient reduction on the communication stream.
    Reduce,
    /// Parameter gather on the communication stream.
    Gather,
    Optimizer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    pub step: u32,
    pub time_s: Seconds,
    /// Mean cross-entropy per token over the global batch, natural logarithm.
    pub loss: f64,
    /// Global L2 norm before clipping.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// Time of a fixed piece of arithmetic just before and after the step, slowest rank: the machine's speed.
    pub reference_s: Seconds,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RankRecord {
    pub rank: u32,
    pub peak_memory_bytes: Bytes,
    /// Payload sent in one step, over all groups.
    pub bytes_sent_per_step: Bytes,
}

/// One real training run of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunRecord {
    pub schema_version: u32,
    pub label: String,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub environment: Environment,
    pub steps: Vec<StepRecord>,
    /// Steps before this one are warm-up and in no statistic.
    pub warmup_steps: u32,
    /// Over the steps after the warm-up, barrier to barrier, slowest rank.
    pub step_time: Sample,
    pub ranks: Vec<RankRecord>,
    /// Operations of the step whose time was nearest the median.
    pub timeline: Vec<TimelineEvent>,
}

impl RunRecord {
    pub fn peak_memory(&self) -> Bytes {
        self.ranks.iter().map(|r| r.peak_memory_bytes).max().unwrap_or_default()
    }
}

impl Check for RunRecord {
    const WHAT: &'static str = "run";

    fn check(&self) -> Result<(), InputError> {
        self.strategy.check().map_err(|e| e.under("strategy"))?;
        not_negative("step_time.median_s", self.step_time.median_s.0)?;
        for (index, step) in self.steps.iter().enumerate() {
            not_negative(&format!("steps[{index}].time_s"), step.time_s.0)?;
        }
        Ok(())
    }
}

/// Measured beside predicted, for one plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidatedRun {
    pub label: String,
    pub strategy: ParallelStrategy,
    pub measured: Measured,
    pub predicted: Estimate,
    /// `predicted / measured - 1` of the step time.
    pub step_time_error: f64,
    /// `predicted / measured - 1` of the peak memory.
    pub peak_memory_error: f64,
    /// How much slower this plan ran than the fastest of those that were run: `measured / best measured - 1`.
    pub regret: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// Median over the measured steps.
    pub step_time_s: Seconds,
    /// Half-width of the median's 95 % interval.
    pub step_time_spread_s: Seconds,
    pub peak_memory_bytes: Bytes,
    pub final_loss: f64,
    pub steps: u32,
}

/// What `autodist validate` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Validation {
    pub schema_version: u32,
    /// In the planner's order: the first is its choice.
    pub runs: Vec<ValidatedRun>,
    /// Median |step_time_error|.
    pub median_error: f64,
    /// Of the planner's choice.
    pub regret: f64,
    /// Plans that were predicted but could not be run, with the reason.
    #[serde(default)]
    pub failed: Vec<FailedRun>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailedRun {
    pub label: String,
    pub reason: String,
}

impl Check for Validation {
    const WHAT: &'static str = "validation";

    fn check(&self) -> Result<(), InputError> {
        Ok(())
    }
}
