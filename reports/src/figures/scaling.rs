//! Tokens per second and device against the number of devices, a line for each kind of cluster; the error bar of
//! each point is a bar.

use super::canvas::{self, Area, Done, NORMAL, SMALL, Side, fit, legend, mesh, text};
use super::supersample::{self, Supersampled};
use super::{encode, palette};
use crate::ReportError;
use crate::training::rounded;
use crate::words::count;
use autodist_spec::BestOn;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::prelude::*;

type Curve<'a> = (String, Vec<(u32, &'a BestOn)>);

const NAME: &str = "scaling";
const SIZE: (u32, u32) = (1200, 640);
const TITLE_HEIGHT: u32 = 62;

/// The figure as a PNG file; with `tokens`, each point says how many days that many tokens take.
///
/// # Errors
/// A fault of the drawing library.
pub(crate) fn png(model: &str, tokens: Option<&str>, curves: &[Curve<'_>]) -> Result<Vec<u8>, ReportError> {
    canvas::register_font()?;
    let drawing = |reason: String| ReportError::Drawing { figure: NAME, reason };
    let mut pixels = supersample::buffer(SIZE);
    {
        let root = Supersampled::new(&mut pixels, SIZE).into_drawing_area();
        let draw = || {
            root.fill(&palette::PAPER)?;
            let (head, body) = root.split_vertically(TITLE_HEIGHT);
            let title = title(model, tokens, curves);
            let lines = fit(&title, SIZE.0 as i32 - 40, NORMAL + 1);
            for (line, y) in lines.iter().zip([20, 44]) {
                text(&head, line, (20, y), Side::Left, NORMAL + 1, palette::INK)?;
            }
            draw(&body, tokens, curves)?;
            root.present()
        };
        draw().map_err(|error| drawing(error.to_string()))?;
    }
    let pixels = supersample::reduced(&pixels, SIZE);
    encode(&pixels, SIZE.0, SIZE.1).map_err(|source| ReportError::Encoding { figure: NAME, source })
}

fn title(model: &str, tokens: Option<&str>, curves: &[Curve<'_>]) -> String {
    let kept = |(name, sizes): &Curve<'_>| {
        let (first, last) = (sizes.first()?, sizes.last()?);
        let part = last.1.tokens_per_s_per_device / first.1.tokens_per_s_per_device;
        let size = count(last.0.into());
        Some(format!("{name} keeps {:.0} % of its speed per device on {size}", 100.0 * part))
    };
    let kept: Vec<String> = curves.iter().filter_map(kept).collect();
    let days = tokens.map_or_else(String::new, |tokens| format!("; days for {tokens} tokens at the points"));
    format!("{model}: {}{days}", kept.join("; "))
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
    let mut chart = ChartBuilder::on(&body)
        .margin_top(12)
        .margin_right(34)
        .margin_left(20)
        .x_label_area_size(58)
        .y_label_area_size(92)
        .build_cartesian_2d(axis, 0.0..top * 1.06)?;
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
