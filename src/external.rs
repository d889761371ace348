//! Runs autodist as one of many processes that a cluster's launcher (torchrun, mpirun, srun) has started: the
//! first process runs the command, the others each run a rank when the first requests it.

use crate::cli::{Cli, Command, RunArgs, TransportArg};
use crate::devices::Devices;
use crate::failure::Failure;
use crate::{engine, input, interrupt, output, train};
use autodist_executor::external::Launcher;
use autodist_executor::launcher::{Agent, AgentError, Agents, HostLeader, Runner, Ssh};
use autodist_executor::{External, Mpi, host};
use autodist_spec::{Bytes, DeviceKind, InputError, Machine, Plan};
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

static AGENTS: OnceLock<Arc<Agents>> = OnceLock::new();
/// This process's membership in an MPI job, if ranks communicate over MPI.
static MPI: OnceLock<Mpi> = OnceLock::new();

/// The processes of all ranks but the first, if a cluster's launcher has started them.
pub fn agents() -> Option<Arc<Agents>> {
    AGENTS.get().cloned()
}

/// The options for running ranks, if the command runs any.
fn run_args(cli: &Cli) -> Option<&RunArgs> {
    match &cli.command {
        Command::Profile(args) => Some(&args.run),
        Command::Validate(args) => Some(&args.run),
        Command::Tune(args) => Some(&args.run),
        Command::Train(args) => Some(&args.run),
        Command::Plan(_)
        | Command::Estimate(_)
        | Command::Compare(_)
        | Command::Diff(_)
        | Command::Doctor(_)
        | Command::Backtest(_)
        | Command::Calibrate(_)
        | Command::Export(_)
        | Command::Explain(_)
        | Command::Report(_)
        | Command::Selftest(_)
        | Command::Catalog(_)
        | Command::Schema(_)
        | Command::Completions(_)
        | Command::Man(_) => None,
    }
}

/// How this process runs a rank: in a new process of autodist, or on a thread if only this process can use
/// MPI. Ranks of the PyTorch engine start `python`.
pub fn runner(python: PathBuf) -> Result<Runner, Failure> {
    if let Some(mpi) = MPI.get() {
        return Ok(Runner::Thread { mpi: mpi.clone(), handle: autodist_profiler::handle });
    }
    let program = host::this_program().map_err(lost)?;
    Ok(Runner::Program { command: vec![program.into()], python })
}

fn lost(error: std::io::Error) -> Failure {
    Failure::Run(format!("cannot find the file of the running autodist: {error}"))
}

/// The path of this program, which must be the same on other machines.
fn program() -> Result<OsString, Failure> {
    let program = std::env::current_exe().map_err(lost)?;
    if !program.exists() {
        let problem = "was replaced or deleted since autodist started: start autodist again";
        return Err(Failure::Run(format!(
            "the file of the running autodist, {}, {problem}",
            program.display()
        )));
    }
    Ok(program.into())
}

/// Starts agents on the hosts of a file.
fn start_on(file: &Path, run: &RunArgs, external: Option<&External>) -> Result<Agents, Failure> {
    if let Some(external) = external {
        let problem = format!(
            "must not be combined with a launcher, but {} has started this process",
            external.launcher
        );
        let error = InputError::new("--hosts", file.display(), problem);
        return Err(error
            .hint("start autodist without a launcher, remove `--hosts`, or set AUTODIST_LAUNCHER=none")
            .into());
    }
    let hosts = input::hosts(file)?;
    let command: Vec<String> = run.ssh.split_whitespace().map(str::to_owned).collect();
    if command.is_empty() {
        let error = InputError::new("--ssh", &run.ssh, "no command given");
        return Err(error.hint("give a command such as `ssh -p 2222`, or remove `--ssh` to use ssh").into());
    }
    let folder =
        std::env::current_dir().map_err(|e| Failure::Run(format!("cannot find the current folder: {e}")))?;
    let program = std::iter::once(program()?).chain(std::env::args_os().skip(1)).collect();
    Ok(Agents::open_on(
        &hosts,
        &Ssh { command, program, folder },
        run.rendezvous.ip(),
        train::timeout(run)?,
        output::warn,
    )??)
}

