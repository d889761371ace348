//! A selection of the layouts that a search looked at, as points for a figure: plan documents keep few plans
//! whole, and these beside them.

use crate::candidate::{Found, LowerBounds};
use crate::space::Candidate;
use autodist_spec::strategy::label;
use autodist_spec::{Bytes, PricedOutcome, PricedPoint, Seconds};

/// Layouts that are slower than the fastest by more than this factor are left out.
const IN_SIGHT: f64 = 4.0;

/// What a search has looked at so far.
#[derive(Default)]
pub(crate) struct Points {
    simulated: Vec<PricedPoint>,
    /// Candidates that do not fit.
    too_large: Vec<Bound>,
}

/// A lower bound of the time and of the memory of a candidate, by its index in the space.
type Bound = (Seconds, Bytes, usize);

impl Points {
    pub fn simulated(&mut self, family: &[Found]) {
        // Of plans that differ only in bucket size, the one that a search would keep.
        let Some(found) = family.iter().min_by(|a, b| a.rank().cmp(&b.rank())) else { return };
        self.simulated.push(PricedPoint {
            label: label(&found.strategy, &found.stages),
            outcome: PricedOutcome::Simulated,
            step_time_s: found.estimate.step_time_s,
            peak_memory_bytes: found.estimate.peak_memory_bytes,
        });
    }

    pub fn too_large(&mut self, time: Seconds, memory: Bytes, index: usize) {
        self.too_large.push((time, memory, index));
    }

    /// At most [`PricedPoint::MOST`] points: three fifths simulated ones, the rest those out of memory and those
    /// whose bounds (`left`) were too high. Of each outcome, the best half of its share, the others at equal
    /// distances in their order.
    pub fn selected(self, space: &[Candidate], left: &[LowerBounds]) -> Vec<PricedPoint> {
        let times = self.simulated.iter().map(|point| point.step_time_s);
        let limit = times.fold(Seconds(f64::INFINITY), Seconds::min) * IN_SIGHT;
        let bounded = left.iter().map(|bounds| (bounds.time, bounds.memory, bounds.index)).collect();
        let few = PricedPoint::MOST / 5;
        // A candidate misses once for each cut of its layers: the least of them.
        let mut too_large = self.too_large;
        too_large.sort_by_key(|bound| (bound.2, bound.1));
        too_large.dedup_by_key(|bound| bound.2);
        let time = |point: &PricedPoint| point.step_time_s.0;
        let mut simulated = self.simulated;
        simulated.retain(|point| time(point) <= limit.0);
        let mut points = thinned(simulated, PricedPoint::MOST - 2 * few, time);
        // Of those that do not fit, the fast ones that miss it narrowly are worth most.
        let missing = |bound: &Bound| bound.0.0 * bound.1.as_f64();
        let by_time = |bound: &Bound| bound.0.0;
        for (outcome, mut bounds, key) in [
            (PricedOutcome::OutOfMemory, too_large, &missing as &dyn Fn(&Bound) -> f64),
            (PricedOutcome::Bounded, bounded, &by_time),
        ] {
            bounds.retain(|bound| bound.0 <= limit);
            for (step_time_s, peak_memory_bytes, index) in thinned(bounds, few, key) {
                let label = space[index].strategy.label();
                points.push(PricedPoint { label, outcome, step_time_s, peak_memory_bytes });
            }
        }
        points
    }
}

fn thinned<T>(mut all: Vec<T>, most: usize, key: impl Fn(&T) -> f64) -> Vec<T> {
    // Stable: equal ones stay in the order of the search.
    all.sort_by(|a, b| key(a).total_cmp(&key(b)));
    if all.len() <= most {
        return all;
    }
    let (best, others) = (most / 2, most - most / 2);
    let (count, mut index) = (all.len() - best, 0);
    all.retain(|_| {
        let rest = index.max(best) - best;
        // One of every `count / others`.
        let kept = index < best || (rest + 1) * others / count > rest * others / count;
        index += 1;
        kept
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_are_kept_and_the_others_thinned_evenly() {
        let all: Vec<u32> = (0..1000).rev().collect();
        let key = |n: &u32| f64::from(*n);
        let kept = thinned(all.clone(), 20, key);
        assert_eq!(kept.len(), 20);
        assert_eq!(kept[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(kept[19], 999);
        assert!(kept[10..].windows(2).all(|pair| pair[1] - pair[0] == 99), "{kept:?}");
        assert_eq!(thinned(all, 2000, key).len(), 1000);
    }
}
