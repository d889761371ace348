//! A strategy, its predicted cost, and the search that found it.

use crate::cluster::Cluster;
use crate::communication::{Codec, Coded, Communication};
use crate::error::{InputError, bytes, finite, in_range, not_negative, positive};
use crate::job::{Job, Objective};
use crate::model::ModelSpec;
use crate::network::Pattern;
use crate::parse::Check;
use crate::profile::{DeviceKind, Engine};
use crate::run::Verdict;
use crate::units::{Bytes, Provenance, Seconds};
use crate::utilisation::Utilisation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// Activations that the forward pass discards and the backward pass computes again.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
#[derive(EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Recompute {
    #[default]
    None,
    /// The attention core: scores and probabilities (Korthikanti et al., 2205.05198, section 5).
    Selective,
    /// The whole block: only its input is kept (Chen et al., 1604.06174).
    Full,
}

/// Order of micro-batches through the pipeline.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "lowercase")]
#[derive(EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum ScheduleKind {
    /// All forwards, then all backwards (Huang et al., 1811.06965).
    GPipe,
    /// One forward, one backward (Narayanan et al., SC'21, section 2.2.1).
    #[default]
    #[serde(rename = "1f1b")]
    #[strum(serialize = "1f1b")]
    OneFOneB,
    /// 1F1B over several virtual stages per rank (SC'21, section 2.2.2).
    Interleaved,
}

impl ScheduleKind {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl Recompute {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The parallel degrees and options of a training. The degrees multiply to the number of devices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(deny_unknown_fields)]
pub struct ParallelStrategy {
    pub data: u32,
    pub tensor: u32,
    pub pipeline: u32,
    #[serde(default = "one")]
    pub context: u32,
    #[serde(default = "one")]
    pub expert: u32,
    /// ZeRO stage (1910.02054): 0 shards nothing, 1 the optimizer state, 2 also the gradients, 3 also the
    /// parameters.
    #[serde(default)]
    pub zero_stage: u8,
    /// Size of the group that ZeRO shards over; `data / shard` groups hold replicas (HSDP). 1 with
    /// `zero_stage` 0.
    #[serde(default = "one")]
    pub shard: u32,
    pub micro_batch: u32,
    /// Number of model chunks per pipeline rank.
    #[serde(default = "one")]
    pub virtual_stages: u32,
    #[serde(default)]
    pub sequence_parallel: bool,
    /// Policy of the blocks that recompute; `stages` has the policy of each layer.
    #[serde(default)]
    pub recompute: Recompute,
    #[serde(default)]
    pub schedule: ScheduleKind,
    /// Minimum size of the buckets in which gradients are reduced; the last may be smaller.
    #[serde(default = "default_bucket")]
    pub bucket_bytes: Bytes,
    #[serde(default, skip_serializing_if = "Communication::is_default")]
    pub communication: Communication,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn default_bucket() -> Bytes {
    Bytes(25 << 20)
}

impl ParallelStrategy {
    /// Plain data parallelism over `data` devices.
    pub fn data_parallel(data: u32, micro_batch: u32) -> Self {
        Self {
            data,
            tensor: 1,
            pipeline: 1,
            context: 1,
            expert: 1,
            zero_stage: 0,
            shard: 1,
            micro_batch,
            virtual_stages: 1,
            sequence_parallel: false,
            recompute: Recompute::None,
            schedule: ScheduleKind::OneFOneB,
            bucket_bytes: default_bucket(),
            communication: Communication::default(),
        }
    }

    /// Ranks that hold the same parameters: those of the data and of the context axis.
    pub fn replicas(&self) -> u32 {
        self.data.saturating_mul(self.context)
    }

    /// Ranks over which ZeRO shards a replica. Context-parallel ranks hold the same parameters, so a shard
    /// group contains all of them.
    pub fn shards(&self) -> u32 {
        if self.zero_stage == 0 { 1 } else { self.shard.saturating_mul(self.context) }
    }

