//! Slow links on one machine: a switch that all connections between ranks lead through, and that gives every direction
//! rate, delay, and its share of links. No privileges are needed; the ranks do not know of it.
//!
//! Every link has a clock of its own that says when it is free again. A portion of bytes is read when its direction has
//! little under way, is put on the links of its route one after the other, and is handed on when the last of them has
//! carried it, the delay later. Directions that share a link take turns, since each may have a few portions on the way
//! only; so they share its rate as streams over one bottleneck do.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::wire::BEFORE_PROOF;

/// Portions of a direction that may be on links at a time.
const UNDER_WAY: usize = 3;
/// What a portion should take on the slowest link of its route, seconds, and its limits in bytes.
const PORTION_S: f64 = 0.5e-3;
const PORTION_BYTES: (usize, usize) = (2 << 10, 64 << 10);
/// A stream of full portions loses nothing when this thread wakes late by no more.
const LATENESS: Duration = Duration::from_millis(1);
/// Buffer size of the switch's sockets: it is small, so that a sender soon notices a slow link.
const SOCKET_BUFFER: libc::c_int = 64 << 10;
/// So many connections come in, then none for a moment: whoever connects again and again keeps nobody busy.
const AT_ONCE: usize = 64;
const REST: Duration = Duration::from_millis(20);
/// Connections at once whose ranks have not yet proved the job's token to each other; the oldest goes first. The switch
/// knows no token, but a rank says more than its challenge only to who does.
const MOST_UNPROVEN: usize = 64;
/// A rank's listener on this very machine answers sooner.
const REACHED_WITHIN: Duration = Duration::from_millis(100);
/// Above all ranks: their bytes must not wait for their arithmetic.
const PRIORITY: libc::c_int = 40;

/// The route of one direction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SwitchRoute {
    /// Indices into [`SwitchLinks::rates`], in the order in which bytes cross them.
    pub links: Vec<usize>,
    /// From the last link to the receiver.
    pub delay: Duration,
}

/// The links that join ranks, and the routes over them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SwitchLinks {
    /// Bytes per second of each link.
    pub rates: Vec<f64>,
    /// By sender, then by receiver.
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

/// Where one rank reaches another.
struct Door {
    listener: TcpListener,
    from: usize,
    to: usize,
    address: SocketAddr,
}

