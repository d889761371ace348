//! Jobs started by a cluster's own launcher (torchrun, mpirun, srun), which starts one process for each rank
//! and describes the job in environment variables.

mod slurm;
#[cfg(test)]
mod tests;

use autodist_communication::random_token;
use autodist_spec::InputError;
use std::fmt;

/// The launcher that has started the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    Torchrun,
    OpenMpi,
    /// MPICH, or Intel MPI.
    Mpich,
    Slurm,
    /// This program itself, by ssh, on the hosts of a host file.
    Ssh,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "mpirun",
            Self::Mpich => "mpiexec",
            Self::Slurm => "srun",
            Self::Ssh => "--hosts",
        })
    }
}

/// This process's place in the launcher's job.
#[derive(Clone, PartialEq, Eq)]
pub struct External {
    pub launcher: Launcher,
    pub rank: usize,
    /// Number of processes on all machines.
    pub world: usize,
    /// This process's rank on its machine.
    pub local_rank: usize,
    /// Number of processes on this machine.
    pub local_world: usize,
    /// Name or address of the machine of rank 0.
    pub host: String,
    /// The port on which rank 0 listens.
    pub port: u16,
    /// The job's token, which distinguishes it from other jobs.
    pub token: String,
    /// Whether the token is secret: the user has set it, or we have generated it.
    pub secret: bool,
}

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { launcher, rank, world, local_rank, local_world, host, port, token: _, secret: _ } = self;
        write!(
            f,
            "rank {rank} of {world} ({local_rank} of {local_world}) by {launcher}, met at {host}:{port}"
        )
    }
}

const LAUNCHER: &str = "AUTODIST_LAUNCHER";
const PORT: &str = "AUTODIST_PORT";
const TOKEN: &str = "AUTODIST_TOKEN";
const MASTER_ADDRESS: &str = "MASTER_ADDR";
const MASTER_PORT: &str = "MASTER_PORT";
/// The port if no variable sets one.
const DEFAULT_PORT: u16 = 29511;
const LOOPBACK: &str = "127.0.0.1";

/// The names of one launcher's variables.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
}

const TORCHRUN: Names = Names {
    launcher: Launcher::Torchrun,
    rank: "RANK",
    world: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_world: "LOCAL_WORLD_SIZE",
};
const OPEN_MPI: Names = Names {
    launcher: Launcher::OpenMpi,
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
};
const OWN: Names = Names {
    launcher: Launcher::Ssh,
    rank: "AUTODIST_RANK",
    world: "AUTODIST_WORLD",
    local_rank: "AUTODIST_LOCAL_RANK",
    local_world: "AUTODIST_LOCAL_WORLD",
};
const MPICH: Names = Names {
    launcher: Launcher::Mpich,
    rank: "PMI_RANK",
    world: "PMI_SIZE",
    local_rank: "MPI_LOCALRANKID",
    local_world: "MPI_LOCALNRANKS",
};

impl External {
    /// Reads the environment of this process; `None` if no launcher has started several processes.
    ///
    /// # Errors
    /// As [`External::read`].
    pub fn from_environment() -> Result<Option<Self>, InputError> {
        Self::read(&from_environment)
    }

    /// Reads the variables that `lookup` returns.
    ///
    /// # Errors
    /// Invalid values: the error has the variable, its value and a hint.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, InputError> {
        let variables = Variables { lookup };
        match variables.text(LAUNCHER).as_deref() {
            None => {}
            Some("none") => return Ok(None),
            Some(other) => {
                let error = InputError::new(LAUNCHER, other, "expected `none`, or an unset variable");
                return Err(error.hint(
                    "unset it to follow torchrun, mpirun or srun, or set it to none to run all ranks on this machine",
                ));
            }
        }
        let Some(names) = variables.names() else { return Ok(None) };
        let world = variables.count(names.world)?;
        if world == 1 && names.launcher != Launcher::Ssh {
            return Ok(None);
        }
        let rank = variables.below(names.rank, world, names.world)?;
        let local_world = match names.launcher {
            Launcher::Slurm => slurm::local_world(&variables)?,
            _ => variables.count(names.local_world)?,
        };
        if local_world > world {
            let problem = format!("must be at most {world}, the value of {}", names.world);
            return Err(variables.wrong(names.local_world, problem));
        }
        let local_rank = variables.below(names.local_rank, local_world, names.local_world)?;
        // On one machine, the host's name is not needed.
        let together = local_world == world && names.launcher != Launcher::Ssh;
        let host = if together { LOOPBACK.to_owned() } else { variables.host(names.launcher)? };
        Ok(Some(Self {
            launcher: names.launcher,
            rank,
            world,
            local_rank,
            local_world,
            host,
            port: variables.port()?,
            token: variables.token(names.launcher),
            secret: variables.has(&[TOKEN]),
        }))
    }

    /// The launcher's own place in a job of `world` ranks that it starts on other machines by ssh; `address`
    /// is the address of this machine for them.
    ///
    /// # Errors
    /// As [`External::read`].
    pub fn by_ssh(world: usize, address: impl FnOnce() -> String) -> Result<Self, InputError> {
        let variables = Variables { lookup: &from_environment };
        let token = match variables.text(TOKEN) {
            Some(token) => token,
            None => random_token().map_err(|error| {
                let problem = format!("is not set, and no random token can be made: {error}");
                InputError::new(TOKEN, "", problem).hint("set it to a long random text")
            })?,
        };
        Ok(Self {
            launcher: Launcher::Ssh,
            rank: 0,
            world,
            local_rank: 0,
            local_world: 1,
            host: variables.text(MASTER_ADDRESS).unwrap_or_else(address),
            // Without a configured port, any free one is used: the processes receive its number.
            port: if variables.has(&[PORT]) { variables.port()? } else { 0 },
            token,
            secret: true,
        })
    }

    /// Whether all processes are on one machine, this one.
    #[must_use]
    pub fn on_one_machine(&self) -> bool {
        match self.launcher {
            Launcher::Ssh => self.host == LOOPBACK,
            _ => self.local_world == self.world,
        }
    }

    /// The first rank that is run by an agent. Under a cluster's launcher, the controlling process runs rank
    /// 0; our own launcher may be on a machine without ranks.
    #[must_use]
    pub fn first_agent(&self) -> usize {
        usize::from(self.launcher != Launcher::Ssh)
    }

    /// Whether this process is an agent.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        self.rank >= self.first_agent()
    }
}

