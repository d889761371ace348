//! Peak memory against step time of every layout that the search priced: the choice, the layouts that no other
//! beats in both, the device's memory, and what does not fit.

use super::canvas::{Area, Drawn, Hotspot, SMALL, Scale, Side, legend, local, mesh, text, tick};
use super::palette;
use crate::ReportInput;
use crate::words;
use autodist_spec::strategy::label;
use autodist_spec::{Bytes, Plan, PricedOutcome, PricedPoint, Seconds};
use plotters::prelude::*;
use std::collections::BTreeSet;

/// A device memory further above the points than this would squeeze them.
const LIMIT_IN_SIGHT: f64 = 2.5;
/// Layouts slower than the fastest by more than this factor are outside.
const SLOWEST: f64 = 2.5;

/// Every known layout: those of the document first, the choice as the first of all.
pub(crate) fn points(plan: &Plan) -> Vec<PricedPoint> {
    let own = |label: String, estimate: &autodist_spec::Estimate, outcome| PricedPoint {
        label,
        outcome,
        step_time_s: estimate.step_time_s,
        peak_memory_bytes: estimate.peak_memory_bytes,
    };
    let fits = if plan.fits { PricedOutcome::Simulated } else { PricedOutcome::OutOfMemory };
    let mut all = vec![own(label(&plan.strategy, &plan.stages), &plan.estimate, fits)];
    all.extend(
        plan.alternatives.iter().map(|other| {
            own(label(&other.strategy, &other.stages), &other.estimate, PricedOutcome::Simulated)
        }),
    );
    let known: BTreeSet<String> = all.iter().map(|point| point.label.clone()).collect();
    all.extend(plan.priced.iter().filter(|point| !known.contains(&point.label)).cloned());
    all.retain(|point| point.step_time_s.0.is_finite() && point.step_time_s.0 > 0.0);
    all
}

/// The simulated layouts than which no other is both faster and smaller, the fastest first.
pub(crate) fn front(points: &[PricedPoint]) -> Vec<&PricedPoint> {
    let mut sorted: Vec<_> = points.iter().filter(|p| p.outcome == PricedOutcome::Simulated).collect();
    let by = |a: &&PricedPoint, b: &&PricedPoint| {
        let time = a.step_time_s.0.total_cmp(&b.step_time_s.0);
        time.then(a.peak_memory_bytes.cmp(&b.peak_memory_bytes))
    };
    sorted.sort_by(by);
    let mut least = None;
    sorted.retain(|point| {
        let better = least.is_none_or(|least| point.peak_memory_bytes < least);
        if better {
            least = Some(point.peak_memory_bytes);
        }
        better
    });
    sorted
}

pub(super) fn applies(plan: &Plan) -> bool {
    points(plan).len() > 2
}

/// The memory of the device with the peak.
pub(crate) fn device_memory(plan: &Plan) -> Option<Bytes> {
    words::fullest_device(plan).map(|device| device.memory_bytes)
}

/// The part of it that plans may use.
fn usable(plan: &Plan) -> Option<Bytes> {
    device_memory(plan).map(|memory| Bytes((memory.as_f64() * (1.0 - plan.job.memory_reserve)) as u64))
}

/// What is in sight: the slowest step and the largest memory.
fn window(plan: &Plan, points: &[PricedPoint]) -> (Seconds, Bytes) {
    let simulated = || points.iter().filter(|p| p.outcome == PricedOutcome::Simulated).chain(points.first());
    let fastest = simulated().map(|p| p.step_time_s).fold(Seconds(f64::INFINITY), Seconds::min);
    let within = simulated().map(|p| p.step_time_s).filter(|time| *time <= fastest * SLOWEST);
    let slowest = within.fold(fastest * 1.05, Seconds::max);
    let largest = simulated().map(|p| p.peak_memory_bytes).max().unwrap_or_default();
    let limit = usable(plan).filter(|limit| limit.as_f64() <= LIMIT_IN_SIGHT * largest.as_f64());
    // What does not fit is seen above the limit.
    (slowest, Bytes((limit.map_or(1.12, |_| 1.3) * limit.unwrap_or(largest).max(largest).as_f64()) as u64))
}

