//! The measurements of a rank, and how those of all ranks are merged into one record.

use crate::guard;
use crate::task::Task;
use crate::thinned::Thinned;
use autodist_compute::Backend;
use autodist_program::{Body, BodyKind, Instruction, Op, Program};
use autodist_spec::profile::{Environment, Pass, Sample, Segment};
use autodist_spec::run::{BucketCompression, Ended, RankRecord, StepRecord};
use autodist_spec::strategy::label;
use autodist_spec::{
    Bytes, Collective, OperationKind, RunRecord, SCHEMA_VERSION, Seconds, Stream, TimelineEvent,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Maximum number of operations of a rank's step for a timeline to be kept: larger timelines are not useful,
/// and the size of messages is limited.
pub const LONGEST_TIMELINE: usize = 1 << 16;
/// Maximum number of operations of all ranks in a record; with more, there is no timeline, so that the
/// document can be read again.
const MOST_EVENTS: usize = 200_000;
/// Maximum number of steps whose timelines a rank keeps until the typical one is chosen.
const TIMELINES: usize = 64;
/// Maximum number of operations of all these steps (40 bytes each).
const OPERATIONS: usize = 1 << 18;
/// Maximum number of steps in a record: of a longer training, every second, fourth, ... is kept. The document
/// then has some 30 MB.
pub const LONGEST_RECORD: usize = 1 << 17;

/// One step, as measured by one rank.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct StepOutcome {
    /// Time from barrier to barrier, seconds.
    pub seconds: f64,
    /// Seconds of the step in operations on the compute stream.
    pub in_operations: f64,
    /// Loss summed over this rank's tokens, nats; 0 if the rank does not hold the head.
    pub loss_sum: f64,
    pub gradient_norm: f64,
    /// Seconds of the reference benchmark, the faster of the runs just before and just after the step; 0 on a
    /// device that does not need it.
    pub reference: f64,
}

/// Repeated timings of one instruction of a body, over micro-batches and measured steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstructionSample {
    pub body: usize,
    pub index: usize,
    pub seconds: Vec<f64>,
    /// Seconds that the host took to queue it, each time; empty where the device is the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<f64>,
    /// Live memory after it minus live memory before it, bytes; of the last run.
    pub growth: i64,
    /// Highest live memory during it, relative to its start, bytes; the largest of all runs.
    pub peak: u64,
}

/// An operation that was timed by an engine without a Program; it is mapped to an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timed {
    Segment {
        layer: usize,
        segment: Segment,
        pass: Pass,
    },
    /// The next tensor-parallel collective of this kind in the forward or the backward pass.
    Collective {
        backward: bool,
        kind: Collective,
        turn: usize,
    },
    /// Norm and clipping of the gradient.
    Norm,
    /// The update of all parameters of this rank.
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

/// The measurements of one rank: all of them, or, during the training, the new steps and the current state of
/// the rest. So neither the memory of a rank nor its last report grows with the number of steps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RankOutcome {
    pub rank: usize,
    pub realtime: bool,
    /// The transport between GPUs of different ranks; empty on CPUs.
    pub route: String,
    /// Steps that have not been reported before.
    pub steps: Vec<StepOutcome>,
    /// Peak of the device's memory during the steps, bytes (on a CPU, of the heap).
    pub peak_memory: u64,
    /// Memory before the model was created, in bytes.
    pub baseline_memory: u64,
    pub bytes_sent_per_step: u64,
    #[serde(default)]
    pub compression: Vec<BucketCompression>,
    /// Operations of one measured step, the same step on all ranks; empty if a step has more than
    /// [`LONGEST_TIMELINE`].
    #[serde(default)]
    pub timeline: Vec<TimelineEvent>,
    /// Empty unless the task requests detail.
    pub instructions: Vec<InstructionSample>,
    /// Samples of an engine that does not use Programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<NamedSample>,
}

impl RankOutcome {
    /// Maps operations that were timed by name to instructions, in a program of one pipeline rank and one
    /// micro-batch.
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
                    // All buckets are updated at once, so each has its share of the time.
                    Instruction::Update { elements, .. } => (Timed::Update, elements as f64 / updated as f64),
                    _ => continue,
                };
                if let Some(sample) = find(of) {
                    let seconds = sample.seconds.iter().map(|s| s * share).collect();
                    let NamedSample { growth, peak, .. } = *sample;
                    self.instructions.push(InstructionSample {
                        body,
                        index,
                        seconds,
                        launches: Vec::new(),
                        growth,
                        peak,
                    });
                }
            }
        }
    }
}

