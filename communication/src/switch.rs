//! Emulates slow links on one machine: all connections between ranks pass through a switch, which gives every
//! direction a rate, a delay, and its share of links. It needs no privileges, and is transparent to the
//! ranks.
//!
//! Every link has a time at which it is free again. A portion of bytes is read when its direction has few
//! portions in flight, occupies the links of its route one after the other, and is delivered when the last
//! link has transmitted it, plus the delay. Directions that share a link alternate, because each may have
//! only a few portions in flight; so they share its rate like streams over one bottleneck.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use socket2::SockRef;

use crate::poll::{self, interest};
use crate::wire::BEFORE_PROOF;

/// Maximum number of portions of a direction in flight.
const UNDER_WAY: usize = 3;
/// Target time of a portion on the slowest link of its route, seconds, and the limits of its size in bytes.
const PORTION_S: f64 = 0.5e-3;
const PORTION_BYTES: (usize, usize) = (2 << 10, 64 << 10);
/// A stream of full portions keeps its rate if this thread wakes at most this late.
const LATENESS: Duration = Duration::from_millis(1);
/// Buffer size of the switch's sockets; small, so that a slow link soon blocks its sender.
const SOCKET_BUFFER: usize = 64 << 10;
/// Maximum number of accepts before a pause, so that repeated connects cannot keep the thread busy.
const AT_ONCE: usize = 64;
const REST: Duration = Duration::from_millis(20);
/// Maximum number of connections on which the job's token has not been proved; the oldest is dropped first.
/// The switch does not have the token, but a rank sends more than its challenge only after the proof.
const MOST_UNPROVEN: usize = 64;
/// Time limit to reach a rank's listener, on the same machine.
const REACHED_WITHIN: Duration = Duration::from_millis(100);
/// Above the priority of all ranks: transfers must not wait for compute.
const PRIORITY: libc::c_int = 40;

/// The route of one direction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SwitchRoute {
    /// Indices into [`SwitchLinks::rates`], in the order in which bytes cross them.
    pub links: Vec<usize>,
    /// The delay from the last link to the receiver.
    pub delay: Duration,
}

/// The links that join ranks, and the routes over them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SwitchLinks {
    /// Bytes per second of each link.
    pub rates: Vec<f64>,
    /// Routes by sender, then by receiver.
    pub routes: Vec<Vec<SwitchRoute>>,
}

/// Carries the bytes of one job until it is dropped.
pub struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    wake: UnixStream,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    doors: Vec<Door>,
    carried: Vec<Vec<u64>>,
    end: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full pipe means that the thread is about to wake anyway.
        let _ = (&self.wake).write(&[1]);
    }
}

/// A listener through which one rank reaches another.
struct Door {
    listener: TcpListener,
    from: usize,
    to: usize,
    address: SocketAddr,
}

