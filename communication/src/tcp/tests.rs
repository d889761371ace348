//! Ranks that have the token can join, even if other processes use the same port; and they reveal nothing to
//! processes without it.

use super::*;
use crate::connection::{receive_exact, send_all};
use crate::secret::Nonce;
use crate::wire::{Decoder, frame};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Longer than any test here takes.
const LIMIT: Duration = Duration::from_secs(20);

fn options(rendezvous: SocketAddr, rank: usize, timeout: Duration) -> TcpOptions {
    TcpOptions { rendezvous, rank, world: 2, token: "secret".to_owned(), timeout, bind: None }
}

/// Two ranks that have joined.
fn pair(rendezvous: &Rendezvous) -> [TcpTransport; 2] {
    let ranks = [0, 1].map(|rank| {
        let options = options(rendezvous.address(), rank, LIMIT);
        std::thread::spawn(move || enter(options).unwrap().0)
    });
    ranks.map(|rank| rank.join().unwrap())
}

/// Opens a lane between two ranks and sends a message.
fn talk([zero, one]: &mut [TcpTransport; 2], lane: &str) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let connection = zero.connect(lane, &[1]).unwrap().remove(0);
            send_all(&*connection, b"it is me", "test").unwrap();
        });
        let connection = one.connect(lane, &[0]).unwrap().remove(0);
        let mut heard = [0; 8];
        receive_exact(&*connection, &mut heard, "test").unwrap();
        assert_eq!(&heard, b"it is me");
    });
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// Sends a greeting and returns both nonces, and the proof of the listening side.
fn greet(socket: &mut TcpStream) -> (Nonce, Nonce, Vec<u8>) {
    let own = nonce().unwrap();
    socket.write_all(&Greeting::new(own).frame()).unwrap();
    let (called, proof) = parse_challenge(&next(socket).1).unwrap();
    (own, called, proof.to_vec())
}

fn next(socket: &mut TcpStream) -> (Kind, Vec<u8>) {
    let mut decoder = Decoder::default();
    loop {
        if let Some(frame) = decoder.next(LONGEST_HELLO).unwrap() {
            return frame;
        }
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        decoder.bytes.push(byte[0]);
    }
}

