//! Branch and bound: candidates in the order of their bounds, in batches of a size that does not depend on
//! the machine.

use crate::SearchLimits;
use crate::candidate::{Evaluator, Found, LowerBounds, NO_BOUNDS, Outcome, nanoseconds};
use crate::choice::Ranking;
use crate::points::Points;
use crate::refusal::MemoryShortfall;
use crate::space::{Candidate, candidates};
use crate::threads::with_threads;
use autodist_spec::{Bytes, PricedPoint, Rejection, SearchReport, Seconds, StopReason};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Candidates evaluated in parallel: constant, so that the result does not depend on the number of threads.
const BATCH: usize = 32;

/// Reason of candidates that were not simulated because their lower bound is too high.
const BOUND: &str = "lower bound above the best plan";

/// Reason of candidates that were not explored before the limit.
const NOT_REACHED: &str = "not explored before the limit";

/// Reason of candidates for which the profile lacks costs.
pub(crate) const UNPRICED: &str = "without a price";

/// Reason of candidates whose costs are based only on doubtful measurements.
const DOUBTED: &str = "based on a doubtful measurement";

/// Candidates out of memory that are compiled to find the nearest miss.
const NEAREST: usize = 32;

/// Which plans are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The given number of plans that differ in more than the bucket size, and unverified options; candidates that
    /// cannot be among them are not simulated.
    Best(usize),
    All,
}

pub(crate) struct SearchOutcome {
    /// The recommended plan, then the others.
    pub best: Vec<Found>,
    pub report: SearchReport,
    pub rejected: Vec<Rejection>,
    /// A selection of what the search looked at.
    pub priced: Vec<PricedPoint>,
    /// The candidate out of memory with the smallest shortfall.
    pub nearest_miss: Option<Box<MemoryShortfall>>,
    /// Hint for the first candidate without a price.
    pub unpriced_hint: Option<String>,
}

pub(crate) struct Search<'a> {
    evaluator: &'a Evaluator<'a>,
    limits: SearchLimits<'a>,
}

impl<'a> Search<'a> {
    pub fn new(evaluator: &'a Evaluator<'a>, limits: SearchLimits<'a>) -> Self {
        Self { evaluator, limits }
    }

    pub fn run(&self, keep: Keep) -> SearchOutcome {
        with_threads(self.limits.threads, || self.search(keep))
    }

    fn search(&self, keep: Keep) -> SearchOutcome {
        let evaluator = self.evaluator;
        let space = candidates(evaluator.model, evaluator.job, evaluator.cluster.device_count());
        let mut tally = Tally::default();
        let mut points = Points::default();
        let (lower_bounds, mut too_large) = self.bounded(&space, &mut tally, &mut points);
        let mut kept = Kept { keep, at_most: self.limits.at_most, ranking: Ranking::default() };
        let mut simulated = 0_u64;
        // Communication options beyond the first of each bucket size.
        let mut more = 0_u64;
        let mut next = 0;
        let stop_reason = loop {
            let threshold = kept.threshold();
            let open =
                lower_bounds[next..].partition_point(|p| threshold.is_none_or(|t| nanoseconds(p.time) <= t));
            let left = self.limits.max_simulations.map_or(u64::MAX, |max| max.saturating_sub(simulated));
            let size = self.batch(left).min(open);
            if open == 0 {
                break StopReason::Optimal;
            }
            if size == 0 {
                break StopReason::SimulationLimit;
            }
            if self.limits.deadline.is_some_and(|is_over| is_over()) {
                break StopReason::TimeLimit;
            }
            let batch = &lower_bounds[next..next + size];
            let outcomes: Vec<Vec<Vec<Outcome>>> = batch
                .par_iter()
                .map(|bounds| evaluator.evaluate(&space[bounds.index], bounds.by_cut, threshold))
                .collect();
            for (bounds, outcomes) in batch.iter().zip(outcomes) {
                let (candidate, sizes) = (&space[bounds.index], self.sizes(&space[bounds.index]));
                let mut found = Vec::new();
                for (cut, outcomes) in outcomes.into_iter().enumerate() {
                    // A cut that fails before it is compiled fails for all bucket sizes.
                    let shared = if outcomes.len() < sizes { sizes as u64 } else { 1 };
                    let counted = if cut == 0 { sizes } else { 0 };
                    more += (outcomes.len().max(sizes) - counted) as u64;
                    for outcome in outcomes {
                        match outcome {
                            Outcome::Found(plan) => found.push(*plan),
                            Outcome::Memory(shortfall) => {
                                tally.memory += shared;
                                too_large.push((shortfall.needs(), bounds.index));
                                points.too_large(bounds.time, shortfall.needs(), bounds.index);
                            }
                            other => tally.reject(candidate, &other, shared),
                        }
                    }
                }
                simulated += found.len() as u64;
                points.simulated(&found);
                kept.extend(found);
            }
            next += size;
        };
        let threshold = kept.threshold();
        for bounds in &lower_bounds[next..] {
            let candidate = &space[bounds.index];
            let hopeless = threshold.is_some_and(|t| nanoseconds(bounds.time) > t);
            let rule = if hopeless { BOUND } else { NOT_REACHED };
            tally.count(rule, self.sizes(candidate) as u64, || too_slow(candidate, bounds.time));
        }
        let nearest_miss = self.nearest_miss(&space, too_large);
        let open_bound =
            lower_bounds.get(next).filter(|_| stop_reason != StopReason::Optimal).map(|p| p.time);
        let explored = space.iter().map(|candidate| self.sizes(candidate) as u64).sum::<u64>() + more;
        let least = kept.ranking.least();
        let best = kept.chosen();
        SearchOutcome {
            unpriced_hint: tally.unpriced_hint.take(),
            report: report((explored, simulated), best.first(), least, open_bound, stop_reason),
            priced: points.selected(&space, &lower_bounds[next..]),
            rejected: tally.rejections(nearest_miss.as_deref(), best.first()),
            best,
            nearest_miss,
        }
    }

