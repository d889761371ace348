//! From what was collected to a Profile.

use super::fits::fits;
use super::{Assembly, Cell, CellKey};
use crate::{machines, probes};
use autodist_spec::profile::{
    CollectiveCost, CollectiveKind, Interference, MessageCost, OptimizerCost, PipeliningCost, Sample,
    SegmentCost,
};
use autodist_spec::{Bytes, DeviceKind, Machine, Profile, Provenance, SCHEMA_VERSION, ScheduleKind, Seconds};
use std::collections::BTreeMap;

impl Assembly<'_> {
    /// The profile so far.
    pub fn profile(&self, complete: bool) -> Profile {
        let request = self.request;
        let mut segments: Vec<SegmentCost> =
            self.cells.iter().map(|(key, cell)| segment_cost(key, cell, self.scale())).collect();
        let collectives = collective_costs(&self.collectives);
        let messages: Vec<MessageCost> = self
            .messages
            .iter()
            .map(|((stride, bytes), seconds)| MessageCost {
                stride: *stride as u32,
                bytes: Bytes(*bytes as u64),
                time: Sample::of(seconds),
            })
            .collect();
        let peak = self.overlap.as_ref().map(|o| o.peak_flops_per_s);
        let mut environment = self.environment.clone();
        environment.realtime &= self.realtime;
        environment.warnings = self.warnings();
        let known = self.network.as_ref().or(self.earlier.as_ref().and_then(|p| p.network.as_ref()));
        let cluster = match (&request.emulated, &self.earlier) {
            (Some(cluster), _) => cluster.clone(),
            // Of the devices nothing more has been learnt.
            (None, Some(earlier)) if self.overlap.is_none() => earlier.cluster.clone(),
            _ => machines::cluster(request, peak, &self.hardware, &environment, known),
        };
        let mut profile = Profile {
            schema_version: SCHEMA_VERSION,
            model: request.model.clone(),
            seq_len: request.job.seq_len,
            precision: request.job.precision,
            hardware: self.hardware.clone(),
            optimizer_kind: request.job.optimizer,
            cluster,
            environment,
            complete,
            network: self.network.clone().filter(|_| self.by_schedule),
            codecs: self.codecs(),
            exchanges: collective_costs(&self.exchanges),
            within_steps: self.within_steps(),
            fits: fits(&collectives, &messages),
            collectives,
            messages,
            optimizer: self.optimizer(),
            interference: self.interference(),
            synchronisation: self.synchronisation(),
            zero_s_per_element: self.overlap.as_ref().map_or(0.0, |o| Sample::of(&o.zeroing).median_s.0),
            add_s_per_element: self.overlap.as_ref().map_or(0.0, |o| Sample::of(&o.adding).median_s.0),
            stream_handover: Sample::of(&self.handover),
            sharding: self.sharding(),
            pipelining: self.pipelining(),
            step_overhead: Sample::of(&self.overhead),
            baseline_bytes: Bytes(self.baseline),
            staging_bytes: Bytes(self.staging),
            reference_s: Seconds(self.reference()),
            repeatability: self.repeatability(),
            segments: Vec::new(),
        };
        if let Some(earlier) = &self.earlier {
            let known = |c: &SegmentCost| {
                (c.segment, c.pass, c.tensor, c.sequence_parallel, c.micro_batch, c.recompute)
            };
            segments.extend(earlier.segments.iter().filter(|c| !self.cells.contains_key(&known(c))).cloned());
            segments.sort_by_key(known);
            adopt(&mut profile, earlier);
        }
        profile.segments = segments;
        profile
    }

    /// The speed of the machine to which all times are brought: its median while the probes ran, or that of the
    /// earlier profile.
    fn reference(&self) -> f64 {
        match &self.earlier {
            Some(earlier) if earlier.reference_s.0 > 0.0 => earlier.reference_s.0,
            _ => Sample::of(&self.references).median_s.0,
        }
    }

    /// Seconds of a multiple of the reference.
    fn scale(&self) -> f64 {
        let reference = self.reference();
        if reference > 0.0 { reference } else { 1.0 }
    }

    /// What an engine does around a transfer, beyond what a step costs it anyway.
    fn sharding(&self) -> Option<Sample> {
        let step = self.step_overhead();
        let of_step = |(seconds, transfers): &(f64, usize)| (seconds - step).max(0.0) / *transfers as f64;
        match (self.sharded_overhead.is_empty(), &self.earlier) {
            (true, earlier) => earlier.as_ref().and_then(|profile| profile.sharding),
            (false, _) => Some(Sample::of(&self.sharded_overhead.iter().map(of_step).collect::<Vec<_>>())),
        }
    }

    /// The same of a pass of a chunk in a pipeline.
    fn pipelining(&self) -> Vec<PipeliningCost> {
        let step = self.step_overhead();
        let of_step = |(seconds, passes): &(f64, usize)| (seconds - step).max(0.0) / *passes as f64;
        let cost = |(schedule, steps): (&ScheduleKind, &Vec<(f64, usize)>)| PipeliningCost {
            schedule: *schedule,
            time: Sample::of(&steps.iter().map(of_step).collect::<Vec<_>>()),
        };
        self.pipeline_overhead.iter().map(cost).collect()
    }

    /// What a step costs anyway: as measured here, or in the earlier profile.
    fn step_overhead(&self) -> f64 {
        match &self.earlier {
            Some(earlier) if self.overhead.is_empty() => earlier.step_overhead.median_s.0,
            _ => Sample::of(&self.overhead).median_s.0,
        }
    }

    fn optimizer(&self) -> Vec<OptimizerCost> {
        // Norms are timed at fewer sizes than updates; in between they grow with the elements.
        let norm_rate = self
            .norms
            .iter()
            .next_back()
            .map(|(elements, multiples)| scaled(multiples, self.scale()).median_s / *elements as f64)
            .unwrap_or_default();
        let cost = |(elements, multiples): (&u64, &Vec<f64>)| {
            let modelled = norm_rate * *elements as f64;
            let norm = self.norms.get(elements).map_or(
                Sample {
                    median_s: modelled,
                    low_s: modelled,
                    high_s: modelled,
                    count: 0,
                    provenance: Provenance::Interpolated,
                },
                |multiples| scaled(multiples, self.scale()),
            );
            OptimizerCost { elements: *elements, update: scaled(multiples, self.scale()), norm }
        };
        self.updates.iter().map(cost).collect()
    }

    fn interference(&self) -> Interference {
        let Some(overlap) = &self.overlap else {
            return Interference {
                compute_slowdown: 1.0,
                communication_slowdown: 1.0,
                provenance: Provenance::Assumed,
            };
        };
        // Between machines a row takes long, and its company longer: the machine's drift meanwhile would be taken for
        // interference. There each repetition is compared with its own neighbours in time.
        let several = self.request.machines.len() > 1;
        let (compute, communication) = match several {
            true => {
                let rows = overlap.compute_alone.iter().zip(&overlap.reduce_alone).zip(&overlap.together);
                let (compute, communication): (Vec<f64>, Vec<f64>) =
                    rows.map(|((compute, reduce), (c, r))| slowdowns(*compute, *reduce, *c, *r)).unzip();
                (Sample::of(&compute).median_s.0, Sample::of(&communication).median_s.0)
            }
            false => {
                let together = |part: fn(&(f64, f64)) -> f64| {
                    Sample::of(&overlap.together.iter().map(part).collect::<Vec<_>>()).median_s.0
                };
                let alone = |seconds: &[f64]| Sample::of(seconds).median_s.0;
                let (compute, reduce) = (alone(&overlap.compute_alone), alone(&overlap.reduce_alone));
                slowdowns(compute, reduce, together(|t| t.0), together(|t| t.1))
            }
        };
        Interference {
            compute_slowdown: compute.clamp(1.0, 1e3),
            communication_slowdown: communication.clamp(1.0, 1e3),
            provenance: Provenance::Measured,
        }
    }

    /// What collectives inside a step took beyond their time alone, which is interpolated between the measured sizes:
    /// of each step the mean, since a step has many of them and their delays add up.
    fn synchronisation(&self) -> Sample {
        let mut alone: BTreeMap<(CollectiveKind, usize), Vec<(f64, f64)>> = BTreeMap::new();
        for ((kind, group, stride, bytes), seconds) in &self.collectives {
            if *stride == 1 {
                let curve = alone.entry((*kind, *group)).or_default();
                curve.push((*bytes as f64, Sample::of(seconds).median_s.0));
            }
        }
        let of_step = |step: &Vec<(CollectiveKind, usize, usize, f64)>| {
            let beyond: Vec<f64> = step
                .iter()
                .filter_map(|(kind, group, bytes, seconds)| {
                    let curve = alone.get(&(*kind, *group))?;
                    Some(seconds - interpolate(curve, *bytes as f64))
                })
                .collect();
            (!beyond.is_empty()).then(|| (beyond.iter().sum::<f64>() / beyond.len() as f64).max(0.0))
        };
        let beyond: Vec<f64> = self.in_step.iter().filter_map(of_step).collect();
        match &self.earlier {
            Some(earlier) if beyond.is_empty() => earlier.synchronisation,
            _ => Sample::of(&beyond),
        }
    }

    /// The same collectives as they were, where devices are emulated: theirs wait for turns on a core, which those timed
    /// alone do not, and real ones do not either.
    fn within_steps(&self) -> Vec<CollectiveCost> {
        if self.request.emulated.is_none() {
            return Vec::new();
        }
        let mut timings: BTreeMap<(CollectiveKind, usize, usize, usize), Vec<f64>> = BTreeMap::new();
        for (kind, group, bytes, seconds) in self.in_step.iter().flatten() {
            timings.entry((*kind, *group, 1, *bytes)).or_default().push(*seconds);
        }
        collective_costs(&timings)
    }

    /// Median over the probes of the relative difference between a round and the next.
    fn repeatability(&self) -> f64 {
        let differences: Vec<f64> = self
            .medians
            .values()
            .flat_map(|rounds| rounds.windows(2))
            .map(|pair| (pair[0] - pair[1]).abs() / pair[0].min(pair[1]))
            .collect();
        match (differences.is_empty(), &self.earlier) {
            (true, Some(earlier)) => earlier.repeatability,
            _ => Sample::of(&differences).median_s.0,
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.environment.warnings.clone();
        let on_cpu = self.environment.devices == DeviceKind::Cpu;
        if on_cpu && !self.realtime {
            warnings.push(
                "ranks had no real-time priority: other load on this machine is in the figures (run as root, or allow \
                 RLIMIT_RTPRIO)"
                    .to_owned(),
            );
        }
        let repeatability = self.repeatability();
        if repeatability > 0.05 {
            warnings.push(format!(
                "the machine is noisy: a step and its repetition some seconds later differ by {:.0} % (median), the machine's drift left out; close other programs",
                100.0 * repeatability
            ));
        }
        if self.request.shared && self.request.emulated.is_none() {
            warnings.push(format!(
                "ranks share {}: each waits for the others' turns, and predicted step times do not hold",
                if on_cpu { "cores" } else { "GPUs" }
            ));
        }
        warnings.extend(self.unlike_machines());
        let wide: Vec<_> = probes::all(self.request)
            .iter()
            .filter(|p| self.width(p) > self.request.interval)
            .copied()
            .collect();
        if !wide.is_empty() {
            warnings.push(format!(
                "{} of {} probes are not known to {:.0} %: the budget was spent",
                wide.len(),
                self.medians.len(),
                100.0 * self.request.interval
            ));
        }
        warnings
    }
}

