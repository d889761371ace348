//! Predicted against measured step time: on the diagonal the prediction is right, in the band it is within 10
//! %.

use super::canvas::{Area, Done, Drawn, Hotspot, NORMAL, SMALL, Scale, Side, fit, local, mesh, text, tick};
use super::palette;
use crate::ReportInput;
use crate::words::{signed_percent, with_spread};
use autodist_spec::{Seconds, ValidatedRun};
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange, LogCoord, WithKeyPoints};
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

const LIST: u32 = 470;
const BAND: f64 = 0.1;

/// Either of the two kinds of axis.
pub(super) trait Axis: Ranged<ValueType = f64> + ValueFormatter<f64> {}
impl Axis for RangedCoordf64 {}
impl Axis for WithKeyPoints<LogCoord<f64>> {}

pub(super) type Square<'a, DB, X> = ChartContext<'a, DB, Cartesian2d<X, X>>;

/// If step times differ by more than this factor, the axes are logarithmic: on linear ones the fast plans,
/// which matter most, would share one corner.
const LINEAR_UP_TO: f64 = 4.0;

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, input: &ReportInput<'_>) -> Drawn<DB> {
    let runs: &[ValidatedRun] = input.validation.map_or(&[], |validation| &validation.runs);
    let (plot, list) = area.split_horizontally(area.dim_in_pixel().0 - LIST);
    key(&list, runs)?;
    let (low, high) = range(runs);
    let scale = Scale::seconds(Seconds(high));
    let (low, high) = (scale.of(low), scale.of(high));
    let mut builder = ChartBuilder::on(&plot);
    builder.margin(20).x_label_area_size(58).y_label_area_size(92);
    if low > 0.0 && high > LINEAR_UP_TO * low {
        let (low, high) = (low / 1.2, high * 1.2);
        let axis = || (low..high).log_scale().with_key_points(one_two_five(low, high));
        let chart = builder.build_cartesian_2d(axis(), axis())?;
        return points(&plot, chart, (low, high), runs, scale);
    }
    let room = 0.08 * (high - low).max(0.2 * high);
    let (low, high) = ((low - room).max(0.0), high + room);
    let chart = builder.build_cartesian_2d(low..high, low..high)?;
    points(&plot, chart, (low, high), runs, scale)
}

/// Ticks of a logarithmic axis: …, 0.5, 1, 2, 5, 10, …
pub(super) fn one_two_five(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)));
    ticks.filter(|tick| (low..=high).contains(tick)).collect()
}

fn points<DB: DrawingBackend, X: Axis>(
    plot: &Area<DB>,
    mut chart: Square<'_, DB, X>,
    (low, high): (f64, f64),
    runs: &[ValidatedRun],
    scale: Scale,
) -> Drawn<DB> {
    mesh(
        &mut chart,
        &format!("measured step time ({})", scale.unit),
        &format!("predicted step time ({})", scale.unit),
        &tick,
        &tick,
    )?;
    band(&chart, low, high)?;
    let (families, named) = (families(runs), named(runs));
    let mut taken: Vec<(i32, i32)> = Vec::new();
    let mut hotspots = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        // The intervals of many plans would hide the plans.
        let intervals = runs.len() <= FEW || named.iter().any(|(one, _)| *one == index);
        let color = color_of(run, &families);
        let at = point(&chart, run, (low, high), scale, color, intervals)?;
        hotspots.push(Hotspot { corners: ((at.0 - 7, at.1 - 7), (at.0 + 7, at.1 + 7)), says: says(run) });
        taken.push(at);
    }
    let dots = taken.clone();
    for (number, (index, _)) in named.iter().enumerate() {
        let spot = free_spot(dots[*index], &taken);
        taken.push(spot);
        text(plot, &(number + 1).to_string(), local(plot, spot), Side::Center, SMALL, palette::INK)?;
    }
    Ok(hotspots)
}

/// Up to this many plans, all are numbered and have intervals.
const FEW: usize = 8;
const WORST: usize = 3;

