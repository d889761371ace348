//! Collectives and send/recv between GPUs by NCCL.

use crate::api::{Handle, Nccl, RawUniqueId};
use crate::device::Shared;
use crate::error::CudaError;
use crate::library::Libraries;
use crate::operands::Cuda;
use crate::queue::{Buffer, Kind};
use cudarc::nccl::sys::{ncclDataType_t as DataType, ncclRedOp_t as Operation};
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

/// The unique id of a new group; one member creates it and sends it to the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; UniqueId::BYTES]);

impl UniqueId {
    pub const BYTES: usize = 128;

    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Max,
}

/// Bytes that a member sends and receives, counted as for a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent: u64,
    pub received: u64,
}

/// A group of ranks with one GPU each. Operations run in the order of the given queue; all members make the
/// same calls in the same order.
pub struct NcclGroup {
    libraries: Arc<Libraries>,
    group: Shared,
    rank: usize,
    size: usize,
    traffic: Traffic,
    failed: bool,
}

impl NcclGroup {
    /// # Errors
    /// NCCL is missing, or finds no network interface.
    pub fn unique_id(libraries: &Libraries) -> Result<UniqueId, CudaError> {
        let nccl = libraries.nccl().map_err(Clone::clone)?;
        let mut id = RawUniqueId([0; UniqueId::BYTES]);
        // SAFETY: the pointer is valid.
        nccl.check("ncclGetUniqueId", unsafe { (nccl.ncclGetUniqueId)(&raw mut id) }, ptr::null_mut())?;
        Ok(UniqueId(id.0))
    }

    /// Joins the group; returns when all `size` members have called it.
    ///
    /// # Errors
    /// NCCL's: members that cannot reach each other, or that share a GPU if this version does not allow it.
    pub fn join(cuda: &Cuda, id: &UniqueId, rank: usize, size: usize) -> Result<Self, CudaError> {
        let libraries = cuda.libraries().clone();
        cuda.queue.device.enter();
        let mut group = ptr::null_mut();
        let nccl = libraries.nccl().map_err(Clone::clone)?;
        // SAFETY: the pointer is valid, the context is current.
        let code = unsafe {
            (nccl.ncclCommInitRank)(&raw mut group, size as c_int, RawUniqueId(id.0), rank as c_int)
        };
        nccl.check("ncclCommInitRank", code, ptr::null_mut())?;
        Ok(Self { group: Shared(group), rank, size, traffic: Traffic::default(), failed: false, libraries })
    }

    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Runs one NCCL call on the queue, then checks for asynchronous errors of the group.
    fn run(
        &mut self,
        queue: &Cuda,
        operation: &'static str,
        operands: &[&Buffer],
        call: impl FnOnce(&Nccl, Handle, Handle) -> c_int,
    ) -> Result<(), CudaError> {
        if !operands.iter().all(|buffer| buffer.is_there()) {
            // The allocation failed, which the queue reports as its first failure.
            self.failed = true;
            let text = "an operand has no memory".to_owned();
            return Err(CudaError::Library { operation, text });
        }
        queue.queue.device.enter();
        let libraries = self.libraries.clone();
        let nccl = libraries.nccl().map_err(Clone::clone)?;
        let code = call(nccl, self.group.0, queue.queue.stream.0);
        let result = nccl.check(operation, code, self.group.0).and_then(|()| {
            let mut broken = 0;
            // SAFETY: the pointer is valid.
            let code = unsafe { (nccl.ncclCommGetAsyncError)(self.group.0, &raw mut broken) };
            nccl.check("ncclCommGetAsyncError", code, self.group.0)?;
            nccl.check(operation, broken, self.group.0)
        });
        self.failed |= result.is_err();
        result
    }

    /// All-reduce: replaces the range by its reduction over all members.
    ///
    /// # Errors
    /// NCCL's.
    pub fn all_reduce(
        &mut self,
        queue: &Cuda,
        buffer: &mut Buffer,
        range: Range<usize>,
        reduce: Reduce,
    ) -> Result<(), CudaError> {
        let (at, kind) = (place(buffer, &range), data(buffer));
        let operation = match reduce {
            Reduce::Sum => Operation::ncclSum,
            Reduce::Max => Operation::ncclMax,
        } as c_int;
        // A ring all-reduce: reduce-scatter and all-gather.
        self.count(2 * range.len() * (self.size - 1) / self.size, buffer);
        self.run(queue, "ncclAllReduce", &[buffer], |nccl, group, stream| {
            // SAFETY: the range lies in the buffer.
            unsafe { (nccl.ncclAllReduce)(at, at, range.len(), kind, operation, group, stream) }
        })
    }

