//! The cost of a strategy, in time and in memory, on measured machines.
//!
//! A [`CostModel`] holds a profile's cells, indexed once and shared by all threads. It prices a compiled
//! [`Program`]; the [`Priced`] program can then be simulated, bounded from below, and its memory counted. Not
//! here: the choice between programs (`planner`), and measurement (`profiler`). No IO, no clock.
//!
//! ```
//! use autodist_cost_model::{CostModel, synthetic};
//! use autodist_program::{Held, Program, stages};
//! use autodist_spec::{Job, catalog, strategy::ParallelStrategy};
//! let model = catalog::model("tiny-llama").unwrap();
//! let job = Job::new(8, 128);
//! let profile = synthetic::SyntheticMachine::new(2).profile(&model, &job);
//! let strategy = ParallelStrategy::data_parallel(2, 2);
//! let program = Program::compile(&model, &job, 2, &strategy, &stages::even(&model, &strategy)).unwrap();
//! let estimate = CostModel::new(&profile).estimate(&program, &job, &profile.cluster).unwrap();
//! assert!((estimate.cost.total() / estimate.step_time_s - 1.0).abs() < 1e-9);
//! assert!(estimate.lower_bound_s <= estimate.step_time_s);
//! ```

#![forbid(unsafe_code)]

mod bound;
mod choice;
mod coding;
mod curve;
mod estimate;
mod extended;
mod flows;
mod larger;
mod layers;
mod measured;
mod memory;
mod offload;
mod outline;
mod peak;
mod priced;
mod prices;
mod routes;
mod simulate;
mod statistics;
pub mod synthetic;

pub use bound::{ChunkWork, Tail, pipeline_bound};
pub use choice::set_reductions;
pub use coding::CodedSummary;
pub use curve::Price;
pub use layers::{LayerCost, LayerCosts, RankCosts};
pub use measured::{SegmentPrice, Unpriced};
pub use memory::persistent_bytes;
pub use outline::{InFlight, Outline, in_flight};
pub use peak::PeakError;
pub use priced::Priced;
pub use prices::{CollectiveQuery, MessageQuery, ParameterBytes, Prices, Purpose, SegmentQuery, StepCosts};
pub use simulate::Simulation;

use autodist_program::{Held, Program};
use autodist_spec::profile::{CollectiveCost, Interference, Profile};
use autodist_spec::{
    Algorithm, Bytes, ClassRange, Cluster, CodecProbe, DeviceClasses, DeviceKind, Engine, Estimate, Job,
    MemoryBreakdown, ModelSpec, Network, Optimizer, ParallelStrategy, Precision, Provenance, ScheduleKind,
    Seconds, TimelineEvent,
};
use coding::Codings;
use extended::ExtendedPrices;
use measured::{LinkCurves, ProfilePrices};
use routes::Routes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A source of prices, and the costs of a step beyond it.
#[derive(Debug, Clone)]
pub struct CostModel {
    pub(crate) model: ModelSpec,
    pub(crate) seq_len: u32,
    pub(crate) precision: Precision,
    pub(crate) optimizer_kind: Optimizer,
    parameter_bytes: [ParameterBytes; 4],
    /// As in [`StepCosts`].
    pub(crate) host_bytes: [ParameterBytes; 4],
    pub(crate) whole_gradient_bytes: f64,
    pub(crate) activations_on_host: bool,
    /// The kinds of devices, and the prices of each.
    classes: DeviceClasses,
    prices: Vec<Arc<dyn Prices>>,
    /// The same prices, if they are those of a profile.
    extended: Option<Arc<ExtendedPrices>>,
    /// Used instead of the prices of collectives and of send/recv if links differ.
    pub(crate) routes: Option<Arc<Routes>>,
    pub(crate) codings: Codings,
    /// Costs of the transfers of codecs, if they take another path than uncompressed gradients.
    pub(crate) exchanges: Option<LinkCurves>,
    /// Whether gradients are in accelerator memory.
    pub(crate) on_accelerators: bool,
    /// Times by which devices, links and hosts are faster than priced.
    compute_speedup: f64,
    link_speedup: f64,
    host_speedup: f64,
    pub(crate) interference: Interference,
    pub(crate) stream_handover: Price,
    /// Overhead per transfer of a sharded bucket.
    pub(crate) sharding: Price,
    /// Overhead per pass of a chunk in a pipeline, by schedule.
    pub(crate) pipelining: BTreeMap<ScheduleKind, Price>,
    /// Whether compute waits for each transfer of a sharded bucket: FSDP2 overlaps them by CUDA streams,
    /// which a CPU does not have.
    pub(crate) sharding_blocks: bool,
    /// Whether gradients are reduced while the backward pass continues; otherwise after it.
    pub(crate) overlaps_reductions: bool,
    /// As in [`StepCosts`].
    pub(crate) receives_block: bool,
    /// As in [`StepCosts`].
    pub(crate) frees_gradients: bool,
    pub(crate) pipelines_stay_gathered: bool,
    /// Activations are freed only after the whole backward of the chunk (autograd), not segment by segment.
    pub(crate) frees_late: bool,
    pub(crate) synchronisation: Price,
    /// By tensor degree, the additional time of a tensor collective in a step, relative to its schedule on
    /// the network, in seconds; may be negative.
    pub(crate) within_steps: BTreeMap<u32, f64>,
    /// Whether these times are those of other devices, extrapolated.
    pub(crate) extrapolates_waits: bool,
    pub(crate) step_overhead: Price,
    pub(crate) zero_s_per_element: f64,
    pub(crate) add_s_per_element: f64,
    pub(crate) baseline_bytes: Bytes,
    /// Bytes that the allocator holds in addition to tensors, relative to these.
    pub(crate) fragmentation: f64,
    /// Errors of predicted peaks of memory.
    pub(crate) peak_error: PeakError,
    pub(crate) staging_bytes: Bytes,
    /// Absent if no plan ran twice.
    pub(crate) repeatability: Option<f64>,
    /// Measured slowdown in steps of codecs.
    pub(crate) probes: Vec<CodecProbe>,
}

