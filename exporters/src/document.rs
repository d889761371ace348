//! A trainer's configuration as keys and values, and the file formats of trainers.

use crate::launch::quoted;
use crate::shell::{self, Open, ShellCommand};
use crate::{Files, omegaconf, yaml as yaml_1_1};
use autodist_spec::{InputError, parse, text};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Maximum bytes of a trainer's keys and values; its longest files have some ten thousand.
const LARGEST: usize = 16 << 20;
/// Maximum integer of a trainer's file: all of them fit into the trainers' own 32 bits.
const LARGEST_COUNT: u32 = i32::MAX as u32;
/// Maximum size of a model or a job, and maximum degree.
pub(crate) const LARGEST_SIZE: u32 = 1 << 26;
/// Maximum blocks of a model, and maximum chunks of a pipeline.
pub(crate) const MOST_BLOCKS: u32 = 10_000;

/// Keys in the order in which they were set. In nested files, a key is a path: `zero_optimization.stage`.
#[derive(Debug, Clone, Default)]
pub struct Document {
    entries: Vec<(String, Value)>,
    /// The position of each key.
    places: BTreeMap<String, usize>,
    /// Bytes of keys and values that were read from a file.
    bytes: usize,
    /// Keys that only the trainer's defaults set.
    implied: BTreeSet<String>,
    /// Files that a script writes itself.
    pub(crate) written: BTreeMap<String, String>,
    read: RefCell<BTreeSet<String>>,
}

/// Flags with a list of words.
const WORD_LISTS: [&str; 4] = ["lora_target_modules", "lora-target-modules", "target_modules", "lora_target"];

/// The key under which a script's `NVIDIA_TF32_OVERRIDE=1` is read.
pub const TF32_SWITCH: &str = "nvidia-tf32-override";

fn sets_tf32(line: &str) -> bool {
    let line = line.trim_start();
    let assignment = line.strip_prefix("export ").unwrap_or(line).split_whitespace().next();
    assignment == Some("NVIDIA_TF32_OVERRIDE=1")
}

