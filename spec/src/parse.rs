//! Parses bytes into checked values. The caller reads the bytes: this crate opens no file.

use crate::error::InputError;
use crate::survey::Survey;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of every file format of this release; a file of another version is rejected.
pub const SCHEMA_VERSION: u32 = 1;

/// A value that is checked after deserialisation, for conditions that its type does not express.
pub trait Check {
    /// The kind of file in messages: "plan", "job", …
    const WHAT: &'static str;
    fn check(&self) -> Result<(), InputError>;
    /// Whether files have a version, which is checked before the rest of the file.
    fn versioned() -> bool {
        true
    }
}

fn text<'a>(name: &str, bytes: &'a [u8], what: &str) -> Result<&'a str, InputError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        InputError::new("", "", format!("expected UTF-8 text, but byte {} is not UTF-8", error.valid_up_to()))
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

/// Maximum number of values in documents that are deserialised directly: the record of a step with thousands
/// of micro-batches has a million.
const MOST_VALUES: usize = 4_000_000;
/// Maximum number of values in documents that are kept as generic values, each of which takes some hundred
/// bytes.
const MOST_KEPT: usize = 500_000;

/// Surveys a document: see [`Survey::of`].
fn survey<'de, D: serde::Deserializer<'de>>(
    name: &str,
    most: usize,
    lines: bool,
    document: D,
) -> Result<Survey, Failed<D::Error>> {
    let (mut survey, outcome) = Survey::of(most, lines, document);
    match (survey.refused.take(), outcome) {
        (Some(error), _) => Err(Failed::Refused(if name.is_empty() { error } else { error.in_file(name) })),
        (None, Err(error)) => Err(Failed::Notation(error)),
        (None, Ok(())) => Ok(survey),
    }
}

/// Why a survey failed.
enum Failed<E> {
    Refused(InputError),
    /// The text is not valid in its notation.
    Notation(E),
}

fn survey_json(name: &str, text: &str, what: &str, most: usize) -> Result<Survey, InputError> {
    let mut document = serde_json::Deserializer::from_str(text);
    let survey = survey(name, most, false, &mut document)
        .and_then(|survey| document.end().map(|()| survey).map_err(Failed::Notation));
    survey.map_err(|failed| match failed {
        Failed::Refused(error) => error,
        Failed::Notation(error) => not_json(&error, what).in_file(name),
    })
}

fn not_json(error: &serde_json::Error, what: &str) -> InputError {
    let problem = match error.classify() {
        serde_json::error::Category::Eof => {
            format!("the JSON ends too early, at line {} column {}", error.line(), error.column())
        }
        _ => format!("not valid JSON: {error}"),
    };
    InputError::new("", "", problem)
        .hint(format!("give the whole {what} file; was it cut off while it was copied?"))
}

/// Surveys a document of any notation, as [`json`] does: its texts, which may have several lines here, its
/// numbers, and the number of its values.
///
/// # Errors
/// Content that no document may have; an error of the notation is in the inner result.
pub fn look_over<'de, D: serde::Deserializer<'de>>(document: D) -> Result<Result<(), D::Error>, InputError> {
    match survey("", MOST_KEPT, true, document) {
        Err(Failed::Refused(error)) => Err(error),
        Err(Failed::Notation(error)) => Ok(Err(error)),
        Ok(_) => Ok(Ok(())),
    }
}

fn check_version(version: Option<&str>, what: &str) -> Result<(), InputError> {
    match version {
        None => Err(InputError::new("schema_version", "", "is missing")
            .hint(format!("add schema_version = {SCHEMA_VERSION}, the version that this release reads"))),
        Some(v) if v == SCHEMA_VERSION.to_string() => Ok(()),
        Some(v) => {
            Err(InputError::new("schema_version", v, format!("is not supported; expected {SCHEMA_VERSION}"))
                .hint(format!("create the {what} file again with this release of autodist")))
        }
    }
}

/// Gets the path and the value from a deserialisation error, so that the message can name both.
fn located(
    error: serde_path_to_error::Error<serde_json::Error>,
    root: Option<&serde_json::Value>,
    what: &str,
) -> InputError {
    let path = error.path().to_string();
    let field = if path == "." { String::new() } else { path };
    let value = root
        .and_then(|root| lookup(root, &field))
        .map(|v| if v.is_object() || v.is_array() { String::new() } else { v.to_string() });
    let inner = error.inner().to_string();
    let problem = crate::text::one_line(inner.split(" at line ").next().unwrap_or(&inner));
    InputError::new(field, value.unwrap_or_default(), problem).hint(described(what))
}