/// The tensor groups of probes are neighbours, and in a step all groups run at once.
fn within_steps(routes: &Routes, timed: &[CollectiveCost]) -> BTreeMap<u32, f64> {
    let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    for CollectiveCost { kind, group, bytes, time, .. } in timed {
        let devices: Vec<usize> = (0..routes.nodes().len()).collect();
        let groups: Vec<Vec<usize>> = devices.chunks(*group as usize).map(<[usize]>::to_vec).collect();
        let Some(pattern) = routes::pattern(*kind, Algorithm::Ring) else { continue };
        let alone = routes.collective(pattern, &groups, *bytes).seconds;
        let (beyond, count) = sums.entry(*group).or_default();
        // Weighted by the number of calls in a step.
        *beyond += time.count as f64 * (time.median_s.0 - alone);
        *count += time.count as f64;
    }
    sums.into_iter().map(|(group, (beyond, count))| (group, beyond / count.max(1.0))).collect()
}

impl CostModel {
    #[must_use]
    pub fn new(profile: &Profile) -> Self {
        Self::of_times(&profile.corrected())
    }

    /// The costs of a profile whose correction is in its times.
    fn of_times(profile: &Profile) -> Self {
        let routes = profile.network.as_ref().map(|network| Arc::new(Routes::new(network)));
        Self {
            model: profile.model.clone(),
            seq_len: profile.seq_len,
            precision: profile.precision,
            optimizer_kind: profile.optimizer_kind,
            parameter_bytes: [ParameterBytes::of(profile.precision, profile.optimizer_kind); 4],
            host_bytes: [ParameterBytes::default(); 4],
            whole_gradient_bytes: 4.0,
            activations_on_host: false,
            classes: DeviceClasses::alike(),
            prices: vec![Arc::new(ProfilePrices::new(profile))],
            extended: None,
            compute_speedup: 1.0,
            link_speedup: 1.0,
            host_speedup: 1.0,
            extrapolates_waits: false,
            within_steps: routes.as_ref().map(|r| within_steps(r, &profile.within_steps)).unwrap_or_default(),
            routes,
            codings: Codings::new(&profile.codecs),
            exchanges: (!profile.exchanges.is_empty()).then(|| LinkCurves::new(&profile.exchanges, &[], &[])),
            on_accelerators: !profile.environment.accelerators.is_empty(),
            interference: profile.interference.clone(),
            stream_handover: Price::from(&profile.stream_handover),
            sharding: profile.sharding.as_ref().map_or(Price::ZERO, Price::from),
            pipelining: profile
                .pipelining
                .iter()
                .map(|cost| (cost.schedule, Price::from(&cost.time)))
                .collect(),
            sharding_blocks: (profile.environment.engine, profile.environment.devices)
                == (Engine::Torch, DeviceKind::Cpu),
            overlaps_reductions: true,
            receives_block: false,
            frees_gradients: false,
            pipelines_stay_gathered: false,
            frees_late: profile.environment.engine == Engine::Torch,
            // On a network, waits are part of the simulated schedules.
            synchronisation: match &profile.network {
                Some(_) => Price::ZERO,
                None => Price::from(&profile.synchronisation),
            },
            step_overhead: Price::from(&profile.step_overhead),
            zero_s_per_element: profile.zero_s_per_element,
            add_s_per_element: profile.add_s_per_element,
            baseline_bytes: profile.baseline_bytes,
            fragmentation: 0.0,
            peak_error: match profile.environment.engine {
                Engine::Native => PeakError::NATIVE,
                Engine::Torch => PeakError::TORCH,
            },
            staging_bytes: profile.staging_bytes,
            repeatability: match &profile.correction {
                Some(correction) => Some(profile.noise().unwrap_or(0.0).max(correction.error_bar)),
                None => profile.noise(),
            },
            probes: Vec::new(),
        }
    }