/// From a batch of compute and a reduction that begin together: alone they take C and R, together c and r. While
/// the reduction runs, compute goes on at 1/s of its speed, then alone: c = r + C - r/s.
fn slowdowns(compute: f64, reduce: f64, c: f64, r: f64) -> (f64, f64) {
    let progress = (compute - (c - r)).max(r * 1e-3);
    (r / progress, r / reduce)
}

/// Machines that differ in speed by more are worth a word.
const UNLIKE: f64 = 1.1;

impl Assembly<'_> {
    fn unlike_machines(&self) -> Option<String> {
        let mut speeds: Vec<(f64, &str)> = Vec::new();
        for Machine { name, ranks, .. } in &self.request.machines {
            let of_rank = |rank: &u32| self.slowness.get(&(*rank as usize));
            let ratios: Vec<f64> = ranks.iter().filter_map(of_rank).flatten().copied().collect();
            if !ratios.is_empty() {
                speeds.push((Sample::of(&ratios).median_s.0, name));
            }
        }
        let fastest = speeds.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
        let slowest = speeds.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
        let ratio = slowest.0 / fastest.0;
        (ratio > UNLIKE).then(|| {
            format!(
                "{} takes {ratio:.2} times as long for a layer as {}: layers are priced as on the median rank, but steps wait for the slowest",
                slowest.1, fastest.1
            )
        })
    }
}

