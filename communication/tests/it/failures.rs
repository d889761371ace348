//! Failures are detected soon, and errors name the cause.

use crate::common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use autodist_communication::tcp::{Rendezvous, TcpOptions, join};
use autodist_communication::{
    CommunicationError, ControlEvent, Endpoint, GroupOptions, Peer, ReduceOp, local,
};
use autodist_spec::Algorithm;
use common::{Gate, TIMEOUT, any_transport, job, options, transports};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[test]
fn a_peer_that_ends_is_named_at_once() {
    for over in transports() {
        job(over, 3, TIMEOUT, |mut endpoint| {
            let rank = endpoint.rank();
            let mut group = endpoint.group("data", &[0, 1, 2]).unwrap();
            let start = Instant::now();
            if rank == 2 {
                return;
            }
            let error = group.all_reduce(&mut vec![1.0; 1_000_000], ReduceOp::Sum).unwrap_err();
            assert!(start.elapsed() < Duration::from_secs(2), "{over:?}: {:?}", start.elapsed());
            assert!(matches!(error, CommunicationError::PeerClosed { .. }), "{error}");
            // Rank 0 receives from rank 2, and rank 1 sends to it; a rank may also report a neighbour that
            // failed first.
            assert_ne!(error.accused_rank(), Some(rank));
            let again = group.barrier().unwrap_err();
            assert!(matches!(again, CommunicationError::Broken { .. }), "{again}");
        });
    }
}

#[test]
fn a_silent_peer_is_named_after_the_timeout() {
    for over in transports() {
        let patience = Duration::from_millis(300);
        let finish = Gate::new(over, 2);
        job(over, 2, patience, |mut endpoint| {
            let rank = endpoint.rank();
            let mut group = endpoint.group("data", &[0, 1]).unwrap();
            if rank == 0 {
                let error = group.all_reduce(&mut [1.0; 9], ReduceOp::Sum).unwrap_err();
                let CommunicationError::TimedOut { peer, ref lane, operation, waited } = error else {
                    panic!("{error}")
                };
                assert_eq!((peer, lane.as_str(), operation), (Peer::Rank(1), "data", "all-reduce"));
                assert!(waited >= patience && waited < 4 * patience, "{waited:?}");
                assert_eq!(error.to_string(), "all-reduce on `data`: rank 1 was silent for 0.3 s");
            }
            finish.wait();
        });
    }
}

#[test]
fn a_peer_that_never_opens_the_lane_is_named() {
    for over in transports() {
        let finish = Gate::new(over, 2);
        job(over, 2, Duration::from_millis(300), |mut endpoint| {
            if endpoint.rank() == 1 {
                let opened = endpoint.group("data", &[0, 1]);
                let outcome = opened.and_then(|mut group| group.barrier());
                assert_eq!(outcome.unwrap_err().accused_rank(), Some(0));
            }
            finish.wait();
        });
    }
}

#[test]
fn another_jobs_token_is_refused() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 1, "secret").unwrap();
    for token in ["guess", "", "secre", "secret "] {
        let wrong = TcpOptions { token: token.to_owned(), ..options(rendezvous.address(), 0, 1, TIMEOUT) };
        let error = join(wrong).err().unwrap();
        assert!(matches!(error, CommunicationError::BadToken { address } if address == rendezvous.address()));
    }
    // A process with the right token can still join.
    join(options(rendezvous.address(), 0, 1, TIMEOUT)).unwrap().close().unwrap();
    let events: Vec<_> = rendezvous.events().iter().collect();
    assert_eq!(events, [ControlEvent::Joined(0), ControlEvent::Left(0)]);
}

#[test]
fn a_rank_without_a_place_is_told_why() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let refusal = |options| join(options).err().unwrap().to_string();
    let address = rendezvous.address();
    assert_eq!(
        refusal(options(rendezvous.address(), 0, 3, TIMEOUT)),
        format!("{address} refused: its job has 2 ranks, this rank's has 3")
    );
    assert_eq!(
        refusal(options(rendezvous.address(), 2, 2, TIMEOUT)),
        format!("{address} refused: rank 2 does not exist in a job of 2")
    );
    let twice = std::thread::scope(|scope| {
        let first = scope.spawn(move || join(options(address, 0, 2, TIMEOUT)).unwrap());
        assert_eq!(rendezvous.events().recv().unwrap(), ControlEvent::Joined(0));
        let twice = refusal(options(rendezvous.address(), 0, 2, TIMEOUT));
        join(options(rendezvous.address(), 1, 2, TIMEOUT)).unwrap();
        first.join().unwrap();
        twice
    });
    assert_eq!(twice, format!("{address} refused: rank 0 has joined already"));
}