/// Maximum number of entries for which memory is allocated in advance; longer lists grow as they are filled.
const MOST_TAKEN: usize = 1 << 16;

/// Timings of the current step. Memory is allocated before the training begins, so that recording does not
/// affect the measurements.
pub struct Recorder<B: Backend> {
    device: B,
    rank: u32,
    began: Instant,
    origin: B::Event,
    /// Operations and instructions of the current step; their times are available when the device has
    /// completed them.
    operations: Vec<Operation<B>>,
    instructions: Vec<(usize, B::Event, B::Event)>,
    timelines: Timelines,
    detail: bool,
    samples: Vec<InstructionSample>,
    slots: Vec<Vec<usize>>,
}

/// The label of an entry of the timeline.
#[derive(Debug, Clone, Copy)]
pub struct TimelineLabel {
    pub stream: Stream,
    pub operation: OperationKind,
    pub chunk: usize,
    pub micro_batch: usize,
}

struct Operation<B: Backend> {
    label: TimelineLabel,
    start: B::Event,
    end: B::Event,
}

impl<B: Backend> Recorder<B> {
    /// Creates a recorder for `steps` steps of at most `longest` operations on any rank and `operations` on
    /// this one, in which every body runs at most `runs` times.
    pub fn new(
        device: &B,
        rank: usize,
        bodies: &[Vec<Instruction>],
        (operations, longest): (usize, usize),
        steps: usize,
        runs: usize,
        detail: bool,
    ) -> Self {
        let mut samples = Vec::new();
        let mut slots = Vec::new();
        if detail {
            for (body, instructions) in bodies.iter().enumerate() {
                let slot = |index| {
                    let seconds = Vec::with_capacity(steps.saturating_mul(runs).min(MOST_TAKEN));
                    samples.push(InstructionSample {
                        body,
                        index,
                        seconds,
                        launches: Vec::new(),
                        growth: 0,
                        peak: 0,
                    });
                    samples.len() - 1
                };
                slots.push((0..instructions.len()).map(slot).collect());
            }
        }
        let instructions = Vec::with_capacity(samples.len().saturating_mul(runs).min(MOST_TAKEN));
        Self {
            device: device.clone(),
            rank: rank as u32,
            began: Instant::now(),
            origin: device.record(),
            operations: Vec::with_capacity(operations),
            instructions,
            timelines: Timelines::new(operations, Timelines::limit(longest, steps)),
            detail,
            samples,
            slots,
        }
    }

    /// Bytes of memory used by recording itself.
    pub fn bytes(&self) -> usize {
        let samples: usize =
            self.samples.iter().map(|s| s.seconds.capacity() * 8 + size_of::<InstructionSample>()).sum();
        self.timelines.events.capacity() * size_of::<TimelineEvent>()
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

    pub fn operation(&mut self, label: TimelineLabel, start: B::Event, end: B::Event) {
        self.operations.push(Operation { label, start, end });
    }

    pub fn instruction(
        &mut self,
        body: usize,
        index: usize,
        (start, end): (B::Event, B::Event),
        launch: Option<f64>,
        growth: i64,
        peak: u64,
    ) {
        let slot = self.slots[body][index];
        let sample = &mut self.samples[slot];
        sample.launches.extend(launch);
        sample.growth = growth;
        sample.peak = sample.peak.max(peak);
        self.instructions.push((slot, start, end));
    }

    /// Records the times of a completed step that took `seconds`; returns the seconds in operations on the
    /// compute stream.
    pub fn end_step(&mut self, seconds: f64) -> f64 {
        let mut compute = 0.0;
        for operation in self.operations.drain(..) {
            let since = |event| Seconds(self.device.seconds_between(&self.origin, event));
            let (start_s, end_s) = (since(&operation.start), since(&operation.end));
            let TimelineLabel { stream, operation, chunk, micro_batch } = operation.label;
            compute += if stream == Stream::Compute { end_s.0 - start_s.0 } else { 0.0 };
            let (chunk, micro_batch) = (chunk as u32, micro_batch as u32);
            let rank = self.rank;
            self.timelines.take(TimelineEvent {
                rank,
                stream,
                operation,
                chunk,
                micro_batch,
                start_s,
                end_s,
            });
        }
        self.timelines.end_step(seconds);
        for (slot, start, end) in self.instructions.drain(..) {
            self.samples[slot].seconds.push(self.device.seconds_between(&start, &end));
        }
        compute
    }

    /// Discards all records, after the warm-up.
    pub fn clear(&mut self) {
        self.timelines.clear();
        for sample in &mut self.samples {
            sample.seconds.clear();
            sample.launches.clear();
            sample.peak = 0;
        }
    }

    /// Seconds of the steps whose timelines are kept, which are the same steps on all ranks.
    pub fn kept_seconds(&self) -> Vec<f32> {
        self.timelines.seconds.iter().map(|seconds| *seconds as f32).collect()
    }

    /// The timeline of the `chosen` step, and the times of all instructions.
    pub fn finish(self, chosen: Option<usize>) -> (Vec<TimelineEvent>, Vec<InstructionSample>) {
        (chosen.map(|step| self.timelines.of(step).to_vec()).unwrap_or_default(), self.samples)
    }
}

/// The index of the value that is nearest to the median.
pub fn typical(seconds: &[f32]) -> Option<usize> {
    let median = Sample::of(&seconds.iter().map(|s| f64::from(*s)).collect::<Vec<_>>()).median_s.0;
    let apart = |seconds: f32| (f64::from(seconds) - median).abs();
    let places = seconds.iter().enumerate();
    places.min_by(|(_, a), (_, b)| apart(**a).total_cmp(&apart(**b))).map(|(place, _)| place)
}

/// Timelines of some evenly spaced steps. The selection depends only on their number and the limit, so all
/// ranks with the same limit keep the same steps. Memory is allocated once.
struct Timelines {
    /// Maximum number of steps.
    limit: usize,
    /// Operations per step.
    operations: usize,
    events: Vec<TimelineEvent>,
    /// Seconds of each recorded step.
    seconds: Vec<f64>,
    /// One of this many steps is kept.
    every: u64,
    step: u64,
}

impl Timelines {
    /// Number of timelines to keep if the largest step of any rank has `operations` operations.
    fn limit(operations: usize, steps: usize) -> usize {
        match operations {
            0..=LONGEST_TIMELINE => (OPERATIONS / operations.max(1)).clamp(1, TIMELINES).min(steps),
            _ => 0,
        }
    }

