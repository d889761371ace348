//! YAML as the trainers read it: by PyYAML, which is YAML 1.1, or OmegaConf. So `8_192`, `010`, `0x10` and `yes` are
//! numbers and switches, but only without quotes.

use autodist_spec::InputError;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;

/// Maximum collections within each other.
const DEEPEST: usize = 100;
/// Maximum values, of which each is counted as often as aliases repeat it.
const MOST: usize = 500_000;
/// Maximum bytes of texts, counted in the same way.
const LARGEST: usize = 16 << 20;

const WHOLE_FILE: &str = "give the trainer's whole configuration file";

fn refused(problem: impl Into<String>) -> InputError {
    InputError::new("", "", problem.into()).hint(WHOLE_FILE)
}

/// A collection that has not ended.
struct Open {
    value: Collection,
    anchor: usize,
    /// Values and bytes before it.
    before: [usize; 2],
}

enum Collection {
    List(Vec<Value>),
    Map {
        map: Map<String, Value>,
        key: Option<String>,
        /// Mappings of `<<`, whose keys are used where the mapping has none.
        merged: Vec<Value>,
    },
}

#[derive(Default)]
struct Reader {
    open: Vec<Open>,
    /// Values with their numbers of values and bytes.
    anchors: BTreeMap<usize, (Value, [usize; 2])>,
    spent: [usize; 2],
    root: Option<Value>,
}

/// Reads a document.
///
/// # Errors
/// If it is no YAML, or too large, or has content that no trainer's file has.
pub fn read(text: &str) -> Result<Value, InputError> {
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| refused(format!("not valid YAML: {error}")))?;
        reader.take(event)?;
    }
    Ok(reader.root.unwrap_or(Value::Null))
}

