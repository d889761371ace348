//! Collectives inside one node: first the four parameters of the curve, then the table.

use super::gemm::two_thirds;
use super::rows::{CollectiveRow, Measurements};
use super::{draw, simplex};
use crate::nccl::{CollectiveParameters, Curve, NcclDatatype, Table};
use crate::parameters::{QUANTUM, rounded};
use crate::tables::Axis;
use autodist_spec::Collective;
use std::collections::BTreeMap;

/// Weights of squared differences of neighbours relative to one measurement, between sizes and between
/// numbers of devices: in the table that devices of one generation share, in the table of a device, and in
/// the table of each collective. Neighbouring numbers of devices are only weakly coupled; the coupling fills
/// in unmeasured ones.
const PENALTIES: [Penalties; 3] = [
    Penalties { bytes: 0.1, devices: 0.003, size: 0.0 },
    Penalties { bytes: 1.0, devices: 0.003, size: 0.02 },
    Penalties { bytes: 2.0, devices: 0.003, size: 0.02 },
];

#[derive(Clone, Copy)]
struct Penalties {
    bytes: f64,
    devices: f64,
    /// Penalty on a squared value.
    size: f64,
}

/// Collectives of one family switch protocols at the same sizes, on all devices of a generation.
fn family(kind: Collective) -> u8 {
    match kind {
        Collective::AllReduce => 0,
        Collective::AllToAll => 1,
        _ => 2,
    }
}

/// One collective of one element type on one device.
struct Member {
    device: usize,
    kind: Collective,
    element: NcclDatatype,
    curve: Curve,
    rows: Vec<CollectiveRow>,
}

