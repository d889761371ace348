//! Frames, the unit of handshakes and of the control channel. A frame is its length (u32, little-endian), its
//! kind (one byte) and that many bytes less one.
//!
//! | a connection begins with | from | payload |
//! |---|---|---|
//! | [`Kind::Greeting`] | dialling side | [`Greeting`]: version of the protocol, byte order, nonce |
//! | [`Kind::Challenge`] | listening side | its nonce, its proof of the token |
//! | [`Kind::Hello`] | dialling side | its proof of the token, and the data it covers: [`Hello`] as JSON |
//! | [`Kind::Welcome`] | listening side | |
//!
//! [`Kind::Refused`] may replace the expected frame. Before the token is proved, frames reveal nothing about
//! the job and are no longer than [`LONGEST_HELLO`].

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use strum::FromRepr;

use crate::connection::{Connection, receive_by};
use crate::error::{CommunicationError, Result};
use crate::secret::{LENGTH, Nonce, Proof, Role, Secret};

/// Version of the protocol, increased when frames or streams change.
const VERSION: u32 = 3;
/// Maximum length of a frame before a peer has proved the token.
pub(crate) const LONGEST_HELLO: usize = 16 << 10;
/// Bytes of a frame to read at once.
const PORTION: usize = 64 << 10;
/// Bytes of length and kind.
const START: usize = 5;
/// The maximum length of a control message.
pub(crate) const LONGEST_FRAME: usize = 64 << 20;
/// The maximum length of a report about a rejected connection.
pub(crate) const LONGEST_TALE: usize = 1 << 10;
/// Bytes that a listener sends before the caller has proved the token.
pub(crate) const BEFORE_PROOF: usize = START + 2 * LENGTH;

#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRepr)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The first frame, from the dialling side.
    Greeting = 16,
    /// Nonce and proof of the listening side.
    Challenge,
    /// Proof and identity of the dialling side.
    Hello,
    /// The connection is admitted.
    Welcome,
    /// The connection is rejected, with the reason ([`Refusal`]).
    Refused,
    /// The addresses of all ranks (`Vec<SocketAddr>`), once all have joined; empty if ranks do not listen.
    Table,
    /// A message between a rank and its launcher, in either direction.
    Message,
    /// A stop request from the launcher to a rank.
    Stop,
    /// A rank has done its work.
    Leave,
    /// A rank's heartbeat.
    Alive,
    /// From a rank to its launcher: a report about a rejected connection at the rank's listener.
    Stranger,
}

/// The first frame on every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Greeting {
    version: u32,
    /// Values are sent as stored in memory.
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

    /// Checks that both sides have the same protocol and byte order.
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

/// Nonce and proof of a challenge; `None` if it is malformed.
pub(crate) fn parse_challenge(payload: &[u8]) -> Option<(Nonce, Proof)> {
    let (nonce, proof) = payload.split_first_chunk()?;
    Some((*nonce, proof.try_into().ok()?))
}

/// The identity of the dialling side, covered by its proof.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) world: usize,
    pub(crate) rank: usize,
    pub(crate) purpose: Purpose,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To the rendezvous: the address at which peers reach the rank, if they should.
    Join { listens: Option<SocketAddr> },
    /// To a peer: the lane of this connection, and its index among the lane's connections between the two
    /// ranks.
    Lane { name: String, channel: usize },
}

/// The reason why a connection was rejected.
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
    /// Encodes the hello as a frame, with the proof of the token.
    pub(crate) fn frame(&self, secret: &Secret, role: Role, own: &Nonce, called: &Nonce) -> Vec<u8> {
        // Our own types have string keys and finite numbers only, so JSON can express all of their values.
        let says = serde_json::to_vec(self).unwrap_or_default();
        frame(Kind::Hello, &[&secret.answer(role, own, called, &says)[..], &says].concat())
    }

    /// Parses and authenticates a hello; returns an error if it is malformed or its proof is invalid.
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

    /// Checks that a job of `world` ranks has this rank.
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

/// A frame without a payload, without an allocation.
pub(crate) const fn empty_frame(kind: Kind) -> [u8; START] {
    [1, 0, 0, 0, kind as u8]
}

/// A frame with a value as JSON.
pub(crate) fn frame_of<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    // Our own types have string keys and finite numbers only, so JSON can express all of their values.
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
        // The buffer grows with the received bytes, not with the announced length.
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

/// Parses the start of a frame: its kind and the length of its payload, or an error.
fn read_start(start: &[u8; START], longest: usize) -> Result<(Kind, usize), String> {
    let [length @ .., kind] = *start;
    let length = u32::from_le_bytes(length) as usize;
    if length == 0 || length > longest {
        return Err(format!("a frame of {length} bytes"));
    }
    let kind = Kind::from_repr(kind).ok_or_else(|| format!("a frame of unknown kind {kind}"))?;
    Ok((kind, length - 1))
}

/// Decodes frames from a stream that arrives in portions of any size.
#[derive(Default)]
pub(crate) struct Decoder {
    pub(crate) bytes: Vec<u8>,
}

impl Decoder {
    /// Returns the next frame if it is complete; an error describes a malformed one.
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
