//! Which of the plans that were found is recommended, and why the others rank below it.
//!
//! The recommended plan is the fastest one that can be trusted, or a simpler one that is as fast:
//! 1. A lossy plan whose cost in steps is only a prior is never recommended: it is an option, to be verified.
//! 2. A plan that is more likely to run out of memory than [`MOST_RISK`](autodist_spec::estimate::MOST_RISK) is
//!    recommended only if every safer one is more than [`SAFETY`] slower.
//! 3. Of the plans within [`TIE`] of the fastest that is left, the one with the lowest [`complexity`].

use crate::candidate::{Found, nanoseconds};
use crate::reason::Comparison;
use autodist_spec::strategy::some_recompute;
use autodist_spec::{Alternative, ParallelStrategy, ScheduleKind, Seconds};
use std::cmp::Ordering;

/// Plans whose times differ by less are equally fast: errors of layouts of one job scatter by 2 % among each other
/// (docs/validation.md).
pub(crate) const TIE: f64 = 0.01;

/// The most that a plan may be slower than the fastest, for being less likely to run out of memory.
pub(crate) const SAFETY: f64 = 0.10;

/// The number of unverified lossy plans in a document.
const OPTIONS: usize = 3;

/// What makes a layout hard to run, to debug and to change, the most important first: the number of kinds of
/// parallelism, the degrees of pipeline, context, expert and tensor parallelism, virtual stages, the schedule,
/// whether only some blocks are recomputed, and the tenth of the devices' memory that it fills.
fn complexity(found: &Found) -> impl Ord + use<> {
    (structure(found), filled(found))
}

fn filled(found: &Found) -> u64 {
    (10.0 * found.fullness).ceil() as u64
}

fn structure(found: &Found) -> impl Ord + use<> {
    let ParallelStrategy { tensor, pipeline, context, expert, virtual_stages, .. } = found.strategy;
    let schedule = match found.strategy.schedule {
        ScheduleKind::OneFOneB => 0,
        ScheduleKind::GPipe => 1,
        ScheduleKind::Interleaved => 2,
    };
    let degrees = (pipeline, context, expert, tensor, virtual_stages);
    let mixed = some_recompute(&found.strategy, &found.stages).is_some();
    (kinds(found), degrees, schedule, mixed)
}

/// Kinds of parallelism beyond data parallelism, and codecs.
fn kinds(found: &Found) -> usize {
    let ParallelStrategy { tensor, pipeline, context, expert, zero_stage, shard, data, .. } = found.strategy;
    let split = [tensor, pipeline, context, expert].iter().filter(|degree| **degree > 1).count();
    let (grouped, lossy) = (zero_stage > 0 && shard < data, found.estimate.slowdown.is_some());
    split + usize::from(grouped) + usize::from(lossy)
}

/// The plans of a search that may be recommended or named, the fastest first.
#[derive(Debug, Default)]
pub(crate) struct Ranking {
    /// Plans whose cost in steps is known.
    verified: Vec<Found>,
    /// Lossy plans whose cost in steps is a prior.
    unverified: Vec<Found>,
}

impl Ranking {
    /// Adds the plans of one candidate, which differ in bucket size, communication, and the cut of the layers. Of
    /// these, only the best is kept unless `all` are, and the best of those that are not risky.
    pub fn extend(&mut self, mut family: Vec<Found>, all: bool) {
        family.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let mut known = Vec::new();
        for found in family {
            let kind = (found.estimate.is_unverified(), found.estimate.is_risky());
            if known.contains(&kind) && !all {
                continue;
            }
            known.push(kind);
            let list = if kind.0 { &mut self.unverified } else { &mut self.verified };
            let at = list.partition_point(|other| other.rank() <= found.rank());
            list.insert(at, found);
        }
    }

    /// Takes the unverified plans as the others: the job allows no exact ones.
    fn fall_back(&mut self) {
        if self.verified.is_empty() {
            self.verified = std::mem::take(&mut self.unverified);
        }
    }

    /// The fastest plan that may be recommended for its speed, be it risky or not.
    fn fastest(&self) -> Option<&Found> {
        self.verified.first()
    }

    /// The fastest plan that is not risky, unless it is too slow.
    fn safest(&self) -> Option<&Found> {
        let most = self.fastest()?.merit.0 * (1.0 + SAFETY);
        self.verified.iter().find(|found| !found.estimate.is_risky()).filter(|found| found.merit.0 <= most)
    }

    /// The time, in nanoseconds, above which no plan is needed any more if `count` are kept; `None` as long as every
    /// plan is.
    pub fn threshold(&self, count: usize) -> Option<u64> {
        let fastest = self.fastest()?.merit;
        let enough = self.verified.get(count.max(1) - 1)?.merit;
        // Ties of the plan that is recommended, or the plan that is less likely to run out of memory.
        let choice = self.safest().map_or(fastest.0 * (1.0 + SAFETY), |found| found.merit.0 * (1.0 + TIE));
        Some(nanoseconds(enough.max(Seconds(choice))))
    }

    /// Forgets the plans that are not needed any more.
    pub fn prune(&mut self, count: usize) {
        if let Some(threshold) = self.threshold(count) {
            self.verified.retain(|found| nanoseconds(found.merit) <= threshold);
        }
        self.unverified.truncate(OPTIONS);
    }

    /// The time of the fastest plan whose cost in steps is known.
    pub fn least(&self) -> Option<Seconds> {
        self.fastest().map(|found| found.merit)
    }

