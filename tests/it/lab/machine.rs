//! One simulated machine of the lab.

use super::interface;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Its namespaces exist as long as this value, or a process in them.
pub struct Machine {
    pub address: Ipv4Addr,
    /// With their kinds, mounts last, because the others are opened by paths.
    namespaces: Vec<(File, libc::c_int)>,
}

/// The priority of ranks.
const PRIORITY: libc::c_int = 20;

const KINDS: [(&str, libc::c_int); 4] = [
    ("net", libc::CLONE_NEWNET),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("mnt", libc::CLONE_NEWNS),
];

impl Machine {
    /// Creates the namespaces, and the interface to the switch.
    pub fn start(name: &'static str, address: Ipv4Addr, window: u64) -> Result<(Self, OwnedFd), String> {
        // A separate thread, because only the calling thread leaves the process's namespaces.
        let made = std::thread::spawn(move || make(name, address, window)).join();
        made.map_err(|_| "making a machine failed".to_owned())?
    }

    /// A command for `program` that runs on this machine.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let namespaces: Vec<(libc::c_int, libc::c_int)> =
            self.namespaces.iter().map(|(file, kind)| (file.as_raw_fd(), *kind)).collect();
        let parent = std::process::id();
        let enter = move || {
            // SAFETY: between fork and exec these calls are allowed, and none touches this process's memory.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() as u32 != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                // Entering a mount namespace changes the working directory to its root; paths are the same
                // there.
                let mut folder = [0; libc::PATH_MAX as usize];
                if libc::getcwd(folder.as_mut_ptr(), folder.len()).is_null() {
                    return Err(io::Error::last_os_error());
                }
                for (descriptor, kind) in &namespaces {
                    checked(libc::setns(*descriptor, *kind))?;
                }
                checked(libc::chdir(folder.as_ptr()))
            }
        };
        // SAFETY: as in the closure.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Number of TCP retransmissions so far.
    pub fn repeated(&self) -> u64 {
        let text =
            self.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).join().unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let place = names.split_whitespace().position(|name| name == "RetransSegs").unwrap();
        values.split_whitespace().nth(place).unwrap().parse().unwrap()
    }

    /// Runs `work` on a thread in this machine's network, with real-time priority if permitted.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let network = self.namespaces[0].0.try_clone().unwrap();
        std::thread::spawn(move || {
            // SAFETY: setns changes the calling thread alone.
            checked(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
            realtime(libc::SCHED_RR, PRIORITY);
            work()
        })
    }
}

fn make(name: &'static str, address: Ipv4Addr, window: u64) -> Result<(Machine, OwnedFd), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}; that needs root and /dev/net/tun")
    };
    let all = KINDS.iter().fold(0, |all, (_, kind)| all | kind);
    // SAFETY: only this thread, which ends soon, is in the new namespaces.
    checked(unsafe { libc::unshare(all) }).map_err(failed("no new namespaces"))?;
    mounts().map_err(failed("mounts of its own"))?;
    // SAFETY: the name outlives the call, and the length is its own.
    checked(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map_err(failed("a name"))?;
    interface::up("lo").map_err(failed("a loopback"))?;
    let port = interface::open("lab0").map_err(failed("an interface"))?;
    interface::configure("lab0", address).map_err(failed("an address"))?;
    settings(window).map_err(failed("settings of TCP"))?;
    let open = |(kind, number): &(&str, libc::c_int)| {
        Ok((File::open(format!("/proc/thread-self/ns/{kind}"))?, *number))
    };
    let namespaces = KINDS.iter().map(open).collect::<io::Result<_>>().map_err(failed("namespaces"))?;
    Ok((Machine { address, namespaces }, port))
}

/// Named shared memory is private to this machine: libraries must not bypass the switch.
fn mounts() -> io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: all strings are constants that end in zero.
    unsafe {
        checked(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
        checked(libc::mount(c"lab".as_ptr(), c"/dev/shm".as_ptr(), c"tmpfs".as_ptr(), 0, none.cast()))
    }
}

fn settings(window: u64) -> io::Result<()> {
    // The system counts half of a buffer as overhead.
    let buffer = 2 * window;
    for (name, value) in [
        ("tcp_rmem", format!("4096 131072 {buffer}")),
        ("tcp_wmem", format!("4096 131072 {buffer}")),
        ("tcp_no_metrics_save", "1".to_owned()),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?;
    }
    // The default of most systems, or a similar one; the system's own if neither is available.
    let control = "/proc/sys/net/ipv4/tcp_congestion_control";
    let _ = ["cubic", "reno"].iter().find(|name| std::fs::write(control, name).is_ok());
    Ok(())
}

/// Gives the calling thread priority over all threads without such a priority; returns whether it is
/// permitted.
pub fn realtime(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter outlives the call; 0 names the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) == 0 }
}

pub fn checked(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
