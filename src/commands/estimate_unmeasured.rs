//! `autodist estimate` of a cluster without a profile, from published figures of its devices and links.

use super::catalogue::Figures;
use super::estimate_best::Best;
use super::from_trainer::{self, Given};
use super::{DEFAULT_MODEL, unmeasured_plan};
use crate::cli::{EstimateArgs, JobArgs, RecomputeArg, StrategyArgs};
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::{
    Memory, NodeModel, ParallelDims, Shape, StepEstimate, Trainer, TrainingRun, catalog,
};
use autodist_hardware::Dtype;
use autodist_spec::error::{in_range, not_negative};
use autodist_spec::{
    Bytes, FlopsPerSecond, InputError, Job, ModelSpec, Plan, Precision, Recompute, Utilisation, to_json,
};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

pub fn run(args: &EstimateArgs, cluster: &str) -> Result<(), Failure> {
    let figures = Figures::of(cluster, &args.figures, args.price.device_memory)?;
    let Figures { cluster, machine, parameters, calibration, source } = figures;
    let asked = Asked::of(args, machine, cluster.device_count())?;
    let error_bar = |run: &TrainingRun| calibration.error_bar_of(run, &parameters);
    if let Some(keep) = args.best {
        in_range("--best", keep as u64, 1, 10_000)?;
        let best = Best::of(&asked, cluster.device_count(), &parameters, error_bar, keep)?;
        let plan = match &args.output {
            Some(_) => Some(best.plan(|run, estimate| unmeasured_plan::of(run, estimate, &asked, &cluster))?),
            None => None,
        };
        let text = if args.json { best.json(&source) } else { best.text(&source) };
        return output::print_with(&text, write(plan, args.output.as_deref()));
    }
    let run = asked.laid_out(cluster.device_count()).and_then(|run| {
        run.check()?;
        Ok(run)
    });
    let run = run.map_err(|failure| match &asked.given {
        Some(given) => given.blame(args, failure),
        None => failure,
    })?;
    let mut estimate = run.estimate(&parameters, 0.0);
    (estimate.error_bar, estimate.error_bar_of) = error_bar(&run);
    sound(&run, &estimate)?;
    let text =
        if args.json { to_json(&document(&run, &estimate, &source)) } else { text(&run, &estimate, &source) };
    if !run.fits(&estimate) {
        let needs = Bytes(estimate.memory.total() as u64);
        let written = args.output.as_ref().map_or(String::new(), |path| {
            format!("; no plan was written to {}, because it could not be trained", path.display())
        });
        let problem = format!(
            "the layout does not fit in memory: it needs {needs}, and {} of a device may be used (`memory_reserve` of the job){written}\nhint: `estimate --best` lists layouts that fit",
            run.machine.memory
        );
        return output::print_with(&text, Err(Failure::Infeasible(problem)));
    }
    let plan = match &args.output {
        Some(_) => Some(unmeasured_plan::of(&run, &estimate, &asked, &cluster)?),
        None => None,
    };
    output::print_with(&text, write(plan, args.output.as_deref()))
}

fn write(plan: Option<Plan>, path: Option<&Path>) -> Result<(), Failure> {
    plan.map_or(Ok(()), |plan| super::plan::write_new(&plan, path))
}

/// Checks that a result can be shown and read again: every number is finite and in its range.
///
/// # Errors
/// The first invalid number, which results from implausible inputs.
pub fn sound(run: &TrainingRun, estimate: &StepEstimate) -> Result<(), Failure> {
    let check = || {
        estimate.check()?;
        not_negative("flops_per_s_per_device", utilisation(run, estimate).achieved.0)
    };
    Ok(check().map_err(|error| {
        let hint = "look for an implausible number in `--cluster`, `--devices`, `--calibration` or the model";
        error.hint(hint).under("the result")
    })?)
}

pub fn document(run: &TrainingRun, estimate: &StepEstimate, source: &str) -> serde_json::Value {
    let utilisation = utilisation(run, estimate);
    let mut document = serde_json::json!({
        "estimate": estimate, "assumptions": run.assumptions, "calibration": source,
        "devices": run.layout.devices(), "fits": run.fits(estimate),
        "flops_per_s_per_device": utilisation.achieved,
    });
    if let Some(mfu) = utilisation.mfu() {
        document["mfu"] = mfu.into();
    }
    if let Some(peak) = utilisation.peak {
        document["peak"] = serde_json::json!({ "flops_per_s": peak.rate, "arithmetic": peak.arithmetic });
    }
    document
}

