//! The order of work within a queue and between queues, and the reuse of memory that is freed meanwhile.
//!
//! A device with wrong ordering may still give correct results if it is fast enough, so queues are kept busy
//! before the work that others must wait for.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, Pair, host};
use crate::backend::{Backend, DeviceError, GemmShape, Region, RegionMut};
use std::time::Instant;

/// How long to keep a queue busy, in seconds: much longer than it takes to queue all the work of a check.
const BUSY: f64 = 0.01;
/// Minimum duration of one GEMM of that work, in seconds: much longer than it takes to queue it.
const ONE_PRODUCT: f64 = 2e-4;
const LARGEST_PRODUCT: usize = 4096;
const MOST_PRODUCTS: f64 = 100.0;

const LEN: usize = 1037;

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    let other = lab.device.queue()?;
    let busy = Busy::measure(lab.device)?;
    events(lab, busy)?;
    for late in [0, 1] {
        alternations(lab, busy, &other, late)?;
    }
    recycled_memory(lab, busy)?;
    handed_back(lab, busy, &other)?;
    writes(lab, busy)?;
    scalars(lab, busy, &other)?;
    at_once(lab, &other)
}

/// The size and number of GEMMs that keep a queue busy.
#[derive(Clone, Copy)]
struct Busy {
    size: usize,
    products: usize,
}

/// The operands of the work that keeps a queue busy.
struct Load<B: Backend> {
    size: usize,
    factor: B::Buffer,
    result: B::Buffer,
}

impl<B: Backend> Load<B> {
    fn new(device: &B, size: usize) -> Self {
        Self { size, factor: device.zeros(size * size), result: device.zeros(size * size) }
    }

    fn queue(&mut self, on: &B, products: usize) {
        let size = self.size;
        for _ in 0..products {
            let factor = Region::start(&self.factor).rows(size);
            let result = RegionMut::start(&mut self.result).rows(size);
            on.matmul(GemmShape::new(size, size, size), 1.0, factor, factor, 0.0, result);
        }
    }
}

impl Busy {
    fn measure<B: Backend>(device: &B) -> Result<Self, DeviceError> {
        let mut size = 64;
        loop {
            let mut load = Load::new(device, size);
            let mut fastest = f64::INFINITY;
            for _ in 0..3 {
                device.synchronise()?;
                let start = Instant::now();
                load.queue(device, 1);
                device.synchronise()?;
                fastest = fastest.min(start.elapsed().as_secs_f64());
            }
            if fastest >= ONE_PRODUCT || size >= LARGEST_PRODUCT {
                let products = (BUSY / fastest).ceil().clamp(1.0, MOST_PRODUCTS) as usize;
                return Ok(Self { size, products });
            }
            size *= 2;
        }
    }

    /// Keeps the queue busy; the result must live until it has been waited for.
    #[must_use]
    fn keep<B: Backend>(self, device: &B) -> Load<B> {
        let mut load = Load::new(device, self.size);
        load.queue(device, self.products);
        load
    }
}

fn events<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, busy: Busy) -> Outcome {
    let device = lab.device;
    device.synchronise()?;
    let start = Instant::now();
    let first = device.record();
    let load = busy.keep(device);
    let last = device.record();
    let seconds = device.seconds_between(&first.clone(), &last);
    let elapsed = start.elapsed().as_secs_f64();
    drop(load);
    // The device's clock may differ from the host's.
    let holds = seconds > 0.0 && seconds <= 1.01 * elapsed;
    lab.require("events", "time between is in seconds, and has passed", holds)?;
    let (first, last) = (device.record(), device.record());
    let none = device.seconds_between(&first, &last);
    lab.require("events", "no time goes back", none.is_finite() && none >= 0.0)
}

/// Two queues change the same buffer in turn, by operations that do not commute; one of them is late.
fn alternations<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    busy: Busy,
    other: &B,
    late: usize,
) -> Outcome {
    const TURNS: usize = 20;
    let queues = [lab.device, other];
    let (from, mut to) = (lab.random(BufferPrecision::Full, LEN), lab.random(BufferPrecision::Full, LEN));
    other.wait_for(&lab.device.record());
    let load = busy.keep(queues[late]);
    for turn in 0..TURNS {
        let (now, next) = (queues[turn % 2], queues[(turn + 1) % 2]);
        if turn % 2 == 0 {
            now.add(LEN, from.device.region(), to.device.region_mut());
            lab.exact.add(LEN, from.exact.region(), to.exact.region_mut());
        } else {
            now.scale(LEN, -0.75, to.device.region_mut());
            lab.exact.scale(LEN, -0.75, to.exact.region_mut());
        }
        next.wait_for(&now.record());
    }
    // Every turn rounds once; the factor shrinks earlier errors, so four times one turn's is more than their
    // sum.
    let case = format!("{TURNS} turns, queue {} of 2 late", late + 1);
    lab.check("wait_for", &case, 4.0 * lab.rounding.result(BufferPrecision::Full), &to)?;
    other.synchronise()?;
    drop(load);
    Ok(())
}

