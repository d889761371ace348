//! The smallest changes to a given strategy that make it fit, or make it faster.
//!
//! For every set of few settings, a search of its own leaves these open and keeps the others as they are given.

use crate::choice::TIE;
use crate::{Planner, SearchLimits};
use autodist_spec::{
    Change, Estimate, Job, ParallelStrategy, Recompute, ScheduleKind, Seconds, Setting, Stage, Variant,
};
use itertools::Itertools;
use std::collections::BTreeSet;

/// Most settings that are changed together.
const MOST_CHANGES: usize = 3;

/// Variants that are kept of each number of changes.
const KEPT: usize = 3;

/// Plans that each search keeps: some of them change more than the settings that it leaves open, such as the
/// shard group with the tensor-parallel degree.
const SEARCHED: usize = 12;

impl Planner<'_> {
    /// Strategies that differ from a given one in as few settings as possible. If it does not fit (`fits`), those
    /// that do, of the smallest number of changes that is enough; if it does, those that are faster, of one and
    /// of two changes. The fewest changes come first, then the fastest.
    pub fn variants(&self, given: (&ParallelStrategy, &[Stage], &Estimate), fits: bool) -> Vec<Variant> {
        let (strategy, stages, estimate) = given;
        let settings: Vec<Setting> =
            Setting::ALL.iter().copied().filter(|setting| *setting != Setting::Communication).collect();
        let mut kept: Vec<Variant> = Vec::new();
        let mut fastest = if fits { estimate.step_time_s * (1.0 - TIE) } else { Seconds(f64::INFINITY) };
        let most = if fits { MOST_CHANGES - 1 } else { MOST_CHANGES };
        for count in 1..=most {
            let mut known = BTreeSet::new();
            let mut found: Vec<Variant> = settings
                .iter()
                .copied()
                .combinations(count)
                .flat_map(|open| self.changed(strategy, stages, &open))
                .filter(|variant| variant.changes.len() == count && variant.estimate.step_time_s < fastest)
                .filter(|variant| known.insert(variant.strategy.clone()))
                .collect();
            found.sort_by(|one, other| one.estimate.step_time_s.0.total_cmp(&other.estimate.step_time_s.0));
            found.truncate(KEPT);
            if let Some(best) = found.first() {
                fastest = best.estimate.step_time_s * (1.0 - TIE);
            }
            kept.extend(found);
            if !fits && !kept.is_empty() {
                break;
            }
        }
        kept
    }

    /// The variant with the layers cut as they are given, or into equal numbers of blocks if it has another number of
    /// chunks: another cut would be one more change. `None` if it does not fit then.
    fn in_the_same_cut(
        &self,
        given: &ParallelStrategy,
        stages: &[Stage],
        variant: Variant,
    ) -> Option<Variant> {
        let (strategy, own) = (&variant.strategy, &variant.stages);
        let chunks = strategy.chunks();
        let cut = if chunks == given.chunks() {
            ends(stages)
        } else if self.model.layers.is_multiple_of(chunks) {
            let each = self.model.layers / chunks;
            let inner = (1..chunks).map(|chunk| (1 + chunk * each) as usize);
            inner.chain([self.model.chain_len()]).collect()
        } else {
            return Some(variant);
        };
        if ends(own) == cut {
            return Some(variant);
        }
        let policies: Vec<Recompute> = own.iter().flat_map(|stage| stage.recompute.clone()).collect();
        let mut first = 0;
        let same = cut.iter().map(|end| {
            let stage = Stage {
                first_layer: first as u32,
                end_layer: *end as u32,
                recompute: policies.get(first..*end).unwrap_or_default().to_vec(),
            };
            first = *end;
            stage
        });
        let same: Vec<Stage> = same.collect();
        match self.priced(strategy, Some(&same)) {
            Ok((plan, None)) => Some(Variant { stages: plan.stages, estimate: plan.estimate, ..variant }),
            _ => None,
        }
    }

    /// The fastest strategies that differ only in the settings that are `open`.
    fn changed(&self, given: &ParallelStrategy, stages: &[Stage], open: &[Setting]) -> Vec<Variant> {
        let Some(job) = restricted(self.job, given, open) else { return Vec::new() };
        let limits = SearchLimits { top: SEARCHED, ..self.limits };
        let planner = Planner { job: &job, limits, ..self.clone() };
        let Ok(plan) = planner.plan() else { return Vec::new() };
        let first = (plan.strategy, plan.stages, plan.estimate);
        let others = plan.alternatives.into_iter().map(|one| (one.strategy, one.stages, one.estimate));
        std::iter::once(first)
            .chain(others)
            .map(|(strategy, own, estimate)| Variant {
                changes: Change::between((given, stages), (&strategy, &own)),
                strategy,
                stages: own,
                estimate,
                by_hand: Vec::new(),
            })
            .filter(|variant| variant.changes.iter().all(|change| open.contains(&change.setting)))
            .filter_map(|variant| self.in_the_same_cut(given, stages, variant))
            .collect()
    }
}

/// The ends of a stage list, which say how it cuts the layers.
fn ends(stages: &[Stage]) -> Vec<usize> {
    stages.iter().map(|stage| stage.end_layer as usize).collect()
}

/// The job with the given strategy as the only one allowed, except for the open settings; `None` if the job does
/// not allow it.
fn restricted(job: &Job, given: &ParallelStrategy, open: &[Setting]) -> Option<Job> {
    let mut job = job.clone();
    let allow = &mut job.allow;
    let fixed = |setting: Setting| !open.contains(&setting);
    for (setting, list, degree) in [
        (Setting::Tensor, &mut allow.tensor, given.tensor),
        (Setting::Pipeline, &mut allow.pipeline, given.pipeline),
        (Setting::Context, &mut allow.context, given.context),
        (Setting::Expert, &mut allow.expert, given.expert),
        (Setting::MicroBatch, &mut allow.micro_batch, given.micro_batch),
    ] {
        if fixed(setting) {
            *list = Some(vec![degree]);
        }
    }
    if fixed(Setting::Zero) {
        // One rank has nothing to shard; more ranks shard as the given ones do.
        allow.zero_stage.retain(|stage| *stage == given.zero_stage || *stage == 0);
        // A group of all ranks stays one if the data-parallel degree changes.
        if given.zero_stage > 0 && given.shard != given.data {
            allow.shard = Some(vec![given.shard]);
        }
    }
    if fixed(Setting::Schedule) {
        if given.pipeline > 1 {
            allow.schedule.retain(|schedule| *schedule == given.schedule);
            allow.virtual_stages = Some(vec![given.virtual_stages]);
        } else {
            // A new pipeline has the plainest order.
            allow.schedule.retain(|schedule| *schedule == ScheduleKind::OneFOneB);
            allow.virtual_stages = Some(vec![1]);
        }
    }
    if fixed(Setting::Recompute) {
        allow.recompute.retain(|policy| *policy == given.recompute);
        allow.partial_recompute = false;
    } else if !allow.recompute.contains(&Recompute::None) {
        allow.partial_recompute = false;
    }
    if fixed(Setting::SequenceParallel) {
        allow.sequence_parallel.retain(|on| *on == given.sequence_parallel || given.tensor == 1);
    }
    let empty = allow.zero_stage.is_empty()
        || allow.schedule.is_empty()
        || allow.recompute.is_empty()
        || allow.sequence_parallel.is_empty();
    (!empty).then_some(job)
}
