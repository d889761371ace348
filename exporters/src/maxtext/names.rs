//! MaxText's command lines, files that extend others, and its names of models.

use crate::Files;
use crate::document::Document;
use crate::shell;
use autodist_spec::InputError;

/// Files within each other.
const DEEPEST: usize = 5;

/// Reads a YAML file, or a script that trains with `key=value` arguments.
///
/// # Errors
/// If it is neither.
pub fn read(text: &str, open: Files) -> Result<Document, InputError> {
    read_within(text, open, 0)
}

fn read_within(text: &str, open: Files, depth: usize) -> Result<Document, InputError> {
    let yaml = Document::of_yaml(text);
    let runs = |line: &str| line.contains("python") && line.contains(".yml");
    let is_script =
        text.starts_with("#!") || text.lines().any(runs) || (yaml.is_err() && text.contains("python3 "));
    if !is_script {
        let mut document = yaml?;
        if let Some(base) = document.text("base_config") {
            under(&mut document, &base, open, depth)?;
        }
        return Ok(document);
    }
    let shell::Read { commands, .. } = shell::read(text, open)?;
    let mut document = Document::default();
    for command in &commands {
        let words: Vec<String> = command.words.iter().map(shell::Word::text).collect();
        let Some(at) = words.iter().position(|word| is_file(word) && !word.contains('=')) else { continue };
        for word in &words[at + 1..] {
            let Some((key, value)) = word.split_once('=') else { continue };
            let name = key.trim_start_matches("--");
            let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !plain {
                continue;
            }
            let value = crate::yaml::read(value).unwrap_or_else(|_| value.into());
            if document.has(name) && document.entries().iter().any(|(key, old)| key == name && *old != value)
            {
                let problem =
                    format!("differs between two commands, of which one is on line {}", command.line);
                return Err(InputError::new(name, crate::document::plain(&value), problem)
                    .hint("give a file with only the command that trains"));
            }
            document.set(name, value);
        }
        under(&mut document, &words[at], open, depth)?;
    }
    Ok(document)
}

fn is_file(word: &str) -> bool {
    word.ends_with(".yml") || word.ends_with(".yaml")
}

/// Adds what the file that this one extends says; `base.yml` holds MaxText's defaults, which the rows know.
fn under(document: &mut Document, name: &str, open: Files, depth: usize) -> Result<(), InputError> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last == "base.yml" || name.contains('$') || depth >= DEEPEST {
        return Ok(());
    }
    let Ok(text) = open(name).or_else(|_| open(last)) else { return Ok(()) };
    let theirs = read_within(&text, open, depth + 1).map_err(|error| error.in_file(name))?;
    for (key, value) in theirs.entries() {
        if !document.has(key) {
            document.set(key, value.clone());
        }
    }
    Ok(())
}

/// MaxText's names of models that the catalogue has under others; the rest is alike but for its spelling.
const NAMES: [(&str, &str); 6] = [
    ("llama3.1-405b", "llama3-405b"),
    ("llama4-17b-16e", "llama4-scout"),
    ("llama4-17b-128e", "llama4-maverick"),
    ("deepseek3-671b", "deepseek-v3"),
    ("gpt3-175b", "gpt3-175b"),
    ("llama3.3-70b", "llama3.1-70b"),
];

pub fn catalogued(name: &str) -> String {
    NAMES.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, own)| own).to_owned()
}
