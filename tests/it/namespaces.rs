//! Ranks on separate machines that are connected by links: network namespaces and a switch in user space
//! (`lab/`). Needs root and /dev/net/tun; otherwise skipped with a message.

use crate::common;
use crate::lab;

use common::cluster::{SOON, Started, free_port, spawn};
use common::processes::{alive, kill, wait};
use common::{AUTODIST, write};
use lab::{FRAME, Lab, MTU, Rate, Uplink, goodput};
use serde_json::Value;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const DELAY: Duration = Duration::from_micros(250);
/// Bytes of a measured stream: one second at the rates of this file.
const STREAM: usize = 20 << 20;

/// A listener on a machine, and its address.
fn listen(lab: &Lab, machine: usize) -> (TcpListener, SocketAddr) {
    let address = SocketAddr::new(lab.machines[machine].address.into(), 0);
    let listener = lab.machines[machine].run(move || TcpListener::bind(address).unwrap()).join().unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A stream as measured by its receiver: the time of its connection, and its middle part.
#[derive(Debug)]
struct Stream {
    opened: Instant,
    /// Bytes before the middle, and in it.
    before: usize,
    bytes: usize,
    start: Instant,
    end: Instant,
}

/// Simultaneous streams from a machine to others.
fn streams(lab: &Lab, from: usize, to: &[usize], bytes: usize) -> Vec<Stream> {
    let mut receivers = Vec::new();
    let mut senders = Vec::new();
    for machine in to {
        let (listener, address) = listen(lab, *machine);
        receivers.push(lab.machines[*machine].run(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let opened = Instant::now();
            let (mut buffer, mut got, mut began) = (vec![0; 1 << 16], 0, None);
            while let Ok(read @ 1..) = socket.read(&mut buffer) {
                got += read;
                if got >= bytes / 4 {
                    let (first, start) = *began.get_or_insert_with(|| (got, Instant::now()));
                    if got >= bytes * 3 / 4 {
                        let end = Instant::now();
                        return Stream { opened, before: first, bytes: got - first, start, end };
                    }
                }
            }
            panic!("a stream ended early");
        }));
        senders.push(lab.machines[from].run(move || {
            let mut socket = TcpStream::connect(address).unwrap();
            // The receiver closes when it has enough bytes.
            let _ = socket.write_all(&vec![1; bytes]);
        }));
    }
    let middles = receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    middles
}

/// Rate of a stream in its middle, bytes per second.
fn rate(stream: &Stream) -> f64 {
    stream.bytes as f64 / (stream.end - stream.start).as_secs_f64()
}

/// Rate of all streams together from the first connection to the last end, bytes per second. A late receiver,
/// with more bytes in its buffer than the link has delivered since, cannot increase it.
fn whole_rate(streams: &[Stream]) -> f64 {
    let start = streams.iter().map(|stream| stream.opened).min().unwrap();
    let end = streams.iter().map(|stream| stream.end).max().unwrap();
    let bytes: usize = streams.iter().map(|stream| stream.before + stream.bytes).sum();
    bytes as f64 / (end - start).as_secs_f64()
}