/// The values of the flags, except the layout.
pub struct Asked {
    /// Has no layout of its own yet.
    pub run: TrainingRun,
    pub flags: StrategyArgs,
    /// `None` for a mixture-of-experts model.
    pub model: Option<ModelSpec>,
    pub job: Job,
    given: Option<Given>,
}

impl Asked {
    fn of(args: &EstimateArgs, mut machine: Arc<NodeModel>, devices: u32) -> Result<Self, Failure> {
        let mut assumptions = Vec::new();
        let given = from_trainer::read(args, Some(devices))?;
        let name = args.model.as_deref();
        let experts = name.and_then(catalog::expert_model);
        let (model, shape) = match (experts, &given) {
            (Some(model), _) => (None, model.shape()),
            (None, given) => {
                let model = match given {
                    Some(given) => given.model(name, None)?,
                    None => input::model(name.unwrap_or(DEFAULT_MODEL))?,
                };
                let shape = Shape::from(&model);
                (Some(model), shape)
            }
        };
        let job = |flags: &JobArgs| input::job(flags, None, None, Some(Precision::Bf16));
        let (mut job, flags) = match &given {
            None => (job(&args.job)?, args.strategy.clone()),
            Some(given) => {
                let job = job(&given.job_flags(&args.job)?).map_err(|failure| given.blame(args, failure))?;
                if args.best.is_none() {
                    given.one_recompute()?;
                    (job, given.strategy(&args.strategy))
                } else {
                    given.note_layout();
                    (job, args.strategy.clone())
                }
            }
        };
        if let Some(given) = &given {
            given.complete(&mut job).map_err(|failure| given.blame(args, failure))?;
        }
        let memory = &mut Arc::make_mut(&mut machine).memory;
        *memory = job.usable(*memory);
        let trainer = args.trainer.unwrap_or_else(|| {
            let (trainer, why) = match given.as_ref().map(|given| (given.trainer(), given.format())) {
                Some((Some(trainer), format)) => (trainer, format!("as files of {format}: ")),
                Some((None, format)) => (Trainer::MegatronCore, format!("{format} is not modelled, ")),
                None => (Trainer::MegatronCore, String::new()),
            };
            assumptions.push(format!("trainer {trainer}: {why}--trainer not given"));
            trainer
        });
        let mut run = TrainingRun::new(shape, machine, ParallelDims::default(), trainer);
        run.seq_len = job.seq_len;
        run.global_batch = job.global_batch;
        run.dtype = match job.precision {
            _ if args.fp8 => Dtype::Fp8,
            Precision::Fp32 => Dtype::Fp32,
            Precision::Tf32 => Dtype::Tf32,
            Precision::Bf16 => Dtype::Bf16,
        };
        run.assumptions = assumptions;
        Ok(Self { run, flags, model, job, given })
    }

    pub fn recompute(&self) -> Option<Recompute> {
        self.flags.recompute.map(|mode| match mode {
            RecomputeArg::None => Recompute::None,
            RecomputeArg::Selective => Recompute::Selective,
            RecomputeArg::Full => Recompute::Full,
        })
    }