    fn new(operations: usize, limit: usize) -> Self {
        Self {
            limit,
            operations,
            events: Vec::with_capacity(limit * operations),
            seconds: Vec::with_capacity(limit),
            every: 1,
            step: 0,
        }
    }

    fn wanted(&self) -> bool {
        self.limit > 0 && self.step % self.every == 0
    }

    fn take(&mut self, event: TimelineEvent) {
        if !self.wanted() {
            return;
        }
        if self.seconds.len() == self.limit {
            // If it is full, every second step is removed.
            let (mut place, operations) = (0, self.operations.max(1));
            self.events.retain(|_| {
                place += 1;
                (place - 1) / operations % 2 == 0
            });
            let mut even = false;
            self.seconds.retain(|_| {
                even = !even;
                even
            });
            self.every *= 2;
            if !self.wanted() {
                return;
            }
        }
        self.events.push(event);
    }

    fn end_step(&mut self, seconds: f64) {
        if self.wanted() && self.seconds.len() < self.limit {
            self.seconds.push(seconds);
        }
        self.step += 1;
    }

    fn clear(&mut self) {
        self.events.clear();
        self.seconds.clear();
        (self.every, self.step) = (1, 0);
    }

    fn of(&self, kept: usize) -> &[TimelineEvent] {
        let events = &self.events[(kept * self.operations).min(self.events.len())..];
        &events[..self.operations.min(events.len())]
    }
}

/// The record of a running training, built from the reports of the ranks. It contains the record so far, and
/// reported steps that another rank has not reported yet.
#[derive(Debug, Clone)]
pub struct Growing {
    task: Task,
    ranks: Vec<Heard>,
    steps: Thinned<StepRecord>,
    last: Option<StepRecord>,
    news: Vec<StepRecord>,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    waiting: VecDeque<StepOutcome>,
    /// The rest of the last report; `None` before the first.
    outcome: Option<RankOutcome>,
}

impl Growing {
    #[must_use]
    pub fn new(task: &Task) -> Self {
        Self::with_limit(task, LONGEST_RECORD)
    }

    fn with_limit(task: &Task, limit: usize) -> Self {
        Self {
            task: task.clone(),
            ranks: vec![Heard::default(); task.world()],
            steps: Thinned::new(limit),
            last: None,
            news: Vec::new(),
        }
    }

    /// The steps that were completed since [`Self::forget_news`].
    #[must_use]
    pub fn news(&self) -> &[StepRecord] {
        &self.news
    }

    pub fn forget_news(&mut self) {
        self.news.clear();
    }