impl Switch {
    /// # Errors
    /// The system gives no sockets or no thread.
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
            be_punctual();
            hub.serve();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Where `rank` reaches each rank through the switch; `real` are the addresses at which the ranks listen.
    ///
    /// # Errors
    /// The system gives no socket.
    pub fn table(&self, rank: usize, real: &[SocketAddr]) -> io::Result<Vec<SocketAddr>> {
        let mut table = Vec::with_capacity(real.len());
        for (to, address) in real.iter().enumerate() {
            if to == rank {
                table.push(*address);
                continue;
            }
            let listener = TcpListener::bind(SocketAddr::new(address.ip(), 0))?;
            // What is accepted inherits it.
            small_buffers(listener.as_fd());
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

/// Bytes from one socket to another, one way.
struct Direction {
    from: usize,
    to: usize,
    portion: usize,
    /// When portions on the links will have crossed the last of them.
    finishes: VecDeque<Instant>,
    /// What is to be handed on, and when.
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes of the first that have been handed on.
    handed: usize,
    /// Whether the last read filled a portion: then more was there already.
    streaming: bool,
    ended: bool,
    closed: bool,
    blocked: bool,
}

/// A connection: who dialled, and who was dialled.
struct Pipe {
    ends: [TcpStream; 2],
    directions: [Direction; 2],
    /// Bytes that have reached the dialler.
    answered: u64,
    broken: bool,
}

struct Hub {
    links: SwitchLinks,
    /// When each link is free again.
    free: Vec<Instant>,
    shared: Arc<Shared>,
    woken: UnixStream,
    doors: Vec<Door>,
    /// Nobody is let in before.
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
            let mut next: Option<Instant> = self.rests_until;
            let mut interests = vec![interest(self.woken.as_fd(), libc::POLLIN)];
            if self.rests_until.is_none() {
                interests.extend(self.doors.iter().map(|door| interest(door.listener.as_fd(), libc::POLLIN)));
            }
            let now = Instant::now();
            for pipe in &mut self.pipes {
                for way in 0..2 {
                    let moved = pipe.advance(way, now, &mut buffer, &self.links, &mut self.free);
                    if moved > 0 {
                        pipe.answered += if way == 1 { moved } else { 0 };
                        let direction = &pipe.directions[way];
                        self.shared.state().carried[direction.from][direction.to] += moved;
                    }
                    pipe.waits(way, now, &mut next, &mut interests);
                }
            }
            self.pipes.retain(|pipe| !pipe.is_over());
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            if sleep(&mut interests, timeout).is_err() {
                return;
            }
            while matches!((&self.woken).read(&mut [0; 64]), Ok(1..)) {}
        }
    }

    /// Lets callers in, and joins them with the ranks that they want.
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
                        // The listener stays ready: looking again at once would spin.
                        drop_oldest(&mut self.pipes);
                        came = AT_ONCE;
                    }
                    // A rank that is gone, or gone by now, is told apart by the dialler: its connection ends.
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

/// Ends the oldest connection over which nobody has proved the token.
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
    /// `None` if one of its ends is gone already.
    fn new(door: &Door, dialled: TcpStream, reached: TcpStream, links: &SwitchLinks) -> Option<Self> {
        for socket in [&dialled, &reached] {
            small_buffers(socket.as_fd());
            socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).ok()?;
        }
        let direction = |from: usize, to: usize| Direction::new(from, to, links);
        let directions = [direction(door.from, door.to), direction(door.to, door.from)];
        Some(Self { ends: [dialled, reached], directions, answered: 0, broken: false })
    }

    fn is_unproven(&self) -> bool {
        self.answered <= BEFORE_PROOF as u64
    }

    /// Moves what can be moved one way; bytes handed on.
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
                    // The receiver is gone: the sender must know at once.
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

    /// What this way waits for: a moment, or a socket.
    fn waits(&self, way: usize, now: Instant, next: &mut Option<Instant>, interests: &mut Vec<libc::pollfd>) {
        let direction = &self.directions[way];
        let mut until = |at: Instant| *next = Some(next.map_or(at, |known| known.min(at)));
        if direction.may_read() {
            interests.push(interest(self.ends[way].as_fd(), libc::POLLIN));
        } else if let Some(finish) = direction.finishes.front().filter(|_| !direction.ended) {
            until(*finish);
        }
        match direction.queue.front() {
            Some((due, _)) if *due > now => until(*due),
            Some(_) if direction.blocked => {
                interests.push(interest(self.ends[1 - way].as_fd(), libc::POLLOUT))
            }
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        let over = self.broken || self.directions.iter().all(|direction| direction.closed);
        if over {
            // It fails only if the peer was faster.
            self.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        over
    }
}

fn interest(descriptor: BorrowedFd<'_>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: descriptor.as_raw_fd(), events, revents: 0 }
}

/// Until a descriptor is ready, at most `timeout`: to the microsecond, which `poll` is not.
fn sleep(descriptors: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let time = timeout.map(|left| libc::timespec {
        tv_sec: left.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(left.subsec_nanos() as i32),
    });
    let pointer = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the descriptors are one live slice, the time outlives the call, and no signal mask is given.
    let ready = unsafe {
        libc::ppoll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, pointer, std::ptr::null())
    };
    if ready >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

fn small_buffers(socket: BorrowedFd<'_>) {
    let size = SOCKET_BUFFER;
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        // SAFETY: the value is a C int of the length given. A refusal leaves larger buffers, which only delays the
        // moment at which a sender notices.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

/// Asks for a priority above the ranks' and for exact timers; without either, links are a little uneven.
fn be_punctual() {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameter outlives the call; 0 names the calling thread.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000);
    }
}
