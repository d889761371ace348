//! Limits on unauthenticated connections.

use super::*;
use rustix::process::{Rlimit, setrlimit};
use std::net::{IpAddr, Ipv4Addr};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn door() -> (Door, SocketAddr) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    (Door::new(listener, "secret", Role::Rendezvous).unwrap(), address)
}

/// The number of descriptors that the door waits for.
fn watched(door: &Door) -> usize {
    let mut descriptors = Vec::new();
    door.watch(&mut descriptors);
    descriptors.len()
}

#[test]
fn so_many_come_in_within_a_moment_and_stay_and_no_more() {
    let (mut door, address) = door();
    assert_eq!((watched(&door), door.due()), (1, None), "it sleeps until somebody comes");
    let _callers: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert!(door.tend(&[]).is_empty());
    // Then no connection is accepted until the interval is over, however many wait.
    assert_eq!((door.guests.len(), watched(&door)), (AT_ONCE, AT_ONCE));
    assert!(door.due().unwrap() <= REST);
    while door.guests.len() < door.most_guests || door.told == 0 {
        std::thread::sleep(door.due().unwrap().min(REST));
        door.tend(&[]);
        assert!(door.guests.len() <= door.most_guests);
    }
    // The oldest were dropped, and the first few of them were reported.
    assert!(door.guests.iter().zip(door.guests.iter().skip(1)).all(|(one, next)| one.since <= next.since));
    let told = door.strangers();
    assert!(!told.is_empty() && told.len() <= MOST_TOLD + 1, "{told:?}");
    assert!(told[0].contains("was the oldest of too many"), "{told:?}");
    assert!(door.strangers().is_empty(), "each is told once");
}

#[test]
fn a_guest_has_one_deadline_whatever_it_sends() {
    let (mut door, address) = door();
    let mut caller = TcpStream::connect(address).unwrap();
    while door.guests.is_empty() {
        door.tend(&[]);
    }
    let due = door.due().unwrap();
    for byte in Greeting::new([0; 32]).frame() {
        io::Write::write_all(&mut caller, &[byte]).unwrap();
        let mut descriptors = Vec::new();
        door.watch(&mut descriptors);
        let ready = poll::wait(&mut descriptors, Some(REST)).unwrap();
        door.tend(&ready);
        assert!(door.due().unwrap() <= due, "a byte prolongs nothing");
    }
    door.guests[0].since = Instant::now().checked_sub(HELLO_WITHIN).unwrap();
    assert_eq!(door.due(), Some(Duration::ZERO));
    door.tend(&[]);
    assert!(door.guests.is_empty());
    assert!(door.strangers()[0].contains("has not authenticated (no proof of the job's token) within 10 s"));
}

const CHILD: &str = "AUTODIST_COMMUNICATION_TEST_DESCRIPTORS";

fn limit_descriptors(most: u64) {
    let limit = Rlimit { current: Some(most), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// In a separate process, because it uses up its descriptors.
#[test]
fn a_door_without_descriptors_rests() {
    if std::env::var_os(CHILD).is_none() {
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "door::tests::a_door_without_descriptors_rests", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let (mut door, address) = door();
    let _first = TcpStream::connect(address).unwrap();
    while door.guests.is_empty() {
        door.tend(&[]);
    }
    std::thread::sleep(REST);
    let _second = TcpStream::connect(address).unwrap();
    limit_descriptors(3);
    assert!(door.tend(&[]).is_empty());
    // The listener is still ready: waiting for it would return at once, again and again.
    assert_eq!((door.guests.len(), watched(&door)), (0, 0), "it gives back what strangers hold, and rests");
    assert!(door.due().is_some_and(|due| due <= REST && !due.is_zero()), "{:?}", door.due());
    assert!(door.strangers()[0].contains("file descriptors ran out"));
    limit_descriptors(64);
    while door.guests.is_empty() {
        std::thread::sleep(door.due().unwrap_or_default());
        door.tend(&[]);
    }
    assert_eq!(most_guests(), 8);
}
