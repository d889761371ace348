//! The communication stream of a rank: one thread that runs transfers in the order in which they were queued,
//! on its own device queue, concurrently with the compute stream.

use crate::ExecutionError;
pub use crate::compression::BucketCompressor;
use crate::compression::{CodedCollective, Compression};
use crate::device::{CollectiveGroup, TrainingDevice};
use crate::pace::Emulated;
use crate::rounding::RoundedCollective;
use autodist_communication::queue::{Receiver, Sender, queue};
use autodist_communication::{Counters, ReduceOp};
use autodist_compute::Backend;
use autodist_program::Transfer;
use autodist_spec::{self as spec, Algorithm, Coded, Collective};
use std::collections::BTreeMap;
use std::ops::Range;
use std::thread::JoinHandle;

/// Identifies a transfer.
pub type TransferKey = (Transfer, usize);

/// A collective on a part of a buffer, which the stream owns during the transfer.
pub struct BucketTransfer<B: Backend> {
    pub key: TransferKey,
    pub kind: Collective,
    pub reduction: spec::Reduction,
    pub buffer: B::Buffer,
    pub range: Range<usize>,
    /// Completes after the buffer's last use so far.
    pub ready: B::Event,
}

/// A completed transfer with its buffer, for work that waits for `end`.
pub struct Done<B: Backend> {
    pub key: TransferKey,
    pub buffer: B::Buffer,
    pub start: B::Event,
    pub end: B::Event,
}

/// Data-parallel groups, by the transfer that runs over them.
pub struct Groups<B: TrainingDevice> {
    pub reduce: Box<dyn CollectiveGroup<B>>,
    pub replicas: Box<dyn CollectiveGroup<B>>,
    pub gather: Box<dyn CollectiveGroup<B>>,
    pub emulated: Option<Emulated>,
    /// Compressors of the buckets whose whole gradients are compressed.
    pub compressors: BTreeMap<usize, BucketCompressor<B>>,
}

impl<B: TrainingDevice> Groups<B> {
    fn counters(&self) -> Counters {
        self.reduce.counters() + self.replicas.counters() + self.gather.counters()
    }
}

type Outcome<B> = Result<(Done<B>, Counters), ExecutionError>;

pub struct CommunicationStream<B: Backend> {
    queue: Option<Sender<BucketTransfer<B>>>,
    done: Receiver<Outcome<B>>,
    early: Vec<Done<B>>,
    counters: Counters,
    thread: Option<JoinHandle<()>>,
}

impl<B: TrainingDevice> CommunicationStream<B> {
    /// Starts the thread. `stream` is its own queue of the device, on which the device state of `groups` was
    /// created.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(stream: B, mut groups: Groups<B>) -> Result<Self, ExecutionError> {
        let (orders, work) = queue::<BucketTransfer<B>>();
        let (report, done) = queue();
        let body = move || {
            while let Some(item) = work.receive() {
                let outcome = transfer(&stream, &mut groups, item).map(|done| (done, groups.counters()));
                let failed = outcome.is_err();
                // A receiver that has disconnected has an error of its own.
                if report.send(outcome).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("communication".to_owned())
            .spawn(body)
            .map_err(|source| ExecutionError::System { what: "starting the communication stream", source })?;
        Ok(Self {
            queue: Some(orders),
            done,
            early: Vec::new(),
            counters: Counters::default(),
            thread: Some(thread),
        })
    }

    /// Queues work and returns at once.
    pub fn submit(&mut self, work: BucketTransfer<B>) -> Result<(), ExecutionError> {
        let key = work.key;
        match self.queue.as_ref().map(|queue| queue.send(work)) {
            Some(Ok(())) => Ok(()),
            // The thread has ended and has left its error.
            _ => Err(self.failure(key)),
        }
    }

    /// Blocks until the transfer is done, or queued on the device.
    pub fn wait(&mut self, key: TransferKey) -> Result<Done<B>, ExecutionError> {
        if let Some(index) = self.early.iter().position(|done| done.key == key) {
            return Ok(self.early.swap_remove(index));
        }
        loop {
            match self.done.receive() {
                Some(Ok((done, counters))) => {
                    self.counters = counters;
                    if done.key == key {
                        return Ok(done);
                    }
                    self.early.push(done);
                }
                Some(Err(error)) => return Err(error),
                None => return Err(ExecutionError::StreamEnded { key }),
            }
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn failure(&mut self, key: TransferKey) -> ExecutionError {
        loop {
            match self.done.receive() {
                Some(Err(error)) => return error,
                Some(Ok(_)) => {}
                None => return ExecutionError::StreamEnded { key },
            }
        }
    }
}

impl<B: Backend> Drop for CommunicationStream<B> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been handled as the end of the stream.
            let _ = thread.join();
        }
    }
}

fn transfer<B: TrainingDevice>(
    stream: &B,
    groups: &mut Groups<B>,
    work: BucketTransfer<B>,
) -> Result<Done<B>, ExecutionError> {
    let BucketTransfer { key, kind, reduction, mut buffer, range, ready } = work;
    stream.wait_for(&ready);
    let start = stream.record();
    let emulated = groups.emulated;
    let rounded = |coded| RoundedCollective::of(reduction.codec, coded, emulated);
    let (group, coding): (_, Option<CodedCollective<'_, B>>) = match (key.0, kind) {
        (Transfer::Reduce, Collective::AllReduce) => {
            let algorithm = reduction.algorithm;
            let compressor = groups.compressors.get_mut(&key.1);
            let compression = compressor.map(|compressor| Compression { compressor, algorithm });
            (&mut groups.reduce, compression.map(CodedCollective::Compression))
        }
        (Transfer::Reduce, _) => {
            (&mut groups.reduce, rounded(Coded::GradientShards).map(CodedCollective::Rounding))
        }
        (Transfer::Gather, _) => {
            (&mut groups.gather, rounded(Coded::Parameters).map(CodedCollective::Rounding))
        }
        (Transfer::ReduceReplicas, _) => (&mut groups.replicas, None),
    };
    match coding {
        Some(coding) => group.coded(stream, coding, &mut buffer, range)?,
        None => collective(&mut **group, stream, kind, reduction.algorithm, &mut buffer, range)?,
    }
    Ok(Done { key, buffer, start, end: stream.record() })
}

/// Runs one collective; reductions are sums.
pub fn collective<B: TrainingDevice>(
    group: &mut dyn CollectiveGroup<B>,
    queue: &B,
    kind: Collective,
    algorithm: Algorithm,
    buffer: &mut B::Buffer,
    range: Range<usize>,
) -> Result<(), ExecutionError> {
    match kind {
        Collective::AllReduce => group.all_reduce(queue, algorithm, buffer, range, ReduceOp::Sum),
        Collective::ReduceScatter => group.reduce_scatter(queue, algorithm, buffer, range),
        Collective::AllGather => group.all_gather(queue, algorithm, buffer, range),
        Collective::AllToAll | Collective::Broadcast | Collective::SendRecv => {
            unreachable!("a Program reduces and gathers buckets, it has no {} of them", kind.name())
        }
    }
}
