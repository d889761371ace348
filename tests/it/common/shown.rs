//! The output of a command as one text for review.

use super::{Finished, command};
use std::collections::BTreeSet;
use std::path::Path;

/// Width of output, taken from this variable if there is no terminal.
const COLUMNS: usize = 100;

/// Digits of floats: the last digits of logarithms and powers differ between C libraries, and between
/// processors with and without fused multiply-add.
const DIGITS: usize = 9;

/// The command, its exit code and its output.
pub fn shown(folder: &Path, args: &str) -> String {
    shown_at(folder, args, COLUMNS)
}

/// The same on a screen of so many columns.
pub fn shown_at(folder: &Path, args: &str, columns: usize) -> String {
    let Finished { code, out, err } = run(folder, args, columns);
    let code = code.map_or("none: a signal ended it".to_owned(), |code| code.to_string());
    let mut text = format!("$ autodist {args}\nexit code {code}\n");
    for (stream, said) in [("standard output", out), ("standard error", err)] {
        if !said.is_empty() {
            text += &headed(stream, &said);
        }
    }
    rounded(&text)
}

/// The output of several commands, in their order.
pub fn shown_each(folder: &Path, commands: &[&str]) -> String {
    commands.iter().map(|args| shown(folder, args)).collect::<Vec<_>>().join("\n")
}

/// Runs it with only these variables: those of a launcher, or of the GPU of other tests, would change the
/// output.
fn run(folder: &Path, args: &str, columns: usize) -> Finished {
    let mut command = command(folder, &args.split_whitespace().collect::<Vec<_>>());
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("COLUMNS", columns.to_string());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn headed(title: &str, content: &str) -> String {
    let end = if content.ends_with('\n') { "" } else { "\n(its last line does not end)\n" };
    format!("\n==> {title} <==\n{content}{end}")
}

/// The files of a folder, in the order of their names, formatted by `show`.
pub fn files(folder: &Path, show: impl Fn(&str, &[u8]) -> String) -> String {
    let names: BTreeSet<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut text = String::new();
    for name in names {
        let content = std::fs::read(folder.join(&name)).unwrap();
        let name = name.into_string().unwrap();
        text += &headed(&name, &show(&name, &content));
    }
    rounded(&text)
}

/// A table's columns, and its number of lines.
pub fn head_of_table(content: &str) -> String {
    let (head, lines) = content.split_once('\n').unwrap();
    format!("{head}\n({} lines)\n", lines.lines().count())
}

/// Maximum rows shown of a page's table; the number of further rows is shown, too.
const ROWS: usize = 12;

/// The text of an HTML page: without figures, styles and scripts, one line per paragraph and row.
pub fn text_of_page(page: &str) -> String {
    let mut text = String::new();
    let (mut rows, mut shown) = (0, 0);
    let mut rest = page;
    while let Some((before, after)) = rest.split_once('<') {
        text += &before.replace('\n', " ");
        let (tag, after) = after.split_once('>').unwrap();
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
        rest = after;
        match (tag.starts_with('/'), name) {
            (false, "svg" | "style" | "script") => {
                rest = after.split_once(&format!("</{name}>")).unwrap().1;
                text += &format!("[{name}] ");
            }
            (true, "td" | "th") => text += " | ",
            (false, "tbody") => rows = 0,
            (false, "tr") => shown = text.len(),
            (true, "tr") => {
                rows += 1;
                text.truncate(if rows > ROWS { shown } else { text.len() });
                text.push('\n');
            }
            (true, "tbody") if rows > ROWS => text += &format!("({} rows more)\n", rows - ROWS),
            (true, "title" | "h1" | "h2" | "h3" | "p" | "div" | "a" | "figcaption" | "summary" | "li") => {
                text.push('\n');
            }
            (false, "br") => text.push('\n'),
            _ => {}
        }
    }
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    let mut text = lines.join("\n") + "\n";
    for (code, sign) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")] {
        text = text.replace(code, sign);
    }
    text
}

/// The text with all floats rounded to [`DIGITS`].
fn rounded(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(from.len());
        let (number, after) = from.split_at(end);
        let long = number.contains('.') && number.len() > DIGITS + 1;
        result += before;
        match number.parse::<f64>() {
            // The following text may be an exponent, which stays.
            Ok(value) if long => {
                let value: f64 = format!("{value:.*e}", DIGITS - 1).parse().unwrap();
                result += &value.to_string();
            }
            _ => result += number,
        }
        rest = after;
    }
    result + rest
}
