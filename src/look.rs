//! How this process prints: the width and the colours of its terminal, and what the flags ask for.

use crate::cli::look::{ColourArg, LookArgs};
use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Reset, Style as Codes};
use autodist_reports::{END, Style, TerminalView};
use std::sync::OnceLock;
use terminal_size::{Width, terminal_size_of};

#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Of standard output.
    pub view: TerminalView,
    /// Whether messages on standard error are coloured.
    pub messages_in_colour: bool,
    pub quiet: bool,
}

static LOOK: OnceLock<Look> = OnceLock::new();

/// Takes the flags and the terminal into account; until then, everything is plain.
pub fn begin(args: LookArgs) {
    let look = Look {
        view: TerminalView::new(width(), in_colour(args.color, &std::io::stdout()), args.verbose),
        messages_in_colour: in_colour(args.color, &std::io::stderr()),
        quiet: args.quiet,
    };
    // Set once.
    let _ = LOOK.set(look);
}

pub fn get() -> Look {
    let plain = Look { view: TerminalView::default(), messages_in_colour: false, quiet: false };
    LOOK.get().copied().unwrap_or(plain)
}

/// The view of standard output.
pub fn view() -> TerminalView {
    get().view
}

fn in_colour(asked: ColourArg, stream: &impl RawStream) -> bool {
    match asked {
        ColourArg::Always => true,
        ColourArg::Never => false,
        ColourArg::Auto => AutoStream::choice(stream) != ColorChoice::Never,
    }
}

/// Columns of the terminal; without one those of the variable COLUMNS, if it makes sense.
fn width() -> usize {
    let terminal = terminal_size_of(std::io::stdout()).map(|(Width(columns), _)| usize::from(columns));
    let given = || std::env::var("COLUMNS").ok()?.trim().parse().ok();
    // A terminal whose size nobody has set says 0.
    let sane = |columns: &usize| (20..=10_000).contains(columns);
    terminal.filter(sane).or_else(|| given().filter(sane)).unwrap_or(TerminalView::USUAL)
}

/// Columns of the terminal of standard error; none if it goes elsewhere, where lines stay whole.
pub fn width_of_messages() -> Option<usize> {
    let (Width(columns), _) = terminal_size_of(std::io::stderr())?;
    (columns >= 20).then_some(usize::from(columns))
}

/// The terminal's codes of a style.
pub fn codes(style: Style) -> Codes {
    let of = |colour: AnsiColor| Codes::new().fg_color(Some(colour.into()));
    match style {
        Style::Strong => Codes::new().bold(),
        Style::Good => of(AnsiColor::Green),
        Style::Bad => of(AnsiColor::Red).bold(),
        Style::Caution => of(AnsiColor::Yellow),
    }
}

/// Turns the marks of a view into codes; all other control characters are shown as text.
pub fn coloured(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut plain = String::new();
    for c in text.chars() {
        let code = match Style::of_mark(c) {
            Some(style) => codes(style).render().to_string(),
            None if c == END => Reset.render().to_string(),
            None => {
                plain.push(c);
                continue;
            }
        };
        shown += &autodist_spec::printable(&plain);
        plain.clear();
        shown += &code;
    }
    shown + &autodist_spec::printable(&plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marks_become_codes() {
        assert_eq!(coloured("a\u{1}b\u{5}\u{1b}[2J\n"), "a\u{1b}[1mb\u{1b}[0m\\u{1b}[2J\n");
    }
}
