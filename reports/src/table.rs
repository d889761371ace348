//! A table as data, and as plain text within a width.

use crate::view::{END, Style};
use crate::words;
use crate::wrap::{length, longest_word, wrap};

const GAP: usize = 2;
/// Columns of text get narrower than they need down to the first width, then headers wrap, then down to the
/// second. A table that needs more is shown as a list of its rows.
const COMFORTABLE: usize = 34;
const NARROW: usize = 20;
/// The shortest bars.
const BAR: usize = 8;

/// How the cells of a column are set: numbers to the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Cells by row, and the headers of their columns.
#[derive(Debug, Clone)]
pub struct Table {
    pub columns: Vec<(&'static str, Align)>,
    pub rows: Vec<Vec<String>>,
    /// The row of the decision.
    pub chosen: Option<usize>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new(), chosen: None }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| words::clean(&cell)).collect());
    }

    /// Removes a column.
    pub fn leave_out(&mut self, name: &str) {
        if let Some(column) = self.columns.iter().position(|(other, _)| *other == name) {
            self.columns.remove(column);
            self.rows.iter_mut().for_each(|row| drop(row.remove(column)));
        }
    }

    pub fn rename(&mut self, name: &str, new: &'static str) {
        self.columns.iter_mut().filter(|(other, _)| *other == name).for_each(|column| column.0 = new);
    }

    /// Text in lines of at most `width`: columns, of which some wrap between words, or if they do not fit, a
    /// list of the rows. Emphasis is marked.
    pub fn text(&self, width: usize) -> String {
        match self.widths(width) {
            Some(widths) => self.in_columns(&widths),
            None => self.as_list(width),
        }
    }

    fn in_columns(&self, widths: &[usize]) -> String {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut text = String::new();
        self.push_row(&mut text, &header, widths, None);
        self.push_row(&mut text, &rule, widths, None);
        for (index, row) in self.rows.iter().enumerate() {
            let style = (self.chosen == Some(index)).then_some(Style::Strong);
            self.push_row(&mut text, row, widths, style);
        }
        text
    }

    fn push_row(&self, text: &mut String, row: &[String], widths: &[usize], style: Option<Style>) {
        let cells: Vec<Vec<String>> = (row.iter().zip(widths).enumerate())
            .map(|(column, (cell, width))| match self.is_bar(column) && is_bar(cell) {
                true => vec![self.bar(column, cell, *width)],
                false => wrap(cell, *width),
            })
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let mut shown = String::new();
            for (((lines, whole), width), (_, align)) in cells.iter().zip(row).zip(widths).zip(&self.columns)
            {
                let cell = lines.get(line).map_or("", String::as_str);
                let blanks = " ".repeat(width.saturating_sub(length(cell)));
                let cell = painted(cell, Style::of_word(whole).or(style));
                match align {
                    Align::Left => shown += &(cell + &blanks),
                    Align::Right => shown += &(blanks + &cell),
                }
                shown += &" ".repeat(GAP);
            }
            *text += shown.trim_end();
            text.push('\n');
        }
    }

    /// Whether a column holds bars, which can be of any scale.
    fn is_bar(&self, column: usize) -> bool {
        self.columns[column].0.is_empty()
            && self.rows.iter().all(|row| row.get(column).is_none_or(|cell| is_bar(cell)))
    }

    /// A bar in the scale of its column.
    fn bar(&self, column: usize, cell: &str, width: usize) -> String {
        let longest =
            self.rows.iter().filter_map(|row| row.get(column)).map(|bar| bar.len()).max().unwrap_or(0);
        if longest <= width {
            return cell.to_owned();
        }
        "#".repeat((cell.len() * width).div_ceil(longest))
    }

    /// The width of each column; `None` if they do not fit.
    fn widths(&self, width: usize) -> Option<Vec<usize>> {
        let of_cells = |column: usize, of: &dyn Fn(&str) -> usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| of(cell)).max().unwrap_or(0)
        };
        let columns = 0..self.columns.len();
        let mut widths: Vec<usize> =
            columns.clone().map(|c| of_cells(c, &length).max(length(self.columns[c].0))).collect();
        let available = width.checked_sub(GAP * widths.len().saturating_sub(1))?;
        // What a column can be reduced to: texts to `least`, headers to their words if `headers`, and numbers not.
        let floor = |column: usize, natural: usize, least: usize, headers: bool| {
            let (name, align) = self.columns[column];
            let cells = match align {
                _ if self.is_bar(column) => BAR.min(natural),
                Align::Right => of_cells(column, &length),
                Align::Left => of_cells(column, &longest_word).max(least.min(of_cells(column, &length))),
            };
            cells.max(if headers { longest_word(name) } else { length(name) })
        };
        let natural = widths.clone();
        for (least, headers) in [(COMFORTABLE, false), (COMFORTABLE, true), (NARROW, true)] {
            let floors: Vec<usize> =
                columns.clone().map(|column| floor(column, natural[column], least, headers)).collect();
            while widths.iter().sum::<usize>() > available {
                let reducible = columns.clone().filter(|column| widths[*column] > floors[*column]);
                match reducible.max_by_key(|column| widths[*column]) {
                    Some(widest) => widths[widest] -= 1,
                    None => break,
                }
            }
        }
        (widths.iter().sum::<usize>() <= available).then_some(widths)
    }

    /// One block per row: its name, then the other cells with their headers.
    fn as_list(&self, width: usize) -> String {
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let style = (self.chosen == Some(index)).then_some(Style::Strong);
            let cell = |column: usize| row.get(column).map_or("", String::as_str);
            let (head, indent, from) = match self.columns.first() {
                Some(("#", _)) => (format!("{}  ", cell(0)), length(cell(0)) + 2, 2),
                Some((name, Align::Right)) => (format!("{name} {}", cell(0)), 2, 1),
                _ => (String::new(), 2, 1),
            };
            let title = if from == 2 {
                cell(1)
            } else if head.is_empty() {
                cell(0)
            } else {
                ""
            };
            push_wrapped(&mut text, &head, title, width, style);
            let others = (from..self.columns.len())
                .filter(|column| !cell(*column).is_empty() && !self.is_bar(*column));
            let label = others.clone().map(|column| length(self.columns[column].0)).max().unwrap_or(0);
            for column in others {
                let name = self.columns[column].0;
                let head = format!("{:indent$}{name:<label$}  ", "");
                push_wrapped(&mut text, &head, cell(column), width, Style::of_word(cell(column)).or(style));
            }
        }
        text
    }
}

