//! NeMo on PyTorch Lightning: `train_step_timing in s` in a progress bar (`=3.130`), in a printed line (`: 7.126`) or
//! in a JSON line.

use super::line::{Found, Line};
use super::{Speed, TrainerLog};
use autodist_spec::InputError;

pub const MARKS: &[&str] = &["train_step_timing in s"];

pub fn line(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    // Weights & Biases draws the values of a run as a line of blocks at the end, and repeats the last one.
    if line.text.starts_with("wandb:") {
        return Ok(());
    }
    match line.seconds(MARKS[0], 1.0)? {
        Found::Number(seconds) => {
            let batch = line.count("global_batch_size").and_then(|batch| u32::try_from(batch).ok());
            log.push(line.count("global_step"), Speed::Seconds(seconds), batch);
        }
        Found::Unreadable => log.unreadable += 1,
        Found::Missing => {}
    }
    Ok(())
}
