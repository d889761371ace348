//! `autodist estimate` of a cluster without a profile: a plan of the one strategy that the flags give, or with
//! `--best` the fastest plans that they leave open.

use super::catalogue::{Figures, Software};
use super::from_trainer::{self, FlagsAndFile, Given};
use super::{DEFAULT_MODEL, check_experts, estimate, plan, refused};
use crate::cli::{EstimateArgs, JobArgs, Layout};
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::{Trainer, even_blocks, software};
use autodist_planner::{MemoryShortfall, Planner, SearchLimits};
use autodist_program::stages;
use autodist_spec::{InputError, Job, ModelSpec, ParallelStrategy, Plan, Recompute, Stage};

pub fn run(args: &EstimateArgs, cluster: &str) -> Result<(), Failure> {
    let figures = Figures::of(cluster, &args.figures, &args.price)?;
    let asked = Asked::of(FlagsAndFile::of_estimate(args), args.trainer, &figures)?;
    if let Some(top) = args.best {
        let limits = SearchLimits { top, ..SearchLimits::default() };
        let mut job = asked.job.clone();
        input::narrow(&mut job, &args.strategy, figures.cluster.device_count())?;
        let limits = (limits, args.fewer().all(false));
        let plan = plan::fastest_part(&figures, &asked.model, job, &asked.software_of_search(), limits)?;
        return estimate::print(args, &plan, None, "");
    }
    let (plan, shortfall) = asked.plan(&figures)?;
    estimate::print(args, &plan, shortfall, "")
}

/// The model, the job, the software and the flags of the strategy, with what a trainer's file gives in their places.
pub struct Asked<'a> {
    pub model: ModelSpec,
    pub job: Job,
    pub software: Software,
    /// The strategy; nothing in a search.
    flags: Layout,
    given: Option<Given>,
    request: FlagsAndFile<'a>,
}

impl<'a> Asked<'a> {
    /// # Errors
    /// A file cannot be read, or its content or the flags are not valid.
    pub fn of(
        request: FlagsAndFile<'a>,
        trainer: Option<Trainer>,
        figures: &Figures,
    ) -> Result<Self, Failure> {
        let given = from_trainer::read(request, Some(figures.cluster.device_count()))?;
        let model = match &given {
            Some(given) => given.model(request.model, None)?,
            None => input::model(request.model.unwrap_or(DEFAULT_MODEL))?,
        };
        let usual = figures.precision_for(request.job)?;
        let job = |flags: &JobArgs| input::job(flags, None, None, Some(usual));
        let own = if request.search { Layout::default() } else { request.strategy.one()? };
        let (mut job, flags) = match &given {
            None => (job(request.job)?, own),
            Some(given) => {
                let job =
                    job(&given.job_flags(request.job)?).map_err(|failure| given.blame(request, failure))?;
                if request.search {
                    given.note_layout();
                    (job, own)
                } else {
                    (job, given.strategy(&own))
                }
            }
        };
        if let Some(given) = &given {
            given.complete(&mut job).map_err(|failure| given.blame(request, failure))?;
        }
        let mut software = Software::of(trainer);
        if trainer.is_none() {
            let (trainer, why) = match given.as_ref().map(|given| (given.trainer(), given.format())) {
                Some((Some(trainer), format)) => (trainer, format!("as files of {format}: ")),
                Some((None, format)) => (software.trainer, format!("{format} is not modelled, ")),
                None => (software.trainer, String::new()),
            };
            software.trainer = trainer;
            software.assumptions.push(format!("trainer {trainer}: {why}--trainer not given"));
        }
        let unsaid = given.as_ref().is_some_and(|given| !given.gives_precision());
        if unsaid && input::given_precision(request.job)?.is_none() {
            software
                .assumptions
                .push(format!("precision {}: neither the file nor --precision gives it", job.precision));
        }
        let asked = Self { model, job, software, flags, given, request };
        let degrees: Vec<u32> =
            if request.search { request.strategy.ep.clone() } else { asked.flags.ep.into_iter().collect() };
        check_experts(&asked.model, &degrees).map_err(|error| asked.blame(error.into()))?;
        Ok(asked)
    }

    /// A failure, attributed to the trainer's file if it gave the value.
    fn blame(&self, failure: Failure) -> Failure {
        match &self.given {
            Some(given) => given.blame(self.request, failure),
            None => failure,
        }
    }

    /// The software of a search, which chooses for a trainer; notes say what is assumed about it.
    pub fn software_of_search(&self) -> Software {
        let assumptions = &self.software.assumptions;
        assumptions.iter().for_each(|assumption| output::note(&format!("assumed: {assumption}")));
        Software { assumptions: Vec::new(), ..self.software.clone() }
    }

    /// The plan of the strategy that is asked for, and the memory that it lacks.
    ///
    /// # Errors
    /// The strategy is not legal or not priced.
    pub fn plan(&self, figures: &Figures) -> Result<(Plan, Option<MemoryShortfall>), Failure> {
        one(figures, self).map_err(|failure| self.blame(failure))
    }

