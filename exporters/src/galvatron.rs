//! Galvatron's strategy file: a list of numbers per setting, one for every block.

use crate::document::{Document, MOST_BLOCKS, product, quotient};
use crate::launch::Script;
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, FieldMapping, PARAMETERS_AS_THEY_ARE, UnsupportedField, instead, refuse, size,
};
use crate::settings::{Field, Settings};
use crate::states::NO_STATES;
use crate::trainable;
use crate::unsupported::{KeyRule, approximated, refused};
use crate::{Export, Exporter, File, Files};
use autodist_spec::{InputError, Precision, Recompute, ScheduleKind};
use std::fmt::Display;

pub struct Galvatron;

impl Exporter for Galvatron {
    fn version(&self) -> &'static str {
        "hetu-galvatron 2.4"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        ROWS
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let purpose =
            format!("Galvatron trains {} as planned: {}", job.plan.model.name, job.plan.strategy.label());
        let setup = [
            "export CUDA_DEVICE_MAX_CONNECTIONS=1",
            ": \"${TRAIN_SCRIPT:?train_dist.py in the folder of this model, whose arguments are given to this script}\"",
        ];
        let mut arguments = vec!["--galvatron_config_path \"$(dirname \"$0\")/galvatron.json\"".to_owned()];
        if job.settings.sequence_parallel {
            arguments.push("--sequence-parallel".to_owned());
        }
        let precision = match job.settings.precision {
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
            Precision::Fp32 | Precision::Tf32 | Precision::Fp8 => "fp32",
        };
        arguments.push(format!("--mixed_precision {precision}"));
        arguments.push(format!("--seq-length {}", job.settings.seq_len));
        let command = format!("{} \"$TRAIN_SCRIPT\"", job.machines.torchrun());
        vec![
            File::text("galvatron.json", document.json()),
            File::script(
                "galvatron.sh",
                Script::new(&purpose, job.machines, &setup).run(&command, &arguments),
            ),
        ]
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES]
    }

    fn parse(&self, text: &str, _open: Files) -> Result<Document, InputError> {
        Document::of_json(text)
    }
}

static RULES: &[KeyRule] = &[
    refused(
        &["vsp"],
        &[],
        "splits the sequences of embedding and head between ranks by Ulysses, which plans do not do",
        "set it to 0, or remove it from the file",
    ),
    refused(
        &["cp_sizes_enc", "vcp"],
        &["1"],
        "splits sequences between ranks, which is not read",
        "set it to 1, and give context parallelism by `--cp`",
    ),
    refused(
        &["ep_sizes_enc", "tp_of_ep_sizes_enc"],
        &["1"],
        "splits experts between ranks, which is not read",
        "remove it from the file, and give expert parallelism by `--ep`",
    ),
    approximated(&["embed_sdp", "tp_consecutive_flags"]),
];

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::NO_TRAINABLE,
    NO_STATES,
    instead(Field::Data, "the processes that torchrun starts, divided by the other degrees"),
    instead(Field::Model, "the training script builds the model"),
    instead(Field::SeqLen, "set in the launch script"),
    instead(Field::SequenceParallel, "set in the launch script"),
    instead(Field::Precision, "set in the launch script"),
    instead(Field::Optimizer, "set by arguments of the training script"),
    instead(Field::LearningRate, "set by arguments of the training script"),
    instead(Field::GradientClip, "set by arguments of the training script"),
    instead(Field::Seed, "set by arguments of the training script"),
    instead(Field::CheckpointInterval, "set by arguments of the training script"),
    instead(Field::BucketBytes, "one bucket per block"),
    refuse(Field::Context, "its strategies have no context parallelism", "plan with --cp 1"),
    refuse(Field::Expert, "its strategies have no expert parallelism", "plan with --ep 1"),
    refuse(Field::Gradients, "it has no gradient compression", "plan with allow.codecs = [\"none\"]"),
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
];

