//! The commands of a shell script, with variables replaced where their values are known without running it.

use autodist_spec::{InputError, text};
use std::collections::BTreeMap;

/// Maximum bytes of all variables that are replaced.
const LARGEST: usize = 16 << 20;
/// Maximum depth of commands in quotes, as in `bash -c "…"`.
const DEEPEST: usize = 4;
/// Maximum compound commands within each other.
const MOST_WITHIN: usize = 100;
/// Commands whose arguments are no settings.
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

/// A word of a command, whose variables were replaced where they are known.
#[derive(Debug, Clone, Default)]
pub struct Word(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Known(String),
    Open(Open),
}

/// What is known only when the script runs.
#[derive(Debug, Clone)]
pub struct Open {
    pub text: String,
    pub why: String,
    /// Whether it is a list, or holds flags where it is assigned.
    pub several: bool,
    /// Whether it is outside quotes, so that it may become several words, or none.
    pub bare: bool,
}

impl Word {
    /// As in the script where a variable is not known.
    pub fn text(&self) -> String {
        let part = |part: &Part| match part {
            Part::Known(text) => text.clone(),
            Part::Open(open) => open.text.clone(),
        };
        self.0.iter().map(part).collect()
    }

    /// The variable of which the word consists, if it is not known.
    pub fn open(&self) -> Option<&Open> {
        match self.0.as_slice() {
            [Part::Open(open)] => Some(open),
            _ => None,
        }
    }

    fn is_flag(&self) -> bool {
        matches!(self.0.first(), Some(Part::Known(text)) if text.trim_start().starts_with("--"))
    }

    fn bytes(&self) -> usize {
        let part = |part: &Part| match part {
            Part::Known(text) => text.len(),
            Part::Open(open) => open.text.len() + open.why.len(),
        };
        1 + self.0.iter().map(part).sum::<usize>()
    }
}

/// A word as it is in the script.
#[derive(Debug, Default)]
struct Raw {
    pieces: Vec<Piece>,
    line: usize,
    /// For `NAME=…` and `NAME+=…`.
    assigns: Option<Assigns>,
}

#[derive(Debug)]
struct Assigns {
    name: String,
    adds: bool,
    /// The elements of an array.
    list: Option<Vec<Raw>>,
}

#[derive(Debug)]
enum Piece {
    Text { text: String, quoted: bool },
    Variable { text: String, name: String, list: bool, quoted: bool, kind: Kind },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// With a default, as in `${NAME:-8}`.
    Default,
    /// The output of a command, arithmetic, or a part of a value.
    Other,
}

impl Raw {
    /// The word, if it is one without quotes and variables.
    fn bare(&self) -> Option<&str> {
        match (self.pieces.as_slice(), &self.assigns) {
            ([Piece::Text { text, quoted: false }], None) => Some(text),
            _ => None,
        }
    }

    fn push(&mut self, letter: char, in_quotes: bool) {
        match self.pieces.last_mut() {
            Some(Piece::Text { text, quoted }) if *quoted == in_quotes => text.push(letter),
            _ => self.pieces.push(Piece::Text { text: letter.to_string(), quoted: in_quotes }),
        }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.assigns.is_none()
    }
}

enum Token {
    Word(Raw),
    /// What ends a command.
    Operator(&'static str),
}

struct Reader {
    letters: Vec<char>,
    at: usize,
    line: usize,
    /// Words that end the texts after the next line break.
    here: Vec<String>,
}

fn unclosed(what: &str) -> InputError {
    InputError::new("", "", format!("has an opening {what} without a closing one"))
        .hint("give a file with only the arguments, as --flag value")
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

impl Reader {
    fn new(text: &str, line: usize) -> Self {
        // Windows files end their lines with two characters.
        Self { letters: text.replace("\r\n", "\n").chars().collect(), at: 0, line, here: Vec::new() }
    }

    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn follows(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, letter)| self.letters.get(self.at + index) == Some(&letter))
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += 1;
        self.line += usize::from(letter == '\n');
        Some(letter)
    }

