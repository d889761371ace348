//! Time and cost of a whole training, in words.

use crate::words::{count, plural};
use autodist_spec::{Plan, Seconds, Training};

/// `1 T tokens, 119,210 steps: 186 ± 37 days, 142,000 device hours, $355,000 ± $71,000 at $2.50 per device hour`.
pub(crate) fn sentence(plan: &Plan, training: &Training) -> String {
    let mut text = format!(
        "{} tokens, {}: {}, {} device hours",
        tokens(training.tokens),
        plural(training.steps, "step"),
        time(training.time_s, training.time_spread_s),
        rounded(training.device_hours)
    );
    if let (Some(usd), Some(spread)) = (training.cost_usd, training.cost_spread_usd) {
        text += &format!(", {}{}", cost(usd, spread), price(plan));
    }
    text + "; without failures and restarts"
}

/// ` at $2.50 per device hour`; of several prices, each.
fn price(plan: &Plan) -> String {
    let mut prices: Vec<String> = Vec::new();
    let alone = plan
        .cluster
        .nodes
        .iter()
        .all(|group| group.usd_per_device_hour == plan.cluster.nodes[0].usd_per_device_hour);
    for group in &plan.cluster.nodes {
        let Some(usd) = group.usd_per_device_hour else { continue };
        let of = if alone { "device".to_owned() } else { group.device.name.clone() };
        let text = format!("${usd:.2} per {of} hour");
        if !prices.contains(&text) {
            prices.push(text);
        }
    }
    format!(" at {}", prices.join(" and "))
}

/// `1.5 T`, `4 M`: a number of tokens as people write it.
pub fn tokens(number: u64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| number as f64 >= *unit) else {
        return number.to_string();
    };
    let text = format!("{:.3}", number as f64 / unit);
    format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// `186 ± 37 days`, in the largest unit of which it is at least two.
pub fn time(time: Seconds, spread: Seconds) -> String {
    let (unit, name) = unit_of(time);
    format!(
        "{} ± {} {name}",
        rounded(time / Seconds(unit)),
        two(spread / Seconds(unit), time / Seconds(unit))
    )
}

/// `5.5 minutes`, in the largest unit of which it is at least two.
pub fn duration(time: Seconds) -> String {
    let (unit, name) = unit_of(time);
    format!("{} {name}", digits(time / Seconds(unit), 2))
}

/// `$355,000 ± $71,000`.
pub fn cost(usd: f64, spread: f64) -> String {
    format!("${} ± ${}", rounded(usd), two(spread, usd))
}

fn unit_of(time: Seconds) -> (f64, &'static str) {
    let units = [(86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")];
    units.into_iter().find(|(unit, _)| time.0 >= 2.0 * unit).unwrap_or((1.0, "seconds"))
}

/// A number with three significant digits.
pub fn rounded(value: f64) -> String {
    digits(value, 3)
}

/// A spread with two significant digits, but not more digits behind the point than its value.
fn two(spread: f64, of: f64) -> String {
    let behind = decimals(of, 3).min(decimals(spread, 2));
    with(spread, behind, 2)
}

fn digits(value: f64, significant: i32) -> String {
    with(value, decimals(value, significant), significant)
}

/// Digits behind the point for this many significant ones.
fn decimals(value: f64, significant: i32) -> i32 {
    if value <= 0.0 { 0 } else { (significant - 1 - value.log10().floor() as i32).clamp(0, 6) }
}

fn with(value: f64, decimals: i32, significant: i32) -> String {
    if decimals > 0 || value <= 0.0 {
        return format!("{value:.*}", decimals.max(0) as usize);
    }
    let step = 10_f64.powi((value.log10().floor() as i32 + 1 - significant).max(0));
    count(((value / step).round() * step) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        let days = |days: f64| time(Seconds(days * 86_400.0), Seconds(days * 86_400.0 / 5.0));
        assert_eq!(
            [186.3, 12.34, 1.5, 0.05, 0.001, 0.0].map(days),
            [
                "186 ± 37 days",
                "12.3 ± 2.5 days",
                "36.0 ± 7.2 hours",
                "72.0 ± 14 minutes",
                "86.4 ± 17 seconds",
                "0 ± 0 seconds"
            ]
        );
        assert_eq!(cost(714_931.0, 142_310.0), "$715,000 ± $140,000");
        assert_eq!(cost(12.5, 1.25), "$12.5 ± $1.2");
        assert_eq!(rounded(287_123.4), "287,000");
        assert_eq!(
            [1_000_000_000_000, 1_500_000_000, 4_194_304, 12].map(tokens),
            ["1 T", "1.5 B", "4.194 M", "12"]
        );
    }
}
