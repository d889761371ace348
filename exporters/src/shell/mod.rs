//! The commands of a shell script, with variables replaced where their values are known without running it.

mod arithmetic;
mod conditions;
mod lexer;
mod variables;

pub use variables::{Open, Word};

use crate::Files;
use autodist_spec::InputError;
use conditions::{and, or};
use lexer::{Assigns, Kind, Lexer, Piece, Raw, Token};
use std::collections::BTreeMap;
use variables::Variables;

/// Maximum depth of commands in quotes, as in `bash -c "…"`.
const DEEPEST: usize = 4;
/// Maximum scripts that are opened.
const MOST_OPENED: usize = 50;
/// Maximum compound commands within each other.
const MOST_WITHIN: usize = 100;
/// Commands whose arguments are not settings.
const OTHERS: [&str; 17] = [
    ":", "[", "[[", "cat", "cd", "cp", "echo", "exit", "ls", "mkdir", "mv", "printf", "rm", "set", "sleep",
    "test", "wait",
];
const LAUNCHERS: [&str; 3] = ["torchrun", "deepspeed", "accelerate"];

/// A command that is not one of `OTHERS`.
pub struct ShellCommand {
    pub words: Vec<Word>,
    pub line: usize,
    /// Variables that the command line itself sets.
    pub environment: BTreeMap<String, String>,
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

struct Script<'a> {
    variables: Variables,
    commands: Vec<ShellCommand>,
    /// The compound commands that are open.
    within: Vec<Compound>,
    /// Opens other scripts.
    open: Files<'a>,
    /// Files that the script itself writes.
    written: BTreeMap<String, String>,
    /// Other scripts that were opened.
    opened: usize,
    /// Scripts within each other.
    depth: usize,
}

/// A compound command, up to the place that is being read.
#[derive(Clone)]
struct Compound {
    kind: CompoundKind,
    /// Whether the commands that are being read run; `None`: it is known only when the script runs.
    runs: Option<bool>,
    /// Whether a branch before them has run.
    ran: Option<bool>,
}

#[derive(Clone, PartialEq)]
enum CompoundKind {
    /// Up to `then`, with the value of the condition so far.
    Condition(Option<bool>),
    If,
    /// With the text between `case` and `in`.
    Case {
        text: Option<String>,
        place: CasePlace,
    },
    /// Loops and commands in parentheses.
    Other,
    Function,
}

#[derive(Clone, Copy, PartialEq)]
enum CasePlace {
    /// Before a pattern; the value is whether one of those before it, as in `a|b)`, is like the text.
    Patterns(Option<bool>),
    Commands,
}

impl Compound {
    fn new(kind: CompoundKind) -> Self {
        Self { kind, runs: None, ran: None }
    }

    /// Begins the branch whose condition has this value.
    fn branch(&mut self, value: Option<bool>) {
        self.runs = match self.ran {
            Some(true) => Some(false),
            Some(false) => value,
            // One of the branches before may have run.
            None => and(value, None),
        };
        self.ran = or(self.ran, value);
    }
}

/// What is known of a command because of the `&&` or `||` before it, and its own value as a condition.
#[derive(Clone, Copy)]
struct Chain {
    operator: &'static str,
    value: Option<bool>,
}

impl Chain {
    /// Whether the next command runs.
    fn runs(self) -> Option<bool> {
        match self.operator {
            "&&" => self.value,
            "||" => self.value.map(|value| !value),
            _ => Some(true),
        }
    }

    /// After a command with this value.
    fn after(self, value: Option<bool>) -> Option<bool> {
        match self.operator {
            "&&" => and(self.value, value),
            "||" => or(self.value, value),
            "|" | "|&" => None,
            _ => value,
        }
    }
}

/// The commands of a script, and the files that it writes itself.
#[derive(Default)]
pub struct Read {
    pub commands: Vec<ShellCommand>,
    pub written: BTreeMap<String, String>,
}

/// The commands of a script or of a file with only arguments, and of the scripts that it starts or reads in.
/// Without any, its variables are the arguments.
///
/// # Errors
/// If quotes or brackets do not close, or variables are too long.
pub fn read(text: &str, open: Files) -> Result<Read, InputError> {
    let mut script = Script {
        variables: Variables::default(),
        commands: Vec::new(),
        within: Vec::new(),
        open,
        written: BTreeMap::new(),
        opened: 0,
        depth: 0,
    };
    script.slurm(text);
    script.run(Lexer::new(text, 1), 0)?;
    let has_flags = |command: &ShellCommand| command.words.iter().any(|word| word.text().starts_with("--"));
    if !script.commands.iter().any(|command| has_flags(command) || command.program().is_some()) {
        for name in script.variables.with_flags() {
            let text = format!("${name}");
            let piece = Piece::Variable { text, name, list: true, quoted: false, kind: Kind::Plain };
            let words = script.variables.expand(&Raw { pieces: vec![piece], ..Raw::default() })?;
            script.commands.push(ShellCommand { words, line: 1, environment: BTreeMap::new() });
        }
    }
    Ok(Read { commands: script.commands, written: script.written })
}

