use super::slurm::first_host;
use super::*;
use std::collections::BTreeMap;

/// Reads an environment from `NAME=value` words.
fn read(words: &str) -> Result<Option<External>, InputError> {
    let variables: BTreeMap<&str, &str> =
        words.split_whitespace().map(|word| word.split_once('=').unwrap()).collect();
    External::read(&|name| variables.get(name).map(|value| (*value).to_owned()))
}

#[track_caller]
fn place(words: &str) -> External {
    read(words).unwrap().unwrap()
}

/// Returns the variable and the value of an error, and the whole message.
#[track_caller]
fn refused(words: &str) -> (String, String, String) {
    let error = read(words).unwrap_err();
    assert!(!error.hint.is_empty(), "no way out: {error}");
    (error.field.clone(), error.value.clone(), error.to_string())
}

const TORCH: &str = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=node07 MASTER_PORT=29500 \
                     TORCHELASTIC_RUN_ID=none";
const STEP: &str = "SLURM_STEP_ID=0 SLURM_JOB_ID=71 SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=7 SLURM_NTASKS=9 \
                    SLURM_LOCALID=1 SLURM_NODEID=2 SLURM_STEP_TASKS_PER_NODE=2(x3),1 \
                    SLURM_STEP_NODELIST=gpu[03-05,11] SLURM_LAUNCH_NODE_IPADDR=10.0.0.250";

#[test]
fn nothing_is_no_launcher() {
    for words in [
        "",
        "PATH=/bin MASTER_ADDR=node MASTER_PORT=1 LOCAL_RANK=1",
        // One variable of a pair alone is from another program.
        "WORLD_SIZE=4 LOCAL_RANK=0",
        "RANK=2",
        "RANK= WORLD_SIZE=",
    ] {
        assert_eq!(read(words).unwrap(), None, "{words}");
    }
}

#[test]
fn one_process_needs_no_others() {
    for words in [
        "RANK=0 WORLD_SIZE=1",
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1",
        "PMI_RANK=0 PMI_SIZE=1",
        "SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4",
    ] {
        assert_eq!(read(words).unwrap(), None, "{words}");
    }
}

#[test]
fn torchrun() {
    let expected = External {
        launcher: Launcher::Torchrun,
        rank: 3,
        world: 8,
        local_rank: 1,
        local_world: 2,
        host: "node07".to_owned(),
        port: 29501,
        token: "torchrun none".to_owned(),
        secret: false,
    };
    assert_eq!(place(TORCH), expected);
    assert!(!expected.on_one_machine());
}

#[test]
fn open_mpi() {
    let words = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 \
                 OMPI_COMM_WORLD_LOCAL_SIZE=4 OMPI_MCA_ess_base_jobid=417792001";
    let found = place(words);
    assert_eq!((found.rank, found.world, found.local_rank, found.local_world), (1, 4, 1, 4));
    assert_eq!((found.launcher, found.port), (Launcher::OpenMpi, 29511));
    assert_eq!((found.host.as_str(), found.token.as_str()), ("127.0.0.1", "mpirun 417792001"));
    assert!(found.on_one_machine());
    // The result does not depend on the address to which the name resolves.
    assert_eq!(place(&format!("{words} MASTER_ADDR=node01")).host, "127.0.0.1");

    let apart = words.replace("LOCAL_SIZE=4", "LOCAL_SIZE=2");
    let (field, value, message) = refused(&apart);
    assert_eq!((field.as_str(), value.as_str()), ("MASTER_ADDR", ""));
    assert!(message.contains("mpirun -x MASTER_ADDR="), "{message}");
    let found = place(&format!("{apart} MASTER_ADDR=node01 MASTER_PORT=4000 AUTODIST_TOKEN=secret"));
    assert_eq!((found.host.as_str(), found.port, found.token.as_str()), ("node01", 4001, "secret"));
    assert!(found.secret);
    // An empty variable counts as not set.
    assert!(!place(&format!("{apart} MASTER_ADDR=node01 AUTODIST_TOKEN=")).secret);
}

