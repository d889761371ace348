//! Layouts that both cost models price, on one machine.

pub mod reasons;

use autodist_analytic::{
    Breakdown, CataloguePrices, FreeParameters, Memory, NodeModel, ParallelDims, Trainer, TrainingRun, Uplink,
};
use autodist_program::{Program, stages};
use autodist_spec::{
    CostBreakdown, Job, MemoryBreakdown, ModelSpec, ParallelStrategy, Precision, Recompute, ScheduleKind,
    catalog,
};
use std::sync::{Arc, LazyLock};

/// Nodes of eight A100s with eight 200 Gbit/s NICs.
static MACHINE: LazyLock<Arc<NodeModel>> = LazyLock::new(|| {
    let uplink = Uplink { fabric: "infiniband".to_owned(), bytes_per_s: 200e9, nics: 8 };
    Arc::new(NodeModel::named("a100-80gb-sxm", 8, Some(&uplink)).unwrap())
});

/// The analytic model without effects that a profile has no cell for, and with the overlap of a program.
pub fn parameters() -> FreeParameters {
    FreeParameters {
        // Waits for slower ranks, and for the host.
        jitter: 0.0,
        skew_s: 0.0,
        message_s: 0.0,
        host_megatron_s: 0.0,
        host_eager_s: 0.0,
        // GEMMs of every shape cost as in the hardware model.
        unaligned: 1.0,
        early_stop: 1.0,
        // Tensor-parallel collectives block; send/recv overlaps only as the schedule allows.
        tensor_drag: 1.0,
        message_exposed: 1.0,
        // Collectives of gradients and parameters do not slow down compute.
        gather_drag: 0.0,
        reduce_exposed: EXPOSED,
        // All-gathers of updated parameters are at the end of the step: fully exposed.
        update_gather: 1.0 / EXPOSED,
        step_s: 0.0,
        ..FreeParameters::prior()
    }
}

/// Almost nothing of a reduction is exposed except its part that is longer than the backward pass. It is not
/// zero because the analytic model overlaps the all-gathers of updated parameters by the same number.
const EXPOSED: f64 = 1e-9;

/// A model, a job and a strategy.
pub struct Case {
    /// The line that describes it.
    pub text: String,
    pub model: ModelSpec,
    pub job: Job,
    pub strategy: ParallelStrategy,
}

impl Case {
    /// `llama2-7b/16 gb64 seq4096 dp8 tp2 pp2 mb1 zero1 sp v2 recompute=full`: a model of the catalogue with
    /// the given number of blocks; omitted parts have defaults.
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

    /// The case for the analytic model. ZeRO-3 is FSDP's; the other stages are Megatron-Core's, which keeps
    /// and reduces gradients in fp32 as a program does.
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
            ..TrainingRun::new(&self.model, Arc::clone(&MACHINE), layout, trainer)
        }
    }

    /// Equal numbers of blocks per chunk; the embedding before the first, the head after the last.
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
        let prices = || CataloguePrices::new(&run, run.layout.devices(), &parameters);
        let costs = prices().cost_model(&self.model, &self.job, 0.0);
        let priced = costs.price(&program).unwrap_or_else(|unpriced| panic!("{}: {unpriced}", self.text));
        let simulation = priced.simulate();
        let memory = priced.memory();
        let fullest = (0..memory.len()).rev().max_by_key(|rank| memory[*rank].total()).unwrap();
        let estimate = run.estimate(&parameters);
        Pair {
            step: simulation.step_time_s.0,
            ranks: simulation.ranks,
            memory: memory[fullest].clone(),
            analytic: estimate.breakdown,
            analytic_memory: estimate.memory,
            case: self,
            prices: prices(),
            program,
            run,
        }
    }
}

/// The predictions of both models for one layout.
pub struct Pair {
    pub case: Case,
    pub run: TrainingRun,
    pub prices: CataloguePrices,
    pub program: Program,
    /// Step time of the program, breakdown of each pipeline rank, and memory of the fullest rank.
    pub step: f64,
    pub ranks: Vec<CostBreakdown>,
    pub memory: MemoryBreakdown,
    /// The closed form's breakdown.
    pub analytic: Breakdown,
    pub analytic_memory: Memory,
}

impl Pair {
    /// The figures of the program and of the closed form: seconds of a step, or bytes of tensors at the peak.
    pub fn figures(&self, figure: Figure) -> (f64, f64) {
        match figure {
            Figure::Time => (self.step, self.analytic.total()),
            // Neither includes memory of the allocator and the driver.
            Figure::Memory => {
                let tensors = self.memory.total().saturating_sub(self.memory.reserve_bytes);
                (tensors.as_f64(), self.analytic_memory.allocated())
            }
        }
    }

    /// The program's figure / the closed form's.
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
