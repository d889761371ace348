//! GEMMs: first eight parameters of the physical model, then the tables.

use super::backfit::{Residual, Smoothing, backfit, round};
use super::rows::{GemmRow, Measurements};
use super::{draw, simplex};
use crate::device::chip;
use crate::gemm::{Chip, GemmBase, GemmModel, GemmTime};
use crate::parameters::{GemmParameters, QUANTUM, Tables, rounded};
use crate::tables::{Axis, Corrections};
use autodist_spec::catalog::DeviceFigures;

/// Points of the table over all three sizes, as far as the rows cover them.
const COARSE: [&[f64]; 3] = [
    &[128.0, 256.0, 512.0, 1024.0, 1536.0, 2048.0, 3072.0, 4096.0, 8192.0, 32768.0],
    &[
        128.0, 256.0, 512.0, 768.0, 1024.0, 1536.0, 2048.0, 3072.0, 4096.0, 6144.0, 8192.0, 12288.0, 16384.0,
        65536.0,
    ],
    &[128.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0],
];

const SMOOTHING: Smoothing = Smoothing { neighbours: 0.1, shrinkage: 2.0, outlier: 0.1, sweeps: 40 };

/// Size of the random sample to which the physical model is fitted: enough for eight parameters.
const SAMPLE: usize = 3000;

pub(super) fn fit_all(measurements: &Measurements) -> Vec<GemmParameters> {
    let mut all = Vec::new();
    for (&(device, dtype), rows) in measurements.gemm.iter().filter(|(_, rows)| !rows.is_empty()) {
        let figures = &measurements.devices[device];
        let Some(chip) = chip(figures, dtype) else { continue };
        let base = fit_base(&chip, rows);
        let time = GemmTime::new(&base, &chip);
        let corrections = fit_tables(&time, rows);
        // Spreads come from fits without the evaluated rows: without some pairs of widths, or without a whole
        // width.
        let widths = Axis::of(rows.iter().map(|row| row.n as f64));
        let inner: Vec<f64> =
            widths.points().iter().skip(2).step_by(4).copied().take_while(|n| *n < 16384.0).collect();
        let spread = |unseen: &dyn Fn(&GemmRow) -> bool| {
            let (left, kept): (Vec<GemmRow>, Vec<GemmRow>) = rows.iter().partition(|row| unseen(row));
            let without = GemmModel { time, corrections: fit_tables(&time, &kept) };
            let judged = if left.is_empty() { &kept } else { &left };
            two_thirds(judged.iter().map(|row| {
                let [m, n, k] = sizes(row);
                (without.seconds(1.0, m, n, k).0 / row.seconds).ln().abs()
            }))
        };
        all.push(GemmParameters {
            device: figures.name.clone(),
            dtype,
            spread: rounded(spread(&|row| draw(0, &[row.n, row.k]) < 0.1)),
            spread_between: rounded(spread(&|row| inner.contains(&(row.n as f64)))),
            shortest_s: rows.iter().map(|row| row.seconds).fold(f64::INFINITY, f64::min),
            stream: rounded(stream(&chip, figures, rows)),
            launch_s: base.launch,
            wave_s: base.wave,
            memory: base.memory,
            quantisation: base.quantisation,
            tiles: base.tiles,
            tables: Tables(corrections),
        });
    }
    all
}

/// The bound that two thirds of the errors do not exceed.
pub(super) fn two_thirds(errors: impl Iterator<Item = f64>) -> f64 {
    let mut errors: Vec<f64> = errors.collect();
    errors.sort_by(f64::total_cmp);
    errors.get(errors.len() * 2 / 3).copied().unwrap_or(0.0)
}

fn sizes(row: &GemmRow) -> [f64; 3] {
    [row.m, row.n, row.k].map(|size| size as f64)
}

/// The fraction of the memory bandwidth that is the 90th percentile of the memory-bound GEMMs: their bytes
/// fill the L2 eight times, and moving them takes longer than their arithmetic.
fn stream(chip: &Chip, figures: &DeviceFigures, rows: &[GemmRow]) -> f64 {
    let l2 = figures.l2_bytes.map_or(0.0, |bytes| bytes.as_f64());
    let mut parts: Vec<f64> = rows
        .iter()
        .filter_map(|row| {
            let [m, n, k] = sizes(row);
            let bytes = chip.operand_bytes * (m + n) * k + chip.result_bytes * m * n;
            let memory = bytes / chip.memory_rate;
            let arithmetic = 2.0 * m * n * k / chip.peak;
            (bytes > 8.0 * l2 && memory > arithmetic).then_some(memory / row.seconds)
        })
        .collect();
    parts.sort_by(f64::total_cmp);
    parts.get(parts.len() * 9 / 10).copied().unwrap_or(0.8)
}

fn part(free: f64) -> f64 {
    1.0 / (1.0 + (-free).exp())
}

/// Efficiencies as fractions of the peaks, times in microseconds, both from unbounded parameters.
fn unpack(free: &[f64]) -> GemmBase {
    GemmBase {
        launch: rounded(free[0].exp() * 1e-6),
        wave: rounded(free[1].exp() * 1e-6),
        memory: rounded(part(free[2])),
        quantisation: rounded(part(free[3])),
        tiles: [4, 5, 6, 7].map(|at| rounded(part(free[at]))),
    }
}

/// Absolute logarithmic error, smoothed near zero, with a weak pull towards the start of the search.
fn fit_base(chip: &Chip, rows: &[GemmRow]) -> GemmBase {
    let every = (rows.len() / SAMPLE).max(1) as f64;
    let sample: Vec<&GemmRow> =
        rows.iter().filter(|row| draw(1, &[row.m, row.n, row.k]) * every < 1.0).collect();
    let start = [1.0, -1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0];
    let cost = |free: &[f64]| {
        let time = GemmTime::new(&unpack(free), chip);
        let errors = sample.iter().map(|row| {
            let [m, n, k] = sizes(row);
            let error = (time.seconds(1.0, m, n, k) / row.seconds).ln() / 0.1;
            (1.0 + error * error).sqrt() - 1.0
        });
        let pull: f64 = free.iter().zip(start).map(|(value, start)| (value - start).powi(2)).sum();
        errors.sum::<f64>() / sample.len() as f64 + 1e-3 * pull
    };
    unpack(&simplex::minimise(cost, &start, 3, 250))
}

fn fit_tables(time: &GemmTime, rows: &[GemmRow]) -> Corrections {
    let fine = [0, 1, 2].map(|size| Axis::of(rows.iter().map(|row| sizes(row)[size])));
    let coarse = [0, 1, 2].map(|size| {
        let points = fine[size].points();
        let within = COARSE[size].iter().filter(|point| points.contains(point));
        Axis::of(within.chain([&points[0], &points[points.len() - 1]]).copied())
    });
    let mut tables = Corrections::zero(fine, coarse);
    let residuals: Vec<Residual> = rows
        .iter()
        .map(|row| {
            let [m, n, k] = sizes(row);
            let value = (row.seconds / time.seconds(1.0, m, n, k)).ln();
            Residual { logs: [m.ln(), n.ln(), k.ln()], value }
        })
        .collect();
    backfit(&mut tables, &residuals, SMOOTHING);
    round(&mut tables, QUANTUM);
    tables
}
