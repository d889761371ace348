//! Loss over steps, one line per run. Runs of exact plans coincide, so earlier lines are drawn wider than
//! later ones. A run of several rounds has a thin line for each round but the first: they train the same
//! steps again.

use super::canvas::{Area, Drawn, legend, mesh, plot, tick};
use super::palette;
use crate::ReportInput;
use autodist_spec::{RunRecord, run::StepRecord};
use plotters::prelude::*;

const SHOWN: usize = 8;

/// A line's points, whose steps increase.
type Line = Vec<(f64, f64)>;

/// One line for each round of training with data.
fn lines(run: &RunRecord) -> Vec<Line> {
    let line = |round: &[StepRecord]| -> Line {
        round.iter().filter(|s| s.loss.is_finite()).map(|s| (f64::from(s.step), s.loss)).collect()
    };
    run.rounds().map(line).filter(|line| !line.is_empty()).collect()
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let shown: Vec<&RunRecord> = input.runs.iter().filter(|run| !lines(run).is_empty()).take(SHOWN).collect();
    let entries: Vec<(String, RGBColor)> =
        shown.iter().enumerate().map(|(i, run)| (run.label.clone(), palette::series(i))).collect();
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let all: Line = shown.iter().flat_map(|run| lines(run)).flatten().collect();
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (first, last) = bounds(&mut all.iter().map(|p| p.0));
    let (low, high) = bounds(&mut all.iter().map(|p| p.1));
    let room = (high - low).max(1e-3) * 0.06;
    let mut chart =
        plot(&body).build_cartesian_2d(first..last.max(first + 1.0), (low - room)..(high + room))?;
    mesh(&mut chart, "optimizer step", "cross-entropy (nats per token)", &tick, &tick)?;
    for (index, run) in shown.iter().enumerate() {
        let color = palette::series(index);
        let lines = lines(run);
        let (first, again) = lines.split_at(1.min(lines.len()));
        for line in again {
            chart.draw_series(LineSeries::new(line.iter().copied(), color.mix(0.5).stroke_width(1)))?;
        }
        let width = 2 + 3 * (shown.len() - 1 - index) as u32;
        for line in first {
            chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(width)))?;
        }
        // A line needs two points.
        let alone = lines.iter().filter(|line| line.len() == 1).flatten();
        chart.draw_series(alone.map(|point| Circle::new(*point, 2 + width, color.filled())))?;
    }
    Ok(Vec::new())
}
