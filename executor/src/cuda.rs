//! NVIDIA GPUs as devices of ranks: communication by NCCL if it works, else through the host's memory.
//! Encoded data always goes through the host's memory.

mod messages;
mod survey;

pub use autodist_cuda::selftest::codecs_match;
pub use survey::{Absent, Survey, survey};

use crate::ExecutionError;
use crate::compression::CodedCollective;
use crate::device::{CollectiveGroup, HostGroup, HostSendRecv, SendRecv, TrainingDevice};
use crate::reference::Reference;
use autodist_communication::{Communicator, Counters, Endpoint, GroupOptions, ReduceOp};
use autodist_compute::Backend;
use autodist_cuda::{self as gpu, Cuda, Libraries, NcclGroup, Reduce, Search, UniqueId};
use autodist_spec::{Algorithm, Precision};
use messages::NcclSendRecv;
use std::ops::Range;

/// The transport between the ranks' GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuTransport {
    /// NCCL, with its version.
    Nccl(String),
    /// Through the hosts' memory, with the reason.
    Host(String),
}

impl GpuTransport {
    /// Agrees with all other ranks on the transport: NCCL is used if it works on all ranks, which a group of
    /// all ranks tests.
    ///
    /// # Errors
    /// A peer that has disconnected or is silent. A failure of NCCL is not an error.
    pub fn agree(cuda: &Cuda, endpoint: &mut Endpoint) -> Result<Self, ExecutionError> {
        let everyone: Vec<usize> = (0..endpoint.world()).collect();
        let mut host = endpoint.group("nccl", &everyone)?;
        let (version, mut reason) = match cuda.libraries().nccl() {
            Ok(nccl) => (nccl.version(), None),
            Err(missing) => (String::new(), Some(missing.to_string())),
        };
        if all(&mut *host, reason.is_none())? {
            let joined = join(cuda, &mut *host);
            reason = joined.err().map(|error| error.to_string());
            if all(&mut *host, reason.is_none())? {
                return Ok(Self::Nccl(version));
            }
        }
        Ok(Self::Host(reason.unwrap_or_else(|| "NCCL is not available on another rank".to_owned())))
    }

    pub fn describe(&self) -> String {
        match self {
            Self::Nccl(version) => format!("NCCL {version}"),
            Self::Host(reason) => format!("the host's memory: {reason}"),
        }
    }
}

/// Whether `here` is true for all members.
fn all(host: &mut dyn Communicator, here: bool) -> Result<bool, ExecutionError> {
    let mut against = [if here { 0.0 } else { 1.0 }];
    host.all_reduce(&mut against, ReduceOp::Max)?;
    Ok(against[0] == 0.0)
}

/// Makes an NCCL group of the members of `host`, which distributes the group's unique id.
fn join(cuda: &Cuda, host: &mut dyn Communicator) -> Result<NcclGroup, ExecutionError> {
    let (rank, size) = (host.rank(), host.size());
    // Bytes are exact as floats; the first float is nonzero if there is a unique id.
    let mut identity = [0.0; 1 + UniqueId::BYTES];
    let made = if rank == 0 { Some(NcclGroup::unique_id(cuda.libraries())) } else { None };
    if let Some(Ok(id)) = &made {
        identity[0] = 1.0;
        identity[1..].iter_mut().zip(id.bytes()).for_each(|(to, byte)| *to = f32::from(*byte));
    }
    host.broadcast(&mut identity, 0)?;
    if let Some(Err(error)) = made {
        return Err(error.into());
    }
    if identity[0] == 0.0 {
        return Err(ExecutionError::NoIdentity);
    }
    let bytes = std::array::from_fn(|index| identity[1 + index] as u8);
    Ok(NcclGroup::join(cuda, &UniqueId::new(bytes), rank, size)?)
}

/// Opens a GPU of this machine.
///
/// # Errors
/// Missing libraries, or a missing GPU.
pub fn open(ordinal: usize, precision: Precision) -> Result<Cuda, ExecutionError> {
    Ok(Cuda::open(Libraries::load(&Search::from_environment())?, ordinal, precision)?)
}