/// `head` and a text, whose further lines are indented as far; long heads are followed by a line of their own.
fn push_wrapped(text: &mut String, head: &str, cell: &str, width: usize, style: Option<Style>) {
    let indent = length(head);
    let mut head = head.to_owned();
    for line in wrap(cell, width.saturating_sub(indent)) {
        *text += (head + &painted(&line, style)).trim_end();
        text.push('\n');
        head = " ".repeat(indent);
    }
}

fn painted(text: &str, style: Option<Style>) -> String {
    match style {
        Some(style) if !text.is_empty() => format!("{}{text}{END}", style.mark()),
        _ => text.to_owned(),
    }
}

fn is_bar(cell: &str) -> bool {
    cell.chars().all(|c| c == '#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> Table {
        let columns =
            [("#", Align::Right), ("plan", Align::Left), ("step time", Align::Right), ("why", Align::Left)];
        let mut table = Table::new(&columns);
        let label = "dp8 tp8 pp8 mb4 zero1/4 sp interleaved v12 recompute=selective";
        let why = "0.8 % slower: compute 29.0 s against 28.8 s";
        table.row(["1", label, "33.9 s ± 6.74 s", why].map(str::to_owned));
        table.row(["2", label, "34.0 s ± 6.74 s", why].map(str::to_owned));
        table.chosen = Some(0);
        table
    }

    #[test]
    fn no_line_is_too_wide_and_no_word_is_broken() {
        let table = plans();
        let all: Vec<&str> = table.rows.iter().flatten().flat_map(|cell| cell.split(' ')).collect();
        for width in 40..200 {
            let text = crate::wrap::plain(&table.text(width));
            assert!(text.lines().all(|line| length(line) <= width), "{width}: {text}");
            for word in &all {
                assert!(text.split_whitespace().any(|found| found == *word), "{word} at {width}: {text}");
            }
        }
        assert_eq!(table.text(200).lines().count(), 4);
        assert!(!table.text(60).contains("---"), "a list: {}", table.text(60));
    }

    #[test]
    fn a_word_longer_than_the_line_is_broken_and_bars_are_scaled() {
        let mut table = Table::new(&[("name", Align::Left), ("", Align::Left)]);
        table.row(["b".repeat(200), String::new()]);
        let text = table.text(60);
        assert!(text.lines().all(|line| length(line) <= 60), "{text}");
        assert_eq!(text.matches('b').count(), 200);
        let mut table = Table::new(&[("part of the step", Align::Left), ("", Align::Left)]);
        table.row(["compute".to_owned(), "#".repeat(40)]);
        table.row(["other".to_owned(), "#".repeat(20)]);
        let text = table.text(38);
        assert_eq!([text.matches('#').count(), text.lines().count()], [30, 4], "{text}");
    }
}
