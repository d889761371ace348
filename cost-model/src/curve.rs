//! Interpolation and extrapolation of measured times.

use autodist_spec::{Provenance, Sample};
use std::iter::Sum;
use std::ops::{Add, Mul};

/// A predicted duration, the uncertainty of its median, and its provenance.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Price {
    pub seconds: f64,
    /// Half-width, in seconds, of the 95 % interval of the median.
    pub half_width: f64,
    /// The part of the price that lies above the median, because the interval is wide, in seconds.
    pub caution: f64,
    pub provenance: Provenance,
}

/// Threshold of a wide interval: half of the median, a quarter on either side.
const WIDE: f64 = 0.5;

impl Price {
    pub const ZERO: Self =
        Self { seconds: 0.0, half_width: 0.0, caution: 0.0, provenance: Provenance::Measured };

    /// Price of an operation in the planner's inner loop: the median, or the top of its interval if the
    /// interval is wide, so that no plan wins by chance from a wide interval. Lower bounds and simulations
    /// use the same price.
    pub fn cautious(sample: &Sample) -> Self {
        let price = Self::from(sample);
        let caution = if sample.relative_width() > WIDE { sample.high_s.0 - sample.median_s.0 } else { 0.0 };
        let caution = caution.max(0.0);
        Self { seconds: price.seconds + caution, caution, ..price }
    }

    fn no_better_than(self, provenance: Provenance) -> Self {
        Self { provenance: self.provenance.max(provenance), ..self }
    }
}

impl From<&Sample> for Price {
    fn from(sample: &Sample) -> Self {
        let half_width = (0.5 * (sample.high_s.0 - sample.low_s.0)).max(0.0);
        Self { seconds: sample.median_s.0, half_width, caution: 0.0, provenance: sample.provenance }
    }
}

/// Medians add; so do half-widths, as if all medians had the same sign of error; the least trusted provenance
/// is kept.
impl Add for Price {
    type Output = Self;
    fn add(self, rhs: Self) -> Self {
        Self {
            seconds: self.seconds + rhs.seconds,
            half_width: self.half_width + rhs.half_width,
            caution: self.caution + rhs.caution,
            provenance: self.provenance.max(rhs.provenance),
        }
    }
}

impl Mul<f64> for Price {
    type Output = Self;
    fn mul(self, factor: f64) -> Self {
        Self {
            seconds: self.seconds * factor,
            half_width: self.half_width * factor,
            caution: self.caution * factor,
            ..self
        }
    }
}

impl Sum for Price {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

/// Measured times over a size, smallest size first.
#[derive(Debug, Clone, Default)]
pub struct Curve {
    points: Vec<(f64, Price)>,
    /// `alpha + beta * size`, if there is a fit over all sizes.
    fit: Option<(f64, f64)>,
}

/// The position of a size relative to the points of a curve.
enum Place<'a> {
    Exact(Price),
    Between(&'a (f64, Price), &'a (f64, Price)),
    /// Outside the range: the nearest point, and its neighbour.
    Beyond(&'a (f64, Price), Option<&'a (f64, Price)>),
    Nowhere,
}

impl Curve {
    /// If a size occurs twice, its last time is kept.
    pub fn insert(&mut self, size: f64, price: Price) {
        match self.points.binary_search_by(|(x, _)| x.total_cmp(&size)) {
            Ok(at) => self.points[at].1 = price,
            Err(at) => self.points.insert(at, (size, price)),
        }
    }

    pub fn set_fit(&mut self, alpha_s: f64, beta_s_per_unit: f64) {
        self.fit = Some((alpha_s, beta_s_per_unit));
    }

    /// Linear interpolation in log-log between points, where times follow a power law piece by piece; beyond
    /// them the fit (Hockney's alpha + beta n), or else the line through the last two points.
    pub fn log_log(&self, size: f64) -> Option<Price> {
        Some(match self.place(size) {
            Place::Exact(price) => price,
            Place::Between(a, b) => log_between(a, b, size),
            Place::Beyond(near, next) => match self.fit {
                Some((alpha, beta)) => like(near.1, alpha + beta * size),
                None => beyond(near, next, size),
            },
            Place::Nowhere => return None,
        })
    }

    /// Linear interpolation between points, linear extrapolation beyond them.
    pub fn linear(&self, size: f64) -> Option<Price> {
        Some(match self.place(size) {
            Place::Exact(price) => price,
            Place::Between(a, b) => linear_between(a, b, size),
            Place::Beyond(near, next) => beyond(near, next, size),
            Place::Nowhere => return None,
        })
    }

    /// Log-log interpolation between points, proportional to the nearest point beyond them.
    pub fn proportional(&self, size: f64) -> Option<Price> {
        Some(match self.place(size) {
            Place::Exact(price) => price,
            Place::Between(a, b) => log_between(a, b, size),
            Place::Beyond(near, _) => beyond(near, None, size),
            Place::Nowhere => return None,
        })
    }

