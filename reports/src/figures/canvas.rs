//! Shared parts of the figures: the font, text, legends, unit scales, and marks with tooltips.

use super::palette::{GRID, INK, MUTED};
use crate::ReportError;
use crate::words::clean;
use autodist_spec::{Bytes, Seconds};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::element::Text;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font as register};
use std::sync::OnceLock;

pub(crate) type Area<DB> = DrawingArea<DB, Shift>;
pub(crate) type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
pub(crate) type Drawn<DB> = Result<Vec<Hotspot>, DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;
pub(crate) type Done<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// The family name of the embedded font; in the page the browser uses its own.
const FAMILY: &str = "sans-serif";
pub(crate) const SMALL: i32 = 17;
pub(crate) const NORMAL: i32 = 19;

/// Makes text drawable on a machine that has no font.
pub(crate) fn register_font() -> Result<(), ReportError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    let done = *REGISTERED.get_or_init(|| register(FAMILY, FontStyle::Normal, font).is_ok());
    if done { Ok(()) } else { Err(ReportError::Font) }
}

pub(crate) fn style(size: i32, color: RGBColor) -> TextStyle<'static> {
    (FAMILY, size).into_font().color(&color).pos(Pos::new(HPos::Left, VPos::Center))
}

/// A finding in large letters, its subject below in small ones.
pub(crate) fn titles<DB: DrawingBackend>(head: &Area<DB>, finding: &str, subject: &str) -> Done<DB> {
    const LEFT: i32 = 24;
    let room = head.dim_in_pixel().0 as i32 - 2 * LEFT;
    // Smaller letters before anything is cut.
    let sizes = [27, 24, 21, NORMAL];
    let size = sizes.into_iter().find(|size| width(finding, *size) <= room).unwrap_or(NORMAL);
    text(head, &fit_line(finding, room, size), (LEFT, 26), Side::Left, size, INK)?;
    text(head, &fit_line(subject, room, SMALL), (LEFT, 56), Side::Left, SMALL, MUTED)
}

/// A line of text, cut if it is wider than `limit`.
pub(crate) fn fit_line(text: &str, limit: i32, size: i32) -> String {
    let mut line = clean(text);
    shorten(&mut line, limit, size);
    line
}

/// Width in pixels, with room for browsers whose font is wider than the embedded one.
pub(crate) fn width(text: &str, size: i32) -> i32 {
    let width = (FAMILY, size).into_font().box_size(text).map_or(text.len() as u32 * 9, |(width, _)| width);
    (f64::from(width) * 1.1).ceil() as i32
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Center,
    Right,
}

/// Text whose vertical middle is at `y`.
pub(crate) fn text<DB: DrawingBackend>(
    area: &Area<DB>,
    text: &str,
    (x, y): (i32, i32),
    side: Side,
    size: i32,
    color: RGBColor,
) -> Done<DB> {
    let anchor = match side {
        Side::Left => HPos::Left,
        Side::Center => HPos::Center,
        Side::Right => HPos::Right,
    };
    let style = style(size, color).pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(clean(text), (x, y), style))
}

/// Lines of small text whose common middle is at `y`.
fn lines<DB: DrawingBackend>(area: &Area<DB>, lines: &[String], (x, y): (i32, i32), side: Side) -> Done<DB> {
    let top = y - (lines.len() as i32 - 1) * 10;
    for (index, line) in lines.iter().enumerate() {
        text(area, line, (x, top + index as i32 * 20), side, SMALL, INK)?;
    }
    Ok(())
}

/// A line of text cut to a width, or broken into two lines at a space.
pub(crate) fn fit(text: &str, limit: i32, size: i32) -> Vec<String> {
    let text = clean(text);
    if width(&text, size) <= limit {
        return vec![text];
    }
    let mut lines = vec![String::new(), String::new()];
    let mut line = 0;
    for word in text.split(' ') {
        let joined = if lines[line].is_empty() { word.to_owned() } else { format!("{} {word}", lines[line]) };
        if width(&joined, size) <= limit || line == 1 || lines[0].is_empty() {
            lines[line] = joined;
        } else {
            line = 1;
            lines[1] = word.to_owned();
        }
    }
    lines.retain(|line| !line.is_empty());
    lines.iter_mut().for_each(|line| shorten(line, limit, size));
    lines
}

fn shorten(line: &mut String, limit: i32, size: i32) {
    if width(line, size) <= limit {
        return;
    }
    while !line.is_empty() && width(line, size) + width("…", size) > limit {
        line.pop();
    }
    line.push('…');
}

/// A mark with a tooltip.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hotspot {
    pub corners: ((i32, i32), (i32, i32)),
    pub says: String,
}

