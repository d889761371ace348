//! The commands of a shell script, with variables replaced where their values are known without running it.

mod lexer;
mod variables;

pub use variables::{Open, Word};

use autodist_spec::InputError;
use lexer::{Kind, Lexer, Piece, Raw, Token};
use variables::Variables;

/// Maximum depth of commands in quotes, as in `bash -c "…"`.
const DEEPEST: usize = 4;
/// Maximum compound commands within each other.
const MOST_WITHIN: usize = 100;
/// Commands whose arguments are not settings.
const OTHERS: [&str; 19] = [
    ".", ":", "[", "[[", "cat", "cd", "cp", "echo", "exit", "ls", "mkdir", "mv", "printf", "rm", "set",
    "sleep", "source", "test", "wait",
];
const LAUNCHERS: [&str; 3] = ["torchrun", "deepspeed", "accelerate"];

/// A command that is not one of `OTHERS`.
pub struct ShellCommand {
    pub words: Vec<Word>,
    pub line: usize,
}

impl ShellCommand {
    /// The place of the program that takes the arguments after it, if there is one.
    pub fn program(&self) -> Option<usize> {
        let (texts, is_open) =
            (self.words.iter().map(Word::text).collect::<Vec<_>>(), |word: &Word| word.open().is_some());
        let script = |word: &String| word.ends_with(".py") || word.ends_with(".sh");
        let module = || texts.iter().position(|word| word == "-m").map(|at| at + 1);
        let launcher = || {
            let name = texts.first()?.rsplit('/').next()?;
            (LAUNCHERS.contains(&name) || self.words.first().is_some_and(is_open)).then_some(0)
        };
        let before = texts.iter().position(script).or_else(module).or_else(launcher)?;
        (before < texts.len()).then_some(before)
    }
}

#[derive(Default)]
struct Script {
    variables: Variables,
    commands: Vec<ShellCommand>,
    /// The compound commands that are open.
    within: Vec<&'static str>,
}

/// The commands of a script or of a file with only arguments. Without any, its variables are the arguments.
///
/// # Errors
/// If quotes or brackets do not close, or variables are too long.
pub fn commands(text: &str) -> Result<Vec<ShellCommand>, InputError> {
    let mut script = Script::default();
    script.run(Lexer::new(text, 1), 0)?;
    let has_flags = |command: &ShellCommand| command.words.iter().any(|word| word.text().starts_with("--"));
    if !script.commands.iter().any(|command| has_flags(command) || command.program().is_some()) {
        for name in script.variables.with_flags() {
            let text = format!("${name}");
            let piece = Piece::Variable { text, name, list: true, quoted: false, kind: Kind::Plain };
            let words = script.variables.expand(&Raw { pieces: vec![piece], ..Raw::default() })?;
            script.commands.push(ShellCommand { words, line: 1 });
        }
    }
    Ok(script.commands)
}

impl Script {
    fn run(&mut self, mut lexer: Lexer, depth: usize) -> Result<(), InputError> {
        let (mut words, mut before): (Vec<Raw>, _) = (Vec::new(), "");
        loop {
            let operator = match lexer.token()? {
                Some(Token::Word(word)) => {
                    if !word.is_empty() {
                        words.push(word);
                    }
                    continue;
                }
                Some(Token::Operator(operator)) => operator,
                None => "",
            };
            // A file with only arguments has them on several lines.
            let arguments =
                words.first().is_some_and(|word| word.bare().is_some_and(|text| text.starts_with('-')));
            if operator == "\n" && arguments {
                continue;
            }
            let branch = before == "&&" || before == "||";
            self.command(&std::mem::take(&mut words), branch, depth)?;
            match operator {
                "" => return Ok(()),
                "(" => self.enter("(")?,
                ")" if self.within.last() == Some(&"(") => self.leave(),
                _ => {}
            }
            before = operator;
        }
    }

