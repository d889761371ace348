//! The answer to a question, in about five labelled lines: what to do, how long a step takes, whether that was
//! measured, whether it fits in memory, and how sure the search is.

use crate::better;
use crate::changes;
use crate::screen::Line;
use crate::training;
use crate::verdict;
use crate::view::{Rich, Style};
use crate::words::{self, clean, parameters, percent, signed_percent, tokens_per_second, with_spread};
use autodist_spec::strategy::label;
use autodist_spec::{
    Bytes, CostSource, Plan, ProfileReference, Provenance, StopReason, ValidatedRun, Validation,
};
use std::path::Path;

/// The answer of a plan document.
pub(crate) fn of_plan(plan: &Plan, file: Option<&Path>, verbose: bool) -> Vec<Line> {
    let given = plan.search.stop_reason == StopReason::Given;
    let mut lines = vec![
        Line::new(if given { "strategy" } else { "plan" }, strategy(plan)),
        Line::new("step time", time(plan)),
        Line::new("verdict", predicted(plan, file)),
        Line::new("memory", memory(plan)),
        Line::new("search", words::search(plan, beaten(plan), verbose) + &words::why_not_the_fastest(plan)),
    ];
    if !plan.fits {
        // That decides.
        lines[1..4].rotate_right(1);
    }
    if let Some(training) = &plan.training {
        lines.push(Line::new("training", training::sentence(plan, training)));
    }
    if let Some(given) = &plan.given {
        let verdict = changes::verdict(plan, given);
        lines.push(Line::new("yours", format!("{} is {verdict}", clean(&given.source))));
        for (index, assumption) in given.assumptions.iter().enumerate() {
            let assumed = if index == 0 { "assumed of it: " } else { "" };
            lines.push(Line::new("", format!("{assumed}{}", clean(assumption))));
        }
    }
    if let Some(risk) = words::memory_risk(&plan.estimate) {
        let at = 1 + lines.iter().position(|line| line.label == "memory").unwrap_or(lines.len() - 1);
        lines.insert(at, Line::new("", risk));
    }
    if !plan.job.trainable.is_all() {
        lines.push(Line::new("trained", words::trained(plan)));
    }
    if !plan.job.states.is_usual() {
        lines.push(Line::new("state", plan.job.states.words()));
    }
    if let Some(host) = words::host_memory(plan) {
        lines.push(Line::new("host", host));
    }
    if let Some(choice) = &plan.device_choice {
        lines.push(Line::new("devices", clean(&words::device_choice(choice))));
    }
    if let Some(slowdown) = &plan.estimate.slowdown {
        let steps = format!("cost in steps to the loss of exact gradients: {}", words::slowdown(slowdown));
        lines.push(Line::new("lossy", steps));
    }
    if let Some(objective) = words::objective(plan).filter(|_| !given) {
        lines.push(Line::new("objective", objective));
    }
    if let Some(time) = plan.estimate.time_to_loss_s {
        lines.push(Line::new("to the loss", format!("{time}, by the job's steps to it")));
    }
    lines.push(Line::new("for", subject(plan)));
    lines
}

/// The answer of measurements: `plan` is the document with its measured plans in measured order.
pub(crate) fn of_validation(plan: &Plan, validation: &Validation) -> Vec<Line> {
    let mut lines = vec![Line::new("plan", strategy(plan))];
    let run = verdict::of_plan(plan, validation);
    if let Some(run) = run {
        lines.push(Line::new("step time", verdict::time(plan, run)));
    }
    lines.push(Line::new("verdict", Rich::result(&verdict::of_choice(validation))));
    if let Some(part) = better::part(plan, validation) {
        lines.push(Line::new("why", part));
    }
    lines.push(Line::new("evidence", verdict::sure(plan, validation)));
    if let Some(run) = run {
        lines.push(Line::new("memory", measured_memory(plan, run)));
    }
    lines
}

/// The label, and one sentence.
fn strategy(plan: &Plan) -> Rich {
    let mut text = Rich::paint(Style::Strong, &label(&plan.strategy, &plan.stages));
    text += ": ";
    text += words::strategy(&plan.strategy, &plan.stages, plan.micro_batches).as_str();
    text
}

/// The step time with its error bar and the basis of that, and the rate.
fn time(plan: &Plan) -> Rich {
    let estimate = &plan.estimate;
    let mut text =
        Rich::paint(Style::Strong, &with_spread(estimate.step_time_s, estimate.step_time_spread_s));
    let bar = percent(words::share(estimate.step_time_spread_s.0, estimate.step_time_s.0));
    text += format!(", {}; ± {bar}: {}", tokens_per_second(estimate.tokens_per_s), bar_of(plan)).as_str();
    text
}