    pub fn devices(&self) -> u64 {
        [self.data, self.tensor, self.pipeline, self.context]
            .iter()
            .fold(1, |n: u64, d| n.saturating_mul(u64::from(*d)))
    }

    /// Number of micro-batches that each data-parallel rank runs in a step.
    pub fn micro_batches(&self, global_batch: u32) -> u32 {
        let sequences = u64::from(self.data) * u64::from(self.micro_batch);
        (u64::from(global_batch) / sequences.max(1)) as u32
    }

    /// Number of model chunks in the whole pipeline.
    pub fn chunks(&self) -> u32 {
        self.pipeline.saturating_mul(self.virtual_stages)
    }

    /// The label, such as `dp2 tp1 pp1 mb4 zero1 recompute=full`.
    pub fn label(&self) -> String {
        let mut text =
            format!("dp{} tp{} pp{} mb{}", self.data, self.tensor, self.pipeline, self.micro_batch);
        if self.context > 1 {
            text += &format!(" cp{}", self.context);
        }
        if self.expert > 1 {
            text += &format!(" ep{}", self.expert);
        }
        if self.zero_stage > 0 {
            text += &format!(" zero{}", self.zero_stage);
            if self.shard != self.data {
                text += &format!("/{}", self.shard);
            }
        }
        if self.sequence_parallel {
            text += " sp";
        }
        if self.pipeline > 1 {
            text += &format!(" {}", self.schedule.name());
            if self.virtual_stages > 1 {
                text += &format!(" v{}", self.virtual_stages);
            }
        }
        if self.recompute != Recompute::None {
            text += &format!(" recompute={}", self.recompute.name());
        }
        text + &self.communication.label()
    }
}

/// One model chunk: consecutive layers of the chain. Chunk `c` runs on pipeline rank `c % pipeline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// First layer of the chain (0 is the embedding).
    pub first_layer: u32,
    /// One past the last layer.
    pub end_layer: u32,
    /// Recomputation of each layer of this chunk.
    pub recompute: Vec<Recompute>,
}

impl Stage {
    pub fn layers(&self) -> std::ops::Range<usize> {
        self.first_layer as usize..self.end_layer as usize
    }

    pub fn len(&self) -> usize {
        self.layers().len()
    }

    pub fn is_empty(&self) -> bool {
        self.layers().is_empty()
    }
}

/// Blocks that recompute, if not all of them do, and all blocks.
pub fn some_recompute(strategy: &ParallelStrategy, stages: &[Stage]) -> Option<(usize, usize)> {
    let entries = || stages.iter().flat_map(|stage| &stage.recompute);
    let recomputing = entries().filter(|r| **r != Recompute::None).count();
    // Embedding and head never recompute.
    let blocks = entries().count().saturating_sub(2);
    (strategy.recompute != Recompute::None && recomputing < blocks).then_some((recomputing, blocks))
}

/// The strategy's label, with the number of blocks that recompute if not all of them do.
pub fn label(strategy: &ParallelStrategy, stages: &[Stage]) -> String {
    let label = strategy.label();
    match some_recompute(strategy, stages) {
        None => label,
        Some((some, blocks)) => {
            let all = format!("recompute={}", strategy.recompute.name());
            label.replace(&all, &format!("{all}({some}/{blocks})"))
        }
    }
}

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
    /// Slow-down of compute that is overlapped with communication.
    pub interference_s: Seconds,
    /// Gradient norm, clipping and update.
    pub optimizer_s: Seconds,
    /// Data loading, bookkeeping and the step's closing barrier.
    pub overhead_s: Seconds,
}

