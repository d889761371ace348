//! torchtitan: `step: 10  loss: …  memory: 60.1GiB(76%)  tps: 5,123  mfu: …` (`MetricsProcessor.log` of
//! `torchtitan/components/metrics.py`). Tokens per second are of one device of the data-parallel groups, divided by
//! the other degrees: times all devices they are those of the job. Before 2025 they were called `wps`. The memory is
//! what the caching allocator has reserved.

use super::line::{Found, Line};
use super::{Speed, TrainerLog};
use autodist_spec::InputError;

pub const MARKS: &[&str] = &["tps: ", "wps: "];

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

pub fn line(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    if !line.text.contains("step:") {
        return Ok(());
    }
    for mark in MARKS {
        match line.rate(mark)? {
            Found::Number(tokens) => {
                log.push(line.count("step:"), Speed::TokensPerSPerDevice(tokens), None);
                let reserved = line.bytes("memory:", "GiB", GIB)?;
                log.use_memory(None, reserved);
            }
            Found::Unreadable => log.unreadable += 1,
            Found::Missing => {}
        }
    }
    Ok(())
}
