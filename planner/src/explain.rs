//! Why this plan is best, which part of the step dominates, and which changes would make another plan best.

use crate::candidate::Evaluator;
use crate::choice::TIE;
use crate::{Comparison, Limit, PlanError, Planner, SearchLimits};
use autodist_spec::estimate::{LAUNCH_BOUND, is_zero, memory_risk};
use autodist_spec::strategy::label;
use autodist_spec::{
    Alternative, Bytes, Cluster, ParallelStrategy, Plan, Provenance, Seconds, Stage, StopReason,
};
use serde::Serialize;
use std::fmt;

/// The explanation of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub label: String,
    pub step_time_s: Seconds,
    /// As [`Estimate::caution_s`](autodist_spec::Estimate::caution_s).
    pub caution_s: Seconds,
    /// The largest part of the step.
    pub binding: Limit,
    /// Time for which devices wait for the host; zero is left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub host_s: Seconds,
    pub memory: MemoryUse,
    /// Half of the interval that should hold the measured step time, relative to the prediction.
    pub error_bar: f64,
    /// Of which runs the error bar is, where that is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error_bar_of: String,
    /// Why the prediction may be off, one sentence each; empty if nothing is known beyond the error bar.
    pub uncertainties: Vec<String>,
    /// Doubtful measurements of the profile, the reason, and whether plans use them nevertheless.
    pub doubts: Vec<String>,
    /// The label of each alternative, and why it is slower.
    pub alternatives: Vec<(String, String)>,
    /// The plan that the user has chosen for comparison: its label, and how it compares or why it cannot run.
    pub against: Option<(String, String)>,
    pub what_ifs: Vec<WhatIf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryUse {
    pub needed_bytes: Bytes,
    pub usable_bytes: Bytes,
    /// Nineteen of twenty measured peaks are lower; absent in older plans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most_bytes: Option<Bytes>,
    /// Chance that a device runs out of memory, from 0 to 1; absent in older plans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk: Option<f64>,
}

impl MemoryUse {
    /// That of the pipeline rank that uses most of its devices' memory.
    fn of(plan: &Plan, evaluator: &Evaluator) -> Self {
        let ranks: Vec<_> = plan.estimate.stages.iter().map(|stage| stage.memory.clone()).collect();
        let usable = |rank: usize| evaluator.usable(&plan.strategy, rank as u32);
        let share = |rank: &usize| ranks[*rank].total().as_f64() / usable(*rank).as_f64().max(1.0);
        let fullest = (0..ranks.len()).rev().max_by(|a, b| share(a).total_cmp(&share(b)));
        let (needed_bytes, usable_bytes) = match fullest {
            Some(rank) => (ranks[rank].total(), usable(rank)),
            None => (plan.estimate.peak_memory_bytes, usable(0)),
        };
        // The same relative error on every rank.
        let error = |spread: Bytes| spread.as_f64() / plan.estimate.peak_memory_bytes.as_f64().max(1.0);
        let at_most = |spread| Bytes((needed_bytes.as_f64() * (1.0 + error(spread))).ceil() as u64);
        Self {
            needed_bytes,
            usable_bytes,
            at_most_bytes: plan.estimate.peak_memory_spread_bytes.map(at_most),
            risk: plan.estimate.memory_risk,
        }
    }
}

/// The best plan under a changed assumption.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhatIf {
    pub change: &'static str,
    pub label: String,
    pub step_time_s: Seconds,
    /// Speedup of the step.
    pub speedup: f64,
    pub same_plan: bool,
}

/// Explains a plan by planning again: for another strategy, with faster links, faster devices, more memory. A
/// plan for a given strategy, or one that measurements put first, is evaluated again without a search.
/// `planner` is that of the plan's model, cluster, job and costs.
///
/// # Errors
/// The costs do not match the plan, or there is no plan for them.
pub fn explain(
    planner: &Planner,
    plan: &Plan,
    against: Option<(&ParallelStrategy, &[Stage])>,
) -> Result<Explanation, PlanError> {
    let against = against.map(|(strategy, stages)| {
        let verdict = match planner.given(strategy, Some(stages)) {
            Ok(other) => Comparison::of(&plan.estimate, &other.estimate).to_string(),
            Err(error) => error.to_string(),
        };
        (label(strategy, stages), verdict)
    });
    let faster = |compute: f64, links: f64, hosts: f64| Planner {
        costs: planner.costs.faster(compute, links, hosts),
        ..planner.clone()
    };
    let larger = larger_memory(planner.cluster, 1.25);
    let mut what_ifs = vec![
        ("twice the bandwidth", faster(1.0, 2.0, 1.0)),
        ("twice the compute", faster(2.0, 1.0, 1.0)),
        ("a quarter more memory", Planner { cluster: &larger, ..planner.clone() }),
    ];
    let waiting_s = plan.estimate.cost.host_s;
    if waiting_s / plan.estimate.step_time_s > LAUNCH_BOUND {
        what_ifs.push(("twice as fast a host", faster(1.0, 1.0, 2.0)));
    }
    let what_ifs = what_ifs
        .into_iter()
        .map(|(change, planner)| what_if(plan, change, planner))
        .collect::<Result<_, _>>()?;
    Ok(Explanation {
        label: label(&plan.strategy, &plan.stages),
        step_time_s: plan.estimate.step_time_s,
        caution_s: plan.estimate.caution_s,
        doubts: planner.doubts(),
        binding: Limit::of(&plan.estimate),
        host_s: waiting_s,
        memory: MemoryUse::of(plan, &planner.evaluator()?),
        error_bar: plan.estimate.step_time_spread_s / plan.estimate.step_time_s,
        error_bar_of: plan.cost_source.catalogue().map_or(String::new(), |one| one.error_bar_of.clone()),
        uncertainties: uncertainties(plan),
        alternatives: plan
            .alternatives
            .iter()
            .map(|other| (label(&other.strategy, &other.stages), reason(plan, other)))
            .collect(),
        against,
        what_ifs,
    })
}

