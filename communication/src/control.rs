//! The control channel between a rank and its launcher, for messages outside training.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::{Connection, send_all};
use crate::error::{CommunicationError, Peer, Result};
use crate::poll;
use crate::wire::{Decoder, Kind, LONGEST_FRAME, empty_frame, frame};

const OPERATION: &str = "control";

/// A rank's end of the control channel. Clones share it.
#[derive(Clone)]
pub struct Control {
    channel: Arc<Channel>,
}

struct Channel {
    connection: Arc<dyn Connection>,
    /// Held while a frame is written, so that frames of several threads do not mix.
    writing: Mutex<()>,
    reading: Mutex<Reading>,
}

#[derive(Default)]
struct Reading {
    decoder: Decoder,
    /// Messages that arrived during [`Control::stop_requested`].
    messages: VecDeque<Vec<u8>>,
    stop: bool,
}

/// A message from the launcher to a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlOrder {
    /// Sent by [`crate::Supervisor::send`].
    Message(Vec<u8>),
    /// Sent by [`crate::Supervisor::stop_all`].
    Stop,
}

/// Events of ranks, for the launcher, in the order in which they happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// The rank has proved the token.
    Joined(usize),
    /// The rank sent this message.
    Message(usize, Vec<u8>),
    /// The rank sent a heartbeat ([`Control::alive`]), or part of a longer message has arrived from it.
    Alive(usize),
    /// The rank left normally.
    Left(usize),
    /// The rank's connection broke: its process ended without [`crate::Endpoint::close`].
    Lost(usize),
}

/// Rejects messages that are too long for a frame.
pub(crate) fn check_length(message: &[u8], peer: Peer, lane: &str) -> Result<()> {
    if message.len() < LONGEST_FRAME {
        return Ok(());
    }
    let detail = format!("a control message of {} bytes, the limit is {LONGEST_FRAME}", message.len());
    Err(CommunicationError::Protocol { peer, lane: lane.to_owned(), detail })
}

impl Control {
    /// Makes a channel from a connection to a supervisor that has admitted this rank.
    pub(crate) fn new(connection: Arc<dyn Connection>) -> Self {
        Self {
            channel: Arc::new(Channel { connection, writing: Mutex::default(), reading: Mutex::default() }),
        }
    }

    /// Sends a message of at most 64 MiB to the launcher; messages arrive whole and in order.
    ///
    /// # Errors
    /// [`CommunicationError::PeerClosed`] if the launcher is gone.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        let connection = &self.channel.connection;
        check_length(message, connection.peer(), connection.lane())?;
        self.write(Kind::Message, message)
    }

    /// Sends a heartbeat to the launcher. It does not allocate, so that it does not affect memory
    /// measurements.
    ///
    /// # Errors
    /// As [`Control::send`].
    pub fn alive(&self) -> Result<()> {
        let _writing = lock(&self.channel.writing);
        send_all(&*self.channel.connection, &empty_frame(Kind::Alive), OPERATION)
    }

    /// Waits for the launcher's next message, at most for `limit`; `None` if there was none.
    ///
    /// # Errors
    /// [`CommunicationError::PeerClosed`] if the launcher is gone.
    pub fn receive(&self, limit: Duration) -> Result<Option<ControlOrder>> {
        let deadline = Instant::now() + limit;
        loop {
            {
                // The lock is not held while this thread sleeps, because other threads may call
                // `stop_requested`.
                let mut reading = lock(&self.channel.reading);
                let heard = self.read(&mut reading);
                if let Some(message) = reading.messages.pop_front() {
                    return Ok(Some(ControlOrder::Message(message)));
                }
                heard?;
                if reading.stop {
                    return Ok(Some(ControlOrder::Stop));
                }
            }
            let connection = &self.channel.connection;
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = limit.saturating_sub(left);
            let ready = !left.is_zero()
                && poll::ready(&[], &[&**connection], waited, left).map_err(|source| {
                    CommunicationError::Io {
                        peer: connection.peer(),
                        lane: connection.lane().to_owned(),
                        operation: OPERATION,
                        source: Arc::new(source),
                    }
                })?;
            if !ready {
                return Ok(None);
            }
        }
    }

    /// Whether this rank should stop: the launcher requested it, or has disconnected. Never blocks.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        let mut reading = lock(&self.channel.reading);
        if !reading.stop && self.read(&mut reading).is_err() {
            reading.stop = true;
        }
        reading.stop
    }

    /// Reads and decodes the bytes that have arrived.
    fn read(&self, reading: &mut Reading) -> Result<()> {
        let connection = &self.channel.connection;
        let mut portion = [0; 4096];
        while !reading.stop {
            let received = connection.try_receive(&mut portion, OPERATION)?;
            if received == 0 {
                break;
            }
            reading.decoder.bytes.extend_from_slice(&portion[..received]);
            while let Some((kind, payload)) =
                reading.decoder.next(LONGEST_FRAME).map_err(|detail| CommunicationError::Protocol {
                    peer: connection.peer(),
                    lane: connection.lane().to_owned(),
                    detail,
                })?
            {
                match kind {
                    Kind::Message => reading.messages.push_back(payload),
                    _ => reading.stop = true,
                }
            }
        }
        Ok(())
    }

    /// Notifies the launcher, if it still runs, that this rank ends normally.
    ///
    /// # Errors
    /// Those of [`Control::send`], except for a launcher that has disconnected.
    pub fn leave(&self) -> Result<()> {
        match self.write(Kind::Leave, &[]) {
            Err(CommunicationError::PeerClosed { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Reports a connection attempt from outside the job to the launcher.
    pub(crate) fn tell_of_stranger(&self, tale: &str) {
        // If the launcher has disconnected, this rank ends for that reason.
        let _ = self.write(Kind::Stranger, tale.as_bytes());
    }

    fn write(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let _writing = lock(&self.channel.writing);
        send_all(&*self.channel.connection, &frame(kind, payload), OPERATION)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
