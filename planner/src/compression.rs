//! Whether codecs for gradients, parameters or activations would make a plan faster, and if not, why.

use crate::PlanError;
use crate::candidate::{Evaluator, Found};
use autodist_cost_model::CodedSummary;
use autodist_program::Program;
use autodist_spec::{
    Codec, CodecVerdict, Coded, Communication, Estimate, ParallelStrategy, Reduction, Seconds, Slowdown,
};

/// Differences below this are not measurable.
const NOTHING: f64 = 0.005;

/// The best plan with one codec for one kind of traffic.
struct Way {
    estimate: Estimate,
    summary: CodedSummary,
    communication: Communication,
}

/// Compares every codec that the job allows for the traffic of this plan with uncompressed traffic, on the
/// same stages and placement.
pub(crate) fn verdicts(evaluator: &Evaluator, found: &Found) -> Vec<CodecVerdict> {
    let (strategy, allow) = (&found.strategy, &evaluator.job.allow);
    let gradients = if strategy.zero_stage == 0 { Coded::Gradients } else { Coded::GradientShards };
    let mut kinds = Vec::new();
    if strategy.data > 1 {
        kinds.push((gradients, &allow.codecs));
    }
    if strategy.zero_stage == 3 {
        kinds.push((Coded::Parameters, &allow.parameter_codecs));
    }
    if strategy.pipeline > 1 {
        kinds.push((Coded::Activations, &allow.activation_codecs));
    }
    let mut verdicts = Vec::new();
    for (kind, codecs) in kinds {
        let Ok(exact) = way(evaluator, found, kind, Codec::None) else { continue };
        let of = |codec: &Codec| match way(evaluator, found, kind, *codec) {
            Ok(coded) => Some(verdict(*codec, kind, &exact, &coded)),
            Err(PlanError::Illegal(illegal)) => Some(refused(*codec, kind, &exact, illegal.reason)),
            Err(_) => None,
        };
        verdicts.extend(codecs.iter().filter(|codec| **codec != Codec::None).filter_map(of));
    }
    verdicts
}

/// Exposed communication of that kind of traffic.
fn exposed(estimate: &Estimate, kind: Coded) -> f64 {
    let seconds = match kind {
        Coded::Activations => estimate.cost.pipeline_communication_s,
        _ => estimate.cost.data_communication_s,
    };
    seconds.0.max(0.0)
}

/// Verdict on a codec that the job does not allow: the plan does not use it.
fn refused(codec: Codec, kind: Coded, dense: &Way, reason: String) -> CodecVerdict {
    let time = dense.estimate.step_time_s;
    CodecVerdict {
        codec,
        coded: kind,
        helps: false,
        step_time_s: time,
        exact_step_time_s: time,
        ratio: 1.0,
        required_ratio: None,
        coding_s: Seconds(0.0),
        exposed_s: Seconds(exposed(&dense.estimate, kind)),
        slowdown: Slowdown::prior(1.0),
        reason,
    }
}

fn way(evaluator: &Evaluator, found: &Found, kind: Coded, codec: Codec) -> Result<Way, PlanError> {
    let mut communication = found.strategy.communication.clone();
    match kind {
        Coded::Gradients | Coded::GradientShards => {
            communication.reduce = Reduction { codec, ..Reduction::default() };
            communication.buckets = Vec::new();
        }
        Coded::Parameters => communication.parameters = codec,
        Coded::Activations => communication.activations = codec,
    }
    let compile = |communication: Communication| {
        let strategy = ParallelStrategy { communication, ..found.strategy.clone() };
        let devices = evaluator.cluster.device_count();
        Program::compile(evaluator.model, evaluator.job, devices, &strategy, &found.stages)
    };
    let communication = evaluator.costs.fastest_algorithms(&compile(communication)?)?;
    let program = compile(communication.clone())?;
    let estimate = evaluator.costs.price(&program)?.estimate(evaluator.job, evaluator.cluster);
    Ok(Way { estimate, summary: evaluator.costs.coded(&program, 0, kind)?, communication })
}

fn verdict(codec: Codec, kind: Coded, dense: &Way, coded: &Way) -> CodecVerdict {
    let exposed = exposed(&dense.estimate, kind);
    // The overlapped part of the reductions: compressed ones must fit into this time with their coding.
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
        format!(
            "{} already overlap with compute: only {} of {before} are exposed",
            kind.name(),
            seconds(exposed)
        )
    } else if coded.summary.coding_s + coded.summary.wire_s >= dense.summary.wire_s {
        format!(
            "coding takes {}, which is more than the {} that sending {ratio:.1} times fewer bytes saves",
            seconds(coded.summary.coding_s),
            seconds((dense.summary.wire_s - coded.summary.wire_s).max(0.0))
        )
    } else {
        match required {
            Some(required) => {
                format!(
                    "hiding it needs a compression ratio of {required:.1}; it reaches {ratio:.1}, and the step gets no shorter"
                )
            }
            None => format!(
                "its coding ({}) takes longer than compute can hide ({}), so no compression ratio is enough",
                seconds(coded.summary.coding_s),
                seconds(window)
            ),
        }
    };
    let buckets = &coded.communication.buckets;
    CodecVerdict {
        codec,
        coded: kind,
        helps,
        step_time_s: after,
        exact_step_time_s: before,
        ratio,
        required_ratio: required,
        coding_s: Seconds(coded.summary.coding_s),
        exposed_s: Seconds(exposed),
        slowdown: coded.estimate.slowdown.unwrap_or(Slowdown::prior(1.0)),
        reason: if buckets.is_empty() { reason } else { format!("{reason} (algorithms differ by bucket)") },
    }
}

/// The plan with compression only for those buckets where it shortens the step.
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
        .flat_map(|rank| (0..rank.buckets().len()).map(|bucket| (rank.pipeline_rank, bucket)))
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
