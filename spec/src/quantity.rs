//! Quantities as people write them: `16GiB`, `8k`, `1T`, `90s`, `$2.50`. The only place that knows suffixes; flags and
//! TOML files use it alike.
//!
//! What `k` means depends on what is counted, as in the field's own habit: a sequence length or a batch of `8k` is
//! 8192, `4M` or `1T` tokens are decimal, and so are steps.

use crate::error::InputError;
use std::fmt;

/// A text that is not a quantity of the kind that was expected. Displayed with two valid examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAQuantity {
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

impl fmt::Display for NotAQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.hint)
    }
}

impl std::error::Error for NotAQuantity {}

impl NotAQuantity {
    /// The error of a flag or of a field of a file.
    pub fn at(self, field: &str, written: &str) -> InputError {
        InputError::new(field, written, self.problem).hint(self.hint)
    }
}

/// A kind of quantity: its suffixes, and how to write it.
struct Kind {
    what: &'static str,
    examples: &'static str,
    /// Suffixes in lower case, and their factors.
    units: &'static [(&'static str, f64)],
}

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;
const GIB: f64 = MIB * KIB;
const TIB: f64 = GIB * KIB;

/// `G` alone is binary, as in `ls -h`, `ulimit` and Slurm.
const BYTES: Kind = Kind {
    what: "a size",
    examples: "write e.g. 16GiB (1024^3 bytes each) or 16GB (10^9 bytes each); G alone is GiB",
    units: &[
        ("", 1.0),
        ("b", 1.0),
        ("bytes", 1.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("k", KIB),
        ("m", MIB),
        ("g", GIB),
        ("t", TIB),
        ("ki", KIB),
        ("mi", MIB),
        ("gi", GIB),
        ("ti", TIB),
        ("kib", KIB),
        ("mib", MIB),
        ("gib", GIB),
        ("tib", TIB),
    ],
};

const LENGTH: Kind = Kind {
    what: "a number",
    examples: "write e.g. 4096 or 8k (k is 1024 here)",
    units: &[("", 1.0), ("k", KIB), ("m", MIB), ("ki", KIB), ("mi", MIB)],
};

const COUNT: Kind = Kind {
    what: "a number",
    examples: "write e.g. 500 or 2k (k is 1000 here)",
    units: &[("", 1.0), ("k", 1e3), ("m", 1e6)],
};

const TOKENS: Kind = Kind {
    what: "a number of tokens",
    examples: "write e.g. 4M or 1T (decimal: 4,000,000 and 10^12), 300B, 1e12 or 4_194_304; Mi is 1024^2",
    units: &[
        ("", 1.0),
        ("k", 1e3),
        ("m", 1e6),
        ("b", 1e9),
        ("g", 1e9),
        ("t", 1e12),
        ("ki", KIB),
        ("mi", MIB),
        ("gi", GIB),
        ("ti", TIB),
    ],
};

const TIME: Kind = Kind {
    what: "a time",
    examples: "write e.g. 90s, 10m, 1h30m or 500ms; a number alone is seconds",
    units: &[
        ("", 1.0),
        ("s", 1.0),
        ("sec", 1.0),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("m", 60.0),
        ("min", 60.0),
        ("h", 3600.0),
        ("d", 86_400.0),
    ],
};

impl Kind {
    fn wrong(&self, problem: impl Into<String>) -> NotAQuantity {
        NotAQuantity { problem: problem.into(), hint: self.examples.to_owned() }
    }

    /// One number and its suffix.
    fn one(&self, text: &str) -> Result<f64, NotAQuantity> {
        let text = text.trim();
        let (digits, suffix) = split(text);
        if digits.is_empty() {
            return Err(self.wrong(format!("is not {}", self.what)));
        }
        let number = number(digits).ok_or_else(|| {
            let commas =
                if digits.contains(',') { ": thousands are separated by `_`, if at all" } else { "" };
            self.wrong(format!("is not {}{commas}", self.what))
        })?;
        let lower = suffix.to_lowercase();
        let unit = self.units.iter().find(|(name, _)| *name == lower);
        let factor =
            unit.map(|(_, factor)| *factor).ok_or_else(|| self.wrong(format!("has no unit `{suffix}`")))?;
        let value = number * factor;
        if !value.is_finite() {
            return Err(self.wrong("is too large"));
        }
        Ok(value)
    }

    fn whole(&self, text: &str, largest: u64) -> Result<u64, NotAQuantity> {
        let value = self.one(text)?;
        if value < 0.0 {
            return Err(self.wrong("is below zero"));
        }
        // Numbers beyond 2^53 are not exact in floats; plain digits are.
        let exact = number_text(text.trim()).parse::<u64>().ok();
        let value = match exact {
            Some(exact) => exact,
            None if value.fract() != 0.0 => {
                return Err(self.wrong(format!("is {value}, but must be a whole number")));
            }
            None if value >= 1.8e19 => return Err(self.wrong("is too large")),
            None => value as u64,
        };
        if value > largest {
            return Err(self.wrong(format!("is {value}, but may be at most {largest}")));
        }
        Ok(value)
    }
}

/// The number at the beginning, and the rest without spaces around it. The `e` of an exponent belongs to the number.
fn split(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let mut end = 0;
    while end < bytes.len() {
        let sign = matches!(bytes[end], b'+' | b'-') && (end == 0 || matches!(bytes[end - 1], b'e' | b'E'));
        let exponent = matches!(bytes[end], b'e' | b'E')
            && end > 0
            && matches!(bytes.get(end + 1), Some(b'0'..=b'9' | b'+' | b'-'));
        if !(bytes[end].is_ascii_digit() || matches!(bytes[end], b'.' | b'_' | b',') || sign || exponent) {
            break;
        }
        end += 1;
    }
    (&text[..end], text[end..].trim())
}

/// Digits without the underscores that separate thousands.
fn number_text(text: &str) -> String {
    text.replace('_', "")
}

fn number(digits: &str) -> Option<f64> {
    let edge = |c: char| c == '_';
    if digits.starts_with(edge) || digits.ends_with(edge) {
        return None;
    }
    number_text(digits).parse().ok().filter(|value: &f64| value.is_finite())
}

/// A size in bytes: `16GiB`, `25MB`, `80G` (GiB), `26214400`.
///
/// # Errors
/// Another text; `16Gb`, which may mean bits.
pub fn bytes(text: &str) -> Result<u64, NotAQuantity> {
    let (digits, suffix) = split(text.trim());
    // `Gb` are gigabits to some; nobody writes `gb` for bits where a size is asked for.
    if let ["K" | "M" | "G" | "T", "b"] = [suffix.get(..1).unwrap_or(""), suffix.get(1..).unwrap_or("")] {
        let (scale, bits) = (&suffix[..1], number(digits).unwrap_or_default() / 8.0);
        return Err(NotAQuantity {
            problem: format!("is {digits}{scale}B if b is bytes, and {bits}{scale}B if it is bits"),
            hint: format!("write {digits}{scale}B or {bits}{scale}B"),
        });
    }
    BYTES.whole(text, 1 << 60)
}

/// A sequence length or a number of sequences: `4096`, `8k` (8192).
pub fn length(text: &str) -> Result<u32, NotAQuantity> {
    LENGTH.whole(text, u64::from(u32::MAX)).map(|value| value as u32)
}

/// A number of steps and the like: `500`, `2k` (2000).
pub fn count(text: &str) -> Result<u32, NotAQuantity> {
    COUNT.whole(text, u64::from(u32::MAX)).map(|value| value as u32)
}

/// A number of tokens: `4M`, `300B`, `1T`, `1e12`, `4_194_304`, all decimal; `4Mi` is 4,194,304.
pub fn tokens(text: &str) -> Result<u64, NotAQuantity> {
    let lower = text.trim().to_lowercase();
    let text = ["tokens", "token", "tok"].iter().find_map(|word| lower.strip_suffix(word)).unwrap_or(&lower);
    TOKENS.whole(text, 1 << 62)
}

/// A time in seconds: `90`, `90s`, `10m`, `1h30m`, `500ms`.
///
/// # Errors
/// Another text; `10M`, which is no minute.
pub fn seconds(text: &str) -> Result<f64, NotAQuantity> {
    let mut rest = text.trim();
    let mut total = 0.0;
    if rest.is_empty() {
        return Err(TIME.wrong("is not a time"));
    }
    let mut last = f64::INFINITY;
    let mut first = true;
    while !rest.is_empty() {
        let (digits, suffix) = split(rest);
        if digits.is_empty() {
            return Err(TIME.wrong("is not a time"));
        }
        let end = suffix.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(suffix.len());
        let unit = suffix[..end].trim();
        if unit == "M" {
            return Err(TIME.wrong(format!("is {digits} minutes as `{digits}m`; `M` is not a unit of time")));
        }
        let factor = TIME.one(&format!("1{unit}"))?;
        // `1h30` leaves open what the 30 are.
        if factor >= last || (!first && unit.is_empty()) {
            return Err(TIME.wrong("has parts without a unit, or not from the largest unit to the smallest"));
        }
        total += TIME.one(&format!("{digits}{unit}"))?;
        (last, first) = (factor, false);
        rest = &suffix[end..];
    }
    if total < 0.0 {
        return Err(TIME.wrong("is below zero"));
    }
    Ok(total)
}

/// A price in US dollars per hour: `2.50`, `$2.50`, `2.50 USD`, `2.50/h`.
pub fn money(text: &str) -> Result<f64, NotAQuantity> {
    let wrong = |problem: &str| NotAQuantity {
        problem: problem.to_owned(),
        hint: "write e.g. 2.50 or $2.50".to_owned(),
    };
    let lower = text.trim().to_lowercase();
    let mut rest = lower.as_str();
    for per in ["/h", "/hour", "/hr", "per hour"] {
        rest = rest.strip_suffix(per).unwrap_or(rest).trim_end();
    }
    if ["€", "£", "¥", "eur", "gbp", "cny", "jpy"].iter().any(|sign| rest.contains(sign)) {
        return Err(wrong("is not in US dollars"));
    }
    let signs = ["$", "usd"];
    rest = signs.iter().find_map(|sign| rest.strip_prefix(sign)).unwrap_or(rest).trim();
    rest = signs.iter().find_map(|sign| rest.strip_suffix(sign)).unwrap_or(rest).trim();
    if rest.contains(',') {
        return Err(wrong("is ambiguous: a comma separates thousands for some and decimals for others"));
    }
    let (digits, suffix) = split(rest);
    let value =
        number(digits).filter(|_| suffix.is_empty()).ok_or_else(|| wrong("is not an amount of money"))?;
    if value < 0.0 {
        return Err(wrong("is below zero"));
    }
    Ok(value)
}

/// Replaces quantities that are written as text in a file by numbers, in the unit that the field's name ends in.
///
/// # Errors
/// A text that is not a quantity, at its place in the file.
pub(crate) fn in_file(value: &mut serde_json::Value, path: &str) -> Result<(), InputError> {
    use serde_json::Value;
    match value {
        Value::Object(fields) => fields.iter_mut().try_for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            of_field(key, value, &path)?;
            in_file(value, &path)
        }),
        Value::Array(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| in_file(item, &format!("{path}[{index}]"))),
        _ => Ok(()),
    }
}

