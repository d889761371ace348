//! Send/recv between two ranks, for pipeline stages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::communicator::Counters;
use crate::connection::{Connection, next_room, receive_exact, send_all};
use crate::error::{CommunicationError, Peer, Result};
use crate::queue::{Sender, queue};

/// A message starts with its tag and its number of elements.
const HEADER: usize = 16;
/// Up to this many bytes of payload are written together with the header.
const JOINED: usize = 16 << 10;
/// The maximum number of elements of a message; a header with more is invalid.
const LONGEST: u64 = 1 << 34;

/// Tagged send/recv between this rank and its peers on one lane.
///
/// Sends never block, so that no order of sends and receives can deadlock: a thread per peer owns the queue
/// and each message until it is written. Messages of one tag arrive in the order they were sent.
///
/// # Errors
/// An error on a sender's thread is returned by the next call that names its peer, and by [`Mailbox::close`].
/// After an error the connection to that peer is closed.
pub trait Mailbox: Send {
    /// The ranks at the other ends.
    fn peers(&self) -> Vec<usize>;

    /// Queues a message and returns at once.
    fn send(&mut self, peer: usize, tag: u64, values: Vec<f32>) -> Result<()>;

    /// Waits for the next message of `peer` with this tag. Messages with other tags that arrive first are
    /// kept.
    fn receive(&mut self, peer: usize, tag: u64) -> Result<Vec<f32>>;

    /// Enables or disables a [`SendRecord`] for every message from now on. Disabled at first.
    fn record_sends(&mut self, enabled: bool);

    /// Takes the records of the messages written since the last call, in order of completion.
    fn take_send_records(&mut self) -> Vec<SendRecord>;

    /// Payload that has been written and read; queued messages do not count yet.
    fn counters(&self) -> Counters;

    /// Waits until all queued messages have been written. Dropping a mailbox discards the queue instead.
    fn close(self: Box<Self>) -> Result<()>;
}

/// The times of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendRecord {
    /// The receiver.
    pub peer: usize,
    /// The message's tag.
    pub tag: u64,
    /// Its payload in bytes.
    pub bytes: u64,
    /// When [`Mailbox::send`] was called.
    pub queued: Instant,
    /// When the sender's thread began to write it.
    pub started: Instant,
    /// When the transport had accepted all of it. The last bytes, as many as the transport buffers, may still
    /// be in flight.
    pub ended: Instant,
}

/// [`Mailbox`] over any connections.
pub(crate) struct StreamMailbox {
    lane: String,
    links: BTreeMap<usize, Link>,
    shared: Arc<Shared>,
    received: u64,
    recording: bool,
}

/// State that the sender threads share with the mailbox.
#[derive(Default)]
struct Shared {
    sent: AtomicU64,
    records: Mutex<Vec<SendRecord>>,
}

/// One peer.
struct Link {
    connection: Arc<dyn Connection>,
    /// `None` when the mailbox is closing.
    queue: Option<Sender<Message>>,
    sender: Option<JoinHandle<()>>,
    failure: Arc<Mutex<Option<CommunicationError>>>,
    /// Messages that arrived before their receive call, by tag.
    early: BTreeMap<u64, VecDeque<Vec<f32>>>,
}

struct Message {
    tag: u64,
    values: Vec<f32>,
    queued: Instant,
    record: bool,
}

impl StreamMailbox {
    /// Takes ownership of one connection per peer and starts a thread for each.
    pub(crate) fn start(lane: &str, connections: Vec<(usize, Arc<dyn Connection>)>) -> Result<Self> {
        let mut mailbox = Self {
            lane: lane.to_owned(),
            links: BTreeMap::new(),
            shared: Arc::default(),
            received: 0,
            recording: false,
        };
        for (peer, connection) in connections {
            let link = Link::start(lane, peer, connection, &mailbox.shared)?;
            mailbox.links.insert(peer, link);
        }
        Ok(mailbox)
    }

    fn link<'a>(
        links: &'a mut BTreeMap<usize, Link>,
        lane: &str,
        peer: usize,
        operation: &'static str,
    ) -> Result<&'a mut Link> {
        let members = links.keys().copied().collect();
        match links.get_mut(&peer) {
            Some(link) => match link.failure() {
                Some(failure) => Err(failure),
                None => Ok(link),
            },
            None => {
                Err(CommunicationError::NotAMember { operation, lane: lane.to_owned(), index: peer, members })
            }
        }
    }
}

impl Mailbox for StreamMailbox {
    fn peers(&self) -> Vec<usize> {
        self.links.keys().copied().collect()
    }

    fn send(&mut self, peer: usize, tag: u64, values: Vec<f32>) -> Result<()> {
        let message = Message { tag, values, queued: Instant::now(), record: self.recording };
        let link = Self::link(&mut self.links, &self.lane, peer, "send")?;
        match link.queue.as_ref().map(|queue| queue.send(message)) {
            Some(Ok(())) => Ok(()),
            // The thread has ended, and it stores its error before it ends.
            _ => Err(link
                .failure()
                .unwrap_or(CommunicationError::Broken { lane: self.lane.clone(), operation: "send" })),
        }
    }

