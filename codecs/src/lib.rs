//! Gradient compression: the data that each codec sends, keeps and loses.
//!
//! A [`Compressor`] belongs to one bucket of gradients of one member of a group. It replaces the member's
//! gradient by an approximation of the sum over the group, the same bits on all members, with the collectives
//! of [`Exchange`]; [`phases`] lists them beforehand, so that a cost model can count every byte.
//!
//! Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., 1901.09847): the part that a step did
//! not send is added to the next step's gradient.

mod adam;
mod arithmetic;
mod distortion;
mod factors;
mod host;
mod layout;
mod random;
pub mod rounding;
mod scratch;
mod shards;
mod signs;
mod skinny;
mod sparse;

pub use arithmetic::{Arithmetic, Factor, Form, Levels, LowRank, Part, PartMut, Scale};
pub use distortion::{Distortion, distortion};
pub use host::HostArithmetic;
pub use layout::Tensor;

use adam::Adam;
use autodist_spec::{Codec, Coded};
use factors::Factors;
use layout::Layout;
use random::Random;
use signs::Signs;
use sparse::Sparse;

/// The collectives that codecs use. All members make the same calls in the same order.
pub trait Exchange {
    type Error;
    fn size(&self) -> usize;
    /// This member's rank in the group.
    fn rank(&self) -> usize;
    /// All-reduce: replaces `values` by their sum over all members.
    ///
    /// # Errors
    /// A member that is gone.
    fn sum(&mut self, values: &mut [f32]) -> Result<(), Self::Error>;
    /// All-reduce with maximum: the largest of all members' values.
    ///
    /// # Errors
    /// A member that is gone.
    fn max(&mut self, value: f32) -> Result<f32, Self::Error>;
    /// Returns the bytes of every member, ordered by rank.
    ///
    /// # Errors
    /// A member that is gone.
    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Self::Error>;
    /// Sends part `i` to member `i`; returns the parts sent to this member, ordered by rank.
    ///
    /// # Errors
    /// A member that is gone.
    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Self::Error>;
}

/// One exchange of a reduction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Sum {
        elements: usize,
    },
    /// An all-reduce of one number by its maximum.
    Max,
    /// Bytes contributed by each member.
    AllGather {
        bytes: Vec<usize>,
    },
    /// Bytes by sender, then by receiver.
    AllToAll {
        bytes: Vec<Vec<usize>>,
    },
}

/// The compression error of one reduction, as seen by this member.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodingQuality {
    /// `1 - |x - C(x)|² / |x|²` of this member's compression: 1 if nothing was lost (delta of 1901.09847).
    pub contraction: f64,
    /// L2 norm of the error kept for the next step.
    pub error_norm: f64,
}

impl CodingQuality {
    const LOSSLESS: Self = Self { contraction: 1.0, error_norm: 0.0 };

    /// Computes the quality from the squared norms of the gradient and of its compression error.
    fn of(whole: f64, lost: f64) -> Self {
        let contraction = if whole > 0.0 { 1.0 - lost / whole } else { 1.0 };
        Self { contraction, error_norm: lost.sqrt() }
    }
}

/// One bucket's codec with its state between steps; `A` is the arithmetic of the device that holds it.
pub struct Compressor<A: Arithmetic = HostArithmetic> {
    kind: Kind<A>,
    elements: usize,
    memory: bool,
    /// Remaining steps whose gradients are sent uncompressed. (Codecs with momentum count their own.)
    dense_steps: u32,
}

enum Kind<A: Arithmetic> {
    Sum,
    Shards(Form),
    Factors(Factors<A>),
    Sparse(Sparse<A>),
    Signs(Signs<A>),
    Random(Random),
    Adam(Adam<A>),
}

impl Compressor {
    /// A compressor on the host, for a bucket of `elements` that holds `tensors`. `seed` is the same on all
    /// members.
    #[must_use]
    pub fn new(codec: Codec, tensors: &[Tensor], elements: usize, seed: u64) -> Self {
        Self::on(&HostArithmetic, codec, tensors, elements, seed)
    }

