//! Random and altered bytes in place of all input from outside: nothing panics or hangs, announced lengths
//! allocate no memory, and the job continues.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::connection::{Connection, SocketConnection};
use crate::control::{Control, ControlEvent};
use crate::error::Peer;
use crate::mailbox::{Mailbox, StreamMailbox};
use crate::secret::{Role, Secret};
use crate::supervisor::Supervisor;
use crate::tcp::{Rendezvous, TcpOptions, introduce, join};
use crate::wire::{Decoder, Greeting, Hello, Kind, LONGEST_HELLO, Purpose, challenge, frame};

/// Longer than any test here takes; each must end by itself before.
const LIMIT: Duration = Duration::from_secs(20);

/// Variants of the correct bytes `words`: truncated, with changed bytes, with bytes appended, or random.
fn altered(words: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = words.len();
    let change = (0..length, 0..=length, vec((0..length, any::<u8>()), 0..4), vec(any::<u8>(), 0..40));
    let changed = change.prop_map(move |(from, to, bytes, more)| {
        let mut words = words.clone();
        for (place, byte) in bytes {
            words[place] = byte;
        }
        words.truncate(to.max(1));
        if more.len().is_multiple_of(3) {
            let last = words.len() - 1;
            words.rotate_left(from.min(last));
        }
        words.extend(more);
        words
    });
    prop_oneof![4 => changed, 1 => vec(any::<u8>(), 0..200), 1 => frames()]
}

/// Whole frames of all kinds, and some with a wrong length.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let one = (any::<u32>(), 10..30_u8, vec(any::<u8>(), 0..60), 0..4_u8);
    let one = one.prop_map(|(length, kind, payload, lies)| {
        let length = if lies == 0 { length } else { payload.len() as u32 + 1 };
        [&length.to_le_bytes()[..], &[kind], &payload].concat()
    });
    vec(one, 1..5).prop_map(|frames| frames.concat())
}

fn pair() -> (SocketConnection, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (SocketConnection::unix(here, Peer::Rank(1), "test", LIMIT).unwrap(), there)
}

fn greeting() -> Vec<u8> {
    Greeting::new([3; 32]).frame()
}

fn hello() -> Vec<u8> {
    let hello = Hello { world: 2, rank: 0, purpose: Purpose::Join { listens: None } };
    hello.frame(&Secret::new("secret"), Role::Rendezvous, &[3; 32], &[4; 32])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decoder_keeps_no_more_than_has_come(
        portions in vec(altered([greeting(), frame(Kind::Message, b"words")].concat()), 1..6)
    ) {
        let mut decoder = Decoder::default();
        let mut come = 0;
        for portion in portions {
            come += portion.len();
            decoder.bytes.extend_from_slice(&portion);
            while let Ok(Some((_, payload))) = decoder.next(LONGEST_HELLO) {
                prop_assert!(payload.capacity() <= come);
            }
            prop_assert!(decoder.bytes.capacity() <= 8 + 2 * come);
        }
    }

    #[test]
    fn a_caller_survives_any_answer(
        answer in altered(challenge(&Secret::new("secret"), Role::Rank(1), &[3; 32], &[4; 32])),
        more in altered(frame(Kind::Welcome, &[])),
    ) {
        let (connection, mut there) = pair();
        there.write_all(&[answer, more].concat()).unwrap();
        there.shutdown(Shutdown::Write).unwrap();
        let hello = Hello { world: 2, rank: 0, purpose: Purpose::Join { listens: None } };
        let address = ([127, 0, 0, 1], 1).into();
        let until = Instant::now() + LIMIT;
        // The nonce differs each time, so no earlier challenge is valid.
        let secret = Secret::new("secret");
        prop_assert!(introduce(&connection, address, &secret, Role::Rank(1), &hello, until).is_err());
        prop_assert!(Instant::now() < until);
    }

    #[test]
    fn a_rank_survives_any_order(bytes in altered([frame(Kind::Message, b"one"), frame(Kind::Stop, b"")].concat())) {
        let (connection, mut there) = pair();
        let control = Control::new(Arc::new(connection));
        there.write_all(&bytes).unwrap();
        drop(there);
        // Messages until the end of the input; then an error ends the loop.
        while let Ok(Some(crate::ControlOrder::Message(message))) = control.receive(LIMIT) {
            prop_assert!(message.len() <= bytes.len());
        }
        prop_assert!(control.stop_requested());
    }

    #[test]
    fn a_mailbox_survives_any_message(
        bytes in altered([&7_u64.to_le_bytes()[..], &2_u64.to_le_bytes(), &[0; 8]].concat())
    ) {
        let (connection, mut there) = pair();
        let connection: Arc<dyn Connection> = Arc::new(connection);
        let mut mailbox = StreamMailbox::start("test", vec![(1, connection)]).unwrap();
        there.write_all(&bytes).unwrap();
        there.shutdown(Shutdown::Write).unwrap();
        // Messages until the end of the input; then an error ends the loop.
        while let Ok(values) = mailbox.receive(1, 7) {
            prop_assert!(4 * values.len() <= bytes.len());
        }
    }
}

