//! Frames: what handshakes and the control channel are made of. A frame is its length (u32, little-endian), its
//! kind (one byte) and that many bytes less one.
//!
//! | a connection begins with | from | payload |
//! |---|---|---|
//! | [`Kind::Greeting`] | who dials | [`Greeting`]: version of the protocol, byte order, nonce |
//! | [`Kind::Challenge`] | who listens | its nonce, its proof of the token |
//! | [`Kind::Hello`] | who dials | its proof of the token, and what that covers: [`Hello`] as JSON |
//! | [`Kind::Welcome`] | who listens | |
//!
//! In the place of what is due there may be [`Kind::Refused`]. Before the token is proved nothing is said that tells
//! anything of the job, and no frame is longer than [`LONGEST_HELLO`].

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::connection::{Connection, receive_by};
use crate::error::{CommunicationError, Result};
use crate::secret::{LENGTH, Nonce, Proof, Role, Secret};

/// Raised when frames or streams change.
const VERSION: u32 = 3;
/// Before a peer has proved the token, it may not make us keep more than this.
pub(crate) const LONGEST_HELLO: usize = 16 << 10;
/// Bytes of a frame that are read at once.
const PORTION: usize = 64 << 10;
/// Length and kind.
const START: usize = 5;
/// The longest control message.
pub(crate) const LONGEST_FRAME: usize = 64 << 20;
/// The longest sentence about a stranger.
pub(crate) const LONGEST_TALE: usize = 1 << 10;
/// Bytes that a listener sends before its caller has proved the token.
pub(crate) const BEFORE_PROOF: usize = START + 2 * LENGTH;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The first of all, from who dials.
    Greeting = 16,
    /// From who listens: I know the token; do you?
    Challenge,
    /// I know it too, and this is who I am.
    Hello,
    /// You are in.
    Welcome,
    /// Why you cannot come in ([`Refusal`]).
    Refused,
    /// Where all ranks listen (`Vec<SocketAddr>`), once all are there; empty where they do not.
    Table,
    /// Anything, from a rank to its launcher or back.
    Message,
    /// Please stop, from the launcher to a rank.
    Stop,
    /// A rank has done its work.
    Leave,
    /// A rank's sign of life.
    Alive,
    /// From a rank to its launcher: what somebody who is none of the job has done at the rank's listener.
    Stranger,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Greeting,
        Self::Challenge,
        Self::Hello,
        Self::Welcome,
        Self::Refused,
        Self::Table,
        Self::Message,
        Self::Stop,
        Self::Leave,
        Self::Alive,
        Self::Stranger,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// The first frame on every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Greeting {
    version: u32,
    /// Values travel as they lie in memory.
    little_endian: bool,
    pub(crate) nonce: Nonce,
}

impl Greeting {
    pub(crate) fn new(nonce: Nonce) -> Self {
        Self { version: VERSION, little_endian: cfg!(target_endian = "little"), nonce }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let parts = [&self.version.to_le_bytes()[..], &[u8::from(self.little_endian)], &self.nonce];
        frame(Kind::Greeting, &parts.concat())
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (version, rest) = payload.split_first_chunk()?;
        let (little_endian, nonce) = rest.split_first()?;
        let version = u32::from_le_bytes(*version);
        Some(Self { version, little_endian: *little_endian == 1, nonce: nonce.try_into().ok()? })
    }

    /// Whether the two can understand each other.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let other = |reason| Err(Refusal(reason));
        if self.version != VERSION {
            return other(format!("it speaks protocol version {VERSION}, this process {}", self.version));
        }
        if self.little_endian != cfg!(target_endian = "little") {
            return other("its machine has another byte order".to_owned());
        }
        Ok(())
    }
}

/// The answer to a greeting, as a frame.
pub(crate) fn challenge(secret: &Secret, role: Role, caller: &Nonce, own: &Nonce) -> Vec<u8> {
    frame(Kind::Challenge, &[&own[..], &secret.challenge(role, caller, own)].concat())
}

/// Nonce and proof of a challenge; `None` if it is none.
pub(crate) fn parse_challenge(payload: &[u8]) -> Option<(Nonce, Proof)> {
    let (nonce, proof) = payload.split_first_chunk()?;
    Some((*nonce, proof.try_into().ok()?))
}