impl Document {
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.places.get(key) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(key.to_owned(), self.entries.len());
                self.entries.push((key.to_owned(), value));
            }
        }
    }

    /// Without keys, but with the files that a script writes itself.
    pub(crate) fn like(&self) -> Self {
        Self { written: self.written.clone(), ..Self::default() }
    }

    /// Does not contain values that are left to the launcher as "auto".
    pub(crate) fn without_auto(mut self) -> Self {
        for (_, value) in &mut self.entries {
            if value == "auto" {
                *value = Value::Null;
            }
        }
        self
    }

    /// Removes the keys below `section`, and returns them without it.
    ///
    /// # Errors
    /// If there are too many.
    pub(crate) fn take(&mut self, section: &str) -> Result<Self, InputError> {
        let (mut taken, mut left) = (Self::default(), Self::default());
        for (key, value) in std::mem::take(&mut self.entries) {
            match key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
                Some(rest) => taken.add(rest, value)?,
                None => left.set(&key, value),
            }
        }
        (self.entries, self.places) = (left.entries, left.places);
        Ok(taken)
    }

    /// Adds a key and value from a file. Their total size has a limit, even if variables expand.
    fn add(&mut self, key: &str, value: impl Into<Value>) -> Result<(), InputError> {
        let value = value.into();
        self.bytes += key.len() + value.as_str().map_or(0, str::len);
        if self.bytes > LARGEST {
            return Err(InputError::new("", "", format!("has more than {LARGEST} bytes of keys and values"))
                .hint("give a file with only the trainer's configuration"));
        }
        self.set(key, value);
        Ok(())
    }

    fn append(&mut self, key: &str, value: &str) {
        if let Some(place) = self.places.get(key) {
            let entry = &mut self.entries[*place].1;
            if !entry.is_array() {
                *entry = Value::Array(vec![entry.take()]);
            }
            if let Value::Array(list) = entry {
                list.push(value.into());
            }
        }
    }

    /// Sets what the file leaves to its trainer.
    pub(crate) fn imply(&mut self, key: &str, value: impl Into<Value>) {
        self.set(key, value);
        self.implied.insert(key.to_owned());
    }

    /// Whether the file itself has the key.
    pub(crate) fn says(&self, key: &str) -> bool {
        self.has(key) && !self.implied.contains(key)
    }

    /// Whether the key exists, understood or not.
    pub fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// A value; marks its key as read.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let (key, value) = &self.entries[*self.places.get(key)?];
        self.read.borrow_mut().insert(key.clone());
        (!value.is_null()).then_some(value)
    }

    /// Keys that were never read, with their values.
    pub fn unread(&self) -> impl Iterator<Item = (&str, &Value)> {
        let read = self.read.borrow().clone();
        self.entries
            .iter()
            .filter(move |(key, _)| !read.contains(key))
            .map(|(key, value)| (key.as_str(), value))
    }

    /// # Errors
    /// Rejects a key, or a value that was read, with hidden characters or too long. Other values may have
    /// several lines, because they are ignored.
    pub fn check_texts(&self) -> Result<(), InputError> {
        let read = self.read.borrow();
        for (key, value) in &self.entries {
            text::check("key", key)?;
            if read.contains(key) {
                let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                list.iter().filter_map(Value::as_str).try_for_each(|entry| text::check(key, entry))?;
            }
        }
        Ok(())
    }

    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    /// Parses every integer of a file: without rounding, truncation or guesses.
    fn whole(&self, key: &str, least: u64, most: u64) -> Result<Option<u64>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match whole(value).filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(
                key,
                value,
                &format!("expected a whole number from {least} to {most}"),
                "use only decimal digits, e.g. 8",
            )),
        }
    }

    fn small(&self, key: &str, least: u32, most: u32) -> Result<Option<u32>, InputError> {
        Ok(self.whole(key, least.into(), most.into())?.map(|number| number as u32))
    }

    /// # Errors
    /// If the value is not an integer in the range of a count.
    pub fn count(&self, key: &str) -> Result<Option<u32>, InputError> {
        self.small(key, 0, LARGEST_COUNT)
    }

    /// A size of a model or a job, or a degree of parallelism: at least one.
    ///
    /// # Errors
    /// If the value is not such an integer.
    pub fn size(&self, key: &str) -> Result<Option<u32>, InputError> {
        self.small(key, 1, LARGEST_SIZE)
    }

    /// A size that may be left to the trainer as -1 (`None`), as it is without the key.
    ///
    /// # Errors
    /// If the value is neither.
    pub fn size_or_rest(&self, key: &str) -> Result<Option<u32>, InputError> {
        if self.text(key).as_deref() == Some("-1") { Ok(None) } else { self.size(key) }
    }

    /// # Errors
    /// If the value is not an integer.
    pub fn seed(&self, key: &str) -> Result<Option<u64>, InputError> {
        self.whole(key, 0, u64::MAX)
    }

    /// The bytes of a bucket that the file counts in `unit` bytes.
    ///
    /// # Errors
    /// If the value is not an integer, or is more than a tebibyte.
    pub fn bucket(&self, key: &str, unit: u64) -> Result<Option<u64>, InputError> {
        Ok(self.whole(key, 1, (1 << 40) / unit)?.map(|number| number * unit))
    }

    /// # Errors
    /// If the value is not a ZeRO stage.
    pub fn zero_stage(&self, key: &str) -> Result<Option<u8>, InputError> {
        Ok(self.small(key, 0, 3)?.map(|stage| stage as u8))
    }

    /// A number of blocks of a model.
    ///
    /// # Errors
    /// If the value is not such an integer.
    pub fn blocks(&self, key: &str) -> Result<Option<u32>, InputError> {
        self.small(key, 0, MOST_BLOCKS)
    }

    /// # Errors
    /// If the value is not a finite number of at most 1e30.
    pub fn real(&self, key: &str) -> Result<Option<f64>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match real(value) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(wrong(key, value, "expected a number from -1e30 to 1e30", "give a number such as 0.1"))
            }
        }
    }

    /// A number, if the file contains it: `None` for a variable that is known only when the script runs.
    ///
    /// # Errors
    /// If the value is not a number.
    pub fn known_real(&self, key: &str) -> Result<Option<f64>, InputError> {
        if self.is_variable(key) { Ok(None) } else { self.real(key) }
    }

    /// Like `known_real`, for an integer.
    ///
    /// # Errors
    /// If the value is not an integer.
    pub fn known_count(&self, key: &str) -> Result<Option<u32>, InputError> {
        if self.is_variable(key) { Ok(None) } else { self.count(key) }
    }

    /// Reads a seed, if the key is known.
    ///
    /// # Errors
    /// If the value is not an integer.
    pub fn known_seed(&self, key: &str) -> Result<Option<u64>, InputError> {
        if self.is_variable(key) { Ok(None) } else { self.seed(key) }
    }

    fn is_variable(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| plain(value).starts_with('$'))
    }

    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(plain)
    }

    /// A word that must be one of `words`.
    ///
    /// # Errors
    /// If it is another one.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let said = plain(value);
        match words.iter().find(|(word, _)| *word == said) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                Err(wrong(key, value, "is not a value that is read", &format!("use {}", all.join(" or "))))
            }
        }
    }

    /// # Errors
    /// If the value is not true or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match plain(value).to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(wrong(key, value, "expected true or false", "use true or false")),
        }
    }

    /// Integers of a list, or of a comma-separated string: at most one per block, each at most `most`.
    ///
    /// # Errors
    /// If one of them is not an integer, or too large, or there are too many.
    pub fn counts(&self, key: &str, most: u32) -> Result<Option<Vec<u32>>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let entry =
            |value: &Value| whole(value).filter(|number| *number <= u64::from(most)).map(|n| n as u32);
        let numbers: Option<Vec<u32>> = match value {
            Value::Array(list) => list.iter().map(entry).collect(),
            Value::String(text) => text.split(',').map(|part| entry(&Value::from(part.trim()))).collect(),
            value => entry(value).map(|number| vec![number]),
        };
        match numbers.filter(|numbers| numbers.len() <= MOST_BLOCKS as usize) {
            Some(numbers) => Ok(Some(numbers)),
            None => {
                let problem =
                    format!("expected a list of at most {MOST_BLOCKS} whole numbers from 0 to {most}");
                Err(wrong(key, value, &problem, "separate the numbers by commas, e.g. 8,8,7,7"))
            }
        }
    }

    /// # Errors
    /// If one of a list's entries is not a number.
    pub fn reals(&self, key: &str) -> Result<Option<Vec<f64>>, InputError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            value => std::slice::from_ref(value),
        };
        match list.iter().map(real).collect::<Option<Vec<f64>>>() {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(wrong(key, value, "expected a list of numbers", "use numbers such as 0.9 0.95")),
        }
    }

    /// The keys of nested files as a tree.
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

    fn of_tree(tree: &Value) -> Result<Self, InputError> {
        let mut document = Self::default();
        document.flatten("", tree)?;
        Ok(document)
    }

    fn flatten(&mut self, prefix: &str, value: &Value) -> Result<(), InputError> {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    if prefix.is_empty() {
                        self.flatten(key, value)?;
                    } else {
                        self.flatten(&format!("{prefix}.{key}"), value)?;
                    }
                }
                Ok(())
            }
            value => self.add(prefix, value.clone()),
        }
    }

    /// # Errors
    /// If the text is not a JSON object, or has content that documents must not have.
    pub fn of_json(text: &str) -> Result<Self, InputError> {
        let seen = parse::look_over(&mut serde_json::Deserializer::from_str(text))?;
        object(seen.and_then(|()| serde_json::from_str(text)).map_err(|error| error.to_string()), "JSON")
    }

    /// # Errors
    /// If the text is not a YAML mapping, or has content that documents must not have.
    pub fn of_yaml(text: &str) -> Result<Self, InputError> {
        let value = yaml_1_1::read(text)?;
        // The values need no further parsing.
        let _ = parse::look_over(&value)?;
        let mut document = object(Ok(value), "YAML")?;
        omegaconf::resolve(&mut document.entries);
        Ok(document)
    }

    /// # Errors
    /// If the text is not TOML, or has content that documents must not have.
    pub fn of_toml(text: &str) -> Result<Self, InputError> {
        let value = parse::toml_value("", text.as_bytes(), "configuration")
            .map_err(|error| error.hint("give the trainer's whole configuration file"))?;
        Self::of_tree(&value)
    }

    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.tree()).unwrap_or_default();
        text.push('\n');
        text
    }

    pub fn yaml(&self) -> String {
        yaml(&self.tree())
    }

    /// Flags of the command lines in a shell script or an argument file: `--flag value`, `--flag=value`, or a
    /// bare `--flag`, whose value is true. Variables are replaced by their values.
    ///
    /// # Errors
    /// If quotes do not close, or the flags are determined only when the script runs.
    pub fn of_flags(text: &str) -> Result<Self, InputError> {
        Self::of_script(text, &|_| Err(InputError::new("", "", "is another file, which is not read here")))
    }

    /// Like `of_flags`, with the scripts that the script reads in or starts.
    ///
    /// # Errors
    /// Also if one of those is not valid.
    pub fn of_script(text: &str, open: Files) -> Result<Self, InputError> {
        let shell::Read { commands, written } = shell::read(text, open)?;
        let programs = commands.iter().any(|command| command.program().is_some());
        let mut document = Self { written, ..Self::default() };
        // The flags of the first command of each program.
        let mut first: BTreeMap<String, Self> = BTreeMap::new();
        for command in &commands {
            let program = command.program();
            // With a program, flags of other commands are not its own.
            let arguments = command.words.first().is_some_and(|word| word.text().starts_with('-'));
            if programs && program.is_none() && !arguments {
                continue;
            }
            let own = Self::of_command(command, program)?;
            if own.entries.is_empty() {
                continue;
            }
            let name = program.map(|at| command.words[at].text());
            // Both may be in branches.
            let same = name.as_ref().and_then(|name| first.get(name));
            let differs = own.difference(&document, false).or_else(|| {
                let same = same?;
                own.difference(same, true).or_else(|| same.difference(&own, true))
            });
            if let Some((key, value)) = differs {
                let problem =
                    format!("differs between two commands, of which one is on line {}", command.line);
                return Err(InputError::new(key, plain(value), problem)
                    .hint("give a file with only the command that trains"));
            }
            own.entries.iter().try_for_each(|(key, value)| document.add(key, value.clone()))?;
            if let Some(name) = name {
                first.entry(name).or_insert(own);
            }
        }
        // It is no flag, but changes the arithmetic of every program.
        if !document.entries.is_empty() && text.lines().any(sets_tf32) {
            document.set(TF32_SWITCH, true);
        }
        Ok(document)
    }

    /// The first entry that `other` has with another value, or, if all are needed, does not have.
    fn difference(&self, other: &Self, all: bool) -> Option<(&str, &Value)> {
        let differs = |(key, value): &&(String, Value)| match other.places.get(key) {
            Some(place) => other.entries[*place].1 != *value,
            None => all,
        };
        self.entries.iter().find(differs).map(|(key, value)| (key.as_str(), value))
    }

    fn of_command(command: &ShellCommand, program: Option<usize>) -> Result<Self, InputError> {
        let mut document = Self::default();
        let (mut open, mut filled): (Option<String>, Option<String>) = (None, None);
        for (place, word) in command.words.iter().enumerate() {
            // Arguments before the program are those of launchers.
            let variable = word.open().filter(|variable| {
                let argument = place > program.unwrap_or(0);
                argument && variable.bare && (variable.several || open.is_none())
            });
            if variable.is_some_and(|variable| variable.is_empty) {
                continue;
            }
            if let Some(Open { text, flags, .. }) = variable
                && flags.iter().any(|flag| !flag.is_empty())
            {
                // Whether it has these flags is not known: each is asked for if it matters.
                for flag in flags.iter().filter(|flag| !flag.is_empty()) {
                    if !document.has(flag) {
                        document.add(flag, text.as_str())?;
                    }
                }
                (open, filled) = (None, None);
                continue;
            }
            if let Some(Open { text, why, .. }) = variable {
                let problem = format!("{why}, so that the flags on line {} are not known", command.line);
                return Err(InputError::new(text, "", problem)
                    .hint("give the flags on the command line, or replace the variable by its value"));
            }
            let word = word.text();
            if let Some(flag) = word.strip_prefix("--") {
                let (flag, value) = match flag.split_once('=') {
                    Some((flag, value)) => (flag, Some(value)),
                    None => (flag, None),
                };
                if flag.contains([' ', '\t', '$']) {
                    let problem = format!("is not one flag, in the command on line {}", command.line);
                    return Err(InputError::new(&word, "", problem)
                        .hint("give the flags on the command line, without quotes and variables"));
                }
                match value {
                    Some(value) => document.add_value(flag, value)?,
                    None => document.add(flag, true)?,
                }
                open = value.is_none().then(|| flag.to_owned());
                filled = None;
            } else if let Some(flag) = open.take() {
                document.add_value(&flag, &word)?;
                filled = Some(flag);
            } else if let Some(flag) = filled
                .as_ref()
                .filter(|flag| word.parse::<f64>().is_ok() || WORD_LISTS.contains(&flag.as_str()))
            {
                // Flags with several numbers or words.
                document.append(flag, &word);
            } else {
                filled = None;
                // torchtitan's subcommands.
                if let Some(("activation_checkpoint" | "activation-checkpoint", value)) = word.split_once(':')
                {
                    document.add("activation_checkpoint", value)?;
                }
            }
        }
        Ok(document)
    }

    fn add_value(&mut self, flag: &str, value: &str) -> Result<(), InputError> {
        if value.len() > text::LONGEST_TEXT {
            return Err(InputError::new(format!("--{flag}"), value, "is too long")
                .hint("give a file with only the arguments, as --flag value"));
        }
        self.add(flag, value)
    }

    /// Each key as a flag; true is the bare flag.
    pub fn flags(&self) -> Vec<String> {
        self.entries
            .iter()
            .filter(|(_, value)| *value != Value::Bool(false))
            .map(|(key, value)| match value {
                Value::Bool(true) => format!("--{key}"),
                Value::Array(list) => {
                    let words: Vec<_> = list.iter().map(|entry| quoted(&plain(entry))).collect();
                    format!("--{key} {}", words.join(" "))
                }
                Value::Number(number) if number.is_f64() => {
                    format!("--{key} {}", shortest(number.as_f64().unwrap_or_default()))
                }
                value => format!("--{key} {}", quoted(&plain(value))),
            })
            .collect()
    }
}

