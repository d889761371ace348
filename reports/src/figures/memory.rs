//! What each pipeline rank's device holds at its peak, with the device's limit where it is near enough to matter.

use super::canvas::{Area, BAR_PITCH, Bars, Drawn, Row, Scale, Side, legend, text};
use super::palette;
use crate::ReportInput;
use crate::words::{percent, share};
use autodist_spec::{Bytes, MemoryBreakdown};
use plotters::prelude::*;

const SHOWN: usize = 16;
/// A limit further away than this would squeeze the bars; it is told in words.
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
    let entries: Vec<(String, RGBColor)> = input.plan.estimate.memory.parts().iter().enumerate()
        .filter(|(index, _)| present(*index))
        .map(|(index, (name, _))| ((*name).to_owned(), palette::MEMORY[index]))
        .collect();
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let fullest = ranks.iter().map(|(_, memory)| memory.total()).max().unwrap_or_default();
    let scale = Scale::bytes(fullest);
    let rows = ranks.iter().map(|(label, memory)| row(label, memory, scale)).collect();
    let description = format!("peak memory ({})", scale.unit);
    let mut bars = Bars { rows, description, limit: None, totals: "total" };
    let Some(device) = input.plan.cluster.nodes.iter().map(|group| &group.device).min_by_key(|d| d.memory_bytes) else {
        return bars.draw(&body);
    };
    if device.memory_bytes.as_f64() <= LIMIT_IN_SIGHT * fullest.as_f64() {
        bars.limit = Some((scale.of(device.memory_bytes.as_f64()), format!("device memory {}", device.memory_bytes)));
        return bars.draw(&body);
    }
    let note = format!("device memory {}: far to the right of this figure", device.memory_bytes);
    text(&body, &note, (316, 14), Side::Left, super::canvas::SMALL, palette::MUTED)?;
    bars.draw(&body)
}

fn row(label: &str, memory: &MemoryBreakdown, scale: Scale) -> Row {
    let total = memory.total();
    let parts = memory.parts().into_iter().zip(palette::MEMORY).map(|((name, size), color)| {
        let says = format!("{label}: {name} {size}, {}", percent(share(size.as_f64(), total.as_f64())));
        (scale.of(size.as_f64()), color, says)
    });
    Row { label: label.to_owned(), total: total.to_string(), parts: parts.collect(), spread: 0.0 }
}
