//! The measurements of a run, and their comparison with the prediction.

use crate::communication::{Codec, Coded};
use crate::error::{InputError, bytes, finite, in_range, not_negative, positive};
use crate::estimate::Estimate;
use crate::job::Precision;
use crate::parse::Check;
use crate::profile::{Environment, Sample};
use crate::strategy::{ParallelStrategy, Stage, check_stages};
use crate::units::{Bytes, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One operation on one stream of one rank. Times are relative to the start of the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
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
    /// The host, which launches the operations of the others. Only predictions have it.
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Forward,
    Backward,
    /// Waiting for a send/recv from another pipeline rank.
    Receive,
    Send,
    /// Gradient reduction on the communication stream.
    Reduce,
    /// Parameter gather on the communication stream.
    Gather,
    Optimizer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    pub step: u32,
    pub time_s: Seconds,
    /// Mean cross-entropy per token over the global batch, natural logarithm.
    pub loss: f64,
    /// Global L2 norm before clipping.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// Time of the reference benchmark, which measures the machine's speed: the faster of its runs just
    /// before and just after the step, on the slowest rank.
    pub reference_s: Seconds,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankRecord {
    pub rank: u32,
    pub peak_memory_bytes: Bytes,
    /// Payload sent in one step, over all groups.
    pub bytes_sent_per_step: Bytes,
}

/// Why a bucket returned to uncompressed gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// In many consecutive steps, nearly nothing of the gradients was sent.
    Contraction,
    /// The kept error grew beyond the amount that error feedback can ever send.
    ErrorGrowth,
}

impl FallbackReason {
    /// The text for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Contraction => "its contraction stayed below the floor",
            Self::ErrorGrowth => "its error memory kept growing",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// The last compressed step, after which the kept error was discarded.
    pub step: u32,
    pub reason: FallbackReason,
}

/// Statistics of the compression of one bucket of gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketCompression {
    pub pipeline_rank: u32,
    /// Index of the bucket, in the order in which the rank's gradients become complete.
    pub bucket: u32,
    pub codec: Codec,
    /// `1 - |x - C(x)|² / |x|²` of a step, where C(x) is x after encoding and decoding: 1 if nothing is lost
    /// (delta of 1901.09847). Median over the steps, then over the members.
    pub contraction_median: f64,
    /// The lowest value over all steps and members. Random rounding may lose more than the whole norm, which
    /// makes it negative.
    pub contraction_lowest: f64,
    /// L2 norm of the kept error after the last step, divided by that half-way through the run; the largest
    /// of all members. About 1 if the error is stable, 0 if the codec keeps no error.
    pub error_growth: f64,
    /// Absent if the codec was used to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// The early end of a training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Number of completed steps, which is also the index of the next step.
    pub step: u32,
    // Written as one line: a rank's last message may have several.
    #[serde(serialize_with = "crate::text::serialize_joined")]
    #[schemars(with = "String")]
    pub reason: String,
}

/// Rounds of a record, if the plan was trained in several rounds (`validate`). A command that continues the
/// record compares them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rounds {
    /// Number of rounds whose steps are in the record.
    pub done: u32,
    /// Total number of rounds.
    pub of: u32,
    /// Number of measured steps of each round.
    pub steps: u32,
    /// Fingerprint of model, job, profile and data.
    pub fingerprint: String,
}

