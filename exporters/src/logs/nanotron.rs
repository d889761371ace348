//! nanotron: `iteration: 3 / 15 | consumed_tokens: 786K | time_per_iteration_ms: 1.21K | tokens_per_sec: 636K | …`
//! (`src/nanotron/trainer.py`; `elapsed_time_per_iteration_ms` before 2025). Numbers have three digits and a letter.

use super::line::{Found, Line};
use super::{Speed, TrainerLog};
use autodist_spec::InputError;

pub const MARKS: &[&str] = &["time_per_iteration_ms: "];

pub fn line(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    match line.seconds(MARKS[0], 1e-3)? {
        Found::Number(seconds) => {
            // Three digits say the batch of a check exactly only below a thousand.
            let batch = line.count("global_batch_size").filter(|batch| *batch < 1000);
            let batch = batch.and_then(|batch| u32::try_from(batch).ok());
            log.push(line.count("iteration:"), Speed::Seconds(seconds), batch);
            if log.notes.is_empty() {
                log.notes.push("nanotron rounds step times to three digits".to_owned());
            }
        }
        Found::Unreadable => log.unreadable += 1,
        Found::Missing => {}
    }
    Ok(())
}