#[test]
fn a_taken_port_is_named() {
    let holder = TcpListener::bind(LOOPBACK).unwrap();
    let taken = holder.local_addr().unwrap();
    let error = Rendezvous::bind(taken, 2, "secret").err().unwrap();
    assert!(matches!(error, CommunicationError::AddressInUse { address } if address == taken));
    assert_eq!(error.to_string(), format!("cannot listen on {taken}: the address is in use"));
}

#[test]
fn an_absent_rendezvous_is_named() {
    let free = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap();
    let error = join(TcpOptions {
        rendezvous: free,
        rank: 0,
        world: 1,
        token: String::new(),
        timeout: Duration::from_millis(200),
        bind: None,
    });
    let error = error.err().unwrap();
    assert!(matches!(error, CommunicationError::Refused { address, .. } if address == free), "{error}");
}

#[test]
fn a_missing_rank_times_the_rendezvous_out() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let error = join(options(rendezvous.address(), 0, 2, Duration::from_millis(200))).err().unwrap();
    assert!(
        matches!(error, CommunicationError::RanksMissing { address, .. } if address == rendezvous.address()),
        "{error}"
    );
    // The place of rank 0 is free again for a job that starts over.
    let ranks = [0, 1].map(|rank| {
        let options = options(rendezvous.address(), rank, 2, TIMEOUT);
        std::thread::spawn(move || join(options).unwrap().close().unwrap())
    });
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

#[test]
fn strangers_do_not_disturb() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let mut lost = TcpStream::connect(rendezvous.address()).unwrap();
    lost.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = TcpStream::connect(rendezvous.address()).unwrap();
    let ranks = [0, 1].map(|rank| {
        let options = options(rendezvous.address(), rank, 2, TIMEOUT);
        std::thread::spawn(move || {
            let mut endpoint = join(options).unwrap();
            endpoint.group("data", &[0, 1]).unwrap().barrier().unwrap();
        })
    });
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

#[test]
fn groups_that_are_none() {
    job(any_transport(), 2, TIMEOUT, |mut endpoint| {
        let rank = endpoint.rank();
        for bad in [&[0, 1, 1][..], &[0, 1, 2], &[1 - rank], &[]] {
            let error = endpoint.group("data", bad).err().unwrap();
            assert!(matches!(error, CommunicationError::InvalidGroup { .. }), "{error}");
        }
        let group = endpoint.group("data", &[rank]).unwrap();
        assert_eq!((group.rank(), group.size()), (0, 1));
        let error = endpoint.group("data", &[0, 1]).err().unwrap();
        assert_eq!(
            error.to_string(),
            format!("cannot open `data` between ranks [0, 1] at rank {rank} of 2: the name is in use")
        );
    });
}

#[test]
fn the_launcher_hears_and_is_heard() {
    let (endpoints, supervisor) = local::mesh(2, TIMEOUT).unwrap();
    let ranks: Vec<_> = endpoints
        .into_iter()
        .map(|endpoint| {
            std::thread::spawn(move || {
                let control = endpoint.control().clone();
                assert!(!control.stop_requested());
                control.send(b"").unwrap();
                control.send(&vec![endpoint.rank() as u8; 1 << 20]).unwrap();
                while !control.stop_requested() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if endpoint.rank() == 0 {
                    endpoint.close().unwrap();
                }
            })
        })
        .collect();
    // Parts of long messages count as heartbeats; their number depends on the socket.
    let alive = |event: &ControlEvent| matches!(event, ControlEvent::Alive(_));
    let mut events: Vec<_> = supervisor.events().iter().filter(|event| !alive(event)).take(6).collect();
    supervisor.stop_handle().stop_all();
    events.extend(supervisor.events().iter().filter(|event| !alive(event)));
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
    for rank in 0..2 {
        let of = |event: &ControlEvent| match event {
            ControlEvent::Joined(of)
            | ControlEvent::Left(of)
            | ControlEvent::Lost(of)
            | ControlEvent::Alive(of) => *of,
            ControlEvent::Message(of, _) => *of,
        };
        let last = if rank == 0 { ControlEvent::Left(rank) } else { ControlEvent::Lost(rank) };
        let expected = [
            ControlEvent::Joined(rank),
            ControlEvent::Message(rank, Vec::new()),
            ControlEvent::Message(rank, vec![rank as u8; 1 << 20]),
            last,
        ];
        let seen: Vec<_> = events.iter().filter(|&event| of(event) == rank).cloned().collect();
        assert!(seen == expected, "rank {rank}");
    }
}

