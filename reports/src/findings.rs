//! What each figure shows, in a sentence: one rule for each, from numbers to words. A sentence claims no more than
//! its numbers.

use crate::ReportInput;
use crate::figures::OPERATIONS;
use crate::figures::{device_memory, front};
use crate::words::{self, count, percent, plural, share, signed_percent};
use autodist_spec::{
    Bytes, CostBreakdown, Estimate, OperationKind, Plan, PricedOutcome, PricedPoint, Profile, RunRecord,
    Seconds, Stream, TimelineEvent, ValidatedRun, Validation,
};
use std::collections::BTreeSet;

/// Layouts whose times differ by less are equally fast in words.
const ALIKE: f64 = 0.02;
/// Less memory than this part of the fastest layout's is not worth a word.
const SAVING: f64 = 0.15;
/// Parts of a step below this are not worth a word.
const SMALL: f64 = 0.02;
/// Losses at one step that differ by less, relatively, are the same training.
const SAME_LOSS: f64 = 1e-3;

/// `95 %`, or with one digit below one percent.
fn whole(fraction: f64) -> String {
    if fraction.abs() < 0.01 { percent(fraction) } else { format!("{:.0} %", 100.0 * fraction) }
}

/// Compute, and the largest of what is not compute.
pub(crate) fn cost(estimate: &Estimate) -> String {
    let CostBreakdown {
        compute_s,
        recompute_s,
        tensor_communication_s,
        context_communication_s,
        expert_communication_s,
        data_communication_s,
        pipeline_communication_s,
        bubble_s,
        host_s,
        interference_s,
        optimizer_s,
        overhead_s,
    } = estimate.cost;
    let total = estimate.cost.total();
    if !(total.0 > 0.0 && total.0.is_finite()) {
        return "No part of the step has a time".to_owned();
    }
    let communication = tensor_communication_s
        + context_communication_s
        + expert_communication_s
        + data_communication_s
        + pipeline_communication_s;
    let compute = share(compute_s.0, total.0);
    let others = [
        ("exposed communication", communication),
        ("the pipeline bubble", bubble_s),
        ("recomputation", recompute_s),
        ("contention of compute with communication", interference_s),
        ("the optimizer", optimizer_s),
        ("the host", host_s),
        ("overhead of the step", overhead_s),
    ];
    let most = others.iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0));
    let (name, part) = most.map_or(("", 0.0), |(name, time)| (*name, share(time.0, total.0)));
    let first = format!("{} of the step is compute", whole(compute));
    match name {
        _ if part < SMALL => format!("{first}: nothing else takes {}", whole(SMALL)),
        "exposed communication" if compute >= 0.9 => {
            format!("{first}: a network twice as fast would gain at most {}", whole(part / 2.0))
        }
        "exposed communication" => format!(
            "{first}, {} exposed communication: a network twice as fast would gain at most {}",
            whole(part),
            whole(part / 2.0)
        ),
        "the pipeline bubble" => {
            format!("{first}; the pipeline bubble takes {}: more micro-batches would shrink it", whole(part))
        }
        "recomputation" => format!("{first}; recomputation, the price of memory, takes {}", whole(part)),
        _ => format!("{first}; the largest part beside it is {name}, {}", whole(part)),
    }
}

/// `a third`, or `41 %`.
fn fraction(part: f64) -> String {
    let known = [(0.25, "a quarter"), (1.0 / 3.0, "a third"), (0.5, "half"), (2.0 / 3.0, "two thirds")];
    known
        .iter()
        .find(|(value, _)| (part - value).abs() < 0.02)
        .map_or_else(|| whole(part), |(_, words)| (*words).to_owned())
}

/// The peak of the fullest device beside what it has, and the largest part.
pub(crate) fn memory(input: &ReportInput<'_>) -> String {
    let memory = &input.plan.estimate.memory;
    let total = memory.total();
    if total == Bytes::ZERO {
        return "No part of the memory has a size".to_owned();
    }
    let parts = memory.parts();
    let largest = parts.iter().max_by_key(|(_, size)| *size);
    let part = largest.map_or(String::new(), |(name, size)| {
        let is = if name.ends_with('s') { "are" } else { "is" };
        format!("{} of it {is} {name}", fraction(share(size.as_f64(), total.as_f64())))
    });
    let Some(device) = device_memory(input.plan) else { return format!("The peak is {total}; {part}") };
    let used = share(total.as_f64(), device.as_f64());
    if !input.plan.fits {
        return format!("{total} do not fit into {device}; {part}");
    }
    let left = device.saturating_sub(total);
    match used {
        v if v < 0.05 => format!("{total}, {} of the device; {part}", whole(v)),
        v if v > 0.9 => format!("{total} of {device}: only {left} are left; {part}"),
        _ => format!("{total} of {device}; {part}"),
    }
}

