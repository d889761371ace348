//! The simulator: each pipeline rank represents all its data and tensor replicas.
//!
//! A rank has a compute stream, which runs the operations in order, and a communication stream, which runs
//! queued transfers first in, first out. While both are busy, both are slowed by the profile's interference;
//! a stream that runs alone runs at full speed. A blocking tensor collective counts as a busy compute stream.
//! The host of a rank launches the operations in order and runs ahead of the device; an operation starts when
//! it is launched and the device is free.
//! Ranks depend on each other only by send/recv and barriers, so each is advanced as far as possible, in
//! turn: no event queue is needed.

use crate::priced::{Barrier, Priced, Step, TransferId, Work};
use autodist_program::{BodyKind, Message, MessageKind, Op, Transfer};
use autodist_spec::{CostBreakdown, OperationKind, Seconds, Stream, TimelineEvent};
use std::collections::VecDeque;

/// One simulated step.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulation {
    pub step_time_s: Seconds,
    /// One per pipeline rank; each sums to the step time.
    pub ranks: Vec<CostBreakdown>,
}

impl Simulation {
    /// The pipeline rank with the least idle time.
    pub fn busiest(&self) -> usize {
        let idle = |rank: &usize| self.ranks[*rank].bubble_s.0;
        (0..self.ranks.len()).min_by(|a, b| idle(a).total_cmp(&idle(b))).unwrap_or(0)
    }
}

impl Priced<'_> {
    pub fn simulate(&self) -> Simulation {
        self.run(None)
    }

    /// The operations of the simulated step, by pipeline rank and start.
    pub fn timeline(&self) -> Vec<TimelineEvent> {
        let mut events = Vec::new();
        self.run(Some(&mut events));
        events.sort_by(|a, b| {
            a.rank.cmp(&b.rank).then(a.start_s.0.total_cmp(&b.start_s.0)).then(a.stream.cmp(&b.stream))
        });
        events
    }

    fn run(&self, events: Option<&mut Vec<TimelineEvent>>) -> Simulation {
        let mut world = World {
            priced: self,
            sent: vec![None; 2 * self.program.stages.len() * self.program.micro_batches],
            free: vec![vec![0.0; self.ranks.len()]; self.ranks.len()],
            arrivals: vec![[None; 3]; self.ranks.len()],
            events,
        };
        let mut ranks: Vec<Rank> = (0..self.ranks.len()).map(Rank::new).collect();
        while ranks.iter().any(|rank| !rank.done) {
            let mut moved = false;
            for rank in &mut ranks {
                moved |= rank.advance(&mut world);
            }
            assert!(moved, "a compiled program has no deadlock");
        }
        let end = ranks.iter().map(|rank| rank.now).fold(0.0, f64::max);
        Simulation { step_time_s: Seconds(end), ranks: ranks.into_iter().map(|rank| rank.cost).collect() }
    }
}

/// State that the ranks share.
struct World<'a, 'b> {
    priced: &'a Priced<'a>,
    /// When each send started and when it arrives, by kind, chunk and micro-batch.
    sent: Vec<Option<(f64, f64)>>,
    /// When the path from one pipeline rank to another is free again: sends on it are sequential.
    free: Vec<Vec<f64>>,
    /// When each rank arrived at each barrier.
    arrivals: Vec<[Option<f64>; 3]>,
    events: Option<&'b mut Vec<TimelineEvent>>,
}

impl World<'_, '_> {
    fn slot(&self, message: &Message) -> usize {
        let kind = usize::from(message.kind == MessageKind::Gradient);
        (kind * self.priced.program.stages.len() + message.chunk) * self.priced.program.micro_batches
            + message.micro_batch
    }

    /// When the last member arrives; `None` while one is missing.
    fn complete(&self, barrier: Barrier) -> Option<f64> {
        let last = self.arrivals.len() - 1;
        let member = |rank: &usize| barrier != Barrier::Tied || *rank == 0 || *rank == last;
        (0..=last)
            .filter(member)
            .try_fold(0.0_f64, |latest, rank| Some(latest.max(self.arrivals[rank][barrier as usize]?)))
    }

    fn record(&mut self, event: impl FnOnce() -> TimelineEvent) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }
}

/// A queued or running transfer on the communication stream.
struct Queued {
    id: TransferId,
    /// Remaining seconds at full speed.
    left: f64,
    start: f64,
    chunk: usize,
    micro_batch: usize,
}

struct Rank {
    index: usize,
    now: f64,
    /// When the host is free to launch; never later than `now`.
    host: f64,
    /// Next operation, and next step in its body.
    op: usize,
    step: usize,
    body_start: f64,
    launch_start: f64,
    queue: VecDeque<Queued>,
    cost: CostBreakdown,
    done: bool,
}