fn from_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// An environment.
struct Variables<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    /// The value of a variable; `None` if it is empty.
    fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn has(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.text(name).is_some())
    }

    /// The variables to read: those of the innermost launcher, as far as can be determined. Scripts often set
    /// some of torchrun's variables for PyTorch, and Slurm some of MPI's, so a launcher whose variables are
    /// all set has priority.
    fn names(&self) -> Option<Names> {
        let slurm = slurm::is_step(self).then(|| slurm::names(self));
        let mut found: Vec<Names> = [OWN, TORCHRUN, OPEN_MPI, MPICH].into_iter().chain(slurm).collect();
        found.retain(|names| self.has(&[names.rank, names.world]));
        let whole = found.iter().position(|names| self.has(&[names.local_rank, names.local_world]));
        (!found.is_empty()).then(|| found.swap_remove(whole.unwrap_or(0)))
    }

    /// The error for an invalid or missing variable of a launcher.
    fn wrong(&self, name: &str, problem: impl Into<String>) -> InputError {
        InputError::new(name, self.text(name).unwrap_or_default(), problem).hint(
            "torchrun, mpirun and srun set this variable; set AUTODIST_LAUNCHER=none to ignore them and run all ranks on this machine",
        )
    }

    fn number(&self, name: &str) -> Result<usize, InputError> {
        let text = self.text(name).ok_or_else(|| {
            self.wrong(
                name,
                "is missing, though other variables say that a launcher has started this process",
            )
        })?;
        text.parse().map_err(|_| self.wrong(name, "expected a whole number from 0"))
    }

    fn count(&self, name: &str) -> Result<usize, InputError> {
        match self.number(name)? {
            0 => Err(self.wrong(name, "must be at least 1")),
            count => Ok(count),
        }
    }

    fn below(&self, name: &str, limit: usize, limited_by: &str) -> Result<usize, InputError> {
        let number = self.number(name)?;
        if number >= limit {
            return Err(self.wrong(name, format!("must be below {limit}, the value of {limited_by}")));
        }
        Ok(number)
    }

    /// The machine of rank 0, if there are several machines.
    fn host(&self, launcher: Launcher) -> Result<String, InputError> {
        if let Some(host) = self.text(MASTER_ADDRESS) {
            return Ok(host);
        }
        if launcher == Launcher::Slurm {
            return slurm::host(self);
        }
        let hint = match launcher {
            Launcher::OpenMpi => "set it to the name of the first host, e.g. mpirun -x MASTER_ADDR=node01",
            Launcher::Mpich => "set it to the name of the first host, e.g. mpiexec -genv MASTER_ADDR node01",
            _ => "set it to the name of rank 0's machine",
        };
        let problem =
            "is missing: the processes run on several machines, and need the address of rank 0's machine";
        Err(InputError::new(MASTER_ADDRESS, "", problem).hint(hint))
    }

    fn port(&self) -> Result<u16, InputError> {
        let port = |name: &str, highest: u16| match self.text(name) {
            None => Ok(None),
            Some(text) => match text.parse::<u16>() {
                Ok(port) if (1..=highest).contains(&port) => Ok(Some(port)),
                _ => Err(InputError::new(name, text, format!("expected a port from 1 to {highest}")).hint(
                    format!("set {PORT} to a free port of rank 0's machine, the same for all processes"),
                )),
            },
        };
        if let Some(port) = port(PORT, u16::MAX)? {
            return Ok(port);
        }
        // The next port, because torchrun's own store listens on the master port.
        Ok(port(MASTER_PORT, u16::MAX - 1)?.map_or(DEFAULT_PORT, |port| port + 1))
    }

    /// The user's secret, or an identifier of the launcher's job.
    fn token(&self, launcher: Launcher) -> String {
        if let Some(token) = self.text(TOKEN) {
            return token;
        }
        let parts: &[&str] = match launcher {
            Launcher::Torchrun => &["TORCHELASTIC_RUN_ID"],
            Launcher::OpenMpi => &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
            Launcher::Mpich => &["PMI_JOBID"],
            // The launcher sends a token.
            Launcher::Ssh => &[],
            Launcher::Slurm => &["SLURM_JOB_ID", "SLURM_STEP_ID"],
        };
        let parts: Vec<String> = parts.iter().filter_map(|name| self.text(name)).collect();
        format!("{launcher} {}", parts.join("."))
    }
}