/// Time that each kind of operation takes, as the mean over the ranks.
fn per_kind(events: &[TimelineEvent], kind: OperationKind) -> Seconds {
    let ranks: BTreeSet<u32> = events.iter().map(|event| event.rank).collect();
    let long =
        |event: &&TimelineEvent| event.operation == kind && (event.end_s - event.start_s).0.is_finite();
    let time: Seconds = events.iter().filter(long).map(|event| event.end_s - event.start_s).sum();
    time / ranks.len().max(1) as f64
}

/// If the step was measured: the kind of operation that differs most from the prediction; otherwise how busy the
/// ranks are.
pub(crate) fn timeline(input: &ReportInput<'_>) -> String {
    let events = input.predicted_timeline;
    let micro_batches = 1 + events.iter().map(|event| event.micro_batch).max().unwrap_or(0);
    let measured = input.own_run().map(|run| run.timeline.as_slice()).filter(|events| !events.is_empty());
    if let Some(measured) = measured.filter(|_| !events.is_empty()) {
        if micro_batches < input.plan.micro_batches {
            return "One step as it was measured, beside the beginning of the predicted one".to_owned();
        }
        let differences =
            OPERATIONS.map(|kind| (words::operation(kind), per_kind(events, kind), per_kind(measured, kind)));
        let off = |one: &(&str, Seconds, Seconds)| (one.2 - one.1).0.abs();
        let most = differences.into_iter().max_by(|a, b| off(a).total_cmp(&off(b)));
        let step = input.plan.estimate.step_time_s;
        return match most {
            Some(most) if off(&most) >= 0.05 * step.0 => {
                format!("{} took {} instead of {}, per rank", capital(most.0), most.2, most.1)
            }
            _ => "Every kind of operation took what was predicted, within 5 % of the step".to_owned(),
        };
    }
    busy(events).unwrap_or_else(|| "One training step".to_owned())
}

/// `Ranks compute 92 % of the step; pipeline rank 3 is idle longest, 14 %`.
fn busy(events: &[TimelineEvent]) -> Option<String> {
    let finite = |event: &&TimelineEvent| event.end_s.0.is_finite() && event.start_s.0.is_finite();
    let end = events.iter().filter(finite).map(|event| event.end_s).fold(Seconds::ZERO, Seconds::max);
    let ranks: BTreeSet<u32> = events.iter().map(|event| event.rank).collect();
    // Waiting for a message is no work.
    let works = |event: &&TimelineEvent| {
        event.stream == Stream::Compute
            && !matches!(event.operation, OperationKind::Receive | OperationKind::Send)
    };
    let share_of = |rank: &u32| {
        let own = events.iter().filter(finite).filter(works).filter(|event| event.rank == *rank);
        (share(own.map(|event| event.end_s - event.start_s).sum::<Seconds>().0, end.0), *rank)
    };
    let shares: Vec<(f64, u32)> = ranks.iter().map(share_of).collect();
    let mean = shares.iter().map(|(share, _)| share).sum::<f64>() / shares.len().max(1) as f64;
    let (least, rank) = *shares.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    if !(end.0 > 0.0 && mean > 0.0) {
        return None;
    }
    Some(match shares.len() {
        1 => format!("The device computes during {} of the step", whole(mean)),
        _ => format!(
            "Devices compute during {} of the step; pipeline rank {rank} waits longest, {}",
            whole(mean),
            whole(1.0 - least)
        ),
    })
}

/// Whether the plans can be told apart; otherwise the errors.
pub(crate) fn scatter(validation: &Validation) -> String {
    let runs = &validation.runs;
    let interval = |run: &ValidatedRun| {
        let (time, spread) =
            (run.measured.adjusted_step_time_s.0, run.measured.adjusted_step_time_spread_s.0);
        (time - spread, time + spread)
    };
    let errors: Vec<f64> = runs.iter().map(|run| run.adjusted_error).filter(|e| e.is_finite()).collect();
    let Some(worst) = errors.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())) else {
        return "No plan was measured".to_owned();
    };
    let near = errors.iter().filter(|error| error.abs() <= 0.1).count();
    let inside = match (near, errors.len()) {
        (1, 1) => format!("The prediction was off by {}", signed_percent(worst)),
        (near, all) if near == all => {
            format!(
                "All {} are predicted within 10 %; the worst is {}",
                plural(all as u64, "plan"),
                signed_percent(worst)
            )
        }
        (near, all) => format!(
            "{} of {} are predicted within 10 %; the worst is {}",
            count(near as u64),
            plural(all as u64, "plan"),
            signed_percent(worst)
        ),
    };
    let latest = runs.iter().map(|run| interval(run).0).fold(f64::NEG_INFINITY, f64::max);
    let earliest = runs.iter().map(|run| interval(run).1).fold(f64::INFINITY, f64::min);
    let alike = runs.len() > 1 && latest <= earliest;
    if alike { format!("{inside}; all are equally fast within noise") } else { inside }
}