impl Rank {
    fn new(index: usize) -> Self {
        Self {
            index,
            now: 0.0,
            host: 0.0,
            op: 0,
            step: 0,
            body_start: 0.0,
            launch_start: 0.0,
            queue: VecDeque::new(),
            cost: CostBreakdown::default(),
            done: false,
        }
    }

    /// Runs until it is blocked; returns whether it advanced.
    fn advance(&mut self, world: &mut World) -> bool {
        let mut moved = false;
        while !self.done {
            let ran = match world.priced.program.ranks[self.index].ops.get(self.op) {
                Some(Op::Receive(message)) => self.receive(message, world),
                Some(Op::Send(message)) => {
                    let slot = world.slot(message);
                    let start = self.now;
                    self.code(world);
                    let free = &mut world.free[self.index][message.peer];
                    *free = free.max(self.now) + world.priced.messages[self.index][message.peer].seconds;
                    world.sent[slot] = Some((self.now, *free));
                    self.record(world, OperationKind::Send, message.chunk, message.micro_batch, start);
                    true
                }
                Some(Op::Run { body, micro_batch }) => self.body(*body, *micro_batch, world, &mut moved),
                None => self.end(world, &mut moved),
            };
            if !ran {
                return moved;
            }
            moved = true;
            self.op += 1;
        }
        moved
    }

    fn receive(&mut self, message: &Message, world: &mut World) -> bool {
        let Some((sent, arrives)) = world.sent[world.slot(message)] else { return false };
        let start = self.now;
        // Until the peer has sent, the idle time is caused by the schedule; the rest is the transfer time.
        let bubble = (sent - self.now).max(0.0);
        let flight = (arrives - self.now).max(0.0) - bubble;
        self.cost.bubble_s += Seconds(bubble);
        self.cost.pipeline_communication_s += Seconds(flight);
        self.idle(bubble + flight, world);
        if world.priced.costs.receives_block {
            self.host = self.now;
        }
        self.code(world);
        self.record(world, OperationKind::Receive, message.chunk, message.micro_batch, start);
        true
    }

    /// Coding of a send/recv at one end.
    fn code(&mut self, world: &mut World) {
        let seconds = 0.5 * world.priced.message_coding.seconds;
        if seconds > 0.0 {
            self.work(&Work { pipeline: seconds, ..Work::default() }, world);
        }
    }

    /// Runs the body from its current step; false when it is blocked.
    fn body(&mut self, body: usize, micro_batch: usize, world: &mut World, moved: &mut bool) -> bool {
        let priced = world.priced;
        let prices = &priced.ranks[self.index][body];
        if self.step == 0 {
            (self.body_start, self.launch_start) = (self.now, self.host);
        }
        if prices.pure && self.queue.is_empty() {
            self.launch(&prices.work, world);
            self.now += prices.work.total();
            self.count(&prices.work);
        } else {
            while let Some(step) = prices.steps.get(self.step) {
                match step {
                    Step::Work(work) => self.work(work, world),
                    Step::Start(id, seconds) => {
                        let chunk = priced.program.ranks[self.index].buckets()[id.1].chunk;
                        let queued = Queued { id: *id, left: *seconds, start: self.now, chunk, micro_batch };
                        self.queue.push_back(queued);
                    }
                    Step::Wait(id) => self.wait(*id, world),
                    Step::Barrier(barrier, seconds) => {
                        if !self.barrier(*barrier, *seconds, world, moved) {
                            return false;
                        }
                    }
                }
                self.step += 1;
                *moved = true;
            }
        }
        self.step = 0;
        let (operation, chunk) = match priced.program.ranks[self.index].bodies[body].kind {
            BodyKind::Forward { chunk } => (OperationKind::Forward, chunk),
            BodyKind::Backward { chunk } => (OperationKind::Backward, chunk),
            BodyKind::Optimizer => (OperationKind::Optimizer, 0),
        };
        self.record(world, operation, chunk, micro_batch, self.body_start);
        if self.host > self.launch_start {
            let event = self.event(Stream::Host, operation, (chunk, micro_batch), self.launch_start);
            world.record(|| TimelineEvent { end_s: Seconds(self.host), ..event });
        }
        true
    }

    fn count(&mut self, work: &Work) {
        self.cost.compute_s += Seconds(work.compute);
        self.cost.recompute_s += Seconds(work.recompute);
        self.cost.tensor_communication_s += Seconds(work.tensor);
        self.cost.context_communication_s += Seconds(work.context);
        self.cost.expert_communication_s += Seconds(work.expert);
        self.cost.data_communication_s += Seconds(work.data);
        self.cost.pipeline_communication_s += Seconds(work.pipeline);
        self.cost.optimizer_s += Seconds(work.optimizer);
    }

