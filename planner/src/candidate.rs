//! One candidate: its cheap bounds, and its evaluation.

use crate::communication::CommunicationOptions;
use crate::refusal::MemoryShortfall;
use crate::space::Candidate;
use autodist_cost_model::{CostModel, InFlight, Outline, RankCosts, Unpriced, in_flight};
use autodist_program::schedule::Extent;
use autodist_program::stages::Cuts;
use autodist_program::{Framework, Illegal, Program, engine, framework, rules, stages};
use autodist_spec::model::share;
use autodist_spec::{
    Bytes, Cluster, Engine, Estimate, Job, LayerKind, MemoryBreakdown, ModelSpec, Network, ParallelStrategy,
    Recompute, ScheduleKind, Seconds, Stage,
};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A plan that fits.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub estimate: Estimate,
    /// The objective of the search: step time, or step time × the codecs' factor on the number of steps.
    pub merit: Seconds,
    /// The part of the memory of the fullest device that is used.
    pub fullness: f64,
}

/// Step times that differ by less than a nanosecond are equal: floating-point sums are not more accurate.
pub(crate) fn nanoseconds(time: Seconds) -> u64 {
    (time.0 * 1e9).round() as u64
}

impl Found {
    /// Sort key: faster first, then smaller, then in the order of strategies and of recomputed blocks.
    pub fn rank(&self) -> impl Ord + use<'_> {
        let recomputed: Vec<_> = self.stages.iter().map(|s| (s.end_layer, &s.recompute)).collect();
        let memory = self.estimate.peak_memory_bytes;
        (nanoseconds(self.merit), memory, &self.strategy, recomputed)
    }
}

/// The result of evaluating a strategy.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Illegal(Illegal),
    Unpriced(Unpriced),
    Memory(Box<MemoryShortfall>),
    /// Equivalent to another candidate: the same buckets, or no recomputation needed.
    Same,
    /// Not simulated, because its lower bound is this time.
    Bounded(Seconds),
    Found(Box<Found>),
}

impl Outcome {
    fn is_risky(&self) -> bool {
        matches!(self, Self::Found(found) if found.estimate.is_risky())
    }
}

/// How the layers are cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Nearly equal times.
    Times,
    /// Numbers of blocks that differ by at most one.
    Blocks,
}

/// How much memory the fewest recomputed blocks have to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// The job's reserve.
    Reserve,
    /// Also what the peak may be above its prediction, so that the plan is not risky.
    Safe,
}

fn rooms(candidate: &Candidate) -> &'static [Room] {
    if candidate.least_recompute { &[Room::Reserve, Room::Safe] } else { &[Room::Reserve] }
}

/// Nothing is known of a cut.
pub(crate) const NO_BOUNDS: [Seconds; 2] = [Seconds::ZERO; 2];

/// Lower bounds of a candidate, computed before it is compiled.
#[derive(Debug, Clone)]
pub(crate) struct LowerBounds {
    pub index: usize,
    /// No plan of this candidate is faster.
    pub time: Seconds,
    /// The same for each cut of the layers; zero for those that are not tried.
    pub by_cut: [Seconds; 2],
    /// No plan of this candidate needs less memory.
    pub memory: Bytes,
    /// Whether a plan of this candidate may fit.
    pub fits: bool,
}

/// Inputs that all candidates share.
pub(crate) struct Evaluator<'a> {
    pub model: &'a ModelSpec,
    pub cluster: &'a Cluster,
    pub job: &'a Job,
    pub costs: &'a CostModel,
    /// The engine for which the prices were measured, because no other engine could run the plan at these
    /// prices; `None` for another trainer.
    pub engine: Option<Engine>,
    /// The trainer's own rules.
    pub framework: Option<Framework>,
    /// Memory of the devices of each class.
    memory: Vec<Bytes>,
    pub options: CommunicationOptions,
    /// What was computed of layers, on clusters of one kind of devices.
    layers: Mutex<BTreeMap<LayersKey, Arc<KnownLayers>>>,
}

/// Strategies with the same key have layers of the same costs: tensor, context and expert degree, micro-batch, sequence
/// parallelism, recomputation.
type LayersKey = (u32, u32, u32, u32, bool, Recompute);

