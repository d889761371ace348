//! The record of a running training, in a temporary file next to its final output: always complete, and
//! removed when the training is done. If the training ends early, even by SIGKILL, the measurements so far
//! can be read.

use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use autodist_spec::{RunRecord, to_json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Pause between writes: at least `PAUSE`, `TIMES` times the last write, and 1 / `PART` of the time so far.
/// The whole file is written each time, and the record grows.
const PAUSE: Duration = Duration::from_secs(1);
const TIMES: u32 = 50;
const PART: u32 = 200;

pub const UNDER_WAY: &str = "the training was under way when this was written";

pub struct Kept {
    /// `None` if the output is a device or a pipe, which cannot be written twice.
    path: Option<PathBuf>,
    began: Instant,
    next: Instant,
    warned: bool,
}

impl Kept {
    /// For a training whose record will be written to `output`.
    ///
    /// # Errors
    /// The measurements of an earlier training that ended early cannot be kept.
    pub fn for_output(output: &Path) -> Result<Self, Failure> {
        let path = (!output::is_device(output)).then(|| partial(output));
        if let Some(path) = &path
            && let Some(kept) = output::set_aside(path)?
        {
            output::note(&format!(
                "the measurements of an earlier training that ended early are kept in {}",
                kept.display()
            ));
        }
        let now = Instant::now();
        Ok(Self { path, began: now, next: now + PAUSE, warned: false })
    }

    /// Writes the record, if enough time has passed.
    pub fn grow(&mut self, progress: &Progress, record: impl FnOnce() -> RunRecord) {
        let Some(path) = self.path.as_ref().filter(|_| Instant::now() >= self.next) else { return };
        let began = Instant::now();
        if let Err(failure) = output::write_growing(path, to_json(&record()).as_bytes())
            && !std::mem::replace(&mut self.warned, true)
        {
            progress.warn(&format!("{failure}; the training continues"));
        }
        let pause = PAUSE.max(began.elapsed() * TIMES).max(self.began.elapsed() / PART);
        self.next = Instant::now() + pause;
    }

    /// Writes the record of a training that ended early; returns its path.
    pub fn end_early(self, output: &Path, record: &RunRecord) -> Result<PathBuf, Failure> {
        let path = self.path.unwrap_or_else(|| output.to_owned());
        output::write(&path, to_json(record).as_bytes())?;
        Ok(path)
    }

    /// The whole record is written.
    pub fn remove(self) {
        // The file may not exist.
        let _ = self.path.map(std::fs::remove_file);
    }
}

/// `run.json` → `run.partial.json`.
fn partial(output: &Path) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let extension = output.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    output.with_file_name(format!("{stem}.partial{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_grows_lies_beside_the_one_that_is_asked_for() {
        for (output, expected) in [
            ("run.json", "run.partial.json"),
            ("out/a.b.json", "out/a.b.partial.json"),
            ("out/run", "out/run.partial"),
        ] {
            assert_eq!(partial(Path::new(output)), Path::new(expected));
        }
    }
}