    /// Adds a report of `rank`. The time of a step is that of its slowest rank.
    pub fn take(&mut self, rank: usize, mut outcome: RankOutcome) {
        let Some(heard) = self.ranks.get_mut(rank) else { return };
        heard.waiting.extend(outcome.steps.drain(..));
        heard.outcome = Some(outcome);
        let tokens = self.task.job.tokens() as f64;
        while self.ranks.iter().all(|rank| !rank.waiting.is_empty()) {
            let step = self.steps.seen() as u32;
            let mut joined = StepRecord {
                step,
                time_s: Seconds(0.0),
                loss: 0.0,
                gradient_norm: 0.0,
                learning_rate: self.task.job.learning_rate.at(step),
                reference_s: Seconds(0.0),
            };
            for of in self.ranks.iter_mut().filter_map(|rank| rank.waiting.pop_front()) {
                joined.time_s.0 = joined.time_s.0.max(of.seconds);
                joined.loss += of.loss_sum;
                joined.gradient_norm = joined.gradient_norm.max(of.gradient_norm);
                joined.reference_s.0 = joined.reference_s.0.max(of.reference);
            }
            joined.loss /= tokens;
            self.steps.push(joined.clone());
            self.news.push(joined.clone());
            self.last = Some(joined);
        }
    }

    /// Number of steps that all ranks have reported.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.steps.seen() as u32
    }

    #[must_use]
    pub fn last(&self) -> Option<&StepRecord> {
        self.last.as_ref()
    }

    /// The last reports of the ranks without their steps, by plan rank.
    #[must_use]
    pub fn outcomes(&self) -> Vec<&RankOutcome> {
        let mut outcomes: Vec<_> = self.ranks.iter().filter_map(|rank| rank.outcome.as_ref()).collect();
        outcomes.sort_by_key(|outcome| outcome.rank);
        outcomes
    }

    /// The record of all reported steps; `reason` is given if the training ended early.
    #[must_use]
    pub fn record(&self, environment: Environment, reason: Option<&str>) -> RunRecord {
        let task = &self.task;
        let mut steps = self.steps.kept().to_vec();
        // The last step is always included.
        steps.extend(self.last.clone().filter(|_| !self.steps.has_last()));
        let measured: Vec<f64> =
            steps.iter().filter(|s| s.step >= task.warmup_steps).map(|s| s.time_s.0).collect();
        let outcomes = self.outcomes();
        RunRecord {
            schema_version: SCHEMA_VERSION,
            label: label(&task.strategy, &task.stages),
            strategy: task.strategy.clone(),
            stages: task.stages.clone(),
            precision: task.job.precision,
            environment,
            steps,
            warmup_steps: task.warmup_steps,
            step_time: Sample::of(&measured),
            ranks: outcomes
                .iter()
                .map(|o| RankRecord {
                    rank: o.rank as u32,
                    peak_memory_bytes: Bytes(o.peak_memory),
                    bytes_sent_per_step: Bytes(o.bytes_sent_per_step),
                })
                .collect(),
            compression: guard::merge(outcomes.iter().flat_map(|o| o.compression.iter().copied())),
            timeline: if outcomes.iter().map(|o| o.timeline.len()).sum::<usize>() <= MOST_EVENTS {
                outcomes.iter().flat_map(|o| o.timeline.iter().cloned()).collect()
            } else {
                Vec::new()
            },
            rounds: None,
            ended: reason.map(|reason| Ended { step: self.done(), reason: reason.to_owned() }),
        }
    }
}

