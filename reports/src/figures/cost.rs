//! The step time of the best plan and its runners-up, as stacked parts.

use super::canvas::{Area, BAR_PITCH, Bars, Drawn, Row, Scale, legend};
use super::palette;
use crate::ReportInput;
use crate::words::{percent, share, with_spread};
use autodist_spec::strategy::label;
use autodist_spec::{Estimate, Seconds};
use plotters::prelude::*;

const SHOWN: usize = 10;

/// Label and estimate of each drawn plan, best first.
fn plans<'a>(input: &ReportInput<'a>) -> Vec<(String, &'a Estimate)> {
    let plan = input.plan;
    let others = plan.alternatives.iter();
    std::iter::once((label(&plan.strategy, &plan.stages), &plan.estimate))
        .chain(others.map(|other| (label(&other.strategy, &other.stages), &other.estimate)))
        .take(SHOWN)
        .collect()
}

pub(super) fn height(input: &ReportInput<'_>) -> u32 {
    220 + BAR_PITCH * (plans(input).len().max(3) as u32)
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let plans = plans(input);
    let present = |index: usize| plans.iter().any(|(_, estimate)| estimate.cost.parts()[index].1.0 > 0.0);
    let entries: Vec<(String, RGBColor)> = input
        .plan
        .estimate
        .cost
        .parts()
        .iter()
        .enumerate()
        .filter(|(index, _)| present(*index))
        .map(|(index, (name, _))| ((*name).to_owned(), palette::COST[index]))
        .collect();
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let largest = plans.iter().map(|(_, e)| e.step_time_s).fold(Seconds::ZERO, Seconds::max);
    let scale = Scale::seconds(largest);
    let rows = plans
        .iter()
        .enumerate()
        .map(|(index, (label, estimate))| row(index, label, estimate, scale))
        .collect();
    let description = format!("step time ({})", scale.unit);
    Bars { rows, description, limit: None, totals: "total ± spread" }.draw(&body)
}

fn row(index: usize, label: &str, estimate: &Estimate, scale: Scale) -> Row {
    let total = estimate.cost.total();
    let parts = estimate.cost.parts().into_iter().zip(palette::COST).map(|((name, time), color)| {
        let says = format!("{label}: {name} {time}, {}", percent(share(time.0, total.0)));
        (scale.of(time.0), color, says)
    });
    Row {
        label: format!("{}  {label}", index + 1),
        total: vec![with_spread(estimate.step_time_s, estimate.step_time_spread_s)],
        parts: parts.collect(),
        spread: scale.of(estimate.step_time_spread_s.0),
        measured: None,
    }
}