impl Reader {
    fn take(&mut self, event: Event) -> Result<(), InputError> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(refused("not valid YAML here: it has several documents, separated by ---"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let before = self.spent;
                self.spend([1, text.len()])?;
                let text_tag = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let value = match style {
                    ScalarStyle::Plain if self.awaits_value() && !text_tag => resolved(&text),
                    _ => Value::String(text.into_owned()),
                };
                self.remember(anchor, before, &value);
                self.put(value)
            }
            Event::SequenceStart(anchor, _) => self.enter(Collection::List(Vec::new()), anchor),
            Event::MappingStart(anchor, _) => {
                self.enter(Collection::Map { map: Map::new(), key: None, merged: Vec::new() }, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.leave(),
            Event::Alias(anchor) => {
                let Some((value, size)) = self.anchors.get(&anchor) else {
                    return Err(refused("not valid YAML here: an alias is inside the value that it names"));
                };
                let (size, value) = (*size, value);
                // Before the copy is made.
                if self.spent[0] + size[0] > MOST || self.spent[1] + size[1] > LARGEST {
                    return self.spend(size);
                }
                let value = value.clone();
                self.spend(size)?;
                self.put(value)
            }
            _ => Ok(()),
        }
    }

    fn spend(&mut self, [values, bytes]: [usize; 2]) -> Result<(), InputError> {
        self.spent = [self.spent[0].saturating_add(values), self.spent[1].saturating_add(bytes)];
        if self.spent[0] > MOST {
            return Err(refused(format!("holds more than {MOST} values, which is the limit")));
        }
        if self.spent[1] > LARGEST {
            return Err(refused(format!("has more than {LARGEST} bytes of keys and values")));
        }
        Ok(())
    }

    fn remember(&mut self, anchor: usize, before: [usize; 2], value: &Value) {
        if anchor > 0 {
            let size = [self.spent[0] - before[0], self.spent[1] - before[1]];
            self.anchors.insert(anchor, (value.clone(), size));
        }
    }

    fn enter(&mut self, value: Collection, anchor: usize) -> Result<(), InputError> {
        if self.open.len() >= DEEPEST {
            return Err(refused(format!("has more than {DEEPEST} collections within each other")));
        }
        let before = self.spent;
        self.spend([1, 0])?;
        self.open.push(Open { value, anchor, before });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), InputError> {
        let Some(Open { value, anchor, before }) = self.open.pop() else { return Ok(()) };
        let value = match value {
            Collection::List(list) => Value::Array(list),
            Collection::Map { mut map, merged, .. } => {
                for one in merged {
                    let Value::Object(one) = one else {
                        return Err(refused("not valid YAML here: `<<` merges something that is no mapping"));
                    };
                    for (key, value) in one {
                        map.entry(key).or_insert(value);
                    }
                }
                Value::Object(map)
            }
        };
        self.remember(anchor, before, &value);
        self.put(value)
    }

    /// Whether the next scalar is no key.
    fn awaits_value(&self) -> bool {
        !matches!(self.open.last(), Some(Open { value: Collection::Map { key: None, .. }, .. }))
    }

    fn put(&mut self, value: Value) -> Result<(), InputError> {
        match self.open.last_mut().map(|open| &mut open.value) {
            None => self.root = Some(value),
            Some(Collection::List(list)) => list.push(value),
            Some(Collection::Map { map, key, merged }) => match key.take() {
                None => {
                    let Value::String(text) = value else {
                        return Err(refused("not valid YAML here: a key is a collection"));
                    };
                    *key = Some(text);
                }
                Some(name) if name == "<<" => match value {
                    Value::Array(list) => merged.extend(list),
                    value => merged.push(value),
                },
                Some(name) => {
                    // PyYAML takes the last of equal keys.
                    map.insert(name, value);
                }
            },
        }
        Ok(())
    }
}

/// The meaning of a scalar without quotes.
fn resolved(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let number = whole(text).or_else(|| real(text));
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn whole(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let first = digits.chars().next().filter(char::is_ascii_digit)?;
    let plain = digits.replace('_', "");
    let number = if let Some(rest) = plain.strip_prefix("0x") {
        u64::from_str_radix(rest, 16)
    } else if let Some(rest) = plain.strip_prefix("0b") {
        u64::from_str_radix(rest, 2)
    } else if first == '0' && plain.len() > 1 {
        u64::from_str_radix(&plain, 8)
    } else if let Some((first, rest)) = plain.split_once(':') {
        // Base 60, as in 1:30.
        return sexagesimal(first, rest).map(Number::from);
    } else {
        plain.parse()
    };
    let number = number.ok()?;
    if negative {
        i64::try_from(number).ok().map(|number| Number::from(-number))
    } else {
        Some(number.into())
    }
}

fn sexagesimal(first: &str, rest: &str) -> Option<u64> {
    rest.split(':').try_fold(first.parse::<u64>().ok()?, |all, part| {
        let part: u64 = part.parse().ok().filter(|part| *part < 60)?;
        all.checked_mul(60)?.checked_add(part)
    })
}

/// Also `1e-4`, which only OmegaConf takes for a number; the others convert the text where they need one.
fn real(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let numeric = |c: char| c.is_ascii_digit() || "._eE+-".contains(c);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || !digits.chars().all(numeric)
        || !digits.contains(['.', 'e', 'E'])
    {
        return None;
    }
    Number::from_f64(text.replace('_', "").parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_and_switches_are_those_of_yaml_1_1() {
        for (text, expected) in [
            ("8_192", json!(8192)),
            ("010", json!(8)),
            ("08", json!("08")),
            ("0x10", json!(16)),
            ("0b11", json!(3)),
            ("-7", json!(-7)),
            ("1:30", json!(90)),
            ("1e-4", json!(1e-4)),
            ("1.5", json!(1.5)),
            ("1_000.5", json!(1000.5)),
            (".5", json!(0.5)),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("~", json!(null)),
            ("'8_192'", json!("8_192")),
            ("\"yes\"", json!("yes")),
            ("!!str 8", json!("8")),
            ("1.2.3", json!("1.2.3")),
            (".inf", json!(".inf")),
            ("99999999999999999999", json!("99999999999999999999")),
            ("-", json!([null])),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        // A key keeps its text.
        assert_eq!(read("on: 1\n010: no").unwrap(), json!({"on": 1, "010": false}));
    }

    #[test]
    fn anchors_are_copied_and_merged_within_limits() {
        let text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n";
        assert_eq!(read(text).unwrap()["b"], json!({"x": 1, "y": 3}));
        assert_eq!(read(text).unwrap()["c"], json!({"x": 1, "y": 2}));
        // Each line is ten of the line before it.
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for level in 1..10 {
            let ten = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{ten}]\n");
        }
        assert!(read(&bomb).unwrap_err().problem.contains("values"));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 1000].join(", "));
        assert!(read(&long).unwrap_err().problem.contains("bytes"));
        assert!(read("a: &a [*a]").unwrap_err().problem.contains("inside"));
        read(&"[".repeat(100_000)).unwrap_err();
        assert!(read(&"[".repeat(200)).unwrap_err().problem.contains("within each other"));
        assert!(read("a: 1\n---\nb: 1\n").unwrap_err().problem.contains("several"));
        assert_eq!(read("a: 1\na: 2\n").unwrap(), json!({"a": 2}));
    }
}
