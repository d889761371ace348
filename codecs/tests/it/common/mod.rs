//! Groups whose members are threads.

use autodist_codecs::{Compressor, Exchange, Phase, Tensor};
use autodist_spec::Codec;
use std::convert::Infallible;
use std::sync::{Barrier, Mutex};

/// Shared storage through which members exchange data, one collective at a time.
pub struct Table {
    size: usize,
    barrier: Barrier,
    slots: Mutex<Vec<Vec<Vec<u8>>>>,
}

impl Table {
    pub fn new(size: usize) -> Self {
        Self { size, barrier: Barrier::new(size), slots: Mutex::new(vec![Vec::new(); size]) }
    }

    fn swap(&self, rank: usize, given: Vec<Vec<u8>>) -> Vec<Vec<Vec<u8>>> {
        self.slots.lock().unwrap()[rank] = given;
        self.barrier.wait();
        let all = self.slots.lock().unwrap().clone();
        self.barrier.wait();
        all
    }
}

/// One member, with a record of its collectives.
pub struct Member<'a> {
    pub table: &'a Table,
    pub rank: usize,
    pub seen: Vec<Phase>,
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

impl Exchange for Member<'_> {
    type Error = Infallible;

    fn size(&self) -> usize {
        self.table.size
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), Infallible> {
        self.seen.push(Phase::Sum { elements: values.len() });
        let all = self.table.swap(self.rank, vec![floats(values)]);
        values.fill(0.0);
        for part in &all {
            read(&part[0]).iter().zip(values.iter_mut()).for_each(|(from, to)| *to += from);
        }
        Ok(())
    }

    fn max(&mut self, value: f32) -> Result<f32, Infallible> {
        self.seen.push(Phase::Max);
        let all = self.table.swap(self.rank, vec![floats(&[value])]);
        Ok(all.iter().map(|part| read(&part[0])[0]).fold(f32::NEG_INFINITY, f32::max))
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
        let all = self.table.swap(self.rank, vec![own.to_vec()]);
        self.seen.push(Phase::AllGather { bytes: all.iter().map(|part| part[0].len()).collect() });
        Ok(all.into_iter().map(|mut part| part.swap_remove(0)).collect())
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Infallible> {
        let all = self.table.swap(self.rank, parts.to_vec());
        let bytes = all.iter().map(|row| row.iter().map(Vec::len).collect()).collect();
        self.seen.push(Phase::AllToAll { bytes });
        Ok(all.into_iter().map(|mut row| row.swap_remove(self.rank)).collect())
    }
}

/// One step of one member.
#[derive(Debug, Clone)]
pub struct Step {
    pub result: Vec<f32>,
    pub seen: Vec<Phase>,
    pub state_bytes: u64,
    pub kept: Vec<f32>,
}

/// Returns the result of every member in every step, by step, then by member; `gradient(step, member)` is the
/// input.
pub fn run(
    codec: Codec,
    tensors: &[Tensor],
    elements: usize,
    size: usize,
    steps: usize,
    memory: bool,
    gradient: impl Fn(usize, usize) -> Vec<f32> + Sync,
) -> Vec<Vec<Step>> {
    let compressor = || {
        let compressor = Compressor::new(codec, tensors, elements, 7);
        if memory { compressor } else { compressor.without_error_feedback() }
    };
    run_with(compressor, size, steps, gradient)
}

/// Like [`run`]; each member has its own `compressor`.
pub fn run_with(
    compressor: impl Fn() -> Compressor + Sync,
    size: usize,
    steps: usize,
    gradient: impl Fn(usize, usize) -> Vec<f32> + Sync,
) -> Vec<Vec<Step>> {
    let table = Table::new(size);
    let member = |rank: usize| {
        let mut compressor = compressor();
        let step = |step: usize| {
            let mut member = Member { table: &table, rank, seen: Vec::new() };
            let mut result = gradient(step, rank);
            let Ok(_) = compressor.reduce(&mut result, &mut member);
            let (state_bytes, kept) = (compressor.state_bytes(), compressor.kept().to_vec());
            Step { result, seen: member.seen, state_bytes, kept }
        };
        (0..steps).map(step).collect::<Vec<_>>()
    };
    let by_member: Vec<Vec<Step>> = std::thread::scope(|scope| {
        let member = &member;
        let handles: Vec<_> = (0..size).map(|rank| scope.spawn(move || member(rank))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    (0..steps).map(|step| by_member.iter().map(|steps| steps[step].clone()).collect()).collect()
}

/// A value from -1 to 1, the same in every run.
pub fn value(step: usize, member: usize, index: usize) -> f32 {
    let mixed = (step as u64 * 0x9E37_79B9 + member as u64 * 0x85EB_CA6B + index as u64 + 1)
        .wrapping_mul(0xD134_2543_DE82_EF95);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}
