//! Statistics of errors.

/// The quantile `part` of the values; `NaN` without values. Sorts them.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let at = part * (values.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    values[low] + (values[high] - values[low]) * at.fract()
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Student's t: nine of ten values are within this many standard deviations. By the expansion around the normal
/// distribution (Abramowitz and Stegun 26.7.5), to 0.1 % from five degrees of freedom on.
pub fn student_90(degrees: f64) -> f64 {
    const Z: f64 = 1.644_853_626_951;
    let powers = [3, 5, 7].map(|power| Z.powi(power));
    let first = (powers[0] + Z) / 4.0;
    let second = (5.0 * powers[1] + 16.0 * powers[0] + 3.0 * Z) / 96.0;
    let third = (3.0 * powers[2] + 19.0 * powers[1] + 17.0 * powers[0] - 15.0 * Z) / 384.0;
    Z + first / degrees + second / degrees.powi(2) + third / degrees.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn student_is_that_of_the_tables() {
        for (degrees, value) in [(5.0, 2.015), (8.0, 1.860), (10.0, 1.812), (30.0, 1.697), (1e9, 1.645)] {
            assert!((student_90(degrees) / value - 1.0).abs() < 1e-3, "{degrees}");
        }
    }
}
