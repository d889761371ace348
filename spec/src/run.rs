//! The measurements of a run, and their comparison with the prediction.

use crate::communication::{Codec, Coded};
use crate::error::{InputError, bytes, finite, in_range, not_negative, positive};
use crate::job::Precision;
use crate::parse::Check;
use crate::plan::{Estimate, ParallelStrategy, Stage, check_stages};
use crate::profile::{Environment, Sample};
use crate::units::{Bytes, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One operation on one stream of one rank, in a step that begins at 0.
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
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    pub step: u32,
    pub time_s: Seconds,
    /// Mean cross-entropy per token over the global batch, natural logarithm.
    pub loss: f64,
    /// Global L2 norm before clipping.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// The faster reading of a fixed piece of arithmetic just before and just after the step, slowest rank: the
    /// machine's speed.
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

/// Why a bucket's gradients went back to travelling as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// Step after step nearly nothing of them arrived.
    Contraction,
    /// What was kept for later grew beyond what error feedback can ever send.
    ErrorGrowth,
}

impl FallbackReason {
    /// As people write it.
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
    /// The last one that was compressed; what was kept then was dropped.
    pub step: u32,
    pub reason: FallbackReason,
}

/// How well one bucket of gradients was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketCompression {
    pub pipeline_rank: u32,
    /// In the order in which the rank's gradients become complete.
    pub bucket: u32,
    pub codec: Codec,
    /// `1 - |x - C(x)|² / |x|²` of a step, where C(x) is what arrives of x: 1 where nothing is lost (delta of
    /// 1901.09847). Median over the steps, then over the members.
    pub contraction_median: f64,
    /// Over all steps and members. Random rounding may lose more than there is, which makes it negative.
    pub contraction_lowest: f64,
    /// L2 norm of what is kept after the last step over that half-way through the run, the largest member's: about 1
    /// once it has settled. 0 where the codec keeps nothing.
    pub error_growth: f64,
    /// Absent where the codec was used to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// That a training ended before its last step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Steps that are done, from the start: the next would have been this one.
    pub step: u32,
    // Written as one line: a rank's last message may have several.
    #[serde(serialize_with = "crate::text::serialize_joined")]
    #[schemars(with = "String")]
    pub reason: String,
}

/// What a record is of, where a plan was trained in several rounds (`validate`): what goes on with it compares this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rounds {
    /// Rounds whose steps are in the record.
    pub done: u32,
    /// Rounds in all.
    pub of: u32,
    /// Measured steps of each round.
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
    /// In the order in which they were trained. `validate` trains a plan in several rounds, each from the same start:
    /// step numbers then begin again, and of later rounds the warm-up is left out. Of a training of more than 131072
    /// steps, every second step, or every fourth, and so on, and the last.
    pub steps: Vec<StepRecord>,
    /// Steps before this one are warm-up and in no statistic.
    pub warmup_steps: u32,
    /// Over the steps after the warm-up, barrier to barrier, slowest rank.
    pub step_time: Sample,
    pub ranks: Vec<RankRecord>,
    /// Buckets whose gradients lost something on the wire.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compression: Vec<BucketCompression>,
    /// Operations of a typical step: of some steps, evenly spaced, the one whose time was nearest their median. Empty
    /// where a rank has more than 65536 of them, and where the training ended early.
    pub timeline: Vec<TimelineEvent>,
    /// Absent where the plan was trained once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<Rounds>,
    /// Absent where all steps were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

impl RunRecord {
    pub fn peak_memory(&self) -> Bytes {
        self.ranks.iter().map(|r| r.peak_memory_bytes).max().unwrap_or_default()
    }

    /// The trainings that the steps are of: one, or a round each where step numbers begin again.
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

/// What a measurement says of a prediction. Both are intervals: the prediction's bar is `bar_s` to either side of it,
/// the measurement's noise its 95 % interval. How they are made: `src/verdict.rs`, docs/validation.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All of the measured interval lies within the bar.
    Holds,
    /// The measured interval crosses the bar's edge: the difference cannot be told from noise.
    WithinNoise,
    /// All of the measured interval lies beyond the bar.
    Refuted,
}

impl Verdict {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::WithinNoise => "within noise",
            Self::Refuted => "REFUTED",
        }
    }
}

