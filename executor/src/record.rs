//! What a rank measures, and how the ranks' measurements become one record.

use crate::guard;
use crate::task::Task;
use autodist_compute::Backend;
use autodist_program::{Body, BodyKind, Instruction, Op, Program};
use autodist_spec::plan::label;
use autodist_spec::profile::{CollectiveKind, Environment, Pass, Sample, Segment};
use autodist_spec::run::{BucketCompression, RankRecord, StepRecord};
use autodist_spec::{Bytes, OperationKind, RunRecord, SCHEMA_VERSION, Seconds, Stream, TimelineEvent};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// One step as one rank saw it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct StepOutcome {
    /// Barrier to barrier, seconds.
    pub seconds: f64,
    /// Of that, seconds in operations on the compute stream.
    pub in_operations: f64,
    /// Summed over this rank's tokens, nats; 0 where the rank holds no head.
    pub loss_sum: f64,
    pub gradient_norm: f64,
    /// Seconds of the reference arithmetic, mean of just before and just after; 0 on a device that needs none.
    pub reference: f64,
}

/// Repeated timings of one instruction of a body, over micro-batches and measured steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstructionSample {
    pub body: usize,
    pub index: usize,
    pub seconds: Vec<f64>,
    /// Live memory after it less before it, bytes; of the last run.
    pub growth: i64,
    /// Highest live memory during it, above its start, bytes; the largest of all runs.
    pub peak: u64,
}

/// What an engine has timed that knows no Program, for which an instruction is to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timed {
    Segment {
        layer: usize,
        segment: Segment,
        pass: Pass,
    },
    /// The tensor-parallel collective of this kind whose turn it is in the forward or the backward.
    Collective {
        backward: bool,
        kind: CollectiveKind,
        turn: usize,
    },
    /// Norm and clipping of the gradient.
    Norm,
    /// Of all that this rank updates.
    Update,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedSample {
    pub of: Timed,
    pub seconds: Vec<f64>,
    #[serde(default)]
    pub growth: i64,
    #[serde(default)]
    pub peak: u64,
}

/// All that one rank measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RankOutcome {
    pub rank: usize,
    pub realtime: bool,
    /// How GPUs of different ranks reach each other; empty on CPUs.
    pub route: String,
    pub steps: Vec<StepOutcome>,
    /// The device's memory at its highest during the steps, bytes (a CPU's is the heap).
    pub peak_memory: u64,
    /// The same before the model was made, bytes.
    pub baseline_memory: u64,
    pub bytes_sent_per_step: u64,
    #[serde(default)]
    pub compression: Vec<BucketCompression>,
    /// Operations of every measured step.
    pub timelines: Vec<Vec<TimelineEvent>>,
    /// Empty unless the task asks for detail.
    pub instructions: Vec<InstructionSample>,
    /// The same from an engine that knows no Program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<NamedSample>,
}

impl RankOutcome {
    /// Finds the instructions of what was timed by name, in a program of one pipeline rank and one micro-batch.
    pub fn resolve(&mut self, program: &Program) {
        let named = std::mem::take(&mut self.named);
        let find = |of: Timed| named.iter().find(|sample| sample.of == of);
        let Some(runner) = program.ranks.first() else { return };
        let used =
            |index: usize| runner.ops.iter().any(|op| matches!(op, Op::Run { body, .. } if *body == index));
        for (body, Body { kind, instructions }) in
            runner.bodies.iter().enumerate().filter(|(body, _)| used(*body))
        {
            let elements = |instruction: &Instruction| match instruction {
                Instruction::Update { elements, .. } => *elements,
                _ => 0,
            };
            let updated: usize = instructions.iter().map(elements).sum();
            let mut turns = BTreeMap::new();
            for (index, instruction) in instructions.iter().enumerate() {
                let (of, share) = match *instruction {
                    Instruction::Segment { layer, segment, pass, .. } => {
                        (Timed::Segment { layer, segment, pass }, 1.0)
                    }
                    Instruction::Tensor { collective, .. } => {
                        let turn = turns.entry(collective.kind()).or_insert(0);
                        let backward = matches!(kind, BodyKind::Backward { .. });
                        let of = Timed::Collective { backward, kind: collective.kind(), turn: *turn };
                        *turn += 1;
                        (of, 1.0)
                    }
                    Instruction::GradientNorm { .. } => (Timed::Norm, 1.0),
                    // All buckets are updated at once; each has its part of the time.
                    Instruction::Update { elements, .. } => (Timed::Update, elements as f64 / updated as f64),
                    _ => continue,
                };
                if let Some(sample) = find(of) {
                    let seconds = sample.seconds.iter().map(|s| s * share).collect();
                    let NamedSample { growth, peak, .. } = *sample;
                    self.instructions.push(InstructionSample { body, index, seconds, growth, peak });
                }
            }
        }
    }
}

