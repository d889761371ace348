//! The rules of training frameworks: what each of them refuses or cannot run, beyond the rules of every strategy
//! ([`crate::rules`]). Searches, estimates, tables of runs and exports ask the same table.

use crate::rules::{Illegal, Rule};
use autodist_spec::{Job, ModelSpec, ParallelStrategy, Precision, Recompute, ScheduleKind};
use std::fmt;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// A training framework, as far as it decides which strategies start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Framework {
    /// Megatron-LM up to 2022.
    Megatron,
    /// Megatron-Core, also as NeMo and Megatron-Bridge use it.
    #[strum(to_string = "megatron-core", serialize = "nemo", serialize = "megatron-bridge")]
    MegatronCore,
    MegatronDeepspeed,
    Deepspeed,
    /// FSDP of 2022 and 2023.
    Fsdp,
    /// FSDP2 with PyTorch's pipelining, as in torchtitan.
    #[strum(to_string = "fsdp2", serialize = "torchtitan")]
    Fsdp2,
    Internevo,
    Oneflow,
    Nanotron,
    #[strum(to_string = "maxtext")]
    MaxText,
}

/// What a framework supports at all.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    pub tensor: bool,
    pub pipelines: bool,
    pub virtual_stages: bool,
    pub sequence_parallel: bool,
    pub context: bool,
    /// Whether ZeRO can shard in groups of ranks, and replicate over these (HSDP).
    pub shard_groups: bool,
    pub zero_stages: &'static [u8],
    /// Modes of recomputation, cheapest first.
    pub recompute: &'static [Recompute],
    pub fp8: bool,
    /// Whether parts of a model can be frozen, with low-rank adapters or without.
    pub freezes: bool,
    /// Whether frozen weights can be held in 4 or 8 bits.
    pub quantises: bool,
}

const ALL: Abilities = Abilities {
    tensor: true,
    pipelines: true,
    virtual_stages: true,
    sequence_parallel: true,
    context: true,
    shard_groups: true,
    zero_stages: &[0, 1, 2, 3],
    recompute: &[Recompute::None, Recompute::Selective, Recompute::Full],
    fp8: true,
    freezes: false,
    quantises: false,
};

/// Software from before 2022 recomputes whole blocks or nothing, and knows neither sequence nor context parallelism.
const CLASSIC: Abilities = Abilities {
    sequence_parallel: false,
    context: false,
    shard_groups: false,
    zero_stages: &[0, 1],
    recompute: &[Recompute::None, Recompute::Full],
    fp8: false,
    ..ALL
};

impl Framework {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    pub const fn abilities(self) -> Abilities {
        match self {
            // Megatron-Core's distributed optimizer is stage 1; Megatron-FSDP has the others.
            // Files of nanotron and MaxText cannot say what these do not support.
            Self::MegatronCore => Abilities { freezes: true, ..ALL },
            Self::Nanotron | Self::MaxText => ALL,
            Self::Megatron => CLASSIC,
            Self::MegatronDeepspeed | Self::Oneflow => Abilities { virtual_stages: false, ..CLASSIC },
            Self::Deepspeed => Abilities {
                pipelines: false,
                virtual_stages: false,
                zero_stages: &[0, 1, 2, 3],
                freezes: true,
                quantises: true,
                ..CLASSIC
            },
            Self::Internevo => Abilities {
                virtual_stages: false,
                sequence_parallel: false,
                context: false,
                zero_stages: &[0, 1],
                ..ALL
            },
            Self::Fsdp => Abilities {
                tensor: false,
                pipelines: false,
                virtual_stages: false,
                sequence_parallel: false,
                context: false,
                zero_stages: &[0, 2, 3],
                freezes: true,
                quantises: true,
                ..ALL
            },
            // FSDP shards gradients together with the optimizer state.
            Self::Fsdp2 => Abilities { zero_stages: &[0, 2, 3], freezes: true, quantises: true, ..ALL },
        }
    }
}

/// What the rules are asked about.
struct Asked<'a> {
    abilities: Abilities,
    model: &'a ModelSpec,
    job: &'a Job,
    strategy: &'a ParallelStrategy,
}

