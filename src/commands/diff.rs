//! `autodist diff`: what differs between two plans, two profiles or two runs.

use crate::cli::DiffArgs;
use crate::failure::Failure;
use crate::input::{self, AnyDocument};
use crate::{look, output};
use autodist_reports::diff;
use autodist_spec::{InputError, to_json};

pub fn run(args: &DiffArgs) -> Result<(), Failure> {
    let (before, after) = (input::any_document(&args.before)?, input::any_document(&args.after)?);
    let found = match (&before, &after) {
        (AnyDocument::Plan(before), AnyDocument::Plan(after)) => diff::of_plans(before, after),
        (AnyDocument::Profile(before), AnyDocument::Profile(after)) => diff::of_profiles(before, after),
        (AnyDocument::Run(before), AnyDocument::Run(after)) => diff::of_runs(before, after),
        _ => {
            let (own, other) = (after.kind(), before.kind());
            let problem = format!("is a {own}, but {} is a {other}", args.before.display());
            return Err(InputError::new("AFTER", args.after.display(), problem)
                .hint("give two documents of the same kind: two plans, two profiles or two run records")
                .into());
        }
    };
    let names = (args.before.display().to_string(), args.after.display().to_string());
    output::show(&if args.json { to_json(&found) } else { found.text(&names.0, &names.1, &look::view()) })
}
