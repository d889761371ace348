//! How fast is this core just now? A fixed piece of arithmetic, timed beside every step: on a machine that others
//! share, it tells a slow plan from a slow moment.

use autodist_compute::{Backend, Cpu, Product, Region, RegionMut};
use std::time::Instant;

const ROWS: usize = 512;
const INNER: usize = 128;
const COLUMNS: usize = 352;
/// Together larger than a core's own cache, as a layer's data is.
const PRODUCTS: usize = 8;

type Buffer = <Cpu<f32> as Backend>::Buffer;

/// Matrix products of fixed sizes over more memory than a core's own cache holds.
pub struct Reference {
    device: Cpu<f32>,
    operands: Vec<(Buffer, Buffer, Buffer)>,
}

impl Reference {
    pub fn new() -> Self {
        let device = Cpu::<f32>::new();
        let operands = (0..PRODUCTS)
            .map(|_| {
                (device.zeros(ROWS * INNER), device.zeros(INNER * COLUMNS), device.zeros(ROWS * COLUMNS))
            })
            .collect();
        Self { device, operands }
    }

    /// Seconds that the arithmetic takes now.
    pub fn seconds(&mut self) -> f64 {
        let start = Instant::now();
        for (a, b, c) in &mut self.operands {
            let (a, b) = (Region::start(a).rows(INNER), Region::start(b).rows(COLUMNS));
            let c = RegionMut::start(c).rows(COLUMNS);
            self.device.matmul(Product::new(ROWS, COLUMNS, INNER), 1.0, a, b, 0.0, c);
        }
        start.elapsed().as_secs_f64()
    }
}

impl Default for Reference {
    fn default() -> Self {
        Self::new()
    }
}
