#![allow(clippy::unwrap_used, clippy::print_stdout)]
use autodist_analytic::{
    Calibration, Parameters,
    fit::{self, Fold},
    table,
};
fn main() {
    let rows = table::read(&std::fs::read("catalog/published/training_runs.csv").unwrap(), "runs").unwrap();
    let middle = Parameters::prior();
    let out =
        fit::cross_validated(
            &rows,
            &middle,
            |g| if g == "vtrain-single" { Fold::Jobs(2) } else { Fold::Group },
        );
    let usable = rows.iter().filter(|r| r.is_for_fitting()).count();
    print!(
        "{}",
        Calibration::of(
            &rows,
            &middle,
            &out,
            &format!("{usable} runs of catalog/published/training_runs.csv")
        )
        .to_toml()
    );
}
