//! The report as one page that opens offline: style, figures and a small script are embedded; it loads nothing,
//! and says so to the browser. Without the script it shows the same.

mod answer;
mod markup;
mod plans;

pub(crate) use markup::escape;

use crate::changes;
use crate::circumstances;
use crate::communication;
use crate::figures::{Figure, out_of_sight, svg};
use crate::tables;
use crate::words::{self, percent, plural, with_spread};
use crate::{ReportError, ReportInput};
use autodist_spec::strategy::label;
use autodist_spec::{Profile, Provenance, RunRecord, Validation, doubt};
use markup::{Emphasis, Markup};
use std::collections::BTreeMap;

/// Copies commands and sorts tables.
const SCRIPT: &str = include_str!("page.js");

/// More runs than these are folded away: the table of all plans has their times.
const FEW_RUNS: usize = 6;

/// SHA-256 of the script: the only one that the page lets a browser run. A test compares them.
const SCRIPT_HASH: &str = "naNAZDYfncHCZlqiaNIICW6lw5Af58YIK2Y1v04G7/U=";

/// The whole report as one self-contained HTML document.
///
/// # Errors
/// A fault of the drawing library.
pub fn html(input: &ReportInput<'_>) -> Result<String, ReportError> {
    let sections = sections(input)?;
    let mut page = Markup::default();
    page.raw("<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n");
    page.raw("<meta charset=\"utf-8\" />\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n");
    page.raw(&format!(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'sha256-{SCRIPT_HASH}'; base-uri 'none'; form-action 'none'\" />\n"
    ));
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
    page.raw(&format!("<script>{SCRIPT}</script>\n</body>\n</html>\n"));
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
    let plan_of = input.plan;
    let trained = input.validation.is_some_and(|validation| !validation.runs.is_empty());
    let several = trained || !plan_of.alternatives.is_empty() || Figure::Landscape.applies(input);
    let all: [(&str, &str, bool, Fill); 14] = [
        ("changes", "Yours, and the fewest changes to it", plan_of.given.is_some(), changes_to_yours),
        ("alternatives", "The plans, and why the others were not chosen", several, alternatives),
        ("validation", "Predicted against measured", input.validation.is_some(), validation),
        ("time", "Where the time goes", true, cost),
        ("memory", "Where the memory goes", true, memory),
        ("timeline", timeline_title(input), Figure::Timeline.applies(input), timeline),
        ("plan", "The plan in full", true, plan),
        ("rejected", "Rejected without simulation", !plan_of.rejected.is_empty(), rejected),
        ("collectives", "Collectives and their lower bounds", !plan_of.collectives.is_empty(), collectives),
        ("codecs", "Compression", !plan_of.codecs.is_empty(), codecs),
        ("runs", "The runs", !input.runs.is_empty(), runs),
        ("profile", "The profile", input.profile.is_some(), profile),
        ("assumptions", "What was assumed, and what ± means", true, assumptions),
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
    answer::fill(page, input);
    page.inside("nav", "", |nav| {
        for section in sections {
            nav.raw(&format!("<a href=\"#{}\">{}</a>\n", section.id, escape(section.title)));
        }
    });
}

/// A figure with its finding, its subject and a caption.
fn draw(page: &mut Markup, figure: Figure, input: &ReportInput<'_>, caption: &str) -> Filled {
    page.figure(&figure.finding(input), figure.subject(input), &svg(figure, input)?, caption);
    Ok(())
}

fn changes_to_yours(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    if let Some(given) = &input.plan.given {
        page.note(&format!("{}, as it was read from {}", changes::title(given), words::clean(&given.source)));
        page.table(&changes::table(input.plan, given));
        for (index, note) in changes::by_hand(given).into_iter().enumerate() {
            page.note(&changes::by_hand_words(index, note));
        }
    }
    Ok(())
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
    if Figure::Landscape.applies(input) {
        let out = match out_of_sight(input.plan) {
            0 => String::new(),
            several => format!(" {} are slower or larger than the axes reach.", words::count(several as u64)),
        };
        let caption = format!(
            "Each mark is a layout that the search looked at: all predicted, a selection if there were many. Rest the \
             pointer on a mark for its name.{out}"
        );
        draw(page, Figure::Landscape, input, &caption)?;
    }
    page.table_with(&plans::table(input), Emphasis::First);
    if input.validation.is_some() {
        page.note(
            "Measured steps are at the speed that the machine had when it was profiled; \"as timed\" is without that \
             correction, by the speed beside it. Error is predicted / measured - 1: plus means that the prediction \
             was too high. Regret is the distance to the fastest plan.",
        );
    }
    Ok(())
}

/// The basis of the numbers, and how far they may be off.
fn assumptions(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    let plan = input.plan;
    let mut all: Vec<String> = plan.assumptions.iter().map(|text| format!("Assumed: {text}")).collect();
    match plan.cost_source.catalogue() {
        Some(catalogue) => {
            all.push(format!(
                "Priced for the trainer {}, from published figures of devices and links, and from efficiencies fitted \
                 to {}; nothing was measured on this cluster",
                catalogue.trainer, catalogue.calibration
            ));
            if !catalogue.error_bar_of.is_empty() {
                let bar = percent(plan.estimate.step_time_spread_s / plan.estimate.step_time_s);
                all.push(format!("± {bar} of a step time: {}", catalogue.error_bar_of));
            }
        }
        None => all.push(
            "± of a predicted step time is half of the interval that should hold the measured median; of a measured \
             one it is half of the 95 % interval of the median"
                .to_owned(),
        ),
    }
    all.push(format!("No plan may use the last {} of a device's memory", percent(plan.job.memory_reserve)));
    all.push("Times compare layouts of one step: how many steps a loss takes is not predicted".to_owned());
    page.inside("ul", "", |list| all.iter().for_each(|text| list.element("li", "", text)));
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
    draw(
        page,
        Figure::Cost,
        input,
        "The chosen plan first, then its runners-up. Communication and bubble are what compute does not hide. The \
         stroke at a bar's end is the interval that should hold the measured median.",
    )?;
    page.table_with(&tables::cost_per_rank(input.plan), Emphasis::Last);
    if let Some(note) = tables::ranks_left_out(input.plan) {
        page.note(&note);
    }
    Ok(())
}

fn memory(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    draw(page, Figure::Memory, input, "What the device holds at the moment of its peak.")?;
    page.table_with(&tables::memory_per_rank(input.plan), Emphasis::Last);
    if let Some(note) = tables::ranks_left_out(input.plan) {
        page.note(&note);
    }
    Ok(())
}

fn timeline(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    draw(
        page,
        Figure::Timeline,
        input,
        "Numbers are micro-batches; the paler shade is the rank's second model chunk. Rest the pointer on a mark for \
         its times. A prediction shows one replica; a measurement shows every rank.",
    )?;
    if input.own_run().is_none() {
        page.note("This plan has not been run yet: only the prediction is shown");
    }
    page.note("trace.json beside this page has the same for ui.perfetto.dev, or chrome://tracing");
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
    let regret = match validation.regret.filter(|_| validation.runs.len() > 1) {
        Some(_) => format!("; {}", words::regret(validation)),
        None => String::new(),
    };
    page.paragraph(&format!(
        "The median |error| of the predicted step time is {} at the speed that the machine had when it was profiled, \
         {} as timed{regret}.",
        percent(validation.median_adjusted_error),
        percent(validation.median_error),
    ));
    draw(
        page,
        Figure::Scatter,
        input,
        "Measured at the speed that the machine had when it was profiled. Error is predicted / measured - 1: plus means \
         that the prediction was too high.",
    )?;
    Ok(())
}

fn runs(page: &mut Markup, input: &ReportInput<'_>) -> Filled {
    if Figure::Loss.applies(input) {
        draw(
            page,
            Figure::Loss,
            input,
            "Exact plans compute the same training, so their lines coincide; earlier runs are drawn wider, that each \
             can be seen. Where a plan was trained in several rounds, the first is drawn; later ones, which begin \
             again and omit the warm-up, are thin lines.",
        )?;
    }
    if input.runs.len() > FEW_RUNS {
        page.folded(&plural(input.runs.len() as u64, "run"), &tables::runs(input.runs));
    } else {
        page.table(&tables::runs(input.runs));
    }
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
        draw(
            page,
            Figure::Links,
            input,
            "Dots are medians with their 95 % intervals; lines are the fits alpha + beta × bytes.",
        )?;
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
