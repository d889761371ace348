//! The commands of a shell script, with variables replaced where their values are known without running it.

mod conditions;
mod lexer;
mod variables;

pub use variables::{Open, Word};

use autodist_spec::InputError;
use conditions::{and, or};
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
    within: Vec<Compound>,
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
            let mut assigned = words.iter().filter(|word| word.assigns.is_some());
            assigned.try_for_each(|word| self.variables.assign(word, uncertain))?;
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
            Some(name) if OTHERS.contains(&name) => return Ok(None),
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
}
