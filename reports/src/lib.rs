//! Views of a plan and its runs: one HTML page, pictures, plain text, tables and a trace.
//!
//! Nothing here computes a cost: a view shows the content of [`Plan`], [`Validation`], [`RunRecord`] and
//! [`Profile`], with the provenance and the uncertainty of each number. Nothing here writes a file or prints:
//! every function returns its text or bytes.
//!
//! ```
//! use autodist_spec::run::Validation;
//! let nothing = Validation { schema_version: 1, runs: vec![], verdict: None, beaten_by: None, median_error: 0.0, median_adjusted_error: 0.0, regret: None, agreement: None, gains: vec![], probes: vec![], failed: vec![], ended: None };
//! assert!(autodist_reports::csv_validation(&nothing).starts_with("label,measured_step_time_s,"));
//! ```

#![forbid(unsafe_code)]

mod answer;
mod better;
mod changes;
mod circumstances;
mod communication;
pub mod comparison;
pub mod diff;
mod error;
mod figures;
mod findings;
mod html;
mod machine;
mod network;
mod screen;
mod sheets;
mod table;
mod tables;
pub mod terminal;
mod trace;
pub mod training;
mod verdict;
mod view;
mod words;
mod wrap;

pub use error::ReportError;
pub use figures::backtest::{BacktestPoint, backtest_figure};
pub use figures::figures;
pub use html::html;
pub use screen::Screen;
pub use sheets::{
    csv_copies, csv_links, csv_plans, csv_products, csv_segments, csv_timeline, csv_validation,
};
pub use table::{Align, Table};
pub use trace::chrome_trace;
pub use view::{END, Rich, Style, TerminalView};
pub use words::{plural, tokens_per_second};

use autodist_spec::{Plan, Profile, RunRecord, TimelineEvent, Validation};

/// The inputs of a report; absent ones are left out.
#[derive(Debug, Clone, Copy)]
pub struct ReportInput<'a> {
    pub plan: &'a Plan,
    /// The simulated step of `plan`.
    pub predicted_timeline: &'a [TimelineEvent],
    pub validation: Option<&'a Validation>,
    pub runs: &'a [RunRecord],
    pub profile: Option<&'a Profile>,
    /// Commands that go on from the plan, for the reader to copy.
    pub commands: &'a [NextCommand],
}

/// A command to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextCommand {
    /// `Train it`.
    pub purpose: String,
    /// One line, or the lines of a script.
    pub text: String,
}

impl<'a> ReportInput<'a> {
    /// The run of the plan itself, not of one of its alternatives.
    pub(crate) fn own_run(&self) -> Option<&'a RunRecord> {
        self.runs.iter().find(|run| run.strategy == self.plan.strategy && run.stages == self.plan.stages)
    }

    /// Whether any measurement behind this report was made on emulated devices.
    pub(crate) fn emulated(&self) -> bool {
        self.profile.is_some_and(|profile| profile.environment.emulated)
            || self.runs.iter().any(|run| run.environment.emulated)
    }
}
