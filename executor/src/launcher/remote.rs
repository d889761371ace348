//! Agents on other machines, started by one ssh process for each host.
//!
//! ssh runs this program with the same command line. On the command line, its place in the job and the job's
//! token would be visible in the process list, so they are sent to its standard input, as lines `NAME=value`
//! up to an empty line. The program runs itself again with these in its environment, and starts the agents of
//! the host's other ranks. Its standard input stays open as long as the launcher runs; when it is closed, all
//! processes on the host end.

use super::GRACE;
use super::tail::Tail;
use crate::external::External;
use crate::host;
use crate::hosts::HostEntry;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// Environment variable with the source of the environment: `stdin`.
const ENVIRONMENT: &str = "AUTODIST_ENVIRONMENT";
/// Environment variable set in the process that ssh has started, but not in its children.
const HEAD: &str = "AUTODIST_HEAD";
const RANK: &str = "AUTODIST_RANK";
const LOCAL_RANK: &str = "AUTODIST_LOCAL_RANK";
/// Maximum length of the environment, bytes.
const LONGEST: usize = 1 << 20;
/// Prefixes of the environment variables that are forwarded.
const FORWARDED: [&str; 2] = ["AUTODIST_", "NCCL_"];
/// Variables that are not forwarded, because they would be wrong there.
const OWN: [&str; 3] = ["AUTODIST_LAUNCHER", ENVIRONMENT, host::PARENT];
/// The exit code of a process whose launcher has ended.
const LOST: i32 = 4;

/// The commands that start agents on other machines.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// Program and arguments of ssh, before those that are always added.
    pub command: Vec<String>,
    /// Program and arguments to run on the host.
    pub program: Vec<OsString>,
    /// The working folder on the host.
    pub folder: PathBuf,
}

/// One ssh process. Dropping it ends the process.
pub(super) struct Starter {
    pub host: HostEntry,
    child: Child,
    /// Its standard input, open until the job ends.
    input: Option<ChildStdin>,
    errors: Tail,
}

impl Starter {
    /// Starts the agents of the ranks from `first` on.
    pub fn start(host: &HostEntry, first: usize, ssh: &Ssh, job: &External) -> io::Result<Self> {
        let mut command = Command::new(host::find_program(Path::new(&ssh.command[0]))?);
        host::tie(&mut command);
        let mut child = command
            .args(&ssh.command[1..])
            // No user can enter a password.
            .args(["-o", "BatchMode=yes"])
            .arg(&host.name)
            .arg(there(ssh))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C goes only to the launcher, which ends all processes in order.
            .process_group(0)
            .spawn()?;
        let mut input = child.stdin.take();
        let errors = Tail::follow(child.stderr.take());
        let mut starter = Self { host: host.clone(), child, input: None, errors: Tail::default() };
        starter.errors = errors?;
        let text = variables(host, first, job);
        // If ssh dies while it reads, that is detected by its exit status. The input fits into the pipe's
        // buffer.
        let _ = input.as_mut().map(|input| input.write_all(text.as_bytes()));
        starter.input = input;
        Ok(starter)
    }

    /// The exit status, if it has ended, and its last output.
    pub fn ended(&mut self) -> Option<(String, String)> {
        let status = self.child.try_wait().ok().flatten()?;
        let what = match status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("ended with exit code {}", status.code().unwrap_or(-1)),
        };
        Some((what, self.errors.whole()))
    }

    /// Waits until `deadline` for it to end by itself, then kills it.
    pub fn end(&mut self, until: Instant) {
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                // The process on the host ends when its standard input is closed.
                self.input = None;
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}

/// The command line on the host, quoted for any shell.
fn there(ssh: &Ssh) -> OsString {
    let mut line = OsString::from("cd ");
    line.push(quoted(ssh.folder.as_os_str()));
    // `env` would treat a program with `=` in its path as a variable, so it is passed as an argument of a
    // shell.
    line.push(format!(" && exec env {ENVIRONMENT}=stdin sh -c 'exec \"$0\" \"$@\"'"));
    for word in &ssh.program {
        line.push(" ");
        line.push(quoted(word));
    }
    line
}

