//! What differs between two documents of one kind: settings, and numbers with their intervals.

use crate::screen::Screen;
use crate::table::{Align, Table};
use crate::view::TerminalView;
use crate::words::{clean, count, plural};
use autodist_spec::profile::Sample;
use autodist_spec::strategy::label;
use autodist_spec::{Bytes, Plan, Profile, RunRecord, Seconds, Training};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Settings that are listed; of the others, the number is given.
const MOST_SETTINGS: usize = 40;

/// The content of `diff`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// `plan`, `profile` or `run`.
    pub kind: &'static str,
    /// Settings that differ, by their path in the document.
    pub settings: Vec<SettingDiff>,
    pub numbers: Vec<NumberDiff>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SettingDiff {
    pub setting: String,
    /// `null` where the document does not have it.
    pub before: Value,
    pub after: Value,
}

/// A number of both documents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NumberDiff {
    pub what: String,
    /// In text, with a unit.
    pub before: String,
    pub after: String,
    /// `after / before`; absent if `before` is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Whether it is a part of the number above it.
    #[serde(skip)]
    part: bool,
    /// Whether the intervals of both exclude each other; absent if there are no intervals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clear: Option<bool>,
}

impl NumberDiff {
    fn new(what: &str, (before, after): (f64, f64), say: impl Fn(f64) -> String) -> Self {
        let ratio = (before != 0.0).then(|| after / before);
        Self {
            what: what.to_owned(),
            before: say(before),
            after: say(after),
            ratio,
            part: false,
            clear: None,
        }
    }

    fn seconds(what: &str, before: Seconds, after: Seconds) -> Self {
        Self::new(what, (before.0, after.0), |value| Seconds(value).to_string())
    }

    fn bytes(what: &str, before: Bytes, after: Bytes) -> Self {
        Self::new(what, (before.as_f64(), after.as_f64()), |value| Bytes(value as u64).to_string())
    }

    /// With half-widths of intervals.
    fn within(self, (before, after): (Seconds, Seconds), distance: f64) -> Self {
        Self { clear: Some(distance.abs() > before.0 + after.0), ..self }
    }

    fn samples(what: &str, before: &Sample, after: &Sample) -> Self {
        let clear = before.high_s < after.low_s || after.high_s < before.low_s;
        Self { clear: Some(clear), ..Self::seconds(what, before.median_s, after.median_s) }
    }

    fn is_something(&self) -> bool {
        self.before != self.after || self.ratio.is_some_and(|ratio| (ratio - 1.0).abs() >= 5e-4)
    }

    fn part(self) -> Self {
        Self { part: true, ..self }
    }
}

/// What differs between two plans.
pub fn of_plans(before: &Plan, after: &Plan) -> Diff {
    let (old, new) = (&before.estimate, &after.estimate);
    let mut settings = vec![setting(
        "strategy",
        &label(&before.strategy, &before.stages),
        &label(&after.strategy, &after.stages),
    )];
    for (name, one, other) in [
        ("model", value(&before.model), value(&after.model)),
        ("cluster", value(&before.cluster), value(&after.cluster)),
        ("job", value(&before.job), value(&after.job)),
        ("cost_source", value(&before.cost_source), value(&after.cost_source)),
        ("assumptions", value(&before.assumptions), value(&after.assumptions)),
    ] {
        leaves(name, &one, &other, &mut settings);
    }
    let step = NumberDiff::seconds("step time", old.step_time_s, new.step_time_s)
        .within((old.step_time_spread_s, new.step_time_spread_s), new.step_time_s.0 - old.step_time_s.0);
    let mut numbers = vec![step];
    if let (Some(old), Some(new)) = (&before.measured, &after.measured) {
        let spreads = (old.step_time_spread_s, new.step_time_spread_s);
        let measured = NumberDiff::seconds("measured step time", old.step_time_s, new.step_time_s);
        numbers.push(measured.within(spreads, new.step_time_s.0 - old.step_time_s.0));
    }
    let cost = old.cost.parts().into_iter().zip(new.cost.parts());
    numbers.extend(cost.map(|((name, old), (_, new))| NumberDiff::seconds(name, old, new).part()));
    numbers.push(NumberDiff::bytes("peak memory", old.peak_memory_bytes, new.peak_memory_bytes));
    let memory = old.memory.parts().into_iter().zip(new.memory.parts());
    numbers.extend(memory.map(|((name, old), (_, new))| NumberDiff::bytes(name, old, new).part()));
    let pair = (old.tokens_per_s, new.tokens_per_s);
    numbers.push(NumberDiff::new("tokens per second", pair, |value| count(value as u64)));
    if let (Some(old), Some(new)) = (before.training, after.training) {
        let days = |training: Training| training.time_s.0 / 86_400.0;
        numbers.push(NumberDiff::new(
            "days of the training",
            (days(old), days(new)),
            crate::training::rounded,
        ));
        if let (Some(old), Some(new)) = (old.cost_usd, new.cost_usd) {
            let usd = |value: f64| format!("${}", crate::training::rounded(value));
            numbers.push(NumberDiff::new("cost of the training", (old, new), usd));
        }
    }
    Diff::of("plan", settings, numbers)
}

