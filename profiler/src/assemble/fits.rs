//! Linear fits to the times of collectives and send/recv: a latency and a bandwidth.

use super::KINDS;
use autodist_spec::Seconds;
use autodist_spec::profile::{CollectiveCost, LinkFit, MessageCost};

pub(super) fn fits(collectives: &[CollectiveCost], messages: &[MessageCost]) -> Vec<LinkFit> {
    let mut fits = Vec::new();
    for kind in KINDS {
        let mut groups: Vec<(u32, u32)> = collectives.iter().map(|c| (c.group, c.stride)).collect();
        groups.sort_unstable();
        groups.dedup();
        for (group, stride) in groups {
            let points: Vec<(f64, f64)> = collectives
                .iter()
                .filter(|c| (c.kind, c.group, c.stride) == (kind, group, stride))
                .map(|c| (c.bytes.as_f64(), c.time.median_s.0))
                .collect();
            fits.extend(fit(kind.key(), group, stride, &points));
        }
    }
    let mut strides: Vec<u32> = messages.iter().map(|m| m.stride).collect();
    strides.dedup();
    for stride in strides {
        let of_stride = messages.iter().filter(|m| m.stride == stride);
        let points: Vec<(f64, f64)> = of_stride.map(|m| (m.bytes.as_f64(), m.time.median_s.0)).collect();
        fits.extend(fit("message", 2, stride, &points));
    }
    fits
}

/// Least squares of `time = alpha + beta * bytes`, each point weighted by 1 / time, so that all relative
/// errors have the same weight; `None` with fewer than two points.
fn fit(what: &str, group: u32, stride: u32, points: &[(f64, f64)]) -> Option<LinkFit> {
    let points: Vec<_> = points.iter().filter(|(_, t)| *t > 0.0).collect();
    if points.len() < 2 {
        return None;
    }
    let (mut s, mut sx, mut sxx, mut sy, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, y) in &points {
        let weight = 1.0 / (y * y);
        s += weight;
        sx += weight * x;
        sxx += weight * x * x;
        sy += weight * y;
        sxy += weight * x * y;
    }
    let beta = ((s * sxy - sx * sy) / (s * sxx - sx * sx)).max(0.0);
    let alpha = ((sy - beta * sx) / s).max(0.0);
    let mut residuals: Vec<f64> = points.iter().map(|(x, y)| ((alpha + beta * x) / y - 1.0).abs()).collect();
    residuals.sort_by(f64::total_cmp);
    Some(LinkFit {
        what: what.to_owned(),
        group,
        stride,
        alpha_s: Seconds(alpha),
        beta_s_per_byte: beta,
        residual: residuals[residuals.len() / 2],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_fitted_exactly() {
        let points: Vec<(f64, f64)> = [64.0, 4096.0, 1e6].iter().map(|x| (*x, 2e-5 + x * 1e-10)).collect();
        let fit = fit("message", 2, 1, &points).unwrap();
        assert!(
            (fit.alpha_s.0 / 2e-5 - 1.0).abs() < 1e-9 && (fit.beta_s_per_byte / 1e-10 - 1.0).abs() < 1e-9
        );
        assert!(fit.residual < 1e-9);
    }
}
