//! The strategies that a trainer supports, as the space of a search.

use crate::states;
use crate::trainer::Trainer;
use autodist_program::Framework;
use autodist_program::framework::Abilities;
use autodist_spec::job::Allow;
use autodist_spec::{
    Bytes, Codec, InputError, Job, Optimizer, Precision, Recompute, ScheduleKind, Trainable,
};

/// Micro-batches of a search that the job does not restrict; larger ones do not make GEMMs faster.
const MICRO_BATCHES: [u32; 5] = [1, 2, 4, 8, 16];

/// Smallest number of tokens of a sequence on a context-parallel rank of a search: with fewer, keys and
/// values take longer than the attention that could hide them.
const LEAST_TOKENS: u32 = 4096;

/// Megatron-Core's smallest bucket: 40 million gradients in fp32 (`ddp_bucket_size`).
pub const BUCKET: Bytes = Bytes(4 * 40_000_000);

impl Trainer {
    /// Whose rules its strategies have to keep.
    pub fn framework(self) -> Framework {
        match self {
            Self::Megatron => Framework::Megatron,
            Self::MegatronCore | Self::Nemo => Framework::MegatronCore,
            Self::MegatronDeepspeed => Framework::MegatronDeepspeed,
            Self::Deepspeed => Framework::Deepspeed,
            Self::Fsdp => Framework::Fsdp,
            Self::Fsdp2 => Framework::Fsdp2,
            Self::Internevo => Framework::Internevo,
            Self::Oneflow => Framework::Oneflow,
        }
    }

    /// Modes of recomputation, cheapest first.
    pub fn recompute_modes(self) -> &'static [Recompute] {
        self.abilities().recompute
    }

    pub(crate) fn abilities(self) -> Abilities {
        self.framework().abilities()
    }
}

/// # Errors
/// The trainer does not train in this precision.
pub fn check_precision(trainer: Trainer, precision: Precision) -> Result<(), InputError> {
    if precision == Precision::Fp8 && !trainer.abilities().fp8 {
        return Err(InputError::new("--precision", "fp8", format!("is not supported by {trainer}"))
            .hint("give another value, or another trainer with `--trainer`, e.g. megatron-core"));
    }
    Ok(())
}

/// # Errors
/// The trainer trains whole models only, or holds no weights in fewer bits.
pub fn check_trainable(trainer: Trainer, trainable: &Trainable) -> Result<(), InputError> {
    let abilities = trainer.abilities();
    let able = |of: fn(Trainer) -> bool| {
        let names = Trainer::ALL.iter().filter(|one| of(**one)).map(|one| one.name());
        format!("give another trainer with `--trainer`: {}", names.collect::<Vec<_>>().join(", "))
    };
    if !trainable.is_all() && !abilities.freezes {
        let field = if trainable.lora.is_some() { "--lora-rank" } else { "--freeze" };
        return Err(InputError::new(field, trainable.label(), format!("is not supported by {trainer}"))
            .hint(able(|one| one.abilities().freezes)));
    }
    if !trainable.base_bits.is_whole() && !abilities.quantises {
        let problem = format!("is not supported by {trainer}, whose frozen weights are in 16 bits");
        return Err(InputError::new("--base-bits", trainable.base_bits, problem)
            .hint(able(|one| one.abilities().quantises)));
    }
    Ok(())
}

