//! Corrections to a physical model: the sum of tables over the logarithms of its sizes, with multilinear
//! interpolation.

/// Points on a logarithmic axis, ascending.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    points: Vec<f64>,
    logs: Vec<f64>,
    /// Inverse of the distance of each point to the next.
    inverse: Vec<f64>,
    /// The last point at or before the start of each of equal parts of the axis, where a search starts.
    begins: Vec<u16>,
    parts: f64,
}

/// Parts of an axis per point: few search steps remain then.
const PARTS: usize = 16;

/// Position of a value between two points of an axis: the lower point, and the fraction of the way to the
/// upper one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub lower: usize,
    pub part: f64,
}

impl Axis {
    /// At least two points, ascending and positive.
    pub fn new(points: Vec<f64>) -> Self {
        let logs: Vec<f64> = points.iter().map(|point| point.ln()).collect();
        let count = PARTS * points.len();
        let (first, last) = (logs[0], logs[logs.len() - 1]);
        let begin = |part: usize| {
            let at = first + (last - first) * part as f64 / count as f64;
            (logs.partition_point(|log| *log <= at).max(1) - 1).min(logs.len() - 2) as u16
        };
        let begins = (0..count).map(begin).collect();
        let inverse = logs.windows(2).map(|pair| 1.0 / (pair[1] - pair[0])).collect();
        Self { inverse, begins, parts: count as f64 / (last - first), points, logs }
    }

    /// The distinct points of some positive values; one point alone, or no point, means a constant.
    pub fn of(points: impl IntoIterator<Item = f64>) -> Self {
        let mut points: Vec<f64> = points.into_iter().collect();
        points.sort_by(f64::total_cmp);
        points.dedup();
        while points.len() < 2 {
            points.push(2.0 * points.last().copied().unwrap_or(0.5));
        }
        Self::new(points)
    }

    pub fn points(&self) -> &[f64] {
        &self.points
    }

    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Values beyond the ends are clamped to the ends.
    #[inline]
    pub fn place(&self, log: f64) -> Place {
        let part = ((log - self.logs[0]) * self.parts) as usize;
        self.place_from(usize::from(self.begins[part.min(self.begins.len() - 1)]), log)
    }

    /// Like [`Self::place`], where `lower` is not after the wanted point.
    #[inline]
    fn place_from(&self, mut lower: usize, log: f64) -> Place {
        let last = self.inverse.len() - 1;
        while lower < last && self.logs[lower + 1] <= log {
            lower += 1;
        }
        let part = (log - self.logs[lower]) * self.inverse[lower];
        Place { lower, part: part.clamp(0.0, 1.0) }
    }

    pub fn covers(&self, value: f64) -> bool {
        self.points[0] <= value && value <= self.points[self.len() - 1]
    }
}

/// Reads a table `[rows, columns]` at a position.
#[inline]
pub(crate) fn bilinear(values: &[f64], columns: usize, x: Place, y: Place) -> f64 {
    let at = x.lower * columns + y.lower;
    let upper = &values[at..at + 2];
    let lower = &values[at + columns..at + columns + 2];
    let (first, second) =
        (upper[0] + y.part * (upper[1] - upper[0]), lower[0] + y.part * (lower[1] - lower[0]));
    first + x.part * (second - first)
}

/// The pairs of the three sizes that have a table each.
pub(crate) const PAIRS: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];

/// `xy[x, y] + xz[x, z] + yz[y, z] + xyz[x, y, z]` of logarithmic errors, `xyz` on a coarser grid.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Corrections {
    pub fine: [Axis; 3],
    pub pairs: [Vec<f64>; 3],
    pub coarse: [Axis; 3],
    pub block: Vec<f64>,
    /// For each of the finer points, the last coarse point at or before it.
    before: [Vec<u16>; 3],
}

impl Corrections {
    pub fn zero(fine: [Axis; 3], coarse: [Axis; 3]) -> Self {
        let pairs = PAIRS.map(|(x, y)| vec![0.0; fine[x].len() * fine[y].len()]);
        let block = vec![0.0; coarse.iter().map(Axis::len).product()];
        let before = [0, 1, 2].map(|axis: usize| {
            let logs = fine[axis].logs.iter();
            logs.map(|log| coarse[axis].place(*log).lower as u16).collect()
        });
        Self { fine, pairs, coarse, block, before }
    }

    /// The correction, and whether all sizes are points of the finer tables.
    #[inline]
    pub fn at(&self, logs: [f64; 3]) -> (f64, bool) {
        let fine = [0, 1, 2].map(|axis| self.fine[axis].place(logs[axis]));
        let [x, y, z] = [0, 1, 2].map(|axis| {
            let before = self.before[axis][fine[axis].lower];
            self.coarse[axis].place_from(usize::from(before), logs[axis])
        });
        let mut sum = 0.0;
        for (values, (first, second)) in self.pairs.iter().zip(PAIRS) {
            sum += bilinear(values, self.fine[second].len(), fine[first], fine[second]);
        }
        let columns = self.coarse[2].len();
        let plane = self.coarse[1].len() * columns;
        let at = x.lower * plane;
        let near = bilinear(&self.block[at..at + plane], columns, y, z);
        let far = bilinear(&self.block[at + plane..at + 2 * plane], columns, y, z);
        let on_points = fine.iter().all(|place| place.part == 0.0 || place.part == 1.0);
        (sum + near + x.part * (far - near), on_points)
    }

    pub fn covers(&self, sizes: [f64; 3]) -> bool {
        (0..3).all(|axis| self.fine[axis].covers(sizes[axis]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_between_the_points_around() {
        let axis = Axis::new(vec![128.0, 129.0, 160.0, 161.0, 4096.0, 4097.0, 65536.0]);
        for value in
            [1.0, 128.0, 128.5, 129.0, 150.0, 161.0, 3000.0, 4096.5, 4097.0, 65535.0, 65536.0, 1e9f64]
        {
            let place = axis.place(value.ln());
            let (low, high) = (axis.logs[place.lower], axis.logs[place.lower + 1]);
            let read = low + place.part * (high - low);
            let expected = value.ln().clamp(axis.logs[0], axis.logs[6]);
            assert!((read - expected).abs() < 1e-12, "{value}: {place:?}");
        }
    }

    #[test]
    fn a_sum_of_products_of_logarithms_is_read_exactly() {
        let axis = || Axis::new(vec![1.0, 4.0, 32.0]);
        let coarse = || Axis::new(vec![1.0, 32.0]);
        let mut tables = Corrections::zero([axis(), axis(), axis()], [coarse(), coarse(), coarse()]);
        let logs = [1.0f64, 4.0, 32.0].map(f64::ln);
        for (values, factor) in tables.pairs.iter_mut().zip([1.0, -2.0, 0.5]) {
            for (index, value) in values.iter_mut().enumerate() {
                *value = factor * logs[index / 3] * logs[index % 3];
            }
        }
        for (index, value) in tables.block.iter_mut().enumerate() {
            *value = [index / 4, index / 2 % 2, index % 2].iter().filter(|bit| **bit == 1).count() as f64;
        }
        let [x, y, z] = [2.0f64, 8.0, 16.0].map(f64::ln);
        let expected = x * y - 2.0 * x * z + 0.5 * y * z + (x + y + z) / 32f64.ln();
        assert!((tables.at([x, y, z]).0 - expected).abs() < 1e-12);
        assert_eq!(tables.at([9.0, 9.0, 9.0]), tables.at([logs[2], logs[2], logs[2]]));
    }
}
