//! Strangers connect to every port that a job opens: the job continues, reports them, and sends them nothing.

use crate::common;

use common::cluster::{Job, SOON, free_port, plan, start, torchrun};
use common::processes::children;
use common::{Finished, command};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// The listening addresses of these processes: sockets from their descriptors, addresses from the system's
/// tables.
fn listening(pids: &[i32]) -> BTreeSet<SocketAddr> {
    let mut sockets = BTreeSet::new();
    for pid in pids {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for target in links.filter_map(|link| std::fs::read_link(link.path()).ok()) {
            let number = target.to_str().and_then(|text| text.strip_prefix("socket:["));
            sockets.extend(number.map(|number| number.trim_end_matches(']').to_owned()));
        }
    }
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let listener = |line: &str| -> Option<SocketAddr> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields[1].split_once(':')?;
        let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.swap_bytes());
        let ours = fields[3] == "0A" && sockets.contains(fields[9]);
        ours.then_some(SocketAddr::new(IpAddr::V4(address), u16::from_str_radix(port, 16).ok()?))
    };
    table.lines().skip(1).filter_map(listener).collect()
}

fn family(pid: i32) -> Vec<i32> {
    std::iter::once(pid).chain(children(pid).into_iter().flat_map(family)).collect()
}

/// A client that connects to every port of a job, as soon as it opens: many silent connections, and one that
/// sends a long handshake, a byte at a time.
#[derive(Default)]
struct Stranger {
    known: BTreeSet<SocketAddr>,
    silent: Vec<TcpStream>,
    slow: Vec<TcpStream>,
}

impl Stranger {
    fn disturb(&mut self, job: i32) {
        for address in listening(&family(job)) {
            if self.known.insert(address) {
                // The port may be closed by now.
                self.silent.extend((0..100).filter_map(|_| TcpStream::connect(address).ok()));
                if let Ok(mut slow) = TcpStream::connect(address) {
                    let _ = slow.write_all(&[0x60, 0xea, 0, 0, 1]);
                    self.slow.push(slow);
                }
            }
        }
        self.slow.retain_mut(|slow| slow.write_all(b" ").is_ok());
    }
}

#[test]
fn a_job_goes_on_whoever_connects_to_its_ports() {
    let folder = common::folder(2);
    plan(folder.path(), 2);
    let args = "train plan.json --steps 300 --no-realtime --timeout 20";
    let mut job = command(folder.path(), &args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
    let mut stranger = Stranger::default();
    let began = Instant::now();
    let status = loop {
        stranger.disturb(job.id() as i32);
        if let Some(status) = job.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut err = String::new();
    job.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(status.code(), Some(0), "{err}");
    assert!(stranger.known.iter().all(|address| address.ip().is_loopback()), "{:?}", stranger.known);
    assert!(!stranger.known.is_empty(), "nobody was disturbed");
    assert!(err.contains("warning: ") && err.contains("which connected to 127.0.0.1:"), "{err}");
}

#[test]
fn who_has_no_callers_does_not_listen() {
    let job = Job::long(2);
    let of = |process: usize| {
        let pid = job.processes[process].pid();
        (listening(&[pid]), listening(&children(pid)))
    };
    for process in 0..2 {
        let (own, of_its_rank) = of(process);
        // All processes have connected, so the launcher's own ports are closed again; an agent never has one.
        assert_eq!(own, BTreeSet::new(), "process {process}");
        assert_eq!(of_its_rank.len(), 1, "process {process}");
        assert!(of_its_rank.iter().all(|address| address.ip().is_loopback()), "{of_its_rank:?}");
    }
}

#[test]
fn who_listens_in_the_place_of_rank_0_learns_nothing_and_gives_no_orders() {
    let secret = "a-secret-of-this-job";
    for answer in [&b""[..], &[65, 0, 0, 0, 17]] {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let variables = format!("{} AUTODIST_TOKEN={secret}", torchrun(2, address.port())(1));
        let mut agent = start(folder.path(), &variables, "train plan.json --no-realtime --timeout 0.1");
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut heard = vec![0; 42];
        socket.read_exact(&mut heard).unwrap();
        let mut words = answer.to_vec();
        if answer.len() == 5 {
            // A challenge from a client without the token.
            words.extend([7; 64]);
        }
        let _ = socket.write_all(&words);
        let _ = socket.read_to_end(&mut heard);
        let Finished { code, err, .. } = agent.end(SOON);
        assert_eq!(code, Some(4), "{err}");
        assert!(err.contains(&address.to_string()) && err.contains("token"), "{err}");
        assert_eq!(heard.len(), 42, "it says more than a random number");
    }
}

#[test]
fn a_job_without_a_secret_says_so_once() {
    let folder = common::folder(2);
    plan(folder.path(), 2);
    for (token, warned) in [("", true), ("AUTODIST_TOKEN=a-long-random-text", false)] {
        let of = torchrun(2, free_port());
        let given = tempfile::tempdir().unwrap();
        for name in ["model.json", "job.toml", "profile.json", "plan.json"] {
            std::fs::copy(folder.path().join(name), given.path().join(name)).unwrap();
        }
        let variables = |rank| format!("{} {token}", of(rank));
        let mut job =
            Job::start(given, 2, &variables, "train plan.json --steps 2 --no-realtime --timeout 20");
        let Finished { code, err, .. } = job.processes[0].end(Duration::from_secs(30));
        assert_eq!(code, Some(0), "{err}");
        assert_eq!(err.matches("warning: AUTODIST_TOKEN is not set").count(), usize::from(warned), "{err}");
        assert!(!warned || err.contains("other users of this machine could join"), "{err}");
        job.agents_end_in_silence(0);
    }
    // If autodist starts the ranks itself, it gives them its own secret.
    let alone = common::line(folder.path(), "train plan.json --steps 2 --no-realtime");
    assert!(!alone.err.contains("AUTODIST_TOKEN"), "{}", alone.err);
}
