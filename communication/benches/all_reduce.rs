//! All-reduce over TCP on this machine, ranks as threads, each algorithm compared with a plain copy of as
//! many bytes over one connection; and over links of 200 Mbit/s, compared with the lower bound of all
//! algorithms: `cargo bench -p autodist-communication`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use autodist_communication::switch::{Switch, SwitchLinks, SwitchRoute};
use autodist_communication::tcp::{Rendezvous, TcpOptions, join};
use autodist_communication::{Communicator, GroupOptions, ReduceOp, Result};
use autodist_spec::Algorithm;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BYTES: [usize; 3] = [4 << 10, 1 << 20, 32 << 20];

fn algorithms(size: usize) -> Vec<Algorithm> {
    let mut all = vec![Algorithm::Ring, Algorithm::DoubleBinaryTree, Algorithm::HalvingDoubling];
    if size > 2 {
        all.push(Algorithm::Hierarchical { inner: 2 });
        all.push(Algorithm::Torus { columns: 2 });
    }
    all
}

/// Opens one group on all ranks, through a switch if one is given.
fn open(world: usize, switch: Option<Arc<Switch>>) -> Result<Vec<Box<dyn Communicator>>> {
    let rendezvous = Rendezvous::bind_with(([127, 0, 0, 1], 0).into(), world, "bench", switch, |_| {})?;
    let address = rendezvous.address();
    std::thread::scope(|scope| {
        let rank = |rank| {
            scope.spawn(move || {
                let token = "bench".to_owned();
                let timeout = Duration::from_secs(60);
                let mut endpoint =
                    join(TcpOptions { rendezvous: address, rank, world, token, timeout, bind: None })?;
                let members: Vec<_> = (0..world).collect();
                let options = GroupOptions { algorithms: algorithms(world), all_to_all: false };
                let group = endpoint.group_for("data", &members, &options)?;
                endpoint.close()?;
                Ok(group)
            })
        };
        let ranks: Vec<_> = (0..world).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    })
}

/// The time of the slowest rank for the given number of all-reduces.
fn reduce(groups: &mut [Box<dyn Communicator>], algorithm: Algorithm, bytes: usize, times: u64) -> Duration {
    std::thread::scope(|scope| {
        let rank = |group: &mut Box<dyn Communicator>| -> Result<Duration> {
            let mut values = vec![1.0; bytes / 4];
            group.barrier()?;
            let start = Instant::now();
            for _ in 0..times {
                group.all_reduce_by(algorithm, &mut values, ReduceOp::Max)?;
            }
            Ok(start.elapsed())
        };
        let ranks: Vec<_> = groups.iter_mut().map(|group| scope.spawn(move || rank(group))).collect();
        let times = ranks.into_iter().map(|rank| rank.join().expect("no rank panics"));
        times.map(|time| time.expect("all ranks are here")).max().unwrap_or_default()
    })
}

/// The time of one connection for the given number of messages, from the first byte written to the last one
/// read.
fn copy(
    sender: &mut TcpStream,
    receiver: &mut TcpStream,
    bytes: usize,
    times: u64,
) -> std::io::Result<Duration> {
    let (outgoing, mut incoming) = (vec![1; bytes], vec![0; bytes]);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || (0..times).try_for_each(|_| sender.write_all(&outgoing)));
        (0..times).try_for_each(|_| receiver.read_exact(&mut incoming))?;
        writing.join().expect("no thread panics")
    })?;
    Ok(start.elapsed())
}

fn connection() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    sender.set_nodelay(true)?;
    Ok((sender, listener.accept()?.0))
}

fn all_reduce(criterion: &mut Criterion) {
    let (mut sender, mut receiver) = connection().expect("loopback works");
    for world in [2, 4] {
        let mut groups = open(world, None).expect("ranks find each other");
        let mut bench = criterion.benchmark_group(format!("{world} ranks"));
        bench
            .sample_size(10)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(500));
        for bytes in BYTES {
            bench.throughput(Throughput::Bytes(bytes as u64));
            for algorithm in algorithms(world) {
                bench.bench_function(BenchmarkId::new(algorithm.name(), bytes), |bencher| {
                    bencher.iter_custom(|times| reduce(&mut groups, algorithm, bytes, times));
                });
            }
            bench.bench_function(BenchmarkId::new("one stream", bytes), |bencher| {
                bencher.iter_custom(|times| {
                    copy(&mut sender, &mut receiver, bytes, times).expect("loopback works")
                });
            });
        }
        bench.finish();
    }
}

/// Bytes per second of each rank's uplink and downlink.
const RATE: f64 = 25e6;

/// Ranks of one uplink and one downlink each, 0.5 ms apart.
fn star(world: usize) -> SwitchLinks {
    let route = |from: usize, to: usize| match from == to {
        true => SwitchRoute::default(),
        false => SwitchRoute { links: vec![2 * from, 2 * to + 1], delay: Duration::from_micros(500) },
    };
    let routes = (0..world).map(|from| (0..world).map(|to| route(from, to)).collect()).collect();
    SwitchLinks { rates: vec![RATE; 2 * world], routes }
}

fn paced(criterion: &mut Criterion) {
    let world = 4;
    let switch = Arc::new(Switch::start(star(world)).expect("a switch takes sockets and a thread"));
    let mut groups = open(world, Some(Arc::clone(&switch))).expect("ranks find each other");
    let mut bench = criterion.benchmark_group("4 ranks, 200 Mbit/s");
    bench.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    for bytes in [1 << 20, 4 << 20] {
        // 2 (p - 1) / p n / rate (Patarasuk and Yuan, 2009).
        let bound = 2.0 * (world as f64 - 1.0) / world as f64 * f64::from(bytes) / RATE;
        let bytes = bytes as usize;
        bench.bench_function(
            BenchmarkId::new(format!("ring, bound {:.1} ms", 1e3 * bound), bytes),
            |bencher| {
                bencher.iter_custom(|times| reduce(&mut groups, Algorithm::Ring, bytes, times));
            },
        );
    }
    bench.finish();
}

criterion_group!(benches, all_reduce, paced);
criterion_main!(benches);
