//! System calls of a rank: core, priority, parent process, and information about the host.

use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Priority of threads that move bytes: above compute, so that communication never waits for a GEMM to end.
const COMMUNICATION_PRIORITY: i32 = 21;
const COMPUTE_PRIORITY: i32 = 20;

/// The requests that the system granted to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub core: Option<usize>,
    pub realtime: bool,
}

/// One bit for each core of a set, in system words.
type CoreSet = Vec<libc::c_ulong>;
const WORD: usize = libc::c_ulong::BITS as usize;
/// Sizes of the smallest and of the largest CPU set to try, in cores: no system has more.
const CORES: [usize; 2] = [1024, 1 << 20];

/// Cores that this process may run on.
pub fn cores() -> Vec<usize> {
    let mut size = CORES[0];
    loop {
        let mut set: CoreSet = vec![0; size / WORD];
        let bytes = size_of_val(set.as_slice());
        // SAFETY: the call writes at most `bytes` bytes, the size of the vector.
        let outcome = unsafe { libc::sched_getaffinity(0, bytes, set.as_mut_ptr().cast()) };
        if outcome == 0 {
            let cores = members(&set);
            return if cores.is_empty() { vec![0] } else { cores };
        }
        // The system has more cores than the set.
        let small = std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
        if !small || size >= CORES[1] {
            return vec![0];
        }
        size *= 2;
    }
}

fn members(set: &[libc::c_ulong]) -> Vec<usize> {
    (0..set.len() * WORD).filter(|core| set[core / WORD] >> (core % WORD) & 1 == 1).collect()
}

fn set_of(core: usize) -> CoreSet {
    let mut set = vec![0; (core + 1).max(CORES[0]).div_ceil(WORD)];
    set[core / WORD] |= 1 << (core % WORD);
    set
}

/// Pins this process to a core, round-robin by rank, and requests real-time priority if `realtime`. Threads
/// made before [`enter_compute`] is called inherit the higher priority of communication.
pub fn place(rank: usize, realtime: bool) -> Placement {
    let cores = cores();
    let core = cores[rank % cores.len()];
    let set = set_of(core);
    // SAFETY: the call reads as many bytes as the vector holds.
    let pinned = unsafe { libc::sched_setaffinity(0, size_of_val(set.as_slice()), set.as_ptr().cast()) == 0 };
    Placement { core: pinned.then_some(core), realtime: realtime && set_priority(COMMUNICATION_PRIORITY) }
}

/// Lowers this thread below the threads that communicate.
pub fn enter_compute(placement: Placement) {
    if placement.realtime {
        set_priority(COMPUTE_PRIORITY);
    }
}

/// Raises this thread again, so that threads it starts have communication priority.
pub fn enter_communication(placement: Placement) {
    if placement.realtime {
        set_priority(COMMUNICATION_PRIORITY);
    }
}

/// Whether the system grants real-time priority to ranks.
pub fn has_realtime() -> bool {
    // The priority is that of a thread, which ends at once.
    std::thread::spawn(|| set_priority(COMMUNICATION_PRIORITY)).join().unwrap_or(false)
}

fn set_priority(priority: i32) -> bool {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter outlives the call; 0 names the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) == 0 }
}

/// Environment variable with the parent process, with which a child must end.
pub(crate) const PARENT: &str = "AUTODIST_PARENT";
/// The exit code of a process whose parent was gone before it began.
const ORPHAN: i32 = 4;

/// Makes the kernel kill this process when its parent dies, for any reason. If the parent is dead
/// already, this does not return.
pub fn die_with_parent() {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let parent = std::env::var(PARENT).ok().and_then(|parent| parent.parse::<u32>().ok());
    if parent.is_some_and(|parent| parent != std::os::unix::process::parent_id()) {
        std::process::exit(ORPHAN);
    }
}

/// Makes the kernel kill the child of `command` when this process dies, even before the child's exec.
pub(crate) fn tie(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec, the closure only makes two system calls, which are async-signal-safe,
    // and does not allocate.
    unsafe {
        command.pre_exec(move || {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            if std::os::unix::process::parent_id() == parent {
                return Ok(());
            }
            Err(std::io::Error::from_raw_os_error(libc::ESRCH))
        });
    }
}

/// This program, even if its file is replaced or deleted.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// A path that runs this program again, even if its file has been replaced or deleted meanwhile.
///
/// # Errors
/// The system has no `/proc`.
pub fn this_program() -> std::io::Result<PathBuf> {
    let own = Path::new(OWN_PROGRAM);
    if own.exists() { Ok(own.to_owned()) } else { std::env::current_exe() }
}

/// Resolves a command's name: without a slash, the first file of that name in an absolute folder of `PATH`.
/// Files in the working folder are never run by name alone.
///
/// # Errors
/// No such file.
pub fn find_program(name: &Path) -> std::io::Result<PathBuf> {
    if name.components().count() > 1 || name.is_absolute() {
        return Ok(name.to_owned());
    }
    let executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let folders = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let found = std::env::split_paths(&folders).filter(|folder| folder.is_absolute());
    found.map(|folder| folder.join(name)).find(executable).ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::NotFound, "no such program in the folders of PATH")
    })
}

/// Opens a regular file for reading, without blocking.
///
/// # Errors
/// Those of [`File::open`]; anything but a regular file, for example a pipe, which may be endless, or a
/// device.
pub fn open_regular(path: &Path) -> std::io::Result<File> {
    let check = |metadata: &std::fs::Metadata| {
        let kind = metadata.file_type();
        let what = match () {
            () if kind.is_file() => return Ok(()),
            () if kind.is_dir() => "is a folder",
            () if kind.is_fifo() => "is a pipe",
            () if kind.is_socket() => "is a socket",
            () => "is a device",
        };
        Err(std::io::Error::other(format!("{what}, not a regular file")))
    };
    // Opening a device may have side effects.
    check(&std::fs::metadata(path)?)?;
    // Non-blocking, in case the file has been replaced meanwhile.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Whether this process was started with `signal` ignored, as `nohup` does with SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: zeros are a value of the struct, which the call fills; without a new action it changes nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Model name of the processor, as reported by the system.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

/// This host's name.
pub fn name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |n| n.trim().to_owned())
}

/// The boot id of the system; empty if it is not available.
pub fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Bytes of memory available to a new process.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(1 << 20) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_any_number_of_cores() {
        for core in [0, 63, 64, 1023, 1024, 1025, 4095, 100_000] {
            assert_eq!(members(&set_of(core)), [core]);
        }
        assert!(!cores().is_empty());
    }

    #[test]
    fn only_regular_files_are_opened_and_none_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("autodist-host-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let fifo = folder.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        for (path, what) in [
            (folder.join("fifo"), "pipe"),
            (folder.join("socket"), "socket"),
            (folder.clone(), "folder"),
            ("/dev/zero".into(), "device"),
        ] {
            let error = open_regular(&path).unwrap_err().to_string();
            assert_eq!(error, format!("is a {what}, not a regular file"));
        }
        std::fs::write(folder.join("file"), "").unwrap();
        assert!(open_regular(&folder.join("file")).is_ok());
        drop(socket);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_program_is_looked_up_in_folders_from_the_root_alone() {
        assert!(find_program(Path::new("sh")).unwrap().is_absolute());
        assert!(find_program(Path::new("autodist-no-such-program")).is_err());
        assert_eq!(find_program(Path::new("./python")).unwrap(), Path::new("./python"));
    }
}
