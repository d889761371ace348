//! `autodist estimate` of a cluster without a profile: a plan of the one strategy that the flags give, or with
//! `--best` the fastest plans that they leave open.

use super::catalogue::{Figures, Software};
use super::from_trainer::{self, FlagsAndFile, Given};
use super::request::JobRequest;
use super::{estimate, plan, refused};
use crate::cli::{EstimateArgs, Layout, SoftwareArgs};
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::{even_blocks, software, states};
use autodist_planner::{MemoryShortfall, PlanError, Planner, SearchLimits};
use autodist_program::{BrokenRule, framework, rules, stages};
use autodist_spec::{InputError, ModelSpec, ParallelStrategy, Plan, Recompute, Stage};

pub fn run(args: &EstimateArgs, cluster: &str) -> Result<(), Failure> {
    let figures = Figures::of(cluster, &args.figures, &args.price)?;
    let asked = Asked::of(FlagsAndFile::of_estimate(args), args.software, &figures)?;
    if let Some(top) = args.best {
        let limits = SearchLimits { top, ..SearchLimits::default() };
        let mut job = asked.request.job.clone();
        input::narrow(&mut job, &args.strategy, figures.cluster.device_count())?;
        let limits = (limits, args.fewer().all(false));
        let plan =
            plan::fastest_part(&figures, &asked.request.model, job, &asked.software_of_search(), limits)?;
        return estimate::print(args, &plan, None, "");
    }
    let (plan, shortfall) = asked.plan(&figures)?;
    if let Some(given) = asked.request.given.as_ref().filter(|_| !args.json) {
        super::understood::note(given, &plan);
    }
    estimate::print(args, &plan, shortfall, "")
}

/// The model, the job, the software and the flags of the strategy, with what a trainer's file gives in their places.
pub struct Asked<'a> {
    pub request: JobRequest<'a>,
    pub software: Software,
    /// The strategy; nothing in a search.
    flags: Layout,
    /// Whether nobody named the trainer.
    assumed_trainer: bool,
}

impl<'a> Asked<'a> {
    /// # Errors
    /// A file cannot be read, or its content or the flags are not valid.
    pub fn of(
        args: FlagsAndFile<'a>,
        flags_of_software: SoftwareArgs,
        figures: &Figures,
    ) -> Result<Self, Failure> {
        let given = from_trainer::read(args, Some(figures.cluster.device_count()))?;
        let own = if args.search { Layout::default() } else { args.strategy.one()? };
        let mut request = JobRequest::of(args, given, None, figures.precision_for(args.job)?)?;
        let given = request.given.as_ref();
        let flags = match given {
            Some(given) if args.search => {
                given.note_layout();
                own
            }
            Some(given) => given.strategy(&own),
            None => own,
        };
        let mut software = Software::of(flags_of_software);
        if let Some(given) = given {
            given.kernels(&mut software);
            software.assumptions.extend(given.assumed_length(args.job));
        }
        let assumed_trainer = flags_of_software.trainer.is_none();
        if assumed_trainer {
            let (trainer, why) = match given.map(|given| (given.trainer(), given.format())) {
                Some((Some(trainer), format)) => (trainer, format!("as files of {format}: ")),
                Some((None, format)) => (software.trainer, format!("{format} is not modelled, ")),
                None => (software.trainer, String::new()),
            };
            software.trainer = trainer;
            software.assumptions.push(format!("trainer {trainer}: {why}--trainer not given"));
        }
        let unsaid = given.is_some_and(|given| !given.gives_precision());
        if unsaid && input::given_precision(args.job)?.is_none() {
            let precision = request.job.precision;
            let assumption = format!("precision {precision}: neither the file nor --precision gives it");
            software.assumptions.push(assumption);
        }
        let blamed = |error: InputError| {
            let error = input::blame_trainable(input::blame_states(error, args.job), args.job);
            if error.source_name.is_empty() { request.blame(error.into()) } else { Failure::from(error) }
        };
        let (states, follows) = states::completed(software.trainer, &request.job.states);
        software.assumptions.extend(follows);
        states::check_states(software.trainer, &states, &request.job.optimizer, request.job.precision)
            .map_err(blamed)?;
        software::check_trainable(software.trainer, &request.job.trainable).map_err(blamed)?;
        software.assumptions.extend(figures.hosts(&states));
        request.job.states = states;
        let degrees: Vec<u32> =
            if args.search { args.strategy.ep.clone() } else { flags.ep.into_iter().collect() };
        request.check_experts(&degrees)?;
        Ok(Self { request, software, flags, assumed_trainer })
    }

