//! How views are shown: the width of lines, colour, and how much they tell.
//!
//! Emphasis is a pair of control characters in the text (a *mark* and [`END`]), which have no width. Text from
//! files is cleaned of all control characters before marks are added, so that only this crate can set them.
//! The program turns marks into the codes of a terminal when it prints.

use crate::words;
use std::ops::AddAssign;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalView {
    /// Columns of a line.
    pub width: usize,
    pub colour: bool,
    /// Also show the tables that a decision does not need.
    pub verbose: bool,
}

impl TerminalView {
    /// Below this, lines are as if the terminal was so wide: tables and labels need some room.
    pub const NARROWEST: usize = 60;
    /// Longer lines are hard to read.
    pub const WIDEST: usize = 160;
    /// Width where there is no terminal.
    pub const USUAL: usize = 100;

    #[must_use]
    pub fn new(width: usize, colour: bool, verbose: bool) -> Self {
        Self { width: width.clamp(Self::NARROWEST, Self::WIDEST), colour, verbose }
    }
}

impl Default for TerminalView {
    fn default() -> Self {
        Self::new(Self::USUAL, false, false)
    }
}

/// The emphasis of a part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A decision.
    Strong,
    Good,
    Bad,
    Caution,
}

/// Ends the emphasis that a mark begins.
pub const END: char = '\u{5}';

const MARKS: [(char, Style); 4] =
    [('\u{1}', Style::Strong), ('\u{2}', Style::Good), ('\u{3}', Style::Bad), ('\u{4}', Style::Caution)];

impl Style {
    pub(crate) fn mark(self) -> char {
        MARKS.iter().find(|(_, style)| *style == self).map_or(END, |(mark, _)| *mark)
    }

    /// The style that a character begins.
    #[must_use]
    pub fn of_mark(mark: char) -> Option<Self> {
        MARKS.iter().find(|(known, _)| *known == mark).map(|(_, style)| *style)
    }

    /// The style of a word that states a result.
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        match word {
            "REFUTED" | "WRONG" => Some(Self::Bad),
            "holds" | "ok" => Some(Self::Good),
            _ => None,
        }
    }
}

/// Whether a character is a mark, which has no width.
pub(crate) fn is_mark(c: char) -> bool {
    c == END || Style::of_mark(c).is_some()
}

/// Clean text with emphasis.
#[derive(Debug, Clone, Default)]
pub struct Rich(String);

impl Rich {
    pub fn paint(style: Style, text: &str) -> Self {
        Self(format!("{}{}{END}", style.mark(), words::clean(text)))
    }

    /// A sentence whose first word states a result: `REFUTED: …`, `holds: …`.
    pub fn result(text: &str) -> Self {
        let word = text.split(':').next().unwrap_or(text);
        match Style::of_word(word) {
            None => Self::from(text),
            Some(style) => {
                let mut rich = Self::paint(style, word);
                rich += &text[word.len()..];
                rich
            }
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Rich {
    fn from(text: &str) -> Self {
        Self(words::clean(text))
    }
}

impl From<String> for Rich {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&String> for Rich {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl AddAssign<&str> for Rich {
    fn add_assign(&mut self, text: &str) {
        self.0 += &words::clean(text);
    }
}

impl AddAssign<Rich> for Rich {
    fn add_assign(&mut self, other: Rich) {
        self.0 += &other.0;
    }
}