/// A buffer that is dropped while queued work still needs it stays unchanged until then.
fn recycled_memory<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, busy: Busy) -> Outcome {
    const TIMES: usize = 4;
    let device = lab.device;
    let mut to = lab.random(BufferPrecision::Working, LEN);
    let mut sources = Vec::new();
    for _ in 0..TIMES {
        let from = lab.random(BufferPrecision::Working, LEN);
        lab.exact.add(LEN, from.exact.region(), to.exact.region_mut());
        sources.push(from.exact(LEN).into_iter().map(|x| x as f32).collect::<Vec<_>>());
    }
    let load = busy.keep(device);
    for source in sources {
        let temporary = device.upload(&source);
        let mut copy = device.uninitialised(LEN);
        device.copy(LEN, Region::start(&temporary), RegionMut::start(&mut copy));
        drop(temporary);
        // These may reuse the memory that was just freed.
        let (zeros, ones) = (device.zeros(LEN), device.upload(&[1.0; LEN]));
        device.add(LEN, Region::start(&copy), to.device.region_mut());
        drop((copy, zeros, ones));
    }
    let tolerance = TIMES as f64 * lab.rounding.result(BufferPrecision::Working);
    lab.check("queue", "memory of dropped buffers", tolerance, &to)?;
    drop(load);
    Ok(())
}

/// A buffer is used on a busy queue, then returned to its own queue, which drops it and allocates another.
fn handed_back<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, busy: Busy, other: &B) -> Outcome {
    let mut to = lab.random(BufferPrecision::Working, LEN);
    let ones = other.upload(&[1.0; LEN]);
    let load = busy.keep(lab.device);
    lab.device.wait_for(&other.record());
    lab.device.add(LEN, Region::start(&ones), to.device.region_mut());
    other.wait_for(&lab.device.record());
    drop(ones);
    let mut others = other.zeros(LEN);
    other.write(&[5.0; LEN], RegionMut::start(&mut others));
    let ones = lab.exact.upload(&[1.0; LEN]);
    lab.exact.add(LEN, Region::start(&ones), to.exact.region_mut());
    lab.check(
        "queue",
        "a buffer handed back and dropped",
        lab.rounding.result(BufferPrecision::Working),
        &to,
    )?;
    let holds = host(other, &others) == vec![5.0; LEN];
    other.synchronise()?;
    drop(load);
    lab.require("queue", "a buffer made after that", holds)
}

/// A write waits for earlier work, and its source may change as soon as the call returns.
fn writes<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, busy: Busy) -> Outcome {
    let device = lab.device;
    let mut from = lab.random(BufferPrecision::Working, LEN);
    let mut to = lab.blank(BufferPrecision::Working, LEN);
    let load = busy.keep(device);
    device.copy(LEN, from.device.region(), to.device.region_mut());
    lab.exact.copy(LEN, from.exact.region(), to.exact.region_mut());
    let mut source = vec![-0.5; LEN];
    device.write(&source, from.device.region_mut());
    source.fill(9.0);
    lab.exact.write(&[-0.5; LEN], from.exact.region_mut());
    lab.check("write", "what was read before it", 0.0, &to)?;
    lab.check("write", "after queued work", 0.0, &from)?;
    drop(load);
    Ok(())
}

/// Several pending numbers on two queues, read in another order.
fn scalars<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, busy: Busy, other: &B) -> Outcome {
    let of: Vec<_> = (0..6).map(|index| lab.random(BufferPrecision::Working, LEN + index)).collect();
    other.wait_for(&lab.device.record());
    let load = busy.keep(lab.device);
    let sum = |(index, of): (usize, &Pair<B>)| {
        let on = if index % 2 == 0 { lab.device } else { other };
        let expected = lab.exact.sum_of_squares(LEN + index, of.exact.region());
        (on, on.sum_of_squares(LEN + index, of.device.region()), expected)
    };
    let sums: Vec<_> = of.iter().enumerate().map(sum).collect();
    let read = sums.iter().rev().map(|(on, scalar, expected)| (on.read(scalar), *expected));
    let (found, expected): (Vec<_>, Vec<_>) = read.unzip();
    drop(load);
    // Double precision, as in `buffers`.
    let tolerance = 1e-3 * lab.rounding.full();
    lab.check_values("read", "6 sums of squares of 2 queues", tolerance, (&found, &expected), 0.0)
}

/// Independent queues do not share scratch memory.
fn at_once<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, other: &B) -> Outcome {
    const TIMES: usize = 10;
    // Few results with long sums, which devices often split.
    let (m, n, k) = (17, 33, 1037);
    let mut jobs: Vec<_> = [lab.device, other]
        .map(|on| {
            let (a, b) =
                (lab.random(BufferPrecision::Working, m * k), lab.random(BufferPrecision::Working, k * n));
            (on, a, b, lab.random(BufferPrecision::Full, m * n))
        })
        .into();
    other.wait_for(&lab.device.record());
    let product = GemmShape::new(m, n, k);
    for _ in 0..TIMES {
        for (on, a, b, c) in &mut jobs {
            let (left, right) = (a.device.region().rows(k), b.device.region().rows(n));
            on.matmul(product, 1.0, left, right, 1.0, c.device.region_mut().rows(n));
            let (left, right) = (a.exact.region().rows(k), b.exact.region().rows(n));
            lab.exact.matmul(product, 1.0, left, right, 1.0, c.exact.region_mut().rows(n));
        }
    }
    lab.device.wait_for(&other.record());
    for (index, (.., c)) in jobs.iter().enumerate() {
        // The same tolerance as in `products`.
        let tolerance = lab.rounding.result(BufferPrecision::Full)
            + lab.rounding.operands()
            + lab.rounding.sum(TIMES * k);
        lab.check("queue", &format!("products on 2 queues at once, queue {}", index + 1), tolerance, c)?;
    }
    other.synchronise()
}
