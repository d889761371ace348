//! The step as ranks × streams over time: the prediction above, the measurement below, on one time axis.

use super::canvas::{
    Area, Chart, Done, Drawn, Hotspot, NORMAL, SMALL, Scale, Side, hotspot, legend, local, style, text, tick,
    width,
};
use super::palette;
use crate::ReportInput;
use crate::words;
use autodist_spec::{OperationKind, RunRecord, Seconds, Stream, TimelineEvent};
use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::collections::BTreeMap;

const LANE: u32 = 25;
const LANES_SHOWN: usize = 24;
const LABELS: i32 = 210;
/// The time axis extends a little beyond the last event.
const REACH: f64 = 1.01;
/// Time axis and margins.
const AROUND: u32 = 150;

/// One swim-lane figure: a heading and its lanes from top to bottom.
pub(super) struct Panel<'a> {
    heading: String,
    /// When the step is over.
    end: Seconds,
    lanes: Vec<Lane<'a>>,
}

struct Lane<'a> {
    label: String,
    events: Vec<&'a TimelineEvent>,
}

/// The panels that the input has events for: prediction first.
pub(super) fn panels<'a>(input: &ReportInput<'a>) -> Vec<Panel<'a>> {
    let estimate = &input.plan.estimate;
    let events = input.predicted_timeline;
    let mut predicted = format!(
        "predicted: {} ({})",
        words::with_spread(estimate.step_time_s, estimate.step_time_spread_s),
        estimate.provenance
    );
    let mut end = estimate.step_time_s;
    let (all, there) =
        (input.plan.micro_batches, 1 + events.iter().map(|e| e.micro_batch).max().unwrap_or(0));
    if there < all && !events.is_empty() {
        predicted += &format!("; drawn with {there} of its {all} micro-batches");
        end = events.iter().map(|event| event.end_s).fold(Seconds::ZERO, Seconds::max);
    }
    let mut panels = vec![panel(predicted, end, events, "pipeline rank", |_| String::new())];
    if let Some(run) = input.own_run() {
        let on = if run.environment.emulated { ", emulated devices" } else { "" };
        let heading = format!("measured: a step near the median of {}{on}", run.step_time.median_s);
        let end = run.step_time.median_s;
        panels.push(panel(heading, end, &run.timeline, "rank", |rank| {
            pipeline_rank(run, rank).map(|stage| format!(" (stage {stage})")).unwrap_or_default()
        }));
    }
    panels.retain(|panel| !panel.lanes.is_empty());
    panels
}

/// The pipeline rank of a world rank, derived from the chunks that the rank runs: each chunk belongs to one
/// pipeline rank.
pub(super) fn pipeline_rank(run: &RunRecord, rank: u32) -> Option<u32> {
    let of_layers = |event: &&TimelineEvent| {
        event.rank == rank && matches!(event.operation, OperationKind::Forward | OperationKind::Backward)
    };
    run.timeline.iter().find(of_layers).map(|event| run.strategy.rank_of(event.chunk as usize) as u32)
}

fn panel<'a>(
    heading: String,
    end: Seconds,
    events: &'a [TimelineEvent],
    rank_name: &str,
    place: impl Fn(u32) -> String,
) -> Panel<'a> {
    let mut lanes: BTreeMap<(u32, Stream), Vec<&TimelineEvent>> = BTreeMap::new();
    for event in
        events.iter().filter(|e| e.end_s.0.is_finite() && e.start_s.0.is_finite() && e.end_s > e.start_s)
    {
        lanes.entry((event.rank, event.stream)).or_default().push(event);
    }
    let total = lanes.len();
    let heading = if total > LANES_SHOWN {
        format!("{heading}; first {LANES_SHOWN} of {total} lanes")
    } else {
        heading
    };
    let lanes = lanes
        .into_iter()
        .take(LANES_SHOWN)
        .map(|((rank, stream), mut events_of_lane)| {
            events_of_lane.sort_by(|a, b| a.start_s.0.total_cmp(&b.start_s.0));
            let label = match stream {
                Stream::Compute => format!("{rank_name} {rank}{}", place(rank)),
                Stream::Communication => "communication".to_owned(),
                Stream::Host => "host".to_owned(),
            };
            Lane { label, events: events_of_lane }
        })
        .collect();
    Panel { heading, end, lanes }
}

