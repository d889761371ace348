//! Hugging Face's Trainer: the metrics that it prints at the end (`{'train_runtime': …}`), or trainer_state.json. Both
//! are of the whole run.

use super::line::{self, Found, Line};
use super::{LogFormat, Speed, TrainerLog};
use autodist_spec::{InputError, text};
use serde::Deserialize;

pub const MARKS: &[&str] = &["train_samples_per_second", "train_runtime"];

const WHOLE: &str =
    "the Trainer gives one figure of the whole run: warm-up, evaluation and checkpoints are in it";

pub fn line(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    match line.rate("train_samples_per_second")? {
        Found::Number(rate) => {
            log.whole = true;
            log.push(None, Speed::SequencesPerS(rate), None);
            if log.notes.is_empty() {
                log.notes.push(WHOLE.to_owned());
            }
        }
        Found::Unreadable => log.unreadable += 1,
        Found::Missing => {}
    }
    Ok(())
}

#[derive(Deserialize)]
struct State {
    log_history: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    step: Option<f64>,
    train_runtime: Option<f64>,
}

/// Whether this is a trainer_state.json.
pub fn is_state(text: &str) -> bool {
    text.trim_start().starts_with('{') && text.contains("\"log_history\"")
}

pub fn state(text: &str) -> Result<TrainerLog, InputError> {
    let state: State = serde_json::from_str(text).map_err(|error| {
        InputError::new(
            "",
            "",
            format!("is not a whole trainer_state.json: {}", text::shown(&error.to_string(), 200)),
        )
        .hint("give the file of a finished run, or the log that it printed")
    })?;
    let mut log = TrainerLog::new(LogFormat::Transformers);
    for entry in &state.log_history {
        let (Some(runtime), Some(step)) = (entry.train_runtime, entry.step) else { continue };
        if !(1.0..1e12).contains(&step) {
            return Err(line::implausible("log_history.step", step, "the number of steps"));
        }
        let seconds = line::check_seconds("log_history.train_runtime / step", runtime / step)?;
        log.whole = true;
        log.push(None, Speed::Seconds(seconds), None);
    }
    if log.samples.is_empty() {
        let problem = "has no `train_runtime`: the run had not ended when it was written";
        let hint = "give the trainer_state.json of the end of the run, or the step time by `--measured`";
        return Err(InputError::new("log_history", "", problem).hint(hint));
    }
    log.notes.push(WHOLE.to_owned());
    Ok(log)
}
