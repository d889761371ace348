//! Writes every view of a made-up plan into a folder:
//! `cargo run -p autodist-reports --example sample -- FOLDER`.

#[path = "../tests/it/fixture/mod.rs"]
mod fixture;

use autodist_reports::{
    TerminalView, chrome_trace, csv_copies, csv_links, csv_plans, csv_products, csv_segments, csv_timeline,
    csv_validation, figures, html, terminal,
};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("give a folder")?);
    std::fs::create_dir_all(&folder)?;
    let world = fixture::world();
    let gpus = fixture::gpu_world();
    let measured = &world.runs[0].timeline;
    std::fs::write(folder.join("report.html"), html(&world.input())?)?;
    std::fs::write(folder.join("report_gpus.html"), html(&gpus.input())?)?;
    for (name, bytes) in figures(&world.input())? {
        std::fs::write(folder.join(name), bytes)?;
    }
    let view = TerminalView::new(TerminalView::USUAL, false, true);
    let text = [
        terminal::plan_summary(&world.plan, None, &view),
        terminal::validation_table(&world.validation, &view),
        terminal::profile_summary(&world.profile, None, &view),
        terminal::run_summary(&world.runs[0], &view),
        terminal::profile_summary(&gpus.profile, None, &view),
        terminal::run_summary(&gpus.runs[0], &view),
    ];
    for (name, text) in [
        ("plans.csv", csv_plans(&world.plan)),
        ("validation.csv", csv_validation(&world.validation)),
        ("timeline.csv", csv_timeline(measured)),
        ("segments.csv", csv_segments(&world.profile)),
        ("links.csv", csv_links(&world.profile)),
        ("products.csv", csv_products(&gpus.profile)),
        ("copies.csv", csv_copies(&gpus.profile)),
        ("trace.json", chrome_trace(&world.predicted, measured)),
        ("terminal.txt", text.join("\n")),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}