/// Measured beside predicted, for one plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidatedRun {
    pub label: String,
    pub strategy: ParallelStrategy,
    pub measured: Measured,
    pub predicted: Estimate,
    /// Verdict on the prediction, at the speed that the machine had when it was profiled; absent in files of earlier
    /// releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What the prediction may be off by, seconds to either side: its own interval, and the cost model's known error on
    /// such machines; at most half of it. 0 in files of earlier releases.
    #[serde(default)]
    pub bar_s: Seconds,
    /// `predicted / measured - 1` of the step time as it was timed.
    pub step_time_error: f64,
    /// Error at the speed that the machine had when it was profiled: `predicted / measured.adjusted_step_time_s - 1`.
    pub adjusted_error: f64,
    /// `predicted / measured - 1` of the peak memory.
    pub peak_memory_error: f64,
    /// How much slower this plan ran than the fastest of those that were run, all at one speed of the machine:
    /// `adjusted / best adjusted - 1`.
    pub regret: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Median over the measured steps.
    pub step_time_s: Seconds,
    /// Half-width of the median's 95 % interval.
    pub step_time_spread_s: Seconds,
    /// Speed of the machine during the run over its speed during the profile, by the reference arithmetic that is
    /// timed beside every step; 1 where it is unknown. On a machine that others share it changes by the second.
    pub machine_speed: f64,
    /// Median over the measured steps of step time times machine speed.
    pub adjusted_step_time_s: Seconds,
    /// Half-width of that median's 95 % interval.
    pub adjusted_step_time_spread_s: Seconds,
    pub peak_memory_bytes: Bytes,
    /// Loss of the last step of the first round, including its warm-up, in nats per token.
    pub final_loss: f64,
    pub steps: u32,
}

/// What `autodist validate` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    pub schema_version: u32,
    /// In the planner's order: the first is its choice, if that ran.
    pub runs: Vec<ValidatedRun>,
    /// Verdict on the planner's choice: `refuted` also if another plan is faster by more than both runs' noise
    /// (`beaten_by`), `within_noise` also if one is faster by less. Absent if the choice did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Label of the fastest plan, where it beats the planner's choice beyond both runs' noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beaten_by: Option<String>,
    /// Median |step_time_error|: as timed.
    pub median_error: f64,
    /// Median |adjusted_error|: at the speed that the machine had when it was profiled.
    pub median_adjusted_error: f64,
    /// Regret of the planner's choice, with all plans at one speed of the machine; absent if the choice did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regret: Option<f64>,
    /// How well the predictions order the plans; absent with fewer than two runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Runs with compressed gradients whose plan ran with gradients as they are, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gains: Vec<CodecGain>,
    /// What codecs cost in steps (`--probe`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<CodecProbe>,
    /// Plans that were predicted but could not be run, or not in all rounds (they are among the runs, too), with the
    /// reason.
    #[serde(default)]
    pub failed: Vec<FailedRun>,
    /// Why the validation ended before all plans were trained in all rounds; absent where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// Predictions against measurements over many plans, all at one speed of the machine. Plans whose measured times differ
/// by less than 2 % are ties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// 95th percentile of |adjusted_error|.
    pub p95_error: f64,
    /// Slowest measured plan over the fastest, less 1.
    pub spread: f64,
    /// Kendall's rank correlation of predicted and measured times over all pairs that are no ties.
    pub kendall_tau: f64,
    /// Mean regret of a plan that is picked blindly.
    pub random_regret: f64,
    /// Regret of plain data parallelism; absent where it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_parallel_regret: Option<f64>,
    /// Mean regret of the plans that a constant rate of FLOPs calls the fastest: work, recomputation and the pipeline's
    /// bubble, no communication.
    pub constant_flops_regret: f64,
}

/// What a codec costs in steps, by training with it and without, on the same data from the same parameters. Losses are
/// means over ten steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodecProbe {
    pub codec: Codec,
    #[serde(default)]
    pub coded: Coded,
    /// Steps of the exact training.
    pub steps: u32,
    /// Final loss of the exact training.
    pub exact_loss: f64,
    /// Loss with the codec after the same number of steps.
    pub loss: f64,
    /// Steps to `exact_loss` over `steps`; if it was not reached, those that were made, so that it is at least this.
    pub slowdown: f64,
    pub reached: bool,
}

/// What a codec brought, predicted and measured: step time with gradients as they are over that with the codec, less 1,
/// at one speed of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodecGain {
    pub label: String,
    pub codec: Codec,
    pub predicted: f64,
    pub measured: f64,
    /// Measured gains up to this are none: both runs' spread, 2 % at least.
    pub noise: f64,
    /// Whether both have the same sign, or the measured gain is none.
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
    /// Whether nothing was measured and nothing failed: it ended before anything began.
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