pub(super) fn fit_all(measurements: &Measurements) -> Vec<CollectiveParameters> {
    let mut families: BTreeMap<(Option<&str>, u8), Vec<Member>> = BTreeMap::new();
    for (&(device, kind, element), rows) in
        measurements.collective.iter().filter(|(_, rows)| !rows.is_empty())
    {
        let figures = &measurements.devices[device];
        let curve = fit_curve(rows, figures.link_bytes_per_s.0);
        let member = Member { device, kind, element, curve, rows: rows.clone() };
        families.entry((figures.architecture.as_deref(), family(kind))).or_default().push(member);
    }
    let mut all = Vec::new();
    for members in families.into_values() {
        let unseen = |member: &Member, row: &CollectiveRow| {
            let numbers = [member.device as u64, member.kind as u64, u64::from(row.devices), row.bytes];
            draw(0, &numbers) < 0.1
        };
        let kept = |member: &Member| {
            member.rows.iter().filter(|row| !unseen(member, row)).copied().collect::<Vec<CollectiveRow>>()
        };
        let kept: Vec<Member> =
            members.iter().map(|member| Member { rows: kept(member), ..*member }).collect();
        let tables = fit_tables(&members).into_iter().zip(fit_tables(&kept));
        for (member, (table, without)) in members.iter().zip(tables) {
            let Member { device, kind, element, curve, ref rows } = *member;
            let errors = rows.iter().filter(|row| unseen(member, row)).map(|row| {
                let (ranks, bytes) = (f64::from(row.devices), row.bytes as f64);
                (curve.seconds(kind, ranks, bytes) * without.at(ranks, bytes).exp() / row.seconds).ln().abs()
            });
            let spread = rounded(two_thirds(errors));
            let device = measurements.devices[device].name.clone();
            all.push(CollectiveParameters { device, kind, element, spread, curve, table });
        }
    }
    all.sort_by(|a, b| (&a.device, a.kind, a.element).cmp(&(&b.device, b.kind, b.element)));
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

/// Sums and counts of the residuals in each cell of a table.
struct Cells {
    columns: usize,
    sums: Vec<f64>,
    counts: Vec<f64>,
}

impl Cells {
    /// One Gauss-Seidel sweep over the penalised least squares.
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

    /// Residuals after subtracting the tables.
    fn without(&self, tables: [&[f64]; 2]) -> Self {
        let left = |cell: usize| self.sums[cell] - self.counts[cell] * (tables[0][cell] + tables[1][cell]);
        Self {
            columns: self.columns,
            sums: (0..self.sums.len()).map(left).collect(),
            counts: self.counts.clone(),
        }
    }

    fn of(curve: &Curve, rows: &[CollectiveRow], devices: &Axis, bytes: &Axis) -> Self {
        let (columns, count) = (bytes.len(), devices.len() * bytes.len());
        let mut cells = Self { columns, sums: vec![0.0; count], counts: vec![0.0; count] };
        for row in rows {
            let at = |axis: &Axis, value: f64| axis.points().partition_point(|point| *point < value);
            let cell = at(devices, f64::from(row.devices)) * columns + at(bytes, row.bytes as f64);
            let modelled = curve.seconds(row.kind, f64::from(row.devices), row.bytes as f64);
            cells.sums[cell] += (row.seconds / modelled).ln();
            cells.counts[cell] += 1.0;
        }
        cells
    }

    fn sum(all: impl Iterator<Item = Self>, columns: usize, count: usize) -> Self {
        let zero = Self { columns, sums: vec![0.0; count], counts: vec![0.0; count] };
        all.fold(zero, |mut sum, cells| {
            sum.sums.iter_mut().zip(&cells.sums).for_each(|(sum, more)| *sum += more);
            sum.counts.iter_mut().zip(&cells.counts).for_each(|(sum, more)| *sum += more);
            sum
        })
    }
}

/// The sum of a table that all members share, one for each device and one for each member, at the numbers of
/// devices that were measured for that member.
fn fit_tables(members: &[Member]) -> Vec<Table> {
    let rows = || members.iter().flat_map(|member| member.rows.iter());
    let devices = Axis::of(rows().map(|row| f64::from(row.devices)));
    let bytes = Axis::of(rows().map(|row| row.bytes as f64));
    let (columns, count) = (bytes.len(), devices.len() * bytes.len());
    let cells: Vec<Cells> =
        members.iter().map(|member| Cells::of(&member.curve, &member.rows, &devices, &bytes)).collect();
    let mut kinds: Vec<usize> = members.iter().map(|member| member.device).collect();
    kinds.dedup();
    let of_device = |member: &Member| kinds.iter().position(|kind| *kind == member.device).unwrap_or(0);
    let mut everyone = vec![0.0; count];
    let mut device = vec![vec![0.0; count]; kinds.len()];
    let mut own = vec![vec![0.0; count]; members.len()];
    for _ in 0..200 {
        let left = members.iter().zip(&cells).zip(&own);
        let left = left.map(|((member, cells), own)| cells.without([&device[of_device(member)], own]));
        Cells::sum(left, columns, count).sweep(&mut everyone, PENALTIES[0]);
        for (at, table) in device.iter_mut().enumerate() {
            let left =
                members.iter().zip(&cells).zip(&own).filter(|((member, _), _)| of_device(member) == at);
            let left = left.map(|((_, cells), own)| cells.without([&everyone, own]));
            Cells::sum(left, columns, count).sweep(table, PENALTIES[1]);
        }
        for ((member, cells), own) in members.iter().zip(&cells).zip(&mut own) {
            cells.without([&everyone, &device[of_device(member)]]).sweep(own, PENALTIES[2]);
        }
    }
    let table = |(member, own): (&Member, &Vec<f64>)| {
        let has = |point: &f64| member.rows.iter().any(|row| f64::from(row.devices) == *point);
        let kept: Vec<usize> = (0..devices.len()).filter(|at| has(&devices.points()[*at])).collect();
        // Fewer than two numbers of devices: use all those of the family.
        let kept = if kept.len() < 2 { (0..devices.len()).collect() } else { kept };
        let shared = &device[of_device(member)];
        let value = |cell: usize| ((everyone[cell] + shared[cell] + own[cell]) / QUANTUM).round() * QUANTUM;
        let values = kept.iter().flat_map(|row| (row * columns..(row + 1) * columns).map(value));
        let devices = Axis::of(kept.iter().map(|row| devices.points()[*row]));
        Table { devices, bytes: bytes.clone(), values: values.collect() }
    };
    members.iter().zip(&own).map(table).collect()
}
