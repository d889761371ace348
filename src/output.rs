//! Writes results: to standard output, and to files that are always complete or absent.
//!
//! All output, including text from files and hosts, passes through here: control characters are shown, never
//! sent to a terminal.

use crate::failure::Failure;
use crate::look;
use autodist_reports::{Style, TerminalView, terminal};
use autodist_spec::{InputError, fingerprint, printable};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};
use tempfile::NamedTempFile;

/// Prints a result. A closed pipe (`| head`) is not an error; a full disk is one.
pub fn print(text: &str) -> Result<(), Failure> {
    to_stdout(&printable(text))
}

/// Prints a view of `reports`, with its emphasis.
pub fn show(text: &str) -> Result<(), Failure> {
    if look::view().colour { to_stdout(&look::coloured(text)) } else { print(text) }
}

fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(stdout, "{text}{newline}").and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Write { path: PathBuf::from("standard output"), source })
        }
        _ => Ok(()),
    }
}

/// Prints a result, a view or JSON, that was also to be written, and then returns the write error: a full disk
/// does not suppress the result.
pub fn print_with(text: &str, written: Result<(), Failure>) -> Result<(), Failure> {
    // JSON has no control characters, which views are emphasised by.
    let printed = show(text);
    written.and(printed)
}

/// Maximum characters of lines and messages: quoted text may be as long as a file.
const LONGEST: [usize; 2] = [4_000, 16_000];

/// A line of progress or advice on standard error, unless `--quiet` is given.
pub fn note(text: &str) {
    if !look::get().quiet {
        say(text);
    }
}

/// As [`note`], but each text only once.
pub fn note_once(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().is_ok_and(|mut said| said.insert(text.to_owned())) {
        note(text);
    }
}

/// A line on standard error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", message(text));
}

/// A message that begins with `word`, which is emphasised.
fn alert(word: &str, style: Style, text: &str) {
    let text = message(&format!("{word}: {text}"));
    let shown = match text.strip_prefix(word) {
        Some(rest) if look::get().messages_in_colour => {
            let codes = look::codes(style);
            format!("{codes}{word}{codes:#}{rest}")
        }
        _ => text,
    };
    let _ = writeln!(std::io::stderr(), "{shown}");
}

/// A message for display: without control characters, and truncated.
fn message(text: &str) -> String {
    let cut = |text: &str, limit: usize| match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}… ({} bytes more)", &text[..end], text.len() - end),
        None => text.to_owned(),
    };
    let lines: Vec<String> = text.split('\n').map(|line| cut(&printable(line), LONGEST[0])).collect();
    let text = cut(&lines.join("\n"), LONGEST[1]);
    match look::width_of_messages() {
        Some(width) => {
            terminal::wrapped(&text, &TerminalView::new(width, false, false)).trim_end().to_owned()
        }
        None => text,
    }
}

pub fn warn(text: &str) {
    alert("warning", Style::Caution, text);
}

pub fn error(failure: &Failure) {
    alert("error", Style::Bad, &failure.to_string());
}

/// Writes a file atomically: into a temporary file in the same folder, which is then renamed. A new file gets
/// permissions by the umask, an existing file keeps its mode, and a symbolic link is kept: its target is
/// written.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o666, true)
}

/// Like [`write`], for a file that will soon be written again: does not wait until it is on the disk.
pub fn write_growing(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o666, false)
}

/// Writes an executable file atomically.
pub fn write_script(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o777, true)
}

