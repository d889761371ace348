//! Megatron-LM's command line.

mod blocks;
mod rows;
mod rules;

pub(crate) use rows::{ROUND, ROWS};
pub(crate) use rules::RULES;

use crate::document::{Document, plain};
use crate::kernels::{self, KernelNames};
use crate::launch::Script;
use crate::row::{ACTIVATIONS_AS_THEY_ARE, FieldMapping, PARAMETERS_AS_THEY_ARE, UnsupportedField};
use crate::trainable;
use crate::unsupported::KeyRule;
use crate::{Ask, DeepSpeedKeys, Export, Exporter, File, Files};
use autodist_spec::{Hyperparameter, InputError, Precision};
use rows::ALSO_READ;
use serde_json::Value;

pub struct Megatron;

impl Exporter for Megatron {
    fn kernels(&self, document: &Document) -> Result<KernelNames, InputError> {
        kernels::of_megatron(document)
    }

    fn version(&self) -> &'static str {
        "megatron-core 0.19"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let mut setup = connections(job.settings.zero_stage);
        if job.settings.precision == Precision::Tf32 {
            setup.push(TF32);
        }
        let purpose =
            format!("Megatron-LM trains {} as planned: {}", job.plan.model.name, job.plan.strategy.label());
        let command = format!("{} pretrain_gpt.py", job.machines.torchrun());
        let mut arguments = document.flags();
        if job.settings.checkpoint_interval.is_some() {
            // Without a folder the interval saves nothing.
            setup.push(": \"${SAVE:?folder to save checkpoints in}\"");
            arguments.push("--save \"$SAVE\"".to_owned());
        }
        arguments.extend(job.asked().map(|ask| format!("--{} \"${}\"", ask.key, ask.variable)));
        vec![File::script(
            "megatron.sh",
            Script::new(&purpose, job.machines, &setup).asking(job).run(&command, &arguments),
        )]
    }

    fn asks(&self) -> &'static [Ask] {
        &[
            Ask { what: Hyperparameter::PeakLearningRate, key: "lr", variable: "LR" },
            Ask { what: Hyperparameter::TotalSteps, key: "train-iters", variable: "TRAIN_ITERS" },
        ]
    }

    fn describes_all_blocks_and_fp8(&self) -> bool {
        true
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES, trainable::RULES]
    }

    fn deepspeed(&self) -> Option<DeepSpeedKeys> {
        // Megatron-DeepSpeed.
        Some(DeepSpeedKeys {
            file: "deepspeed_config",
            section: "deepspeed_config",
            inline: false,
            splits: true,
        })
    }

    fn uses_deepspeed(&self, document: &Document) -> bool {
        document.flag("deepspeed").is_ok_and(|on| on == Some(true))
            || document.has("deepspeed_config.zero_optimization.stage")
    }

    fn parse(&self, text: &str, open: Files) -> Result<Document, InputError> {
        let said = Document::of_script(text, open)?;
        let flags = Flags::of(ROWS, RULES);
        let mut document = said.like();
        for (key, value) in said.entries() {
            document.set(&flags.whole(key, value)?, value.clone());
        }
        Ok(document)
    }
}

/// The flags of Megatron's parser that are known.
struct Flags {
    /// Those of the rows, which are read.
    read: Vec<&'static str>,
    /// Others, with hyphens.
    others: Vec<String>,
}

impl Flags {
    fn of(rows: &[FieldMapping], rules: &'static [KeyRule]) -> Self {
        let read: Vec<_> = rows.iter().flat_map(|row| row.theirs.split(", ")).chain(ALSO_READ).collect();
        let others = rules.iter().flat_map(KeyRule::keys).filter(|key| !key.ends_with(['.', '*']));
        let others = others.map(|key| key.replace('_', "-"));
        Self { others: others.filter(|key| !read.contains(&key.as_str())).collect(), read }
    }

    /// The whole flag of which `key` is the start, as Megatron's parser (argparse) takes it; other keys as they
    /// are.
    ///
    /// # Errors
    /// If it is the start of several flags, of which at least one is read.
    fn whole(&self, key: &str, value: &Value) -> Result<String, InputError> {
        let spelled = key.replace('_', "-");
        if self.read.contains(&spelled.as_str()) {
            return Ok(spelled);
        }
        if self.others.contains(&spelled) {
            return Ok(key.to_owned());
        }
        let mut read: Vec<&str> =
            self.read.iter().copied().filter(|flag| flag.starts_with(&spelled)).collect();
        read.sort_unstable();
        read.dedup();
        let others = self.others.iter().filter(|flag| flag.starts_with(&spelled)).map(String::as_str);
        let all: Vec<&str> = read.iter().copied().chain(others).collect();
        match (read.is_empty(), all.as_slice()) {
            (true, _) => Ok(key.to_owned()),
            (false, [one]) => Ok((*one).to_owned()),
            (false, _) => {
                let names: Vec<_> = all.iter().take(4).map(|flag| format!("--{flag}")).collect();
                let problem = format!("is the start of several flags: {}", names.join(", "));
                Err(InputError::new(key, plain(value), problem).hint("write the flag out"))
            }
        }
    }
}

/// Kernels of tensor and sequence parallelism must start in the order in which they were queued; Megatron's
/// FSDP does not support this setting.
pub(crate) fn connections(zero_stage: u8) -> Vec<&'static str> {
    if zero_stage > 1 {
        vec!["unset CUDA_DEVICE_MAX_CONNECTIONS"]
    } else {
        vec!["export CUDA_DEVICE_MAX_CONNECTIONS=1"]
    }
}

pub(crate) const TF32: &str = "export NVIDIA_TF32_OVERRIDE=1";

static UNSUPPORTED: &[UnsupportedField] = &[PARAMETERS_AS_THEY_ARE, ACTIVATIONS_AS_THEY_ARE];
