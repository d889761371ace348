//! Collectives of byte strings of variable length, for compressed gradients.

use crate::communicator::{Counters, Links};
use crate::connection::{Connection, Idle, next_room};
use crate::error::{CommunicationError, Result};
use crate::ring::PORTION;

pub(crate) const ALL_GATHER: &str = "all-gather";
pub(crate) const ALL_TO_ALL: &str = "all-to-all";

/// A header with the length precedes every part.
const HEADER: usize = size_of::<u64>();
/// Up to this many bytes of a part are written together with the header.
const JOINED: usize = 16 << 10;
/// The maximum length of a part; longer lengths are invalid.
const LONGEST: u64 = 1 << 36;

/// All-gather around the ring: each part follows its length, and is forwarded while it arrives.
pub(crate) fn all_gather(
    links: &Links,
    rank: usize,
    size: usize,
    own: &[u8],
    counters: &mut Counters,
) -> Result<Vec<Vec<u8>>> {
    let next = links.to((rank + 1) % size);
    let Some((next, previous)) = next.zip(links.from((rank + size - 1) % size)) else {
        return Ok(vec![own.to_vec()]);
    };
    // The member's own block, then those that arrive; all but the last are forwarded.
    let mut blocks = vec![Block::own(own)];
    blocks.resize_with(size, Block::awaited);
    let (mut outgoing, mut sent, mut incoming) = (0, 0, 1);
    let mut idle = Idle::default();
    while outgoing < size - 1 || incoming < size {
        let mut moved = 0;
        let mut stuck = false;
        if outgoing < size - 1 {
            let block = &blocks[outgoing];
            let bytes = &block.bytes[sent..block.known.min(sent + PORTION)];
            let taken = next.try_send(bytes, ALL_GATHER)?;
            counters.sent += (payload(sent + taken) - payload(sent)) as u64;
            stuck = taken == 0 && !bytes.is_empty();
            (moved, sent) = (moved + taken, sent + taken);
            if block.is_whole() && sent == block.known {
                (outgoing, sent) = (outgoing + 1, 0);
            }
        }
        if let Some(block) = blocks.get_mut(incoming) {
            moved += block.advance(previous, ALL_GATHER, counters)?;
            incoming += usize::from(block.is_whole());
        }
        if moved > 0 {
            idle = Idle::default();
        } else {
            let awaited = (incoming < size).then_some(previous);
            idle.wait(stuck.then_some(next), awaited, ALL_GATHER)?;
        }
    }
    let mut all = vec![Vec::new(); size];
    for (behind, block) in blocks.into_iter().enumerate() {
        all[(rank + size - behind) % size] = block.into_part();
    }
    Ok(all)
}

/// Sends `parts[i]` to member `i`, all at the same time.
pub(crate) fn all_to_all(
    links: &Links,
    rank: usize,
    parts: &[Vec<u8>],
    counters: &mut Counters,
) -> Result<Vec<Vec<u8>>> {
    let size = parts.len();
    // Each member starts with a different peer, so that no peer is the first of all.
    let others = (1..size).map(|ahead| (rank + ahead) % size);
    let mut outgoing: Vec<_> =
        others.clone().filter_map(|place| Some(Outgoing::new(links.to(place)?, &parts[place]))).collect();
    let mut incoming: Vec<_> =
        others.filter_map(|place| Some((place, links.from(place)?, Block::awaited()))).collect();
    let mut idle = Idle::default();
    loop {
        let mut moved = 0;
        let (mut sending, mut receiving): (Vec<&dyn Connection>, Vec<&dyn Connection>) = Default::default();
        for out in outgoing.iter_mut().filter(|out| !out.done()) {
            let sent = out.advance(counters)?;
            moved += sent;
            if sent == 0 {
                sending.push(out.link);
            }
        }
        for (_, link, block) in incoming.iter_mut().filter(|(.., block)| !block.is_whole()) {
            let received = block.advance(*link, ALL_TO_ALL, counters)?;
            moved += received;
            if received == 0 {
                receiving.push(*link);
            }
        }
        if moved > 0 {
            idle = Idle::default();
        } else if sending.is_empty() && receiving.is_empty() {
            break;
        } else {
            idle.wait_any(&sending, &receiving, ALL_TO_ALL)?;
        }
    }
    let mut all = vec![Vec::new(); size];
    all[rank].clone_from(&parts[rank]);
    for (place, _, block) in incoming {
        all[place] = block.into_part();
    }
    Ok(all)
}