/// What differs between two profiles: a number for each kind of cells that both have.
pub fn of_profiles(before: &Profile, after: &Profile) -> Diff {
    let mut settings = Vec::new();
    for (name, one, other) in [
        ("model", value(&before.model), value(&after.model)),
        ("seq_len", value(&before.seq_len), value(&after.seq_len)),
        ("precision", value(&before.precision), value(&after.precision)),
        ("cluster", value(&before.cluster), value(&after.cluster)),
        ("environment", value(&before.environment), value(&after.environment)),
        ("complete", value(&before.complete), value(&after.complete)),
    ] {
        leaves(name, &one, &other, &mut settings);
    }
    let mut numbers = Vec::new();
    if let (Some(old), Some(new)) = (before.fastest_gemm(), after.fastest_gemm()) {
        let rate = |value: f64| autodist_spec::FlopsPerSecond(value).to_string();
        numbers.push(NumberDiff::new("fastest GEMM", (old.0, new.0), rate));
    }
    let segments = |profile: &Profile| -> BTreeMap<String, (String, Sample)> {
        let cells = profile.segments.iter().map(|cell| {
            let kind = format!("{} {}", cell.segment.name(), cell.pass.name());
            let key = format!(
                "{kind} tp{} {} mb{} {:?}",
                cell.tensor, cell.sequence_parallel, cell.micro_batch, cell.recompute
            );
            (key, (kind, cell.time))
        });
        cells.collect()
    };
    let collectives = |profile: &Profile| -> BTreeMap<String, (String, Sample)> {
        let cells = profile.collectives.iter().map(|cell| {
            let kind = format!("{:?} over {} ranks", cell.kind, cell.group);
            (format!("{kind} {} {:?}", cell.stride, cell.bytes), (kind, cell.time))
        });
        let sends = profile.messages.iter().map(|cell| {
            (format!("send/recv {} {:?}", cell.stride, cell.bytes), ("send/recv".to_owned(), cell.time))
        });
        cells.chain(sends).collect()
    };
    for cells in [segments, collectives] as [fn(&Profile) -> BTreeMap<String, (String, Sample)>; 2] {
        numbers.extend(by_kind(&cells(before), &cells(after)));
    }
    let slow = |profile: &Profile| {
        (profile.interference.compute_slowdown, profile.interference.communication_slowdown)
    };
    let times = |value: f64| format!("{value:.3} times");
    let (old, new) = (slow(before), slow(after));
    numbers.push(NumberDiff::new("compute overlapped with communication", (old.0, new.0), times));
    numbers.push(NumberDiff::new("communication overlapped with compute", (old.1, new.1), times));
    Diff::of("profile", settings, numbers)
}

/// Sums of the cells that both have, by kind; clear if most cells are.
fn by_kind(
    before: &BTreeMap<String, (String, Sample)>,
    after: &BTreeMap<String, (String, Sample)>,
) -> Vec<NumberDiff> {
    let mut kinds: BTreeMap<&str, (f64, f64, usize, usize)> = BTreeMap::new();
    for (key, (kind, old)) in before {
        let Some((_, new)) = after.get(key) else { continue };
        let clear = NumberDiff::samples(kind, old, new).clear == Some(true);
        let sum = kinds.entry(kind.as_str()).or_default();
        *sum = (sum.0 + old.median_s.0, sum.1 + new.median_s.0, sum.2 + 1, sum.3 + usize::from(clear));
    }
    let number = |(kind, (old, new, cells, clear)): (&str, (f64, f64, usize, usize))| NumberDiff {
        clear: Some(2 * clear > cells),
        ..NumberDiff::seconds(
            &format!("{kind} ({})", plural(cells as u64, "cell")),
            Seconds(old),
            Seconds(new),
        )
    };
    kinds.into_iter().map(number).collect()
}