impl Asked<'_> {
    fn micro_batches(&self) -> u32 {
        self.strategy.micro_batches(self.job.global_batch)
    }

    fn follows(&self, schedule: ScheduleKind) -> bool {
        self.strategy.pipeline > 1 && self.strategy.schedule == schedule
    }
}

/// A rule of some frameworks.
struct FrameworkRule {
    name: &'static str,
    /// The frameworks that have it.
    of: &'static [Framework],
    /// The flag, without dashes, whose value breaks it.
    field: &'static str,
    value: fn(&Asked<'_>) -> String,
    /// Whether it is broken, and the problem with its values.
    broken: fn(&Asked<'_>) -> Option<String>,
    way_out: &'static str,
}

/// A rule that a strategy breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenRule {
    pub framework: Framework,
    pub name: &'static str,
    pub field: &'static str,
    pub value: String,
    pub problem: String,
    pub way_out: &'static str,
}

impl fmt::Display for BrokenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} {}; {}", self.field, self.value, self.problem, self.way_out)
    }
}

impl From<BrokenRule> for Illegal {
    fn from(broken: BrokenRule) -> Self {
        Self { rule: Rule::Framework, reason: format!("{}: {broken}", broken.framework) }
    }
}

const OTHER: &str = "give another value, or another trainer with `--trainer`";
const BATCHES: &str = "use a smaller --micro-batch, a larger --global-batch, or a smaller --pp or --dp";

/// A rule about what a framework supports at all.
macro_rules! supported {
    ($name:literal, $field:literal, |$asked:ident| $value:expr, $broken:expr) => {
        FrameworkRule {
            name: $name,
            of: Framework::ALL,
            field: $field,
            value: |$asked| $value.to_string(),
            broken: |$asked| $broken.then(|| "is not supported".to_owned()),
            way_out: OTHER,
        }
    };
}

/// What a framework lacks altogether. Exports say it field by field, with what the trainer does instead.
static LACKS: &[FrameworkRule] = &[
    supported!("tensor parallelism", "tp", |asked| asked.strategy.tensor, {
        asked.strategy.tensor > 1 && !asked.abilities.tensor
    }),
    supported!("pipeline parallelism", "pp", |asked| asked.strategy.pipeline, {
        asked.strategy.pipeline > 1 && !asked.abilities.pipelines
    }),
    supported!("context parallelism", "cp", |asked| asked.strategy.context, {
        asked.strategy.context > 1 && !asked.abilities.context
    }),
    supported!("virtual stages", "vpp", |asked| asked.strategy.virtual_stages, {
        asked.strategy.virtual_stages > 1 && !asked.abilities.virtual_stages
    }),
    supported!("sequence parallelism", "sp", |asked| asked.strategy.sequence_parallel, {
        asked.strategy.sequence_parallel && !asked.abilities.sequence_parallel
    }),
    supported!("ZeRO stage", "zero", |asked| asked.strategy.zero_stage, {
        !asked.abilities.zero_stages.contains(&asked.strategy.zero_stage)
    }),
    supported!("shard groups", "shard", |asked| asked.strategy.shard, {
        let strategy = asked.strategy;
        strategy.zero_stage > 0 && strategy.shard < strategy.data && !asked.abilities.shard_groups
    }),
    supported!("recomputation", "recompute", |asked| asked.strategy.recompute.name(), {
        !asked.abilities.recompute.contains(&asked.strategy.recompute)
    }),
    supported!("precision", "precision", |asked| asked.job.precision.name(), {
        asked.job.precision == Precision::Fp8 && !asked.abilities.fp8
    }),
    supported!("frozen parts", "trainable", |asked| asked.job.trainable.label(), {
        !asked.job.trainable.is_all() && !asked.abilities.freezes
    }),
    supported!("quantised weights", "base-bits", |asked| asked.job.trainable.base_bits, {
        !asked.job.trainable.base_bits.is_whole() && !asked.abilities.quantises
    }),
];