fn segment_cost(key: &CellKey, cell: &Cell, reference: f64) -> SegmentCost {
    SegmentCost {
        segment: key.0,
        pass: key.1,
        tensor: key.2,
        sequence_parallel: key.3,
        micro_batch: key.4,
        recompute: key.5,
        time: scaled(&cell.multiples, reference),
        growth_bytes: cell.growth.unwrap_or_default(),
        peak_bytes: Bytes(cell.peak),
    }
}

/// Between the two points of a curve, which is sorted by its first coordinate, that enclose `x`; at its ends, in
/// proportion.
fn interpolate(curve: &[(f64, f64)], x: f64) -> f64 {
    let above = curve.partition_point(|(at, _)| *at < x);
    match (above.checked_sub(1).and_then(|below| curve.get(below)), curve.get(above)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
        (None, Some((_, y))) => *y,
        (Some((x0, y0)), None) => y0 * x / x0,
        (None, None) => 0.0,
    }
}

/// Timings over the reference's, as times at the speed at which it takes `reference` seconds.
fn scaled(multiples: &[f64], reference: f64) -> Sample {
    Sample::of(&multiples.iter().map(|m| m * reference).collect::<Vec<_>>())
}

fn collective_costs(
    timings: &BTreeMap<(CollectiveKind, usize, usize, usize), Vec<f64>>,
) -> Vec<CollectiveCost> {
    let cost =
        |((kind, group, stride, bytes), seconds): (&(CollectiveKind, usize, usize, usize), &Vec<f64>)| {
            CollectiveCost {
                kind: *kind,
                group: *group as u32,
                stride: *stride as u32,
                bytes: Bytes(*bytes as u64),
                time: Sample::of(seconds),
            }
        };
    timings.iter().map(cost).collect()
}

