//! A program with the price of every operation: each body is priced once, however often it runs.

use crate::curve::Price;
use crate::measured::{SegmentPrice, Unpriced};
use crate::memory::{BodyMemory, body_memory};
use crate::prices::{CollectiveQuery, MessageQuery, Purpose, SegmentQuery};
use crate::{CostModel, coding};
use autodist_program::{
    Axis, Body, BodyKind, Bucket, Instruction, Message, Op, Program, RankProgram, Transfer, View,
};
use autodist_spec::{Algorithm, Bytes, ClassRange, Codec, Collective, Pass, Recompute, Segment};
use std::collections::BTreeMap;

/// Smallest fraction of its stand-alone time that a tensor collective can take inside a step.
const LEAST_WITHIN_STEPS: f64 = 0.5;

/// A program with the time and memory of every part.
#[derive(Debug)]
pub struct Priced<'a> {
    pub(crate) costs: &'a CostModel,
    pub(crate) program: &'a Program,
    /// One per pipeline rank.
    pub(crate) ranks: Vec<Vec<PricedBody>>,
    /// Send/recv times between pipeline ranks, by sender and receiver; all have the same size.
    pub(crate) messages: Vec<Vec<Price>>,
    /// Coding of a send/recv, half of it at each end.
    pub(crate) message_coding: Price,
    /// By pipeline rank: whether tensor collectives and transfers share a link.
    pub(crate) shared: Vec<bool>,
}

#[derive(Debug)]
pub(crate) struct PricedBody {
    pub steps: Vec<Step>,
    /// All compute of the body, without transfers.
    pub work: Work,
    /// Whether the body has no starts, waits and barriers.
    pub pure: bool,
    /// Everything in the body, including transfers.
    pub total: Price,
    pub memory: BodyMemory,
}

/// Seconds on the compute stream, by purpose, and the launches of them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Work {
    pub compute: f64,
    pub recompute: f64,
    pub tensor: f64,
    /// Exposed exchange of keys and values.
    pub context: f64,
    /// Tokens on their way to experts and back.
    pub expert: f64,
    /// Compute stream time for a bucket's transfers.
    pub data: f64,
    /// Coding of send/recv between pipeline ranks, and the engine's overhead around a pass.
    pub pipeline: f64,
    pub optimizer: f64,
    /// Seconds of the host to launch all of it.
    pub launch: f64,
    /// Seconds from the first launch to the end of the work on a device that is free at once. The device may
    /// have to wait for a launch in the middle of the work, so it is not less than either sum. It is 0 for work that
    /// needs no launch, a collective, for which the device never waits.
    pub launched: f64,
}

impl Work {
    /// Seconds of the device.
    pub fn total(&self) -> f64 {
        let Self { compute, recompute, tensor, context, expert, data, pipeline, optimizer, .. } = self;
        compute + recompute + tensor + context + expert + data + pipeline + optimizer
    }

    /// When this work ends on a device that is free at `device`, launched by a host that is free at `host`.
    pub fn end(&self, device: f64, host: f64) -> f64 {
        (device + self.total()).max(host + self.launched)
    }

    /// Appends work. Ends are affine in the (max, +) algebra of the times at which device and host are free,
    /// so that one `launched` describes any sequence of launches (Baccelli et al. 1992, Synchronization and
    /// Linearity, section 2.3).
    pub fn add(&mut self, other: &Self) {
        self.launched = other.end(self.launched, self.launch);
        self.launch += other.launch;
        self.compute += other.compute;
        self.recompute += other.recompute;
        self.tensor += other.tensor;
        self.context += other.context;
        self.expert += other.expert;
        self.data += other.data;
        self.pipeline += other.pipeline;
        self.optimizer += other.optimizer;
    }
}

/// Key of a transfer: it is in flight at most once at a time.
pub(crate) type TransferId = (Transfer, usize);

