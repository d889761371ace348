//! Measures how compute and communication slow each other down when both run on one device.

use autodist_communication::GroupOptions;
use autodist_compute::{GemmShape, Region, RegionMut};
use autodist_executor::launcher::Worker;
use autodist_executor::stream::{BucketTransfer, CommunicationStream, Groups};
use autodist_executor::{ExecutionError, TrainingDevice, host};
use autodist_program::Transfer;
use autodist_spec::{Collective, Precision, Reduction};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A batch of GEMMs that overlaps with a sequence of all-reduces over all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverlapTask {
    /// Rows, columns and inner dimension of the GEMM: those of the model's largest layer.
    pub product: (usize, usize, usize),
    pub reduce_bytes: usize,
    /// Number of reductions in a sequence, so that it is long enough to be timed.
    pub reductions: usize,
    /// Bytes of a buffer that is zeroed and accumulated into.
    pub sum_bytes: usize,
    pub repetitions: usize,
    /// Precision of the GEMMs.
    pub precision: Precision,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OverlapAnswer {
    /// Seconds of a batch of GEMMs alone.
    pub compute_alone: Vec<f64>,
    /// Seconds of a sequence of reductions alone.
    pub reduce_alone: Vec<f64>,
    /// Seconds of the batch and of the sequence when both run at the same time, from a common start.
    pub together: Vec<(f64, f64)>,
    /// Rate of the GEMM in the fastest batch, FLOP/s.
    pub gemm_flops_per_s: f64,
    /// Seconds per element.
    pub zeroing: Vec<f64>,
    pub adding: Vec<f64>,
}

/// Buffers of a block's size that the measurement of zeroing and accumulation cycles through.
const BUFFERS: usize = 8;

pub fn measure<D: TrainingDevice>(
    device: &D,
    task: &OverlapTask,
    worker: &mut Worker,
    name: &str,
) -> Result<OverlapAnswer, ExecutionError> {
    host::enter_communication(worker.placement);
    let rank = worker.endpoint.rank();
    let everyone: Vec<usize> = (0..worker.endpoint.world()).collect();
    let mut barrier = worker.endpoint.group(&format!("{name}.barrier"), &everyone)?;
    let mut group = |what: &str, members: &[usize]| {
        device.group(&mut worker.endpoint, &format!("{name}.{what}"), members, &GroupOptions::default())
    };
    let groups = Groups {
        reduce: group("reduce", &everyone)?,
        replicas: group("replicas", &[rank])?,
        gather: group("gather", &[rank])?,
        emulated: None,
        compressors: BTreeMap::new(),
    };
    let mut stream = CommunicationStream::start(device.queue()?, groups)?;
    host::enter_compute(worker.placement);
    let (m, n, k) = task.product;
    let (a, b) = (device.upload(&vec![0.5; m * k]), device.upload(&vec![0.5; k * n]));
    let mut c = device.zeros(m * n);
    let mut multiply = |times: usize| {
        let start = device.record();
        for _ in 0..times {
            let (a, b) = (Region::start(&a).rows(k), Region::start(&b).rows(n));
            device.matmul(GemmShape::new(m, n, k), 1.0, a, b, 0.0, RegionMut::start(&mut c).rows(n));
        }
        device.seconds_between(&start, &device.record())
    };
    let mut buffers: Vec<_> =
        (0..task.reductions).map(|_| device.zeros_full(task.reduce_bytes / 4)).collect();
    let mut answer = OverlapAnswer::default();
    let mut reduce = |stream: &mut CommunicationStream<D>, beside: &mut dyn FnMut() -> f64| {
        let start = device.record();
        for (index, buffer) in buffers.drain(..).enumerate() {
            let range = 0..device.len(&buffer);
            stream.submit(BucketTransfer {
                key: (Transfer::Reduce, index),
                kind: Collective::AllReduce,
                reduction: Reduction::default(),
                buffer,
                range,
                ready: start.clone(),
            })?;
        }
        let compute = beside();
        let mut end = start.clone();
        for index in 0..task.reductions {
            let done = stream.wait((Transfer::Reduce, index))?;
            device.wait_for(&done.end);
            end = done.end;
            buffers.push(done.buffer);
        }
        Ok::<_, ExecutionError>((compute, device.seconds_between(&start, &end)))
    };
    // A batch of GEMMs that takes longer than the sequence, so that the whole sequence overlaps with compute.
    let one = (0..4).map(|_| multiply(1)).fold(f64::INFINITY, f64::min);
    barrier.barrier()?;
    let alone = (0..3).map(|_| reduce(&mut stream, &mut || 0.0)).collect::<Result<Vec<_>, _>>()?;
    let longest = alone.iter().map(|(_, s)| *s).fold(0.0, f64::max);
    let mut times = [((2.0 * longest / one).ceil() as usize).clamp(2, 10_000) as f32];
    barrier.all_reduce(&mut times, autodist_communication::ReduceOp::Max)?;
    let times = times[0] as usize;
    for _ in 0..task.repetitions {
        barrier.barrier()?;
        answer.compute_alone.push(multiply(times));
        barrier.barrier()?;
        answer.reduce_alone.push(reduce(&mut stream, &mut || 0.0)?.1);
        barrier.barrier()?;
        answer.together.push(reduce(&mut stream, &mut || multiply(times))?);
    }
    let elements = task.sum_bytes / 4;
    // A step uses many buffers before it reuses the first: so does this measurement.
    let mut sums: Vec<_> = (0..BUFFERS).map(|_| device.zeros_full(elements)).collect();
    for _ in 0..task.repetitions {
        barrier.barrier()?;
        for sum in &mut sums {
            let start = device.record();
            let fresh = device.zeros_full(elements);
            let zeroed = device.record();
            device.add(elements, Region::start(&fresh), RegionMut::start(sum));
            let added = device.record();
            answer.adding.push(device.seconds_between(&zeroed, &added) / elements as f64);
            answer.zeroing.push(device.seconds_between(&start, &zeroed) / elements as f64);
        }
    }
    let fastest = answer.compute_alone.iter().copied().fold(f64::INFINITY, f64::min);
    answer.gemm_flops_per_s = 2.0 * (m * n * k * times) as f64 / fastest;
    device.synchronise()?;
    host::enter_communication(worker.placement);
    Ok(answer)
}