/// One real training run of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    pub schema_version: u32,
    pub label: String,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    #[serde(default)]
    pub precision: Precision,
    pub environment: Environment,
    /// Steps in the order in which they were trained. `validate` trains a plan in several rounds, each from
    /// the same initial state: step numbers then restart, and the warm-up of later rounds is left out.
    /// Trainings of more than 131072 steps have only every second step, or every fourth, and so on, and the
    /// last.
    pub steps: Vec<StepRecord>,
    /// Steps before this one are warm-up and not in the statistics.
    pub warmup_steps: u32,
    /// Time of the steps after the warm-up, from barrier to barrier, on the slowest rank.
    pub step_time: Sample,
    pub ranks: Vec<RankRecord>,
    /// Buckets with lossy compression of gradients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compression: Vec<BucketCompression>,
    /// Operations of a typical step: among some evenly spaced steps, the one whose time is nearest to their
    /// median. Empty if a rank has more than 65536 operations, or if the training ended early.
    pub timeline: Vec<TimelineEvent>,
    /// Absent if the plan was trained once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<Rounds>,
    /// Absent if all steps were completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

impl RunRecord {
    pub fn peak_memory(&self) -> Bytes {
        self.ranks.iter().map(|r| r.peak_memory_bytes).max().unwrap_or_default()
    }

    /// The steps of each round: a round begins where step numbers restart.
    pub fn rounds(&self) -> impl Iterator<Item = &[StepRecord]> {
        self.steps.chunk_by(|one, next| one.step < next.step)
    }
}

impl Check for RunRecord {
    const WHAT: &'static str = "run";

    fn check(&self) -> Result<(), InputError> {
        self.strategy.check().map_err(|e| e.under("strategy"))?;
        check_stages(&self.stages)?;
        self.step_time.check("step_time")?;
        for (index, step) in self.steps.iter().enumerate() {
            let at = |field: &str| format!("steps[{index}].{field}");
            not_negative(&at("time_s"), step.time_s.0)?;
            not_negative(&at("reference_s"), step.reference_s.0)?;
            finite(&at("loss"), step.loss)?;
            not_negative(&at("gradient_norm"), step.gradient_norm)?;
            not_negative(&at("learning_rate"), step.learning_rate)?;
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            let at = |field: &str| format!("ranks[{index}].{field}");
            in_range(&at("rank"), u64::from(rank.rank), 0, 1 << 20)?;
            bytes(&at("peak_memory_bytes"), rank.peak_memory_bytes)?;
            bytes(&at("bytes_sent_per_step"), rank.bytes_sent_per_step)?;
        }
        for (index, bucket) in self.compression.iter().enumerate() {
            let at = |field: &str| format!("compression[{index}].{field}");
            finite(&at("contraction_median"), bucket.contraction_median)?;
            finite(&at("contraction_lowest"), bucket.contraction_lowest)?;
            not_negative(&at("error_growth"), bucket.error_growth)?;
        }
        for (index, event) in self.timeline.iter().enumerate() {
            let at = |field: &str| format!("timeline[{index}].{field}");
            in_range(&at("rank"), u64::from(event.rank), 0, self.strategy.devices().saturating_sub(1))?;
            not_negative(&at("start_s"), event.start_s.0)?;
            not_negative(&at("end_s"), event.end_s.0)?;
            if event.end_s < event.start_s {
                return Err(InputError::new(
                    at("end_s"),
                    event.end_s.0,
                    format!("must not be before its start, {} s", event.start_s.0),
                )
                .hint("create the run record again with `autodist train` or `autodist validate`"));
            }
        }
        Ok(())
    }
}

/// The result of comparing a prediction with a measurement. Both are intervals: the prediction extends by
/// `bar_s` to either side, and the measurement has a 95 % interval. For their computation see
/// `src/verdict.rs` and docs/validation.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole measured interval lies within that of the prediction.
    Holds,
    /// The measured interval crosses an end of that of the prediction: the difference cannot be distinguished
    /// from noise.
    WithinNoise,
    /// The whole measured interval lies outside that of the prediction.
    Refuted,
}

impl Verdict {
    /// The text for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::WithinNoise => "within noise",
            Self::Refuted => "REFUTED",
        }
    }
}

