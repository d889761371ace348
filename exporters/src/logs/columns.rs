//! Tables with one line per step (CSV, as Weights & Biases exports them) and JSON lines (as `autodist train --log`
//! writes them): a column of step times or rates by its usual names, or else the differences of `_runtime`.

use super::line::{self, check_rate, check_seconds};
use super::{LogFormat, Speed, TrainerLog};
use autodist_spec::InputError;
use serde_json::{Map, Value};

pub const MARKS: &[&str] = &["step_time_s", "step_time", "iteration_time", "_runtime"];

/// What a column has.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// In units of so many seconds.
    Time(f64),
    Sequences,
    Tokens,
    TokensPerDevice,
}

const KINDS: [(Kind, &[&str]); 5] = [
    (
        Kind::Time(1.0),
        &[
            "step_time_s",
            "step_time",
            "step_time_sec",
            "step_time_seconds",
            "step_seconds",
            "seconds_per_step",
            "sec_per_step",
            "time_per_step",
            "iteration_time",
            "iteration_time_s",
            "iter_time",
            "iter_time_s",
            "time_per_iteration_s",
            "train_step_timing_in_s",
        ],
    ),
    (
        Kind::Time(1e-3),
        &[
            "step_time_ms",
            "iteration_time_ms",
            "iter_time_ms",
            "time_per_iteration_ms",
            "elapsed_time_per_iteration_ms",
            "elapsed_time_per_iteration_(ms)",
        ],
    ),
    (Kind::TokensPerDevice, &["tokens_per_sec_per_gpu", "tokens_per_second_per_gpu", "tokens_per_s_per_gpu"]),
    (Kind::Tokens, &["tokens_per_sec", "tokens_per_second", "tokens_per_s"]),
    (Kind::Sequences, &["samples_per_sec", "samples_per_second", "samples_per_s", "sequences_per_second"]),
];

const STEPS: [&str; 6] = ["step", "_step", "iteration", "iter", "global_step", "trainer/global_step"];

/// `run - perf/step time` is `step_time`.
fn plain(name: &str) -> String {
    let name = name.rsplit(" - ").next().unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    last.trim().to_ascii_lowercase().replace([' ', '-'], "_")
}

fn kind(name: &str) -> Option<Kind> {
    let name = plain(name);
    KINDS.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(kind, _)| *kind)
}

fn is_step(name: &str) -> bool {
    STEPS.contains(&name.trim().to_ascii_lowercase().as_str())
}

/// The column of step times: times before rates.
fn best<'a>(names: &[&'a str]) -> Result<Option<(&'a str, Kind)>, InputError> {
    let known: Vec<(&str, Kind)> = names.iter().filter_map(|name| Some((*name, kind(name)?))).collect();
    let times: Vec<_> = known.iter().filter(|(_, kind)| matches!(kind, Kind::Time(_))).copied().collect();
    let of = if times.is_empty() { known } else { times };
    let same: Vec<_> = of.iter().filter(|(_, kind)| Some(*kind) == of.first().map(|one| one.1)).collect();
    if same.len() > 1 {
        let list = same.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        return Err(
            InputError::new("", list, "several columns have step times").hint("keep the one that is meant")
        );
    }
    Ok(of.first().copied())
}

/// Whether the first line is a header with a column that is read.
pub fn is_csv(text: &str) -> bool {
    let header = text.lines().next().unwrap_or_default();
    let names = header.split(',').map(|name| name.trim().trim_matches('"'));
    header.contains(',') && names.clone().any(|name| kind(name).is_some() || plain(name) == "_runtime")
        || kind(header.trim().trim_matches('"')).is_some()
}

/// Whether the first line is a JSON object with such a field.
pub fn has_step_time(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let object: Option<Map<String, Value>> = serde_json::from_str(first).ok();
    object.is_some_and(|object| text_has_time(&object) || text.lines().take(50).any(line_has_time))
}

fn line_has_time(line: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(line).is_ok_and(|object| text_has_time(&object))
}

fn text_has_time(object: &Map<String, Value>) -> bool {
    object.keys().any(|name| kind(name).is_some() || name == "_runtime")
}

/// Values of one line, by column.
struct Row {
    number: usize,
    values: Vec<(String, String)>,
}

