//! One rank's part of a training run: the interpreter of its Program.

use crate::compression::{self, SharedWatch};
use crate::data::Data;
use crate::device::{CollectiveGroup, SendRecv, Tag, TrainingDevice};
use crate::host::{self, Placement};
use crate::layers::{Context, Frame, Rows};
use crate::pace::{Emulated, Pace};
use crate::record::{RankOutcome, Recorder, StepOutcome, TimelineLabel, typical};
use crate::reference::beside;
use crate::rounding::{RoundedCollective, RoundedSendRecv};
use crate::state::ModelState;
use crate::store::Store;
use crate::stream::{BucketTransfer, CommunicationStream, Groups};
use crate::{ExecutionError, Task};
use autodist_communication::{Communicator, Control, Counters, Endpoint, GroupOptions, ReduceOp};
use autodist_compute::layers::{LayerShape, TensorShard};
use autodist_compute::{Backend, Region, RegionMut};
use autodist_program::{
    Axis, BodyKind, Coordinates, Instruction, Message, MessageKind, Op, Operand, Program, RankProgram,
    TensorCollective, Transfer,
};
use autodist_spec::{Algorithm, Codec, Coded, OperationKind, Segment, Shard, Stream};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::TryLockError;
use std::time::{Duration, Instant};

/// FLOPs per element of an optimizer update: AdamW's moments, bias correction, square root, decay.
const UPDATE_FLOPS: f64 = 20.0;

/// Time between two reports of a running training.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// Number of steps after which a rank reports at once, because unreported steps take memory that is counted.
const TELL_AT: usize = 64;

/// Callback for reports of a running training: the new steps, and the current state of the rest.
pub type Tell<'a> = &'a mut dyn FnMut(&RankOutcome) -> Result<(), ExecutionError>;

/// Trains `task` as this endpoint's rank. `name` must be new to the endpoint; all ranks use the same. Steps
/// are reported when they are completed, even if an error follows; without `tell`, the outcome has all of
/// them.
///
/// # Errors
/// An illegal task, data that cannot be read, a peer that has disconnected or is silent, a stop request of
/// the launcher.
pub fn train<B: TrainingDevice>(
    device: &B,
    task: &Task,
    endpoint: &mut Endpoint,
    name: &str,
    placement: Placement,
    tell: Option<Tell<'_>>,
) -> Result<RankOutcome, ExecutionError> {
    train_and(device, task, endpoint, name, placement, true, tell, None, |_| ()).map(|(outcome, ())| outcome)
}