impl Hotspot {
    pub fn svg(&self) -> String {
        let ((x0, y0), (x1, y1)) = self.corners;
        let (left, top) = (x0.min(x1), y0.min(y1));
        format!(
            "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"transparent\"><title>{}</title></rect>\n",
            (x1 - x0).abs().max(1),
            (y1 - y0).abs().max(1),
            crate::html::escape(&self.says)
        )
    }
}

/// Swatches with names, broken into rows; returns their total height.
pub(crate) fn legend<DB: DrawingBackend>(
    area: &Area<DB>,
    entries: &[(String, RGBColor)],
    left: i32,
) -> Result<i32, DrawingAreaErrorKind<DB::ErrorType>> {
    const ROW: i32 = 26;
    let right = area.dim_in_pixel().0 as i32 - 16;
    let (mut x, mut y) = (left, 18);
    for (name, color) in entries {
        let name = fit(name, right - left - 24, SMALL).join(" ");
        let needed = 20 + width(&name, SMALL) + 22;
        if x > left && x + needed > right {
            x = left;
            y += ROW;
        }
        area.draw(&Rectangle::new([(x, y - 6), (x + 13, y + 7)], color.filled()))?;
        text(area, &name, (x + 20, y), Side::Left, SMALL, INK)?;
        x += needed;
    }
    Ok(y + 20)
}

/// A chart with two axes that have descriptions.
pub(crate) fn plot<'a, DB: DrawingBackend>(area: &'a Area<DB>) -> ChartBuilder<'a, 'a, DB> {
    let mut chart = ChartBuilder::on(area);
    chart.margin_top(12).margin_right(34).margin_left(20).x_label_area_size(58).y_label_area_size(92);
    chart
}

/// Axes with a light grid. An empty description leaves that axis without ticks.
pub(crate) fn mesh<DB, X, Y>(
    chart: &mut ChartContext<'_, DB, Cartesian2d<X, Y>>,
    x_description: &str,
    y_description: &str,
    x_tick: &dyn Fn(&f64) -> String,
    y_tick: &dyn Fn(&f64) -> String,
) -> Done<DB>
where
    DB: DrawingBackend,
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(MUTED)
        .label_style(style(SMALL, INK))
        .axis_desc_style(style(NORMAL, INK))
        .x_desc(x_description)
        .y_desc(y_description)
        .x_labels(9)
        .y_labels(9)
        .x_label_formatter(x_tick)
        .y_label_formatter(y_tick);
    if y_description.is_empty() {
        mesh.disable_y_mesh().disable_y_axis();
    }
    if x_description.is_empty() {
        mesh.disable_x_mesh().disable_x_axis();
    }
    mesh.draw()
}

/// A tick without superfluous zeros.
pub(crate) fn tick(value: &f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// An axis in one unit: the divisor, and the unit's name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    pub one: f64,
    pub unit: &'static str,
}

impl Scale {
    /// The unit in which `largest` has a digit before the point.
    pub fn seconds(largest: Seconds) -> Self {
        let (one, unit) = match largest.0 {
            v if v >= 1.0 => (1.0, "s"),
            v if v >= 1e-3 => (1e-3, "ms"),
            _ => (1e-6, "µs"),
        };
        Self { one, unit }
    }

    pub fn bytes(largest: Bytes) -> Self {
        let (one, unit) = match largest.0 {
            v if v >= 1 << 30 => (f64::from(1 << 30), "GiB"),
            v if v >= 1 << 20 => (f64::from(1 << 20), "MiB"),
            _ => (1024.0, "KiB"),
        };
        Self { one, unit }
    }

    pub fn of(&self, value: f64) -> f64 {
        if value.is_finite() { value / self.one } else { 0.0 }
    }
}

/// A row of a stacked bar chart.
pub(crate) struct Row {
    pub label: String,
    /// Lines at the right of the bar.
    pub total: Vec<String>,
    /// In the unit of the axis.
    pub parts: Vec<(f64, RGBColor, String)>,
    /// Half-width of the interval at the bar's end.
    pub spread: f64,
    /// A stroke across the bar at the measured value.
    pub measured: Option<f64>,
}

pub(crate) struct Bars {
    pub rows: Vec<Row>,
    pub description: String,
    /// A vertical line with a name.
    pub limit: Option<(f64, String)>,
    pub totals: &'static str,
}

pub(crate) const BAR_PITCH: u32 = 54;

impl Bars {
    const LABELS: i32 = 330;
    const TOTALS: i32 = 200;

