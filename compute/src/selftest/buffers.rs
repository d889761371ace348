//! Buffers, copies and elementwise operations.

use super::Outcome;
use super::grid::Grid;
use super::lab::{BufferPrecision, Lab, both, host, host_range};
use crate::backend::{Backend, GemmShape, RegionMut};

/// Empty, one, an odd length, and a power of two.
const LENGTHS: [usize; 4] = [0, 1, 1037, 4096];

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for &held in lab.precisions() {
        zeros(lab, held)?;
        transfers(lab, held)?;
        matrices(lab, held)?;
        for len in LENGTHS {
            elementwise(lab, held, len)?;
        }
    }
    copies(lab)
}

fn zeros<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, held: BufferPrecision) -> Outcome {
    for len in LENGTHS {
        let buffer = match held {
            BufferPrecision::Working => lab.device.zeros(len),
            BufferPrecision::Full => lab.device.zeros_full(len),
        };
        let holds = lab.device.len(&buffer) == len && host(lab.device, &buffer) == vec![0.0; len];
        lab.require("zeros", &format!("{len} elements, {held}"), holds)?;
    }
    Ok(())
}

fn transfers<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, held: BufferPrecision) -> Outcome {
    let (len, device) = (1037, lab.device);
    let case = format!("{len} elements, {held}");
    let mut values = lab.numbers(len);
    values[..6].copy_from_slice(&[0.0, 1.0, -2.5, 1e-30, -1e30, 65536.0]);
    let sent: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let sent_values: Vec<f64> = sent.iter().copied().map(f64::from).collect();
    let upload = |from: &[f32]| match held {
        BufferPrecision::Working => device.upload(from),
        BufferPrecision::Full => device.upload_full(from),
    };

    // One rounding to the buffer's precision, unless that is the host's. Values that the buffer can represent
    // come back exactly, so the second round trip has no rounding.
    let buffer = upload(&sent);
    let once = host(device, &buffer);
    let small = if held == BufferPrecision::Full { 0.0 } else { lab.rounding.working };
    lab.check_values(
        "upload",
        &format!("{case}, large and small"),
        small,
        (&once[..6], &sent_values[..6]),
        0.0,
    )?;
    lab.check_values("upload", &case, small, (&once[6..], &sent_values[6..]), 0.0)?;
    let again: Vec<f32> = once.iter().map(|&x| x as f32).collect();
    let buffer = upload(&again);
    lab.check_values("download", &case, 0.0, (&host(device, &buffer), &once), 0.0)?;
    let part = host_range(device, &buffer, lab.lead..len - 7);
    lab.check_values("download", &format!("part of {case}"), 0.0, (&part, &once[lab.lead..len - 7]), 0.0)?;
    let lengths = [device.len(&buffer), device.len(&upload(&[]))];
    lab.require("len", &case, lengths == [len, 0])?;

    let mut buffer = match held {
        BufferPrecision::Working => device.uninitialised(len),
        BufferPrecision::Full => device.uninitialised_full(len),
    };
    device.write(&again, RegionMut::start(&mut buffer));
    // The source may change as soon as the call returns, and elements outside the written range do not
    // change.
    let mut patch = again[..100].to_vec();
    device.write(&patch, RegionMut::new(&mut buffer, 500 + lab.lead));
    patch.fill(7.0);
    device.write(&[], RegionMut::new(&mut buffer, len));
    let mut expected = once.clone();
    expected[500 + lab.lead..][..100].copy_from_slice(&once[..100]);
    lab.check_values("write", &case, 0.0, (&host(device, &buffer), &expected), 0.0)?;

    // Only if host and device share memory.
    let seen = device.host(&buffer).map(<[f32]>::to_vec);
    let writable = device.host_mut(&mut buffer).map(|host| host.to_vec());
    let same = |host: Option<Vec<f32>>| {
        host.is_none_or(|host| host.iter().copied().map(f64::from).eq(expected.iter().copied()))
    };
    lab.require("host", &case, same(seen) && same(writable))
}

fn copies<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for &source in lab.precisions() {
        for &target in lab.precisions() {
            for len in LENGTHS {
                let (from, mut to) = (lab.random(source, len), lab.blank(target, len));
                both!(lab, on, [from], [to], on.copy(len, from.region(), to.region_mut()));
                // Only a copy from full to working precision rounds.
                let rounds = (source, target) == (BufferPrecision::Full, BufferPrecision::Working);
                let tolerance = if rounds { lab.rounding.working } else { 0.0 };
                lab.check("copy", &format!("{len} elements, {source} to {target}"), tolerance, &to)?;
            }
        }
    }
    Ok(())
}

fn matrices<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, held: BufferPrecision) -> Outcome {
    // The layout of attention: heads one after the other, in rows that hold several sequences.
    let heads = Grid { batch: 3, rows: 7, columns: 5, batch_stride: 10, row_stride: 93, column_stride: 1 };
    let cases = [
        ("1 matrix 1 × 1", Grid::by_rows(1, 1, 1, 0), Grid::by_rows(1, 1, 1, 0)),
        ("3 matrices 7 × 5, heads of rows to packed", heads, Grid::by_rows(3, 7, 5, 0)),
        ("3 matrices 7 × 5, packed to heads of rows", Grid::by_rows(3, 7, 5, 0), heads),
        ("2 matrices 17 × 3, gaps to gaps", Grid::by_rows(2, 17, 3, 4), Grid::by_rows(2, 17, 3, 1)),
        ("4 matrices 32 × 64", Grid::by_rows(4, 32, 64, 0), Grid::by_rows(4, 32, 64, 64)),
    ];
    for (case, source, target) in cases {
        let (from, mut to) = (lab.random_grid(held, source), lab.blank_grid(held, target));
        let product = GemmShape::new(source.rows, source.columns, 0).batched(source.batch);
        both!(lab, on, [from], [to], {
            on.copy_matrices(product, source.of(from.region()), target.of_mut(to.region_mut()));
        });
        lab.check("copy_matrices", &format!("{case}, {held}"), 0.0, &to)?;
    }
    Ok(())
}

fn elementwise<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    held: BufferPrecision,
    len: usize,
) -> Outcome {
    let case = format!("{len} elements, {held}");
    let mut to = lab.random(held, len);
    both!(lab, on, [], [to], on.fill_zero(len, to.region_mut()));
    lab.check("fill_zero", &case, 0.0, &to)?;

    // One operation, stored once.
    let tolerance = lab.rounding.result(held);
    let (from, mut to) = (lab.random(held, len), lab.random(held, len));
    both!(lab, on, [from], [to], on.add(len, from.region(), to.region_mut()));
    lab.check("add", &case, tolerance, &to)?;

    let mut to = lab.random(held, len);
    both!(lab, on, [], [to], on.scale(len, -0.37, to.region_mut()));
    lab.check("scale", &case, tolerance, &to)?;

    // In double precision, possibly through a few partial sums.
    let of = lab.random(held, len);
    let sums = both!(lab, on, [of], [], on.sum_of_squares(len, of.region()));
    let sums = (lab.device.read(&sums.0), lab.exact.read(&sums.1));
    lab.check_number("sum_of_squares", &case, 1e-3 * lab.rounding.full(), sums)
}
