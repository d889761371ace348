//! From what the ranks measured to a Profile.

use crate::coding::{CodingTask, CodingTimings};
use crate::hardware::{self, HardwareAnswer};
use crate::links::{CollectiveTimings, KINDS, LinkAnswer};
use crate::machines;
use crate::network::{self, NetworkAnswer};
use crate::overlap::OverlapAnswer;
use crate::patterns::{self, PatternSeconds};
use crate::probes::{self, Probe};
use crate::{Assignment, Request};
use autodist_executor::{RankOutcome, Task};
use autodist_program::Instruction;
use autodist_spec::profile::{
    CodecCost, CollectiveCost, CollectiveKind, Environment, Hardware, Interference, LinkFit, MessageCost,
    OptimizerCost, Sample, SegmentCost,
};
use autodist_spec::{
    Bytes, Codec, DeviceKind, Machine, Network, Pass, Profile, Provenance, Recompute, SCHEMA_VERSION,
    Seconds, Segment,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Rounds in which everything is measured, whatever is known already.
const ROUNDS_FOR_ALL: usize = 6;

type CellKey = (Segment, Pass, u32, bool, u32, Recompute);

#[derive(Debug, Default)]
struct Cell {
    /// Timings over the reference's.
    multiples: Vec<f64>,
    growth: Option<i64>,
    peak: u64,
}

/// Measurements as they come in.
pub struct Assembly<'a> {
    request: &'a Request,
    environment: Environment,
    /// Cells of an earlier profile that are kept as they are.
    earlier: Option<Profile>,
    cells: BTreeMap<CellKey, Cell>,
    /// Elements → timings.
    updates: BTreeMap<u64, Vec<f64>>,
    norms: BTreeMap<u64, Vec<f64>>,
    collectives: BTreeMap<(CollectiveKind, usize, usize, usize), Vec<f64>>,
    exchanges: BTreeMap<(CollectiveKind, usize, usize, usize), Vec<f64>>,
    messages: BTreeMap<(usize, usize), Vec<f64>>,
    handover: Vec<f64>,
    /// Collectives inside a step, step by step: kind, group and bytes, with the ranks' mean time.
    in_step: Vec<Vec<(CollectiveKind, usize, usize, f64)>>,
    overhead: Vec<f64>,
    baseline: u64,
    staging: u64,
    overlap: Option<OverlapAnswer>,
    hardware: Hardware,
    /// Whether devices are on several machines, real or emulated.
    apart: bool,
    network: Option<Network>,
    /// Whether collectives between the devices go by our schedules.
    by_schedule: bool,
    /// By codec, group and elements.
    codings: BTreeMap<(Codec, usize, usize), Vec<f64>>,
    /// Per rank: of each probe, time of its layers over the fastest rank's.
    slowness: BTreeMap<usize, Vec<f64>>,
    /// Per probe: median step time of each round.
    medians: BTreeMap<Probe, Vec<f64>>,
    /// Times of the reference arithmetic. Timings of segments and updates are kept as multiples of it.
    references: Vec<f64>,
    realtime: bool,
}

/// Segments of blocks vary with the block's recomputation; those of embedding and head do not.
fn recompute_key(segment: Segment, recompute: Recompute) -> Recompute {
    match segment {
        Segment::AttentionNorm | Segment::Attention | Segment::MlpNorm | Segment::Mlp => recompute,
        _ => Recompute::None,
    }
}