/// Joins the MPI job, if ranks communicate over MPI; all of its processes do.
fn take_part(run: &RunArgs, external: Option<&External>) -> Result<(), Failure> {
    if run.transport == TransportArg::Tcp {
        return Ok(());
    }
    let refused = |problem: String, hint: &str| {
        Err(Failure::from(InputError::new("--transport", "mpi", problem).hint(hint)))
    };
    if !Mpi::is_built() {
        return refused(
            "is not supported: this autodist was built without MPI".to_owned(),
            "build it where mpicc and libclang are installed: cargo build --release --features mpi; or remove `--transport`",
        );
    }
    const START: &str =
        "start it as `mpirun -n 4 autodist …`, with two processes or more; or remove `--transport`";
    let Some(external) = external else {
        return refused(
            "needs an MPI job of several processes, but no launcher has started this one".to_owned(),
            START,
        );
    };
    if matches!(external.launcher, Launcher::Torchrun | Launcher::Ssh) {
        return refused(
            "needs an MPI job of several processes, which torchrun does not start".to_owned(),
            START,
        );
    }
    let mpi = Mpi::initialise().map_err(|error| Failure::Run(format!("--transport mpi: {error}")))?;
    let (rank, size) = (mpi.rank(), mpi.size());
    if (rank, size) != (external.rank, external.world) {
        let problem = format!(
            "disagrees with the launcher: {} sees process {rank} of {size}, but {} has started process {} of {}",
            mpi.library(),
            external.launcher,
            external.rank,
            external.world
        );
        return refused(problem, "start it with the mpirun of the MPI that autodist was built with");
    }
    MPI.get_or_init(|| mpi);
    Ok(())
}

/// Leaves the MPI job. Every process does so after its last communication.
fn leave() -> Result<(), Failure> {
    match MPI.get().map(Mpi::finalise) {
        Some(Err(error)) => Err(Failure::Run(format!("leaving the MPI job: {error}"))),
        _ => Ok(()),
    }
}

/// In rank 0's process: accepts the other processes, if the command needs them.
///
/// # Errors
/// The rendezvous port is in use, a host cannot be reached, or MPI is requested but not available.
pub fn open(cli: &Cli, external: Option<&External>) -> Result<(), Failure> {
    let Some(run) = run_args(cli) else { return Ok(()) };
    take_part(run, external)?;
    let agents = match (&run.hosts, external) {
        (Some(file), _) => start_on(file, run, external)?,
        (None, Some(external)) => {
            let agents = Agents::open(external, run.rendezvous.ip(), train::timeout(run)?, output::warn)?;
            warn_of_strangers(external);
            agents
        }
        (None, None) => return Ok(()),
    };
    AGENTS.get_or_init(|| Arc::new(agents));
    Ok(())
}

/// Warns if other hosts can connect without authentication.
fn warn_of_strangers(external: &External) {
    if external.secret {
        return;
    }
    let who = if external.on_one_machine() {
        "other users of this machine could join the job"
    } else {
        "other users of these machines, and anyone who reaches them over a network, could join the job"
    };
    output::warn(&format!(
        "AUTODIST_TOKEN is not set, and {} provides no secret for the job: {who} (set it to a long random text, the same for all processes)",
        external.launcher
    ));
}

/// In rank 0's process: releases the other processes.
///
/// # Errors
/// Processes of an MPI job do not end.
pub fn dismiss() -> Result<(), Failure> {
    send_home();
    leave()
}

/// Ends the agents that wait for assignments.
pub fn send_home() {
    if let Some(agents) = AGENTS.get() {
        agents.dismiss(&interrupt::stop_flag());
    }
}