pub(super) fn height(input: &ReportInput<'_>) -> u32 {
    let rows: u32 = panels(input).iter().map(|panel| panel.lanes.len() as u32 + 2).sum();
    (AROUND + LANE * rows).max(420)
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let panels = panels(input);
    let all = || panels.iter().flat_map(|panel| &panel.lanes).flat_map(|lane| &lane.events);
    let mut entries: Vec<(String, RGBColor)> = palette::OPERATIONS
        .iter()
        .filter(|kind| all().any(|event| event.operation == **kind))
        .map(|kind| (words::operation(*kind).to_owned(), palette::operation(*kind)))
        .collect();
    entries.push(("end of the step".to_owned(), palette::LIMIT));
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);

    let ends = panels.iter().map(|panel| panel.end);
    let end = all().map(|event| event.end_s).chain(ends).fold(Seconds::ZERO, Seconds::max);
    let scale = Scale::seconds(end);
    let rows: usize = panels.iter().map(|panel| panel.lanes.len() + 2).sum();
    let mut chart = ChartBuilder::on(&body)
        .margin_left(LABELS)
        .margin_right(30)
        .x_label_area_size(58)
        .build_cartesian_2d(0.0..scale.of(end.0) * REACH, 0.0..rows as f64)?;
    axis(&mut chart, &format!("time since the step began ({})", scale.unit))?;

    let pipeline = input.plan.strategy.pipeline.max(1);
    let mut hotspots = Vec::new();
    let mut row = rows as f64;
    for panel in &panels {
        row -= 1.5;
        let (_, y) = local(&body, chart.backend_coord(&(0.0, row + 0.55)));
        text(&body, &panel.heading, (24, y), Side::Left, SMALL + 1, palette::INK)?;
        let (top, bottom) = (row, row - panel.lanes.len() as f64);
        grid(&chart, scale.of(end.0), (bottom, top))?;
        for lane in &panel.lanes {
            row -= 1.0;
            let (_, y) = local(&body, chart.backend_coord(&(0.0, row + 0.5)));
            let quiet = lane.label == "communication";
            let color = if quiet { palette::MUTED } else { palette::INK };
            text(&body, &lane.label, (LABELS - 12, y), Side::Right, SMALL, color)?;
            for mark in merged(&lane.events, end) {
                hotspots.push(draw_mark(&chart, &body, &mark, row, scale, pipeline)?);
            }
        }
        let over = scale.of(panel.end.0);
        let line = [(over, bottom), (over, top)];
        chart.plotting_area().draw(&PathElement::new(line, palette::LIMIT.stroke_width(2)))?;
        let corners = [(over - scale.of(end.0) * 0.003, bottom), (over + scale.of(end.0) * 0.003, top)];
        hotspots.push(hotspot(&chart, corners, format!("the step is over: {}", panel.end)));
        row -= 0.5;
    }
    Ok(hotspots)
}

const TICKS: usize = 9;

fn axis<DB: DrawingBackend>(chart: &mut Chart<'_, DB>, description: &str) -> Done<DB> {
    chart
        .configure_mesh()
        .disable_mesh()
        .disable_y_axis()
        .axis_style(palette::MUTED)
        .label_style(style(SMALL, palette::INK))
        .axis_desc_style(style(NORMAL, palette::INK))
        .x_desc(description)
        .x_labels(TICKS)
        .x_label_formatter(&tick)
        .draw()
}