    /// Rows from top to bottom, labels on the left, totals on the right.
    pub fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB> {
        let count = self.rows.len() as f64;
        let reach = |row: &Row| {
            let end = row.parts.iter().map(|part| part.0.max(0.0)).sum::<f64>() + row.spread.max(0.0);
            end.max(row.measured.unwrap_or(0.0))
        };
        let longest = self.rows.iter().map(reach).fold(0.0, f64::max);
        let largest = longest.max(self.limit.as_ref().map_or(0.0, |limit| limit.0)).max(1e-9) * 1.03;
        let mut chart = ChartBuilder::on(area)
            .margin_left(Self::LABELS)
            .margin_right(Self::TOTALS)
            .margin_top(30)
            .x_label_area_size(58)
            .build_cartesian_2d(0.0..largest, 0.0..count)?;
        mesh(&mut chart, &self.description, "", &tick, &tick)?;
        let mut hotspots = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let middle = count - index as f64 - 0.5;
            let mut start = 0.0;
            for (value, color, says) in &row.parts {
                let end = start + value.max(0.0);
                if end > start {
                    let corners = [(start, middle - 0.3), (end, middle + 0.3)];
                    chart.draw_series(std::iter::once(Rectangle::new(corners, color.filled())))?;
                    hotspots.push(hotspot(&chart, corners, says.clone()));
                }
                start = end;
            }
            if let Some(at) = row.measured {
                let stroke = [(at, middle - 0.38), (at, middle + 0.38)];
                chart.plotting_area().draw(&PathElement::new(stroke, INK.stroke_width(4)))?;
            }
            if row.spread > 0.0 {
                whisker(&chart, (start - row.spread, start + row.spread), middle)?;
            }
            let (right, y) = chart.backend_coord(&(largest, middle));
            let (x, y) = local(area, (right, y));
            lines(area, &row.total, (x + 14, y), Side::Left)?;
            lines(area, &fit(&row.label, Self::LABELS - 36, SMALL), (Self::LABELS - 14, y), Side::Right)?;
        }
        let (x, y) = local(area, chart.backend_coord(&(largest, count)));
        text(area, self.totals, (x + 14, y - 14), Side::Left, SMALL, MUTED)?;
        if let Some((at, name)) = &self.limit {
            let line = [(*at, 0.0), (*at, count)];
            chart.draw_series(LineSeries::new(line, super::palette::LIMIT.stroke_width(2)))?;
            let (x, y) = local(area, chart.backend_coord(&(*at, count)));
            text(area, name, (x, y - 14), Side::Right, SMALL, super::palette::LIMIT)?;
        }
        Ok(hotspots)
    }
}

/// Converts pixels of the whole picture to those of one area of it.
pub(crate) fn local<DB: DrawingBackend>(area: &Area<DB>, (x, y): (i32, i32)) -> (i32, i32) {
    let (left, top) = area.get_base_pixel();
    (x - left, y - top)
}

pub(crate) fn hotspot<DB: DrawingBackend>(
    chart: &Chart<'_, DB>,
    corners: [(f64, f64); 2],
    says: String,
) -> Hotspot {
    Hotspot { corners: (chart.backend_coord(&corners[0]), chart.backend_coord(&corners[1])), says }
}

/// An interval with end strokes.
fn whisker<DB: DrawingBackend>(chart: &Chart<'_, DB>, (low, high): (f64, f64), y: f64) -> Done<DB> {
    let area = chart.plotting_area();
    for line in
        [[(low, y), (high, y)], [(low, y - 0.12), (low, y + 0.12)], [(high, y - 0.12), (high, y + 0.12)]]
    {
        area.draw(&PathElement::new(line, INK.stroke_width(2)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_with_the_font_that_the_crate_carries() {
        register_font().unwrap();
        assert!((FAMILY, 20).into_font().box_size("step time (ms) ± α β µ").unwrap().0 > 100);
        // Only the registered family exists: no font is looked up on the machine.
        assert!(("DejaVu Sans", 20).into_font().box_size("text").is_err());
    }

    #[test]
    fn long_labels_are_broken_and_cut() {
        register_font().unwrap();
        assert_eq!(fit("dp2 tp1", 300, SMALL).len(), 1);
        let lines = fit(&"dp2 tp1 pp2 mb4 ".repeat(10), 300, SMALL);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| width(line, SMALL) <= 300 + width("…", SMALL)));
    }

    #[test]
    fn ticks_and_scales_read_well() {
        assert_eq!([tick(&0.5), tick(&12.0), tick(&-0.0)], ["0.5", "12", "0"]);
        assert_eq!(Scale::seconds(Seconds(0.4)).unit, "ms");
        assert_eq!(Scale::bytes(Bytes(5 << 20)).unit, "MiB");
    }
}
