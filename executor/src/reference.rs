//! How fast is this core just now? A fixed piece of arithmetic, timed beside every step: on a machine that others
//! share, it tells a slow plan from a slow moment.

use autodist_compute::{Backend, Cpu, Product, Region, RegionMut};
use std::time::Instant;

const SIZE: usize = 192;
const REPETITIONS: usize = 8;

/// Matrix products of a fixed size, which fit in a core's own cache.
pub struct Reference {
    device: Cpu<f32>,
    a: <Cpu<f32> as Backend>::Buffer,
    b: <Cpu<f32> as Backend>::Buffer,
    c: <Cpu<f32> as Backend>::Buffer,
}

impl Reference {
    pub fn new() -> Self {
        let device = Cpu::<f32>::new();
        let (a, b, c) = (device.zeros(SIZE * SIZE), device.zeros(SIZE * SIZE), device.zeros(SIZE * SIZE));
        Self { device, a, b, c }
    }

    /// Seconds that the arithmetic takes now.
    pub fn seconds(&mut self) -> f64 {
        let start = Instant::now();
        for _ in 0..REPETITIONS {
            let (a, b) = (Region::start(&self.a).rows(SIZE), Region::start(&self.b).rows(SIZE));
            self.device.matmul(Product::new(SIZE, SIZE, SIZE), 1.0, a, b, 0.0, RegionMut::start(&mut self.c).rows(SIZE));
        }
        start.elapsed().as_secs_f64()
    }
}

impl Default for Reference {
    fn default() -> Self {
        Self::new()
    }
}
