//! The report as one page that opens offline: style and figures are embedded; it loads nothing and has no
//! scripts.

mod markup;

pub(crate) use markup::escape;

use crate::circumstances;
use crate::communication;
use crate::figures::{Figure, svg};
use crate::tables;
use crate::verdict;
use crate::words::{self, parameters, percent, plural, signed_percent, tokens_per_second, with_spread};
use crate::{ReportError, ReportInput};
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{Plan, Profile, Provenance, RunRecord, StopReason, Validation, doubt};
use markup::{Emphasis, Markup};
use std::collections::BTreeMap;

/// The whole report as one self-contained HTML document.
///
/// # Errors
/// A fault of the drawing library.
pub fn html(input: &ReportInput<'_>) -> Result<String, ReportError> {
    let sections = sections(input)?;
    let mut page = Markup::default();
    page.raw("<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n");
    page.raw("<meta charset=\"utf-8\" />\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n");
    page.element("title", "", &format!("{} on {}", input.plan.model.name, input.plan.cluster.name));
    page.raw(&format!("<style>\n{}</style>\n</head>\n<body>\n", include_str!("style.css")));
    page.inside("header", "", |header| headline(header, input, &sections));
    page.inside("main", "", |main| {
        for section in &sections {
            main.heading(section.id, section.title);
            main.raw(&section.body);
        }
    });
    page.element("footer", "", &footer(input));
    page.raw("</body>\n</html>\n");
    Ok(page.finish())
}

struct Section {
    id: &'static str,
    title: &'static str,
    body: String,
}

type Filled = Result<(), ReportError>;

