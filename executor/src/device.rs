//! What a rank needs of a device beside its backend: memory that is counted, gradients coded where they are, and ways
//! to other ranks' devices.

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
/// Unless it knows a shorter way, ranks talk through the host ([`HostGroup`], [`HostSendRecv`]).
pub trait TrainingDevice: Backend<Element = f32> {
    /// Where gradients are encoded and decoded.
    type Coding: Arithmetic;
    /// On this queue.
    fn coding(&self) -> Self::Coding;
    /// A buffer in full precision as codecs see it.
    fn values(buffer: &mut Self::Buffer) -> &mut <Self::Coding as Arithmetic>::Values;

    /// Bytes of the device's memory that this rank has in use.
    fn live_memory(&self) -> usize;
    /// Highest [`live_memory`](TrainingDevice::live_memory) since the last reset.
    fn peak_memory(&self) -> usize;
    /// Begins a new peak at what is live now, and returns the old one.
    fn reset_peak_memory(&self) -> usize;
    /// Begins a new high-water mark of the allocator behind the counts, where it keeps one.
    fn reset_high_water(&self) {}
    /// That mark; `counted`, the peak by the counts, where there is none.
    fn high_water(&self, counted: usize) -> usize {
        counted
    }
    /// Whether the device's memory is the host's, so that what a measurement itself holds is in the counts.
    fn is_host(&self) -> bool;
    /// Whether collectives of gradients as they are do not go through the host, where encoded ones do.
    fn is_bypassed(&self) -> bool {
        false
    }
    /// A fixed benchmark, timed beside each step to detect other load on a shared device. `None` for exclusive devices.
    fn reference(&self) -> Option<Reference>;

    /// Whether groups choose the algorithms of their collectives by themselves.
    fn chooses_algorithms(&self) -> bool {
        false
    }

    /// Opens a group that communicates in `options`; as [`Endpoint::group_for`].
    ///
    /// # Errors
    /// Members that are no group, or cannot be reached.
    fn group(
        &self,
        endpoint: &mut Endpoint,
        name: &str,
        members: &[usize],
        options: &GroupOptions,
    ) -> Result<Box<dyn CollectiveGroup<Self>>, ExecutionError> {
        Ok(Box::new(HostGroup(endpoint.group_for(name, members, options)?)))
    }

    /// Opens messages with `peers`; as [`Endpoint::point_to_point`].
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

/// Collectives over one group of ranks on parts of device buffers, in order with the work of the queue that is given.
/// All members make the same calls in the same order. Shards are equal parts of the range.
pub trait CollectiveGroup<B: TrainingDevice>: Send {
    /// Replaces the range by its reduction over all members.
    ///
    /// # Errors
    /// A peer that is gone or silent.
    fn all_reduce(
        &mut self,
        queue: &B,
        algorithm: Algorithm,
        buffer: &mut B::Buffer,
        range: Range<usize>,
        reduction: ReduceOp,
    ) -> Result<(), ExecutionError>;

    /// Sums the range over all members; of the result this member's shard is kept, in place.
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

    /// Fills the range, of which this member holds its shard, with the shards of all.
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

    /// Replaces the range by what `compression` makes of its sum over all members. What it sends goes through the host.
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

/// Send/recv between pipeline ranks. Messages of one kind between two ranks are received in the order in which they were
/// sent.
pub trait SendRecv<B: Backend>: Send {
    /// Sends a buffer, once the queue's work so far is done, and returns at once.
    ///
    /// # Errors
    /// A peer that is gone.
    fn send(&mut self, queue: &B, peer: usize, tag: Tag, buffer: B::Buffer) -> Result<(), ExecutionError>;

    /// The message of `elements` elements in working precision, for the queue's work from now on.
    ///
    /// # Errors
    /// A peer that is gone or silent, or a message of another length.
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
    /// A peer that is gone.
    fn close(self: Box<Self>) -> Result<(), ExecutionError>;
}

/// Names a message between two ranks.
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

/// Through the host's memory.
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

/// Lets `work` at `range` of a buffer on the host: in place where the device is the host, through a copy elsewhere.
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

/// Through the host's memory.
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
