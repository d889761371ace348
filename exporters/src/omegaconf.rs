//! OmegaConf's `${…}` in the values of a YAML file: other keys, and variables of the environment with a default.

use serde_json::Value;
use std::collections::BTreeMap;

/// Maximum steps from one value to the next.
const DEEPEST: usize = 10;
/// Maximum bytes of a value.
const LONGEST: usize = 10_000;

/// Replaces in flattened `entries` every `${…}` that the file itself determines; others stay as they are.
pub fn resolve(entries: &mut [(String, Value)]) {
    let has = |value: &Value| value.as_str().is_some_and(|text| text.contains("${"));
    if !entries.iter().any(|(_, value)| has(value)) {
        return;
    }
    let file = File { entries: entries.iter().cloned().collect() };
    for (key, value) in entries.iter_mut().filter(|(_, value)| has(value)) {
        if let Some(resolved) = value.as_str().and_then(|text| file.value(key, text, 0)) {
            *value = resolved;
        }
    }
}

struct File {
    entries: BTreeMap<String, Value>,
}

impl File {
    /// The value of a text under a key: of another type only if the text is one `${…}`.
    fn value(&self, key: &str, text: &str, depth: usize) -> Option<Value> {
        let Some(start) = text.find("${") else { return Some(Value::from(text)) };
        if depth > DEEPEST || text.len() > LONGEST {
            return None;
        }
        let length = closing(&text[start + 2..])?;
        let (inner, rest) = (&text[start + 2..start + 2 + length], &text[start + 3 + length..]);
        let value = self.interpolated(key, inner, depth + 1)?;
        if start == 0 && rest.is_empty() {
            return Some(value);
        }
        let plain = match &value {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        let rest = match self.value(key, rest, depth + 1)? {
            Value::String(text) => text,
            value => value.to_string(),
        };
        Some(Value::from(format!("{}{plain}{rest}", &text[..start])))
    }

    fn interpolated(&self, key: &str, inner: &str, depth: usize) -> Option<Value> {
        let inner = inner.trim();
        if let Some((resolver, arguments)) = inner.split_once(':') {
            let arguments = match self.value(key, arguments, depth)? {
                Value::String(text) => text,
                value => value.to_string(),
            };
            let parts: Vec<&str> = arguments.split(',').map(str::trim).collect();
            let numbers = || parts.iter().map(|part| part.parse::<i64>().ok()).collect::<Option<Vec<_>>>();
            return match (resolver.trim(), parts.as_slice()) {
                // The file is priced without variables of an environment.
                ("oc.env", [_, default]) => Some(scalar(default.trim_matches(['"', '\'']))),
                ("oc.decode", [text]) => Some(scalar(text)),
                // NeMo's own.
                ("multiply", _) => numbers()?.into_iter().try_fold(1_i64, i64::checked_mul).map(Value::from),
                ("add" | "sum", _) => {
                    numbers()?.into_iter().try_fold(0_i64, i64::checked_add).map(Value::from)
                }
                ("divide", [_, _]) => {
                    let numbers = numbers()?;
                    numbers[0].checked_div(numbers[1]).map(Value::from)
                }
                _ => None,
            };
        }
        let dots = inner.chars().take_while(|c| *c == '.').count();
        let name = &inner[dots..];
        let whole = if dots == 0 {
            name.to_owned()
        } else {
            let mut parents: Vec<&str> = key.split('.').collect();
            for _ in 0..dots {
                parents.pop()?;
            }
            parents.push(name);
            parents.join(".")
        };
        match self.entries.get(&whole)? {
            Value::String(text) => self.value(&whole, text, depth),
            value => Some(value.clone()),
        }
    }
}

fn scalar(text: &str) -> Value {
    crate::yaml::read(text)
        .ok()
        .filter(|value| !value.is_object() && !value.is_array())
        .unwrap_or(text.into())
}

/// The place of the `}` that ends what has begun before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_file_determines_is_replaced() {
        let mut entries: Vec<(String, Value)> = [
            ("model.tp", json!(4)),
            ("train.tp", json!("${model.tp}")),
            ("train.same", json!("${.tp}")),
            ("train.up", json!("${..model.tp}")),
            ("train.name", json!("run-${model.tp}-x")),
            ("train.env", json!("${oc.env:GPUS,8}")),
            ("train.decoded", json!("${oc.decode:${oc.env:GPUS,8}}")),
            ("train.all", json!("${multiply:${model.tp},2}")),
            ("train.open", json!("${oc.env:HOME}")),
            ("train.none", json!("${nobody}")),
            ("a", json!("${b}")),
            ("b", json!("${a}")),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        resolve(&mut entries);
        let of = |key: &str| entries.iter().find(|(other, _)| other == key).unwrap().1.clone();
        assert_eq!(of("train.tp"), 4);
        assert_eq!(of("train.same"), 4);
        assert_eq!(of("train.up"), 4);
        assert_eq!(of("train.name"), "run-4-x");
        assert_eq!(of("train.env"), 8);
        assert_eq!(of("train.decoded"), 8);
        assert_eq!(of("train.all"), 8);
        assert_eq!(of("train.open"), "${oc.env:HOME}");
        assert_eq!(of("train.none"), "${nobody}");
        assert_eq!(of("a"), "${b}");
    }
}
