//! The first screen: a verdict in a colour and in words, the answer in five lines, and commands to copy.

use super::markup::{Markup, escape};
use crate::changes;
use crate::training;
use crate::verdict;
use crate::words::{
    self, clean, corrected_bar, parameters, percent, plural, signed_percent, tokens_per_second, with_spread,
};
use crate::{NextCommand, ReportInput};
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{Optimizer, Plan, StopReason, Utilisation};

/// What measurements say of the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nobody has trained the plan.
    Predicted,
    /// It was trained, and there is no verdict: no validation, or one without the planner's choice.
    Unjudged,
    Judged(Verdict),
}

impl Standing {
    fn of(input: &ReportInput<'_>) -> Self {
        let measured = input.plan.measured.as_ref();
        let verdict = match input.validation {
            Some(validation) => validation.verdict,
            None => measured.and_then(|measured| measured.verdict),
        };
        match verdict {
            Some(verdict) => Self::Judged(verdict),
            None if input.validation.is_some() || input.own_run().is_some() || measured.is_some() => {
                Self::Unjudged
            }
            None => Self::Predicted,
        }
    }

    /// Class in the style sheet.
    fn class(self) -> &'static str {
        match self {
            Self::Predicted => "verdict predicted",
            Self::Unjudged => "verdict unjudged",
            Self::Judged(Verdict::Holds) => "verdict holds",
            Self::Judged(Verdict::WithinNoise) => "verdict noise",
            Self::Judged(Verdict::Refuted) => "verdict refuted",
        }
    }
}

/// A plan that is slower than another measured one must not be called optimal.
fn beaten(input: &ReportInput<'_>) -> bool {
    input.plan.measured.as_ref().is_some_and(|measured| !verdict::stands(input.plan, measured))
        || input.validation.is_some_and(|validation| validation.verdict == Some(Verdict::Refuted))
}

/// The verdict in a few words.
fn headline(input: &ReportInput<'_>, standing: Standing) -> String {
    let own = label(&input.plan.strategy, &input.plan.stages);
    match standing {
        Standing::Predicted => "Predicted only: this plan has not been trained".to_owned(),
        Standing::Unjudged => "Measured, without a verdict on the prediction".to_owned(),
        Standing::Judged(Verdict::Holds) => "Holds: the measurement confirms the prediction".to_owned(),
        Standing::Judged(Verdict::WithinNoise) => {
            "Within noise: the measurement does not contradict the prediction".to_owned()
        }
        Standing::Judged(Verdict::Refuted) => {
            let faster = input.validation.and_then(|validation| validation.beaten_by.as_deref());
            match faster {
                Some(faster) if faster == own => {
                    "REFUTED: another plan was predicted to be the fastest; this one was measured to be"
                        .to_owned()
                }
                Some(faster) => match number(input.plan, faster) {
                    Some(number) => format!("REFUTED: plan {number} is faster, {faster}"),
                    None => format!("REFUTED: another plan is faster, {faster}"),
                },
                None if beaten_before(input.plan) => {
                    "REFUTED: another plan was predicted to be the fastest; this one was measured to be"
                        .to_owned()
                }
                None => "REFUTED: the step does not take what was predicted".to_owned(),
            }
        }
    }
}

fn beaten_before(plan: &Plan) -> bool {
    let own = label(&plan.strategy, &plan.stages);
    plan.measured.as_ref().is_some_and(|measured| measured.first_choice != own)
}

/// The number of a plan in its document, from 1.
fn number(plan: &Plan, wanted: &str) -> Option<usize> {
    let labels = std::iter::once(label(&plan.strategy, &plan.stages))
        .chain(plan.alternatives.iter().map(|other| label(&other.strategy, &other.stages)));
    labels.enumerate().find(|(_, label)| label == wanted).map(|(index, _)| index + 1)
}

pub(super) fn fill(page: &mut Markup, input: &ReportInput<'_>) {
    let plan = input.plan;
    page.element("h1", "", &format!("{} on {}", plan.model.name, plan.cluster.name));
    page.note(&format!(
        "{} parameters, {}, {} of {} tokens a step, {}, {}",
        parameters(plan.model.total_parameters()),
        words::devices(plan),
        plural(u64::from(plan.job.global_batch), "sequence"),
        words::count(u64::from(plan.job.seq_len)),
        plan.job.precision.name(),
        match plan.job.optimizer {
            Optimizer::AdamW { .. } => "AdamW",
            Optimizer::Sgd { .. } => "SGD",
        }
    ));
    let standing = Standing::of(input);
    page.inside("div", standing.class(), |block| {
        block.element("p", "headline", &headline(input, standing));
        block.inside("dl", "", |list| {
            for (term, text) in lines(input, standing) {
                list.element("dt", "", term);
                list.element("dd", if term == "plan" { "label" } else { "" }, &text);
            }
        });
    });
    if input.emulated() {
        page.warning(
            "Measured on emulated devices, which are slowed down: not a measurement of the real devices",
        );
    }
    if let Some(contradiction) = utilisation(input).and_then(|all| all.contradiction()) {
        page.warning(&contradiction);
    }
    commands(page, input.commands);
    cards(page, input);
    page.note(&format!(
        "Search: {}",
        words::search(plan, beaten(input), true) + &words::why_not_the_fastest(plan)
    ));
}

