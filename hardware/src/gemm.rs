//! Time of a GEMM: waves of tiles or bytes from memory, whichever is longer, and a correction.

use crate::tables::Corrections;

/// Tile shapes (rows by columns) of which libraries choose one; one streaming multiprocessor computes one
/// tile at a time.
pub(crate) const TILES: [(f64, f64); 4] = [(128.0, 256.0), (128.0, 128.0), (128.0, 64.0), (64.0, 64.0)];

/// Figures from the data sheet that a GEMM with operands of one type depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Chip {
    pub processors: f64,
    /// Peak FLOP/s of all streaming multiprocessors.
    pub peak: f64,
    /// FLOP/s of one streaming multiprocessor to which the efficiencies apply: its peak, scaled if the device
    /// uses the efficiencies of another one.
    pub processor_rate: f64,
    pub memory_rate: f64,
    pub operand_bytes: f64,
    pub result_bytes: f64,
}

/// Fitted parameters in addition to the data sheet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GemmBase {
    /// Seconds per kernel.
    pub launch: f64,
    /// Seconds per wave of tiles.
    pub wave: f64,
    /// Fraction of the memory bandwidth.
    pub memory: f64,
    /// Fraction of an incomplete wave that is lost: 1 all of it, 0 nothing.
    pub quantisation: f64,
    /// Fraction of the FLOP/s of one streaming multiprocessor, for each of [`TILES`].
    pub tiles: [f64; 4],
}

/// Data sheet and fitted parameters combined, precomputed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GemmTime {
    launch: f64,
    wave: f64,
    quantisation: f64,
    /// Seconds of one tile per element of `k`.
    tiles: [f64; 4],
    per_processor: f64,
    operand: f64,
    result: f64,
    /// Seconds per FLOP with all streaming multiprocessors at their peak.
    least: f64,
}

/// `f64::ceil` for non-negative values; `f64::ceil` is a function call on targets without an instruction for
/// it.
#[inline]
fn ceil(value: f64) -> f64 {
    let whole = value as u64 as f64;
    if whole < value { whole + 1.0 } else { whole }
}

impl GemmTime {
    pub fn new(base: &GemmBase, chip: &Chip) -> Self {
        let mut tiles = [0.0; 4];
        for ((time, (rows, columns)), efficiency) in tiles.iter_mut().zip(TILES).zip(base.tiles) {
            *time = 2.0 * rows * columns / (chip.processor_rate * efficiency);
        }
        Self {
            launch: base.launch,
            wave: base.wave,
            quantisation: base.quantisation,
            tiles,
            per_processor: 1.0 / chip.processors,
            operand: chip.operand_bytes / (chip.memory_rate * base.memory),
            result: chip.result_bytes / (chip.memory_rate * base.memory),
            least: 1.0 / chip.peak,
        }
    }

    /// Seconds of `batch` GEMMs `[m, k]` by `[k, n]` in one kernel.
    ///
    /// Each tile shape takes `waves * (2 * rows * columns * k / rate + wave)`; the library takes the fastest
    /// of them. Memory traffic overlaps with the arithmetic (combined by a norm of order 4).
    #[inline]
    pub fn seconds(&self, batch: f64, m: f64, n: f64, k: f64) -> f64 {
        let mut arithmetic = f64::INFINITY;
        for ((rows, columns), tile) in TILES.into_iter().zip(self.tiles) {
            let tiles = batch * ceil(m * (1.0 / rows)) * ceil(n * (1.0 / columns));
            let share = tiles * self.per_processor;
            let waves = self.quantisation * ceil(share) + (1.0 - self.quantisation) * share.max(1.0);
            arithmetic = arithmetic.min(waves * (tile * k + self.wave));
        }
        let memory = batch * (self.operand * (m + n) * k + self.result * m * n);
        let (a, b) = (arithmetic * arithmetic, memory * memory);
        (a * a + b * b).sqrt().sqrt() + self.launch
    }
}

/// GEMMs of one type on one device.
#[derive(Debug, Clone)]
pub(crate) struct GemmModel {
    pub time: GemmTime,
    pub corrections: Corrections,
}

impl GemmModel {
    /// Seconds, never faster than the peak; and whether all sizes are points of the tables.
    #[inline]
    pub fn seconds(&self, batch: f64, m: f64, n: f64, k: f64) -> (f64, bool) {
        let (correction, on_points) = self.corrections.at([(batch * m).ln(), n.ln(), k.ln()]);
        let time = self.time.seconds(batch, m, n, k) * correction.exp();
        (time.max(2.0 * batch * m * n * k * self.time.least), on_points)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_whole_waves_takes_their_arithmetic() {
        let chip = Chip {
            processors: 10.0,
            peak: 1e13,
            processor_rate: 1e12,
            memory_rate: 1e15,
            operand_bytes: 2.0,
            result_bytes: 2.0,
        };
        let base = GemmBase {
            launch: 1e-6,
            wave: 0.0,
            memory: 1.0,
            quantisation: 1.0,
            tiles: [0.5, 1e-3, 1e-3, 1e-3],
        };
        let time = GemmTime::new(&base, &chip);
        // 30 tiles of 128 x 256 on 10 streaming multiprocessors: three waves at half the peak.
        let expected = 2.0 * 1280.0 * 768.0 * 4096.0 / 5e12 + 1e-6;
        assert!((time.seconds(1.0, 1280.0, 768.0, 4096.0) / expected - 1.0).abs() < 1e-6);
        // One more row starts another wave.
        assert!(time.seconds(1.0, 1281.0, 768.0, 4096.0) > 1.3 * expected);
    }
}