/// Measurement and prediction of one plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidatedRun {
    pub label: String,
    pub strategy: ParallelStrategy,
    pub measured: Measured,
    pub predicted: Estimate,
    /// Verdict on the prediction, corrected to the speed of the machine during the profile; absent in files
    /// of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Tolerance of the prediction, in seconds to either side: its own interval, and the cost model's known
    /// error on such machines; at most half of the prediction. 0 in files of earlier releases.
    #[serde(default)]
    pub bar_s: Seconds,
    /// `predicted / measured - 1` of the step time, without correction for the speed of the machine.
    pub step_time_error: f64,
    /// Error of the step time, corrected to the speed of the machine during the profile: `predicted /
    /// measured.adjusted_step_time_s - 1`.
    pub adjusted_error: f64,
    /// `predicted / measured - 1` of the peak memory.
    pub peak_memory_error: f64,
    /// How much slower this plan ran than the fastest measured plan, with all plans corrected to one speed of
    /// the machine: `adjusted / best adjusted - 1`.
    pub regret: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Median over the measured steps.
    pub step_time_s: Seconds,
    /// Half-width of the median's 95 % interval.
    pub step_time_spread_s: Seconds,
    /// Speed of the machine during the run relative to its speed during the profile, by the reference
    /// benchmark that is measured with every step; 1 if it is unknown. On a shared machine it changes within
    /// seconds.
    pub machine_speed: f64,
    /// Median of step time multiplied by machine speed, over the measured steps.
    pub adjusted_step_time_s: Seconds,
    /// Half-width of that median's 95 % interval.
    pub adjusted_step_time_spread_s: Seconds,
    pub peak_memory_bytes: Bytes,
    /// Loss of the last step of the first round, including its warm-up, in nats per token.
    pub final_loss: f64,
    pub steps: u32,
}

/// The result of `autodist validate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    pub schema_version: u32,
    /// Runs in the planner's order: the first is its choice, if that ran.
    pub runs: Vec<ValidatedRun>,
    /// Verdict on the planner's choice: `refuted` also if another plan is faster by more than both runs'
    /// noise (`beaten_by`), `within_noise` also if one is faster by less. Absent if the choice did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Label of the fastest plan, if it is faster than the planner's choice by more than both runs' noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beaten_by: Option<String>,
    /// Median |step_time_error|, without correction for the speed of the machine.
    pub median_error: f64,
    /// Median |adjusted_error|, corrected to the speed of the machine during the profile.
    pub median_adjusted_error: f64,
    /// Regret of the planner's choice, with all plans corrected to one speed of the machine; absent if the
    /// choice did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regret: Option<f64>,
    /// How well the predictions order the plans; absent with fewer than two runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Runs with compressed gradients whose plan also ran without compression.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gains: Vec<CodecGain>,
    /// Cost of codecs in steps (`--probe`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<CodecProbe>,
    /// Plans that were predicted but could not be run, or not in all rounds (they are among the runs, too),
    /// with the reason.
    #[serde(default)]
    pub failed: Vec<FailedRun>,
    /// Why the validation ended before all plans were trained in all rounds; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// Agreement of predictions with measurements over many plans, with all plans corrected to one speed of the
/// machine. Plans whose measured times differ by less than 2 % are ties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// 95th percentile of |adjusted_error|.
    pub p95_error: f64,
    /// Time of the slowest measured plan divided by that of the fastest, minus 1.
    pub spread: f64,
    /// Kendall's rank correlation of predicted and measured times over all pairs that are not ties.
    pub kendall_tau: f64,
    /// Mean regret of a random plan.
    pub random_regret: f64,
    /// Regret of plain data parallelism; absent if it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_parallel_regret: Option<f64>,
    /// Mean regret of the plans that are the fastest under a constant rate of FLOPs, which counts work,
    /// recomputation and the pipeline's bubble, but no communication.
    pub constant_flops_regret: f64,
}

