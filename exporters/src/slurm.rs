//! A batch script for Slurm.

use crate::document::Document;
use crate::launch::{comment, quoted};
use crate::row::{FieldMapping, UnsupportedField};
use crate::{Ask, Export, Exporter, File, Files};
use autodist_spec::{Hyperparameter, InputError, to_json};
use std::fmt::Write;

pub struct Slurm;

impl Exporter for Slurm {
    fn version(&self) -> &'static str {
        "Slurm 22.05"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        &[]
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        &[]
    }

    fn files(&self, _: &Document, job: &Export<'_>) -> Vec<File> {
        let machines = job.machines;
        let own = job.options.script.is_none();
        // Scripts for trainers start the processes of their node themselves; autodist's ranks are Slurm
        // tasks.
        let (tasks, cores) = if own { (machines.devices, 1) } else { (1, machines.devices) };
        let mut text = format!(
            "#!/bin/bash\n#SBATCH --job-name=autodist\n#SBATCH --nodes={}\n#SBATCH --ntasks-per-node={tasks}\n\
             #SBATCH --cpus-per-task={cores}\n",
            machines.nodes
        );
        if machines.gpus {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "#SBATCH --gres=gpu:{}", machines.devices);
        }
        let _ = writeln!(
            text,
            "#SBATCH --exclusive\n#SBATCH --output=%x-%j.out\n\n{}\
             # Submit it in this folder, which every node must be able to read: sbatch {JOB}\nset -euo pipefail",
            comment(&format!("{} as planned: {}", job.plan.model.name, job.plan.strategy.label()))
        );
        text += "MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\nexport MASTER_ADDR\n";
        match &job.options.script {
            None => {
                for ask in job.asked() {
                    let _ = writeln!(text, "{}", ask.line());
                }
                let _ = writeln!(text, "srun autodist train {PLAN} --steps {} -o run.json", steps(job));
            }
            Some(script) => {
                let _ = writeln!(
                    text,
                    "export SCRIPT={}\n# Arguments behind the name of this job go on to the script.\n\
                     srun bash -c 'NODE_RANK=$SLURM_NODEID exec bash \"$SCRIPT\" \"$@\"' bash \"$@\"",
                    quoted(script)
                );
            }
        }
        let mut files = vec![File::script(JOB, text)];
        if own {
            files.push(File::text(PLAN, to_json(job.plan)));
        }
        files
    }

    fn asks(&self) -> &'static [Ask] {
        &ASKS
    }

    fn parse(&self, _: &str, _open: Files) -> Result<Document, InputError> {
        Err(InputError::new("", "slurm", "only starts processes; the trainer's own file holds the strategy")
            .hint("give the trainer's configuration with `--from TRAINER FILE`"))
    }
}

/// Reads the number of steps from the environment if it was not given.
pub(crate) const ASKS: [Ask; 1] =
    [Ask { what: Hyperparameter::TotalSteps, key: "steps", variable: "TRAIN_STEPS" }];

/// The number of training steps, or the variable that contains it.
pub(crate) fn steps(job: &Export<'_>) -> String {
    match job.asked().next() {
        Some(ask) => format!("\"${}\"", ask.variable),
        None => job.settings.learning_rate.total_steps.to_string(),
    }
}

const JOB: &str = "job.sbatch";
pub(crate) const PLAN: &str = "plan.json";