/// Whether the runs train the same, and where the loss goes.
pub(crate) fn loss(runs: &[RunRecord]) -> String {
    let ends: Vec<(u32, f64, u32, f64)> = runs
        .iter()
        .filter_map(|run| {
            let round = run.rounds().next()?;
            let mut known = round.iter().filter(|step| step.loss.is_finite());
            let first = known.next()?;
            let last = known.next_back().unwrap_or(first);
            Some((first.step, first.loss, last.step, last.loss))
        })
        .collect();
    let Some((first_step, first, last_step, last)) = ends.first().copied() else {
        return "No run has a loss".to_owned();
    };
    let fell = format!(
        "{} from {first:.2} at step {first_step} to {last:.2} at step {last_step}",
        if last <= first { "falls" } else { "rises" }
    );
    let early = if last > first && last_step < 20 { " (in the warm-up of the learning rate)" } else { "" };
    if ends.len() == 1 {
        return format!("The loss {fell}{early}");
    }
    let same = ends.iter().all(|end| end.2 == last_step && (end.3 - last).abs() <= SAME_LOSS * last.abs());
    if same {
        let all = if ends.len() == 2 { "both runs".to_owned() } else { format!("all {} runs", ends.len()) };
        return format!("The curves of {all} coincide: the loss {fell}{early}");
    }
    let finals = ends.iter().map(|end| end.3);
    let (low, high) =
        (finals.clone().fold(f64::INFINITY, f64::min), finals.fold(f64::NEG_INFINITY, f64::max));
    format!("{} end at losses between {low:.3} and {high:.3}", plural(ends.len() as u64, "run"))
}

/// Of the largest groups, the slowest link.
pub(crate) fn links(profile: &Profile) -> String {
    let known = || profile.fits.iter().filter(|fit| fit.beta_s_per_byte > 0.0 && fit.residual.is_finite());
    let slowest = known().max_by(|a, b| a.beta_s_per_byte.total_cmp(&b.beta_s_per_byte));
    let Some(fit) = slowest else { return "Times of messages and collectives by their size".to_owned() };
    format!(
        "The slowest is {} over {}: {} after {} of latency, a line that misses by {}",
        fit.what.replace('_', "-"),
        plural(u64::from(fit.group), "rank"),
        autodist_spec::BytesPerSecond(1.0 / fit.beta_s_per_byte),
        fit.alpha_s,
        percent(fit.residual)
    )
}

/// What the plan costs compared with the fastest layout that fits, and what it saves; if it is the fastest, what the
/// others are.
pub(crate) fn choice(plan: &Plan, points: &[PricedPoint]) -> String {
    let (own, memory) = (plan.estimate.step_time_s, plan.estimate.peak_memory_bytes);
    let front = front(points);
    let Some(fastest) = front.first().filter(|first| own > first.step_time_s * (1.0 + 5e-4)) else {
        return landscape(points);
    };
    let slower = percent(own / fastest.step_time_s - 1.0);
    if memory >= fastest.peak_memory_bytes {
        return format!("The plan takes {slower} longer than the fastest layout");
    }
    let less = fastest.peak_memory_bytes.saturating_sub(memory);
    format!("The plan takes {slower} longer than the fastest layout, and needs {less} less memory")
}

