//! Runs of probes, and the selection of valid ones.
//!
//! A take is one run of a probe. Its times are normalised to the machine's usual speed by the reference
//! benchmark that runs next to its steps (the reference benchmark); if the reference benchmark, a rank or the
//! whole take is an outlier, the take is set aside and the probe runs again.

use super::{Assembly, CellKey};
use crate::probes::Probe;
use crate::quality;
use autodist_spec::profile::Sample;
use autodist_spec::{Collective, Doubt, DoubtKind, DoubtedCell, Profile};
use std::collections::{BTreeMap, BTreeSet};

/// A core's clock varies by less between its base and its maximum; a larger correction means that the
/// reference benchmark itself was disturbed, not the step, or that the two cannot be distinguished.
const CORRECTION: f64 = 2.0;
/// Threshold of an outlier: for a rank relative to its usual speed among the ranks, and for a take relative
/// to other takes of the same probe.
const UNLIKE: f64 = 1.5;
/// Number of takes that are needed to determine the usual speed of ranks.
const USUAL: usize = 3;
/// Maximum number of repeated measurements that are listed one by one.
const TOLD: usize = 6;

/// One run of a probe. Times are raw seconds.
#[derive(Debug, Default)]
pub(super) struct Take {
    pub probe: Option<Probe>,
    /// By rank: the reference benchmark next to each measured step, in seconds; 0 for a device without one.
    pub references: BTreeMap<usize, Vec<f64>>,
    pub cells: BTreeMap<CellKey, Vec<f64>>,
    /// Times by number of elements.
    pub updates: BTreeMap<u64, Vec<f64>>,
    pub norms: BTreeMap<u64, Vec<f64>>,
    pub overhead: Vec<f64>,
    /// Overhead of each step with sharded parameters, and its number of transfers.
    pub sharded_overhead: Vec<(f64, usize)>,
    /// Overhead of each step of a pipeline, and its number of passes.
    pub pipeline_overhead: Vec<(f64, usize)>,
    /// By rank: time of its layers / that of the fastest rank.
    pub slowness: BTreeMap<usize, f64>,
    /// Collectives inside a step, step by step: kind, group and bytes, with the mean time of the slowest
    /// group's ranks.
    pub in_step: Vec<Vec<(Collective, usize, usize, f64)>>,
    /// Median of the measured steps.
    pub step: f64,
    /// Sum of its cells' medians, as a multiple of the reference benchmark.
    level: f64,
    /// Why the take may be invalid.
    suspicion: Option<Suspicion>,
    /// Whether it was set aside, because its cells contradicted those of other probes.
    set_aside: bool,
    believed: bool,
}

#[derive(Debug, Clone)]
struct Suspicion {
    /// Whether the reference benchmark is the suspected part.
    correction: bool,
    figure: f64,
    reason: String,
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Sample::of(&values.into_iter().collect::<Vec<_>>()).median_s.0
}

impl Take {
    pub fn of(probe: Probe) -> Self {
        Self { probe: Some(probe), ..Self::default() }
    }

    /// Readings of the reference benchmark.
    pub fn beside(&self) -> impl Iterator<Item = f64> {
        self.references.values().flatten().copied().filter(|seconds| *seconds > 0.0)
    }

    /// The machine's speed during the run. A device without a reference has a constant one: times stay in
    /// seconds.
    pub fn reference(&self) -> f64 {
        match median(self.beside()) {
            unknown if unknown <= 0.0 => 1.0,
            known => known,
        }
    }

    fn times(&self, cell: &DoubtedCell) -> bool {
        match *cell {
            DoubtedCell::Segment { segment, pass, tensor, sequence_parallel, micro_batch, recompute } => {
                self.cells.contains_key(&(segment, pass, tensor, sequence_parallel, micro_batch, recompute))
            }
            DoubtedCell::Update { elements } => self.updates.contains_key(&elements),
            DoubtedCell::Collective { .. } | DoubtedCell::Message { .. } => false,
        }
    }
}

