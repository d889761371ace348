//! The job's token: both sides of a connection prove it before they exchange anything else; it is never sent.
//!
//! The dialling side sends a nonce; the listening side answers with its own nonce and an HMAC-SHA256 (RFC
//! 2104) over both, keyed by the token; then the dialling side proves the token in the same way, over its
//! hello as well. Both nonces are new for each connection, so old proofs cannot be replayed; a proof covers
//! its direction and the role of the listening side, so it cannot be reflected or used elsewhere.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use std::io;

/// Bytes of a nonce, and of a proof.
pub(crate) const LENGTH: usize = 32;

/// Unpredictable bytes, used once.
pub(crate) type Nonce = [u8; LENGTH];
pub(crate) type Proof = [u8; LENGTH];

/// Random bytes of the system.
pub(crate) fn nonce() -> io::Result<Nonce> {
    let mut bytes = [0; LENGTH];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// An unpredictable token, as 64 hexadecimal digits.
///
/// # Errors
/// The system cannot provide random bytes.
pub fn random_token() -> io::Result<String> {
    nonce().map(|bytes| hexadecimal(&bytes))
}

/// A token derived from `token` and `label`, which reveals neither and cannot be computed from the label
/// alone.
#[must_use]
pub fn derived_token(token: &str, label: &str) -> String {
    hexadecimal(&Secret::new(token).prove(&[b"derived token", label.as_bytes()]))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The listening side. A proof for one role is not valid for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The launcher's rendezvous.
    Rendezvous,
    /// A rank's own listener.
    Rank(usize),
}

impl Role {
    fn bytes(self) -> [u8; 9] {
        let (kind, rank) = match self {
            Self::Rendezvous => (0, 0),
            Self::Rank(rank) => (1, rank as u64),
        };
        let mut bytes = [kind; 9];
        bytes[1..].copy_from_slice(&rank.to_le_bytes());
        bytes
    }
}

/// A token as a key.
#[derive(Clone)]
pub(crate) struct Secret(Hmac<Sha256>);

impl Secret {
    pub fn new(token: &str) -> Self {
        // A key of one block, which HMAC uses unchanged: the token's digest, padded.
        let mut key = [0_u8; 64];
        key[..LENGTH].copy_from_slice(&<Sha256 as sha2::Digest>::digest(token.as_bytes()));
        Self(<Hmac<Sha256> as Mac>::new(&key.into()))
    }

    /// The proof of the listening side `role` to the caller that sent the nonce `caller`.
    pub fn challenge(&self, role: Role, caller: &Nonce, own: &Nonce) -> Proof {
        self.prove(&[b"called", &role.bytes(), caller, own])
    }

    /// The proof of the caller, which covers `says`.
    pub fn answer(&self, role: Role, own: &Nonce, called: &Nonce, says: &[u8]) -> Proof {
        self.prove(&[b"caller", &role.bytes(), own, called, says])
    }

    /// Checks that the listening side `role` has the token.
    pub fn holds_challenge(&self, role: Role, own: &Nonce, called: &Nonce, proof: &[u8]) -> bool {
        self.holds(&[b"called", &role.bytes(), own, called], proof)
    }

    /// Checks that the caller has the token and sent exactly these bytes.
    pub fn holds_answer(&self, role: Role, caller: &Nonce, own: &Nonce, says: &[u8], proof: &[u8]) -> bool {
        self.holds(&[b"caller", &role.bytes(), caller, own, says], proof)
    }

    fn prove(&self, parts: &[&[u8]]) -> Proof {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    fn holds(&self, parts: &[&[u8]], proof: &[u8]) -> bool {
        self.over(parts).verify_slice(proof).is_ok()
    }

    /// The length precedes every part, so that different lists have different bytes.
    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_token_role_nonces_and_words_alone() {
        let secret = Secret::new("secret");
        let (caller, called) = ([1; LENGTH], [2; LENGTH]);
        let role = Role::Rank(3);
        let proof = secret.answer(role, &caller, &called, b"hello");
        let holds = |secret: &Secret, role, caller, called, says: &[u8], proof: &[u8]| {
            secret.holds_answer(role, caller, called, says, proof)
        };
        assert!(holds(&secret, role, &caller, &called, b"hello", &proof));
        for token in ["", "secre", "secret ", "Secret", "secret\0"] {
            assert!(!holds(&Secret::new(token), role, &caller, &called, b"hello", &proof), "{token:?}");
        }
        assert!(!holds(&secret, Role::Rank(4), &caller, &called, b"hello", &proof));
        assert!(!holds(&secret, Role::Rendezvous, &caller, &called, b"hello", &proof));
        assert!(!holds(&secret, role, &called, &caller, b"hello", &proof));
        assert!(!holds(&secret, role, &caller, &caller, b"hello", &proof));
        assert!(!holds(&secret, role, &caller, &called, b"hell", &proof));
        assert!(!holds(&secret, role, &caller, &called, b"hello", &proof[..31]));
        assert!(!holds(&secret, role, &caller, &called, b"hello", b""));
        // The proof of the listening side is not valid as that of a caller with any data.
        let challenge = secret.challenge(role, &caller, &called);
        assert!(secret.holds_challenge(role, &caller, &called, &challenge));
        assert!(!holds(&secret, role, &caller, &called, b"", &challenge));
        assert!(!secret.holds_challenge(role, &caller, &called, &secret.answer(role, &caller, &called, b"")));
    }

    #[test]
    fn tokens_are_never_the_same_twice_and_long_ones_count_whole() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
        assert_eq!(random_token().unwrap().len(), 64);
        let long = "x".repeat(100);
        assert_ne!(derived_token(&long, "1"), derived_token(&long[..99], "1"));
        assert_ne!(derived_token("a", "1"), derived_token("a", "2"));
        assert_eq!(derived_token("a", "1"), derived_token("a", "1"));
    }
}
