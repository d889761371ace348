//! Compressed gradients.

use crate::device::TrainingDevice;
use crate::guard::Watch;
use crate::pace::{CodingPace, CodingTime, Emulated};
use crate::rounding::RoundedCollective;
use crate::{ExecutionError, Task};
use autodist_codecs::{Arithmetic, Exchange, PartMut, Tensor};
use autodist_communication::{CommunicationError, Communicator, ReduceOp};
use autodist_program::{Coordinates, Program};
use autodist_spec::run::FallbackReason;
use autodist_spec::{Algorithm, Codec, Coded, Optimizer};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One bucket's codec with its state between steps, in the device's memory.
pub struct BucketCompressor<D: TrainingDevice> {
    codec: autodist_codecs::Compressor<D::Coding>,
    /// The coding time of an emulated device; `None` otherwise.
    time: Option<CodingTime>,
    watch: SharedWatch,
}

/// The compression statistics of a bucket, shared by the thread that compresses and the one that reads the
/// result at the end.
pub type SharedWatch = Arc<Mutex<Watch>>;

/// One reduction through a codec.
pub struct Compression<'a, D: TrainingDevice> {
    pub compressor: &'a mut BucketCompressor<D>,
    /// Algorithm of the all-reduces in the codec.
    pub algorithm: Algorithm,
}

impl<D: TrainingDevice> Compression<'_, D> {
    pub fn reduce(
        self,
        queue: &D,
        buffer: &mut D::Buffer,
        range: Range<usize>,
        group: &mut dyn Communicator,
    ) -> Result<(), ExecutionError> {
        let BucketCompressor { codec, time, watch } = self.compressor;
        let mut over = Over::new(group, self.algorithm, time.map(CodingTime::begin));
        let (on, mut gradient) = (queue.coding(), PartMut::new(D::values(buffer), range));
        let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
        let votes = codec.keeps() && watch.votes();
        let norm = votes.then(|| on.read(&on.square_sum(gradient.read())).sqrt());
        let report = codec.reduce_on(&on, gradient.again(), &mut over)?;
        let own = watch.observe(report, norm);
        if votes && let Some(reason) = reason(over.max(vote(own))?) {
            watch.fell_back(reason);
            codec.stop();
            *time = None;
        }
        over.end();
        Ok(())
    }
}

/// The reason as a number, for an all-reduce (max) over members.
fn vote(reason: Option<FallbackReason>) -> f32 {
    match reason {
        None => 0.0,
        Some(FallbackReason::ErrorGrowth) => 1.0,
        Some(FallbackReason::Contraction) => 2.0,
    }
}

fn reason(vote: f32) -> Option<FallbackReason> {
    match vote {
        2.0.. => Some(FallbackReason::Contraction),
        1.0.. => Some(FallbackReason::ErrorGrowth),
        _ => None,
    }
}

/// A collective whose payload a codec encodes.
pub enum CodedCollective<'a, D: TrainingDevice> {
    Compression(Compression<'a, D>),
    Rounding(RoundedCollective),
}

impl<D: TrainingDevice> CodedCollective<'_, D> {
    /// Runs the collective on a part of a buffer, over `group`.
    ///
    /// # Errors
    /// A peer that has disconnected or is silent.
    pub fn run(
        self,
        queue: &D,
        buffer: &mut D::Buffer,
        range: Range<usize>,
        group: &mut dyn Communicator,
    ) -> Result<(), ExecutionError> {
        match self {
            Self::Compression(compression) => compression.reduce(queue, buffer, range, group),
            Self::Rounding(rounding) => rounding.run(queue, buffer, range, group),
        }
    }
}