    /// The layout that the flags describe.
    fn laid_out(&self, devices: u32) -> Result<TrainingRun, Failure> {
        let (flags, recompute, mut run) = (&self.flags, self.recompute(), self.run.clone());
        let strategy = input::strategy(flags, devices)?;
        let mut layout = ParallelDims {
            tensor: strategy.tensor,
            context: strategy.context,
            data: strategy.data,
            pipeline: strategy.pipeline,
            virtual_stages: strategy.virtual_stages,
            expert: strategy.expert,
            sequence_parallel: strategy.sequence_parallel,
            zero_stage: strategy.zero_stage,
            shard: strategy.shard,
        };
        if layout.devices() != devices {
            let problem = format!("uses {} devices, but the cluster has {devices}", layout.devices());
            let product = format!("{}x{}x{}x{}", layout.tensor, layout.pipeline, layout.context, layout.data);
            let error = InputError::new("--tp, --pp, --cp, --dp", product, problem);
            return Err(error.hint("remove `--dp` to use all devices").into());
        }
        if flags.zero.is_none() {
            layout.zero_stage = run.trainer.usual_zero_stage();
            layout.shard = flags.shard.unwrap_or(layout.data);
            if layout.data > 1 {
                let (stage, trainer) = (layout.zero_stage, run.trainer);
                run.assumptions.push(format!("ZeRO stage {stage}, as {trainer} does: --zero not given"));
            }
        }
        if layout.tensor > 1 && run.trainer.splits_sequences() && !layout.sequence_parallel {
            run.assumptions.push("sequence parallelism off: --sp not given".to_owned());
        }
        run.layout = layout;
        run.micro_batch = strategy.micro_batch;
        run.recompute = recompute.unwrap_or_else(|| {
            let mode = run.least_recompute();
            run.assumptions.push(
                format!("recomputation {mode:?}, the least that fits in memory: --recompute not given")
                    .to_lowercase(),
            );
            mode
        });
        Ok(run)
    }
}

/// Utilisation relative to the peak FLOP/s for linear layers; `None` if the device has no such figure.
pub fn utilisation(run: &TrainingRun, estimate: &StepEstimate) -> Utilisation {
    let tokens = f64::from(run.global_batch) * f64::from(run.seq_len);
    let flops = tokens * run.shape.flops_per_token(run.seq_len);
    let achieved = FlopsPerSecond(flops / estimate.step.0 / f64::from(run.layout.devices()));
    let figures = run.machine.device.figures();
    // A figure without a published source is not used for the MFU.
    let peak = figures.peak(run.dtype.name()).filter(|_| !figures.source.is_empty());
    Utilisation { achieved, peak }
}

pub fn text(run: &TrainingRun, estimate: &StepEstimate, source: &str) -> String {
    let tokens = f64::from(run.global_batch) * f64::from(run.seq_len);
    let devices = f64::from(run.layout.devices());
    let utilisation = utilisation(run, estimate);
    let mut text = format!(
        "step        {} ± {:.0} %, {}: {}\n",
        estimate.step,
        100.0 * estimate.error_bar,
        estimate.provenance,
        estimate.error_bar_of
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "speed       {:.0} tokens/s per device; {utilisation}",
        tokens / estimate.step.0 / devices
    );
    if let Some(contradiction) = utilisation.contradiction() {
        let _ = writeln!(text, "warning:    {contradiction}");
    }
    let bytes = |value: f64| Bytes(value as u64).to_string();
    let Memory { weights, gradients, optimizer, activations, logits, buffers, fragmentation, context } =
        estimate.memory;
    let fits = if run.fits(estimate) { "fits into" } else { "does NOT fit into" };
    let _ = writeln!(
        text,
        "memory      {} {fits} the {} of a device that may be used (`memory_reserve` of the job)",
        bytes(estimate.memory.total()),
        run.machine.memory
    );
    let _ = writeln!(text, "\nof the step");
    for (name, seconds) in estimate.breakdown.parts() {
        let part = 100.0 * seconds / estimate.step.0;
        if part >= 0.05 {
            let _ = writeln!(
                text,
                "  {name:<32} {:>9}  {part:>5.1} %",
                autodist_spec::Seconds(seconds).to_string()
            );
        }
    }
    let _ = writeln!(text, "\nof the memory");
    let parts = [
        ("weights", weights),
        ("gradients", gradients),
        ("optimizer", optimizer),
        ("activations", activations),
        ("logits", logits),
        ("buffers", buffers),
        ("fragmentation", fragmentation),
        ("CUDA and NCCL", context),
    ];
    for (name, value) in parts.into_iter().filter(|part| part.1 > 0.0) {
        let _ = writeln!(text, "  {name:<32} {:>9}", bytes(value));
    }
    let _ = writeln!(
        text,
        "\nfrom\n  kernels and links: {} of the catalogue\n  a step beyond them: {source}",
        run.machine.device_name
    );
    if !run.assumptions.is_empty() {
        let _ = writeln!(text, "\nassumed");
        run.assumptions.iter().for_each(|assumption| {
            let _ = writeln!(text, "  {assumption}");
        });
    }
    text
}
