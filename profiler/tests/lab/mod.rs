//! Simulated ranks with known times, and faults of their measurement.

use autodist_cost_model::{CostModel, synthetic::SyntheticMachine};
use autodist_executor::{InstructionSample, RankOutcome, StepOutcome, Task};
use autodist_planner::Planner;
use autodist_profiler::{
    Assignment, CollectiveTimings, HardwareAnswer, KINDS, LinkAnswer, LinkTask, MessageTimings,
    OverlapAnswer, Request, profile_by,
};
use autodist_program::{Instruction, Program};
use autodist_spec::profile::Environment;
use autodist_spec::{
    Collective, DoubtedCell, Engine, Job, Plan, Profile, Recompute, Seconds, SegmentCost, catalog,
};
use serde_json::Value;
use std::collections::BTreeMap;

pub const RANKS: u32 = 2;
/// The reference benchmark, in seconds.
const REFERENCE_S: f64 = 5e-3;
const REPETITIONS: usize = 6;

/// A training probe that a rank runs.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Number of earlier runs of this probe.
    pub before: usize,
    /// Number of earlier runs of any probe.
    pub count: usize,
    pub tensor: u32,
    pub sequence_parallel: bool,
    pub micro_batch: u32,
    pub recompute: Recompute,
    pub rank: usize,
    /// Index among the measured steps.
    pub step: usize,
}

impl Asked {
    /// The probe that the faults affect.
    pub fn is_victim(&self) -> bool {
        (self.tensor, self.sequence_parallel, self.micro_batch) == (2, true, 2)
            && self.recompute == Recompute::None
    }
}

/// Factors on true times: of segments and updates, and of the reference benchmark.
pub type Fault<'a> = &'a dyn Fn(&Asked) -> (f64, f64);
pub type LinkFault<'a> = &'a dyn Fn(usize, Collective, usize) -> f64;

pub fn sound(_: &Asked) -> (f64, f64) {
    (1.0, 1.0)
}

pub fn sound_links(_: usize, _: Collective, _: usize) -> f64 {
    1.0
}

pub struct Lab {
    pub request: Request,
    pub machine: SyntheticMachine,
    pub truth: Profile,
    /// Standard deviation of the logarithm of every time.
    noise: f64,
    random: u64,
    runs: BTreeMap<String, usize>,
    count: usize,
    links: usize,
}

impl Lab {
    pub fn new(seed: u64, noise: f64) -> Self {
        let model = catalog::model("tiny-llama").unwrap();
        let mut job = Job::new(8, 128);
        job.allow.micro_batch = Some(vec![1, 2, 4]);
        let machine = SyntheticMachine {
            flops_per_s: 5e9,
            elements_per_s: 1e8,
            micro_batches: vec![1, 2, 4],
            ..SyntheticMachine::new(RANKS)
        };
        let truth = machine.profile(&model, &job);
        let request = Request {
            model,
            job,
            ranks: RANKS,
            shared: false,
            // One round, and repetitions of doubtful cells.
            budget_s: 0.0,
            interval: 1e9,
            emulated: None,
            engine: Engine::Native,
            machines: Vec::new(),
        };
        Self { request, machine, truth, noise, random: seed, runs: BTreeMap::new(), count: 0, links: 0 }
    }

    /// Six rounds of everything.
    pub fn of_rounds(seed: u64, noise: f64) -> Self {
        let mut lab = Self::new(seed, noise);
        lab.request.budget_s = 1e9;
        lab
    }

    pub fn profile(&mut self, earlier: Option<Profile>, fault: Fault, links: LinkFault) -> Profile {
        let request = self.request.clone();
        let environment = Environment { realtime: true, ..Environment::default() };
        let ask = |pieces: &[Assignment], done: &mut dyn FnMut(usize, Vec<Value>)| {
            for (index, piece) in pieces.iter().enumerate() {
                let answers = self.answer(piece, fault, links);
                done(index, answers);
            }
            Ok(())
        };
        profile_by(&request, environment, earlier, ask, |_| (), |_| ()).unwrap()
    }

    /// How often the affected probe ran.
    pub fn runs_of_victim(&self) -> usize {
        self.runs.iter().filter(|(key, _)| key.starts_with("2 true 2 None 1")).map(|(_, runs)| *runs).sum()
    }

    /// How many different probes were run.
    pub fn probes(&self) -> usize {
        self.runs.len()
    }

    pub fn probes_run(&self) -> usize {
        self.count
    }

