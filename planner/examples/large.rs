//! How long the search takes on a large space: GPT-3 175B on 512 devices, with synthetic costs.
//! `cargo run --release -p autodist-planner --example large`

use autodist_cost_model::synthetic::SyntheticMachine;
use autodist_planner::Planner;
use autodist_spec::{Bytes, Job, catalog};
use std::time::Instant;

#[expect(clippy::print_stdout, reason = "an example prints its result")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = catalog::model("gpt3-175b")?;
    let job = Job::new(1536, 2048);
    let machine = SyntheticMachine {
        memory_bytes: Bytes(80 << 30),
        flops_per_s: 1e14,
        bytes_per_s: 2e11,
        micro_batches: vec![1, 2, 4],
        ..SyntheticMachine::new(512)
    };
    let profile = machine.profile(&model, &job);
    let began = Instant::now();
    let plan = Planner::new(&model, &profile.cluster, &job, &profile).plan()?;
    let search = &plan.search;
    println!(
        "{} ways, {} simulated, {:?} after {:.1} s: {}",
        search.explored,
        search.simulated,
        search.stop_reason,
        began.elapsed().as_secs_f64(),
        plan.strategy.label()
    );
    Ok(())
}