/// Like [`train`]; the reference benchmark runs with each step only if `referenced`, the training continues
/// `from` a state that fits, and `inspect` receives what was trained.
pub(crate) fn train_and<B: TrainingDevice, R>(
    device: &B,
    task: &Task,
    endpoint: &mut Endpoint,
    name: &str,
    placement: Placement,
    referenced: bool,
    tell: Option<Tell<'_>>,
    from: Option<&ModelState>,
    inspect: impl FnOnce(&Store<B>) -> R,
) -> Result<(RankOutcome, R), ExecutionError> {
    if endpoint.world() != task.world() {
        return Err(ExecutionError::World { expected: endpoint.world(), given: task.world() });
    }
    let program = task.program()?;
    let me = program.strategy.communication.rank(endpoint.rank());
    let at = program.mesh.coordinates(me);
    let data = Data::open(&task.data, task.model.vocab, program.seq_len, task.job.seed)?;
    let before_reference = device.live_memory();
    let emulated = Emulated::new(task.emulated_flops_per_s, placement);
    let mut reference = if referenced && emulated.is_none() { device.reference() } else { None };
    // If ranks are threads (over MPI), other threads of the process may free memory at the same time.
    let instrument = device.live_memory().saturating_sub(before_reference);
    let mut speed = || reference.as_mut().map_or(0.0, |reference| reference.seconds());
    speed();
    let baseline = device.live_memory().saturating_sub(instrument);
    let lanes = Lanes::open(&program, at, endpoint, name, placement, device, task)?;
    let runner = &program.ranks[at.pipeline];
    let bodies: Vec<_> = runner.bodies.iter().map(|b| b.instructions.clone()).collect();
    let measured = task.steps.saturating_sub(task.warmup_steps) as usize;
    let longest = program.ranks.iter().map(events_per_step).max().unwrap_or_default();
    let recorder = Recorder::new(
        device,
        me,
        &bodies,
        (events_per_step(runner), longest),
        measured.max(task.warmup_steps as usize),
        program.micro_batches,
        task.detail,
    );
    let mut store = Store::new(device, &program, at, &task.job.optimizer, task.job.seed);
    if let Some(state) = from {
        store.import(state);
    }
    let mut rank = Rank {
        device,
        task,
        program: &program,
        runner,
        at,
        shape: shape(&program, at),
        store,
        lanes,
        data,
        frames: BTreeMap::new(),
        outgoing: None,
        step: 0,
        gradient_scale: 1.0,
        gradient_norm: 0.0,
        losses: Vec::with_capacity(program.micro_batches),
        memory_peak: 0,
        pace: Pace::new(emulated),
        recorder,
        control: endpoint.control().clone(),
    };
    rank.lanes.world.barrier()?;
    if emulated.is_none() {
        host::enter_compute(placement);
    }
    device.reset_peak_memory();
    device.reset_high_water();
    let mut outcome = RankOutcome {
        rank: me,
        realtime: placement.realtime,
        baseline_memory: baseline as u64,
        ..RankOutcome::default()
    };
    let own = if device.is_host() { rank.recorder.bytes() + instrument } else { 0 };
    rank.train(&mut outcome, own, &mut speed, tell)?;
    // All ranks keep the timelines of the same steps, and choose the same step.
    let mut seconds = rank.recorder.kept_seconds();
    if !seconds.is_empty() {
        rank.lanes.world.all_reduce(&mut seconds, ReduceOp::Max)?;
    }
    let inspected = inspect(&rank.store);
    let Rank { recorder, lanes, .. } = rank;
    (outcome.timeline, outcome.instructions) = recorder.finish(typical(&seconds));
    lanes.messages.map_or(Ok(()), SendRecv::close)?;
    host::enter_communication(placement);
    Ok((outcome, inspected))
}

/// Number of timeline entries in a step: one per operation, and one per transfer.
fn events_per_step(runner: &RankProgram) -> usize {
    let transfers = |body: usize| {
        runner.bodies[body].instructions.iter().filter(|i| matches!(i, Instruction::Wait { .. })).count()
    };
    let of = |op: &Op| 1 + if let Op::Run { body, .. } = op { transfers(*body) } else { 0 };
    runner.ops.iter().map(of).sum()
}

fn shape(program: &Program, at: Coordinates) -> LayerShape {
    let strategy = &program.strategy;
    let shard = TensorShard {
        rank: at.tensor as u32,
        degree: strategy.tensor,
        sequence_parallel: strategy.sequence_parallel,
    };
    LayerShape::new(&program.model, strategy.micro_batch as usize, program.seq_len, shard)
}

/// The communication groups of this rank.
struct Lanes<B: TrainingDevice> {
    /// For barriers, and for numbers that the host needs.
    world: Box<dyn Communicator>,
    model: Box<dyn Communicator>,
    tensor: Box<dyn CollectiveGroup<B>>,
    tied: Option<Box<dyn CollectiveGroup<B>>>,
    stream: CommunicationStream<B>,
    /// Guards of the buckets whose gradients are compressed.
    watches: Vec<SharedWatch>,
    messages: Option<Box<dyn SendRecv<B>>>,
}

