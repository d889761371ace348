//! A lab: machines with their own names, connected by a switch that emulates their links.
//!
//! A machine is a set of namespaces (network, host name, System V memory, mounts), known only to this process
//! by open descriptors; its processes die with the thread that started them. So nothing remains after a test,
//! however it ends: no namespace has a name, and the switch is a thread. Needs root and /dev/net/tun, no
//! other program.

mod interface;
mod machine;
mod switch;

pub use machine::Machine;
pub use switch::{Counters, Rate};

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use switch::Switch;

/// Bytes of a packet, headers of IP and TCP included.
pub const MTU: usize = 1500;
/// Bytes of a frame in addition to an IP packet: addresses and type of an Ethernet frame.
pub const FRAME: usize = 14;
/// Headers of IP and of TCP with time stamps.
const HEADERS: usize = 52;
/// Window in addition to twice the bandwidth-delay product: queues stay short, and no packet is lost.
const WINDOW: f64 = 192e3;

/// A machine's links: the rates of `up` and `down`, and the delay of each.
#[derive(Debug, Clone, Copy)]
pub struct Uplink {
    pub up: Rate,
    pub down: Rate,
    pub delay: Duration,
}

impl Uplink {
    pub fn even(mbit_per_s: f64, delay: Duration) -> Self {
        let rate = Rate::mbit_per_s(mbit_per_s);
        Self { up: rate, down: rate, delay }
    }
}

/// Goodput of one TCP stream on a link, bytes per second.
pub fn goodput(rate: Rate) -> f64 {
    rate.bytes_per_s() * (MTU - HEADERS) as f64 / (MTU + FRAME) as f64
}

/// One machine per link; one lab at a time, because the tests measure times.
pub struct Lab {
    pub machines: Vec<Machine>,
    switch: Switch,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());
const NAMES: [&str; 6] = ["one", "two", "three", "four", "five", "six"];

impl Lab {
    /// `None`, with a printed message, if this system does not support the lab.
    pub fn new(test: &str, uplinks: &[Uplink]) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        match Self::start(uplinks) {
            Ok((machines, switch)) => Some(Self { machines, switch, _alone: alone }),
            Err(reason) => {
                skipped(test, &reason);
                None
            }
        }
    }

    fn start(uplinks: &[Uplink]) -> Result<(Vec<Machine>, Switch), String> {
        let window = window(uplinks);
        let (mut machines, mut ports) = (Vec::new(), Vec::new());
        for (index, name) in NAMES.iter().enumerate().take(uplinks.len()) {
            let address = Ipv4Addr::new(10, 99, 0, index as u8 + 1);
            let (machine, port) = Machine::start(name, address, window)?;
            machines.push(machine);
            ports.push(port);
        }
        Ok((machines, Switch::start(ports, uplinks)?))
    }

    /// A command for `program` on a machine. It dies with the thread that starts it.
    pub fn command(&self, machine: usize, program: &str) -> Command {
        self.machines[machine].command(program)
    }

    /// Number of TCP retransmissions, and of packets that the switch has lost.
    pub fn repeated_and_lost(&self) -> (u64, u64) {
        let lost = self.counters().iter().map(|counters| counters.lost).sum();
        (self.machines.iter().map(Machine::repeated).sum(), lost)
    }

    /// See [`Switch::let_through_only`].
    pub fn let_through_only(&self, port: u16) {
        self.switch.let_through_only(port);
    }

    /// Counters of the traffic that each machine has sent so far.
    pub fn counters(&self) -> Vec<Counters> {
        self.switch.counters()
    }
}

/// Test harnesses hide the output of passing tests, but not this message.
pub fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// Bytes that one connection may have in flight.
fn window(uplinks: &[Uplink]) -> u64 {
    let largest = uplinks.iter().map(|link| {
        let round_trip = 4.0 * link.delay.as_secs_f64();
        2.0 * round_trip * link.up.bytes_per_s().max(link.down.bytes_per_s())
    });
    (WINDOW + largest.fold(0.0, f64::max)) as u64
}