#[test]
fn mpich() {
    let words = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2";
    let found = place(words);
    assert_eq!((found.launcher, found.rank, found.local_rank), (Launcher::Mpich, 1, 1));
    let (field, _, message) = refused("PMI_RANK=1 PMI_SIZE=2");
    assert_eq!(field, "MPI_LOCALNRANKS");
    assert!(message.contains("AUTODIST_LAUNCHER=none"), "{message}");
}

#[test]
fn slurm() {
    let found = place(STEP);
    assert_eq!((found.launcher, found.rank, found.world), (Launcher::Slurm, 5, 7));
    assert_eq!((found.local_rank, found.local_world), (1, 2));
    assert_eq!((found.host.as_str(), found.port, found.token.as_str()), ("gpu03", 29511, "srun 71.0"));
    let last = STEP.replace("NODEID=2", "NODEID=3").replace("LOCALID=1", "LOCALID=0");
    assert_eq!(place(&last).local_world, 1);
    // The PMI of srun has no information about machines.
    assert_eq!(place(&format!("{STEP} PMI_RANK=5 PMI_SIZE=7")).launcher, Launcher::Slurm);
    assert_eq!(place(&format!("{STEP} MASTER_ADDR=gpu09")).host, "gpu09");
    // An older srun sets fewer variables.
    let older = "SLURM_STEP_ID=3 SLURM_PROCID=1 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_NTASKS_PER_NODE=2 \
                 SLURM_LAUNCH_NODE_IPADDR=10.0.0.1";
    let found = place(older);
    assert_eq!((found.world, found.local_world, found.host.as_str()), (4, 2, "10.0.0.1"));
    assert_eq!(refused(&older.replace("SLURM_LAUNCH_NODE_IPADDR=10.0.0.1", "")).0, "SLURM_STEP_NODELIST");
    assert_eq!(refused(&older.replace("SLURM_NTASKS_PER_NODE=2", "")).0, "SLURM_NTASKS_PER_NODE");
}

#[test]
fn a_shell_in_an_allocation_is_no_step() {
    let tasks = "SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_JOB_ID=9";
    for step in ["", "batch", "extern", "interactive", "4294967290", "4294967291", "4294967292", "4294967293"]
    {
        assert_eq!(read(&format!("{tasks} SLURM_STEP_ID={step}")).unwrap(), None, "{step}");
    }
}

#[test]
fn the_innermost_launcher_counts() {
    let mpi = "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 \
               OMPI_COMM_WORLD_LOCAL_SIZE=2";
    assert_eq!(place(&format!("{STEP} {mpi}")).launcher, Launcher::OpenMpi);
    assert_eq!(place(&format!("{STEP} {mpi} {TORCH}")).launcher, Launcher::Torchrun);
    // srun starts one torchrun on each node, which starts a single process.
    let one = "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1";
    assert_eq!(read(&format!("{STEP} {one}")).unwrap(), None);
    // Variables that a script sets for PyTorch do not hide the launcher.
    let script = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=node01 MASTER_PORT=29500";
    assert_eq!(place(&format!("{mpi} {script}")).launcher, Launcher::OpenMpi);
    assert_eq!(place(&format!("{STEP} {script}")).launcher, Launcher::Slurm);
    assert_eq!(refused(script).0, "LOCAL_WORLD_SIZE");
}

#[test]
fn launchers_can_be_ignored() {
    assert_eq!(read(&format!("{TORCH} AUTODIST_LAUNCHER=none")).unwrap(), None);
    assert_eq!(read("RANK=nonsense WORLD_SIZE=2 AUTODIST_LAUNCHER=none").unwrap(), None);
    let (field, value, _) = refused("AUTODIST_LAUNCHER=slurm");
    assert_eq!((field.as_str(), value.as_str()), ("AUTODIST_LAUNCHER", "slurm"));
}

