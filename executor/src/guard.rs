//! Watches how well a bucket's gradients are compressed, and decides when to send them uncompressed instead.
//!
//! Error feedback converges because a codec is a contraction: it loses at most a fraction `1 - δ` of the
//! squared norm, with `δ > 0` (Karimireddy et al., 1901.09847). Every step measures δ without additional
//! cost. Codecs without error feedback are unbiased or nearly exact instead, and are not watched.

use crate::thinned::Thinned;
use autodist_codecs::CodingQuality;
use autodist_spec::Codec;
use autodist_spec::run::{BucketCompression, Fallback, FallbackReason};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The conditions for a bucket to fall back to uncompressed gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Steps between the votes of a group; each vote is an all-reduce (max) of one number.
    pub every: u32,
    /// Number of consecutive votes over which a reason must hold.
    pub patience: u32,
    /// Contraction below which a step counts as lost. For comparison, the largest thousandth of the entries
    /// of white noise has eight times as much.
    pub floor: f64,
}

impl Default for Guard {
    fn default() -> Self {
        Self { every: 10, patience: 5, floor: 1e-3 }
    }
}

/// Maximum number of steps whose contraction and kept error are recorded, however long the training.
const KEPT: usize = 4096;

/// L2 norms of the kept error and of the gradient at a vote.
#[derive(Debug, Clone, Copy)]
struct Norms {
    error: f64,
    gradient: f64,
}

/// The state of one bucket on one member.
#[derive(Debug)]
pub struct Watch {
    guard: Guard,
    pub pipeline_rank: u32,
    pub bucket: u32,
    pub codec: Codec,
    step: u32,
    contractions: Thinned<f64>,
    lowest: f64,
    /// Contractions of the last steps, over the votes' window.
    recent: VecDeque<f64>,
    errors: Thinned<f64>,
    last_error: f64,
    /// Norms of the last votes, oldest first; one more than the patience, to detect growth.
    norms: VecDeque<Norms>,
    /// Consecutive lost steps.
    lost: u32,
    fallback: Option<Fallback>,
}

impl Watch {
    pub fn new(guard: Guard, pipeline_rank: usize, bucket: usize, codec: Codec) -> Self {
        Self {
            guard,
            pipeline_rank: pipeline_rank as u32,
            bucket: bucket as u32,
            codec,
            step: 0,
            contractions: Thinned::new(KEPT),
            lowest: f64::INFINITY,
            recent: VecDeque::new(),
            errors: Thinned::new(KEPT),
            last_error: 0.0,
            norms: VecDeque::new(),
            lost: 0,
            fallback: None,
        }
    }

    /// Whether the current step ends with a vote.
    pub fn votes(&self) -> bool {
        self.fallback.is_none() && (self.step + 1) % self.guard.every.max(1) == 0
    }

    /// Records a step; `gradient` is this member's norm if the step has a vote. Returns this member's vote,
    /// which must be reduced over all members.
    pub fn observe(&mut self, report: CodingQuality, gradient: Option<f64>) -> Option<FallbackReason> {
        self.step += 1;
        // Steps that lose nothing are those of a warm-up, or of a bucket without anything to compress.
        // Overflows are visible in the loss.
        if report.contraction < 1.0 && report.contraction.is_finite() && report.error_norm.is_finite() {
            self.contractions.push(report.contraction);
            self.lowest = self.lowest.min(report.contraction);
            self.recent.push_back(report.contraction);
            if self.recent.len() > (self.guard.every * self.guard.patience) as usize {
                self.recent.pop_front();
            }
            self.errors.push(report.error_norm);
            self.last_error = report.error_norm;
        }
        self.lost = if report.contraction < self.guard.floor { self.lost + 1 } else { 0 };
        let norms = Norms { error: report.error_norm, gradient: gradient? };
        self.norms.push_back(norms);
        if self.norms.len() > self.guard.patience as usize + 1 {
            self.norms.pop_front();
        }
        if self.lost >= self.guard.every * self.guard.patience {
            Some(FallbackReason::Contraction)
        } else if self.grows() {
            Some(FallbackReason::ErrorGrowth)
        } else {
            None
        }
    }

    /// Whether the kept error grew from vote to vote and now exceeds the bound of a contraction: with
    /// gradients of norm G it stays within `2 sqrt(1 - δ) / δ · G` (1901.09847, lemma 3).
    fn grows(&self) -> bool {
        let norms = &self.norms;
        let (Some(last), true) = (norms.back(), norms.len() > self.guard.patience as usize) else {
            return false;
        };
        let growing =
            norms.iter().zip(norms.iter().skip(1)).all(|(before, after)| after.error > before.error);
        let recent: Vec<f64> = self.recent.iter().copied().collect();
        let delta = median(&recent).clamp(self.guard.floor.max(f64::MIN_POSITIVE), 1.0);
        let largest = norms.iter().fold(0.0, |most, n| n.gradient.max(most));
        growing && last.error > 2.0 * (1.0 - delta).sqrt() / delta * largest
    }

    /// Records that all members agreed to stop after this step.
    pub fn fell_back(&mut self, reason: FallbackReason) {
        self.fallback = Some(Fallback { step: self.step - 1, reason });
    }

