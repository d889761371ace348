//! Searches for the fastest plan that fits into memory.
//!
//! The space contains the strategies that the job allows and the compiler's rules accept. Every candidate in
//! it is bounded from below before it is compiled; those that the bound does not exclude are compiled, their
//! memory is counted exactly, and those that fit are simulated, most promising first, until no bound is below
//! the best plan. So the plan is optimal in its space under its cost model, and the result records this. The
//! result depends only on the input, not on the number of threads. Not here: the cost of a plan
//! (`cost-model`), the rules (`program`), and any clock except the caller's.
//!
//! ```
//! use autodist_cost_model::synthetic::SyntheticMachine;
//! use autodist_planner::{Planner, SearchLimits};
//! use autodist_spec::{Job, StopReason, catalog};
//! let model = catalog::model("tiny-llama").unwrap();
//! let job = Job::new(8, 128);
//! let profile = SyntheticMachine::new(2).profile(&model, &job);
//! let planner = Planner::new(&model, &profile.cluster, &job, &profile);
//! let plan = planner.limits(SearchLimits { top: 3, ..SearchLimits::default() }).plan().unwrap();
//! assert_eq!(plan.search.stop_reason, StopReason::Optimal);
//! assert_eq!(plan.alternatives.len(), 2);
//! ```

#![forbid(unsafe_code)]

mod candidate;
mod choice;
mod communication;
mod compression;
mod explain;
mod placement;
mod points;
mod reason;
mod refusal;
mod search;
mod space;
mod threads;
mod variants;

pub use explain::{Explanation, MemoryUse, WhatIf, explain};
pub use reason::{Comparison, Limit};
pub use refusal::{Infeasible, MemoryShortfall, PlanError};
pub use threads::with_threads;

use autodist_cost_model::{CostModel, Prices, Unpriced};
use autodist_program::Program;
use autodist_spec::{
    Alternative, CatalogueReference, Check, Cluster, CodecProbe, CostSource, Estimate, InputError, Job,
    ModelSpec, ParallelStrategy, Plan, Profile, ProfileReference, SCHEMA_VERSION, SearchReport, Seconds,
    Stage, StopReason, Training, doubt,
};
use candidate::Evaluator;
use search::{Keep, Search};
use std::sync::Arc;

/// When a search ends, and how many plans are kept.
#[derive(Clone, Copy)]
pub struct SearchLimits<'a> {
    /// Called between batches of simulations; returns whether the time limit is reached.
    pub deadline: Option<&'a (dyn Fn() -> bool + Sync)>,
    pub max_simulations: Option<u64>,
    /// Plans that take longer are of no use, such as those on fewer devices that are slower than a known plan.
    pub at_most: Option<Seconds>,
    /// Number of plans that are kept, including the best.
    pub top: usize,
    /// Number of threads; 0 means one for each core.
    pub threads: usize,
}

impl Default for SearchLimits<'_> {
    fn default() -> Self {
        Self { deadline: None, max_simulations: None, at_most: None, top: 5, threads: 0 }
    }
}

/// The inputs of a search: model, job, cluster and profile.
#[derive(Clone)]
pub struct Planner<'a> {
    model: &'a ModelSpec,
    cluster: &'a Cluster,
    job: &'a Job,
    source: Source<'a>,
    costs: CostModel,
    /// Why the costs do not apply to the cluster.
    unpriced: Option<Unpriced>,
    limits: SearchLimits<'a>,
}

