//! The table of parameters in docs/files.md matches the code.

use autodist_analytic::PRIORS;
use std::fmt::Write;

const BEGIN: &str = "<!-- parameters: made from the code -->\n";
const END: &str = "<!-- end of parameters -->\n";

fn table() -> String {
    let mut table = format!(
        "There are {} parameters. A prior is a median and a factor of one standard deviation.\n\n\
         | parameter | prior | meaning |\n|---|---|---|\n",
        PRIORS.len()
    );
    for prior in PRIORS {
        let (median, factor, meaning) = (prior.middle, prior.spread.exp(), prior.meaning.trim());
        writeln!(table, "| `{}` | {median} × / ÷ {factor:.2} | {meaning} |", prior.name).unwrap();
    }
    table
}

/// `UPDATE=1 cargo test -p autodist-analytic --test it documentation::` writes the table.
#[test]
fn the_documentation_lists_the_parameters_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/files.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        return;
    }
    assert_eq!(
        found,
        table(),
        "docs/files.md is out of date: UPDATE=1 cargo test -p autodist-analytic --test it documentation::"
    );
}
