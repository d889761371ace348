//! Colours: one per thing, the same in every figure, distinct in lightness as well as in hue.

use autodist_spec::OperationKind;
use plotters::style::RGBColor;

pub(crate) const PAPER: RGBColor = RGBColor(255, 255, 255);
// The page gives these three other values in dark mode, by their hexadecimal form (html/style.css).
pub(crate) const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
pub(crate) const MUTED: RGBColor = RGBColor(0x5c, 0x65, 0x70);
pub(crate) const GRID: RGBColor = RGBColor(0xd8, 0xdd, 0xe3);

pub(crate) const LIMIT: RGBColor = RGBColor(0xc8, 0x2b, 0x2b);
/// Text on a light and on a dark mark, in either mode of the page.
pub(crate) const DARK: RGBColor = RGBColor(0x10, 0x1c, 0x2c);
pub(crate) const ON_MARK: RGBColor = RGBColor(255, 255, 255);

// Five of Okabe and Ito's colours (2008), and seven chosen beside them so that all twelve can be told apart by
// readers with normal, protanopic and deuteranopic sight: see the test.
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const VERMILLION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const PINE: RGBColor = RGBColor(0x28, 0x5e, 0x60);
const BROWN: RGBColor = RGBColor(0x6e, 0x44, 0x1b);
const OLIVE: RGBColor = RGBColor(0x75, 0x94, 0x4f);
const AZURE: RGBColor = RGBColor(0x08, 0xa0, 0xf8);
const NAVY: RGBColor = RGBColor(0x15, 0x4f, 0x78);
const AQUA: RGBColor = RGBColor(0x03, 0xd4, 0xc1);
const INDIGO: RGBColor = RGBColor(0x09, 0x48, 0xa3);

/// The plan that a figure is about, among others.
pub(crate) const CHOICE: RGBColor = ORANGE;

/// In the order of `CostBreakdown::parts`.
pub(crate) const COST: [RGBColor; 12] =
    [BLUE, SKY, ORANGE, AQUA, OLIVE, VERMILLION, BROWN, PINE, INDIGO, AZURE, GREEN, NAVY];

/// In the order of `MemoryBreakdown::parts`.
pub(crate) const MEMORY: [RGBColor; 7] = [BLUE, SKY, GREEN, ORANGE, VERMILLION, BROWN, PINE];

/// One per line of a chart, cyclic.
pub(crate) const SERIES: [RGBColor; 8] = [BLUE, ORANGE, GREEN, VERMILLION, SKY, BROWN, AQUA, INDIGO];

pub(crate) const OPERATIONS: [OperationKind; 7] = [
    OperationKind::Forward,
    OperationKind::Backward,
    OperationKind::Receive,
    OperationKind::Send,
    OperationKind::Reduce,
    OperationKind::Gather,
    OperationKind::Optimizer,
];

pub(crate) fn operation(kind: OperationKind) -> RGBColor {
    match kind {
        OperationKind::Forward => SKY,
        OperationKind::Backward => BLUE,
        OperationKind::Receive => OLIVE,
        OperationKind::Send => BROWN,
        OperationKind::Reduce => VERMILLION,
        OperationKind::Gather => ORANGE,
        OperationKind::Optimizer => GREEN,
    }
}

pub(crate) fn series(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a protanope and a deuteranope see, in linear RGB: Machado, Oliveira and Fernandes (2009), severity 1.
    const SIGHTS: [(&str, [[f64; 3]; 3]); 3] = [
        ("normal", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        (
            "protanopic",
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
        ),
        (
            "deuteranopic",
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ],
        ),
    ];

    fn times(matrix: &[[f64; 3]; 3], v: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row[0] * v[0] + row[1] * v[1] + row[2] * v[2])
    }

    fn linear(color: RGBColor) -> [f64; 3] {
        [color.0, color.1, color.2].map(|byte| {
            let value = f64::from(byte) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        })
    }

    /// CIE L*a*b* of sRGB (D65).
    fn lab(linear: [f64; 3]) -> [f64; 3] {
        let xyz = times(
            &[
                [0.4124564, 0.3575761, 0.1804375],
                [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041],
            ],
            linear.map(|value| value.clamp(0.0, 1.0)),
        );
        let f = |value: f64| if value > 0.008856 { value.cbrt() } else { 7.787 * value + 16.0 / 116.0 };
        let [x, y, z] = [f(xyz[0] / 0.95047), f(xyz[1]), f(xyz[2] / 1.08883)];
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    /// The smallest distance (CIE 1976) of two colours, of any sight.
    fn nearest(colors: &[RGBColor]) -> (f64, String) {
        let mut nearest = (f64::INFINITY, String::new());
        for (sight, matrix) in &SIGHTS {
            let seen: Vec<[f64; 3]> = colors.iter().map(|color| lab(times(matrix, linear(*color)))).collect();
            for (i, one) in seen.iter().enumerate() {
                for (j, other) in seen.iter().enumerate().take(i) {
                    let distance = one.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                    if distance < nearest.0 {
                        nearest = (distance, format!("{:?} and {:?}, {sight} sight", colors[i], colors[j]));
                    }
                }
            }
        }
        nearest
    }

    #[test]
    fn colours_of_one_figure_differ_for_every_reader() {
        let operations: Vec<RGBColor> = OPERATIONS.into_iter().map(operation).collect();
        let landscape = [SERIES[0], CHOICE, LIMIT, MUTED];
        for colors in [&COST[..], &MEMORY, &SERIES, &operations, &landscape] {
            let (distance, which) = nearest(colors);
            assert!(distance >= 18.0, "{distance:.1}: {which}");
        }
        // The measure itself: the blue and the purple that were one colour for protanopes.
        assert!(nearest(&[RGBColor(0x2f, 0x6d, 0xb5), RGBColor(0x8a, 0x5c, 0xb0)]).0 < 10.0);
    }

    /// Contrast of WCAG 2.
    fn contrast(one: RGBColor, other: RGBColor) -> f64 {
        let luminance = |color| times(&[[0.2126, 0.7152, 0.0722], [0.0; 3], [0.0; 3]], linear(color))[0];
        let (a, b) = (luminance(one), luminance(other));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn text_and_marks_are_seen_on_both_papers() {
        let dark_paper = RGBColor(0x14, 0x18, 0x1d);
        for text in [INK, MUTED, LIMIT] {
            assert!(contrast(text, PAPER) >= 4.5, "{text:?}");
        }
        // The values of these three in dark mode (html/style.css).
        for text in [RGBColor(0xe4, 0xe8, 0xec), RGBColor(0x9a, 0xa5, 0xb1), RGBColor(0xf0, 0x70, 0x70)] {
            assert!(contrast(text, dark_paper) >= 4.5, "{text:?}");
        }
        assert!(contrast(DARK, operation(OperationKind::Forward)) >= 4.5);
        assert!(contrast(ON_MARK, operation(OperationKind::Backward)) >= 4.5);
        for mark in COST {
            for paper in [PAPER, dark_paper] {
                assert!(contrast(mark, paper) >= 1.6, "{mark:?} on {paper:?}");
            }
        }
    }
}
