//! How results look on a terminal.

use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Copy, Args)]
pub struct LookArgs {
    /// Print all tables, not only what decides
    #[arg(short, long, global = true, help_heading = "Display")]
    pub verbose: bool,
    /// Print no notes and no progress; warnings and errors are always printed
    #[arg(short, long, global = true, help_heading = "Display")]
    pub quiet: bool,
    /// When to use colour; `auto` is on a terminal, and obeys NO_COLOR and CLICOLOR_FORCE
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Display"
    )]
    pub color: ColourArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColourArg {
    Auto,
    Always,
    Never,
}