impl CostBreakdown {
    pub fn parts(&self) -> [(&'static str, Seconds); 11] {
        [
            ("compute", self.compute_s),
            ("recompute", self.recompute_s),
            ("tensor communication", self.tensor_communication_s),
            ("context communication", self.context_communication_s),
            ("expert communication", self.expert_communication_s),
            ("data communication", self.data_communication_s),
            ("pipeline communication", self.pipeline_communication_s),
            ("bubble", self.bubble_s),
            ("interference", self.interference_s),
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(time: &Seconds) -> bool {
    *time == Seconds::ZERO
}

/// Steps to a loss, divided by those of exact, synchronous training (phi). The factor is measured by
/// `validate --probe`; otherwise it is a prior from theory, which is assumed and only accurate to an order of
/// magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slowdown {
    pub factor: f64,
    pub provenance: Provenance,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageEstimate {
    pub cost: CostBreakdown,
    pub memory: MemoryBreakdown,
}

/// Why the search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Every plan of the search space was simulated, or rejected by a bound that always holds under this cost
    /// model.
    Optimal,
    /// The time limit was reached; `gap` is the maximum distance from the optimum.
    TimeLimit,
    /// The number of simulations reached its limit.
    SimulationLimit,
    /// No search was made: the strategy was given.
    Given,
}

/// The extent of a search, and its lower bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchReport {
    /// Number of strategies that were considered.
    pub explored: u64,
    /// Number of strategies that were rejected without simulation: illegal, out of memory, or excluded by a
    /// lower bound.
    pub pruned: u64,
    /// Number of strategies that were simulated.
    pub simulated: u64,
    /// Lower bound of the step time in the search space, under this cost model.
    pub lower_bound_s: Seconds,
    /// `step_time / lower_bound - 1`, with the bound of the plans that were not excluded; 0 if optimal.
    pub gap: f64,
    pub stop_reason: StopReason,
}

/// A plan that was not chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub estimate: Estimate,
    /// Why it was not chosen.
    pub reason: String,
}

/// Strategies that were rejected for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    /// Short name of the rule or limit.
    pub rule: String,
    pub count: u64,
    /// The reason, with one of the strategies as an example.
    pub example: String,
}

/// One kind of collective of a plan, compared with the lower bound of any algorithm on this network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectiveShare {
    /// Description, such as "gradients, largest bucket".
    pub what: String,
    pub pattern: Pattern,
    /// Number of ranks in a group.
    pub group: u32,
    /// Size of the whole tensor.
    pub bytes: Bytes,
    pub time_s: Seconds,
    /// Lower bound of the time, from the cuts of the network (ForestColl, 2402.06787).
    pub lower_bound_s: Seconds,
}

/// The time of the busiest links, summed over the kinds of traffic, compared with other placements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementReport {
    /// Whether all placements were searched. The priced ones are then all that no other placement beats in
    /// every kind of traffic.
    pub exact: bool,
    /// Number of placements that were priced.
    pub tried: u32,
    /// If the search was not exact: the relative distance of this placement from a lower bound of the best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above_bound: Option<f64>,
    /// Relative additional time if rank r ran on device r. Traffic that overlaps with compute is included.
    pub in_order: f64,
}

impl CollectiveShare {
    /// The achieved fraction of the highest possible speed.
    pub fn share(&self) -> f64 {
        if self.time_s.0 > 0.0 { self.lower_bound_s / self.time_s } else { 1.0 }
    }
}

/// The predicted effect of a codec on the step time of a plan. Its effect on convergence is not known before
/// a training with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodecVerdict {
    pub codec: Codec,
    #[serde(default)]
    pub coded: Coded,
    pub helps: bool,
    pub step_time_s: Seconds,
    /// Step time without compression.
    pub exact_step_time_s: Seconds,
    /// Uncompressed bytes divided by the bytes that the codec sends.
    pub ratio: f64,
    /// Compression ratio at which all of this communication would overlap with compute; absent if coding
    /// alone takes longer than compute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_ratio: Option<f64>,
    /// Coding time of a step, on the communication stream.
    pub coding_s: Seconds,
    /// Exposed communication of gradients without compression.
    pub exposed_s: Seconds,
    /// Factor by which the codec increases the number of steps to the same loss.
    pub slowdown: Slowdown,
    pub reason: String,
}