impl<B: TrainingDevice> Lanes<B> {
    fn open(
        program: &Program,
        at: Coordinates,
        endpoint: &mut Endpoint,
        name: &str,
        placement: Placement,
        device: &B,
        task: &Task,
    ) -> Result<Self, ExecutionError> {
        // Communication threads are created at the higher priority.
        host::enter_communication(placement);
        let (mesh, residence) = (program.mesh, program.residence());
        let me = mesh.rank(at);
        let everyone: Vec<usize> = (0..mesh.world()).collect();
        let world = endpoint.group(&format!("{name}.world"), &everyone)?;
        let model =
            endpoint.group(&format!("{name}.model"), &program.devices(&program.model_view().group(me)))?;
        let communication = &program.strategy.communication;
        let mut open = |what: &str, members: &[usize], options: &GroupOptions| {
            device.group(endpoint, &format!("{name}.{what}"), &program.devices(members), options)
        };
        let by =
            |algorithm: Algorithm| GroupOptions { algorithms: vec![algorithm], ..GroupOptions::default() };
        let over = |axes: &[Axis]| mesh.view(axes).group(me);
        let tensor = open("tensor", &over(&[Axis::Tensor]), &by(communication.tensor))?;
        let (shards, replicas) = (over(residence.shard_axes()), over(residence.replica_axes()));
        let reduces = if residence.shards_state() { &shards } else { &replicas };
        let queue = device.queue()?;
        let emulated = Emulated::new(task.emulated_flops_per_s, placement);
        let (compressors, watches) = compression::of(&queue, program, at, task, emulated);
        let options = GroupOptions {
            algorithms: communication.reductions().map(|reduction| reduction.algorithm).collect(),
            all_to_all: communication.reductions().any(|reduction| reduction.codec != Codec::None),
        };
        let groups = Groups {
            reduce: open("reduce", reduces, &options)?,
            replicas: open("replicas", &replicas, &GroupOptions::default())?,
            gather: open("gather", &shards, &by(communication.gather))?,
            emulated,
            compressors,
        };
        let ends = at.pipeline == 0 || at.pipeline + 1 == mesh.pipeline;
        let tied = (program.model.tied_embeddings && mesh.pipeline > 1 && ends)
            .then(|| open("tied", &mesh.ends(at), &GroupOptions::default()))
            .transpose()?;
        let peers = message_peers(program, at);
        let messages = match peers.is_empty() {
            true => None,
            false => {
                let name = format!("{name}.messages");
                let rounding = RoundedCollective::of(communication.activations, Coded::Activations, emulated);
                Some(match rounding {
                    Some(rounding) => {
                        Box::new(RoundedSendRecv::new(endpoint.point_to_point(&name, &peers)?, rounding))
                    }
                    None => device.messages(endpoint, &name, &peers)?,
                })
            }
        };
        let stream = CommunicationStream::start(queue, groups)?;
        Ok(Self { world, model, tensor, tied, stream, watches, messages })
    }

    fn counters(&self) -> Counters {
        let tied = self.tied.as_ref().map(|t| t.counters()).unwrap_or_default();
        let messages = self.messages.as_ref().map(|m| m.counters()).unwrap_or_default();
        self.tensor.counters() + self.model.counters() + tied + messages + self.stream.counters()
    }
}

/// World ranks with which this rank's stage exchanges activations and gradients.
fn message_peers(program: &Program, at: Coordinates) -> Vec<usize> {
    let mut peers: Vec<usize> = program.ranks[at.pipeline]
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::Receive(message) | Op::Send(message) => Some(message.peer),
            Op::Run { .. } => None,
        })
        .map(|pipeline| program.mesh.rank(Coordinates { pipeline, ..at }))
        .map(|rank| program.strategy.communication.device(rank))
        .collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

struct Rank<'a, B: TrainingDevice> {
    device: &'a B,
    task: &'a Task,
    program: &'a Program,
    runner: &'a RankProgram,
    at: Coordinates,
    shape: LayerShape,
    store: Store<B>,
    lanes: Lanes<B>,
    data: Data,
    /// Micro-batches in progress, by chunk and number.
    frames: BTreeMap<(usize, usize), Frame<B>>,
    /// Output of the last body, for the send that follows.
    outgoing: Option<B::Buffer>,
    step: u32,
    gradient_scale: f64,
    gradient_norm: f64,
    /// Losses of this step's micro-batches.
    losses: Vec<B::Scalar>,
    memory_peak: usize,
    pace: Pace,
    recorder: Recorder<B>,
    control: Control,
}

