//! The compression error of a codec for a gradient of independent normal entries, from which theory predicts
//! how much training slows down. The error on real gradients is smaller for some codecs (gradients have low
//! rank, and few large entries) and larger for others.

use crate::Tensor;
use crate::layout::Layout;
use autodist_spec::Codec;

/// How a compressed gradient differs from the exact one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distortion {
    /// Exact on average; `E|Q(x) - x|² = omega |x|²`.
    Unbiased { omega: f64 },
    /// `E|C(x) - x|² = (1 - delta) |x|²`, and the error is added to later steps.
    Contraction { delta: f64 },
}

/// The distortion of a codec on a bucket of `elements` that holds `tensors`.
#[must_use]
pub fn distortion(codec: Codec, tensors: &[Tensor], elements: usize) -> Distortion {
    let unbiased = |omega| Distortion::Unbiased { omega };
    match codec {
        Codec::None => unbiased(0.0),
        // The error of rounding the mantissa is uniform, up to half of its last bit.
        Codec::Fp16 => unbiased(2.0_f64.powi(-22) / 12.0),
        Codec::Bf16 => unbiased(2.0_f64.powi(-16) / 12.0),
        Codec::Int8 { block } => {
            // The largest number of a block is 127 rounding steps; values are rounded twice.
            let step = largest_of(f64::from(block)) / 127.0;
            unbiased(2.0 * step * step / 12.0)
        }
        // 1610.02132, lemma 3.1.
        Codec::Qsgd { levels, bucket } => {
            let (levels, bucket) = (f64::from(levels), f64::from(bucket));
            unbiased((bucket / (levels * levels)).min(bucket.sqrt() / levels))
        }
        // Entries are clipped at 2.5 standard deviations, which is then the scale (1705.07878, section 3.3).
        Codec::TernGrad => unbiased(2.5 * (2.0 / std::f64::consts::PI).sqrt() - 1.0),
        // |x - s sign(x)|² with s the root mean square.
        Codec::OneBit | Codec::OneBitAdam { .. } => {
            Distortion::Contraction { delta: 2.0 * (2.0 / std::f64::consts::PI).sqrt() - 1.0 }
        }
        Codec::TopK { per_mille } | Codec::Dgc { per_mille, .. } => {
            Distortion::Contraction { delta: energy_of_largest(f64::from(per_mille) / 1000.0) }
        }
        Codec::PowerSgd { rank, .. } => {
            let layout = Layout::of(tensors, elements, rank, false);
            // The fraction of the matrix's degrees of freedom that both factors have.
            low_rank(&layout, elements, |rows, columns, rank| rank * (rows + columns) / (rows * columns))
        }
        Codec::PowerSgdHalf { rank, .. } => {
            let layout = Layout::of(tensors, elements, rank, true);
            // Only one factor changes.
            low_rank(&layout, elements, |rows, columns, rank| rank / rows.min(columns))
        }
    }
}

/// The distortion of low-rank codecs; parameters that are sent uncompressed have no distortion.
fn low_rank(layout: &Layout, elements: usize, part: impl Fn(f64, f64, f64) -> f64) -> Distortion {
    let kept: f64 = layout
        .matrices
        .iter()
        .map(|m| {
            let (rows, columns, rank) = (m.rows as f64, m.columns as f64, m.rank as f64);
            rows * columns * part(rows, columns, rank).min(1.0)
        })
        .sum();
    let whole = elements.max(1) as f64;
    Distortion::Contraction { delta: ((kept + layout.dense_elements() as f64) / whole).clamp(1e-6, 1.0) }
}

/// The magnitude, in standard deviations, that one of `count` normal values is expected to exceed.
fn largest_of(count: f64) -> f64 {
    quantile(1.0 / count.max(1.0))
}

/// Fraction of the squared norm in the largest `part` of the entries: the integral of x² over both tails.
fn energy_of_largest(part: f64) -> f64 {
    let edge = quantile(part);
    (part + 2.0 * edge * (-edge * edge / 2.0).exp() / std::f64::consts::TAU.sqrt()).min(1.0)
}

/// The magnitude that a normal value exceeds with probability `part`, by halving.
fn quantile(part: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if beyond(middle) > part { low = middle } else { high = middle }
    }
    low
}

/// Probability that a normal value exceeds `edge` in magnitude (Abramowitz and Stegun, 7.1.26; to 1.5e-7).
fn beyond(edge: f64) -> f64 {
    let x = edge / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    series.iter().rev().fold(0.0, |sum, a| (sum + a) * t) * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distortions_are_those_of_normal_entries() {
        let delta = |codec| match distortion(codec, &[], 1000) {
            Distortion::Contraction { delta } => delta,
            Distortion::Unbiased { omega } => panic!("{omega}"),
        };
        // By numerical integration: the top 1 % of normal entries hold 8.46 % of their squares, the top half
        // 92.8 %.
        assert!((delta(Codec::TopK { per_mille: 10 }) - 0.0846).abs() < 1e-3);
        assert!((delta(Codec::TopK { per_mille: 500 }) - 0.928).abs() < 1e-3);
        assert!((delta(Codec::TopK { per_mille: 1000 }) - 1.0).abs() < 1e-6);
        assert!((delta(Codec::OneBit) - 0.5958).abs() < 1e-3);
        // No tensor here is a matrix, so all are sent uncompressed.
        assert_eq!(delta(Codec::PowerSgd { rank: 4, start_step: 0 }), 1.0);
        let square = [Tensor { offset: 0, rows: 100, columns: 100 }];
        let Distortion::Contraction { delta } =
            distortion(Codec::PowerSgd { rank: 4, start_step: 0 }, &square, 10_000)
        else {
            panic!("low rank is a contraction")
        };
        assert!((delta - 0.08).abs() < 1e-12);
    }
}