/// A plan document: how to train a model on a cluster, and the predicted cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub schema_version: u32,
    pub model: ModelSpec,
    pub cluster: Cluster,
    pub job: Job,
    pub strategy: ParallelStrategy,
    /// One per model chunk, in the order of the chain.
    pub stages: Vec<Stage>,
    /// Number of micro-batches per data-parallel rank and step.
    pub micro_batches: u32,
    pub estimate: Estimate,
    /// Whether the plan fits into the memory of the devices, less the job's reserve. Only a strategy that
    /// was given, not searched, may not fit.
    #[serde(default = "yes")]
    pub fits: bool,
    /// Facts that nobody gave, and the values that were assumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumptions: Vec<String>,
    pub search: SearchReport,
    /// The runners-up, best first.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
    #[serde(default)]
    pub rejected: Vec<Rejection>,
    /// Collectives of the plan, if the network is known link by link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collectives: Vec<CollectiveShare>,
    /// The plan's placement compared with others, if links differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementReport>,
    /// The predicted effect of each codec that the job allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codecs: Vec<CodecVerdict>,
    /// The profile on which the estimate is based.
    pub profile: ProfileReference,
    /// Measurements by `tune` or `validate`. With them, the plan is the fastest of those that were trained,
    /// whichever plan the search (`search`) ranked first, and the alternatives are in measured order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredChoice>,
}

/// The measurements by which a plan became the first of its document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredChoice {
    /// Measured step time of this plan, corrected to the speed of the machine during the profile.
    pub step_time_s: Seconds,
    /// Half-width of that median's 95 % interval.
    pub step_time_spread_s: Seconds,
    /// Number of plans that were trained and compared, including this one.
    pub plans: u32,
    /// Label of the plan that was first before the measurements.
    pub first_choice: String,
    /// Verdict on the prediction of that plan; absent if it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why this plan is the first: "measured fastest: 677 ms; the planner's first choice, …, took 761 ms".
    pub reason: String,
    /// Strategies whose predictions were refuted by the measurements while they were first, or that were
    /// measured to be faster than the first. The cells of the profile on which their predictions are based
    /// are in doubt, and `tune` measures them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refuted: Vec<ParallelStrategy>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileReference {
    /// Fingerprint of the profile's content.
    pub fingerprint: String,
    /// Path of the profile, as given; empty if it was modelled from the catalogue.
    #[serde(default)]
    pub path: String,
    /// The profile's `reference_s`.
    #[serde(default)]
    pub reference_s: Seconds,
    /// Kind of device on which the profile was measured, and for which the plan is valid.
    #[serde(default)]
    pub devices: DeviceKind,
    /// Engine with which the profile was measured, and for which the plan is valid.
    #[serde(default, skip_serializing_if = "Engine::is_native")]
    pub engine: Engine,
    /// Whether the devices and links were emulated: the plan is validated on the same emulation.
    #[serde(default)]
    pub emulated: bool,
    /// The source of the plan's prices, if it is not a profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue: Option<CatalogueReference>,
}

