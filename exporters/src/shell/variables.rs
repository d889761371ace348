//! Variables of a shell script, and the words of its commands with variables replaced where their values are
//! known without running it.

use super::arithmetic;
use super::lexer::{Assigns, Kind, Lexer, Piece, Raw};
use autodist_spec::{InputError, text};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum bytes of all variables that are replaced.
const LARGEST: usize = 16 << 20;
/// Maximum of `${…}` within each other.
const DEEPEST: usize = 20;

/// A word of a command, whose variables were replaced where they are known.
#[derive(Debug, Clone, Default)]
pub struct Word(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Known(String),
    Open(Open),
}

/// A variable or an output that is known only when the script runs.
#[derive(Debug, Clone)]
pub struct Open {
    pub text: String,
    pub why: String,
    /// Whether it is a list, or holds flags where it is assigned.
    pub several: bool,
    /// Whether it is outside quotes, so that it may become several words, or none.
    pub bare: bool,
    /// Flags that begin the values which it may have.
    pub flags: Vec<String>,
    /// Whether it has no value, so that it becomes no word outside quotes.
    pub is_empty: bool,
}

impl Word {
    /// The word, with unknown variables as they are in the script.
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

    /// The text, if all of it is known.
    pub fn known(&self) -> Option<String> {
        self.0.iter().all(|part| matches!(part, Part::Known(_))).then(|| self.text())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn of(text: &str) -> Self {
        Self(vec![Part::Known(text.to_owned())])
    }

    /// The text, in which every unknown variable that begins a value of JSON is in quotes.
    pub fn json(&self) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Known(known) => text += known,
                Part::Open(open) if text.trim_end().ends_with([':', ',', '[']) => {
                    text += &serde_json::Value::from(open.text.as_str()).to_string();
                }
                Part::Open(open) => text += &open.text,
            }
        }
        text
    }

    fn is_flag(&self) -> bool {
        matches!(self.0.first(), Some(Part::Known(text)) if text.trim_start().starts_with("--"))
    }

    /// The flags in it.
    fn flags(&self) -> impl Iterator<Item = String> {
        let text = if self.is_flag() { self.text() } else { String::new() };
        let of = |word: &str| {
            let flag = word.strip_prefix("--")?.split('=').next()?;
            (!flag.is_empty() && !flag.contains('$')).then(|| flag.to_owned())
        };
        text.split_whitespace().filter_map(of).collect::<Vec<_>>().into_iter()
    }

    fn bytes(&self) -> usize {
        let part = |part: &Part| match part {
            Part::Known(text) => text.len(),
            Part::Open(open) => open.text.len() + open.why.len(),
        };
        1 + self.0.iter().map(part).sum::<usize>()
    }
}

#[derive(Debug, Clone)]
enum Value {
    Text(Word),
    List(Vec<Word>),
}

#[derive(Debug, Clone)]
struct Variable {
    /// The value, or the reason why it is not known.
    value: Result<Value, String>,
    /// The flags in the values that it was given; not empty if one of them starts with a flag.
    flags: BTreeSet<String>,
}