#[test]
fn signs_of_life_are_heard_and_are_no_messages() {
    let (mut endpoints, supervisor) = local::mesh(1, TIMEOUT).unwrap();
    let rank = endpoints.remove(0);
    rank.control().alive().unwrap();
    rank.control().send(b"done").unwrap();
    rank.control().alive().unwrap();
    rank.close().unwrap();
    let events: Vec<_> = supervisor.events().iter().collect();
    let message = ControlEvent::Message(0, b"done".to_vec());
    let (alive, left) = (ControlEvent::Alive(0), ControlEvent::Left(0));
    assert_eq!(events, [ControlEvent::Joined(0), alive.clone(), message, alive, left]);
}

#[test]
fn ranks_stop_when_the_launcher_is_gone() {
    let (endpoints, supervisor) = local::mesh(1, TIMEOUT).unwrap();
    assert!(!endpoints[0].control().stop_requested());
    drop(supervisor);
    assert!(endpoints[0].control().stop_requested());
    assert!(endpoints[0].control().send(b"hello").is_err());
}

const CHILD: &str = "AUTODIST_COMMUNICATION_TEST_RENDEZVOUS";

/// Not a test of its own: the process that the next test kills.
#[test]
fn victim() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let (rendezvous, algorithm) = words.split_once(' ').unwrap();
    let options = options(rendezvous.parse().unwrap(), 1, FAMILY.len(), TIMEOUT);
    let mut endpoint = join(options).unwrap();
    let error = reduce_for_ever(&mut endpoint, ALGORITHMS[algorithm.parse::<usize>().unwrap()]);
    panic!("{error}");
}

/// The victim and the others.
const FAMILY: [usize; 4] = [0, 1, 2, 3];
const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Ring,
    Algorithm::DoubleBinaryTree,
    Algorithm::HalvingDoubling,
    Algorithm::Hierarchical { inner: 2 },
];

fn reduce_for_ever(endpoint: &mut Endpoint, algorithm: Algorithm) -> CommunicationError {
    let options = GroupOptions { algorithms: vec![algorithm], all_to_all: false };
    let mut group = endpoint.group_for("data", &FAMILY, &options).unwrap();
    endpoint.control().send(b"ready").unwrap();
    loop {
        if let Err(error) = group.all_reduce_by(algorithm, &mut vec![1.0; 300_000], ReduceOp::Sum) {
            return error;
        }
    }
}

#[test]
fn a_killed_process_is_named_at_once() {
    for (index, algorithm) in ALGORITHMS.into_iter().enumerate() {
        let rendezvous = Rendezvous::bind(LOOPBACK, FAMILY.len(), "secret").unwrap();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "failures::victim", "--nocapture"])
            .env(CHILD, format!("{} {index}", rendezvous.address()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ranks = [0, 2, 3].map(|rank| {
            let options = options(rendezvous.address(), rank, FAMILY.len(), TIMEOUT);
            std::thread::spawn(move || {
                let error = reduce_for_ever(&mut join(options).unwrap(), algorithm);
                (Instant::now(), error)
            })
        });
        let ready = ControlEvent::Message(1, b"ready".to_vec());
        assert!(rendezvous.events().iter().any(|event| event == ready));
        std::thread::sleep(Duration::from_millis(50));
        let killed = Instant::now();
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert!(rendezvous.events().iter().any(|event| event == ControlEvent::Lost(1)));
        let outcomes = ranks.map(|rank| rank.join().unwrap());
        assert!(outcomes.iter().any(|(_, error)| error.accused_rank() == Some(1)), "{outcomes:?}");
        for (noticed, error) in outcomes {
            assert!(matches!(error, CommunicationError::PeerClosed { .. }), "{error}");
            assert!(noticed.duration_since(killed) < Duration::from_secs(2), "{:?}", noticed - killed);
        }
    }
}

#[cfg(feature = "mpi")]
#[test]
fn over_mpi() {
    common::mpi::again(3, "failures::a_peer_that failures::a_silent_peer failures::groups_that_are_none");
}
