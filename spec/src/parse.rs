//! From bytes to checked values. Reading the bytes is the caller's business: this crate opens no file.

use crate::error::InputError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of every file format of this release; a file of another version is refused, never guessed at.
pub const SCHEMA_VERSION: u32 = 1;

/// A value that is checked after it was read: types cannot say everything.
pub trait Check {
    /// What the file is, in the user's words: "plan", "job", …
    const WHAT: &'static str;
    fn check(&self) -> Result<(), InputError>;
    /// Checked before the rest of the file is looked at; `None` for files that carry no version.
    fn versioned() -> bool {
        true
    }
}

fn text<'a>(name: &str, bytes: &'a [u8], what: &str) -> Result<&'a str, InputError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        InputError::new("", "", format!("not a text file: byte {} is not UTF-8", error.valid_up_to()))
            .hint(format!("give a {what} file in UTF-8"))
            .in_file(name)
    })?;
    if text.trim().is_empty() {
        return Err(InputError::new("", "", "the file is empty")
            .hint(format!("give a {what} file"))
            .in_file(name));
    }
    Ok(text)
}

fn check_version(value: &serde_json::Value, what: &str) -> Result<(), InputError> {
    match value.get("schema_version") {
        None => Err(InputError::new("schema_version", "", "is missing")
            .hint(format!("a {what} file of this release begins with schema_version = {SCHEMA_VERSION}"))),
        Some(v) if v.as_u64() == Some(u64::from(SCHEMA_VERSION)) => Ok(()),
        Some(v) => {
            Err(InputError::new("schema_version", v, format!("this release reads version {SCHEMA_VERSION}"))
                .hint(format!("make the {what} again with this release of autodist")))
        }
    }
}

/// Reads the path and value out of a typed failure, so that the message can name both.
fn located(
    error: serde_path_to_error::Error<serde_json::Error>,
    root: &serde_json::Value,
    what: &str,
) -> InputError {
    let path = error.path().to_string();
    let field = if path == "." { String::new() } else { path };
    let value = lookup(root, &field)
        .map(|v| if v.is_object() || v.is_array() { String::new() } else { v.to_string() });
    let inner = error.inner().to_string();
    let problem = inner.split(" at line ").next().unwrap_or(&inner).to_owned();
    InputError::new(field, value.unwrap_or_default(), problem)
        .hint(format!("every field of a {what} file is described by `autodist schema {what}`"))
}

fn lookup<'a>(root: &'a serde_json::Value, path: &str) -> Option<&'a serde_json::Value> {
    let mut value = root;
    for part in path.split(['.', '[']).filter(|p| !p.is_empty()) {
        value = match part.strip_suffix(']') {
            Some(index) => value.get(index.parse::<usize>().ok()?)?,
            None => value.get(part)?,
        };
    }
    Some(value)
}

pub(crate) fn from_value<T: DeserializeOwned + Check>(
    name: &str,
    value: serde_json::Value,
) -> Result<T, InputError> {
    if !value.is_object() {
        return Err(InputError::new("", "", format!("a {} file holds one object", T::WHAT))
            .hint(format!("see `autodist schema {}`", T::WHAT))
            .in_file(name));
    }
    if T::versioned() {
        check_version(&value, T::WHAT).map_err(|e| e.in_file(name))?;
    }
    let parsed: T =
        serde_path_to_error::deserialize(&value).map_err(|e| located(e, &value, T::WHAT).in_file(name))?;
    parsed.check().map_err(|e| e.in_file(name))?;
    Ok(parsed)
}

/// Reads a JSON document that holds a `T`.
pub fn json<T: DeserializeOwned + Check>(name: &str, bytes: &[u8]) -> Result<T, InputError> {
    from_value(name, json_value(name, bytes, T::WHAT)?)
}

/// Reads any JSON document; `what` names it in the error.
pub fn json_value(name: &str, bytes: &[u8], what: &str) -> Result<serde_json::Value, InputError> {
    serde_json::from_str(text(name, bytes, what)?).map_err(|error| {
        let problem = match error.classify() {
            serde_json::error::Category::Eof => {
                format!("the JSON ends too early, at line {} column {}", error.line(), error.column())
            }
            _ => format!("not valid JSON: {error}"),
        };
        InputError::new("", "", problem)
            .hint(format!("give the whole {what} file; was it cut off while it was copied?"))
            .in_file(name)
    })
}

/// Reads a TOML document that holds a `T`.
pub fn toml<T: DeserializeOwned + Check>(name: &str, bytes: &[u8]) -> Result<T, InputError> {
    from_value(name, toml_value(name, bytes, T::WHAT)?)
}

/// Reads any TOML document; `what` names it in the error.
pub(crate) fn toml_value(name: &str, bytes: &[u8], what: &str) -> Result<serde_json::Value, InputError> {
    let example = || format!("see the example of a {what} file in docs/files.md");
    let table: ::toml::Table = text(name, bytes, what)?.parse().map_err(|error: ::toml::de::Error| {
        InputError::new("", "", format!("not valid TOML: {}", error.to_string().trim_end()))
            .hint(example())
            .in_file(name)
    })?;
    let table = ::toml::Value::Table(table);
    // JSON, which the next step goes through, has no NaN and no infinity.
    if let Some((field, number)) = not_finite(&table, String::new()) {
        return Err(InputError::new(field, number, "is not a finite number")
            .hint("give a finite number")
            .in_file(name));
    }
    serde_json::to_value(&table).map_err(|error| {
        InputError::new("", "", format!("not a {what}: {error}")).hint(example()).in_file(name)
    })
}

/// Path and value of the first number that is not finite.
fn not_finite(value: &::toml::Value, path: String) -> Option<(String, f64)> {
    match value {
        ::toml::Value::Float(number) if !number.is_finite() => Some((path, *number)),
        ::toml::Value::Array(items) => {
            items.iter().enumerate().find_map(|(index, item)| not_finite(item, format!("{path}[{index}]")))
        }
        ::toml::Value::Table(table) => table.iter().find_map(|(key, item)| {
            not_finite(item, if path.is_empty() { key.clone() } else { format!("{path}.{key}") })
        }),
        _ => None,
    }
}

/// The document as text: pretty JSON with a newline at its end.
pub fn to_json<T: Serialize>(value: &T) -> String {
    let mut text =
        serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    text.push('\n');
    text
}

/// A short stable name for a value: the first 16 hex digits of the SHA-256 of its JSON.
pub fn fingerprint<T: Serialize>(value: &T) -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(to_json(value).as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
