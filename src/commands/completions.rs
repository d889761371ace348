//! `autodist completions` and `autodist man`

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::failure::Failure;
use crate::output;
use clap::CommandFactory;
use std::path::PathBuf;

pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "autodist", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Prints the first page, or writes the page of every command into a folder.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut program = Cli::command();
    program.build();
    let Some(folder) = &args.folder else {
        return output::print(&String::from_utf8_lossy(&page(program)?));
    };
    let mut pages: Vec<(PathBuf, clap::Command)> = vec![(folder.join("autodist.1"), program.clone())];
    for command in program.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("autodist-{}", command.get_name());
        pages.push((folder.join(format!("{name}.1")), command.clone()));
    }
    let count = pages.len();
    for (path, command) in pages {
        output::write(&path, &page(command)?)?;
    }
    output::note(&format!("wrote {count} pages to {}", folder.display()));
    Ok(())
}

fn page(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|source| Failure::Write { path: PathBuf::from("the manual page"), source })?;
    Ok(page)
}
