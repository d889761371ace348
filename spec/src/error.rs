//! One shape for every refusal of user input: which file, which field, which value, what is wrong, the way out.

use std::fmt;

/// Bad input. Displayed as
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
    /// The value as it was given; empty when there is none.
    pub value: String,
    pub problem: String,
    /// The way out.
    pub hint: String,
}

impl InputError {
    pub fn new(field: impl Into<String>, value: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self {
            source_name: String::new(),
            field: field.into(),
            value: shorten(&value.to_string()),
            problem: problem.into(),
            hint: String::new(),
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Names the file that the value was read from, unless a more exact name is known already.
    #[must_use]
    pub fn in_file(mut self, name: &str) -> Self {
        if self.source_name.is_empty() {
            self.source_name = name.to_owned();
        }
        self
    }

    /// Puts `prefix.` before the field's path.
    #[must_use]
    pub fn under(mut self, prefix: &str) -> Self {
        self.field =
            if self.field.is_empty() { prefix.to_owned() } else { format!("{prefix}.{}", self.field) };
        self
    }
}

fn shorten(value: &str) -> String {
    const LIMIT: usize = 60;
    if value.chars().count() <= LIMIT {
        return value.to_owned();
    }
    let mut short: String = value.chars().take(LIMIT).collect();
    short.push('…');
    short
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.source_name.is_empty() {
            write!(f, "{}: ", self.source_name)?;
        }
        match (self.field.is_empty(), self.value.is_empty()) {
            (true, _) => {}
            (false, true) => write!(f, "`{}`: ", self.field)?,
            (false, false) => write!(f, "`{}` is `{}`: ", self.field, self.value)?,
        }
        f.write_str(&self.problem)?;
        if !self.hint.is_empty() {
            write!(f, "\nhint: {}", self.hint)?;
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

/// No quantity of ours is larger, in its unit; sums and products of a few numbers below it stay finite.
const LARGEST: f64 = 1e30;

/// Checks a real number: above zero, and no larger than any quantity of ours.
pub fn positive(field: &str, value: f64) -> Result<(), InputError> {
    if value > 0.0 && value <= LARGEST {
        return Ok(());
    }
    Err(InputError::new(field, value, "must be a number above zero, at most 1e30")
        .hint("give a number such as 1.5e9"))
}

/// Checks a real number: not below zero, and no larger than any quantity of ours.
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

/// Checks a number of bytes: no device of ours holds more than a pebibyte.
pub fn bytes(field: &str, value: crate::units::Bytes) -> Result<(), InputError> {
    in_range(field, value.0, 0, 1 << 50)
}