impl<'a> Assembly<'a> {
    pub fn new(request: &'a Request, earlier: Option<Profile>, environment: Environment) -> Self {
        Self {
            request,
            environment,
            earlier,
            cells: BTreeMap::new(),
            updates: BTreeMap::new(),
            norms: BTreeMap::new(),
            collectives: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            messages: BTreeMap::new(),
            handover: Vec::new(),
            in_step: Vec::new(),
            overhead: Vec::new(),
            baseline: 0,
            staging: 0,
            overlap: None,
            hardware: Hardware::default(),
            apart: request.structure().is_some(),
            network: None,
            by_schedule: true,
            codings: BTreeMap::new(),
            slowness: BTreeMap::new(),
            medians: BTreeMap::new(),
            references: Vec::new(),
            realtime: true,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.earlier.is_none()
    }

    /// Whether the earlier profile has this probe's cells.
    fn known(&self, probe: &Probe) -> bool {
        self.earlier.as_ref().is_some_and(|profile| {
            profile.segments.iter().any(|c| {
                c.segment == Segment::Attention
                    && c.pass == Pass::Backward
                    && (c.tensor, c.sequence_parallel) == (probe.tensor, probe.sequence_parallel)
                    && (c.micro_batch, c.recompute) == (probe.micro_batch, probe.recompute)
            }) && (probe.shard == 1 || profile.optimizer.len() > 1)
        })
    }

    /// Whether `probe` should be run in this round.
    pub fn wants(&self, probe: &Probe, round: usize) -> bool {
        match round {
            0 => !self.known(probe),
            // Another look at everything shows what repeats, and how the machine drifts.
            1..ROUNDS_FOR_ALL => self.medians.contains_key(probe),
            _ => self.medians.contains_key(probe) && self.width(probe) > self.request.interval,
        }
    }

    /// Whether a codec of `task` is unknown; all of them are looked at twice.
    pub fn wants_codings(&self, task: &CodingTask, round: usize) -> bool {
        let known = |codec: &Codec| {
            self.earlier.as_ref().is_some_and(|p| p.codecs.iter().any(|cost| cost.codec == *codec))
        };
        match round {
            0 => !task.codecs.iter().all(known),
            1 => !self.codings.is_empty(),
            _ => false,
        }
    }

    fn codecs(&self) -> Vec<CodecCost> {
        let cost = |((codec, group, elements), seconds): (&(Codec, usize, usize), &Vec<f64>)| CodecCost {
            codec: *codec,
            group: *group as u32,
            elements: *elements as u64,
            time: Sample::of(seconds),
        };
        self.codings.iter().map(cost).collect()
    }

    pub fn wants_network(&self, round: usize) -> bool {
        round == 0 && self.earlier.as_ref().is_none_or(|p| p.network.is_none())
    }

    pub fn on_gpus(&self) -> bool {
        self.environment.devices == DeviceKind::Cuda
    }

    pub fn wants_overlap(&self, round: usize) -> bool {
        match round {
            0 => self.earlier.as_ref().is_none_or(|p| p.interference.provenance != Provenance::Measured),
            1..ROUNDS_FOR_ALL => self.overlap.is_some(),
            _ => false,
        }
    }

    pub fn wants_links(&self, round: usize) -> bool {
        match round {
            0 => {
                self.earlier.as_ref().is_none_or(|p| p.collectives.is_empty() && p.cluster.device_count() > 1)
            }
            1..ROUNDS_FOR_ALL => !self.collectives.is_empty(),
            _ => false,
        }
    }

    /// Width of the confidence interval of the probe's forward and backward, relative to its time.
    fn width(&self, probe: &Probe) -> f64 {
        let (mut width, mut total) = (0.0, 0.0);
        let of_probe = |key: &CellKey| {
            (key.2, key.3, key.4) == (probe.tensor, probe.sequence_parallel, probe.micro_batch)
        };
        for (_, cell) in
            self.cells.iter().filter(|(k, _)| of_probe(k) && k.5 == recompute_key(k.0, probe.recompute))
        {
            let sample = Sample::of(&cell.multiples);
            width += (sample.high_s - sample.low_s).0;
            total += sample.median_s.0;
        }
        if total > 0.0 { width / total } else { 0.0 }
    }

    /// Takes in the ranks' answers to one assignment.
    pub fn take(&mut self, assignment: &Assignment, answers: Vec<Value>) -> Result<(), serde_json::Error> {
        match assignment {
            Assignment::Train(task) => {
                let outcomes = crate::outcomes(answers)?;
                self.probe(task, &outcomes);
            }
            Assignment::Links(_) => {
                let answers: Vec<LinkAnswer> =
                    answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
                self.links(&answers);
            }
            Assignment::Overlap(_) => {
                let answers: Vec<OverlapAnswer> =
                    answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
                let mut all = self.overlap.take().unwrap_or_default();
                for answer in answers {
                    all.compute_alone.extend(answer.compute_alone);
                    all.reduce_alone.extend(answer.reduce_alone);
                    all.together.extend(answer.together);
                    all.zeroing.extend(answer.zeroing);
                    all.adding.extend(answer.adding);
                    all.peak_flops_per_s = all.peak_flops_per_s.max(answer.peak_flops_per_s);
                }
                self.overlap = Some(all);
            }
            Assignment::Coding(_) => {
                for answer in answers {
                    for timing in serde_json::from_value::<Vec<CodingTimings>>(answer)? {
                        let key = (timing.codec, timing.group, timing.elements);
                        self.codings.entry(key).or_default().extend(timing.seconds);
                    }
                }
            }
            Assignment::Network(task) => {
                let answers: Vec<NetworkAnswer> =
                    answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
                for answer in &answers {
                    self.handover.extend(&answer.handover);
                    self.staging = self.staging.max(answer.staging_bytes);
                    self.by_schedule &= answer.by_schedule;
                }
                let structure = self.request.structure();
                self.network = structure.map(|structure| network::assemble(&structure, task, &answers));
            }
            Assignment::Patterns(_) => {
                let answers: Vec<Vec<PatternSeconds>> =
                    answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
                if let Some(network) = &mut self.network {
                    network.patterns = patterns::assemble(&answers);
                }
            }
            Assignment::Hardware(_) => {
                let answers: Vec<HardwareAnswer> =
                    answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
                self.hardware = hardware::summarise(&answers);
            }
        }
        Ok(())
    }

    fn probe(&mut self, task: &Task, outcomes: &[RankOutcome]) {
        // The task ran, so it compiles.
        let Ok(program) = task.program() else { return };
        let s = &task.strategy;
        let probe = Probe {
            tensor: s.tensor,
            sequence_parallel: s.sequence_parallel,
            micro_batch: s.micro_batch,
            recompute: s.recompute,
            shard: s.shard,
        };
        let bodies = &program.ranks[0].bodies;
        let beside: Vec<f64> = outcomes
            .iter()
            .flat_map(|o| &o.steps[task.warmup_steps as usize..])
            .map(|step| step.reference)
            .collect();
        // The machine's speed while this probe ran. A device without a reference keeps its own: times stay seconds.
        let reference = match Sample::of(&beside).median_s.0 {
            unknown if unknown <= 0.0 => 1.0,
            known => {
                self.references.extend(&beside);
                known
            }
        };
        for outcome in outcomes {
            self.realtime &= outcome.realtime;
            self.environment.collectives.clone_from(&outcome.route);
            self.baseline = self.baseline.max(outcome.baseline_memory);
            let measured = &outcome.steps[task.warmup_steps as usize..];
            if !self.apart {
                self.overhead.extend(measured.iter().map(|s| s.seconds - s.in_operations));
            }
            for sample in outcome.instructions.iter().filter(|s| !s.seconds.is_empty()) {
                match bodies[sample.body].instructions[sample.index] {
                    Instruction::Segment { segment, pass, recompute, .. } => {
                        let recompute = recompute_key(segment, recompute);
                        let key = (segment, pass, s.tensor, s.sequence_parallel, s.micro_batch, recompute);
                        let cell = self.cells.entry(key).or_default();
                        cell.multiples.extend(sample.seconds.iter().map(|s| s / reference));
                        cell.growth = cell.growth.max(Some(sample.growth));
                        cell.peak = cell.peak.max(sample.peak);
                    }
                    Instruction::Update { elements, .. } => {
                        let timings = self.updates.entry(elements as u64).or_default();
                        timings.extend(sample.seconds.iter().map(|s| s / reference));
                    }
                    // With one rank to the model, the norm is all arithmetic.
                    Instruction::GradientNorm { elements } if s.tensor * s.shard == 1 => {
                        let timings = self.norms.entry(elements as u64).or_default();
                        timings.extend(sample.seconds.iter().map(|s| s / reference));
                    }
                    _ => {}
                }
            }
        }
        if self.apart {
            // Where links differ, ranks wait for the slowest at the end of a step: its own overhead is the step's.
            let of_step = |step: usize| {
                let overhead = |o: &RankOutcome| o.steps[step].seconds - o.steps[step].in_operations;
                outcomes.iter().map(overhead).fold(f64::INFINITY, f64::min)
            };
            self.overhead.extend((task.warmup_steps as usize..task.steps as usize).map(of_step));
        }
        let of_layers = |o: &RankOutcome| {
            let segments = o
                .instructions
                .iter()
                .filter(|s| matches!(bodies[s.body].instructions[s.index], Instruction::Segment { .. }));
            segments.map(|sample| Sample::of(&sample.seconds).median_s.0).sum::<f64>()
        };
        let layers: Vec<f64> = outcomes.iter().map(of_layers).collect();
        let fastest = layers.iter().copied().fold(f64::INFINITY, f64::min);
        for (outcome, seconds) in outcomes.iter().zip(&layers).filter(|_| fastest > 0.0) {
            self.slowness.entry(outcome.rank).or_default().push(seconds / fastest);
        }
        let first_step = self.in_step.len();
        for (index, sample) in outcomes.first().map_or(&[][..], |o| &o.instructions).iter().enumerate() {
            let Instruction::Tensor { segment, collective, elements, .. } =
                bodies[sample.body].instructions[sample.index]
            else {
                continue;
            };
            // A probe's step has one micro-batch: every instruction occurs once in it.
            for step in 0..sample.seconds.len() {
                let of_rank =
                    |o: &RankOutcome| o.instructions[index].seconds.get(step).copied().unwrap_or(0.0);
                let mean = outcomes.iter().map(of_rank).sum::<f64>() / outcomes.len() as f64;
                if self.in_step.len() <= first_step + step {
                    self.in_step.push(Vec::new());
                }
                self.in_step[first_step + step].push((
                    collective.kind(),
                    s.tensor as usize,
                    program.tensor_bytes(segment, collective, elements).0 as usize,
                    mean,
                ));
            }
        }
        let steps: Vec<f64> = (task.warmup_steps as usize..task.steps as usize)
            .map(|step| outcomes.iter().map(|o| o.steps[step].seconds).fold(0.0, f64::max) / reference)
            .collect();
        self.medians.entry(probe).or_default().push(Sample::of(&steps).median_s.0);
    }

    fn links(&mut self, answers: &[LinkAnswer]) {
        let Some(first) = answers.first() else { return };
        let timings: [fn(&LinkAnswer) -> &[CollectiveTimings]; 2] = [|a| &a.collectives, |a| &a.exchanges];
        for (of, all) in timings.into_iter().zip([&mut self.collectives, &mut self.exchanges]) {
            for (index, timing) in of(first).iter().enumerate() {
                // A collective takes as long as its slowest rank.
                let slowest = (0..timing.seconds.len()).map(|repetition| {
                    answers.iter().map(|a| of(a)[index].seconds[repetition]).fold(0.0, f64::max)
                });
                let key = (timing.kind, timing.group, timing.stride, timing.bytes);
                all.entry(key).or_default().extend(slowest);
            }
        }
        for answer in answers {
            for timing in &answer.messages {
                self.messages.entry((timing.stride, timing.bytes)).or_default().extend(&timing.seconds);
            }
            self.handover.extend(&answer.handover);
            self.staging = self.staging.max(answer.staging_bytes);
        }
    }

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
            fits: fits(&collectives, &messages),
            collectives,
            messages,
            optimizer: self.optimizer(),
            interference: self.interference(),
            synchronisation: self.synchronisation(),
            zero_s_per_element: self.overlap.as_ref().map_or(0.0, |o| Sample::of(&o.zeroing).median_s.0),
            add_s_per_element: self.overlap.as_ref().map_or(0.0, |o| Sample::of(&o.adding).median_s.0),
            stream_handover: Sample::of(&self.handover),
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
        if !profile.codecs.iter().any(|c| c.codec == cost.codec) {
            profile.codecs.push(cost.clone());
        }
    }
    if profile.network.is_none() {
        profile.network.clone_from(&earlier.network);
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

fn fits(collectives: &[CollectiveCost], messages: &[MessageCost]) -> Vec<LinkFit> {
    let mut fits = Vec::new();
    for kind in KINDS {
        let mut groups: Vec<(u32, u32)> = collectives.iter().map(|c| (c.group, c.stride)).collect();
        groups.sort_unstable();
        groups.dedup();
        for (group, stride) in groups {
            let points: Vec<(f64, f64)> = collectives
                .iter()
                .filter(|c| (c.kind, c.group, c.stride) == (kind, group, stride))
                .map(|c| (c.bytes.as_f64(), c.time.median_s.0))
                .collect();
            let what = match kind {
                CollectiveKind::AllReduce => "all_reduce",
                CollectiveKind::ReduceScatter => "reduce_scatter",
                CollectiveKind::AllGather => "all_gather",
            };
            fits.extend(fit(what, group, stride, &points));
        }
    }
    let mut strides: Vec<u32> = messages.iter().map(|m| m.stride).collect();
    strides.dedup();
    for stride in strides {
        let of_stride = messages.iter().filter(|m| m.stride == stride);
        let points: Vec<(f64, f64)> = of_stride.map(|m| (m.bytes.as_f64(), m.time.median_s.0)).collect();
        fits.extend(fit("message", 2, stride, &points));
    }
    fits
}

/// Least squares of `time = alpha + beta * bytes`, each point weighted by one over its time, so that relative errors
/// count alike; `None` with fewer than two points.
fn fit(what: &str, group: u32, stride: u32, points: &[(f64, f64)]) -> Option<LinkFit> {
    let points: Vec<_> = points.iter().filter(|(_, t)| *t > 0.0).collect();
    if points.len() < 2 {
        return None;
    }
    let (mut s, mut sx, mut sxx, mut sy, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, y) in &points {
        let weight = 1.0 / (y * y);
        s += weight;
        sx += weight * x;
        sxx += weight * x * x;
        sy += weight * y;
        sxy += weight * x * y;
    }
    let beta = ((s * sxy - sx * sy) / (s * sxx - sx * sx)).max(0.0);
    let alpha = ((sy - beta * sx) / s).max(0.0);
    let mut residuals: Vec<f64> = points.iter().map(|(x, y)| ((alpha + beta * x) / y - 1.0).abs()).collect();
    residuals.sort_by(f64::total_cmp);
    Some(LinkFit {
        what: what.to_owned(),
        group,
        stride,
        alpha_s: Seconds(alpha),
        beta_s_per_byte: beta,
        residual: residuals[residuals.len() / 2],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_fitted_exactly() {
        let points: Vec<(f64, f64)> = [64.0, 4096.0, 1e6].iter().map(|x| (*x, 2e-5 + x * 1e-10)).collect();
        let fit = fit("message", 2, 1, &points).unwrap();
        assert!(
            (fit.alpha_s.0 / 2e-5 - 1.0).abs() < 1e-9 && (fit.beta_s_per_byte / 1e-10 - 1.0).abs() < 1e-9
        );
        assert!(fit.residual < 1e-9);
    }
}
