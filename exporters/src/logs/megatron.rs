//! Megatron-LM, Megatron-Core, Megatron-Bridge and Megatron-DeepSpeed: one line per log interval, with the mean time
//! of its iterations (`training_log` of `megatron/training/training.py`). Newer versions write `this/recent mean`;
//! some forks write `elapsed_time_per_iteration_ms=`.

use super::line::{Found, Line};
use super::{Speed, TrainerLog};
use autodist_spec::InputError;

pub const MARKS: &[&str] = &["elapsed time per iteration (ms)", "elapsed_time_per_iteration_ms="];

/// `report_memory` divides by 1024 twice and calls it MB.
const MIB: f64 = 1024.0 * 1024.0;

pub fn line(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    if line.text.contains("memory (MB)") {
        let allocated = line.bytes("max allocated", "", MIB)?;
        let reserved = line.bytes("max reserved", "", MIB)?;
        log.use_memory(allocated, reserved);
        return Ok(());
    }
    for mark in MARKS {
        match line.seconds(mark, 1e-3)? {
            Found::Number(seconds) => {
                let batch = line.count("global batch size").or_else(|| line.count("global_batch_size"));
                let batch = batch.and_then(|batch| u32::try_from(batch).ok());
                log.push(line.count("iteration"), Speed::Seconds(seconds), batch);
            }
            Found::Unreadable => log.unreadable += 1,
            Found::Missing => {}
        }
    }
    Ok(())
}
