//! A bitmap drawn at three times its size and then reduced: edges are smooth, and letters are at most a third
//! of a pixel off their position instead of a whole one.

use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::style::{BLACK, IntoFont, TextStyle};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};

const FACTOR: u32 = 3;

type Failure<'a> = DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>;

/// Coordinates, widths and text sizes are those of the small picture.
pub(super) struct Supersampled<'a>(BitMapBackend<'a>);

/// Red, green and blue of the large picture, three bytes a pixel.
pub(super) fn buffer((width, height): (u32, u32)) -> Vec<u8> {
    vec![0; (width * height * FACTOR * FACTOR * 3) as usize]
}

/// The reduced picture: each pixel is the mean of the large pixels that it covers.
pub(super) fn reduced(large: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let (width, height, factor) = (width as usize, height as usize, FACTOR as usize);
    let stride = width * factor * 3;
    let mut small = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let corner = y * factor * stride + x * factor * 3 + channel;
                let sum: u32 = (0..factor)
                    .flat_map(|row| (0..factor).map(move |column| corner + row * stride + column * 3))
                    .map(|at| u32::from(large[at]))
                    .sum();
                small.push((sum / (FACTOR * FACTOR)) as u8);
            }
        }
    }
    small
}

impl<'a> Supersampled<'a> {
    pub fn new(buffer: &'a mut [u8], (width, height): (u32, u32)) -> Self {
        Self(BitMapBackend::with_buffer(buffer, (width * FACTOR, height * FACTOR)))
    }
}

fn large((x, y): BackendCoord) -> BackendCoord {
    (x * FACTOR as i32, y * FACTOR as i32)
}

struct Wide {
    color: BackendColor,
    stroke_width: u32,
}

fn wide<S: BackendStyle>(style: &S) -> Wide {
    Wide { color: style.color(), stroke_width: style.stroke_width() * FACTOR }
}

impl BackendStyle for Wide {
    fn color(&self) -> BackendColor {
        self.color
    }

    fn stroke_width(&self) -> u32 {
        self.stroke_width
    }
}

impl<'a> DrawingBackend for Supersampled<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        let (width, height) = self.0.get_size();
        (width / FACTOR, height / FACTOR)
    }

    fn ensure_prepared(&mut self) -> Result<(), Failure<'a>> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Result<(), Failure<'a>> {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Result<(), Failure<'a>> {
        self.draw_rect(point, (point.0 + 1, point.1 + 1), &Wide { color, stroke_width: 1 }, true)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Result<(), Failure<'a>> {
        self.0.draw_path([large(from), large(to)], &wide(style))
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Result<(), Failure<'a>> {
        self.0.draw_rect(large(upper_left), large(bottom_right), &wide(style), fill)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Result<(), Failure<'a>> {
        self.0.draw_path(path.into_iter().map(large), &wide(style))
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Result<(), Failure<'a>> {
        self.0.draw_circle(large(center), radius * FACTOR, &wide(style), fill)
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Result<(), Failure<'a>> {
        self.0.fill_polygon(corners.into_iter().map(large), &wide(style))
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        at: BackendCoord,
    ) -> Result<(), Failure<'a>> {
        let size = style.size() * f64::from(FACTOR);
        let family = style.family();
        let font = (family.as_str(), size).into_font().style(style.style()).transform(style.transform());
        let mut larger = TextStyle::from(font).color(&BLACK).pos(style.anchor());
        larger.color = style.color();
        self.0.draw_text(text, &larger, large(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_is_the_mean_of_those_it_stands_for() {
        let mut pixels = buffer((2, 1));
        for byte in pixels.iter_mut().take(9) {
            *byte = 90;
        }
        assert_eq!(reduced(&pixels, (2, 1)), [30, 30, 30, 0, 0, 0]);
    }
}