/// Lines at the ticks, behind the lanes only: they do not run through the headings.
fn grid<DB: DrawingBackend>(chart: &Chart<'_, DB>, end: f64, (bottom, top): (f64, f64)) -> Done<DB> {
    let axis = RangedCoordf64::from(0.0..end * REACH);
    for at in axis.key_points(BoldPoints(TICKS)) {
        let line = [(at, bottom), (at, top)];
        chart.plotting_area().draw(&PathElement::new(line, palette::GRID.stroke_width(1)))?;
    }
    Ok(())
}

/// The mark of one event, or of several that are too short to be distinguished.
struct Mark<'a> {
    first: &'a TimelineEvent,
    end: Seconds,
    count: u32,
}

fn merged<'a>(events: &[&'a TimelineEvent], whole: Seconds) -> Vec<Mark<'a>> {
    // Under a pixel of a figure of this width.
    let short = whole / 1500.0;
    // With many more operations than pixels, operations of all kinds are merged by pixel.
    let crowded = events.len() > 10_000;
    let mut marks: Vec<Mark<'a>> = Vec::new();
    for event in events {
        match marks.last_mut() {
            Some(mark)
                if event.start_s - mark.end < short
                    && event.end_s - event.start_s < short
                    && if crowded {
                        event.end_s - mark.first.start_s < short
                    } else {
                        mark.first.operation == event.operation
                    } =>
            {
                mark.end = mark.end.max(event.end_s);
                mark.count += 1;
            }
            _ => marks.push(Mark { first: event, end: event.end_s, count: 1 }),
        }
    }
    marks
}

fn draw_mark<DB: DrawingBackend>(
    chart: &Chart<'_, DB>,
    body: &Area<DB>,
    mark: &Mark<'_>,
    row: f64,
    scale: Scale,
    pipeline: u32,
) -> Result<Hotspot, DrawingAreaErrorKind<DB::ErrorType>> {
    let event = mark.first;
    // Even the shortest event is visible: a send/recv between two long operations matters most.
    let pixel =
        (chart.x_range().end - chart.x_range().start) / f64::from(body.dim_in_pixel().0 - LABELS as u32);
    let start = scale.of(event.start_s.0);
    let end = scale.of(mark.end.0).max(start + 1.2 * pixel);
    let corners = [(start, row + 0.1), (end, row + 0.9)];
    // Virtual stages of one rank alternate between two shades.
    let opacity = if (event.chunk / pipeline) % 2 == 1 { 0.6 } else { 1.0 };
    let fill = palette::operation(event.operation).mix(opacity).filled();
    chart.plotting_area().draw(&Rectangle::new(corners, fill))?;
    let spot = hotspot(chart, corners, says(mark));
    let ((left, top), (right, bottom)) = spot.corners;
    // A border separates adjacent marks of one kind, if there is space.
    let (left, top) = local(body, (left, top));
    let (right, bottom) = local(body, (right, bottom));
    if right - left >= 4 {
        body.draw(&PathElement::new([(left, top), (left, bottom)], palette::PAPER.mix(0.7).stroke_width(1)))?;
    }
    let number = event.micro_batch.to_string();
    let numbered = matches!(event.operation, OperationKind::Forward | OperationKind::Backward);
    if numbered && mark.count == 1 && right - left > width(&number, 14) + 4 {
        let color = if event.operation == OperationKind::Forward { palette::DARK } else { palette::ON_MARK };
        text(
            body,
            &number,
            (i32::midpoint(left, right), i32::midpoint(top, bottom)),
            Side::Center,
            15,
            color,
        )?;
    }
    Ok(spot)
}

fn says(mark: &Mark<'_>) -> String {
    let event = mark.first;
    let when = format!("{} to {}", event.start_s, mark.end);
    let what = words::operation(event.operation);
    if mark.count > 1 {
        return format!("{} short operations (the first: {what}), {when}", mark.count);
    }
    format!(
        "{what}, micro-batch {}, chunk {}: {when}, {} long",
        event.micro_batch,
        event.chunk,
        mark.end - event.start_s
    )
}
