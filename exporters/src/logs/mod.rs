//! Reads step times and peak memory from the logs that trainers print or write.
//!
//! Every format is one file: the words by which a log is recognised, and what a line of it says. Logs come from real
//! jobs: lines of several ranks are mixed, have time stamps and colours, and the last one may be cut. A number that
//! cannot be a measurement is refused with its line, because a median would hide it.

mod columns;
mod deepspeed;
mod line;
mod megatron;
mod nanotron;
mod nemo;
mod record;
mod steps;
mod torchtitan;
mod trace;
mod transformers;

pub use steps::{Dropped, LoggedJob, StepTime};

#[cfg(test)]
mod tests;

use autodist_spec::{Bytes, InputError};
use flate2::read::MultiGzDecoder;
use std::borrow::Cow;
use std::io::Read;
use strum::{EnumString, IntoStaticStr, VariantArray};

/// A log's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum LogFormat {
    Megatron,
    Nemo,
    Torchtitan,
    Nanotron,
    DeepSpeed,
    Transformers,
    /// Chrome traces of PyTorch's profiler (Kineto).
    Trace,
    Csv,
    Jsonl,
    /// Run records of `autodist train` and `validate`.
    Record,
}

impl LogFormat {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The kind of log, for messages.
    pub fn words(self) -> &'static str {
        match self {
            Self::Trace => "PyTorch's profiler",
            Self::Csv => "step times in CSV",
            Self::Jsonl => "step times in JSON lines",
            Self::Record => "autodist's own engines",
            trainer => trainer.name(),
        }
    }

    /// Whether a run of this training framework may have such a log.
    pub fn may_be_of(self, trainer: &str) -> bool {
        match self {
            Self::Megatron | Self::Nemo => trainer.starts_with("megatron") || trainer == "nemo",
            Self::Torchtitan => trainer == "fsdp2",
            Self::DeepSpeed => trainer.contains("deepspeed"),
            Self::Nanotron | Self::Transformers | Self::Trace | Self::Csv | Self::Jsonl | Self::Record => {
                true
            }
        }
    }

    /// The words of which one is in every log of this format.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Megatron => megatron::MARKS,
            Self::Nemo => nemo::MARKS,
            Self::Torchtitan => torchtitan::MARKS,
            Self::Nanotron => nanotron::MARKS,
            Self::DeepSpeed => deepspeed::MARKS,
            Self::Transformers => transformers::MARKS,
            Self::Trace => trace::MARKS,
            Self::Csv | Self::Jsonl => columns::MARKS,
            Self::Record => record::MARKS,
        }
    }
}

/// What a log says of the speed of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Speed {
    Seconds(f64),
    SequencesPerS(f64),
    TokensPerS(f64),
    TokensPerSPerDevice(f64),
}

/// One line of a log: the mean over the steps since the line before it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    step: Option<u64>,
    speed: Speed,
    /// Sequences per step, where the line says so.
    global_batch: Option<u32>,
}

/// Largest memory of any rank that the log has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeakMemory {
    /// Of tensors.
    pub allocated: Option<Bytes>,
    /// Of the caching allocator.
    pub reserved: Option<Bytes>,
}

/// What was read from a log.
#[derive(Debug, Clone)]
pub struct TrainerLog {
    pub format: LogFormat,
    pub memory: PeakMemory,
    /// What the user should know of the measurement.
    pub notes: Vec<String>,
    /// Whether no line is warm-up: the log has one figure of the whole run, or it leaves warm-up out.
    whole: bool,
    samples: Vec<Sample>,
    /// Lines with a step time that cannot be read: cut, or with another rank's line inside.
    unreadable: usize,
}

impl TrainerLog {
    fn new(format: LogFormat) -> Self {
        Self {
            format,
            memory: PeakMemory::default(),
            notes: Vec::new(),
            whole: false,
            samples: Vec::new(),
            unreadable: 0,
        }
    }

    fn push(&mut self, step: Option<u64>, speed: Speed, global_batch: Option<u32>) {
        self.samples.push(Sample { step, speed, global_batch });
    }

    /// Keeps the largest memory of all ranks.
    fn use_memory(&mut self, allocated: Option<f64>, reserved: Option<f64>) {
        let larger = |known: &mut Option<Bytes>, bytes: Option<f64>| {
            if let Some(bytes) = bytes {
                *known = Some(known.unwrap_or_default().max(Bytes(bytes as u64)));
            }
        };
        larger(&mut self.memory.allocated, allocated);
        larger(&mut self.memory.reserved, reserved);
    }

    /// How many lines have a step time.
    pub fn lines(&self) -> usize {
        self.samples.len()
    }
}