    pub fn links_run(&self) -> usize {
        self.links
    }

    /// The plan that the planner chooses from the profile, and its true time.
    pub fn plan(&self, profile: &Profile) -> (Plan, Seconds) {
        let Request { model, job, .. } = &self.request;
        let plan = Planner::new(model, &self.truth.cluster, job, profile).plan().unwrap();
        let devices = self.truth.cluster.device_count();
        let program = Program::compile(model, job, devices, &plan.strategy, &plan.stages).unwrap();
        let costs = CostModel::new(&self.truth);
        let truly = costs.price(&program).unwrap().simulate().step_time_s;
        (plan, truly)
    }

    /// Asserts that no cell is off by more than `off`, and that the plan is as fast as that from true times.
    pub fn assert_true(&self, profile: &Profile, off: f64) {
        for cell in &profile.segments {
            let (measured, truth) = (cell.time.median_s.0, self.true_seconds(cell));
            let ratio = measured / truth;
            assert!(
                (1.0 / (1.0 + off)..=1.0 + off).contains(&ratio),
                "{} takes {measured} s, not {truth} s",
                DoubtedCell::from(cell)
            );
        }
        let (plan, truly) = self.plan(profile);
        let (best, least) = self.plan(&self.truth);
        assert!(
            // Plans with smaller differences are within the noise of their cells.
            truly.0 <= 1.08 * least.0,
            "{} takes {truly}, and {} {least}",
            plan.strategy.label(),
            best.strategy.label()
        );
    }

    fn true_seconds(&self, cell: &SegmentCost) -> f64 {
        let cell = DoubtedCell::from(cell);
        let same = |other: &&SegmentCost| DoubtedCell::from(*other) == cell;
        self.truth.segments.iter().find(same).unwrap().time.median_s.0
    }

    fn answer(&mut self, piece: &Assignment, fault: Fault, links: LinkFault) -> Vec<Value> {
        match piece {
            Assignment::Train(task) => self.train(task, fault),
            Assignment::Links(task) => self.time_links(task, links),
            Assignment::Overlap(task) => {
                let (m, n, k) = task.product;
                let product = self.machine.launch_s + 2.0 * (m * n * k) as f64 / self.machine.flops_per_s;
                let answer = OverlapAnswer {
                    compute_alone: self.timings(product),
                    reduce_alone: self.timings(1e-3),
                    together: vec![(1.1 * product, 1.1e-3)],
                    gemm_flops_per_s: 2.0 * (m * n * k) as f64 / product,
                    zeroing: vec![1e-10],
                    adding: vec![3e-10],
                };
                everyone(&answer)
            }
            Assignment::Hardware(task) => {
                let speed = self.machine.flops_per_s;
                let seconds = |(m, n, k): (usize, usize, usize)| 1e-5 + 2.0 * (m * n * k) as f64 / speed;
                let products =
                    task.products.iter().map(|shape| (*shape, self.timings(seconds(*shape)))).collect();
                everyone(&HardwareAnswer { products, copies: Vec::new() })
            }
            other => panic!("nobody should ask for {other:?}"),
        }
    }

    fn train(&mut self, task: &Task, fault: Fault) -> Vec<Value> {
        let program = task.program().unwrap();
        let s = &task.strategy;
        let key =
            format!("{} {} {} {:?} {}", s.tensor, s.sequence_parallel, s.micro_batch, s.recompute, s.shard);
        let before = *self.runs.entry(key.clone()).and_modify(|runs| *runs += 1).or_insert(1) - 1;
        let asked = |rank: usize, step: usize| Asked {
            before,
            count: self.count,
            tensor: s.tensor,
            sequence_parallel: s.sequence_parallel,
            micro_batch: s.micro_batch,
            recompute: s.recompute,
            rank,
            step,
        };
        let measured = (task.steps - task.warmup_steps) as usize;
        let asked: Vec<Vec<Asked>> =
            (0..task.world()).map(|rank| (0..measured).map(|step| asked(rank, step)).collect()).collect();
        self.count += 1;
        let answers = asked.iter().enumerate().map(|(rank, asked)| {
            let factors: Vec<(f64, f64)> = asked.iter().map(fault).collect();
            let mut compute = vec![0.0; measured];
            let mut instructions = Vec::new();
            for (body, content) in program.ranks[0].bodies.iter().enumerate() {
                for (index, instruction) in content.instructions.iter().enumerate() {
                    let Some((seconds, arithmetic)) = self.seconds(&program, instruction) else { continue };
                    let mut timings = Vec::new();
                    for (step, (factor, _)) in factors.iter().enumerate() {
                        let factor = if arithmetic { *factor } else { 1.0 };
                        let noise = self.noise();
                        timings.push(seconds * factor * noise);
                        compute[step] += seconds * factor * noise;
                    }
                    instructions.push(InstructionSample {
                        body,
                        index,
                        seconds: timings,
                        launches: Vec::new(),
                        growth: 0,
                        peak: 1 << 16,
                    });
                }
            }
            let warm_up = std::iter::repeat_n((0.0, (1.0, 1.0)), task.warmup_steps as usize);
            let steps = warm_up.chain(compute.into_iter().zip(factors)).map(|(seconds, (_, reference))| {
                StepOutcome {
                    seconds: seconds + 1e-4,
                    in_operations: seconds,
                    loss_sum: 1.0,
                    gradient_norm: 1.0,
                    reference: REFERENCE_S * reference * self.noise(),
                }
            });
            let steps = steps.collect();
            RankOutcome { rank, realtime: true, steps, instructions, ..RankOutcome::default() }
        });
        answers.collect::<Vec<_>>().iter().map(|answer| serde_json::to_value(answer).unwrap()).collect()
    }

