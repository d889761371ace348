//! Errors of a fit on held-out measurements.

use super::attention::shape;
use super::rows::{AttentionRow, CollectiveRow, Measurements};
use super::{draw, fit};
use crate::{AttentionKernel, DeviceModel, Interconnect, KernelParameters};
use autodist_spec::Bytes;
use std::collections::BTreeMap;

/// Relative errors of predictions, absolute values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitErrors {
    pub count: usize,
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// Median of signed errors: positive if predicted times are too long.
    pub bias: f64,
}

/// Errors of one kind of kernel on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorLine {
    /// `gemm bf16`, `attention 128` or `all_reduce`.
    pub kernel: String,
    pub device: String,
    pub errors: FitErrors,
}

impl FitErrors {
    /// Statistics of pairs of predicted and measured times; `None` without any.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let mut signed: Vec<f64> =
            pairs.iter().map(|(predicted, measured)| predicted / measured - 1.0).collect();
        signed.sort_by(f64::total_cmp);
        let mut sizes: Vec<f64> = signed.iter().map(|error| error.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        let count = sizes.len();
        (count > 0).then(|| Self {
            count,
            median: sizes[count / 2],
            p90: sizes[count * 9 / 10],
            bias: signed[count / 2],
        })
    }
}

/// The measurements that are held out of a fit to evaluate it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LeftOut {
    /// A random fraction (0 to 1): of the pairs `(n, k)` of GEMMs, of the triples of heads, key heads and
    /// head size of attention, and of the pairs of devices and bytes of each collective.
    Part { part: f64, seed: u64 },
    /// All GEMMs with an `n` of 1536, 3584, 5120 or 10240: tests the accuracy for widths between the tables'
    /// points.
    Widths,
}

const WIDTHS: [u64; 4] = [1536, 3584, 5120, 10240];

impl LeftOut {
    fn gemm(self, device: usize, n: u64, k: u64) -> bool {
        match self {
            Self::Part { part, seed } => draw(seed, &[device as u64, n, k]) < part,
            Self::Widths => WIDTHS.contains(&n),
        }
    }

    fn other(self, numbers: &[u64]) -> bool {
        matches!(self, Self::Part { part, seed } if draw(seed, numbers) < part)
    }
}

/// The hold-out of the shipped parameters, of which the data in this crate's tests is a sample.
pub const RESERVED: LeftOut = LeftOut::Part { part: 0.03, seed: 2026 };

impl Measurements {
    /// The fitted and the held-out measurements.
    pub fn split(&self, left_out: LeftOut) -> (Self, Self) {
        let attention = |device: usize, row: &AttentionRow| {
            left_out.other(&[device as u64, row.heads, row.kv_heads, row.head_dim])
        };
        let collective = |device: usize, row: &CollectiveRow| {
            left_out.other(&[device as u64, row.kind as u64, u64::from(row.devices), row.bytes])
        };
        let part = |left: bool| {
            self.filtered(
                |device, row| left_out.gemm(device, row.n, row.k) == left,
                |device, row| attention(device, row) == left,
                |device, row| collective(device, row) == left,
            )
        };
        (part(false), part(true))
    }
}

/// Fits the rest and evaluates the held-out part: GEMMs with no size below 512, all of attention, collectives
/// on floats and bytes of at least 1 MiB.
pub fn check(measurements: &Measurements, left_out: LeftOut) -> (KernelParameters, Vec<ErrorLine>) {
    let (kept, left) = measurements.split(left_out);
    let parameters = fit(&kept);
    let judged = left.filtered(
        |_, row| row.m.min(row.n).min(row.k) >= 512,
        |_, _| true,
        |_, row| row.bytes >= 1 << 20,
    );
    let lines = compare(&judged, &parameters);
    (parameters, lines)
}

/// Evaluates the predictions for each device from the parameters of the other devices only.
pub fn check_devices(measurements: &Measurements, parameters: &KernelParameters) -> Vec<ErrorLine> {
    let mut lines = Vec::new();
    for (at, figures) in measurements.devices.iter().enumerate() {
        let others = parameters.without(&figures.name);
        let own = measurements.filtered(
            |device, row| device == at && row.m.min(row.n).min(row.k) >= 512,
            |device, _| device == at,
            |device, row| device == at && row.bytes >= 1 << 20,
        );
        lines.extend(compare(&own, &others));
    }
    lines
}

/// Errors of predictions with these parameters, by device and kind of kernel.
pub fn compare(judged: &Measurements, parameters: &KernelParameters) -> Vec<ErrorLine> {
    let mut pairs: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for (at, figures) in judged.devices.iter().enumerate() {
        let model = DeviceModel::new(figures, parameters).ok();
        let links = Interconnect::of_device(figures, parameters);
        let mut add = |kernel: String, predicted: f64, measured: f64| {
            pairs.entry((kernel, figures.name.clone())).or_default().push((predicted, measured));
        };
        for (&(device, dtype), rows) in &judged.gemm {
            for row in rows.iter().filter(|_| device == at) {
                let Some(model) = &model else { continue };
                add(format!("gemm {dtype}"), model.gemm(dtype, row.m, row.n, row.k).time.0, row.seconds);
            }
        }
        for (&(device, dim), rows) in &judged.attention {
            for row in rows.iter().filter(|_| device == at) {
                let Some(model) = &model else { continue };
                let price = model.attention_forward(&shape(row), AttentionKernel::Flash);
                add(format!("attention {dim}"), price.time.0, row.seconds);
                add("attention".to_owned(), price.time.0, row.seconds);
            }
        }
        for (&(device, kind, element), rows) in &judged.collective {
            for row in rows.iter().filter(|_| device == at) {
                let price = links.inside(kind, element, Bytes(row.bytes), row.devices);
                add(kind.key().to_owned(), price.time.0, row.seconds);
                add("collectives".to_owned(), price.time.0, row.seconds);
            }
        }
    }
    let lines = pairs.into_iter().filter_map(|((kernel, device), pairs)| {
        FitErrors::of(&pairs).map(|errors| ErrorLine { kernel, device, errors })
    });
    lines.collect()
}
