//! Requirements on a training device in addition to its backend: memory statistics, gradient codecs on the
//! device, and communication with other ranks' devices.

use crate::compression::CodedCollective;
use crate::reference::Reference;
use crate::{ExecutionError, memory};
use autodist_codecs::{Arithmetic, HostArithmetic};
use autodist_communication::{Communicator, Counters, Endpoint, GroupOptions, Mailbox, ReduceOp};
use autodist_compute::{Backend, Cpu, Region, RegionMut};
use autodist_spec::Algorithm;
use std::ops::Range;

/// A device on which a rank can train.
///
/// By default, ranks communicate through the host ([`HostGroup`], [`HostSendRecv`]).
pub trait TrainingDevice: Backend<Element = f32> {
    /// The arithmetic that encodes and decodes gradients.
    type Coding: Arithmetic;
    /// The codec arithmetic on this queue.
    fn coding(&self) -> Self::Coding;
    /// The values of a buffer in full precision, for codecs.
    fn values(buffer: &mut Self::Buffer) -> &mut <Self::Coding as Arithmetic>::Values;

    /// Bytes of the device's memory that this rank has in use.
    fn live_memory(&self) -> usize;
    /// Highest [`live_memory`](TrainingDevice::live_memory) since the last reset.
    fn peak_memory(&self) -> usize;
    /// Resets the peak to the live memory, and returns the old peak.
    fn reset_peak_memory(&self) -> usize;
    /// Resets the high-water mark of the underlying allocator, if it has one.
    fn reset_high_water(&self) {}
    /// The high-water mark of the allocator; without one, `counted`, the peak by the counts.
    fn high_water(&self, counted: usize) -> usize {
        counted
    }
    /// Whether the device's memory is the host's, so that the memory of measurements is in the counts.
    fn is_host(&self) -> bool;
    /// Whether collectives of uncompressed gradients bypass the host, unlike those of encoded ones.
    fn is_bypassed(&self) -> bool {
        false
    }
    /// A fixed benchmark, timed with each step to detect other load on a shared device. `None` for exclusive
    /// devices.
    fn reference(&self) -> Option<Reference>;

    /// Whether the collective library chooses the algorithms.
    fn chooses_algorithms(&self) -> bool {
        false
    }

    /// Opens a group with these `options`; as [`Endpoint::group_for`].
    ///
    /// # Errors
    /// An invalid list of members, or members that cannot be reached.
    fn group(
        &self,
        endpoint: &mut Endpoint,
        name: &str,
        members: &[usize],
        options: &GroupOptions,
    ) -> Result<Box<dyn CollectiveGroup<Self>>, ExecutionError> {
        Ok(Box::new(HostGroup(endpoint.group_for(name, members, options)?)))
    }

    /// Opens send/recv with `peers`, like [`Endpoint::point_to_point`].
    ///
    /// # Errors
    /// Peers that cannot be reached.
    fn messages(
        &self,
        endpoint: &mut Endpoint,
        name: &str,
        peers: &[usize],
    ) -> Result<Box<dyn SendRecv<Self>>, ExecutionError> {
        Ok(Box::new(HostSendRecv(endpoint.point_to_point(name, peers)?)))
    }
}

/// Collectives over one group of ranks on parts of device buffers, in order with the work of the given queue.
/// All members make the same calls in the same order. Shards are equal parts of the range.
pub trait CollectiveGroup<B: TrainingDevice>: Send {
    /// All-reduce: replaces the range by its reduction over all members.
    ///
    /// # Errors
    /// A peer that has disconnected or is silent.
    fn all_reduce(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
        reduction: ReduceOp,
    ) -> Result<(), ExecutionError>;

