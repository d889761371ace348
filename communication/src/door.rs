//! A listener that authenticates connections: it holds those that have not proved the job's token yet.
//!
//! Any process that can reach the port can connect, so unauthenticated connections ("guests") must not end or
//! delay the job: they are served concurrently, each has one deadline for its whole handshake, their number
//! is limited, the oldest is dropped first, and the rate of accepts is limited.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use rustix::process::{Resource, getrlimit};

use crate::connection::{Connection, SocketConnection};
use crate::error::Peer;
use crate::keep_alive::keep_alive;
use crate::poll;
use crate::secret::{Nonce, Role, Secret, nonce};
use crate::wire::{Decoder, Greeting, Hello, Kind, LONGEST_HELLO, Refusal, challenge, frame, frame_of};

const OPERATION: &str = "handshake";
/// Time limit of a handshake; slower guests are dropped.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Maximum number of guests, also limited to a part of the process's descriptor limit, but with a minimum.
const MOST_GUESTS: usize = 64;
const PART_OF_DESCRIPTORS: u64 = 8;
const FEWEST_GUESTS: usize = 4;
/// Maximum number of accepts per interval: repeated connects cannot keep the thread busy, and each guest has
/// at least one interval to prove the token.
const AT_ONCE: usize = 32;
const REST: Duration = Duration::from_millis(50);
/// Number of rejected connections that are reported one by one; then one message reports that there are more.
const MOST_TOLD: usize = 3;

/// A listener and its guests.
pub(crate) struct Door {
    listener: TcpListener,
    secret: Secret,
    role: Role,
    /// In order of arrival.
    guests: VecDeque<Guest>,
    most_guests: usize,
    /// No connection is accepted before.
    rests_until: Option<Instant>,
    /// The start of the current interval, and the number of accepts in it.
    moment: Instant,
    came_in: usize,
    told: usize,
    untold: Vec<String>,
}

/// A connection that has proved the token.
pub(crate) struct Arrival {
    pub(crate) hello: Hello,
    pub(crate) connection: SocketConnection,
}

impl Arrival {
    /// Admits the connection: the dialling side waits for this frame.
    pub(crate) fn welcome(self) -> SocketConnection {
        // So short a frame always fits an empty socket buffer; if the peer has disconnected, the next use
        // fails.
        let _ = self.connection.try_send(&frame(Kind::Welcome, &[]), OPERATION);
        self.connection
    }

    pub(crate) fn refuse(self, refusal: &Refusal) {
        let _ = self.connection.try_send(&frame_of(Kind::Refused, refusal), OPERATION);
    }
}

struct Guest {
    address: SocketAddr,
    connection: SocketConnection,
    since: Instant,
    decoder: Decoder,
    /// Nonces of the caller and of this process, after the greeting.
    nonces: Option<(Nonce, Nonce)>,
}

/// The state of a guest's handshake.
enum Outcome {
    Waits,
    Proved(Hello),
    /// The guest was rejected with a reason.
    Refused,
    /// The guest failed to prove the token; describes its actual behaviour.
    Stranger(String),
}