/// The basis of the error bar, in a clause.
fn bar_of(plan: &Plan) -> String {
    let worst = match plan.estimate.provenance {
        worst @ (Provenance::Extrapolated | Provenance::Assumed) => format!(", in part {worst}"),
        _ => String::new(),
    };
    match &plan.cost_source {
        CostSource::Catalogue(catalogue) if catalogue.error_bar_of.is_empty() => "not known".to_owned(),
        CostSource::Catalogue(catalogue) => clean(&catalogue.error_bar_of),
        CostSource::Profile(ProfileReference { correction: Some(correction), .. })
        | CostSource::Mixed(ProfileReference { correction: Some(correction), .. }) => {
            words::corrected_bar(correction) + &worst
        }
        CostSource::Profile(_) => format!("how sure the profile's measurements are{worst}"),
        CostSource::Mixed(_) => format!("the profile's measurements and what extends them{worst}"),
    }
}

/// Whether a plan was measured.
fn predicted(plan: &Plan, file: Option<&Path>) -> Rich {
    if let Some(measured) = &plan.measured {
        let verdict = measured.verdict.map_or(String::new(), |verdict| format!("{}: ", verdict.name()));
        return Rich::result(&format!("{verdict}{}", clean(&measured.reason)));
    }
    let what = match (&plan.cost_source, file) {
        _ if !plan.fits => "predicted, not measured".to_owned(),
        (CostSource::Profile(_), Some(file)) => {
            format!("predicted, not measured: `autodist validate {}` trains it", file.display())
        }
        (CostSource::Profile(_), None) => "predicted, not measured: `autodist validate` trains it".to_owned(),
        (CostSource::Mixed(_), _) => "predicted from a profile of fewer devices, not measured".to_owned(),
        (CostSource::Catalogue(_), _) => "predicted from published figures, not measured".to_owned(),
    };
    Rich::from(what)
}

/// Whether it fits, the peak, and what is free or missing.
fn memory(plan: &Plan) -> Rich {
    let peak = plan.estimate.peak_memory_bytes;
    let device = words::device_memory(plan);
    let whole = words::fullest_device(plan).map_or(Bytes::ZERO, |device| device.memory_bytes);
    let usable = Bytes((whole.as_f64() * (1.0 - plan.job.memory_reserve)) as u64);
    let reserve = percent(plan.job.memory_reserve);
    let of = format!("; {device}, {reserve} kept free");
    let peak_of = format!("{peak} peak of {usable} usable");
    if plan.fits {
        return Rich::from(format!("fits: {peak_of}, {} free{of}", Bytes(usable.0.saturating_sub(peak.0))));
    }
    let mut text = Rich::paint(Style::Bad, "does NOT fit");
    if peak <= usable {
        // On the device it does.
        text += format!(" into the memory of the host: on the device {peak_of}{of}").as_str();
        return text;
    }
    text += format!(": {peak_of}, {} too much", Bytes(peak.0.saturating_sub(usable.0))).as_str();
    let largest = plan.estimate.memory.parts().into_iter().max_by_key(|(_, part)| *part);
    if let Some((name, part)) = largest {
        text += format!(", and the {name} alone take {part}").as_str();
    }
    text += of.as_str();
    text
}

fn measured_memory(plan: &Plan, run: &ValidatedRun) -> String {
    format!(
        "{} measured peak of {}; predicted {}, {}",
        run.measured.peak_memory_bytes,
        words::device_memory(plan),
        run.predicted.peak_memory_bytes,
        signed_percent(run.peak_memory_error)
    )
}

/// `gpt2 (124 M parameters) on 2x8xh100: 16 devices on 2 nodes (h100)`.
fn subject(plan: &Plan) -> String {
    let cluster = &plan.cluster.name;
    format!(
        "{} ({} parameters) on {cluster}: {}",
        plan.model.name,
        parameters(plan.model.total_parameters()),
        words::devices(plan)
    )
}

/// Whether the measurement has replaced the search's choice by another plan.
fn beaten(plan: &Plan) -> bool {
    plan.measured.as_ref().is_some_and(|measured| !verdict::stands(plan, measured))
}

/// The commands that come next, to copy.
pub(crate) fn next(plan: &Plan, file: Option<&Path>) -> Vec<String> {
    if !plan.fits {
        return Vec::new();
    }
    let Some(file) = file else {
        let more = match plan.cost_source {
            CostSource::Profile(_) => "`report`, `validate`, `train` and `export`",
            _ => "`report` and `export`",
        };
        return vec![format!("`-o plan.json` writes this plan for `autodist explain`, {more}")];
    };
    let file = file.display();
    let mut commands = vec![format!("autodist explain {file}")];
    commands.push(match &plan.cost_source {
        CostSource::Profile(_) => format!("autodist validate {file}"),
        CostSource::Catalogue(catalogue) => {
            format!("autodist export {file} --to {} -o out/", target(&catalogue.trainer))
        }
        CostSource::Mixed(_) => format!("autodist export {file} --to megatron -o out/"),
    });
    commands.push(format!("autodist report {file}"));
    commands
}

/// The export for a training framework.
fn target(trainer: &str) -> &'static str {
    match trainer {
        "nemo" => "megatron-bridge",
        "deepspeed" => "deepspeed",
        "fsdp" | "fsdp2" => "torchtitan",
        _ => "megatron",
    }
}