/// A step of the compute stream; adjacent work is merged.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Work(Work),
    /// Queues a transfer with the given duration in seconds.
    Start(TransferId, f64),
    Wait(TransferId),
    /// Waits for all members, then communicates for the given seconds.
    Barrier(Barrier, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// First and last pipeline rank.
    Tied,
    /// All pipeline ranks.
    Norm,
    /// All pipeline ranks.
    End,
}

impl<'a> Priced<'a> {
    pub(crate) fn new(costs: &'a CostModel, program: &'a Program) -> Result<Self, Unpriced> {
        let mut pricer = Pricer::new(costs, program);
        let mut ranks = pricer.all()?;
        if pricer.places_matter() {
            // The fraction of time in which each kind of communication occupies links determines how often
            // two groups contend for one.
            pricer.set_occupancy(&ranks);
            ranks = pricer.all()?;
        }
        let shared = (0..ranks.len()).map(|rank| costs.shares_links(program, rank)).collect();
        let (messages, message_coding) = messages(costs, program)?;
        Ok(Self { costs, program, ranks, messages, message_coding, shared })
    }

    /// A program whose memory is counted, but not its time: all times are zero.
    pub(crate) fn timeless(costs: &'a CostModel, program: &'a Program) -> Result<Self, Unpriced> {
        let ranks = Pricer::new(costs, program).memory()?;
        let (messages, message_coding, shared) = (Vec::new(), Price::ZERO, Vec::new());
        Ok(Self { costs, program, ranks, messages, message_coding, shared })
    }
}

/// Prices of the send/recv pairs that occur; the others stay zero.
fn messages(costs: &CostModel, program: &Program) -> Result<(Vec<Vec<Price>>, Price), Unpriced> {
    let mut coding = Price::ZERO;
    let (pipeline, stride) = (program.mesh.pipeline, program.mesh.stage());
    let classes = costs.classes_of(&program.strategy);
    let mut prices = vec![vec![Price::ZERO; pipeline]; pipeline];
    let mut known = vec![vec![false; pipeline]; pipeline];
    for (from, rank) in program.ranks.iter().enumerate() {
        for op in &rank.ops {
            let Op::Send(Message { peer: to, elements, .. }) = *op else { continue };
            if std::mem::replace(&mut known[from][to], true) {
                continue;
            }
            let bytes;
            (bytes, coding) = coding::message(costs, program, elements)?;
            prices[from][to] = match &costs.routes {
                None => {
                    let strategy = &program.strategy;
                    let query = MessageQuery { ends: Some((from, to)), stride, bytes, strategy };
                    costs.message(&query, classes[from].and(classes[to]))?
                }
                Some(routes) => {
                    let pair = |inner: usize| program.devices(&[from * stride + inner, to * stride + inner]);
                    costs.sped_up(routes.message(&(0..stride).map(pair).collect::<Vec<_>>(), bytes))
                }
            };
        }
    }
    Ok((prices, coding))
}

impl Priced<'_> {
    /// Seconds of a send/recv from one pipeline rank to another.
    pub(crate) fn message_seconds(&self, from: usize, to: usize) -> f64 {
        self.messages[from][to].seconds
    }

    /// The fastest send/recv between two pipeline ranks; zero if there is none.
    pub(crate) fn fastest_message(&self) -> f64 {
        let times =
            self.messages.iter().flatten().map(|price| price.seconds).filter(|seconds| *seconds > 0.0);
        let fastest = times.fold(f64::INFINITY, f64::min);
        if fastest.is_finite() { fastest } else { 0.0 }
    }
}

/// Prices of one program's segments and tensor collectives, looked up once each.
pub(crate) struct Pricer<'a> {
    costs: &'a CostModel,
    program: &'a Program,
    /// The classes of the devices of each pipeline rank.
    classes: Vec<ClassRange>,
    /// By layer: the first layer of the chain that is like it.
    alike: Vec<usize>,
    segments: BTreeMap<(ClassRange, usize), Box<[Option<SegmentPrice>; 81]>>,
    tensor: BTreeMap<(usize, usize, Collective, Bytes), Price>,
    /// By pipeline rank.
    occupancy: Vec<LinkOccupancy>,
}