    /// Number of candidates in a batch: at most as many as simulations are left, for any result.
    fn batch(&self, simulations_left: u64) -> usize {
        let per_candidate = self.evaluator.job.allow.bucket_bytes.len() as u64;
        (simulations_left / per_candidate).min(BATCH as u64) as usize
    }

    /// Number of plans of a candidate.
    fn sizes(&self, candidate: &Candidate) -> usize {
        if candidate.strategy.zero_stage >= 2 { 1 } else { self.evaluator.job.allow.bucket_bytes.len() }
    }

    /// Legal candidates that may fit, by their bounds; and those that cannot fit, with their minimum memory.
    fn bounded(
        &self,
        space: &[Candidate],
        tally: &mut Tally,
        points: &mut Points,
    ) -> (Vec<LowerBounds>, Vec<(Bytes, usize)>) {
        let verdicts: Vec<_> =
            space.par_iter().map(|candidate| self.evaluator.legal(&candidate.strategy)).collect();
        let mut legal = Vec::new();
        for (index, verdict) in verdicts.into_iter().enumerate() {
            match verdict {
                Ok(()) => legal.push((index, &space[index])),
                Err(illegal) => {
                    tally.reject(&space[index], &Outcome::Illegal(illegal), self.sizes(&space[index]) as u64);
                }
            }
        }
        let (mut lower_bounds, mut too_large) = (Vec::new(), Vec::new());
        for (bounds, (index, candidate)) in self.evaluator.lower_bounds(&legal).into_iter().zip(legal) {
            match bounds {
                Ok(bounds) if bounds.fits => lower_bounds.push(bounds),
                Ok(bounds) => {
                    tally.memory += self.sizes(candidate) as u64;
                    too_large.push((bounds.memory, index));
                    points.too_large(bounds.time, bounds.memory, index);
                }
                Err(error) => {
                    tally.reject(candidate, &Outcome::Unpriced(error), self.sizes(candidate) as u64)
                }
            }
        }
        lower_bounds.sort_by(|a, b| a.time.0.total_cmp(&b.time.0).then(a.index.cmp(&b.index)));
        (lower_bounds, too_large)
    }

    fn nearest_miss(
        &self,
        space: &[Candidate],
        mut too_large: Vec<(Bytes, usize)>,
    ) -> Option<Box<MemoryShortfall>> {
        too_large.sort_unstable();
        let exact = |(_, index): &(Bytes, usize)| {
            let outcomes = self.evaluator.evaluate(&space[*index], NO_BOUNDS, Some(0)).into_iter().flatten();
            let misses = outcomes.filter_map(|outcome| match outcome {
                Outcome::Memory(shortfall) => Some(shortfall),
                _ => None,
            });
            misses.min_by_key(|shortfall| shortfall.needs())
        };
        let nearest: Vec<_> = too_large.par_iter().take(NEAREST).map(exact).collect();
        nearest.into_iter().flatten().min_by_key(|shortfall| shortfall.needs())
    }
}

