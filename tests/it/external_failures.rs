//! However a job of a cluster's launcher fails, all of its processes end soon, rank 0 reports why, and no
//! rank keeps running.

use crate::common;

use common::Finished;
use common::cluster::{Job, SOON, free_port, plan, start, torchrun};
use common::processes::{children, kill};
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn a_killed_launcher_takes_all_with_it() {
    let mut job = Job::long(4);
    job.signal(0, libc::SIGKILL);
    for rank in [1, 2, 3] {
        let Finished { code, out, err } = job.end(rank);
        assert_eq!((code, out.as_str(), err.lines().count()), (Some(4), "", 1), "{err}");
        let expected = format!("error: rank {rank}: the connection to rank 0 at 127.0.0.1:");
        assert!(err.starts_with(&expected) && err.contains("was lost"), "{err}");
    }
    job.end(0);
    job.leaves_nothing();
}

#[test]
fn a_killed_agent_is_named() {
    let mut job = Job::long(4);
    job.signal(2, libc::SIGKILL);
    let Finished { code, out, err } = job.end(0);
    assert_eq!(code, Some(4), "{err}");
    assert!(out.contains("ended      early"), "{out}");
    assert!(err.contains("error: rank 2 is lost with the autodist process that ran it"), "{err}");
    for rank in [1, 3] {
        let Finished { code, out, err } = job.end(rank);
        assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""), "rank {rank}");
    }
    job.end(2);
    job.leaves_nothing();
}

#[test]
fn a_killed_rank_of_an_agent_is_named() {
    let mut job = Job::long(2);
    let victim = children(job.processes[1].pid())[0];
    kill(victim, libc::SIGKILL);
    let Finished { code, out, err } = job.end(0);
    assert_eq!(code, Some(4), "{err}");
    assert!(out.contains("ended      early"), "{out}");
    assert!(err.contains("error: rank 1 was killed by signal 9"), "{err}");
    job.agents_end_in_silence(0);
}

#[test]
fn a_stopped_job_ends_in_order() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut job = Job::long(2);
        job.signal(0, signal);
        let Finished { code, out, err } = job.end(0);
        assert_eq!(code, Some(130), "{err}");
        assert!(out.contains("ended      early"), "{out}");
        assert!(err.contains("interrupted"), "{err}");
        job.agents_end_in_silence(0);
    }
    // Launchers send the signal to all of their processes.
    let mut job = Job::long(2);
    (0..2).for_each(|rank| job.signal(rank, libc::SIGTERM));
    let Finished { code, err, .. } = job.end(0);
    assert_eq!(code, Some(130), "{err}");
    job.agents_end_in_silence(130);
}

#[test]
fn a_stopped_agent_ends_with_its_rank() {
    let mut job = Job::long(2);
    job.signal(1, libc::SIGTERM);
    let Finished { code, err, .. } = job.end(0);
    assert_eq!(code, Some(4), "{err}");
    assert!(err.contains("rank 1 is lost"), "{err}");
    job.agents_end_in_silence(130);
}

#[test]
fn a_launcher_that_never_comes_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let began = Instant::now();
    let mut agent = start(folder.path(), &torchrun(2, port)(1), "train plan.json --no-realtime --timeout 1");
    let Finished { code, out, err } = agent.end(SOON);
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(4), "", 1), "{err}");
    for expected in
        ["error: rank 1: ", &format!("127.0.0.1:{port}"), "MASTER_ADDR", "AUTODIST_PORT", "--timeout"]
    {
        assert!(err.contains(expected), "`{expected}` is not in: {err}");
    }
    let nowhere = torchrun(2, port)(1)
        .replace("localhost", "nowhere.invalid")
        .replace("LOCAL_WORLD_SIZE=2", "LOCAL_WORLD_SIZE=1");
    let nowhere = nowhere.replace("LOCAL_RANK=1", "LOCAL_RANK=0");
    let mut agent = start(folder.path(), &nowhere, "train plan.json --no-realtime --timeout 1");
    let Finished { code, err, .. } = agent.end(Duration::from_secs(30));
    assert_eq!((code, err.lines().count()), (Some(4), 1), "{err}");
    assert!(err.contains("nowhere.invalid") && err.contains("MASTER_ADDR"), "{err}");
}

#[test]
fn agents_that_never_come_are_named() {
    let folder = common::folder(4);
    plan(folder.path(), 4);
    let variables = torchrun(4, free_port());
    let args = "train plan.json --no-realtime --timeout 1 -o out/run.json";
    let mut first = start(folder.path(), &variables(0), args);
    let mut second = start(folder.path(), &variables(1), args);
    let Finished { code, out, err } = first.end(SOON);
    assert_eq!((code, out.as_str()), (Some(4), ""), "{err}");
    assert!(err.contains("for rank 2, 3, too, but it has not connected to 127.0.0.1:"), "{err}");
    let Finished { code, out, err } = second.end(SOON);
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""), "it was told to end");
    assert!(!folder.path().join("out/run.json").exists());
}

#[test]
fn a_port_in_use_and_another_job_are_told_apart() {
    let folder = common::folder(2);
    plan(folder.path(), 2);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let args = "train plan.json --no-realtime --timeout 3";
    let Finished { code, err, .. } = start(folder.path(), &torchrun(2, port)(0), args).end(SOON);
    assert_eq!(code, Some(4), "{err}");
    assert!(
        err.contains(&port.to_string()) && err.contains("in use") && err.contains("AUTODIST_PORT"),
        "{err}"
    );
    drop(taken);

    let mut first = start(folder.path(), &torchrun(2, port)(0), args);
    let stranger = format!("{} AUTODIST_TOKEN=another", torchrun(2, port)(1));
    let Finished { code, err, .. } = start(folder.path(), &stranger, args).end(SOON);
    assert_eq!((code, err.lines().count()), (Some(4), 1), "{err}");
    assert!(err.contains("another job") && err.contains("AUTODIST_TOKEN"), "{err}");
    assert_eq!(first.end(SOON).code, Some(4));
}
