//! The plan document: a strategy, its predicted cost, and the search that found it.

use crate::cluster::Cluster;
use crate::communication::{Codec, Coded};
use crate::error::{InputError, finite, not_negative, positive};
use crate::estimate::{Estimate, Slowdown};
use crate::job::Job;
use crate::model::ModelSpec;
use crate::network::Pattern;
use crate::parse::Check;
use crate::priced::PricedPoint;
use crate::run::Verdict;
use crate::source::CostSource;
use crate::strategy::{ParallelStrategy, Stage, check_stages};
use crate::training::Training;
use crate::understood::UnderstoodSetting;
use crate::units::{Bytes, Provenance, Seconds};
use crate::utilisation::Utilisation;
use crate::variant::GivenStrategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

fn yes() -> bool {
    true
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

impl SearchReport {
    /// What the search minimised, of its best plan: the step time, or the time to a loss.
    pub fn merit(&self) -> Seconds {
        self.lower_bound_s * (1.0 + self.gap)
    }

    /// The report of several searches together, one after the other, of at least one.
    pub fn of_all(searches: &[Self]) -> Self {
        if let [only] = searches {
            return only.clone();
        }
        let sum = |of: fn(&Self) -> u64| searches.iter().map(of).sum();
        let least =
            |of: fn(&Self) -> Seconds| searches.iter().map(of).fold(Seconds(f64::INFINITY), Seconds::min);
        let (lower_bound_s, best) = (least(|one| one.lower_bound_s), least(Self::merit));
        let stopped =
            searches.iter().map(|one| one.stop_reason).find(|reason| *reason != StopReason::Optimal);
        Self {
            explored: sum(|one| one.explored),
            pruned: sum(|one| one.pruned),
            simulated: sum(|one| one.simulated),
            lower_bound_s,
            gap: best / lower_bound_s - 1.0,
            stop_reason: stopped.unwrap_or(StopReason::Optimal),
        }
    }
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

/// Another number of devices that was searched, and how it compares with the plan's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceChoice {
    /// Name of the cluster that was given. The plan's own cluster is a part of it if the plan leaves devices off.
    pub cluster: String,
    /// Number of devices of that cluster.
    pub devices: u32,
    /// Devices of the other plan: all if this one leaves some off, otherwise fewer.
    pub other_devices: u32,
    /// Label of the other plan; absent if there is none, because no plan uses all devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_plan: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_step_time_s: Option<Seconds>,
    /// The comparison in a sentence.
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
    /// Time and cost of the whole training, if the job gives its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// Whether the plan fits into the memory of the devices, less the job's reserve. Only a strategy that
    /// was given, not searched, may not fit.
    #[serde(default = "yes")]
    pub fits: bool,
    /// Facts that nobody gave, and the values that were assumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumptions: Vec<String>,
    /// What was understood of a trainer's file, setting by setting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub understood: Vec<UnderstoodSetting>,
    pub search: SearchReport,
    /// The runners-up, best first.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
    #[serde(default)]
    pub rejected: Vec<Rejection>,
    /// Layouts that the search looked at, as points of step time and memory: a selection, for a figure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub priced: Vec<PricedPoint>,
    /// Collectives of the plan, if the network is known link by link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collectives: Vec<CollectiveShare>,
    /// The plan's placement compared with others, if links differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementReport>,
    /// The predicted effect of each codec that the job allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codecs: Vec<CodecVerdict>,
    /// How another number of devices compares, if it is nearly as fast or faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_choice: Option<DeviceChoice>,
    /// Where the costs of the estimates come from.
    pub cost_source: CostSource,
    /// Measurements by `tune` or `validate`. With them, the plan is the fastest of those that were trained,
    /// whichever plan the search (`search`) ranked first, and the alternatives are in measured order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredChoice>,
    /// The strategy of a trainer's file, with which the plan is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Box<GivenStrategy>>,
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

impl Plan {
    /// The whole training at the step time of `estimate`, of this plan or of an alternative.
    pub fn training_of(&self, estimate: &Estimate) -> Option<Training> {
        Training::of(&self.job, &self.cluster, estimate.step_time_s, estimate.step_time_spread_s)
    }

    /// The utilisation of a device at the step time of `estimate`, of this plan or of an alternative.
    pub fn utilisation(&self, estimate: &Estimate) -> Option<Utilisation> {
        let mut all = Utilisation::of(&self.model, &self.job, &self.cluster, estimate.step_time_s);
        if self.cost_source.is_emulated() {
            // Its devices are emulated, and do not reach that peak.
            all.peak = None;
        }
        all.achieved.0.is_finite().then_some(all)
    }

    /// Corrects model FLOPs utilisation that is not relative to a published peak of the right arithmetic: that
    /// of emulated devices, that of older plans, which used the rate of the profile's fastest GEMM as the
    /// peak, and that of plans in FP8.
    pub fn correct_mfu(&mut self) {
        let measured = self.cluster.nodes.iter().any(|group| group.device.measured_rate().is_some());
        let corrected = |estimate: &Estimate| match estimate.mfu {
            Some(_) if self.cost_source.is_emulated() => None,
            Some(_) if measured => self.utilisation(estimate).and_then(|all| all.mfu()),
            mfu => mfu.filter(|mfu| *mfu <= 1.0),
        };
        let own = corrected(&self.estimate);
        let others: Vec<_> = self.alternatives.iter().map(|other| corrected(&other.estimate)).collect();
        self.estimate.mfu = own;
        for (other, mfu) in self.alternatives.iter_mut().zip(others) {
            other.estimate.mfu = mfu;
        }
        if !self.cost_source.is_emulated() {
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

    /// Records the path of the profile, if the costs are those of one.
    pub fn name_profile(&mut self, path: &str) {
        if let Some(profile) = self.cost_source.profile_mut() {
            path.clone_into(&mut profile.path);
        }
    }

    /// The emulated cluster, if devices and links are emulated.
    pub fn emulated(&self) -> Option<&Cluster> {
        self.cost_source.is_emulated().then_some(&self.cluster)
    }

    /// Speed of the emulated devices, if devices are emulated.
    pub fn emulated_flops_per_s(&self) -> Option<f64> {
        let peak = self.cluster.nodes.first()?.device.peak_flops_per_s?;
        self.cost_source.is_emulated().then_some(peak.0)
    }

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
        plan.training = plan.training_of(&plan.estimate);
        plan.search.gap = plan.estimate.merit(plan.job.objective) / plan.search.lower_bound_s - 1.0;
        plan.collectives.clear();
        plan.codecs.clear();
        (plan.placement, plan.measured, plan.given) = (None, None, None);
        Some(plan)
    }
}

impl Check for Plan {
    const WHAT: &'static str = "plan";

    fn check(&self) -> Result<(), InputError> {
        self.model.check().map_err(|e| e.under("model"))?;
        self.cluster.check().map_err(|e| e.under("cluster"))?;
        self.job.check().map_err(|e| e.under("job"))?;
        self.job.trainable.check_model(&self.model).map_err(|e| e.under("job"))?;
        self.strategy.check().map_err(|e| e.under("strategy"))?;
        self.strategy.communication.check("strategy.communication")?;
        check_stages(&self.stages)?;
        self.estimate.check().map_err(|e| e.under("estimate"))?;
        self.training.map_or(Ok(()), |training| training.check().map_err(|e| e.under("training")))?;
        not_negative("search.lower_bound_s", self.search.lower_bound_s.0)?;
        finite("search.gap", self.search.gap)?;
        for (index, alternative) in self.alternatives.iter().enumerate() {
            alternative.check().map_err(|e| e.under(&format!("alternatives[{index}]")))?;
        }
        self.given.as_ref().map_or(Ok(()), |given| given.check().map_err(|e| e.under("given")))?;
        for (index, point) in self.priced.iter().enumerate() {
            point.check().map_err(|e| e.under(&format!("priced[{index}]")))?;
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
