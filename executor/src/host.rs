//! Where a rank runs: which core, with which priority.

/// Priority of threads that move bytes: above compute, so that a message never waits for a matrix product to end.
const COMMUNICATION_PRIORITY: i32 = 21;
const COMPUTE_PRIORITY: i32 = 20;

/// What a process got of what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub core: Option<usize>,
    pub realtime: bool,
}

/// Cores that this process may run on.
pub fn cores() -> Vec<usize> {
    // SAFETY: a zeroed cpu_set_t is an empty set, and the call fills it within its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return vec![0];
        }
        set
    };
    // SAFETY: every index is below CPU_SETSIZE.
    let cores: Vec<usize> =
        (0..libc::CPU_SETSIZE as usize).filter(|c| unsafe { libc::CPU_ISSET(*c, &set) }).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

/// Ties this process to the core whose turn it is, and asks for real-time priority if `realtime`. Threads made
/// before [`enter_compute`] is called inherit the higher priority of communication.
pub fn place(rank: usize, realtime: bool) -> Placement {
    let cores = cores();
    let core = cores[rank % cores.len()];
    // SAFETY: the set is initialised, and the index comes from the process's own set.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) == 0
    };
    Placement { core: pinned.then_some(core), realtime: realtime && set_priority(COMMUNICATION_PRIORITY) }
}

/// Lowers this thread below the threads that communicate.
pub fn enter_compute(placement: Placement) {
    if placement.realtime {
        set_priority(COMPUTE_PRIORITY);
    }
}

/// Raises this thread again, so that the threads it makes are ready to communicate.
pub fn enter_communication(placement: Placement) {
    if placement.realtime {
        set_priority(COMMUNICATION_PRIORITY);
    }
}

fn set_priority(priority: i32) -> bool {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter outlives the call; 0 names the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) == 0 }
}

/// The kernel kills this process when the one that started it dies, however it dies.
pub fn die_with_parent() {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal number and has no other effect.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

/// Model name of the processor, as the system tells it.
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

/// What this start of the system is known by; empty where nothing tells.
pub fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Bytes of memory that a new process could have.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(1 << 20) * 1024
}
