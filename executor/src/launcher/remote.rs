//! Agents on other machines, started by ssh: one ssh for each host.
//!
//! What ssh runs there is this very program with this very command line. Its place in the job and the job's token would
//! be seen by everybody in the list of processes if they stood there too, so they come on its standard input, one
//! `NAME=value` a line up to an empty one. It runs itself again with them in its environment, and starts the host's
//! other ranks' agents. Its standard input stays open as long as the launcher lives: when it ends, so does everything
//! here.

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

/// Where the environment is to be found: `stdin`.
const ENVIRONMENT: &str = "AUTODIST_ENVIRONMENT";
/// Set in the process that ssh has started, and not in those that it starts.
const HEAD: &str = "AUTODIST_HEAD";
const RANK: &str = "AUTODIST_RANK";
const LOCAL_RANK: &str = "AUTODIST_LOCAL_RANK";
/// Longer than any environment of ours.
const LONGEST: usize = 1 << 20;
/// Prefixes of the environment variables that are forwarded.
const FORWARDED: [&str; 2] = ["AUTODIST_", "NCCL_"];
/// Those would mislead it.
const OWN: [&str; 3] = ["AUTODIST_LAUNCHER", ENVIRONMENT, host::PARENT];
/// The exit code of a process whose launcher is gone.
const LOST: i32 = 4;

/// How agents are started on other machines.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// Program and arguments, before those that are always given.
    pub command: Vec<String>,
    /// What runs there: program and arguments.
    pub program: Vec<OsString>,
    /// Where it runs.
    pub folder: PathBuf,
}

/// One ssh. Dropping it ends it.
pub(super) struct Starter {
    pub host: HostEntry,
    child: Child,
    /// Open until the job ends.
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
            // Nobody is there to be asked for a password.
            .args(["-o", "BatchMode=yes"])
            .arg(&host.name)
            .arg(there(ssh))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the launcher, which ends all in order.
            .process_group(0)
            .spawn()?;
        let mut input = child.stdin.take();
        let errors = Tail::follow(child.stderr.take());
        let mut starter = Self { host: host.clone(), child, input: None, errors: Tail::default() };
        starter.errors = errors?;
        let text = variables(host, first, job);
        // An ssh that dies while it reads is noticed as dead. What it is told fits into a pipe.
        let _ = input.as_mut().map(|input| input.write_all(text.as_bytes()));
        starter.input = input;
        Ok(starter)
    }

    /// How it ended, if it has, and what it wrote last.
    pub fn ended(&mut self) -> Option<(String, String)> {
        let status = self.child.try_wait().ok().flatten()?;
        let what = match status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("ended with exit code {}", status.code().unwrap_or(-1)),
        };
        Some((what, self.errors.whole()))
    }

    /// Lets it end by itself until then; after that it must.
    pub fn end(&mut self, until: Instant) {
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                // What runs there ends when its standard input does.
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

/// The command line there, for whatever shell the user has.
fn there(ssh: &Ssh) -> OsString {
    let mut line = OsString::from("cd ");
    line.push(quoted(ssh.folder.as_os_str()));
    // To `env` a program with `=` in its path would be one more variable; to a shell's arguments it is not.
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

/// What the processes of a host are told.
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

/// On a host: if this process is to find its environment on its standard input, runs it again with that. Returns only
/// if that fails, or if there is nothing to do.
///
/// # Errors
/// What stands there is no environment; the program cannot be run.
pub fn enter_environment() -> io::Result<()> {
    if std::env::var_os(ENVIRONMENT).is_none_or(|from| from != "stdin") {
        return Ok(());
    }
    let mut text = Vec::new();
    // Byte by byte and without a buffer: what comes after belongs to the program that runs next.
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
    /// Starts the agents of the host's other ranks, if this process is to; it ends when its standard input does. One of
    /// the others ends with it.
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
            // The launcher, or the ssh between it and us, is gone. Whatever this process has started ends with it.
            std::process::exit(LOST);
        })?;
        Ok(Some(Self { others }))
    }

    /// Waits for the others, which the launcher has sent home too.
    pub fn close(mut self) {
        let until = Instant::now() + GRACE;
        for other in &mut self.others {
            while matches!(other.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// The address of this machine that leads here from the hosts: the one from which packets to them leave. A name that is
/// known to nobody here may be one of ssh's own; then this machine's name must do.
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
    // Nothing is sent: connecting chooses the way.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}
