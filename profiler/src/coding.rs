//! Times the coding of gradients that travel in fewer bytes, all ranks at once, where the gradients are: on a GPU the way
//! of the coded bytes to the host and back is part of it. Their exchanges are left out.

use crate::Request;
use autodist_codecs::{Compressor, Exchange, PartMut, Tensor};
use autodist_communication::Reduction;
use autodist_executor::launcher::Worker;
use autodist_executor::{Device, ExecutionError, host};
use autodist_program::{buckets, stages};
use autodist_spec::{Bytes, Codec, ParallelStrategy};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::time::Instant;

/// Codecs to time on the whole model's gradients and on one layer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodingTask {
    pub codecs: Vec<Codec>,
    pub groups: Vec<usize>,
    /// Parameters of a bucket: offset, rows, columns.
    pub buckets: Vec<Vec<(usize, usize, usize)>>,
    pub repetitions: usize,
    /// As [`autodist_executor::Task::emulated_flops_per_s`].
    pub emulated_flops_per_s: Option<f64>,
}

/// Seconds of one codec on one bucket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CodingTimings {
    pub codec: Codec,
    pub group: usize,
    pub elements: usize,
    pub seconds: Vec<f64>,
}

const REPETITIONS: usize = 5;

impl CodingTask {
    /// `None` where the job allows gradients as they are alone.
    pub fn of(request: &Request) -> Option<Self> {
        let codecs: Vec<Codec> =
            request.job.allow.codecs.iter().copied().filter(|codec| *codec != Codec::None).collect();
        let groups: Vec<usize> =
            (2..=request.ranks).filter(|n| request.ranks % n == 0).map(|n| n as usize).collect();
        if codecs.is_empty() || groups.is_empty() {
            return None;
        }
        let of_size = |bytes: u64| {
            let strategy = ParallelStrategy {
                bucket_bytes: Bytes(bytes),
                ..ParallelStrategy::data_parallel(request.ranks, 1)
            };
            let stages = stages::even(&request.model, &strategy);
            let all = buckets(&request.model, &strategy, &stages, 0, 0);
            let bucket = all.into_iter().max_by_key(|bucket| bucket.elements);
            let parameters = bucket.map(|bucket| bucket.parameters(&request.model, 0, 1)).unwrap_or_default();
            parameters.iter().map(|p| (p.offset, p.rows, p.columns)).collect::<Vec<_>>()
        };
        let mut buckets = vec![of_size(1), of_size(1 << 40)];
        buckets.dedup();
        let emulated_flops_per_s = request.emulated_flops_per_s();
        Some(Self { codecs, groups, buckets, repetitions: REPETITIONS, emulated_flops_per_s })
    }
}

pub fn measure<D: Device>(
    device: &D,
    task: &CodingTask,
    worker: &mut Worker,
    name: &str,
) -> Result<Vec<CodingTimings>, ExecutionError> {
    host::enter_communication(worker.placement);
    let everyone: Vec<usize> = (0..worker.endpoint.world()).collect();
    let mut barrier = worker.endpoint.group(&format!("{name}.barrier"), &everyone)?;
    let mut answer = Vec::new();
    let on = device.coding();
    for parameters in &task.buckets {
        let tensors: Vec<Tensor> = parameters
            .iter()
            .map(|(offset, rows, columns)| Tensor { offset: *offset, rows: *rows, columns: *columns })
            .collect();
        let elements = tensors.iter().map(|t| t.offset + t.rows * t.columns).max().unwrap_or(0);
        for codec in &task.codecs {
            for group in &task.groups {
                let emulated = task
                    .emulated_flops_per_s
                    .map_or(0.0, |rate| autodist_codecs::work(*codec, &tensors, elements, *group) / rate);
                let mut compressor =
                    Compressor::on(&on, *codec, &tensors, elements, *group, 0).after_warmup();
                let mut seconds = Vec::new();
                for repetition in 0..=task.repetitions {
                    let gradient: Vec<f32> =
                        (0..elements).map(|i| ((i * 7 + repetition * 13) % 1009) as f32 - 504.0).collect();
                    let mut gradient = device.upload_full(&gradient);
                    device.synchronise()?;
                    barrier.all_reduce(&mut [0.0], Reduction::Sum)?;
                    let start = Instant::now();
                    let mut echo = Echo { size: *group };
                    let gradient = PartMut::new(D::values(&mut gradient), 0..elements);
                    let Ok(_) = compressor.reduce_on(&on, gradient, &mut echo);
                    device.synchronise()?;
                    // The first allocates and has no memory of earlier steps.
                    if repetition > 0 {
                        seconds.push(start.elapsed().as_secs_f64().max(emulated));
                    }
                }
                answer.push(CodingTimings { codec: *codec, group: *group, elements, seconds });
            }
        }
    }
    Ok(answer)
}

/// A group whose other members all say what this one says.
struct Echo {
    size: usize,
}

impl Exchange for Echo {
    type Error = Infallible;

    fn size(&self) -> usize {
        self.size
    }

    fn rank(&self) -> usize {
        0
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<(), Infallible> {
        Ok(())
    }

    fn max(&mut self, value: f32) -> Result<f32, Infallible> {
        Ok(value)
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(vec![own.to_vec(); self.size])
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(vec![parts[0].clone(); self.size])
    }
}