#[test]
fn the_switch_lets_through_what_its_links_would_and_never_more() {
    let link = Uplink::even(200.0, DELAY);
    let slow = Uplink { down: Rate::mbit_per_s(50.0), ..link };
    let Some(lab) = Lab::new("the_switch_lets_through_what_its_links_would", &[link, link, slow]) else {
        return;
    };
    let expected = goodput(link.up);
    let alone: Vec<Vec<Stream>> = (0..3).map(|_| streams(&lab, 0, &[1], STREAM)).collect();
    let down = streams(&lab, 0, &[2], STREAM / 4);
    // Two simultaneous streams share the uplink.
    let both = streams(&lab, 1, &[0, 2], STREAM / 4);
    for (streams, most) in
        alone.iter().map(|one| (one, expected)).chain([(&down, goodput(slow.down)), (&both, expected)])
    {
        assert!(whole_rate(streams) <= 1.01 * most, "{streams:?} of {most}");
    }
    // On a busy machine a stream may be slower, but not all of several.
    let alone: Vec<f64> = alone.iter().map(|one| rate(&one[0])).collect();
    assert!(alone.iter().any(|rate| *rate >= 0.95 * expected), "{alone:?} of {expected}");

    // All sent bytes have crossed the switch, in frames of at most the allowed size.
    let before = lab.counters();
    let (listener, address) = listen(&lab, 1);
    let sender =
        lab.machines[0].run(move || TcpStream::connect(address).unwrap().write_all(&vec![1; 1 << 20]));
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap().unwrap();
    let (before, after) = (before[0], lab.counters()[0]);
    assert_eq!(received.len(), 1 << 20);
    assert_eq!((after.payload - before.payload, after.lost), (1 << 20, 0));
    assert!(after.bytes - before.bytes <= (after.packets - before.packets) * (MTU + FRAME) as u64);

    // An answer takes at least the delay of both directions.
    let (listener, address) = listen(&lab, 1);
    let answering = lab.machines[1].run(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        let mut byte = [0];
        while let Ok(1) = socket.read(&mut byte) {
            socket.write_all(&byte).unwrap();
        }
    });
    let asking = lab.machines[0].run(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut once = || {
            let start = Instant::now();
            socket.write_all(&[1]).unwrap();
            socket.read_exact(&mut [0]).unwrap();
            start.elapsed()
        };
        (0..50).map(|_| once()).min().unwrap()
    });
    let fastest = asking.join().unwrap();
    answering.join().unwrap();
    assert!(fastest >= 4 * DELAY, "{fastest:?}");
    say(&format!(
        "switch: {:.1} to {:.1} of {:.1} Mbit/s, round trip {:.0} us of {:.0}",
        bits(alone.iter().copied().fold(f64::INFINITY, f64::min)),
        bits(alone.iter().copied().fold(0.0, f64::max)),
        bits(expected),
        fastest.as_secs_f64() * 1e6,
        (4 * DELAY).as_secs_f64() * 1e6
    ));
}

fn bits(bytes_per_s: f64) -> f64 {
    8e-6 * bytes_per_s
}

/// Prints figures, which the harness would hide for passing tests.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `autodist` as started by a launcher, rank r on machine `of[r]`.
pub fn launch(lab: &Lab, of: &[usize], folder: &Path, variables: &str, args: &str) -> Vec<Started> {
    let host = lab.machines[of[0]].address;
    let port = free_port();
    let start = |rank: usize| {
        let here = |other: &&usize| **other == of[rank];
        let (local, all) = (of[..rank].iter().filter(here).count(), of.iter().filter(here).count());
        let variables = format!(
            "RANK={rank} WORLD_SIZE={} LOCAL_RANK={local} LOCAL_WORLD_SIZE={all} MASTER_ADDR={host} \
             AUTODIST_PORT={port} {variables}",
            of.len()
        );
        // All machines are on this computer: each has its share of the cores, in turn.
        let mut command = lab.command(of[rank], "taskset");
        command.args(["-c", &cores(of[rank], all), AUTODIST]);
        spawn(command, folder, &variables, args)
    };
    (0..of.len()).map(start).collect()
}

/// The cores of the given number of ranks on a machine.
fn cores(machine: usize, ranks: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let list: Vec<String> =
        (0..ranks.min(cores)).map(|rank| ((machine + rank) % cores).to_string()).collect();
    list.join(",")
}

/// The output of rank 0, after all have succeeded.
fn run(lab: &Lab, of: &[usize], folder: &Path, args: &str) -> Value {
    run_within(Duration::from_secs(80), lab, of, folder, args)
}

pub fn run_within(limit: Duration, lab: &Lab, of: &[usize], folder: &Path, args: &str) -> Value {
    let mut processes = launch(lab, of, folder, "TORCHELASTIC_RUN_ID=lab", args);
    let printed = processes[0].end(limit).measured();
    for process in &mut processes[1..] {
        let finished = process.end(SOON);
        assert_eq!((finished.code, finished.out.as_str()), (Some(0), ""), "{}", finished.err);
    }
    printed
}

fn job(batch: u32, micro_batch: u32, tensor: u32) -> String {
    format!(
        "schema_version = 1\nglobal_batch = {batch}\nseq_len = 32\n[allow]\ntensor = [{tensor}]\npipeline = [1]\n\
         micro_batch = [{micro_batch}]\nrecompute = [\"none\"]\nzero_stage = [0]\nsequence_parallel = [false]\n\
         bucket_bytes = [26214400]\n"
    )
}

