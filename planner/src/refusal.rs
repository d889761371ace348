//! Explains why there is no plan: claim, reasons, the nearest miss, and a remedy that the job does not rule
//! out.

use crate::Planner;
use crate::candidate::Evaluator;
use crate::search::{SearchOutcome, UNPRICED};
use autodist_cost_model::{Priced, Unpriced};
use autodist_program::{Illegal, Program};
use autodist_spec::{Bytes, MemoryBreakdown, ParallelStrategy, Recompute, Rejection, StopReason};
use std::fmt;

/// A strategy that needs more memory than a device has, and the shortfall.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct MemoryShortfall {
    pub strategy: ParallelStrategy,
    pub pipeline_rank: usize,
    /// Memory of that rank.
    pub memory: MemoryBreakdown,
    pub usable: Bytes,
    pub capacity: Bytes,
    /// Fraction of the capacity that no plan may use.
    pub reserve: f64,
    /// What a node keeps in its host's memory, and the size of that memory, if it is too small.
    pub host: Option<(Bytes, Bytes)>,
}

impl MemoryShortfall {
    /// The memory that is missing.
    pub fn missing(&self) -> Bytes {
        self.short_by()
    }

    /// The fullest rank, if it does not fit.
    pub(crate) fn of(
        strategy: &ParallelStrategy,
        memory: &[MemoryBreakdown],
        evaluator: &Evaluator,
    ) -> Option<Self> {
        let (fullest, excess) = evaluator.fullest(strategy, memory)?;
        (excess > 0.0).then(|| Self {
            strategy: strategy.clone(),
            pipeline_rank: fullest,
            memory: memory[fullest].clone(),
            usable: evaluator.usable(strategy, fullest as u32),
            capacity: evaluator.capacity(strategy, fullest as u32),
            reserve: evaluator.job.memory_reserve,
            host: None,
        })
    }

    /// The memory of a host that is too small for what a node keeps there.
    pub(crate) fn of_host(
        priced: &Priced,
        program: &Program,
        memory: &[MemoryBreakdown],
        evaluator: &Evaluator,
    ) -> Option<Self> {
        let host = priced.host_shortfall(evaluator.cluster)?;
        let strategy = &program.strategy;
        Some(Self {
            strategy: strategy.clone(),
            pipeline_rank: 0,
            memory: memory[0].clone(),
            usable: evaluator.usable(strategy, 0),
            capacity: evaluator.capacity(strategy, 0),
            reserve: evaluator.job.memory_reserve,
            host: Some(host),
        })
    }

    pub fn needs(&self) -> Bytes {
        self.host.map_or_else(|| self.memory.total(), |(needs, _)| needs)
    }

    pub fn short_by(&self) -> Bytes {
        let has = self.host.map_or(self.usable, |(_, has)| has);
        self.needs().saturating_sub(has)
    }

    fn largest_part(&self) -> (&'static str, Bytes) {
        let mut largest = ("weights", Bytes::ZERO);
        for part in self.memory.parts() {
            if part.1 > largest.1 {
                largest = part;
            }
        }
        largest
    }
}

impl fmt::Display for MemoryShortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((needs, has)) = self.host {
            let strategy = self.strategy.label();
            return write!(f, "{strategy} keeps {needs} in the memory of each node's host, which has {has}");
        }
        let (part, bytes) = self.largest_part();
        write!(
            f,
            "{} needs {} on pipeline rank {}; {} is usable ({} less a {} % reserve); {part} {} {bytes} of that",
            self.strategy.label(),
            self.needs(),
            self.pipeline_rank,
            self.usable,
            self.capacity,
            100.0 * self.reserve,
            if part.ends_with('s') { "are" } else { "is" },
        )
    }
}

/// No strategy that the job allows can run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct Infeasible {
    pub model: String,
    pub cluster: String,
    /// Number of explored strategies.
    pub explored: u64,
    pub reasons: Vec<Rejection>,
    pub closest: Option<Box<MemoryShortfall>>,
    pub stop_reason: StopReason,
    pub hint: String,
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no plan fits `{}` on `{}`", self.model, self.cluster)?;
        let mut lines: Vec<String> = Vec::new();
        if self.stop_reason != StopReason::Optimal {
            lines.push("the search reached its limit before it found a plan".to_owned());
        }
        for reason in &self.reasons {
            lines.push(format!(
                "{} of {} strategies: {}: {}",
                reason.count, self.explored, reason.rule, reason.example
            ));
        }
        if let Some(shortfall) = &self.closest {
            lines.push(format!(
                "closest strategy: {}, short by {}",
                shortfall.strategy.label(),
                shortfall.short_by()
            ));
        }
        for (index, line) in lines.iter().enumerate() {
            let branch = if index + 1 == lines.len() { "╰─" } else { "├─" };
            writeln!(f, "  {branch} {line}")?;
        }
        write!(f, "hint: {}", self.hint)
    }
}