    /// Replaces `gradient` by an approximation of the sum over all members.
    ///
    /// # Errors
    /// Those of the exchanges.
    pub fn reduce<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
    ) -> Result<CodingQuality, X::Error> {
        let all = 0..gradient.len();
        self.reduce_on(&HostArithmetic, PartMut::new(gradient, all), exchange)
    }

    /// The compressor with given initial low-rank factors, one matrix after the other: the right ones of
    /// `powersgd`, the left ones of `powersgd_half`. Other codecs do not have factors.
    #[must_use]
    pub fn with_first_factors(mut self, given: &[f32]) -> Self {
        if let Kind::Factors(factors) = &mut self.kind {
            factors.begin_with(&HostArithmetic, given);
        }
        self
    }

    /// The error feedback of this member, by element; empty for codecs without it.
    #[must_use]
    pub fn kept(&self) -> &[f32] {
        self.kept_numbers().map_or(&[], Vec::as_slice)
    }
}

impl<A: Arithmetic> Compressor<A> {
    /// A compressor for a bucket of `elements` that holds `tensors`. `seed` is the same on all members.
    #[must_use]
    pub fn on(on: &A, codec: Codec, tensors: &[Tensor], elements: usize, seed: u64) -> Self {
        let kind = match codec {
            Codec::None => Kind::Sum,
            Codec::Fp16 => Kind::Shards(Form::Fp16),
            Codec::Bf16 => Kind::Shards(Form::Bf16),
            Codec::Int8 { block } => Kind::Shards(Form::Int8 { block: block as usize }),
            Codec::PowerSgd { rank, .. } => Kind::Factors(Factors::new(
                on,
                Layout::of(tensors, elements, rank, false),
                elements,
                seed,
                false,
            )),
            Codec::PowerSgdHalf { rank, .. } => Kind::Factors(Factors::new(
                on,
                Layout::of(tensors, elements, rank, true),
                elements,
                seed,
                true,
            )),
            Codec::TopK { per_mille } => Kind::Sparse(Sparse::new(on, elements, per_mille, false)),
            Codec::Dgc { per_mille, start_step } => {
                Kind::Sparse(Sparse::new(on, elements, per_mille, true).starting_at(start_step))
            }
            Codec::OneBit => Kind::Signs(Signs::new(on, elements)),
            Codec::Qsgd { levels, bucket } => Kind::Random(Random::qsgd(levels, bucket as usize, seed)),
            Codec::TernGrad => Kind::Random(Random::terngrad(seed)),
            Codec::OneBitAdam { warmup_steps } => Kind::Adam(Adam::new(on, elements, warmup_steps)),
        };
        let dense_steps = if matches!(kind, Kind::Factors(_)) { codec.dense_steps() } else { 0 };
        Self { kind, elements, memory: true, dense_steps }
    }

    /// The compressor without error feedback: the part that was not sent is lost. Tests use it to show the
    /// effect of the feedback.
    #[must_use]
    pub fn without_error_feedback(self) -> Self {
        Self { memory: false, ..self }
    }

    /// The compressor for an optimizer with this momentum (Adam's beta1); the default is 0.9.
    #[must_use]
    pub fn with_momentum(mut self, decay: f64) -> Self {
        match &mut self.kind {
            Kind::Adam(adam) => adam.set_decay(decay as f32),
            Kind::Sparse(sparse) => sparse.set_momentum(decay as f32),
            _ => {}
        }
        self
    }

    /// The compressor in its state after the warm-up.
    #[must_use]
    pub fn after_warmup(mut self) -> Self {
        self.dense_steps = 0;
        match &mut self.kind {
            Kind::Adam(adam) => adam.end_warmup(),
            Kind::Sparse(sparse) => sparse.end_warmup(),
            _ => {}
        }
        self
    }

    /// Sends gradients uncompressed from now on. The state and its memory are dropped, except for the
    /// velocity of codecs that replace the optimizer's momentum.
    pub fn stop(&mut self) {
        if let Kind::Sparse(sparse) = &mut self.kind
            && sparse.send_whole()
        {
            return;
        }
        self.kind = Kind::Sum;
    }