/// What this session did not measure comes from the earlier profile.
fn adopt(profile: &mut Profile, earlier: &Profile) {
    for cost in &earlier.codecs {
        if !profile.codecs.iter().any(|c| (c.codec, c.coded) == (cost.codec, cost.coded)) {
            profile.codecs.push(cost.clone());
        }
    }
    for cost in &earlier.pipelining {
        if !profile.pipelining.iter().any(|p| p.schedule == cost.schedule) {
            profile.pipelining.push(cost.clone());
        }
    }
    if profile.network.is_none() {
        profile.network.clone_from(&earlier.network);
    }
    if profile.within_steps.is_empty() {
        profile.within_steps.clone_from(&earlier.within_steps);
    }
    if profile.exchanges.is_empty() {
        profile.exchanges.clone_from(&earlier.exchanges);
    }
    if profile.collectives.is_empty() {
        profile.collectives.clone_from(&earlier.collectives);
        profile.messages.clone_from(&earlier.messages);
        profile.fits.clone_from(&earlier.fits);
    }
    if profile.stream_handover.count == 0 {
        profile.stream_handover = earlier.stream_handover;
        profile.staging_bytes = earlier.staging_bytes;
    }
    if profile.interference.provenance != Provenance::Measured {
        profile.zero_s_per_element = earlier.zero_s_per_element;
        profile.add_s_per_element = earlier.add_s_per_element;
        profile.interference = earlier.interference.clone();
    }
    if profile.hardware.products.is_empty() {
        profile.hardware = earlier.hardware.clone();
    }
    for cost in &earlier.optimizer {
        if !profile.optimizer.iter().any(|o| o.elements == cost.elements) {
            profile.optimizer.push(cost.clone());
        }
    }
    profile.optimizer.sort_by_key(|o| o.elements);
    if profile.step_overhead.count == 0 {
        profile.step_overhead = earlier.step_overhead;
        profile.baseline_bytes = earlier.baseline_bytes;
    }
    profile.baseline_bytes = profile.baseline_bytes.max(earlier.baseline_bytes);
}
