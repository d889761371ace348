//! Variables of a shell script, and the words of its commands with variables replaced where their values are
//! known without running it.

use super::lexer::{Assigns, Kind, Piece, Raw};
use autodist_spec::{InputError, text};
use std::collections::BTreeMap;

/// Maximum bytes of all variables that are replaced.
const LARGEST: usize = 16 << 20;

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

    /// The word, if nothing of it is unknown.
    pub fn known(&self) -> Option<String> {
        self.0.iter().all(|part| matches!(part, Part::Known(_))).then(|| self.text())
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

#[derive(Debug, Clone)]
enum Value {
    Text(Word),
    List(Vec<Word>),
}

#[derive(Debug)]
struct Variable {
    /// The value, or the reason why it is not known.
    value: Result<Value, String>,
    /// Whether one of its values starts with a flag.
    flags: bool,
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
}

impl Variables {
    /// Names of the variables that hold flags, in the order in which they were assigned.
    pub fn with_flags(&self) -> Vec<String> {
        let holds_flags = |name: &&String| self.known.get(*name).is_some_and(|known| known.flags);
        self.names.iter().filter(holds_flags).cloned().collect()
    }

    /// A variable whose value is not known; `flags` if one of its values starts with a flag.
    pub fn forget(&mut self, name: &str, why: String, flags: bool) {
        self.set(name, Err(why), flags);
    }

    fn set(&mut self, name: &str, value: Result<Value, String>, flags: bool) {
        let flags = flags || self.known.get(name).is_some_and(|known| known.flags);
        if !self.known.contains_key(name) {
            self.names.push(name.to_owned());
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
        let flags = match &new {
            Value::Text(word) => word.is_flag(),
            Value::List(words) => words.iter().any(Word::is_flag),
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
        match (name, self.known.get(if name == "*" { "@" } else { name })) {
            ("@" | "*", _) if self.in_function => Err(open("holds the arguments of a function", true)),
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
