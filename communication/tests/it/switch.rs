//! Links between ranks that are slowed down by a switch.
use crate::common;

use autodist_communication::switch::{Switch, SwitchLinks, SwitchRoute};
use autodist_communication::tcp::{Rendezvous, join};
use autodist_communication::{CommunicationError, Endpoint, ReduceOp};
use common::{TIMEOUT, options};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ranks of one uplink and one downlink each.
fn star(rates: &[f64], delay: Duration) -> SwitchLinks {
    let ranks = rates.len();
    let route = |from: usize, to: usize| match from == to {
        true => SwitchRoute::default(),
        false => SwitchRoute { links: vec![2 * from, 2 * to + 1], delay },
    };
    SwitchLinks {
        rates: rates.iter().flat_map(|rate| [*rate, *rate]).collect(),
        routes: (0..ranks).map(|from| (0..ranks).map(|to| route(from, to)).collect()).collect(),
    }
}

/// Runs `work` on a thread for each rank; returns the results and the bytes carried by the switch.
fn over<T: Send>(links: SwitchLinks, work: impl Fn(Endpoint) -> T + Sync) -> (Vec<T>, Vec<Vec<u64>>) {
    let world = links.routes.len();
    let switch = Arc::new(Switch::start(links).unwrap());
    let address = ([127, 0, 0, 1], 0).into();
    let rendezvous = Rendezvous::bind_with(address, world, "secret", Some(switch.clone()), |_| {}).unwrap();
    let address = rendezvous.address();
    let work = &work;
    let results = std::thread::scope(|scope| {
        let rank = |rank| scope.spawn(move || work(join(options(address, rank, world, TIMEOUT)).unwrap()));
        let handles: Vec<_> = (0..world).map(rank).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    (results, switch.carried())
}

const FAST: f64 = 1e9;

#[test]
fn what_is_sent_arrives_unchanged_in_both_directions() {
    let lengths = [1, 700, 30_000, 100_003];
    let (results, carried) = over(star(&[4e7, 2e7], Duration::from_micros(200)), |mut endpoint| {
        let (rank, peer) = (endpoint.rank(), 1 - endpoint.rank());
        let mut mailbox = endpoint.point_to_point("both", &[peer]).unwrap();
        let of = |rank: usize, length: usize| common::values(rank, length);
        lengths.iter().for_each(|length| mailbox.send(peer, *length as u64, of(rank, *length)).unwrap());
        let arrived =
            lengths.iter().all(|length| mailbox.receive(peer, *length as u64).unwrap() == of(peer, *length));
        mailbox.close().unwrap();
        arrived
    });
    assert_eq!(results, [true, true]);
    let payload = 4 * lengths.iter().sum::<usize>() as u64;
    assert!(carried[0][1] >= payload && carried[1][0] >= payload, "{carried:?}");
}

/// Seconds that a message of `bytes` takes from `from` to `to`, whose arrival is acknowledged.
fn message_seconds(mut endpoint: Endpoint, from: usize, to: usize, bytes: usize) -> f64 {
    let rank = endpoint.rank();
    let peer = if rank == from { to } else { from };
    let mut mailbox = endpoint.point_to_point("flow", &[peer]).unwrap();
    // Both ranks are ready.
    mailbox.send(peer, 0, vec![0.0]).unwrap();
    mailbox.receive(peer, 0).unwrap();
    let start = Instant::now();
    if rank == from {
        mailbox.send(peer, 1, vec![1.0; bytes / 4]).unwrap();
        mailbox.receive(peer, 2).unwrap();
    } else {
        mailbox.receive(peer, 1).unwrap();
        mailbox.send(peer, 2, vec![0.0]).unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    mailbox.close().unwrap();
    seconds
}

#[test]
fn a_link_lets_no_more_through_than_its_rate() {
    let bytes = 2 << 20;
    let (seconds, _) = over(star(&[2e7, FAST], Duration::ZERO), |e| message_seconds(e, 0, 1, bytes));
    let ideal = bytes as f64 / 2e7;
    assert!(seconds[0] >= 0.97 * ideal, "{} s where {ideal} s are due", seconds[0]);
}

#[test]
fn each_direction_has_a_rate_of_its_own() {
    let bytes = 1 << 20;
    let mut links = star(&[FAST, FAST], Duration::ZERO);
    // Only the uplink of rank 1 is slow.
    links.rates[2] = 1e7;
    let (up, _) = over(links.clone(), |e| message_seconds(e, 1, 0, bytes));
    let (down, _) = over(links, |e| message_seconds(e, 0, 1, bytes));
    assert!(up[1] >= 0.97 * bytes as f64 / 1e7, "{up:?}");
    assert!(down[0] < up[1], "{} s down, {} s up", down[0], up[1]);
}

#[test]
fn the_delay_is_in_every_round_trip() {
    let delay = Duration::from_millis(3);
    let (seconds, _) = over(star(&[FAST, FAST], delay), |e| message_seconds(e, 0, 1, 4));
    assert!(seconds[0] >= 2.0 * delay.as_secs_f64(), "{seconds:?}");
}

#[test]
fn flows_that_share_a_link_share_its_rate() {
    // Ranks 1 and 2 send to rank 0 at once: its downlink is the bottleneck.
    let bytes = 1 << 20;
    let mut links = star(&[FAST, FAST, FAST], Duration::ZERO);
    links.rates[1] = 2e7;
    let (seconds, _) = over(links, |mut endpoint| {
        let rank = endpoint.rank();
        let everyone = [0, 1, 2];
        let mut group = endpoint.group("all", &everyone).unwrap();
        let peers: Vec<usize> = if rank == 0 { vec![1, 2] } else { vec![0] };
        let mut mailbox = endpoint.point_to_point("flows", &peers).unwrap();
        group.barrier().unwrap();
        let start = Instant::now();
        if rank == 0 {
            for peer in peers {
                mailbox.receive(peer, 0).unwrap();
                mailbox.send(peer, 1, vec![0.0]).unwrap();
            }
        } else {
            mailbox.send(0, 0, vec![1.0; bytes / 4]).unwrap();
            mailbox.receive(0, 1).unwrap();
        }
        let seconds = start.elapsed().as_secs_f64();
        mailbox.close().unwrap();
        seconds
    });
    let alone = bytes as f64 / 2e7;
    assert!(seconds[0] >= 0.97 * 2.0 * alone, "{seconds:?}");
    // The rate was shared: the first transfer to complete took nearly as long as both.
    let first = seconds[1].min(seconds[2]);
    assert!(first >= 1.6 * alone, "{seconds:?}");
}

#[test]
fn collectives_pass_through_and_are_counted() {
    let links = star(&[5e7; 4], Duration::from_micros(100));
    let (results, carried) = over(links, |mut endpoint| {
        let mut group = endpoint.group("all", &[0, 1, 2, 3]).unwrap();
        let mut values = vec![1.0 + endpoint.rank() as f32; 50_000];
        group.all_reduce(&mut values, ReduceOp::Sum).unwrap();
        assert!(values.iter().all(|value| *value == 10.0));
        group.counters().sent
    });
    for (rank, sent) in results.iter().enumerate() {
        let through: u64 = carried[rank].iter().sum();
        assert!(through >= *sent, "rank {rank} sent {sent} bytes, {through} were carried");
    }
}

#[test]
fn a_peer_that_is_gone_is_noticed_through_the_switch() {
    let (results, _) = over(star(&[1e7, 1e7], Duration::from_millis(1)), |mut endpoint| {
        let mut group = endpoint.group("pair", &[0, 1]).unwrap();
        group.barrier().unwrap();
        if endpoint.rank() == 1 {
            return true;
        }
        let mut values = vec![1.0; 1 << 20];
        matches!(group.all_reduce(&mut values, ReduceOp::Sum), Err(CommunicationError::PeerClosed { .. }))
    });
    assert_eq!(results, [true, true]);
}