/// A model whose gradients take longer on the links of this file than its compute.
pub fn inputs(job: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = autodist_spec::ModelSpec {
        name: "lab".to_owned(),
        layers: 4,
        hidden: 128,
        heads: 4,
        kv_heads: 4,
        head_dim: 32,
        ffn: 128,
        vocab: 256,
        max_seq_len: 64,
        ..common::small_model()
    };
    write(folder.path(), "model.json", autodist_spec::to_json(&model));
    write(folder.path(), "job.toml", job);
    folder
}

const FLAGS: &str = "--model model.json --job job.toml --json";

fn profile(lab: &Lab, of: &[usize], folder: &Path) -> Value {
    run(lab, of, folder, &format!("profile {FLAGS} --devices cpu --budget 1 --timeout 30"))
}

/// Measured bandwidth of a link / TCP goodput of the switch's link - 1.
fn rate_error(profile: &Value, link: &str, rate: Rate) -> f64 {
    let links = profile["network"]["links"].as_array().unwrap();
    let link = links.iter().find(|other| other["name"] == link).unwrap();
    assert_eq!(link["provenance"], "measured", "{link}");
    link["bytes_per_s"].as_f64().unwrap() / goodput(rate) - 1.0
}

#[track_caller]
fn check_rates(profile: &Value, machines: &[(&str, Uplink)]) -> String {
    let mut said = Vec::new();
    for (name, uplink) in machines {
        for (way, rate) in [("up", uplink.up), ("down", uplink.down)] {
            let error = rate_error(profile, &format!("{name} {way}"), rate);
            assert!(error.abs() <= 0.1, "{name} {way}: {error:+.3}");
            said.push(format!("{name} {way} {:+.1} %", 100.0 * error));
        }
    }
    said.join(", ")
}

/// If other processes use the cores for a while, the measurement is repeated.
const ATTEMPTS: usize = 3;
/// Acceptable median |error| of predictions on shared machines, and one that other load cannot explain.
const GOOD: f64 = 0.15;
const BAD: f64 = 0.4;

/// Trains plans and returns the accuracy of their predictions: the median |error| of unadjusted times, of the
/// first good attempt or the last.
fn validate(lab: &Lab, of: &[usize], folder: &Path, args: &str) -> (Value, f64) {
    let mut attempts = (0..ATTEMPTS).map(|_| validate_once(lab, of, folder, args));
    let mut last = attempts.next().unwrap();
    while last.1 > GOOD {
        let Some(again) = attempts.next() else { break };
        last = again;
    }
    last
}

fn validate_once(lab: &Lab, of: &[usize], folder: &Path, args: &str) -> (Value, f64) {
    let validation = run(lab, of, folder, &format!("validate plan.json {args} --timeout 30 --json -o runs"));
    assert!(validation["failed"].as_array().unwrap().is_empty(), "{}", validation["failed"]);
    for run in validation["runs"].as_array().unwrap() {
        say(&format!(
            "  {}: measured {:.1} ms, predicted {:.1} ms, {:+.1} %",
            run["label"].as_str().unwrap(),
            1e3 * run["measured"]["step_time_s"].as_f64().unwrap(),
            1e3 * run["predicted"]["step_time_s"].as_f64().unwrap(),
            100.0 * run["step_time_error"].as_f64().unwrap()
        ));
    }
    let (repeated, lost) = lab.repeated_and_lost();
    say(&format!("  {repeated} segments repeated, {lost} packets lost"));
    let error = validation["median_error"].as_f64().unwrap();
    (validation, error)
}

