//! Flash attention: first five parameters of the physical model, then the tables.

use super::backfit::{Residual, Smoothing, backfit, round};
use super::gemm::two_thirds;
use super::rows::{AttentionRow, Measurements};
use super::{draw, simplex};
use crate::attention::{Attention, AttentionBase, AttentionModel};
use crate::device::chip;
use crate::gemm::Chip;
use crate::parameters::{AttentionParameters, QUANTUM, Tables, rounded};
use crate::tables::{Axis, Corrections};
use autodist_spec::Precision;

const SMOOTHING: Smoothing = Smoothing { neighbours: 0.5, shrinkage: 2.0, outlier: 0.1, sweeps: 40 };

pub(super) fn fit_all(measurements: &Measurements) -> Vec<AttentionParameters> {
    let mut all = Vec::new();
    for (&(device, head_dim), rows) in measurements.attention.iter().filter(|(_, rows)| !rows.is_empty()) {
        let figures = &measurements.devices[device];
        let Some(chip) = chip(figures, Precision::Bf16) else { continue };
        let base = fit_base(&chip, rows);
        let corrections = fit_tables(&chip, &base, rows);
        let unseen = |row: &AttentionRow| draw(0, &[row.heads, row.kv_heads]) < 0.1;
        let (left, kept): (Vec<AttentionRow>, Vec<AttentionRow>) = rows.iter().partition(|row| unseen(row));
        let judged = if left.is_empty() { &kept } else { &left };
        let without = AttentionModel { chip, base, corrections: fit_tables(&chip, &base, &kept) };
        let spread =
            two_thirds(judged.iter().map(|row| (without.seconds(&shape(row)) / row.seconds).ln().abs()));
        all.push(AttentionParameters {
            device: figures.name.clone(),
            head_dim,
            spread: rounded(spread),
            launch_s: base.launch,
            tile_s: base.tile,
            rate: base.rate,
            queries: base.queries,
            keys: base.keys,
            tables: Tables(corrections),
        });
    }
    all
}

pub(super) fn shape(row: &AttentionRow) -> Attention {
    Attention {
        batch: row.batch,
        sequence: row.sequence,
        keys: row.sequence,
        heads: row.heads,
        kv_heads: row.kv_heads,
        head_dim: row.head_dim,
        causal: true,
    }
}

fn unpack(free: &[f64]) -> AttentionBase {
    let part = |free: f64| rounded(1.0 / (1.0 + (-free).exp()));
    AttentionBase {
        launch: rounded(free[0].exp() * 1e-6),
        tile: rounded(free[1].exp() * 1e-6),
        rate: part(free[2]),
        queries: part(free[3]),
        keys: part(free[4]),
    }
}

fn fit_base(chip: &Chip, rows: &[AttentionRow]) -> AttentionBase {
    let start = [1.5, 0.0, 0.5, 0.0, -1.0];
    let cost = |free: &[f64]| {
        let base = unpack(free);
        let errors = rows.iter().map(|row| {
            let error = (base.seconds(chip, &shape(row)) / row.seconds).ln() / 0.1;
            (1.0 + error * error).sqrt() - 1.0
        });
        let pull: f64 = free.iter().zip(start).map(|(value, start)| (value - start).powi(2)).sum();
        errors.sum::<f64>() / rows.len() as f64 + 1e-3 * pull
    };
    unpack(&simplex::minimise(cost, &start, 3, 200))
}

/// Powers of two from the first at or below `least` to the first at or above `most`.
fn powers(least: f64, most: f64, step: f64) -> Vec<f64> {
    let first = (least.min(most).log2() / step).floor() as i32;
    let last = ((most.log2() / step).ceil() as i32).max(first + 1);
    (first..=last).map(|power| (f64::from(power) * step).exp2()).collect()
}

fn fit_tables(chip: &Chip, base: &AttentionBase, rows: &[AttentionRow]) -> Corrections {
    let ends = |size: usize| {
        let sizes = rows.iter().map(|row| shape(row).sizes()[size]);
        sizes.fold((f64::INFINITY, 1.0f64), |(least, most), size| (least.min(size), most.max(size)))
    };
    let even = |size: usize, step: f64| Axis::of(powers(ends(size).0, ends(size).1, step));
    let fine = [Axis::of(rows.iter().map(|row| row.sequence as f64)), even(1, 1.0), even(2, 1.0)];
    let coarse = [even(0, 1.0), even(1, 2.0), even(2, 2.0)];
    let mut tables = Corrections::zero(fine, coarse);
    let residuals: Vec<Residual> = rows
        .iter()
        .map(|row| {
            let shape = shape(row);
            let value = (row.seconds / base.seconds(chip, &shape)).ln();
            Residual { logs: shape.sizes().map(f64::ln), value }
        })
        .collect();
    backfit(&mut tables, &residuals, SMOOTHING);
    round(&mut tables, QUANTUM);
    tables
}
