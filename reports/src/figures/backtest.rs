//! Predicted against measured step times of a table of runs, a colour for each kind of device.

use super::canvas::{Area, Done, legend, mesh, plot, tick};
use super::palette;
use super::scatter::{band, one_two_five};
use crate::ReportError;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::prelude::*;

const NAME: &str = "backtest";
const SIZE: (u32, u32) = (1200, 800);

/// A run of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct BacktestPoint {
    /// What tells its colour, such as the name of the device.
    pub kind: String,
    pub measured_s: f64,
    pub predicted_s: f64,
}

/// The figure as a PNG file; `finding` is its title, and `subject` says what was compared.
///
/// # Errors
/// A fault of the drawing library.
pub fn backtest_figure(
    finding: &str,
    subject: &str,
    points: &[BacktestPoint],
) -> Result<Vec<u8>, ReportError> {
    super::painted(NAME, SIZE, (finding, subject), |body| {
        draw(body, points).map_err(|error| ReportError::Drawing { figure: NAME, reason: error.to_string() })
    })
}

/// The kinds, those with the most points first; the rarest ones share the last colour.
fn kinds(points: &[BacktestPoint]) -> Vec<String> {
    let mut kinds: Vec<(usize, String)> = Vec::new();
    for point in points {
        match kinds.iter_mut().find(|(_, kind)| *kind == point.kind) {
            Some((count, _)) => *count += 1,
            None => kinds.push((1, point.kind.clone())),
        }
    }
    kinds.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let mut names: Vec<String> = kinds.into_iter().map(|(_, kind)| kind).collect();
    if names.len() > palette::SERIES.len() {
        names.truncate(palette::SERIES.len() - 1);
        names.push("others".to_owned());
    }
    names
}

fn draw<DB: DrawingBackend>(area: &Area<DB>, points: &[BacktestPoint]) -> Done<DB> {
    let kinds = kinds(points);
    let mut entries: Vec<(String, RGBColor)> =
        kinds.iter().enumerate().map(|(index, kind)| (kind.clone(), palette::series(index))).collect();
    entries.push(("line: predicted = measured; band: within 10 %".to_owned(), palette::MUTED));
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let times = points.iter().flat_map(|point| [point.measured_s, point.predicted_s]);
    let (low, high) =
        times.fold((f64::INFINITY, 0.0_f64), |(low, high), time| (low.min(time), high.max(time)));
    let (low, high) = if low > high { (0.1, 1.0) } else { (low / 1.2, high * 1.2) };
    let axis = || (low..high).log_scale().with_key_points(one_two_five(low, high));
    let mut chart = plot(&body).build_cartesian_2d(axis(), axis())?;
    mesh(&mut chart, "measured step time (s)", "predicted step time (s)", &tick, &tick)?;
    band(&chart, low, high)?;
    let color = |point: &BacktestPoint| {
        let place = kinds.iter().position(|kind| *kind == point.kind);
        palette::series(place.unwrap_or(kinds.len().saturating_sub(1)))
    };
    let dots = points
        .iter()
        .map(|point| Circle::new((point.measured_s, point.predicted_s), 4, color(point).mix(0.6).filled()));
    chart.draw_series(dots)?;
    Ok(())
}