/// The source of a plan's costs for a cluster that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogueReference {
    /// Training framework for which the plan is priced, e.g., `megatron-core`.
    pub trainer: String,
    /// Runs to which the efficiencies of a training step were fitted.
    pub calibration: String,
    /// Fingerprint of these efficiencies.
    pub fingerprint: String,
    /// Fingerprint of the figures of the devices; empty in older plans.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub devices: String,
    /// Whether the GEMMs of linear layers are in FP8; everything else is in the job's precision.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fp8: bool,
    /// Of which runs the error bar of the step time is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error_bar_of: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Plan {
    /// The utilisation of a device at the step time of `estimate`, of this plan or of an alternative.
    pub fn utilisation(&self, estimate: &Estimate) -> Option<Utilisation> {
        let device = &self.cluster.nodes.first()?.device;
        let fp8 = self.profile.catalogue.as_ref().is_some_and(|catalogue| catalogue.fp8);
        let arithmetic = if fp8 { "fp8" } else { self.job.precision.name() };
        let (devices, step) = (self.strategy.devices(), estimate.step_time_s);
        let mut all = Utilisation::in_arithmetic(arithmetic, &self.model, &self.job, device, devices, step);
        if self.profile.emulated {
            // Its devices are emulated, and do not reach that peak.
            all.peak = None;
        }
        all.achieved.0.is_finite().then_some(all)
    }

    /// Corrects model FLOPs utilisation that is not relative to a published peak of the right arithmetic: that
    /// of emulated devices, that of older plans, which used the rate of the profile's fastest GEMM as the
    /// peak, and that of plans in FP8.
    pub fn correct_mfu(&mut self) {
        let fp8 = self.profile.catalogue.as_ref().is_some_and(|catalogue| catalogue.fp8);
        let measured = self.cluster.nodes.iter().any(|group| group.device.measured_rate().is_some());
        let corrected = |estimate: &Estimate| match estimate.mfu {
            Some(_) if self.profile.emulated => None,
            _ if fp8 => self.utilisation(estimate).and_then(|all| all.mfu()),
            Some(_) if measured => self.utilisation(estimate).and_then(|all| all.mfu()),
            mfu => mfu.filter(|mfu| *mfu <= 1.0),
        };
        let own = corrected(&self.estimate);
        let others: Vec<_> = self.alternatives.iter().map(|other| corrected(&other.estimate)).collect();
        self.estimate.mfu = own;
        for (other, mfu) in self.alternatives.iter_mut().zip(others) {
            other.estimate.mfu = mfu;
        }
        if !self.profile.emulated {
            for group in &mut self.cluster.nodes {
                if group.device.measured_rate().is_some() {
                    group.device.peak_flops_per_s = None;
                }
            }
        }
    }

    /// Records what was assumed. Predictions that stand on it are no better than assumed.
    pub fn assume(&mut self, assumptions: Vec<String>) {
        self.assumptions = assumptions;
        if !self.assumptions.is_empty() {
            self.estimate.provenance = Provenance::Assumed;
            self.alternatives.iter_mut().for_each(|other| other.estimate.provenance = Provenance::Assumed);
        }
    }

    /// The emulated cluster, if devices and links are emulated.
    pub fn emulated(&self) -> Option<&Cluster> {
        self.profile.emulated.then_some(&self.cluster)
    }

    /// Speed of the emulated devices, if devices are emulated.
    pub fn emulated_flops_per_s(&self) -> Option<f64> {
        let peak = self.cluster.nodes.first()?.device.peak_flops_per_s?;
        self.profile.emulated.then_some(peak.0)
    }
}

impl Plan {
    /// Number of plans in the document: its choice and the alternatives.
    pub fn count(&self) -> usize {
        1 + self.alternatives.len()
    }

    /// The document with its `number`-th plan first: 1 is the choice, 2 the first alternative. Details about
    /// the former choice are removed. `None` if there are fewer plans.
    #[must_use]
    pub fn nth(&self, number: usize) -> Option<Self> {
        if number == 1 {
            return Some(self.clone());
        }
        let mut plan = self.clone();
        let index = number.checked_sub(2).filter(|index| *index < plan.alternatives.len())?;
        let Alternative { strategy, stages, estimate, .. } = plan.alternatives.remove(index);
        let first = Alternative {
            strategy: std::mem::replace(&mut plan.strategy, strategy),
            stages: std::mem::replace(&mut plan.stages, stages),
            estimate: std::mem::replace(&mut plan.estimate, estimate),
            reason: "plan 1 of the document".to_owned(),
        };
        plan.alternatives.insert(0, first);
        plan.micro_batches = plan.strategy.micro_batches(plan.job.global_batch);
        plan.collectives.clear();
        plan.codecs.clear();
        (plan.placement, plan.measured) = (None, None);
        Some(plan)
    }
}