/// What a framework that has them refuses of strategies, models and batches.
static RULES: &[FrameworkRule] = &[
    // bitsandbytes' and torchao's quantised layers hold whole weights.
    FrameworkRule {
        name: "quantised weights of a split model",
        of: &[Framework::Deepspeed, Framework::Fsdp, Framework::Fsdp2],
        field: "base-bits",
        value: |asked| asked.job.trainable.base_bits.to_string(),
        broken: |asked| {
            let (quantised, strategy) = (!asked.job.trainable.base_bits.is_whole(), asked.strategy);
            (quantised && strategy.tensor * strategy.pipeline > 1).then(|| {
                format!(
                    "is not supported with tp={} and pp={}: quantised layers are not split",
                    strategy.tensor, strategy.pipeline
                )
            })
        },
        way_out: "use --tp 1 and --pp 1, or leave --base-bits out",
    },
    FrameworkRule {
        name: "experts with tensor parallelism",
        of: &[Framework::MegatronCore],
        field: "sp",
        value: |_| "false".to_owned(),
        broken: |asked| {
            let strategy = asked.strategy;
            let broken = asked.model.has_experts() && strategy.tensor > 1 && !strategy.sequence_parallel;
            broken.then(|| format!("trains no experts with tp={}", strategy.tensor))
        },
        way_out: "use --sp, or --tp 1",
    },
    // `Schedule1F1B` of torch.distributed.pipelining.
    FrameworkRule {
        name: "micro-batches of PyTorch's 1F1B",
        of: &[Framework::Fsdp2],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let (count, stages) = (asked.micro_batches(), asked.strategy.pipeline);
            (asked.follows(ScheduleKind::OneFOneB) && count < stages).then(|| {
                format!(
                    "has more stages than the {count} micro-batches of a step, which PyTorch's 1F1B refuses"
                )
            })
        },
        way_out: BATCHES,
    },
    FrameworkRule {
        name: "experts over tensor-parallel ranks",
        of: &[Framework::Fsdp2],
        field: "ep",
        value: |asked| asked.strategy.expert.to_string(),
        broken: |asked| {
            let strategy = asked.strategy;
            (strategy.expert > 1 && strategy.tensor > 1)
                .then(|| format!("does not split experts over the ranks of tp={}, too", strategy.tensor))
        },
        way_out: "use --tp 1 or --ep 1",
    },
    FrameworkRule {
        name: "experts in the shard group",
        of: &[Framework::Fsdp2],
        field: "ep",
        value: |asked| asked.strategy.expert.to_string(),
        broken: |asked| {
            let (strategy, shards) = (asked.strategy, asked.strategy.shards());
            let broken =
                strategy.expert > 1 && (strategy.zero_stage == 0 || !shards.is_multiple_of(strategy.expert));
            broken.then(|| {
                format!("does not divide the {shards} ranks that shard, over which experts are split")
            })
        },
        way_out: "use --zero 2 or 3 and a --shard that the degree divides",
    },
    FrameworkRule {
        name: "context parallelism without sharding",
        of: &[Framework::Fsdp2],
        field: "cp",
        value: |asked| asked.strategy.context.to_string(),
        broken: |asked| {
            let strategy = asked.strategy;
            (strategy.context > 1 && strategy.zero_stage == 0)
                .then(|| "has ranks over which FSDP shards, too, but nothing is sharded".to_owned())
        },
        way_out: "use --zero 2 or 3, or --cp 1",
    },
    // `ScheduleInterleaved1F1B` of torch.distributed.pipelining.
    FrameworkRule {
        name: "rounds of PyTorch's interleaving",
        of: &[Framework::Fsdp2],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let (count, stages) = (asked.micro_batches(), asked.strategy.pipeline);
            let rounds = (count / stages).max(1);
            let broken = asked.follows(ScheduleKind::Interleaved) && !count.is_multiple_of(rounds);
            broken.then(|| {
                format!("runs the {count} micro-batches of a step in {rounds} rounds, which PyTorch's interleaved schedule wants equal")
            })
        },
        way_out: BATCHES,
    },
    FrameworkRule {
        name: "tied embeddings in a pipeline",
        of: &[Framework::Fsdp2],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let tied = asked.model.tied_embeddings && asked.strategy.pipeline > 1;
            tied.then(|| {
                format!("puts the tied embedding and head of {} into different stages", asked.model.name)
            })
        },
        way_out: "use --pp 1, or a model whose head is not tied to the embedding",
    },
    FrameworkRule {
        name: "sequences of tensor-parallel ranks",
        of: &[Framework::Fsdp2],
        field: "tp",
        value: |asked| asked.strategy.tensor.to_string(),
        broken: |asked| {
            let parts = u64::from(asked.strategy.tensor) * u64::from(asked.strategy.context) * 2;
            let length = asked.job.seq_len;
            let broken = asked.strategy.tensor > 1 && !u64::from(length).is_multiple_of(parts);
            broken.then(|| format!("needs sequences of a multiple of {parts} tokens, not {length}"))
        },
        way_out: "use another --seq-len or a smaller --tp",
    },
    // `forward_backward_pipelining_with_interleaving`: groups of N micro-batches, at least as many as stages.
    FrameworkRule {
        name: "micro-batches of interleaving",
        of: &[Framework::MegatronCore],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let (count, stages) = (asked.micro_batches(), asked.strategy.pipeline);
            (asked.follows(ScheduleKind::Interleaved) && count < stages).then(|| {
                format!("has more stages than the {count} micro-batches of a step, which the interleaved schedule refuses")
            })
        },
        way_out: BATCHES,
    },
    FrameworkRule {
        name: "rounds of interleaving",
        of: &[Framework::Megatron],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let (count, stages) = (asked.micro_batches(), asked.strategy.pipeline);
            let broken = asked.follows(ScheduleKind::Interleaved) && !count.is_multiple_of(stages);
            broken.then(|| {
                format!("does not divide the {count} micro-batches of a step, which the interleaved schedule needs")
            })
        },
        way_out: BATCHES,
    },
    FrameworkRule {
        name: "equal stages",
        of: &[Framework::Megatron, Framework::MaxText],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let (chunks, layers) = (asked.strategy.chunks(), asked.model.layers);
            (asked.strategy.pipeline > 1 && !layers.is_multiple_of(chunks))
                .then(|| format!("x vpp = {chunks} does not divide the {layers} blocks"))
        },
        way_out: "use a --pp and a --vpp that divide the blocks",
    },
    FrameworkRule {
        name: "micro-batches of MaxText's pipeline",
        of: &[Framework::MaxText],
        field: "micro-batch",
        value: |asked| asked.strategy.micro_batch.to_string(),
        broken: |asked| {
            let (count, stages) = (asked.micro_batches(), asked.strategy.pipeline);
            (!count.is_multiple_of(stages))
                .then(|| format!("makes {count} micro-batches, which are not a multiple of {stages} stages"))
        },
        way_out: "plan with a smaller micro-batch or a larger global batch",
    },
    FrameworkRule {
        name: "micro-batches of nanotron's 1F1B",
        of: &[Framework::Nanotron],
        field: "pp",
        value: |asked| asked.strategy.pipeline.to_string(),
        broken: |asked| {
            let (count, stages) = (asked.micro_batches(), asked.strategy.pipeline);
            (asked.follows(ScheduleKind::OneFOneB) && count.saturating_add(1) < stages)
                .then(|| format!("needs at least {} micro-batches in a step, not {count}", stages - 1))
        },
        way_out: BATCHES,
    },
];