impl<B: TrainingDevice> Rank<'_, B> {
    /// Runs all steps. `own` bytes of the memory belong to the measurement itself.
    fn train(
        &mut self,
        outcome: &mut RankOutcome,
        own: usize,
        speed: &mut dyn FnMut() -> f64,
        mut tell: Option<Tell<'_>>,
    ) -> Result<(), ExecutionError> {
        let mut sent_before = Counters::default();
        let mut told: Option<Instant> = None;
        let mut before = speed();
        let mut trained = Ok(());
        for step in 0..self.task.steps {
            if step == self.task.warmup_steps {
                self.recorder.clear();
                sent_before = self.lanes.counters();
            }
            trained = self.train_step(step, &mut before, speed, outcome);
            if trained.is_err() {
                break;
            }
            let due = outcome.steps.len() >= TELL_AT || told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
            if let Some(tell) = tell.as_mut().filter(|_| due) {
                self.stand(outcome, &sent_before, own);
                tell(outcome)?;
                outcome.steps.clear();
                told = Some(Instant::now());
            }
            trained = self.lanes.world.barrier().map_err(ExecutionError::from);
            if trained.is_err() {
                break;
            }
        }
        self.stand(outcome, &sent_before, own);
        if let Some(tell) = tell.filter(|_| !outcome.steps.is_empty()) {
            // If the launcher has disconnected, the reason why the training ended is more useful.
            trained = trained.and(tell(outcome));
            outcome.steps.clear();
        }
        trained
    }

    fn train_step(
        &mut self,
        step: u32,
        before: &mut f64,
        speed: &mut dyn FnMut() -> f64,
        outcome: &mut RankOutcome,
    ) -> Result<(), ExecutionError> {
        let mut done = self.run_step(step)?;
        let after = speed();
        done.reference = beside(*before, after);
        *before = after;
        outcome.steps.push(done);
        Ok(())
    }

    /// Updates everything in the outcome except the steps.
    fn stand(&self, outcome: &mut RankOutcome, sent_before: &Counters, own: usize) {
        // Counted from the end of the warm-up, or from the start during the warm-up.
        let measured = self.step.checked_sub(self.task.warmup_steps).unwrap_or(self.step) + 1;
        let sent = (self.lanes.counters() - *sent_before).sent;
        outcome.bytes_sent_per_step = sent / u64::from(measured);
        // Reading resets the high-water marks of some devices.
        let peak = self.device.high_water(self.memory_peak.max(self.device.peak_memory()));
        outcome.peak_memory = outcome.peak_memory.max((peak as u64).saturating_sub(own as u64));
        // After a failed step, a reduction may still wait for a peer, so this does not block.
        let of = |watch: &SharedWatch| match watch.try_lock() {
            Ok(watch) => watch.record(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().record(),
            Err(TryLockError::WouldBlock) => None,
        };
        outcome.compression = self.lanes.watches.iter().filter_map(of).collect();
    }

    fn run_step(&mut self, step: u32) -> Result<StepOutcome, ExecutionError> {
        if self.control.stop_requested() {
            return Err(ExecutionError::Stopped);
        }
        self.step = step;
        self.losses.clear();
        self.recorder.begin_step();
        let runner = self.runner;
        for op in &runner.ops {
            let start = self.device.record();
            let label = match op {
                Op::Receive(message) => self.receive(message)?,
                Op::Send(message) => self.send(message)?,
                Op::Run { body, micro_batch } => self.run_body(*body, *micro_batch)?,
            };
            self.recorder.operation(label, start, self.device.record());
        }
        self.device.synchronise()?;
        let loss_sum = self.losses.iter().map(|loss| self.device.read(loss)).sum();
        for (what, value) in [("loss", loss_sum), ("gradient norm", self.gradient_norm)] {
            if !f64::is_finite(value) {
                return Err(ExecutionError::Diverged { what, step, value });
            }
        }
        self.lanes.world.barrier()?;
        self.pace.interrupt();
        let seconds = self.recorder.elapsed();
        Ok(StepOutcome {
            seconds,
            in_operations: self.recorder.end_step(seconds),
            loss_sum,
            gradient_norm: self.gradient_norm,
            reference: 0.0,
        })
    }

    /// Steps before this one, over all runs of the training.
    fn trained(&self) -> u32 {
        self.task.start_step.saturating_add(self.step)
    }

    fn peer(&self, message: &Message) -> usize {
        let rank = self.program.mesh.rank(Coordinates { pipeline: message.peer, ..self.at });
        self.program.strategy.communication.device(rank)
    }

    fn receive(&mut self, message: &Message) -> Result<TimelineLabel, ExecutionError> {
        let peer = self.peer(message);
        let messages = self.lanes.messages.as_mut().expect("a Program with messages has a way for them");
        let values = messages.receive(self.device, peer, tag(message), message.elements)?;
        self.pace.interrupt();
        self.frames.entry((message.chunk, message.micro_batch)).or_default().flow = Some(values);
        Ok(label(OperationKind::Receive, message.chunk, message.micro_batch))
    }

    fn send(&mut self, message: &Message) -> Result<TimelineLabel, ExecutionError> {
        let peer = self.peer(message);
        let buffer = self.outgoing.take().expect("a body has given what is sent");
        let messages = self.lanes.messages.as_mut().expect("a Program with messages has a way for them");
        messages.send(self.device, peer, tag(message), buffer)?;
        if self.program.strategy.communication.activations != Codec::None {
            self.pace.interrupt();
        }
        Ok(label(OperationKind::Send, message.chunk, message.micro_batch))
    }

    fn run_body(&mut self, body: usize, micro_batch: usize) -> Result<TimelineLabel, ExecutionError> {
        let runner = self.runner;
        let (operation, chunk) = match runner.bodies[body].kind {
            BodyKind::Forward { chunk } => (OperationKind::Forward, chunk),
            BodyKind::Backward { chunk } => (OperationKind::Backward, chunk),
            BodyKind::Optimizer => (OperationKind::Optimizer, 0),
        };
        let mut frame = match operation {
            OperationKind::Optimizer => Frame::default(),
            _ => self.frames.remove(&(chunk, micro_batch)).unwrap_or_default(),
        };
        if operation == OperationKind::Forward {
            self.load(&mut frame, chunk, micro_batch)?;
        }
        for (index, instruction) in runner.bodies[body].instructions.iter().enumerate() {
            if !self.recorder.detail() {
                self.run_paced(instruction, &mut frame)?;
                continue;
            }
            self.memory_peak = self.memory_peak.max(self.device.reset_peak_memory());
            let (before, start) = (self.device.live_memory(), self.device.record());
            let queued = (!self.device.is_host()).then(Instant::now);
            self.run_paced(instruction, &mut frame)?;
            let launch = queued.map(|began| began.elapsed().as_secs_f64());
            let end = self.device.record();
            let growth = self.device.live_memory() as i64 - before as i64;
            let peak = self.device.peak_memory().saturating_sub(before) as u64;
            self.recorder.instruction(body, index, (start, end), launch, growth, peak);
        }
        let chunks = self.program.stages.len();
        match operation {
            OperationKind::Forward => {
                if chunk + 1 < chunks {
                    self.outgoing = frame.flow.take();
                } else {
                    // All tensor-parallel ranks have the loss of their micro-batch; one of them reports it.
                    self.losses.extend(frame.loss.take().filter(|_| self.at.tensor == 0));
                }
                self.frames.insert((chunk, micro_batch), frame);
            }
            OperationKind::Backward => self.outgoing = frame.flow.take(),
            _ => {}
        }
        Ok(label(operation, chunk, micro_batch))
    }

    /// Reads the tokens of a micro-batch where they are needed: at the embedding and at the loss.
    fn load(&self, frame: &mut Frame<B>, chunk: usize, micro_batch: usize) -> Result<(), ExecutionError> {
        let (first, last) = (chunk == 0, chunk + 1 == self.program.stages.len());
        if !first && !last {
            return Ok(());
        }
        let size = self.program.strategy.micro_batch as usize;
        let seq_len = self.program.seq_len;
        let (mut inputs, mut targets) = (vec![0; seq_len * size], vec![0; seq_len * size]);
        let mut sequence = vec![0; seq_len + 1];
        let before = u64::from(self.trained()) * u64::from(self.task.job.global_batch);
        for place in 0..size {
            let number = (micro_batch * self.program.mesh.data() + self.at.data) * size + place;
            self.data.sequence(before + number as u64, &mut sequence).map_err(ExecutionError::Read)?;
            for position in 0..seq_len {
                inputs[position * size + place] = sequence[position];
                targets[position * size + place] = sequence[position + 1];
            }
        }
        frame.inputs = first.then(|| self.device.upload_indices(&inputs));
        frame.targets = last.then(|| self.device.upload_indices(&targets));
        Ok(())
    }

    fn context(&self) -> Context<'_, B> {
        context(self.device, self.task, self.program, &self.shape)
    }

    /// Runs an instruction at the speed of the emulated device, if the device is emulated.
    fn run_paced(&mut self, instruction: &Instruction, frame: &mut Frame<B>) -> Result<(), ExecutionError> {
        let Program { model, strategy, seq_len, .. } = self.program;
        let flops = match *instruction {
            Instruction::Segment { layer, segment, pass, recompute } => {
                let shard = Shard::of(strategy, *seq_len as u32);
                model.segment_flops(&model.block(layer), segment, (pass, recompute), &shard)
            }
            Instruction::Update { elements, .. } => UPDATE_FLOPS * elements as f64,
            Instruction::Start { .. } | Instruction::Release { .. } => {
                return self.run_instruction(instruction, frame);
            }
            _ => {
                self.run_instruction(instruction, frame)?;
                self.pace.interrupt();
                return Ok(());
            }
        };
        let Some(start) = self.pace.begin() else { return self.run_instruction(instruction, frame) };
        self.run_instruction(instruction, frame)?;
        self.pace.end(start, flops);
        Ok(())
    }

    fn run_instruction(
        &mut self,
        instruction: &Instruction,
        frame: &mut Frame<B>,
    ) -> Result<(), ExecutionError> {
        match *instruction {
            Instruction::Segment { layer, segment, pass, recompute } => {
                let context = context(self.device, self.task, self.program, &self.shape);
                context.run(&mut self.store, frame, layer, segment, pass, recompute);
            }
            Instruction::Tensor { layer, segment, collective, operand, .. } => {
                self.tensor_collective(frame, layer, segment, collective, operand)?;
            }
            Instruction::Context { .. } | Instruction::Experts { .. } => {
                unreachable!("`Task::program` refuses context parallelism and experts")
            }
            Instruction::SumReplicated { bucket, .. } => self.sum_replicated(bucket)?,
            Instruction::Start { transfer, bucket } => self.start(transfer, bucket)?,
            Instruction::Wait { transfer, bucket } => self.wait(transfer, bucket)?,
            Instruction::Release { bucket } => self.store.release(bucket),
            Instruction::SumTied { bucket, .. } => {
                let tied = self.lanes.tied.as_mut().expect("both ends of the pipeline share a tied table");
                let (gradients, range) = self.store.own_gradients(bucket);
                tied.all_reduce(self.device, Algorithm::Ring, gradients, range, ReduceOp::Sum)?;
            }
            Instruction::GradientNorm { .. } => self.gradient_norm()?,
            Instruction::Update { bucket, .. } => {
                let rate = self.task.job.learning_rate.at(self.trained());
                let step = u64::from(self.trained()) + 1;
                let codec = self.program.reduction(self.at.pipeline, Transfer::Reduce, bucket).codec;
                let codec = if self.program.mesh.data() > 1 { codec } else { Codec::None };
                let (optimizer, frozen_after) = compression::optimizer_beside(codec, self.task.job.optimizer);
                self.store.update(bucket, &optimizer, step, rate, self.gradient_scale, frozen_after);
            }
        }
        Ok(())
    }

    fn tensor_collective(
        &mut self,
        frame: &mut Frame<B>,
        layer: usize,
        segment: Segment,
        collective: TensorCollective,
        operand: Operand,
    ) -> Result<(), ExecutionError> {
        let saved = operand == Operand::SavedInput;
        let mut buffer = if collective == TensorCollective::AllGather {
            self.context().begin_gather(frame, layer, segment, saved)
        } else {
            frame.flow.take().expect("the last segment has given what is reduced")
        };
        let whole = 0..self.device.len(&buffer);
        let algorithm = self.program.strategy.communication.tensor;
        let (group, device) = (&mut self.lanes.tensor, self.device);
        match collective {
            TensorCollective::SumAll => {
                group.all_reduce(device, algorithm, &mut buffer, whole, ReduceOp::Sum)?;
            }
            TensorCollective::MaxAll => {
                group.all_reduce(device, algorithm, &mut buffer, whole, ReduceOp::Max)?;
            }
            TensorCollective::AllGather => group.all_gather(device, algorithm, &mut buffer, whole)?,
            TensorCollective::ReduceScatter => group.reduce_scatter(device, algorithm, &mut buffer, whole)?,
        }
        match collective {
            TensorCollective::AllGather => self.context().end_gather(frame, layer, segment, saved, buffer),
            TensorCollective::ReduceScatter => self.context().scatter(frame, buffer),
            TensorCollective::SumAll | TensorCollective::MaxAll => frame.flow = Some(buffer),
        }
        Ok(())
    }

    /// All-reduces the tails of the bucket's regions over the tensor-parallel group, in one collective.
    fn sum_replicated(&mut self, bucket: usize) -> Result<(), ExecutionError> {
        let tails: Vec<_> = self
            .store
            .bucket(bucket)
            .layers
            .iter()
            .map(|l| l.offset + l.elements - l.replicated..l.offset + l.elements)
            .collect();
        let device = self.device;
        let gradients = self.store.gradients_mut(bucket);
        let whole = tails.iter().map(Range::len).sum();
        let mut packed = device.uninitialised_full(whole);
        let mut at = 0;
        for tail in &tails {
            let to = RegionMut::new(&mut packed, at);
            device.copy(tail.len(), Region::new(gradients, tail.start), to);
            at += tail.len();
        }
        let algorithm = self.program.strategy.communication.tensor;
        self.lanes.tensor.all_reduce(device, algorithm, &mut packed, 0..whole, ReduceOp::Sum)?;
        let mut at = 0;
        for tail in &tails {
            let to = RegionMut::new(gradients, tail.start);
            device.copy(tail.len(), Region::new(&packed, at), to);
            at += tail.len();
        }
        Ok(())
    }

    fn start(&mut self, transfer: Transfer, bucket: usize) -> Result<(), ExecutionError> {
        let (kind, _) = self.program.transfer_work(transfer, self.store.bucket(bucket));
        let (buffer, range) = match transfer {
            Transfer::Reduce => {
                let gradients = self.store.take_gradients(bucket);
                let whole = 0..self.device.len(&gradients);
                (gradients, whole)
            }
            Transfer::ReduceReplicas => self.store.take_own_gradients(bucket),
            Transfer::Gather => {
                let parameters = self.store.take_for_gather(bucket);
                let whole = 0..self.device.len(&parameters);
                (parameters, whole)
            }
        };
        let ready = self.device.record();
        let reduction = self.program.reduction(self.at.pipeline, transfer, bucket);
        self.lanes.stream.submit(BucketTransfer {
            key: (transfer, bucket),
            kind,
            reduction,
            buffer,
            range,
            ready,
        })
    }

    fn wait(&mut self, transfer: Transfer, bucket: usize) -> Result<(), ExecutionError> {
        let done = self.lanes.stream.wait((transfer, bucket))?;
        let chunk = self.store.bucket(bucket).chunk;
        let operation =
            if transfer == Transfer::Gather { OperationKind::Gather } else { OperationKind::Reduce };
        self.device.wait_for(&done.end);
        let label = TimelineLabel { stream: Stream::Communication, operation, chunk, micro_batch: bucket };
        self.recorder.operation(label, done.start, done.end);
        match transfer {
            Transfer::Reduce => self.store.put_reduced(bucket, done.buffer),
            Transfer::ReduceReplicas => self.store.put_own_gradients(bucket, done.buffer),
            Transfer::Gather => self.store.put_gathered(bucket, done.buffer),
        }
        Ok(())
    }

    /// Norm of the gradient of the whole model, and the factor that clips it (Pascanu et al., 1211.5063; the
    /// small constant is PyTorch's).
    fn gradient_norm(&mut self) -> Result<(), ExecutionError> {
        let mut sum = [self.store.sum_of_squares() as f32];
        self.lanes.model.all_reduce(&mut sum, ReduceOp::Sum)?;
        self.gradient_norm = f64::from(sum[0]).sqrt();
        let clip = self.task.job.gradient_clip;
        self.gradient_scale = if clip > 0.0 { (clip / (self.gradient_norm + 1e-6)).min(1.0) } else { 1.0 };
        Ok(())
    }
}

/// A separate function, so that the store can be borrowed at the same time.
fn context<'a, B: Backend>(
    device: &'a B,
    task: &Task,
    program: &Program,
    shape: &'a LayerShape,
) -> Context<'a, B> {
    let hidden = shape.hidden;
    Context {
        device,
        shape,
        rows: Rows {
            sequence_parallel: shape.shard.sequence_parallel,
            start: shape.rows.start * hidden,
            len: shape.rows.len() * hidden,
            whole: shape.tokens * hidden,
        },
        tied: program.model.tied_embeddings,
        loss_scale: 1.0 / task.job.tokens() as f64,
    }
}

fn tag(message: &Message) -> Tag {
    let kind = match message.kind {
        MessageKind::Activation => 0,
        MessageKind::Gradient => 1,
    };
    Tag { kind, chunk: message.chunk as u32, micro_batch: message.micro_batch as u32 }
}

fn label(operation: OperationKind, chunk: usize, micro_batch: usize) -> TimelineLabel {
    TimelineLabel { stream: Stream::Compute, operation, chunk, micro_batch }
}