impl Check for Plan {
    const WHAT: &'static str = "plan";

    fn check(&self) -> Result<(), InputError> {
        self.model.check().map_err(|e| e.under("model"))?;
        self.cluster.check().map_err(|e| e.under("cluster"))?;
        self.job.check().map_err(|e| e.under("job"))?;
        self.strategy.check().map_err(|e| e.under("strategy"))?;
        self.strategy.communication.check("strategy.communication")?;
        check_stages(&self.stages)?;
        self.estimate.check().map_err(|e| e.under("estimate"))?;
        not_negative("search.lower_bound_s", self.search.lower_bound_s.0)?;
        finite("search.gap", self.search.gap)?;
        for (index, alternative) in self.alternatives.iter().enumerate() {
            alternative.check().map_err(|e| e.under(&format!("alternatives[{index}]")))?;
        }
        self.measured
            .as_ref()
            .map_or(Ok(()), |measured| measured.check().map_err(|e| e.under("measured")))?;
        self.check_agreement()
    }
}

impl MeasuredChoice {
    fn check(&self) -> Result<(), InputError> {
        positive("step_time_s", self.step_time_s.0)?;
        not_negative("step_time_spread_s", self.step_time_spread_s.0)?;
        for (index, strategy) in self.refuted.iter().enumerate() {
            let at = format!("refuted[{index}]");
            strategy.check().map_err(|e| e.under(&at))?;
            strategy.communication.check(&format!("{at}.communication"))?;
        }
        Ok(())
    }
}

impl Alternative {
    fn check(&self) -> Result<(), InputError> {
        self.strategy.check().map_err(|e| e.under("strategy"))?;
        self.strategy.communication.check("strategy.communication")?;
        check_stages(&self.stages)?;
        self.estimate.check().map_err(|e| e.under("estimate"))
    }
}

/// Checks each stage by itself; `program` checks whether the stages cover the layers.
pub(crate) fn check_stages(stages: &[Stage]) -> Result<(), InputError> {
    for (index, stage) in stages.iter().enumerate() {
        if stage.first_layer >= stage.end_layer || stage.recompute.len() != stage.len() {
            return Err(InputError::new(
                format!("stages[{index}]"),
                format!(
                    "layers {}..{}, {} recompute entries",
                    stage.first_layer,
                    stage.end_layer,
                    stage.recompute.len()
                ),
                "a stage must hold at least one layer, and one recompute entry per layer",
            )
            .hint("make the plan again with `autodist plan` or `autodist estimate`"));
        }
    }
    Ok(())
}

impl Estimate {
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
        check_parts(&self.cost, &self.memory)?;
        for (index, stage) in self.stages.iter().enumerate() {
            check_parts(&stage.cost, &stage.memory).map_err(|e| e.under(&format!("stages[{index}]")))?;
        }
        Ok(())
    }
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

impl ParallelStrategy {
    /// Checks the ranges of the single fields; `program` checks whether they are consistent.
    pub fn check(&self) -> Result<(), InputError> {
        for (field, value) in [
            ("data", self.data),
            ("tensor", self.tensor),
            ("pipeline", self.pipeline),
            ("context", self.context),
            ("expert", self.expert),
            ("shard", self.shard),
            ("micro_batch", self.micro_batch),
            ("virtual_stages", self.virtual_stages),
        ] {
            in_range(field, u64::from(value), 1, 1 << 20)?;
        }
        in_range("data x tensor x pipeline x context", self.devices(), 1, 1 << 20)?;
        in_range("zero_stage", u64::from(self.zero_stage), 0, 3)?;
        in_range("bucket_bytes", self.bucket_bytes.0, 1, 1 << 40)
    }
}
