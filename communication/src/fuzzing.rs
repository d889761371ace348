//! The fuzz target of the wire protocol (`scripts/fuzz.sh`).

use crate::secret::{LENGTH, Role, Secret};
use crate::wire::{Decoder, Greeting, Hello, Kind, LONGEST_HELLO, Refusal, parse_challenge};

/// Handles bytes from an unauthenticated connection, in portions whose size is set by the first byte, and
/// parses each frame as every kind. No input must pass the authentication.
///
/// # Panics
/// If more is buffered than was received, or a proof is accepted.
pub fn hear(bytes: &[u8]) {
    let Some((portion, said)) = bytes.split_first() else { return };
    let secret = Secret::new("a token that nobody knows");
    let mut decoder = Decoder::default();
    for portion in said.chunks(usize::from(*portion).max(1)) {
        decoder.bytes.extend_from_slice(portion);
        loop {
            match decoder.next(LONGEST_HELLO) {
                Ok(Some((kind, payload))) => {
                    assert!(payload.len() <= said.len());
                    read(kind, &payload, &secret);
                }
                Ok(None) => break,
                // The connection ends.
                Err(reason) => return assert!(!reason.is_empty()),
            }
        }
        assert!(decoder.bytes.len() <= said.len());
    }
}

fn read(kind: Kind, payload: &[u8], secret: &Secret) {
    match kind {
        Kind::Greeting => {
            Greeting::parse(payload).map(|greeting| greeting.check());
        }
        Kind::Challenge => {
            parse_challenge(payload);
        }
        Kind::Hello => {
            let nonce = [0; LENGTH];
            assert!(Hello::parse(payload, secret, Role::Rendezvous, &nonce, &nonce).is_err());
        }
        Kind::Refused => {
            if let Ok(refusal) = serde_json::from_slice::<Refusal>(payload) {
                let harmless = refusal.made_harmless().0;
                assert!(!harmless.chars().any(char::is_control), "{harmless:?}");
            }
        }
        Kind::Table => {
            // The frame holds addresses, or the connection ends.
            serde_json::from_slice::<Vec<std::net::SocketAddr>>(payload).ok();
        }
        _ => {}
    }
}
