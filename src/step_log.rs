//! The log of a training: one line of JSON per step, written when the step is done. A training that is killed
//! leaves whole lines.

use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use autodist_spec::run::StepRecord;
use autodist_spec::{InputError, Job};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

/// The stable shape of a line (docs/json.md).
#[derive(Serialize)]
struct Line {
    step: u32,
    /// Mean cross-entropy per token, natural logarithm; `null` if it is not finite.
    loss: f64,
    step_time_s: f64,
    tokens_per_s: f64,
    learning_rate: f64,
    gradient_norm: f64,
}

pub struct StepLog {
    file: File,
    path: PathBuf,
    tokens: f64,
    /// The first error; nothing is written after it.
    failed: Option<Failure>,
}

impl StepLog {
    /// A log in `path`; that of an earlier training is kept under another name. `record` is the file of the run
    /// record.
    ///
    /// # Errors
    /// The file cannot be written, or is another file of this command.
    pub fn create(path: &Path, record: &Path, job: &Job) -> Result<Self, Failure> {
        let whole = |path: &Path| -> PathBuf {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            path.components().filter(|part| *part != Component::CurDir).collect()
        };
        if whole(path) == whole(record) {
            let error = InputError::new("--log", path.display(), "is the file of the run record (--output)");
            return Err(error.hint("give another file, such as train.jsonl").into());
        }
        output::check_no_input(path)?;
        if !output::is_device(path)
            && let Some(kept) = output::set_aside(path)?
        {
            output::note(&format!("the log of an earlier training is kept in {}", kept.display()));
        }
        let file = output::open_growing(path)?;
        Ok(Self { file, path: path.to_owned(), tokens: job.tokens() as f64, failed: None })
    }

    /// Adds steps. Each line is written at once.
    pub fn add(&mut self, steps: &[StepRecord], progress: &Progress) {
        for step in steps {
            let line = Line {
                step: step.step,
                loss: step.loss,
                step_time_s: step.time_s.0,
                tokens_per_s: self.tokens / step.time_s.0,
                learning_rate: step.learning_rate,
                gradient_norm: step.gradient_norm,
            };
            let Ok(mut text) = serde_json::to_string(&line) else { continue };
            text.push('\n');
            if self.failed.is_none()
                && let Err(source) = self.file.write_all(text.as_bytes())
            {
                let failure = Failure::Write { path: self.path.clone(), source };
                progress.warn(&format!("{failure}; the training continues without its log"));
                self.failed = Some(failure);
            }
        }
    }

    /// # Errors
    /// The log is not complete.
    pub fn end(self) -> Result<(), Failure> {
        self.failed.map_or(Ok(()), Err)
    }
}