/// What the document tells of a prediction by a profile. What predictions from published figures rest on, their source
/// knows.
fn uncertainties(plan: &Plan) -> Vec<String> {
    let Some(profile) = plan.cost_source.profile() else { return Vec::new() };
    let mut found = plan.assumptions.clone();
    match &profile.correction {
        Some(correction) => found.push(format!(
            "the profile was corrected by {}, by which its times are multiplied with {:.2}",
            correction.fitted_to, correction.factor
        )),
        None if plan.measured.is_none() => {
            found.push("no training of this plan was measured: `autodist validate` does".to_owned());
        }
        None => {}
    }
    if matches!(plan.estimate.provenance, Provenance::Extrapolated | Provenance::Assumed) {
        found.push(format!("some costs were not measured, but {}", plan.estimate.provenance));
    }
    found
}

/// Why an alternative is not this plan: measured, or as predicted, whichever plan of the document this is.
fn reason(plan: &Plan, other: &Alternative) -> String {
    if plan.measured.is_some() {
        return other.reason.clone();
    }
    Comparison::of(&plan.estimate, &other.estimate).with_doubts(&other.estimate, None)
}

fn what_if(plan: &Plan, change: &'static str, planner: Planner) -> Result<WhatIf, PlanError> {
    // A search by prediction need not find a plan that was chosen by measurement.
    let same = planner.given(&plan.strategy, Some(&plan.stages));
    let other = if plan.search.stop_reason == StopReason::Given || plan.measured.is_some() {
        same?
    } else {
        let limits = SearchLimits { top: 1, ..SearchLimits::default() };
        let found = planner.limits(limits).plan().map_err(|error| PlanError::Infeasible(Box::new(error)))?;
        // A plan that is no faster is no reason to change.
        match same {
            Ok(same) if same.estimate.step_time_s.0 <= found.estimate.step_time_s.0 * (1.0 + TIE) => same,
            _ => found,
        }
    };
    Ok(WhatIf {
        change,
        label: label(&other.strategy, &other.stages),
        step_time_s: other.estimate.step_time_s,
        speedup: plan.estimate.step_time_s / other.estimate.step_time_s,
        same_plan: other.strategy == plan.strategy && other.stages == plan.stages,
    })
}

fn larger_memory(cluster: &Cluster, factor: f64) -> Cluster {
    let mut larger = cluster.clone();
    for node in &mut larger.nodes {
        node.device.memory_bytes = Bytes((node.device.memory_bytes.as_f64() * factor) as u64);
    }
    larger
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} takes {} per step", self.label, self.step_time_s)?;
        if self.caution_s > Seconds::ZERO {
            writeln!(
                f,
                "  {} of that is a safety margin: segments not known to ±25 % are priced at the top of their intervals",
                self.caution_s
            )?;
        }
        let Limit { part, time_s, share } = &self.binding;
        writeln!(f, "  the largest part is {part}: {time_s}, {:.0} % of the step", 100.0 * share)?;
        if self.host_s / self.step_time_s > LAUNCH_BOUND {
            writeln!(
                f,
                "  launch-bound: the device waits {} of the step for the host; compile the model, or use a larger micro-batch",
                self.host_s
            )?;
        }
        let MemoryUse { needed_bytes, usable_bytes, at_most_bytes, risk } = &self.memory;
        write!(f, "  memory: {needed_bytes} of {usable_bytes} usable")?;
        if let (Some(most), Some(risk)) = (at_most_bytes, risk) {
            write!(f, "; nineteen of twenty runs need less than {most}; {}", memory_risk(*risk))?;
        }
        writeln!(f)?;
        write!(f, "how sure this is: ± {:.1} %", 100.0 * self.error_bar)?;
        let of =
            if self.error_bar_of.is_empty() { String::new() } else { format!(", {}", self.error_bar_of) };
        writeln!(f, "{of}")?;
        self.uncertainties.iter().try_for_each(|one| writeln!(f, "  {one}"))?;
        for doubt in &self.doubts {
            writeln!(f, "  {doubt}")?;
        }
        if let Some((label, verdict)) = &self.against {
            writeln!(f, "against {label}\n  {verdict}")?;
        }
        if !self.alternatives.is_empty() {
            writeln!(f, "why not the alternatives")?;
        }
        for (label, reason) in &self.alternatives {
            writeln!(f, "  {label}: {reason}")?;
        }
        write!(f, "with different hardware")?;
        for WhatIf { change, label, step_time_s, speedup, same_plan } in &self.what_ifs {
            let plan = if *same_plan { "the same plan" } else { label };
            match format!("{speedup:.2}").as_str() {
                "1.00" if *same_plan => write!(f, "\n  {change}: changes nothing")?,
                "1.00" => write!(f, "\n  {change}: {plan}, as fast")?,
                faster => write!(f, "\n  {change}: {plan}, {step_time_s} per step ({faster} times as fast)")?,
            }
        }
        Ok(())
    }
}
