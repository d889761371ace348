//! Jobs over every transport: ranks are threads, over MPI they are processes (see [`mpi`]).

#[cfg(feature = "mpi")]
pub mod mpi;

use std::net::SocketAddr;
use std::sync::Barrier;
use std::time::Duration;

use autodist_communication::tcp::{Rendezvous, TcpOptions, join};
use autodist_communication::{Endpoint, local};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
pub enum Over {
    Local,
    Tcp,
    #[cfg(feature = "mpi")]
    Mpi,
}

/// The transports that this process can test: all that run as threads, or only MPI if `mpirun` has started
/// it.
pub fn transports() -> Vec<Over> {
    #[cfg(feature = "mpi")]
    if mpi::started() {
        return vec![Over::Mpi];
    }
    vec![Over::Local, Over::Tcp]
}

/// One transport, for tests that do not depend on it.
pub fn any_transport() -> Over {
    transports()[0]
}

/// A barrier for all ranks of a job that does not use their connections.
pub enum Gate {
    Threads(Barrier),
    #[cfg(feature = "mpi")]
    Processes(mpi::Gate),
}

impl Gate {
    pub fn new(over: Over, ranks: usize) -> Self {
        match over {
            Over::Local | Over::Tcp => Self::Threads(Barrier::new(ranks)),
            #[cfg(feature = "mpi")]
            Over::Mpi => Self::Processes(mpi::Gate::new(ranks)),
        }
    }

    pub fn wait(&self) {
        match self {
            Self::Threads(barrier) => drop(barrier.wait()),
            #[cfg(feature = "mpi")]
            Self::Processes(gate) => gate.wait(),
        }
    }
}

/// A time that is comparable between processes of this machine, in nanoseconds: CLOCK_MONOTONIC.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs `work` for each rank and returns the results in order.
pub fn job<T: Send + Serialize + DeserializeOwned>(
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
        #[cfg(feature = "mpi")]
        Over::Mpi => mpi::job(world, timeout, work),
    }
}

pub fn options(rendezvous: SocketAddr, rank: usize, world: usize, timeout: Duration) -> TcpOptions {
    TcpOptions { rendezvous, rank, world, token: "secret".to_owned(), timeout, bind: None }
}

/// A value in [-1, 1) that differs between ranks and positions, the same in every run.
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

/// A hash of the bits of many values (FNV-1a), for comparing the values of several ranks.
pub fn digest(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |digest, value| {
        (digest ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
    })
}