/// The source of the costs, which plans name.
#[derive(Clone)]
enum Source<'a> {
    Profile(&'a Profile),
    Catalogue(&'a CatalogueReference),
}

impl<'a> Planner<'a> {
    #[must_use]
    pub fn new(model: &'a ModelSpec, cluster: &'a Cluster, job: &'a Job, profile: &'a Profile) -> Self {
        Self::extended(model, cluster, job, profile, None)
    }

    /// Plans with a profile that is extended by the prices of the catalogue where the cluster goes beyond it.
    #[must_use]
    pub fn extended(
        model: &'a ModelSpec,
        cluster: &'a Cluster,
        job: &'a Job,
        profile: &'a Profile,
        catalogue: Option<Arc<dyn Prices>>,
    ) -> Self {
        let (costs, unpriced) = match CostModel::of_cluster(profile, cluster, catalogue) {
            Ok(costs) => (costs, None),
            Err(error) => (CostModel::new(profile), Some(error)),
        };
        let (source, limits) = (Source::Profile(profile), SearchLimits::default());
        Self { model, cluster, job, source, costs, unpriced, limits }
    }

    /// Plans for a cluster that was not measured, with costs from the catalogue.
    #[must_use]
    pub fn of_catalogue(
        model: &'a ModelSpec,
        cluster: &'a Cluster,
        job: &'a Job,
        costs: CostModel,
        reference: &'a CatalogueReference,
    ) -> Self {
        Self {
            model,
            cluster,
            job,
            source: Source::Catalogue(reference),
            costs,
            unpriced: None,
            limits: SearchLimits::default(),
        }
    }

    /// Uses the measured slowdown of codecs.
    #[must_use]
    pub fn probes(mut self, probes: &[CodecProbe]) -> Self {
        self.costs = self.costs.with_probes(probes);
        self
    }

    #[must_use]
    pub fn limits(mut self, limits: SearchLimits<'a>) -> Self {
        self.limits = limits;
        self
    }

    /// The fastest plan that fits and can be trusted, or a simpler one that is as fast (`choice.rs`); of its
    /// alternatives, the lossy ones that nobody has verified are last.
    ///
    /// # Errors
    /// No strategy is legal, priced and fits; the error has the reasons, the nearest miss and a hint.
    pub fn plan(&self) -> Result<Plan, Infeasible> {
        let evaluator = self.evaluator().map_err(|error| refusal::unpriced(self, &error))?;
        let mut outcome = Search::new(&evaluator, self.limits).run(Keep::Best(self.limits.top.max(1)));
        let mut best = std::mem::take(&mut outcome.best).into_iter();
        let Some(winner) = best.next() else { return Err(refusal::infeasible(self, outcome)) };
        let winner = compression::refine(&evaluator, winner);
        let codecs = compression::verdicts(&evaluator, &winner);
        let alternatives = best.map(|found| found.below(&winner)).collect();
        let mut plan = self.document(winner.strategy, winner.stages, winner.estimate, outcome.report);
        plan.alternatives = alternatives;
        plan.rejected = outcome.rejected;
        plan.priced = outcome.priced;
        plan.codecs = codecs;
        if let Some(program) = self.program(&plan) {
            plan.collectives = self.costs.shares(&program);
            plan.placement = evaluator.options.placement(&program);
        }
        plan.correct_mfu();
        self.believable(&plan).map_err(|error| refusal::unpriced(self, &error))?;
        Ok(plan)
    }

    /// Evaluates one given strategy, without a search; without `stages`, the layers are cut by their times.
    ///
    /// # Errors
    /// The strategy is not legal, not priced, or does not fit.
    pub fn given(&self, strategy: &ParallelStrategy, stages: Option<&[Stage]>) -> Result<Plan, PlanError> {
        match self.priced(strategy, stages)? {
            (plan, None) => Ok(plan),
            (_, Some(shortfall)) => Err(PlanError::OutOfMemory(Box::new(shortfall))),
        }
    }

    /// As `given`, with the memory that is missing if the plan does not fit.
    ///
    /// # Errors
    /// The strategy is not legal or not priced.
    pub fn priced(
        &self,
        strategy: &ParallelStrategy,
        stages: Option<&[Stage]>,
    ) -> Result<(Plan, Option<MemoryShortfall>), PlanError> {
        let evaluator = self.evaluator()?;
        evaluator.legal(strategy)?;
        let stages = match stages {
            Some(stages) => stages.to_vec(),
            None => evaluator.stages(strategy)?,
        };
        let program = Program::compile(self.model, self.job, self.cluster.device_count(), strategy, &stages)?;
        let priced = self.costs.price(&program)?;
        let memory = priced.memory();
        let shortfall = MemoryShortfall::of(&program.strategy, &memory, &evaluator)
            .or_else(|| MemoryShortfall::of_host(&priced, &program, &memory, &evaluator));
        let estimate = priced.estimate(self.job, self.cluster);
        let bound = estimate.lower_bound_s;
        let report = SearchReport {
            explored: 1,
            pruned: 0,
            simulated: 1,
            lower_bound_s: bound,
            gap: estimate.step_time_s / bound - 1.0,
            stop_reason: StopReason::Given,
        };
        let mut plan = self.document(strategy.clone(), stages, estimate, report);
        plan.collectives = self.costs.shares(&program);
        plan.placement = evaluator.options.placement(&program);
        plan.fits = shortfall.is_none();
        plan.correct_mfu();
        self.believable(&plan)?;
        Ok((plan, shortfall))
    }

    /// Every plan of the space that is legal, priced and fits, without pruning: the one that [`Self::plan`] recommends
    /// first, then the others, the fastest first, and then lossy ones that nobody has verified.
    ///
    /// # Errors
    /// No plan is feasible.
    pub fn feasible(&self) -> Result<Vec<Alternative>, Infeasible> {
        let evaluator = self.evaluator().map_err(|error| refusal::unpriced(self, &error))?;
        let outcome = Search::new(&evaluator, self.limits).run(Keep::All);
        let Some(best) = outcome.best.first().cloned() else {
            return Err(refusal::infeasible(self, outcome));
        };
        Ok(outcome.best.into_iter().map(|found| found.below(&best)).collect())
    }

    /// Doubtful measurements of the profile.
    fn doubts(&self) -> Vec<String> {
        match self.source {
            Source::Profile(profile) => doubt::lines(&profile.doubts),
            Source::Catalogue(_) => Vec::new(),
        }
    }

    /// The trainer for which the catalogue prices plans; `None` with a profile.
    fn trainer(&self) -> Option<&str> {
        match self.source {
            Source::Profile(_) => None,
            Source::Catalogue(reference) => Some(&reference.trainer),
        }
    }

    fn program(&self, plan: &Plan) -> Option<Program> {
        let devices = self.cluster.device_count();
        Program::compile(self.model, self.job, devices, &plan.strategy, &plan.stages).ok()
    }

    fn evaluator(&self) -> Result<Evaluator<'_>, Unpriced> {
        self.costs.check(self.model, self.job)?;
        if let Some(error) = &self.unpriced {
            return Err(error.clone());
        }
        // A profile has the prices of one kind of device.
        if self.costs.classes().count() == 1 && !self.cluster.homogeneous() {
            return Err(Unpriced {
                what: format!(
                    "`{}` has devices of different kinds, and a profile has the prices of only one",
                    self.cluster.name
                ),
                hint: "plan for devices of one kind, or without a profile (`--cluster` without `--profile`)"
                    .to_owned(),
                doubted: false,
            });
        }
        let runner = match self.source {
            Source::Profile(profile) => (Some(profile.environment.engine), None),
            Source::Catalogue(reference) => (None, reference.trainer.parse().ok()),
        };
        Ok(Evaluator::new(self.model, self.cluster, self.job, &self.costs, runner, self.costs.network()))
    }

    fn document(
        &self,
        strategy: ParallelStrategy,
        stages: Vec<Stage>,
        estimate: Estimate,
        search: SearchReport,
    ) -> Plan {
        let assumptions = self.costs.extensions(&strategy);
        let (step, spread) = (estimate.step_time_s, estimate.step_time_spread_s);
        let training = Training::of(self.job, self.cluster, step, spread);
        let cost_source = self.cost_source(!assumptions.is_empty());
        Plan {
            schema_version: SCHEMA_VERSION,
            model: self.model.clone(),
            cluster: self.cluster.clone(),
            job: self.job.clone(),
            micro_batches: strategy.micro_batches(self.job.global_batch),
            assumptions,
            strategy,
            stages,
            estimate,
            training,
            fits: true,
            understood: Vec::new(),
            search,
            alternatives: Vec::new(),
            priced: Vec::new(),
            rejected: Vec::new(),
            collectives: Vec::new(),
            placement: None,
            codecs: Vec::new(),
            device_choice: None,
            cost_source,
            measured: None,
            given: None,
        }
    }

    /// `mixed` if the costs go beyond the measurements of the profile.
    fn cost_source(&self, mixed: bool) -> CostSource {
        let profile = match self.source {
            Source::Catalogue(reference) => return CostSource::Catalogue(reference.clone()),
            Source::Profile(profile) => profile,
        };
        let reference = ProfileReference {
            fingerprint: profile.fingerprint(),
            path: String::new(),
            reference_s: profile.reference_s,
            devices: profile.environment.devices,
            engine: profile.environment.engine,
            emulated: profile.environment.emulated,
            correction: profile.correction.clone(),
        };
        if mixed { CostSource::Mixed(reference) } else { CostSource::Profile(reference) }
    }

    /// Rejects overflow: numbers that are each in range may add up to a plan whose file could not be read.
    fn believable(&self, plan: &Plan) -> Result<(), Unpriced> {
        let hint = match self.source {
            Source::Profile(_) => {
                "measure again with `autodist profile --fresh`, or look for an implausible number in the cluster"
            }
            Source::Catalogue(_) => {
                "look for an implausible number in the cluster, the devices, the calibration or the model"
            }
        };
        plan.check().map_err(|error| {
            let error = InputError { hint: String::new(), ..error };
            Unpriced {
                what: format!("the costs lead to a plan with values out of range: {error}"),
                hint: hint.to_owned(),
                doubted: false,
            }
        })
    }
}
