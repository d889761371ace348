//! Runs the commands that pages of the documentation show, and compares their output with the page. To accept a
//! difference, run `UPDATE=1 scripts/test.sh transcripts::` and look at `git diff docs README.md`.
//!
//! - Every ```` ```console ```` block of `docs/jobs/*.md` is a transcript, and those of `README.md` after a line
//!   `<!-- transcript -->`. Its lines `$ autodist …` are run in the order of the page, in one folder for each page; `\`
//!   continues a line. What follows is the output on a terminal of 100 columns, in black and white. Only commands whose output is
//!   the same on every machine can be shown.
//! - A last line `…` stands for the rest of the output. A last line `(exit code 3)` is the exit code, if it is not 0.
//! - A block after a line `<!-- file: NAME -->` is written to that file of the folder.

use crate::common;

use common::command;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

const COLUMNS: &str = "100";
const FENCE: &str = "```";
const REST: &str = "…";

/// A part of a page.
#[derive(Debug, PartialEq)]
enum Part {
    /// Lines that are not checked.
    Text(String),
    File {
        name: String,
        /// With its fences.
        block: String,
        content: String,
    },
    Transcript(Vec<Shown>),
}

/// A command as the page shows it.
#[derive(Debug, PartialEq)]
struct Shown {
    /// From `$` to the last continued line.
    typed: String,
    output: Vec<String>,
}

/// The parts of a page; `all`: every console block is a transcript.
fn parts(text: &str, all: bool) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut lines = text.lines();
    let mut before = String::new();
    while let Some(line) = lines.next() {
        let file = before.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->"));
        let transcript = line == "```console" && (all || before == "<!-- transcript -->");
        if !line.starts_with(FENCE) || (file.is_none() && !transcript) {
            plain += &format!("{line}\n");
            // Lines of other blocks mean nothing here.
            if line.starts_with(FENCE) {
                for inside in lines.by_ref() {
                    plain += &format!("{inside}\n");
                    if inside == FENCE {
                        break;
                    }
                }
            }
            if !line.is_empty() {
                line.clone_into(&mut before);
            }
            continue;
        }
        let content: Vec<&str> = lines.by_ref().take_while(|inside| *inside != FENCE).collect();
        parts.push(Part::Text(std::mem::take(&mut plain)));
        parts.push(match file {
            Some(name) => {
                let content: String = content.iter().map(|line| format!("{line}\n")).collect();
                Part::File { name: name.to_owned(), block: format!("{line}\n{content}{FENCE}\n"), content }
            }
            None => Part::Transcript(commands(&content)),
        });
        before.clear();
    }
    parts.push(Part::Text(plain));
    parts
}

fn commands(lines: &[&str]) -> Vec<Shown> {
    let mut commands: Vec<Shown> = Vec::new();
    let mut continued = false;
    for line in lines {
        if line.starts_with("$ ") {
            commands.push(Shown { typed: (*line).to_owned(), output: Vec::new() });
        } else {
            let last = commands.last_mut().expect("a transcript begins with a command");
            if continued {
                last.typed += &format!("\n{line}");
            } else {
                last.output.push((*line).to_owned());
            }
        }
        continued = line.ends_with('\\') && (continued || line.starts_with("$ "));
    }
    commands
}

/// The words of a command after `autodist`, with a shell's quotes.
fn words(typed: &str) -> Vec<String> {
    let text = typed.trim_start_matches("$ ").replace("\\\n", " ");
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            ('|' | '>' | '<' | ';' | '&' | '$' | '`', None) => {
                panic!("`{typed}`: only plain commands are run")
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    assert_eq!(words.first().map(String::as_str), Some("autodist"), "`{typed}`: only autodist is run");
    words.split_off(1)
}

/// Everything that the command prints, as a terminal shows it, and its exit code if that is not 0.
fn output(folder: &Path, typed: &str) -> Vec<String> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = command(folder, &words(typed));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("COLUMNS", COLUMNS);
    let mut child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    // Its ends of the pipe would keep the reader waiting.
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let code = child.wait().unwrap().code().expect("the command ends by itself");
    let mut lines: Vec<String> =
        text.lines().filter(|line| !is_progress(line)).map(|line| line.trim_end().to_owned()).collect();
    if code != 0 {
        lines.push(format!("(exit code {code})"));
    }
    lines
}