    /// # Errors
    /// A rule of the trainer that a strategy breaks, or of the one whose file it is.
    fn keeps_rules(&self, strategy: &ParallelStrategy) -> Result<(), Failure> {
        let devices = u32::try_from(strategy.devices()).unwrap_or(u32::MAX);
        // Rules of every strategy first: the trainers' own ones take them for granted.
        rules::check_strategy(&self.request.model, &self.request.job, devices, strategy)
            .map_err(|broken| refused(strategy, PlanError::Illegal(broken)))?;
        let of_file = self.request.given.as_ref().and_then(Given::framework);
        let own = self.software.trainer.framework();
        for framework in [Some(own), of_file.filter(|framework| *framework != own)].into_iter().flatten() {
            framework::check(framework, &self.request.model, &self.request.job, strategy).map_err(
                |broken| {
                    let BrokenRule { field, value, problem, way_out, .. } = broken;
                    let whose = match (framework == own, self.assumed_trainer) {
                        (true, true) => {
                            format!("; this is a rule of {framework}, which is assumed without `--trainer`")
                        }
                        _ => String::new(),
                    };
                    InputError::new(format!("--{field}"), value, problem).hint(format!("{way_out}{whose}"))
                },
            )?;
        }
        Ok(())
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
        let (mut plan, shortfall) = one(figures, self).map_err(|failure| self.request.blame(failure))?;
        if let Some(given) = &self.request.given {
            let (costs, _) = figures.costs(&self.request.model, &plan.job, &self.software);
            let each = costs.parameter_bytes(&plan.strategy);
            plan.understood = super::understood::settings(given, self.request.flags, &plan, each);
        }
        Ok((plan, shortfall))
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
        if strategy.tensor > 1 && trainer.framework().abilities().sequence_parallel && flags.sp.is_none() {
            assumptions.push("sequence parallelism off: --sp not given".to_owned());
        }
        if flags.micro_batch.is_none() && self.request.given.is_some() {
            assumptions.push("micro-batch 1: neither the file nor --micro-batch gives it".to_owned());
        }
        if flags.bucket_bytes.is_none() {
            strategy.bucket_bytes = software::BUCKET;
        }
        Ok((strategy, assumptions))
    }
}

fn one(figures: &Figures, asked: &Asked) -> Result<(Plan, Option<MemoryShortfall>), Failure> {
    let model = &asked.request.model;
    // The flags of the command line itself override stages and recomputation of a trainer's file.
    let overriding = &asked.request.flags.strategy.first();
    let devices = figures.cluster.device_count();
    let (strategy, assumptions) = asked.strategy(devices)?;
    let recompute = asked.flags.recompute;
    let known = ParallelStrategy { recompute: recompute.unwrap_or_default(), ..strategy.clone() };
    asked.keeps_rules(&known)?;
    states::check_strategy(asked.software.trainer, &asked.request.job.states, &strategy)
        .map_err(|error| input::blame_states(error, asked.request.flags.job))?;
    let own_stages = asked.request.given.as_ref().and_then(|given| given.stages(overriding, model));
    let policies = asked.request.given.as_ref().and_then(|given| given.policies(overriding, model));
    if let (None, None, Some(given)) = (&own_stages, policies, &asked.request.given) {
        given.one_recompute()?;
    }
    let assumptions = figures.assumptions.iter().cloned().chain(assumptions).collect();
    let mut software = Software { assumptions, ..asked.software.clone() };
    if recompute.is_none() {
        software.assumptions.push("recomputation: --recompute not given".to_owned());
    }
    figures.check(asked.request.job.precision)?;
    let (costs, reference) = figures.costs(model, &asked.request.job, &software);
    let planner = Planner::of_catalogue(model, &figures.cluster, &asked.request.job, costs, &reference);
    let modes = match &recompute {
        Some(mode) => std::slice::from_ref(mode),
        // A file that does not ask for recomputation gets none.
        None if asked.request.given.is_some() => &[Recompute::None],
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
        software.assumptions.push(if asked.request.given.is_some() {
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
