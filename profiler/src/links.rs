//! Measures collectives and send/recv over sizes and groups, all groups of a kind at once.

use autodist_communication::{Communicator, Counters, GroupOptions};
use autodist_executor::device::Tag;
use autodist_executor::launcher::Worker;
use autodist_executor::stream::{BucketTransfer, CommunicationStream, Groups, collective};
use autodist_executor::{ExecutionError, TrainingDevice, host};
use autodist_program::Transfer;
use autodist_spec::{Algorithm, Collective, Precision, Reduction};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// The groups and sizes to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkTask {
    /// Pairs of ranks in a group and distance of neighbours.
    pub groups: Vec<(usize, usize)>,
    /// Distances of pipeline neighbours.
    pub message_strides: Vec<usize>,
    /// Bytes of the whole tensor.
    pub sizes: Vec<usize>,
    pub repetitions: usize,
    /// Element type of collectives and send/recv.
    pub precision: Precision,
    /// Whether the job allows codecs for gradients.
    pub codecs: bool,
}

impl LinkTask {
    /// Bytes of an element.
    fn element(&self) -> usize {
        self.precision.working(1).0 as usize
    }
}

/// Larger than a core's own caches.
const CACHE_BYTES: usize = 8 << 20;
const MOST_BUFFERS: usize = 16;

pub const KINDS: [Collective; 3] = [Collective::AllReduce, Collective::ReduceScatter, Collective::AllGather];