/// The numbered plans, by their places among the runs, each with what it is: all of few, and of many the planner's
/// choice, the fastest, and those that are predicted worst.
fn named(runs: &[ValidatedRun]) -> Vec<(usize, &'static str)> {
    let order = |key: &dyn Fn(&ValidatedRun) -> f64| {
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by(|a, b| key(&runs[*a]).total_cmp(&key(&runs[*b])));
        order
    };
    let mut named: Vec<(usize, &str)> = Vec::new();
    let mut add = |index: usize, what| {
        if named.iter().all(|(one, _)| *one != index) {
            named.push((index, what));
        }
    };
    // The first run is that of the planner's choice.
    if !runs.is_empty() {
        add(0, "the planner's first");
    }
    if let Some(fastest) = order(&|run| run.measured.adjusted_step_time_s.0).first() {
        add(*fastest, "measured fastest");
    }
    if runs.len() <= FEW {
        (0..runs.len()).for_each(|index| add(index, ""));
    } else {
        let worst = order(&|run| -run.adjusted_error.abs());
        worst.into_iter().take(WORST).for_each(|index| add(index, "predicted worst"));
    }
    named
}

/// The axes that a plan uses: plans of one family have one colour.
fn family(run: &ValidatedRun) -> String {
    let strategy = &run.strategy;
    let axes = [
        ("data", strategy.data),
        ("tensor", strategy.tensor),
        ("pipeline", strategy.pipeline),
        ("context", strategy.context),
        ("expert", strategy.expert),
    ];
    let used: Vec<&str> = axes.iter().filter(|(_, degree)| *degree > 1).map(|(name, _)| *name).collect();
    if used.is_empty() { "one device".to_owned() } else { used.join(" + ") }
}

/// In the order of their first plans.
fn families(runs: &[ValidatedRun]) -> Vec<String> {
    let mut families: Vec<String> = Vec::new();
    for run in runs {
        let family = family(run);
        if !families.contains(&family) {
            families.push(family);
        }
    }
    families
}

fn color_of(run: &ValidatedRun, families: &[String]) -> RGBColor {
    let own = family(run);
    palette::series(families.iter().position(|family| *family == own).unwrap_or(0))
}

/// The smallest and the largest shown value, intervals included.
fn range(runs: &[ValidatedRun]) -> (f64, f64) {
    let mut low = f64::INFINITY;
    let mut high = 0.0_f64;
    for run in runs {
        let (measured, predicted) = (&run.measured, &run.predicted);
        for (value, spread) in [
            (measured.adjusted_step_time_s, measured.adjusted_step_time_spread_s),
            (predicted.step_time_s, predicted.step_time_spread_s),
        ] {
            if value.0.is_finite() && spread.0.is_finite() {
                low = low.min(value.0 - spread.0);
                high = high.max(value.0 + spread.0);
            }
        }
    }
    if low > high {
        return (0.0, 1.0);
    }
    (low, high.max(1e-9))
}

pub(super) fn band<DB: DrawingBackend, X: Axis>(chart: &Square<'_, DB, X>, low: f64, high: f64) -> Done<DB> {
    let (above, below) = (1.0 + BAND, 1.0 - BAND);
    let corners = vec![
        (low, low),
        ((low / below).min(high), low),
        (high, (high * below).max(low)),
        (high, high),
        ((high / above).max(low), high),
        (low, (low * above).min(high)),
    ];
    let area = chart.plotting_area();
    area.draw(&Polygon::new(corners, palette::series(0).mix(0.12).filled()))?;
    area.draw(&PathElement::new([(low, low), (high, high)], palette::MUTED.stroke_width(2)))
}

