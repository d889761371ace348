//! The boundary between a device and everything above it.

use autodist_spec::model::{Activation, Norm};
use std::fmt;

/// A device that does the arithmetic of the layers.
///
/// Operands are regions of device buffers. Only [`upload`](Backend::upload), [`download`](Backend::download)
/// and the few methods that return a number copy data between device and host. Operations run in the order in
/// which they are called but may still be running when the call returns. Single operations do not report
/// errors: a device keeps its first failure and [`synchronise`](Backend::synchronise) returns it.
///
/// An operation reads and writes exactly the documented elements, and panics if they are outside the buffer.
///
/// A buffer holds its numbers in *working* precision (activations, the parameters that layers read) or in
/// *full* precision (gradients of parameters, optimizer state, statistics, the parameters that an optimizer
/// updates): mixed precision training (Micikevicius et al., 1710.03740, section 3). A device may have only
/// one precision. Operands are in working precision unless documented otherwise.
pub trait Backend: Clone + Send + 'static {
    /// A number as the host sees it; uploads and downloads convert.
    type Element: Element;
    /// A contiguous array on the device.
    type Buffer: Send;
    /// Token ids on the device.
    type Indices: Send;
    /// A number that the device may not have computed yet.
    type Scalar: Send;
    /// A point in a queue's work, and the time when it was reached.
    type Event: Clone + Send;

    // Queues.

    /// Waits for all work of this queue; returns the first failure since the last call.
    fn synchronise(&self) -> Result<(), DeviceError>;
    /// Another queue of the same device; its work runs concurrently and is ordered only by events. A buffer
    /// may pass from one queue to the other once the other waits for an event after its last use.
    fn queue(&self) -> Result<Self, DeviceError>;
    /// Marks this point of the queue.
    fn record(&self) -> Self::Event;
    /// Delays work queued from now on until `event`, which may be of another queue.
    fn wait_for(&self, event: &Self::Event);
    /// Seconds from one event to another of the same device; waits for both.
    fn seconds_between(&self, from: &Self::Event, to: &Self::Event) -> f64;
    /// Waits for a number and returns it.
    fn read(&self, scalar: &Self::Scalar) -> f64;

    // Buffers.

    /// Whether working precision is narrower than full precision, so that an optimizer needs master
    /// parameters.
    fn is_mixed(&self) -> bool {
        false
    }
    fn zeros(&self, len: usize) -> Self::Buffer;
    /// A buffer to be written before it is read.
    fn uninitialised(&self, len: usize) -> Self::Buffer;
    /// [`zeros`](Backend::zeros) in full precision.
    fn zeros_full(&self, len: usize) -> Self::Buffer {
        self.zeros(len)
    }
    /// [`uninitialised`](Backend::uninitialised) in full precision.
    fn uninitialised_full(&self, len: usize) -> Self::Buffer {
        self.uninitialised(len)
    }
    fn len(&self, buffer: &Self::Buffer) -> usize;
    fn upload(&self, from: &[Self::Element]) -> Self::Buffer;
    /// [`upload`](Backend::upload) in full precision.
    fn upload_full(&self, from: &[Self::Element]) -> Self::Buffer {
        self.upload(from)
    }
    fn upload_indices(&self, from: &[u32]) -> Self::Indices;
    /// Overwrites `from.len()` elements.
    fn write(&self, from: &[Self::Element], to: RegionMut<'_, Self>);
    /// Reads `to.len()` elements; waits for the work before it.
    fn download(&self, from: Region<'_, Self>, to: &mut [Self::Element]);
    /// The buffer itself if host and device share memory, so that a communicator does not need a copy.
    fn host<'a>(&self, _buffer: &'a Self::Buffer) -> Option<&'a [Self::Element]> {
        None
    }
    fn host_mut<'a>(&self, _buffer: &'a mut Self::Buffer) -> Option<&'a mut [Self::Element]> {
        None
    }

    // Element by element; both operands have the same precision, working or full.

    /// Converts if the precisions differ.
    fn copy(&self, len: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>);
    /// Copies `product.batch` matrices of `m` rows and `n` columns (`k` is unused).
    fn copy_matrices(&self, product: GemmShape, from: Matrix<'_, Self>, to: MatrixMut<'_, Self>);
    fn fill_zero(&self, len: usize, to: RegionMut<'_, Self>);
    /// `to += from`.
    fn add(&self, len: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>);
    /// `to *= factor`.
    fn scale(&self, len: usize, factor: f64, to: RegionMut<'_, Self>);
    /// Sum of squares, accumulated in double precision.
    fn sum_of_squares(&self, len: usize, of: Region<'_, Self>) -> Self::Scalar;

    // Linear layers.

    /// `c = alpha a b + beta c` for every member of the batch, which must not overlap in `c`. With `beta` 0,
    /// `c` is not read. `a` and `b` have one precision, `c` the same or full.
    fn matmul(
        &self,
        product: GemmShape,
        alpha: f64,
        a: Matrix<'_, Self>,
        b: Matrix<'_, Self>,
        beta: f64,
        c: MatrixMut<'_, Self>,
    );
    /// Adds `row[width]` to each of `rows` rows.
    fn add_row(&self, rows: usize, width: usize, row: Region<'_, Self>, to: RegionMut<'_, Self>);
    /// Adds the sum of `rows` rows to `to[width]`, in full precision.
    fn sum_rows(&self, rows: usize, width: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>);

    // Norms. Statistics and gradients of parameters are in full precision.

    /// `parameters` is the weight, followed for LayerNorm by the bias. `statistics` receives per row the
    /// reciprocal root mean square (RMSNorm), or the mean, then the reciprocal standard deviation
    /// (LayerNorm).
    fn norm_forward(
        &self,
        norm: NormShape,
        parameters: Region<'_, Self>,
        x: Region<'_, Self>,
        y: RegionMut<'_, Self>,
        statistics: RegionMut<'_, Self>,
    );
    /// Turns the output's gradient into the input's, in place, adding `residual` where given; adds to
    /// `gradients` (laid out as the parameters).
    fn norm_backward(
        &self,
        norm: NormShape,
        parameters: Region<'_, Self>,
        gradients: RegionMut<'_, Self>,
        x: Region<'_, Self>,
        statistics: Region<'_, Self>,
        residual: Option<Region<'_, Self>>,
        gradient: RegionMut<'_, Self>,
    );

    // Attention: fused if the device supports it, else from GEMMs and softmax.

    /// The device's fused attention, if it has one.
    fn fused_attention(&self) -> Option<&dyn FusedAttention<Self>> {
        None
    }
    /// How many of `heads` heads to process in one batched operation: all of them on a device with thousands
    /// of threads, one on a device where the scores of one head fit the cache.
    fn heads_at_once(&self, heads: usize) -> usize;
    /// Rotates the pairs `(i, i + head_dim / 2)` of every head in place; [`Direction::Backward`] undoes it.
    fn rotary(&self, rotary: RotaryShape, direction: Direction, rows: RegionMut<'_, Self>);
    /// Softmax in place over `scores[count, seq_len, seq_len]`; row `i` attends to columns `0..=i`, others
    /// become 0.
    fn causal_softmax(&self, count: usize, seq_len: usize, scores: RegionMut<'_, Self>);
    /// Turns the probabilities' gradient into the scores' times `scale`, in place.
    fn causal_softmax_backward(
        &self,
        count: usize,
        seq_len: usize,
        scale: f64,
        probabilities: Region<'_, Self>,
        gradient: RegionMut<'_, Self>,
    );

    // Activations. `inner[rows, width]` for GELU; `inner[rows, 2 width]`, gate then up, for SwiGLU.

    fn activation_forward(
        &self,
        activation: Activation,
        rows: usize,
        width: usize,
        inner: Region<'_, Self>,
        outer: RegionMut<'_, Self>,
    );
    /// Replaces the inner values by the inner gradient, and the outer gradient by the outer values. So only
    /// the inner values need to be saved, and nothing is allocated.
    fn activation_backward(
        &self,
        activation: Activation,
        rows: usize,
        width: usize,
        inner: RegionMut<'_, Self>,
        outer: RegionMut<'_, Self>,
    );

    // Tables.

    /// Row `i` of `to` becomes row `indices[i] - table.first` of the table, or 0 if the table lacks it.
    fn gather_rows(
        &self,
        table: TableShape,
        indices: &Self::Indices,
        from: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    );
    /// Adds row `i` of `from` to row `indices[i] - table.first` of the table, which is in full precision,
    /// where the table has it.
    fn scatter_add_rows(
        &self,
        table: TableShape,
        indices: &Self::Indices,
        from: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    );
    /// `to[position, i] += table[position]` for every position and `i` in `0..repeat`.
    fn add_positions(
        &self,
        positions: usize,
        repeat: usize,
        width: usize,
        table: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    );
    /// `table[position] += Σ_i from[position, i]`; the table is in full precision.
    fn sum_positions(
        &self,
        positions: usize,
        repeat: usize,
        width: usize,
        from: Region<'_, Self>,
        table: RegionMut<'_, Self>,
    );

    // Cross-entropy, in steps between which ranks that share a vocabulary reduce. `classes.first` is the
    // first class of `logits[len(targets), classes.rows]`; `classes.width` is unused. `max` and `sums` are in
    // full precision.

    fn row_max(&self, rows: usize, width: usize, x: Region<'_, Self>, max: RegionMut<'_, Self>);
    /// `logits` become `exp(logit - max)`. `sums[2 rows]` receives the sum of each row, then each row's
    /// `logit - max` at the target, 0 if the target is not among the classes.
    fn exponentials(
        &self,
        classes: TableShape,
        targets: &Self::Indices,
        max: Region<'_, Self>,
        logits: RegionMut<'_, Self>,
        sums: RegionMut<'_, Self>,
    );
    /// `Σ ln(sum) - target` over rows.
    fn cross_entropy(&self, rows: usize, sums: Region<'_, Self>) -> Self::Scalar;
    /// Exponentials become `(exponential / sum - [target]) * scale`.
    fn cross_entropy_backward(
        &self,
        classes: TableShape,
        targets: &Self::Indices,
        sums: Region<'_, Self>,
        scale: f64,
        exponentials: RegionMut<'_, Self>,
    );

    // Optimizers, in full precision; `working` receives the new parameters in working precision.

    fn adamw_step(
        &self,
        len: usize,
        step: AdamWStep,
        gradient: Region<'_, Self>,
        parameter: RegionMut<'_, Self>,
        first_moment: RegionMut<'_, Self>,
        second_moment: RegionMut<'_, Self>,
        working: Option<RegionMut<'_, Self>>,
    );
    fn sgd_momentum_step(
        &self,
        len: usize,
        step: SgdStep,
        gradient: Region<'_, Self>,
        parameter: RegionMut<'_, Self>,
        momentum: RegionMut<'_, Self>,
        working: Option<RegionMut<'_, Self>>,
    );
}

/// Causal attention that never stores the scores of a whole head (Dao et al., FlashAttention, 2205.14135).
pub trait FusedAttention<B: Backend> {
    /// `attended` and `logsumexp[micro_batch, heads, seq_len]` (full precision) from `qkv`.
    fn forward(
        &self,
        shape: AttentionShape,
        qkv: Region<'_, B>,
        attended: RegionMut<'_, B>,
        logsumexp: RegionMut<'_, B>,
    );
    /// The whole gradient of `qkv`, from that of `attended`.
    fn backward(
        &self,
        shape: AttentionShape,
        qkv: Region<'_, B>,
        attended: Region<'_, B>,
        d_attended: Region<'_, B>,
        logsumexp: Region<'_, B>,
        d_qkv: RegionMut<'_, B>,
    );
}

/// A number as the host sees it.
pub trait Element: Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

/// The first operation that failed on a device, and the device's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed on {device}: {cause}")]
pub struct DeviceError {
    pub device: String,
    pub operation: &'static str,
    pub cause: String,
}

/// Elements of a buffer from an offset on; the operation defines how many.
pub struct Region<'a, B: Backend> {
    pub buffer: &'a B::Buffer,
    pub offset: usize,
}

impl<'a, B: Backend> Region<'a, B> {
    pub fn new(buffer: &'a B::Buffer, offset: usize) -> Self {
        Self { buffer, offset }
    }

    pub fn start(buffer: &'a B::Buffer) -> Self {
        Self::new(buffer, 0)
    }

    /// The region `by` elements further on.
    #[must_use]
    pub fn skip(self, by: usize) -> Self {
        Self { offset: self.offset + by, ..self }
    }

    /// As a matrix, row after row.
    pub fn rows(self, width: usize) -> Matrix<'a, B> {
        Matrix { region: self, row_stride: width, column_stride: 1, batch_stride: 0 }
    }
}

impl<B: Backend> Clone for Region<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Region<'_, B> {}

/// A [`Region`] to write to.
pub struct RegionMut<'a, B: Backend> {
    pub buffer: &'a mut B::Buffer,
    pub offset: usize,
}

impl<'a, B: Backend> RegionMut<'a, B> {
    pub fn new(buffer: &'a mut B::Buffer, offset: usize) -> Self {
        Self { buffer, offset }
    }

    pub fn start(buffer: &'a mut B::Buffer) -> Self {
        Self::new(buffer, 0)
    }

    /// The region `by` elements further on, borrowed from this one.
    pub fn skip(&mut self, by: usize) -> RegionMut<'_, B> {
        RegionMut { buffer: self.buffer, offset: self.offset + by }
    }

    pub fn rows(self, width: usize) -> MatrixMut<'a, B> {
        MatrixMut { region: self, row_stride: width, column_stride: 1, batch_stride: 0 }
    }
}