/// Cost of a codec in steps, from trainings with it and without it, on the same data from the same
/// parameters. Losses are means over ten steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodecProbe {
    pub codec: Codec,
    #[serde(default)]
    pub coded: Coded,
    /// Number of steps of the exact training.
    pub steps: u32,
    /// Final loss of the exact training.
    pub exact_loss: f64,
    /// Loss with the codec after the same number of steps.
    pub loss: f64,
    /// Steps to `exact_loss` divided by `steps`. If the loss was not reached, all steps with the codec
    /// divided by `steps`, which is a lower bound.
    pub slowdown: f64,
    pub reached: bool,
    /// Relative difference in steps between two exact trainings that differ in their seed: smaller differences
    /// between `slowdown` and 1 are noise. Absent in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
}

impl CodecProbe {
    /// Factor on the number of steps, at least 1: a codec does not save steps, so less is noise.
    pub fn factor(&self) -> f64 {
        self.slowdown.max(1.0)
    }
}

/// Gain of a codec, predicted and measured: step time without compression divided by step time with the
/// codec, minus 1, at one speed of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodecGain {
    pub label: String,
    pub codec: Codec,
    pub predicted: f64,
    pub measured: f64,
    /// Measured gains up to this are within noise: the spread of both runs, at least 2 %.
    pub noise: f64,
    /// Whether both have the same sign, or the measured gain is within noise.
    pub agrees: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FailedRun {
    pub label: String,
    // Written as one line: a rank's last message may have several.
    #[serde(serialize_with = "crate::text::serialize_joined")]
    #[schemars(with = "String")]
    pub reason: String,
}

impl Validation {
    /// Whether nothing was measured and nothing failed, because the validation ended before.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.failed.is_empty() && self.probes.is_empty()
    }

    /// The run of the planner's choice; `None` where it did not run.
    pub fn choice(&self) -> Option<&ValidatedRun> {
        self.regret.and_then(|_| self.runs.first())
    }

    /// Why the planner's choice did not run; `None` where it did.
    pub fn choice_failed(&self) -> Option<&FailedRun> {
        if self.regret.is_some() { None } else { self.failed.first() }
    }
}

impl Check for Validation {
    const WHAT: &'static str = "validation";

    fn check(&self) -> Result<(), InputError> {
        for (index, run) in self.runs.iter().enumerate() {
            run.check().map_err(|e| e.under(&format!("runs[{index}]")))?;
        }
        for (index, probe) in self.probes.iter().enumerate() {
            positive(&format!("probes[{index}].slowdown"), probe.slowdown)?;
            finite(&format!("probes[{index}].loss"), probe.loss)?;
            finite(&format!("probes[{index}].exact_loss"), probe.exact_loss)?;
        }
        not_negative("median_error", self.median_error)?;
        not_negative("median_adjusted_error", self.median_adjusted_error)?;
        self.regret.map_or(Ok(()), |regret| not_negative("regret", regret))
    }
}

impl ValidatedRun {
    fn check(&self) -> Result<(), InputError> {
        self.strategy.check().map_err(|e| e.under("strategy"))?;
        positive("measured.step_time_s", self.measured.step_time_s.0)?;
        not_negative("measured.step_time_spread_s", self.measured.step_time_spread_s.0)?;
        positive("measured.machine_speed", self.measured.machine_speed)?;
        positive("measured.adjusted_step_time_s", self.measured.adjusted_step_time_s.0)?;
        not_negative("measured.adjusted_step_time_spread_s", self.measured.adjusted_step_time_spread_s.0)?;
        bytes("measured.peak_memory_bytes", self.measured.peak_memory_bytes)?;
        finite("measured.final_loss", self.measured.final_loss)?;
        self.predicted.check().map_err(|e| e.under("predicted"))?;
        not_negative("bar_s", self.bar_s.0)?;
        finite("step_time_error", self.step_time_error)?;
        finite("adjusted_error", self.adjusted_error)?;
        finite("peak_memory_error", self.peak_memory_error)?;
        not_negative("regret", self.regret)
    }
}