impl Script<'_> {
    /// Slurm's variables, from the `#SBATCH` lines of a batch script.
    fn slurm(&mut self, text: &str) {
        const NODES: [&str; 3] = ["SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_NODES"];
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("#SBATCH")) {
            let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
            let (Some(option), Some(value)) = (words.next(), words.next()) else { continue };
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let names: &[&str] = match option {
                "--nodes" | "-N" => &NODES,
                "--ntasks-per-node" => &["SLURM_NTASKS_PER_NODE"],
                "--gpus-per-node" => &["SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"],
                _ => &[],
            };
            names.iter().filter(|_| digits).for_each(|name| self.variables.give(name, value));
        }
    }

    fn run(&mut self, mut lexer: Lexer, depth: usize) -> Result<(), InputError> {
        let mut words: Vec<Raw> = Vec::new();
        let mut chain = Chain { operator: "", value: Some(true) };
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
            // `&&` and `||` inside `[[ ]]`.
            let opened = words.iter().rposition(|word| word.bare() == Some("[["));
            let open = opened.is_some_and(|at| words[at..].iter().all(|word| word.bare() != Some("]]")));
            if open && (operator == "&&" || operator == "||") {
                words.push(Raw::of_text(operator, words[0].line));
                continue;
            }
            let mut taken = std::mem::take(&mut words);
            // `case TEXT in PATTERN)` on one line.
            if matches!(operator, "|" | ")") && taken.len() > 3 && taken[0].bare() == Some("case") {
                let pattern = taken.split_off(3);
                self.command(&taken, chain.runs(), depth)?;
                taken = pattern;
            }
            if self.pattern(&taken, operator) {
                chain = Chain { operator: "", value: Some(true) };
                continue;
            }
            let value = self.command(&taken, chain.runs(), depth)?;
            let value = if taken.is_empty() { value } else { chain.after(value) };
            if let Some(Compound { kind: CompoundKind::Condition(whole), .. }) = self.within.last_mut()
                && !taken.is_empty()
            {
                *whole = value;
            }
            chain = Chain { operator, value };
            self.write(&mut lexer)?;
            match operator {
                "" => return Ok(()),
                "(" => self.enter(CompoundKind::Other)?,
                ")" if matches!(self.within.last(), Some(Compound { kind: CompoundKind::Other, .. })) => {
                    self.leave();
                }
                ";;" => {
                    if let Some(Compound { kind: CompoundKind::Case { place, .. }, .. }) =
                        self.within.last_mut()
                    {
                        *place = CasePlace::Patterns(Some(false));
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads a pattern of a `case`, before `|` or `)`. Returns whether it was one.
    fn pattern(&mut self, words: &[Raw], operator: &str) -> bool {
        let Some(one) = self.within.last_mut() else { return false };
        let CompoundKind::Case { text, place: place @ CasePlace::Patterns(_) } = &mut one.kind else {
            return false;
        };
        let (CasePlace::Patterns(before), [word]) = (*place, words) else {
            return operator == "(" && words.is_empty();
        };
        let like = or(before, conditions::is_like(text.as_deref(), word));
        match operator {
            "|" => *place = CasePlace::Patterns(like),
            ")" => {
                *place = CasePlace::Commands;
                one.branch(like);
            }
            _ => return false,
        }
        true
    }

    /// Keeps the here-documents that the last command wrote to files.
    fn write(&mut self, lexer: &mut Lexer) -> Result<(), InputError> {
        let (targets, documents) = (std::mem::take(&mut lexer.targets), std::mem::take(&mut lexer.documents));
        if self.within.iter().any(|one| one.runs == Some(false)) {
            return Ok(());
        }
        for (target, (document, literal)) in targets.iter().zip(documents) {
            let name = self.variables.whole(target)?.text();
            let text = match literal {
                true => document,
                false => self.variables.whole(&Lexer::new(&document, 1).whole(false)?)?.json(),
            };
            self.written.insert(name, text);
        }
        Ok(())
    }

    /// Begins a compound command.
    fn enter(&mut self, kind: CompoundKind) -> Result<(), InputError> {
        self.variables.in_function |= kind == CompoundKind::Function;
        self.within.push(Compound::new(kind));
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
        self.variables.in_function = self.is_in_function();
    }

    fn is_in_function(&self) -> bool {
        self.within.iter().any(|one| one.kind == CompoundKind::Function)
    }

    /// The place in which an assignment may not run.
    fn uncertain(&self, runs: Option<bool>) -> Option<&'static str> {
        if self.variables.in_function {
            Some("function")
        } else if runs != Some(true) || self.within.iter().any(|one| one.runs != Some(true)) {
            Some("branch")
        } else {
            None
        }
    }

    /// The keyword `then`, `elif` or `else`.
    fn branch(&mut self, word: &str) {
        let Some(one) = self.within.last_mut() else { return };
        match (word, &one.kind) {
            ("then", CompoundKind::Condition(value)) => {
                let value = *value;
                one.branch(value);
                one.kind = CompoundKind::If;
            }
            ("else", CompoundKind::If) => one.branch(Some(true)),
            ("elif", CompoundKind::If) => {
                one.kind = CompoundKind::Condition(None);
                one.runs = one.ran.map(|ran| !ran);
            }
            _ => {}
        }
    }

    /// Reads a command; `runs` is whether it runs. Returns its value as a condition.
    fn command(
        &mut self,
        mut words: &[Raw],
        runs: Option<bool>,
        depth: usize,
    ) -> Result<Option<bool>, InputError> {
        let mut negated = false;
        while let Some((word, rest)) = words.split_first().and_then(|(word, rest)| Some((word.bare()?, rest)))
        {
            match word {
                "if" => {
                    self.enter(CompoundKind::Condition(None))?;
                    let one = self.within.last_mut().expect("it was just entered");
                    (one.runs, one.ran) = (runs, runs.map(|runs| !runs));
                }
                "while" | "until" => self.enter(CompoundKind::Other)?,
                "{" => self.enter(CompoundKind::Function)?,
                "case" => {
                    let text = rest.first().map(|word| self.variables.whole(word)).transpose()?;
                    let place = CasePlace::Patterns(Some(false));
                    let text = text.and_then(|text| text.known());
                    self.enter(CompoundKind::Case { text, place })?;
                    self.within.last_mut().expect("it was just entered").ran = runs.map(|runs| !runs);
                    return Ok(None);
                }
                "for" | "select" => {
                    self.enter(CompoundKind::Other)?;
                    if let Some(name) = rest.first().and_then(Raw::bare) {
                        let why = format!("is set by a loop on line {}", rest[0].line);
                        self.variables.forget(name, why, rest.iter().any(Raw::starts_with_flag));
                    }
                    return Ok(None);
                }
                "fi" | "done" | "esac" | "}" => self.leave(),
                "then" | "else" | "elif" => self.branch(word),
                "!" => negated = !negated,
                "do" | "time" | "exec" | "eval" | "nohup" => {}
                "function" => {
                    words = rest.get(1..).unwrap_or_default();
                    continue;
                }
                _ => break,
            }
            words = rest;
        }
        // A branch that does not run.
        if runs == Some(false) || self.within.iter().any(|one| one.runs == Some(false)) {
            let assigned = words.iter().filter_map(|word| word.assigns.as_ref());
            self.variables.skipped.extend(assigned.map(|one| one.name.clone()));
            return Ok(None);
        }
        let value = self.simple(words, runs, depth)?;
        Ok(if negated { value.map(|value| !value) } else { value })
    }

    /// Reads a command without keywords.
    fn simple(
        &mut self,
        words: &[Raw],
        runs: Option<bool>,
        depth: usize,
    ) -> Result<Option<bool>, InputError> {
        if let Some(value) = conditions::value(words, &mut self.variables)? {
            return Ok(Some(value));
        }
        let uncertain = self.uncertain(runs);
        let declares = ["export", "declare", "typeset", "local", "readonly"];
        if words.first().and_then(Raw::bare).is_some_and(|word| declares.contains(&word)) {
            for word in words {
                if words[0].bare() == Some("export") {
                    let exported = word.assigns.as_ref().map(|one| one.name.as_str()).or(word.bare());
                    self.variables.exported.extend(exported.map(str::to_owned));
                }
                self.variables.assign(word, uncertain)?;
            }
            return Ok(Some(true));
        }
        if words.iter().all(|word| word.assigns.is_some()) {
            words.iter().try_for_each(|word| self.variables.assign(word, uncertain))?;
            return Ok(Some(true));
        }
        match words.first().and_then(Raw::bare) {
            Some(name @ ("read" | "unset" | "mapfile" | "readarray")) => {
                let why = format!("is set by `{name}` on line {}", words[0].line);
                for name in words[1..].iter().filter_map(Raw::bare).filter(|name| !name.starts_with('-')) {
                    self.variables.forget(name, why.clone(), false);
                }
                return Ok(None);
            }
            Some("set") if words.iter().any(|word| word.bare() == Some("--")) => {
                let why = format!("is set by `set` on line {}", words[0].line);
                self.variables.forget("@", why, true);
                return Ok(None);
            }
            Some("shift") => {
                let count = words.get(1).and_then(Raw::bare).and_then(|text| text.parse().ok()).unwrap_or(1);
                let count = self.variables.arguments.len().min(count);
                self.variables.arguments.drain(..count);
                return Ok(None);
            }
            Some("source" | ".") if words.len() > 1 => return self.source(&words[1..], depth),
            Some(name) if OTHERS.contains(&name) => return Ok(None),
            _ => {}
        }
        // Variables before a command belong to its environment.
        let first = words.iter().position(|word| word.assigns.is_none()).unwrap_or(0);
        let line = words.get(first).map_or(1, |word| word.line);
        if self.started(words, line)? {
            return Ok(None);
        }
        let mut command = ShellCommand { words: Vec::new(), line, environment: BTreeMap::new() };
        for word in &words[..first] {
            if let Some(Assigns { name, .. }) = &word.assigns {
                command.environment.insert(name.clone(), self.variables.whole(word)?.text());
            }
        }
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
                    self.variables.in_function = self.is_in_function();
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
        Ok(None)
    }

    /// The content of another script, if it is there.
    fn other(&mut self, word: &Word) -> Option<String> {
        if self.depth >= DEEPEST || self.opened >= MOST_OPENED {
            return None;
        }
        let text = word.text();
        // A folder that only the script knows is taken for the one that it is in.
        let name = match text.rsplit_once('/') {
            Some((folder, name)) if folder.contains('$') => name,
            _ => text.as_str(),
        };
        let name = name.strip_prefix("./").unwrap_or(name);
        if name.is_empty() || name.contains('$') {
            return None;
        }
        self.opened += 1;
        (self.open)(name).ok()
    }

    /// `source FILE ARGUMENTS`
    fn source(&mut self, words: &[Raw], depth: usize) -> Result<Option<bool>, InputError> {
        let word = self.variables.whole(&words[0])?;
        let Some(text) = self.other(&word) else { return Ok(None) };
        self.depth += 1;
        // What it assigns is as certain as the command itself.
        let within = self.within.clone();
        let read = self.run(Lexer::new(&text, 1), depth);
        self.within = within;
        self.depth -= 1;
        read.map_err(|error| error.in_file(&word.text()))?;
        Ok(Some(true))
    }

    /// Another script that a command starts, with its arguments: `bash train.sh 8`, `./train.sh 8`.
    fn started(&mut self, words: &[Raw], line: usize) -> Result<bool, InputError> {
        let first = words.iter().position(|word| word.assigns.is_none()).unwrap_or(0);
        let mut expanded = Vec::new();
        for word in &words[first..] {
            expanded.extend(self.variables.expand(word)?);
        }
        let texts: Vec<String> = expanded.iter().take(2).map(Word::text).collect();
        let at = match texts.first().map(String::as_str) {
            Some("bash" | "sh" | "zsh") => 1,
            _ => 0,
        };
        if !texts.get(at).is_some_and(|name| name.ends_with(".sh") || (at == 1 && !name.starts_with('-'))) {
            return Ok(false);
        }
        let Some(text) = self.other(&expanded[at]) else { return Ok(false) };
        let mut variables = self.variables.inherited();
        for word in &words[..first] {
            variables.assign(word, None)?;
            variables.exported.extend(word.assigns.iter().map(|one| one.name.clone()));
        }
        variables.arguments = expanded.split_off(at + 1);
        let mut script = Script {
            variables,
            commands: Vec::new(),
            within: Vec::new(),
            open: self.open,
            written: BTreeMap::new(),
            opened: self.opened,
            depth: self.depth + 1,
        };
        script.slurm(&text);
        let read = script.run(Lexer::new(&text, 1), 0);
        self.opened = script.opened;
        read.map_err(|error| error.in_file(&format!("{} on line {line}", expanded[at].text())))?;
        self.commands.append(&mut script.commands);
        self.written.append(&mut script.written);
        Ok(true)
    }
}
