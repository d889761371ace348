//! Lists of blocks as Megatron writes them: expressions of Python lists, e.g. `([0]*3+[1]*58)`.

use crate::document::MOST_BLOCKS;
use autodist_spec::InputError;

/// Deepest nesting of parentheses.
const DEEPEST: usize = 16;

/// An expression of this list: runs of equal entries, up to where they repeat.
pub(crate) fn expression(list: &[u32]) -> String {
    let whole = |period: &usize| {
        list.len().is_multiple_of(*period) && (*period..list.len()).all(|at| list[at] == list[at - period])
    };
    let period = (1..list.len()).find(whole).unwrap_or(list.len());
    let runs = list[..period].chunk_by(|a, b| a == b);
    let runs: Vec<String> = runs.map(|run| format!("[{}]*{}", run[0], run.len())).collect();
    format!("({})*{}", runs.join("+"), list.len() / period.max(1))
}

/// The list of an expression. Spaces are left out.
///
/// # Errors
/// The text is another expression, or its list is longer than any model.
pub(crate) fn list(key: &str, text: &str) -> Result<Vec<u32>, InputError> {
    let tokens: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let mut reader = Reader { tokens: &tokens, depth: 0 };
    reader.sum().filter(|_| reader.tokens.is_empty()).ok_or_else(|| {
        InputError::new(key, text, format!("expected a list of at most {MOST_BLOCKS} numbers")).hint(
            "write it as sums and multiples of lists, e.g. ([0]*3+[1]*58), with one number for each block",
        )
    })
}

struct Reader<'a> {
    /// What is left of the text.
    tokens: &'a [char],
    depth: usize,
}

impl Reader<'_> {
    fn takes(&mut self, token: char) -> bool {
        match self.tokens.split_first() {
            Some((first, rest)) if *first == token => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn number(&mut self) -> Option<u32> {
        let digits = self.tokens.iter().take_while(|c| c.is_ascii_digit()).count();
        let (number, rest) = self.tokens.split_at(digits);
        self.tokens = rest;
        number.iter().collect::<String>().parse().ok()
    }

    fn sum(&mut self) -> Option<Vec<u32>> {
        let mut list = self.product()?;
        while self.takes('+') {
            list.extend(self.product()?);
            bounded(list.len())?;
        }
        Some(list)
    }

    fn product(&mut self) -> Option<Vec<u32>> {
        let mut list = self.factor()?;
        while self.takes('*') {
            let times = self.number()? as usize;
            bounded(list.len().checked_mul(times)?)?;
            list = list.repeat(times);
        }
        Some(list)
    }

    fn factor(&mut self) -> Option<Vec<u32>> {
        if self.takes('(') {
            self.depth += 1;
            let list = if self.depth > DEEPEST { None } else { self.sum() };
            self.depth -= 1;
            return list.filter(|_| self.takes(')'));
        }
        let mut list = Vec::new();
        if !self.takes('[') {
            return None;
        }
        while !self.takes(']') {
            if !list.is_empty() && !self.takes(',') {
                return None;
            }
            list.push(self.number()?);
            bounded(list.len())?;
        }
        Some(list)
    }
}

fn bounded(length: usize) -> Option<()> {
    (length <= MOST_BLOCKS as usize).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_python_does() {
        for (text, expected) in [
            ("([0]*3+[1]*2)", vec![0, 0, 0, 1, 1]),
            ("[1,0] * 2", vec![1, 0, 1, 0]),
            ("([1]*2+[0])*2", vec![1, 1, 0, 1, 1, 0]),
            ("[1]", vec![1]),
        ] {
            assert_eq!(list("moe-layer-freq", text).unwrap(), expected, "{text}");
            assert_eq!(list("moe-layer-freq", &expression(&expected)).unwrap(), expected, "{text}");
        }
        assert_eq!(expression(&[1, 0, 1, 0]), "([1]*1+[0]*1)*2");
    }

    #[test]
    fn other_texts_are_refused() {
        let deep = format!("{}[1]{}", "(".repeat(10_000), ")".repeat(10_000));
        for text in ["", "[", "[1", "[1]*", "[1]*99999999999", "[1]*9999*9999", "[-1]", "[1][1]", "x", &deep]
        {
            let error = list("moe-layer-freq", text).unwrap_err();
            assert!(error.field == "moe-layer-freq" && error.hint.contains("[0]*3"), "{error}");
        }
    }
}
