//! The figures, each drawn by one function for every backend: SVG for the page, PNG for files.

pub(crate) mod backtest;
mod canvas;
mod cost;
mod landscape;
mod links;
mod loss;
mod memory;
mod palette;
pub(crate) mod scaling;
mod scatter;
mod supersample;
mod timeline;

pub(crate) use palette::OPERATIONS;

use crate::findings;
use crate::{ReportError, ReportInput};
use canvas::{Area, Hotspot};
pub(crate) use landscape::{device_memory, front, out_of_sight};
use plotters::prelude::*;
use strum::{IntoStaticStr, VariantArray};
use supersample::Supersampled;

#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Figure {
    #[strum(serialize = "memory_vs_time")]
    Landscape,
    Cost,
    Memory,
    Timeline,
    #[strum(serialize = "predicted_vs_measured")]
    Scatter,
    Loss,
    Links,
}

impl Figure {
    const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What the figure is of; [`Figure::finding`] is what it shows.
    pub fn subject(self, input: &ReportInput<'_>) -> &'static str {
        match self {
            Self::Landscape => "Peak memory against step time of the layouts that were looked at",
            Self::Cost => "Predicted step time by its parts, of the plan and its runners-up",
            Self::Memory => "Peak memory of a device, by pipeline rank",
            Self::Timeline if input.own_run().is_none() => "One training step, predicted",
            Self::Timeline => "One training step, predicted over measured",
            Self::Scatter => "Predicted against measured step time",
            Self::Loss => "Loss of the runs",
            Self::Links => "Links: measured times and fitted lines",
        }
    }

    /// What the figure shows, in a sentence with its numbers.
    pub fn finding(self, input: &ReportInput<'_>) -> String {
        match self {
            Self::Landscape => findings::choice(input.plan, &landscape::points(input.plan)),
            Self::Cost => findings::cost(&input.plan.estimate),
            Self::Memory => findings::memory(input),
            Self::Timeline => findings::timeline(input),
            Self::Scatter => input.validation.map(findings::scatter).unwrap_or_default(),
            Self::Loss => findings::loss(input.runs),
            Self::Links => input.profile.map(findings::links).unwrap_or_default(),
        }
    }

    /// Whether the input has data for this figure.
    pub fn applies(self, input: &ReportInput<'_>) -> bool {
        match self {
            Self::Landscape => landscape::applies(input.plan),
            Self::Cost | Self::Memory => true,
            Self::Timeline => !timeline::panels(input).is_empty(),
            Self::Scatter => input.validation.is_some_and(|validation| !validation.runs.is_empty()),
            Self::Loss => input.runs.iter().any(|run| run.steps.iter().any(|step| step.loss.is_finite())),
            Self::Links => input.profile.is_some_and(|p| !p.collectives.is_empty() || !p.messages.is_empty()),
        }
    }

    fn size(self, input: &ReportInput<'_>) -> (u32, u32) {
        match self {
            Self::Cost => (1200, cost::height(input)),
            Self::Memory => (1200, memory::height(input)),
            Self::Timeline => (1200, timeline::height(input)),
            Self::Landscape | Self::Scatter | Self::Loss | Self::Links => (1200, 700),
        }
    }

    fn draw<DB: DrawingBackend>(
        self,
        area: &Area<DB>,
        input: &ReportInput<'_>,
    ) -> Result<Vec<Hotspot>, ReportError> {
        let result = match self {
            Self::Landscape => landscape::draw(area, input),
            Self::Cost => cost::draw(area, input),
            Self::Memory => memory::draw(area, input),
            Self::Timeline => timeline::draw(area, input),
            Self::Scatter => scatter::draw(area, input),
            Self::Loss => loss::draw(area, input),
            Self::Links => links::draw(area, input),
        };
        result.map_err(|error| ReportError::Drawing { figure: self.name(), reason: error.to_string() })
    }
}

/// The figures as PNG files: name and bytes. Figures without data are absent.
///
/// # Errors
/// A fault of the drawing library.
pub fn figures(input: &ReportInput<'_>) -> Result<Vec<(String, Vec<u8>)>, ReportError> {
    Figure::ALL
        .iter()
        .filter(|figure| figure.applies(input))
        .map(|figure| Ok((format!("{}.png", figure.name()), png(*figure, input)?)))
        .collect()
}

/// Room for the finding, and the subject below it.
const TITLE_HEIGHT: u32 = 76;

fn png(figure: Figure, input: &ReportInput<'_>) -> Result<Vec<u8>, ReportError> {
    let subject =
        format!("{}: {} on {}", figure.subject(input), input.plan.model.name, input.plan.cluster.name);
    painted(figure.name(), figure.size(input), (&figure.finding(input), &subject), |body| {
        figure.draw(body, input).map(drop)
    })
}

/// A PNG file with a finding and its subject above the area that `draw` fills, which has this width and height.
fn painted(
    figure: &'static str,
    (width, below): (u32, u32),
    (finding, subject): (&str, &str),
    draw: impl FnOnce(&Area<Supersampled<'_>>) -> Result<(), ReportError>,
) -> Result<Vec<u8>, ReportError> {
    canvas::register_font()?;
    let drawing = |reason: String| ReportError::Drawing { figure, reason };
    let height = below + TITLE_HEIGHT;
    let mut pixels = supersample::buffer((width, height));
    {
        let root = Supersampled::new(&mut pixels, (width, height)).into_drawing_area();
        root.fill(&palette::PAPER).map_err(|error| drawing(error.to_string()))?;
        let (head, body) = root.split_vertically(TITLE_HEIGHT);
        canvas::titles(&head, finding, subject).map_err(|error| drawing(error.to_string()))?;
        draw(&body)?;
        root.present().map_err(|error| drawing(error.to_string()))?;
    }
    let pixels = supersample::reduced(&pixels, (width, height));
    encode(&pixels, width, height).map_err(|source| ReportError::Encoding { figure, source })
}

fn encode(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Best);
    encoder.set_adaptive_filter(png::AdaptiveFilterType::Adaptive);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

/// A figure for the page: without a title, on a transparent ground, its marks explained by `<title>` on
/// hover.
pub(crate) fn svg(figure: Figure, input: &ReportInput<'_>) -> Result<String, ReportError> {
    canvas::register_font()?;
    let size = figure.size(input);
    let mut text = String::new();
    let hotspots = {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let hotspots = figure.draw(&root, input)?;
        root.present()
            .map_err(|error| ReportError::Drawing { figure: figure.name(), reason: error.to_string() })?;
        hotspots
    };
    let overlay: String = hotspots.iter().map(Hotspot::svg).collect();
    let end = text.rfind("</svg>").unwrap_or(text.len());
    text.insert_str(end, &overlay);
    Ok(text)
}
