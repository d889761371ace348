//! Jobs whose ranks are threads, over either transport.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::SocketAddr;
use std::time::Duration;

use autodist_communication::tcp::{Rendezvous, TcpOptions, join};
use autodist_communication::{Endpoint, local};

pub const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
pub enum Over {
    Local,
    Tcp,
}

pub const BOTH: [Over; 2] = [Over::Local, Over::Tcp];

/// Runs `work` on a thread for each rank and returns what they returned, in order.
pub fn job<T: Send>(
    over: Over,
    world: usize,
    timeout: Duration,
    work: impl Fn(Endpoint) -> T + Sync,
) -> Vec<T> {
    let collect = |handles: Vec<std::thread::ScopedJoinHandle<'_, T>>| {
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    };
    let work = &work;
    match over {
        Over::Local => {
            let (endpoints, _supervisor) = local::mesh(world, timeout).unwrap();
            std::thread::scope(|scope| {
                collect(endpoints.into_iter().map(|e| scope.spawn(move || work(e))).collect())
            })
        }
        Over::Tcp => {
            let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), world, "secret").unwrap();
            let address = rendezvous.address();
            std::thread::scope(|scope| {
                let rank =
                    |rank| scope.spawn(move || work(join(options(address, rank, world, timeout)).unwrap()));
                collect((0..world).map(rank).collect())
            })
        }
    }
}

pub fn options(rendezvous: SocketAddr, rank: usize, world: usize, timeout: Duration) -> TcpOptions {
    TcpOptions { rendezvous, rank, world, token: "secret".to_owned(), timeout, bind: None }
}

/// A value that differs between ranks and places, in [-1, 1), the same on every run.
pub fn value(rank: usize, place: usize) -> f32 {
    let mixed = (rank as u64 * 0x9E37_79B9 + place as u64 + 1).wrapping_mul(0xD134_2543_DE82_EF95) >> 40;
    mixed as f32 / (1u64 << 23) as f32 - 1.0
}

pub fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|place| value(rank, place)).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