/// A strided matrix in a buffer, or a batch of them.
pub struct Matrix<'a, B: Backend> {
    pub region: Region<'a, B>,
    pub row_stride: usize,
    pub column_stride: usize,
    pub batch_stride: usize,
}

impl<B: Backend> Matrix<'_, B> {
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    #[must_use]
    pub fn batched(self, stride: usize) -> Self {
        Self { batch_stride: stride, ..self }
    }
}

impl<B: Backend> Clone for Matrix<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Matrix<'_, B> {}

/// A [`Matrix`] to write to.
pub struct MatrixMut<'a, B: Backend> {
    pub region: RegionMut<'a, B>,
    pub row_stride: usize,
    pub column_stride: usize,
    pub batch_stride: usize,
}

impl<B: Backend> MatrixMut<'_, B> {
    #[must_use]
    pub fn batched(self, stride: usize) -> Self {
        Self { batch_stride: stride, ..self }
    }
}

/// `batch` GEMMs of an `m × k` by a `k × n` matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmShape {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl GemmShape {
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self { batch: 1, m, n, k }
    }

    #[must_use]
    pub fn batched(self, batch: usize) -> Self {
        Self { batch, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    pub norm: Norm,
    pub rows: usize,
    pub width: usize,
    pub epsilon: f64,
}

/// `qkv[seq_len, micro_batch, (heads + 2 kv_heads) head_dim]` holds a token's query heads, its key heads, its
/// value heads; query head `h` attends to key/value head `h / (heads / kv_heads)`.
/// `attended[seq_len, micro_batch, heads head_dim]`. Scores are multiplied by `scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub seq_len: usize,
    pub micro_batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f64,
}

/// Rotary embedding of the first `heads * head_dim` columns of `[positions, repeat, row_width]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryShape {
    pub positions: usize,
    pub repeat: usize,
    pub row_width: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub theta: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// The rows `first..first + rows` of a larger table; each is `width` wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableShape {
    pub first: usize,
    pub rows: usize,
    pub width: usize,
}

impl TableShape {
    /// The local row of `index`; `None` if it is not in this part of the table.
    pub fn local(&self, index: u32) -> Option<usize> {
        (index as usize).checked_sub(self.first).filter(|&row| row < self.rows)
    }
}

/// Coefficients of one AdamW update, bias correction included: `p = decay p - rate m / (sqrt(v) * root +
/// epsilon)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    pub gradient_scale: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub decay: f64,
    pub rate: f64,
    pub root: f64,
    pub epsilon: f64,
}

/// Coefficients of `v = momentum v + (scale g + weight_decay p)`, `p -= rate v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdStep {
    pub gradient_scale: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub rate: f64,
}
