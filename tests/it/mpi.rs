//! Ranks that communicate over MPI, under the installed `mpirun`. Only built with the feature `mpi`; without
//! `mpirun`, the tests are skipped with a message.

#![cfg(feature = "mpi")]
use crate::common;

use common::cluster::{RANKS, SOON, Started, plan, start_by};
use common::processes::{alive, children, kill, wait};
use common::{AUTODIST, Finished, line, write};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The name of `mpirun` on this machine.
const MPIRUN: &str = "AUTODIST_TEST_MPIRUN";
/// Allows more processes than cores, and root (Open MPI).
const OPEN_MPI: &str =
    "OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1";
const PATIENCE: Duration = Duration::from_secs(300);

/// The name of `mpirun`, if it is installed.
fn mpirun(test: &str) -> Option<String> {
    let name = std::env::var(MPIRUN).unwrap_or_else(|_| "mpirun".to_owned());
    match Command::new(&name).arg("--version").output() {
        Ok(_) => Some(name),
        Err(error) => {
            // Not by a macro, because the harness captures its output.
            let text = format!("SKIPPED {test}: {name} cannot be started: {error}\n");
            std::io::stderr().write_all(text.as_bytes()).unwrap();
            None
        }
    }
}

fn under(mpirun: &str, processes: usize, folder: &Path, args: &str) -> Started {
    start_by(&[mpirun, "-n", &processes.to_string(), AUTODIST], folder, OPEN_MPI, args)
}

fn losses(record: &Value) -> Vec<f64> {
    record["steps"].as_array().unwrap().iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

#[test]
fn profile_plan_validate_and_train_over_mpi() {
    let Some(mpirun) = mpirun("profile_plan_validate_and_train_over_mpi") else { return };
    let folder = common::folder(4);
    let folder = folder.path();
    std::fs::remove_file(folder.join("profile.json")).unwrap();
    let job = "--model model.json --job job.toml --json";
    // Two micro-batch sizes are enough to profile and to plan.
    let allow = "[allow]\nmicro_batch = [1, 2]\nrecompute = [\"none\"]\nuneven_stages = false\n";
    write(folder, "space.toml", format!("schema_version = 1\nglobal_batch = 8\nseq_len = 16\n{allow}"));
    let space = "--model model.json --job space.toml --json";
    let over = format!("{RANKS} --transport mpi");
    let end = |args: &str| under(&mpirun, 4, folder, args).end(PATIENCE);
    let run = |args: &str| end(args).json();
    let profile = run(&format!("profile {space} --budget 0.5 --oversubscribe --devices cpu {over}"));
    assert_eq!(profile["cluster"]["nodes"][0]["devices"], 4);
    let library = profile["environment"]["transport"].as_str().unwrap();
    assert!(library.contains("MPI"), "{library}");
    let plan: Value =
        serde_json::from_str(&line(folder, &format!("plan {space} -o plan.json")).ok()).unwrap();
    let validation = end(&format!("validate plan.json --top 3 --steps 4 --json {over}")).measured();
    assert_eq!(validation["runs"].as_array().unwrap().len(), 3);
    assert_eq!(validation["failed"].as_array().unwrap().len(), 0, "{}", validation["failed"]);
    assert_eq!(validation["runs"][0]["strategy"], plan["strategy"]);
    // Send/recv between stages, collectives of all kinds: bitwise the same as over TCP.
    for way in ["--dp 4 --zero 3", "--dp 2 --tp 2 --sp", "--pp 2 --dp 2 --micro-batch 1"] {
        line(folder, &format!("estimate {job} {way} -o way.json")).ok();
        let record = run(&format!("train way.json --steps 5 --json {over} -o mpi.json"));
        assert_eq!(record["environment"]["transport"], library);
        let tcp = line(folder, &format!("train way.json --steps 5 --json {RANKS} -o tcp.json")).json();
        assert_eq!(tcp["environment"]["transport"], "");
        assert_eq!(losses(&record), losses(&tcp), "{way}");
        let bytes = |record: &Value| -> Vec<u64> {
            let ranks = record["ranks"].as_array().unwrap();
            ranks.iter().map(|rank| rank["bytes_sent_per_step"].as_u64().unwrap()).collect()
        };
        assert_eq!(bytes(&record), bytes(&tcp), "{way}");
    }
}

#[test]
fn what_cannot_go_over_mpi_is_refused() {
    let Some(mpirun) = mpirun("what_cannot_go_over_mpi_is_refused") else { return };
    let folder = common::folder(2);
    plan(folder.path(), 2);
    let train = format!("train plan.json {RANKS} --transport mpi");
    for (processes, code, expected) in [(1, 2, "needs an MPI job"), (3, 4, "the plan is for 2 ranks, but")] {
        let Finished { code: found, out, err } =
            under(&mpirun, processes, folder.path(), &train).end(PATIENCE);
        assert_eq!((found, out.contains("loss")), (Some(code), false), "{err}");
        assert!(err.contains(expected), "{err}");
    }
    let torchrun = common::cluster::torchrun(2, common::cluster::free_port());
    let refused = common::cluster::start(folder.path(), &torchrun(0), &train).end(SOON);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(
        refused.err.contains("torchrun does not start") && refused.err.contains("hint: start it as `mpirun")
    );
}

/// Processes of a job that would take minutes.
fn long(mpirun: &str, folder: &Path) -> (Started, Vec<i32>) {
    plan(folder, 4);
    let args = format!("train plan.json --steps 2000000 {RANKS} --transport mpi -o out/run.json");
    let job = under(mpirun, 4, folder, &args);
    let mut processes = Vec::new();
    wait(PATIENCE, || {
        // MPICH's mpirun has another process in between.
        processes = descendants(job.pid());
        processes.retain(|pid| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(AUTODIST))
        });
        processes.len() == 4 && processes.iter().all(|pid| common::processes::busy(*pid))
    });
    (job, processes)
}

fn descendants(of: i32) -> Vec<i32> {
    children(of).into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

#[test]
fn a_killed_process_and_a_stopped_job_over_mpi_leave_nothing() {
    let Some(mpirun) = mpirun("a_killed_process_and_a_stopped_job_over_mpi_leave_nothing") else { return };
    for (victim, signal) in [(Some(1), libc::SIGKILL), (None, libc::SIGTERM), (None, libc::SIGINT)] {
        let folder = common::folder(4);
        let (mut job, processes) = long(&mpirun, folder.path());
        kill(victim.map_or(job.pid(), |index| processes[index]), signal);
        // mpirun ends the job: it waits between SIGTERM and SIGKILL.
        let Finished { code, .. } = job.end(Duration::from_secs(30));
        assert_ne!(code, Some(0));
        wait(SOON, || processes.iter().all(|pid| !alive(*pid)));
        let made = std::fs::read_dir(folder.path().join("out")).into_iter().flatten();
        let made: Vec<_> = made.map(|entry| entry.unwrap().file_name()).collect();
        // mpirun may kill a process during a write: the temporary file is hidden, and a later run removes it.
        let hidden = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b".autodist-");
        assert!(
            made.iter().all(|name| name == "run.partial.json" || hidden(name)),
            "no half of a result: {made:?}"
        );
    }
}