    /// Reduce-scatter with sum, in place: this member's shard of the range receives the result. Shards have
    /// equal lengths.
    ///
    /// # Errors
    /// NCCL's.
    pub fn reduce_scatter(
        &mut self,
        queue: &Cuda,
        buffer: &mut Buffer,
        range: Range<usize>,
    ) -> Result<(), CudaError> {
        let part = self.part(&range);
        let (from, to) = (place(buffer, &range), place(buffer, &part));
        let (kind, sum) = (data(buffer), Operation::ncclSum as c_int);
        self.count(range.len() - part.len(), buffer);
        self.run(queue, "ncclReduceScatter", &[buffer], |nccl, group, stream| {
            // SAFETY: both ranges are in the buffer, at the offsets that NCCL documents for in-place
            // operations.
            unsafe { (nccl.ncclReduceScatter)(from, to, part.len(), kind, sum, group, stream) }
        })
    }

    /// All-gather, in place: fills the range with the shards of all members. Shards have equal lengths.
    ///
    /// # Errors
    /// NCCL's.
    pub fn all_gather(
        &mut self,
        queue: &Cuda,
        buffer: &mut Buffer,
        range: Range<usize>,
    ) -> Result<(), CudaError> {
        let part = self.part(&range);
        let (from, to) = (place(buffer, &part), place(buffer, &range));
        let kind = data(buffer);
        self.count(range.len() - part.len(), buffer);
        self.run(queue, "ncclAllGather", &[buffer], |nccl, group, stream| {
            // SAFETY: as above.
            unsafe { (nccl.ncclAllGather)(from, to, part.len(), kind, group, stream) }
        })
    }

    /// Sends the range to a member, which must receive as many elements. Blocks the queue until it does.
    ///
    /// # Errors
    /// NCCL's.
    pub fn send(
        &mut self,
        queue: &Cuda,
        buffer: &Buffer,
        range: Range<usize>,
        to: usize,
    ) -> Result<(), CudaError> {
        let (at, kind) = (place(buffer, &range), data(buffer));
        self.traffic.sent += (range.len() * buffer.kind.bytes()) as u64;
        self.run(queue, "ncclSend", &[buffer], |nccl, group, stream| {
            // SAFETY: the range lies in the buffer.
            unsafe { (nccl.ncclSend)(at, range.len(), kind, to as c_int, group, stream) }
        })
    }

    /// Receives the range of a matching [`send`](NcclGroup::send).
    ///
    /// # Errors
    /// NCCL's.
    pub fn receive(
        &mut self,
        queue: &Cuda,
        buffer: &mut Buffer,
        range: Range<usize>,
        from: usize,
    ) -> Result<(), CudaError> {
        let (at, kind) = (place(buffer, &range), data(buffer));
        self.traffic.received += (range.len() * buffer.kind.bytes()) as u64;
        self.run(queue, "ncclRecv", &[buffer], |nccl, group, stream| {
            // SAFETY: the range lies in the buffer.
            unsafe { (nccl.ncclRecv)(at, range.len(), kind, from as c_int, group, stream) }
        })
    }

    fn part(&self, range: &Range<usize>) -> Range<usize> {
        assert!(range.len().is_multiple_of(self.size), "{} parts of {} elements", self.size, range.len());
        let each = range.len() / self.size;
        let start = range.start + each * self.rank;
        start..start + each
    }

    fn count(&mut self, elements: usize, buffer: &Buffer) {
        let bytes = (elements * buffer.kind.bytes()) as u64;
        self.traffic.sent += bytes;
        self.traffic.received += bytes;
    }
}

fn place(buffer: &Buffer, range: &Range<usize>) -> *mut c_void {
    assert!(range.end <= buffer.len, "{range:?} of {}", buffer.len);
    buffer.at(range.start) as *mut c_void
}

fn data(buffer: &Buffer) -> c_int {
    match buffer.kind {
        Kind::F32 => DataType::ncclFloat32 as c_int,
        Kind::Bf16 => DataType::ncclBfloat16 as c_int,
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        let Ok(nccl) = self.libraries.nccl() else { return };
        // SAFETY: the group is not used again. A failed group may wait for a peer for ever, so it is aborted.
        unsafe {
            if self.failed {
                (nccl.ncclCommAbort)(self.group.0);
            } else {
                (nccl.ncclCommDestroy)(self.group.0);
            }
        }
    }
}
