//! Time of a transfer over its size, both logarithmic: measured points with their intervals, fitted lines.

use super::canvas::{Area, Done, Drawn, Hotspot, legend, mesh};
use super::palette;
use crate::ReportInput;
use autodist_spec::profile::LinkFit;
use autodist_spec::{Bytes, Profile, Sample, Seconds};
use plotters::coord::combinators::{IntoLogRange, LogCoord};
use plotters::prelude::*;

type LogChart<'a, DB> = ChartContext<'a, DB, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

const MESSAGE: &str = "message";

/// Everything measured on one kind of group.
struct Series<'a> {
    what: &'static str,
    group: u32,
    stride: u32,
    points: Vec<(Bytes, &'a Sample)>,
}

impl Series<'_> {
    fn name(&self) -> String {
        if self.what == MESSAGE {
            return format!("{MESSAGE}, stride {}", self.stride);
        }
        format!("{}, group of {}, stride {}", self.what, self.group, self.stride)
    }

    /// Names of a fit are free text: `all_reduce` and `all-reduce` are the same.
    fn fitted_by(&self, fit: &LinkFit) -> bool {
        let plain = |text: &str| text.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let same_group = self.what == MESSAGE || fit.group == self.group;
        same_group && fit.stride == self.stride && plain(&fit.what) == plain(self.what)
    }
}

fn series(profile: &Profile) -> Vec<Series<'_>> {
    let collectives =
        profile.collectives.iter().map(|c| (c.kind.name(), c.group, c.stride, c.bytes, &c.time));
    let messages = profile.messages.iter().map(|m| (MESSAGE, 2, m.stride, m.bytes, &m.time));
    let mut all: Vec<Series<'_>> = Vec::new();
    for (what, group, stride, bytes, time) in collectives.chain(messages) {
        if bytes == Bytes::ZERO || !(time.median_s.0 > 0.0 && time.median_s.0.is_finite()) {
            continue;
        }
        match all.iter_mut().find(|s| (s.what, s.group, s.stride) == (what, group, stride)) {
            Some(known) => known.points.push((bytes, time)),
            None => all.push(Series { what, group, stride, points: vec![(bytes, time)] }),
        }
    }
    all
}

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let Some(profile) = input.profile else { return Ok(Vec::new()) };
    let all = series(profile);
    let entries: Vec<(String, RGBColor)> =
        all.iter().enumerate().map(|(i, s)| (s.name(), palette::series(i))).collect();
    let used = legend(area, &entries, 24)?;
    let (_, body) = area.split_vertically(used);
    let points = || all.iter().flat_map(|s| &s.points);
    let sizes = bounds(points().map(|(bytes, _)| bytes.as_f64()));
    let times = bounds(points().map(|(_, time)| time.median_s.0));
    let mut chart = ChartBuilder::on(&body)
        .margin_top(12)
        .margin_right(50)
        .margin_left(20)
        .x_label_area_size(58)
        .y_label_area_size(110)
        .build_cartesian_2d((sizes.0..sizes.1).log_scale().base(2.0), (times.0..times.1).log_scale())?;
    mesh(
        &mut chart,
        "size of the whole tensor or message",
        "time",
        &|bytes| whole(&Bytes(bytes.round() as u64).to_string()),
        &|seconds| whole(&Seconds(*seconds).to_string()),
    )?;
    let mut hotspots = Vec::new();
    for (index, series) in all.iter().enumerate() {
        let color = palette::series(index);
        for fit in profile.fits.iter().filter(|fit| series.fitted_by(fit)) {
            draw_fit(&chart, series, fit, times, color)?;
        }
        for (bytes, time) in &series.points {
            hotspots.push(draw_point(&chart, series, *bytes, time, times, color)?);
        }
    }
    Ok(hotspots)
}

/// `1.00 KiB` becomes `1 KiB` on an axis.
fn whole(text: &str) -> String {
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text.to_owned(),
    }
}

/// Margins on both sides of the data, on a logarithmic axis.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    if low.is_finite() && high > 0.0 { (low / 1.6, high * 1.6) } else { (1.0, 10.0) }
}

fn draw_fit<DB: DrawingBackend>(
    chart: &LogChart<'_, DB>,
    series: &Series<'_>,
    fit: &LinkFit,
    (low, high): (f64, f64),
    color: RGBColor,
) -> Done<DB> {
    let sizes = series.points.iter().map(|(bytes, _)| bytes.as_f64());
    let (first, last) = sizes.fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(v), b.max(v)));
    let line: Vec<(f64, f64)> = (0..=48)
        .map(|i| first * (last / first).powf(f64::from(i) / 48.0))
        .map(|bytes| (bytes, fit.alpha_s.0 + fit.beta_s_per_byte * bytes))
        .filter(|(_, time)| (low..=high).contains(time))
        .collect();
    chart.plotting_area().draw(&PathElement::new(line, color.stroke_width(2)))
}

fn draw_point<DB: DrawingBackend>(
    chart: &LogChart<'_, DB>,
    series: &Series<'_>,
    bytes: Bytes,
    time: &Sample,
    (low, high): (f64, f64),
    color: RGBColor,
) -> Result<Hotspot, DrawingAreaErrorKind<DB::ErrorType>> {
    let x = bytes.as_f64();
    let area = chart.plotting_area();
    let interval = [(x, time.low_s.0.clamp(low, high)), (x, time.high_s.0.clamp(low, high))];
    area.draw(&PathElement::new(interval, color.stroke_width(1)))?;
    area.draw(&Circle::new((x, time.median_s.0), 5, color.filled()))?;
    let at = chart.backend_coord(&(x, time.median_s.0));
    let says = format!(
        "{}, {bytes}: {} [{}, {}], {}",
        series.name(),
        time.median_s,
        time.low_s,
        time.high_s,
        time.provenance
    );
    Ok(Hotspot { corners: ((at.0 - 6, at.1 - 6), (at.0 + 6, at.1 + 6)), says })
}
