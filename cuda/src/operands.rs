//! One queue of a GPU: memory, copies from and to the host, and the addresses of kernel operands.

use crate::api::DevicePointer;
use crate::blas::Strides;
use crate::device::{Device, Gpu};
use crate::error::CudaError;
use crate::launch::{Argument, Form, int};
use crate::library::Libraries;
use crate::queue::{Buffer, Kind, Queue};
use autodist_compute::{Backend, GemmShape, Matrix, Region, RegionMut};
use autodist_spec::Precision;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// One queue of a GPU. Clones share it.
#[derive(Clone)]
pub struct Cuda {
    pub(crate) queue: Arc<Queue>,
    pub(crate) precision: Precision,
    /// Whether NCCL failed on any queue of the device.
    pub(crate) nccl: Arc<AtomicBool>,
}

/// A number computed by the device.
pub struct Scalar(pub(crate) Buffer);

impl Cuda {
    /// Opens GPU `ordinal` for training in `precision`; compiles the kernels if they are not in this
    /// machine's cache.
    ///
    /// # Errors
    /// No such GPU; errors of the driver and of the compiler.
    pub fn open(libraries: Arc<Libraries>, ordinal: usize, precision: Precision) -> Result<Self, CudaError> {
        let queue = Queue::new(Device::open(libraries, ordinal)?)?;
        Ok(Self { queue, precision, nccl: Arc::default() })
    }

    /// The same GPU and queue, for training in another precision.
    #[must_use]
    pub fn in_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    pub fn gpu(&self) -> &Gpu {
        &self.queue.device.gpu
    }

    pub fn libraries(&self) -> &Arc<Libraries> {
        &self.queue.device.libraries
    }

    /// Whether collectives use NCCL: the ranks agree on it once, for all queues.
    pub fn uses_nccl(&self) -> bool {
        self.nccl.load(Relaxed)
    }

    pub fn use_nccl(&self, serves: bool) {
        self.nccl.store(serves, Relaxed);
    }

    /// Bytes of buffers and scratch memory in use by all queues of this device.
    pub fn live_bytes(&self) -> usize {
        self.queue.device.live()
    }

    /// Highest [`live_bytes`](Cuda::live_bytes) since the last reset.
    pub fn peak_bytes(&self) -> usize {
        self.queue.device.peak()
    }

    /// Begins a new peak and returns the old one.
    pub fn reset_peak(&self) -> usize {
        self.queue.device.reset_peak()
    }

    /// Highest use of the driver's memory pool since the last call, bytes: [`peak_bytes`](Cuda::peak_bytes)
    /// as counted by the driver.
    pub fn pool_high_water(&self) -> usize {
        self.queue.device.pool_high_water()
    }

    pub(crate) fn working(&self) -> Kind {
        if self.precision.is_mixed() { Kind::Bf16 } else { Kind::F32 }
    }

    pub(crate) fn launch(&self, kernel: &str, form: Form, arguments: &[Argument]) {
        self.queue.launch(kernel, form, arguments);
    }

    pub(crate) fn filled(&self, len: usize, kind: Kind) -> Buffer {
        let buffer = self.queue.allocate(len, kind);
        self.zero(&buffer, 0, len);
        buffer
    }

    pub(crate) fn zero(&self, buffer: &Buffer, offset: usize, len: usize) {
        if buffer.pointer != 0 && len > 0 {
            let bytes = len * buffer.kind.bytes();
            check_bytes(buffer, offset * buffer.kind.bytes(), bytes);
            // SAFETY: the range lies in the buffer.
            self.queue.run("cuMemsetD8Async", |stream| unsafe {
                (self.libraries().driver.cuMemsetD8Async)(buffer.at(offset), 0, bytes, stream)
            });
        }
    }

    /// Copies from the host to the device, to byte `at` of the buffer. The driver reads the source before the
    /// call returns, because it is pageable memory.
    ///
    /// # Panics
    /// If the numbers do not fit the buffer.
    pub(crate) fn send<T: Plain>(&self, from: &[T], to: &Buffer, at: usize) {
        let bytes = size_of_val(from);
        check_bytes(to, at, bytes);
        if to.pointer != 0 && bytes > 0 {
            let target = to.pointer + at as DevicePointer;
            // SAFETY: the slice has this many bytes, and so has the buffer from there on.
            self.queue.run("cuMemcpyHtoDAsync", |stream| unsafe {
                (self.libraries().driver.cuMemcpyHtoDAsync_v2)(target, from.as_ptr().cast(), bytes, stream)
            });
        }
    }

    /// Copies from the device to the host, from byte `at` of the buffer on, and waits. If the buffer's
    /// allocation failed, `to` does not change.
    ///
    /// # Panics
    /// If the buffer holds fewer numbers.
    pub(crate) fn fetch<T: Plain>(&self, from: &Buffer, at: usize, to: &mut [T]) {
        // SAFETY: the slice is borrowed until the queue has been drained.
        unsafe { self.fetch_later(from, at, to) };
        self.queue.drain();
    }

