//! Collectives inside one node: four numbers of the curve, then the table.

use super::gemm::two_thirds;
use super::rows::{CollectiveRow, Measurements};
use super::{draw, simplex};
use crate::nccl::{CollectiveParameters, Curve, Table};
use crate::parameters::{QUANTUM, rounded};
use crate::tables::Axis;

/// What squared differences of neighbours count against one measurement, between sizes and between numbers of devices.
const ALONG_BYTES: f64 = 0.3;
const ALONG_DEVICES: f64 = 0.1;

pub(super) fn fit_all(measurements: &Measurements) -> Vec<CollectiveParameters> {
    let groups = measurements.collective.iter().filter(|(_, rows)| !rows.is_empty());
    groups
        .map(|(&(device, kind, element), rows)| {
            let figures = &measurements.devices[device];
            let curve = fit_curve(rows, figures.link_bytes_per_s.0);
            let fitted = |rows: &[CollectiveRow]| CollectiveParameters {
                device: figures.name.clone(),
                kind,
                element,
                spread: 0.0,
                curve,
                table: fit_table(&curve, rows),
            };
            let unseen = |row: &CollectiveRow| draw(0, &[u64::from(row.devices), row.bytes]) < 0.1;
            let (left, kept): (Vec<CollectiveRow>, Vec<CollectiveRow>) =
                rows.iter().partition(|row| unseen(row));
            let without = fitted(&kept);
            let error = |row: &CollectiveRow| {
                (without.seconds(f64::from(row.devices), row.bytes as f64) / row.seconds).ln().abs()
            };
            let spread = rounded(two_thirds(left.iter().map(error)));
            CollectiveParameters { spread, ..fitted(rows) }
        })
        .collect()
}

fn fit_curve(rows: &[CollectiveRow], link: f64) -> Curve {
    let unpack = |free: &[f64]| Curve {
        start_s: rounded(free[0].exp() * 1e-6),
        step_s: rounded(free[1].exp() * 1e-6),
        fill_s: rounded(free[2].exp() * 1e-6),
        bytes_per_s: rounded(free[3].exp() * link),
    };
    let start = [2.0, 0.0, 2.0, -0.3];
    let cost = |free: &[f64]| {
        let curve = unpack(free);
        let errors = rows.iter().map(|row| {
            let seconds = curve.seconds(row.kind, f64::from(row.devices), row.bytes as f64);
            let error = (seconds / row.seconds).ln() / 0.1;
            (1.0 + error * error).sqrt() - 1.0
        });
        let pull: f64 = free.iter().zip(start).map(|(value, start)| (value - start).powi(2)).sum();
        errors.sum::<f64>() / rows.len() as f64 + 1e-3 * pull
    };
    unpack(&simplex::minimise(cost, &start, 3, 200))
}

fn axis(points: impl Iterator<Item = f64>) -> Axis {
    let mut points: Vec<f64> = points.collect();
    points.sort_by(f64::total_cmp);
    points.dedup();
    // One point alone holds for all.
    if points.len() == 1 {
        points.push(2.0 * points[0]);
    }
    Axis::new(points)
}

/// Gauss and Seidel's sweeps over the penalised least squares.
fn fit_table(curve: &Curve, rows: &[CollectiveRow]) -> Table {
    let devices = axis(rows.iter().map(|row| f64::from(row.devices)));
    let bytes = axis(rows.iter().map(|row| row.bytes as f64));
    let columns = bytes.len();
    let cells = devices.len() * columns;
    let (mut sums, mut counts) = (vec![0.0; cells], vec![0.0; cells]);
    for row in rows {
        let at = |axis: &Axis, value: f64| axis.points().partition_point(|point| *point < value);
        let cell = at(&devices, f64::from(row.devices)) * columns + at(&bytes, row.bytes as f64);
        sums[cell] += (row.seconds / curve.seconds(row.kind, f64::from(row.devices), row.bytes as f64)).ln();
        counts[cell] += 1.0;
    }
    let mut values = vec![0.0; cells];
    for _ in 0..60 {
        for cell in 0..cells {
            let column = cell % columns;
            let beside = [
                (cell >= columns).then(|| (cell - columns, ALONG_DEVICES)),
                (cell + columns < cells).then_some((cell + columns, ALONG_DEVICES)),
                (column > 0).then(|| (cell - 1, ALONG_BYTES)),
                (column + 1 < columns).then_some((cell + 1, ALONG_BYTES)),
            ];
            let (mut pull, mut weight) = (sums[cell], counts[cell]);
            for (other, penalty) in beside.into_iter().flatten() {
                pull += penalty * values[other];
                weight += penalty;
            }
            values[cell] = pull / weight;
        }
    }
    values.iter_mut().for_each(|value| *value = (*value / QUANTUM).round() * QUANTUM);
    Table { devices, bytes, values }
}
