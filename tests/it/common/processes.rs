//! Functions that inspect processes and wait for them.

use std::time::{Duration, Instant};

#[track_caller]
pub fn wait(limit: Duration, mut until: impl FnMut() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < limit, "it takes more than {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: kill has no memory effect; the process is a child or grandchild of this test.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// State and parent of a process, and its processor time in ticks (proc(5)).
fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields[0].chars().next()?, fields[1].parse().ok()?, fields[11].parse().ok()?))
}

pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, ..)| state != 'Z')
}

/// Whether a rank has used enough time to be past its start.
pub fn busy(pid: i32) -> bool {
    stat(pid).is_some_and(|(_, _, ticks)| ticks >= 20)
}

/// Processor time in ticks.
pub fn ticks(pid: i32) -> u64 {
    stat(pid).map_or(0, |(_, _, ticks)| ticks)
}

pub fn children(parent: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid| stat(*pid).is_some_and(|(_, of, _)| of == parent)).collect()
}