/// Points that the figure leaves out, as too slow or too large for its axes.
pub(crate) fn out_of_sight(plan: &Plan) -> usize {
    let points = points(plan);
    let (slowest, largest) = window(plan, &points);
    points.iter().filter(|p| p.step_time_s > slowest || p.peak_memory_bytes > largest).count()
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let plan = input.plan;
    let points = points(plan);
    let (slowest, largest) = window(plan, &points);
    let seen = |p: &&PricedPoint| p.step_time_s <= slowest && p.peak_memory_bytes <= largest;
    let shown = |outcome| points.iter().filter(seen).any(move |p| p.outcome == outcome);
    let choice = points.first().map_or("", |choice| choice.label.as_str());
    let mut entries = vec![(format!("this plan: {choice}"), palette::CHOICE)];
    for (outcome, name) in [
        (PricedOutcome::Simulated, "simulated, fits (line: no other of these is both faster and smaller)"),
        (PricedOutcome::OutOfMemory, "does not fit (at least this memory)"),
        (PricedOutcome::Bounded, "not simulated (bounds: at least this slow and large)"),
    ] {
        if shown(outcome) {
            entries.push((name.to_owned(), color(outcome)));
        }
    }
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let (time, memory) = (Scale::seconds(slowest), Scale::bytes(largest));
    let fastest = points.iter().filter(seen).map(|p| p.step_time_s).fold(slowest, Seconds::min);
    let room = 0.04 * (slowest.0 - fastest.0);
    let x = time.of(fastest.0 - room)..time.of(slowest.0 + room);
    let least =
        points.iter().filter(seen).map(|p| p.peak_memory_bytes.as_f64()).fold(f64::INFINITY, f64::min);
    // Points that are all far above zero would crowd at the top.
    let floor = if least > 0.4 * largest.as_f64() { 0.8 * least } else { 0.0 };
    let mut chart = ChartBuilder::on(&body)
        .margin_top(14)
        .margin_right(34)
        .margin_left(20)
        .x_label_area_size(58)
        .y_label_area_size(92)
        .build_cartesian_2d(x.clone(), memory.of(floor)..memory.of(largest.as_f64()))?;
    let descriptions = [format!("step time ({})", time.unit), format!("peak memory ({})", memory.unit)];
    if let Some(limit) = usable(plan).filter(|limit| *limit <= largest) {
        let at = memory.of(limit.as_f64());
        let beyond = [(x.start, at), (x.end, memory.of(largest.as_f64()))];
        chart.draw_series([Rectangle::new(beyond, palette::LIMIT.mix(0.08).filled())])?;
    }
    mesh(&mut chart, &descriptions[0], &descriptions[1], &tick, &tick)?;
    if let (Some(limit), Some(device)) = (usable(plan), device_memory(plan)) {
        let at = memory.of(limit.as_f64().min(largest.as_f64()));
        let (right, y) = local(&body, chart.backend_coord(&(x.end, at)));
        let name = if limit <= largest {
            let line = [(x.start, at), (x.end, at)];
            chart.draw_series(LineSeries::new(line, palette::LIMIT.stroke_width(2)))?;
            let fits = if plan.cluster.homogeneous() { ": nothing above this line fits" } else { "" };
            format!("{limit} of {device} may be used{fits}")
        } else {
            format!("device memory {device}: far above this figure")
        };
        let y = if limit <= largest { y - 14 } else { y + 14 };
        text(&body, &name, (right - 10, y), Side::Right, SMALL, palette::LIMIT)?;
    }
    let at = |p: &PricedPoint| (time.of(p.step_time_s.0), memory.of(p.peak_memory_bytes.as_f64()));
    let front: Vec<(f64, f64)> = front(&points).into_iter().filter(seen).map(at).collect();
    // A staircase: each point is the least memory from its time on.
    let corner = |pair: &[(f64, f64)]| [pair[0], (pair[1].0, pair[0].1)];
    let stairs = front.windows(2).flat_map(corner).chain(front.last().copied());
    chart.draw_series(LineSeries::new(stairs, color(PricedOutcome::Simulated).stroke_width(2)))?;

    let mut hotspots = Vec::new();
    for point in points.iter().skip(1).filter(seen).rev() {
        let (spot, ink) = (at(point), color(point.outcome));
        match point.outcome {
            PricedOutcome::Simulated => {
                chart.draw_series([Circle::new(spot, 5, ink.filled())])?;
            }
            PricedOutcome::OutOfMemory => {
                chart.draw_series([Cross::new(spot, 5, ink.stroke_width(2))])?;
            }
            PricedOutcome::Bounded => {
                chart.draw_series([Circle::new(spot, 4, ink.stroke_width(2))])?;
            }
        }
        hotspots.push(around(chart.backend_coord(&spot), says(point)));
    }
    if let Some(choice) = points.first().filter(seen) {
        let spot = at(choice);
        chart.draw_series([Circle::new(spot, 10, palette::CHOICE.filled())])?;
        chart.draw_series([Circle::new(spot, 10, palette::INK.stroke_width(2))])?;
        hotspots.push(around(chart.backend_coord(&spot), says(choice)));
    }
    Ok(hotspots)
}

fn color(outcome: PricedOutcome) -> RGBColor {
    match outcome {
        PricedOutcome::Simulated => palette::SERIES[0],
        PricedOutcome::OutOfMemory => palette::LIMIT,
        PricedOutcome::Bounded => palette::MUTED,
    }
}

fn around((x, y): (i32, i32), says: String) -> Hotspot {
    Hotspot { corners: ((x - 7, y - 7), (x + 7, y + 7)), says }
}

fn says(point: &PricedPoint) -> String {
    let PricedPoint { label, step_time_s, peak_memory_bytes, .. } = point;
    match point.outcome {
        PricedOutcome::Simulated => format!("{label}: {step_time_s}, {peak_memory_bytes}"),
        PricedOutcome::OutOfMemory => {
            format!("{label}: does not fit, {peak_memory_bytes} or more, {step_time_s} or more")
        }
        PricedOutcome::Bounded => {
            format!("{label}: not simulated, {step_time_s} or more, {peak_memory_bytes} or more")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_has_no_point_that_another_beats() {
        let point = |time, memory, outcome| PricedPoint {
            label: format!("{time}"),
            outcome,
            step_time_s: Seconds(time),
            peak_memory_bytes: Bytes(memory),
        };
        let fits = PricedOutcome::Simulated;
        let all = [
            point(3.0, 30, fits),
            point(1.0, 50, fits),
            point(2.0, 60, fits),
            point(1.0, 40, fits),
            point(0.5, 10, PricedOutcome::Bounded),
            point(4.0, 30, fits),
        ];
        let labels: Vec<&str> = front(&all).into_iter().map(|point| point.label.as_str()).collect();
        assert_eq!(labels, ["1", "3"]);
        assert_eq!(front(&all)[0].peak_memory_bytes, Bytes(40));
    }
}
