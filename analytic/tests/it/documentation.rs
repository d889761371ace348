//! The tables of docs/files.md match the code.

use autodist_analytic::{PRIORS, Trainer, TrainerTraits};
use autodist_program::framework::Abilities;
use std::fmt::Write;

fn parameters() -> String {
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

fn trainers() -> String {
    let mut table = "| `--trainer` | ZeRO stages | pipelines | tensor parallelism | context parallelism |\n\
                     |---|---|---|---|---|\n"
        .to_owned();
    let yes = |value| if value { "yes" } else { "no" };
    let list = |stages: &[u8]| stages.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    for trainer in Trainer::ALL {
        let TrainerTraits { searched_zero_stages: searched, pipelines, tensor, .. } = *trainer.traits();
        let Abilities { zero_stages, virtual_stages, context, .. } = trainer.framework().abilities();
        let others: Vec<u8> = zero_stages.iter().copied().filter(|stage| !searched.contains(stage)).collect();
        let asked = if others.is_empty() {
            String::new()
        } else {
            format!("; {} if they are asked for", list(&others))
        };
        let orders = match (pipelines, virtual_stages) {
            (false, _) => "none",
            (true, false) => "1F1B",
            (true, true) => "1F1B, interleaved",
        };
        writeln!(
            table,
            "| `{trainer}` | {}{asked} | {orders} | {} | {} |",
            list(searched),
            yes(tensor),
            yes(context)
        )
        .unwrap();
    }
    table
}

/// `UPDATE=1 cargo test -p autodist-analytic --test it documentation::` writes the tables.
#[test]
fn the_documentation_has_the_tables_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/files.md");
    for (what, table) in [("parameters", parameters()), ("trainers", trainers())] {
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) =
            (format!("<!-- {what}: made from the code -->\n"), format!("<!-- end of {what} -->\n"));
        let (before, rest) = text.split_once(&begin).unwrap();
        let (found, after) = rest.split_once(&end).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, format!("{before}{begin}{table}{end}{after}")).unwrap();
            continue;
        }
        let update = "UPDATE=1 cargo test -p autodist-analytic --test it documentation::";
        assert_eq!(found, table, "docs/files.md is out of date: {update}");
    }
}
