//! DeepSpeed: its throughput timer (`CurrSamplesPerSec`, of all ranks), lines of its pipeline engine (`iter time (s)`),
//! and `wall_clock_breakdown` (`time (ms) | fwd: … | bwd: … | step: …`).

use super::line::{self, Found, Line};
use super::{LogFormat, Speed, TrainerLog};
use autodist_spec::InputError;

pub const MARKS: &[&str] = &["SamplesPerSec=", "iter time (s):", "time (ms) | "];

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Adds what a line says to a log.
type Reader = fn(&Line, &mut TrainerLog) -> Result<(), InputError>;

/// Reads the best of the three: the time itself, then the rate, then the parts of a step.
pub fn read(text: &str) -> Result<TrainerLog, InputError> {
    let readers: [Reader; 4] = [pipeline, current, average, parts];
    let mut log = TrainerLog::new(LogFormat::DeepSpeed);
    for (index, read) in readers.into_iter().enumerate() {
        log.unreadable = 0;
        for line in line::lines(text) {
            if index == 0 {
                let allocated = line.bytes("MaxMemAllocated", "GB", GIB)?;
                log.use_memory(allocated, None);
            }
            read(&line, &mut log)?;
        }
        if !log.samples.is_empty() {
            break;
        }
    }
    Ok(log)
}

fn pipeline(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    match line.seconds("iter time (s):", 1.0)? {
        Found::Number(seconds) => log.push(line.count("steps:"), Speed::Seconds(seconds), None),
        Found::Unreadable => log.unreadable += 1,
        Found::Missing => {}
    }
    Ok(())
}

/// The step of a line of the throughput timer; old versions write `0/20, SamplesPerSec=…`.
fn step(line: &Line) -> Option<u64> {
    line.count("global_step=")
}

fn current(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    match line.rate("CurrSamplesPerSec=")? {
        Found::Number(rate) => log.push(step(line), Speed::SequencesPerS(rate), None),
        Found::Unreadable => log.unreadable += 1,
        Found::Missing => {}
    }
    Ok(())
}

fn average(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    // Minus infinity stands for "not yet".
    if line.word("SamplesPerSec=").is_some_and(|word| word.starts_with("-inf")) {
        return Ok(());
    }
    match line.rate("SamplesPerSec=")? {
        Found::Number(rate) => {
            log.push(step(line), Speed::SequencesPerS(rate), None);
            if log.notes.is_empty() {
                log.notes
                    .push("this log has running averages of the rate only: pauses are in them".to_owned());
            }
        }
        Found::Unreadable => log.unreadable += 1,
        Found::Missing => {}
    }
    Ok(())
}

/// The timers of a whole step, which sum the micro-batches; those of one micro-batch have other names.
fn parts(line: &Line, log: &mut TrainerLog) -> Result<(), InputError> {
    let text = &line.text;
    if !text.contains("time (ms) | ") || text.contains("microstep") {
        return Ok(());
    }
    let mut total = 0.0;
    for names in [["| fwd:", "| forward:"], ["| bwd:", "| backward:"], ["| step:", "| optimizer_step:"]] {
        for name in names {
            // Versions that do not time a part write zero.
            if line
                .word(name)
                .is_some_and(|word| !word.is_empty() && word.trim_matches(['0', '.']).is_empty())
            {
                continue;
            }
            match line.seconds(name, 1e-3)? {
                Found::Number(seconds) => total += seconds,
                // A part alone is not the time of a step.
                Found::Unreadable => {
                    log.unreadable += 1;
                    return Ok(());
                }
                Found::Missing => {}
            }
        }
    }
    if total > 0.0 {
        log.push(None, Speed::Seconds(total), None);
        if log.notes.is_empty() {
            log.notes.push(
                "sums of forward, backward and step: reading data is not in them, and the timers slow down the step"
                    .to_owned(),
            );
        }
    }
    Ok(())
}