impl Door {
    pub(crate) fn new(listener: TcpListener, token: &str, role: Role) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            secret: Secret::new(token),
            role,
            guests: VecDeque::new(),
            most_guests: most_guests(),
            rests_until: None,
            moment: Instant::now(),
            came_in: 0,
            told: 0,
            untold: Vec::new(),
        })
    }

    /// Adds the descriptors that [`Door::tend`] waits for.
    pub(crate) fn watch<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) {
        descriptors
            .extend(self.guests.iter().map(|guest| poll::interest(guest.connection.socket(), true, false)));
        if self.rests_until.is_none() {
            descriptors.push(poll::interest(self.listener.as_fd(), true, false));
        }
    }

    /// The time until [`Door::tend`] must be called even if no descriptor is ready.
    pub(crate) fn due(&self) -> Option<Duration> {
        let oldest = self.guests.front().map(|guest| guest.since + HELLO_WITHIN);
        let next = [oldest, self.rests_until].into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Reads from guests and accepts new ones; `ready` tells which descriptors of [`Door::watch`] are
    /// ready. Returns the connections that have proved the token. Never blocks.
    pub(crate) fn tend(&mut self, ready: &[bool]) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let guests = std::mem::take(&mut self.guests);
        for (index, mut guest) in guests.into_iter().enumerate() {
            let outcome = match ready.get(index) {
                Some(true) => guest.hear(&self.secret, self.role),
                _ => Outcome::Waits,
            };
            match outcome {
                Outcome::Waits if guest.since.elapsed() < HELLO_WITHIN => self.guests.push_back(guest),
                Outcome::Waits => {
                    let what = format!(
                        "has not authenticated (no proof of the job's token) within {} s",
                        HELLO_WITHIN.as_secs()
                    );
                    self.tell(guest.address, &what);
                }
                Outcome::Proved(hello) => arrivals.push(Arrival { hello, connection: guest.connection }),
                Outcome::Refused => {}
                Outcome::Stranger(what) => self.tell(guest.address, &what),
            }
        }
        self.admit();
        arrivals
    }

    /// Rejected connections since the last call, one sentence each.
    pub(crate) fn strangers(&mut self) -> Vec<String> {
        std::mem::take(&mut self.untold)
    }

    fn admit(&mut self) {
        let now = Instant::now();
        if self.rests_until.is_some_and(|until| now < until) {
            return;
        }
        self.rests_until = None;
        if now.saturating_duration_since(self.moment) >= REST {
            (self.moment, self.came_in) = (now, 0);
        }
        while self.came_in < AT_ONCE {
            self.came_in += 1;
            match self.listener.accept() {
                Ok((socket, address)) => self.seat(socket, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.came_in -= 1;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // Usually no descriptor is left, and the listener stays ready: polling again at once
                    // would spin.
                    self.drop_oldest("had not proved the job's token when the file descriptors ran out");
                    self.rests_until = Some(now + REST);
                    return;
                }
            }
        }
        self.rests_until = Some(self.moment + REST);
    }

    fn seat(&mut self, socket: TcpStream, address: SocketAddr) {
        let connection = keep_alive(&socket).and_then(|()| {
            SocketConnection::tcp(socket, Peer::Unidentified(address), OPERATION, HELLO_WITHIN)
        });
        // The connection may be closed already.
        let Ok(connection) = connection else { return };
        let (since, decoder) = (Instant::now(), Decoder::default());
        self.guests.push_back(Guest { address, connection, since, decoder, nonces: None });
        if self.guests.len() > self.most_guests {
            self.drop_oldest("was the oldest of too many that had not proved the job's token");
        }
    }

    fn drop_oldest(&mut self, why: &str) {
        if let Some(guest) = self.guests.pop_front() {
            self.tell(guest.address, why);
        }
    }

    fn tell(&mut self, address: SocketAddr, what: &str) {
        self.told = self.told.saturating_add(1);
        if self.told <= MOST_TOLD {
            let at = self.listener.local_addr().map_or_else(|_| String::new(), |at| format!(" to {at}"));
            self.untold.push(format!("{address}, which connected{at}, {what}: the connection was closed"));
        } else if self.told == MOST_TOLD + 1 {
            self.untold.push("further unauthenticated connections are not reported".to_owned());
        }
    }
}

impl Guest {
    /// Reads and handles the frames received so far.
    fn hear(&mut self, secret: &Secret, role: Role) -> Outcome {
        let mut portion = [0; 4096];
        loop {
            match self.connection.try_receive(&mut portion, OPERATION) {
                Ok(0) => return Outcome::Waits,
                Ok(received) => self.decoder.bytes.extend_from_slice(&portion[..received]),
                Err(_) => return Outcome::Stranger("left without proving the job's token".to_owned()),
            }
            // Reads no further than the expected frame, because a caller waits for an answer to each.
            match self.decoder.next(LONGEST_HELLO) {
                Ok(None) => {}
                Ok(Some((kind, payload))) => match self.answer(kind, &payload, secret, role) {
                    Outcome::Waits => {}
                    outcome => return outcome,
                },
                Err(detail) => return Outcome::Stranger(format!("sent {detail}, which is not a handshake")),
            }
        }
    }

    fn answer(&mut self, kind: Kind, payload: &[u8], secret: &Secret, role: Role) -> Outcome {
        let stranger = |what: &str| Outcome::Stranger(what.to_owned());
        if !self.decoder.bytes.is_empty() {
            return stranger("continued without waiting for an answer");
        }
        match (kind, self.nonces) {
            (Kind::Greeting, None) => {
                let Some(greeting) = Greeting::parse(payload) else {
                    return stranger("sent an invalid handshake");
                };
                if let Err(refusal) = greeting.check() {
                    let _ = self.connection.try_send(&frame_of(Kind::Refused, &refusal), OPERATION);
                    return Outcome::Refused;
                }
                let Ok(own) = nonce() else {
                    return stranger("connected while the system provided no random bytes");
                };
                self.nonces = Some((greeting.nonce, own));
                let challenge = challenge(secret, role, &greeting.nonce, &own);
                match self.connection.try_send(&challenge, OPERATION) {
                    Ok(sent) if sent == challenge.len() => Outcome::Waits,
                    _ => stranger("left without proving the job's token"),
                }
            }
            (Kind::Hello, Some((caller, own))) => match Hello::parse(payload, secret, role, &caller, &own) {
                Ok(hello) => Outcome::Proved(hello),
                Err(what) => stranger(what),
            },
            _ => stranger("sent an invalid handshake"),
        }
    }
}

/// The number of guests that this process can hold.
fn most_guests() -> usize {
    let part = getrlimit(Resource::Nofile).current.map(|limit| limit / PART_OF_DESCRIPTORS);
    let part = part.and_then(|part| usize::try_from(part).ok()).unwrap_or(MOST_GUESTS);
    part.clamp(FEWEST_GUESTS, MOST_GUESTS)
}

#[cfg(test)]
mod tests;