    /// The recommended plan, then the others: those whose cost in steps is known by their times, then lossy ones that
    /// would be faster if their priors held. At most `count` of the former; all of them without it.
    pub fn chosen(mut self, count: Option<usize>) -> Vec<Found> {
        self.fall_back();
        let Some(basis) = self.safest().or(self.fastest()) else { return Vec::new() };
        let (most, risky) = (basis.merit.0 * (1.0 + TIE), basis.estimate.is_risky());
        let tied = self
            .verified
            .iter()
            .enumerate()
            .filter(|(_, found)| found.merit.0 <= most && (risky || !found.estimate.is_risky()));
        // Of equals, the fastest.
        let Some((index, _)) = tied.min_by_key(|(_, found)| complexity(found)) else { return Vec::new() };
        let choice = self.verified.remove(index);
        let least = choice.merit;
        let others = self.verified.into_iter().take(count.map_or(usize::MAX, |count| count.max(1) - 1));
        let options = self.unverified.into_iter().filter(|found| count.is_none() || found.merit < least);
        std::iter::once(choice).chain(others).chain(options).collect()
    }
}

impl Found {
    /// This plan as an alternative to the one that is recommended.
    pub fn below(self, choice: &Self) -> Alternative {
        let merit = match structure(choice).cmp(&structure(&self)) {
            Ordering::Less => Some("is simpler"),
            Ordering::Equal if filled(choice) < filled(&self) => Some("leaves more memory free"),
            _ => None,
        };
        let reason = Comparison::of(&choice.estimate, &self.estimate).with_doubts(&self.estimate, merit);
        Alternative { strategy: self.strategy, stages: self.stages, estimate: self.estimate, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_cost_model::synthetic::SyntheticMachine;
    use autodist_spec::{Job, Provenance, Slowdown, catalog};

    /// A plan of a strategy with this time, chance to run out of memory, and cost in steps.
    fn found(strategy: ParallelStrategy, time: f64, risk: f64, steps: Option<(f64, Provenance)>) -> Found {
        let (model, job) = (catalog::model("tiny-llama").unwrap(), Job::new(8, 64));
        let profile = SyntheticMachine::new(1).profile(&model, &job);
        let plan = crate::Planner::new(&model, &profile.cluster, &job, &profile).plan().unwrap();
        let mut estimate = plan.estimate;
        estimate.step_time_s = Seconds(time);
        estimate.memory_risk = Some(risk);
        estimate.slowdown = steps.map(|(factor, provenance)| Slowdown { factor, provenance, noise: None });
        let merit = Seconds(time * steps.map_or(1.0, |steps| steps.0));
        Found { strategy, stages: plan.stages, estimate, merit, fullness: 0.5 }
    }

    fn pipeline(degree: u32) -> ParallelStrategy {
        ParallelStrategy { pipeline: degree, ..ParallelStrategy::data_parallel(1, 1) }
    }

    /// The times of the plans of a document.
    fn chosen(plans: &[Found], count: usize) -> Vec<f64> {
        let mut ranking = Ranking::default();
        for plan in plans {
            ranking.extend(vec![plan.clone()], false);
            ranking.prune(count);
        }
        ranking.chosen(Some(count)).iter().map(|found| found.estimate.step_time_s.0).collect()
    }

    #[test]
    fn a_prior_never_wins() {
        let lossy = |time, steps| found(pipeline(1), time, 0.0, Some(steps));
        let exact = found(pipeline(2), 1.0, 0.0, None);
        let prior = (1.0, Provenance::Assumed);
        assert_eq!(chosen(&[lossy(0.5, prior), exact.clone()], 5), [1.0, 0.5]);
        // A lossy plan that is no faster is no option, and a measured one is a plan like others.
        assert_eq!(chosen(&[lossy(1.5, prior), exact.clone()], 5), [1.0]);
        assert_eq!(chosen(&[lossy(0.5, (1.1, Provenance::Measured)), exact.clone()], 5), [0.5, 1.0]);
        assert_eq!(chosen(&[lossy(0.5, (2.1, Provenance::Measured)), exact], 5), [1.0, 0.5]);
        // If the job allows no exact plan, there is no other choice.
        assert_eq!(chosen(&[lossy(0.5, prior), lossy(0.4, prior)], 5), [0.4, 0.5]);
    }

    #[test]
    fn memory_at_its_edge_is_an_option_unless_safety_is_dear() {
        let edge = found(pipeline(1), 1.0, 0.12, None);
        assert_eq!(chosen(&[edge.clone(), found(pipeline(2), 1.09, 0.01, None)], 5), [1.09, 1.0]);
        assert_eq!(chosen(&[edge.clone(), found(pipeline(2), 1.11, 0.01, None)], 5), [1.0, 1.11]);
        // The safer plan is kept even if only one is.
        assert_eq!(chosen(&[edge, found(pipeline(2), 1.09, 0.01, None)], 1), [1.09]);
    }

    #[test]
    fn of_plans_that_are_as_fast_the_simplest_is_chosen() {
        let plans =
            [(4, 1.0), (2, 1.005), (1, 1.02)].map(|(degree, time)| found(pipeline(degree), time, 0.0, None));
        assert_eq!(chosen(&plans, 5), [1.005, 1.0, 1.02]);
        // Of equally simple ones, the one that leaves a tenth of the memory more; of equal ones, the fastest.
        let filling = |time, fullness| Found { fullness, ..found(pipeline(1), time, 0.0, None) };
        assert_eq!(chosen(&[filling(1.0, 0.85), filling(1.002, 0.55)], 5), [1.002, 1.0]);
        assert_eq!(chosen(&[filling(1.0, 0.57), filling(1.002, 0.55)], 5), [1.0, 1.002]);
        let reason = found(pipeline(4), 1.0, 0.0, None).below(&plans[1]).reason;
        assert!(reason.ends_with("within the error, and the first is simpler"), "{reason}");
    }
}