/// Merges the complete measurements of all ranks.
pub fn merge(task: &Task, outcomes: &[RankOutcome], environment: Environment) -> RunRecord {
    let mut growing = Growing::new(task);
    outcomes.iter().enumerate().for_each(|(rank, outcome)| growing.take(rank, outcome.clone()));
    growing.record(environment, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataSource;
    use autodist_program::stages;
    use autodist_spec::{Job, ModelSpec, ParallelStrategy};

    const MODEL: &str = r#"{"name": "small", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8,
        "ffn": 64, "vocab": 64, "max_seq_len": 16, "positions": {"kind": "rotary", "theta": 1e4}, "norm": "rms_norm",
        "norm_epsilon": 1e-5, "activation": "swi_glu", "bias": false, "tied_embeddings": false}"#;

    fn task(steps: u32) -> Task {
        let model: ModelSpec = serde_json::from_str(MODEL).expect("a model");
        let strategy = ParallelStrategy::data_parallel(2, 2);
        Task {
            stages: stages::even(&model, &strategy),
            model,
            job: Job::new(8, 16),
            strategy,
            data: DataSource::Synthetic,
            start_step: 0,
            steps,
            warmup_steps: 2,
            detail: false,
            count_memory: false,
            emulated_flops_per_s: None,
            coding: crate::CodecOptions::default(),
        }
    }

    fn told(rank: usize, steps: std::ops::Range<u32>) -> RankOutcome {
        let step = |step: u32| StepOutcome {
            seconds: 1e-3 * (1.0 + rank as f64),
            in_operations: 1e-3,
            loss_sum: f64::from(step),
            gradient_norm: 1.0,
            reference: 1e-5,
        };
        RankOutcome { rank, steps: steps.map(step).collect(), ..RankOutcome::default() }
    }

    /// Twenty thousand steps in reports of 64, with one rank ahead of the other.
    fn long(limit: usize) -> Growing {
        let mut growing = Growing::with_limit(&task(20_000), limit);
        let word = |number: u32| number * 64..((number + 1) * 64).min(20_000);
        growing.take(1, told(1, word(0)));
        for number in 0..313 {
            growing.take(0, told(0, word(number)));
            assert!(growing.ranks.iter().all(|rank| rank.waiting.len() <= 64));
            growing.take(1, told(1, word(number + 1)));
        }
        growing
    }

    #[test]
    fn a_record_holds_every_step_up_to_its_limit() {
        let record = long(LONGEST_RECORD).record(Environment::default(), None);
        assert_eq!(record.steps.len(), 20_000);
        assert!(record.steps.iter().zip(0..).all(|(step, number)| step.step == number));
        assert_eq!((record.step_time.count, record.step_time.median_s), (19_998, Seconds(2e-3)));
        assert!((record.steps[400].loss - 800.0 / 128.0).abs() < 1e-12, "the sum over ranks, per token");
        assert_eq!((record.ended, record.ranks.len()), (None, 2));
    }

    #[test]
    fn a_longer_record_has_steps_of_all_of_it_and_the_last() {
        let growing = long(100);
        assert_eq!(growing.done(), 20_000);
        let record = growing.record(Environment::default(), Some("why"));
        assert!((50..=101).contains(&record.steps.len()), "{}", record.steps.len());
        assert_eq!((record.steps[0].step, record.steps[record.steps.len() - 1].step), (0, 19_999));
        assert_eq!(record.ended, Some(Ended { step: 20_000, reason: "why".to_owned() }));
        let document = autodist_spec::to_json(&record);
        assert_eq!(autodist_spec::parse::json::<RunRecord>("run", document.as_bytes()), Ok(record));
    }

    #[test]
    fn ranks_keep_timelines_of_the_same_few_steps_however_many_there_are() {
        let event = |rank: u32, step: u32| TimelineEvent {
            rank,
            stream: Stream::Compute,
            operation: OperationKind::Forward,
            chunk: 0,
            micro_batch: 0,
            start_s: Seconds(f64::from(step)),
            end_s: Seconds(f64::from(step) + 1.0),
        };
        // Ranks of a pipeline may have different numbers of operations; few of them here, and many.
        for operations in [[3, 5], [20_000, 20_000], [LONGEST_TIMELINE, LONGEST_TIMELINE]] {
            let steps = if operations[0] < 10 { 20_000 } else { 40 };
            let limit = Timelines::limit(operations[0].max(operations[1]), steps as usize);
            let ranks = [0, 1].map(|rank| {
                let mut timelines = Timelines::new(operations[rank], limit);
                let taken = timelines.events.capacity();
                for step in 0..steps {
                    (0..operations[rank]).for_each(|_| timelines.take(event(rank as u32, step)));
                    timelines.end_step(f64::from(step));
                }
                assert_eq!(timelines.events.capacity(), taken);
                assert!(timelines.events.len() <= OPERATIONS.max(LONGEST_TIMELINE));
                timelines
            });
            assert_eq!(ranks[0].seconds, ranks[1].seconds);
            assert!((1..=TIMELINES).contains(&ranks[0].seconds.len()));
            for (place, seconds) in ranks[0].seconds.iter().enumerate() {
                for rank in &ranks {
                    let of = rank.of(place);
                    assert_eq!(of.len(), rank.operations);
                    assert!(of.iter().all(|event| event.start_s.0 == *seconds));
                }
            }
        }
        let none = Timelines::new(LONGEST_TIMELINE + 1, Timelines::limit(LONGEST_TIMELINE + 1, 10));
        assert_eq!(none.events.capacity(), 0);
    }

    #[test]
    fn the_typical_step_is_the_one_nearest_the_median() {
        assert_eq!(typical(&[5.0, 1.0, 2.9, 3.0, 9.0]), Some(3));
        assert_eq!(typical(&[]), None);
    }
}