/// What differs between two runs.
pub fn of_runs(before: &RunRecord, after: &RunRecord) -> Diff {
    let mut settings = vec![setting("strategy", &before.strategy.label(), &after.strategy.label())];
    for (name, one, other) in [
        ("precision", value(&before.precision), value(&after.precision)),
        ("warmup_steps", value(&before.warmup_steps), value(&after.warmup_steps)),
        ("environment", value(&before.environment), value(&after.environment)),
    ] {
        leaves(name, &one, &other, &mut settings);
    }
    let mut numbers = vec![NumberDiff::samples("step time", &before.step_time, &after.step_time)];
    let (old, new) = (before.peak_memory(), after.peak_memory());
    numbers.push(NumberDiff::bytes("peak memory", old, new));
    let steps = |run: &RunRecord| run.steps.len() as f64;
    numbers
        .push(NumberDiff::new("recorded steps", (steps(before), steps(after)), |value| count(value as u64)));
    let losses: BTreeMap<u32, f64> = before.steps.iter().map(|step| (step.step, step.loss)).collect();
    let common = after.steps.iter().filter_map(|step| Some((step.step, *losses.get(&step.step)?, step.loss)));
    if let Some((step, old, new)) = common.max_by_key(|(step, ..)| *step) {
        let loss = |value: f64| format!("{value:.4}");
        numbers.push(NumberDiff::new(&format!("loss at step {step}, the last of both"), (old, new), loss));
    }
    Diff::of("run", settings, numbers)
}

impl Diff {
    fn of(kind: &'static str, settings: Vec<SettingDiff>, numbers: Vec<NumberDiff>) -> Self {
        let settings = settings.into_iter().filter(|one| one.before != one.after).collect();
        Self { kind, settings, numbers: numbers.into_iter().filter(NumberDiff::is_something).collect() }
    }

    /// The text for the terminal.
    pub fn text(&self, before: &str, after: &str, view: &TerminalView) -> String {
        let mut screen = Screen::new(view);
        screen.paragraph(clean(&format!("{before} -> {after}")));
        if self.settings.is_empty() && self.numbers.is_empty() {
            screen.decision(&format!("the {}s do not differ", self.kind));
            return screen.finish();
        }
        if !self.numbers.is_empty() {
            let mut table = Table::new(&[
                ("number", Align::Left),
                ("before", Align::Right),
                ("after", Align::Right),
                ("after / before", Align::Right),
                ("", Align::Left),
            ]);
            for one in &self.numbers {
                let ratio = one.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
                let clear = match one.clear {
                    Some(false) => "within the intervals of both",
                    _ => "",
                };
                let indent = if one.part { "- " } else { "" };
                table.row([
                    format!("{indent}{}", one.what),
                    one.before.clone(),
                    one.after.clone(),
                    ratio,
                    clear.to_owned(),
                ]);
            }
            screen.section("Numbers", &table);
        }
        if !self.settings.is_empty() {
            let columns = [("setting", Align::Left), ("before", Align::Left), ("after", Align::Left)];
            let mut table = Table::new(&columns);
            let most = if view.verbose { self.settings.len() } else { MOST_SETTINGS };
            for one in self.settings.iter().take(most) {
                table.row([one.setting.clone(), said(&one.before), said(&one.after)]);
            }
            screen.section("Settings", &table);
            if let Some(more) = self.settings.len().checked_sub(most).filter(|more| *more > 0) {
                screen
                    .paragraph(format!("and {} more: --verbose lists them", plural(more as u64, "setting")));
            }
        }
        screen.finish()
    }
}

fn value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

fn setting(name: &str, before: &str, after: &str) -> SettingDiff {
    SettingDiff { setting: name.to_owned(), before: before.into(), after: after.into() }
}

/// Leaves of two values that differ.
fn leaves(path: &str, before: &Value, after: &Value, found: &mut Vec<SettingDiff>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let more = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(more) {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                leaves(&format!("{path}.{key}"), &of(old), &of(new), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                leaves(&format!("{path}[{index}]"), old, new, found);
            }
        }
        (old, new) if old != new => {
            found.push(SettingDiff { setting: path.to_owned(), before: old.clone(), after: new.clone() });
        }
        _ => {}
    }
}

/// A value in a cell.
fn said(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.len() > 8 => format!("{} entries", list.len()),
        other => {
            let text = other.to_string();
            if text.chars().count() > 120 { "(see --json)".to_owned() } else { text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leaves_name_the_paths_that_differ() {
        let mut found = Vec::new();
        let before = json!({"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": true});
        let after = json!({"a": 1, "b": {"c": [1, 3], "d": "x"}, "new": [1]});
        leaves("job", &before, &after, &mut found);
        let paths: Vec<_> = found.iter().map(|one| one.setting.as_str()).collect();
        assert_eq!(paths, ["job.b.c[1]", "job.gone", "job.new"]);
        assert_eq!(found[1].after, Value::Null);
    }

    #[test]
    fn a_difference_within_the_intervals_is_said_to_be() {
        let sample = |low: f64, median: f64, high: f64| Sample {
            median_s: Seconds(median),
            low_s: Seconds(low),
            high_s: Seconds(high),
            ..Sample::of(&[median])
        };
        let one = sample(0.9, 1.0, 1.1);
        assert_eq!(NumberDiff::samples("a", &one, &sample(1.0, 1.05, 1.2)).clear, Some(false));
        assert_eq!(NumberDiff::samples("a", &one, &sample(1.2, 1.3, 1.4)).clear, Some(true));
    }
}
