//! The training task of the ranks.

use crate::data::DataSource;
use crate::guard::Guard;
use autodist_program::{Illegal, Program, engine};
use autodist_spec::{Engine, Job, ModelSpec, ParallelStrategy, Plan, Stage};
use serde::{Deserialize, Serialize};

/// Options of codecs; training uses the defaults, tests also others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CodecOptions {
    /// Whether the error of a step is added to the next step; otherwise it is lost.
    pub error_feedback: bool,
    pub guard: Guard,
}

impl Default for CodecOptions {
    fn default() -> Self {
        Self { error_feedback: true, guard: Guard::default() }
    }
}

/// One training run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub model: ModelSpec,
    pub job: Job,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub data: DataSource,
    /// Steps that were trained before: data and learning rate continue after them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_step: u32,
    /// Number of steps to train, including warm-up.
    pub steps: u32,
    /// Number of first steps that are not in the statistics.
    pub warmup_steps: u32,
    /// Whether to record the time and memory of every single instruction, for a profile.
    pub detail: bool,
    /// Whether an engine for which it has a cost counts its memory.
    #[serde(default)]
    pub count_memory: bool,
    /// Floating-point operations per second of the emulated device of each rank: compute is delayed to that
    /// speed. Absent if the device is not emulated.
    #[serde(default)]
    pub emulated_flops_per_s: Option<f64>,
    #[serde(default)]
    pub coding: CodecOptions,
}

/// PyTorch's package, which cannot continue a training, refuses a field that it does not know.
fn is_zero(step: &u32) -> bool {
    *step == 0
}

impl Task {
    pub fn of_plan(plan: &Plan, data: DataSource, steps: u32, warmup_steps: u32) -> Self {
        Self {
            model: plan.model.clone(),
            job: plan.job.clone(),
            strategy: plan.strategy.clone(),
            stages: plan.stages.clone(),
            data,
            start_step: 0,
            steps,
            warmup_steps,
            detail: false,
            count_memory: true,
            emulated_flops_per_s: plan.emulated_flops_per_s(),
            coding: CodecOptions::default(),
        }
    }

    pub fn world(&self) -> usize {
        self.strategy.devices() as usize
    }

    /// # Errors
    /// The rule that the strategy breaks.
    pub fn program(&self) -> Result<Program, Illegal> {
        // PyTorch supports nothing that the native engine does not.
        engine::check(Engine::Native, &self.model, &self.job, &self.strategy)?;
        Program::compile(&self.model, &self.job, self.world() as u32, &self.strategy, &self.stages)
    }
}