/// The rules of a framework that a strategy breaks, without those about what the framework lacks altogether.
pub fn broken<'a>(
    framework: Framework,
    model: &'a ModelSpec,
    job: &'a Job,
    strategy: &'a ParallelStrategy,
) -> impl Iterator<Item = BrokenRule> + 'a {
    broken_of(RULES.iter(), framework, model, job, strategy)
}

fn broken_of<'a>(
    rules: impl Iterator<Item = &'static FrameworkRule> + 'a,
    framework: Framework,
    model: &'a ModelSpec,
    job: &'a Job,
    strategy: &'a ParallelStrategy,
) -> impl Iterator<Item = BrokenRule> + 'a {
    let asked = Asked { abilities: framework.abilities(), model, job, strategy };
    rules.filter(move |rule| rule.of.contains(&framework)).filter_map(move |rule| {
        let problem = (rule.broken)(&asked)?;
        let FrameworkRule { name, field, value, way_out, .. } = rule;
        let problem = match problem.as_str() {
            "is not supported" => format!("is not supported by {framework}"),
            _ => problem,
        };
        Some(BrokenRule { framework, name, field, value: value(&asked), problem, way_out })
    })
}

/// # Errors
/// The first rule of the framework that the strategy breaks.
pub fn check(
    framework: Framework,
    model: &ModelSpec,
    job: &Job,
    strategy: &ParallelStrategy,
) -> Result<(), BrokenRule> {
    let rules = LACKS.iter().chain(RULES);
    broken_of(rules, framework, model, job, strategy).next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::catalog;

    fn reasons(framework: Framework, change: impl FnOnce(&mut ParallelStrategy, &mut Job)) -> Vec<String> {
        let model = catalog::model("llama3-8b").unwrap();
        let mut job = Job { precision: Precision::Bf16, ..Job::new(8, 4096) };
        let mut strategy = ParallelStrategy::data_parallel(2, 1);
        change(&mut strategy, &mut job);
        let rules = LACKS.iter().chain(RULES);
        broken_of(rules, framework, &model, &job, &strategy)
            .map(|broken| Illegal::from(broken).reason)
            .collect()
    }

    #[track_caller]
    fn only(framework: Framework, change: impl FnOnce(&mut ParallelStrategy, &mut Job), expected: &str) {
        let found = reasons(framework, change);
        assert!(found.len() == 1 && found[0].contains(expected), "{framework}: {found:?}");
    }

    #[test]
    fn each_framework_has_its_own_pipelines() {
        let pipeline = |stages, depth| {
            move |s: &mut ParallelStrategy, _: &mut Job| {
                (s.pipeline, s.virtual_stages) = (stages, depth);
                let interleaved = depth > 1;
                s.schedule = if interleaved { ScheduleKind::Interleaved } else { ScheduleKind::OneFOneB };
            }
        };
        // Four micro-batches on eight stages.
        only(Framework::Fsdp2, pipeline(8, 1), "fsdp2: pp=8 has more stages than the 4 micro-batches");
        only(Framework::Nanotron, pipeline(8, 1), "needs at least 7 micro-batches in a step, not 4");
        only(Framework::MaxText, pipeline(8, 1), "not a multiple of 8 stages");
        assert!(reasons(Framework::MegatronCore, pipeline(8, 1)).is_empty());
        only(Framework::MegatronCore, pipeline(8, 2), "which the interleaved schedule refuses");
        only(Framework::Megatron, pipeline(8, 2), "does not divide the 4 micro-batches");
        assert!(reasons(Framework::Fsdp2, pipeline(8, 2)).is_empty());
        only(Framework::Deepspeed, pipeline(2, 1), "pp=2 is not supported by deepspeed; give another value");
        only(Framework::Oneflow, pipeline(2, 2), "vpp=2 is not supported by oneflow");
        only(Framework::Megatron, pipeline(3, 1), "x vpp = 3 does not divide the 32 blocks");
    }

    #[test]
    fn what_a_framework_lacks_is_refused_by_its_flag() {
        let zero = |stage| move |s: &mut ParallelStrategy, _: &mut Job| (s.zero_stage, s.shard) = (stage, 2);
        only(Framework::MegatronDeepspeed, zero(2), "zero=2 is not supported by megatron-deepspeed");
        only(Framework::Fsdp2, zero(1), "zero=1 is not supported by fsdp2");
        only(Framework::Fsdp, |s, _| s.tensor = 2, "tp=2");
        only(Framework::Deepspeed, |s, _| (s.tensor, s.sequence_parallel) = (2, true), "sp=true");
        only(Framework::Megatron, |s, _| s.recompute = Recompute::Selective, "recompute=selective");
        only(Framework::Oneflow, |_, job| job.precision = Precision::Fp8, "precision=fp8");
        only(
            Framework::Fsdp2,
            |s, job| (s.tensor, job.seq_len) = (2, 4098),
            "multiple of 4 tokens, not 4098",
        );
    }
}