fn timeline_title(input: &ReportInput<'_>) -> &'static str {
    if input.own_run().is_some() { "One step, predicted over measured" } else { "One step, predicted" }
}

/// The sections that have data, in reading order.
fn sections(input: &ReportInput<'_>) -> Result<Vec<Section>, ReportError> {
    type Fill = fn(&mut Markup, &ReportInput<'_>) -> Filled;
    let all: [(&str, &str, bool, Fill); 12] = [
        ("plan", "The plan", true, plan),
        (
            "alternatives",
            "Ranked alternatives, and why they are slower",
            !input.plan.alternatives.is_empty(),
            alternatives,
        ),
        ("rejected", "Rejected without simulation", !input.plan.rejected.is_empty(), rejected),
        (
            "collectives",
            "Collectives and their lower bounds",
            !input.plan.collectives.is_empty(),
            collectives,
        ),
        ("codecs", "Compression", !input.plan.codecs.is_empty(), codecs),
        ("time", "Where the time goes", true, cost),
        ("memory", "Where the memory goes", true, memory),
        ("timeline", timeline_title(input), Figure::Timeline.applies(input), timeline),
        ("validation", "Predicted against measured", input.validation.is_some(), validation),
        ("runs", "The runs", !input.runs.is_empty(), runs),
        ("profile", "The profile", input.profile.is_some(), profile),
        ("provenance", "Where the numbers come from", true, provenance),
    ];
    let shown = all.into_iter().filter(|(_, _, applies, _)| *applies);
    shown
        .map(|(id, title, _, fill)| {
            let mut body = Markup::default();
            fill(&mut body, input)?;
            Ok(Section { id, title, body: body.finish() })
        })
        .collect()
}

fn headline(page: &mut Markup, input: &ReportInput<'_>, sections: &[Section]) {
    let plan = input.plan;
    let estimate = &plan.estimate;
    page.element("h1", "", &format!("{} on {}", plan.model.name, plan.cluster.name));
    page.note(&format!(
        "{} parameters, {}, {} of {} tokens a step, {}, {}",
        parameters(plan.model.total_parameters()),
        words::devices(plan),
        plural(u64::from(plan.job.global_batch), "sequence"),
        words::count(u64::from(plan.job.seq_len)),
        plan.job.precision.name(),
        match plan.job.optimizer {
            autodist_spec::Optimizer::AdamW { .. } => "AdamW",
            autodist_spec::Optimizer::Sgd { .. } => "SGD",
        }
    ));
    page.inside("p", "", |p| {
        p.element("span", "label", &label(&plan.strategy, &plan.stages));
        p.raw("<br />");
        p.element(
            "span",
            "",
            &capitalized(&words::strategy(&plan.strategy, &plan.stages, plan.micro_batches)),
        );
    });
    if input.emulated() {
        page.warning(
            "Measured on emulated devices, which are slowed down: not a measurement of the real devices",
        );
    }
    let utilisation = plan.utilisation(estimate);
    if let Some(contradiction) = utilisation.and_then(|all| all.contradiction()) {
        page.warning(&contradiction);
    }
    // A plan that is slower than another measured one must not be called optimal.
    let beaten = plan.measured.as_ref().is_some_and(|measured| !verdict::stands(plan, measured))
        || input.validation.is_some_and(|validation| validation.verdict == Some(Verdict::Refuted));
    page.inside("div", "cards", |cards| {
        cards.card(
            "predicted step time",
            &estimate.step_time_s.to_string(),
            &format!("± {}, {}", estimate.step_time_spread_s, estimate.provenance),
        );
        let rate = utilisation.map(|all| format!("; {all}")).unwrap_or_default();
        let tokens = tokens_per_second(estimate.tokens_per_s);
        let (number, unit) = tokens.split_once(' ').unwrap_or((&tokens, ""));
        cards.card("throughput", number, &format!("{unit}{rate}"));
        cards.card("peak memory", &estimate.peak_memory_bytes.to_string(), &memory_note(plan));
        let validated = input.validation.and_then(|validation| verdict::of_plan(plan, validation));
        if let Some(run) = validated {
            // Compares like with like: the plan's own run, at the machine speed of the profile.
            let speed = if run.measured.machine_speed == 1.0 { "" } else { " at profile speed" };
            cards.card(
                "measured step time",
                &run.measured.adjusted_step_time_s.to_string(),
                &format!("± {}{speed}", run.measured.adjusted_step_time_spread_s),
            );
            let word = if run.adjusted_error < 0.0 { "slower" } else { "faster" };
            cards.card(
                "prediction error",
                &signed_percent(run.adjusted_error),
                &format!("{word} than predicted, bar ± {}", run.bar_s),
            );
        } else if let Some(run) = input.own_run() {
            let time = &run.step_time;
            cards.card(
                "measured step time",
                &time.median_s.to_string(),
                &format!(
                    "95 % interval {} to {}, {}",
                    time.low_s,
                    time.high_s,
                    plural(u64::from(time.count), "step")
                ),
            );
        }
        if let Some(validation) = input.validation.filter(|v| !v.runs.is_empty() || !v.failed.is_empty()) {
            let over = plural(validation.runs.len() as u64, "plan");
            let note = format!("of the planner's choice; {over} trained");
            cards.card("verdict", validation.verdict.map_or("unknown", Verdict::name), &note);
        }
        if beaten {
            return;
        }
        let search = &plan.search;
        let bound = match search.stop_reason {
            StopReason::Given => format!("not searched for, bound {}", search.lower_bound_s),
            _ => format!("gap {}, bound {}", percent(search.gap), search.lower_bound_s),
        };
        cards.card("search", words::stop_reason(search.stop_reason), &bound);
    });
    if let Some(validation) = input.validation {
        page.note(&format!("Verdict: {}", verdict::of_choice(validation)));
    }
    page.note(&format!("Search: {}", words::search(plan, beaten, true)));
    page.inside("nav", "", |nav| {
        for section in sections {
            nav.raw(&format!("<a href=\"#{}\">{}</a>\n", section.id, escape(section.title)));
        }
    });
}

fn memory_note(plan: &Plan) -> String {
    format!("of {}, {} kept free", words::device_memory(plan), percent(plan.job.memory_reserve))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + chars.as_str())
}

fn plan(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    let plan = input.plan;
    page.inside("div", "columns", |columns| {
        columns.inside("div", "", |left| {
            left.element("h3", "", "Layers on pipeline ranks");
            left.table(&tables::stages(plan));
        });
        columns.inside("div", "", |right| {
            right.element("h3", "", "Strategy");
            right.table(&tables::strategy(&plan.strategy, plan.micro_batches));
        });
    });
    Ok(())
}

fn alternatives(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.note("Step times with the half-width of the interval that should hold the measured median");
    page.table_with(&tables::alternatives(input.plan), Emphasis::First);
    Ok(())
}

fn collectives(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.note("The lower bound follows from the smallest cuts of the measured network");
    page.table(&communication::collectives(input.plan));
    Ok(())
}

fn codecs(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.note(
        "Predicted step times on the chosen split, and what each codec costs in steps to the same loss",
    );
    page.table(&communication::codecs(input.plan));
    Ok(())
}

fn rejected(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.table(&tables::rejected(input.plan));
    Ok(())
}

fn cost(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.figure(
        &svg(Figure::Cost, input)?,
        "The chosen plan first, then its runners-up. Communication and bubble are what compute does not hide. The \
         stroke at a bar's end is the interval that should hold the measured median.",
    );
    page.table_with(&tables::cost_per_rank(input.plan), Emphasis::Last);
    if let Some(note) = tables::ranks_left_out(input.plan) {
        page.note(&note);
    }
    Ok(())
}

fn memory(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.figure(&svg(Figure::Memory, input)?, "What the device holds at the moment of its peak.");
    page.table_with(&tables::memory_per_rank(input.plan), Emphasis::Last);
    if let Some(note) = tables::ranks_left_out(input.plan) {
        page.note(&note);
    }
    Ok(())
}

fn timeline(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.figure(
        &svg(Figure::Timeline, input)?,
        "Numbers are micro-batches; the paler shade is the rank's second model chunk. Rest the pointer on a mark for \
         its times. A prediction shows one replica; a measurement shows every rank.",
    );
    if input.own_run().is_none() {
        page.note("This plan has not been run yet: only the prediction is shown");
    }
    Ok(())
}

fn validation(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    let Some(validation) = input.validation else { return Ok(()) };
    if validation.runs.is_empty() {
        page.paragraph("No plan ran.");
    } else {
        measured_beside_predicted(page, input, validation)?;
    }
    if !validation.failed.is_empty() {
        page.element("h3", "", "Failed");
        page.table(&tables::failed(validation));
    }
    Ok(())
}

fn measured_beside_predicted(page: &mut Markup, input: &ReportInput<'_>, validation: &Validation) -> Filled {
    page.paragraph(&format!(
        "The median |error| of the predicted step time is {} at the speed that the machine had when it was profiled, \
         {} as timed; {}.",
        percent(validation.median_adjusted_error),
        percent(validation.median_error),
        words::regret(validation)
    ));
    page.figure(
        &svg(Figure::Scatter, input)?,
        "Measured at the speed that the machine had when it was profiled. Error is predicted / measured - 1: plus means \
         that the prediction was too high.",
    );
    page.element("h3", "", "Step time");
    page.table(&tables::validation(validation));
    page.element("h3", "", "Peak memory of the fullest device");
    page.table(&tables::validation_memory(validation));
    Ok(())
}

fn runs(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    if Figure::Loss.applies(input) {
        page.figure(
            &svg(Figure::Loss, input)?,
            "Exact plans compute the same training, so their lines coincide; earlier runs are drawn wider, that each \
             can be seen. Where a plan was trained in several rounds, the first is drawn; later ones, which begin \
             again and omit the warm-up, are thin lines.",
        );
    }
    page.table(&tables::runs(input.runs));
    let engine = |run: &RunRecord| {
        circumstances::engine(&run.environment)
            .map(|engine| format!("trained by {engine}"))
            .into_iter()
            .collect()
    };
    once_each(input.runs, engine).iter().for_each(|line| page.note(&capitalized(line)));
    for line in once_each(input.runs, |run| circumstances::between(&run.environment).into_iter().collect()) {
        page.note(&capitalized(&line));
    }
    for line in once_each(input.runs, |run| run.environment.warnings.clone()) {
        page.warning(&line);
    }
    Ok(())
}

/// Statements about runs, each with the runs that it applies to.
fn once_each(runs: &[RunRecord], said: impl Fn(&RunRecord) -> Vec<String>) -> Vec<String> {
    let mut whose: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for run in runs {
        for text in said(run) {
            whose.entry(text).or_default().push(&run.label);
        }
    }
    let line = |(text, labels): (String, Vec<&str>)| {
        let whose = if labels.len() == runs.len() { "every run".to_owned() } else { labels.join("; ") };
        format!("{text} ({whose})")
    };
    whose.into_iter().map(line).collect()
}

fn profile(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    let Some(profile) = input.profile else { return Ok(()) };
    if !profile.complete {
        page.warning("The profile is unfinished: some planned measurements were not made");
    }
    for warning in &profile.environment.warnings {
        page.warning(warning);
    }
    for line in doubt::lines(&profile.doubts) {
        page.warning(&line);
    }
    page.element("h3", "", "Where and how it was measured");
    page.table(&tables::environment(profile));
    page.element("h3", "", "Links");
    if Figure::Links.applies(input) {
        page.figure(
            &svg(Figure::Links, input)?,
            "Dots are medians with their 95 % intervals; lines are the fits alpha + beta × bytes.",
        );
    }
    if let Some(network) = &profile.network {
        page.table(&crate::network::links(network));
    }
    if !profile.fits.is_empty() {
        page.table(&tables::fits(profile));
    }
    folded(page, "timing of links", &tables::links(profile));
    page.element("h3", "", "Segments of layers");
    page.note(&segments_note(profile));
    folded(page, "timing of segments", &tables::segments(profile));
    if !profile.hardware.products.is_empty() {
        page.element("h3", "", "GEMMs");
        page.note(&capitalized(words::PRODUCTS));
        page.table(&tables::products(profile));
    }
    if !profile.hardware.copies.is_empty() {
        page.element("h3", "", "Copies");
        page.note(&capitalized(words::COPIES));
        page.table(&tables::copies(profile));
    }
    page.element("h3", "", "Beside segments and links");
    page.table(&tables::other_costs(profile));
    Ok(())
}

fn folded(page: &mut Markup, what: &str, table: &crate::table::Table) {
    if table.rows.is_empty() {
        page.note(&format!("No {what} was taken"));
    } else {
        let summary =
            format!("{} {}", words::count(table.rows.len() as u64), what.replace("timing", "timings"));
        page.folded(&summary, table);
    }
}

fn segments_note(profile: &Profile) -> String {
    let measured =
        profile.segments.iter().filter(|cell| cell.time.provenance == Provenance::Measured).count();
    format!(
        "{measured} of {} cells were measured, at {} tokens per sequence; growth is live memory after less before, \
         peak is above the start",
        profile.segments.len(),
        profile.seq_len
    )
}

fn provenance(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    page.note(
        "Measured: timed or counted on this machine. Interpolated: between two measured points. Modelled: from a \
         hardware catalogue, or past the measured points. Assumed: nobody measured or modelled it.",
    );
    page.table(&tables::provenance(input.plan));
    Ok(())
}

fn footer(input: &ReportInput<'_>) -> String {
    let estimate = &input.plan.estimate;
    format!(
        "autodist {}: {} predicted as {} ({})",
        env!("CARGO_PKG_VERSION"),
        label(&input.plan.strategy, &input.plan.stages),
        with_spread(estimate.step_time_s, estimate.step_time_spread_s),
        estimate.provenance
    )
}
