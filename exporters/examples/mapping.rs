//! Writes the mapping tables into docs/trainers.md.

use std::io::Error;

fn main() -> Result<(), Error> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/trainers.md");
    let text = std::fs::read_to_string(path)?;
    let mark = "<!-- made from the code -->\n";
    let (head, _) =
        text.split_once(mark).ok_or_else(|| Error::other("docs/trainers.md has lost its mark"))?;
    std::fs::write(path, format!("{head}{mark}\n{}\n", autodist_exporters::mapping().trim()))
}