/// Restricts the options of a job to those that the trainer supports and the catalogue prices.
///
/// # Errors
/// The job requests something that the trainer does not support, or that has no price without a profile.
pub fn narrow(job: &mut Job, trainer: Trainer) -> Result<(), InputError> {
    if !matches!(job.optimizer, Optimizer::AdamW { .. }) {
        return Err(InputError::new("optimizer", "sgd", "has no price without a profile: expected adamw")
            .hint("use adamw, or give a profile that was measured with this optimizer"));
    }
    job.states = states::completed(trainer, &job.states).0;
    states::check_states(trainer, &job.states, &job.optimizer, job.precision)?;
    check_trainable(trainer, &job.trainable)?;
    if let Some(stages) = states::stages(trainer, &job.states) {
        keep(
            "allow.zero_stage",
            &mut job.allow.zero_stage,
            |one| stages.contains(one),
            u8::to_string,
            trainer,
        )?;
    }
    let usual = Allow::default();
    let allow = &mut job.allow;
    for (field, codecs) in [
        ("allow.codecs", &allow.codecs),
        ("allow.parameter_codecs", &allow.parameter_codecs),
        ("allow.activation_codecs", &allow.activation_codecs),
    ] {
        if let Some(codec) = codecs.iter().find(|codec| **codec != Codec::None) {
            return Err(InputError::new(field, codec.name(), "has no price without a profile")
                .hint("remove compression from what the job allows, or give a profile that measured it"));
        }
    }
    if allow.algorithms.is_some() {
        return Err(InputError::new(
            "allow.algorithms",
            "",
            "has no effect without a profile: NCCL chooses the algorithm",
        )
        .hint("remove it from the job file"));
    }
    if allow.placements.is_some() {
        return Err(InputError::new(
            "allow.placements",
            "",
            "has no effect without a profile: all nodes are alike",
        )
        .hint("remove it from the job file"));
    }

    if allow.micro_batch.is_none() {
        allow.micro_batch = Some(MICRO_BATCHES.to_vec());
    }
    if allow.bucket_bytes == usual.bucket_bytes {
        allow.bucket_bytes = vec![BUCKET];
    }
    let only_one = |field: &str, list: &mut Option<Vec<u32>>, supported: bool| {
        if supported {
            return Ok(());
        }
        let given = list.get_or_insert_with(|| vec![1]);
        keep(field, given, |degree| *degree == 1, u32::to_string, trainer)
    };
    let (abilities, searched) = (trainer.abilities(), trainer.traits());
    only_one("allow.tensor", &mut allow.tensor, abilities.tensor && searched.tensor)?;
    only_one("allow.pipeline", &mut allow.pipeline, abilities.pipelines && searched.pipelines)?;
    only_one("allow.context", &mut allow.context, abilities.context)?;
    if allow.context.is_none() {
        let degrees = (0..).map(|power| 1 << power);
        let most = job.seq_len / LEAST_TOKENS;
        allow.context = Some(degrees.take_while(|degree| *degree == 1 || *degree <= most).collect());
    }
    let interleaves = abilities.virtual_stages && searched.pipelines;
    if !interleaves && let Some(depths) = &mut allow.virtual_stages {
        keep("allow.virtual_stages", depths, |depth| *depth == 1, u32::to_string, trainer)?;
    }
    if allow.zero_stage == usual.zero_stage {
        allow.zero_stage.retain(|zero| trainer.traits().searched_zero_stages.contains(zero));
    }
    let stages = abilities.zero_stages;
    keep("allow.zero_stage", &mut allow.zero_stage, |zero| stages.contains(zero), u8::to_string, trainer)?;
    allow.partial_recompute &= trainer.traits().recomputes_some;
    let modes = trainer.recompute_modes();
    let name = |mode: &Recompute| mode.name().to_owned();
    keep("allow.recompute", &mut allow.recompute, |mode| modes.contains(mode), name, trainer)?;
    let runs = |schedule: &ScheduleKind| match schedule {
        ScheduleKind::OneFOneB => true,
        ScheduleKind::Interleaved => interleaves,
        ScheduleKind::GPipe => false,
    };
    let name = |schedule: &ScheduleKind| schedule.name().to_owned();
    keep("allow.schedule", &mut allow.schedule, runs, name, trainer)
}

/// Keeps the items of a list that the trainer supports.
fn keep<T>(
    field: &str,
    list: &mut Vec<T>,
    supports: impl Fn(&T) -> bool,
    name: impl Fn(&T) -> String,
    trainer: Trainer,
) -> Result<(), InputError> {
    let given = list.first().map(&name).unwrap_or_default();
    list.retain(supports);
    if list.is_empty() {
        let problem = format!("is not supported by {trainer}");
        return Err(InputError::new(field, given, problem)
            .hint("give another value, or another trainer with `--trainer`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::Precision;

    #[test]
    fn a_search_has_only_what_the_trainer_supports() {
        let job = || Job { precision: Precision::Bf16, ..Job::new(8, 128) };
        let mut core = job();
        narrow(&mut core, Trainer::MegatronCore).unwrap();
        assert_eq!(core.allow.zero_stage, [0, 1]);
        assert_eq!(core.allow.schedule, [ScheduleKind::OneFOneB, ScheduleKind::Interleaved]);
        assert_eq!(core.allow.pipeline, None);
        let mut asked = job();
        asked.allow.zero_stage = vec![3];
        narrow(&mut asked, Trainer::MegatronCore).unwrap();
        assert_eq!(asked.allow.zero_stage, [3]);
        let mut sharded = job();
        narrow(&mut sharded, Trainer::Fsdp2).unwrap();
        assert_eq!(sharded.allow.zero_stage, [0, 3]);
        assert_eq!(sharded.allow.pipeline, Some(vec![1]));
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Job), trainer: Trainer| {
            let mut job = Job { precision: Precision::Bf16, ..Job::new(8, 128) };
            change(&mut job);
            narrow(&mut job, trainer).unwrap_err().field
        };
        let core = Trainer::MegatronCore;
        assert_eq!(refused(&|job| job.allow.context = Some(vec![2]), Trainer::Deepspeed), "allow.context");
        assert_eq!(refused(&|job| job.allow.zero_stage = vec![1], Trainer::Fsdp2), "allow.zero_stage");
        assert_eq!(refused(&|job| job.allow.pipeline = Some(vec![2]), Trainer::Fsdp2), "allow.pipeline");
        assert_eq!(refused(&|job| job.allow.codecs = vec![Codec::Bf16], core), "allow.codecs");
        assert_eq!(refused(&|job| job.allow.placements = Some(Vec::new()), core), "allow.placements");
    }
}
