//! Progress on standard error: a bar on a terminal, plain lines elsewhere. It never goes back.

use crate::{look, output};
use autodist_spec::one_line;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Interval of lines when not on a terminal: at least this, and 1 / `LINES` of the time so far.
const LINE_EVERY: Duration = Duration::from_secs(5);
const LINES: u32 = 50;
/// Resolution of a bar that shows time.
const PARTS: f64 = 1000.0;

pub struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    began: Instant,
    last_line: Option<Instant>,
    /// Position when progress started: earlier pieces took no time.
    from: Option<usize>,
    furthest: u64,
}

impl Progress {
    pub fn new(title: &str) -> Self {
        let bar = (std::io::stderr().is_terminal() && !look::get().quiet).then(|| {
            // A bar of no length would be drawn full.
            let bar = ProgressBar::new(1);
            // Narrow terminals have room for what is being done.
            let narrow = look::width_of_messages().is_some_and(|width| width < 100);
            let template = format!("{{prefix}} [{{bar:{}}}] {{wide_msg}}", if narrow { 12 } else { 30 });
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(one_line(title));
            bar.set_message("starting");
            bar.tick();
            bar
        });
        Self { bar, title: title.to_owned(), began: Instant::now(), last_line: None, from: None, furthest: 0 }
    }

    /// `done` of `of` equal pieces; `what` is the current one.
    pub fn at(&mut self, done: usize, of: usize, what: &str) {
        let from = *self.from.get_or_insert(done);
        let used = self.began.elapsed().as_secs_f64();
        let left = match done.saturating_sub(from) {
            0 => String::new(),
            made => format!(", about {} left", span(used / made as f64 * of.saturating_sub(done) as f64)),
        };
        // A bar shows how far it is, and is short.
        let text = match self.bar {
            Some(_) => format!("{done}/{of}{left}: {what}"),
            None => format!("{done}/{of}, {} used{left}: {what}", span(used)),
        };
        self.show(done as u64, of as u64, &text);
    }

    /// Progress of work of unknown length: the bar stays empty until it is done.
    pub fn counted(&mut self, done: usize, what: &str) {
        let used = span(self.began.elapsed().as_secs_f64());
        self.show(0, 1, &format!("{done} done, {used} used: {what}"));
    }

    /// Progress within a budget of seconds, for any number of pieces.
    pub fn within(&mut self, used_s: f64, budget_s: f64, what: &str) {
        let left = budget_s - used_s;
        let text = match (&self.bar, left > 0.0) {
            (Some(_), true) => format!("{} of the budget left: {what}", span(left)),
            (Some(_), false) => format!("budget used up, ends soon: {what}"),
            (None, true) => format!("{what}; {} used, {} of the budget left", span(used_s), span(left)),
            (None, false) => format!(
                "{what}; {} used, the time budget is used up: after this round only doubtful measurements are repeated",
                span(used_s)
            ),
        };
        let part = (used_s / budget_s.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        self.show((PARTS * part) as u64, PARTS as u64, &text);
    }

    /// Prints a warning above the bar.
    pub fn warn(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::warn(text)),
            None => output::warn(text),
        }
    }

    /// Ends it: a bar of work that is done stays, full, with the time that the work took.
    pub fn end(mut self, done: bool) {
        if let Some(bar) = self.bar.take() {
            if done {
                bar.set_position(bar.length().unwrap_or(1));
                bar.abandon_with_message(format!("done in {}", span(self.began.elapsed().as_secs_f64())));
                // The cursor is still behind the bar.
                output::say("");
            } else {
                bar.finish_and_clear();
            }
        }
    }

    fn show(&mut self, position: u64, length: u64, text: &str) {
        self.furthest = self.furthest.max(position);
        if let Some(bar) = &self.bar {
            bar.set_length(length.max(1));
            bar.set_position(self.furthest);
            bar.set_message(one_line(text));
            return;
        }
        let pause = LINE_EVERY.max(self.began.elapsed() / LINES);
        if self.last_line.is_none_or(|last| last.elapsed() >= pause) {
            output::note(&format!("{} {text}", self.title));
            self.last_line = Some(Instant::now());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A duration for display.
fn span(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e9) as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_said_in_its_two_largest_units() {
        let said: Vec<_> = [0.4, 59.9, 61.0, 3599.0, 3660.0, f64::NAN].map(span).to_vec();
        assert_eq!(said, ["0 s", "59 s", "1 min 1 s", "59 min 59 s", "1 h 1 min", "0 s"]);
    }

    #[test]
    fn it_never_goes_back() {
        let mut progress = Progress::new("profile");
        let seen =
            [(10.0, 60.0), (50.0, 60.0), (20.0, 60.0), (70.0, 60.0), (71.0, 60.0)].map(|(used, budget)| {
                progress.within(used, budget, "round 1, 1 of 2");
                progress.furthest
            });
        assert_eq!(seen, [166, 833, 833, 1000, 1000]);
    }
}
