//! Run records, which `autodist train` and `autodist validate` write.

use super::line::check_seconds;
use super::{LogFormat, Speed, TrainerLog};
use autodist_spec::{InputError, one_line};
use serde::Deserialize;

pub const MARKS: &[&str] = &["\"warmup_steps\"", "\"bytes_sent_per_step\""];

/// What is read of a record.
#[derive(Deserialize)]
struct Record {
    steps: Vec<Step>,
    warmup_steps: u32,
    #[serde(default)]
    ranks: Vec<Rank>,
}

#[derive(Deserialize)]
struct Step {
    step: u32,
    time_s: f64,
}

#[derive(Deserialize)]
struct Rank {
    peak_memory_bytes: u64,
}

pub fn read(content: &[u8]) -> Result<TrainerLog, InputError> {
    let record: Record = serde_json::from_slice(content).map_err(|error| {
        let problem = format!("is not a run record: {}", one_line(&error.to_string()));
        InputError::new("", "", problem)
            .hint("give a record that `autodist train` wrote, or the log of another trainer")
    })?;
    let mut log = TrainerLog::new(LogFormat::Record);
    log.whole = true;
    for (index, Step { step, time_s }) in record.steps.iter().enumerate() {
        let seconds = check_seconds(&format!("steps[{index}].time_s"), *time_s)?;
        // Numbers restart with every round of `validate`, so they do not tell ranks apart.
        if *step >= record.warmup_steps {
            log.push(None, Speed::Seconds(seconds), None);
        }
    }
    for rank in record.ranks {
        log.use_memory(Some(rank.peak_memory_bytes as f64), None);
    }
    Ok(log)
}