/// The main loop of any other process; returns its exit code. Errors in the command are reported by rank 0's
/// process.
pub fn attend(external: &External) -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error.exit_code(),
    };
    let Some(run) = run_args(&cli) else { return 0 };
    let work = || -> Result<(), Failure> {
        let timeout = train::timeout(run)?;
        take_part(run, Some(external))?;
        let runner = runner(engine::python(run))?;
        let head = match external.launcher {
            Launcher::Ssh => HostLeader::open(external)
                .map_err(|e| Failure::Run(format!("cannot start the agents of this host: {e}")))?,
            _ => None,
        };
        let failed = |error: AgentError| match error {
            AgentError::Interrupted => Failure::Interrupted,
            error => Failure::Run(format!("rank {}: {error}", external.rank)),
        };
        if let Some(agent) = Agent::join(external, timeout).map_err(failed)? {
            agent.work(&runner, &interrupt::stop_flag()).map_err(failed)?;
        }
        head.into_iter().for_each(HostLeader::close);
        leave()
    };
    match work() {
        Ok(()) => 0,
        Err(failure) => {
            if let Failure::Run(_) = &failure {
                output::error(&failure);
            }
            failure.exit_code()
        }
    }
}

/// Ranks and devices of the machine with the fewest devices per rank.
pub struct Share {
    pub ranks: u32,
    pub devices: u32,
}

/// The distribution of `ranks` ranks over the machines of the job, if a cluster's launcher has started them;
/// `devices` are those visible to this process.
///
/// # Errors
/// Processes do not connect.
pub fn share(ranks: u32, devices: &Devices) -> Result<Share, Failure> {
    let here = Share { ranks, devices: devices.count };
    let Some(agents) = AGENTS.get() else { return Ok(here) };
    let machines = agents.machines(&interrupt::stop_flag())?;
    let shares = machines.iter().map(|machine| Share {
        ranks: machine.ranks.len() as u32,
        devices: match devices.kind {
            // A launcher may bind every process to its own core.
            DeviceKind::Cpu => machine.cores.len() as u32,
            // It may also show every process only its own GPU.
            DeviceKind::Cuda => devices.count * machine.visible_gpus.len() as u32,
        },
    });
    let crowded = |share: &Share| f64::from(share.ranks) / f64::from(share.devices.max(1));
    Ok(shares.max_by(|one, other| crowded(one).total_cmp(&crowded(other))).unwrap_or(here))
}

/// The machines of the job, in the order of their first ranks; empty if all ranks are on one.
///
/// # Errors
/// Processes do not connect.
pub fn machines() -> Result<Vec<Machine>, Failure> {
    let Some(agents) = AGENTS.get() else { return Ok(Vec::new()) };
    let machines = agents.machines(&interrupt::stop_flag())?;
    if machines.len() < 2 {
        return Ok(Vec::new());
    }
    let describe = |machine: autodist_executor::launcher::JobMachine| Machine {
        name: machine.name,
        ranks: machine.ranks.iter().map(|rank| *rank as u32).collect(),
        processor: machine.processor,
        cores: machine.cores.len() as u32,
        memory_bytes: Bytes(machine.free_memory),
    };
    Ok(machines.into_iter().map(describe).collect())
}

/// Warns if ranks are not distributed over machines like the devices of `plan`, or share cores.
///
/// # Errors
/// As [`machines`].
pub fn compare_machines(plan: &Plan) -> Result<(), Failure> {
    if plan.cost_source.is_emulated() {
        return Ok(());
    }
    let here: Vec<u32> = match machines()? {
        machines if machines.is_empty() => vec![plan.cluster.device_count()],
        machines => machines.iter().map(|machine| machine.ranks.len() as u32).collect(),
    };
    let planned = plan.cluster.devices_per_node();
    let cores = host::cores().len();
    if let ([ranks], DeviceKind::Cpu) = (here.as_slice(), plan.cost_source.devices())
        && *ranks as usize > cores
    {
        output::warn(&format!(
            "the plan has {ranks} ranks, but this machine has {cores} core(s): predicted times are for a core per rank"
        ));
    }
    if here != planned {
        let list = |devices: &[u32]| {
            let devices: Vec<String> = devices.iter().map(u32::to_string).collect();
            devices.join(" + ")
        };
        output::warn(&format!(
            "the plan is for {} devices on {} machine(s), but there are {} ranks on {}: predicted times do not apply here",
            list(&planned),
            planned.len(),
            list(&here),
            here.len()
        ));
    }
    Ok(())
}

/// The default number of ranks without `--ranks`, if a cluster's launcher determines it.
pub fn world() -> Option<u32> {
    AGENTS.get().map(|agents| agents.external().world as u32)
}