    fn token(&mut self) -> Result<Option<Token>, InputError> {
        loop {
            let Some(letter) = self.peek() else { return Ok(None) };
            if self.follows("\\\n") {
                self.next();
                self.next();
                continue;
            }
            if letter == '\n' {
                self.next();
                self.skip_texts();
                return Ok(Some(Token::Operator("\n")));
            }
            if letter.is_whitespace() {
                self.next();
                continue;
            }
            if letter == '#' {
                while self.peek().is_some_and(|letter| letter != '\n') {
                    self.next();
                }
                continue;
            }
            if self.follows("&>") || letter == '>' || letter == '<' {
                self.redirection()?;
                continue;
            }
            for operator in ["&&", "||", ";;", "|&", "|", "&", ";", "(", ")"] {
                if self.follows(operator) {
                    self.at += operator.len();
                    return Ok(Some(Token::Operator(operator)));
                }
            }
            let word = self.word()?;
            // The number of a redirected stream.
            let number = word.bare().is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            if number && self.peek().is_some_and(|letter| letter == '>' || letter == '<') {
                continue;
            }
            return Ok(Some(Token::Word(word)));
        }
    }

    fn redirection(&mut self) -> Result<(), InputError> {
        let text = self.follows("<<") && !self.follows("<<<");
        while self.peek().is_some_and(|letter| "<>&|".contains(letter) || (text && letter == '-')) {
            self.next();
        }
        while self.peek().is_some_and(|letter| letter == ' ' || letter == '\t') {
            self.next();
        }
        if self.peek() == Some('(') {
            self.balanced('(', ')')?;
        } else {
            let word = self.word()?;
            if starts_with_flag(&word) {
                // Otherwise `<PATH TO DATA> --flag` would lose the flag.
                let problem = format!("has a redirection before a flag on line {}", self.line);
                return Err(InputError::new("", "", problem).hint("replace what is in <> by its value"));
            }
            if text {
                let piece = |piece: &Piece| match piece {
                    Piece::Text { text, .. } | Piece::Variable { text, .. } => text.clone(),
                };
                self.here.push(word.pieces.iter().map(piece).collect());
            }
        }
        Ok(())
    }

    /// Skips the texts (`<<EOF`) of the line that has just ended.
    fn skip_texts(&mut self) {
        for end in std::mem::take(&mut self.here) {
            while self.peek().is_some() {
                let mut line = String::new();
                while let Some(letter) = self.next().filter(|letter| *letter != '\n') {
                    line.push(letter);
                }
                if line.trim() == end {
                    break;
                }
            }
        }
    }

