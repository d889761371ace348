//! The measurements so far, and those that remain.

mod fits;
mod summary;
mod takes;

use crate::coding::{CodingTask, CodingTimings};
use crate::hardware::{self, HardwareAnswer};
use crate::links::{CollectiveTimings, KINDS, LinkAnswer};
use crate::network::{self, NetworkAnswer};
use crate::overlap::OverlapAnswer;
use crate::patterns::{self, PatternSeconds};
use crate::probes::Probe;
use crate::{Assignment, Request, quality};
use autodist_executor::{RankOutcome, Task};
use autodist_program::{Instruction, Op, Program, RankProgram};
use autodist_spec::profile::{CodecCost, Environment, Hardware, Sample};
use autodist_spec::{
    Codec, Coded, Collective, DeviceKind, Doubt, DoubtedCell, Engine, Network, Pass, Profile, Provenance,
    Recompute, Segment,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use takes::Take;

/// Rounds in which everything is measured, even if it was measured before.
const ROUNDS_FOR_ALL: usize = 6;

type CellKey = (Segment, Pass, u32, bool, u32, Recompute);

/// Live memory that a cell leaves allocated, and its peak, in bytes.
type Memory = (Option<i64>, u64);

/// Collects measurements as they arrive.
pub struct Assembly<'a> {
    request: &'a Request,
    environment: Environment,
    /// Cells of an earlier profile that are kept.
    earlier: Option<Profile>,
    /// Doubtful cells of the earlier profile, which are measured again.
    distrusted: Vec<Doubt>,
    /// Every probe run.
    takes: Vec<Take>,
    memory: BTreeMap<CellKey, Memory>,
    /// Seconds of the host to queue each cell; empty where the device is the host.
    launches: BTreeMap<CellKey, Vec<f64>>,
    /// Probes without a valid run, with the reason; links likewise.
    unsettled: BTreeMap<Probe, String>,
    links_unsettled: Option<String>,
    /// Repeated measurements, with the reason.
    again: Vec<String>,
    collectives: BTreeMap<(Collective, usize, usize, usize), Vec<f64>>,
    exchanges: BTreeMap<(Collective, usize, usize, usize), Vec<f64>>,
    messages: BTreeMap<(usize, usize), Vec<f64>>,
    handover: Vec<f64>,
    baseline: u64,
    staging: u64,
    overlap: Option<OverlapAnswer>,
    hardware: Hardware,
    /// Whether devices are on several machines, real or emulated.
    apart: bool,
    network: Option<Network>,
    /// Whether collectives between the devices use autodist's own schedules.
    by_schedule: bool,
    /// By codec, payload, group and elements.
    codings: BTreeMap<(Codec, Coded, usize, usize), Vec<f64>>,
    realtime: bool,
}

pub(crate) fn in_block(segment: Segment) -> bool {
    matches!(segment, Segment::AttentionNorm | Segment::Attention | Segment::MlpNorm | Segment::Mlp)
}

/// Segments of blocks depend on the block's recomputation; those of embedding and head do not.
fn recompute_key(segment: Segment, recompute: Recompute) -> Recompute {
    if in_block(segment) { recompute } else { Recompute::None }
}

/// Number of bucket transfers in a step.
fn transfers(program: &Program) -> usize {
    let rank = &program.ranks[0];
    let of_body = |body: usize| {
        let starts = |instruction: &&Instruction| matches!(instruction, Instruction::Start { .. });
        rank.bodies[body].instructions.iter().filter(starts).count()
    };
    rank.ops.iter().map(|op| if let Op::Run { body, .. } = op { of_body(*body) } else { 0 }).sum()
}