fn is_closed(socket: &mut TcpStream) -> bool {
    match socket.read(&mut [0; 8]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_rank_lets_nobody_in_who_does_not_know_the_token() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let mut ranks = pair(&rendezvous);
    let address = ranks[0].table[1];
    let lane = || Purpose::Lane { name: "data".to_owned(), channel: 0 };
    let zero = || Hello { world: 2, rank: 0, purpose: lane() };
    let secret = Secret::new("secret");

    // Each one claims to be rank 0, and connects first.
    for token in ["guess", "", "secre", "secret but longer"] {
        let mut socket = connect(address);
        let (own, called, _) = greet(&mut socket);
        let hello = zero().frame(&Secret::new(token), Role::Rank(1), &own, &called);
        socket.write_all(&hello).unwrap();
        assert!(is_closed(&mut socket), "{token}");
    }
    // A proof for another role is not valid here.
    for role in [Role::Rendezvous, Role::Rank(0)] {
        let mut socket = connect(address);
        let (own, called, _) = greet(&mut socket);
        socket.write_all(&zero().frame(&secret, role, &own, &called)).unwrap();
        assert!(is_closed(&mut socket), "{role:?}");
    }
    // Neither is an earlier proof, or the listening side's own proof.
    let mut before = connect(address);
    let (own, called, _) = greet(&mut before);
    let old = zero().frame(&secret, Role::Rank(1), &own, &called);
    let mut again = connect(address);
    again.write_all(&Greeting::new(own).frame()).unwrap();
    let (_, challenge) = next(&mut again);
    assert_ne!(parse_challenge(&challenge).unwrap().0, called);
    again.write_all(&old).unwrap();
    assert!(is_closed(&mut again));
    let mut mirror = connect(address);
    let (_, _, proof) = greet(&mut mirror);
    let says = serde_json::to_vec(&zero()).unwrap();
    mirror.write_all(&frame(Kind::Hello, &[proof, says].concat())).unwrap();
    assert!(is_closed(&mut mirror));
    // A hello without a greeting, and one that does not wait for the challenge.
    let mut hasty = connect(address);
    hasty.write_all(&old).unwrap();
    assert!(is_closed(&mut hasty));
    let mut hasty = connect(address);
    hasty.write_all(&[Greeting::new(own).frame(), old].concat()).unwrap();
    assert!(is_closed(&mut hasty));

    // A process that has the token gets the reason why it is rejected.
    let join = Purpose::Join { listens: None };
    for (hello, expected) in [
        (Hello { world: 3, rank: 0, purpose: lane() }, "its job has 2 ranks, this rank's has 3"),
        (Hello { world: 2, rank: 2, purpose: lane() }, "rank 2 does not exist in a job of 2"),
        (Hello { world: 2, rank: 0, purpose: join }, "this is a rank, not the rendezvous"),
    ] {
        let connection = SocketConnection::tcp(connect(address), Peer::Rank(1), "test", LIMIT).unwrap();
        let until = Instant::now() + LIMIT;
        let error = introduce(&connection, address, &secret, Role::Rank(1), &hello, until).unwrap_err();
        assert_eq!(error.to_string(), format!("{address} refused: {expected}"));
    }
    talk(&mut ranks, "data");
}

/// Connections of processes without the token.
fn strangers(address: SocketAddr) -> Vec<TcpStream> {
    let mut all: Vec<TcpStream> = (0..150).map(|_| connect(address)).collect();
    // A long frame, a byte at a time: one now, and more while the others open their lanes.
    let mut slow = connect(address);
    slow.write_all(&[0x60, 0xea, 0, 0, 16]).unwrap();
    let mut drip = slow.try_clone().unwrap();
    std::thread::spawn(move || {
        while drip.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    all.push(slow);
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.6\r\n", &[0xff; 5000], &[0; 3]] {
        let mut socket = connect(address);
        // The connection may be closed already.
        let _ = socket.write_all(words);
        all.push(socket);
    }
    let mut half = connect(address);
    half.write_all(&Greeting::new([7; 32]).frame()).unwrap();
    all.push(half);
    all
}

#[test]
fn strangers_do_not_hold_up_ranks_and_are_named() {
    static TALES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let warn = |tale: &str| TALES.lock().unwrap().push(tale.to_owned());
    let rendezvous = Rendezvous::bind_with(LOOPBACK, 2, "secret", None, warn).unwrap();
    let at_the_rendezvous = strangers(rendezvous.address());
    let mut ranks = pair(&rendezvous);
    let at_a_rank = strangers(ranks[0].table[1]);
    for lane in ["one", "two"] {
        talk(&mut ranks, lane);
    }
    drop((at_the_rendezvous, at_a_rank));
    let until = Instant::now() + LIMIT;
    let told = |of: &str| TALES.lock().unwrap().iter().any(|tale| tale.contains(of));
    let here = format!("connected to {}", rendezvous.address());
    while !(told(&here) && told("rank 1: 127.0.0.1:")) {
        assert!(Instant::now() < until, "{:?}", TALES.lock().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Hundreds of rejected connections give only a few reports.
    assert!(TALES.lock().unwrap().len() <= 8, "{:?}", TALES.lock().unwrap());
}

#[test]
fn the_rendezvous_is_closed_once_all_have_come() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let mut early = connect(rendezvous.address());
    let ranks = pair(&rendezvous);
    assert!(is_closed(&mut early), "nor is anybody kept who came before");
    let late = TcpStream::connect(rendezvous.address()).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::ConnectionRefused);
    drop(ranks);
}

#[test]
fn who_only_attends_does_not_listen() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let address = rendezvous.address();
    let attends = [0, 1]
        .map(|rank| std::thread::spawn(move || meet(&options(address, rank, LIMIT), |_| Ok(None)).unwrap()));
    for attends in attends {
        let (control, table) = attends.join().unwrap();
        assert!(table.is_empty());
        control.leave().unwrap();
    }
    assert_eq!(rendezvous.events().iter().count(), 4, "both have come and gone");
}

/// Answers a caller with `answer`, a function of the first bytes that it sends; returns all bytes that it
/// sends.
fn impostor(
    answer: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
) -> (TcpListener, std::thread::JoinHandle<Vec<u8>>) {
    let open = TcpListener::bind(LOOPBACK).unwrap();
    let listener = open.try_clone().unwrap();
    let heard = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut heard = vec![0; Greeting::new([0; 32]).frame().len()];
        socket.read_exact(&mut heard).unwrap();
        // The caller may have disconnected already.
        let _ = socket.write_all(&answer(&heard));
        let _ = socket.read_to_end(&mut heard);
        heard
    });
    (open, heard)
}

