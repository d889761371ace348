//! Chrome traces of PyTorch's profiler (Kineto), plain or gzipped: the events `ProfilerStep#N`, which last from one
//! call of `prof.step()` to the next, in microseconds.

use super::line;
use super::{LogFormat, Speed, TrainerLog};
use autodist_spec::InputError;
use serde::Deserialize;
use std::borrow::Cow;

pub const MARKS: &[&str] = &["ProfilerStep#", "\"traceEvents\""];

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow, rename = "traceEvents")]
    events: Vec<Event<'a>>,
}

/// Only these fields are kept: a trace has a million events.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    cat: Option<Cow<'a, str>>,
    #[serde(default)]
    dur: Option<f64>,
}

pub fn read(content: &[u8]) -> Result<TrainerLog, InputError> {
    let start = content.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    let events = if start == Some(b'[') {
        serde_json::from_slice::<Vec<Event>>(content)
    } else {
        serde_json::from_slice::<Object>(content).map(|trace| trace.events)
    };
    let events = events.map_err(|error| {
        let problem =
            format!("is not a whole chrome trace: line {}, column {}", error.line(), error.column());
        InputError::new("", "", problem).hint("export the trace again with `prof.export_chrome_trace`")
    })?;
    let mut log = TrainerLog::new(LogFormat::Trace);
    for event in &events {
        let Some(step) = event.name.as_deref().and_then(|name| name.strip_prefix("ProfilerStep#")) else {
            continue;
        };
        // The same step is there once more as the device saw it.
        let device = event.cat.as_deref().is_some_and(|cat| cat.starts_with("gpu"));
        if let (false, Some(micros)) = (device, event.dur) {
            let seconds = line::check_seconds(&format!("dur of ProfilerStep#{step}"), micros * 1e-6)?;
            log.push(step.parse().ok(), Speed::Seconds(seconds), None);
        }
    }
    if log.samples.is_empty() {
        let problem = "has no event `ProfilerStep#N`, so that it does not say where a step ends";
        return Err(InputError::new("traceEvents", "", problem)
            .hint("call `prof.step()` after every training step, or give the step time by `--measured`"));
    }
    log.notes.push("steps under the profiler are slower than others".to_owned());
    Ok(log)
}