impl<'a> Assembly<'a> {
    pub fn new(request: &'a Request, earlier: Option<Profile>, environment: Environment) -> Self {
        let mut earlier = earlier;
        let distrusted = earlier.as_mut().map(without_doubted).unwrap_or_default();
        Self {
            request,
            environment,
            earlier,
            distrusted,
            takes: Vec::new(),
            memory: BTreeMap::new(),
            launches: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            links_unsettled: None,
            again: Vec::new(),
            collectives: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            messages: BTreeMap::new(),
            handover: Vec::new(),
            baseline: 0,
            staging: 0,
            overlap: None,
            hardware: Hardware::default(),
            apart: request.structure().is_some(),
            network: None,
            by_schedule: true,
            codings: BTreeMap::new(),
            realtime: true,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.earlier.is_none()
    }

    /// Whether the earlier profile has this probe's cells.
    fn known(&self, probe: &Probe) -> bool {
        let doubted = self.distrusted.iter().any(|doubt| probe.times(&doubt.cell));
        !doubted
            && self.earlier.as_ref().is_some_and(|profile| {
                profile.segments.iter().any(|c| {
                    c.segment == Segment::Attention
                        && c.pass == Pass::Backward
                        && (c.tensor, c.sequence_parallel) == (probe.tensor, probe.sequence_parallel)
                        && (c.micro_batch, c.recompute) == (probe.micro_batch, probe.recompute)
                }) && (probe.shard == 1 || profile.optimizer.len() > 1)
                    && probe.schedule.is_none_or(|s| profile.pipelining.iter().any(|cost| cost.schedule == s))
            })
    }

    /// Whether `probe` should be run in this round.
    pub fn wants(&self, probe: &Probe, round: usize) -> bool {
        match round {
            0 => !self.known(probe),
            // Later rounds measure everything again, to show the repeatability and the drift of the machine.
            1..ROUNDS_FOR_ALL => self.has_run(probe),
            _ => {
                self.unsettled.contains_key(probe)
                    || self.has_run(probe) && self.width(probe) > self.request.interval
            }
        }
    }

    /// Whether this probe has been measured, now or for the earlier profile.
    fn has(&self, probe: &Probe) -> bool {
        self.has_run(probe) || self.known(probe)
    }

    /// Whether a codec of `task` is not measured yet; each is measured twice.
    pub fn wants_codings(&self, task: &CodingTask, round: usize) -> bool {
        let known = |(coded, codec): &(Coded, Codec)| {
            let is = |cost: &CodecCost| (cost.coded, cost.codec) == (*coded, *codec);
            self.earlier.as_ref().is_some_and(|p| p.codecs.iter().any(is))
        };
        match round {
            0 => !task.codecs.iter().all(known),
            1 => !self.codings.is_empty(),
            _ => false,
        }
    }

    fn codecs(&self) -> Vec<CodecCost> {
        let cost =
            |((codec, coded, group, elements), seconds): (&(Codec, Coded, usize, usize), &Vec<f64>)| {
                CodecCost {
                    codec: *codec,
                    coded: *coded,
                    group: *group as u32,
                    elements: *elements as u64,
                    time: Sample::of(seconds),
                }
            };
        self.codings.iter().map(cost).collect()
    }

    pub fn wants_network(&self, round: usize) -> bool {
        round == 0 && self.earlier.as_ref().is_none_or(|p| p.network.is_none())
    }

    /// Whether a library (NCCL, Gloo) chooses the algorithms of collectives, which are then measured by group.
    pub fn library_collectives(&self) -> bool {
        self.environment.devices == DeviceKind::Cuda || self.environment.engine == Engine::Torch
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
            _ => self.links_unsettled(),
        }
    }

    /// Width of the confidence interval of the probe's forward and backward pass, relative to their time.
    fn width(&self, probe: &Probe) -> f64 {
        let (mut width, mut total) = (0.0, 0.0);
        let of_probe = |key: &CellKey| {
            (key.2, key.3, key.4) == (probe.tensor, probe.sequence_parallel, probe.micro_batch)
        };
        for multiples in self
            .cells()
            .iter()
            .filter(|(k, _)| of_probe(k) && k.5 == recompute_key(k.0, probe.recompute))
            .map(|(_, multiples)| multiples)
        {
            let sample = Sample::of(multiples);
            width += (sample.high_s - sample.low_s).0;
            total += sample.median_s.0;
        }
        if total > 0.0 { width / total } else { 0.0 }
    }

