//! Messages from the launcher reach the ranks whole and in order.

use crate::common;

use std::time::{Duration, Instant};

use autodist_communication::tcp::{Rendezvous, join};
use autodist_communication::{CommunicationError, Control, ControlEvent, ControlOrder, Endpoint, local};
use common::{TIMEOUT, options};

/// A rendezvous of two ranks that have joined.
fn pair() -> (Rendezvous, [Endpoint; 2]) {
    let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), 2, "secret").unwrap();
    let ranks = [0, 1].map(|rank| {
        let options = options(rendezvous.address(), rank, 2, TIMEOUT);
        std::thread::spawn(move || join(options).unwrap())
    });
    let endpoints = ranks.map(|rank| rank.join().unwrap());
    (rendezvous, endpoints)
}

fn hear(control: &Control) -> ControlOrder {
    control.receive(TIMEOUT).unwrap().unwrap()
}

#[test]
fn messages_of_any_length_arrive_in_order() {
    let (rendezvous, endpoints) = pair();
    let (local, supervisor) = local::mesh(2, TIMEOUT).unwrap();
    for (supervisor, endpoints) in [(&*rendezvous, &endpoints[..]), (&supervisor, &local[..])] {
        let lengths = [0, 1, 5000, 3 << 20, 2];
        for length in lengths {
            for rank in 0..2 {
                supervisor.send(rank, &vec![rank as u8; length]).unwrap();
            }
        }
        supervisor.stop_all();
        for (rank, endpoint) in endpoints.iter().enumerate() {
            for length in lengths {
                assert!(hear(endpoint.control()) == ControlOrder::Message(vec![rank as u8; length]));
            }
            assert_eq!(hear(endpoint.control()), ControlOrder::Stop);
            assert_eq!(hear(endpoint.control()), ControlOrder::Stop, "it stays so");
        }
    }
}

#[test]
fn a_message_is_no_reason_to_stop_and_is_not_lost() {
    let (endpoints, supervisor) = local::mesh(1, TIMEOUT).unwrap();
    let control = endpoints[0].control();
    supervisor.send(0, b"one").unwrap();
    supervisor.send(0, b"two").unwrap();
    for _ in 0..20 {
        assert!(!control.stop_requested());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(hear(control), ControlOrder::Message(b"one".to_vec()));
    supervisor.stop_all();
    while !control.stop_requested() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(hear(control), ControlOrder::Message(b"two".to_vec()), "said before the end");
    assert_eq!(hear(control), ControlOrder::Stop);
}

#[test]
fn a_message_waits_until_all_ranks_have_joined() {
    let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), 2, "secret").unwrap();
    let address = rendezvous.address();
    let first = std::thread::spawn(move || join(options(address, 0, 2, TIMEOUT)).unwrap());
    assert_eq!(rendezvous.events().recv().unwrap(), ControlEvent::Joined(0));
    for rank in 0..2 {
        rendezvous.send(rank, b"early").unwrap();
    }
    let second = join(options(address, 1, 2, TIMEOUT)).unwrap();
    for endpoint in [first.join().unwrap(), second] {
        assert_eq!(hear(endpoint.control()), ControlOrder::Message(b"early".to_vec()));
    }
}

#[test]
fn silence_is_none_and_the_launchers_end_an_error() {
    let (rendezvous, endpoints) = pair();
    let control = endpoints[0].control();
    assert_eq!(control.receive(Duration::ZERO).unwrap(), None);
    let (began, limit) = (Instant::now(), Duration::from_millis(100));
    assert_eq!(control.receive(limit).unwrap(), None);
    assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
    rendezvous.send(0, b"last").unwrap();
    // Earlier messages are still received.
    assert_eq!(hear(control), ControlOrder::Message(b"last".to_vec()));
    drop(rendezvous);
    let error = control.receive(TIMEOUT).unwrap_err();
    assert!(matches!(error, CommunicationError::PeerClosed { .. }), "{error}");
}

#[test]
fn who_is_gone_gets_nothing_and_hinders_nobody() {
    let (rendezvous, [gone, here]) = pair();
    drop(gone);
    let lost = ControlEvent::Lost(0);
    assert!(rendezvous.events().iter().any(|event| event == lost));
    for rank in [0, 1, 7] {
        rendezvous.send(rank, b"hello").unwrap();
    }
    assert_eq!(hear(here.control()), ControlOrder::Message(b"hello".to_vec()));
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    let (_endpoints, supervisor) = local::mesh(1, TIMEOUT).unwrap();
    let error = supervisor.send(0, &vec![0; 64 << 20]).unwrap_err();
    assert!(error.to_string().contains("67108864 bytes"), "{error}");
}

#[test]
fn a_job_that_is_stopped_before_it_begins_says_so() {
    let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), 2, "secret").unwrap();
    rendezvous.stop_all();
    let error = join(options(rendezvous.address(), 0, 2, TIMEOUT)).err().unwrap();
    assert!(matches!(error, CommunicationError::Stopped { .. }), "{error}");
}