/// The place where a kind of file is documented.
fn described(what: &str) -> String {
    match what {
        "model" | "cluster" | "job" | "profile" | "plan" | "run" | "validation" => {
            format!("every field of a {what} file is described by `autodist schema {what}`")
        }
        _ => format!("every field of a {what} file is described in docs/files.md"),
    }
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

/// Checks the parts of `T`'s files that are not in its type.
fn check_outline<T: Check>(survey: &Survey) -> Result<(), InputError> {
    if !survey.object {
        return Err(InputError::new("", "", format!("expected one object, as in every {} file", T::WHAT))
            .hint(described(T::WHAT)));
    }
    if T::versioned() {
        check_version(survey.version.as_deref(), T::WHAT)?;
    }
    Ok(())
}

pub(crate) fn from_value<T: DeserializeOwned + Check>(
    name: &str,
    mut value: serde_json::Value,
) -> Result<T, InputError> {
    // People write TOML, so quantities may have units there.
    crate::quantity::in_file(&mut value, "").map_err(|e| e.in_file(name))?;
    if T::versioned() {
        let version = value.get("schema_version").map(ToString::to_string);
        check_version(version.as_deref(), T::WHAT).map_err(|e| e.in_file(name))?;
    }
    let parsed: T = serde_path_to_error::deserialize(&value)
        .map_err(|e| located(e, Some(&value), T::WHAT).in_file(name))?;
    parsed.check().map_err(|e| e.in_file(name))?;
    Ok(parsed)
}

/// Reads a `T` from a JSON document, without intermediate values.
///
/// # Errors
/// Invalid JSON, a disallowed text, too many values, another version, or a field that is missing, unknown, of
/// another type or out of its range.
pub fn json<T: DeserializeOwned + Check>(name: &str, bytes: &[u8]) -> Result<T, InputError> {
    let text = text(name, bytes, T::WHAT)?;
    let survey = survey_json(name, text, T::WHAT, MOST_VALUES)?;
    check_outline::<T>(&survey).map_err(|e| e.in_file(name))?;
    let document = &mut serde_json::Deserializer::from_str(text);
    let parsed: T = serde_path_to_error::deserialize(document).map_err(|error| {
        // Only for the error message.
        let value: Option<serde_json::Value> =
            (survey.values <= MOST_KEPT).then(|| serde_json::from_str(text).ok()).flatten();
        located(error, value.as_ref(), T::WHAT).in_file(name)
    })?;
    parsed.check().map_err(|e| e.in_file(name))?;
    Ok(parsed)
}

/// Reads any JSON document; `what` names it in the error.
///
/// # Errors
/// Invalid JSON, a disallowed text, or too many values.
pub fn json_value(name: &str, bytes: &[u8], what: &str) -> Result<serde_json::Value, InputError> {
    let text = text(name, bytes, what)?;
    survey_json(name, text, what, MOST_KEPT)?;
    serde_json::from_str(text).map_err(|error| not_json(&error, what).in_file(name))
}

/// The top-level keys of a JSON document, which distinguish kinds of documents.
///
/// # Errors
/// As [`json_value`].
pub fn json_keys(name: &str, bytes: &[u8], what: &str) -> Result<Vec<String>, InputError> {
    Ok(survey_json(name, text(name, bytes, what)?, what, MOST_VALUES)?.keys)
}

/// Reads a `T` from a TOML document.
pub fn toml<T: DeserializeOwned + Check>(name: &str, bytes: &[u8]) -> Result<T, InputError> {
    from_value(name, toml_value(name, bytes, T::WHAT)?)
}

/// Reads any TOML document; `what` names it in the error.
pub fn toml_value(name: &str, bytes: &[u8], what: &str) -> Result<serde_json::Value, InputError> {
    let example = || format!("see the example of a {what} file in docs/files.md");
    let text = text(name, bytes, what)?;
    let table: ::toml::Table = text.parse().map_err(|error: ::toml::de::Error| {
        InputError::new("", "", format!("not valid TOML: {}", shown(&error, text)))
            .hint(example())
            .in_file(name)
    })?;
    let table = ::toml::Value::Table(table);
    if let Err(Failed::Refused(error)) = survey(name, MOST_KEPT, false, table.clone()) {
        return Err(error);
    }
    serde_json::to_value(&table).map_err(|error| {
        InputError::new("", "", format!("not a {what}: {error}")).hint(example()).in_file(name)
    })
}

/// Formats an error of the TOML parser with the line, or without it if the line is long.
fn shown(error: &::toml::de::Error, text: &str) -> String {
    const LONG: usize = 160;
    let whole = error.to_string();
    if whole.lines().all(|line| line.len() <= LONG) {
        return whole.trim_end().to_owned();
    }
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let column = 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count();
    format!("line {line}, column {column}: {}", error.message())
}

/// The document as text: pretty JSON that ends with a newline. Control characters that JSON allows are
/// escaped too, because a document may be printed on a terminal.
pub fn to_json<T: Serialize>(value: &T) -> String {
    let mut text =
        serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    if text.contains(drives) {
        // These characters occur only in strings: all other JSON is printable ASCII.
        text = text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
            match c {
                c if drives(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]).iter() {
                        escaped += &format!("\\u{unit:04x}");
                    }
                }
                c => escaped.push(c),
            }
            escaped
        });
    }
    text.push('\n');
    text
}

/// Whether a character is not allowed in text: control characters except line feeds, and characters that
/// change the direction of writing.
fn drives(c: char) -> bool {
    c != '\n' && crate::text::is_hidden(c)
}

/// A short, stable identifier of a value: the first 16 hex digits of the SHA-256 of its JSON.
pub fn fingerprint<T: Serialize>(value: &T) -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(to_json(value).as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
