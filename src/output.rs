//! Where results go: standard output, and files that are either whole or not there.

use crate::failure::Failure;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Prints a result. A reader that has gone away (`| head`) is no error; a full disk is one.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(stdout, "{text}{newline}").and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Write { path: PathBuf::from("standard output"), source })
        }
        _ => Ok(()),
    }
}

/// A line of progress or advice on standard error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub fn warn(text: &str) {
    note(&format!("warning: {text}"));
}

pub fn error(failure: &Failure) {
    note(&format!("error: {failure}"));
}

/// Writes a file as a whole: into a temporary one beside it, which then takes its name.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o644)
}

/// Writes a file that can be run, as a whole.
pub fn write_script(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_as(path, content, 0o755)
}

fn write_as(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let write = || {
        if is_stream(path)? {
            return fs::OpenOptions::new().write(true).open(path)?.write_all(content);
        }
        let mut file = temporary(path)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Whether `path` could be written: asked before hours of work, not after.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    let check = || if is_stream(path)? { Ok(()) } else { temporary(path).map(drop) };
    check().map_err(|source| Failure::Write { path: path.to_owned(), source })
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

fn temporary(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    tempfile::Builder::new().prefix(".autodist-").suffix(".tmp").tempfile_in(folder)
}
