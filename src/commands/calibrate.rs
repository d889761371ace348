//! `autodist calibrate`

use super::backtest::fold;
use crate::cli::CalibrateArgs;
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::{Calibration, Fold, FreeParameters, fit, usual_fold};
use autodist_spec::{Check, InputError, one_line};
use std::fmt::Write;

pub fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    output::check_writable(&args.output)?;
    let file = args.runs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let rows = input::runs(&args.runs, &input::catalogue(&args.catalogue)?)?;
    let usable = rows.iter().filter(|row| row.is_for_fitting()).count();
    if usable < 3 {
        let reason = rows.iter().find_map(|row| row.run.as_ref().err());
        let problem = format!("has {usable} usable runs of {}, but a fit needs at least 3", rows.len());
        let hint = reason.map_or("add measured runs of dense models in 16 or 8 bits".to_owned(), |r| {
            format!("one of the unusable rows: {}", one_line(r))
        });
        return Err(InputError::new("", "", problem).in_file(&file).hint(hint).into());
    }
    let middle = if args.from_priors { FreeParameters::prior() } else { *FreeParameters::shipped() };
    let usual = usual_fold(&rows);
    let named = fold(&args.half_of_jobs);
    let by_group = |group: &str| if usual == Fold::Group { named(group) } else { usual };
    let predicted = fit::cross_validated(&rows, &middle, by_group);
    let calibration = Calibration::of(&rows, &middle, &predicted, &format!("{usable} runs of {file}"));
    let mut content = String::from(
        "# Efficiencies of training runs, fitted by `autodist calibrate`. docs/files.md explains every number.\n\n",
    );
    content.push_str(&calibration.to_toml());
    // Ensures that the file can be read again.
    calibration.check().map_err(|error| {
        let problem = format!("the fitted `{}` is `{}`: {}", error.field, error.value, error.problem);
        let hint = "look for runs with an implausible time or size; `autodist backtest` lists every run";
        InputError::new("", "", problem).hint(hint).in_file(&file)
    })?;
    let written =
        output::check_no_input(&args.output).and_then(|()| output::write(&args.output, content.as_bytes()));

    let mut text = format!(
        "fitted to {usable} of {} rows; when left out of the fit, their median error is {:.1} %; error bar {:.1} %: nine of ten, and a margin for groups that were not seen\n\n",
        rows.len(),
        100.0 * calibration.median_error,
        100.0 * calibration.error_bar
    );
    let before = middle.to_table();
    for (name, value) in &calibration.parameters {
        let was = before[name];
        if (value / was - 1.0).abs() > 0.02 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<20} {value:>10.4}  was {was:.4}");
        }
    }
    let _ = match &written {
        Ok(()) => writeln!(text, "\nwrote {}", args.output.display()),
        // The fit took minutes, so it is printed for the user to keep.
        Err(_) => write!(text, "\nnot written to {}:\n{content}", args.output.display()),
    };
    output::print_with(&text, written)
}
