//! Gradients that travel in fewer bytes.

use crate::ExecutionError;
use crate::device::Device;
use autodist_codecs::{Exchange, PartMut, Report, Tensor};
use autodist_communication::{CommunicationError, Communicator, Reduction};
use autodist_program::{Coordinates, Program};
use autodist_spec::{Algorithm, Codec};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

/// One bucket's codec with what it keeps between steps, in the device's memory.
pub struct Compressor<D: Device> {
    codec: autodist_codecs::Compressor<D::Coding>,
    /// Seconds that coding takes on an emulated device.
    emulated_s: Option<f64>,
}

impl<D: Device> Compressor<D> {
    pub fn new(
        device: &D,
        codec: Codec,
        tensors: &[Tensor],
        elements: usize,
        size: usize,
        seed: u64,
        flops_per_s: Option<f64>,
    ) -> Self {
        let emulated_s = flops_per_s.map(|rate| autodist_codecs::work(codec, tensors, elements, size) / rate);
        let codec = autodist_codecs::Compressor::on(&device.coding(), codec, tensors, elements, size, seed);
        Self { codec, emulated_s }
    }

    /// The same as it works once its first steps are over, where those differ.
    #[must_use]
    pub fn after_warmup(self) -> Self {
        Self { codec: self.codec.after_warmup(), ..self }
    }

    /// Replaces a range of gradients by what the codec makes of their sum over all members.
    ///
    /// # Errors
    /// Those of the exchanges.
    pub fn reduce<X: Exchange>(
        &mut self,
        queue: &D,
        buffer: &mut D::Buffer,
        range: Range<usize>,
        exchange: &mut X,
    ) -> Result<Report, X::Error> {
        let gradient = PartMut::new(D::values(buffer), range);
        self.codec.reduce_on(&queue.coding(), gradient, exchange)
    }
}

/// One reduction through a codec.
pub struct Compression<'a, D: Device> {
    pub compressor: &'a mut Compressor<D>,
    /// Of the sums in it.
    pub algorithm: Algorithm,
}

impl<D: Device> Compression<'_, D> {
    pub fn reduce(
        self,
        queue: &D,
        buffer: &mut D::Buffer,
        range: Range<usize>,
        group: &mut dyn Communicator,
    ) -> Result<(), ExecutionError> {
        let start = Instant::now();
        let mut over = Over { group, algorithm: self.algorithm, communicating: 0.0 };
        self.compressor.reduce(queue, buffer, range, &mut over)?;
        if let Some(emulated) = self.compressor.emulated_s {
            let coding = start.elapsed().as_secs_f64() - over.communicating;
            std::thread::sleep(std::time::Duration::from_secs_f64((emulated - coding).max(0.0)));
        }
        Ok(())
    }
}

/// The compressors of a rank's buckets, by bucket.
pub fn of<D: Device>(
    device: &D,
    program: &Program,
    at: Coordinates,
    seed: u64,
    flops_per_s: Option<f64>,
) -> BTreeMap<usize, Compressor<D>> {
    let strategy = &program.strategy;
    let size = strategy.data as usize;
    let mut compressors = BTreeMap::new();
    let buckets =
        autodist_program::buckets(&program.model, strategy, &program.stages, at.pipeline, at.tensor);
    for (index, bucket) in buckets.iter().enumerate() {
        let codec = strategy.communication.reduction(at.pipeline, index).codec;
        if codec == Codec::None || size == 1 {
            continue;
        }
        let tensors: Vec<Tensor> = bucket
            .parameters(&program.model, at.tensor, strategy.tensor as usize)
            .iter()
            .map(|p| Tensor { offset: p.offset, rows: p.rows, columns: p.columns })
            .collect();
        let compressor = Compressor::new(device, codec, &tensors, bucket.padded, size, seed, flops_per_s);
        compressors.insert(index, compressor);
    }
    compressors
}

/// A group as codecs see it.
struct Over<'a> {
    group: &'a mut dyn Communicator,
    algorithm: Algorithm,
    /// Seconds that were not coding.
    communicating: f64,
}

impl Over<'_> {
    fn timed<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Communicator, Algorithm) -> Result<T, CommunicationError>,
    ) -> Result<T, CommunicationError> {
        let start = Instant::now();
        let result = work(self.group, self.algorithm);
        self.communicating += start.elapsed().as_secs_f64();
        result
    }
}

impl Exchange for Over<'_> {
    type Error = CommunicationError;

    fn size(&self) -> usize {
        self.group.size()
    }

    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), CommunicationError> {
        self.timed(|group, algorithm| group.all_reduce_by(algorithm, values, Reduction::Sum))
    }

    fn max(&mut self, value: f32) -> Result<f32, CommunicationError> {
        let mut values = [value];
        self.timed(|group, _| group.all_reduce(&mut values, Reduction::Max))?;
        Ok(values[0])
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, CommunicationError> {
        self.timed(|group, _| group.all_gather_bytes(own))
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CommunicationError> {
        self.timed(|group, _| group.all_to_all_bytes(parts))
    }
}
