//! The words and operators of a shell script, before any variable is replaced.
//!
//! The reader is our own because it reads files of strangers: brush-parser 0.4 ends the process by a stack
//! overflow on deeply nested `$(…)`, and this one has no recursion. It also reads what no shell runs: files
//! with only arguments, and placeholders such as `<PATH>`.

use autodist_spec::InputError;

/// A word as it is in the script.
#[derive(Debug, Default)]
pub struct Raw {
    pub pieces: Vec<Piece>,
    pub line: usize,
    /// For `NAME=…` and `NAME+=…`.
    pub assigns: Option<Assigns>,
}

#[derive(Debug)]
pub struct Assigns {
    pub name: String,
    pub adds: bool,
    /// The elements of an array.
    pub list: Option<Vec<Raw>>,
}

#[derive(Debug)]
pub enum Piece {
    Text { text: String, quoted: bool },
    Variable { text: String, name: String, list: bool, quoted: bool, kind: Kind },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Plain,
    /// With another word, as in `${NAME:-8}`: the operator is one of `-`, `=`, `+` and `?`.
    Otherwise {
        operator: char,
        /// Whether an empty value counts as none.
        empty: bool,
        word: String,
    },
    /// `$((…))`
    Arithmetic(String),
    /// The output of a command, or a part of a value.
    Other,
}

impl Raw {
    pub fn of_text(text: &str, line: usize) -> Self {
        let text = text.to_owned();
        Self { pieces: vec![Piece::Text { text, quoted: false }], line, assigns: None }
    }

    /// The word, if it has no quotes and no variables.
    pub fn bare(&self) -> Option<&str> {
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

    pub fn starts_with_flag(&self) -> bool {
        matches!(self.pieces.first(), Some(Piece::Text { text, .. }) if text.trim_start().starts_with("--"))
    }

    /// Whether it is a pattern: it has a `*`, `?` or `[` outside quotes.
    pub fn has_unquoted_wildcards(&self) -> bool {
        let wild = |piece: &Piece| match piece {
            Piece::Text { text, quoted } => !quoted && text.contains(['*', '?', '[']),
            Piece::Variable { .. } => false,
        };
        self.pieces.iter().any(wild)
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.assigns.is_none()
    }
}

pub enum Token {
    Word(Raw),
    /// The end of a command.
    Operator(&'static str),
}

pub struct Lexer {
    letters: Vec<char>,
    at: usize,
    line: usize,
    /// Words that end the here-documents after the next line break, and whether their text is literal.
    here: Vec<(String, bool)>,
    /// Texts of the here-documents of the last line, and whether they are literal.
    pub documents: Vec<(String, bool)>,
    /// Files to which the last command writes.
    pub targets: Vec<Raw>,
    /// Whether it is inside an array: arrays do not nest.
    in_array: bool,
}

fn unclosed(what: &str) -> InputError {
    InputError::new("", "", format!("has an opening {what} without a closing one"))
        .hint("give a file with only the arguments, as --flag value")
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

impl Lexer {
    pub fn new(text: &str, line: usize) -> Self {
        // Windows files end their lines with two characters.
        Self {
            letters: text.replace("\r\n", "\n").chars().collect(),
            at: 0,
            line,
            here: Vec::new(),
            documents: Vec::new(),
            targets: Vec::new(),
            in_array: false,
        }
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

    pub fn token(&mut self) -> Result<Option<Token>, InputError> {
        loop {
            let Some(letter) = self.peek() else { return Ok(None) };
            if self.follows("\\\n") {
                self.next();
                self.next();
                continue;
            }
            if letter == '\n' {
                self.next();
                self.here_documents();
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
        let writes = self.peek() == Some('>');
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
            if word.starts_with_flag() {
                // Otherwise `<PATH TO DATA> --flag` would lose the flag.
                let problem = format!("has a redirection before a flag on line {}", self.line);
                return Err(InputError::new("", "", problem).hint("replace what is in <> by its value"));
            }
            if text {
                let piece = |piece: &Piece| match piece {
                    Piece::Text { text, .. } | Piece::Variable { text, .. } => text.clone(),
                };
                let literal =
                    word.pieces.iter().any(|piece| matches!(piece, Piece::Text { quoted: true, .. }));
                self.here.push((word.pieces.iter().map(piece).collect(), literal));
            } else if writes {
                self.targets.push(word);
            }
        }
        Ok(())
    }

    /// Reads the here-documents (`<<EOF`) of the line that has just ended.
    fn here_documents(&mut self) {
        for (end, literal) in std::mem::take(&mut self.here) {
            let mut document = String::new();
            while self.peek().is_some() {
                let mut line = String::new();
                while let Some(letter) = self.next().filter(|letter| *letter != '\n') {
                    line.push(letter);
                }
                if line.trim() == end {
                    break;
                }
                document += &line;
                document.push('\n');
            }
            self.documents.push((document, literal));
        }
    }

    /// All of the text as one word in quotes: a here-document, or, with `unquote`, the word in `${NAME:-word}`.
    pub fn whole(mut self, unquote: bool) -> Result<Raw, InputError> {
        let mut word = Raw { line: self.line, ..Raw::default() };
        while let Some(letter) = self.peek() {
            match letter {
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') | None => {}
                        Some(letter @ ('$' | '`' | '\\')) => word.push(letter, true),
                        Some(letter) => {
                            if !(unquote && letter == '"') {
                                word.push('\\', true);
                            }
                            word.push(letter, true);
                        }
                    }
                }
                '"' | '\'' if unquote => {
                    self.next();
                }
                '`' => word.pieces.push(self.output(true)?),
                '$' => self.variable(&mut word, true)?,
                letter => {
                    self.next();
                    word.push(letter, true);
                }
            }
        }
        Ok(word)
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
        if self.in_array {
            return Err(InputError::new(
                "",
                "",
                format!("has an array inside an array on line {}", self.line),
            )
            .hint("give a file with only the arguments, as --flag value"));
        }
        self.in_array = true;
        self.next();
        let mut list = Vec::new();
        loop {
            match self.token()?.ok_or_else(|| unclosed("bracket"))? {
                Token::Operator(")") => break,
                Token::Operator(_) => {}
                Token::Word(word) => list.push(word),
            }
        }
        self.in_array = false;
        Ok(list)
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
                let inner = self.balanced('(', ')')?;
                text += &inner;
                let arithmetic = inner.strip_prefix("((").and_then(|rest| rest.strip_suffix("))"));
                let outer =
                    || inner[1..inner.len() - 1].trim().strip_prefix("expr ").map(|e| e.replace('\\', ""));
                kind = match arithmetic.map(str::to_owned).or_else(outer) {
                    Some(expression) => Kind::Arithmetic(expression),
                    None => Kind::Other,
                };
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
                    rest => {
                        let (empty, after) = match rest.strip_prefix(':') {
                            Some(after) => (true, after),
                            None => (false, rest),
                        };
                        match after.chars().next() {
                            Some(operator @ ('-' | '=' | '+' | '?')) => {
                                Kind::Otherwise { operator, empty, word: after[1..].to_owned() }
                            }
                            _ => Kind::Other,
                        }
                    }
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
