//! A trainer's configuration as keys and values, and the notations in which trainers take it.

use autodist_spec::InputError;
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Keys in the order in which they were set. In files that nest, a key is a path: `zero_optimization.stage`.
#[derive(Debug, Clone, Default)]
pub struct Document {
    entries: Vec<(String, Value)>,
    read: RefCell<BTreeSet<String>>,
}

impl Document {
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.entries.iter_mut().find(|(other, _)| other == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    fn append(&mut self, key: &str, value: &str) {
        if let Some((_, entry)) = self.entries.iter_mut().find(|(other, _)| other == key) {
            let mut list = match entry.take() {
                Value::Array(list) => list,
                single => vec![single],
            };
            list.push(value.into());
            *entry = Value::Array(list);
        }
    }

    /// A value, which counts as understood from now on.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let (key, value) = self.entries.iter().find(|(other, _)| other == key)?;
        self.read.borrow_mut().insert(key.clone());
        (!value.is_null()).then_some(value)
    }

    /// Keys that nobody asked for.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        self.entries.iter().map(|(key, _)| key).filter(|key| !read.contains(*key)).cloned().collect()
    }

    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// # Errors
    /// If the value is no whole number that fits.
    pub fn count(&self, key: &str) -> Result<Option<u32>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n)),
        };
        match number {
            Some(number) => Ok(Some(number as u32)),
            None => Err(wrong(key, value, "is no whole number").hint("give a number such as 8")),
        }
    }

    /// # Errors
    /// If the value is no number.
    pub fn real(&self, key: &str) -> Result<Option<f64>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_f64(),
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, value, "is no number").hint("give a number such as 0.1")),
        }
    }

    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(plain)
    }

    /// # Errors
    /// If the value is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match plain(value).to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(wrong(key, value, "is neither true nor false").hint("give true or false")),
        }
    }

    /// Numbers of a list, or of a string of them with commas between.
    ///
    /// # Errors
    /// If one of them is no whole number.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<u32>>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = match value {
            Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
            value => plain(value),
        };
        let numbers = text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<u32>>>();
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => {
                Err(wrong(key, value, "is no list of whole numbers").hint("separate them by commas: 8,8,7,7"))
            }
        }
    }

    /// # Errors
    /// If one of a list's entries is no number.
    pub fn reals(&self, key: &str) -> Result<Option<Vec<f64>>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            value => std::slice::from_ref(value),
        };
        match list.iter().map(|entry| plain(entry).trim().parse().ok()).collect::<Option<Vec<f64>>>() {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(wrong(key, value, "is no list of numbers").hint("give numbers such as 0.9 0.95")),
        }
    }

    /// What the keys of files that nest say.
    pub fn tree(&self) -> Value {
        let mut root = Map::new();
        for (key, value) in &self.entries {
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            let mut at = &mut root;
            for part in parts {
                let next = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
                if !next.is_object() {
                    *next = Value::Object(Map::new());
                }
                let Value::Object(map) = next else { unreachable!("an object was just put there") };
                at = map;
            }
            at.insert(last.to_owned(), value.clone());
        }
        Value::Object(root)
    }

    pub fn of_tree(tree: &Value) -> Self {
        let mut document = Self::default();
        document.flatten("", tree);
        document
    }

    fn flatten(&mut self, prefix: &str, value: &Value) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    self.flatten(&key, value);
                }
            }
            value => self.set(prefix, value.clone()),
        }
    }

    /// # Errors
    /// If the text is no JSON object.
    pub fn of_json(text: &str) -> Result<Self, InputError> {
        object(serde_json::from_str(text).map_err(|error| error.to_string()), "JSON")
    }

    /// # Errors
    /// If the text is no YAML mapping.
    pub fn of_yaml(text: &str) -> Result<Self, InputError> {
        object(serde_yaml_ng::from_str(text).map_err(|error| error.to_string()), "YAML")
    }

    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.tree()).unwrap_or_default();
        text.push('\n');
        text
    }

    pub fn yaml(&self) -> String {
        yaml(&self.tree())
    }

    /// Flags of the command lines in a shell script or a file of arguments: `--flag value`, `--flag=value`, or a bare
    /// `--flag`, whose value is true. `NAME=value` defines what `$NAME` stands for.
    ///
    /// # Errors
    /// If quotes do not close, or a flag's value cannot be known without running the script.
    pub fn of_flags(text: &str) -> Result<Self, InputError> {
        let words = shlex::split(&text.replace("\\\n", " ")).ok_or_else(|| {
            InputError::new("", "", "has a quote that does not close")
                .hint("give a file with the arguments alone: --flag value")
        })?;
        let mut variables = BTreeMap::new();
        let mut document = Self::default();
        let mut open: Option<String> = None;
        let mut filled: Option<String> = None;
        for word in &words {
            // Arrays of flags: NAME=( … ).
            let word = if word.contains('(') { word } else { word.trim_end_matches(')') };
            if let Some(flag) = word.strip_prefix("--") {
                let (flag, value) = match flag.split_once('=') {
                    Some((flag, value)) => (flag, Some(value)),
                    None => (flag, None),
                };
                match value {
                    Some(value) => document.set(flag, resolve(flag, value, &variables)?),
                    None => document.set(flag, true),
                }
                open = value.is_none().then(|| flag.to_owned());
                filled = None;
                continue;
            }
            if let Some(flag) = open.take().filter(|_| !word.is_empty()) {
                document.set(&flag, resolve(&flag, word, &variables)?);
                filled = Some(flag);
                continue;
            }
            // Flags that take several numbers.
            if let Some(flag) = filled.as_ref().filter(|_| word.parse::<f64>().is_ok()) {
                document.append(flag, word);
                continue;
            }
            filled = None;
            if let Some((name, value)) = word.split_once('=') {
                let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if is_name && !value.starts_with('(') {
                    variables.insert(name.to_owned(), value.to_owned());
                }
            } else if let Some((section, value)) = word.split_once(':') {
                // torchtitan's subcommands.
                if section == "activation_checkpoint" {
                    document.set(section, value);
                }
            }
        }
        Ok(document)
    }

    /// Each key as a flag; true is the bare flag.
    pub fn flags(&self) -> Vec<String> {
        let quoted = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,/:=".contains(c);
            if !text.is_empty() && text.chars().all(plain) {
                text.to_owned()
            } else {
                format!("'{}'", text.replace('\'', "'\\''"))
            }
        };
        self.entries
            .iter()
            .filter(|(_, value)| *value != Value::Bool(false))
            .map(|(key, value)| match value {
                Value::Bool(true) => format!("--{key}"),
                Value::Array(list) => {
                    let words: Vec<_> = list.iter().map(|entry| quoted(&plain(entry))).collect();
                    format!("--{key} {}", words.join(" "))
                }
                value => format!("--{key} {}", quoted(&plain(value))),
            })
            .collect()
    }
}

