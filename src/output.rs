//! Where results go: standard output, and files that are either whole or not there.

use crate::failure::Failure;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Prints a result. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let _ = write!(stdout, "{text}{newline}").and_then(|()| stdout.flush());
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
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let mut file = tempfile::Builder::new().prefix(".autodist-").suffix(".tmp").tempfile_in(&folder).map_err(failed)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