    /// Begins a compound command.
    fn enter(&mut self, what: &'static str) -> Result<(), InputError> {
        self.within.push(what);
        self.variables.in_function |= what == "{";
        if self.within.len() > MOST_WITHIN {
            return Err(InputError::new(
                "",
                "",
                format!("has more than {MOST_WITHIN} commands within each other"),
            )
            .hint("give a file with only the arguments, as --flag value"));
        }
        Ok(())
    }

    /// Ends the innermost compound command.
    fn leave(&mut self) {
        self.within.pop();
        self.variables.in_function = self.within.contains(&"{");
    }

    /// The place in which an assignment may not run.
    fn uncertain(&self, branch: bool) -> Option<&'static str> {
        if self.variables.in_function {
            Some("function")
        } else if branch || !self.within.is_empty() {
            Some("branch")
        } else {
            None
        }
    }

    fn command(&mut self, mut words: &[Raw], branch: bool, depth: usize) -> Result<(), InputError> {
        while let Some((word, rest)) = words.split_first().and_then(|(word, rest)| Some((word.bare()?, rest)))
        {
            match word {
                "if" | "while" | "until" => self.enter("if")?,
                "{" => self.enter("{")?,
                "case" => return self.enter("case"),
                "for" | "select" => {
                    self.enter("for")?;
                    if let Some(name) = rest.first().and_then(Raw::bare) {
                        let why = format!("is set by a loop on line {}", rest[0].line);
                        self.variables.forget(name, why, rest.iter().any(Raw::starts_with_flag));
                    }
                    return Ok(());
                }
                "fi" | "done" | "esac" | "}" => self.leave(),
                "then" | "else" | "elif" | "do" | "!" | "time" | "exec" | "eval" | "nohup" => {}
                "function" => {
                    words = rest.get(1..).unwrap_or_default();
                    continue;
                }
                _ => break,
            }
            words = rest;
        }
        let uncertain = self.uncertain(branch);
        let declares = ["export", "declare", "typeset", "local", "readonly"];
        if words.first().and_then(Raw::bare).is_some_and(|word| declares.contains(&word)) {
            let mut assigned = words.iter().filter(|word| word.assigns.is_some());
            return assigned.try_for_each(|word| self.variables.assign(word, uncertain));
        }
        if words.iter().all(|word| word.assigns.is_some()) {
            return words.iter().try_for_each(|word| self.variables.assign(word, uncertain));
        }
        match words.first().and_then(Raw::bare) {
            Some(name @ ("read" | "unset" | "mapfile" | "readarray")) => {
                let why = format!("is set by `{name}` on line {}", words[0].line);
                for name in words[1..].iter().filter_map(Raw::bare).filter(|name| !name.starts_with('-')) {
                    self.variables.forget(name, why.clone(), false);
                }
                return Ok(());
            }
            Some("set") if words.iter().any(|word| word.bare() == Some("--")) => {
                let why = format!("is set by `set` on line {}", words[0].line);
                self.variables.forget("@", why, true);
                return Ok(());
            }
            Some(name) if OTHERS.contains(&name) => return Ok(()),
            _ => {}
        }
        // Variables before a command belong to its environment.
        let first = words.iter().position(|word| word.assigns.is_none()).unwrap_or(0);
        let line = words.get(first).map_or(1, |word| word.line);
        let mut command = ShellCommand { words: Vec::new(), line };
        let mut value = false;
        for word in &words[first..] {
            for word in self.variables.expand(word)? {
                let text = word.text();
                // A command line in quotes, as in `bash -c "…"`.
                let quoted = !value && !text.starts_with("--") && text.contains(" --");
                if quoted && depth < DEEPEST {
                    let (within, before) = (self.within.clone(), self.commands.len());
                    let read = self.run(Lexer::new(&text, line), depth + 1);
                    self.within = within;
                    self.variables.in_function = self.within.contains(&"{");
                    if read.is_ok() {
                        continue;
                    }
                    self.commands.truncate(before);
                }
                value = text.starts_with("--") && !text.contains('=');
                command.words.push(word);
            }
        }
        if !command.words.is_empty() {
            self.commands.push(command);
        }
        Ok(())
    }
}