fn resolve(flag: &str, value: &str, variables: &BTreeMap<String, String>) -> Result<String, InputError> {
    let mut value = value.to_owned();
    // A variable may stand for another one.
    for _ in 0..8 {
        let Some(at) = value.find('$') else { return Ok(value) };
        let rest = &value[at + 1..];
        let braces = rest.starts_with('{');
        let name: String = rest
            .chars()
            .skip(usize::from(braces))
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        let end = at + 1 + name.len() + if braces { 2 } else { 0 };
        let closed = !braces || value.as_bytes().get(end - 1) == Some(&b'}');
        match variables.get(&name) {
            Some(known) if closed => value = format!("{}{known}{}", &value[..at], &value[end..]),
            // What says nothing about the split may be anything.
            _ => return Ok(value),
        }
    }
    Err(InputError::new(format!("--{flag}"), value, "is a variable that stands for itself")
        .hint("write the value in its place"))
}

fn object(value: Result<Value, String>, notation: &str) -> Result<Document, InputError> {
    match value {
        Ok(value @ Value::Object(_)) => Ok(Document::of_tree(&value)),
        Ok(other) => Err(InputError::new("", plain(&other), format!("is no {notation} mapping"))
            .hint("give the trainer's whole configuration file")),
        Err(error) => Err(InputError::new("", "", format!("is no {notation}: {error}"))
            .hint("give the trainer's whole configuration file")),
    }
}

pub(crate) fn wrong(key: &str, value: &Value, problem: &str) -> InputError {
    let text = plain(value);
    if text.contains('$') {
        return InputError::new(key, text, "is known only when the script runs")
            .hint("write the value in its place, or give it as a flag of this command");
    }
    InputError::new(key, text, problem)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => decimal(number),
        other => other.to_string(),
    }
}

