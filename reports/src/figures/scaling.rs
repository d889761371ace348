//! Tokens per second and device against the number of devices, a line for each kind of cluster; the error bar of
//! each point is a bar.

use super::canvas::{self, Area, Done, SMALL, Side, legend, mesh, plot, text};
use super::palette;
use crate::ReportError;
use crate::training::rounded;
use crate::words::count;
use autodist_spec::BestOn;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::prelude::*;

type Curve<'a> = (String, Vec<(u32, &'a BestOn)>);

const NAME: &str = "scaling";
const SIZE: (u32, u32) = (1200, 578);
/// Most curves that the title names.
const NAMED: usize = 2;

/// The figure as a PNG file; with `tokens`, each point says how many days that many tokens take.
///
/// # Errors
/// A fault of the drawing library.
pub(crate) fn png(model: &str, tokens: Option<&str>, curves: &[Curve<'_>]) -> Result<Vec<u8>, ReportError> {
    let days = tokens.map_or_else(String::new, |tokens| format!("; at the points, days for {tokens} tokens"));
    let subject = format!("Tokens per second and device by the number of devices: {model}{days}");
    super::painted(NAME, SIZE, (&finding(curves), &subject), |body| {
        draw(body, tokens, curves)
            .map_err(|error| ReportError::Drawing { figure: NAME, reason: error.to_string() })
    })
}

/// How much of its speed each device keeps; of many curves, only the range.
fn finding(curves: &[Curve<'_>]) -> String {
    let kept = |(name, sizes): &Curve<'_>| {
        let (first, last) = (sizes.first()?, sizes.last()?);
        let part = last.1.tokens_per_s_per_device / first.1.tokens_per_s_per_device;
        Some((name.clone(), 100.0 * part, count(last.0.into())))
    };
    let kept: Vec<(String, f64, String)> = curves.iter().filter_map(kept).collect();
    if kept.len() > NAMED {
        let (low, high) = kept
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(low, high), (_, part, _)| (low.min(*part), high.max(*part)));
        return format!(
            "From the fewest to the most devices, {low:.0} to {high:.0} % of the speed per device is left"
        );
    }
    let kept = kept
        .iter()
        .map(|(name, part, size)| format!("{name} has {part:.0} % of its speed per device on {size}"));
    kept.collect::<Vec<_>>().join("; ")
}

fn draw<DB: DrawingBackend>(area: &Area<DB>, tokens: Option<&str>, curves: &[Curve<'_>]) -> Done<DB> {
    let entries: Vec<(String, RGBColor)> =
        curves.iter().enumerate().map(|(index, (name, _))| (name.clone(), palette::series(index))).collect();
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let all = || curves.iter().flat_map(|(_, sizes)| sizes);
    let (low, high) = all().fold((f64::INFINITY, 1.0_f64), |(low, high), (devices, _)| {
        (low.min(f64::from(*devices)), high.max(f64::from(*devices)))
    });
    let bar = |best: &BestOn| best.step_time_spread_s / best.step_time_s;
    let top = all().map(|(_, best)| best.tokens_per_s_per_device * (1.0 + bar(best))).fold(1e-9, f64::max);
    let (low, high) = (low.min(high) / 1.2, high * 1.2);
    let powers = (0..31).map(|power| f64::from(1_u32 << power)).filter(|n| (low..=high).contains(n));
    let axis = (low..high).log_scale().with_key_points(powers.collect());
    let mut chart = plot(&body).build_cartesian_2d(axis, 0.0..top * 1.06)?;
    mesh(&mut chart, "devices", "tokens/s per device", &|n| count(n.round() as u64), &|n| rounded(*n))?;
    for (index, (_, sizes)) in curves.iter().enumerate() {
        let color = palette::series(index);
        let points = sizes.iter().map(|(devices, best)| (f64::from(*devices), best.tokens_per_s_per_device));
        chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(3)))?;
        chart.draw_series(points.map(|point| Circle::new(point, 5, color.filled())))?;
        for (devices, best) in sizes {
            let (x, y) = (f64::from(*devices), best.tokens_per_s_per_device);
            let ends = [(x, y * (1.0 - bar(best)).max(0.0)), (x, y * (1.0 + bar(best)))];
            chart.draw_series([PathElement::new(ends, color.mix(0.5).stroke_width(1))])?;
            if tokens.is_some()
                && let Some(training) = best.training
            {
                let days = rounded(training.time_s.0 / 86_400.0);
                let at = chart.backend_coord(&(x, y));
                let at = canvas::local(&body, (at.0, at.1 + 18));
                text(&body, &days, at, Side::Center, SMALL, color)?;
            }
        }
    }
    Ok(())
}
