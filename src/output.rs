//! Where results go: standard output, and files that are either whole or not there.
//!
//! Whatever is printed passes here, and so does what files and hosts say: control characters are shown, never sent to a terminal.

use crate::failure::Failure;
use autodist_spec::printable;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;

/// Prints a result. A reader that has gone away (`| head`) is no error; a full disk is one.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(stdout, "{}{newline}", printable(text)).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Write { path: PathBuf::from("standard output"), source })
        }
        _ => Ok(()),
    }
}

/// Prints a result that was to be written, too, and then says whether it was: a full disk takes no result away.
pub fn print_with(text: &str, written: Result<(), Failure>) -> Result<(), Failure> {
    let printed = print(text);
    written.and(printed)
}

/// Lines and messages of more characters are cut: what they quote may be as long as a file.
const LONGEST: [usize; 2] = [4_000, 16_000];

/// A line of progress or advice on standard error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", message(text));
}

/// A message as it is shown: without control characters, and no longer than can be read.
fn message(text: &str) -> String {
    let cut = |text: &str, limit: usize| match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}… ({} bytes more)", &text[..end], text.len() - end),
        None => text.to_owned(),
    };
    let lines: Vec<String> = text.split('\n').map(|line| cut(&printable(line), LONGEST[0])).collect();
    cut(&lines.join("\n"), LONGEST[1])
}

pub fn warn(text: &str) {
    note(&format!("warning: {text}"));
}

pub fn error(failure: &Failure) {
    note(&format!("error: {failure}"));
}

/// Writes a file as a whole: into a temporary one beside it, which then takes its name. A new file is open to whom the umask
/// says, a file that is there keeps its mode, and a symbolic link its place: what it leads to is written.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o666, true)
}

/// As [`write`], of what will soon be written again: it is not waited for until it is on the disk.
pub fn write_growing(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o666, false)
}

/// Writes a file that can be run, as a whole.
pub fn write_script(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o777, true)
}

/// `mode` is that of a new file, less the umask.
fn write_as(path: &Path, content: &[u8], mode: u32, on_disk: bool) -> Result<(), Failure> {
    let write = || {
        if is_stream(path)? {
            return fs::OpenOptions::new().write(true).open(path)?.write_all(content);
        }
        let path = &target(path)?;
        let known = fs::metadata(path).ok();
        // Not yet open to others where the file was not.
        let mut file = temporary(path, if known.is_some() { 0o600 } else { mode })?;
        file.write_all(content)?;
        if let Some(known) = known {
            let mut kept = known.mode() & 0o777;
            // Only root may give files away; others may keep the group, or else it is not to be another group's.
            let give = |uid| std::os::unix::fs::fchown(file.as_file(), uid, Some(known.gid()));
            if give(Some(known.uid())).is_err() && give(None).is_err() {
                kept &= !0o070;
            }
            let run = if mode & 0o111 != 0 { (kept & 0o444) >> 2 } else { 0 };
            file.as_file().set_permissions(Permissions::from_mode(kept | run))?;
        }
        if on_disk {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Whether `path` could be written: asked before hours of work, not after.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    let check = || if is_stream(path)? { Ok(()) } else { temporary(&target(path)?, 0o600).map(drop) };
    check().map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Whether `path` is written to and never replaced.
pub fn is_device(path: &Path) -> bool {
    is_stream(path).unwrap_or(false)
}

/// Whether `path` names a pipe or a device: those are written to, never replaced.
fn is_stream(path: &Path) -> std::io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(ErrorKind::IsADirectory.into()),
        // `/dev/stdout` is a link, to a plain file when standard output goes to one.
        Ok(metadata) => Ok(!metadata.is_file() || (path.starts_with("/dev") && path.is_symlink())),
        Err(_) => Ok(false),
    }
}

/// What symbolic links lead to, whether it is there or not.
fn target(path: &Path) -> std::io::Result<PathBuf> {
    // As many links as Linux follows.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&path) {
            Ok(leads_to) => path = folder(&path).join(leads_to),
            Err(_) => return Ok(path),
        }
    }
    Err(std::io::Error::other("too many symbolic links, one after another"))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

const PREFIX: &str = ".autodist-";
const SUFFIX: &str = ".tmp";

fn temporary(path: &Path, mode: u32) -> std::io::Result<NamedTempFile> {
    let folder = folder(path);
    fs::create_dir_all(folder)?;
    remove_stale(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX).permissions(Permissions::from_mode(mode)).tempfile_in(folder)
}

/// A temporary file lives for as long as it is written; one that is so old was left by a process that was killed.
const STALE: Duration = Duration::from_secs(3600);

/// Removes what killed processes left in a folder; once is enough.
fn remove_stale(folder: &Path) {
    static SEEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let first = SEEN.lock().is_ok_and(|mut seen| seen.insert(folder.to_owned()));
    let entries = first.then(|| fs::read_dir(folder).ok()).flatten();
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let stale = ours
            && entry.metadata().is_ok_and(|metadata| {
                let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                metadata.is_file() && age.is_some_and(|age| age > STALE)
            });
        if stale {
            // Somebody else's stays.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_no_control_characters_and_are_cut() {
        assert_eq!(message("a\u{1b}[2J\r\nb\tc"), "a\\u{1b}[2J\\r\nb\tc");
        assert!(message(&"é".repeat(10_000)).ends_with("… (12000 bytes more)"));
        assert!(message(&"word\n".repeat(100_000)).len() < 20_000);
    }
}
