//! `autodist estimate` of a cluster that nobody measured: by the figures of its devices and links.

use super::estimate_best::Best;
use super::{DEFAULT_MODEL, from_trainer, unmeasured_plan};
use crate::cli::{EstimateArgs, RecomputeArg, StrategyArgs};
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::{
    Calibration, Estimate, Layout, Machine, Memory, Parameters, Recompute, Run, Shape, Trainer, catalog,
};
use autodist_hardware::Dtype;
use autodist_spec::error::in_range;
use autodist_spec::{Bytes, InputError, Job, ModelSpec, Precision, to_json};
use std::fmt::Write;
use std::sync::Arc;

pub fn run(args: &EstimateArgs, cluster: &str) -> Result<(), Failure> {
    let catalogue = input::catalogue(&args.catalogue)?;
    let cluster = input::cluster_of(cluster, &catalogue)?;
    let mut machine = Machine::of_cluster(&cluster, &catalogue)?;
    if let Some(bytes) = args.price.device_memory {
        machine.memory = Bytes(bytes);
    }
    let (parameters, calibration, source) = match &args.calibration {
        Some(path) => {
            let (calibration, parameters) = input::calibration(path)?;
            let source = format!("{} ({})", path.display(), calibration.fitted_to);
            (parameters, calibration, source)
        }
        None => {
            let shipped = Calibration::shipped();
            let source = format!("shipped calibration ({})", shipped.fitted_to);
            (*Parameters::shipped(), shipped.clone(), source)
        }
    };
    let asked = Asked::of(args, Arc::new(machine))?;
    let error_bar = calibration.error_bar_of(asked.run.shape.experts.is_none());
    if let Some(keep) = args.best {
        in_range("--best", keep as u64, 1, 10_000)?;
        let best = Best::of(&asked, cluster.device_count(), &parameters, error_bar, keep)?;
        if let Some(path) = &args.output {
            let plan = best.plan(|run, estimate| unmeasured_plan::of(run, estimate, &asked, &cluster))?;
            super::plan::write(&plan, Some(path))?;
        }
        return output::print(&if args.json { best.json(&source) } else { best.text(&source) });
    }
    let run = asked.laid_out(cluster.device_count())?;
    run.check()?;
    let estimate = run.estimate(&parameters, error_bar);
    if let Some(path) = &args.output {
        let plan = unmeasured_plan::of(&run, &estimate, &asked, &cluster)?;
        super::plan::write(&plan, Some(path))?;
    }
    output::print(&if args.json {
        to_json(&document(&run, &estimate, &source))
    } else {
        text(&run, &estimate, &source)
    })
}

pub fn document(run: &Run, estimate: &Estimate, source: &str) -> serde_json::Value {
    serde_json::json!({
        "estimate": estimate, "assumptions": run.assumptions, "calibration": source,
        "devices": run.layout.devices(), "mfu": utilisation(run, estimate),
    })
}

/// What the flags say, but for the layout.
pub struct Asked {
    /// Without a layout of its own yet.
    pub run: Run,
    pub flags: StrategyArgs,
    /// None for a model of experts.
    pub model: Option<ModelSpec>,
    pub job: Job,
}

impl Asked {
    fn of(args: &EstimateArgs, machine: Arc<Machine>) -> Result<Self, Failure> {
        let mut assumptions = Vec::new();
        let given = from_trainer::read(args)?;
        let name = args.model.as_deref();
        let experts = catalog::expert_models().iter().find(|model| Some(model.name.as_str()) == name);
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
        let (job_flags, flags) = match &given {
            Some(given) => (given.job_flags(&args.job), given.strategy(&args.strategy)),
            None => (args.job.clone(), args.strategy.clone()),
        };
        let job = input::job(&job_flags, None, None, Some(Precision::Bf16))?;
        let trainer = args.trainer.unwrap_or_else(|| {
            assumptions.push("trained by megatron-core: --trainer not given".to_owned());
            Trainer::MegatronCore
        });
        let mut run = Run::new(shape, machine, Layout::default(), trainer);
        run.seq_len = job.seq_len;
        run.global_batch = job.global_batch;
        run.dtype = match job.precision {
            _ if args.fp8 => Dtype::Fp8,
            Precision::Fp32 => Dtype::Fp32,
            Precision::Tf32 => Dtype::Tf32,
            Precision::Bf16 => Dtype::Bf16,
        };
        run.assumptions = assumptions;
        Ok(Self { run, flags, model, job })
    }

    pub fn recompute(&self) -> Option<Recompute> {
        self.flags.recompute.map(|mode| match mode {
            RecomputeArg::None => Recompute::None,
            RecomputeArg::Selective => Recompute::Selective,
            RecomputeArg::Full => Recompute::Full,
        })
    }

    /// The one layout that the flags describe.
    fn laid_out(&self, devices: u32) -> Result<Run, Failure> {
        let (flags, recompute, mut run) = (&self.flags, self.recompute(), self.run.clone());
        let strategy = input::strategy(flags, devices)?;
        let mut layout = Layout {
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
            let problem = format!("makes {} devices, but the cluster has {devices}", layout.devices());
            let product = format!("{}x{}x{}x{}", layout.tensor, layout.pipeline, layout.context, layout.data);
            let error = InputError::new("--tp, --pp, --cp, --dp", product, problem);
            return Err(error.hint("leave --dp out to use all devices").into());
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
                format!("recomputation {mode:?}, the least that fits: --recompute not given").to_lowercase(),
            );
            mode
        });
        Ok(run)
    }
}

pub fn utilisation(run: &Run, estimate: &Estimate) -> f64 {
    let tokens = f64::from(run.global_batch) * f64::from(run.seq_len);
    let peak = f64::from(run.layout.devices()) * run.machine.peak_flops_per_s;
    tokens * run.shape.flops_per_token(run.seq_len) / (estimate.step.0 * peak)
}

pub fn text(run: &Run, estimate: &Estimate, source: &str) -> String {
    let tokens = f64::from(run.global_batch) * f64::from(run.seq_len);
    let devices = f64::from(run.layout.devices());
    let mut text = format!(
        "step        {} ± {:.0} %, {}: nine of ten runs that were left out of the fit lay within\n",
        estimate.step,
        100.0 * estimate.error_bar,
        estimate.provenance
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "speed       {:.0} tokens/s per device, {:.1} % of its peak in 16 bits",
        tokens / estimate.step.0 / devices,
        100.0 * utilisation(run, estimate)
    );
    let bytes = |value: f64| Bytes(value as u64).to_string();
    let Memory { weights, gradients, optimizer, activations, logits, buffers, fragmentation, context } =
        estimate.memory;
    let fits = if estimate.memory.total() <= run.machine.memory.as_f64() {
        "fits into"
    } else {
        "does NOT fit into"
    };
    let _ = writeln!(text, "memory      {} {fits} {}", bytes(estimate.memory.total()), run.machine.memory);
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
