//! Layouts that both cost models price, on one machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod cells;
pub mod reasons;

use autodist_analytic::{
    Breakdown, FreeParameters, Memory, NodeModel, ParallelDims, Shape, Trainer, TrainingRun, Uplink,
};
use autodist_cost_model::CostModel;
use autodist_program::{Program, stages};
use autodist_spec::{
    CostBreakdown, Job, MemoryBreakdown, ModelSpec, ParallelStrategy, Precision, Recompute, ScheduleKind,
    catalog,
};
use std::sync::{Arc, LazyLock};

/// Nodes of eight A100 and as many cards of 200 Gbit/s.
static MACHINE: LazyLock<Arc<NodeModel>> = LazyLock::new(|| {
    let uplink = Uplink { fabric: "infiniband".to_owned(), bytes_per_s: 200e9, nics: 8 };
    Arc::new(NodeModel::named("a100-80gb-sxm", 8, Some(&uplink)).unwrap())
});

/// The analytic model without what a profile has no cell for, and with what a program says of overlap.
pub fn parameters() -> FreeParameters {
    FreeParameters {
        // Ranks that wait for slower ones, and for the host.
        jitter: 0.0,
        skew_s: 0.0,
        message_s: 0.0,
        host_megatron_s: 0.0,
        host_eager_s: 0.0,
        // GEMMs of every shape cost what the hardware model says.
        unaligned: 1.0,
        early_stop: 1.0,
        // Tensor-parallel collectives block; messages are hidden by nothing but the schedule.
        tensor_drag: 1.0,
        message_exposed: 1.0,
        // Transfers of gradients and parameters slow nothing down beside them.
        gather_drag: 0.0,
        reduce_exposed: EXPOSED,
        // Gathers of updated parameters end the step: they are exposed whole.
        update_gather: 1.0 / EXPOSED,
        step_s: 0.0,
        ..FreeParameters::prior()
    }
}

/// Next to nothing of a reduction is exposed but what is longer than the backward pass. It is not zero because the
/// analytic model hides the gathers of updated parameters by the same number.
const EXPOSED: f64 = 1e-9;

/// A model, a job and a way of training it.
pub struct Case {
    /// The line that it was read from.
    pub text: String,
    pub model: ModelSpec,
    pub job: Job,
    pub strategy: ParallelStrategy,
}

impl Case {
    /// `llama2-7b/16 gb64 seq4096 dp8 tp2 pp2 mb1 zero1 sp v2 recompute=full`: a model of the catalogue with so many
    /// blocks; what is left out is as usual.
    pub fn read(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let (name, layers) = words.next().unwrap().split_once('/').unwrap();
        let model = ModelSpec { layers: layers.parse().unwrap(), ..catalog::model(name).unwrap() };
        let mut job = Job { precision: Precision::Bf16, ..Job::new(1, model.max_seq_len) };
        let mut strategy = ParallelStrategy::data_parallel(1, 1);
        for word in words {
            let at = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
            let (key, number) = word.split_at(at);
            let number = || number.parse::<u32>().unwrap();
            match key {
                "gb" => job.global_batch = number(),
                "seq" => job.seq_len = number(),
                "dp" => strategy.data = number(),
                "tp" => strategy.tensor = number(),
                "pp" => strategy.pipeline = number(),
                "mb" => strategy.micro_batch = number(),
                "zero" => strategy.zero_stage = number() as u8,
                "v" => {
                    (strategy.virtual_stages, strategy.schedule) = (number(), ScheduleKind::Interleaved);
                }
                "sp" => strategy.sequence_parallel = true,
                "recompute=selective" => strategy.recompute = Recompute::Selective,
                "recompute=full" => strategy.recompute = Recompute::Full,
                _ => panic!("`{word}` of `{text}`"),
            }
        }
        if strategy.zero_stage > 0 {
            strategy.shard = strategy.data;
        }
        Self { text: text.split_whitespace().collect::<Vec<_>>().join(" "), model, job, strategy }
    }

    /// The same as the analytic model takes it. ZeRO-3 is FSDP's; the other stages are Megatron-Core's, which keeps and
    /// reduces gradients in fp32 as a program does.
    fn run(&self) -> TrainingRun {
        let s = &self.strategy;
        let layout = ParallelDims {
            tensor: s.tensor,
            data: s.data,
            pipeline: s.pipeline,
            virtual_stages: s.virtual_stages,
            sequence_parallel: s.sequence_parallel,
            zero_stage: s.zero_stage,
            shard: s.shard,
            ..ParallelDims::default()
        };
        let trainer = if s.zero_stage == 3 { Trainer::Fsdp2 } else { Trainer::MegatronCore };
        TrainingRun {
            seq_len: self.job.seq_len,
            micro_batch: s.micro_batch,
            global_batch: self.job.global_batch,
            recompute: s.recompute,
            ..TrainingRun::new(Shape::from(&self.model), Arc::clone(&MACHINE), layout, trainer)
        }
    }

    /// As many blocks for every chunk; the embedding before the first, the head after the last.
    fn program(&self) -> Program {
        let chunks = self.strategy.chunks() as usize;
        let blocks = self.model.layers as usize / chunks;
        let mut ends: Vec<usize> = (0..=chunks).map(|chunk| 1 + chunk * blocks).collect();
        (ends[0], ends[chunks]) = (0, self.model.chain_len());
        let stages = stages::from_ends(&self.model, &ends, self.strategy.recompute);
        let devices = self.strategy.devices() as u32;
        Program::compile(&self.model, &self.job, devices, &self.strategy, &stages)
            .unwrap_or_else(|illegal| panic!("{}: {illegal}", self.text))
    }

    pub fn price(self) -> Pair {
        let (run, program, parameters) = (self.run(), self.program(), parameters());
        let profile = cells::profile(&run, &parameters, &self.job, &program);
        let costs = CostModel::new(&profile);
        let priced = costs.price(&program).unwrap_or_else(|unpriced| panic!("{}: {unpriced}", self.text));
        let simulation = priced.simulate();
        let memory = priced.memory();
        let fullest = (0..memory.len()).rev().max_by_key(|rank| memory[*rank].total()).unwrap();
        let estimate = run.estimate(&parameters, 0.0);
        Pair {
            step: simulation.step_time_s.0,
            ranks: simulation.ranks,
            memory: memory[fullest].clone(),
            analytic: estimate.breakdown,
            analytic_memory: estimate.memory,
            case: self,
            program,
            run,
        }
    }
}

/// What both models say of one layout.
pub struct Pair {
    pub case: Case,
    pub run: TrainingRun,
    pub program: Program,
    /// Of the program: its step, where each pipeline rank spends it, and the fullest rank's memory.
    pub step: f64,
    pub ranks: Vec<CostBreakdown>,
    pub memory: MemoryBreakdown,
    /// Of the closed form.
    pub analytic: Breakdown,
    pub analytic_memory: Memory,
}

impl Pair {
    /// What the program says and what the closed form says: seconds of a step, or bytes of tensors at the peak.
    pub fn figures(&self, figure: Figure) -> (f64, f64) {
        match figure {
            Figure::Time => (self.step, self.analytic.total()),
            // What an allocator and a driver hold beside tensors is in neither.
            Figure::Memory => (self.memory.total().as_f64(), self.analytic_memory.allocated()),
        }
    }

    /// The program's figure over the closed form's.
    pub fn ratio(&self, figure: Figure) -> f64 {
        let (program, closed) = self.figures(figure);
        program / closed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    Time,
    Memory,
}
