//! The record of a training under way, in a file beside the one that will hold it in the end: always whole, and gone when
//! the training is done. Whatever ends the training, also a SIGKILL, what was measured until then can be read.

use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;
use autodist_spec::{RunRecord, to_json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two writings, at least; and by how many times as long as the last one took, and which part of all the time:
/// a record grows, and the file is written anew.
const PAUSE: Duration = Duration::from_secs(1);
const TIMES: u32 = 50;
const PART: u32 = 200;

pub const UNDER_WAY: &str = "the training was under way when this was written";

pub struct Kept {
    /// None where the output is a device or a pipe, which cannot be written twice.
    path: Option<PathBuf>,
    began: Instant,
    next: Instant,
    warned: bool,
}

impl Kept {
    /// For the training whose record will be at `output`.
    pub fn beside(output: &Path) -> Self {
        let path = (!output::is_device(output)).then(|| partial(output));
        let now = Instant::now();
        Self { path, began: now, next: now + PAUSE, warned: false }
    }

    /// Writes the record, if it is time to.
    pub fn grow(&mut self, progress: &Progress, record: impl FnOnce() -> RunRecord) {
        let Some(path) = self.path.as_ref().filter(|_| Instant::now() >= self.next) else { return };
        let began = Instant::now();
        if let Err(failure) = output::write_growing(path, to_json(&record()).as_bytes())
            && !std::mem::replace(&mut self.warned, true)
        {
            progress.say(&format!("warning: {failure}; the training continues"));
        }
        let pause = PAUSE.max(began.elapsed() * TIMES).max(self.began.elapsed() / PART);
        self.next = Instant::now() + pause;
    }

    /// Writes what there is of a training that ended early; returns where.
    pub fn end_early(self, output: &Path, record: &RunRecord) -> Result<PathBuf, Failure> {
        let path = self.path.unwrap_or_else(|| output.to_owned());
        output::write(&path, to_json(record).as_bytes())?;
        Ok(path)
    }

    /// The whole record is written.
    pub fn remove(self) {
        // It may never have been written.
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
