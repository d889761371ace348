//! The predicted cost of a way of training: its step time, its memory, and their parts.

use crate::error::{InputError, bytes, finite, not_negative, positive};
use crate::job::Objective;
use crate::units::{Bytes, Provenance, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Breakdown of the step time on the busiest pipeline rank. The parts sum to the step time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CostBreakdown {
    /// Forward and backward passes of the layers.
    pub compute_s: Seconds,
    /// Recomputation of forward passes.
    pub recompute_s: Seconds,
    /// Tensor- and sequence-parallel collectives, which do not overlap with compute.
    pub tensor_communication_s: Seconds,
    /// Exchange of keys and values between context-parallel ranks, as far as the attention does not hide it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context_communication_s: Seconds,
    /// All-to-alls of tokens to the ranks of their experts and back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expert_communication_s: Seconds,
    /// Exposed gradient reductions and parameter gathers, that is without the part that overlaps with
    /// compute.
    pub data_communication_s: Seconds,
    /// Waiting for send/recv between pipeline ranks beyond the schedule's own bubble, and copying the data.
    pub pipeline_communication_s: Seconds,
    /// Idle time while the pipeline fills and drains.
    pub bubble_s: Seconds,
    /// The device waits for the host, which launches its operations more slowly than the device runs them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub host_s: Seconds,
    /// Slow-down of compute that is overlapped with communication.
    pub interference_s: Seconds,
    /// Gradient norm, clipping and update.
    pub optimizer_s: Seconds,
    /// Data loading, bookkeeping and the step's closing barrier.
    pub overhead_s: Seconds,
}

impl CostBreakdown {
    pub fn parts(&self) -> [(&'static str, Seconds); 12] {
        [
            ("compute", self.compute_s),
            ("recompute", self.recompute_s),
            ("tensor communication", self.tensor_communication_s),
            ("context communication", self.context_communication_s),
            ("expert communication", self.expert_communication_s),
            ("data communication", self.data_communication_s),
            ("pipeline communication", self.pipeline_communication_s),
            ("bubble", self.bubble_s),
            ("host", self.host_s),
            ("contention", self.interference_s),
            ("optimizer", self.optimizer_s),
            ("overhead", self.overhead_s),
        ]
    }

    pub fn total(&self) -> Seconds {
        self.parts().iter().map(|(_, s)| *s).sum()
    }
}

/// Memory of a device at its peak. The parts sum to the peak.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryBreakdown {
    pub weights_bytes: Bytes,
    pub gradients_bytes: Bytes,
    pub optimizer_state_bytes: Bytes,
    /// Activations that are kept for the backward pass.
    pub activations_bytes: Bytes,
    /// Gathered parameters, buffers of send/recv, staging.
    pub communication_buffers_bytes: Bytes,
    /// Buffers that live only during the operation with the peak.
    pub temporary_bytes: Bytes,
    /// The process itself: runtime, connections, data.
    pub reserve_bytes: Bytes,
}

impl MemoryBreakdown {
    pub fn parts(&self) -> [(&'static str, Bytes); 7] {
        [
            ("weights", self.weights_bytes),
            ("gradients", self.gradients_bytes),
            ("optimizer state", self.optimizer_state_bytes),
            ("activations", self.activations_bytes),
            ("communication buffers", self.communication_buffers_bytes),
            ("temporary", self.temporary_bytes),
            ("reserve", self.reserve_bytes),
        ]
    }

    pub fn total(&self) -> Bytes {
        self.parts().iter().map(|(_, b)| *b).sum()
    }
}

/// The predicted cost of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    pub step_time_s: Seconds,
    /// Half-width of the interval that should hold the measured median step time.
    pub step_time_spread_s: Seconds,
    /// Safety margin in the step time: segments and updates whose times are not known to ±25 % are priced at
    /// the upper ends of their intervals. This is the difference to pricing all of them at their medians.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub caution_s: Seconds,
    pub tokens_per_s: f64,
    /// Model FLOPs utilisation, from 0 to 1: relative to the published peak of the device in the job's
    /// precision, with attention's GEMMs counted in full. Absent if no peak is published. Older plans refer
    /// to a measured rate instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Peak memory of the device with the highest peak.
    pub peak_memory_bytes: Bytes,
    /// What has to be added to the peak for a bound that nineteen of twenty measured peaks keep, by the errors of
    /// earlier predictions of this kind; absent in older documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_spread_bytes: Option<Bytes>,
    /// Chance that a device runs out of memory, from 0 to 1, by the same errors; absent in older documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_risk: Option<f64>,
    /// Bytes that the plan may use of the device with the peak: its memory, less the job's reserve; absent in older
    /// documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<Bytes>,
    /// What the fullest node keeps in its host's memory; absent if nothing is kept there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_memory_bytes: Option<Bytes>,
    pub cost: CostBreakdown,
    /// Parts of the peak memory of that device.
    pub memory: MemoryBreakdown,
    /// One estimate per pipeline rank.
    pub stages: Vec<StageEstimate>,
    /// Lower bound of the step time, under this cost model.
    pub lower_bound_s: Seconds,
    /// The least trusted provenance of all numbers in the step time.
    pub provenance: Provenance,
    /// Factor by which lossy gradients increase the number of steps; absent without lossy codecs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<Slowdown>,
    /// Time to the loss of the job's `convergence`; absent if the job has no `convergence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_loss_s: Option<Seconds>,
}

impl Estimate {
    /// Whether the plan has lossy codecs whose cost in steps is a prior: no training has measured it.
    pub fn is_unverified(&self) -> bool {
        self.slowdown.is_some_and(|slowdown| slowdown.provenance != Provenance::Measured)
    }

    /// Whether the plan is more likely to run out of memory than a recommended one may be.
    pub fn is_risky(&self) -> bool {
        self.memory_risk.is_some_and(|risk| risk > MOST_RISK)
    }

    /// The objective that the search minimises, in seconds per step.
    pub fn merit(&self, objective: Objective) -> Seconds {
        match objective {
            Objective::StepTime => self.step_time_s,
            Objective::TimeToLoss => Seconds(self.step_time_s.0 * self.slowdown.map_or(1.0, |s| s.factor)),
        }
    }

    /// Checks the ranges of the single fields.
    pub fn check(&self) -> Result<(), InputError> {
        positive("step_time_s", self.step_time_s.0)?;
        not_negative("step_time_spread_s", self.step_time_spread_s.0)?;
        not_negative("caution_s", self.caution_s.0)?;
        positive("tokens_per_s", self.tokens_per_s)?;
        not_negative("mfu", self.mfu.unwrap_or(0.0))?;
        not_negative("lower_bound_s", self.lower_bound_s.0)?;
        bytes("peak_memory_bytes", self.peak_memory_bytes)?;
        bytes("peak_memory_spread_bytes", self.peak_memory_spread_bytes.unwrap_or_default())?;
        bytes("memory_limit_bytes", self.memory_limit_bytes.unwrap_or_default())?;
        if let Some(risk) = self.memory_risk.filter(|risk| !(0.0..=1.0).contains(risk)) {
            return Err(InputError::new("memory_risk", risk, "must be from 0 to 1: a chance")
                .hint("make the plan again with `autodist plan` or `autodist estimate`"));
        }
        bytes("host_memory_bytes", self.host_memory_bytes.unwrap_or_default())?;
        check_parts(&self.cost, &self.memory)?;
        for (index, stage) in self.stages.iter().enumerate() {
            check_parts(&stage.cost, &stage.memory).map_err(|e| e.under(&format!("stages[{index}]")))?;
        }
        Ok(())
    }
}

/// Chance of running out of memory up to which a plan is recommended: of a larger one, the upper end of the
/// interval of its peak (`peak_memory_spread_bytes`) is above the memory of a device.
pub const MOST_RISK: f64 = 0.05;

/// A chance to run out of memory in words, such as `about 1 in 8 runs like it would run out of memory`.
pub fn memory_risk(chance: f64) -> String {
    let runs = match (1.0 / chance.max(1e-9)).round() as u64 {
        0 | 1 => "most runs".to_owned(),
        1000.. => return "fewer than 1 in 1000 runs like it would run out of memory".to_owned(),
        // The errors that this is based on do not tell more digits.
        one_in => {
            let digit = if one_in < 20 { 1 } else { 10_u64.pow(one_in.ilog10()) };
            format!("about 1 in {} runs", (one_in + digit / 2) / digit * digit)
        }
    };
    format!("{runs} like it would run out of memory")
}

/// Part of a step in which devices wait for the host, above which the step is launch-bound.
pub const LAUNCH_BOUND: f64 = 0.05;

/// For serde, which leaves out a time of zero.
pub fn is_zero(time: &Seconds) -> bool {
    *time == Seconds::ZERO
}

/// Steps to a loss, divided by those of exact, synchronous training (phi). The factor is measured by
/// `validate --probe`; otherwise it is a prior from theory, which is assumed and only accurate to an order of
/// magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slowdown {
    /// At least 1: fewer bytes do not train in fewer steps.
    pub factor: f64,
    pub provenance: Provenance,
    /// Of a measured factor: by how much two exact trainings differ; absent if that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
}

impl Slowdown {
    /// A factor that nobody measured.
    pub fn prior(factor: f64) -> Self {
        Self { factor, provenance: Provenance::Assumed, noise: None }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageEstimate {
    pub cost: CostBreakdown,
    pub memory: MemoryBreakdown,
}

fn check_parts(cost: &CostBreakdown, memory: &MemoryBreakdown) -> Result<(), InputError> {
    for (part, seconds) in cost.parts() {
        finite(&format!("cost.{}_s", part.replace(' ', "_")), seconds.0)?;
    }
    for (part, size) in memory.parts() {
        bytes(&format!("memory.{}_bytes", part.replace(' ', "_")), size)?;
    }
    Ok(())
}
