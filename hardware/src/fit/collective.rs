//! Collectives inside one node: four numbers of the curve, then the table.

use super::gemm::two_thirds;
use super::rows::{CollectiveRow, Measurements};
use super::{draw, simplex};
use crate::collective::Collective;
use crate::nccl::{CollectiveParameters, Curve, Element, Table};
use crate::parameters::{QUANTUM, rounded};
use crate::tables::Axis;
use std::collections::BTreeMap;

/// What squared differences of neighbours count against one measurement: between sizes and between numbers of devices, in
/// the table that collectives share and in what each has of its own. Numbers of devices say little of one another; they
/// fill what nobody measured.
const SHARED: Penalties = Penalties { bytes: 0.1, devices: 0.003, size: 0.0 };
const OWN: Penalties = Penalties { bytes: 2.0, devices: 0.003, size: 0.02 };

#[derive(Clone, Copy)]
struct Penalties {
    bytes: f64,
    devices: f64,
    /// Of a squared value.
    size: f64,
}

/// Collectives of one family change their protocol at the same sizes.
fn family(kind: Collective) -> u8 {
    match kind {
        Collective::AllReduce => 0,
        Collective::AllToAll => 1,
        _ => 2,
    }
}

type Key = (Collective, Element);
/// The rows of one member of a family.
type Member<'a> = (Key, &'a [CollectiveRow]);

pub(super) fn fit_all(measurements: &Measurements) -> Vec<CollectiveParameters> {
    let mut families: BTreeMap<(usize, u8), Vec<Member<'_>>> = BTreeMap::new();
    for (&(device, kind, element), rows) in
        measurements.collective.iter().filter(|(_, rows)| !rows.is_empty())
    {
        families.entry((device, family(kind))).or_default().push(((kind, element), rows));
    }
    let mut all = Vec::new();
    for ((device, _), members) in families {
        let figures = &measurements.devices[device];
        let curves: Vec<Curve> =
            members.iter().map(|(_, rows)| fit_curve(rows, figures.link_bytes_per_s.0)).collect();
        let unseen = |kind: Collective, row: &CollectiveRow| {
            draw(0, &[kind as u64, u64::from(row.devices), row.bytes]) < 0.1
        };
        let kept: Vec<(Key, Vec<CollectiveRow>)> = members
            .iter()
            .map(|(key, rows)| (*key, rows.iter().filter(|row| !unseen(key.0, row)).copied().collect()))
            .collect();
        let kept: Vec<Member<'_>> = kept.iter().map(|(key, rows)| (*key, rows.as_slice())).collect();
        let tables = fit_tables(&curves, &members).into_iter().zip(fit_tables(&curves, &kept));
        for (((key, rows), curve), (table, without)) in members.iter().zip(&curves).zip(tables) {
            let (kind, element) = *key;
            let errors = rows.iter().filter(|row| unseen(kind, row)).map(|row| {
                let (ranks, bytes) = (f64::from(row.devices), row.bytes as f64);
                (curve.seconds(kind, ranks, bytes) * without.at(ranks, bytes).exp() / row.seconds).ln().abs()
            });
            let spread = rounded(two_thirds(errors));
            let device = figures.name.clone();
            all.push(CollectiveParameters { device, kind, element, spread, curve: *curve, table });
        }
    }
    all
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

/// Sums and numbers of what is left in each cell of a table.
struct Cells {
    columns: usize,
    sums: Vec<f64>,
    counts: Vec<f64>,
}

impl Cells {
    /// One of Gauss and Seidel's sweeps over the penalised least squares.
    fn sweep(&self, values: &mut [f64], penalties: Penalties) {
        let (columns, cells) = (self.columns, values.len());
        for cell in 0..cells {
            let column = cell % columns;
            let beside = [
                (cell >= columns).then(|| (cell - columns, penalties.devices)),
                (cell + columns < cells).then_some((cell + columns, penalties.devices)),
                (column > 0).then(|| (cell - 1, penalties.bytes)),
                (column + 1 < columns).then_some((cell + 1, penalties.bytes)),
            ];
            let (mut pull, mut weight) = (self.sums[cell], self.counts[cell] + penalties.size);
            for (other, penalty) in beside.into_iter().flatten() {
                pull += penalty * values[other];
                weight += penalty;
            }
            values[cell] = pull / weight;
        }
    }

    /// What is left when `values` are taken off.
    fn without(&self, values: &[f64]) -> Self {
        let sums =
            self.sums.iter().zip(&self.counts).zip(values).map(|((sum, count), value)| sum - count * value);
        Self { columns: self.columns, sums: sums.collect(), counts: self.counts.clone() }
    }
}

/// A table that all members share and one of each, added up.
fn fit_tables(curves: &[Curve], members: &[Member<'_>]) -> Vec<Table> {
    let rows = || members.iter().flat_map(|(_, rows)| rows.iter());
    let devices = Axis::of(rows().map(|row| f64::from(row.devices)));
    let bytes = Axis::of(rows().map(|row| row.bytes as f64));
    let (columns, count) = (bytes.len(), devices.len() * bytes.len());
    let cells: Vec<Cells> = members
        .iter()
        .zip(curves)
        .map(|((_, rows), curve)| {
            let (mut sums, mut counts) = (vec![0.0; count], vec![0.0; count]);
            for row in rows.iter() {
                let at = |axis: &Axis, value: f64| axis.points().partition_point(|point| *point < value);
                let cell = at(&devices, f64::from(row.devices)) * columns + at(&bytes, row.bytes as f64);
                let modelled = curve.seconds(row.kind, f64::from(row.devices), row.bytes as f64);
                sums[cell] += (row.seconds / modelled).ln();
                counts[cell] += 1.0;
            }
            Cells { columns, sums, counts }
        })
        .collect();
    let mut shared = vec![0.0; count];
    let mut own = vec![vec![0.0; count]; members.len()];
    for _ in 0..200 {
        let mut left = Cells { columns, sums: vec![0.0; count], counts: vec![0.0; count] };
        for (cells, own) in cells.iter().zip(&own) {
            let cells = cells.without(own);
            left.sums.iter_mut().zip(&cells.sums).for_each(|(sum, more)| *sum += more);
            left.counts.iter_mut().zip(&cells.counts).for_each(|(count, more)| *count += more);
        }
        left.sweep(&mut shared, SHARED);
        for (cells, own) in cells.iter().zip(&mut own) {
            cells.without(&shared).sweep(own, OWN);
        }
    }
    let sum = |own: Vec<f64>| {
        own.iter().zip(&shared).map(|(own, shared)| ((own + shared) / QUANTUM).round() * QUANTUM).collect()
    };
    own.into_iter()
        .map(|own| Table { devices: devices.clone(), bytes: bytes.clone(), values: sum(own) })
        .collect()
}