fn quoted(word: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// The environment that is sent to a host.
fn variables(host: &HostEntry, first: usize, job: &External) -> String {
    let forwarded = std::env::vars().filter(|(name, value)| {
        FORWARDED.iter().any(|start| name.starts_with(start))
            && !OWN.contains(&name.as_str())
            && !value.contains('\n')
    });
    let mut all: Vec<(String, String)> = forwarded.collect();
    for (name, value) in [
        (RANK, first.to_string()),
        ("AUTODIST_WORLD", job.world.to_string()),
        (LOCAL_RANK, "0".to_owned()),
        ("AUTODIST_LOCAL_WORLD", host.slots.to_string()),
        ("MASTER_ADDR", job.host.clone()),
        ("AUTODIST_PORT", job.port.to_string()),
        ("AUTODIST_TOKEN", job.token.clone()),
        (HEAD, "1".to_owned()),
    ] {
        all.retain(|(known, _)| known != name);
        all.push((name.to_owned(), value));
    }
    all.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>() + "\n"
}

/// On a host: if this process must read its environment from its standard input, reads it and runs this
/// program again. Returns only if that fails, or if there is nothing to do.
///
/// # Errors
/// The input is not an environment; the program cannot be run.
pub fn enter_environment() -> io::Result<()> {
    if std::env::var_os(ENVIRONMENT).is_none_or(|from| from != "stdin") {
        return Ok(());
    }
    let mut text = Vec::new();
    // Reads byte by byte, without a buffer, because the rest of the input belongs to the next program.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut byte = [0];
    while !text.ends_with(b"\n\n") {
        if input.read(&mut byte)? == 0 {
            return Err(io::Error::other("the environment on standard input ends too early"));
        }
        text.push(byte[0]);
        if text.len() > LONGEST {
            return Err(io::Error::other("expected an environment on standard input"));
        }
    }
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut again = Command::new(host::this_program()?);
    Err(again.arg0(name).args(arguments).env_remove(ENVIRONMENT).envs(pairs).exec())
}

/// The process that ssh has started on a host, with the agents that this process has started.
pub struct HostLeader {
    others: Vec<Child>,
}

impl HostLeader {
    /// Starts the agents of the host's other ranks, if this is the process started by ssh. This process ends
    /// when its standard input is closed; the others end with it.
    ///
    /// # Errors
    /// A process that cannot be started.
    pub fn open(external: &External) -> io::Result<Option<Self>> {
        if std::env::var_os(HEAD).is_none() {
            host::die_with_parent();
            return Ok(None);
        }
        let program = host::this_program()?;
        let mut others = Vec::new();
        for local_rank in 1..external.local_world {
            let mut command = Command::new(&program);
            host::tie(&mut command);
            let child = command
                .arg0(std::env::args_os().next().unwrap_or_default())
                .args(std::env::args_os().skip(1))
                .env_remove(HEAD)
                .env(RANK, (external.rank + local_rank).to_string())
                .env(LOCAL_RANK, local_rank.to_string())
                .env(host::PARENT, std::process::id().to_string())
                .stdin(Stdio::null())
                .spawn()?;
            others.push(child);
        }
        std::thread::Builder::new().name("launcher".to_owned()).spawn(|| {
            let mut portion = [0; 64];
            while matches!(io::stdin().read(&mut portion), Ok(1..)) {}
            // The launcher, or the ssh in between, has ended. All children of this process end with it.
            std::process::exit(LOST);
        })?;
        Ok(Some(Self { others }))
    }

    /// Waits for the other agents, which the launcher has ended too.
    pub fn close(mut self) {
        let until = Instant::now() + GRACE;
        for other in &mut self.others {
            while matches!(other.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// The address of this machine for the hosts: the source address of packets to them. A host name that cannot
/// be resolved may be an alias of ssh; then this machine's name is used.
pub(super) fn address_for(hosts: &[HostEntry]) -> String {
    let mut loopback = true;
    for host in hosts {
        let name = host.name.rsplit('@').next().unwrap_or_default().trim_matches(['[', ']']);
        match local_address(name) {
            Ok(address) if address.is_loopback() => {}
            Ok(address) => return address.to_string(),
            Err(_) => loopback = false,
        }
    }
    if loopback { Ipv4Addr::LOCALHOST.to_string() } else { host::name() }
}

fn local_address(name: &str) -> io::Result<IpAddr> {
    let addresses: Vec<_> = (name, 9).to_socket_addrs()?.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let target = first.ok_or_else(|| io::Error::other("the name has no address"))?;
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    // Nothing is sent: connecting a UDP socket only selects the route.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}
