//! The error type for invalid user input: file, field, value, problem and hint.

use crate::text::{one_line, shown};
use std::fmt;

/// Invalid input. Displayed as
/// ```text
/// job.toml: `global_batch` is `0`: must be at least 1
/// hint: set it to the number of sequences per optimizer step, e.g. 8
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InputError {
    /// File, or the flag or text that was read.
    pub source_name: String,
    /// Path of the field, e.g. `nodes[1].devices`; empty when the file as a whole is wrong.
    pub field: String,
    /// The value as it was given; empty when no value was given.
    pub value: String,
    pub problem: String,
    /// How to fix the problem.
    pub hint: String,
}

impl InputError {
    pub fn new(field: impl Into<String>, value: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self {
            source_name: String::new(),
            field: field.into(),
            value: shown(&value.to_string(), LONGEST_VALUE),
            problem: problem.into(),
            hint: String::new(),
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Sets the file that the value was read from, unless a more exact source is already set.
    #[must_use]
    pub fn in_file(mut self, name: &str) -> Self {
        if self.source_name.is_empty() {
            self.source_name = name.to_owned();
        }
        self
    }

    /// Adds `prefix.` to the start of the field's path.
    #[must_use]
    pub fn under(mut self, prefix: &str) -> Self {
        self.field =
            if self.field.is_empty() { prefix.to_owned() } else { format!("{prefix}.{}", self.field) };
        self
    }
}

/// Maximum length of a displayed value, in characters.
const LONGEST_VALUE: usize = 60;

/// Maximum length of a line of our own messages, which may contain long lists. Quotations of parsers are cut
/// where they are created.
const LONGEST_LINE: usize = 2000;

/// Formats each line for display.
fn by_line(text: &str) -> String {
    text.split('\n').map(|line| shown(line, LONGEST_LINE)).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.source_name.is_empty() {
            write!(f, "{}: ", one_line(&self.source_name))?;
        }
        let (field, value) = (one_line(&self.field), one_line(&self.value));
        match (field.is_empty(), value.is_empty()) {
            (true, _) => {}
            (false, true) => write!(f, "`{field}`: ")?,
            (false, false) => write!(f, "`{field}` is `{value}`: ")?,
        }
        f.write_str(&by_line(&self.problem))?;
        if !self.hint.is_empty() {
            write!(f, "\nhint: {}", by_line(&self.hint))?;
        }
        Ok(())
    }
}

/// Checks a whole number against its range.
pub fn in_range(field: &str, value: u64, low: u64, high: u64) -> Result<(), InputError> {
    if value < low {
        return Err(InputError::new(field, value, format!("must be at least {low}"))
            .hint(format!("give a whole number from {low} to {high}")));
    }
    if value > high {
        return Err(InputError::new(field, value, format!("must be at most {high}"))
            .hint(format!("give a whole number from {low} to {high}")));
    }
    Ok(())
}

/// Largest valid value of a quantity, in its unit: low enough that adding and multiplying a few of them stays
/// finite.
const LARGEST: f64 = 1e30;

/// Smallest valid value of a quantity above zero, in its unit: high enough that dividing by a few of them
/// stays finite.
const SMALLEST: f64 = 1e-30;

/// Checks that a real number is above zero and in the range of valid quantities.
pub fn positive(field: &str, value: f64) -> Result<(), InputError> {
    if (SMALLEST..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(InputError::new(field, value, "must be a number above zero, from 1e-30 to 1e30")
        .hint("give a number such as 10 or 1.5e9"))
}

/// Checks the rate of a device or a link: at least one byte or one operation per second.
pub fn rate(field: &str, value: f64) -> Result<(), InputError> {
    if (1.0..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(InputError::new(field, value, "must be a rate per second from 1 to 1e30")
        .hint("give a number such as 1.5e9, in the unit that the field's name ends in"))
}

/// Checks that a real number is not negative and not above the largest valid quantity.
pub fn not_negative(field: &str, value: f64) -> Result<(), InputError> {
    if (0.0..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(InputError::new(field, value, "must be a number from 0 to 1e30").hint("give a number such as 0.1"))
}

/// Checks a real number of either sign.
pub fn finite(field: &str, value: f64) -> Result<(), InputError> {
    if (-LARGEST..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(InputError::new(field, value, "must be a number from -1e30 to 1e30")
        .hint("give a number such as 0.1"))
}

/// Checks a number of bytes: at most one pebibyte.
pub fn bytes(field: &str, value: crate::units::Bytes) -> Result<(), InputError> {
    in_range(field, value.0, 0, 1 << 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_neither_drives_a_terminal_nor_passes_for_a_line_of_ours() {
        let error = InputError::new("a\u{1b}[2J", "x\ny", "no `\u{9b}`\r\nsecond line")
            .hint("leave \u{202e} out")
            .in_file("f\n.json");
        assert_eq!(
            error.to_string(),
            "f\\n.json: `a\\u{1b}[2J` is `x\\ny`: no `\\u{9b}`\\r\nsecond line\nhint: leave \\u{202e} out"
        );
        assert_eq!(crate::text::printable("naïve — 文\t1\n"), "naïve — 文\t1\n");
    }

    #[test]
    fn messages_are_no_longer_than_a_screen() {
        let long = "é".repeat(100_000);
        let error = InputError::new(&long, &long, format!("{long}\n{long}"));
        assert!(error.to_string().chars().count() < 5_000);
    }

    #[test]
    fn quantities_are_neither_none_nor_out_of_all_proportion() {
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e31, 1e-31, 5e-324] {
            assert!(positive("x", wrong).is_err() && rate("x", wrong).is_err(), "{wrong}");
        }
        assert!(rate("x", 0.5).is_err() && rate("x", 1.0).is_ok() && positive("x", 1e-9).is_ok());
    }
}