/// A header and a part that are being sent.
struct Outgoing<'a> {
    link: &'a dyn Connection,
    /// The header and the beginning of the part.
    joined: Vec<u8>,
    part: &'a [u8],
    /// Bytes sent of the header and the part.
    sent: usize,
}

impl<'a> Outgoing<'a> {
    fn new(link: &'a dyn Connection, part: &'a [u8]) -> Self {
        let joined = [&(part.len() as u64).to_le_bytes(), &part[..part.len().min(JOINED)]].concat();
        Self { link, joined, part, sent: 0 }
    }

    fn done(&self) -> bool {
        self.sent == HEADER + self.part.len()
    }

    /// Sends as much as the connection accepts; returns the number of bytes.
    fn advance(&mut self, counters: &mut Counters) -> Result<usize> {
        let bytes = match self.joined.get(self.sent..) {
            Some(bytes) if !bytes.is_empty() => bytes,
            _ => &self.part[self.sent - HEADER..],
        };
        let sent = self.link.try_send(&bytes[..bytes.len().min(PORTION)], ALL_TO_ALL)?;
        counters.sent += (payload(self.sent + sent) - payload(self.sent)) as u64;
        self.sent += sent;
        Ok(sent)
    }
}

/// A header and a part, as far as they have arrived.
struct Block {
    /// The bytes received so far, and room for more.
    bytes: Vec<u8>,
    known: usize,
    /// Announced bytes of header and part.
    length: usize,
}

impl Block {
    fn own(part: &[u8]) -> Self {
        let bytes = [&(part.len() as u64).to_le_bytes(), part].concat();
        Self { known: bytes.len(), length: bytes.len(), bytes }
    }

    fn awaited() -> Self {
        Self { bytes: vec![0; HEADER], known: 0, length: HEADER }
    }

    fn is_whole(&self) -> bool {
        self.known >= HEADER && self.known == self.length
    }

    /// Reads the bytes that have arrived; returns their number.
    fn advance(
        &mut self,
        link: &dyn Connection,
        operation: &'static str,
        counters: &mut Counters,
    ) -> Result<usize> {
        let end = self.bytes.len().min(self.known + PORTION);
        let received = link.try_receive(&mut self.bytes[self.known..end], operation)?;
        counters.received += (payload(self.known + received) - payload(self.known)) as u64;
        self.known += received;
        if received > 0 && self.known == HEADER {
            self.length += announced(&self.bytes, link)?;
        }
        if self.known == self.bytes.len() && self.known < self.length {
            let room = next_room(self.known, self.length, 1);
            let too_long = |_| too_long((self.length - HEADER) as u64, link);
            self.bytes.try_reserve_exact(room - self.known).map_err(too_long)?;
            self.bytes.resize(room, 0);
        }
        Ok(received)
    }

    fn into_part(mut self) -> Vec<u8> {
        self.bytes.drain(..HEADER);
        self.bytes
    }
}

/// Bytes of the part before a position in a block.
fn payload(position: usize) -> usize {
    position.saturating_sub(HEADER)
}

/// The length in a header, which is checked: an announced length must not crash the process.
fn announced(header: &[u8], link: &dyn Connection) -> Result<usize> {
    let length = header.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    match usize::try_from(length) {
        Ok(whole) if length <= LONGEST => Ok(whole),
        _ => Err(too_long(length, link)),
    }
}

fn too_long(length: u64, link: &dyn Connection) -> CommunicationError {
    CommunicationError::Protocol {
        peer: link.peer(),
        lane: link.lane().to_owned(),
        detail: format!("{length} bytes announced"),
    }
}
