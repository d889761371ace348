//! Plain text for the terminal: readable without colour, never wider than 110 columns.

use crate::changes;
use crate::circumstances::{self, device_kind};
use crate::communication;
use crate::network;
use crate::table::{Table, paragraph};
use crate::tables;
use crate::training;
use crate::verdict;
use crate::words::{self, clean, parameters, percent, plural, tokens_per_second, with_spread};
use autodist_spec::strategy::label;
use autodist_spec::{
    Environment, Plan, Profile, Provenance, RunRecord, Seconds, StopReason, Validation, doubt,
};

/// The best strategy, the parts of its time and memory, the certificate of the search, and the rejected
/// alternatives.
pub fn plan_summary(plan: &Plan) -> String {
    let estimate = &plan.estimate;
    let mut text = paragraph(
        &format!(
            "{} ({} parameters) on {}: {}",
            plan.model.name,
            parameters(plan.model.total_parameters()),
            plan.cluster.name,
            words::devices(plan)
        ),
        0,
    );
    if let Some(kinds) = words::kinds_of_blocks(&plan.model) {
        text += &labelled("blocks", &kinds);
    }
    let given = plan.search.stop_reason == StopReason::Given;
    text += &labelled(if given { "strategy" } else { "best" }, &label(&plan.strategy, &plan.stages));
    if let Some(measured) = &plan.measured {
        text += &labelled("", &clean(&measured.reason));
    }
    text += &labelled("", &words::strategy(&plan.strategy, &plan.stages, plan.micro_batches));
    text += &labelled(
        "step time",
        &format!(
            "{} ({})",
            with_spread(estimate.step_time_s, estimate.step_time_spread_s),
            estimate.provenance
        ),
    );
    if let Some(catalogue) = plan.cost_source.catalogue().filter(|c| !c.error_bar_of.is_empty()) {
        let bar = percent(estimate.step_time_spread_s / estimate.step_time_s);
        text += &labelled("", &format!("± {bar}: {}", clean(&catalogue.error_bar_of)));
    }
    let utilisation = plan.utilisation(estimate);
    let rate = utilisation.map(|all| format!("; {all}")).unwrap_or_default();
    text += &labelled("speed", &format!("{}{rate}", tokens_per_second(estimate.tokens_per_s)));
    if estimate.caution_s > Seconds::ZERO {
        let words = "of that is a safety margin: segments not known to ±25 % are priced at the top of their intervals";
        text += &labelled("", &format!("{} {words}", estimate.caution_s));
    }
    if let Some(contradiction) = utilisation.and_then(|all| all.contradiction()) {
        text += &labelled("warning:", &contradiction);
    }
    let device = words::device_memory(plan);
    let free = percent(plan.job.memory_reserve);
    let fits = if plan.fits { "" } else { "does NOT fit: " };
    text += &labelled(
        "memory",
        &format!("{fits}{} peak of {device}, {free} kept free", estimate.peak_memory_bytes),
    );
    if let Some(training) = &plan.training {
        text += &labelled("training", &training::sentence(plan, training));
    }
    if let Some(given) = &plan.given {
        text += &labelled("yours", &format!("{} is {}", clean(&given.source), changes::verdict(plan, given)));
        for (index, assumption) in given.assumptions.iter().enumerate() {
            let assumed = if index == 0 { "assumed of it: " } else { "" };
            text += &labelled("", &format!("{assumed}{}", clean(assumption)));
        }
    }
    if let Some(slowdown) = &estimate.slowdown {
        let steps = format!(
            "needs {} the steps of exact gradients to reach the same loss",
            words::slowdown(slowdown)
        );
        text += &labelled("lossy", &steps);
    }
    if let Some(time) = estimate.time_to_loss_s {
        text += &labelled("to the loss", &format!("{time}, by the job's steps to it"));
    }
    text += &labelled("search", &words::search(plan, beaten(plan)));
    text += &labelled("profile", &words::profile_source(plan));
    for (index, assumption) in plan.assumptions.iter().enumerate() {
        text += &labelled(if index == 0 { "assumed" } else { "" }, &clean(assumption));
    }

    if let Some(given) = &plan.given {
        let title = if given.fits {
            "Yours, with the fewest changes that make it faster, and the plan"
        } else {
            "Yours, with the fewest changes that make it fit, and the plan"
        };
        section(&mut text, title, &changes::table(plan, given));
    }
    section(&mut text, "Stages", &tables::stages(plan));
    section(&mut text, "Time of a step, on the busiest pipeline rank", &tables::cost(&estimate.cost));
    section(&mut text, "Memory, on the fullest device", &tables::memory(&estimate.memory));
    if let Some(placement) = &plan.placement {
        text += &labelled("placement", &words::placement(&plan.strategy, placement));
    }
    if !plan.collectives.is_empty() {
        section(
            &mut text,
            "Collectives, with lower bounds from the network",
            &communication::collectives(plan),
        );
    }
    if !plan.codecs.is_empty() {
        section(&mut text, "Compression: step times, and the cost in steps", &communication::codecs(plan));
    }
    if !plan.alternatives.is_empty() {
        section(&mut text, "Runners-up", &tables::alternatives(plan));
    }
    if !plan.rejected.is_empty() {
        section(&mut text, "Refused", &tables::rejected(plan));
    }
    text
}

