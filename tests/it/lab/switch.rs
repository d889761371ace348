//! A switch in user space: packets are read from one machine's interface and written to another's, no sooner
//! than the links between them would have delivered them.
//!
//! A link is a queue in virtual time: a packet leaves it after all earlier ones, after its own size / rate,
//! and arrives after the delay. Packets cross the sender's uplink, then the receiver's downlink.

use super::machine::realtime;
use super::{FRAME, Uplink};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io;
use rustix::thread::set_current_timer_slack;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Higher than the real-time priority of ranks.
const PRIORITY: libc::c_int = 40;
/// Packets with a longer queueing time are dropped.
const LONGEST_QUEUE: Duration = Duration::from_millis(200);
/// Maximum packets that are read from one interface before the others are served.
const AT_ONCE: usize = 16;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The rate of a link.
#[derive(Debug, Clone, Copy)]
pub struct Rate(f64);

impl Rate {
    pub fn mbit_per_s(mbit_per_s: f64) -> Self {
        Self(mbit_per_s * 1e6 / 8.0)
    }

    pub fn bytes_per_s(self) -> f64 {
        self.0
    }
}

/// Traffic of a machine's uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets: u64,
    /// Bytes of Ethernet frames.
    pub bytes: u64,
    /// TCP payload, including retransmissions.
    pub payload: u64,
    /// Packets from this machine that were dropped because a queue was full.
    pub lost: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The only TCP port that accepts connections between machines; 0 for all.
    port: AtomicU16,
    /// By machine: packets, bytes, payload, lost.
    counters: Vec<[AtomicU64; 4]>,
}

/// Dropping it disconnects all machines.
pub struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Connects the machines behind `ports`; the last byte of a machine's address is its index, counted from
    /// 1.
    pub fn start(ports: Vec<OwnedFd>, uplinks: &[Uplink]) -> Result<Self, String> {
        let counters = ports.iter().map(|_| Default::default()).collect();
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), port: AtomicU16::new(0), counters });
        let links = |of: fn(&Uplink) -> Rate| -> Vec<Link> {
            uplinks.iter().map(|link| Link { rate: of(link), delay: link.delay, free: None }).collect()
        };
        let mut forwarder = Forwarder {
            ports,
            up: links(|link| link.up),
            down: links(|link| link.down),
            events: BinaryHeap::new(),
            sequence: 0,
            shared: shared.clone(),
        };
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = set_current_timer_slack(NonZeroU64::new(1));
            let _ = ready.send(realtime(libc::SCHED_FIFO, PRIORITY));
            forwarder.run();
        });
        // Without the priority it is late if other processes use the cores; the measurements then show it.
        started.recv().map_err(|_| "the switch did not start".to_owned())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Drops new connections to all ports but this one, as a firewall does.
    pub fn let_through_only(&self, port: u16) {
        self.shared.port.store(port, Ordering::Relaxed);
    }

    pub fn counters(&self) -> Vec<Counters> {
        let of = |[packets, bytes, payload, lost]: &[AtomicU64; 4]| Counters {
            packets: packets.load(Ordering::Relaxed),
            bytes: bytes.load(Ordering::Relaxed),
            payload: payload.load(Ordering::Relaxed),
            lost: lost.load(Ordering::Relaxed),
        };
        self.shared.counters.iter().map(of).collect()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Link {
    rate: Rate,
    delay: Duration,
    /// When the last packet sent has left it.
    free: Option<Instant>,
}

impl Link {
    /// When a frame that is sent at `now` arrives; `None` if its queue is full.
    fn cross(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let start = self.free.map_or(now, |free| free.max(now));
        if start - now > LONGEST_QUEUE {
            return None;
        }
        let left = start + Duration::from_secs_f64(bytes as f64 / self.rate.0);
        self.free = Some(left);
        Some(left + self.delay)
    }
}

/// A packet between its links, or before its receiver.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Instant,
    sequence: u64,
    from: usize,
    to: usize,
    /// Whether it has also crossed the downlink.
    arrived: bool,
    packet: Vec<u8>,
}

