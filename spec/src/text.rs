//! Names and texts from files: which characters are allowed, and how they are displayed.
//!
//! They are written to scripts, tables, pages and terminals, where a line break or an escape sequence could
//! have effects that the reader does not expect. So these are refused when files are read.

use crate::error::InputError;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Maximum length of a name, in bytes.
pub const LONGEST_NAME: usize = 256;
/// Maximum length of any other text (a reason, a path, a source), in bytes.
pub const LONGEST_TEXT: usize = 16 << 10;

/// Fields that name something: a model, a device, a host, a run.
const NAMES: [&str; 6] = ["name", "id", "device", "host", "model", "set_id"];

/// Whether a character is invisible but affects the text around it: controls, line and paragraph separators,
/// and format characters (Unicode Cc, Zl, Zp, Cf), including those that change the direction of text.
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(
        c.general_category(),
        GeneralCategory::Control
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
            | GeneralCategory::Format
    )
}

/// Checks a text of the file's field `field`; the maximum length depends on whether it is a name.
///
/// # Errors
/// A hidden character, or a text that is too long.
pub fn check(field: &str, text: &str) -> Result<(), InputError> {
    let last = field.rsplit('.').next().unwrap_or(field);
    check_to(field, text, if NAMES.contains(&last) { LONGEST_NAME } else { LONGEST_TEXT })
}

/// Checks a name.
///
/// # Errors
/// A hidden character, or a name that is too long.
pub fn check_name(field: &str, text: &str) -> Result<(), InputError> {
    check_to(field, text, LONGEST_NAME)
}

fn check_to(field: &str, text: &str, longest: usize) -> Result<(), InputError> {
    if let Some(hidden) = text.chars().find(|c| is_hidden(*c)) {
        let problem = format!("contains the hidden character U+{:04X}", u32::from(hidden));
        return Err(InputError::new(field, text, problem)
            .hint("remove that character: names and texts are one line of visible characters"));
    }
    if text.len() > longest {
        let problem = format!("is too long: {} bytes, and the limit is {longest}", text.len());
        return Err(InputError::new(field, text, problem).hint(format!("use at most {longest} bytes")));
    }
    Ok(())
}

/// Formats a text for messages: hidden characters as `\u{1b}`, and cut off after `most` characters.
pub fn shown(text: &str, most: usize) -> String {
    let mut short = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == most {
            short.push('…');
            break;
        }
        if is_hidden(c) { short.extend(c.escape_default()) } else { short.push(c) }
    }
    short
}

/// Maximum length of a line in a message, in characters: a quotation may be as long as a file.
const LONGEST_LINE: usize = 300;

/// Formats text from a user's file or name, so that it can neither control a terminal nor look like a line of
/// this program: hidden characters are shown as `\u{1b}`, and text after 300 characters is cut.
pub fn one_line(text: &str) -> String {
    shown(text, LONGEST_LINE)
}

/// Formats a text of several lines for messages: line feeds and tabs are kept, and nothing is cut.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if is_hidden(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// Joins a text of several lines into one line that files may contain: line breaks become `; `, hidden
/// characters are shown.
pub fn joined(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let mut line = shown(&lines.join("; "), LONGEST_TEXT / 4);
    // Characters are up to four bytes, and an escape is up to ten.
    if line.len() > LONGEST_TEXT {
        line = line.chars().take(LONGEST_TEXT / 8).collect();
    }
    line
}

/// Serialises texts, each as one line.
pub(crate) fn serialize_lines<S: serde::Serializer>(
    texts: &[String],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| joined(text)))
}

/// Serialises a text as one line.
pub(crate) fn serialize_joined<S: serde::Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&joined(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_refused_and_what_can_is_not() {
        let hidden = (0..=0x1f).chain(0x7f..=0x9f).filter_map(char::from_u32);
        // Separators, marks and overrides of direction, joiners, soft hyphen, byte order mark, tags.
        let more = "\u{2028}\u{2029}\u{200b}\u{200e}\u{200f}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{61c}\u{ad}\u{feff}\u{e0041}";
        for c in hidden.chain(more.chars()) {
            let error = check("model.name", &format!("a{c}b")).unwrap_err().to_string();
            assert!(error.contains("`model.name`") && error.contains(&format!("U+{:04X}", u32::from(c))));
            assert!(!error.lines().next().unwrap().chars().any(is_hidden), "{error:?}");
        }
        for text in
            ["llama-7b", "modèle", "模型", "модель", "a b $(c) `d` 'e' \"f\" <g> # & ;", "🦙", "1 µs ± 2 %"]
        {
            check("name", text).unwrap();
        }
    }

    #[test]
    fn names_are_shorter_than_other_texts() {
        let long = "x".repeat(LONGEST_NAME + 1);
        assert!(check("cluster.name", &long).unwrap_err().problem.contains("257 bytes"));
        check("alternatives[3].reason", &long).unwrap();
        assert!(check("reason", &"x".repeat(LONGEST_TEXT + 1)).is_err());
    }

    #[test]
    fn any_text_becomes_one_line_that_is_read_again() {
        for text in
            ["a\nb\r\n\nc\u{1b}[31m", "\u{1b}\n".repeat(100_000).as_str(), "🦙".repeat(100_000).as_str()]
        {
            check("reason", &joined(text)).unwrap();
        }
        assert_eq!(joined("rank 0 ended\nit wrote: x\n"), "rank 0 ended; it wrote: x");
    }
}