fn object(value: Result<Value, String>, notation: &str) -> Result<Document, InputError> {
    match value {
        Ok(value @ Value::Object(_)) => Document::of_tree(&value),
        Ok(other) => Err(InputError::new("", plain(&other), format!("expected a {notation} mapping"))
            .hint("give the trainer's whole configuration file")),
        Err(error) => Err(InputError::new("", "", format!("not valid {notation}: {error}"))
            .hint("give the trainer's whole configuration file")),
    }
}

/// A value as an integer, if it is written as one: `8`, not `8.9`, ` 8`, `+8`, `08`, `0x10` or `8e0`.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let plain = digits && (text == "0" || !text.starts_with('0'));
            plain.then(|| text.parse().ok()).flatten()
        }
        // Some writers give all numbers a decimal point; up to 2^53 this is exact.
        value => value.as_u64().or_else(|| {
            let real = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=9e15).contains(n))?;
            Some(real as u64)
        }),
    }
}

/// A value as a number, with an upper limit.
fn real(value: &Value) -> Option<f64> {
    let number: Option<f64> = match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    number.filter(|number| (-1e30..=1e30).contains(number))
}

/// `dividend / divisor`, which must be exact.
///
/// # Errors
/// If it is not; the error states that `key` should be a multiple of `what`.
pub(crate) fn quotient(key: &str, dividend: u64, divisor: u64, what: &str) -> Result<u32, InputError> {
    if divisor == 0 || !dividend.is_multiple_of(divisor) {
        return Err(InputError::new(key, dividend, format!("must be a multiple of {what}, {divisor}"))
            .hint("choose numbers that divide without a remainder"));
    }
    u32::try_from(dividend / divisor).map_err(|_| too_large(key, dividend / divisor))
}

