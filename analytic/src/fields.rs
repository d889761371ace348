//! One line of a table, field by field.

use std::collections::BTreeMap;

/// Upper limit of all sizes and counts of a run, so that the product of two fits into 64 bits.
const MOST: u32 = 1 << 26;

/// The fields of one line by column; an empty field is missing.
pub(crate) struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    pub fn new(columns: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        Self(columns.collect())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).copied().filter(|value| !value.is_empty())
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
            _ => Err(format!("`{name}` is `{text}`: expected a number")),
        }
    }

    /// A number in that range, with `unit` for the error message; zero means not measured.
    pub fn within(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<f64>,
        unit: &str,
    ) -> Result<Option<f64>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(0.0) => Ok(None),
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(format!("`{name}` is `{text}`: expected {} to {} {unit}", range.start(), range.end())),
        }
    }

    pub fn count(&self, name: &str) -> Result<Option<u32>, String> {
        match self.number(name)? {
            None => Ok(None),
            Some(n) if n >= 1.0 && n.fract() == 0.0 && n <= f64::from(MOST) => Ok(Some(n as u32)),
            Some(n) => Err(format!("`{name}` is `{n}`: expected a whole number from 1 to {MOST}")),
        }
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        match self.text(name) {
            None => Ok(None),
            Some("yes" | "true" | "1") => Ok(Some(true)),
            Some("no" | "false" | "0") => Ok(Some(false)),
            Some(other) => Err(format!("`{name}` is `{other}`: expected yes or no")),
        }
    }

    /// The year in which the trainer was used.
    pub fn year(&self) -> Result<Option<u32>, String> {
        match self.count("trainer_year")? {
            Some(year) if !(2018..=2100).contains(&year) => {
                Err(format!("`trainer_year` is `{year}`: expected a year from 2018"))
            }
            year => Ok(year),
        }
    }

    /// A value by its name.
    pub fn named<T: std::str::FromStr>(&self, name: &str, known: &str) -> Result<Option<T>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("`{name}` is `{text}`: expected {known}"))
    }

    pub fn needed(&self, name: &str) -> Result<u32, String> {
        self.count(name)?.ok_or_else(|| format!("`{name}` is not given"))
    }
}
