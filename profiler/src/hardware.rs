//! Benchmarks of the device independent of training: GEMMs of the model's shapes, and copies.

use autodist_compute::{GemmShape, Region, RegionMut};
use autodist_executor::{ExecutionError, TrainingDevice};
use autodist_spec::profile::{CopyCost, CopyKind, Hardware, ProductCost, Sample};
use autodist_spec::{Bytes, FlopsPerSecond, ModelSpec, Precision, TensorSplit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardwareTask {
    /// Rows, columns and inner dimension of each GEMM.
    pub products: Vec<(usize, usize, usize)>,
    /// Bytes of each copy.
    pub copies: Vec<usize>,
    pub repetitions: usize,
    /// Precision of the GEMMs.
    pub precision: Precision,
}

impl HardwareTask {
    /// The GEMMs of a layer's forward pass on `tokens` tokens, and the largest of them also on `most_tokens`,
    /// so that no measured segment has a larger and therefore faster one; and copies up to the size of a
    /// layer's parameters, at least larger than caches.
    pub fn of(model: &ModelSpec, tokens: usize, most_tokens: usize, precision: Precision) -> Self {
        // All blocks are alike.
        let block = 1;
        let matrices = [block, model.chain_len() - 1]
            .into_iter()
            .flat_map(|layer| model.parameters(layer))
            .filter(|p| p.split != TensorSplit::Replicated && p.columns > 1);
        let mut products: BTreeSet<_> =
            matrices.map(|p| (tokens, p.rows as usize, p.columns as usize)).collect();
        let split = model.parameters(block).into_iter().filter(|p| p.split != TensorSplit::Replicated);
        let largest = split.filter(|p| p.columns > 1).max_by_key(|p| p.rows * p.columns);
        products.extend(largest.map(|p| (most_tokens, p.rows as usize, p.columns as usize)));
        // A copy that fits into a cache would measure the cache.
        let largest = (4 * model.layer_parameters(block) as usize).clamp(32 << 20, 256 << 20);
        Self {
            products: products.into_iter().collect(),
            copies: BTreeSet::from([1 << 12, 1 << 16, largest]).into_iter().collect(),
            repetitions: 5,
            precision,
        }
    }
}

/// Times of repetitions, in seconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HardwareAnswer {
    pub products: Vec<((usize, usize, usize), Vec<f64>)>,
    pub copies: Vec<(CopyKind, usize, Vec<f64>)>,
}

pub fn measure<D: TrainingDevice>(device: &D, task: &HardwareTask) -> Result<HardwareAnswer, ExecutionError> {
    let mut answer = HardwareAnswer::default();
    for (m, n, k) in task.products.iter().copied() {
        let (a, b) = (device.upload(&vec![0.5; m * k]), device.upload(&vec![0.5; k * n]));
        let mut c = device.uninitialised(m * n);
        let seconds = repeated(device, task.repetitions, || {
            let b = Region::start(&b).rows(k).transposed();
            let c = RegionMut::start(&mut c).rows(n);
            device.matmul(GemmShape::new(m, n, k), 1.0, Region::start(&a).rows(k), b, 0.0, c);
        });
        answer.products.push(((m, n, k), seconds));
    }
    for bytes in task.copies.iter().copied() {
        let elements = bytes / 4;
        let mut values = vec![0.5; elements];
        let (from, mut to) = (device.upload_full(&values), device.uninitialised_full(elements));
        let seconds = repeated(device, task.repetitions, || {
            device.copy(elements, Region::start(&from), RegionMut::start(&mut to));
        });
        answer.copies.push((CopyKind::Device, bytes, seconds));
        let seconds = repeated(device, task.repetitions, || device.write(&values, RegionMut::start(&mut to)));
        answer.copies.push((CopyKind::HostToDevice, bytes, seconds));
        let seconds =
            repeated(device, task.repetitions, || device.download(Region::start(&from), &mut values));
        answer.copies.push((CopyKind::DeviceToHost, bytes, seconds));
    }
    device.synchronise()?;
    Ok(answer)
}

/// Times `work` on the device, without warm-up.
fn repeated<D: TrainingDevice>(device: &D, repetitions: usize, mut work: impl FnMut()) -> Vec<f64> {
    work();
    (0..repetitions)
        .map(|_| {
            let start = device.record();
            work();
            device.seconds_between(&start, &device.record())
        })
        .collect()
}

/// Merges all ranks' times; every rank answered the same task.
pub fn summarise(answers: &[HardwareAnswer]) -> Hardware {
    let Some(first) = answers.first() else { return Hardware::default() };
    let products = first.products.iter().enumerate().map(|(index, ((m, n, k), _))| {
        let seconds: Vec<f64> = answers.iter().flat_map(|a| a.products[index].1.iter().copied()).collect();
        let time = Sample::of(&seconds);
        let operations = 2.0 * *m as f64 * *n as f64 * *k as f64;
        ProductCost {
            m: *m as u64,
            n: *n as u64,
            k: *k as u64,
            time,
            flops_per_s: FlopsPerSecond(operations / time.median_s.0.max(f64::MIN_POSITIVE)),
        }
    });
    let copies = first.copies.iter().enumerate().map(|(index, (kind, bytes, _))| {
        let seconds: Vec<f64> = answers.iter().flat_map(|a| a.copies[index].2.iter().copied()).collect();
        CopyCost { kind: *kind, bytes: Bytes(*bytes as u64), time: Sample::of(&seconds) }
    });
    Hardware { products: products.collect(), copies: copies.collect(), ..Hardware::default() }
}