fn of_field(key: &str, value: &mut serde_json::Value, path: &str) -> Result<(), InputError> {
    use serde_json::Value;
    if let Value::Array(items) = value {
        return items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| of_field(key, item, &format!("{path}[{index}]")));
    }
    let Value::String(text) = value else { return Ok(()) };
    let read: Result<Value, NotAQuantity> = match key {
        "training_tokens" => tokens(text).map(Value::from),
        "usd_per_device_hour" => money(text).map(Value::from),
        "global_batch" | "seq_len" | "max_seq_len" | "micro_batch" => length(text).map(Value::from),
        "warmup_steps" | "total_steps" => count(text).map(Value::from),
        "min_steps" => count(text).map(|steps| Value::from(f64::from(steps))),
        key if key.ends_with("_bytes") => bytes(text).map(Value::from),
        key if key.ends_with("bytes_per_s") => rate(text).map(Value::from),
        key if key.ends_with("latency_s") => seconds(text).map(Value::from),
        _ => return Ok(()),
    };
    *value = read.map_err(|error| error.at(path, text))?;
    Ok(())
}

/// Bytes per second of a link or a memory: `50GB/s`, `400Gbit/s`, `400gbps`. A capital B is bytes.
///
/// # Errors
/// Another text, or one in which bits and bytes cannot be told apart.
pub fn rate(text: &str) -> Result<f64, NotAQuantity> {
    let wrong = |problem: String| NotAQuantity {
        problem,
        hint: "write e.g. 50GB/s (bytes) or 400Gbit/s (bits); a number alone is bytes per second".to_owned(),
    };
    let (digits, suffix) = split(text.trim());
    let number = number(digits).ok_or_else(|| wrong("is not a rate".to_owned()))?;
    if suffix.is_empty() {
        return Ok(number);
    }
    let per = suffix.strip_suffix("/s").or_else(|| suffix.strip_suffix("ps"));
    let unit = per.ok_or_else(|| wrong(format!("has no unit of a rate: `{suffix}`")))?;
    let lower = unit.to_ascii_lowercase();
    let (scale, kind) = match lower.chars().next() {
        Some('k') => (1e3, &unit[1..]),
        Some('m') => (1e6, &unit[1..]),
        Some('g') => (1e9, &unit[1..]),
        Some('t') => (1e12, &unit[1..]),
        _ => (1.0, unit),
    };
    let binary = kind.strip_prefix('i');
    if binary.is_some() {
        let scale = match scale {
            1e3 => KIB,
            1e6 => MIB,
            1e9 => GIB,
            1e12 => TIB,
            _ => 1.0,
        };
        return match binary {
            Some("B") => Ok(number * scale),
            _ => Err(wrong(format!("has no unit of a rate: `{suffix}`"))),
        };
    }
    match kind {
        "B" => Ok(number * scale),
        "bit" | "Bit" | "b" => Ok(number * scale / 8.0),
        _ => Err(wrong(format!("has no unit of a rate: `{suffix}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_with_decimal_or_binary_units() {
        for (text, expected) in [
            ("0", 0),
            ("26214400", 26_214_400),
            ("18446744073709", 18_446_744_073_709),
            ("9007199254740993", 9_007_199_254_740_993),
            ("26_214_400", 26_214_400),
            ("25MB", 25_000_000),
            ("25mb", 25_000_000),
            ("25MiB", 25 << 20),
            ("25 MiB", 25 << 20),
            ("25M", 25 << 20),
            ("80G", 80 << 30),
            ("80Gi", 80 << 30),
            ("16GB", 16_000_000_000),
            ("16GiB", 16 << 30),
            ("1.5GiB", 3 << 29),
            ("1e9", 1_000_000_000),
            ("1e9B", 1_000_000_000),
            ("512kB", 512_000),
            ("4kb", 4_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("", "is not a size"),
            ("many", "is not a size"),
            ("16GBit", "has no unit `GBit`"),
            ("16Gb", "16GB if b is bytes, and 2GB if"),
            ("16Q", "has no unit `Q`"),
            ("1.0000001kB", "whole number"),
            ("-1GB", "below zero"),
            ("1,5GB", "separated by `_`"),
            ("_5", "is not a size"),
            ("1e400", "is not a size"),
            ("1e300TB", "too large"),
            ("4EB", "has no unit `EB`"),
            ("99999999999999999999", "too large"),
            ("inf", "is not a size"),
            ("0x10", "has no unit `x10`"),
        ] {
            let error = bytes(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("GB"), "{text}: {error}");
        }
    }

    #[test]
    fn a_k_is_1024_in_lengths_and_1000_in_steps_and_tokens() {
        for (text, expected) in
            [("4096", 4096), ("8k", 8192), ("8K", 8192), ("128k", 131_072), ("1.5k", 1536)]
        {
            assert_eq!(length(text), Ok(expected), "{text}");
        }
        assert_eq!((count("2k"), count("1e3")), (Ok(2000), Ok(1000)));
        for (text, expected) in [
            ("4M", 4_000_000),
            ("4m", 4_000_000),
            ("4Mi", 4 << 20),
            ("300B", 300_000_000_000),
            ("1T", 1_000_000_000_000),
            ("1.5T", 1_500_000_000_000),
            ("15T tokens", 15_000_000_000_000),
            ("1e12", 1_000_000_000_000),
            ("1_000_000", 1_000_000),
        ] {
            assert_eq!(tokens(text), Ok(expected), "{text}");
        }
        for wrong in ["", "8kk", "k", "1/2", "8 k b", "5000M", "0.3", "-1", "1k5", "½"] {
            let error = length(wrong).unwrap_err().to_string();
            assert!(error.contains("4096") && error.contains("8k"), "{wrong}: {error}");
        }
        for wrong in ["", "1Q", "1,000", "1.5", "-4M", "nan"] {
            let error = tokens(wrong).unwrap_err().to_string();
            assert!(error.contains("4M") && error.contains("1T"), "{wrong}: {error}");
        }
    }

    #[test]
    fn times_are_seconds_unless_they_say_otherwise() {
        for (text, expected) in [
            ("90", 90.0),
            ("0.5", 0.5),
            ("90s", 90.0),
            ("10m", 600.0),
            ("2min", 120.0),
            ("1h", 3600.0),
            ("1h30m", 5400.0),
            ("1h 30m", 5400.0),
            ("500ms", 0.5),
            ("1d", 86_400.0),
            ("20us", 2e-5),
        ] {
            assert!((seconds(text).unwrap() - expected).abs() < 1e-12 * expected, "{text}");
        }
        for wrong in ["", "s", "10M", "1h30", "30m1h", "5m5m", "soon", "-5s", "1y", "1e999"] {
            let error = seconds(wrong).unwrap_err().to_string();
            assert!(error.contains("90s") && error.contains("10m"), "{wrong}: {error}");
        }
    }

    #[test]
    fn money_and_rates_are_read_or_refused() {
        for text in ["2.50", "$2.50", "2.5", "2.50 USD", "2.50/h", "$2.50/hour"] {
            assert_eq!(money(text), Ok(2.5), "{text}");
        }
        for wrong in ["", "$", "2,50", "cheap", "-1", "2.5k", "2.50€", "2.50 EUR"] {
            assert!(money(wrong).is_err(), "{wrong}");
        }
        for (text, expected) in [
            ("5e10", 5e10),
            ("50GB/s", 50e9),
            ("400Gbit/s", 50e9),
            ("400gbps", 50e9),
            ("400Gb/s", 50e9),
            ("1TB/s", 1e12),
            ("1GiB/s", 1_073_741_824.0),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for wrong in ["", "fast", "50GB", "50X/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_of_files_have_the_unit_of_their_name() {
        let mut job = serde_json::json!({
            "seq_len": "8k", "global_batch": 4, "name": "8k",
            "allow": { "bucket_bytes": ["25MiB", 3], "micro_batch": ["1k"] },
            "nodes": [{ "device": { "memory_bytes": "80GiB" }, "link": { "bytes_per_s": "400gbps", "latency_s": "2us" } }],
        });
        in_file(&mut job, "").unwrap();
        assert_eq!(job["seq_len"], 8192);
        assert_eq!(job["name"], "8k");
        assert_eq!(job["allow"]["bucket_bytes"], serde_json::json!([25 << 20, 3]));
        assert_eq!(job["allow"]["micro_batch"][0], 1024);
        assert_eq!(job["nodes"][0]["device"]["memory_bytes"], 80_u64 << 30);
        assert_eq!(job["nodes"][0]["link"]["bytes_per_s"], 50e9);
        let mut wrong = serde_json::json!({ "nodes": [{ "device": { "memory_bytes": "80 apples" } }] });
        let error = in_file(&mut wrong, "").unwrap_err().to_string();
        assert!(
            error.contains("`nodes[0].device.memory_bytes` is `80 apples`: has no unit `apples`"),
            "{error}"
        );
    }
}