#[test]
fn an_announced_length_takes_no_memory() {
    use crate::connection::next_room;
    // The allocation is at most twice the bytes that have arrived.
    assert_eq!(next_room(0, 1 << 40, 1), 16 << 20);
    assert_eq!(next_room(0, 1 << 40, 4), 4 << 20);
    assert_eq!(next_room(16 << 20, 1 << 40, 1), 32 << 20);
    assert_eq!(next_room(64 << 20, 1 << 40, 1), 128 << 20);
    assert_eq!(next_room(64 << 20, 65 << 20, 1), 65 << 20);
    assert_eq!(next_room(0, 3, 1), 3);

    // An announced length of 64 GB, then the end of the stream.
    let (connection, mut there) = pair();
    let connection: Arc<dyn Connection> = Arc::new(connection);
    let mut mailbox = StreamMailbox::start("test", vec![(1, connection)]).unwrap();
    there.write_all(&[7_u64.to_le_bytes(), (1_u64 << 34).to_le_bytes()].concat()).unwrap();
    drop(there);
    let error = mailbox.receive(1, 7).unwrap_err();
    assert!(matches!(error, crate::CommunicationError::PeerClosed { .. }), "{error}");
}

#[test]
fn a_launcher_survives_any_word_of_a_rank_and_serves_the_others() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let words = altered([frame(Kind::Message, b"one"), frame(Kind::Leave, b"")].concat());
    let outcome = runner.run(&words, |bytes| {
        let ((broken, mut there), (good, here)) = (pair(), pair());
        let known = vec![(0, broken), (1, good)];
        let supervisor = Supervisor::start(2, None, known, None, |_| {}).unwrap();
        there.write_all(&bytes).unwrap();
        drop(there);
        let good = SocketConnection::unix(here, Peer::Launcher, "control", LIMIT).unwrap();
        let good = Control::new(Arc::new(good));
        good.send(b"still here").unwrap();
        good.leave().unwrap();
        let events: Vec<_> = supervisor.events().iter().collect();
        prop_assert!(events.contains(&ControlEvent::Message(1, b"still here".to_vec())));
        prop_assert!(events.contains(&ControlEvent::Left(1)));
        let ends = [ControlEvent::Lost(0), ControlEvent::Left(0)];
        prop_assert_eq!(events.iter().filter(|event| ends.contains(event)).count(), 1);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_job_begins_whatever_is_said_at_its_door() {
    let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), 2, "secret").unwrap();
    let address = rendezvous.address();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let mut callers = Vec::new();
    let said = std::cell::RefCell::new(&mut callers);
    let words = (altered(greeting()), altered(hello()), any::<bool>());
    let outcome = runner.run(&words, |(first, second, right)| {
        let mut caller = TcpStream::connect(address).unwrap();
        // Some begin with a valid greeting.
        let first = if right { greeting() } else { first };
        caller.write_all(&first).unwrap();
        // The connection may be closed by now.
        let _ = caller.write_all(&second);
        said.borrow_mut().push(caller);
        Ok(())
    });
    outcome.unwrap();
    let ranks = [0, 1].map(|rank| {
        let token = "secret".to_owned();
        let options = TcpOptions { rendezvous: address, rank, world: 2, token, timeout: LIMIT, bind: None };
        std::thread::spawn(move || {
            let mut endpoint = join(options).unwrap();
            endpoint.group("data", &[0, 1]).unwrap().barrier().unwrap();
            endpoint.close().unwrap();
        })
    });
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
    let events: Vec<_> = rendezvous.events().iter().collect();
    assert_eq!(events.iter().filter(|event| matches!(event, ControlEvent::Joined(_))).count(), 2);
}
