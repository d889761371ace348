//! This program as one of many processes that a cluster's launcher (torchrun, mpirun, srun) has started: the first does
//! what the command says, the others run a rank when it tells them to.

use crate::cli::{Cli, Command, RunArgs};
use crate::devices::Devices;
use crate::failure::Failure;
use crate::{output, train};
use autodist_executor::External;
use autodist_executor::launcher::{Agent, AgentError, Agents};
use autodist_spec::{Bytes, DeviceKind, Machine, Plan};
use clap::Parser;
use std::sync::{Arc, OnceLock};

static AGENTS: OnceLock<Arc<Agents>> = OnceLock::new();

/// The processes of all ranks but the first, if a cluster's launcher has started them.
pub fn agents() -> Option<Arc<Agents>> {
    AGENTS.get().cloned()
}

/// How a command runs ranks, if it does.
fn run_args(cli: &Cli) -> Option<&RunArgs> {
    match &cli.command {
        Command::Profile(args) => Some(&args.run),
        Command::Validate(args) => Some(&args.run),
        Command::Tune(args) => Some(&args.run),
        Command::Train(args) => Some(&args.run),
        Command::Plan(_)
        | Command::Estimate(_)
        | Command::Explain(_)
        | Command::Report(_)
        | Command::Selftest(_)
        | Command::Catalog(_)
        | Command::Schema(_) => None,
    }
}

/// Rank 0's process: lets the others come, if the command needs them.
///
/// # Errors
/// The port at which they would come is in use.
pub fn open(cli: &Cli, external: Option<&External>) -> Result<(), Failure> {
    if let (Some(external), Some(run)) = (external, run_args(cli)) {
        let agents = Agents::open(external, train::timeout(run)?)?;
        AGENTS.get_or_init(|| Arc::new(agents));
    }
    Ok(())
}

/// Rank 0's process: lets the others go.
pub fn dismiss() {
    if let Some(agents) = AGENTS.get() {
        agents.dismiss(&train::stop_flag());
    }
}

/// The life of any other process; returns its exit code. What is wrong with the command is said by rank 0's process.
pub fn attend(external: &External) -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error.exit_code(),
    };
    let Some(run) = run_args(&cli) else { return 0 };
    let work = || -> Result<(), Failure> {
        let (timeout, command) = (train::timeout(run)?, train::command()?);
        let failed = |error: AgentError| match error {
            AgentError::Interrupted => Failure::Interrupted,
            error => Failure::Run(format!("rank {}: {error}", external.rank)),
        };
        match Agent::join(external, timeout).map_err(failed)? {
            Some(agent) => agent.work(&command, &train::stop_flag()).map_err(failed),
            None => Ok(()),
        }
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

/// Ranks and devices of one machine, that with the fewest devices for its ranks.
pub struct Share {
    pub ranks: u32,
    pub devices: u32,
}

/// What `ranks` ranks come to on each machine of the job, if a cluster's launcher has spread them; `devices` are those
/// that this process sees.
///
/// # Errors
/// Processes that do not come.
pub fn share(ranks: u32, devices: &Devices) -> Result<Share, Failure> {
    let here = Share { ranks, devices: devices.count };
    let Some(agents) = AGENTS.get() else { return Ok(here) };
    let machines = agents.machines(&train::stop_flag())?;
    let shares = machines.iter().map(|machine| Share {
        ranks: machine.ranks.len() as u32,
        devices: match devices.kind {
            // A launcher may bind every process to a core of its own.
            DeviceKind::Cpu => machine.cores.len() as u32,
            // It may show every process a GPU of its own, too.
            DeviceKind::Cuda => devices.count * machine.visible_gpus.len() as u32,
        },
    });
    let crowded = |share: &Share| f64::from(share.ranks) / f64::from(share.devices.max(1));
    Ok(shares.max_by(|one, other| crowded(one).total_cmp(&crowded(other))).unwrap_or(here))
}

/// The machines of the job, in the order of their first ranks; none where all ranks are on one.
///
/// # Errors
/// Processes that do not come.
pub fn machines() -> Result<Vec<Machine>, Failure> {
    let Some(agents) = AGENTS.get() else { return Ok(Vec::new()) };
    let machines = agents.machines(&train::stop_flag())?;
    if machines.len() < 2 {
        return Ok(Vec::new());
    }
    let describe = |machine: autodist_executor::launcher::Machine| Machine {
        name: machine.name,
        ranks: machine.ranks.iter().map(|rank| *rank as u32).collect(),
        processor: machine.processor,
        cores: machine.cores.len() as u32,
        memory_bytes: Bytes(machine.free_memory),
    };
    Ok(machines.into_iter().map(describe).collect())
}

/// Says so where ranks are not spread over machines as the devices of `plan` are.
///
/// # Errors
/// As [`machines`].
pub fn compare_machines(plan: &Plan) -> Result<(), Failure> {
    if plan.profile.emulated {
        return Ok(());
    }
    let here: Vec<u32> = match machines()? {
        machines if machines.is_empty() => vec![plan.cluster.device_count()],
        machines => machines.iter().map(|machine| machine.ranks.len() as u32).collect(),
    };
    let planned = plan.cluster.devices_per_node();
    if here != planned {
        let list = |devices: &[u32]| {
            let devices: Vec<String> = devices.iter().map(u32::to_string).collect();
            devices.join(" + ")
        };
        output::warn(&format!(
            "the plan is for {} devices on {} machine(s), the ranks are {} on {}: predicted times do not hold here",
            list(&planned),
            planned.len(),
            list(&here),
            here.len()
        ));
    }
    Ok(())
}

/// How many ranks there are without `--ranks`, if a cluster's launcher has decided.
pub fn world() -> Option<u32> {
    AGENTS.get().map(|agents| agents.external().world as u32)
}
