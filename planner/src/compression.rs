//! Whether compressed gradients would help a plan, and why not where they do not.

use crate::PlanError;
use crate::candidate::{Evaluator, Found};
use autodist_cost_model::ReductionSummary;
use autodist_program::Program;
use autodist_spec::{
    Codec, CodecVerdict, Communication, Estimate, ParallelStrategy, Provenance, Reduction, Seconds, Slowdown,
};

/// A difference that no measurement would show is none.
const NOTHING: f64 = 0.005;

/// The found plan with gradients in one form.
struct Coded {
    estimate: Estimate,
    summary: ReductionSummary,
    communication: Communication,
}

/// Every codec that the job allows, held against the gradients as they are, on the same split and placement.
pub(crate) fn verdicts(evaluator: &Evaluator, found: &Found) -> Vec<CodecVerdict> {
    let strategy = &found.strategy;
    if strategy.zero_stage > 0 || strategy.data == 1 {
        return Vec::new();
    }
    let Ok(dense) = coded(evaluator, found, Codec::None) else { return Vec::new() };
    let codecs = evaluator.job.allow.codecs.iter().filter(|codec| **codec != Codec::None);
    let of = |codec: &Codec| match coded(evaluator, found, *codec) {
        Ok(coded) => Some(verdict(*codec, &dense, &coded)),
        Err(PlanError::Illegal(illegal)) => Some(refused(*codec, &dense, illegal.reason)),
        Err(_) => None,
    };
    codecs.filter_map(of).collect()
}

/// Of a codec that the job does not fit: the plan stays as it is.
fn refused(codec: Codec, dense: &Coded, reason: String) -> CodecVerdict {
    let time = dense.estimate.step_time_s;
    CodecVerdict {
        codec,
        helps: false,
        step_time_s: time,
        exact_step_time_s: time,
        ratio: 1.0,
        required_ratio: None,
        coding_s: Seconds(0.0),
        exposed_s: Seconds(dense.estimate.cost.data_communication_s.0.max(0.0)),
        slowdown: Slowdown { factor: 1.0, provenance: Provenance::Assumed },
        reason,
    }
}

fn coded(evaluator: &Evaluator, found: &Found, codec: Codec) -> Result<Coded, PlanError> {
    let placement = found.strategy.communication.placement.clone();
    let reduce = Reduction { codec, ..Reduction::default() };
    let communication = Communication { placement, reduce, ..Communication::default() };
    let compile = |communication: Communication| {
        let strategy = ParallelStrategy { communication, ..found.strategy.clone() };
        let devices = evaluator.cluster.device_count();
        Program::compile(evaluator.model, evaluator.job, devices, &strategy, &found.stages)
    };
    let communication = evaluator.costs.fastest_algorithms(&compile(communication)?)?;
    let program = compile(communication.clone())?;
    let estimate = evaluator.costs.price(&program)?.estimate(evaluator.job, evaluator.cluster.device());
    Ok(Coded { estimate, summary: evaluator.costs.reductions(&program, 0)?, communication })
}

fn verdict(codec: Codec, dense: &Coded, coded: &Coded) -> CodecVerdict {
    let exposed = dense.estimate.cost.data_communication_s.0.max(0.0);
    // What compute hides of the reductions today: compressed ones must fit in there with their coding.
    let window = (dense.summary.wire_s - exposed).max(0.0);
    let room = window - coded.summary.coding_s;
    let required = (room > 0.0).then(|| dense.summary.wire_s / room);
    let ratio = dense.summary.sent_bytes / coded.summary.sent_bytes.max(1.0);
    let (before, after) = (dense.estimate.step_time_s, coded.estimate.step_time_s);
    let gain = before / after - 1.0;
    let seconds = |s: f64| Seconds(s).to_string();
    let helps = gain > NOTHING;
    let reason = if helps {
        format!(
            "shortens the step by {:.1} %: {} on the wire instead of {}, and {} of coding",
            100.0 * (1.0 - after / before),
            seconds(coded.summary.wire_s),
            seconds(dense.summary.wire_s),
            seconds(coded.summary.coding_s)
        )
    } else if exposed < NOTHING * before.0 {
        format!("gradients are hidden behind compute already: {} of {} exposed", seconds(exposed), before)
    } else if coded.summary.coding_s + coded.summary.wire_s >= dense.summary.wire_s {
        format!(
            "coding takes {}, more than the {} that {ratio:.1} times fewer bytes save",
            seconds(coded.summary.coding_s),
            seconds((dense.summary.wire_s - coded.summary.wire_s).max(0.0))
        )
    } else {
        match required {
            Some(required) => {
                format!(
                    "needs a ratio of {required:.1} to be hidden; it reaches {ratio:.1}, and the step gains nothing"
                )
            }
            None => format!(
                "its coding ({}) outlasts what compute can hide ({}): no ratio would be enough",
                seconds(coded.summary.coding_s),
                seconds(window)
            ),
        }
    };
    let buckets = &coded.communication.buckets;
    CodecVerdict {
        codec,
        helps,
        step_time_s: after,
        exact_step_time_s: before,
        ratio,
        required_ratio: required,
        coding_s: Seconds(coded.summary.coding_s),
        exposed_s: Seconds(exposed),
        slowdown: coded
            .estimate
            .slowdown
            .unwrap_or(Slowdown { factor: 1.0, provenance: Provenance::Assumed }),
        reason: if buckets.is_empty() { reason } else { format!("{reason} (algorithms differ by bucket)") },
    }
}

/// The plan with every bucket left as it is whose compression does not shorten the step.
pub(crate) fn refine(evaluator: &Evaluator, found: Found) -> Found {
    let Ok(program) = Program::compile(
        evaluator.model,
        evaluator.job,
        evaluator.cluster.device_count(),
        &found.strategy,
        &found.stages,
    ) else {
        return found;
    };
    let mut best = found;
    let places: Vec<(usize, usize)> = program
        .ranks
        .iter()
        .flat_map(|rank| (0..rank.buckets.len()).map(|bucket| (rank.pipeline_rank, bucket)))
        .collect();
    let of = |communication: &Communication, at: (usize, usize)| communication.reduction(at.0, at.1);
    for place in &places {
        if of(&best.strategy.communication, *place).codec == Codec::None {
            continue;
        }
        let mut communication = best.strategy.communication.clone();
        let reductions: Vec<_> = places
            .iter()
            .map(|at| {
                let kept = of(&communication, *at);
                let codec = if at == place { Codec::None } else { kept.codec };
                (at.0, at.1, Reduction { codec, ..kept })
            })
            .collect();
        autodist_cost_model::set_reductions(&mut communication, &reductions);
        let strategy = ParallelStrategy { communication, ..best.strategy.clone() };
        if let Some(other) = evaluator.look(&strategy, &best.stages)
            && other.merit <= best.merit
        {
            best = other;
        }
    }
    best
}
