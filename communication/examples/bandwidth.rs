//! All-reduce latency and bus bandwidth over TCP on this machine, ranks as threads, or over MPI, ranks as
//! processes:
//! `cargo run --release -p autodist-communication --example bandwidth [ranks…]`
//! `mpirun -n 2 target/release/examples/bandwidth mpi`, built with `--features mpi`
//!
//! Times are those of the slowest rank; the bus bandwidth is 2(p − 1)/p · bytes / time, as in nccl-tests, so
//! that figures for different numbers of ranks are comparable.
#![allow(clippy::print_stdout, reason = "an example is a program")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use autodist_communication::mpi::Mpi;
use autodist_communication::tcp::{Rendezvous, TcpOptions, join};
use autodist_communication::{CommunicationError, Endpoint, ReduceOp};

const BYTES: [usize; 7] = [64, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 32 << 20];

/// The rendezvous address of the processes of an MPI job.
const MEETING: ([u8; 4], u16) = ([127, 0, 0, 1], 29_613);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "mpi") {
        let mpi = Mpi::initialise()?;
        let (rank, world) = (mpi.rank(), mpi.size());
        let rendezvous =
            (rank == 0).then(|| Rendezvous::bind(MEETING.into(), world, "bandwidth")).transpose()?;
        let times = measure(mpi.join(options(MEETING.into(), rank, world))?)?;
        if rank == 0 {
            println!("{}", mpi.library());
            print(world, times);
        }
        mpi.finalise()?;
        drop(rendezvous);
        return Ok(());
    }
    let worlds: Vec<usize> = words.iter().map(|word| word.parse()).collect::<Result<_, _>>()?;
    for world in if worlds.is_empty() { vec![2, 4] } else { worlds } {
        let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), world, "bandwidth")?;
        let address = rendezvous.address();
        let rank = |rank| std::thread::spawn(move || measure(join(options(address, rank, world))?));
        let ranks: Vec<_> = (0..world).map(rank).collect();
        for (rank, times) in ranks.into_iter().enumerate() {
            let times = times.join().map_err(|_| "a rank's thread panicked")??;
            if rank == 0 {
                print(world, times);
            }
        }
    }
    Ok(())
}

fn options(rendezvous: SocketAddr, rank: usize, world: usize) -> TcpOptions {
    let timeout = Duration::from_secs(20);
    TcpOptions { rendezvous, rank, world, token: "bandwidth".to_owned(), timeout, bind: None }
}

fn print(world: usize, times: Vec<Vec<f32>>) {
    println!("{:>5} {:>10} {:>12} {:>12} {:>12}", "ranks", "bytes", "median us", "best us", "bus GB/s");
    for (bytes, mut times) in BYTES.into_iter().zip(times) {
        times.sort_by(f32::total_cmp);
        let (median, best) = (f64::from(times[times.len() / 2]), f64::from(times[0]));
        let moved = 2.0 * (world - 1) as f64 / world as f64 * bytes as f64;
        let rate = moved / median / 1e9;
        println!("{world:>5} {bytes:>10} {:>12.1} {:>12.1} {rate:>12.2}", median * 1e6, best * 1e6);
    }
}

/// For each message size, the times of its repetitions in seconds, each the maximum over ranks.
fn measure(mut endpoint: Endpoint) -> Result<Vec<Vec<f32>>, CommunicationError> {
    let members: Vec<_> = (0..endpoint.world()).collect();
    let mut group = endpoint.group("data", &members)?;
    let mut times = Vec::new();
    for bytes in BYTES {
        let mut values = vec![1.0; bytes / 4];
        let repetitions = ((64 << 20) / bytes).clamp(15, 2000);
        for _ in 0..repetitions / 10 + 2 {
            group.all_reduce(&mut values, ReduceOp::Max)?;
        }
        let mut of_size = Vec::new();
        for _ in 0..repetitions {
            group.barrier()?;
            let start = Instant::now();
            group.all_reduce(&mut values, ReduceOp::Sum)?;
            of_size.push(start.elapsed().as_secs_f32());
        }
        group.all_reduce(&mut of_size, ReduceOp::Max)?;
        times.push(of_size);
    }
    endpoint.close()?;
    Ok(times)
}
