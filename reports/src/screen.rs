//! Builds the text of a terminal, line by line.

use crate::table::Table;
use crate::view::{Rich, Style, TerminalView};
use crate::wrap::{plain, wrap};

/// Columns of labels.
pub(crate) const LABEL: usize = 11;

/// A labelled line of an answer.
pub(crate) struct Line {
    pub label: &'static str,
    pub value: Rich,
}

impl Line {
    pub fn new(label: &'static str, value: impl Into<Rich>) -> Self {
        Self { label, value: value.into() }
    }
}

/// Text that is no wider than the terminal, built line by line.
pub struct Screen<'a> {
    view: &'a TerminalView,
    text: String,
}

impl<'a> Screen<'a> {
    #[must_use]
    pub fn new(view: &'a TerminalView) -> Self {
        Self { view, text: String::new() }
    }

    /// `label      value`; without a label it belongs to the line before.
    pub fn line(&mut self, label: &str, value: impl Into<Rich>) {
        let value = value.into();
        let mut label = label.to_owned();
        for line in wrap(value.as_str(), self.view.width - LABEL) {
            self.text += format!("{label:<LABEL$}{line}").trim_end();
            self.text.push('\n');
            label.clear();
        }
    }

    pub(crate) fn lines(&mut self, lines: Vec<Line>) {
        for Line { label, value } in lines {
            self.line(label, value);
        }
    }

    /// Commands to copy, each on a line of its own.
    pub fn commands(&mut self, label: &str, commands: &[String]) {
        for (index, command) in commands.iter().enumerate() {
            self.line(if index == 0 { label } else { "" }, command);
        }
    }

    pub fn decision(&mut self, text: &str) {
        self.paragraph(Rich::paint(Style::Strong, text));
    }

    /// Lines of any text; what does not fit continues with the indent of its line and two more.
    pub fn prose(&mut self, text: &str) {
        for line in text.lines() {
            let own = line.chars().take_while(|c| *c == ' ').count().min(self.view.width / 2);
            let mut indent = own;
            for part in wrap(&crate::words::clean(line), self.view.width - own - 2) {
                self.text += format!("{:indent$}{part}", "").trim_end();
                self.text.push('\n');
                indent = own + 2;
            }
        }
    }

    pub fn paragraph(&mut self, text: impl Into<Rich>) {
        for line in wrap(text.into().as_str(), self.view.width) {
            self.text += &line;
            self.text.push('\n');
        }
    }

    pub fn section(&mut self, title: &str, table: &Table) {
        self.blank();
        self.paragraph(title);
        self.table(table);
    }

    pub fn table(&mut self, table: &Table) {
        self.text += &table.text(self.view.width);
    }

    pub fn blank(&mut self) {
        self.text.push('\n');
    }

    pub fn warnings(&mut self, warnings: &[String]) {
        if !warnings.is_empty() {
            self.blank();
        }
        for warning in warnings {
            self.warning(warning);
        }
    }

    pub fn warning(&mut self, warning: &str) {
        let from = self.text.len();
        self.line("warning:", warning);
        let painted =
            self.text[from..].replacen("warning:", Rich::paint(Style::Caution, "warning:").as_str(), 1);
        self.text.truncate(from);
        self.text += &painted;
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        if self.view.colour { self.text } else { plain(&self.text) }
    }
}