/// The compressors of a rank's buckets, by bucket, and their watches. They must be made on the queue that
/// uses them.
pub fn of<D: TrainingDevice>(
    queue: &D,
    program: &Program,
    at: Coordinates,
    task: &Task,
    emulated: Option<Emulated>,
) -> (BTreeMap<usize, BucketCompressor<D>>, Vec<SharedWatch>) {
    let strategy = &program.strategy;
    let size = program.mesh.data();
    let decay = match task.job.optimizer {
        Optimizer::AdamW { beta1, .. } => beta1,
        Optimizer::Sgd { momentum, .. } => momentum,
    };
    let mut compressors = BTreeMap::new();
    let mut watches = Vec::new();
    let on = queue.coding();
    let class = program.ranks[at.pipeline].class(at.tensor);
    for (index, bucket) in class.buckets.iter().enumerate() {
        let codec = strategy.communication.reduction(at.pipeline, index).codec;
        // Shards are rounded without state, so they need no compressor.
        if codec == Codec::None || size == 1 || bucket.residence.shards_state() {
            continue;
        }
        let tensors: Vec<Tensor> = bucket
            .parameters(&program.model, at.tensor, strategy.tensor as usize)
            .iter()
            .map(|p| Tensor { offset: p.offset, rows: p.rows, columns: p.columns })
            .collect();
        let coded = Coded::Gradients;
        let time = emulated.map(|emulated| {
            let flops = autodist_codecs::work(codec, coded, &tensors, bucket.padded, size);
            let exchanges = autodist_codecs::phases(codec, coded, &tensors, bucket.padded, size).len();
            emulated.coding(flops, exchanges)
        });
        let compressor = autodist_codecs::Compressor::on(&on, codec, &tensors, bucket.padded, task.job.seed)
            .with_momentum(decay);
        let compressor = match task.coding.error_feedback {
            true => compressor,
            false => compressor.without_error_feedback(),
        };
        let watch = Arc::new(Mutex::new(Watch::new(task.coding.guard, at.pipeline, index, codec)));
        watches.push(Arc::clone(&watch));
        compressors.insert(index, BucketCompressor { codec: compressor, time, watch });
    }
    (compressors, watches)
}

/// The optimizer of a bucket whose codec replaces a part of it, and the steps after which its second moments
/// are frozen.
pub fn optimizer_beside(codec: Codec, optimizer: Optimizer) -> (Optimizer, Option<u64>) {
    match (codec, optimizer) {
        (Codec::OneBitAdam { warmup_steps }, _) => (optimizer, Some(u64::from(warmup_steps))),
        // The codec has the momentum. It does not include the weight decay, which is therefore scaled, in one
        // step, to its total effect over all steps through momentum.
        (Codec::Dgc { .. }, Optimizer::Sgd { momentum, weight_decay }) => {
            (Optimizer::Sgd { momentum: 0.0, weight_decay: weight_decay / (1.0 - momentum) }, None)
        }
        _ => (optimizer, None),
    }
}

/// The group of a codec's collectives.
pub(crate) struct Over<'a> {
    group: &'a mut dyn Communicator,
    algorithm: Algorithm,
    exchanging: Duration,
    pace: Option<CodingPace>,
}

impl<'a> Over<'a> {
    /// `algorithm` is that of all-reduces. This thread's time between collectives counts as coding, until
    /// [`Self::end`].
    pub fn new(group: &'a mut dyn Communicator, algorithm: Algorithm, pace: Option<CodingPace>) -> Self {
        Self { group, algorithm, exchanging: Duration::ZERO, pace }
    }

    /// Ends the coding after the last collective.
    pub fn end(mut self) {
        self.end_part();
    }

    fn end_part(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.end_part(self.exchanging);
        }
    }

    fn timed<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Communicator, Algorithm) -> Result<T, CommunicationError>,
    ) -> Result<T, CommunicationError> {
        self.end_part();
        let start = Instant::now();
        let result = work(self.group, self.algorithm);
        self.exchanging += start.elapsed();
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
        self.timed(|group, algorithm| group.all_reduce_by(algorithm, values, ReduceOp::Sum))
    }

    fn max(&mut self, value: f32) -> Result<f32, CommunicationError> {
        let mut values = [value];
        self.timed(|group, _| group.all_reduce(&mut values, ReduceOp::Max))?;
        Ok(values[0])
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, CommunicationError> {
        self.timed(|group, _| group.all_gather_bytes(own))
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CommunicationError> {
        self.timed(|group, _| group.all_to_all_bytes(parts))
    }
}