/// Who somebody is, once both have proved the token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) world: usize,
    pub(crate) rank: usize,
    pub(crate) purpose: Purpose,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To the rendezvous: the address at which the rank's peers find it, if they are to.
    Join { listens: Option<SocketAddr> },
    /// To a peer: the lane that this connection will serve, and which of the lane's connections between the two
    /// it is.
    Lane { name: String, channel: usize },
}

/// Why somebody was not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal(pub(crate) String);

impl Refusal {
    /// The refusal of an unauthenticated peer, shortened and with control characters escaped.
    pub(crate) fn made_harmless(self) -> Self {
        Self(autodist_spec::text::shown(&self.0, 200))
    }

    pub(crate) fn into_error(self, address: SocketAddr) -> CommunicationError {
        CommunicationError::Refused { address, reason: self.0 }
    }
}

impl Hello {
    /// As a frame, with the proof of the token.
    pub(crate) fn frame(&self, secret: &Secret, role: Role, own: &Nonce, called: &Nonce) -> Vec<u8> {
        // Our own types have string keys and finite numbers only, so there is nothing that JSON cannot say.
        let says = serde_json::to_vec(self).unwrap_or_default();
        frame(Kind::Hello, &[&secret.answer(role, own, called, &says)[..], &says].concat())
    }

    /// What was said, if whoever said it knows the token; else what is wrong.
    pub(crate) fn parse(
        payload: &[u8],
        secret: &Secret,
        role: Role,
        caller: &Nonce,
        own: &Nonce,
    ) -> Result<Self, &'static str> {
        let (proof, says) = payload.split_first_chunk::<LENGTH>().ok_or("sent an invalid handshake")?;
        if !secret.holds_answer(role, caller, own, says, proof) {
            return Err("does not know the job's token");
        }
        serde_json::from_slice(says).map_err(|_| "knows the token, but sent an unreadable handshake")
    }

    /// Whether a job of so many ranks has such a rank.
    pub(crate) fn check(&self, world: usize) -> Result<(), Refusal> {
        if self.world != world {
            return Err(Refusal(format!("its job has {world} ranks, this rank's has {}", self.world)));
        }
        if self.rank >= world {
            return Err(Refusal(format!("rank {} does not exist in a job of {world}", self.rank)));
        }
        Ok(())
    }
}

/// A frame as bytes.
pub(crate) fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(START + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32 + 1).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame without a payload, for which no memory is taken.
pub(crate) const fn empty_frame(kind: Kind) -> [u8; START] {
    [1, 0, 0, 0, kind as u8]
}

/// A frame with a value as JSON.
pub(crate) fn frame_of<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    // Our own types have string keys and finite numbers only, so there is nothing that JSON cannot say.
    frame(kind, &serde_json::to_vec(value).unwrap_or_default())
}

/// Waits for one frame until `deadline`.
pub(crate) fn receive_frame(
    connection: &dyn Connection,
    longest: usize,
    deadline: Instant,
    operation: &'static str,
) -> Result<(Kind, Vec<u8>)> {
    let mut start = [0; START];
    receive_by(connection, &mut start, deadline, operation)?;
    let (kind, length) = read_start(&start, longest).map_err(|detail| CommunicationError::Protocol {
        peer: connection.peer(),
        lane: connection.lane().to_owned(),
        detail,
    })?;
    let mut payload = Vec::new();
    while payload.len() < length {
        // No announced length makes us keep more than has come.
        let known = payload.len();
        payload.resize(length.min(known + PORTION), 0);
        receive_by(connection, &mut payload[known..], deadline, operation)?;
    }
    Ok((kind, payload))
}

/// Reads the payload of a frame that should hold JSON.
pub(crate) fn parse<'a, T: Deserialize<'a>>(connection: &dyn Connection, payload: &'a [u8]) -> Result<T> {
    serde_json::from_slice(payload).map_err(|error| CommunicationError::Protocol {
        peer: connection.peer(),
        lane: connection.lane().to_owned(),
        detail: format!("an unreadable handshake: {error}"),
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
}
