//! Writing elements, with every text escaped. The page is well-formed XML and HTML at once.

use crate::table::{Align, Table};
use crate::words::clean;

/// Rows from which a table is long.
const LONG: usize = 25;

/// Columns with names of plans.
const PLANS: [&str; 3] = ["plan", "strategy", "run"];

/// Text escaped for an element or an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A growing piece of the page.
#[derive(Debug, Default)]
pub(super) struct Markup(String);

impl Markup {
    /// An element around text.
    pub fn element(&mut self, name: &str, class: &str, text: &str) {
        self.inside(name, class, |inner| inner.0 += &escape(text));
    }

    /// An element around other elements.
    pub fn inside(&mut self, name: &str, class: &str, fill: impl FnOnce(&mut Self)) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.0 += &format!("<{name}{class}>");
        fill(self);
        self.0 += &format!("</{name}>\n");
    }

    /// Raw markup.
    pub fn raw(&mut self, markup: &str) {
        self.0 += markup;
    }

    pub fn heading(&mut self, id: &str, text: &str) {
        self.0 += &format!("<h2 id=\"{id}\">{}</h2>\n", escape(text));
    }

    pub fn paragraph(&mut self, text: &str) {
        self.element("p", "", text);
    }

    pub fn note(&mut self, text: &str) {
        self.element("p", "muted", text);
    }

    pub fn warning(&mut self, text: &str) {
        self.element("div", "warning", text);
    }

    pub fn card(&mut self, name: &str, value: &str, note: &str) {
        self.inside("div", "card", |card| {
            card.element("div", "name", name);
            card.element("div", "value", value);
            card.element("div", "note", note);
        });
    }

    /// A drawing under what it shows and what it is of; narrow screens scroll it.
    pub fn figure(&mut self, finding: &str, subject: &str, drawing: &str, caption: &str) {
        self.inside("figure", "", |figure| {
            figure.inside("p", "finding", |title| {
                title.element("strong", "", finding);
                title.element("span", "subject", subject);
            });
            figure.inside("div", "scroll drawing", |scroll| scroll.raw(drawing));
            figure.element("figcaption", "", caption);
        });
    }

    pub fn table(&mut self, table: &Table) {
        self.table_with(table, Emphasis::None);
    }

    pub fn table_with(&mut self, table: &Table, emphasis: Emphasis) {
        let class = |index: usize| match table.columns[index].1 {
            // Names of plans are not broken.
            Align::Left if PLANS.contains(&table.columns[index].0) => "plan",
            Align::Left if table.columns[index].0.starts_with("why ") => "wide",
            Align::Left => "",
            Align::Right => "number",
        };
        let last = table.rows.len().wrapping_sub(1);
        // Long tables have a height of their own, below which they scroll.
        let long = if table.rows.len() > LONG { "scroll long" } else { "scroll" };
        let sortable = if emphasis == Emphasis::Last || table.rows.len() < 3 { "" } else { "sortable" };
        self.inside("div", long, |scroll| {
            scroll.inside("table", sortable, |element| {
                element.inside("thead", "", |head| {
                    head.inside("tr", "", |row| {
                        for (index, (name, _)) in table.columns.iter().enumerate() {
                            row.element("th", class(index), name);
                        }
                    });
                });
                element.inside("tbody", "", |body| {
                    for (number, cells) in table.rows.iter().enumerate() {
                        let row_class = match emphasis {
                            Emphasis::First if number == 0 => "first",
                            Emphasis::Last if number == last => "last",
                            _ => "",
                        };
                        body.inside("tr", row_class, |row| {
                            for (index, cell) in cells.iter().enumerate() {
                                row.element("td", class(index), cell);
                            }
                        });
                    }
                });
            });
        });
    }

    /// A long table, folded behind a line that opens it.
    pub fn folded(&mut self, summary: &str, table: &Table) {
        self.inside("details", "", |details| {
            details.element("summary", "", summary);
            details.table(table);
        });
    }

    pub fn finish(self) -> String {
        self.0
    }
}

/// The highlighted row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emphasis {
    None,
    First,
    Last,
}