/// `mode` is the mode of a new file, before the umask.
fn write_as(path: &Path, content: &[u8], mode: u32, on_disk: bool) -> Result<(), Failure> {
    let write = || {
        if is_stream(path)? {
            return open_stream(path)?.write_all(content);
        }
        let path = &target(path)?;
        let known = fs::metadata(path).ok();
        // Private at first if it replaces a file, whose permissions are set below.
        let mut file = temporary(path, if known.is_some() { 0o600 } else { mode })?;
        file.write_all(content)?;
        if let Some(known) = known {
            let mut kept = known.mode() & 0o777;
            // Only root may change the owner; other users may keep the group, or else the group gets no
            // permissions.
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

/// Device and inode of every file that this process has read as an input.
static INPUTS: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// Records an input, so that no result replaces it.
pub fn note_input(file: &fs::File) {
    if let (Ok(metadata), Ok(mut inputs)) = (file.metadata(), INPUTS.lock()) {
        inputs.insert((metadata.dev(), metadata.ino()));
    }
}

/// # Errors
/// The command has read `path`, so that a result there would replace its own input.
pub fn check_no_input(path: &Path) -> Result<(), Failure> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let identity = (metadata.dev(), metadata.ino());
    if metadata.is_file() && INPUTS.lock().is_ok_and(|inputs| inputs.contains(&identity)) {
        let problem = "is an input of this command, which the result would replace";
        return Err(InputError::new("--output", path.display(), problem).hint("give another path").into());
    }
    Ok(())
}

/// Renames a file to the first free name with a number (`run.json`, `run.2.json`), so that it is kept;
/// returns that name. Of a symbolic link, the target is renamed. `None` if there is no such file.
pub fn set_aside(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let path = &target(path).map_err(|source| Failure::Write { path: path.to_owned(), source })?;
    if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return Ok(None);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    let mut names = (2_u32..).map(|number| path.with_file_name(format!("{stem}.{number}{extension}")));
    let free = names.find(|name| fs::symlink_metadata(name).is_err()).unwrap_or_else(|| path.to_owned());
    fs::rename(path, &free).map_err(|source| Failure::Write { path: free.clone(), source })?;
    Ok(Some(free))
}

/// An output that only this process writes, until the claim is dropped or the process ends.
pub struct Claim {
    _name: UnixListener,
}

/// Claims the output `path` of a command that writes for a long time, by a socket in Linux's abstract
/// namespace: it leaves no file, and the kernel frees the name when the process ends.
///
/// # Errors
/// Another process on this machine has claimed it.
pub fn claim(path: &Path) -> Result<Option<Claim>, Failure> {
    if is_device(path) {
        return Ok(None);
    }
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let place = target(&whole).unwrap_or(whole);
    let name = format!("autodist-{}", fingerprint(&place));
    let bound = SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address));
    match bound {
        Ok(name) => Ok(Some(Claim { _name: name })),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let problem = "is being written by another autodist";
            Err(InputError::new("--output", path.display(), problem)
                .hint("wait until it is done, or give another path")
                .into())
        }
        // Not every system has such sockets.
        Err(_) => Ok(None),
    }
}

/// Time in which a reader must open a named pipe.
const READER: Duration = Duration::from_secs(10);

/// Opens a file that grows line by line; a stream is written to.
pub fn open_growing(path: &Path) -> Result<fs::File, Failure> {
    let open = || {
        if is_stream(path)? {
            return open_stream(path);
        }
        let path = target(path)?;
        fs::create_dir_all(folder(&path))?;
        fs::OpenOptions::new().append(true).create_new(true).open(path)
    };
    open().map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Opens a pipe or a device. A named pipe can be opened only once another process reads it.
fn open_stream(path: &Path) -> std::io::Result<fs::File> {
    let began = Instant::now();
    loop {
        let opened = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                if began.elapsed() >= READER {
                    return Err(std::io::Error::other("no process reads this pipe"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            // Without the flag, writes wait for the reader.
            Ok(_) => return fs::OpenOptions::new().write(true).open(path),
            Err(error) => return Err(error),
        }
    }
}

/// Whether `path` can be written: checked before hours of work, not after.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    let check = || if is_stream(path)? { Ok(()) } else { temporary(&target(path)?, 0o600).map(drop) };
    check().map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Whether `path` is a stream, which is written to and never replaced.
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

/// The target of symbolic links, which may not exist.
fn target(path: &Path) -> std::io::Result<PathBuf> {
    // The limit of Linux.
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

/// Age at which a temporary file is stale: its process was killed.
const STALE: Duration = Duration::from_secs(3600);

/// Removes temporary files of killed processes from a folder; once per run.
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
            // Files of other users stay.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_leads_to_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("store")).unwrap();
        fs::write(at("store/run.json"), "old").unwrap();
        std::os::unix::fs::symlink("store/run.json", at("link.json")).unwrap();
        assert_eq!(set_aside(&at("link.json")).unwrap(), Some(at("store/run.2.json")));
        // The next result is written through the link.
        write(&at("link.json"), b"new").unwrap();
        for (name, content) in [("store/run.json", "new"), ("store/run.2.json", "old")] {
            assert_eq!(fs::read_to_string(at(name)).unwrap(), content);
        }
        assert!(at("link.json").is_symlink());
        assert_eq!(set_aside(&at("none.json")).unwrap(), None);
    }

    #[test]
    fn messages_hold_no_control_characters_and_are_cut() {
        assert_eq!(message("a\u{1b}[2J\r\nb\tc"), "a\\u{1b}[2J\\r\nb\tc");
        assert!(message(&"é".repeat(10_000)).ends_with("… (12000 bytes more)"));
        assert!(message(&"word\n".repeat(100_000)).len() < 20_000);
    }
}
