//! The software GPU behaves as documented: `exercise.cpp` uses it as a CUDA program would, and this file runs
//! it on machines of different shapes.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use autodist_software_gpu::{SoftwareGpus, with_missing_symbol, without};

/// The compiled `exercise.cpp`.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
            let (program, work) =
                (folder.join("exercise"), folder.join(format!("exercise.{}", std::process::id())));
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exercise.cpp");
            let flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-pthread"];
            let output = Command::new("g++")
                .args(flags)
                .args([source, "-ldl", "-o"])
                .arg(&work)
                .output()
                .expect("g++ runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(&work, &program).expect("the program can be put in its place");
            program
        })
        .clone()
}

fn run(machine: &SoftwareGpus, words: &[&str]) -> Output {
    machine.apply(&mut Command::new(program())).args(words).output().expect("the program starts")
}

/// Runs a scenario that has to succeed, and returns its output.
#[track_caller]
fn good(machine: &SoftwareGpus, words: &[&str]) -> String {
    let output = run(machine, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?} ended with {}:\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs a scenario that makes a mistake and expects the right code; stderr must mention `what`.
#[track_caller]
fn told(machine: &SoftwareGpus, words: &[&str], what: &str) {
    let output = run(machine, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?} ended with {}:\n{errors}", output.status);
    assert!(errors.contains(what), "{words:?} does not tell of '{what}':\n{errors}");
}

#[test]
fn programs_run() {
    for scenario in ["basics", "modules", "matrices"] {
        good(&SoftwareGpus::new(), &[scenario]);
    }
    good(&SoftwareGpus::new().memory(64 << 20), &["refused"]);
}

#[test]
fn a_missing_wait_shows() {
    assert_eq!(good(&SoftwareGpus::new(), &["streams", "wait"]), "1");
    assert_eq!(good(&SoftwareGpus::new(), &["streams"]), "0");
    assert_eq!(good(&SoftwareGpus::new().set("SOFTWARE_GPU_IGNORE_WAIT", "1"), &["streams", "wait"]), "0");
    assert_eq!(good(&SoftwareGpus::new().set("SOFTWARE_GPU_IGNORE_WAIT", "2"), &["streams", "wait"]), "1");
    assert_eq!(good(&SoftwareGpus::new().set("SOFTWARE_GPU_IGNORE_WAIT", "all"), &["streams", "wait"]), "0");
}

#[test]
fn illegal_accesses_are_caught() {
    let machine = SoftwareGpus::new();
    told(&machine, &["illegal", "read"], "add (device 0, stream 1, operation 4): illegal read of");
    told(&machine, &["illegal", "write"], "bytes beyond the end of allocation 1 of 4004 bytes");
    told(&machine, &["illegal", "margin"], "somebody wrote outside an allocation");
    told(&machine, &["illegal", "freed"], "which has been freed");
    told(&machine, &["illegal", "early"], "whose allocation its stream has not reached yet");
    told(&machine, &["illegal", "null"], "0x0, which is no device memory");
    told(&machine, &["illegal", "division"], "arithmetic trap");
    let one_more = SoftwareGpus::new().set("SOFTWARE_GPU_INDEX_BUG", "rows");
    told(&one_more, &["illegal", "block"], "rows (device 0, stream 1, operation 3): illegal write of");
    let short = SoftwareGpus::new().set("SOFTWARE_GPU_SHORT_ALLOCATION", "1");
    told(&short, &["illegal", "short"], "bytes beyond the end of allocation 1 of 4000 bytes");
}

#[test]
fn faults_come_when_asked_for() {
    good(&SoftwareGpus::new().fault("cuMemAllocAsync", 2, 2).fault("fill", 2, 719), &["faults"]);
    // The same, selected by device; another device's faults do not count.
    let elsewhere = SoftwareGpus::new()
        .fault("cuMemAllocAsync/0", 2, 2)
        .fault("fill@run", 2, 719)
        .fault("fill/1", 1, 700);
    good(&elsewhere, &["faults"]);
    assert_eq!(good(&SoftwareGpus::new().devices(0), &["init"]), "100");
    assert_eq!(good(&SoftwareGpus::new().fault("cuInit", 1, 803), &["init"]), "803");
}

#[test]
fn a_wrong_transpose_shows() {
    let output = run(&SoftwareGpus::new().set("SOFTWARE_GPU_TRANSPOSE_BUG", "1"), &["matrices"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("worst <"), "{output:?}");
}

#[test]
fn devices_are_apart() {
    good(&SoftwareGpus::new().devices(2), &["devices"]);
}

#[test]
fn ranks_reach_each_other() {
    good(&SoftwareGpus::new().devices(2), &["processes", "2"]);
    good(&SoftwareGpus::new().devices(3), &["processes", "3"]);
    good(&SoftwareGpus::new().devices(3), &["threads", "3"]);
    good(&SoftwareGpus::new().devices(3), &["group", "3"]);
    good(&SoftwareGpus::new().devices(2), &["unforced"]);
}

#[test]
fn failing_ranks_are_told() {
    told(&SoftwareGpus::new().devices(3), &["lost", "3"], "rank 2 is gone");
    let like_hardware = SoftwareGpus::new().devices(3).set("SOFTWARE_GPU_NCCL_STALL", "1");
    told(&like_hardware, &["lost", "3", "abort"], "rank 2 is gone");
    told(&SoftwareGpus::new().devices(2), &["mismatch"], "type 7, op 0, root 0) meets rank");
    assert_eq!(good(&SoftwareGpus::new(), &["shared"]), "5");
    assert_eq!(good(&SoftwareGpus::new().set("NCCL_MULTI_RANK_GPU_ENABLE", "1"), &["shared"]), "0");
}

#[test]
fn the_machine_can_be_unfit_for_measuring() {
    assert_eq!(good(&SoftwareGpus::new(), &["management"]), "0 0");
    let busy = SoftwareGpus::new().set("SOFTWARE_GPU_THROTTLE", "1").set("SOFTWARE_GPU_OTHER_PROCESS", "1");
    assert_eq!(good(&busy, &["management"]), "104 1");
}

#[test]
fn installations_can_be_incomplete() {
    assert_eq!(good(&SoftwareGpus::new(), &["symbol"]), "1");
    let old = with_missing_symbol("libcuda.so.1", "cuMemAllocAsync");
    assert_eq!(good(&SoftwareGpus::with_libraries(old), &["symbol"]), "0");
    let none = SoftwareGpus::with_libraries(without("libcuda.so.1"));
    let output = run(&none, &["init"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("libcuda.so.1: cannot open shared object file"), "{errors}");
    assert!(!errors.contains("libnccl"), "{errors}");
}

#[test]
fn executed_operations_are_traced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    good(&SoftwareGpus::new().trace(&path), &["streams", "wait"]);
    let trace = std::fs::read_to_string(&path).unwrap();
    let names: Vec<&str> = trace.lines().filter_map(|line| line.split("name=").nth(1)).collect();
    assert_eq!(
        names,
        [
            "cuMemAllocAsync bytes=4",
            "cuMemsetD8Async bytes=4",
            "fill grid=1x1x1 block=256x1x1",
            "cuEventRecord",
            "cuStreamWaitEvent for_stream=1 for_operation=4",
            "cuMemcpyDtoHAsync bytes=4",
        ],
        "the second fill is asked for by nobody"
    );
    assert!(trace.trim_end().ends_with("exit allocations=1 bytes=4"), "{trace}");
}