    /// The record; `None` if nothing was compressed.
    pub fn record(&self) -> Option<BucketCompression> {
        let (contractions, errors) = (self.contractions.kept(), self.errors.kept());
        let halfway = *errors.get(errors.len() / 2)?;
        Some(BucketCompression {
            pipeline_rank: self.pipeline_rank,
            bucket: self.bucket,
            codec: self.codec,
            contraction_median: median(contractions),
            contraction_lowest: self.lowest,
            error_growth: if halfway > 0.0 { (self.last_error / halfway).min(f64::MAX) } else { 0.0 },
            fallback: self.fallback,
        })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(1.0)
}

/// One entry per bucket: members have the same collectives, each with its own gradient.
pub fn merge(members: impl Iterator<Item = BucketCompression>) -> Vec<BucketCompression> {
    let mut merged: Vec<(BucketCompression, Vec<f64>)> = Vec::new();
    for member in members {
        let same =
            |b: &BucketCompression| (b.pipeline_rank, b.bucket) == (member.pipeline_rank, member.bucket);
        match merged.iter_mut().find(|(known, _)| same(known)) {
            Some((known, medians)) => {
                medians.push(member.contraction_median);
                known.contraction_lowest = known.contraction_lowest.min(member.contraction_lowest);
                known.error_growth = known.error_growth.max(member.error_growth);
                known.fallback = known.fallback.or(member.fallback);
            }
            None => merged.push((member, vec![member.contraction_median])),
        }
    }
    let mut list: Vec<_> = merged
        .into_iter()
        .map(|(bucket, medians)| BucketCompression { contraction_median: median(&medians), ..bucket })
        .collect();
    list.sort_by_key(|b| (b.pipeline_rank, b.bucket));
    list
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn watch(guard: Guard) -> Watch {
        Watch::new(guard, 0, 0, Codec::TopK { per_mille: 1 })
    }

    /// The step after which the guard falls back, and the reason.
    fn trips(report: impl Fn(u32) -> (f64, f64)) -> Option<(u32, FallbackReason)> {
        let mut watch = watch(Guard::default());
        (0..400).find_map(|step| {
            let (contraction, error_norm) = report(step);
            let gradient = watch.votes().then_some(1.0);
            watch.observe(CodingQuality { contraction, error_norm }, gradient).map(|reason| (step, reason))
        })
    }

    #[test]
    fn a_contraction_that_stays_too_weak_trips() {
        assert_eq!(trips(|_| (0.0, 1.0)), Some((49, FallbackReason::Contraction)));
        assert_eq!(
            trips(|step| (if step < 100 { 0.5 } else { -0.1 }, 1.0)),
            Some((149, FallbackReason::Contraction))
        );
        // One good step among them is enough.
        assert_eq!(trips(|step| (if step % 40 == 0 { 0.2 } else { 0.0 }, 1.0)), None);
    }

    #[test]
    fn errors_beyond_what_a_contraction_leaves_trip_while_they_grow() {
        // With δ = 0.5 they stay within 2.83 gradients.
        let growth = trips(|step| (0.5, 0.1 * f64::from(step)));
        assert_eq!(growth, Some((59, FallbackReason::ErrorGrowth)));
        assert_eq!(trips(|step| (0.5, f64::from(step.min(27)) / 10.0)), None);
        // Large, but not growing: gradients have shrunk.
        assert_eq!(trips(|step| (0.5, 100.0 - 0.1 * f64::from(step))), None);
        // White noise with the largest thousandth sent: errors grow for a long time, as expected.
        assert_eq!(trips(|step| (0.01, f64::from(step).sqrt().min(10.0))), None);
    }

    #[test]
    fn what_is_watched_does_not_grow_with_the_steps() {
        let mut watch = watch(Guard::default());
        for step in 0..20_000 {
            let contraction = if step == 7 { -0.5 } else { 0.5 };
            watch.observe(CodingQuality { contraction, error_norm: 1.0 + f64::from(step) }, None);
        }
        watch.observe(CodingQuality { contraction: f64::NEG_INFINITY, error_norm: f64::INFINITY }, None);
        assert!(watch.contractions.kept().len() <= KEPT && watch.errors.kept().len() <= KEPT);
        assert_eq!(watch.recent.len(), 50);
        let record = watch.record().unwrap();
        assert_eq!((record.contraction_median, record.contraction_lowest), (0.5, -0.5));
        assert!((record.error_growth - 2.0).abs() < 0.01, "{record:?}");
    }

    #[test]
    fn members_become_one_record() {
        let mut members = Vec::new();
        for (contraction, error) in [(0.5, 1.0), (0.3, 2.0)] {
            let mut watch = watch(Guard::default());
            watch.observe(CodingQuality { contraction, error_norm: 1.0 }, None);
            watch.observe(CodingQuality { contraction: contraction / 2.0, error_norm: error }, None);
            watch.observe(CodingQuality { contraction, error_norm: 2.0 * error }, None);
            members.extend(watch.record());
        }
        let merged = merge(members.into_iter());
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].contraction_median, merged[0].contraction_lowest), (0.5, 0.15));
        assert_eq!((merged[0].error_growth, merged[0].fallback), (2.0, None));
    }
}