/// Without an exponent: YAML 1.1 takes `1e-5`, which has no point, for a string.
fn decimal(number: &Number) -> String {
    match number.as_f64() {
        Some(real) if number.is_f64() => {
            let text = real.to_string();
            if text.contains('.') { text } else { format!("{text}.0") }
        }
        _ => number.to_string(),
    }
}

/// Block style for mappings and lists of them, flow style for other lists.
pub(crate) fn yaml(value: &Value) -> String {
    fn scalar(value: &Value) -> String {
        match value {
            Value::String(text) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
                // Quoted where YAML might take it for something else.
                let word = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
                    && text.chars().all(plain)
                    && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
                        .contains(&text.to_ascii_lowercase().as_str());
                if word { text.clone() } else { Value::String(text.clone()).to_string() }
            }
            Value::Number(number) => decimal(number),
            Value::Array(list) => format!("[{}]", list.iter().map(scalar).collect::<Vec<_>>().join(", ")),
            Value::Object(map) => {
                let entries: Vec<_> =
                    map.iter().map(|(key, value)| format!("{key}: {}", scalar(value))).collect();
                format!("{{{}}}", entries.join(", "))
            }
            other => other.to_string(),
        }
    }
    fn block(value: &Value, indent: usize, text: &mut String) {
        // Writing to a String cannot fail.
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if nests(value) {
                        let _ = writeln!(text, "{:indent$}{}:", "", scalar(&Value::from(key.as_str())));
                        block(value, indent + 2, text);
                    } else {
                        let key = scalar(&Value::from(key.as_str()));
                        let _ = writeln!(text, "{:indent$}{key}: {}", "", scalar(value));
                    }
                }
            }
            Value::Array(list) => {
                for entry in list {
                    let mut inner = String::new();
                    block(entry, indent + 2, &mut inner);
                    let _ = write!(text, "{:indent$}- {}", "", inner.trim_start());
                }
            }
            _ => {}
        }
    }
    /// Whether a value takes lines of its own.
    fn nests(value: &Value) -> bool {
        match value {
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty() && list.iter().all(Value::is_object),
            _ => false,
        }
    }
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_in_scripts() {
        let script = r#"#!/bin/bash
TP=2  # a comment with an apostrophe: don't
ARGS=(
    --tensor-model-parallel-size $TP --pipeline-model-parallel-layout "Et*7|t*9,L"
    --bf16
    --lr=${LR}
    --micro-batch-size 4
)
torchrun --nproc_per_node 8 pretrain.py "${ARGS[@]}" --seed 7 "#;
        let document = Document::of_flags(script).unwrap();
        assert_eq!(document.count("tensor-model-parallel-size").unwrap(), Some(2));
        assert_eq!(document.text("pipeline-model-parallel-layout").unwrap(), "Et*7|t*9,L");
        assert_eq!(document.flag("bf16").unwrap(), Some(true));
        assert_eq!(document.count("micro-batch-size").unwrap(), Some(4));
        let error = document.real("lr").unwrap_err();
        assert!(error.problem.contains("only when the script runs"), "{error}");
        assert_eq!(document.unread(), ["nproc_per_node", "seed"]);
    }

    #[test]
    fn numbers_survive_every_notation() {
        let mut document = Document::default();
        document.set("a.rate", 1e-8);
        document.set("a.whole", 3.0);
        document.set("b", "1.5");
        document.set("c", vec![1, 2]);
        assert_eq!(document.yaml(), "a:\n  rate: 0.00000001\n  whole: 3.0\nb: \"1.5\"\nc: [1, 2]\n");
        for again in
            [Document::of_yaml(&document.yaml()).unwrap(), Document::of_json(&document.json()).unwrap()]
        {
            assert_eq!(again.real("a.rate").unwrap(), Some(1e-8));
            assert_eq!(again.text("b").unwrap(), "1.5");
            assert_eq!(again.counts("c").unwrap(), Some(vec![1, 2]));
        }
        assert!(Document::of_json("[1]").is_err());
        assert!(Document::of_flags("--a 'open").unwrap_err().problem.contains("does not close"));
    }
}