impl Switch {
    /// # Errors
    /// The system cannot provide sockets or a thread.
    pub fn start(links: SwitchLinks) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let carried = links.routes.iter().map(|row| vec![0; row.len()]).collect();
        let shared = Arc::new(Shared { wake, state: Mutex::new(State { carried, ..State::default() }) });
        let mut hub = Hub {
            free: vec![Instant::now(); links.rates.len()],
            links,
            shared: shared.clone(),
            woken,
            doors: Vec::new(),
            rests_until: None,
            pipes: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(move || {
            be_prompt();
            hub.serve();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The addresses at which `rank` reaches each rank through the switch; `real` are the ranks' own
    /// addresses.
    ///
    /// # Errors
    /// The system cannot provide a socket.
    pub fn table(&self, rank: usize, real: &[SocketAddr]) -> io::Result<Vec<SocketAddr>> {
        let mut table = Vec::with_capacity(real.len());
        for (to, address) in real.iter().enumerate() {
            if to == rank {
                table.push(*address);
                continue;
            }
            let listener = TcpListener::bind(SocketAddr::new(address.ip(), 0))?;
            // Accepted sockets inherit the buffer size.
            small_buffers(&listener);
            listener.set_nonblocking(true)?;
            table.push(listener.local_addr()?);
            self.shared.state().doors.push(Door { listener, from: rank, to, address: *address });
        }
        self.shared.wake();
        Ok(table)
    }

    /// Payload bytes carried so far, by sender, then by receiver.
    #[must_use]
    pub fn carried(&self) -> Vec<Vec<u64>> {
        self.shared.state().carried.clone()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.state().end = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A one-way stream from one socket to another.
struct Direction {
    from: usize,
    to: usize,
    portion: usize,
    /// The times at which portions in flight leave their last link.
    finishes: VecDeque<Instant>,
    /// Portions to deliver, and the times of delivery.
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes of the first portion that have been delivered.
    handed: usize,
    /// Whether the last read filled a portion, so more data was available.
    streaming: bool,
    ended: bool,
    closed: bool,
    blocked: bool,
}

/// A connection between a dialling rank and a listening rank.
struct Pipe {
    ends: [TcpStream; 2],
    directions: [Direction; 2],
    /// Bytes delivered to the dialling side.
    answered: u64,
    broken: bool,
}

struct Hub {
    links: SwitchLinks,
    /// The time at which each link is free again.
    free: Vec<Instant>,
    shared: Arc<Shared>,
    woken: UnixStream,
    doors: Vec<Door>,
    /// No connection is accepted before.
    rests_until: Option<Instant>,
    pipes: Vec<Pipe>,
}

impl Hub {
    fn serve(&mut self) {
        let mut buffer = vec![0; PORTION_BYTES.1];
        loop {
            {
                let mut state = self.shared.state();
                if state.end {
                    return;
                }
                self.doors.append(&mut state.doors);
            }
            self.accept();
            let now = Instant::now();
            for pipe in &mut self.pipes {
                for way in 0..2 {
                    let moved = pipe.advance(way, now, &mut buffer, &self.links, &mut self.free);
                    if moved > 0 {
                        pipe.answered += if way == 1 { moved } else { 0 };
                        let direction = &pipe.directions[way];
                        self.shared.state().carried[direction.from][direction.to] += moved;
                    }
                }
            }
            self.pipes.retain(|pipe| !pipe.is_over());
            let mut next: Option<Instant> = self.rests_until;
            let mut interests = vec![interest(self.woken.as_fd(), true, false)];
            if self.rests_until.is_none() {
                interests.extend(self.doors.iter().map(|door| interest(door.listener.as_fd(), true, false)));
            }
            for pipe in &self.pipes {
                (0..2).for_each(|way| pipe.waits(way, now, &mut next, &mut interests));
            }
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            if poll::wait(&mut interests, timeout).is_err() {
                return;
            }
            while matches!((&self.woken).read(&mut [0; 64]), Ok(1..)) {}
        }
    }

    /// Accepts connections and connects them to the listening ranks.
    fn accept(&mut self) {
        let now = Instant::now();
        if self.rests_until.is_some_and(|until| now < until) {
            return;
        }
        self.rests_until = None;
        let mut came = 0;
        for door in &self.doors {
            while came < AT_ONCE {
                let opened = match door.listener.accept() {
                    Ok((dialled, _)) => TcpStream::connect_timeout(&door.address, REACHED_WITHIN)
                        .map(|reached| (dialled, reached)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => Err(error),
                };
                came += 1;
                match opened {
                    Ok((dialled, reached)) => {
                        self.pipes.extend(Pipe::new(door, dialled, reached, &self.links))
                    }
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                        // The listener stays ready: polling again at once would spin.
                        drop_oldest(&mut self.pipes);
                        came = AT_ONCE;
                    }
                    // The rank has disconnected; the dialling side notices, because its connection is closed.
                    Err(_) => {}
                }
                if self.pipes.iter().filter(|pipe| pipe.is_unproven()).count() > MOST_UNPROVEN {
                    drop_oldest(&mut self.pipes);
                }
            }
        }
        if came == AT_ONCE {
            self.rests_until = Some(now + REST);
        }
    }
}

/// Closes the oldest connection on which the token has not been proved.
fn drop_oldest(pipes: &mut Vec<Pipe>) {
    if let Some(oldest) = pipes.iter().position(Pipe::is_unproven) {
        pipes.remove(oldest);
    }
}

impl Direction {
    fn new(from: usize, to: usize, links: &SwitchLinks) -> Self {
        let rates = links.routes[from][to].links.iter().map(|link| links.rates[*link]);
        let slowest = rates.fold(f64::INFINITY, f64::min);
        let portion = ((slowest * PORTION_S).min(PORTION_BYTES.1 as f64) as usize).max(PORTION_BYTES.0);
        Self {
            from,
            to,
            portion,
            finishes: VecDeque::new(),
            queue: VecDeque::new(),
            handed: 0,
            streaming: false,
            ended: false,
            closed: false,
            blocked: false,
        }
    }

    /// Puts `bytes` on the links of the route.
    fn take(&mut self, bytes: &[u8], now: Instant, links: &SwitchLinks, free: &mut [Instant]) {
        let route = &links.routes[self.from][self.to];
        let full = bytes.len() == self.portion;
        let mut start = if self.streaming { now.checked_sub(LATENESS).unwrap_or(now) } else { now };
        let mut finish = start;
        for link in &route.links {
            start = start.max(free[*link]);
            let end = start + Duration::from_secs_f64(bytes.len() as f64 / links.rates[*link]);
            free[*link] = end;
            finish = finish.max(end);
        }
        self.streaming = full;
        self.finishes.push_back(finish);
        self.queue.push_back((finish + route.delay, bytes.to_vec()));
    }

    fn may_read(&self) -> bool {
        !self.ended && self.finishes.len() < UNDER_WAY
    }
}

impl Pipe {
    /// `None` if one of its ends has closed already.
    fn new(door: &Door, dialled: TcpStream, reached: TcpStream, links: &SwitchLinks) -> Option<Self> {
        for socket in [&dialled, &reached] {
            small_buffers(socket);
            socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).ok()?;
        }
        let direction = |from: usize, to: usize| Direction::new(from, to, links);
        let directions = [direction(door.from, door.to), direction(door.to, door.from)];
        Some(Self { ends: [dialled, reached], directions, answered: 0, broken: false })
    }

    fn is_unproven(&self) -> bool {
        self.answered <= BEFORE_PROOF as u64
    }

    /// Moves as many bytes as possible in one direction; returns the number of bytes delivered.
    fn advance(
        &mut self,
        way: usize,
        now: Instant,
        buffer: &mut [u8],
        links: &SwitchLinks,
        free: &mut [Instant],
    ) -> u64 {
        let (source, sink) = (&self.ends[way], &self.ends[1 - way]);
        let direction = &mut self.directions[way];
        while direction.finishes.front().is_some_and(|finish| *finish <= now) {
            direction.finishes.pop_front();
        }
        while direction.may_read() {
            let portion = direction.portion;
            match (&mut &*source).read(&mut buffer[..portion]) {
                Ok(0) => direction.ended = true,
                Ok(read) => direction.take(&buffer[..read], now, links, free),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    direction.streaming = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => direction.ended = true,
            }
        }
        let mut moved = 0;
        direction.blocked = false;
        while let Some((due, bytes)) = direction.queue.front()
            && *due <= now
        {
            match (&mut &*sink).write(&bytes[direction.handed..]) {
                Ok(written) => {
                    moved += written as u64;
                    direction.handed += written;
                    if direction.handed == bytes.len() {
                        direction.handed = 0;
                        direction.queue.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    direction.blocked = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The receiver has disconnected: the sender must notice at once.
                    self.broken = true;
                    break;
                }
            }
        }
        if direction.ended && direction.queue.is_empty() && !direction.closed {
            direction.closed = true;
            let _ = sink.shutdown(Shutdown::Write);
        }
        moved
    }

    /// The event that this direction waits for: a time, or a socket.
    fn waits<'a>(
        &'a self,
        way: usize,
        now: Instant,
        next: &mut Option<Instant>,
        interests: &mut Vec<PollFd<'a>>,
    ) {
        let direction = &self.directions[way];
        let mut until = |at: Instant| *next = Some(next.map_or(at, |known| known.min(at)));
        if direction.may_read() {
            interests.push(interest(self.ends[way].as_fd(), true, false));
        } else if let Some(finish) = direction.finishes.front().filter(|_| !direction.ended) {
            until(*finish);
        }
        match direction.queue.front() {
            Some((due, _)) if *due > now => until(*due),
            Some(_) if direction.blocked => interests.push(interest(self.ends[1 - way].as_fd(), false, true)),
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        let over = self.broken || self.directions.iter().all(|direction| direction.closed);
        if over {
            // It fails only if the peer has already closed the connection.
            self.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        over
    }
}

fn small_buffers(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    // If it fails, buffers are larger, so senders are blocked later.
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
}

/// Requests a priority above the ranks' and exact timers; without them, the links' rates vary slightly.
fn be_prompt() {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameter outlives the call; 0 names the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
    poll::be_punctual();
}
