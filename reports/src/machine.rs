//! A measured machine, and training runs on it, in the terminal.

use crate::circumstances::{self, device_kind};
use crate::network;
use crate::screen::Screen;
use crate::tables;
use crate::view::TerminalView;
use crate::words::{self, plural};
use autodist_spec::{Environment, Profile, Provenance, RunRecord, doubt};
use std::path::Path;

/// The measured machine, and the doubts about the measurement; `file` is where the profile was written.
pub fn profile_summary(profile: &Profile, file: Option<&Path>, view: &TerminalView) -> String {
    let environment = &profile.environment;
    let mut screen = Screen::new(view);
    screen.line(
        "profile",
        format!(
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
        screen.line(
            "devices",
            format!(
                "{} x {} x {}: {}{bandwidth} ({}){peak}",
                group.count, group.devices, device.name, device.memory_bytes, device.provenance
            ),
        );
    }
    if let Some(rate) = profile.fastest_gemm() {
        screen.line("GEMM", format!("{rate}: {}", words::FASTEST_GEMM));
    }
    screen.line("measured", provenances(profile));
    screen.line("repeats", words::repeats(profile));
    for line in doubt::lines(&profile.doubts) {
        screen.line("doubt", line.trim_start_matches("doubtful measurement: "));
    }
    if profile.fits.is_empty() && profile.network.is_none() {
        screen.line("links", "none was measured");
    }
    if view.verbose {
        details(&mut screen, profile);
    } else {
        let next = file.filter(|_| profile.complete);
        let next = next.map(|file| format!("autodist plan --profile {} -o plan.json", file.display()));
        if let Some(next) = &next {
            screen.line("next", next.as_str());
        }
        screen.line(if next.is_some() { "" } else { "more" }, words::MORE);
    }
    // Otherwise they are printed where they arise.
    if view.verbose {
        screen.warnings(&environment.warnings);
    }
    screen.finish()
}

/// What was measured, and under which circumstances.
fn details(screen: &mut Screen, profile: &Profile) {
    let environment = &profile.environment;
    if let Some(engine) = circumstances::engine(environment) {
        screen.line("engine", engine);
    }
    for (what, value) in circumstances::gpus(environment) {
        screen.line(&what, value);
    }
    screen.line("precision", words::precision(profile.precision));
    screen.line(
        "processor",
        format!(
            "{}, {}{}, {}",
            if environment.processor.is_empty() { "unknown" } else { &environment.processor },
            plural(u64::from(environment.cores), "core"),
            priority(environment),
            device_kind(environment.emulated)
        ),
    );
    for machine in &environment.machines {
        let ranks: Vec<String> = machine.ranks.iter().map(u32::to_string).collect();
        screen.line(
            "machine",
            format!(
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
    screen.line("taken", format!("{} on {}", words::date(environment.started_unix_s), environment.host));
    screen.line(
        "contention",
        format!(
            "compute takes {:.3} times as long overlapped with communication, communication {:.3} times overlapped with compute ({})",
            profile.interference.compute_slowdown,
            profile.interference.communication_slowdown,
            profile.interference.provenance
        ),
    );
    if let Some(network) = &profile.network {
        let title = "Links between devices: bandwidth and latency";
        screen.section(title, &network::links(network));
        if !network.patterns.is_empty() {
            screen.section("Collectives of all devices", &network::patterns(network));
        }
    }
    if !profile.fits.is_empty() {
        screen.section("Links: time = alpha + beta * bytes", &tables::fits(profile));
    }
    if !profile.hardware.products.is_empty() {
        let title = format!("GEMMs: {}", words::PRODUCTS);
        screen.section(&title, &tables::products(profile));
    }
    if !profile.hardware.copies.is_empty() {
        screen.section(&format!("Copies: {}", words::COPIES), &tables::copies(profile));
    }
    screen.section("Other costs", &tables::other_costs(profile));
}

/// One training run: speed, memory and losses.
pub fn run_summary(run: &RunRecord, view: &TerminalView) -> String {
    let strategy = run.strategy.label();
    let named = if run.label == strategy { strategy } else { format!("{}: {strategy}", run.label) };
    let mut screen = Screen::new(view);
    screen.line("run", named);
    if let Some(ended) = &run.ended {
        screen.line(
            "ended",
            format!("early, after {}: {}", plural(u64::from(ended.step), "step"), ended.reason),
        );
    }
    let time = &run.step_time;
    screen.line(
        "step time",
        format!(
            "{} median, 95 % interval {} to {}, over {} after {} of warm-up ({})",
            time.median_s,
            time.low_s,
            time.high_s,
            plural(u64::from(time.count), "step"),
            plural(u64::from(run.warmup_steps), "step"),
            time.provenance
        ),
    );
    screen.line("loss", tables::losses(run));
    if let Some(compression) = compression(run) {
        screen.line("codecs", compression);
    }
    screen.line("memory", format!("{} peak of the fullest rank", run.peak_memory()));
    screen.line(
        "on",
        format!(
            "{}, {}, {}{}",
            circumstances::devices(run),
            plural(run.ranks.len() as u64, "rank"),
            run.precision.name(),
            priority(&run.environment)
        ),
    );
    if view.verbose {
        if let Some(engine) = circumstances::engine(&run.environment) {
            screen.line("engine", engine);
        }
        if let Some(between) = circumstances::between(&run.environment) {
            screen.line("between", &between);
        }
        screen.section("Ranks", &tables::ranks(run));
    }
    screen.warnings(&run.environment.warnings);
    screen.finish()
}

/// The accuracy of the codecs of each run that used any.
pub fn compressions(runs: &[RunRecord], view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    for run in runs {
        if let Some(compression) = compression(run) {
            screen.paragraph(format!("{}: {compression}", run.label));
        }
    }
    screen.finish()
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
        "{}, {}, {}: {}",
        plural(profile.segments.len() as u64, "segment"),
        plural(profile.collectives.len() as u64, "collective"),
        plural(profile.messages.len() as u64, "send/recv"),
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
