//! autodist's own launcher on several hosts: ssh starts the agents of the ranks. A script replaces ssh and
//! runs the commands locally.

use crate::common;

use common::cluster::{RANKS, SOON, Started, plan, start, start_by};
use common::processes::{alive, busy, children, kill, wait};
use common::{AUTODIST, Finished, line, write};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Takes options, a host and a command, as ssh does; some hosts fail.
const STAND_IN: &str = r#"#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
host=$1; shift
echo "$host" >> "$(dirname "$0")/reached"
case $host in
    dead) echo "ssh: connect to host dead port 22: Connection refused" >&2; exit 255;;
    elsewhere) cd / && exec sh -c "$(echo "$*" | sed 's/^cd [^ ]*/cd \/no\/such\/folder/')";;
esac
cd / && exec env -i PATH="$PATH" sh -c "$*"
"#;
const PLACE: &str = "MASTER_ADDR=127.0.0.1";

/// A folder for jobs with the given number of ranks, with the ssh mock and a host file.
fn folder(ranks: u32, hosts: &str) -> tempfile::TempDir {
    let folder = common::folder(ranks);
    let script = folder.path().join("ssh");
    std::fs::write(&script, STAND_IN).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    write(folder.path(), "hosts.txt", hosts);
    plan(folder.path(), ranks as usize);
    folder
}

fn over(folder: &Path, command: &str) -> String {
    format!("{command} {RANKS} --hosts hosts.txt --ssh {}", folder.join("ssh").display())
}

fn run(folder: &Path, command: &str) -> Started {
    start(folder, PLACE, &over(folder, command))
}

