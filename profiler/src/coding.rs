//! Measures codecs for gradients on all ranks at once, in the memory that holds the gradients: on a GPU this
//! includes copies of the coded bytes to the host and back. The codecs' collectives are excluded.

use crate::Request;
use autodist_codecs::{Arithmetic, Compressor, Exchange, Form, PartMut, Tensor, rounding};
use autodist_communication::{Communicator, ReduceOp};
use autodist_executor::launcher::Worker;
use autodist_executor::{ExecutionError, TrainingDevice, host};
use autodist_program::{buckets, rules, stages};
use autodist_spec::{Bytes, Codec, Coded, Engine, LayerTraining, ParallelStrategy};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::time::Instant;

/// Codecs to measure, on the gradients of the whole model and of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodingTask {
    pub codecs: Vec<(Coded, Codec)>,
    pub groups: Vec<usize>,
    /// Sizes of send/recv between pipeline ranks, in elements.
    pub messages: Vec<usize>,
    /// Parameters of a bucket: offset, rows, columns.
    pub buckets: Vec<Vec<(usize, usize, usize)>>,
    pub repetitions: usize,
    /// See [`autodist_executor::Task::emulated_flops_per_s`].
    pub emulated_flops_per_s: Option<f64>,
}

/// Seconds of one codec on one bucket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CodingTimings {
    pub codec: Codec,
    pub coded: Coded,
    pub group: usize,
    pub elements: usize,
    pub seconds: Vec<f64>,
}

const REPETITIONS: usize = 5;

impl CodingTask {
    /// `None` if the job allows only uncompressed gradients, or the engine has no codecs of its own.
    pub fn of(request: &Request) -> Option<Self> {
        // PyTorch's hooks code and communicate in one call, so coding cannot be measured alone.
        if request.engine == Engine::Torch {
            return None;
        }
        let allow = &request.job.allow;
        let sharded = allow.zero_stage.iter().any(|stage| *stage > 0);
        let working = !request.job.precision.is_mixed();
        let mut codecs: Vec<(Coded, Codec)> = Vec::new();
        let mut add = |coded, list: &[Codec]| {
            codecs.extend(list.iter().filter(|codec| **codec != Codec::None).map(|codec| (coded, *codec)));
        };
        add(Coded::Gradients, &allow.codecs);
        let rounding: Vec<Codec> = allow.codecs.iter().copied().filter(|c| rules::rounds(*c)).collect();
        if sharded {
            add(Coded::GradientShards, &rounding);
        }
        if allow.zero_stage.contains(&3) && working {
            add(Coded::Parameters, &allow.parameter_codecs);
        }
        if working {
            add(Coded::Activations, &allow.activation_codecs);
        }
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
            let training = vec![LayerTraining::WHOLE; request.model.chain_len()];
            let all = buckets(&request.model, &training, &strategy, &stages, 0, 0);
            let bucket = all.into_iter().max_by_key(|bucket| bucket.elements);
            let parameters = bucket.map(|bucket| bucket.parameters(&request.model, 0, 1)).unwrap_or_default();
            parameters.iter().map(|p| (p.offset, p.rows, p.columns)).collect::<Vec<_>>()
        };
        let mut buckets = vec![of_size(1), of_size(1 << 40)];
        buckets.dedup();
        let activation = (request.job.seq_len * request.model.hidden) as usize;
        let messages = vec![activation, activation * request.job.global_batch as usize];
        let emulated_flops_per_s = request.emulated_flops_per_s();
        Some(Self { codecs, groups, messages, buckets, repetitions: REPETITIONS, emulated_flops_per_s })
    }
}

pub fn measure<D: TrainingDevice>(
    device: &D,
    task: &CodingTask,
    worker: &mut Worker,
    name: &str,
) -> Result<Vec<CodingTimings>, ExecutionError> {
    host::enter_communication(worker.placement);
    let everyone: Vec<usize> = (0..worker.endpoint.world()).collect();
    let mut barrier = worker.endpoint.group(&format!("{name}.barrier"), &everyone)?;
    let mut answer = Vec::new();
    for parameters in &task.buckets {
        let tensors: Vec<Tensor> = parameters
            .iter()
            .map(|(offset, rows, columns)| Tensor { offset: *offset, rows: *rows, columns: *columns })
            .collect();
        let elements = tensors.iter().map(|t| t.offset + t.rows * t.columns).max().unwrap_or(0);
        for (coded, codec) in task.codecs.iter().filter(|(coded, _)| *coded != Coded::Activations) {
            for group in &task.groups {
                let one = One { coded: *coded, codec: *codec, tensors: &tensors, elements, group: *group };
                answer.push(one.time(device, task, &mut *barrier)?);
            }
        }
    }
    for (coded, codec) in task.codecs.iter().filter(|(coded, _)| *coded == Coded::Activations) {
        for elements in &task.messages {
            let one = One { coded: *coded, codec: *codec, tensors: &[], elements: *elements, group: 2 };
            answer.push(one.time(device, task, &mut *barrier)?);
        }
    }
    Ok(answer)
}

/// One codec on one bucket or send/recv.
struct One<'a> {
    coded: Coded,
    codec: Codec,
    tensors: &'a [Tensor],
    elements: usize,
    group: usize,
}

impl One<'_> {
    fn time<D: TrainingDevice>(
        &self,
        device: &D,
        task: &CodingTask,
        barrier: &mut dyn Communicator,
    ) -> Result<CodingTimings, ExecutionError> {
        let &One { coded, codec, tensors, elements, group } = self;
        let on = device.coding();
        let work = || autodist_codecs::work(codec, coded, tensors, elements, group);
        let emulated = task.emulated_flops_per_s.map_or(0.0, |rate| work() / rate);
        let mut compressor = Compressor::on(&on, codec, tensors, elements, 0).after_warmup();
        let mut seconds = Vec::new();
        for repetition in 0..=task.repetitions {
            let numbers: Vec<f32> =
                (0..elements).map(|i| ((i * 7 + repetition * 13) % 1009) as f32 - 504.0).collect();
            let mut buffer = device.upload_full(&numbers);
            device.synchronise()?;
            barrier.all_reduce(&mut [0.0], ReduceOp::Sum)?;
            let start = Instant::now();
            let mut echo = Echo { size: group };
            let mut values = PartMut::new(D::values(&mut buffer), 0..elements);
            match (coded, Form::of(codec)) {
                (Coded::GradientShards, Some(form)) => {
                    let Ok(()) = rounding::reduce_scatter(form, &on, values, &mut echo);
                }
                (Coded::Parameters, Some(form)) => {
                    let Ok(()) = rounding::all_gather(form, &on, values, &mut echo);
                }
                (Coded::Activations, Some(form)) => {
                    let bytes = on.fetch(vec![on.encode(form, values.read())]);
                    on.fill_zero(values.again());
                    for bytes in bytes {
                        on.add_encoded(form, &on.bring(bytes), values.again());
                    }
                }
                _ => {
                    let Ok(_) = compressor.reduce_on(&on, values, &mut echo);
                }
            }
            device.synchronise()?;
            // The first repetition allocates memory, and has no error feedback from earlier steps.
            if repetition > 0 {
                seconds.push(start.elapsed().as_secs_f64().max(emulated));
            }
        }
        Ok(CodingTimings { codec, coded, group, elements, seconds })
    }
}

/// A mock group in which all other members send the same data as this one.
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