/// Draws the intervals and the dot; returns the dot's pixel.
fn point<DB: DrawingBackend, X: Axis>(
    chart: &Square<'_, DB, X>,
    run: &ValidatedRun,
    (low, high): (f64, f64),
    scale: Scale,
    color: RGBColor,
    intervals: bool,
) -> Result<(i32, i32), DrawingAreaErrorKind<DB::ErrorType>> {
    let (x, dx) =
        (scale.of(run.measured.adjusted_step_time_s.0), scale.of(run.measured.adjusted_step_time_spread_s.0));
    let (y, dy) = (scale.of(run.predicted.step_time_s.0), scale.of(run.predicted.step_time_spread_s.0));
    let (x, y) = (x.clamp(low, high), y.clamp(low, high));
    let area = chart.plotting_area();
    if intervals {
        area.draw(&PathElement::new(
            [((x - dx).max(low), y), ((x + dx).min(high), y)],
            palette::MUTED.stroke_width(1),
        ))?;
        area.draw(&PathElement::new(
            [(x, (y - dy).max(low)), (x, (y + dy).min(high))],
            palette::MUTED.stroke_width(1),
        ))?;
    }
    area.draw(&Circle::new((x, y), 6, color.filled()))?;
    Ok(chart.backend_coord(&(x, y)))
}

/// A free position for a number next to its dot.
fn free_spot((x, y): (i32, i32), taken: &[(i32, i32)]) -> (i32, i32) {
    let around =
        [(15, -13), (-15, 13), (15, 13), (-15, -13), (22, 0), (-22, 0), (0, -22), (0, 22), (30, -20)];
    let free =
        |spot: &(i32, i32)| taken.iter().all(|t| (t.0 - spot.0).abs() > 14 || (t.1 - spot.1).abs() > 14);
    around.iter().map(|(dx, dy)| (x + dx, y + dy)).find(free).unwrap_or((x + 15, y - 13))
}

fn says(run: &ValidatedRun) -> String {
    format!(
        "{}: measured {}, predicted {}, error {}",
        run.label,
        with_spread(run.measured.adjusted_step_time_s, run.measured.adjusted_step_time_spread_s),
        with_spread(run.predicted.step_time_s, run.predicted.step_time_spread_s),
        signed_percent(run.adjusted_error)
    )
}

fn key<DB: DrawingBackend>(list: &Area<DB>, runs: &[ValidatedRun]) -> Done<DB> {
    let right = list.dim_in_pixel().0 as i32 - 24;
    list.draw(&PathElement::new([(4, 34), (30, 34)], palette::MUTED.stroke_width(2)))?;
    text(list, "predicted = measured", (40, 34), Side::Left, SMALL, palette::INK)?;
    list.draw(&Rectangle::new([(4, 52), (30, 68)], palette::series(0).mix(0.2).filled()))?;
    text(list, "within 10 %; strokes are 95 % intervals", (40, 60), Side::Left, SMALL, palette::INK)?;
    let mut y = 96;
    for (index, family) in families(runs).iter().take(palette::SERIES.len()).enumerate() {
        list.draw(&Circle::new((17, y), 6, palette::series(index).filled()))?;
        text(list, family, (40, y), Side::Left, SMALL, palette::INK)?;
        y += 24;
    }
    y += 16;
    text(list, "numbered plans", (4, y), Side::Left, SMALL, palette::MUTED)?;
    text(list, "error", (right, y), Side::Right, SMALL, palette::MUTED)?;
    y += 30;
    let named = named(runs);
    for (number, (index, what)) in named.iter().enumerate() {
        let run = &runs[*index];
        text(list, &(number + 1).to_string(), (24, y), Side::Right, NORMAL, palette::INK)?;
        text(list, &signed_percent(run.adjusted_error), (right, y), Side::Right, SMALL, palette::INK)?;
        for line in fit(&run.label, right - 130, SMALL) {
            text(list, &line, (40, y), Side::Left, SMALL, palette::INK)?;
            y += 20;
        }
        if !what.is_empty() {
            text(list, what, (40, y), Side::Left, SMALL, palette::MUTED)?;
            y += 20;
        }
        y += 8;
    }
    if runs.len() > named.len() {
        let more = format!("{} more: rest the pointer on a dot", runs.len() - named.len());
        text(list, &more, (40, y), Side::Left, SMALL, palette::MUTED)?;
    }
    Ok(())
}