/// The result, at the top: the plan to use, its step time, whether the measurement confirms the planner's
/// choice, and the certainty. `plan` is the document with its measured plans in measured order; `files` lists
/// the files of the results.
pub fn answer(plan: &Plan, validation: &Validation, files: &[(&str, String)]) -> String {
    let mut text = labelled(
        "plan",
        &format!(
            "{}: {}",
            label(&plan.strategy, &plan.stages),
            words::strategy(&plan.strategy, &plan.stages, plan.micro_batches)
        ),
    );
    if let Some(run) = verdict::of_plan(plan, validation) {
        text += &labelled("step time", &verdict::time(plan, run));
    }
    text += &labelled("verdict", &verdict::of_choice(validation));
    text += &labelled("evidence", &verdict::sure(plan, validation));
    for (label, value) in files {
        text += &labelled(label, value);
    }
    text
}

/// The verdict on the planner's choice, in a sentence.
pub fn verdict(validation: &Validation) -> String {
    verdict::of_choice(validation)
}

/// Measured and predicted times, with signed errors: plus means the prediction was too high.
pub fn validation_table(validation: &Validation) -> String {
    let mut text = String::new();
    if let Some(ended) = &validation.ended {
        text += &labelled("ended", &format!("early: {ended}"));
    }
    if validation.runs.is_empty() {
        text += "no plan ran\n";
    } else {
        text += &tables::validation(validation).text();
        text += "speed is relative to the machine's speed during the profile; error is predicted / measured - 1 at\nprofile speed; ± is half of the 95 % interval of the median\n\n";
        text += &tables::validation_memory(validation).text();
        text.push('\n');
        let runs = plural(validation.runs.len() as u64, "run");
        text += &labelled(
            "error",
            &format!(
                "median |error| of the step time {} over {runs} ({} as timed)",
                percent(validation.median_adjusted_error),
                percent(validation.median_error)
            ),
        );
        text += &labelled("regret", &words::regret(validation));
        if let Some(agreement) = &validation.agreement {
            text += &labelled("agreement", &words::agreement(agreement));
        }
        if !validation.gains.is_empty() {
            section(
                &mut text,
                "Gain from compression: step time without the codec / with it - 1",
                &communication::gains(validation),
            );
        }
    }
    if !validation.probes.is_empty() {
        section(
            &mut text,
            "Cost of compression in steps, from training with and without codecs",
            &communication::probes(validation),
        );
    }
    if !validation.failed.is_empty() {
        section(&mut text, "Failed", &tables::failed(validation));
    }
    text
}

