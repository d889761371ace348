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

const BLUE: RGBColor = RGBColor(0x2f, 0x6d, 0xb5);
const SKY: RGBColor = RGBColor(0x7f, 0xb2, 0xe0);
const ORANGE: RGBColor = RGBColor(0xd9, 0x6b, 0x1e);
const AMBER: RGBColor = RGBColor(0xe8, 0xab, 0x3b);
const BRICK: RGBColor = RGBColor(0x9e, 0x3d, 0x3d);
const GREY: RGBColor = RGBColor(0xa9, 0xb1, 0xba);
const PURPLE: RGBColor = RGBColor(0x8a, 0x5c, 0xb0);
const GREEN: RGBColor = RGBColor(0x3f, 0x92, 0x5a);
const TEAL: RGBColor = RGBColor(0x1f, 0xa3, 0xa3);
const OLIVE: RGBColor = RGBColor(0x8a, 0x8f, 0x2a);
const SLATE: RGBColor = RGBColor(0x5f, 0x6b, 0x78);
const ROSE: RGBColor = RGBColor(0xd9, 0x6f, 0x9a);

/// In the order of `CostBreakdown::parts`.
pub(crate) const COST: [RGBColor; 12] =
    [BLUE, SKY, ORANGE, TEAL, OLIVE, AMBER, BRICK, GREY, ROSE, PURPLE, GREEN, SLATE];

/// In the order of `MemoryBreakdown::parts`.
pub(crate) const MEMORY: [RGBColor; 7] = [BLUE, SKY, GREEN, AMBER, ORANGE, PURPLE, GREY];

/// One per line of a chart, cyclic.
pub(crate) const SERIES: [RGBColor; 8] = [BLUE, ORANGE, GREEN, PURPLE, AMBER, BRICK, SKY, SLATE];

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
        OperationKind::Receive => GREY,
        OperationKind::Send => BRICK,
        OperationKind::Reduce => ORANGE,
        OperationKind::Gather => AMBER,
        OperationKind::Optimizer => GREEN,
    }
}

pub(crate) fn series(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()]
}