    /// Adds the ranks' answers to one assignment.
    pub fn take(&mut self, assignment: &Assignment, answers: Vec<Value>) -> Result<(), serde_json::Error> {
        match assignment {
            Assignment::Train(task) => {
                let outcomes = crate::outcomes(task, answers)?;
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
                    all.gemm_flops_per_s = all.gemm_flops_per_s.max(answer.gemm_flops_per_s);
                }
                self.overlap = Some(all);
            }
            Assignment::Coding(_) => {
                for answer in answers {
                    for timing in serde_json::from_value::<Vec<CodingTimings>>(answer)? {
                        let key = (timing.codec, timing.coded, timing.group, timing.elements);
                        self.codings.entry(key).or_default().extend(timing.seconds);
                    }
                }
            }
            Assignment::Network(task) => {
                let answers: Vec<NetworkAnswer> =
                    answers.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
                // Ranks of this program have measured it, not those of PyTorch.
                if self.environment.engine == Engine::Torch {
                    self.by_schedule = false;
                } else {
                    for answer in &answers {
                        self.handover.extend(&answer.handover);
                        self.staging = self.staging.max(answer.staging_bytes);
                        self.by_schedule &= answer.by_schedule;
                    }
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
            schedule: (s.pipeline > 1).then_some(s.schedule),
        };
        if probe.schedule.is_some() {
            self.pipeline(probe, task, &program, outcomes);
            return;
        }
        let bodies = &program.ranks[0].bodies;
        let mut take = Take::of(probe);
        for outcome in outcomes {
            let beside = outcome.steps[task.warmup_steps as usize..].iter().map(|step| step.reference);
            take.references.entry(outcome.rank).or_default().extend(beside);
        }
        for outcome in outcomes {
            self.realtime &= outcome.realtime;
            self.environment.collectives.clone_from(&outcome.route);
            self.baseline = self.baseline.max(outcome.baseline_memory);
            let measured = &outcome.steps[task.warmup_steps as usize..];
            let beyond = measured.iter().map(|s| s.seconds - s.in_operations);
            if self.environment.engine == Engine::Torch && s.shard > 1 {
                let transfers = transfers(&program);
                take.sharded_overhead.extend(beyond.map(|seconds| (seconds, transfers)));
            } else if !self.apart {
                take.overhead.extend(beyond);
            }
            for sample in outcome.instructions.iter().filter(|s| !s.seconds.is_empty()) {
                match bodies[sample.body].instructions[sample.index] {
                    Instruction::Segment { segment, pass, recompute, .. } => {
                        let recompute = recompute_key(segment, recompute);
                        let key = (segment, pass, s.tensor, s.sequence_parallel, s.micro_batch, recompute);
                        take.cells.entry(key).or_default().extend(&sample.seconds);
                        self.launches.entry(key).or_default().extend(&sample.launches);
                        let (growth, peak) = self.memory.entry(key).or_default();
                        // In addition to its layers, FSDP2 gathers and frees parameters.
                        if self.environment.engine == Engine::Native || s.shard == 1 {
                            *growth = (*growth).max(Some(sample.growth));
                            *peak = (*peak).max(sample.peak);
                        }
                    }
                    Instruction::Update { elements, .. } => {
                        take.updates.entry(elements as u64).or_default().extend(&sample.seconds);
                    }
                    // If one rank holds the model, the norm needs no communication.
                    Instruction::GradientNorm { elements } if s.tensor * s.shard == 1 => {
                        take.norms.entry(elements as u64).or_default().extend(&sample.seconds);
                    }
                    _ => {}
                }
            }
        }
        if self.apart {
            // If links differ, ranks wait for the slowest at the end of a step: its overhead is that of the
            // step.
            let of_step = |step: usize| {
                let overhead = |o: &RankOutcome| o.steps[step].seconds - o.steps[step].in_operations;
                outcomes.iter().map(overhead).fold(f64::INFINITY, f64::min)
            };
            take.overhead.extend((task.warmup_steps as usize..task.steps as usize).map(of_step));
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
            take.slowness.insert(outcome.rank, seconds / fastest);
        }
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
                let of_group =
                    |ranks: &[RankOutcome]| ranks.iter().map(of_rank).sum::<f64>() / ranks.len() as f64;
                let slowest = outcomes.chunks(s.tensor as usize).map(of_group).fold(0.0, f64::max);
                if take.in_step.len() <= step {
                    take.in_step.push(Vec::new());
                }
                take.in_step[step].push((
                    collective.kind(),
                    s.tensor as usize,
                    program.tensor_bytes(segment, collective, elements).0 as usize,
                    slowest,
                ));
            }
        }
        let steps: Vec<f64> = (task.warmup_steps as usize..task.steps as usize)
            .map(|step| outcomes.iter().map(|o| o.steps[step].seconds).fold(0.0, f64::max))
            .collect();
        take.step = Sample::of(&steps).median_s.0;
        self.add(take);
    }

    /// The engine's overhead in a pipeline. The layers of this probe are subtracted, and not used as cells.
    fn pipeline(&mut self, probe: Probe, task: &Task, program: &Program, outcomes: &[RankOutcome]) {
        let passes =
            |rank: &RankProgram| rank.ops.iter().filter(|op| matches!(op, Op::Run { .. })).count() - 1;
        let to_model = program.mesh.stage();
        let mut take = Take::of(probe);
        for outcome in outcomes {
            let passes = passes(&program.ranks[outcome.rank / to_model]);
            let measured = &outcome.steps[task.warmup_steps as usize..];
            let beyond = measured.iter().map(|step| (step.seconds - step.in_operations, passes));
            take.pipeline_overhead.extend(beyond);
        }
        let steps = (task.warmup_steps as usize..task.steps as usize)
            .map(|step| outcomes.iter().map(|o| o.steps[step].seconds).fold(0.0, f64::max));
        take.step = Sample::of(&steps.collect::<Vec<_>>()).median_s.0;
        self.add(take);
    }

    fn links(&mut self, answers: &[LinkAnswer]) {
        let Some(first) = answers.first() else { return };
        if let Some(reason) = self.links_unsettled.take() {
            self.again.push(reason);
            // Doubtful cells are dropped once they have been measured again.
            self.collectives.clear();
            self.exchanges.clear();
            self.messages.clear();
        }
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
}

/// Removes doubtful cells from an earlier profile and returns the doubts; the cells are measured again.
fn without_doubted(profile: &mut Profile) -> Vec<Doubt> {
    quality::judge(profile);
    let doubts = std::mem::take(&mut profile.doubts);
    let cells: BTreeSet<DoubtedCell> = doubts.iter().map(|doubt| doubt.cell).collect();
    profile.segments.retain(|cell| !cells.contains(&DoubtedCell::from(cell)));
    profile.optimizer.retain(|cell| !cells.contains(&DoubtedCell::Update { elements: cell.elements }));
    if doubts.iter().any(|doubt| doubt.cell.is_of_links()) {
        profile.collectives.clear();
        profile.messages.clear();
        profile.fits.clear();
    }
    doubts
}