    /// Copies to the host without waiting: the copy is complete when the queue is drained.
    ///
    /// # Safety
    /// `to` must live, and must not be touched, until the queue is drained.
    pub(crate) unsafe fn fetch_later<T: Plain>(&self, from: &Buffer, at: usize, to: &mut [T]) {
        let bytes = size_of_val(to);
        check_bytes(from, at, bytes);
        if from.pointer != 0 && bytes > 0 {
            let source = from.pointer + at as DevicePointer;
            // SAFETY: the slice has this many bytes, and so has the buffer from there on; the caller keeps
            // the slice alive.
            self.queue.run("cuMemcpyDtoHAsync", |stream| unsafe {
                (self.libraries().driver.cuMemcpyDtoHAsync_v2)(to.as_mut_ptr().cast(), source, bytes, stream)
            });
        }
    }

    pub(crate) fn put(&self, from: &[f32], buffer: &Buffer, offset: usize) {
        read(Region::new(buffer, offset), from.len());
        let at = offset * buffer.kind.bytes();
        match buffer.kind {
            Kind::F32 => self.send(from, buffer, at),
            Kind::Bf16 => {
                let rounded: Vec<u16> = from.iter().map(|x| bf16(*x)).collect();
                self.send(&rounded, buffer, at);
            }
        }
    }

    pub(crate) fn scalar(&self) -> Scalar {
        // Eight bytes, for one double.
        Scalar(self.queue.allocate(2, Kind::F32))
    }

    /// A buffer for the partial sums of `count` blocks, in double precision.
    pub(crate) fn partial(&self, count: usize) -> Buffer {
        self.queue.allocate(2 * count, Kind::F32)
    }

    /// Adds up partial sums.
    pub(crate) fn sum_partials(&self, count: usize, partial: &Buffer) -> Scalar {
        let result = self.scalar();
        let arguments = [int(count), summed(partial.pointer, count), result.0.pointer.into()];
        self.launch("sum_partials", Form::Rows(1), &arguments);
        result
    }

    /// Copies `from` to a matrix with dense rows.
    pub(crate) fn packed(&self, batch: usize, rows: usize, columns: usize, from: Matrix<'_, Self>) -> Buffer {
        let mut to = self.queue.allocate(batch * rows * columns, from.region.buffer.kind);
        let product = GemmShape { batch, m: rows, n: columns, k: 0 };
        let dense = RegionMut::start(&mut to).rows(columns).batched(rows * columns);
        self.copy_matrices(product, from, dense);
        to
    }
}

/// Number types without padding for which any bits are valid.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for f32 {}
impl Plain for f64 {}

fn check_bytes(buffer: &Buffer, at: usize, bytes: usize) {
    let end = at.checked_add(bytes);
    assert!(end.is_some_and(|end| end <= buffer.bytes()), "{bytes} bytes at {at} of {}", buffer.bytes());
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

/// The address of a region, after checking that it holds `len` elements.
pub(crate) fn read(region: Region<'_, Cuda>, len: usize) -> DevicePointer {
    let Region { buffer, offset } = region;
    assert!(offset + len <= buffer.len, "{len} elements at {offset} of {}", buffer.len);
    buffer.at(offset)
}

pub(crate) fn write(region: &RegionMut<'_, Cuda>, len: usize) -> DevicePointer {
    read(Region::new(region.buffer, region.offset), len)
}

/// [`read`] for a buffer in full precision.
pub(crate) fn read_full(region: Region<'_, Cuda>, len: usize) -> DevicePointer {
    assert_eq!(region.buffer.kind, Kind::F32, "an operand in full precision");
    read(region, len)
}

/// The operand of a sum over `len` elements. An empty sum must still be computed (0), although an empty
/// buffer has no memory.
pub(crate) fn summed(pointer: DevicePointer, len: usize) -> Argument {
    if len == 0 { Argument::Null } else { pointer.into() }
}

pub(crate) fn write_full(region: &RegionMut<'_, Cuda>, len: usize) -> DevicePointer {
    read_full(Region::new(region.buffer, region.offset), len)
}

/// Elements from the first to the last of a strided batch.
pub(crate) fn extent(sides: [(usize, usize); 3]) -> usize {
    if sides.iter().any(|(count, _)| *count == 0) {
        return 0;
    }
    sides.iter().map(|(count, stride)| (count - 1) * stride).sum::<usize>() + 1
}

pub(crate) fn strides(matrix: &Matrix<'_, Cuda>) -> Strides {
    Strides { row: matrix.row_stride, column: matrix.column_stride, batch: matrix.batch_stride }
}

/// A kernel's name for operands of this kind.
pub(crate) fn named(operation: &str, kind: Kind) -> String {
    let suffix = match kind {
        Kind::F32 => "f32",
        Kind::Bf16 => "bf16",
    };
    format!("{operation}_{suffix}")
}

/// The common kind of all operands of an operation.
pub(crate) fn same(kinds: &[Kind]) -> Kind {
    assert!(kinds.iter().all(|kind| *kind == kinds[0]), "operands of one precision, not {kinds:?}");
    kinds[0]
}