/// What to do, how long it takes, how sure that is, whether it came true, and what it needs.
fn lines(input: &ReportInput<'_>, standing: Standing) -> Vec<(&'static str, String)> {
    let plan = input.plan;
    let estimate = &plan.estimate;
    let validated = input.validation.and_then(|validation| verdict::of_plan(plan, validation));
    let predicted = || {
        format!(
            "{} predicted, {}",
            with_spread(estimate.step_time_s, estimate.step_time_spread_s),
            tokens_per_second(estimate.tokens_per_s)
        )
    };
    let time = match (validated, &plan.measured, input.own_run()) {
        (Some(run), ..) => verdict::time(plan, run),
        (None, Some(measured), _) => format!(
            "{} measured; {} predicted",
            with_spread(measured.step_time_s, measured.step_time_spread_s),
            with_spread(estimate.step_time_s, estimate.step_time_spread_s)
        ),
        (None, None, Some(run)) => format!(
            "{} measured, [{}, {}] over {}; {}",
            run.step_time.median_s,
            run.step_time.low_s,
            run.step_time.high_s,
            plural(u64::from(run.step_time.count), "step"),
            predicted()
        ),
        (None, None, None) => predicted(),
    };
    let mut lines = vec![
        ("plan", label(&plan.strategy, &plan.stages)),
        ("do", super::capitalized(&words::strategy(&plan.strategy, &plan.stages, plan.micro_batches))),
        ("step time", time),
        ("how sure", sure(input)),
    ];
    let verdict = match (input.validation, &plan.measured) {
        (Some(validation), _) => Some(verdict::of_choice(validation)),
        (None, Some(measured)) => Some(clean(&measured.reason)),
        (None, None) => None,
    };
    let unknown = match standing {
        Standing::Predicted => "not known: no run of it is in this report",
        _ => "not judged: `autodist validate` compares a plan with its prediction",
    };
    lines.push(("verdict", verdict.unwrap_or_else(|| unknown.to_owned())));
    lines.push(("memory", memory(input)));
    lines.extend(words::memory_risk(estimate).map(|risk| ("risk", risk)));
    lines.extend(plan.training.map(|whole| ("training", training::sentence(plan, &whole))));
    lines.extend(plan.device_choice.as_ref().map(|one| ("devices", clean(&words::device_choice(one)))));
    lines.extend(
        plan.given
            .as_ref()
            .map(|given| ("yours", format!("{} is {}", clean(&given.source), changes::verdict(plan, given)))),
    );
    lines
}

/// How much was measured, or what the interval of the prediction means.
fn sure(input: &ReportInput<'_>) -> String {
    let plan = input.plan;
    let estimate = &plan.estimate;
    if let Some(validation) = input.validation.filter(|validation| !validation.runs.is_empty()) {
        return verdict::sure(plan, validation);
    }
    let bar = percent(estimate.step_time_spread_s / estimate.step_time_s);
    let correction = plan.cost_source.profile().and_then(|profile| profile.correction.as_ref());
    if let Some(correction) = correction {
        return format!("± {bar}: {}", corrected_bar(correction));
    }
    match plan.cost_source.catalogue().filter(|catalogue| !catalogue.error_bar_of.is_empty()) {
        Some(catalogue) => format!("± {bar}: {}", clean(&catalogue.error_bar_of)),
        None => format!(
            "± {bar}, the interval that should hold the measured median; its least trusted part is {}",
            estimate.provenance
        ),
    }
}

fn memory(input: &ReportInput<'_>) -> String {
    let plan = input.plan;
    let fits = if plan.fits { "" } else { "does NOT fit: " };
    let validated = input.validation.and_then(|validation| verdict::of_plan(plan, validation));
    let own = input.own_run().map(autodist_spec::RunRecord::peak_memory);
    let measured = validated.map(|run| run.measured.peak_memory_bytes).or(own);
    let measured = measured.map_or(String::new(), |peak| format!(", {peak} measured"));
    format!(
        "{fits}{} predicted{measured}, of {}; {} are kept free",
        plan.estimate.peak_memory_bytes,
        words::device_memory(plan),
        percent(plan.job.memory_reserve)
    )
}