    fn place(&self, size: f64) -> Place<'_> {
        let points = &self.points;
        match points.binary_search_by(|(x, _)| x.total_cmp(&size)) {
            Ok(at) => Place::Exact(points[at].1),
            Err(_) if points.is_empty() => Place::Nowhere,
            Err(0) => Place::Beyond(&points[0], points.get(1)),
            Err(at) if at == points.len() => {
                Place::Beyond(&points[at - 1], at.checked_sub(2).map(|i| &points[i]))
            }
            Err(at) => Place::Between(&points[at - 1], &points[at]),
        }
    }
}

/// Position of `x` between `a` and `b`, from 0 to 1.
pub fn linear_weight(a: f64, b: f64, x: f64) -> f64 {
    (x - a) / (b - a)
}

fn linear_between(a: &(f64, Price), b: &(f64, Price), x: f64) -> Price {
    let weight = linear_weight(a.0, b.0, x);
    interpolated(a, b, weight, a.1.seconds + weight * (b.1.seconds - a.1.seconds))
}

/// Linear if a size or a time is zero and has no logarithm.
fn log_between(a: &(f64, Price), b: &(f64, Price), x: f64) -> Price {
    if a.0 <= 0.0 || a.1.seconds <= 0.0 || b.1.seconds <= 0.0 {
        return linear_between(a, b, x);
    }
    let weight = (x / a.0).ln() / (b.0 / a.0).ln();
    interpolated(a, b, weight, a.1.seconds * (b.1.seconds / a.1.seconds).powf(weight))
}

fn interpolated(a: &(f64, Price), b: &(f64, Price), weight: f64, seconds: f64) -> Price {
    let half_width = a.1.half_width + weight * (b.1.half_width - a.1.half_width);
    let caution = a.1.caution + weight * (b.1.caution - a.1.caution);
    let provenance = a.1.provenance.max(b.1.provenance);
    Price { seconds, half_width, caution, provenance }.no_better_than(Provenance::Interpolated)
}

/// The line through two points, or through the origin if there is one point or the line would be negative at
/// zero.
fn beyond(near: &(f64, Price), next: Option<&(f64, Price)>, x: f64) -> Price {
    let proportional = if near.0 > 0.0 { near.1.seconds * x / near.0 } else { near.1.seconds };
    let affine = next
        .map(|next| near.1.seconds + (next.1.seconds - near.1.seconds) * linear_weight(near.0, next.0, x));
    let rises = |line: &f64| {
        if x > near.0 { *line >= near.1.seconds } else { *line >= 0.0 && *line <= near.1.seconds }
    };
    like(near.1, affine.filter(rises).unwrap_or(proportional))
}

/// `seconds` with the relative uncertainty of `near`, and provenance `Modelled`.
fn like(near: Price, seconds: f64) -> Price {
    let relative = |part: f64| if near.seconds > 0.0 { part / near.seconds } else { 0.0 };
    let (half_width, caution) = (seconds * relative(near.half_width), seconds * relative(near.caution));
    Price { seconds, half_width, caution, provenance: near.provenance }.no_better_than(Provenance::Modelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::Seconds;

    fn curve(points: &[(f64, f64)]) -> Curve {
        let mut curve = Curve::default();
        for (size, seconds) in points {
            curve.insert(*size, Price { seconds: *seconds, ..Price::ZERO });
        }
        curve
    }

    #[test]
    fn a_power_law_is_met_exactly_between_its_points() {
        let curve = curve(&[(1.0, 1.0), (16.0, 64.0)]); // x^1.5
        let price = curve.log_log(4.0).unwrap();
        assert!((price.seconds - 8.0).abs() < 1e-12);
        assert_eq!(price.provenance, Provenance::Interpolated);
        assert_eq!(curve.log_log(16.0).unwrap().provenance, Provenance::Measured);
    }

    #[test]
    fn beyond_the_points_runs_the_fit_or_the_line() {
        let mut curve = curve(&[(10.0, 3.0), (20.0, 5.0)]);
        assert_eq!(curve.log_log(30.0).unwrap().seconds, 7.0);
        assert_eq!(curve.log_log(0.0).unwrap().seconds, 1.0);
        assert_eq!(curve.proportional(40.0).unwrap().seconds, 10.0);
        curve.set_fit(2.0, 1.0);
        let price = curve.log_log(30.0).unwrap();
        assert_eq!((price.seconds, price.provenance), (32.0, Provenance::Modelled));
    }

    #[test]
    fn what_is_hardly_known_is_priced_at_the_top_of_its_interval() {
        let sample = |low, high| Sample {
            median_s: Seconds(1.0),
            low_s: Seconds(low),
            high_s: Seconds(high),
            count: 9,
            provenance: Provenance::Measured,
        };
        let known = Price::cautious(&sample(0.8, 1.2));
        assert_eq!((known.seconds, known.caution), (1.0, 0.0));
        let wide = Price::cautious(&sample(0.9, 1.6));
        assert_eq!((wide.seconds, wide.caution), (1.6, 1.6 - 1.0));
    }

    #[test]
    fn no_line_leads_below_zero_time() {
        let price = curve(&[(10.0, 1.0), (20.0, 5.0)]).linear(5.0).unwrap();
        assert_eq!(price.seconds, 0.5);
    }
}