    /// Whether the codec has error feedback.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.kept_numbers().is_some()
    }

    fn kept_numbers(&self) -> Option<&A::Owned> {
        match &self.kind {
            Kind::Sum | Kind::Shards(_) | Kind::Random(_) => None,
            Kind::Factors(factors) => Some(factors.kept()),
            Kind::Sparse(sparse) => Some(sparse.kept()),
            Kind::Signs(signs) => Some(signs.kept()),
            Kind::Adam(adam) => Some(adam.kept()),
        }
    }

    /// Replaces `gradient` by an approximation of the sum over all members. Reductions run in the order of
    /// the calls, after the work that `on` queued when the compressor was made.
    ///
    /// # Errors
    /// Those of the exchanges.
    pub fn reduce_on<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
    ) -> Result<CodingQuality, X::Error> {
        debug_assert_eq!(gradient.len(), self.elements);
        if exchange.size() == 1 {
            return Ok(CodingQuality::LOSSLESS);
        }
        let mut sum =
            || on.on_host(gradient.again(), |values| exchange.sum(values)).map(|()| CodingQuality::LOSSLESS);
        if self.dense_steps > 0 {
            self.dense_steps -= 1;
            return sum();
        }
        match &mut self.kind {
            Kind::Sum => sum(),
            Kind::Shards(form) => shards::reduce(*form, on, gradient, exchange),
            Kind::Factors(factors) => factors.reduce(on, gradient, exchange, self.memory),
            Kind::Sparse(sparse) => sparse.reduce(on, gradient, exchange, self.memory),
            Kind::Signs(signs) => signs.reduce(on, gradient, exchange, self.memory),
            Kind::Adam(adam) => adam.reduce(on, gradient, exchange, self.memory),
            Kind::Random(random) => random.reduce(on, gradient, exchange),
        }
    }

    /// Bytes of state between steps, once the codec has run.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        4 * match &self.kind {
            Kind::Sum | Kind::Shards(_) | Kind::Random(_) => 0,
            Kind::Factors(factors) => factors.state(),
            Kind::Sparse(sparse) => sparse.state(),
            Kind::Signs(signs) => signs.state(),
            Kind::Adam(adam) => adam.state(),
        } as u64
    }
}

/// The collectives of one reduction or all-gather, in order; none in a group of one. They are those of the
/// steps after the warm-up, if the codec has one: during the warm-up, it runs those of [`Codec::None`].
#[must_use]
pub fn phases(codec: Codec, coded: Coded, tensors: &[Tensor], elements: usize, size: usize) -> Vec<Phase> {
    if size < 2 {
        return Vec::new();
    }
    if let (Some(form), true) = (Form::of(codec), coded != Coded::Gradients) {
        return rounding::phases(form, coded, elements, size);
    }
    match codec {
        Codec::None => vec![Phase::Sum { elements }],
        Codec::Fp16 => shards::phases(Form::Fp16, elements, size),
        Codec::Bf16 => shards::phases(Form::Bf16, elements, size),
        Codec::Int8 { block } => shards::phases(Form::Int8 { block: block as usize }, elements, size),
        Codec::PowerSgd { rank, .. } => factors::phases(&Layout::of(tensors, elements, rank, false), false),
        Codec::PowerSgdHalf { rank, .. } => factors::phases(&Layout::of(tensors, elements, rank, true), true),
        Codec::TopK { per_mille } | Codec::Dgc { per_mille, .. } => sparse::phases(elements, per_mille, size),
        Codec::OneBit | Codec::OneBitAdam { .. } => signs::phases(elements, size),
        Codec::Qsgd { levels, bucket } => random::phases(Some((levels, bucket as usize)), elements, size),
        Codec::TernGrad => random::phases(None, elements, size),
    }
}

/// Memory of a codec in addition to the gradient itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Kept between steps.
    pub state_bytes: u64,
    /// Peak scratch memory during a reduction.
    pub scratch_bytes: u64,
    /// Scratch memory on a device whose memory is not the host's.
    pub device_scratch_bytes: u64,
}

