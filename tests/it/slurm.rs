//! Submits an exported batch script to a Slurm that the test starts, which trains the plan. `.ci/trainers`
//! installs Slurm and runs this with `AUTODIST_SLURM`.

use crate::common;

use common::{AUTODIST, folder, line};
use std::path::Path;
use std::process::Command;

#[test]
fn a_batch_script_trains_the_plan() {
    if std::env::var_os("AUTODIST_SLURM").is_none() {
        eprintln!("skipped: nothing is submitted to Slurm, as AUTODIST_SLURM is not set (.ci/trainers)");
        return;
    }
    let folder = folder(2);
    std::fs::write(
        folder.path().join("job.toml"),
        "schema_version = 1\nglobal_batch = 8\nseq_len = 16\nlearning_rate = { total_steps = 30 }\n",
    )
    .unwrap();
    line(folder.path(), "estimate --model model.json --job job.toml --dp 2 --micro-batch 2 -o plan.json")
        .ok();
    line(folder.path(), "export plan.json --to slurm -o .").ok();
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("exporters/tests/trainers/slurm_check.py");
    let path =
        format!("{}:{}", Path::new(AUTODIST).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("python3")
        .arg(check)
        .arg(folder.path().join("job.sbatch"))
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    eprintln!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("trained 30 steps"), "{said}");
}
