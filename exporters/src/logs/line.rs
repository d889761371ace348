//! Numbers in the lines of a log.

use autodist_spec::{InputError, text};
use std::borrow::Cow;

/// Seconds that a training step may take.
const SECONDS: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
/// Rates of sequences or tokens per second.
const RATES: std::ops::RangeInclusive<f64> = 1e-9..=1e15;

/// One line, without colours.
pub struct Line<'a> {
    pub text: Cow<'a, str>,
    number: usize,
    /// The file ends within the line.
    cut: bool,
}

/// A number that was looked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Found {
    Number(f64),
    /// The word is there, but no number follows it.
    Unreadable,
    Missing,
}

/// The lines of a log. Progress bars end theirs with a carriage return.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let whole = text.ends_with(['\n', '\r']);
    let last = text.lines().count();
    text.lines().enumerate().flat_map(move |(index, line)| {
        line.split('\r').map(move |part| Line {
            text: without_colours(part),
            number: index + 1,
            cut: !whole && index + 1 == last && line.ends_with(part),
        })
    })
}

/// Removes ANSI escape sequences: `ESC [ … letter`.
fn without_colours(line: &str) -> Cow<'_, str> {
    if !line.contains('\u{1b}') {
        return Cow::Borrowed(line);
    }
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(one) = rest.next() {
        if one != '\u{1b}' {
            plain.push(one);
        } else if rest.next() == Some('[') {
            rest.by_ref().find(|one| ('@'..='~').contains(one));
        }
    }
    Cow::Owned(plain)
}

/// What ends a number: units, brackets and separators of all formats.
const ENDS: [char; 11] = ['|', '/', '[', ']', '(', ')', '{', '}', '\'', '"', ';'];

impl Line<'_> {
    /// The word after `key`, without the signs between them.
    pub fn word(&self, key: &str) -> Option<&str> {
        let at = self.text.find(key)? + key.len();
        let rest = self.text[at..].trim_start_matches([' ', '\t', ':', '=', '\'', '"']);
        let end = rest.find(|one: char| one.is_whitespace() || ENDS.contains(&one)).unwrap_or(rest.len());
        // The number may go on in what is missing.
        if self.cut && end == rest.len() {
            return Some("");
        }
        Some(rest[..end].trim_end_matches(','))
    }

    /// The number after `key`; `unit` may follow it directly.
    fn number(&self, key: &str, unit: &str) -> Found {
        let Some(word) = self.word(key) else { return Found::Missing };
        let word = word.strip_suffix(unit).unwrap_or(word);
        let (digits, scale) = match word.char_indices().last() {
            Some((at, 'K')) => (&word[..at], 1e3),
            Some((at, 'M')) => (&word[..at], 1e6),
            Some((at, 'B' | 'G')) => (&word[..at], 1e9),
            Some((at, 'T')) => (&word[..at], 1e12),
            _ => (word, 1.0),
        };
        digits.replace(',', "").parse::<f64>().map_or(Found::Unreadable, |value| Found::Number(value * scale))
    }

    fn within(
        &self,
        key: &str,
        scale: f64,
        range: std::ops::RangeInclusive<f64>,
        unit: &str,
    ) -> Result<Found, InputError> {
        match self.number(key, "") {
            Found::Number(value) if range.contains(&(value * scale)) => Ok(Found::Number(value * scale)),
            Found::Number(value) => Err(implausible(&format!("{key}, line {}", self.number), value, unit)),
            other => Ok(other),
        }
    }

    /// Seconds after `key`, which has them in units of `scale` seconds.
    ///
    /// # Errors
    /// The number cannot be a step time.
    pub fn seconds(&self, key: &str, scale: f64) -> Result<Found, InputError> {
        self.within(key, scale, SECONDS, "a step time from 1e-6 to 1e6 seconds")
    }

    /// A rate per second after `key`.
    ///
    /// # Errors
    /// The number cannot be a rate.
    pub fn rate(&self, key: &str) -> Result<Found, InputError> {
        self.within(key, 1.0, RATES, "a positive rate")
    }

    /// A whole number.
    pub fn count(&self, key: &str) -> Option<u64> {
        match self.number(key, "") {
            Found::Number(value) if value.fract() == 0.0 && (0.0..1e15).contains(&value) => {
                Some(value as u64)
            }
            _ => None,
        }
    }

    /// Bytes of `key`, in units of `scale` bytes.
    ///
    /// # Errors
    /// The number cannot be an amount of memory.
    pub fn bytes(&self, key: &str, unit: &str, scale: f64) -> Result<Option<f64>, InputError> {
        match self.number(key, unit) {
            Found::Number(value) if (0.0..1e16).contains(&(value * scale)) => Ok(Some(value * scale)),
            Found::Number(value) => {
                Err(implausible(&format!("{key}, line {}", self.number), value, "an amount of memory"))
            }
            Found::Unreadable | Found::Missing => Ok(None),
        }
    }
}

/// A number that no step of a training run has.
pub fn implausible(field: &str, value: f64, expected: &str) -> InputError {
    InputError::new(text::shown(field, 100), value, format!("expected {expected}"))
        .hint("remove the line if it is not of a training step")
}

/// Checks seconds of a document.
pub fn check_seconds(field: &str, seconds: f64) -> Result<f64, InputError> {
    let expected = "a step time from 1e-6 to 1e6 seconds";
    if SECONDS.contains(&seconds) { Ok(seconds) } else { Err(implausible(field, seconds, expected)) }
}

/// Checks a rate of a document.
pub fn check_rate(field: &str, rate: f64) -> Result<f64, InputError> {
    if RATES.contains(&rate) { Ok(rate) } else { Err(implausible(field, rate, "a positive rate")) }
}
