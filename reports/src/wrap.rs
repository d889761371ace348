//! Lines of a given width.

use crate::view::{END, Style, is_mark};

/// Characters on the screen: marks of emphasis have no width.
pub(crate) fn length(text: &str) -> usize {
    text.chars().filter(|c| !is_mark(*c)).count()
}

/// Units that stay on the line of their number.
const UNITS: [&str; 26] = [
    "s", "ms", "µs", "min", "h", "%", "B", "KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "GB/s", "TB/s",
    "MB/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "tokens/s", "tokens", "days", "hours", "M", "k",
];

/// The words of a text; a number and its unit, and `±` and its number, are one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let bare = word.trim_end_matches([',', ';', ':', '.', ')', ']', END]);
        let glued = words.last().is_some_and(|before| {
            let end = before.trim_end_matches(END);
            end == "±" || (UNITS.contains(&bare) && end.ends_with(|c: char| c.is_ascii_digit()))
        });
        match words.last_mut().filter(|_| glued) {
            Some(before) => *before += &format!(" {word}"),
            None => words.push(word.to_owned()),
        }
    }
    words
}

/// The length of the longest word, which cannot be broken.
pub(crate) fn longest_word(text: &str) -> usize {
    words(text).iter().map(|word| length(word)).max().unwrap_or(0)
}

/// Breaks text at spaces; only words longer than a line are split. Emphasis ends with every line, and is
/// taken up in the next.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let (mut line, mut used) = (String::new(), 0);
    let mut style: Option<Style> = None;
    let mut end = |line: &mut String, used: &mut usize, style: Option<Style>| {
        if style.is_some() {
            line.push(END);
        }
        lines.push(std::mem::take(line));
        *used = 0;
        line.extend(style.map(Style::mark));
    };
    for word in words(text) {
        let long = length(&word);
        if used > 0 && used + 1 + long > width {
            end(&mut line, &mut used, style);
        } else if used > 0 {
            line.push(' ');
            used += 1;
        }
        for c in word.chars() {
            if is_mark(c) {
                style = Style::of_mark(c);
                line.push(c);
                continue;
            }
            if used == width {
                end(&mut line, &mut used, style);
            }
            line.push(c);
            used += 1;
        }
    }
    lines.push(line);
    lines
}

/// `text` without marks, for views without colour.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !is_mark(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_not_before_units() {
        assert_eq!(wrap("takes 76.2 GiB of it", 10), ["takes", "76.2 GiB", "of it"]);
        assert_eq!(wrap("649 ms ± 6.49 ms", 12), ["649 ms", "± 6.49 ms"]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn emphasis_does_not_count_and_goes_on_in_the_next_line() {
        let strong = Style::Strong.mark();
        let lines = wrap(&format!("a {strong}bold text{END} b"), 6);
        assert_eq!(lines, [format!("a {strong}bold{END}"), format!("{strong}text{END} b")]);
        assert!(lines.iter().all(|line| length(line) <= 6));
    }
}