static ROWS: &[FieldMapping] = &[
    size!(Pipeline, pipeline, "pp_deg"),
    FieldMapping {
        field: Field::Tensor,
        theirs: "tp_sizes_enc, vtp",
        write: |settings, draft| {
            let blocks = settings.blocks();
            draft.set("tp_sizes_enc", list(blocks, settings.tensor));
            draft.set("tp_consecutive_flags", list(blocks, 1));
            draft.set("vtp", settings.tensor);
        },
        read: |document, settings| {
            let Some(sizes) = document.counts("tp_sizes_enc", 1 << 20)? else { return Ok(false) };
            settings.tensor = *sizes.first().unwrap_or(&1);
            every_block("tp_sizes_enc", sizes.len(), settings)?;
            settings.recompute = vec![Recompute::None; sizes.len()];
            if sizes.iter().any(|size| *size != settings.tensor) {
                return Err(InputError::new(
                    "tp_sizes_enc",
                    sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
                    "differs between blocks, but plans split all blocks alike",
                )
                .hint("use one size for all blocks"));
            }
            if let Some(head) = document.size("vtp")?.filter(|head| *head != settings.tensor) {
                let problem = format!(
                    "splits embedding and head differently from the blocks, whose size is {}",
                    settings.tensor
                );
                return Err(InputError::new("vtp", head, problem).hint("use the size of `tp_sizes_enc`"));
            }
            let neighbours = document.counts("tp_consecutive_flags", 1)?.unwrap_or_default();
            if settings.tensor > 1 && neighbours.contains(&0) {
                return Err(InputError::new(
                    "tp_consecutive_flags",
                    "0",
                    "splits blocks over devices that are not neighbours, which plans do not do",
                )
                .hint("use 1 for all blocks"));
            }
            Ok(true)
        },
    },
    size!(GlobalBatch, global_batch, "global_bsz"),
    FieldMapping {
        field: Field::MicroBatch,
        theirs: "chunks",
        write: |settings, draft| draft.set("chunks", settings.micro_batches()),
        // The file does not contain the number of data ranks that share a chunk.
        read: |document, settings| {
            let (Some(chunks), Some(ranks)) = (document.size("chunks")?, settings.ranks()) else {
                return Ok(false);
            };
            let what = "chunks x data-parallel ranks";
            let parts = product(what, &[chunks, ranks])?;
            settings.micro_batch = quotient("global_bsz", settings.global_batch.into(), parts.into(), what)?;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::VirtualStages,
        theirs: "pp_deg",
        write: |settings, draft| {
            if settings.virtual_stages > 1 {
                draft.refuse(
                    Field::VirtualStages,
                    "it runs one stage per pipeline rank",
                    "plan with --vpp 1",
                );
            }
        },
        read: |_, settings| {
            settings.virtual_stages = 1;
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Schedule,
        theirs: "pipeline_type",
        write: |settings, draft| {
            let gpipe = settings.schedule == ScheduleKind::GPipe;
            draft.set("pipeline_type", if gpipe { "gpipe" } else { "pipedream_flush" });
        },
        read: |document, settings| {
            let words = [("gpipe", true), ("pipedream_flush", false)];
            let gpipe = document.choice("pipeline_type", &words)?.unwrap_or(true) && settings.pipeline > 1;
            settings.schedule = if gpipe { ScheduleKind::GPipe } else { ScheduleKind::OneFOneB };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Stages,
        theirs: "pp_division",
        write: |settings, draft| {
            draft
                .set("pp_division", settings.stages.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
        },
        read: |document, settings| {
            let found = document.counts("pp_division", MOST_BLOCKS)?;
            let said = found.is_some();
            settings.stages = found.unwrap_or_default();
            Ok(said)
        },
    },
    FieldMapping {
        field: Field::Recompute,
        theirs: "checkpoint",
        write: |settings, draft| {
            if settings.recompute.contains(&Recompute::Selective) {
                draft
                    .instead(Field::Recompute, "these blocks use full recomputation: less memory, more time");
            }
            let flags: Vec<_> =
                settings.recompute.iter().map(|r| u32::from(*r != Recompute::None).to_string()).collect();
            draft.set("checkpoint", flags.join(","));
        },
        read: |document, settings| {
            let Some(flags) = document.counts("checkpoint", 1)? else { return Ok(false) };
            settings.recompute =
                flags.iter().map(|flag| if *flag > 0 { Recompute::Full } else { Recompute::None }).collect();
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::ZeroStage,
        theirs: "default_dp_type, dp_types_enc",
        write: |settings, draft| {
            let kind = match settings.zero_stage {
                0 => "ddp",
                1 => {
                    draft.refuse(
                        Field::ZeroStage,
                        "it supports ddp, zero2 and zero3",
                        "plan with --zero 0, 2 or 3",
                    );
                    return;
                }
                2 => "zero2",
                _ => "zero3",
            };
            draft.set("default_dp_type", kind);
            draft.set("dp_types_enc", list(settings.blocks(), u32::from(settings.zero_stage == 3)));
            draft.set("use_sp", list(settings.blocks(), 0));
        },
        read: |document, settings| {
            let sequences = document.counts("use_sp", 1)?.unwrap_or_default();
            if sequences.contains(&1) {
                return Err(InputError::new(
                    "use_sp",
                    "1",
                    "splits sequences between ranks, which is not read",
                )
                .hint("use 0 for all blocks"));
            }
            let own = document.counts("dp_types_enc", 1)?.unwrap_or_default();
            let zero3 = own.first().is_some_and(|flag| *flag == 1);
            if !own.is_empty() {
                every_block("dp_types_enc", own.len(), settings)?;
            }
            if own.iter().any(|flag| (*flag == 1) != zero3) {
                return Err(InputError::new(
                    "dp_types_enc",
                    own.len(),
                    "shards only some blocks, but plans shard all or none",
                )
                .hint("use 1 for all blocks, or 0 for all"));
            }
            let words = [("ddp", 0), ("zero2", 2), ("zero3", 3)];
            let stage = document.choice("default_dp_type", &words)?.unwrap_or(0);
            settings.zero_stage = if zero3 { 3 } else { stage };
            Ok(true)
        },
    },
    FieldMapping {
        field: Field::Shard,
        theirs: "default_dp_type",
        write: |settings, draft| {
            if !settings.does_without(Field::Shard) {
                draft.refuse(
                    Field::Shard,
                    "it shards over all data-parallel ranks",
                    "plan with `--shard` equal to the data-parallel degree",
                );
            }
        },
        read: |_, _| Ok(false),
    },
];

/// Checks that a list has one entry per block, if the number of blocks is known.
fn every_block(key: &str, entries: usize, settings: &Settings) -> Result<(), InputError> {
    let blocks = settings.model.as_ref().map(|model| model.layers as usize);
    match blocks.filter(|blocks| *blocks != entries) {
        None => Ok(()),
        Some(blocks) => {
            let problem = format!("are the entries of this list, but the model has {blocks} blocks");
            Err(InputError::new(key, entries, problem).hint("give one entry per block"))
        }
    }
}

fn list(blocks: u32, value: impl Display) -> String {
    vec![value.to_string(); blocks as usize].join(",")
}