    fn receive(&mut self, peer: usize, tag: u64) -> Result<Vec<f32>> {
        let link = Self::link(&mut self.links, &self.lane, peer, "receive")?;
        if let Some(queue) = link.early.get_mut(&tag)
            && let Some(values) = queue.pop_front()
        {
            if queue.is_empty() {
                link.early.remove(&tag);
            }
            return Ok(values);
        }
        loop {
            match link.read() {
                Ok((arrived, values)) => {
                    self.received += size_of_val(values.as_slice()) as u64;
                    if arrived == tag {
                        return Ok(values);
                    }
                    link.early.entry(arrived).or_default().push_back(values);
                }
                Err(error) => {
                    link.fail(&error);
                    return Err(error);
                }
            }
        }
    }

    fn record_sends(&mut self, enabled: bool) {
        self.recording = enabled;
    }

    fn take_send_records(&mut self) -> Vec<SendRecord> {
        std::mem::take(&mut lock(&self.shared.records))
    }

    fn counters(&self) -> Counters {
        Counters { sent: self.shared.sent.load(Ordering::Acquire), received: self.received }
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        // All queues are closed before the first wait, so that they drain concurrently.
        for link in self.links.values_mut() {
            link.queue = None;
        }
        let mut outcome = Ok(());
        for link in self.links.values_mut() {
            link.join();
            outcome = outcome.and(link.failure().map_or(Ok(()), Err));
        }
        outcome
    }
}

impl Link {
    fn start(lane: &str, peer: usize, connection: Arc<dyn Connection>, shared: &Arc<Shared>) -> Result<Self> {
        let (queue, messages) = queue::<Message>();
        let failure = Arc::new(Mutex::new(None));
        let sender = {
            let (connection, failure, shared) = (connection.clone(), failure.clone(), shared.clone());
            std::thread::Builder::new()
                .name(format!("send-{peer}"))
                .spawn(move || {
                    let mut joined = Vec::new();
                    while let Some(message) = messages.receive() {
                        if let Err(error) = write(&*connection, peer, message, &mut joined, &shared) {
                            lock(&failure).get_or_insert(error);
                            connection.shutdown();
                            return;
                        }
                    }
                })
                .map_err(|source| CommunicationError::Io {
                    peer: Peer::Rank(peer),
                    lane: lane.to_owned(),
                    operation: "starting a sender",
                    source: Arc::new(source),
                })?
        };
        Ok(Self { connection, queue: Some(queue), sender: Some(sender), failure, early: BTreeMap::new() })
    }

    fn failure(&self) -> Option<CommunicationError> {
        lock(&self.failure).clone()
    }

    fn fail(&mut self, error: &CommunicationError) {
        lock(&self.failure).get_or_insert_with(|| error.clone());
        self.connection.shutdown();
    }

    /// Reads one message with any tag.
    fn read(&self) -> Result<(u64, Vec<f32>)> {
        const OPERATION: &str = "receive";
        let mut header = [0; HEADER];
        receive_exact(&*self.connection, &mut header, OPERATION)?;
        let [tag, length] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(word)
        });
        let too_long = || CommunicationError::Protocol {
            peer: self.connection.peer(),
            lane: self.connection.lane().to_owned(),
            detail: format!("a message of {length} elements"),
        };
        if length > LONGEST {
            return Err(too_long());
        }
        let length = length as usize;
        let mut values: Vec<f32> = Vec::new();
        while values.len() < length {
            let known = values.len();
            let room = next_room(known, length, size_of::<f32>());
            values.try_reserve_exact(room - known).map_err(|_| too_long())?;
            values.resize(room, 0.0);
            receive_exact(&*self.connection, cast_slice_mut(&mut values[known..]), OPERATION)?;
        }
        Ok((tag, values))
    }

    fn join(&mut self) {
        if let Some(sender) = self.sender.take()
            && sender.join().is_err()
        {
            let broken = CommunicationError::Broken {
                lane: self.connection.lane().to_owned(),
                operation: "the sender's thread",
            };
            lock(&self.failure).get_or_insert(broken);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.queue = None;
        if self.sender.is_some() {
            self.connection.shutdown();
            self.join();
        }
    }
}

/// Writes one message; runs on the sender's thread.
fn write(
    connection: &dyn Connection,
    peer: usize,
    message: Message,
    joined: &mut Vec<u8>,
    shared: &Shared,
) -> Result<()> {
    const OPERATION: &str = "send";
    let started = Instant::now();
    let payload: &[u8] = cast_slice(&message.values);
    let header = [message.tag.to_le_bytes(), (message.values.len() as u64).to_le_bytes()].concat();
    let first = payload.len().min(JOINED);
    joined.clear();
    joined.extend_from_slice(&header);
    joined.extend_from_slice(&payload[..first]);
    send_all(connection, joined, OPERATION)?;
    send_all(connection, &payload[first..], OPERATION)?;
    shared.sent.fetch_add(payload.len() as u64, Ordering::AcqRel);
    if message.record {
        lock(&shared.records).push(SendRecord {
            peer,
            tag: message.tag,
            bytes: payload.len() as u64,
            queued: message.queued,
            started,
            ended: Instant::now(),
        });
    }
    Ok(())
}

/// State under these locks stays consistent if a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
