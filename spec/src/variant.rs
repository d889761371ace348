//! A strategy that someone uses, and how few changes make it fit or make it faster.

use crate::error::InputError;
use crate::estimate::Estimate;
use crate::strategy::{ParallelStrategy, Recompute, Stage, check_stages, some_recompute};
use crate::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

/// A setting that a user changes as one.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "kebab-case")]
pub enum Setting {
    #[strum(serialize = "tp")]
    Tensor,
    #[strum(serialize = "pp")]
    Pipeline,
    #[strum(serialize = "cp")]
    Context,
    #[strum(serialize = "ep")]
    Expert,
    /// The stage, and the group that it shards over.
    Zero,
    MicroBatch,
    /// The order, and the number of virtual stages.
    Schedule,
    /// The policy, and how many blocks have it.
    Recompute,
    #[strum(serialize = "sp")]
    SequenceParallel,
    /// Gradient compression, collective algorithms, placement and bucket sizes.
    Communication,
}

impl Setting {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The name of its flag.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Its value in a strategy, as text.
    fn of(self, strategy: &ParallelStrategy, stages: &[Stage]) -> String {
        match self {
            Self::Tensor => strategy.tensor.to_string(),
            Self::Pipeline => strategy.pipeline.to_string(),
            Self::Context => strategy.context.to_string(),
            Self::Expert => strategy.expert.to_string(),
            Self::Zero if strategy.zero_stage > 0 && strategy.shard != strategy.data => {
                format!("{} in groups of {}", strategy.zero_stage, strategy.shard)
            }
            Self::Zero => strategy.zero_stage.to_string(),
            Self::MicroBatch => strategy.micro_batch.to_string(),
            // A pipeline of one stage has only one order.
            Self::Schedule if strategy.pipeline == 1 => "none".to_owned(),
            Self::Schedule if strategy.virtual_stages > 1 => {
                format!("{} with {} virtual stages", strategy.schedule.name(), strategy.virtual_stages)
            }
            Self::Schedule => strategy.schedule.name().to_owned(),
            Self::Recompute if strategy.recompute != Recompute::None => {
                let name = strategy.recompute.name();
                some_recompute(strategy, stages).map_or_else(
                    || name.to_owned(),
                    |(some, all)| format!("{name} in {some} of {all} blocks"),
                )
            }
            Self::Recompute => "none".to_owned(),
            Self::SequenceParallel => if strategy.sequence_parallel { "on" } else { "off" }.to_owned(),
            Self::Communication => strategy.communication.label().trim().to_owned(),
        }
    }
}

/// A setting that differs between two strategies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub setting: Setting,
    /// Its value in the given strategy, e.g. `2`.
    pub from: String,
    /// Its value in the other strategy.
    pub to: String,
}

impl Change {
    /// The settings that differ. The data-parallel degree follows from the others.
    pub fn between(
        (from, from_stages): (&ParallelStrategy, &[Stage]),
        (to, to_stages): (&ParallelStrategy, &[Stage]),
    ) -> Vec<Self> {
        let change = |setting: &Setting| {
            // The order of a pipeline that one of both does not have is not a change of its own.
            let no_pipeline = from.pipeline == 1 || to.pipeline == 1;
            let (old, new) = (setting.of(from, from_stages), setting.of(to, to_stages));
            let differs = old != new
                && !(*setting == Setting::Schedule && no_pipeline && from.virtual_stages == to.virtual_stages)
                // Without tensor parallelism there is no sequence parallelism.
                && !(*setting == Setting::SequenceParallel && to.tensor == 1);
            differs.then_some(Self { setting: *setting, from: old, to: new })
        };
        Setting::ALL.iter().filter_map(change).collect()
    }
}

/// A strategy that the user gave, compared with the plan that the search found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenStrategy {
    /// The file that it was read from.
    pub source: String,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub estimate: Estimate,
    /// Whether it fits into the memory of the devices, less the job's reserve.
    pub fits: bool,
    /// Memory that it lacks on the fullest device; 0 if it fits.
    pub missing_bytes: Bytes,
    /// What neither the file nor the flags say about it, and the values that were assumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumptions: Vec<String>,
    /// How the plan of the document differs from it.
    pub changes: Vec<Change>,
    /// What the format of the file cannot express of the plan, and what has to be done instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_hand: Vec<String>,
    /// Strategies that differ in few settings, and fit, and are faster if the given one fits: the fewest changes
    /// first, then the fastest.
    pub variants: Vec<Variant>,
}

/// A strategy that differs from a given one in few settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub changes: Vec<Change>,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub estimate: Estimate,
    /// What the format of the given file cannot express of it, and what has to be done instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_hand: Vec<String>,
}

impl GivenStrategy {
    pub(crate) fn check(&self) -> Result<(), InputError> {
        check_one(&self.strategy, &self.stages, &self.estimate)?;
        for (index, variant) in self.variants.iter().enumerate() {
            let checked = check_one(&variant.strategy, &variant.stages, &variant.estimate);
            checked.map_err(|error| error.under(&format!("variants[{index}]")))?;
        }
        Ok(())
    }
}

fn check_one(strategy: &ParallelStrategy, stages: &[Stage], estimate: &Estimate) -> Result<(), InputError> {
    strategy.check().map_err(|error| error.under("strategy"))?;
    strategy.communication.check("strategy.communication")?;
    check_stages(stages)?;
    estimate.check().map_err(|error| error.under("estimate"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::ScheduleKind;

    #[test]
    fn what_follows_from_another_setting_is_no_change() {
        let between = |from: &ParallelStrategy, to: &ParallelStrategy| -> Vec<_> {
            let changes = Change::between((from, &[]), (to, &[]));
            changes
                .into_iter()
                .map(|one| format!("{} {} -> {}", one.setting.name(), one.from, one.to))
                .collect()
        };
        let given = ParallelStrategy {
            zero_stage: 2,
            shard: 8,
            schedule: ScheduleKind::GPipe,
            ..ParallelStrategy::data_parallel(8, 4)
        };
        assert!(between(&given, &given).is_empty());
        // Data-parallel degree, shard group and schedule follow.
        let other = ParallelStrategy {
            pipeline: 2,
            data: 4,
            shard: 4,
            schedule: ScheduleKind::OneFOneB,
            ..given.clone()
        };
        assert_eq!(between(&given, &other), ["pp 1 -> 2"]);
        let other = ParallelStrategy { zero_stage: 3, micro_batch: 2, ..given.clone() };
        assert_eq!(between(&given, &other), ["zero 2 -> 3", "micro-batch 4 -> 2"]);
        let tensor =
            ParallelStrategy { tensor: 2, data: 4, shard: 2, sequence_parallel: true, ..given.clone() };
        assert_eq!(between(&given, &tensor), ["tp 1 -> 2", "zero 2 -> 2 in groups of 2", "sp off -> on"]);
        assert_eq!(between(&tensor, &given), ["tp 2 -> 1", "zero 2 in groups of 2 -> 2"]);
    }
}