/// Memory and bytes of a bucket's codec at member `rank`.
#[must_use]
pub fn footprint(
    codec: Codec,
    coded: Coded,
    tensors: &[Tensor],
    elements: usize,
    size: usize,
    rank: usize,
) -> Footprint {
    let shard = shards::range(elements, size, rank).len();
    let state = match codec {
        Codec::None
        | Codec::Fp16
        | Codec::Bf16
        | Codec::Int8 { .. }
        | Codec::Qsgd { .. }
        | Codec::TernGrad => 0,
        Codec::PowerSgd { rank, .. } => elements + Layout::of(tensors, elements, rank, false).right(),
        Codec::PowerSgdHalf { rank, .. } => {
            let layout = Layout::of(tensors, elements, rank, true);
            elements + layout.right() + layout.left()
        }
        Codec::TopK { .. } => elements,
        Codec::Dgc { .. } => 2 * elements,
        Codec::OneBit => elements + shard,
        // The state includes the momentum.
        Codec::OneBitAdam { .. } => 2 * elements + shard,
    };
    let exchanged = |phase: &Phase| match phase {
        Phase::Sum { elements } => 4 * elements,
        Phase::Max => 4,
        // The member's own part, and those of all members.
        Phase::AllGather { bytes } => bytes.iter().sum::<usize>() + bytes.get(rank).copied().unwrap_or(0),
        Phase::AllToAll { bytes } => {
            let given: usize = bytes.get(rank).map_or(0, |row| row.iter().sum());
            given + bytes.iter().filter_map(|row| row.get(rank)).sum::<usize>()
        }
    };
    let plain = codec == Codec::None;
    let phases = phases(codec, coded, tensors, elements, size);
    let scratch = if plain { 0 } else { phases.iter().map(exchanged).max().unwrap_or(0) };
    let device =
        if plain || size < 2 { 0 } else { scratch::on_device(codec, coded, tensors, elements, size) };
    Footprint {
        state_bytes: 4 * state as u64,
        scratch_bytes: scratch as u64,
        device_scratch_bytes: device as u64,
    }
}

/// The cost of encoding and decoding for one member of an emulated group: the FLOPs that a core does in a
/// model's layers in the same time. So the coding time scales with the FLOP/s of the emulated device, as
/// compute does. Coding is bound by memory, so this is far more than its own FLOPs.
#[must_use]
pub fn work(codec: Codec, coded: Coded, tensors: &[Tensor], elements: usize, size: usize) -> f64 {
    if coded != Coded::Gradients {
        // An all-gather encodes and decodes once, an all-reduce twice.
        return 0.5 * work(codec, Coded::Gradients, tensors, elements, size);
    }
    let n = elements as f64;
    let p = size as f64;
    // Measured on one core with gradients of 804 k parameters, in groups of 2 and of 4; the core runs the
    // model's layers at 36 GFLOP/s (`scripts/codecs.sh`, profiles of the loopback).
    match codec {
        Codec::None => 0.0,
        Codec::Fp16 | Codec::Bf16 => 230.0 * n,
        Codec::Int8 { .. } => 380.0 * n,
        // Two GEMMs to encode and one to decode, of 2 a b r FLOPs each; then error and decay. Such thin GEMMs
        // run at an eighth of the rate.
        Codec::PowerSgd { rank, .. } => {
            8.0 * (Layout::of(tensors, elements, rank, false).products(3.0) + 3.0 * n)
        }
        Codec::PowerSgdHalf { rank, .. } => {
            8.0 * (Layout::of(tensors, elements, rank, true).products(3.0) + 3.0 * n)
        }
        Codec::TopK { .. } => 110.0 * n,
        Codec::Dgc { .. } => 180.0 * n,
        Codec::OneBit => 230.0 * n,
        Codec::OneBitAdam { .. } => 320.0 * n,
        Codec::Qsgd { .. } => (400.0 + 180.0 * p) * n,
        Codec::TernGrad => (90.0 + 240.0 * p) * n,
    }
}
