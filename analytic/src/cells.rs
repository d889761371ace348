//! Lines and cells of a CSV text.

use autodist_spec::{InputError, text};
use std::collections::BTreeSet;

/// Lines of the largest table that is accepted: a parsed line takes a kilobyte.
const MOST_LINES: usize = 50_000;

type Reader<'a> = csv::Reader<&'a [u8]>;

fn broken(error: &csv::Error, file: &str) -> InputError {
    InputError::new("", "", format!("not valid CSV: {error}"))
        .hint("give a CSV table in UTF-8, with the names of the columns in its first line")
        .in_file(file)
}

/// The header of a table, and the reader of its lines.
fn open<'a>(text: &'a [u8], file: &str) -> Result<(csv::StringRecord, Reader<'a>), InputError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let header = reader.headers().map_err(|error| broken(&error, file))?.clone();
    let mut known = BTreeSet::new();
    for name in &header {
        text::check_name("name of a column", name).map_err(|error| error.in_file(file))?;
        if !known.insert(name) {
            let error = InputError::new("name of a column", name, "occurs twice");
            return Err(error.hint("remove or rename one of the two columns").in_file(file));
        }
    }
    Ok((header, reader))
}

/// The header of a table.
///
/// # Errors
/// It is not CSV, or has a forbidden character.
pub(crate) fn header(text: &[u8], file: &str) -> Result<csv::StringRecord, InputError> {
    Ok(open(text, file)?.0)
}

/// The header and the lines of a table; cells contain no characters that a table or a terminal would
/// interpret.
///
/// # Errors
/// The text is not CSV, has a cell with a forbidden character, or has too many lines.
pub(crate) fn read(
    text: &[u8],
    file: &str,
) -> Result<(csv::StringRecord, Vec<csv::StringRecord>), InputError> {
    let (header, mut reader) = open(text, file)?;
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| broken(&error, file))?;
        if lines.len() == MOST_LINES {
            let problem = format!("has more than {MOST_LINES} lines, which is the limit");
            return Err(InputError::new("", "", problem).hint("split it into several tables").in_file(file));
        }
        for (name, cell) in header.iter().zip(&record) {
            text::check(name, cell).map_err(|error| {
                let line = record.position().map_or(0, csv::Position::line);
                InputError { field: format!("{name}, line {line}"), ..error }.in_file(file)
            })?;
        }
        lines.push(record);
    }
    Ok((header, lines))
}
