//! Collectives of bytes whose number the others do not know: what compressed gradients are.

use crate::communicator::{Counters, Links};
use crate::connection::{Connection, Idle, exchange};
use crate::error::{CommunicationError, Result};
use crate::ring::{PORTION, Pass};

pub(crate) const ALL_GATHER: &str = "all-gather";
pub(crate) const ALL_TO_ALL: &str = "all-to-all";

/// Every part is announced by its length.
const HEADER: usize = size_of::<u64>();
/// Up to this many bytes of a part travel in one write with the header.
const JOINED: usize = 16 << 10;
/// More bytes than any part has: a length beyond it is none.
const LONGEST: u64 = 1 << 36;

/// What every member has, around the ring.
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
    let mut lengths = vec![0; size];
    lengths[rank] = own.len();
    let mut header = (own.len() as u64).to_ne_bytes();
    for behind in 1..size {
        let outgoing = header;
        exchange(next, previous, &outgoing, &mut header, ALL_GATHER)?;
        lengths[(rank + size - behind) % size] = announced(header, previous)?;
    }
    let starts: Vec<usize> = lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end - length)
        })
        .collect();
    let range = |member: usize| starts[member]..starts[member] + lengths[member];
    let mut all = room(lengths.iter().sum(), previous)?;
    all[range(rank)].copy_from_slice(own);
    let pass = Pass::all_gather_of(size, rank, range);
    pass.run(next, previous, &mut all, |_, _| (), &mut Vec::new(), counters)?;
    Ok((0..size).map(|member| all[range(member)].to_vec()).collect())
}

/// `parts[i]` to member `i`, all at the same time.
pub(crate) fn all_to_all(
    links: &Links,
    rank: usize,
    parts: &[Vec<u8>],
    counters: &mut Counters,
) -> Result<Vec<Vec<u8>>> {
    let size = parts.len();
    // Each begins with another one, so that nobody is everybody's first.
    let others = (1..size).map(|ahead| (rank + ahead) % size);
    let mut outgoing: Vec<_> =
        others.clone().filter_map(|place| Some(Outgoing::new(links.to(place)?, &parts[place]))).collect();
    let mut incoming: Vec<_> =
        others.filter_map(|place| Some(Incoming::new(place, links.from(place)?))).collect();
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
        for into in incoming.iter_mut().filter(|into| !into.done()) {
            let received = into.advance(counters)?;
            moved += received;
            if received == 0 {
                receiving.push(into.link);
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
    for into in incoming {
        all[into.place] = into.part;
    }
    Ok(all)
}

/// A header and a part on their way.
struct Outgoing<'a> {
    link: &'a dyn Connection,
    /// The header and the beginning of the part.
    joined: Vec<u8>,
    part: &'a [u8],
    /// Of the header and the part.
    sent: usize,
}

impl<'a> Outgoing<'a> {
    fn new(link: &'a dyn Connection, part: &'a [u8]) -> Self {
        let joined = [&(part.len() as u64).to_ne_bytes(), &part[..part.len().min(JOINED)]].concat();
        Self { link, joined, part, sent: 0 }
    }

    fn done(&self) -> bool {
        self.sent == HEADER + self.part.len()
    }

    /// Sends what the connection takes; says how much.
    fn advance(&mut self, counters: &mut Counters) -> Result<usize> {
        let bytes = match self.joined.get(self.sent..) {
            Some(bytes) if !bytes.is_empty() => bytes,
            _ => &self.part[self.sent - HEADER..],
        };
        let sent = self.link.try_send(&bytes[..bytes.len().min(PORTION)], ALL_TO_ALL)?;
        let payload = |position: usize| position.saturating_sub(HEADER);
        counters.sent += (payload(self.sent + sent) - payload(self.sent)) as u64;
        self.sent += sent;
        Ok(sent)
    }
}

/// A header and a part that arrive.
struct Incoming<'a> {
    place: usize,
    link: &'a dyn Connection,
    header: [u8; HEADER],
    /// Of the header and the part.
    received: usize,
    /// As long as announced, once it is.
    part: Vec<u8>,
}

impl<'a> Incoming<'a> {
    fn new(place: usize, link: &'a dyn Connection) -> Self {
        Self { place, link, header: [0; HEADER], received: 0, part: Vec::new() }
    }

    fn done(&self) -> bool {
        self.received >= HEADER && self.received == HEADER + self.part.len()
    }

    /// Takes what has arrived; says how much.
    fn advance(&mut self, counters: &mut Counters) -> Result<usize> {
        if let Some(behind) = self.received.checked_sub(HEADER) {
            let end = self.part.len().min(behind + PORTION);
            let received = self.link.try_receive(&mut self.part[behind..end], ALL_TO_ALL)?;
            self.received += received;
            counters.received += received as u64;
            return Ok(received);
        }
        let received = self.link.try_receive(&mut self.header[self.received..], ALL_TO_ALL)?;
        self.received += received;
        if self.received == HEADER {
            self.part = room(announced(self.header, self.link)?, self.link)?;
        }
        Ok(received)
    }
}

fn announced(header: [u8; HEADER], link: &dyn Connection) -> Result<usize> {
    let length = u64::from_ne_bytes(header);
    match usize::try_from(length) {
        Ok(whole) if length <= LONGEST => Ok(whole),
        _ => Err(too_long(length, link)),
    }
}

/// As many zeros; no length that a peer announces may end the process.
fn room(length: usize, link: &dyn Connection) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| too_long(length as u64, link))?;
    bytes.resize(length, 0);
    Ok(bytes)
}

fn too_long(length: u64, link: &dyn Connection) -> CommunicationError {
    CommunicationError::Protocol {
        peer: link.peer(),
        lane: link.lane().to_owned(),
        detail: format!("{length} bytes announced"),
    }
}