/// Fractions of a step in which a rank's groups occupy links, without contention.
#[derive(Debug, Clone, Copy, Default)]
struct LinkOccupancy {
    tensor: f64,
    data: f64,
}

impl<'a> Pricer<'a> {
    pub fn new(costs: &'a CostModel, program: &'a Program) -> Self {
        Self::on(costs, program, costs.classes_of(&program.strategy))
    }

    /// As `new`, with the classes of the devices of each pipeline rank.
    pub fn on(costs: &'a CostModel, program: &'a Program, classes: Vec<ClassRange>) -> Self {
        let occupancy = vec![LinkOccupancy::default(); program.ranks.len()];
        let alike = program.alike();
        let (segments, tensor) = (BTreeMap::new(), BTreeMap::new());
        Self { costs, program, classes, alike, segments, tensor, occupancy }
    }

    fn all(&mut self) -> Result<Vec<Vec<PricedBody>>, Unpriced> {
        let program = self.program;
        program
            .ranks
            .iter()
            .map(|rank| rank.bodies.iter().map(|body| self.body(rank, body)).collect())
            .collect()
    }

    /// The memory of all bodies, without their times.
    fn memory(&mut self) -> Result<Vec<Vec<PricedBody>>, Unpriced> {
        let program = self.program;
        let mut of = |rank: &RankProgram, body: &Body| {
            let memory = body_memory(self, rank, body)?;
            Ok(PricedBody {
                steps: Vec::new(),
                work: Work::default(),
                pure: true,
                total: Price::ZERO,
                memory,
            })
        };
        program.ranks.iter().map(|rank| rank.bodies.iter().map(|body| of(rank, body)).collect()).collect()
    }

    /// Takes the occupancy of links from a first pricing without contention.
    fn set_occupancy(&mut self, ranks: &[Vec<PricedBody>]) {
        for ((occupancy, rank), bodies) in self.occupancy.iter_mut().zip(&self.program.ranks).zip(ranks) {
            let (mut work, mut tensor, mut data) = (0.0, 0.0, 0.0);
            for op in &rank.ops {
                let Op::Run { body, .. } = op else { continue };
                let priced = &bodies[*body];
                tensor += priced.work.tensor;
                work += priced.work.total() - priced.work.tensor;
                let seconds = |step: &Step| if let Step::Start(_, seconds) = step { *seconds } else { 0.0 };
                data += priced.steps.iter().map(seconds).sum::<f64>();
            }
            let part = |busy: f64| if busy > 0.0 { busy / (busy + work) } else { 0.0 };
            *occupancy = LinkOccupancy { tensor: part(tensor), data: part(data) };
        }
        self.tensor.clear();
    }

    /// A collective of groups that run in step. The groups of `others` contend with them for links during the
    /// fraction `occupied` of the time, because the two are not synchronised.
    fn under_contention(
        &self,
        query: &CollectiveQuery,
        together: &[Vec<usize>],
        others: &[Vec<usize>],
        occupied: f64,
    ) -> Result<Price, Unpriced> {
        let alone = self.costs.over(query, together)?;
        if occupied <= 0.0 || others.len() <= together.len() {
            return Ok(alone);
        }
        let all = self.costs.over(query, others)?;
        Ok(alone + Price { seconds: occupied * (all.seconds - alone.seconds).max(0.0), ..Price::ZERO })
    }

