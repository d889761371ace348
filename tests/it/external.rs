//! Started by a cluster's own launcher, once for each rank: the first process runs the command, the others
//! run their ranks, print nothing, and end with it.

use crate::common;

use autodist_software_gpu::SoftwareGpus;
use common::cluster::{Job, RANKS, SOON, Variables, free_port, plan, start, start_by, torchrun};
use common::{AUTODIST, Finished, line};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

fn losses(record: &str) -> Vec<f64> {
    let record: Value = serde_json::from_str(record).unwrap();
    record["steps"].as_array().unwrap().iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

#[test]
fn every_launcher_trains_as_our_own_does() {
    let alone = common::folder(2);
    plan(alone.path(), 2);
    let train = format!("train plan.json --steps 5 --json {RANKS}");
    let expected = losses(&line(alone.path(), &train).ok());
    let port = || format!("AUTODIST_PORT={}", free_port());
    let (a, b, c, d) = (port(), port(), port(), port());
    let launchers: [(&str, Variables<'_>); 5] = [
        ("torchrun", &torchrun(2, free_port())),
        // As if on two machines: then the ranks meet at an address that is reachable from outside.
        ("torchrun on two machines", &|rank| {
            format!("RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=localhost {a}")
        }),
        ("Open MPI", &|rank| {
            let of = format!("OMPI_COMM_WORLD_RANK={rank} OMPI_COMM_WORLD_LOCAL_RANK={rank} {b}");
            format!("{of} OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 AUTODIST_TOKEN=secret")
        }),
        ("MPICH", &|rank| format!("PMI_RANK={rank} PMI_SIZE=2 MPI_LOCALRANKID={rank} MPI_LOCALNRANKS=2 {c}")),
        ("Slurm", &|rank| {
            let of = format!("SLURM_STEP_ID=0 SLURM_JOB_ID=7 SLURM_PROCID={rank} SLURM_LOCALID=0 {d}");
            let of = format!("{of} SLURM_NODEID={rank} SLURM_STEP_TASKS_PER_NODE=1(x2)");
            format!("{of} SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost,elsewhere")
        }),
    ];
    for (name, variables) in launchers {
        let folder = common::folder(2);
        plan(folder.path(), 2);
        let mut job = Job::start(folder, 2, variables, &train);
        let printed = job.processes[0].end(Duration::from_secs(30)).ok();
        assert_eq!(losses(&printed), expected, "{name}");
        assert_eq!(std::fs::read_to_string(job.folder.path().join("run.json")).unwrap(), printed, "{name}");
        job.agents_end_in_silence(0);
    }
}

#[test]
fn profile_plan_and_validate_follow_the_launcher() {
    let folder = common::folder(2);
    std::fs::remove_file(folder.path().join("profile.json")).unwrap();
    let variables = torchrun(2, free_port());
    let run = |folder: tempfile::TempDir, args: &str| {
        let mut job = Job::start(folder, 2, &variables, args);
        let finished = job.processes[0].end(Duration::from_secs(60));
        job.agents_end_in_silence(0);
        (std::mem::replace(&mut job.folder, tempfile::tempdir().unwrap()), finished)
    };
    let job = "--model model.json --job job.toml --json";
    // The number of ranks is the number of processes.
    let (folder, profile) =
        run(folder, &format!("profile {job} --budget 0.5 --oversubscribe --devices cpu {RANKS}"));
    assert_eq!(profile.json()["cluster"]["nodes"][0]["devices"], 2);
    // The command runs no ranks, so the others are idle.
    let (folder, plan) = run(folder, &format!("plan {job} -o plan.json"));
    let plan = plan.json();
    let (_folder, validation) = run(folder, &format!("validate plan.json --top 2 --steps 2 --json {RANKS}"));
    let validation = validation.measured();
    assert_eq!(validation["runs"][0]["strategy"], plan["strategy"]);
    assert_eq!(validation["runs"].as_array().unwrap().len(), 2);
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
}

#[test]
fn a_plan_for_another_number_of_ranks_is_refused() {
    let folder = common::folder(2);
    plan(folder.path(), 2);
    let variables = torchrun(3, free_port());
    for (args, code, expected) in [
        (format!("train plan.json {RANKS}"), 4, "the plan is for 2 ranks, but torchrun started 3 processes"),
        (
            format!("validate plan.json {RANKS}"),
            4,
            "the plan is for 2 ranks, but torchrun started 3 processes",
        ),
        (
            format!("profile --ranks 2 --model model.json --job job.toml {RANKS}"),
            2,
            "`--ranks` is `2`: must be the number of started processes, 3",
        ),
    ] {
        let given = tempfile::tempdir().unwrap();
        for name in ["model.json", "job.toml", "profile.json", "plan.json"] {
            std::fs::copy(folder.path().join(name), given.path().join(name)).unwrap();
        }
        let mut job = Job::start(given, 3, &variables, &args);
        let Finished { code: found, out, err } = job.end(0);
        assert_eq!((found, out.as_str()), (Some(code), ""), "{err}");
        assert!(err.contains(expected), "{err}");
        job.agents_end_in_silence(0);
    }
}

#[test]
fn what_is_wrong_is_said_once() {
    let folder = common::folder(2);
    let variables = torchrun(2, free_port());
    for (args, code) in [
        ("train", 2),
        ("train none.json --timeout 20", 2),
        ("train none.json --timeout 0", 2),
        ("--help", 0),
        ("catalog", 0),
    ] {
        let mut agent = start(folder.path(), &variables(1), args);
        let mut first = start(folder.path(), &variables(0), args);
        let Finished { code: found, out, err } = first.end(SOON);
        assert_eq!(found, Some(code), "{args}: {err}");
        assert!(!(out.is_empty() && err.is_empty()), "{args}");
        let Finished { code: found, out, err } = agent.end(SOON);
        // Rank 0 reports its failure; the others succeed.
        assert!(found == Some(code) || found == Some(0), "{args}: {found:?}");
        assert_eq!((out.as_str(), err.as_str()), ("", ""), "{args}");
    }
}

#[test]
fn the_environment_is_checked_and_can_be_ignored() {
    let folder = common::folder(2);
    let nonsense = "RANK=first WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2";
    let Finished { code, out, err } = start(folder.path(), nonsense, "catalog").end(SOON);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(
        err.contains("`RANK` is `first`: expected a whole number") && err.contains("AUTODIST_LAUNCHER=none"),
        "{err}"
    );
    plan(folder.path(), 2);
    let ignored = format!("{nonsense} AUTODIST_LAUNCHER=none");
    let args = format!("train plan.json --steps 2 --json {RANKS}");
    let record = start(folder.path(), &ignored, &args).end(Duration::from_secs(30)).ok();
    assert_eq!(losses(&record).len(), 2);
}

/// A launcher may bind every process to its own core: then rank 0's core is not those of the others.
#[test]
fn cores_are_those_of_all_processes_of_a_machine() {
    let profile = format!("profile --model model.json --job space.toml --budget 0.1 --devices cpu {RANKS}");
    for (cores, code) in [([0, 0], 2), ([0, 1], 0)] {
        let folder = common::folder(2);
        common::write(
            folder.path(),
            "space.toml",
            "schema_version = 1\nglobal_batch = 8\nseq_len = 16\n[allow]\nmicro_batch = [4]\nrecompute = [\"none\"]\n",
        );
        let variables = torchrun(2, free_port());
        let [mut first, mut second] = [0, 1].map(|rank: usize| {
            let core = cores[rank].to_string();
            start_by(&["taskset", "-c", &core, AUTODIST], folder.path(), &variables(rank), &profile)
        });
        let Finished { code: found, err, .. } = first.end(Duration::from_secs(60));
        if err.contains("failed to set") {
            eprintln!(
                "SKIPPED cores_are_those_of_all_processes_of_a_machine: there are no two cores here: {err}"
            );
            return;
        }
        assert_eq!(found, Some(code), "{err}");
        assert_eq!(err.contains("`--ranks` is `2`: is more than the 1 cores"), code == 2, "{err}");
        assert_eq!(second.end(SOON).code, Some(0));
    }
}

/// GPUs are counted per machine: with one on each of two machines, both ranks use the first one.
#[test]
fn ranks_take_the_gpus_of_their_own_machine() {
    for local in [1, 2] {
        let folder = common::folder(2);
        let path = folder.path().join("profile.json");
        let mut profile: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        profile["environment"]["devices"] = "cuda".into();
        std::fs::write(path, profile.to_string()).unwrap();
        plan(folder.path(), 2);
        let machine = SoftwareGpus::new().devices(local).variables();
        let machine: Vec<String> =
            machine.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        let (machine, port) = (machine.join(" "), free_port());
        let variables = |rank: usize| {
            let place = format!("RANK={rank} LOCAL_RANK={} LOCAL_WORLD_SIZE={local}", rank % local);
            format!("{place} WORLD_SIZE=2 MASTER_ADDR=localhost AUTODIST_PORT={port} {machine}")
        };
        let train = "train plan.json --steps 2 --json --timeout 60";
        let mut job = Job::start(folder, 2, &variables, train);
        let record = job.processes[0].end(Duration::from_secs(60)).json();
        assert_eq!(record["environment"]["devices"], "cuda");
        let taken = record["environment"]["accelerators"].as_array().unwrap();
        let taken: BTreeSet<u64> = taken.iter().map(|gpu| gpu["ordinal"].as_u64().unwrap()).collect();
        assert_eq!(taken, (0..local as u64).collect(), "{taken:?}");
        job.agents_end_in_silence(0);
    }
}

/// Two machines with a network between them, each of which resolves its own name to the loopback address, as
/// on Debian. Needs a user namespace or root; otherwise the test is skipped.
#[test]
fn two_machines_meet_by_name() {
    const SCRIPT: &str = r#"
        unshare --net --uts --mount sleep 60 & other=$!; trap "kill $other" EXIT
        while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
        there="nsenter -t $other -n -u -m"
        ip link add one type veth peer name two && ip link set two netns $other || exit
        hostname one; $there hostname two
        ip address add 10.77.0.1/24 dev one; $there ip address add 10.77.0.2/24 dev two
        for device in lo one; do ip link set $device up; done
        for device in lo two; do $there ip link set $device up; done
        printf '127.0.0.1 localhost\n127.0.1.1 one\n' > hosts.one; mount --bind hosts.one /etc/hosts
        printf '127.0.0.1 localhost\n127.0.1.1 two\n10.77.0.1 one\n' > hosts.two
        $there mount --bind "$PWD/hosts.two" /etc/hosts || exit
        echo connected >&2
        export WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 MASTER_ADDR=one MASTER_PORT=29500
        train="$AUTODIST train plan.json --steps 5 --json --no-realtime --timeout 20"
        RANK=3 LOCAL_RANK=1 $there $train & three=$!
        RANK=2 LOCAL_RANK=0 $there $train & two=$!
        RANK=1 LOCAL_RANK=1 $train & one=$!
        RANK=0 LOCAL_RANK=0 $train || echo first >&2
        wait $one && wait $two && wait $three && echo all >&2

    "#;
    let folder = common::folder(4);
    plan(folder.path(), 4);
    let train = format!("train plan.json --steps 5 --json {RANKS} -o alone.json");
    let expected = losses(&line(folder.path(), &train).ok());
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--uts", "--mount", "sh", "-c", SCRIPT])
        .current_dir(folder.path())
        .env("AUTODIST", AUTODIST)
        .output();
    let Ok(output) = output else { return eprintln!("SKIPPED two_machines_meet_by_name: no unshare") };
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    if !err.contains("connected") {
        eprintln!("SKIPPED two_machines_meet_by_name: this system lets nobody make a network: {err}");
        return;
    }
    assert!(err.contains("all") && !err.contains("first"), "{err}");
    assert_eq!(losses(&String::from_utf8(output.stdout).unwrap()), expected, "{err}");
}