/// The costs of layers, and the cuts of the chain into nearly equal times.
struct KnownLayers {
    costs: RankCosts,
    cuts: Mutex<Cuts>,
}

impl KnownLayers {
    fn new(costs: RankCosts, layers: usize) -> Self {
        let one = costs.of_rank(0);
        let cuts = Mutex::new(Cuts::new((0..layers).map(|layer| one.time(layer).0)));
        Self { costs, cuts }
    }
}

/// Candidates with the same key have the same outline.
type OutlineKey = (u32, u32, u32, u32, bool, u32, u32, Recompute, bool);

fn outline_key(candidate: &Candidate) -> OutlineKey {
    let s = &candidate.strategy;
    (
        s.tensor,
        s.context,
        s.expert,
        s.pipeline,
        s.sequence_parallel,
        s.micro_batch,
        s.virtual_stages,
        s.recompute,
        candidate.least_recompute,
    )
}

/// Memory of each pipeline rank, by the number of recomputed blocks per chunk.
type KnownMemory = BTreeMap<usize, Vec<MemoryBreakdown>>;

type OrderKey = (ScheduleKind, u32, u32, u32);

impl<'a> Evaluator<'a> {
    pub fn new(
        model: &'a ModelSpec,
        cluster: &'a Cluster,
        job: &'a Job,
        costs: &'a CostModel,
        (engine, framework): (Option<Engine>, Option<Framework>),
        network: Option<&Network>,
    ) -> Self {
        let options = CommunicationOptions::new(network, job);
        let kinds = cluster.node_kinds();
        let mut memory: Vec<Bytes> = kinds.iter().map(|kind| kind.group.device.memory_bytes).collect();
        if costs.classes().count() == 1 {
            memory = memory.into_iter().min().into_iter().collect();
        }
        Self { model, cluster, job, costs, engine, framework, memory, options, layers: Mutex::default() }
    }

    /// Memory of the smallest device of a pipeline rank.
    pub fn capacity(&self, strategy: &ParallelStrategy, pipeline_rank: u32) -> Bytes {
        let classes = self.costs.classes().of_stage(strategy, pipeline_rank as usize);
        self.memory[classes.iter()].iter().copied().min().unwrap_or_default()
    }

    /// The part of it that a plan may use.
    pub fn usable(&self, strategy: &ParallelStrategy, pipeline_rank: u32) -> Bytes {
        self.job.usable(self.capacity(strategy, pipeline_rank))
    }