    /// The true time of an instruction, and whether it is compute.
    fn seconds(&self, program: &Program, instruction: &Instruction) -> Option<(f64, bool)> {
        let s = &program.strategy;
        match *instruction {
            Instruction::Segment { segment, pass, recompute, .. } => {
                let mut cells = self.truth.segments.iter().filter(|cell| {
                    (cell.segment, cell.pass, cell.tensor) == (segment, pass, s.tensor)
                        && (cell.sequence_parallel, cell.micro_batch) == (s.sequence_parallel, s.micro_batch)
                });
                let all: Vec<_> = cells.by_ref().collect();
                let exact = all.iter().find(|cell| cell.recompute == recompute);
                exact.or(all.first()).map(|cell| (cell.time.median_s.0, true))
            }
            Instruction::Update { elements, .. } => {
                Some((elements as f64 / self.machine.elements_per_s, true))
            }
            Instruction::GradientNorm { elements } => {
                Some((0.25 * elements as f64 / self.machine.elements_per_s, true))
            }
            Instruction::Tensor { segment, collective, elements, .. } => {
                let bytes = program.tensor_bytes(segment, collective, elements).as_f64();
                let (alpha, beta) = self.machine.ring(collective.kind(), s.tensor);
                Some((alpha + beta * bytes, false))
            }
            _ => None,
        }
    }

    fn time_links(&mut self, task: &LinkTask, fault: LinkFault) -> Vec<Value> {
        let turn = self.links;
        self.links += 1;
        let mut collectives = Vec::new();
        for kind in KINDS {
            for (group, stride) in &task.groups {
                for bytes in &task.sizes {
                    let (alpha, beta) = self.machine.ring(kind, *group as u32);
                    let seconds = (alpha + beta * *bytes as f64) * fault(turn, kind, *bytes);
                    let (group, stride, bytes) = (*group, *stride, *bytes);
                    collectives.push(CollectiveTimings {
                        kind,
                        group,
                        stride,
                        bytes,
                        seconds: self.timings(seconds),
                    });
                }
            }
        }
        let mut messages = Vec::new();
        for stride in &task.message_strides {
            for bytes in &task.sizes {
                let seconds = self.machine.latency_s + *bytes as f64 / self.machine.bytes_per_s;
                let (stride, bytes) = (*stride, *bytes);
                messages.push(MessageTimings { stride, bytes, seconds: self.timings(seconds) });
            }
        }
        everyone(&LinkAnswer {
            collectives,
            exchanges: Vec::new(),
            messages,
            handover: self.timings(1e-5),
            staging_bytes: 1 << 16,
            bytes_sent: 0,
        })
    }

    fn timings(&mut self, seconds: f64) -> Vec<f64> {
        (0..REPETITIONS).map(|_| seconds * self.noise()).collect()
    }

    /// Log-normal, by the sum of twelve uniform numbers (Irwin–Hall).
    fn noise(&mut self) -> f64 {
        let normal: f64 = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        (self.noise * normal).exp()
    }

    /// SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The same answer from every rank.
fn everyone<T: serde::Serialize>(answer: &T) -> Vec<Value> {
    vec![serde_json::to_value(answer).unwrap(); RANKS as usize]
}
