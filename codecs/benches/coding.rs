//! Encoding and decoding of 4 M gradients, four matrices of 1024 x 1024, on one core: `cargo bench -p
//! autodist-codecs`. The group has two members, one of them simulated, so its exchanges cost next to nothing.

use autodist_codecs::{Compressor, Exchange, Tensor};
use autodist_spec::Codec;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::convert::Infallible;

const SIDE: usize = 1024;
const MATRICES: usize = 4;
const ELEMENTS: usize = MATRICES * SIDE * SIDE;

/// Simulates a second member that sends the same data as this one.
struct Echo;

impl Exchange for Echo {
    type Error = Infallible;

    fn size(&self) -> usize {
        2
    }

    fn rank(&self) -> usize {
        0
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), Infallible> {
        values.iter_mut().for_each(|value| *value *= 2.0);
        Ok(())
    }

    fn max(&mut self, value: f32) -> Result<f32, Infallible> {
        Ok(value)
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(vec![own.to_vec(), own.to_vec()])
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(vec![parts[0].clone(), parts[0].clone()])
    }
}

/// Roughly normally distributed gradients, the same in every run.
fn gradient() -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..ELEMENTS).map(|_| (0..4).map(|_| uniform()).sum()).collect()
}

fn coding(criterion: &mut Criterion) {
    let tensors: Vec<Tensor> = (0..MATRICES)
        .map(|index| Tensor { offset: index * SIDE * SIDE, rows: SIDE, columns: SIDE })
        .collect();
    let gradient = gradient();
    let mut group = criterion.benchmark_group("coding");
    group.sample_size(20).throughput(Throughput::Elements(ELEMENTS as u64));
    for codec in Codec::DEFAULTS.into_iter().filter(|codec| *codec != Codec::None) {
        let mut compressor = Compressor::new(codec, &tensors, ELEMENTS, 0).after_warmup();
        group.bench_function(BenchmarkId::from_parameter(codec.name()), |bencher| {
            bencher.iter_batched_ref(
                || gradient.clone(),
                |values| compressor.reduce(values, &mut Echo),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, coding);
criterion_main!(benches);
