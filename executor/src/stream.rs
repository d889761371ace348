//! The communication stream of a rank: one thread that runs transfers in the order in which they were queued, while
//! the compute stream goes on.

use crate::ExecutionError;
use autodist_communication::queue::{Receiver, Sender, queue};
use autodist_communication::{Communicator, Counters, Reduction};
use autodist_compute::{Backend, Region, RegionMut};
use autodist_program::Transfer;
use autodist_spec::CollectiveKind;
use std::ops::Range;
use std::thread::JoinHandle;
use std::time::Instant;

/// Names a transfer.
pub type Key = (Transfer, usize);

/// A collective on a part of a buffer, which the stream owns meanwhile.
pub struct Work<B: Backend> {
    pub key: Key,
    pub kind: CollectiveKind,
    pub buffer: B::Buffer,
    pub range: Range<usize>,
}

pub struct Done<B: Backend> {
    pub key: Key,
    pub buffer: B::Buffer,
    pub start: Instant,
    pub end: Instant,
}

/// Groups of the data axis, by the transfer that runs over them.
pub struct Groups {
    pub reduce: Box<dyn Communicator>,
    pub replicas: Box<dyn Communicator>,
    pub gather: Box<dyn Communicator>,
}

impl Groups {
    fn of(&mut self, transfer: Transfer) -> &mut dyn Communicator {
        match transfer {
            Transfer::Reduce => &mut *self.reduce,
            Transfer::ReduceReplicas => &mut *self.replicas,
            Transfer::Gather => &mut *self.gather,
        }
    }

    fn counters(&self) -> Counters {
        self.reduce.counters() + self.replicas.counters() + self.gather.counters()
    }
}

type Outcome<B> = Result<(Done<B>, Counters), ExecutionError>;

pub struct CommunicationStream<B: Backend> {
    queue: Option<Sender<Work<B>>>,
    done: Receiver<Outcome<B>>,
    early: Vec<Done<B>>,
    counters: Counters,
    thread: Option<JoinHandle<()>>,
}

impl<B: Backend<Element = f32>> CommunicationStream<B> {
    /// # Errors
    /// When the system gives no thread.
    pub fn start(device: B, mut groups: Groups) -> Result<Self, ExecutionError> {
        let (orders, work) = queue::<Work<B>>();
        let (report, done) = queue();
        let body = move || {
            while let Some(mut item) = work.receive() {
                let start = Instant::now();
                let group = groups.of(item.key.0);
                let result = on_host(&device, &mut item.buffer, item.range.clone(), |values| {
                    collective(group, item.kind, values)
                });
                let outcome = result.map(|()| {
                    let done = Done { key: item.key, buffer: item.buffer, start, end: Instant::now() };
                    (done, groups.counters())
                });
                let failed = outcome.is_err();
                // A receiver that is gone has its own error to tell.
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
    pub fn submit(&mut self, work: Work<B>) -> Result<(), ExecutionError> {
        let key = work.key;
        match self.queue.as_ref().map(|queue| queue.send(work)) {
            Some(Ok(())) => Ok(()),
            // The thread ended, so it has left its reason.
            _ => Err(self.failure(key)),
        }
    }

    /// Blocks until that work is done.
    pub fn wait(&mut self, key: Key) -> Result<Done<B>, ExecutionError> {
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

    fn failure(&mut self, key: Key) -> ExecutionError {
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
            // A panic of the thread has been seen as a stream that ended.
            let _ = thread.join();
        }
    }
}

/// Runs one collective on host values.
pub fn collective(
    group: &mut dyn Communicator,
    kind: CollectiveKind,
    values: &mut [f32],
) -> Result<(), ExecutionError> {
    match kind {
        CollectiveKind::AllReduce => group.all_reduce(values, Reduction::Sum)?,
        CollectiveKind::ReduceScatter => {
            group.reduce_scatter(values, Reduction::Sum)?;
        }
        CollectiveKind::AllGather => group.all_gather(values)?,
    }
    Ok(())
}

/// Lets `work` at `range` of a buffer on the host: in place where the device is the host, through a copy elsewhere.
pub fn on_host<B: Backend<Element = f32>>(
    device: &B,
    buffer: &mut B::Buffer,
    range: Range<usize>,
    work: impl FnOnce(&mut [f32]) -> Result<(), ExecutionError>,
) -> Result<(), ExecutionError> {
    if let Some(values) = device.host_mut(buffer) {
        return work(&mut values[range]);
    }
    let mut values = vec![0.0; range.len()];
    device.download(Region::new(buffer, range.start), &mut values);
    work(&mut values)?;
    device.write(&values, RegionMut::new(buffer, range.start));
    Ok(())
}