/// Opens the GPU of a rank of this machine; if there are more ranks than GPUs, they share them round-robin.
///
/// # Errors
/// Those of [`open`].
pub fn open_shared(local_rank: usize, precision: Precision) -> Result<Cuda, ExecutionError> {
    let libraries = Libraries::load(&Search::from_environment())?;
    let count = gpu::gpus(&libraries)?.len();
    Ok(Cuda::open(libraries, local_rank % count, precision)?)
}

impl TrainingDevice for Cuda {
    type Coding = Self;

    fn coding(&self) -> Self {
        self.clone()
    }

    fn values(buffer: &mut Self::Buffer) -> &mut Self::Buffer {
        buffer
    }

    fn live_memory(&self) -> usize {
        self.live_bytes()
    }

    fn peak_memory(&self) -> usize {
        self.peak_bytes()
    }

    fn reset_peak_memory(&self) -> usize {
        self.reset_peak()
    }

    fn reset_high_water(&self) {
        self.pool_high_water();
    }

    /// The high-water mark of the driver's pool, which includes alignment.
    fn high_water(&self, _counted: usize) -> usize {
        self.pool_high_water()
    }

    fn is_host(&self) -> bool {
        false
    }

    fn is_bypassed(&self) -> bool {
        self.uses_nccl()
    }

    /// Not needed: the clock of a GPU is stable, and throttling is reported with the results.
    fn reference(&self) -> Option<Reference> {
        None
    }

    fn chooses_algorithms(&self) -> bool {
        self.uses_nccl()
    }

    fn group(
        &self,
        endpoint: &mut Endpoint,
        name: &str,
        members: &[usize],
        options: &GroupOptions,
    ) -> Result<Box<dyn CollectiveGroup<Self>>, ExecutionError> {
        let mut host = endpoint.group_for(name, members, options)?;
        if members.len() == 1 || !self.uses_nccl() {
            return Ok(Box::new(HostGroup(host)));
        }
        Ok(Box::new(OverNccl { nccl: join(self, &mut *host)?, host }))
    }

    fn messages(
        &self,
        endpoint: &mut Endpoint,
        name: &str,
        peers: &[usize],
    ) -> Result<Box<dyn SendRecv<Self>>, ExecutionError> {
        if self.uses_nccl() {
            Ok(Box::new(NcclSendRecv::open(self, endpoint, name, peers)?))
        } else {
            Ok(Box::new(HostSendRecv(endpoint.point_to_point(name, peers)?)))
        }
    }
}

/// Uncompressed gradients by NCCL; encoded ones, which are small, through the host's memory.
struct OverNccl {
    nccl: NcclGroup,
    host: Box<dyn Communicator>,
}

impl CollectiveGroup<Cuda> for OverNccl {
    fn all_reduce(
        &mut self,
        queue: &Cuda,
        // NCCL chooses by itself.
        _: Algorithm,
        buffer: &mut <Cuda as Backend>::Buffer,
        range: Range<usize>,
        reduction: ReduceOp,
    ) -> Result<(), ExecutionError> {
        let reduction = match reduction {
            ReduceOp::Sum => Reduce::Sum,
            ReduceOp::Max => Reduce::Max,
        };
        Ok(self.nccl.all_reduce(queue, buffer, range, reduction)?)
    }

    fn reduce_scatter(
        &mut self,
        queue: &Cuda,
        // NCCL chooses by itself.
        _: Algorithm,
        buffer: &mut <Cuda as Backend>::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError> {
        Ok(self.nccl.reduce_scatter(queue, buffer, range)?)
    }

    fn all_gather(
        &mut self,
        queue: &Cuda,
        // NCCL chooses by itself.
        _: Algorithm,
        buffer: &mut <Cuda as Backend>::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError> {
        Ok(self.nccl.all_gather(queue, buffer, range)?)
    }

    fn coded(
        &mut self,
        queue: &Cuda,
        coding: CodedCollective<'_, Cuda>,
        buffer: &mut <Cuda as Backend>::Buffer,
        range: Range<usize>,
    ) -> Result<(), ExecutionError> {
        coding.run(queue, buffer, range, &mut *self.host)
    }

    fn counters(&self) -> Counters {
        let traffic = self.nccl.traffic();
        Counters { sent: traffic.sent, received: traffic.received } + self.host.counters()
    }
}