impl Assembly<'_> {
    pub(super) fn add(&mut self, take: Take) {
        if let Some((probe, reason)) = take.probe.and_then(|probe| self.unsettled.remove_entry(&probe)) {
            self.again.push(format!("layers at {}: {reason}", probe.words()));
        }
        let level = take.cells.values().map(|seconds| Sample::of(seconds).median_s.0).sum::<f64>();
        self.takes.push(Take { level: level / take.reference(), ..take });
        self.suspect();
        self.believe();
    }

    pub(super) fn has_run(&self, probe: &Probe) -> bool {
        self.takes.iter().any(|take| take.probe.as_ref() == Some(probe))
    }

    /// The probes that were run.
    pub(super) fn probes(&self) -> BTreeSet<Probe> {
        self.takes.iter().filter_map(|take| take.probe).collect()
    }

    pub fn unsettled(&self) -> impl Iterator<Item = &Probe> {
        self.unsettled.keys()
    }

    pub fn links_unsettled(&self) -> bool {
        self.links_unsettled.is_some()
    }

    /// The takes that the profile is based on.
    pub(super) fn believed(&self) -> impl Iterator<Item = &Take> {
        self.takes.iter().filter(|take| take.believed)
    }

    /// Times relative to the reference benchmark.
    pub(super) fn cells(&self) -> BTreeMap<CellKey, Vec<f64>> {
        self.multiples(|take| &take.cells)
    }

    pub(super) fn updates(&self) -> BTreeMap<u64, Vec<f64>> {
        self.multiples(|take| &take.updates)
    }

    pub(super) fn norms(&self) -> BTreeMap<u64, Vec<f64>> {
        self.multiples(|take| &take.norms)
    }

    fn multiples<K: Ord + Copy>(
        &self,
        of: impl Fn(&Take) -> &BTreeMap<K, Vec<f64>>,
    ) -> BTreeMap<K, Vec<f64>> {
        let mut all: BTreeMap<K, Vec<f64>> = BTreeMap::new();
        for take in self.believed() {
            let reference = take.reference();
            for (key, seconds) in of(take) {
                all.entry(*key).or_default().extend(seconds.iter().map(|s| s / reference));
            }
        }
        all
    }

    /// Compares every take with the others.
    fn suspect(&mut self) {
        let ranks: BTreeSet<usize> =
            self.takes.iter().flat_map(|take| take.references.keys().copied()).collect();
        let of_rank = |take: &Take, rank: usize| {
            take.references.get(&rank).map_or(0.0, |readings| median(readings.iter().copied()))
        };
        let usual = |values: Vec<f64>| (!values.is_empty()).then(|| (values.len(), median(values)));
        let mut speeds: BTreeMap<usize, f64> = BTreeMap::new();
        let mut slownesses: BTreeMap<usize, f64> = BTreeMap::new();
        for rank in ranks {
            let readings =
                self.takes.iter().map(|take| of_rank(take, rank)).filter(|seconds| *seconds > 0.0).collect();
            speeds.extend(usual(readings).map(|(_, speed)| (rank, speed)));
            let beside = self.takes.iter().filter_map(|take| take.slowness.get(&rank).copied()).collect();
            slownesses.extend(usual(beside).filter(|(n, _)| *n >= USUAL).map(|(_, ratio)| (rank, ratio)));
        }
        let found: Vec<Option<Suspicion>> = self
            .takes
            .iter()
            .map(|take| {
                let corrections = take.references.keys().filter_map(|rank| {
                    let (now, usual) = (of_rank(take, *rank), *speeds.get(rank)?);
                    (now > 0.0).then_some(now / usual)
                });
                let far = |ratio: &f64| ratio.max(1.0 / ratio);
                // A device without a reference benchmark has no correction.
                let worst = corrections.max_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(1.0);
                if far(&worst) > CORRECTION {
                    let reason = format!(
                        "the reference benchmark next to it took {worst:.2} times as long as usual; changes of clock frequency explain only {:.2} to {CORRECTION:.2}",
                        1.0 / CORRECTION
                    );
                    return Some(Suspicion { correction: true, figure: worst, reason });
                }
                let slow = take.slowness.iter().filter_map(|(rank, now)| {
                    Some((*rank, now / slownesses.get(rank).filter(|usual| **usual > 0.0)?))
                });
                let (rank, ratio) = slow.max_by(|a, b| a.1.total_cmp(&b.1))?;
                (ratio > UNLIKE).then(|| Suspicion {
                    correction: false,
                    figure: ratio,
                    reason: format!(
                        "relative to the other ranks, rank {rank} took {ratio:.2} times its usual time, more than {UNLIKE}"
                    ),
                })
            })
            .collect();
        for (take, suspicion) in self.takes.iter_mut().zip(found) {
            take.suspicion = suspicion;
        }
        for probe in self.probes() {
            self.suspect_repetitions(&probe);
        }
    }

    /// Marks outliers among the takes of one probe; if there are only two and they differ, both.
    fn suspect_repetitions(&mut self, probe: &Probe) {
        let sound = |take: &&mut Take| {
            take.probe.as_ref() == Some(probe) && take.suspicion.is_none() && !take.set_aside
        };
        let mut takes: Vec<&mut Take> = self.takes.iter_mut().filter(sound).collect();
        let levels: Vec<f64> = takes.iter().map(|take| take.level).collect();
        if levels.len() < 2 || levels.iter().any(|level| *level <= 0.0) {
            return;
        }
        let usual = median(levels.iter().copied());
        let (least, most) =
            levels.iter().fold((f64::INFINITY, 0.0_f64), |(l, m), level| (l.min(*level), m.max(*level)));
        let odd = |level: f64| match levels.len() {
            2 => most / least > UNLIKE,
            _ => (level / usual).max(usual / level) > UNLIKE,
        };
        for (take, level) in takes.iter_mut().zip(&levels).filter(|(_, level)| odd(**level)) {
            let figure = if levels.len() == 2 { most / least } else { level / usual };
            let reason = match levels.len() {
                2 => format!("two runs of it differ by a factor of {figure:.2}, more than {UNLIKE}"),
                n => format!("one of its {n} runs took {figure:.2} times the usual time"),
            };
            take.suspicion = Some(Suspicion { correction: false, figure, reason });
        }
    }

    /// Selects for every probe its takes without suspicion; if it has no such takes, those that contradict no
    /// other probe; otherwise all.
    fn believe(&mut self) {
        for probe in self.probes() {
            let of_probe = |take: &&mut Take| take.probe.as_ref() == Some(&probe);
            let mut takes: Vec<&mut Take> = self.takes.iter_mut().filter(of_probe).collect();
            let grade = |take: &Take| match (take.set_aside, &take.suspicion) {
                (false, None) => 0,
                (false, Some(_)) => 1,
                (true, _) => 2,
            };
            let best = takes.iter().map(|take| grade(take)).min();
            takes.iter_mut().for_each(|take| take.believed = Some(grade(take)) == best);
        }
    }

    /// Evaluates a round: decides which probes, and whether links, are measured again, and why.
    pub fn review(&mut self) {
        let doubts = quality::doubts(&self.profile(false));
        let mut reasons: BTreeMap<Probe, String> = BTreeMap::new();
        for take in self.takes.iter_mut().filter(|take| take.believed) {
            let Some(probe) = take.probe else { continue };
            let in_doubt = |of_segments: bool| {
                let kind =
                    move |doubt: &&Doubt| matches!(doubt.cell, DoubtedCell::Segment { .. }) == of_segments;
                doubts.iter().filter(kind).find(|doubt| take.times(&doubt.cell))
            };
            // Every take measures updates, so a doubtful update does not invalidate its segments.
            let of_segments = in_doubt(true);
            if let Some(doubt) = of_segments.or_else(|| in_doubt(false)) {
                take.set_aside = of_segments.is_some();
                let why = take.suspicion.as_ref().map(|suspicion| format!("; {}", suspicion.reason));
                reasons.insert(probe, format!("{} {}{}", doubt.cell, doubt.reason, why.unwrap_or_default()));
            } else if let Some(suspicion) = &take.suspicion {
                reasons.insert(probe, suspicion.reason.clone());
            }
        }
        self.believe();
        self.unsettled = reasons;
        let links =
            doubts.iter().find(|doubt| doubt.cell.is_of_links()).filter(|_| !self.collectives.is_empty());
        self.links_unsettled = links.map(|doubt| format!("{}: {}", doubt.cell, doubt.reason));
    }

    /// Messages for the reader of the profile about repeated measurements.
    pub(super) fn measured_again(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.again.iter().take(TOLD).map(|line| format!("measured again: {line}")).collect();
        if self.again.len() > TOLD {
            lines.push(format!("measured again: {} more", self.again.len() - TOLD));
        }
        lines
    }

    /// Cells whose every time had a larger correction than a clock explains, and that no other cells confirm.
    pub(super) fn unexplained(&self, profile: &Profile) -> Vec<Doubt> {
        let corrected = |take: &Take| {
            take.suspicion.as_ref().filter(|s| s.correction).map(|s| (s.figure, s.reason.clone()))
        };
        let mut cells: BTreeMap<CellKey, Option<(f64, String)>> = BTreeMap::new();
        for take in self.believed() {
            for key in take.cells.keys() {
                let found = corrected(take);
                cells
                    .entry(*key)
                    .and_modify(|known| *known = known.take().and(found.clone()))
                    .or_insert(found);
            }
        }
        if cells.values().all(Option::is_none) {
            return Vec::new();
        }
        let vouched = quality::vouched(profile, &quality::doubts(profile));
        let doubt = |(key, found): (CellKey, Option<(f64, String)>)| {
            let (figure, reason) = found?;
            let (segment, pass, tensor, sequence_parallel, micro_batch, recompute) = key;
            let cell =
                DoubtedCell::Segment { segment, pass, tensor, sequence_parallel, micro_batch, recompute };
            let limit = if figure > 1.0 { CORRECTION } else { 1.0 / CORRECTION };
            let kind = DoubtKind::Correction;
            (!vouched.contains(&cell)).then_some(Doubt { cell, kind, figure, limit, reason, used: false })
        };
        cells.into_iter().filter_map(doubt).collect()
    }
}