/// The measured machine, and the doubts about the measurement.
pub fn profile_summary(profile: &Profile) -> String {
    let environment = &profile.environment;
    let mut text = labelled(
        "profile",
        &format!(
            "{} at {} tokens on {}: {}, {}",
            profile.model.name,
            profile.seq_len,
            profile.cluster.name,
            plural(u64::from(profile.cluster.device_count()), "device"),
            if profile.complete { "complete" } else { "unfinished: run the same command again to resume" }
        ),
    );
    for group in &profile.cluster.nodes {
        let device = &group.device;
        let peak = words::peak(device, profile.precision, environment.emulated);
        let bandwidth = device.memory_bytes_per_s.map(|rate| format!(", memory {rate}")).unwrap_or_default();
        text += &labelled(
            "devices",
            &format!(
                "{} x {} x {}: {}{bandwidth} ({}){peak}",
                group.count, group.devices, device.name, device.memory_bytes, device.provenance
            ),
        );
    }
    if let Some(rate) = profile.fastest_gemm() {
        text += &labelled("GEMM", &format!("{rate}: {}", words::FASTEST_GEMM));
    }
    if let Some(engine) = circumstances::engine(environment) {
        text += &labelled("engine", engine);
    }
    for (what, value) in circumstances::gpus(environment) {
        text += &labelled(&what, &value);
    }
    text += &labelled("precision", words::precision(profile.precision));
    text += &labelled(
        "processor",
        &format!(
            "{}, {}{}, {}",
            if environment.processor.is_empty() { "unknown" } else { &environment.processor },
            plural(u64::from(environment.cores), "core"),
            priority(environment),
            device_kind(environment.emulated)
        ),
    );
    for machine in &environment.machines {
        let ranks: Vec<String> = machine.ranks.iter().map(u32::to_string).collect();
        text += &labelled(
            "machine",
            &format!(
                "{}: {}, {}, {}",
                machine.name,
                if ranks.len() == 1 {
                    format!("rank {}", ranks[0])
                } else {
                    format!("ranks {}", ranks.join(", "))
                },
                machine.processor,
                plural(u64::from(machine.cores), "core")
            ),
        );
    }
    text +=
        &labelled("taken", &format!("{} on {}", words::date(environment.started_unix_s), environment.host));
    text += &labelled("cells", &provenances(profile));
    text += &labelled(
        "together",
        &format!(
            "compute takes {:.3} times as long overlapped with communication, communication {:.3} times overlapped with compute ({})",
            profile.interference.compute_slowdown,
            profile.interference.communication_slowdown,
            profile.interference.provenance
        ),
    );
    text += &labelled("repeats", &format!("two runs of one plan differ by {}", words::noise(profile)));
    for line in doubt::lines(&profile.doubts) {
        text += &labelled("doubt", line.trim_start_matches("doubtful measurement: "));
    }
    if let Some(network) = &profile.network {
        let title = "Links between devices: bandwidth and latency";
        section(&mut text, title, &network::links(network));
        if !network.patterns.is_empty() {
            section(&mut text, "Collectives of all devices", &network::patterns(network));
        }
    }
    if profile.fits.is_empty() && profile.network.is_none() {
        text += &labelled("links", "none was measured");
    } else if !profile.fits.is_empty() {
        section(&mut text, "Links: time = alpha + beta * bytes", &tables::fits(profile));
    }
    if !profile.hardware.products.is_empty() {
        let title = format!("GEMMs: {}", words::PRODUCTS);
        section(&mut text, &title, &tables::products(profile));
    }
    if !profile.hardware.copies.is_empty() {
        section(&mut text, &format!("Copies: {}", words::COPIES), &tables::copies(profile));
    }
    section(&mut text, "Beside segments and links", &tables::other_costs(profile));
    warnings(&mut text, &environment.warnings);
    text
}

/// One training run: speed, memory and losses.
pub fn run_summary(run: &RunRecord) -> String {
    let strategy = run.strategy.label();
    let named = if run.label == strategy { strategy } else { format!("{}: {strategy}", run.label) };
    let mut text = labelled("run", &named);
    if let Some(ended) = &run.ended {
        text += &labelled(
            "ended",
            &format!("early, after {}: {}", plural(u64::from(ended.step), "step"), ended.reason),
        );
    }
    let time = &run.step_time;
    text += &labelled(
        "step time",
        &format!(
            "{} median, 95 % interval {} to {}, over {} after {} of warm-up ({})",
            time.median_s,
            time.low_s,
            time.high_s,
            plural(u64::from(time.count), "step"),
            plural(u64::from(run.warmup_steps), "step"),
            time.provenance
        ),
    );
    text += &labelled("loss", &tables::losses(run));
    if let Some(compression) = compression(run) {
        text += &labelled("codecs", &compression);
    }
    text += &labelled("memory", &format!("{} peak of the fullest rank", run.peak_memory()));
    text += &labelled(
        "on",
        &format!(
            "{}, {}, {}{}",
            circumstances::devices(run),
            plural(run.ranks.len() as u64, "rank"),
            run.precision.name(),
            priority(&run.environment)
        ),
    );
    if let Some(engine) = circumstances::engine(&run.environment) {
        text += &labelled("engine", engine);
    }
    if let Some(between) = circumstances::between(&run.environment) {
        text += &labelled("between", &between);
    }
    section(&mut text, "Ranks", &tables::ranks(run));
    warnings(&mut text, &run.environment.warnings);
    text
}