/// The product of a file's numbers.
///
/// # Errors
/// If it is larger than the largest count.
pub(crate) fn product(key: &str, factors: &[u32]) -> Result<u32, InputError> {
    let product = factors.iter().fold(1, |product: u64, factor| product.saturating_mul(u64::from(*factor)));
    u32::try_from(product).ok().filter(|n| *n <= LARGEST_COUNT).ok_or_else(|| too_large(key, product))
}

/// # Errors
/// If a divisor is not positive.
pub(crate) fn above_zero(key: &str, value: f64) -> Result<(), InputError> {
    if value > 0.0 {
        return Ok(());
    }
    Err(InputError::new(key, value, "must be above zero").hint("give a number such as 3e-4"))
}

fn too_large(key: &str, value: u64) -> InputError {
    InputError::new(key, value, format!("must be at most {LARGEST_COUNT}")).hint("lower one of its factors")
}

pub(crate) fn wrong(key: &str, value: &Value, problem: &str, hint: &str) -> InputError {
    let text = plain(value);
    if text.contains('$') {
        return InputError::new(key, text, "is a variable whose value is not known before the script runs")
            .hint("replace the variable by its value, or give it as a flag of this command");
    }
    InputError::new(key, text, problem).hint(hint)
}

pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => decimal(number),
        other => other.to_string(),
    }
}

