//! Conditions of a shell script, as far as they are known without running it: `[ … ]`, `[[ … ]]`, `test …`,
//! `true` and `false`, and the patterns of `case`.

use super::lexer::{Piece, Raw};
use super::variables::Variables;
use autodist_spec::InputError;

/// The value of a command as a condition. `None`: it is known only when the script runs.
///
/// # Errors
/// The variables are too long.
pub fn value(words: &[Raw], variables: &mut Variables) -> Result<Option<bool>, InputError> {
    let Some((name, arguments)) = words.split_first().and_then(|(first, rest)| Some((first.bare()?, rest)))
    else {
        return Ok(None);
    };
    let closing = match name {
        "true" | ":" => return Ok(Some(true)),
        "false" => return Ok(Some(false)),
        "[" => Some("]"),
        "[[" => Some("]]"),
        "test" => None,
        _ => return Ok(None),
    };
    let arguments = match (closing, arguments.split_last()) {
        (None, _) => arguments,
        (Some(closing), Some((last, inner))) if last.bare() == Some(closing) => inner,
        _ => return Ok(None),
    };
    let double = name == "[[";
    let mut operands = Vec::new();
    for word in arguments {
        let operator = word.bare().is_some();
        // Unquoted variables stay one word in `[[ ]]`.
        let expanded = if double { vec![variables.whole(word)?] } else { variables.expand(word)? };
        let glob = double && word.has_unquoted_wildcards();
        operands.extend(expanded.iter().map(|word| Operand { text: word.known(), operator, pattern: glob }));
    }
    Ok(any(&operands))
}

/// A word of a condition: its text, if that is known, and whether it may be an operator or a pattern.
struct Operand {
    text: Option<String>,
    operator: bool,
    pattern: bool,
}

impl Operand {
    fn is(&self, operators: &[&str]) -> bool {
        self.operator && self.text.as_deref().is_some_and(|text| operators.contains(&text))
    }
}

/// `a || b`: true if one is true, even if the others are not known.
fn any(operands: &[Operand]) -> Option<bool> {
    let parts = operands.split(|operand| operand.is(&["||", "-o"]));
    parts.map(all).reduce(or).flatten()
}

fn all(operands: &[Operand]) -> Option<bool> {
    let parts = operands.split(|operand| operand.is(&["&&", "-a"]));
    parts.map(one).reduce(and).flatten()
}

fn one(operands: &[Operand]) -> Option<bool> {
    let text = |at: usize| operands[at].text.as_deref();
    match operands {
        [] => Some(false),
        [first, rest @ ..] if first.is(&["!"]) => one(rest).map(|value| !value),
        [_] => text(0).map(|text| !text.is_empty()),
        [operator, _] if operator.is(&["-n"]) => text(1).map(|text| !text.is_empty()),
        [operator, _] if operator.is(&["-z"]) => text(1).map(str::is_empty),
        [_, operator, right] if operator.operator => {
            let (left, right_text) = (text(0)?, text(2)?);
            let numbers = || Some((left.trim().parse::<i64>().ok()?, right_text.trim().parse::<i64>().ok()?));
            match operator.text.as_deref()? {
                "=" | "==" if !right.pattern => Some(left == right_text),
                "!=" if !right.pattern => Some(left != right_text),
                "-eq" => numbers().map(|(a, b)| a == b),
                "-ne" => numbers().map(|(a, b)| a != b),
                "-lt" => numbers().map(|(a, b)| a < b),
                "-le" => numbers().map(|(a, b)| a <= b),
                "-gt" => numbers().map(|(a, b)| a > b),
                "-ge" => numbers().map(|(a, b)| a >= b),
                _ => None,
            }
        }
        _ => None,
    }
}

pub fn and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

pub fn or(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    and(left.map(|left| !left), right.map(|right| !right)).map(|neither| !neither)
}

/// Whether the text of a `case` is like a pattern.
pub fn is_like(text: Option<&str>, pattern: &Raw) -> Option<bool> {
    // `*` takes everything, also what is not known.
    if pattern.bare() == Some("*") {
        return Some(true);
    }
    let mut whole = String::new();
    for piece in &pattern.pieces {
        match piece {
            Piece::Text { text, .. } => whole += text,
            Piece::Variable { .. } => return None,
        }
    }
    if pattern.has_unquoted_wildcards() { None } else { Some(text? == whole) }
}