struct Forwarder {
    ports: Vec<OwnedFd>,
    up: Vec<Link>,
    down: Vec<Link>,
    events: BinaryHeap<Reverse<Event>>,
    sequence: u64,
    shared: Arc<Shared>,
}

impl Forwarder {
    fn run(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.deliver();
            let next = self.events.peek().map(|Reverse(event)| event.at);
            let wait = next.map_or(LOOK_AGAIN, |at| at.saturating_duration_since(Instant::now()));
            let limit = Timespec::try_from(wait.min(LOOK_AGAIN)).unwrap();
            let mut interests: Vec<_> =
                self.ports.iter().map(|port| PollFd::new(port, PollFlags::IN)).collect();
            if poll(&mut interests, Some(&limit)).is_ok_and(|ready| ready > 0) {
                (0..self.ports.len()).for_each(|port| self.take(port, &mut buffer));
            }
        }
    }

    /// Puts the packets of a machine on its uplink.
    fn take(&mut self, from: usize, buffer: &mut [u8]) {
        for _ in 0..AT_ONCE {
            let Ok(read @ 1..) = io::read(&self.ports[from], &mut *buffer) else { return };
            let packet = &buffer[..read];
            let Some(to) = receiver(packet).filter(|to| *to < self.ports.len()) else { continue };
            let port = self.shared.port.load(Ordering::Relaxed);
            if port != 0 && connects_to(packet).is_some_and(|to| to != port) {
                continue;
            }
            let frame = packet.len() + FRAME;
            let arrives = self.up[from].cross(Instant::now(), frame);
            self.count(from, frame, payload(packet), arrives.is_none());
            if let Some(at) = arrives {
                self.push(at, from, to, false, packet.to_vec());
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(Reverse(event)) = self.events.peek()
            && event.at <= Instant::now()
        {
            let Some(Reverse(Event { at, from, to, arrived, packet, .. })) = self.events.pop() else {
                return;
            };
            if arrived {
                // A receiver without room loses it.
                let _ = io::write(&self.ports[to], &packet);
                continue;
            }
            // In virtual time, so that a late switch does not slow down a link.
            match self.down[to].cross(at, packet.len() + FRAME) {
                Some(at) => self.push(at, from, to, true, packet),
                None => drop(self.shared.counters[from][3].fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    fn push(&mut self, at: Instant, from: usize, to: usize, arrived: bool, packet: Vec<u8>) {
        self.sequence += 1;
        self.events.push(Reverse(Event { at, sequence: self.sequence, from, to, arrived, packet }));
    }

    fn count(&self, from: usize, frame: usize, payload: usize, lost: bool) {
        for (counter, more) in
            self.shared.counters[from].iter().zip([1, frame as u64, payload as u64, u64::from(lost)])
        {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// The index of the machine that an IPv4 packet is addressed to.
fn receiver(packet: &[u8]) -> Option<usize> {
    let version = packet.first()? >> 4;
    let last = *packet.get(19)?;
    (version == 4 && last > 0).then(|| usize::from(last) - 1)
}

/// The destination port of a TCP connection request, if the packet is one.
fn connects_to(packet: &[u8]) -> Option<u16> {
    let tcp = packet.get(4 * usize::from(packet[0] & 15)..)?;
    let (syn, ack) = (tcp.get(13)? & 2 != 0, tcp[13] & 16 != 0);
    (packet.get(9) == Some(&6) && syn && !ack).then(|| u16::from_be_bytes([tcp[2], tcp[3]]))
}

/// Bytes of TCP payload in an IPv4 packet.
fn payload(packet: &[u8]) -> usize {
    let ip = 4 * usize::from(packet[0] & 15);
    match (packet.get(9), packet.get(ip + 12)) {
        (Some(6), Some(offset)) => packet.len().saturating_sub(ip + 4 * usize::from(offset >> 4)),
        _ => 0,
    }
}
