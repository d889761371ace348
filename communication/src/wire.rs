//! Frames: what handshakes and the control channel are made of. A frame is its length (u32, little-endian), its
//! kind (one byte) and that many bytes less one.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::connection::{Connection, receive_exact, send_all};
use crate::error::{CommunicationError, Result};

/// Raised when frames or streams change.
const VERSION: u32 = 2;
/// Before a peer has proved the token, it may not make us keep more than this.
pub(crate) const LONGEST_HELLO: usize = 64 << 10;
/// Length and kind.
const START: usize = 5;
/// The longest control message.
pub(crate) const LONGEST_FRAME: usize = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Who I am ([`Hello`]).
    Hello = 1,
    /// Why you cannot come in ([`Refusal`]).
    Refused,
    /// Where all ranks listen (`Vec<SocketAddr>`).
    Table,
    /// Anything, from a rank to its launcher or back.
    Message,
    /// Please stop, from the launcher to a rank.
    Stop,
    /// A rank has done its work.
    Leave,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Hello, Self::Refused, Self::Table, Self::Message, Self::Stop, Self::Leave]
            .into_iter()
            .find(|&kind| kind as u8 == byte)
    }
}

/// The first frame on every connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    version: u32,
    /// Values travel as they lie in memory.
    little_endian: bool,
    token: String,
    pub(crate) world: usize,
    pub(crate) rank: usize,
    pub(crate) purpose: Purpose,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To the rendezvous: the address at which the rank's peers find it.
    Join { listens: SocketAddr },
    /// To a peer: the lane that this connection will serve, and which of the lane's connections between the two
    /// it is.
    Lane { name: String, channel: usize },
}

/// Why a hello was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Token,
    Other(String),
}

impl Refusal {
    pub(crate) fn into_error(self, address: SocketAddr) -> CommunicationError {
        match self {
            Refusal::Token => CommunicationError::BadToken { address },
            Refusal::Other(reason) => CommunicationError::Refused { address, reason },
        }
    }
}

impl Hello {
    pub(crate) fn new(token: &str, world: usize, rank: usize, purpose: Purpose) -> Self {
        Self {
            version: VERSION,
            little_endian: cfg!(target_endian = "little"),
            token: token.to_owned(),
            world,
            rank,
            purpose,
        }
    }

    /// Whether this comes from a rank of the job that `token` names.
    pub(crate) fn check(&self, token: &str, world: usize) -> Result<(), Refusal> {
        if !same(self.token.as_bytes(), token.as_bytes()) {
            return Err(Refusal::Token);
        }
        let other = |reason| Err(Refusal::Other(reason));
        if self.version != VERSION {
            return other(format!("it speaks protocol version {VERSION}, this rank {}", self.version));
        }
        if self.little_endian != cfg!(target_endian = "little") {
            return other("its machine has another byte order".to_owned());
        }
        if self.world != world {
            return other(format!("its job has {world} ranks, this rank's has {}", self.world));
        }
        if self.rank >= world {
            return other(format!("there is no rank {} among {world}", self.rank));
        }
        Ok(())
    }
}

/// Compares in a time that depends on the lengths alone.
fn same(left: &[u8], right: &[u8]) -> bool {
    let difference = left.iter().zip(right).fold(0, |difference, (left, right)| difference | (left ^ right));
    left.len() == right.len() && std::hint::black_box(difference) == 0
}

/// A frame as bytes.
pub(crate) fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(START + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32 + 1).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame with a value as JSON.
pub(crate) fn frame_of<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    // Our own types have string keys and finite numbers only, so there is nothing that JSON cannot say.
    frame(kind, &serde_json::to_vec(value).unwrap_or_default())
}

pub(crate) fn send_frame(connection: &dyn Connection, frame: &[u8], operation: &'static str) -> Result<()> {
    send_all(connection, frame, operation)
}

/// Waits for one frame.
pub(crate) fn receive_frame(
    connection: &dyn Connection,
    longest: usize,
    operation: &'static str,
) -> Result<(Kind, Vec<u8>)> {
    let mut start = [0; START];
    receive_exact(connection, &mut start, operation)?;
    let (kind, length) = read_start(&start, longest).map_err(|detail| CommunicationError::Protocol {
        peer: connection.peer(),
        lane: connection.lane().to_owned(),
        detail,
    })?;
    let mut payload = vec![0; length];
    receive_exact(connection, &mut payload, operation)?;
    Ok((kind, payload))
}

/// Reads the payload of a frame that should hold JSON.
pub(crate) fn parse<'a, T: Deserialize<'a>>(connection: &dyn Connection, payload: &'a [u8]) -> Result<T> {
    serde_json::from_slice(payload).map_err(|error| CommunicationError::Protocol {
        peer: connection.peer(),
        lane: connection.lane().to_owned(),
        detail: format!("a handshake that cannot be read: {error}"),
    })
}

/// What the first bytes of a frame say: its kind and the length of its payload, or what is wrong with it.
fn read_start(start: &[u8; START], longest: usize) -> Result<(Kind, usize), String> {
    let [length @ .., kind] = *start;
    let length = u32::from_le_bytes(length) as usize;
    if length == 0 || length > longest {
        return Err(format!("a frame of {length} bytes"));
    }
    let kind = Kind::from_byte(kind).ok_or_else(|| format!("a frame of unknown kind {kind}"))?;
    Ok((kind, length - 1))
}

/// Finds frames in bytes that arrive in any portions.
#[derive(Default)]
pub(crate) struct Decoder {
    pub(crate) bytes: Vec<u8>,
}

impl Decoder {
    /// Takes the next frame out, if all of it is here; an error says what is wrong with it.
    pub(crate) fn next(&mut self, longest: usize) -> Result<Option<(Kind, Vec<u8>)>, String> {
        let Some(start) = self.bytes.first_chunk() else { return Ok(None) };
        let (kind, length) = read_start(start, longest)?;
        if self.bytes.len() < START + length {
            return Ok(None);
        }
        let payload = self.bytes[START..START + length].to_vec();
        self.bytes.drain(..START + length);
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let bytes =
            [frame(Kind::Message, b"one"), frame(Kind::Stop, b""), frame(Kind::Message, b"two")].concat();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.bytes.extend_from_slice(part);
                while let Some(frame) = decoder.next(100).unwrap() {
                    seen.push(frame);
                }
            }
            let expected =
                [(Kind::Message, b"one".to_vec()), (Kind::Stop, vec![]), (Kind::Message, b"two".to_vec())];
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut decoder = Decoder { bytes: b"GET / HTTP/1.1\r\n".to_vec() };
        assert!(decoder.next(LONGEST_HELLO).is_err());
        let mut decoder = Decoder { bytes: vec![1, 0, 0, 0, 99] };
        assert!(decoder.next(LONGEST_HELLO).is_err());
    }

    #[test]
    fn tokens_compare_whole() {
        assert!(same(b"", b"") && same(b"job", b"job"));
        assert!(!same(b"job", b"jo") && !same(b"job", b"jobs") && !same(b"job", b"jab"));
    }
}