#[test]
fn values_that_make_no_sense_are_named() {
    for (from, to, problem) in [
        ("RANK=3", "RANK=three", "expected a whole number"),
        ("RANK=3", "RANK=-1", "expected a whole number"),
        ("RANK=3", "RANK=8", "must be below 8, the value of WORLD_SIZE"),
        ("WORLD_SIZE=8", "WORLD_SIZE=0", "at least 1"),
        ("WORLD_SIZE=8", "WORLD_SIZE=1e3", "expected a whole number"),
        ("LOCAL_RANK=1", "LOCAL_RANK=2", "must be below 2, the value of LOCAL_WORLD_SIZE"),
        ("LOCAL_WORLD_SIZE=2", "LOCAL_WORLD_SIZE=9", "must be at most 8, the value of WORLD_SIZE"),
        ("LOCAL_WORLD_SIZE=2", "LOCAL_WORLD_SIZE=", "missing"),
        ("MASTER_PORT=29500", "MASTER_PORT=65535", "expected a port from 1 to 65534"),
        ("MASTER_PORT=29500", "MASTER_PORT=x", "expected a port"),
        ("MASTER_PORT=29500", "AUTODIST_PORT=0", "expected a port from 1 to 65535"),
        ("MASTER_ADDR=node07", "MASTER_ADDR=", "missing"),
    ] {
        // The name must be that of the whole word: LOCAL_RANK holds RANK.
        let words: Vec<&str> =
            TORCH.split_whitespace().map(|word| if word == from { to } else { word }).collect();
        let (field, value, message) = refused(&words.join(" "));
        assert_eq!(to, format!("{field}={value}"), "{message}");
        assert!(message.contains(problem), "{message}");
    }
    for (from, to, named) in [
        ("SLURM_NODEID=2", "SLURM_NODEID=4", "SLURM_NODEID"),
        ("2(x3),1", "2(x3", "SLURM_STEP_TASKS_PER_NODE"),
        ("2(x3),1", "0(x3),7", "SLURM_STEP_TASKS_PER_NODE"),
        ("2(x3),1", "8(x3)", "SLURM_STEP_TASKS_PER_NODE"),
        ("gpu[03-05,11]", "gpu[03", "SLURM_STEP_NODELIST"),
        ("SLURM_LOCALID=1", "SLURM_LOCALID=2", "SLURM_LOCALID"),
    ] {
        assert_eq!(refused(&STEP.replace(from, to)).0, named, "{to}");
    }
}

#[test]
fn ports() {
    let without = TORCH.replace("MASTER_PORT=29500", "");
    for (words, port) in [
        (TORCH.to_owned(), 29501),
        (format!("{TORCH} AUTODIST_PORT=4000"), 4000),
        (without, 29511),
        (TORCH.replace("MASTER_PORT=29500", "MASTER_PORT=65535 AUTODIST_PORT=65535"), 65535),
    ] {
        assert_eq!(place(&words).port, port, "{words}");
    }
}

#[test]
fn first_hosts_of_lists() {
    for (list, first) in [
        ("node1", "node1"),
        ("a,b,c", "a"),
        ("node[03-07,9]", "node03"),
        ("node[9,03-07]", "node9"),
        ("login,node[1-2]", "login"),
        ("rack[2-3]node[01-04]", "rack2node01"),
        ("node[1-2]-ib.cluster.example", "node1-ib.cluster.example"),
        ("a-1-[002-100,200],b", "a-1-002"),
    ] {
        assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
    }
    for list in ["", ",a", "node[", "node[]", "node[a-b]", "node]", "node[1-2]]", "a b"] {
        assert_eq!(first_host(list), None, "{list}");
    }
}

#[test]
fn a_token_is_not_shown() {
    let shown = format!("{:?}", place(&format!("{TORCH} AUTODIST_TOKEN=hush")));
    assert!(shown.contains("rank 3 of 8") && !shown.contains("hush"), "{shown}");
}
