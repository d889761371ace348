#![allow(clippy::unwrap_used, clippy::print_stdout)]
fn main() {
    let p = autodist_analytic::measured::MeasuredPlans::read(
        "x",
        &std::fs::read("catalog/published/measured_plans.json").unwrap(),
    )
    .unwrap();
    for e in p.estimate() {
        match e {
            Ok(e) => println!(
                "{:60} {:.3} {:.3} {:+.3}  mem {:.2} {:.2} {:+.3}",
                e.id,
                e.measured_s.unwrap(),
                e.predicted_s,
                e.error.unwrap(),
                e.measured_memory_bytes.unwrap() / 1e9,
                e.predicted_memory_bytes / 1e9,
                e.memory_error.unwrap()
            ),
            Err(e) => println!("{e}"),
        }
    }
}