/// Measurements of one rank; in the same order on every rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkAnswer {
    pub collectives: Vec<CollectiveTimings>,
    /// Collectives through the host, if only coded gradients use this path.
    pub exchanges: Vec<CollectiveTimings>,
    pub messages: Vec<MessageTimings>,
    /// Hand-over of work to the communication stream and back, in seconds.
    pub handover: Vec<f64>,
    /// Device memory that a communicator allocates for large collectives.
    pub staging_bytes: u64,
    pub bytes_sent: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CollectiveTimings {
    pub kind: Collective,
    pub group: usize,
    pub stride: usize,
    pub bytes: usize,
    pub seconds: Vec<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MessageTimings {
    pub stride: usize,
    pub bytes: usize,
    /// Half of the round-trip time; empty on ranks that only answered.
    pub seconds: Vec<f64>,
}

/// The groups of `size` ranks at distance `stride` that partition `world`; the one that holds `rank`.
fn members(world: usize, size: usize, stride: usize, rank: usize) -> Vec<usize> {
    let span = size * stride;
    let first = rank / span * span + rank % stride;
    debug_assert!(world % span == 0);
    (0..size).map(|i| first + i * stride).collect()
}

pub fn measure<D: TrainingDevice>(
    device: &D,
    task: &LinkTask,
    worker: &mut Worker,
    name: &str,
) -> Result<LinkAnswer, ExecutionError> {
    host::enter_communication(worker.placement);
    let (rank, world) = (worker.endpoint.rank(), worker.endpoint.world());
    let everyone: Vec<usize> = (0..world).collect();
    let mut barrier = worker.endpoint.group(&format!("{name}.barrier"), &everyone)?;
    let mut answer = LinkAnswer {
        collectives: Vec::new(),
        exchanges: Vec::new(),
        messages: Vec::new(),
        handover: Vec::new(),
        staging_bytes: 0,
        bytes_sent: 0,
    };
    let mut sent = Counters::default();
    for (size, stride) in &task.groups {
        let members = members(world, *size, *stride, rank);
        let before = device.live_memory();
        let group_name = format!("{name}.g{size}.{stride}");
        let mut group =
            device.group(&mut worker.endpoint, &group_name, &members, &GroupOptions::default())?;
        host::enter_compute(worker.placement);
        for kind in KINDS {
            for bytes in &task.sizes {
                let elements = (bytes / task.element()).next_multiple_of(*size);
                let bytes = elements * task.element();
                // A step uses many buffers before it reuses the first: so does this measurement.
                let count = (CACHE_BYTES / bytes).clamp(1, MOST_BUFFERS);
                let ones = vec![1.0; elements];
                let mut buffers: Vec<_> = (0..count).map(|_| device.upload(&ones)).collect();
                device.synchronise()?;
                let mut turn = 0;
                let seconds = timings(device, task.repetitions, &mut barrier, || {
                    turn = (turn + 1) % count;
                    collective(&mut *group, device, kind, Algorithm::Ring, &mut buffers[turn], 0..elements)
                })?;
                answer.collectives.push(CollectiveTimings {
                    kind,
                    group: *size,
                    stride: *stride,
                    bytes,
                    seconds,
                });
            }
        }
        answer.staging_bytes = answer.staging_bytes.max(device.live_memory().saturating_sub(before) as u64);
        sent = sent + group.counters();
        if task.codecs && device.is_bypassed() {
            let group_name = format!("{name}.h{size}.{stride}");
            let mut group = worker.endpoint.group(&group_name, &members)?;
            exchanges(device, task, &mut *group, *stride, &mut barrier, &mut answer.exchanges)?;
            sent = sent + group.counters();
        }
        host::enter_communication(worker.placement);
    }
    answer.bytes_sent = sent.sent;
    for stride in &task.message_strides {
        messages(device, task, worker, name, *stride, &mut barrier, &mut answer)?;
    }
    answer.handover = handover(device, task.repetitions, worker, name)?;
    Ok(answer)
}

/// Measures the collectives of codecs on a group that communicates through the host.
fn exchanges<D: TrainingDevice>(
    device: &D,
    task: &LinkTask,
    group: &mut dyn Communicator,
    stride: usize,
    barrier: &mut Box<dyn Communicator>,
    timed: &mut Vec<CollectiveTimings>,
) -> Result<(), ExecutionError> {
    for kind in [Collective::AllReduce, Collective::AllGather] {
        for bytes in &task.sizes {
            let elements = (bytes / 4).next_multiple_of(group.size());
            let mut values = vec![1.0; elements];
            let seconds = timings(device, task.repetitions, barrier, || {
                match kind {
                    Collective::AllGather => group.all_gather(&mut values)?,
                    _ => group.all_reduce(&mut values, autodist_communication::ReduceOp::Sum)?,
                }
                Ok(())
            })?;
            timed.push(CollectiveTimings { kind, group: group.size(), stride, bytes: 4 * elements, seconds });
        }
    }
    Ok(())
}

/// Times `work` after a barrier, without warm-up.
fn timings<D: TrainingDevice>(
    device: &D,
    repetitions: usize,
    barrier: &mut Box<dyn Communicator>,
    mut work: impl FnMut() -> Result<(), ExecutionError>,
) -> Result<Vec<f64>, ExecutionError> {
    let mut seconds = Vec::with_capacity(repetitions);
    for repetition in 0..repetitions + 2 {
        barrier.barrier()?;
        let start = Instant::now();
        work()?;
        device.synchronise()?;
        if repetition >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

/// Half round-trip times between neighbouring stages, as the executor sends: from one device buffer to
/// another.
fn messages<D: TrainingDevice>(
    device: &D,
    task: &LinkTask,
    worker: &mut Worker,
    name: &str,
    stride: usize,
    barrier: &mut Box<dyn Communicator>,
    answer: &mut LinkAnswer,
) -> Result<(), ExecutionError> {
    let rank = worker.endpoint.rank();
    let pair = members(worker.endpoint.world(), 2, stride, rank);
    let peer = if pair[0] == rank { pair[1] } else { pair[0] };
    let mut messages = device.messages(&mut worker.endpoint, &format!("{name}.m{stride}"), &[peer])?;
    host::enter_compute(worker.placement);
    let tag = Tag { kind: 0, chunk: 0, micro_batch: 0 };
    for bytes in &task.sizes {
        let elements = bytes / task.element();
        let mut buffer = Some(device.zeros(elements));
        let mut turn = |receive_first: bool| -> Result<(), ExecutionError> {
            for receive in [receive_first, !receive_first] {
                if receive {
                    buffer = Some(messages.receive(device, peer, tag, elements)?);
                } else if let Some(buffer) = buffer.take() {
                    messages.send(device, peer, tag, buffer)?;
                }
            }
            Ok(())
        };
        let second = pair[1] == rank;
        let seconds = timings(device, task.repetitions, barrier, || turn(second))?;
        let halves = if second { Vec::new() } else { seconds.iter().map(|s| s / 2.0).collect() };
        answer.messages.push(MessageTimings { stride, bytes: *bytes, seconds: halves });
    }
    host::enter_communication(worker.placement);
    messages.close()
}

/// An empty collective on the communication stream: the overhead of the stream itself.
pub(crate) fn handover<D: TrainingDevice>(
    device: &D,
    repetitions: usize,
    worker: &mut Worker,
    name: &str,
) -> Result<Vec<f64>, ExecutionError> {
    let alone = [worker.endpoint.rank()];
    let mut group = |what: &str| {
        device.group(&mut worker.endpoint, &format!("{name}.alone.{what}"), &alone, &GroupOptions::default())
    };
    let groups = Groups {
        reduce: group("reduce")?,
        replicas: group("replicas")?,
        gather: group("gather")?,
        emulated: None,
        compressors: BTreeMap::new(),
    };
    let mut stream = CommunicationStream::start(device.queue()?, groups)?;
    host::enter_compute(worker.placement);
    let mut buffer = Some(device.zeros(16));
    let mut seconds = Vec::new();
    for repetition in 0..repetitions + 2 {
        let key = (Transfer::Reduce, repetition);
        let start = device.record();
        if let Some(buffer) = buffer.take() {
            let ready = device.record();
            stream.submit(BucketTransfer {
                key,
                kind: Collective::AllReduce,
                reduction: Reduction::default(),
                buffer,
                range: 0..16,
                ready,
            })?;
        }
        let done = stream.wait(key)?;
        device.wait_for(&done.end);
        buffer = Some(done.buffer);
        let end = device.record();
        device.synchronise()?;
        if repetition >= 2 {
            seconds.push(device.seconds_between(&start, &end));
        }
    }
    host::enter_communication(worker.placement);
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_partition_the_world() {
        assert_eq!(members(8, 2, 1, 5), [4, 5]);
        assert_eq!(members(8, 2, 4, 5), [1, 5]);
        assert_eq!(members(8, 4, 2, 5), [1, 3, 5, 7]);
        assert_eq!(members(8, 8, 1, 5), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
