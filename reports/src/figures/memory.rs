//! Peak memory of each pipeline rank's device, with the device's limit if it is close enough.

use super::canvas::{Area, BAR_PITCH, Bars, Drawn, Row, Scale, Side, legend, text};
use super::palette;
use super::timeline::pipeline_rank;
use crate::ReportInput;
use crate::words::{percent, share};
use autodist_spec::{Bytes, MemoryBreakdown};
use plotters::prelude::*;
use std::collections::BTreeMap;

const SHOWN: usize = 16;
/// A limit further away than this would squeeze the bars; it is printed as text.
const LIMIT_IN_SIGHT: f64 = 2.5;

fn ranks<'a>(input: &ReportInput<'a>) -> Vec<(String, &'a MemoryBreakdown)> {
    let estimate = &input.plan.estimate;
    if estimate.stages.is_empty() {
        return vec![("fullest device".to_owned(), &estimate.memory)];
    }
    let label = |rank: usize| format!("pipeline rank {rank}");
    estimate.stages.iter().take(SHOWN).enumerate().map(|(rank, stage)| (label(rank), &stage.memory)).collect()
}

pub(super) fn height(input: &ReportInput<'_>) -> u32 {
    230 + BAR_PITCH * (ranks(input).len().max(3) as u32)
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let ranks = ranks(input);
    let present = |index: usize| ranks.iter().any(|(_, memory)| memory.parts()[index].1 > Bytes::ZERO);
    let mut entries: Vec<(String, RGBColor)> = input
        .plan
        .estimate
        .memory
        .parts()
        .iter()
        .enumerate()
        .filter(|(index, _)| present(*index))
        .map(|(index, (name, _))| ((*name).to_owned(), palette::MEMORY[index]))
        .collect();
    let measured = measured(input);
    if !measured.is_empty() {
        entries.push(("stroke: measured".to_owned(), palette::INK));
    }
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let predicted = ranks.iter().map(|(_, memory)| memory.total());
    let fullest = predicted.chain(measured.values().copied()).max().unwrap_or_default();
    let scale = Scale::bytes(fullest);
    let row_of = |(rank, (label, memory)): (usize, &(String, &MemoryBreakdown))| {
        row(label, memory, measured.get(&(rank as u32)).copied(), scale)
    };
    let rows = ranks.iter().enumerate().map(row_of).collect();
    let description = format!("peak memory ({})", scale.unit);
    let mut bars = Bars { rows, description, limit: None, totals: "peak of the rank" };
    let Some(device) =
        input.plan.cluster.nodes.iter().map(|group| &group.device).min_by_key(|d| d.memory_bytes)
    else {
        return bars.draw(&body);
    };
    if device.memory_bytes.as_f64() <= LIMIT_IN_SIGHT * fullest.as_f64() {
        bars.limit =
            Some((scale.of(device.memory_bytes.as_f64()), format!("device memory {}", device.memory_bytes)));
        return bars.draw(&body);
    }
    let note = format!("device memory {}: far to the right of this figure", device.memory_bytes);
    text(&body, &note, (330, 14), Side::Left, super::canvas::SMALL, palette::MUTED)?;
    bars.draw(&body)
}

/// The highest measured peak of each pipeline rank, if the plan itself was run.
fn measured(input: &ReportInput<'_>) -> BTreeMap<u32, Bytes> {
    let mut peaks = BTreeMap::new();
    let Some(run) = input.own_run() else { return peaks };
    for rank in &run.ranks {
        if let Some(stage) = pipeline_rank(run, rank.rank) {
            let peak: &mut Bytes = peaks.entry(stage).or_default();
            *peak = (*peak).max(rank.peak_memory_bytes);
        }
    }
    peaks
}

fn row(label: &str, memory: &MemoryBreakdown, measured: Option<Bytes>, scale: Scale) -> Row {
    let total = memory.total();
    let parts = memory.parts().into_iter().zip(palette::MEMORY).map(|((name, size), color)| {
        let says = format!("{label}: {name} {size}, {}", percent(share(size.as_f64(), total.as_f64())));
        (scale.of(size.as_f64()), color, says)
    });
    Row {
        label: label.to_owned(),
        total: match measured {
            Some(peak) => vec![format!("predicted {total}"), format!("measured {peak}")],
            None => vec![total.to_string()],
        },
        parts: parts.collect(),
        spread: 0.0,
        measured: measured.map(|peak| scale.of(peak.as_f64())),
    }
}