#[test]
fn two_machines_of_two_ranks_are_measured_planned_for_and_trained_over() {
    let link = Uplink::even(100.0, 2 * DELAY);
    let Some(lab) = Lab::new("two_machines_of_two_ranks", &[link, link]) else { return };
    // Round robin, so that neighbouring ranks are on different machines.
    let of = [0, 1, 0, 1];
    let folder = inputs(&job(8, 4, 2));
    let profile = profile(&lab, &of, folder.path());
    let nodes = profile["cluster"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().map(|node| node["devices"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(profile["network"]["nodes"], serde_json::json!([0, 1, 0, 1]));
    assert_eq!(profile["environment"]["emulated"], false);
    let machines = profile["environment"]["machines"].as_array().unwrap();
    assert_eq!((&machines[1]["name"], &machines[1]["ranks"]), (&"two".into(), &serde_json::json!([1, 3])));
    let latency = profile["network"]["paths"][0][1]["latency_s"].as_f64().unwrap();
    assert!(latency >= (4 * DELAY).as_secs_f64(), "{latency}");
    say(&format!(
        "2 x 2: {}, latency {:.0} us",
        check_rates(&profile, &[("one", link), ("two", link)]),
        1e6 * latency
    ));

    // A profile of these machines applies only to them.
    let again = launch(&lab, &of, folder.path(), "", &format!("profile {FLAGS} --devices cpu --timeout 30"));
    let again: Vec<_> = again.into_iter().map(|mut process| process.end(Duration::from_secs(30))).collect();
    assert!(again[0].err.contains("reused"), "{}", again[0].err);
    assert_eq!(serde_json::from_str::<Value>(&again[0].out).unwrap(), profile);

    let plan = format!("plan {FLAGS} --profile profile.json --top 4 -o plan.json");
    let plan = common::line(folder.path(), &plan).json();
    // Tensor groups, which have the most traffic, are each on one machine.
    let placement: Vec<u64> = plan["strategy"]["communication"]["placement"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d.as_u64().unwrap())
        .collect();
    let machine_of: Vec<u64> = placement.iter().map(|device| device % 2).collect();
    assert!(machine_of[0] == machine_of[1] && machine_of[2] == machine_of[3], "{placement:?}");
    let shares = plan["collectives"].as_array().unwrap();
    assert!(!shares.is_empty());
    for share in shares {
        assert!(share["lower_bound_s"].as_f64() <= share["time_s"].as_f64(), "{share}");
    }

    let before = lab.counters();
    let (validation, error) = validate(&lab, &of, folder.path(), "--top 2 --steps 4");
    assert!(validation["median_error"].is_number());
    say(&format!("2 x 2: median |error| {:.1} %", 100.0 * error));
    assert!(error <= BAD, "{error}");
    // No traffic bypassed the switch.
    let records = std::fs::read_dir(folder.path().join("runs")).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.file_name()?.to_str()?.starts_with("000").then_some(path)
    });
    let record: Value = serde_json::from_slice(&std::fs::read(records.last().unwrap()).unwrap()).unwrap();
    assert_eq!(record["environment"]["machines"].as_array().unwrap().len(), 2);
    let (before, after) = (before[0], lab.counters()[0]);
    assert!(after.payload > before.payload);
}

#[test]
fn unlike_links_are_told_apart_and_the_engine_sends_what_it_says() {
    let (fast, slow) = (Uplink::even(200.0, DELAY), Uplink::even(100.0, 2 * DELAY));
    let lopsided = Uplink { up: Rate::mbit_per_s(100.0), ..fast };
    let Some(lab) = Lab::new("unlike_links_are_told_apart", &[fast, slow, lopsided]) else { return };
    let of = [0, 1, 2];
    let folder = inputs(&job(3, 1, 1));
    let profile = profile(&lab, &of, folder.path());
    assert_eq!(profile["cluster"]["nodes"].as_array().unwrap().len(), 3);
    let rates = check_rates(&profile, &[("one", fast), ("two", slow), ("three", lopsided)]);
    say(&format!("3 x 1: {rates}"));
    let plan = format!("plan {FLAGS} --profile profile.json --allow compression --top 3 -o plan.json");
    let plan = common::line(folder.path(), &plan).json();
    assert!(plan["cluster"]["nodes"][1]["uplink"]["bytes_per_s"].as_f64() < Some(13e6));
    let (_, error) = validate(&lab, &of, folder.path(), "--top 2 --steps 4");
    say(&format!("3 x 1: median |error| {:.1} %", 100.0 * error));
    assert!(error <= BAD, "{error}");

    // Plain data parallelism: its gradients cross the links as often as in a ring.
    let ring = "estimate --model model.json --job job.toml --profile profile.json --dp 3 --micro-batch 1 -o ring.json";
    common::line(folder.path(), ring).ok();
    let before = lab.counters();
    let record = run(&lab, &of, folder.path(), "train ring.json --steps 4 --timeout 30 --json -o run.json");
    for (machine, (before, after)) in before.iter().zip(lab.counters()).enumerate() {
        let rank = record["ranks"].as_array().unwrap().iter().find(|rank| rank["rank"] == machine).unwrap();
        let said = 4.0 * rank["bytes_sent_per_step"].as_f64().unwrap();
        let crossed = (after.payload - before.payload) as f64;
        // In addition to gradients there are assignments, answers, barriers and handshakes.
        assert!(
            crossed >= said && crossed <= 1.05 * said + 300e3,
            "{machine}: {crossed} crossed, {said} said"
        );
    }
}

#[test]
fn who_does_not_know_the_token_is_refused_on_every_machine() {
    let link = Uplink::even(200.0, DELAY);
    let Some(lab) = Lab::new("who_does_not_know_the_token_is_refused", &[link, link]) else { return };
    let folder = common::folder(2);
    common::cluster::plan(folder.path(), 2);
    let port = free_port();
    let start = |rank: usize, token: &str| {
        let variables = format!(
            "RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR={} AUTODIST_PORT={port} {token}",
            lab.machines[0].address
        );
        let args = "train plan.json --steps 2 --json --no-realtime --timeout 20";
        spawn(lab.command(rank, AUTODIST), folder.path(), &variables, args)
    };
    let mut first = start(0, "AUTODIST_TOKEN=secret");
    for token in ["AUTODIST_TOKEN=guess", "TORCHELASTIC_RUN_ID=lab", ""] {
        let finished = start(1, token).end(SOON);
        assert_eq!(finished.code, Some(4), "{token}: {}", finished.err);
        assert!(finished.err.contains("does not know this job's token"), "{token}: {}", finished.err);
    }
    // A stranger with invalid data does not delay the job.
    let address = SocketAddr::new(lab.machines[0].address.into(), port);
    let stranger = lab.machines[1].run(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        socket
    });
    let _stranger = stranger.join().unwrap();
    let mut second = start(1, "AUTODIST_TOKEN=secret");
    first.end(Duration::from_secs(20)).json();
    assert_eq!(second.end(SOON).code, Some(0));
}