    /// Reduce-scatter with sum, in place: this member's shard of the range receives the result.
    ///
    /// # Errors
    /// As [`CollectiveGroup::all_reduce`].
    fn reduce_scatter(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError>;

    /// All-gather: fills the range, of which this member holds its shard, with the shards of all members.
    ///
    /// # Errors
    /// As [`CollectiveGroup::all_reduce`].
    fn all_gather(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError>;

    /// Compressed all-reduce: replaces the range by an approximation of its sum over all members. Encoded
    /// data goes through the host.
    ///
    /// # Errors
    /// As [`CollectiveGroup::all_reduce`].
    fn coded(
        &mut self,
        queue: &B,
        coding: CodedCollective<'_, B>,
        buffer: &mut B::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError>;

    fn counters(&self) -> Counters;
}

/// Send/recv between pipeline ranks. Data of one kind between two ranks are received in the order in which
/// they were sent.
pub trait SendRecv<B: Backend>: Send {
    /// Sends a buffer, once the queue's work so far is done, and returns at once.
    ///
    /// # Errors
    /// A peer that has disconnected.
    fn send(&mut self, queue: &B, peer: usize, tag: Tag, buffer: B::Buffer) -> Result<(), ExecutionError>;

    /// Receives `elements` elements in working precision; the queue's later work may use them.
    ///
    /// # Errors
    /// A peer that has disconnected or is silent, or data of another length.
    fn receive(
        &mut self,
        queue: &B,
        peer: usize,
        tag: Tag,
        elements: usize,
    ) -> Result<B::Buffer, ExecutionError>;

    fn counters(&self) -> Counters;

    /// Waits until everything has been sent.
    ///
    /// # Errors
    /// A peer that has disconnected.
    fn close(self: Box<Self>) -> Result<(), ExecutionError>;
}

/// The tag of a send/recv between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// 0 for activations, 1 for gradients.
    pub kind: u8,
    pub chunk: u32,
    pub micro_batch: u32,
}

impl Tag {
    pub(crate) fn number(self) -> u64 {
        (u64::from(self.kind) << 63) | (u64::from(self.chunk) << 32) | u64::from(self.micro_batch)
    }
}

/// Communication through the host's memory.
pub struct HostGroup(pub Box<dyn Communicator>);

impl<B: TrainingDevice> CollectiveGroup<B> for HostGroup {
    fn all_reduce(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
        reduction: ReduceOp,
    ) -> Result<(), ExecutionError> {
        if self.0.size() == 1 {
            return Ok(());
        }
        on_host(queue, buffer, range, |values| Ok(self.0.all_reduce_by(algorithm, values, reduction)?))
    }

    fn reduce_scatter(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError> {
        if self.0.size() == 1 {
            return Ok(());
        }
        on_host(queue, buffer, range, |values| {
            self.0.reduce_scatter_by(algorithm, values, ReduceOp::Sum)?;
            Ok(())
        })
    }

    fn all_gather(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError> {
        if self.0.size() == 1 {
            return Ok(());
        }
        on_host(queue, buffer, range, |values| Ok(self.0.all_gather_by(algorithm, values)?))
    }

    fn coded(
        &mut self,
        queue: &B,
        coding: CodedCollective<'_, B>,
        buffer: &mut B::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError> {
        coding.run(queue, buffer, range, &mut *self.0)
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }
}

/// Runs `work` on `range` of a buffer on the host: in place if the device is the host, else through a copy.
fn on_host<B: Backend<Element = f32>>(
    queue: &B,
    buffer: &mut B::Buffer,
    range: Range<usize>,
    work: impl FnOnce(&mut [f32]) -> Result<(), ExecutionError>,
) -> Result<(), ExecutionError> {
    if let Some(values) = queue.host_mut(buffer) {
        return work(&mut values[range]);
    }
    let mut values = vec![0.0; range.len()];
    queue.download(Region::new(buffer, range.start), &mut values);
    work(&mut values)?;
    queue.write(&values, RegionMut::new(buffer, range.start));
    Ok(())
}

/// Communication through the host's memory.
pub struct HostSendRecv(pub Box<dyn Mailbox>);

impl<B: Backend<Element = f32>> SendRecv<B> for HostSendRecv {
    fn send(&mut self, queue: &B, peer: usize, tag: Tag, buffer: B::Buffer) -> Result<(), ExecutionError> {
        let mut values = vec![0.0; queue.len(&buffer)];
        queue.download(Region::start(&buffer), &mut values);
        drop(buffer);
        Ok(self.0.send(peer, tag.number(), values)?)
    }

    fn receive(
        &mut self,
        queue: &B,
        peer: usize,
        tag: Tag,
        elements: usize,
    ) -> Result<B::Buffer, ExecutionError> {
        let values = self.0.receive(peer, tag.number())?;
        if values.len() != elements {
            return Err(ExecutionError::Message { peer, expected: elements, given: values.len() });
        }
        Ok(queue.upload(&values))
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }

    fn close(self: Box<Self>) -> Result<(), ExecutionError> {
        Ok(self.0.close()?)
    }
}

impl TrainingDevice for Cpu<f32> {
    type Coding = HostArithmetic;

    fn coding(&self) -> HostArithmetic {
        HostArithmetic
    }

    fn values(buffer: &mut Self::Buffer) -> &mut [f32] {
        buffer
    }

    fn live_memory(&self) -> usize {
        memory::live()
    }

    fn peak_memory(&self) -> usize {
        memory::peak()
    }

    fn reset_peak_memory(&self) -> usize {
        memory::reset_peak()
    }

    fn is_host(&self) -> bool {
        true
    }

    fn reference(&self) -> Option<Reference> {
        Some(Reference::new())
    }
}