/// At the measured step time, if there is one.
fn utilisation(input: &ReportInput<'_>) -> Option<Utilisation> {
    let mut estimate = input.plan.estimate.clone();
    if let Some(run) = input.validation.and_then(|validation| verdict::of_plan(input.plan, validation)) {
        estimate.step_time_s = run.measured.adjusted_step_time_s;
    }
    input.plan.utilisation(&estimate)
}

/// Each of one thing, and all of one origin: what was measured, if the plan was, and otherwise what was predicted.
fn cards(page: &mut Markup, input: &ReportInput<'_>) {
    let plan = input.plan;
    let estimate = &plan.estimate;
    let validated = input.validation.and_then(|validation| verdict::of_plan(plan, validation));
    page.inside("div", "cards", |cards| {
        let bar = validated.map(|run| run.bar_s).filter(|bar| bar.0 > 0.0);
        cards.card(
            "predicted step time",
            &estimate.step_time_s.to_string(),
            &format!("± {}, from {} parts", bar.unwrap_or(estimate.step_time_spread_s), estimate.provenance),
        );
        let mut tokens = estimate.tokens_per_s;
        let mut origin = "predicted";
        if let Some(run) = validated {
            // Compares like with like: the plan's own run, at the machine speed of the profile.
            let speed = if run.measured.machine_speed == 1.0 { "" } else { " at profile speed" };
            cards.card(
                "measured step time",
                &run.measured.adjusted_step_time_s.to_string(),
                &format!(
                    "± {}{speed}; predicted {}",
                    run.measured.adjusted_step_time_spread_s,
                    signed_percent(run.adjusted_error)
                ),
            );
            tokens = plan.job.tokens() as f64 / run.measured.adjusted_step_time_s.0;
            origin = "measured";
        } else if let Some(run) = input.own_run() {
            let time = &run.step_time;
            cards.card(
                "measured step time",
                &time.median_s.to_string(),
                &format!(
                    "95 % interval {} to {}, {}",
                    time.low_s,
                    time.high_s,
                    plural(u64::from(time.count), "step")
                ),
            );
            tokens = plan.job.tokens() as f64 / time.median_s.0;
            origin = "measured";
        }
        let tokens = tokens_per_second(tokens);
        let (number, unit) = tokens.split_once(' ').unwrap_or((&tokens, ""));
        let rate = utilisation(input).map(|all| format!("; {all}")).unwrap_or_default();
        cards.card("throughput", number, &format!("{unit}, {origin}{rate}"));
        let note =
            format!("of {}, {} kept free", words::device_memory(plan), percent(plan.job.memory_reserve));
        cards.card("peak memory", &estimate.peak_memory_bytes.to_string(), &format!("predicted, {note}"));
        if beaten(input) {
            return;
        }
        let search = &plan.search;
        let bound = match search.stop_reason {
            StopReason::Given => format!("not searched for, bound {}", search.lower_bound_s),
            _ => format!("gap {}, bound {}", percent(search.gap), search.lower_bound_s),
        };
        cards.card(
            "search",
            if search.stop_reason == StopReason::Optimal && search.gap > 5e-4 {
                "complete"
            } else {
                words::stop_reason(search.stop_reason)
            },
            &bound,
        );
    });
}

/// Each with a button, which the script of the page shows.
fn commands(page: &mut Markup, commands: &[NextCommand]) {
    if commands.is_empty() {
        return;
    }
    page.inside("div", "commands", |list| {
        for NextCommand { purpose, text } in commands {
            let many = text.contains('\n');
            let purpose = escape(purpose);
            let (open, close) = if many {
                (format!("<details class=\"command\"><summary>{purpose}</summary>\n"), "</details>\n")
            } else {
                (format!("<div class=\"command\"><span class=\"purpose\">{purpose}</span>\n"), "</div>\n")
            };
            list.raw(&open);
            // Hidden characters are shown as such; line ends and tabs are kept.
            let shown: Vec<String> = text.lines().map(escape).collect();
            list.raw("<button type=\"button\" class=\"copy\" hidden=\"hidden\">copy</button>\n");
            list.raw(&format!("<pre><code>{}</code></pre>\n", shown.join("\n")));
            list.raw(close);
        }
    });
}