/// A variable in a script.
enum State<'a> {
    Known(&'a Value),
    /// Assigned nowhere.
    Unset(&'static str),
    Unknown(&'a str),
}

#[derive(Default)]
pub struct Variables {
    /// In the order in which they were assigned.
    names: Vec<String>,
    known: BTreeMap<String, Variable>,
    /// Bytes of replaced variables.
    spent: usize,
    /// Whether the script is inside a function, whose arguments are not known.
    pub in_function: bool,
    /// The arguments of the script.
    pub arguments: Vec<Word>,
    /// Names of the variables that other scripts see.
    pub exported: BTreeSet<String>,
    /// Names that only branches assign which do not run: without another value, they are empty.
    pub skipped: BTreeSet<String>,
    /// `${…}` within each other that are being replaced.
    depth: usize,
}

impl Variables {
    /// Names of the variables that hold flags, in the order in which they were assigned.
    pub fn with_flags(&self) -> Vec<String> {
        let holds_flags = |name: &&String| self.known.get(*name).is_some_and(|known| !known.flags.is_empty());
        self.names.iter().filter(holds_flags).cloned().collect()
    }

    /// A variable whose value is not known; with `flags` one of its values starts with a flag.
    pub fn forget(&mut self, name: &str, why: String, flags: bool) {
        self.set(name, Err(why), flags.then(String::new).into_iter().collect());
    }

    /// Gives a variable a value, as the environment or another program would.
    pub fn give(&mut self, name: &str, value: &str) {
        self.set(name, Ok(Value::Text(Word::of(value))), BTreeSet::new());
    }

    /// The variables that another script sees which this one starts.
    pub fn inherited(&self) -> Self {
        let known = self.known.iter().filter(|(name, _)| self.exported.contains(*name));
        Self {
            names: self.names.iter().filter(|name| self.exported.contains(*name)).cloned().collect(),
            known: known.map(|(name, variable)| (name.clone(), variable.clone())).collect(),
            exported: self.exported.clone(),
            spent: self.spent,
            ..Self::default()
        }
    }

    fn set(&mut self, name: &str, value: Result<Value, String>, mut flags: BTreeSet<String>) {
        match self.known.get_mut(name) {
            Some(known) => flags.append(&mut known.flags),
            None => self.names.push(name.to_owned()),
        }
        self.known.insert(name.to_owned(), Variable { value, flags });
    }

    /// Assigns a word of the form `NAME=…`; `unknown` is the place (a branch, a function) where it may not run.
    ///
    /// # Errors
    /// The variables are too long.
    pub fn assign(&mut self, word: &Raw, unknown: Option<&str>) -> Result<(), InputError> {
        let Some(Assigns { name, adds, list }) = &word.assigns else { return Ok(()) };
        let new = match list {
            Some(list) => {
                let mut words = Vec::new();
                for word in list {
                    words.extend(self.expand(word)?);
                }
                Value::List(words)
            }
            // Even without quotes, it stays one word.
            None => Value::Text(self.whole(word)?),
        };
        let flags: BTreeSet<String> = match &new {
            Value::Text(word) => word.flags().collect(),
            Value::List(words) => words.iter().flat_map(Word::flags).collect(),
        };
        let value = if let Some(place) = unknown {
            Err(format!("is assigned in a {place} on line {}", word.line))
        } else if *adds {
            let taken = |known: &mut Variable| std::mem::replace(&mut known.value, Err(String::new()));
            match (self.known.get_mut(name).map(taken), new) {
                (None, new) => Ok(new),
                (Some(Err(why)), _) => Err(why),
                (Some(Ok(Value::List(mut all))), Value::List(more)) => {
                    all.extend(more);
                    Ok(Value::List(all))
                }
                (Some(Ok(Value::Text(mut all))), Value::Text(more)) => {
                    all.0.extend(more.0);
                    Ok(Value::Text(all))
                }
                (Some(Ok(_)), _) => Err(format!("is both a text and an array on line {}", word.line)),
            }
        } else {
            Ok(new)
        };
        self.set(name, value, flags);
        Ok(())
    }

    fn state(&self, name: &str) -> State<'_> {
        match self.known.get(name) {
            Some(Variable { value: Ok(value), .. }) => State::Known(value),
            Some(Variable { value: Err(why), .. }) => State::Unknown(why),
            None if name.starts_with(|letter: char| letter.is_ascii_digit()) => State::Unset(
                "is an argument of the script, which is not given: give it behind the file's name",
            ),
            None => State::Unset("is not assigned in the script"),
        }
    }

    /// The argument of the script with this number.
    fn argument(&self, name: &str) -> Option<&Word> {
        self.arguments.get(name.parse::<usize>().ok()?.checked_sub(1)?)
    }

    /// The words of a variable, or why they are not known.
    fn value(&mut self, name: &str, list: bool, kind: &Kind, quoted: bool) -> Result<Vec<Word>, Open> {
        let open = |why: &str, several: bool, flags: Vec<String>| Open {
            text: String::new(),
            why: why.to_owned(),
            several,
            bare: false,
            flags,
            is_empty: false,
        };
        match kind {
            Kind::Plain => {}
            Kind::Otherwise { operator, empty, word } => {
                let is_set = match self.state(name) {
                    State::Unknown(why) if *operator != '+' => return Err(open(why, list, Vec::new())),
                    State::Unknown(_) => true,
                    State::Known(Value::Text(word)) => !(*empty && word.text().is_empty()),
                    State::Known(Value::List(words)) => !words.is_empty(),
                    State::Unset(_) => self.argument(name).is_some(),
                };
                match (operator, is_set) {
                    ('-' | '=', false) | ('+', true) => {
                        let words =
                            self.otherwise(word, quoted).map_err(|why| open(&why, list, Vec::new()))?;
                        if *operator == '=' && !quoted {
                            self.set(name, Ok(Value::List(words.clone())), BTreeSet::new());
                        } else if *operator == '=' {
                            let word = words.first().cloned().unwrap_or_default();
                            self.set(name, Ok(Value::Text(word)), BTreeSet::new());
                        }
                        return Ok(words);
                    }
                    ('+', false) => return Ok(Vec::new()),
                    _ => {}
                }
            }
            Kind::Arithmetic(expression) => {
                let number = |name: &str| match self.state(name) {
                    State::Known(Value::Text(word)) => word.known(),
                    _ => self.argument(name).and_then(Word::known),
                };
                let Some(result) = arithmetic::value(expression, &number) else {
                    let why = "is arithmetic with values that are known only when the script runs";
                    return Err(open(why, list, Vec::new()));
                };
                return Ok(vec![Word::of(&result.to_string())]);
            }
            Kind::Other => return Err(open("is known only when the script runs", list, Vec::new())),
        }
        let name = if name == "*" { "@" } else { name };
        match (name, self.state(name)) {
            ("@", _) if self.in_function => Err(open("holds the arguments of a function", true, Vec::new())),
            // The script is priced with the arguments that are given with its name, mostly none.
            ("@", State::Unset(_)) => Ok(self.arguments.clone()),
            ("#", State::Unset(_)) => Ok(vec![Word::of(&self.arguments.len().to_string())]),
            (_, State::Known(Value::Text(word))) => Ok(vec![word.clone()]),
            (_, State::Known(Value::List(words))) => {
                // Without an index, it is the first element.
                Ok(words[..if list { words.len() } else { words.len().min(1) }].to_vec())
            }
            (_, State::Unknown(why)) => {
                let flags: Vec<String> =
                    self.known.get(name).into_iter().flat_map(|known| known.flags.iter().cloned()).collect();
                Err(open(why, !flags.is_empty() || list, flags))
            }
            (_, State::Unset(why)) => match self.argument(name) {
                Some(_) if self.in_function => Err(open("is an argument of a function", true, Vec::new())),
                Some(word) => Ok(vec![word.clone()]),
                None if self.skipped.contains(name) => {
                    let why = "is assigned only in branches that do not run";
                    Err(Open { is_empty: true, ..open(why, list, Vec::new()) })
                }
                None => Err(open(why, list, Vec::new())),
            },
        }
    }

    /// The word that replaces a variable without a value.
    fn otherwise(&mut self, word: &str, quoted: bool) -> Result<Vec<Word>, String> {
        if self.depth >= DEEPEST {
            return Err(format!("has more than {DEEPEST} variables within each other"));
        }
        self.depth += 1;
        let words = Lexer::new(word, 1).whole(true).and_then(|raw| {
            let whole = self.whole(&raw)?;
            Ok(if whole.is_empty() && !quoted { Vec::new() } else { vec![whole] })
        });
        self.depth -= 1;
        words.map_err(|error| error.problem)
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
    pub fn whole(&mut self, raw: &Raw) -> Result<Word, InputError> {
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
    pub fn expand(&mut self, raw: &Raw) -> Result<Vec<Word>, InputError> {
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
                Piece::Variable { text, name, list, quoted, kind } => (text, name, *list, *quoted, kind),
            };
            let quoted = quoted || one;
            let values = match self.value(name, list, kind, quoted) {
                Ok(values) => values,
                Err(open) => {
                    let open = Open { text: text::shown(text, 100), bare: !quoted || list, ..open };
                    push(&mut words, &mut joins, Some(Part::Open(open)));
                    continue;
                }
            };
            let bytes = values.iter().map(Word::bytes).sum();
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
