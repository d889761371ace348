//! Whether the numbers of a plan document agree: each that follows from others is compared with them, so that a
//! document edited by hand in one place only is refused.

use crate::error::InputError;
use crate::estimate::{Estimate, StageEstimate};
use crate::job::Job;
use crate::plan::Plan;
use crate::strategy::ParallelStrategy;
use std::fmt::Display;

/// Largest relative difference of two numbers that should be equal: documents hold all digits of a number,
/// but other tools may round them.
const ROUNDING: f64 = 1e-6;

impl Plan {
    /// Checks that the numbers of the document agree.
    ///
    /// # Errors
    /// The first number that contradicts others; the error names all of them with their values.
    pub(crate) fn check_agreement(&self) -> Result<(), InputError> {
        let (strategy, batch) = (&self.strategy, self.job.global_batch);
        let sequences = u64::from(strategy.data) * u64::from(strategy.micro_batch);
        let follows = strategy.micro_batches(batch);
        // A batch that does not divide is refused as such.
        if u64::from(batch).is_multiple_of(sequences) && self.micro_batches != follows {
            return Err(contradiction(
                "micro_batches",
                self.micro_batches,
                format!(
                    "`job.global_batch` {batch} / (`strategy.data` {} x `strategy.micro_batch` {}) = {follows}",
                    strategy.data, strategy.micro_batch
                ),
            ));
        }
        self.estimate.agrees(&self.job, strategy).map_err(|error| error.under("estimate"))?;
        for (index, other) in self.alternatives.iter().enumerate() {
            let at = format!("alternatives[{index}].estimate");
            other.estimate.agrees(&self.job, &other.strategy).map_err(|error| error.under(&at))?;
        }
        Ok(())
    }
}

impl Estimate {
    /// Checks that the numbers of an estimate agree with each other, with the job and with the strategy.
    fn agrees(&self, job: &Job, strategy: &ParallelStrategy) -> Result<(), InputError> {
        let step = self.step_time_s.0;
        let tokens = job.tokens() as f64;
        if differ(self.tokens_per_s * step, tokens, tokens) {
            return Err(contradiction(
                "tokens_per_s",
                self.tokens_per_s,
                format!(
                    "`job.global_batch` {} x `job.seq_len` {} / `step_time_s` {step} = {}",
                    job.global_batch,
                    job.seq_len,
                    tokens / step
                ),
            ));
        }
        let cost = self.cost.total().0;
        // Parts of either sign cancel out.
        let size: f64 = self.cost.parts().iter().map(|(_, part)| part.0.abs()).sum();
        if differ(step, cost, step.max(size)) {
            return Err(contradiction("step_time_s", step, format!("the parts of `cost` sum to {cost}")));
        }
        let (peak, memory) = (self.peak_memory_bytes.0, self.memory.total().0);
        if peak != memory {
            let sum = format!("the parts of `memory` sum to {memory}");
            return Err(contradiction("peak_memory_bytes", peak, sum));
        }
        if self.lower_bound_s.0 > step * (1.0 + ROUNDING) {
            return Err(contradiction(
                "lower_bound_s",
                self.lower_bound_s.0,
                format!("`step_time_s` is {step}, below its own lower bound"),
            ));
        }
        self.agrees_with_stages(strategy)?;
        self.agrees_with_loss(job)
    }

    /// The ranks of the pipeline, if they are listed.
    fn agrees_with_stages(&self, strategy: &ParallelStrategy) -> Result<(), InputError> {
        let Some(fullest) = self.stages.iter().map(|stage: &StageEstimate| stage.memory.total().0).max()
        else {
            return Ok(());
        };
        if self.stages.len() as u64 != u64::from(strategy.pipeline) {
            let pipeline = format!("`strategy.pipeline` is {}, with one entry per rank", strategy.pipeline);
            return Err(contradiction("stages", format!("{} entries", self.stages.len()), pipeline));
        }
        let peak = self.peak_memory_bytes.0;
        if peak != fullest {
            let of = format!("the fullest of `stages` holds {fullest}");
            return Err(contradiction("peak_memory_bytes", peak, of));
        }
        Ok(())
    }

    /// The time to the loss, if it is given.
    fn agrees_with_loss(&self, job: &Job) -> Result<(), InputError> {
        let Some(time) = self.time_to_loss_s.map(|time| time.0) else { return Ok(()) };
        let Some(steps) = job.steps_to_loss() else {
            let none = "the job has no `convergence`, which gives the number of steps".to_owned();
            return Err(contradiction("time_to_loss_s", time, none));
        };
        let factor = self.slowdown.map_or(1.0, |slowdown| slowdown.factor);
        let follows = steps * factor * self.step_time_s.0;
        if differ(time, follows, follows) {
            return Err(contradiction(
                "time_to_loss_s",
                time,
                format!(
                    "{steps} steps by `job.convergence` x `slowdown` {factor} x `step_time_s` {} = {follows}",
                    self.step_time_s.0
                ),
            ));
        }
        Ok(())
    }
}

fn differ(one: f64, other: f64, size: f64) -> bool {
    let difference = (one - other).abs();
    difference.is_nan() || difference > ROUNDING * size.abs()
}

fn contradiction(field: &str, value: impl Display, others: String) -> InputError {
    InputError::new(field, value, format!("contradicts other numbers of the plan: {others}"))
        .hint("correct one of them, or make the plan again with `autodist plan` or `autodist estimate`")
}
