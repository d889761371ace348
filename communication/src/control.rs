//! The control channel: what a rank and its launcher say to each other outside training.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connection::Connection;
use crate::error::{CommunicationError, Result};
use crate::wire::{Decoder, Kind, LONGEST_FRAME, frame, send_frame};

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
    stop: bool,
}

/// What the launcher learns about its ranks, in the order in which it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// The rank has proved the token.
    Joined(usize),
    /// The rank said this.
    Message(usize, Vec<u8>),
    /// The rank ended as it should.
    Left(usize),
    /// The rank's connection broke: its process ended without [`crate::Endpoint::close`].
    Lost(usize),
}

impl Control {
    /// The channel over a connection whose other end is a supervisor that knows this rank.
    pub(crate) fn new(connection: Arc<dyn Connection>) -> Self {
        Self {
            channel: Arc::new(Channel { connection, writing: Mutex::default(), reading: Mutex::default() }),
        }
    }

    /// Sends a message to the launcher; it gets it whole and in order. At most 64 MiB.
    ///
    /// # Errors
    /// [`CommunicationError::PeerClosed`] if the launcher is gone.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        if message.len() >= LONGEST_FRAME {
            return Err(CommunicationError::Protocol {
                peer: self.channel.connection.peer(),
                lane: self.channel.connection.lane().to_owned(),
                detail: format!("a control message of {} bytes, the limit is {LONGEST_FRAME}", message.len()),
            });
        }
        self.write(Kind::Message, message)
    }

    /// Whether this rank should stop: the launcher said so, or the launcher is gone. Never waits.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        let mut reading = lock(&self.channel.reading);
        let mut portion = [0; 256];
        while !reading.stop {
            match self.channel.connection.try_receive(&mut portion, "control") {
                Ok(0) => break,
                Ok(received) => reading.decoder.bytes.extend_from_slice(&portion[..received]),
                Err(_) => reading.stop = true,
            }
            match reading.decoder.next(LONGEST_FRAME) {
                Ok(None) => (),
                Ok(Some(_)) | Err(_) => reading.stop = true,
            }
        }
        reading.stop
    }

    /// Says goodbye.
    pub(crate) fn leave(&self) -> Result<()> {
        self.write(Kind::Leave, &[])
    }

    fn write(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let _writing = lock(&self.channel.writing);
        send_frame(&*self.channel.connection, &frame(kind, payload), "control")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
