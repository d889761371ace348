//! Builds a profile from the measurements.

use super::fits::fits;
use super::{Assembly, CellKey, Memory};
use crate::{machines, probes, quality};
use autodist_spec::profile::{
    CollectiveCost, Hardware, Interference, MessageCost, OptimizerCost, PipeliningCost, Sample, SegmentCost,
};
use autodist_spec::{
    Bytes, Collective, DeviceKind, Engine, FlopsPerSecond, Machine, Profile, Provenance, SCHEMA_VERSION,
    ScheduleKind, Seconds,
};
use std::collections::BTreeMap;

impl Assembly<'_> {
    /// The profile so far.
    pub fn profile(&self, complete: bool) -> Profile {
        let request = self.request;
        let cells = self.cells();
        let (overhead, scale) = (self.overhead(), self.scale());
        let mut segments: Vec<SegmentCost> = cells
            .iter()
            .map(|(key, multiples)| SegmentCost {
                launch_s: Sample::of(&self.launches[key]).median_s,
                ..segment_cost(key, multiples, self.memory[key], scale)
            })
            .collect();
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
        let mut environment = self.environment.clone();
        environment.realtime &= self.realtime;
        environment.warnings = self.warnings();
        let known = self.network.as_ref().or(self.earlier.as_ref().and_then(|p| p.network.as_ref()));
        let cluster = match (&request.emulated, &self.earlier) {
            (Some(cluster), _) => cluster.clone(),
            // This session has measured nothing about the devices.
            (None, Some(earlier)) if self.overlap.is_none() => earlier.cluster.clone(),
            _ => machines::cluster(request, &self.hardware, &environment, known),
        };
        let mut profile = Profile {
            schema_version: SCHEMA_VERSION,
            model: request.model.clone(),
            seq_len: request.job.seq_len,
            precision: request.job.precision,
            hardware: Hardware { fastest_gemm_flops_per_s: self.fastest_gemm(), ..self.hardware.clone() },
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
            step_overhead: Sample::of(&overhead),
            baseline_bytes: Bytes(self.baseline),
            staging_bytes: Bytes(self.staging),
            reference_s: Seconds(self.reference()),
            repeatability: self.repeatability(),
            doubts: Vec::new(),
            correction: None,
            segments: Vec::new(),
        };
        if let Some(earlier) = &self.earlier {
            let known = |c: &SegmentCost| {
                (c.segment, c.pass, c.tensor, c.sequence_parallel, c.micro_batch, c.recompute)
            };
            segments.extend(earlier.segments.iter().filter(|c| !cells.contains_key(&known(c))).cloned());
            segments.sort_by_key(known);
            adopt(&mut profile, earlier);
        }
        profile.segments = segments;
        if complete {
            profile.doubts = self.unexplained(&profile);
            quality::judge(&mut profile);
        }
        profile
    }

    /// FLOP/s of the fastest measured GEMM, alone or in the batches that overlapped with communication.
    fn fastest_gemm(&self) -> Option<FlopsPerSecond> {
        let alone = self.hardware.products.iter().map(|product| product.flops_per_s.0);
        let batches = self.overlap.iter().map(|overlap| overlap.gemm_flops_per_s);
        let fastest = alone.chain(batches).fold(0.0, f64::max);
        (fastest > 0.0 && fastest.is_finite()).then_some(FlopsPerSecond(fastest))
    }

    /// The reference speed to which all times are normalised: the machine's median speed during the probes,
    /// or that of the earlier profile.
    fn reference(&self) -> f64 {
        match &self.earlier {
            Some(earlier) if earlier.reference_s.0 > 0.0 => earlier.reference_s.0,
            _ => Sample::of(&self.believed().flat_map(|take| take.beside()).collect::<Vec<_>>()).median_s.0,
        }
    }

    /// Seconds of a multiple of the reference.
    fn scale(&self) -> f64 {
        let reference = self.reference();
        if reference > 0.0 { reference } else { 1.0 }
    }

    /// The engine's overhead around a transfer, in addition to the overhead of any step.
    fn sharding(&self) -> Option<Sample> {
        let step = self.step_overhead();
        let of_step = |(seconds, transfers): &(f64, usize)| (seconds - step).max(0.0) / *transfers as f64;
        let steps: Vec<f64> = self.believed().flat_map(|take| &take.sharded_overhead).map(of_step).collect();
        match (steps.is_empty(), &self.earlier) {
            (true, earlier) => earlier.as_ref().and_then(|profile| profile.sharding),
            (false, _) => Some(Sample::of(&steps)),
        }
    }

    /// The engine's overhead around a pass of a chunk in a pipeline.
    fn pipelining(&self) -> Vec<PipeliningCost> {
        let step = self.step_overhead();
        let of_step = |(seconds, passes): &(f64, usize)| (seconds - step).max(0.0) / *passes as f64;
        let mut schedules: BTreeMap<ScheduleKind, Vec<f64>> = BTreeMap::new();
        for take in self.believed() {
            if let Some(schedule) = take.probe.and_then(|probe| probe.schedule) {
                schedules.entry(schedule).or_default().extend(take.pipeline_overhead.iter().map(of_step));
            }
        }
        let cost = |(schedule, steps): (ScheduleKind, Vec<f64>)| PipeliningCost {
            schedule,
            time: Sample::of(&steps),
        };
        schedules.into_iter().map(cost).collect()
    }

    /// The overhead of any step: measured here, or in the earlier profile.
    fn step_overhead(&self) -> f64 {
        let overhead = self.overhead();
        match &self.earlier {
            Some(earlier) if overhead.is_empty() => earlier.step_overhead.median_s.0,
            _ => Sample::of(&overhead).median_s.0,
        }
    }

    fn overhead(&self) -> Vec<f64> {
        self.believed().flat_map(|take| take.overhead.iter().copied()).collect()
    }

    fn optimizer(&self) -> Vec<OptimizerCost> {
        let (updates, norms) = (self.updates(), self.norms());
        // Norms are measured at fewer sizes than updates, and not in every session; in between they are
        // proportional to the number of elements.
        let known = self.earlier.as_ref().map_or(&[][..], |earlier| &earlier.optimizer);
        let norm_rate = norms
            .iter()
            .next_back()
            .map(|(elements, multiples)| scaled(multiples, self.scale()).median_s / *elements as f64)
            .or_else(|| known.last().map(|cost| cost.norm.median_s / cost.elements as f64))
            .unwrap_or_default();
        let cost = |(elements, multiples): (&u64, &Vec<f64>)| {
            let modelled = norm_rate * *elements as f64;
            let timed = norms.get(elements).map(|multiples| scaled(multiples, self.scale()));
            let before = || known.iter().find(|cost| cost.elements == *elements).map(|cost| cost.norm);
            let norm = timed.or_else(before).unwrap_or(Sample {
                median_s: modelled,
                low_s: modelled,
                high_s: modelled,
                count: 0,
                provenance: Provenance::Interpolated,
            });
            OptimizerCost { elements: *elements, update: scaled(multiples, self.scale()), norm }
        };
        updates.iter().map(cost).collect()
    }

    fn interference(&self) -> Interference {
        let Some(overlap) = &self.overlap else {
            return Interference {
                compute_slowdown: 1.0,
                communication_slowdown: 1.0,
                provenance: Provenance::Assumed,
            };
        };
        // Between machines a sequence of reductions takes long, and the GEMMs that overlap with it longer:
        // the machine's drift in this time would count as interference. So each repetition is compared with
        // its neighbours in time.
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

    /// Additional time of collectives inside a step, relative to the collectives alone, which are
    /// interpolated between the measured sizes: the mean of each step, since a step has many of them and
    /// their delays add up.
    fn synchronisation(&self) -> Sample {
        let mut alone: BTreeMap<(Collective, usize), Vec<(f64, f64)>> = BTreeMap::new();
        for ((kind, group, stride, bytes), seconds) in &self.collectives {
            if *stride == 1 {
                let curve = alone.entry((*kind, *group)).or_default();
                curve.push((*bytes as f64, Sample::of(seconds).median_s.0));
            }
        }
        let of_step = |step: &Vec<(Collective, usize, usize, f64)>| {
            let beyond: Vec<f64> = step
                .iter()
                .filter_map(|(kind, group, bytes, seconds)| {
                    let curve = alone.get(&(*kind, *group))?;
                    Some(seconds - interpolate(curve, *bytes as f64))
                })
                .collect();
            (!beyond.is_empty()).then(|| (beyond.iter().sum::<f64>() / beyond.len() as f64).max(0.0))
        };
        let beyond: Vec<f64> = self.believed().flat_map(|take| &take.in_step).filter_map(of_step).collect();
        match &self.earlier {
            Some(earlier) if beyond.is_empty() => earlier.synchronisation,
            _ => Sample::of(&beyond),
        }
    }

    /// Collectives as timed inside steps, for emulated devices: these wait for each other on a core, unlike
    /// collectives timed alone and real devices.
    fn within_steps(&self) -> Vec<CollectiveCost> {
        if self.request.emulated.is_none() {
            return Vec::new();
        }
        let mut timings: BTreeMap<(Collective, usize, usize, usize), Vec<f64>> = BTreeMap::new();
        for (kind, group, bytes, seconds) in self.believed().flat_map(|take| &take.in_step).flatten() {
            timings.entry((*kind, *group, 1, *bytes)).or_default().push(*seconds);
        }
        collective_costs(&timings)
    }

    /// Median over the probes of the relative difference between consecutive rounds; `None` with one round.
    fn repeatability(&self) -> Option<f64> {
        let mut rounds: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for take in self.believed() {
            rounds.entry(take.probe).or_default().push(take.step / take.reference());
        }
        let differences: Vec<f64> = rounds
            .values()
            .flat_map(|rounds| rounds.windows(2))
            .map(|pair| (pair[0] - pair[1]).abs() / pair[0].min(pair[1]))
            .collect();
        match (differences.is_empty(), &self.earlier) {
            (true, Some(earlier)) => earlier.noise(),
            (true, None) => None,
            (false, _) => Some(Sample::of(&differences).median_s.0),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.environment.warnings.clone();
        let on_cpu = self.environment.devices == DeviceKind::Cpu;
        // PyTorch's ranks never have real-time priority.
        if on_cpu && self.environment.engine == Engine::Native && !self.realtime {
            warnings.push(
                "ranks had no real-time priority: measured times include other load on this machine (run as root, or allow \
                 RLIMIT_RTPRIO)"
                    .to_owned(),
            );
        }
        if let Some(repeatability) = self.repeatability().filter(|difference| *difference > 0.05) {
            warnings.push(format!(
                "the machine is noisy: a step and its repetition some seconds later differ by {:.0} % (median, after correction for drift); close other programs",
                100.0 * repeatability
            ));
        }
        if self.request.shared && self.request.emulated.is_none() {
            warnings.push(format!(
                "ranks share {}: they wait for each other, so predicted step times do not apply",
                if on_cpu { "cores" } else { "GPUs" }
            ));
        }
        warnings.extend(self.unlike_machines());
        warnings.extend(self.measured_again());
        let all = probes::all(self.request);
        let measured: Vec<_> = all.iter().filter(|probe| self.has(probe)).collect();
        let wide = measured.iter().filter(|probe| self.width(probe) > self.request.interval).count();
        let missing = all.len() - measured.len();
        if missing > 0 {
            warnings.push(format!(
                "{missing} of {} probes were not measured, because the profile ended early",
                all.len()
            ));
        }
        if wide > 0 {
            warnings.push(format!(
                "{wide} of {} measured probes are less precise than {:.0} %, because the time budget was used up",
                measured.len(),
                100.0 * self.request.interval
            ));
        }
        warnings
    }
}

/// Slowdowns from a batch of compute and a reduction that start together: alone they take C and R, together c
/// and r. While the reduction runs, compute runs at 1/s of its speed, then alone: c = r + C - r/s.
fn slowdowns(compute: f64, reduce: f64, c: f64, r: f64) -> (f64, f64) {
    let progress = (compute - (c - r)).max(r * 1e-3);
    (r / progress, r / reduce)
}

/// A larger difference in speed between machines is reported.
const UNLIKE: f64 = 1.1;

impl Assembly<'_> {
    fn unlike_machines(&self) -> Option<String> {
        let mut speeds: Vec<(f64, &str)> = Vec::new();
        for Machine { name, ranks, .. } in &self.request.machines {
            let of_rank = |rank: &u32| {
                let rank = *rank as usize;
                self.believed().filter_map(move |take| take.slowness.get(&rank).copied())
            };
            let ratios: Vec<f64> = ranks.iter().flat_map(of_rank).collect();
            if !ratios.is_empty() {
                speeds.push((Sample::of(&ratios).median_s.0, name));
            }
        }
        let fastest = speeds.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
        let slowest = speeds.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
        let ratio = slowest.0 / fastest.0;
        (ratio > UNLIKE).then(|| {
            format!(
                "{} needs {ratio:.2} times as long for a layer as {}: layers are priced as on the median rank, but a step waits for the slowest rank",
                slowest.1, fastest.1
            )
        })
    }
}