impl Row {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// # Errors
    /// The value is not a number.
    fn number(&self, name: &str) -> Result<Option<f64>, InputError> {
        let Some(text) = self.get(name).map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            InputError::new(format!("{name}, line {}", self.number), text, "expected a number")
                .hint("leave the field empty where nothing was measured")
        })
    }
}

pub fn csv(text: &str) -> Result<TrainerLog, InputError> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.trim_start().as_bytes());
    let wrong = |error: csv::Error| {
        InputError::new("", "", format!("is not CSV: {error}")).hint("give a table with one line per step")
    };
    let header = reader.headers().map_err(wrong)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let number = record.position().map_or(0, |position| position.line() as usize);
        let values = header.iter().zip(&record).map(|(name, value)| (name.to_owned(), value.to_owned()));
        rows.push(Row { number, values: values.collect() });
    }
    of_rows(LogFormat::Csv, &rows)
}

pub fn jsonl(text: &str) -> Result<TrainerLog, InputError> {
    let mut rows = Vec::new();
    let last = text.lines().count();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let object: Map<String, Value> = match serde_json::from_str(line) {
            Ok(object) => object,
            // The job may have ended while it was written.
            Err(_) if number == last && !text.ends_with('\n') => continue,
            Err(_) => {
                let error = InputError::new(format!("line {number}"), line, "is not a JSON object");
                return Err(error.hint("give one object per line"));
            }
        };
        let scalar = |(name, value): (String, Value)| match value {
            Value::Number(number) => Some((name, number.to_string())),
            Value::String(text) if kind(&name).is_some() => Some((name, text)),
            _ => None,
        };
        rows.push(Row { number, values: object.into_iter().filter_map(scalar).collect() });
    }
    of_rows(LogFormat::Jsonl, &rows)
}

fn of_rows(format: LogFormat, rows: &[Row]) -> Result<TrainerLog, InputError> {
    let mut names: Vec<&str> =
        rows.iter().flat_map(|row| row.values.iter().map(|(name, _)| name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    let step_name = names.iter().find(|name| is_step(name));
    let mut log = TrainerLog::new(format);
    let step = |row: &Row| -> Result<Option<u64>, InputError> {
        let Some(name) = step_name else { return Ok(None) };
        Ok(row.number(name)?.filter(|step| (0.0..1e15).contains(step)).map(|step| step as u64))
    };
    match best(&names)? {
        Some((name, kind)) => {
            for row in rows {
                let Some(value) = row.number(name)? else { continue };
                let field = format!("{name}, line {}", row.number);
                let speed = match kind {
                    Kind::Time(scale) => Speed::Seconds(check_seconds(&field, value * scale)?),
                    Kind::Sequences => Speed::SequencesPerS(check_rate(&field, value)?),
                    Kind::Tokens => Speed::TokensPerS(check_rate(&field, value)?),
                    Kind::TokensPerDevice => Speed::TokensPerSPerDevice(check_rate(&field, value)?),
                };
                log.push(step(row)?, speed, None);
            }
        }
        None => of_runtimes(rows, &names, &step, &mut log)?,
    }
    for row in rows {
        if let Some(bytes) =
            row.number("peak_memory_bytes").ok().flatten().filter(|bytes| (0.0..1e16).contains(bytes))
        {
            log.use_memory(Some(bytes), None);
        }
    }
    Ok(log)
}

/// Step times from the seconds since the start, as Weights & Biases keeps them.
fn of_runtimes(
    rows: &[Row],
    names: &[&str],
    step: &dyn Fn(&Row) -> Result<Option<u64>, InputError>,
    log: &mut TrainerLog,
) -> Result<(), InputError> {
    let Some(runtime) = names.iter().find(|name| plain(name) == "_runtime") else { return Ok(()) };
    let mut before: Option<(u64, f64)> = None;
    for row in rows {
        let (Some(seconds), Some(at)) = (row.number(runtime)?, step(row)?) else { continue };
        if !(0.0..1e9).contains(&seconds) {
            let field = format!("{runtime}, line {}", row.number);
            return Err(line::implausible(&field, seconds, "seconds since the start"));
        }
        if let Some((last, then)) = before
            && at > last
            && seconds > then
        {
            log.push(Some(at), Speed::Seconds((seconds - then) / (at - last) as f64), None);
        }
        before = Some((at, seconds));
    }
    log.notes.push(format!("step times are differences of `{runtime}`"));
    Ok(())
}
