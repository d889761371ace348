//! A table as data, and as plain text within a width.

use crate::words;

/// Maximum width of a view on a terminal.
pub(crate) const WIDTH: usize = 110;
const GAP: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub columns: Vec<(&'static str, Align)>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| words::clean(&cell)).collect());
    }

    /// Plain text, no line longer than [`WIDTH`]; long cells continue in the next line of their column.
    pub fn text(&self) -> String {
        let widths = self.widths();
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut text = String::new();
        for row in [&header, &rule].into_iter().chain(&self.rows) {
            self.push_row(&mut text, row, &widths);
        }
        text
    }

    fn push_row(&self, text: &mut String, row: &[String], widths: &[usize]) {
        let cells: Vec<Vec<String>> =
            row.iter().zip(widths).map(|(cell, width)| wrap(cell, *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let mut shown = String::new();
            for ((lines, width), (_, align)) in cells.iter().zip(widths).zip(&self.columns) {
                let cell = lines.get(line).map_or("", String::as_str);
                match align {
                    Align::Left => shown += &format!("{cell:<width$}"),
                    Align::Right => shown += &format!("{cell:>width$}"),
                }
                shown += &" ".repeat(GAP);
            }
            *text += shown.trim_end();
            text.push('\n');
        }
    }

    /// Natural widths, with the widest columns reduced until the table fits.
    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| length(name)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(cell));
            }
        }
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > WIDTH {
            let Some(widest) = widths.iter_mut().max() else { break };
            if *widest <= 1 {
                break;
            }
            *widest -= 1;
        }
        widths
    }
}

pub(crate) fn length(text: &str) -> usize {
    text.chars().count()
}

/// Breaks text at spaces; words longer than a line are split.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("there is always a last line");
            let space = usize::from(!line.is_empty());
            if length(line) + space + word.len() <= width {
                if space == 1 {
                    line.push(' ');
                }
                line.extend(&word);
                break;
            }
            if line.is_empty() {
                line.extend(word.drain(..width));
            }
            lines.push(String::new());
        }
    }
    lines
}

/// Text broken into lines of at most [`WIDTH`], each after the first indented by `indent`.
pub(crate) fn paragraph(text: &str, indent: usize) -> String {
    let separator = format!("\n{}", " ".repeat(indent));
    wrap(&words::clean(text), WIDTH - indent).join(&separator) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_cells_wrap_inside_their_column() {
        let mut table = Table::new(&[("name", Align::Left), ("time", Align::Right), ("why", Align::Left)]);
        table.row(["a".to_owned(), "1 s".to_owned(), "word ".repeat(40)]);
        table.row(["b".repeat(200), "10 s".to_owned(), String::new()]);
        let text = table.text();
        assert!(text.lines().all(|line| length(line) <= WIDTH), "{text}");
        assert_eq!(text.matches("word").count(), 40);
        assert_eq!(text.matches('b').count(), 200);
    }
}