/// The accuracy of the codecs of each run that used any.
pub fn compressions(runs: &[RunRecord]) -> String {
    let of = |run: &RunRecord| Some(paragraph(&format!("{}: {}", run.label, compression(run)?), 0));
    runs.iter().filter_map(of).collect()
}

/// The accuracy of a run's codecs, on one line; `None` without codecs.
fn compression(run: &RunRecord) -> Option<String> {
    let buckets = &run.compression;
    let first = buckets.first()?;
    let mut codecs: Vec<String> = buckets.iter().map(|bucket| bucket.codec.name()).collect();
    codecs.dedup();
    let mut medians: Vec<f64> = buckets.iter().map(|bucket| bucket.contraction_median).collect();
    medians.sort_by(f64::total_cmp);
    let lowest =
        buckets.iter().map(|bucket| bucket.contraction_lowest).fold(first.contraction_lowest, f64::min);
    let growth = buckets.iter().map(|bucket| bucket.error_growth).fold(0.0, f64::max);
    let mut text =
        format!("{}: contraction {:.3} (lowest {lowest:.3})", codecs.join(", "), medians[medians.len() / 2]);
    if growth > 0.0 {
        text += &format!(", error memory {growth:.2} times that half-way");
    }
    let fallbacks = buckets.iter().filter_map(|bucket| bucket.fallback);
    if let Some(fallback) = fallbacks.clone().min_by_key(|fallback| fallback.step) {
        let count = plural(fallbacks.count() as u64, "bucket");
        text += &format!("; {count} dense after step {}: {}", fallback.step, fallback.reason.name());
    }
    Some(text)
}

/// The number of cells of the profile by provenance.
fn provenances(profile: &Profile) -> String {
    let segments = profile.segments.iter().map(|cell| cell.time.provenance);
    let collectives = profile.collectives.iter().map(|cell| cell.time.provenance);
    let messages = profile.messages.iter().map(|cell| cell.time.provenance);
    let all: Vec<Provenance> = segments.chain(collectives).chain(messages).collect();
    let counts: Vec<String> = [
        Provenance::Measured,
        Provenance::Interpolated,
        Provenance::Modelled,
        Provenance::Extrapolated,
        Provenance::Assumed,
    ]
    .iter()
    .map(|kind| (kind, all.iter().filter(|seen| *seen == kind).count()))
    .filter(|(_, number)| *number > 0)
    .map(|(kind, number)| format!("{number} {kind}"))
    .collect();
    format!(
        "{} segments, {} collectives, {} messages: {}",
        profile.segments.len(),
        profile.collectives.len(),
        profile.messages.len(),
        if counts.is_empty() { "nothing yet".to_owned() } else { counts.join(", ") }
    )
}

/// A continuation of a list; empty if priority does not matter.
fn priority(environment: &Environment) -> &'static str {
    match circumstances::realtime(environment) {
        Some(true) => ", real-time priority",
        Some(false) => ", no real-time priority: other load shows",
        None => "",
    }
}

/// Whether the measurement has replaced the search's choice by another plan.
fn beaten(plan: &Plan) -> bool {
    plan.measured.as_ref().is_some_and(|measured| !verdict::stands(plan, measured))
}

/// A label and its text, in a line or more.
pub fn labelled(label: &str, value: &str) -> String {
    let indent = 11;
    let body = paragraph(value, indent);
    format!("{label:<indent$}{body}")
}

fn section(text: &mut String, title: &str, table: &Table) {
    *text += &format!("\n{title}\n{}", table.text());
}

fn warnings(text: &mut String, warnings: &[String]) {
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        *text += &labelled("warning:", &clean(warning));
    }
}