    /// The strategy of the flags on `devices` devices, and what it assumes. Without `--recompute` it has no
    /// recomputation.
    fn strategy(&self, devices: u32) -> Result<(ParallelStrategy, Vec<String>), Failure> {
        let (flags, trainer) = (&self.flags, self.software.trainer);
        let mut strategy = input::strategy(flags, devices)?;
        let mut assumptions = self.software.assumptions.clone();
        if strategy.devices() != u64::from(devices) {
            let problem = format!("uses {} devices, but the cluster has {devices}", strategy.devices());
            let ParallelStrategy { tensor, pipeline, context, data, .. } = strategy;
            let product = format!("{tensor}x{pipeline}x{context}x{data}");
            let error = InputError::new("--tp, --pp, --cp, --dp", product, problem);
            return Err(error.hint("remove `--dp` to use all devices").into());
        }
        if flags.zero.is_none() {
            let replicas = strategy.replicas();
            strategy.zero_stage = if replicas > 1 { trainer.traits().usual_zero_stage } else { 0 };
            strategy.shard = if strategy.zero_stage > 0 { flags.shard.unwrap_or(strategy.data) } else { 1 };
            if replicas > 1 {
                let stage = strategy.zero_stage;
                assumptions.push(format!("ZeRO stage {stage}, as {trainer} does: --zero not given"));
            }
        }
        if strategy.replicas() == 1 {
            // With one rank there is nothing to shard.
            if strategy.zero_stage > 0 {
                assumptions.push(format!(
                    "ZeRO stage 0: one rank has nothing to shard by stage {}",
                    strategy.zero_stage
                ));
            }
            (strategy.zero_stage, strategy.shard) = (0, 1);
        }
        if strategy.tensor > 1 && trainer.traits().splits_sequences && flags.sp.is_none() {
            assumptions.push("sequence parallelism off: --sp not given".to_owned());
        }
        if flags.micro_batch.is_none() && self.given.is_some() {
            assumptions.push("micro-batch 1: neither the file nor --micro-batch gives it".to_owned());
        }
        if flags.bucket_bytes.is_none() {
            strategy.bucket_bytes = software::BUCKET;
        }
        Ok((strategy, assumptions))
    }
}

fn one(figures: &Figures, asked: &Asked) -> Result<(Plan, Option<MemoryShortfall>), Failure> {
    let model = &asked.model;
    // The flags of the command line itself override stages and recomputation of a trainer's file.
    let overriding = &asked.request.strategy.first();
    let devices = figures.cluster.device_count();
    let (strategy, assumptions) = asked.strategy(devices)?;
    software::check(asked.software.trainer, &strategy)?;
    let own_stages = asked.given.as_ref().and_then(|given| given.stages(overriding, model));
    let policies = asked.given.as_ref().and_then(|given| given.policies(overriding, model));
    if let (None, None, Some(given)) = (&own_stages, policies, &asked.given) {
        given.one_recompute()?;
    }
    let recompute = asked.flags.recompute;
    let assumptions = figures.assumptions.iter().cloned().chain(assumptions).collect();
    let mut software = Software { assumptions, ..asked.software.clone() };
    if recompute.is_none() {
        software.assumptions.push("recomputation: --recompute not given".to_owned());
    }
    figures.check(asked.job.precision)?;
    software::check_precision(asked.software.trainer, asked.job.precision)?;
    let (costs, reference) = figures.costs(model, &asked.job, &software);
    let planner = Planner::of_catalogue(model, &figures.cluster, &asked.job, costs, &reference);
    let modes = match &recompute {
        Some(mode) => std::slice::from_ref(mode),
        // A file that does not ask for recomputation gets none.
        None if asked.given.is_some() => &[Recompute::None],
        None => software.trainer.recompute_modes(),
    };
    let mut found = None;
    for mode in modes {
        let strategy = ParallelStrategy { recompute: *mode, ..strategy.clone() };
        let mut stages = own_stages.clone().or_else(|| equal_stages(model, &strategy));
        if let (None, Some(policies)) = (&own_stages, policies) {
            let Some(equal) = &mut stages else { return Err(uneven(model, &strategy)) };
            for stage in equal.iter_mut() {
                for (layer, policy) in stage.layers().zip(&mut stage.recompute) {
                    let block = layer.checked_sub(1).and_then(|block| policies.get(block));
                    *policy = block.copied().unwrap_or_default();
                }
            }
        }
        let priced = planner.priced(&strategy, stages.as_deref());
        let (plan, shortfall) = priced.map_err(|error| refused(&strategy, error))?;
        let fits = shortfall.is_none();
        found = Some((plan, shortfall));
        if fits {
            break;
        }
    }
    let (mut plan, shortfall) = found.expect("every trainer has a mode of recomputation");
    if recompute.is_none() {
        let mode = plan.strategy.recompute.name();
        software.assumptions.pop();
        software.assumptions.push(if asked.given.is_some() {
            format!("recomputation {mode}: neither the file nor --recompute gives it")
        } else {
            let why = if plan.fits { ", the least that fits in memory" } else { "" };
            format!("recomputation {mode}{why}: --recompute not given")
        });
    }
    plan.assume(software.assumptions);
    Ok((plan, shortfall))
}

/// Why the blocks that a file recomputes are not those of a stage.
fn uneven(model: &ModelSpec, strategy: &ParallelStrategy) -> Failure {
    let problem = format!("does not divide the {} blocks, some of which the file recomputes", model.layers);
    let error = InputError::new("pp x vpp", strategy.chunks(), problem);
    error.hint("give `--recompute`: it overrides the file").into()
}

/// Chunks of equal numbers of blocks, or with one block less at both ends; `None` if the blocks do not divide.
fn equal_stages(model: &ModelSpec, strategy: &ParallelStrategy) -> Option<Vec<Stage>> {
    let chunks = strategy.chunks();
    let (each, missing) = even_blocks(model.layers, chunks)?;
    let inner = (1..chunks).map(|chunk| (1 + chunk * each - missing) as usize);
    let ends: Vec<usize> = [0].into_iter().chain(inner).chain([model.chain_len()]).collect();
    Some(stages::from_ends(model, &ends, strategy.recompute))
}