/// A number in the fewest characters: `3e-4`, `0.1`, `1.0`.
pub(crate) fn shortest(number: f64) -> String {
    let (decimal, exponent) = (number.to_string(), format!("{number:e}"));
    match decimal.contains('.') {
        _ if exponent.len() < decimal.len() => exponent,
        true => decimal,
        false => format!("{decimal}.0"),
    }
}

/// A computed number without rounding errors in its digits: 3e-3 x 0.1 is 3e-4.
pub(crate) fn rounded(number: f64) -> f64 {
    format!("{number:.13e}").parse().unwrap_or(number)
}

/// Without an exponent: YAML 1.1 reads `1e-5`, which has no point, as a string.
fn decimal(number: &Number) -> String {
    match number.as_f64() {
        Some(real) if number.is_f64() => {
            let text = real.to_string();
            if text.contains('.') { text } else { format!("{text}.0") }
        }
        _ => number.to_string(),
    }
}

/// Double quotes as in JSON, with escapes for line breaks that are special only in YAML.
fn in_quotes(text: &str) -> String {
    let mut quoted = String::new();
    for c in Value::from(text).to_string().chars() {
        // Writing to a String cannot fail.
        let _ = match u32::from(c) {
            _ if !text::is_hidden(c) => write!(quoted, "{c}"),
            short @ ..=0xffff => write!(quoted, "\\u{short:04x}"),
            long => write!(quoted, "\\U{long:08x}"),
        };
    }
    quoted
}

