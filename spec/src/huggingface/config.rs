//! A `config.json` with errors that name its fields.

use super::keys::Written;
use crate::error::{InputError, in_range};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// One config by the usual names of its keys, with errors that name the key as it is written.
pub(super) struct Config<'a> {
    pub file: &'a str,
    pub root: &'a Value,
    pub written: Written,
    /// Keys that were asked for, by their usual names.
    pub asked: RefCell<BTreeSet<String>>,
}

impl Config<'_> {
    pub fn error(&self, field: &str, problem: &str, hint: &str) -> InputError {
        let value = self.root.get(field).map(ToString::to_string).unwrap_or_default();
        InputError::new(self.spelt(field), value, problem).hint(hint).in_file(self.file)
    }

    pub fn get(&self, field: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(field.to_owned());
        self.root.get(field)
    }

    /// A key as the file writes it.
    pub fn spelt<'b>(&'b self, field: &'b str) -> &'b str {
        self.written.get(field).map_or(field, String::as_str)
    }

    pub fn optional(&self, field: &str) -> Result<Option<u32>, InputError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_u64().ok_or_else(|| {
                    self.error(
                        field,
                        "must be a whole number",
                        "copy the value from the model's config.json on Hugging Face",
                    )
                })?;
                in_range(self.spelt(field), number, 1, u64::from(u32::MAX))
                    .map_err(|e| e.in_file(self.file))?;
                Ok(Some(number as u32))
            }
        }
    }

    /// Like `optional`, for a number that may be 0.
    pub fn counted(&self, field: &str) -> Result<Option<u32>, InputError> {
        if self.get(field).and_then(Value::as_u64) == Some(0) { Ok(Some(0)) } else { self.optional(field) }
    }

    pub fn required(&self, field: &str) -> Result<u32, InputError> {
        self.optional(field)?
            .ok_or_else(|| self.error(field, "is missing", "give the complete config.json of the model"))
    }

    pub fn real(&self, field: &str, default: f64) -> Result<f64, InputError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| {
                self.error(
                    field,
                    "must be a number",
                    "copy the value from the model's config.json on Hugging Face",
                )
            }),
        }
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool, InputError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| {
                self.error(
                    field,
                    "must be true or false",
                    "set it to true or false, or remove it for the default",
                )
            }),
        }
    }

    pub fn word(&self, field: &str) -> Result<Option<&str>, InputError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| {
                self.error(
                    field,
                    "must be a string",
                    "copy the value from the model's config.json on Hugging Face",
                )
            }),
        }
    }

    /// Refuses a value that changes the model: any but those without effect, null and false.
    pub fn absent(&self, field: &str, neutral: &[f64], hint: &str) -> Result<(), InputError> {
        self.neutral(field, self.get(field), neutral, hint)
    }

    /// Like `absent`, for a value inside `field`.
    pub fn neutral(
        &self,
        field: &str,
        value: Option<&Value>,
        neutral: &[f64],
        hint: &str,
    ) -> Result<(), InputError> {
        match value {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(value) if value.as_f64().is_some_and(|number| neutral.contains(&number)) => Ok(()),
            Some(_) => Err(self.error(field, "changes the model in a way that is not supported", hint)),
        }
    }

    /// A list of whole numbers.
    pub fn list(&self, field: &str) -> Result<Option<Vec<u64>>, InputError> {
        self.entries(field, Value::as_u64, "must be a list of whole numbers")
    }

    pub fn words(&self, field: &str) -> Result<Option<Vec<&str>>, InputError> {
        self.entries(field, Value::as_str, "must be a list of strings")
    }

    fn entries<'b, T>(
        &'b self,
        field: &str,
        of: impl Fn(&'b Value) -> Option<T>,
        problem: &str,
    ) -> Result<Option<Vec<T>>, InputError> {
        let value = match self.get(field) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let list = value.as_array().and_then(|list| list.iter().map(of).collect());
        list.map(Some).ok_or_else(|| {
            self.error(field, problem, "copy the value from the model's config.json on Hugging Face")
        })
    }

    pub fn head_dim(&self, hidden: u32, heads: u32, field: &str) -> Result<u32, InputError> {
        if !hidden.is_multiple_of(heads) {
            return Err(self.error(
                field,
                &format!("does not divide the hidden size {hidden}"),
                "choose a number of heads that divides the hidden size",
            ));
        }
        Ok(hidden / heads)
    }
}