    /// Reads from one bracket to the matching one, and returns all of it.
    fn balanced(&mut self, opening: char, closing: char) -> Result<String, InputError> {
        let (mut text, mut depth, mut quote) = (String::new(), 0_usize, None);
        while let Some(letter) = self.next() {
            text.push(letter);
            match (quote, letter) {
                (Some('\''), '\\') => {}
                (_, '\\') => text.extend(self.next()),
                (None, '\'' | '"') => quote = Some(letter),
                (Some(open), letter) if letter == open => quote = None,
                (None, letter) if letter == opening => depth += 1,
                (None, letter) if letter == closing => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(text);
                    }
                }
                _ => {}
            }
        }
        Err(unclosed("bracket"))
    }

    fn word(&mut self) -> Result<Raw, InputError> {
        let mut word = Raw { line: self.line, ..Raw::default() };
        while let Some(letter) = self.peek() {
            if letter.is_whitespace() || ";&|()<>".contains(letter) {
                break;
            }
            match letter {
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') | None => {}
                        Some(letter) => word.push(letter, true),
                    }
                }
                '\'' => {
                    self.next();
                    word.pieces.push(Piece::Text { text: String::new(), quoted: true });
                    loop {
                        match self.next().ok_or_else(|| unclosed("quote"))? {
                            '\'' => break,
                            letter => word.push(letter, true),
                        }
                    }
                }
                '"' => self.in_quotes(&mut word)?,
                '`' => word.pieces.push(self.output(false)?),
                '$' => self.variable(&mut word, false)?,
                '=' if word.assigns.is_none() => {
                    self.next();
                    let bare = word.bare().unwrap_or_default();
                    let name = bare.strip_suffix('+').unwrap_or(bare);
                    let starts =
                        name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
                    if starts && name.chars().all(is_name) {
                        let (name, adds) = (name.to_owned(), name.len() < bare.len());
                        word.pieces.clear();
                        let list = if self.peek() == Some('(') { Some(self.list()?) } else { None };
                        word.assigns = Some(Assigns { name, adds, list });
                    } else {
                        word.push('=', false);
                    }
                }
                letter => {
                    self.next();
                    word.push(letter, false);
                }
            }
        }
        Ok(word)
    }

    fn list(&mut self) -> Result<Vec<Raw>, InputError> {
        self.next();
        let mut list = Vec::new();
        loop {
            match self.token()?.ok_or_else(|| unclosed("bracket"))? {
                Token::Operator(")") => return Ok(list),
                Token::Operator(_) => {}
                Token::Word(word) => list.push(word),
            }
        }
    }

    fn in_quotes(&mut self, word: &mut Raw) -> Result<(), InputError> {
        self.next();
        let list = self.follows("${") || self.follows("$@");
        if !list {
            // An empty text is a word, too.
            word.pieces.push(Piece::Text { text: String::new(), quoted: true });
        }
        loop {
            match self.peek().ok_or_else(|| unclosed("quote"))? {
                '"' => {
                    self.next();
                    return Ok(());
                }
                '\\' => {
                    self.next();
                    match self.next().ok_or_else(|| unclosed("quote"))? {
                        '\n' => {}
                        letter @ ('$' | '`' | '"' | '\\') => word.push(letter, true),
                        letter => {
                            word.push('\\', true);
                            word.push(letter, true);
                        }
                    }
                }
                '`' => word.pieces.push(self.output(true)?),
                '$' => self.variable(word, true)?,
                letter => {
                    self.next();
                    word.push(letter, true);
                }
            }
        }
    }

    /// `…` in backquotes.
    fn output(&mut self, quoted: bool) -> Result<Piece, InputError> {
        let mut text: String = self.next().into_iter().collect();
        loop {
            let letter = self.next().ok_or_else(|| unclosed("quote"))?;
            text.push(letter);
            match letter {
                '\\' => text.extend(self.next()),
                '`' => {
                    let name = String::new();
                    return Ok(Piece::Variable { text, name, list: false, quoted, kind: Kind::Other });
                }
                _ => {}
            }
        }
    }

    fn variable(&mut self, word: &mut Raw, quoted: bool) -> Result<(), InputError> {
        self.next();
        let (mut name, mut text, mut list, mut kind) = (String::new(), "$".to_owned(), false, Kind::Plain);
        match self.peek() {
            Some('(') => {
                text += &self.balanced('(', ')')?;
                kind = Kind::Other;
            }
            Some('{') => {
                let inner = self.balanced('{', '}')?;
                text += &inner;
                let inner = &inner[1..inner.len() - 1];
                let end = match inner.chars().next() {
                    Some('@' | '*') => 1,
                    _ => inner.find(|letter| !is_name(letter)).unwrap_or(inner.len()),
                };
                name = inner[..end].to_owned();
                let rest = &inner[end..];
                list = rest == "[@]" || rest == "[*]" || name == "@" || name == "*";
                kind = match rest {
                    _ if name.is_empty() => Kind::Other,
                    "" | "[@]" => Kind::Plain,
                    "[*]" => {
                        list = !quoted;
                        if quoted { Kind::Other } else { Kind::Plain }
                    }
                    rest if rest.starts_with(":-") || rest.starts_with(":=") || rest.starts_with(":?") => {
                        Kind::Default
                    }
                    _ => Kind::Other,
                };
            }
            Some(letter @ ('@' | '*' | '#' | '?' | '$' | '!' | '-' | '0'..='9')) => {
                self.next();
                name.push(letter);
                text.push(letter);
                list = letter == '@' || letter == '*';
            }
            Some('\'' | '"') if !quoted => return Ok(()),
            Some(letter) if is_name(letter) => {
                while let Some(letter) = self.peek().filter(|letter| is_name(*letter)) {
                    self.next();
                    name.push(letter);
                }
                text += &name;
            }
            _ => {
                word.push('$', quoted);
                return Ok(());
            }
        }
        if quoted && !list {
            word.pieces.push(Piece::Text { text: String::new(), quoted: true });
        }
        word.pieces.push(Piece::Variable { text, name, list, quoted, kind });
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Value {
    Text(Word),
    List(Vec<Word>),
}

#[derive(Debug)]
struct Variable {
    /// Or why it is not known.
    value: Result<Value, String>,
    /// Whether one of its values starts with a flag.
    flags: bool,
}

#[derive(Default)]
struct Script {
    /// In the order in which they were assigned.
    names: Vec<String>,
    variables: BTreeMap<String, Variable>,
    commands: Vec<ShellCommand>,
    /// The compound commands that are open.
    within: Vec<&'static str>,
    /// Bytes of replaced variables.
    spent: usize,
}

/// The commands of a script or of a file with only arguments. Without any, its variables are the arguments.
///
/// # Errors
/// If quotes or brackets do not close, or variables are too long.
pub fn commands(text: &str) -> Result<Vec<ShellCommand>, InputError> {
    let mut script = Script::default();
    script.run(Reader::new(text, 1), 0)?;
    let has_flags = |command: &ShellCommand| command.words.iter().any(|word| word.text().starts_with("--"));
    if !script.commands.iter().any(|command| has_flags(command) || command.program().is_some()) {
        for name in std::mem::take(&mut script.names) {
            let words = match script.variables.get(&name) {
                Some(Variable { flags: true, .. }) => {
                    let text = format!("${name}");
                    let piece = Piece::Variable { text, name, list: true, quoted: false, kind: Kind::Plain };
                    script.expand(&Raw { pieces: vec![piece], ..Raw::default() })?
                }
                _ => continue,
            };
            script.commands.push(ShellCommand { words, line: 1 });
        }
    }
    Ok(script.commands)
}

impl Script {
    fn run(&mut self, mut reader: Reader, depth: usize) -> Result<(), InputError> {
        let (mut words, mut before): (Vec<Raw>, _) = (Vec::new(), "");
        loop {
            let operator = match reader.token()? {
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
                ")" if self.within.last() == Some(&"(") => {
                    self.within.pop();
                }
                _ => {}
            }
            before = operator;
        }
    }

    /// Begins a compound command.
    fn enter(&mut self, what: &'static str) -> Result<(), InputError> {
        self.within.push(what);
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

    fn in_function(&self) -> bool {
        self.within.contains(&"{")
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
                        self.set(name.to_owned(), Err(why), rest.iter().any(starts_with_flag));
                    }
                    return Ok(());
                }
                "fi" | "done" | "esac" | "}" => {
                    self.within.pop();
                }
                "then" | "else" | "elif" | "do" | "!" | "time" | "exec" | "eval" | "nohup" => {}
                "function" => {
                    words = rest.get(1..).unwrap_or_default();
                    continue;
                }
                _ => break,
            }
            words = rest;
        }
        let declares = ["export", "declare", "typeset", "local", "readonly"];
        if words.first().and_then(Raw::bare).is_some_and(|word| declares.contains(&word)) {
            let mut assigned = words.iter().filter(|word| word.assigns.is_some());
            return assigned.try_for_each(|word| self.assign(word, branch));
        }
        if words.iter().all(|word| word.assigns.is_some()) {
            return words.iter().try_for_each(|word| self.assign(word, branch));
        }
        match words.first().and_then(Raw::bare) {
            Some(name @ ("read" | "unset" | "mapfile" | "readarray")) => {
                let why = format!("is set by `{name}` on line {}", words[0].line);
                for name in words[1..].iter().filter_map(Raw::bare).filter(|name| !name.starts_with('-')) {
                    self.set(name.to_owned(), Err(why.clone()), false);
                }
                return Ok(());
            }
            Some("set") if words.iter().any(|word| word.bare() == Some("--")) => {
                let why = format!("is set by `set` on line {}", words[0].line);
                self.set("@".to_owned(), Err(why), true);
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
            for word in self.expand(word)? {
                let text = word.text();
                // A command line in quotes, as in `bash -c "…"`.
                let quoted = !value && !text.starts_with("--") && text.contains(" --");
                if quoted && depth < DEEPEST {
                    let (within, before) = (self.within.clone(), self.commands.len());
                    let read = self.run(Reader::new(&text, line), depth + 1);
                    self.within = within;
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

    fn set(&mut self, name: String, value: Result<Value, String>, flags: bool) {
        let flags = flags || self.variables.get(&name).is_some_and(|known| known.flags);
        if !self.variables.contains_key(&name) {
            self.names.push(name.clone());
        }
        self.variables.insert(name, Variable { value, flags });
    }

    fn assign(&mut self, word: &Raw, branch: bool) -> Result<(), InputError> {
        let Some(Assigns { name, adds, list }) = &word.assigns else { return Ok(()) };
        let new = match list {
            Some(list) => {
                let mut words = Vec::new();
                for word in list {
                    words.extend(self.expand(word)?);
                }
                Value::List(words)
            }
            // Without quotes, too, it stays one word.
            None => Value::Text(self.whole(word)?),
        };
        let flags = match &new {
            Value::Text(word) => word.is_flag(),
            Value::List(words) => words.iter().any(Word::is_flag),
        };
        let value = if branch || !self.within.is_empty() {
            let place = if self.in_function() { "function" } else { "branch" };
            Err(format!("is assigned in a {place} on line {}", word.line))
        } else if *adds {
            match (self.variables.remove(name).map(|known| (known.value, known.flags)), new) {
                (Some((Ok(Value::List(mut all)), old)), Value::List(more)) => {
                    all.extend(more);
                    return self.put_back(name, Ok(Value::List(all)), flags || old);
                }
                (Some((Ok(Value::Text(mut all)), old)), Value::Text(more)) => {
                    all.0.extend(more.0);
                    return self.put_back(name, Ok(Value::Text(all)), flags || old);
                }
                (None, new) => Ok(new),
                (Some((Err(why), old)), _) => return self.put_back(name, Err(why), flags || old),
                (Some((_, old)), _) => {
                    let why = format!("is both a text and an array on line {}", word.line);
                    return self.put_back(name, Err(why), flags || old);
                }
            }
        } else {
            Ok(new)
        };
        self.set(name.clone(), value, flags);
        Ok(())
    }

    fn put_back(&mut self, name: &str, value: Result<Value, String>, flags: bool) -> Result<(), InputError> {
        self.variables.insert(name.to_owned(), Variable { value, flags });
        Ok(())
    }

    /// The words of a variable, or why they are not known.
    fn value(&self, name: &str, list: bool, kind: Kind) -> Result<&[Word], Open> {
        let open = |why: &str, several: bool| Open {
            text: String::new(),
            why: why.to_owned(),
            several,
            bare: false,
        };
        if kind == Kind::Other {
            return Err(open("is known only when the script runs", list));
        }
        match (name, self.variables.get(if name == "*" { "@" } else { name })) {
            ("@" | "*", _) if self.in_function() => Err(open("holds the arguments of a function", true)),
            // The script is priced as it is, without arguments.
            ("@" | "*", None) => Ok(&[]),
            (_, Some(Variable { value: Ok(value), .. })) => match value {
                Value::Text(word) if kind == Kind::Default && word.0.is_empty() => {
                    Err(open("is empty, so that its default is used", false))
                }
                Value::Text(word) => Ok(std::slice::from_ref(word)),
                Value::List(words) if list => Ok(words),
                // The first element.
                Value::List(words) => Ok(&words[..words.len().min(1)]),
            },
            (_, Some(Variable { value: Err(why), flags })) => Err(open(why, *flags || list)),
            (_, None) => Err(open("is not assigned in the script", list)),
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), InputError> {
        self.spent += bytes;
        if self.spent > LARGEST {
            return Err(InputError::new("", "", format!("has more than {LARGEST} bytes of keys and values"))
                .hint("give a file with only the arguments, as --flag value"));
        }
        Ok(())
    }

    /// The word as one, as if it were in quotes.
    fn whole(&mut self, raw: &Raw) -> Result<Word, InputError> {
        let mut all = Word::default();
        for (index, word) in self.fields(raw, true)?.into_iter().enumerate() {
            if index > 0 {
                all.0.push(Part::Known(" ".to_owned()));
            }
            all.0.extend(word.0);
        }
        Ok(all)
    }

    /// The words that a word becomes.
    fn expand(&mut self, raw: &Raw) -> Result<Vec<Word>, InputError> {
        let mut words = self.fields(raw, false)?;
        if let Some(Assigns { name, adds, .. }) = &raw.assigns {
            // It was an argument such as `key=value`.
            let start = Part::Known(format!("{name}{}=", if *adds { "+" } else { "" }));
            match words.first_mut() {
                Some(word) => word.0.insert(0, start),
                None => words.push(Word(vec![start])),
            }
        }
        Ok(words)
    }

    fn fields(&mut self, raw: &Raw, one: bool) -> Result<Vec<Word>, InputError> {
        let mut words: Vec<Word> = Vec::new();
        // Whether the next part belongs to the last word.
        let mut joins = false;
        let push = |words: &mut Vec<Word>, joins: &mut bool, part: Option<Part>| {
            if !*joins || words.is_empty() {
                words.push(Word::default());
            }
            if let (Some(word), Some(part)) = (words.last_mut(), part) {
                word.0.push(part);
            }
            *joins = true;
        };
        for piece in &raw.pieces {
            let (text, name, list, quoted, kind) = match piece {
                Piece::Text { text, .. } => {
                    let part = (!text.is_empty()).then(|| Part::Known(text.clone()));
                    push(&mut words, &mut joins, part);
                    continue;
                }
                Piece::Variable { text, name, list, quoted, kind } => (text, name, *list, *quoted, *kind),
            };
            let quoted = quoted || one;
            let values = match self.value(name, list, kind) {
                Ok(values) => values,
                Err(open) => {
                    let open = Open { text: text::shown(text, 100), bare: !quoted || list, ..open };
                    push(&mut words, &mut joins, Some(Part::Open(open)));
                    continue;
                }
            };
            let bytes = values.iter().map(Word::bytes).sum();
            let values = if self.spent + bytes > LARGEST { Vec::new() } else { values.to_vec() };
            self.spend(bytes)?;
            for (index, word) in values.into_iter().enumerate() {
                if index > 0 {
                    joins = false;
                }
                if quoted && word.0.is_empty() {
                    push(&mut words, &mut joins, None);
                }
                for part in word.0 {
                    let known = match part {
                        Part::Known(text) => text,
                        Part::Open(open) => {
                            let bare = open.bare || !quoted;
                            push(&mut words, &mut joins, Some(Part::Open(Open { bare, ..open })));
                            continue;
                        }
                    };
                    if quoted || known.is_empty() {
                        push(&mut words, &mut joins, Some(Part::Known(known)));
                        continue;
                    }
                    joins &= !known.starts_with(char::is_whitespace);
                    for field in known.split_whitespace() {
                        push(&mut words, &mut joins, Some(Part::Known(field.to_owned())));
                        joins = false;
                    }
                    joins = !known.ends_with(char::is_whitespace);
                }
            }
        }
        Ok(words)
    }
}

fn starts_with_flag(word: &Raw) -> bool {
    matches!(word.pieces.first(), Some(Piece::Text { text, .. }) if text.trim_start().starts_with("--"))
}
