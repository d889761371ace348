//! Arguments of the ranks and their devices.

use super::values::engines;
use autodist_spec::{Engine, quantity};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How ranks are run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ranks")]
pub struct RunArgs {
    /// Training engine [default: the one that the plan was made for, else native]
    #[arg(long, value_parser = engines())]
    pub engine: Option<Engine>,
    /// Python interpreter that has PyTorch and autodist_torch [default: AUTODIST_PYTHON, else .venv/bin/python if
    /// --engine torch is given, else python3]
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Do not request real-time priority for ranks on CPUs; measured times then include other load
    #[arg(long)]
    pub no_realtime: bool,
    /// IP address and port of the rendezvous, where the ranks find each other; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub rendezvous: std::net::SocketAddr,
    /// Time after which a silent rank counts as lost, e.g., 90s or 2m
    ///
    /// It is lost if it sends no heartbeat, or no data that a peer waits for.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = quantity::seconds)]
    pub timeout: f64,
    /// Transport between ranks
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: TransportArg,
    /// Start the ranks by ssh on the hosts of this file [default: on this machine]
    ///
    /// Each line is `<host> slots=<ranks>`, e.g., `node01 slots=8`.
    #[arg(long, value_name = "FILE")]
    pub hosts: Option<PathBuf>,
    /// Command that starts a program on a host as ssh does, e.g., `ssh -p 2222`; used with --hosts
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub ssh: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransportArg {
    /// TCP connections
    Tcp,
    /// MPI; needs mpirun, and an autodist that was built with `--features mpi`
    Mpi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DevicesArg {
    /// NVIDIA GPUs if the machine has any, else CPU cores
    Auto,
    /// CPU cores, one per rank
    Cpu,
    /// NVIDIA GPUs
    Cuda,
}

/// The devices that are measured.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ranks")]
pub struct RanksArgs {
    /// Devices that the ranks compute on
    #[arg(long, value_enum, default_value = "auto")]
    pub devices: DevicesArg,
    /// Number of ranks, one device each, up to 64 [default: all devices of this machine]
    #[arg(long, value_name = "N")]
    pub ranks: Option<u32>,
    /// Allow more ranks than devices; plans run, but predicted step times do not apply
    #[arg(long)]
    pub oversubscribe: bool,
    /// Emulate the cluster of this file on this machine
    ///
    /// Ranks compute on CPU cores at the speed of its devices, and send over links as slow as its links.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ranks", "devices"])]
    pub emulate: Option<PathBuf>,
}

impl RanksArgs {
    /// Emulated devices are cores.
    pub fn kind(&self) -> DevicesArg {
        if self.emulate.is_some() { DevicesArg::Cpu } else { self.devices }
    }
}