/// Largest decompressed trace: a small file must not fill the memory.
const LARGEST: u64 = 2 << 30;

fn decompressed(content: &[u8]) -> Result<Cow<'_, [u8]>, InputError> {
    if !content.starts_with(&[0x1f, 0x8b]) {
        return Ok(Cow::Borrowed(content));
    }
    let mut plain = Vec::new();
    MultiGzDecoder::new(content).take(LARGEST + 1).read_to_end(&mut plain).map_err(|error| {
        InputError::new("", "", format!("cannot be decompressed: {error}"))
            .hint("the file may be cut; give a whole .gz file, or the uncompressed log")
    })?;
    if plain.len() as u64 > LARGEST {
        let problem = format!("is larger than {} when decompressed", Bytes(LARGEST));
        return Err(InputError::new("", "", problem).hint("record fewer steps in the trace"));
    }
    Ok(Cow::Owned(plain))
}

/// Reads a log; its format is detected unless it is `forced`.
///
/// # Errors
/// The format is not known, the log has no step time, or a number in it cannot be a measurement.
pub fn read(content: &[u8], forced: Option<LogFormat>) -> Result<TrainerLog, InputError> {
    let content = decompressed(content)?;
    let text = String::from_utf8_lossy(&content);
    let format = match forced {
        Some(format) => format,
        None => detected(&text).ok_or_else(unknown)?,
    };
    let log = match format {
        LogFormat::Trace => trace::read(&content)?,
        LogFormat::Record => record::read(&content)?,
        LogFormat::Csv => columns::csv(&text)?,
        LogFormat::Jsonl => columns::jsonl(&text)?,
        LogFormat::Transformers if transformers::is_state(&text) => transformers::state(&text)?,
        LogFormat::Transformers => by_line(format, &text, transformers::line)?,
        LogFormat::Megatron => by_line(format, &text, megatron::line)?,
        LogFormat::Nemo => by_line(format, &text, nemo::line)?,
        LogFormat::Torchtitan => by_line(format, &text, torchtitan::line)?,
        LogFormat::Nanotron => by_line(format, &text, nanotron::line)?,
        LogFormat::DeepSpeed => deepspeed::read(&text)?,
    };
    if log.samples.is_empty() {
        let problem =
            format!("has no step time of a {} log: looked for {}", format.name(), quoted(format.marks()));
        let hint = "give the whole log of the training run; `--log-format` is only needed if the format is not detected";
        return Err(InputError::new("", "", problem).hint(hint));
    }
    Ok(log)
}

/// The first format of which a mark is in the text. Megatron-DeepSpeed prints both, and Megatron's line is the better
/// one: it has the time itself.
fn detected(text: &str) -> Option<LogFormat> {
    let first = text.trim_start();
    let marked = |format: &LogFormat| format.marks().iter().any(|mark| text.contains(mark));
    if first.starts_with(['{', '[']) {
        if marked(&LogFormat::Trace) {
            return Some(LogFormat::Trace);
        }
        if record::MARKS.iter().all(|mark| text.contains(mark)) {
            return Some(LogFormat::Record);
        }
        if transformers::is_state(text) {
            return Some(LogFormat::Transformers);
        }
        if first.starts_with('{') && columns::has_step_time(first) {
            return Some(LogFormat::Jsonl);
        }
    }
    // A header comes before the text of a trainer: tables may have a column with a trainer's name of it.
    if columns::is_csv(first) {
        return Some(LogFormat::Csv);
    }
    use LogFormat::{DeepSpeed, Megatron, Nanotron, Nemo, Torchtitan, Transformers};
    [Megatron, Nemo, Nanotron, Torchtitan, DeepSpeed, Transformers].into_iter().find(marked)
}

fn quoted(marks: &[&str]) -> String {
    marks.iter().map(|mark| format!("`{mark}`")).collect::<Vec<_>>().join(" or ")
}

fn unknown() -> InputError {
    let of = |format: &LogFormat| format!("{}: {}", format.name(), quoted(format.marks()));
    let looked = LogFormat::ALL.iter().map(of).collect::<Vec<_>>().join("; ");
    InputError::new("", "", format!("is not a log whose format is known; looked for {looked}"))
        .hint("give the step time itself, e.g. `--measured 41.2s`, or a CSV or JSONL file with a column `step_time_s`")
}

/// Reads a log line by line.
fn by_line(
    format: LogFormat,
    text: &str,
    mut read: impl FnMut(&line::Line, &mut TrainerLog) -> Result<(), InputError>,
) -> Result<TrainerLog, InputError> {
    let mut log = TrainerLog::new(format);
    for line in line::lines(text) {
        read(&line, &mut log)?;
    }
    Ok(log)
}