    /// The pipeline rank with the least memory left, and the bytes that it needs in excess of what is usable;
    /// negative if all fit.
    pub fn fullest(&self, strategy: &ParallelStrategy, memory: &[MemoryBreakdown]) -> Option<(usize, f64)> {
        let excess =
            |rank: usize| memory[rank].total().as_f64() - self.usable(strategy, rank as u32).as_f64();
        let ranks = (0..memory.len()).rev().map(|rank| (rank, excess(rank)));
        ranks.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The bytes by which the fullest pipeline rank exceeds what is usable and safe; negative if all are below it.
    fn beyond_safety(&self, strategy: &ParallelStrategy, memory: &[MemoryBreakdown]) -> f64 {
        let peak = 1.0 + self.costs.peak_bar();
        let excess = |(rank, memory): (usize, &MemoryBreakdown)| {
            let rank = rank as u32;
            let safe = self.capacity(strategy, rank).as_f64() / peak;
            memory.total().as_f64() - safe.min(self.usable(strategy, rank).as_f64())
        };
        memory.iter().enumerate().map(excess).fold(f64::NEG_INFINITY, f64::max)
    }

    /// Checks the rules that do not depend on stages.
    pub fn legal(&self, strategy: &ParallelStrategy) -> Result<(), Illegal> {
        rules::check_strategy(self.model, self.job, self.cluster.device_count(), strategy)?;
        self.supported(strategy)
    }

    /// Whether the engine or the trainer of the prices supports the strategy.
    pub fn supported(&self, strategy: &ParallelStrategy) -> Result<(), Illegal> {
        if let Some(framework) = self.framework {
            framework::check(framework, self.model, self.job, strategy)?;
        }
        self.engine.map_or(Ok(()), |engine| engine::check(engine, self.model, self.job, strategy))
    }

    /// Lower bounds of all the candidates, which must be legal; in their order. Shared parts are computed
    /// once.
    pub fn lower_bounds(&self, candidates: &[(usize, &Candidate)]) -> Vec<Result<LowerBounds, Unpriced>> {
        let mut outlines: BTreeMap<OutlineKey, &Candidate> = BTreeMap::new();
        let mut orders: BTreeMap<OrderKey, &ParallelStrategy> = BTreeMap::new();
        for (_, candidate) in candidates {
            outlines.entry(outline_key(candidate)).or_insert(candidate);
            orders.entry(self.order_key(&candidate.strategy)).or_insert(&candidate.strategy);
        }
        let outlines: BTreeMap<OutlineKey, Result<Vec<Outline>, Unpriced>> =
            outlines.into_par_iter().map(|(key, candidate)| (key, self.outlines(candidate))).collect();
        let micro_batches =
            |strategy: &ParallelStrategy| strategy.micro_batches(self.job.global_batch) as usize;
        let orders: BTreeMap<OrderKey, [InFlight; 2]> = orders
            .into_par_iter()
            .map(|(key, strategy)| (key, in_flight(strategy, micro_batches(strategy))))
            .collect();
        let bounds = |(index, candidate): &(usize, &Candidate)| {
            let strategy = &candidate.strategy;
            let outlines = outlines[&outline_key(candidate)].as_ref().map_err(Clone::clone)?;
            let orders = &orders[&self.order_key(strategy)];
            let mut least = LowerBounds {
                index: *index,
                time: Seconds(f64::INFINITY),
                by_cut: NO_BOUNDS,
                memory: Bytes(u64::MAX),
                fits: false,
            };
            let usable = [0, strategy.pipeline - 1].map(|rank| self.usable(strategy, rank));
            for (outline, bound) in outlines.iter().zip(&mut least.by_cut) {
                let time =
                    self.costs.outline_bound(outline, self.model, strategy, micro_batches(strategy))?;
                let memory = outline
                    .memory_floor(self.job, strategy, self.costs.parameter_bytes(strategy), orders)
                    .map(Bytes);
                (*bound, least.time) = (time, least.time.min(time));
                least.memory = least.memory.min(memory[0].max(memory[1]));
                least.fits |= memory[0] <= usable[0] && memory[1] <= usable[1];
            }
            Ok(least)
        };
        candidates.par_iter().map(bounds).collect()
    }

    fn order_key(&self, strategy: &ParallelStrategy) -> OrderKey {
        (
            strategy.schedule,
            strategy.pipeline,
            strategy.virtual_stages,
            strategy.micro_batches(self.job.global_batch),
        )
    }

    /// The costs of layers on one kind of devices, computed once for all pipelines; `None` on several kinds.
    fn known_layers(&self, strategy: &ParallelStrategy) -> Result<Option<Arc<KnownLayers>>, Unpriced> {
        if self.costs.classes().count() != 1 {
            return Ok(None);
        }
        let s = strategy;
        let key = (s.tensor, s.context, s.expert, s.micro_batch, s.sequence_parallel, s.recompute);
        // A thread that panics does not leave half an entry.
        let known = || self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layers) = known().get(&key) {
            return Ok(Some(Arc::clone(layers)));
        }
        let costs = self.costs.layer_costs(self.model, self.job, strategy)?;
        let layers = Arc::new(KnownLayers::new(costs, self.model.chain_len()));
        Ok(Some(Arc::clone(known().entry(key).or_insert(layers))))
    }

    fn layers(&self, strategy: &ParallelStrategy) -> Result<RankCosts, Unpriced> {
        let known = self.known_layers(strategy)?;
        match known.and_then(|known| known.costs.on_ranks(strategy.pipeline as usize)) {
            Some(costs) => Ok(costs),
            None => self.costs.layer_costs(self.model, self.job, strategy),
        }
    }

    /// One for each cut.
    fn outlines(&self, candidate: &Candidate) -> Result<Vec<Outline>, Unpriced> {
        let strategy = &candidate.strategy;
        let none = without_recompute(strategy);
        let of_cuts = if candidate.least_recompute { &none } else { strategy };
        let mut costs = self.layers(of_cuts)?;
        if candidate.least_recompute {
            costs = costs.least(&self.layers(strategy)?);
        }
        let outline = |cut: &Cut| {
            let stages = self.cut(of_cuts, *cut)?;
            Ok(Outline::new(self.model, strategy, &stages, &costs, self.job))
        };
        self.cuts(strategy).iter().map(outline).collect()
    }