/// Timings of the step that is being run. Its memory is taken before the training begins, so that recording does not
/// show in what is recorded.
pub struct Recorder<B: Backend> {
    device: B,
    rank: u32,
    began: Instant,
    origin: B::Event,
    /// Operations and instructions of the step under way; their times are known when the device has done them.
    operations: Vec<Operation<B>>,
    instructions: Vec<(usize, B::Event, B::Event)>,
    events: Vec<TimelineEvent>,
    per_step: usize,
    detail: bool,
    samples: Vec<InstructionSample>,
    slots: Vec<Vec<usize>>,
}

/// What an entry of the timeline is about.
#[derive(Debug, Clone, Copy)]
pub struct Occasion {
    pub stream: Stream,
    pub operation: OperationKind,
    pub chunk: usize,
    pub micro_batch: usize,
}

struct Operation<B: Backend> {
    occasion: Occasion,
    start: B::Event,
    end: B::Event,
}

impl<B: Backend> Recorder<B> {
    /// For `steps` steps of `operations` entries each, in which every body runs at most `runs` times.
    pub fn new(
        device: &B,
        rank: usize,
        bodies: &[Vec<Instruction>],
        operations: usize,
        steps: usize,
        runs: usize,
        detail: bool,
    ) -> Self {
        let mut samples = Vec::new();
        let mut slots = Vec::new();
        if detail {
            for (body, instructions) in bodies.iter().enumerate() {
                let slot = |index| {
                    let seconds = Vec::with_capacity(steps * runs);
                    samples.push(InstructionSample { body, index, seconds, growth: 0, peak: 0 });
                    samples.len() - 1
                };
                slots.push((0..instructions.len()).map(slot).collect());
            }
        }
        let instructions = Vec::with_capacity(samples.len() * runs);
        Self {
            device: device.clone(),
            rank: rank as u32,
            began: Instant::now(),
            origin: device.record(),
            operations: Vec::with_capacity(operations),
            instructions,
            events: Vec::with_capacity(operations * steps),
            per_step: operations,
            detail,
            samples,
            slots,
        }
    }

    /// Bytes that recording itself holds.
    pub fn bytes(&self) -> usize {
        let samples: usize =
            self.samples.iter().map(|s| s.seconds.capacity() * 8 + size_of::<InstructionSample>()).sum();
        self.events.capacity() * size_of::<TimelineEvent>()
            + self.operations.capacity() * size_of::<Operation<B>>()
            + self.instructions.capacity() * size_of::<(usize, B::Event, B::Event)>()
            + samples
    }

    pub fn detail(&self) -> bool {
        self.detail
    }

    pub fn begin_step(&mut self) {
        self.began = Instant::now();
        self.origin = self.device.record();
    }

