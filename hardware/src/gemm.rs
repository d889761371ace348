//! How long a matrix product takes: waves of tiles or bytes from memory, whichever is longer, and a correction.

use crate::tables::Corrections;

/// Tiles of the result that one processor computes at a time, rows by columns: what libraries choose from.
pub(crate) const TILES: [(f64, f64); 4] = [(256.0, 128.0), (128.0, 128.0), (128.0, 256.0), (64.0, 128.0)];

/// What a product with operands of one type depends on that a data sheet says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Chip {
    pub processors: f64,
    /// Operations per second of one processor at its peak.
    pub processor_rate: f64,
    pub memory_rate: f64,
    pub operand_bytes: f64,
    pub result_bytes: f64,
}

/// What it depends on beyond that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GemmBase {
    /// Of the whole kernel, seconds.
    pub launch: f64,
    /// Of each wave of tiles, seconds.
    pub wave: f64,
    /// Part of the memory's rate.
    pub memory: f64,
    /// How much of a wave that is not full is lost: 1 all of it, 0 nothing.
    pub quantisation: f64,
    /// Part of a processor's rate, for each of [`TILES`].
    pub tiles: [f64; 4],
}

impl GemmBase {
    /// Seconds of `batch` products `[m, k]` by `[k, n]` in one kernel.
    ///
    /// Each tile shape takes `waves * (2 * rows * columns * k / rate + wave)`; the library takes about the best of
    /// them (a norm of order -8). Bytes move meanwhile (a norm of order 4 with the arithmetic).
    #[inline]
    pub fn seconds(&self, chip: &Chip, batch: f64, m: f64, n: f64, k: f64) -> f64 {
        let mut best = 0.0;
        for ((rows, columns), efficiency) in TILES.into_iter().zip(self.tiles) {
            let tiles = batch * (m / rows).ceil() * (n / columns).ceil();
            let share = tiles / chip.processors;
            let waves = self.quantisation * share.ceil() + (1.0 - self.quantisation) * share.max(1.0);
            let time = waves * (2.0 * rows * columns * k / (chip.processor_rate * efficiency) + self.wave);
            let rate = 1.0 / time;
            let squared = rate * rate;
            best += (squared * squared) * (squared * squared);
        }
        let arithmetic = 1.0 / best.sqrt().sqrt().sqrt();
        let bytes = batch * (chip.operand_bytes * (m + n) * k + chip.result_bytes * m * n);
        let memory = bytes / (chip.memory_rate * self.memory);
        let (a, b) = (arithmetic * arithmetic, memory * memory);
        (a * a + b * b).sqrt().sqrt() + self.launch
    }
}

/// Products of one type on one device.
#[derive(Debug, Clone)]
pub(crate) struct GemmModel {
    pub chip: Chip,
    pub base: GemmBase,
    pub corrections: Corrections,
}

impl GemmModel {
    /// Never faster than the processors' peak.
    #[inline]
    pub fn seconds(&self, batch: f64, m: f64, n: f64, k: f64) -> f64 {
        let correction = self.corrections.at([(batch * m).ln(), n.ln(), k.ln()]);
        let time = self.base.seconds(&self.chip, batch, m, n, k) * correction.exp();
        time.max(2.0 * batch * m * n * k / (self.chip.processors * self.chip.processor_rate))
    }
}
