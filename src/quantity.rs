//! Quantities as people write them.

/// A number of tokens: `1_000_000`, `4M`, `1.5T`, `1e12`; decimal.
pub fn tokens(text: &str) -> Result<u64, String> {
    let plain = text.trim().replace('_', "");
    let (digits, scale) = match plain.char_indices().last() {
        Some((end, 'k' | 'K')) => (&plain[..end], 1e3),
        Some((end, 'm' | 'M')) => (&plain[..end], 1e6),
        Some((end, 'b' | 'B' | 'g' | 'G')) => (&plain[..end], 1e9),
        Some((end, 't' | 'T')) => (&plain[..end], 1e12),
        _ => (plain.as_str(), 1.0),
    };
    let value =
        digits.parse::<f64>().ok().map(|value| value * scale).filter(|value| (1.0..1e18).contains(value));
    value
        .map(|value| value.round() as u64)
        .ok_or_else(|| "expected a number of tokens, e.g. 4M or 1T".to_owned())
}