    /// Launches work, and waits for the host as long as the device has to before and within it.
    fn launch(&mut self, work: &Work, world: &mut World) {
        if work.launch == 0.0 {
            return;
        }
        let waiting = (self.host + work.launched - (self.now + work.total())).max(0.0);
        self.host += work.launch;
        if waiting > 0.0 {
            self.cost.host_s += Seconds(waiting);
            self.idle(waiting, world);
        }
    }

    /// Computes; while a transfer overlaps, both are slowed.
    fn work(&mut self, work: &Work, world: &mut World) {
        self.launch(work, world);
        self.count(work);
        let mut left = work.total();
        let mut slowed = 0.0;
        let interference = &world.priced.costs.interference;
        let (compute_slowdown, transfer_slowdown) = if work.tensor > 0.0 && world.priced.shared[self.index] {
            // Two flows on one link get half of its bandwidth each.
            (2.0, 2.0)
        } else {
            (interference.compute_slowdown, interference.communication_slowdown)
        };
        while let Some(transfer) = self.queue.front_mut() {
            let together = transfer.left * transfer_slowdown;
            if left * compute_slowdown < together {
                let elapsed = left * compute_slowdown;
                transfer.left -= elapsed / transfer_slowdown;
                self.now += elapsed;
                slowed += elapsed - left;
                left = 0.0;
                break;
            }
            self.now += together;
            left -= together / compute_slowdown;
            slowed += together - together / compute_slowdown;
            self.pop(world);
        }
        self.now += left;
        self.cost.interference_s += Seconds(slowed);
    }

    /// Runs the communication stream at full speed until the given transfer is done.
    fn wait(&mut self, id: TransferId, world: &mut World) {
        let begin = self.now;
        while self.queue.iter().any(|transfer| transfer.id == id) {
            self.now += self.queue[0].left;
            self.pop(world);
        }
        self.cost.data_communication_s += Seconds(self.now - begin);
    }

    /// Advances the compute stream without work; the communication stream runs at full speed.
    fn idle(&mut self, seconds: f64, world: &mut World) {
        let until = self.now + seconds;
        while let Some(transfer) = self.queue.front_mut() {
            if self.now + transfer.left > until {
                transfer.left -= until - self.now;
                break;
            }
            self.now += transfer.left;
            self.pop(world);
        }
        self.now = until;
    }

    /// The transfer at the head of the queue ends now, and the next begins.
    fn pop(&mut self, world: &mut World) {
        let Some(done) = self.queue.pop_front() else { return };
        let operation = match done.id.0 {
            Transfer::Gather => OperationKind::Gather,
            Transfer::Reduce | Transfer::ReduceReplicas => OperationKind::Reduce,
        };
        let (rank, now) = (self.index, self.now);
        world.record(|| TimelineEvent {
            rank: rank as u32,
            stream: Stream::Communication,
            operation,
            chunk: done.chunk as u32,
            micro_batch: done.micro_batch as u32,
            start_s: Seconds(done.start),
            end_s: Seconds(now),
        });
        if let Some(next) = self.queue.front_mut() {
            next.start = next.start.max(self.now);
        }
    }

    /// Waits for the other members, then communicates with them.
    fn barrier(&mut self, barrier: Barrier, seconds: f64, world: &mut World, moved: &mut bool) -> bool {
        let arrival = &mut world.arrivals[self.index][barrier as usize];
        *moved |= arrival.is_none();
        *arrival = Some(self.now);
        let Some(complete) = world.complete(barrier) else { return false };
        let bubble = complete - self.now;
        self.cost.bubble_s += Seconds(bubble);
        let part = match barrier {
            Barrier::Tied => &mut self.cost.pipeline_communication_s,
            Barrier::Norm => &mut self.cost.optimizer_s,
            Barrier::End => &mut self.cost.overhead_s,
        };
        *part += Seconds(seconds);
        self.idle(bubble + seconds, world);
        true
    }

    /// The step's closing barrier.
    fn end(&mut self, world: &mut World, moved: &mut bool) -> bool {
        let overhead = world.priced.costs.step_overhead.seconds;
        self.done = self.barrier(Barrier::End, overhead, world, moved);
        self.done
    }

    fn record(
        &self,
        world: &mut World,
        operation: OperationKind,
        chunk: usize,
        micro_batch: usize,
        start: f64,
    ) {
        world.record(|| self.event(Stream::Compute, operation, (chunk, micro_batch), start));
    }

    /// An event that ends now.
    fn event(
        &self,
        stream: Stream,
        operation: OperationKind,
        (chunk, micro_batch): (usize, usize),
        start: f64,
    ) -> TimelineEvent {
        TimelineEvent {
            rank: self.index as u32,
            stream,
            operation,
            chunk: chunk as u32,
            micro_batch: micro_batch as u32,
            start_s: Seconds(start),
            end_s: Seconds(self.now),
        }
    }
}
