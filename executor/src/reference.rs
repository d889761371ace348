//! The reference benchmark: GEMMs of fixed sizes, timed with every step. On a shared machine, it
//! distinguishes a slow plan from a temporarily slow machine.

use autodist_compute::{Backend, Cpu, GemmShape, Region, RegionMut};
use std::time::Instant;

const ROWS: usize = 512;
const INNER: usize = 128;
const COLUMNS: usize = 352;
/// Number of GEMMs. Together they are larger than a core's own cache, like a layer's data.
const GEMMS: usize = 8;

type Buffer = <Cpu<f32> as Backend>::Buffer;

/// GEMMs of fixed sizes over more memory than a core's own cache holds.
pub struct Reference {
    device: Cpu<f32>,
    operands: Vec<(Buffer, Buffer, Buffer)>,
}

impl Reference {
    /// FLOPs of the benchmark.
    pub const FLOPS: f64 = (2 * GEMMS * ROWS * INNER * COLUMNS) as f64;

    pub fn new() -> Self {
        let device = Cpu::<f32>::new();
        let operands = (0..GEMMS)
            .map(|_| {
                (device.zeros(ROWS * INNER), device.zeros(INNER * COLUMNS), device.zeros(ROWS * COLUMNS))
            })
            .collect();
        Self { device, operands }
    }

    /// Time of the benchmark in seconds, from its median GEMM, because interruptions of some GEMMs do not
    /// reflect the core's speed.
    pub fn seconds(&mut self) -> f64 {
        let mut gemms = [0.0; GEMMS];
        for ((a, b, c), seconds) in self.operands.iter_mut().zip(&mut gemms) {
            let (a, b) = (Region::start(a).rows(INNER), Region::start(b).rows(COLUMNS));
            let c = RegionMut::start(c).rows(COLUMNS);
            let start = Instant::now();
            self.device.matmul(GemmShape::new(ROWS, COLUMNS, INNER), 1.0, a, b, 0.0, c);
            *seconds = start.elapsed().as_secs_f64();
        }
        GEMMS as f64 * median(gemms)
    }
}

/// The reading by which a step is corrected: the faster one of before and after. An interruption can only
/// make the benchmark slower, and a slow benchmark would make the step seem fast.
pub(crate) fn beside(before: f64, after: f64) -> f64 {
    before.min(after)
}

fn median(mut seconds: [f64; GEMMS]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    0.5 * (seconds[(GEMMS - 1) / 2] + seconds[GEMMS / 2])
}

impl Default for Reference {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_reference_tells_the_speed_all_the_same() {
        let mut gemms = [1.0; GEMMS];
        gemms[1] = 50.0;
        gemms[6] = 7.0;
        assert_eq!(median(gemms), 1.0);
        assert_eq!(beside(7.0, 1.0), 1.0);
        assert_eq!(beside(1.0, 7.0), 1.0);
    }
}