/// `least` is the time of the fastest plan, which need not be the choice, and `open` the bound of what was not searched.
fn report(
    (explored, simulated): (u64, u64),
    choice: Option<&Found>,
    least: Option<Seconds>,
    open: Option<Seconds>,
    stop_reason: StopReason,
) -> SearchReport {
    let choice = choice.map(|found| found.merit);
    // Without a plan whose cost in steps is known, the choice is a lossy one.
    let bounds = [least.or(choice), open].into_iter().flatten();
    let lower_bound_s = bounds.reduce(Seconds::min).unwrap_or_default();
    let gap = choice.map_or(0.0, |choice| choice / lower_bound_s - 1.0);
    SearchReport { explored, pruned: explored - simulated, simulated, lower_bound_s, gap, stop_reason }
}

/// The plans so far.
struct Kept {
    keep: Keep,
    at_most: Option<Seconds>,
    ranking: Ranking,
}

impl Kept {
    /// The time, in nanoseconds, that a candidate must not exceed.
    fn threshold(&self) -> Option<u64> {
        let Keep::Best(count) = self.keep else { return None };
        let given = self.at_most.map(nanoseconds);
        self.ranking.threshold(count).into_iter().chain(given).min()
    }

    /// Adds the plans of one candidate.
    fn extend(&mut self, family: Vec<Found>) {
        match self.keep {
            Keep::All => self.ranking.extend(family, true),
            Keep::Best(count) => {
                self.ranking.extend(family, false);
                self.ranking.prune(count);
            }
        }
    }

    fn chosen(self) -> Vec<Found> {
        self.ranking.chosen(match self.keep {
            Keep::All => None,
            Keep::Best(count) => Some(count),
        })
    }
}

fn too_slow(candidate: &Candidate, bound: Seconds) -> String {
    format!("the lower bound of {} is {bound}", candidate.strategy.label())
}

/// Rejected plans, counted by reason, each explained by its first example.
#[derive(Default)]
struct Tally {
    reasons: BTreeMap<&'static str, (u64, String)>,
    memory: u64,
    unpriced_hint: Option<String>,
}

impl Tally {
    fn reject(&mut self, candidate: &Candidate, outcome: &Outcome, count: u64) {
        let label = || candidate.strategy.label();
        match outcome {
            Outcome::Illegal(illegal) => {
                self.count(illegal.rule.name(), count, || format!("{}: {illegal}", label()))
            }
            Outcome::Unpriced(error) => {
                self.unpriced_hint.get_or_insert_with(|| error.hint.clone());
                let rule = if error.doubted { DOUBTED } else { UNPRICED };
                self.count(rule, count, || format!("{}: {}", label(), error.what));
            }
            Outcome::Same => self.count("duplicate of another plan", count, || {
                format!("{}: another plan runs the same operations", label())
            }),
            Outcome::Bounded(bound) => self.count(BOUND, count, || too_slow(candidate, *bound)),
            Outcome::Memory(_) | Outcome::Found(_) => {}
        }
    }

    /// Only the first of a kind formats its example: there can be hundreds of thousands.
    fn count(&mut self, rule: &'static str, count: u64, example: impl FnOnce() -> String) {
        self.reasons.entry(rule).or_insert_with(|| (0, example())).0 += count;
    }

    fn rejections(self, nearest: Option<&MemoryShortfall>, best: Option<&Found>) -> Vec<Rejection> {
        let mut list: Vec<Rejection> = Vec::new();
        if let Some(shortfall) = nearest {
            list.push(Rejection {
                rule: "memory".to_owned(),
                count: self.memory,
                example: shortfall.to_string(),
            });
        }
        for (rule, (count, mut example)) in self.reasons {
            if let Some(best) = best.filter(|_| rule == BOUND) {
                example += &format!("; the best plan takes {}", best.merit);
            }
            list.push(Rejection { rule: rule.to_owned(), count, example });
        }
        list
    }
}
