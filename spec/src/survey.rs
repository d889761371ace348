//! Checks a document before it is deserialised: one pass over its content that stores nothing.

use crate::error::InputError;
use crate::text;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt::{self, Write};

/// The result of a survey of a document.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Whether it is a mapping.
    pub object: bool,
    /// Its top-level keys.
    pub keys: Vec<String>,
    /// `schema_version`, as JSON.
    pub version: Option<String>,
    /// Number of values, at any depth.
    pub values: usize,
    /// Content that no document may have, if there is any.
    pub refused: Option<InputError>,
    most: usize,
    /// Whether a text may have several lines.
    lines: bool,
    path: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Key(String),
    Index(usize),
}

impl Survey {
    /// Checks for disallowed texts, and for more than `most` values, because a value of one or two bytes can
    /// take a hundred bytes of memory. A rejection is in the survey, even if the notation reports another
    /// error.
    pub fn of<'de, D: Deserializer<'de>>(
        most: usize,
        lines: bool,
        document: D,
    ) -> (Self, Result<(), D::Error>) {
        let mut survey = Self { most, lines, ..Self::default() };
        let outcome = document.deserialize_any(&mut survey);
        (survey, outcome)
    }

    fn field(&self) -> String {
        let mut field = String::new();
        for part in &self.path {
            // Writing to a String cannot fail.
            let _ = match part {
                Part::Key(key) if field.is_empty() => write!(field, "{key}"),
                Part::Key(key) => write!(field, ".{key}"),
                Part::Index(index) => write!(field, "[{index}]"),
            };
        }
        field
    }

    fn refuse<E: Error>(&mut self, error: InputError) -> E {
        self.refused = Some(error);
        E::custom("refused")
    }

    fn count<E: Error>(&mut self) -> Result<(), E> {
        self.values += 1;
        if self.values > self.most {
            let problem = format!("holds more than {} values, which is the limit", self.most);
            let error = InputError::new("", "", problem).hint("give a smaller file");
            return Err(self.refuse(error));
        }
        Ok(())
    }

    fn scalar<E: Error>(&mut self, shown: impl fmt::Display) -> Result<(), E> {
        if let [Part::Key(key)] = self.path.as_slice()
            && key == "schema_version"
        {
            self.version = Some(shown.to_string());
        }
        self.count()
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for &mut Survey {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Survey {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.scalar(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.scalar(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.scalar(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        // Some formats support them, but JSON, which documents are converted to, does not.
        if !value.is_finite() {
            let error = InputError::new(self.field(), value, "must be a finite number");
            return Err(self.refuse(error.hint("give a number such as 0.1")));
        }
        self.scalar(serde_json::Value::from(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar("null")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        // The last key determines the kind of text; the whole path is built only for an error.
        let key = self.path.iter().rev().find_map(|part| match part {
            Part::Key(key) => Some(key.as_str()),
            Part::Index(_) => None,
        });
        let key = key.unwrap_or_default();
        let checked = if self.lines {
            value.split(['\n', '\r', '\t']).try_for_each(|line| text::check(key, line))
        } else {
            text::check(key, value)
        };
        if let Err(error) = checked {
            let field = self.field();
            return Err(self.refuse(InputError { field: text::shown(&field, text::LONGEST_NAME), ..error }));
        }
        self.scalar(format_args!("{value:?}"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.scalar("a list")?;
        self.path.push(Part::Index(0));
        while list.next_element_seed(&mut *self)?.is_some() {
            if let Some(Part::Index(index)) = self.path.last_mut() {
                *index += 1;
            }
        }
        self.path.pop();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.scalar("a table")?;
        let top = self.path.is_empty();
        self.object |= top;
        while let Some(key) = map.next_key::<String>()? {
            if let Err(mut error) = text::check_name("key", &key) {
                if !top {
                    error.field = text::shown(&format!("key in {}", self.field()), text::LONGEST_NAME);
                }
                return Err(self.refuse(error));
            }
            if top && self.keys.len() < 1000 {
                self.keys.push(key.clone());
            }
            self.path.push(Part::Key(key));
            map.next_value_seed(&mut *self)?;
            self.path.pop();
        }
        Ok(())
    }
}
