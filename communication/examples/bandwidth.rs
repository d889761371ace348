//! All-reduce latency and bus bandwidth over TCP on this machine, ranks as threads:
//! `cargo run --release -p autodist-communication --example bandwidth [ranks…]`
//!
//! Time is that of the slowest rank; the bus bandwidth is 2(p − 1)/p · bytes / time, as nccl-tests define it, so
//! that figures for different numbers of ranks compare.
#![allow(clippy::print_stdout, reason = "an example is a program")]

use std::time::{Duration, Instant};

use autodist_communication::tcp::{Rendezvous, TcpOptions, join};
use autodist_communication::{CommunicationError, Reduction};

const BYTES: [usize; 7] = [64, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 32 << 20];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let worlds: Vec<usize> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let worlds = if worlds.is_empty() { vec![2, 4] } else { worlds };
    println!("{:>5} {:>10} {:>12} {:>12} {:>12}", "ranks", "bytes", "median us", "best us", "bus GB/s");
    for world in worlds {
        for (bytes, mut times) in BYTES.into_iter().zip(measure(world)?) {
            times.sort();
            let (median, best) = (times[times.len() / 2], times[0]);
            let moved = 2.0 * (world - 1) as f64 / world as f64 * bytes as f64;
            let rate = moved / median.as_secs_f64() / 1e9;
            let [median, best] = [median, best].map(|time| time.as_secs_f64() * 1e6);
            println!("{world:>5} {bytes:>10} {median:>12.1} {best:>12.1} {rate:>12.2}");
        }
    }
    Ok(())
}

/// For each message size, the times of its repetitions, each the maximum over ranks.
fn measure(world: usize) -> Result<Vec<Vec<Duration>>, CommunicationError> {
    let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), world, "bandwidth")?;
    let address = rendezvous.address();
    let ranks: Vec<_> = (0..world)
        .map(|rank| {
            std::thread::spawn(move || -> Result<Vec<Vec<Duration>>, CommunicationError> {
                let mut endpoint = join(TcpOptions {
                    rendezvous: address,
                    rank,
                    world,
                    token: "bandwidth".to_owned(),
                    timeout: Duration::from_secs(20),
                    bind: None,
                })?;
                let members: Vec<_> = (0..world).collect();
                let mut group = endpoint.group("data", &members)?;
                let mut times = Vec::new();
                for bytes in BYTES {
                    let mut values = vec![1.0; bytes / 4];
                    let repetitions = ((64 << 20) / bytes).clamp(15, 2000);
                    let mut of_size = Vec::new();
                    for _ in 0..repetitions / 10 + 2 {
                        group.all_reduce(&mut values, Reduction::Max)?;
                    }
                    for _ in 0..repetitions {
                        group.barrier()?;
                        let start = Instant::now();
                        group.all_reduce(&mut values, Reduction::Sum)?;
                        of_size.push(start.elapsed());
                    }
                    times.push(of_size);
                }
                endpoint.close()?;
                Ok(times)
            })
        })
        .collect();
    let mut slowest: Vec<Vec<Duration>> = Vec::new();
    for rank in ranks {
        let times = rank.join().map_err(|_| CommunicationError::Broken {
            lane: "data".to_owned(),
            operation: "a rank's thread",
        })??;
        if slowest.is_empty() {
            slowest = times;
        } else {
            for (slowest, times) in slowest.iter_mut().flatten().zip(times.into_iter().flatten()) {
                *slowest = (*slowest).max(times);
            }
        }
    }
    Ok(slowest)
}