    /// Seconds since the step began, by the host's clock.
    pub fn elapsed(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn operation(&mut self, occasion: Occasion, start: B::Event, end: B::Event) {
        self.operations.push(Operation { occasion, start, end });
    }

    pub fn instruction(
        &mut self,
        body: usize,
        index: usize,
        (start, end): (B::Event, B::Event),
        growth: i64,
        peak: u64,
    ) {
        let slot = self.slots[body][index];
        let sample = &mut self.samples[slot];
        sample.growth = growth;
        sample.peak = sample.peak.max(peak);
        self.instructions.push((slot, start, end));
    }

    /// Takes in the times of a step whose work is done; returns the seconds in operations on the compute stream.
    pub fn end_step(&mut self) -> f64 {
        let mut compute = 0.0;
        for operation in self.operations.drain(..) {
            let since = |event| Seconds(self.device.seconds_between(&self.origin, event));
            let (start_s, end_s) = (since(&operation.start), since(&operation.end));
            let Occasion { stream, operation, chunk, micro_batch } = operation.occasion;
            compute += if stream == Stream::Compute { end_s.0 - start_s.0 } else { 0.0 };
            let (chunk, micro_batch) = (chunk as u32, micro_batch as u32);
            let rank = self.rank;
            self.events.push(TimelineEvent { rank, stream, operation, chunk, micro_batch, start_s, end_s });
        }
        for (slot, start, end) in self.instructions.drain(..) {
            self.samples[slot].seconds.push(self.device.seconds_between(&start, &end));
        }
        compute
    }

    /// Forgets all that was recorded: warm-up is over.
    pub fn clear(&mut self) {
        self.events.clear();
        for sample in &mut self.samples {
            sample.seconds.clear();
            sample.peak = 0;
        }
    }

    pub fn finish(self) -> (Vec<Vec<TimelineEvent>>, Vec<InstructionSample>) {
        let timelines = self.events.chunks(self.per_step.max(1)).map(<[_]>::to_vec).collect();
        (timelines, self.samples)
    }
}

/// Joins what the ranks measured. A step took as long as its slowest rank.
pub fn merge(task: &Task, outcomes: &[RankOutcome], environment: Environment) -> RunRecord {
    let mut outcomes: Vec<&RankOutcome> = outcomes.iter().collect();
    outcomes.sort_by_key(|outcome| outcome.rank);
    let tokens = task.job.tokens() as f64;
    let steps: Vec<StepRecord> = (0..task.steps as usize)
        .map(|step| {
            let of = |value: fn(&StepOutcome) -> f64| {
                outcomes.iter().map(move |o| o.steps.get(step).map_or(0.0, value))
            };
            StepRecord {
                step: step as u32,
                time_s: Seconds(of(|s| s.seconds).fold(0.0, f64::max)),
                loss: of(|s| s.loss_sum).sum::<f64>() / tokens,
                gradient_norm: of(|s| s.gradient_norm).fold(0.0, f64::max),
                learning_rate: task.job.learning_rate.at(step as u32),
                reference_s: Seconds(of(|s| s.reference).fold(0.0, f64::max)),
            }
        })
        .collect();
    let measured: Vec<f64> = steps.iter().skip(task.warmup_steps as usize).map(|s| s.time_s.0).collect();
    let step_time = Sample::of(&measured);
    let nearest = measured
        .iter()
        .enumerate()
        .min_by(|(_, a), (_, b)| {
            (*a - step_time.median_s.0).abs().total_cmp(&(*b - step_time.median_s.0).abs())
        })
        .map(|(index, _)| index);
    let timeline = nearest
        .map(|step| outcomes.iter().filter_map(|o| o.timelines.get(step)).flatten().cloned().collect())
        .unwrap_or_default();
    RunRecord {
        schema_version: SCHEMA_VERSION,
        label: label(&task.strategy, &task.stages),
        strategy: task.strategy.clone(),
        stages: task.stages.clone(),
        precision: task.job.precision,
        environment,
        steps,
        warmup_steps: task.warmup_steps,
        step_time,
        ranks: outcomes
            .iter()
            .map(|o| RankRecord {
                rank: o.rank as u32,
                peak_memory_bytes: Bytes(o.peak_memory),
                bytes_sent_per_step: Bytes(o.bytes_sent_per_step),
            })
            .collect(),
        compression: guard::merge(outcomes.iter().flat_map(|o| o.compression.iter().copied())),
        timeline,
    }
}