fn losses(record: &Value) -> Vec<f64> {
    record["steps"].as_array().unwrap().iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

fn descendants(of: i32) -> Vec<i32> {
    children(of).into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

#[test]
fn ranks_on_hosts_train_as_on_one_machine() {
    let folder = folder(4, "# all of them\none slots=3\n\ntwo   # a single rank\n");
    let folder = folder.path();
    let train = "train plan.json --steps 5 --json";
    let expected = line(folder, &format!("{train} {RANKS} -o alone.json")).json();
    let record = run(folder, train).end(Duration::from_secs(40)).json();
    assert_eq!(losses(&record), losses(&expected));
    // One ssh per host, for any number of slots.
    let mut reached: Vec<String> =
        std::fs::read_to_string(folder.join("reached")).unwrap().lines().map(str::to_owned).collect();
    reached.sort();
    assert_eq!(reached, ["one", "two"]);
}

#[test]
fn profile_and_validate_follow_the_host_file() {
    let folder = folder(2, "one\ntwo slots=1\n");
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    let job = "--model model.json --job job.toml --json";
    let profile = run(folder, &format!("profile {job} --budget 0.5 --oversubscribe --devices cpu"));
    let profile = { profile }.end(Duration::from_secs(60)).json();
    assert_eq!(profile["cluster"]["nodes"][0]["devices"], 2);
    line(folder, &format!("plan {job} -o plan.json")).ok();
    let validation = run(folder, "validate plan.json --top 2 --steps 2 --json").end(Duration::from_secs(60));
    let validation = validation.measured();
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
}

/// `env` would read such a path as a variable, and run the next word.
#[test]
fn a_program_with_an_equals_sign_in_its_path_is_run_on_hosts() {
    let folder = folder(2, "one\ntwo\n");
    let place = folder.path().join("NAME=value");
    std::fs::create_dir(&place).unwrap();
    let program = place.join("autodist");
    std::fs::copy(AUTODIST, &program).unwrap();
    let args = over(folder.path(), "train plan.json --steps 2 --json");
    let mut job = start_by(&[program.to_str().unwrap()], folder.path(), PLACE, &args);
    assert_eq!(job.end(Duration::from_secs(40)).json()["steps"].as_array().unwrap().len(), 2);
}

/// All processes of a job that would take minutes: its ranks, agents and their parents.
fn long(folder: &Path) -> (Started, Vec<i32>) {
    let job = start(
        folder,
        &format!("{PLACE} AUTODIST_TOKEN=a-secret-of-this-job"),
        &over(folder, "train plan.json --steps 2000000 -o out/run.json"),
    );
    let mut all = Vec::new();
    wait(Duration::from_secs(40), || {
        all = descendants(job.pid());
        // An agent for each rank, and the rank; the ssh mock becomes the agent.
        all.len() == 8 && all.iter().filter(|pid| busy(**pid)).count() >= 4
    });
    (job, all)
}

#[test]
fn no_command_line_holds_the_token() {
    let folder = folder(4, "one slots=3\ntwo\n");
    let (job, all) = long(folder.path());
    for pid in all.iter().copied().chain([job.pid()]) {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let words = String::from_utf8_lossy(&words).into_owned();
        assert!(words.contains("autodist"), "{words}");
        assert!(!words.contains("a-secret-of-this-job"), "{words}");
    }
    kill(job.pid(), libc::SIGKILL);
    wait(SOON, || all.iter().all(|pid| !alive(*pid)));
}

#[test]
fn however_the_launcher_ends_nothing_is_left_on_any_host() {
    for (signal, code) in [(libc::SIGKILL, None), (libc::SIGINT, Some(130)), (libc::SIGTERM, Some(130))] {
        let folder = folder(4, "one slots=3\ntwo\n");
        let (mut job, all) = long(folder.path());
        kill(job.pid(), signal);
        let Finished { code: found, out, .. } = job.end(SOON);
        assert_eq!(found, code);
        assert!(out.is_empty() || out.contains("ended      early"), "{out}");
        wait(SOON, || all.iter().all(|pid| !alive(*pid)));
        let left = std::fs::read_dir(folder.path().join("out")).into_iter().flatten();
        assert!(left.into_iter().all(|entry| entry.unwrap().file_name() == "run.partial.json"));
    }
}

#[test]
fn a_killed_ssh_is_noticed() {
    let folder = folder(4, "one slots=3\ntwo\n");
    let (mut job, all) = long(folder.path());
    kill(children(job.pid())[0], libc::SIGKILL);
    let Finished { code, out, err } = job.end(SOON);
    assert_eq!(code, Some(4), "{err}");
    assert!(out.contains("ended      early"), "{out}");
    assert!(err.contains("is lost with the autodist process that ran it"), "{err}");
    wait(SOON, || all.iter().all(|pid| !alive(*pid)));
}

#[test]
fn hosts_that_cannot_be_reached_are_named() {
    let train = "train plan.json --steps 2 -o out/run.json";
    for (host, expected) in [
        ("dead", &["hosts.txt:2: ", "dead ended with exit code 255", "Connection refused", "dead true"][..]),
        ("elsewhere", &["hosts.txt:2: ", "elsewhere ended with exit code", "/no/such/folder"]),
    ] {
        let folder = folder(2, &format!("one\n{host}\n"));
        let Finished { code, out, err } = run(folder.path(), train).end(SOON);
        assert_eq!((code, out.as_str()), (Some(4), ""), "{err}");
        for text in expected {
            assert!(err.contains(text), "`{text}` is not in: {err}");
        }
        assert!(err.contains("\nhint: "), "{err}");
        assert!(!folder.path().join("out/run.json").exists());
    }
    let folder = folder(2, "one slots=2\n");
    let args = format!("{train} {RANKS} --hosts hosts.txt --ssh no-such-program");
    let Finished { code, err, .. } = start(folder.path(), PLACE, &args).end(SOON);
    assert_eq!(code, Some(4), "{err}");
    assert!(err.contains("hosts.txt:1: no-such-program one cannot be started"), "{err}");
}

#[test]
fn a_plan_for_another_number_of_ranks_is_refused() {
    let folder = folder(2, "one slots=3\n");
    let Finished { code, err, .. } = run(folder.path(), "train plan.json").end(SOON);
    assert_eq!(code, Some(4), "{err}");
    let expected = "the plan is for 2 ranks, but --hosts started 3 processes: make the slots of the host file add up to 2";
    assert!(err.contains(expected), "{err}");
}
