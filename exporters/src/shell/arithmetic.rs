//! Arithmetic of the shell, `$((…))`, over whole numbers.

/// Maximum brackets within each other.
const DEEPEST: usize = 50;

/// The value of an expression; `None` if it has other operators, or a variable that `number` does not know.
pub fn value(expression: &str, number: &dyn Fn(&str) -> Option<String>) -> Option<i64> {
    let mut reader = Reader { letters: expression.chars().collect(), at: 0, depth: 0, number };
    let value = reader.sum()?;
    reader.space();
    (reader.at == reader.letters.len()).then_some(value)
}

struct Reader<'a> {
    letters: Vec<char>,
    at: usize,
    depth: usize,
    number: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn space(&mut self) {
        while self.letters.get(self.at).is_some_and(|letter| letter.is_whitespace()) {
            self.at += 1;
        }
    }

    /// The next letter, if it is one of `wanted`.
    fn take(&mut self, wanted: &str) -> Option<char> {
        self.space();
        let letter = self.letters.get(self.at).copied().filter(|letter| wanted.contains(*letter))?;
        self.at += 1;
        Some(letter)
    }

    fn sum(&mut self) -> Option<i64> {
        let mut sum = self.product()?;
        while let Some(operator) = self.take("+-") {
            let next = self.product()?;
            sum = if operator == '+' { sum.checked_add(next)? } else { sum.checked_sub(next)? };
        }
        Some(sum)
    }

    fn product(&mut self) -> Option<i64> {
        let mut product = self.operand()?;
        while let Some(operator) = self.take("*/%") {
            let next = self.operand()?;
            product = match operator {
                '*' => product.checked_mul(next)?,
                '/' => product.checked_div(next)?,
                _ => product.checked_rem(next)?,
            };
        }
        Some(product)
    }

    fn operand(&mut self) -> Option<i64> {
        if self.take("(").is_some() {
            self.depth += 1;
            if self.depth > DEEPEST {
                return None;
            }
            let inner = self.sum()?;
            self.depth -= 1;
            return self.take(")").map(|_| inner);
        }
        let negative = self.take("-").is_some();
        let braced = self.take("$").is_some() && self.take("{").is_some();
        self.space();
        let from = self.at;
        let of_name = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_';
        while self.letters.get(self.at).is_some_and(of_name) {
            self.at += 1;
        }
        let name: String = self.letters[from..self.at].iter().collect();
        if braced {
            self.take("}")?;
        }
        let digits = name.starts_with(|letter: char| letter.is_ascii_digit());
        let dollar = from > 0 && "${".contains(self.letters[from - 1]);
        let text = if digits && !dollar { name } else { (self.number)(&name)? };
        // A leading zero would be octal.
        let plain = text == "0" || !text.starts_with('0');
        let value: i64 = text.trim().parse().ok().filter(|_| plain)?;
        if negative { value.checked_neg() } else { Some(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn expressions_over_known_numbers_have_a_value() {
        let number = |name: &str| match name {
            "A" => Some("8".to_owned()),
            "B" => Some("4".to_owned()),
            "1" => Some("7".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("$A*$B", Some(32)),
            ("A * (B + 1) / 2", Some(20)),
            ("${A} % 3", Some(2)),
            ("-B + 10", Some(6)),
            ("$1 + 1", Some(8)),
            ("1 + 1", Some(2)),
            ("A / 0", None),
            ("C + 1", None),
            ("A << 1", None),
            ("9223372036854775807 + 1", None),
            ("010 + 1", None),
            ("A +", None),
            ("", None),
        ] {
            assert_eq!(value(text, &number), expected, "{text}");
        }
        assert_eq!(value(&"(".repeat(100_000), &number), None);
    }
}