    /// A collective of the groups of `view`.
    fn query(
        &self,
        purpose: Purpose,
        (kind, algorithm): (Collective, Algorithm),
        view: View,
        bytes: Bytes,
    ) -> CollectiveQuery<'a> {
        let strategy = &self.program.strategy;
        let (group, stride) = (view.size(), view.stride());
        CollectiveQuery { purpose, kind, algorithm, group, stride, bytes, strategy }
    }

    /// Groups of all pipeline ranks.
    fn everywhere(&self, groups: impl Fn(usize) -> Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        (0..self.program.ranks.len()).flat_map(groups).collect()
    }

    pub fn segment(
        &mut self,
        (rank, layer): (usize, usize),
        segment: Segment,
        pass: Pass,
        recompute: Recompute,
    ) -> Result<SegmentPrice, Unpriced> {
        let slot = (segment as usize * 3 + pass as usize) * 3 + recompute as usize;
        let classes = self.classes[rank];
        let known = self.segments.entry((classes, self.alike[layer])).or_insert_with(|| Box::new([None; 81]));
        if let Some(price) = known[slot] {
            return Ok(price);
        }
        let Program { model, strategy, micro_batches, .. } = self.program;
        let (block, micro_batches) = (model.block(layer), *micro_batches);
        let training = self.program.training[layer];
        let query = SegmentQuery { block, training, segment, pass, recompute, strategy, micro_batches };
        let price = self.costs.segment(&query, classes)?;
        known[slot] = Some(price);
        Ok(price)
    }

    /// A collective for `layer` over the tensor groups of a pipeline rank, whose ranks are neighbours.
    pub fn tensor(
        &mut self,
        (rank, layer): (usize, usize),
        kind: Collective,
        bytes: Bytes,
    ) -> Result<Price, Unpriced> {
        let key = (rank, self.alike[layer], kind, bytes);
        if let Some(price) = self.tensor.get(&key) {
            return Ok(*price);
        }
        let work = (kind, self.program.strategy.communication.tensor);
        let purpose = Purpose::Tensor(self.program.model.block(layer));
        let query = self.query(purpose, work, self.program.mesh.view(&[Axis::Tensor]), bytes);
        let alone = if self.places_matter() {
            let groups = self.program.tensor_groups(rank);
            // Replicas are not synchronised: each group runs by itself, and contends with the others part of
            // the time.
            let others = self.everywhere(|rank| self.program.tensor_groups(rank));
            let occupied = self.occupancy[rank].tensor;
            let mut slowest = Price::ZERO;
            for group in groups {
                let price = self.under_contention(&query, &[group], &others, occupied)?;
                slowest = if price.seconds > slowest.seconds { price } else { slowest };
            }
            slowest
        } else {
            self.costs.collective(&query, self.classes[rank])?
        };
        let price = match self.program.mesh.tensor {
            1 => alone,
            degree => {
                let beyond = self.costs.within_steps.get(&(degree as u32)).copied().unwrap_or(0.0);
                // An offset that was measured at one size must not cancel the whole time of another size.
                let seconds = (alone.seconds + beyond).max(LEAST_WITHIN_STEPS * alone.seconds);
                // An extrapolated offset is as uncertain as it is long.
                let unsure = if self.costs.extrapolates_waits { beyond.abs() } else { 0.0 };
                let half_width = alone.half_width + unsure;
                Price { seconds, half_width, ..alone } + self.costs.synchronisation
            }
        };
        self.tensor.insert(key, price);
        Ok(price)
    }

    /// The exchange of keys and values, as far as the attention does not hide it.
    pub fn context(
        &self,
        (rank, layer): (usize, usize),
        pass: Pass,
        elements: usize,
    ) -> Result<Price, Unpriced> {
        let work = (Collective::AllGather, Algorithm::Ring);
        let bytes = self.program.precision.working(elements as u64);
        let purpose = Purpose::Context(self.program.model.block(layer), pass);
        let query = self.query(purpose, work, self.program.context_view(), bytes);
        self.costs.collective(&query, self.classes[rank])
    }

    /// The all-to-all of tokens, of which each rank sends so many elements.
    pub fn experts(&self, rank: usize, elements: usize) -> Result<Price, Unpriced> {
        let work = (Collective::AllToAll, Algorithm::Ring);
        let bytes = self.program.precision.working(elements as u64);
        let query = self.query(Purpose::Experts, work, self.program.expert_view(), bytes);
        self.costs.collective(&query, self.classes[rank])
    }

    /// A bucket's transfer, including the hand-over to the communication stream; `None` if the group is one
    /// rank.
    fn transfer(
        &self,
        rank: &RankProgram,
        transfer: Transfer,
        bucket: usize,
    ) -> Result<Option<Price>, Unpriced> {
        let view = self.program.transfer_view(transfer, &rank.buckets()[bucket]);
        if view.size() <= 1 {
            return Ok(None);
        }
        let reduction = self.program.reduction(rank.pipeline_rank, transfer, bucket);
        let groups = || self.program.transfer_groups(rank.pipeline_rank, transfer);
        let bucket = &rank.buckets()[bucket];
        let (kind, _) = self.program.transfer_work(transfer, bucket);
        let bytes = self.program.transfer_bytes(transfer, bucket);
        let work = (kind, reduction.algorithm);
        let query = self.query(Purpose::Bucket(transfer), work, view, bytes);
        let price = match reduction.codec {
            Codec::None if self.places_matter() => {
                let others = self.everywhere(|rank| self.program.transfer_groups(rank, transfer));
                let occupied = self.occupancy[rank.pipeline_rank].data;
                self.under_contention(&query, &groups(), &others, occupied)?
            }
            Codec::None => self.costs.collective(&query, self.classes[rank.pipeline_rank])?,
            _ => coding::reduction(
                self.costs,
                self.program,
                transfer,
                bucket,
                reduction,
                &groups(),
                view.stride(),
            )?,
        };
        // A program has the transfer in every pass.
        let passes = self.program.micro_batches as f64;
        let price = match transfer {
            Transfer::Gather if self.stays_gathered() && bucket.residence.shards_parameters() => {
                price * (0.5 / passes)
            }
            Transfer::Reduce if self.stays_gathered() => price * (1.0 / passes),
            _ => price,
        };
        Ok(Some(price + self.costs.stream_handover + self.costs.synchronisation))
    }

    /// Bytes of the gradients of a bucket before they are reduced to shards.
    pub fn whole_gradients(&self, bucket: &Bucket) -> i64 {
        (self.costs.whole_gradient_bytes * bucket.gradients() as f64).round() as i64
    }

    pub fn activations_on_host(&self) -> bool {
        self.costs.activations_on_host
    }

    pub fn stays_gathered(&self) -> bool {
        self.costs.stays_gathered(&self.program.strategy)
    }

    /// Whether a transfer starts only where a program waits for it: trainers without overlap reduce gradients
    /// after the backward pass.
    fn starts_late(&self, transfer: Transfer) -> bool {
        !self.costs.overlaps_reductions && transfer != Transfer::Gather
    }

    /// ZeRO-2 and 3 allocate the gradients of a bucket again for every micro-batch, and accumulate this
    /// rank's shard.
    fn accumulation(&self, rank: &RankProgram, transfer: Transfer, bucket: usize) -> Price {
        if transfer != Transfer::Reduce || !rank.buckets()[bucket].residence.shards_gradients() {
            return Price::ZERO;
        }
        let bucket = &rank.buckets()[bucket];
        let shard = bucket.shard_gradients() as f64;
        let seconds =
            self.costs.zero_s_per_element * bucket.gradients() as f64 + self.costs.add_s_per_element * shard;
        Price { seconds, ..Price::ZERO }
    }

    /// ZeRO-3 copies this rank's shard into the buffer that is gathered.
    fn own_shard(&self, rank: &RankProgram, transfer: Transfer, bucket: usize) -> Price {
        if transfer != Transfer::Gather || !rank.buckets()[bucket].residence.shards_parameters() {
            return Price::ZERO;
        }
        let shard = rank.buckets()[bucket].shard_elements() as f64;
        Price { seconds: self.costs.add_s_per_element * shard, ..Price::ZERO }
    }

    /// The engine's overhead for a transfer of a sharded bucket.
    fn around_shard(&self, rank: &RankProgram, transfer: Transfer, bucket: usize) -> Price {
        let residence = rank.buckets()[bucket].residence;
        let sharded = residence.shards_gradients() && transfer != Transfer::ReduceReplicas;
        if sharded { self.costs.sharding } else { Price::ZERO }
    }

    /// The engine's overhead for a pass of a chunk in a pipeline.
    fn around_pass(&self, body: &Body) -> Price {
        let strategy = &self.program.strategy;
        match body.kind {
            BodyKind::Forward { .. } | BodyKind::Backward { .. } if strategy.pipeline > 1 => {
                self.costs.pipelining.get(&strategy.schedule).copied().unwrap_or(Price::ZERO)
            }
            _ => Price::ZERO,
        }
    }

    /// All-reduce of a tied table's gradients over the first and the last pipeline rank.
    fn tied(&self, elements: usize) -> Result<Price, Unpriced> {
        let (last, inner) = (self.program.mesh.pipeline - 1, self.program.mesh.stage());
        let stride = inner * last;
        let work = (Collective::AllReduce, Algorithm::Ring);
        let ends = View::regular(2, stride);
        let query = self.query(Purpose::Tied, work, ends, Bytes::of_f32(elements as u64));
        if !self.places_matter() {
            return self.costs.collective(&query, self.classes[0].and(self.classes[last]));
        }
        let pair = |rank: usize| self.program.devices(&[rank, rank + stride]);
        let groups: Vec<_> = (0..inner).map(pair).collect();
        self.costs.over(&query, &groups)
    }

    /// All-reduce of one number over the ranks that together hold the model.
    fn norm(&self) -> Result<Price, Unpriced> {
        let work = (Collective::AllReduce, Algorithm::Ring);
        let view = self.program.model_view();
        let query = self.query(Purpose::Norm, work, view, Bytes::of_f32(1));
        if !self.places_matter() {
            return self.costs.collective(&query, self.costs.classes().all());
        }
        let groups = view.groups(0..self.program.mesh.world());
        let groups: Vec<_> = groups.iter().map(|group| self.program.devices(group)).collect();
        self.costs.over(&query, &groups)
    }

    fn body(&mut self, rank: &RankProgram, body: &Body) -> Result<PricedBody, Unpriced> {
        let mut steps = Steps { apart: self.places_matter(), ..Steps::default() };
        let mut total = self.around_pass(body);
        if total.seconds > 0.0 {
            steps.work(Work { pipeline: total.seconds, ..Work::default() });
        }
        for instruction in &body.instructions {
            let price = match *instruction {
                Instruction::Segment { layer, segment, pass, recompute } => {
                    let SegmentPrice { time, launch_s, .. } =
                        self.segment((rank.pipeline_rank, layer), segment, pass, recompute)?;
                    let again = pass == Pass::Recompute;
                    let (compute, recompute) = if again { (0.0, time.seconds) } else { (time.seconds, 0.0) };
                    let (launch, launched) = (launch_s.0, launch_s.0 + time.seconds);
                    steps.work(Work { compute, recompute, launch, launched, ..Work::default() });
                    time
                }
                Instruction::Tensor { layer, segment, collective, elements, .. } => {
                    let bytes = self.program.tensor_bytes(segment, collective, elements);
                    let price = self.tensor((rank.pipeline_rank, layer), collective.kind(), bytes)?;
                    steps.work(Work { tensor: price.seconds, ..Work::default() });
                    price
                }
                Instruction::Context { layer, pass, elements } => {
                    let price = self.context((rank.pipeline_rank, layer), pass, elements)?;
                    steps.work(Work { context: price.seconds, ..Work::default() });
                    price
                }
                Instruction::Experts { elements, .. } => {
                    let price = self.experts(rank.pipeline_rank, elements)?;
                    steps.work(Work { expert: price.seconds, ..Work::default() });
                    price
                }
                Instruction::SumReplicated { bucket, elements } => {
                    let bytes = Bytes::of_f32(elements as u64);
                    let layer = rank.buckets()[bucket].layers[0].layer;
                    let price = self.tensor((rank.pipeline_rank, layer), Collective::AllReduce, bytes)?;
                    steps.work(Work { tensor: price.seconds, ..Work::default() });
                    price
                }
                Instruction::Start { transfer, bucket } => match self.transfer(rank, transfer, bucket)? {
                    Some(price) => {
                        let around = self.own_shard(rank, transfer, bucket)
                            + self.around_shard(rank, transfer, bucket);
                        steps.work(Work { data: around.seconds, ..Work::default() });
                        if !self.starts_late(transfer) {
                            steps.push(Step::Start((transfer, bucket), price.seconds));
                        }
                        let residence = rank.buckets()[bucket].residence;
                        if self.costs.sharding_blocks && residence.shards_gradients() {
                            steps.push(Step::Wait((transfer, bucket)));
                        }
                        price + around
                    }
                    None => Price::ZERO,
                },
                Instruction::Wait { transfer, bucket } => {
                    if self.program.transfer_view(transfer, &rank.buckets()[bucket]).size() <= 1 {
                        Price::ZERO
                    } else {
                        if self.starts_late(transfer)
                            && let Some(price) = self.transfer(rank, transfer, bucket)?
                        {
                            steps.push(Step::Start((transfer, bucket), price.seconds));
                        }
                        steps.push(Step::Wait((transfer, bucket)));
                        let price = self.accumulation(rank, transfer, bucket);
                        steps.work(Work { data: price.seconds, ..Work::default() });
                        price
                    }
                }
                Instruction::Release { .. } => Price::ZERO,
                Instruction::SumTied { elements, .. } => {
                    let price = self.tied(elements)?;
                    steps.push(Step::Barrier(Barrier::Tied, price.seconds));
                    price
                }
                Instruction::GradientNorm { elements } => {
                    let local = self.costs.norm(elements, self.classes[rank.pipeline_rank])?;
                    steps.work(Work { optimizer: local.seconds, ..Work::default() });
                    let sum = self.norm()?;
                    steps.push(Step::Barrier(Barrier::Norm, sum.seconds));
                    local + sum
                }
                Instruction::Update { elements, .. } => {
                    let price = self.costs.update(elements, self.classes[rank.pipeline_rank])?;
                    steps.work(Work { optimizer: price.seconds, ..Work::default() });
                    price
                }
            };
            total = total + price;
        }
        let memory = body_memory(self, rank, body)?;
        let pure = steps.list.iter().all(|step| matches!(step, Step::Work(_)));
        Ok(PricedBody { work: steps.work, steps: steps.list, pure, total, memory })
    }

    /// Whether costs of communication depend on the devices of a group.
    pub fn places_matter(&self) -> bool {
        self.costs.routes.is_some()
    }

    pub fn program(&self) -> &'a Program {
        self.program
    }
}

#[derive(Default)]
struct Steps {
    list: Vec<Step>,
    work: Work,
    /// Whether tensor collectives are separate steps, because transfers may share links with them.
    apart: bool,
}

impl Steps {
    fn work(&mut self, work: Work) {
        self.work.add(&work);
        match self.list.last_mut() {
            Some(Step::Work(last)) if !self.apart || (last.tensor > 0.0) == (work.tensor > 0.0) => {
                last.add(&work)
            }
            _ => self.list.push(Step::Work(work)),
        }
    }

    fn push(&mut self, step: Step) {
        self.list.push(step);
    }
}