/// Block style for mappings and lists of them, flow style for other lists.
pub(crate) fn yaml(value: &Value) -> String {
    fn scalar(value: &Value) -> String {
        match value {
            Value::String(text) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
                // Quoted if YAML could interpret it as another type.
                let word = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
                    && text.chars().all(plain)
                    && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
                        .contains(&text.to_ascii_lowercase().as_str());
                if word { text.clone() } else { in_quotes(text) }
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
    /// Whether a value is written on separate lines.
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
        assert!(error.problem.contains("before the script runs"), "{error}");
        let unread: Vec<_> = document.unread().map(|(key, _)| key).collect();
        assert_eq!(unread, ["nproc_per_node", "seed"]);
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [(3e-4, "3e-4"), (1e-8, "1e-8"), (0.1, "0.1"), (1.0, "1.0"), (0.95, "0.95")] {
            assert_eq!(shortest(number), text);
        }
        assert_eq!(rounded(3e-3 * 0.1), 3e-4);
        assert_eq!(rounded(0.1), 0.1);
        let mut document = Document::default();
        document.set("min-lr", rounded(3e-3 * 0.1));
        document.set("lr", "$LR");
        assert_eq!(document.flags()[0], "--min-lr 3e-4");
        assert_eq!(document.known_real("lr").unwrap(), None);
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
            assert_eq!(again.counts("c", 10).unwrap(), Some(vec![1, 2]));
        }
        assert!(Document::of_json("[1]").is_err());
        assert!(Document::of_flags("--a 'open").unwrap_err().problem.contains("without a closing one"));
    }
}