#[test]
fn who_cannot_come_through_a_firewall_is_named_with_the_address() {
    let link = Uplink::even(200.0, DELAY);
    let Some(lab) = Lab::new("who_cannot_come_through_a_firewall", &[link, link]) else { return };
    let folder = common::folder(2);
    common::cluster::plan(folder.path(), 2);
    let (port, host) = (free_port(), lab.machines[0].address);
    lab.let_through_only(port);
    let start = |rank: usize| {
        let variables = format!(
            "RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR={host} AUTODIST_PORT={port} \
             AUTODIST_TOKEN=secret"
        );
        let args = "train plan.json --steps 2 --no-realtime --timeout 4";
        spawn(lab.command(rank, AUTODIST), folder.path(), &variables, args)
    };
    let (mut first, mut second) = (start(0), start(1));
    let finished = first.end(Duration::from_secs(20));
    assert_eq!(finished.code, Some(4), "{}", finished.err);
    // Rank 0 waited, and is not the cause.
    for expected in ["rank 1 ", &format!("cannot be reached at {host}:"), "firewall"] {
        assert!(finished.err.contains(expected), "`{expected}` is not in: {}", finished.err);
    }
    assert!(!finished.err.contains("rank 0 "), "{}", finished.err);
    second.end(SOON);
}

/// However a test ends: this one kills another test that has a lab.
#[test]
fn a_lab_leaves_nothing_behind() {
    const VICTIM: &str = "AUTODIST_LAB_VICTIM";
    const NAME: &str = "a_lab_leaves_nothing_behind";
    let link = Uplink::even(100.0, DELAY);
    if std::env::var_os(VICTIM).is_some() {
        // A shell starts background processes with this signal ignored.
        // SAFETY: the default action of the signal is not a handler of this process.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        let Some(lab) = Lab::new(NAME, &[link, link]) else { return };
        let mut child = lab.command(1, "sleep").arg("1000").spawn().unwrap();
        say(&format!("asleep {}", child.id()));
        child.wait().unwrap();
        return;
    }
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("namespaces::{NAME}"), "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(victim.stderr.take().unwrap()).lines();
        let said =
            lines.map_while(Result::ok).find(|line| line.contains("asleep") || line.contains("SKIPPED"));
        let Some(child) = said.as_deref().and_then(|line| line.strip_prefix("asleep ")) else {
            lab::skipped(NAME, "no lab");
            victim.wait().unwrap();
            return;
        };
        let child: i32 = child.trim().parse().unwrap();
        assert!(alive(child));
        kill(victim.id() as i32, signal);
        victim.wait().unwrap();
        wait(SOON, || !alive(child));
    }
}
