//! `autodist estimate` of mixture-of-experts models, by the closed form: programs have no experts.

use super::best_experts::Best;
use super::catalogue::{Figures, Software, dtype};
use super::estimate_unmeasured::Asked;
use crate::cli::EstimateArgs;
use crate::failure::Failure;
use crate::output;
use autodist_analytic::{Memory, ParallelDims, Shape, StepEstimate, TrainingRun};
use autodist_hardware::Dtype;
use autodist_spec::error::not_negative;
use autodist_spec::{Bytes, FlopsPerSecond, InputError, Utilisation, to_json};
use std::fmt::Write;
use std::sync::Arc;

pub fn run(args: &EstimateArgs, figures: Figures, asked: &Asked, shape: Shape) -> Result<(), Failure> {
    if let Some(path) = &args.output {
        let problem =
            "is not supported for mixture-of-experts models: plan documents describe dense models only";
        return Err(InputError::new("--output", path.display(), problem).hint("remove `--output`").into());
    }
    let devices = figures.cluster.device_count();
    let run = open_run(&figures, asked, shape);
    let Figures { parameters, calibration, source, .. } = figures;
    let error_bar = |run: &TrainingRun| calibration.error_bar_of(run, &parameters);
    if let Some(keep) = args.best {
        let best = Best::of(&run, asked, devices, &parameters, error_bar, keep)?;
        output::print(&if args.json { best.json(&source) } else { best.text(&source) })?;
        return Ok(());
    }
    let run = laid_out(run, asked, devices).map_err(|failure| match &asked.given {
        Some(given) => given.blame(args, failure),
        None => failure,
    })?;
    let mut estimate = run.estimate(&parameters, 0.0);
    (estimate.error_bar, estimate.error_bar_of) = error_bar(&run);
    sound(&run, &estimate)?;
    let text =
        if args.json { to_json(&document(&run, &estimate, &source)) } else { text(&run, &estimate, &source) };
    let needs = Bytes(estimate.memory.total() as u64);
    let problem = format!(
        "the layout does not fit in memory: it needs {needs}, and {} of a device may be used (`memory_reserve` of the job)\nhint: `estimate --best` lists layouts that fit",
        run.machine.memory
    );
    let fits = if run.fits(&estimate) { Ok(()) } else { Err(Failure::Infeasible(problem)) };
    output::print_with(&text, fits)
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

/// A run of the model without a layout.
fn open_run(figures: &Figures, asked: &Asked, shape: Shape) -> TrainingRun {
    let mut machine = Arc::clone(&figures.machine);
    let memory = &mut Arc::make_mut(&mut machine).memory;
    *memory = asked.job.usable(*memory);
    let Software { trainer, fp8, assumptions } = asked.software.clone();
    TrainingRun {
        seq_len: asked.job.seq_len,
        global_batch: asked.job.global_batch,
        dtype: if fp8 { Dtype::Fp8 } else { dtype(asked.job.precision) },
        assumptions,
        ..TrainingRun::new(shape, machine, ParallelDims::default(), trainer)
    }
}

/// The run with the layout of the flags.
fn laid_out(mut run: TrainingRun, asked: &Asked, devices: u32) -> Result<TrainingRun, Failure> {
    let (strategy, assumptions) = asked.strategy(devices)?;
    run.layout = ParallelDims {
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
    (run.micro_batch, run.assumptions) = (strategy.micro_batch, assumptions);
    run.recompute = asked.recompute().unwrap_or_else(|| {
        let mode = run.least_recompute();
        let why = "the least that fits in memory: --recompute not given";
        run.assumptions.push(format!("recomputation {}, {why}", mode.name()));
        mode
    });
    run.check()?;
    Ok(run)
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