/// `compare 1/2, 3 s used: …`
fn is_progress(line: &str) -> bool {
    let count =
        line.split(' ').nth(1).and_then(|word| word.strip_suffix(',')).and_then(|word| word.split_once('/'));
    let number = |text: &str| text.parse::<u32>().is_ok();
    count.is_some_and(|(done, of)| number(done) && number(of)) && line.contains(" used")
}

/// The page with the output of this build.
fn run(page: &str, all: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for part in parts(page, all) {
        match part {
            Part::Text(plain) => text += &plain,
            Part::File { name, block, content } => {
                std::fs::write(folder.path().join(&name), content).unwrap();
                text += &block;
            }
            Part::Transcript(commands) => {
                text += "```console\n";
                for Shown { typed, output: shown } in commands {
                    let mut lines = output(folder.path(), &typed);
                    if shown.last().is_some_and(|line| line == REST) {
                        lines.truncate(shown.len() - 1);
                        lines.push(REST.to_owned());
                    }
                    writeln!(text, "{typed}").unwrap();
                    lines.iter().for_each(|line| writeln!(text, "{line}").unwrap());
                }
                text += "```\n";
            }
        }
    }
    text
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = std::fs::read_dir(root.join("docs/jobs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    assert!(!pages.is_empty(), "docs/jobs has no pages");
    pages.push(root.join("README.md"));
    pages.sort();
    pages
}

#[test]
fn pages_show_what_their_commands_print() {
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let mut different = String::new();
    for path in pages() {
        let all = path.file_name().unwrap() != "README.md";
        let page = std::fs::read_to_string(&path).unwrap();
        let shown = parts(&page, all).iter().any(|part| matches!(part, Part::Transcript(_)));
        assert!(shown || !all, "{} shows no command", path.display());
        let now = run(&page, all);
        if now == page {
            continue;
        }
        if update {
            std::fs::write(&path, now).unwrap();
            continue;
        }
        for (number, (old, new)) in
            page.lines().zip(now.lines()).enumerate().filter(|(_, (a, b))| a != b).take(3)
        {
            writeln!(different, "{}:{}\n- {old}\n+ {new}", path.display(), number + 1).unwrap();
        }
    }
    assert!(different.is_empty(), "accept these with UPDATE=1 scripts/test.sh transcripts::\n{different}");
}

#[test]
fn a_page_is_read_as_commands_files_and_text() {
    let page = "# Title\n\n<!-- file: a.json -->\n```json\n{}\n```\n\n```console\n$ autodist plan \\\n    --model 'a b'\nout\n…\n```\nend\n";
    let read = parts(page, true);
    let shown = Shown {
        typed: "$ autodist plan \\\n    --model 'a b'".to_owned(),
        output: vec!["out".to_owned(), REST.to_owned()],
    };
    assert_eq!(words(&shown.typed), ["plan", "--model", "a b"]);
    assert!(matches!(&read[1], Part::File { name, content, .. } if name == "a.json" && content == "{}\n"));
    assert_eq!(read[3], Part::Transcript(vec![shown]));
    assert_eq!(read[4], Part::Text("end\n".to_owned()));
    // Without the mark, blocks of README are text.
    assert!(parts(page, false).iter().all(|part| !matches!(part, Part::Transcript(_))));
    let marked = page.replace("```console", "<!-- transcript -->\n```console");
    assert!(parts(&marked, false).iter().any(|part| matches!(part, Part::Transcript(_))));
    assert!(is_progress("compare 1/2, 3 s used: 2x8xh100") && !is_progress("step time  1/2, or used"));
}