    /// The stages of a given strategy: of nearly equal time, or, if the job requires it, of equal numbers of
    /// blocks.
    pub fn stages(&self, strategy: &ParallelStrategy) -> Result<Vec<Stage>, Unpriced> {
        self.cut(strategy, self.cuts(strategy)[0])
    }

    /// How a search cuts the layers: equal times bound the step, but equal numbers of blocks may be faster, by
    /// what the times of single layers do not tell.
    fn cuts(&self, strategy: &ParallelStrategy) -> &'static [Cut] {
        match (self.job.allow.uneven_stages, strategy.pipeline) {
            (false, _) => &[Cut::Blocks],
            (true, pipeline) if pipeline > 1 && strategy.chunks() <= self.model.layers => {
                &[Cut::Times, Cut::Blocks]
            }
            (true, _) => &[Cut::Times],
        }
    }

    fn cut(&self, strategy: &ParallelStrategy, cut: Cut) -> Result<Vec<Stage>, Unpriced> {
        let chunks = strategy.chunks() as usize;
        match cut {
            Cut::Blocks => {
                let mut end = 1;
                let mut ends = vec![0];
                for chunk in 0..chunks {
                    let blocks = share(u64::from(self.model.layers), chunk as u64, chunks as u64);
                    end += (blocks.end - blocks.start) as usize + usize::from(chunk + 1 == chunks);
                    ends.push(end);
                }
                Ok(stages::from_ends(self.model, &ends, strategy.recompute))
            }
            Cut::Times => {
                if let Some(known) = self.known_layers(strategy)? {
                    let ends = known.cuts.lock().unwrap_or_else(PoisonError::into_inner).ends(chunks);
                    let stages = ends.map(|ends| stages::from_ends(self.model, &ends, strategy.recompute));
                    return Ok(stages.unwrap_or_default());
                }
                let costs = self.layers(strategy)?;
                let (distinct, of_rank) = costs.distinct();
                let time = |device: usize, layer| distinct[device].time(layer).0;
                let devices: Vec<usize> = (0..chunks).map(|chunk| of_rank[strategy.rank_of(chunk)]).collect();
                let stages = stages::balanced_on(self.model, &devices, strategy.recompute, &time);
                Ok(stages.unwrap_or_default())
            }
        }
    }

    /// All plans of a candidate: for each cut that differs one for each bucket size that changes the buckets.
    /// `by_cut` are the lower bounds of the cuts.
    pub fn evaluate(
        &self,
        candidate: &Candidate,
        by_cut: [Seconds; 2],
        threshold: Option<u64>,
    ) -> Vec<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        let mut seen: Vec<Vec<Stage>> = Vec::new();
        for (cut, bound) in self.cuts(&candidate.strategy).iter().zip(by_cut) {
            if threshold.is_some_and(|threshold| nanoseconds(bound) > threshold) {
                outcomes.push(vec![Outcome::Bounded(bound)]);
                continue;
            }
            // More recomputed blocks only help a plan that fits, is fast enough and may run out of memory.
            let mut risky = true;
            let mut known = BTreeMap::new();
            for room in rooms(candidate) {
                if !std::mem::take(&mut risky) {
                    break;
                }
                match self.candidate_stages(candidate, *cut, *room, &mut known) {
                    Ok(stages) if seen.contains(&stages) => {}
                    Ok(stages) => {
                        let found = self.evaluate_cut(candidate, &stages, threshold);
                        risky = found.iter().any(Outcome::is_risky);
                        outcomes.push(found);
                        seen.push(stages);
                    }
                    // What fits with the reserve alone need not fit more safely.
                    Err(_) if *room == Room::Safe => {}
                    Err(outcome) => outcomes.push(vec![outcome]),
                }
            }
        }
        outcomes
    }

    fn evaluate_cut(&self, candidate: &Candidate, stages: &[Stage], threshold: Option<u64>) -> Vec<Outcome> {
        let first = &candidate.strategy;
        // From stage 2 on, ZeRO reduces layer by layer.
        let sizes = if first.zero_stage >= 2 {
            &self.job.allow.bucket_bytes[..1]
        } else {
            &self.job.allow.bucket_bytes[..]
        };
        let mut outcomes = Vec::new();
        let mut seen = Vec::new();
        for bucket_bytes in sizes {
            let strategy = ParallelStrategy { bucket_bytes: *bucket_bytes, ..first.clone() };
            match self.outlined(&strategy, stages) {
                Err(illegal) => outcomes.push(Outcome::Illegal(illegal)),
                Ok(program) => {
                    let buckets: Vec<_> = program.ranks.iter().map(|rank| rank.classes.clone()).collect();
                    if seen.contains(&buckets) {
                        outcomes.push(Outcome::Same);
                    } else {
                        seen.push(buckets);
                        outcomes.extend(self.with_each_communication(program, threshold));
                    }
                }
            }
        }
        outcomes
    }

    /// Evaluates the program with every communication that the job allows.
    fn with_each_communication(&self, program: Program, threshold: Option<u64>) -> Vec<Outcome> {
        let communications = self.options.communications(&program, self.job);
        if communications.len() == 1 && communications[0].is_default() && self.options.only_default() {
            return vec![self.price(&program, threshold)];
        }
        let mut outcomes = Vec::new();
        let mut seen = Vec::new();
        for communication in communications {
            let mut strategy = ParallelStrategy { communication, ..program.strategy.clone() };
            if self.options.choose_algorithms() {
                let chosen =
                    self.outlined(&strategy, &program.stages).map(|p| self.costs.fastest_algorithms(&p));
                match chosen {
                    Err(illegal) => {
                        outcomes.push(Outcome::Illegal(illegal));
                        continue;
                    }
                    Ok(Err(unpriced)) => {
                        outcomes.push(Outcome::Unpriced(unpriced));
                        continue;
                    }
                    Ok(Ok(communication)) => strategy.communication = communication,
                }
            }
            if seen.contains(&strategy.communication) {
                continue;
            }
            seen.push(strategy.communication.clone());
            outcomes.push(match self.outlined(&strategy, &program.stages) {
                Err(illegal) => Outcome::Illegal(illegal),
                Ok(program) => self.price(&program, threshold),
            });
        }
        outcomes
    }

    /// Evaluates one strategy: returns a plan if it is legal, priced and fits.
    pub fn look(&self, strategy: &ParallelStrategy, stages: &[Stage]) -> Option<Found> {
        match self.price(&self.outlined(strategy, stages).ok()?, None) {
            Outcome::Found(found) => Some(*found),
            _ => None,
        }
    }

    fn compile(
        &self,
        extent: Extent,
        strategy: &ParallelStrategy,
        stages: &[Stage],
    ) -> Result<Program, Illegal> {
        self.supported(strategy)?;
        let devices = self.cluster.device_count();
        Program::compile_extent(extent, self.model, self.job, devices, strategy, stages)
    }

    /// As much of a step as its memory and its lower bound depend on. How often two groups contend for a link
    /// depends on all of it.
    fn extent(&self) -> Extent {
        if self.costs.nodes().is_some() { Extent::Step } else { Extent::Period }
    }

    fn outlined(&self, strategy: &ParallelStrategy, stages: &[Stage]) -> Result<Program, Illegal> {
        self.compile(self.extent(), strategy, stages)
    }

    /// Counts a program's memory, bounds it, and simulates the whole step unless one of them excludes it.
    fn price(&self, program: &Program, threshold: Option<u64>) -> Outcome {
        let priced = match self.costs.price(program) {
            Ok(priced) => priced,
            Err(error) => return Outcome::Unpriced(error),
        };
        let memory = priced.memory();
        if let Some(shortfall) = MemoryShortfall::of(&program.strategy, &memory, self) {
            return Outcome::Memory(Box::new(shortfall));
        }
        if let Some(shortfall) = MemoryShortfall::of_host(&priced, program, &memory, self) {
            return Outcome::Memory(Box::new(shortfall));
        }
        let part = |(rank, memory): (usize, &MemoryBreakdown)| {
            memory.total().as_f64() / self.capacity(&program.strategy, rank as u32).as_f64()
        };
        let fullness = memory.iter().enumerate().map(part).fold(0.0, f64::max);
        let bound = priced.lower_bound();
        if threshold.is_some_and(|threshold| nanoseconds(bound) > threshold) {
            return Outcome::Bounded(bound);
        }
        let estimate = match self.extent() {
            Extent::Step => priced.estimate(self.job, self.cluster),
            Extent::Period => match self.estimate(program) {
                Ok(estimate) => estimate,
                Err(outcome) => return outcome,
            },
        };
        Outcome::Found(Box::new(Found {
            strategy: program.strategy.clone(),
            stages: program.stages.clone(),
            merit: estimate.merit(self.job.objective),
            estimate,
            fullness,
        }))
    }

    /// Simulates the whole step of a program.
    fn estimate(&self, program: &Program) -> Result<Estimate, Outcome> {
        let step =
            self.compile(Extent::Step, &program.strategy, &program.stages).map_err(Outcome::Illegal)?;
        let priced = self.costs.price(&step).map_err(Outcome::Unpriced)?;
        Ok(priced.estimate(self.job, self.cluster))
    }

    /// `known` is the memory by the number of recomputed blocks per chunk, as far as it was counted for this cut.
    fn candidate_stages(
        &self,
        candidate: &Candidate,
        cut: Cut,
        room: Room,
        known: &mut KnownMemory,
    ) -> Result<Vec<Stage>, Outcome> {
        if candidate.least_recompute {
            self.least_recompute(&candidate.strategy, cut, room, known)
        } else {
            self.cut(&candidate.strategy, cut).map_err(Outcome::Unpriced)
        }
    }

    /// The fewest recomputed blocks per chunk with which the plan fits: memory never grows with their number.
    /// It is nearly linear in it, so that the next count to try is interpolated; every third one halves what
    /// is left, in case it is not.
    fn least_recompute(
        &self,
        strategy: &ParallelStrategy,
        cut: Cut,
        room: Room,
        known: &mut KnownMemory,
    ) -> Result<Vec<Stage>, Outcome> {
        let cuts = self.cut(&without_recompute(strategy), cut).map_err(Outcome::Unpriced)?;
        let blocks =
            |stage: &Stage| stage.layers().filter(|l| self.model.kind(*l) == LayerKind::Block).count();
        let all = cuts.iter().map(blocks).max().unwrap_or(0);
        let with = |count: usize| stages::with_recompute(self.model, &cuts, strategy.recompute, count);
        let mut memory = |count: usize| -> Result<Vec<MemoryBreakdown>, Outcome> {
            if let Some(memory) = known.get(&count) {
                return Ok(memory.clone());
            }
            let program = self.outlined(strategy, &with(count)).map_err(Outcome::Illegal)?;
            let memory = self.costs.memory_alone(&program).map_err(Outcome::Unpriced)?;
            known.insert(count, memory.clone());
            Ok(memory)
        };
        // Bytes in excess of what is usable.
        let excess = |memory: &[MemoryBreakdown]| match room {
            Room::Reserve => self.fullest(strategy, memory).map_or(0.0, |most| most.1),
            Room::Safe => self.beyond_safety(strategy, memory),
        };
        let most = excess(&memory(0)?);
        if most <= 0.0 {
            return Err(Outcome::Same);
        }
        let least = memory(all)?;
        if let Some(shortfall) = MemoryShortfall::of(strategy, &least, self) {
            return Err(Outcome::Memory(Box::new(shortfall)));
        }
        if excess(&least) > 0.0 {
            return Err(Outcome::Same);
        }
        let (mut too_few, mut enough) = ((0, most), (all, excess(&least)));
        let mut tries = 0;
        while enough.0 - too_few.0 > 1 {
            let left = enough.0 - too_few.0;
            tries += 1;
            let part = if tries % 3 > 0 { too_few.1 / (too_few.1 - enough.1) } else { 0.5 };
            let step = (part * left as f64).ceil() as usize;
            let count = too_few.0 + step.clamp(1, left - 1);
            let needs = excess(&memory(count)?);
            if needs <= 0.0 { enough = (count, needs) } else { too_few = (count, needs) }
        }
        if enough.0 == all {
            return Err(Outcome::Same);
        }
        Ok(with(enough.0))
    }
}

fn without_recompute(strategy: &ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { recompute: Recompute::None, ..strategy.clone() }
}