fn segment_cost(key: &CellKey, multiples: &[f64], (growth, peak): Memory, reference: f64) -> SegmentCost {
    SegmentCost {
        segment: key.0,
        pass: key.1,
        tensor: key.2,
        sequence_parallel: key.3,
        micro_batch: key.4,
        recompute: key.5,
        time: scaled(multiples, reference),
        launch_s: Seconds::ZERO,
        growth_bytes: growth.unwrap_or_default(),
        peak_bytes: Bytes(peak),
    }
}

/// Interpolates between the two points of a curve, sorted by its first coordinate, that enclose `x`;
/// proportional beyond its ends.
fn interpolate(curve: &[(f64, f64)], x: f64) -> f64 {
    let above = curve.partition_point(|(at, _)| *at < x);
    match (above.checked_sub(1).and_then(|below| curve.get(below)), curve.get(above)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
        (None, Some((_, y))) => *y,
        (Some((x0, y0)), None) => y0 * x / x0,
        (None, None) => 0.0,
    }
}

/// Timings as multiples of the reference, converted to times at the speed at which the reference takes
/// `reference` seconds.
fn scaled(multiples: &[f64], reference: f64) -> Sample {
    Sample::of(&multiples.iter().map(|m| m * reference).collect::<Vec<_>>())
}

fn collective_costs(timings: &BTreeMap<(Collective, usize, usize, usize), Vec<f64>>) -> Vec<CollectiveCost> {
    let cost = |((kind, group, stride, bytes), seconds): (&(Collective, usize, usize, usize), &Vec<f64>)| {
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

/// Adds cells of the earlier profile that this session did not measure.
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
    let fastest = match (profile.hardware.fastest_gemm_flops_per_s, earlier.fastest_gemm()) {
        (Some(now), Some(before)) => Some(now.max(before)),
        (now, before) => now.or(before),
    };
    if profile.hardware.products.is_empty() {
        profile.hardware = earlier.hardware.clone();
    }
    profile.hardware.fastest_gemm_flops_per_s = fastest;
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