#[test]
fn nothing_is_told_to_who_does_not_know_the_token() {
    let greeting = Greeting::new([0; 32]).frame().len();
    let long = "a name\u{1b}[31m\n".repeat(100);
    type Answer = Box<dyn FnOnce(&[u8]) -> Vec<u8> + Send>;
    let challenge = |token: &'static str, role: Role| -> Answer {
        Box::new(move |heard| {
            let caller = Greeting::parse(&heard[5..]).unwrap().nonce;
            crate::wire::challenge(&Secret::new(token), role, &caller, &[1; 32])
        })
    };
    let answers: [(&str, Answer); 7] = [
        ("does not know this job's token", challenge("guess", Role::Rendezvous)),
        // A proof of a rank of the same job, for another connection.
        ("does not know this job's token", challenge("secret", Role::Rank(0))),
        (
            "does not know this job's token",
            Box::new(|heard| {
                // The caller's own nonce, twice.
                frame(Kind::Challenge, &[&heard[10..], &heard[10..]].concat())
            }),
        ),
        ("has not proved", Box::new(|heard| heard.to_vec())),
        ("has not proved", Box::new(|_| frame(Kind::Welcome, &[]))),
        ("has not proved", Box::new(|_| Vec::new())),
        (
            "refused: a name\\u{1b}[31m\\na name",
            Box::new(move |_| crate::wire::frame_of(Kind::Refused, &Refusal(long))),
        ),
    ];
    for (expected, answer) in answers {
        let (listener, heard) = impostor(answer);
        let address = listener.local_addr().unwrap();
        let error = attend(&options(address, 1, Duration::from_millis(200))).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(&address.to_string()) && error.len() < 400, "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
        assert_eq!(heard.join().unwrap().len(), greeting, "{expected}: more was said than a random number");
    }
}

#[test]
fn a_rank_that_cannot_be_reached_is_named_with_its_address() {
    let rendezvous = Rendezvous::bind(LOOPBACK, 2, "secret").unwrap();
    let mut ranks = pair(&rendezvous);
    // A listener that does not accept, with a full queue: as behind a firewall, there is no answer.
    let deaf = deaf();
    let address = deaf.0;
    ranks[0].table[1] = address;
    ranks[0].timeout = Duration::from_millis(300);
    let error = ranks[0].connect("data", &[1]).err().unwrap();
    assert!(matches!(error, CommunicationError::Unreachable { peer: Peer::Rank(1), .. }), "{error}");
    assert_eq!(error.accused_rank(), None, "it says more than that somebody is silent");
    assert!(error.to_string().contains(&format!("rank 1 cannot be reached at {address}: no answer")));
    let error = attend(&options(address, 0, Duration::from_millis(300))).err().unwrap();
    assert!(error.to_string().contains(&format!("cannot be reached at {address}")), "{error}");
}

/// An address that no longer answers, and the sockets that keep it so.
fn deaf() -> (SocketAddr, TcpListener, Vec<Socket>) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    SockRef::from(&listener).listen(0).unwrap();
    let waiting = (0..8).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        // There is no answer yet, or none at all.
        let _ = socket.connect(&address.into());
        socket
    });
    let waiting = waiting.collect();
    (address, listener, waiting)
}