    /// Costs of a model and a job from another source than a profile, with prices for each class of devices.
    /// It has no codecs.
    #[must_use]
    pub fn of_prices(
        model: &ModelSpec,
        job: &Job,
        classes: DeviceClasses,
        prices: Vec<Arc<dyn Prices>>,
        step: StepCosts,
    ) -> Self {
        let none = Price { provenance: Provenance::Modelled, ..Price::ZERO };
        Self {
            model: model.clone(),
            seq_len: job.seq_len,
            precision: job.precision,
            optimizer_kind: job.optimizer,
            parameter_bytes: step.parameter_bytes,
            host_bytes: step.host_bytes,
            whole_gradient_bytes: step.whole_gradient_bytes,
            activations_on_host: step.activations_on_host,
            classes,
            prices,
            extended: None,
            compute_speedup: 1.0,
            link_speedup: 1.0,
            host_speedup: 1.0,
            within_steps: BTreeMap::new(),
            extrapolates_waits: false,
            routes: None,
            codings: Codings::default(),
            exchanges: None,
            on_accelerators: true,
            interference: step.interference,
            stream_handover: none,
            sharding: none,
            pipelining: BTreeMap::new(),
            sharding_blocks: false,
            overlaps_reductions: step.overlaps_reductions,
            receives_block: step.receives_block,
            frees_gradients: step.frees_gradients,
            pipelines_stay_gathered: step.pipelines_stay_gathered,
            frees_late: false,
            synchronisation: none,
            step_overhead: Price { seconds: step.overhead_s.0, ..none },
            zero_s_per_element: 0.0,
            add_s_per_element: 0.0,
            baseline_bytes: step.baseline_bytes,
            fragmentation: step.fragmentation,
            peak_error: step.peak_error,
            staging_bytes: Bytes::ZERO,
            repeatability: Some(step.spread),
            probes: Vec::new(),
        }
    }

    /// Uses the measured slowdown of codecs instead of priors.
    #[must_use]
    pub fn with_probes(self, probes: &[CodecProbe]) -> Self {
        Self { probes: probes.to_vec(), ..self }
    }

    /// The same costs with devices, links and hosts that are faster by these factors.
    #[must_use]
    pub fn faster(&self, compute: f64, links: f64, hosts: f64) -> Self {
        Self {
            compute_speedup: self.compute_speedup * compute,
            link_speedup: self.link_speedup * links,
            host_speedup: self.host_speedup * hosts,
            ..self.clone()
        }
    }