/// How many layouts are as good as the fastest, and what half of the memory would cost.
pub(crate) fn landscape(points: &[PricedPoint]) -> String {
    let simulated: Vec<&PricedPoint> =
        points.iter().filter(|point| point.outcome == PricedOutcome::Simulated).collect();
    let front = front(points);
    let Some(fastest) = front.first() else { return "No layout fits".to_owned() };
    let alike = simulated.iter().filter(|p| p.step_time_s <= fastest.step_time_s * (1.0 + ALIKE)).count();
    let next = simulated.iter().filter(|p| p.label != fastest.label).map(|p| p.step_time_s);
    let next = next.fold(Seconds(f64::INFINITY), Seconds::min);
    let first = match alike {
        0 | 1 if next.0.is_finite() => {
            format!("The fastest is {} ahead of the next", percent(next / fastest.step_time_s - 1.0))
        }
        0 | 1 => "One layout was simulated".to_owned(),
        several => format!("The fastest {} are within {} of each other", count(several as u64), whole(ALIKE)),
    };
    // The cheapest way to save a good part of the memory.
    let enough = fastest.peak_memory_bytes.as_f64() * (1.0 - SAVING);
    let saving = front.iter().find(|point| point.peak_memory_bytes.as_f64() <= enough);
    // A layout that was not simulated may save the same for less.
    let saving = saving.filter(|_| points.iter().all(|point| point.outcome != PricedOutcome::Bounded));
    match saving {
        Some(saving) => format!(
            "{first}; {} instead of {} cost {} of time",
            saving.peak_memory_bytes,
            fastest.peak_memory_bytes,
            percent(saving.step_time_s / fastest.step_time_s - 1.0)
        ),
        None => first,
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(parts: &[(usize, f64)]) -> Estimate {
        let mut cost = CostBreakdown::default();
        for (index, milliseconds) in parts {
            let time = Seconds(milliseconds * 1e-3);
            match index {
                0 => cost.compute_s = time,
                1 => cost.recompute_s = time,
                2 => cost.tensor_communication_s = time,
                5 => cost.data_communication_s = time,
                7 => cost.bubble_s = time,
                _ => cost.optimizer_s = time,
            }
        }
        Estimate {
            step_time_s: cost.total(),
            step_time_spread_s: Seconds::ZERO,
            caution_s: Seconds::ZERO,
            provenance: autodist_spec::Provenance::Modelled,
            cost,
            memory: Default::default(),
            peak_memory_bytes: Bytes::ZERO,
            tokens_per_s: 1.0,
            mfu: None,
            lower_bound_s: Seconds::ZERO,
            stages: Vec::new(),
            slowdown: None,
            time_to_loss_s: None,
            peak_memory_spread_bytes: None,
            memory_risk: None,
            memory_limit_bytes: None,
            host_memory_bytes: None,
        }
    }

    #[test]
    fn the_cost_names_compute_and_the_largest_other_part() {
        for (parts, expected) in [
            (
                &[(0, 95.0), (2, 2.0), (5, 2.0), (10, 1.0)][..],
                "95 % of the step is compute: a network twice as fast would gain at most 2 %",
            ),
            (
                &[(0, 60.0), (2, 30.0), (7, 10.0)],
                "60 % of the step is compute, 30 % exposed communication: a network twice as fast would gain at most \
                 15 %",
            ),
            (
                &[(0, 70.0), (7, 20.0), (2, 10.0)],
                "70 % of the step is compute; the pipeline bubble takes 20 %: more micro-batches would shrink it",
            ),
            (
                &[(0, 80.0), (1, 20.0)],
                "80 % of the step is compute; recomputation, the price of memory, takes 20 %",
            ),
            (
                &[(0, 80.0), (10, 20.0)],
                "80 % of the step is compute; the largest part beside it is the optimizer, 20 %",
            ),
            (&[(0, 99.0), (10, 1.0)], "99 % of the step is compute: nothing else takes 2 %"),
            (&[], "No part of the step has a time"),
        ] {
            assert_eq!(cost(&estimate(parts)), expected);
        }
    }

    #[test]
    fn fractions_have_names_near_them_only() {
        assert_eq!(
            [0.25, 0.34, 0.51, 0.41, 0.005].map(fraction),
            ["a quarter", "a third", "half", "41 %", "0.5 %"]
        );
    }

    #[test]
    fn the_landscape_tells_ties_and_the_price_of_memory() {
        let point = |time, gib: u64, outcome| PricedPoint {
            label: format!("{time} {gib}"),
            outcome,
            step_time_s: Seconds(time),
            peak_memory_bytes: Bytes(gib << 30),
        };
        let fits = PricedOutcome::Simulated;
        let mut points = vec![point(10.0, 60, fits), point(10.1, 61, fits), point(12.0, 52, fits)];
        assert_eq!(landscape(&points), "The fastest 2 are within 2 % of each other");
        points.push(point(11.0, 30, fits));
        points.push(point(1.0, 90, PricedOutcome::OutOfMemory));
        assert_eq!(
            landscape(&points),
            "The fastest 2 are within 2 % of each other; 30.0 GiB instead of 60.0 GiB cost 10.0 % of time"
        );
        points.push(point(10.5, 29, PricedOutcome::Bounded));
        assert_eq!(
            landscape(&points),
            "The fastest 2 are within 2 % of each other",
            "nobody knows the price"
        );
        points.pop();
        points.remove(1);
        assert!(landscape(&points).starts_with("The fastest is 10.0 % ahead of the next; 30.0 GiB"));
        assert_eq!(landscape(&[]), "No layout fits");
    }
}