/// Why a given strategy is not a valid plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Illegal(#[from] Illegal),
    #[error(transparent)]
    Unpriced(#[from] Unpriced),
    #[error("{0}\nhint: {hint}", hint = memory_hint_for_given(.0))]
    OutOfMemory(Box<MemoryShortfall>),
    #[error(transparent)]
    Infeasible(Box<Infeasible>),
}

fn memory_hint_for_given(shortfall: &MemoryShortfall) -> &'static str {
    match (shortfall.largest_part().0, shortfall.strategy.recompute) {
        ("activations", Recompute::None | Recompute::Selective) => {
            "increase recomputation, or use smaller micro-batches"
        }
        ("activations" | "temporary", _) => "use smaller micro-batches, or a larger tensor-parallel degree",
        _ => "use a higher ZeRO stage, or a larger tensor-parallel or pipeline-parallel degree",
    }
}

pub(crate) fn unpriced(planner: &Planner, error: &Unpriced) -> Infeasible {
    Infeasible {
        model: planner.model.name.clone(),
        cluster: planner.cluster.name.clone(),
        explored: 0,
        reasons: vec![Rejection { rule: UNPRICED.to_owned(), count: 0, example: error.what.clone() }],
        closest: None,
        stop_reason: StopReason::Optimal,
        hint: error.hint.clone(),
    }
}

pub(crate) fn infeasible(planner: &Planner, outcome: SearchOutcome) -> Infeasible {
    let hint = match (&outcome.nearest_miss, outcome.report.stop_reason) {
        (_, StopReason::TimeLimit | StopReason::SimulationLimit) => {
            "raise `--time-limit`, or restrict the search with flags such as `--tp` or with `allow` in the job file".to_owned()
        }
        (Some(shortfall), _) => memory_hint(planner, shortfall),
        (None, _) => outcome.unpriced_hint.clone().unwrap_or_else(|| rule_hint(&outcome.rejected).to_owned()),
    };
    Infeasible {
        model: planner.model.name.clone(),
        cluster: planner.cluster.name.clone(),
        explored: outcome.report.explored,
        reasons: outcome.rejected,
        closest: outcome.nearest_miss,
        stop_reason: outcome.report.stop_reason,
        hint,
    }
}

/// What to do about the rule that most strategies break.
fn rule_hint(rejected: &[Rejection]) -> &'static str {
    let most = rejected.iter().max_by_key(|rejection| rejection.count);
    match most.map(|rejection| rejection.rule.as_str()) {
        Some(rule) if rule.starts_with("sequence fits") => {
            "use sequences that the model can have: a shorter `--seq-len`, or another model"
        }
        Some(rule) if rule.starts_with("micro-batches") => {
            "use a lower `--micro-batch`, or a larger `--global-batch`: each data-parallel rank needs whole micro-batches"
        }
        _ => {
            "remove restrictions (flags such as `--tp`, `allow` in the job file), or use a `--global-batch` that more data-parallel degrees divide"
        }
    }
}

/// The trainer of the catalogue with ZeRO stage 3.
const SHARDS_PARAMETERS: &str = "fsdp2";

/// The strongest remedy that the job does not allow yet.
fn memory_hint(planner: &Planner, shortfall: &MemoryShortfall) -> String {
    let allow = &planner.job.allow;
    let mut remedies = Vec::new();
    if !allow.recompute.contains(&Recompute::Full) {
        remedies.push("allow `recompute = \"full\"`".to_owned());
    }
    // A single device cannot shard.
    if !allow.zero_stage.contains(&3) && planner.cluster.device_count() > 1 {
        remedies.push(match planner.trainer() {
            // The stages of a trainer are not for the job to choose.
            Some(trainer) if trainer != SHARDS_PARAMETERS => {
                format!("plan for a trainer that shards parameters: `--trainer {SHARDS_PARAMETERS}`")
            }
            _ => "allow `zero_stage = 3`".to_owned(),
        });
    }
    if let Some(smallest) = allow.micro_batch.as_ref().and_then(|list| list.iter().min()).filter(|n| **n > 1)
    {
        remedies.push(format!("lower `micro_batch` to {}", smallest / 2));
    }
    // A list of 1 alone is what a trainer supports.
    let restricts = |list: &Option<Vec<u32>>| list.as_ref().is_some_and(|list| list.as_slice() != [1]);
    if [&allow.tensor, &allow.pipeline, &allow.data, &allow.shard].into_iter().any(restricts) {
        remedies.push(
            "remove the restrictions of degrees (`allow` in the job file, or flags such as `--tp`)"
                .to_owned(),
        );
    }
    if remedies.is_empty() {
        return devices_hint(shortfall);
    }
    remedies.join(", or ")
}

fn devices_hint(shortfall: &MemoryShortfall) -> String {
    let at_least = Bytes((shortfall.needs().as_f64() / (1.0 - shortfall.reserve).max(1e-9)).ceil() as u64);
    format!("use more devices, or devices with at least {at_least} each, or use shorter sequences")
}