    /// The network, if links differ.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.routes.as_ref().map(|routes| routes.network())
    }

    /// The part of a predicted peak of memory that has to be added to it for a bound that nineteen of twenty measured
    /// peaks keep.
    #[must_use]
    pub fn peak_bar(&self) -> f64 {
        self.peak_error.bar()
    }

    #[must_use]
    pub fn parameter_bytes(&self, strategy: &ParallelStrategy) -> &ParameterBytes {
        &self.parameter_bytes[usize::from(strategy.zero_stage.min(3))]
    }

    /// The same in the host's memory.
    pub(crate) fn host_bytes(&self, strategy: &ParallelStrategy) -> &ParameterBytes {
        &self.host_bytes[usize::from(strategy.zero_stage.min(3))]
    }

    /// The kinds of devices.
    #[must_use]
    pub fn classes(&self) -> &DeviceClasses {
        &self.classes
    }

    /// The classes of the devices of each pipeline rank.
    pub(crate) fn classes_of(&self, strategy: &ParallelStrategy) -> Vec<ClassRange> {
        (0..strategy.pipeline as usize).map(|rank| self.classes.of_stage(strategy, rank)).collect()
    }

    /// The slowest of these classes: the ranks of a pipeline stage wait for each other.
    fn slowest(
        &self,
        classes: ClassRange,
        price: impl Fn(&dyn Prices) -> Result<Price, Unpriced>,
    ) -> Result<Price, Unpriced> {
        let mut slowest = price(&*self.prices[classes.first])?;
        for prices in &self.prices[classes.first + 1..classes.end] {
            let other = price(&**prices)?;
            slowest = if other.seconds > slowest.seconds { other } else { slowest };
        }
        Ok(slowest)
    }

    /// Time and memory of one pass of one segment over one micro-batch: of several classes the longest time
    /// and the most memory.
    ///
    /// # Errors
    /// The source of prices does not contain it.
    pub fn segment(&self, query: &SegmentQuery, classes: ClassRange) -> Result<SegmentPrice, Unpriced> {
        let mut price = self.prices[classes.first].segment(query)?;
        for prices in &self.prices[classes.first + 1..classes.end] {
            let other = prices.segment(query)?;
            if other.time.seconds > price.time.seconds {
                price.time = other.time;
            }
            price.launch_s = price.launch_s.max(other.launch_s);
            // What the forward pass adds most of, the backward pass frees most of.
            if other.growth_bytes.abs() > price.growth_bytes.abs() {
                price.growth_bytes = other.growth_bytes;
            }
            price.peak_bytes = price.peak_bytes.max(other.peak_bytes);
        }
        let time = price.time * (1.0 / self.compute_speedup);
        Ok(SegmentPrice { time, launch_s: Seconds(price.launch_s.0 / self.host_speedup), ..price })
    }

    pub(crate) fn update(&self, elements: usize, classes: ClassRange) -> Result<Price, Unpriced> {
        Ok(self.slowest(classes, |prices| prices.update(elements))? * (1.0 / self.compute_speedup))
    }

    pub(crate) fn norm(&self, elements: usize, classes: ClassRange) -> Result<Price, Unpriced> {
        Ok(self.slowest(classes, |prices| prices.norm(elements))? * (1.0 / self.compute_speedup))
    }

    /// Whether a step gathers and reduces the shards of this strategy once, instead of in every pass.
    pub(crate) fn stays_gathered(&self, strategy: &ParallelStrategy) -> bool {
        self.pipelines_stay_gathered && strategy.pipeline > 1 && strategy.zero_stage >= 2
    }

    pub(crate) fn kept_of_pass(&self, strategy: &ParallelStrategy) -> Bytes {
        self.prices.iter().map(|prices| prices.kept_of_pass(strategy)).max().unwrap_or_default()
    }

    pub(crate) fn update_buffers(&self, elements: u64, strategy: &ParallelStrategy) -> Bytes {
        self.prices.iter().map(|prices| prices.update_buffers(elements, strategy)).max().unwrap_or_default()
    }

    pub(crate) fn buffers(&self, held: &Held, strategy: &ParallelStrategy) -> Bytes {
        self.prices.iter().map(|prices| prices.buffers(held, strategy)).max().unwrap_or_default()
    }

    /// A collective of a program among devices of these classes, where only the shape of the groups matters.
    ///
    /// # Errors
    /// The source of prices does not contain such groups.
    pub(crate) fn collective(&self, query: &CollectiveQuery, classes: ClassRange) -> Result<Price, Unpriced> {
        if query.group <= 1 {
            return Ok(Price::ZERO);
        }
        Ok(self.sped_up(self.slowest(classes, |prices| prices.collective(query))?))
    }

    /// A collective of a program over each of these groups of devices at the same time.
    ///
    /// # Errors
    /// As for `collective`.
    pub(crate) fn over(&self, query: &CollectiveQuery, groups: &[Vec<usize>]) -> Result<Price, Unpriced> {
        let Some(routes) = &self.routes else { return self.collective(query, self.classes.all()) };
        let pattern = routes::pattern(query.kind, query.algorithm).ok_or_else(|| Unpriced {
            what: format!("the network's simulation knows no {}", query.kind.name()),
            hint: "price it from the catalogue".to_owned(),
            doubted: false,
        })?;
        Ok(self.sped_up(routes.collective(pattern, groups, query.bytes)))
    }

    /// A price of communication on links that are faster by their factor.
    pub(crate) fn sped_up(&self, price: Price) -> Price {
        price * (1.0 / self.link_speedup)
    }

    /// Like [`collective`](CostModel::collective), for the bytes of codecs.
    ///
    /// # Errors
    /// As for `collective`.
    pub(crate) fn exchange(&self, query: &CollectiveQuery) -> Result<Price, Unpriced> {
        let CollectiveQuery { kind, group, stride, bytes, .. } = *query;
        match &self.exchanges {
            Some(links) => Ok(self.sped_up(links.collective(kind, group, stride, bytes)?)),
            None => self.collective(query, self.classes.all()),
        }
    }

    /// A send/recv between devices of these classes.
    ///
    /// # Errors
    /// The source of prices contains no send/recv.
    pub(crate) fn message(&self, query: &MessageQuery, classes: ClassRange) -> Result<Price, Unpriced> {
        Ok(self.sped_up(self.slowest(classes, |prices| prices.message(query))?))
    }

    /// The shortest send/recv between devices of any class.
    pub(crate) fn shortest_message(&self, query: &MessageQuery) -> Result<Price, Unpriced> {
        let mut shortest = self.message(query, ClassRange::one(0))?;
        for class in 1..self.classes.count() {
            let other = self.message(query, ClassRange::one(class))?;
            shortest = if other.seconds < shortest.seconds { other } else { shortest };
        }
        Ok(shortest)
    }

    /// Whether the profile applies to this model and job.
    ///
    /// # Errors
    /// The profile is for another model, sequence length, precision or optimizer.
    pub fn check(&self, model: &ModelSpec, job: &Job) -> Result<(), Unpriced> {
        let (measured, asked) = (&self.optimizer_kind, &job.optimizer);
        let what = if self.model != *model {
            format!("the profile measured model `{}`, not `{}`", self.model.name, model.name)
        } else if self.seq_len != job.seq_len {
            format!("the profile measured sequences of {} tokens, not {}", self.seq_len, job.seq_len)
        } else if self.precision != job.precision {
            format!("the profile measured {}, not {}", self.precision.name(), job.precision.name())
        } else if std::mem::discriminant(measured) != std::mem::discriminant(asked) {
            "the profile was measured with another optimizer than the job's".to_owned()
        } else {
            return Ok(());
        };
        let hint = format!(
            "profile this model with this job's sequence length, precision and optimizer, or use those of the profile \
             (`--model` {}, `--seq-len` {})",
            self.model.name, self.seq_len
        );
        Err(Unpriced { what, hint, doubted: false })
    }

    /// # Errors
    /// The profile lacks a cost; the first one is reported.
    pub fn price<'a>(&'a self, program: &'a Program) -> Result<Priced<'a>, Unpriced> {
        Priced::new(self, program)
    }

    /// # Errors
    /// The profile is for another model or job, or lacks a cost.
    pub fn estimate(&self, program: &Program, job: &Job, cluster: &Cluster) -> Result<Estimate, Unpriced> {
        self.check(&program.model, job)?;
        Ok(self.price(program)?.estimate(job, cluster))
    }

    /// # Errors
    /// The profile lacks a cost.
    pub fn timeline(&self, program: &Program) -> Result<Vec<TimelineEvent>, Unpriced> {
        Ok(self.price(program)?.timeline())
    }

    /// # Errors
    /// The profile lacks a cost.
    pub fn lower_bound(&self, program: &Program) -> Result<Seconds, Unpriced> {
        Ok(self.price(program)?.lower_bound())
    }

    /// As [`memory`](Self::memory), without looking up times that the source of prices is known to have.
    ///
    /// # Errors
    /// The profile lacks a cost.
    pub fn memory_alone(&self, program: &Program) -> Result<Vec<MemoryBreakdown>, Unpriced> {
        // A profile may lack the time of a transfer.
        if self.extended.is_some() {
            self.memory(program)
        } else {
            Ok(Priced::timeless(self, program)?.memory())
        }
    }

    /// One per pipeline rank.
    ///
    /// # Errors
    /// The profile lacks a cost.
    pub fn memory(&self, program: &Program) -> Result<Vec<MemoryBreakdown>, Unpriced> {
        Ok(self.price(program)?.memory())
    }
}
