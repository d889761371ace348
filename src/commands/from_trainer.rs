//! `--from`: a trainer's own file instead of flags.

use super::catalogue::Software;
use crate::cli::{EstimateArgs, JobArgs, Layout, PlanArgs, StrategyArgs};
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::Trainer;
use autodist_exporters::{CommandLine, Field, Imported, KernelNames, Target, import_with};
use autodist_program::Framework;
use autodist_spec::{
    Check, Codec, Experts, Hyperparameter, InputError, Job, Latent, ModelSpec, ParallelStrategy, Positions,
    Precision, Recompute, Stage, text,
};
use std::path::Path;

/// The parts of a command line that a trainer's file completes.
#[derive(Clone, Copy)]
pub struct FlagsAndFile<'a> {
    /// The trainer and the file of `--from`; empty without it.
    pub from: &'a [String],
    pub model: Option<&'a str>,
    pub job: &'a JobArgs,
    pub strategy: &'a StrategyArgs,
    /// Whether strategies are searched: the file's own one is then not used.
    pub search: bool,
}

impl<'a> FlagsAndFile<'a> {
    pub fn of_estimate(args: &'a EstimateArgs) -> Self {
        let EstimateArgs { from, model, job, strategy, best, .. } = args;
        Self { from, model: model.as_deref(), job, strategy, search: best.is_some() }
    }

    /// With a file, its own strategy is asked for; without, strategies are searched.
    pub fn of_plan(args: &'a PlanArgs) -> Self {
        let PlanArgs { from, model, job, strategy, .. } = args;
        Self { from, model: model.as_deref(), job, strategy, search: from.is_empty() }
    }
}

/// The content of the file.
pub struct Given {
    target: Target,
    imported: Imported,
    file: String,
}

/// The kinds of experts that blocks have.
fn experts_of(model: &ModelSpec) -> Vec<Experts> {
    let mut kinds: Vec<Experts> = model.block_kinds().filter_map(|block| block.experts).collect();
    kinds.dedup();
    kinds
}

fn in_words(kinds: &[Experts]) -> String {
    let of = |experts: &Experts| {
        let Experts { count, active, shared_ffn } = experts;
        let shared = match shared_ffn {
            0 => String::new(),
            width => format!(" and shared experts of width {width}"),
        };
        format!("{count} experts, {active} active{shared}")
    };
    let words: Vec<String> = kinds.iter().map(of).collect();
    if words.is_empty() { "no experts".to_owned() } else { words.join("; ") }
}

/// # Errors
/// The attention of the file's model is of another kind than that of the model that `--model` names.
fn check_attention(theirs: &ModelSpec, own: &ModelSpec) -> Result<(), InputError> {
    let windows = |model: &ModelSpec| {
        let mut list: Vec<u32> = model.block_kinds().filter_map(|block| block.window).collect();
        list.dedup();
        list
    };
    let window_of = |list: &[u32]| match list {
        [] => "no window".to_owned(),
        [window] => format!("a window of {window} tokens"),
        more => format!("windows of {more:?} tokens"),
    };
    let latent_of = |latent: Option<Latent>| match latent {
        None => "no multi-head latent attention".to_owned(),
        Some(_) if latent == theirs.latent => "multi-head latent attention".to_owned(),
        Some(_) => "latent attention of other ranks or widths".to_owned(),
    };
    let (window, expected) = (windows(theirs), windows(own));
    let (key, found, expected) = if !window.is_empty() && window != expected {
        ("window-size", window_of(&window), window_of(&expected))
    } else if theirs.latent.is_some() && theirs.latent != own.latent {
        ("multi-latent-attention", latent_of(theirs.latent), latent_of(own.latent))
    } else {
        return Ok(());
    };
    Err(InputError::new(key, found, format!("contradicts {}, which has {expected}", own.name))
        .hint("give the model of the file by `--model`, or leave it out"))
}

/// Reads the file given by `--from`, if any, for a cluster of `devices` devices.
pub fn read(args: FlagsAndFile, devices: Option<u32>) -> Result<Option<Given>, Failure> {
    let [trainer, file] = args.from else { return Ok(None) };
    let trainers: Vec<_> = Target::ALL.iter().filter(|t| t.is_trainer()).map(|t| t.name()).collect();
    let target = trainer.parse().ok().filter(|target: &Target| target.is_trainer()).ok_or_else(|| {
        InputError::new("--from", trainer, "is not a trainer whose files autodist reads")
            .hint(format!("use one of {}", trainers.join(", ")))
    })?;
    // A script may have arguments, as on its own command line: `--from megatron "run.sh 7B 8"`.
    let script = file.split_whitespace().next().unwrap_or(file);
    let called = script != file && !Path::new(file).exists() && Path::new(script).exists();
    let content = if called {
        let name = Path::new(script).file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        format!("#!/bin/bash\nbash {name}{}", &file[script.len()..])
    } else {
        input::text_file(Path::new(file), "configuration")?
    };
    let named = args.model.map(input::model).transpose()?;
    let experts = named.as_ref().is_some_and(ModelSpec::has_experts);
    let command = command_line(args, devices, experts)?;
    let model = named.clone();
    let open = |name: &str| -> Result<String, InputError> {
        let folder = Path::new(script).parent().unwrap_or(Path::new(""));
        // Trainers start in a folder above, to which names are relative.
        let above = folder.ancestors().map(|folder| folder.join(name)).find(|path| path.is_file());
        let path = above.unwrap_or_else(|| folder.join(name));
        input::check_plain(&path, "configuration")?;
        input::text_file(&path, "configuration")
    };
    let imported =
        import_with(target, &content, model.clone(), command, &open).map_err(|error| error.in_file(file))?;
    let theirs = imported.settings.model.as_ref().map(experts_of).filter(|theirs| !theirs.is_empty());
    if let (Some(theirs), Some(own)) = (theirs, &named)
        && experts_of(own) != theirs
    {
        let name = &own.name;
        let own = in_words(&experts_of(own));
        let error =
            InputError::new("num-experts", in_words(&theirs), format!("contradicts {name}, which has {own}"));
        return Err(error
            .hint("give the model of the file by `--model`, or leave it out")
            .in_file(file)
            .into());
    }
    if let (Some(theirs), Some(own)) = (&imported.settings.model, &named) {
        check_attention(theirs, own).map_err(|error| error.in_file(file))?;
    }
    let flags = args.strategy;
    if !args.search
        && flags.pp.is_empty()
        && flags.vpp.is_empty()
        && let Some(model) = model.as_ref().or(imported.settings.model.as_ref())
    {
        imported.check_stages(model.layers).map_err(|error| error.in_file(file))?;
    }
    for (keys, what) in [
        (&imported.others.irrelevant, "these settings are not part of a plan and are not used"),
        (
            &imported.others.approximated,
            "these settings can change time or memory, but the estimate does not depend on them",
        ),
        (&imported.others.unknown, "not known to autodist: ignored"),
    ] {
        if !keys.is_empty() {
            output::note(&format!("{file}: {what}: {}", some_of(keys)));
        }
    }
    Ok(Some(Given { target, imported, file: file.clone() }))
}

/// The fields that override the file, or that the file does not set.
fn command_line(args: FlagsAndFile, devices: Option<u32>, experts: bool) -> Result<CommandLine, Failure> {
    let (layout, mut job) = (&args.strategy.first(), args.job.clone());
    if job.job.is_some() {
        let whole = input::job(args.job, None, None, None)?;
        // A job file always has the batch and the length of sequences, but not always the precision.
        job.global_batch = Some(whole.global_batch);
        job.seq_len = Some(whole.seq_len);
        job.precision = input::given_precision(args.job)?;
    }
    let mut fields = of_job(&job).to_vec();
    // A search of layouts keeps the file's own job, even if the file sets parts of the layout.
    if !args.search {
        fields.extend(of_layout(layout));
    }
    let fields = fields.into_iter().filter_map(|(field, value)| Some((field, value?))).collect();
    let fp8 = job.precision == Some(Precision::Fp8);
    Ok(CommandLine { devices, fields, fp8, experts, search: args.search })
}

/// The fields that flags of a job or a job file give; 0 where only that they do matters.
fn of_job(job: &JobArgs) -> [(Field, Option<u32>); 5] {
    [
        (Field::Trainable, job.trainable.gives_parts().then_some(0)),
        (Field::GlobalBatch, job.global_batch),
        (Field::SeqLen, job.seq_len),
        (Field::Precision, job.precision.map(|_| 0)),
        (Field::Seed, job.seed.map(|_| 0)),
    ]
}

/// The same for flags of the layout.
fn of_layout(layout: &Layout) -> [(Field, Option<u32>); 13] {
    [
        (Field::Tensor, layout.tp),
        (Field::Pipeline, layout.pp),
        (Field::Data, layout.dp),
        (Field::Context, layout.cp),
        (Field::Expert, layout.ep),
        (Field::VirtualStages, layout.vpp),
        (Field::ZeroStage, layout.zero.map(u32::from)),
        (Field::Shard, layout.shard),
        (Field::MicroBatch, layout.micro_batch),
        (Field::Schedule, layout.schedule.map(|_| 0)),
        (Field::Recompute, layout.recompute.map(|_| 0)),
        (Field::BucketBytes, layout.bucket_bytes.map(|_| 0)),
        (Field::SequenceParallel, layout.sp.map(|_| 0)),
    ]
}

/// The first entries of a list that may be very long.
fn some_of(list: &[String]) -> String {
    const SHOWN: usize = 40;
    let shown = list.iter().take(SHOWN).map(|entry| text::shown(entry, 100)).collect::<Vec<_>>().join(", ");
    match list.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// Fields by their names in error messages.
const SPOKEN: [(&[&str], Field); 19] = [
    (&["trainable"], Field::Trainable),
    (&["states"], Field::States),
    (&["tp", "tensor"], Field::Tensor),
    (&["pp", "pipeline"], Field::Pipeline),
    (&["dp", "data"], Field::Data),
    (&["cp", "context"], Field::Context),
    (&["ep", "expert"], Field::Expert),
    (&["vpp", "virtual_stages"], Field::VirtualStages),
    (&["zero_stage"], Field::ZeroStage),
    (&["shard"], Field::Shard),
    (&["micro_batch"], Field::MicroBatch),
    (&["schedule"], Field::Schedule),
    (&["bucket_bytes"], Field::BucketBytes),
    (&["global_batch"], Field::GlobalBatch),
    (&["seq_len"], Field::SeqLen),
    (&["seed"], Field::Seed),
    (&["gradient_clip"], Field::GradientClip),
    (&["learning_rate"], Field::LearningRate),
    (&["optimizer"], Field::Optimizer),
];

/// The flag that overrides a field of the file, or what else does.
fn instead_of(field: Field) -> &'static str {
    field.flag().unwrap_or(match field {
        Field::GradientClip => "`gradient_clip` in a job file",
        Field::LearningRate => "`learning_rate` in a job file",
        Field::States => "the flags of the state (`--moment-bits`, `--offload-optimizer device` and others)",
        Field::Trainable => "`--lora-rank`, `--lora-targets`, `--base-bits` or `--freeze`",
        _ => "`optimizer` in a job file",
    })
}

/// Whether a flag gives the field.
pub fn is_given(args: FlagsAndFile, field: Field) -> bool {
    let given = of_job(args.job).into_iter().chain(of_layout(&args.strategy.first()));
    let rate = field == Field::LearningRate && args.job.learning_rate.is_some();
    rate || given.into_iter().any(|(one, value)| one == field && value.is_some())
}

impl Given {
    /// The training framework whose file this is, if its time is modelled.
    pub fn trainer(&self) -> Option<Trainer> {
        match self.target {
            Target::Megatron if self.imported.deepspeed => Some(Trainer::MegatronDeepspeed),
            _ if self.imported.deepspeed => Some(Trainer::Deepspeed),
            // Galvatron trains by Megatron-Core.
            Target::Megatron | Target::Galvatron => Some(Trainer::MegatronCore),
            Target::MegatronBridge => Some(Trainer::Nemo),
            Target::Torchtitan | Target::Accelerate | Target::Transformers => Some(Trainer::Fsdp2),
            _ => None,
        }
    }

    /// Whose rules the file's strategy has to keep.
    pub fn framework(&self) -> Option<Framework> {
        if self.imported.deepspeed { Some(Framework::Deepspeed) } else { self.target.framework() }
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// The trainer and the version whose defaults hold.
    pub fn version(&self) -> &'static str {
        self.target.exporter().version()
    }

    /// Whether the file or the trainer's default gives a field.
    pub fn knows(&self, field: Field) -> bool {
        self.imported.known.contains(&field)
    }

    /// The keys of the file that give a field.
    pub fn keys(&self, field: Field) -> Option<&str> {
        self.imported.keys(field)
    }

    /// The name of the file's format.
    pub fn format(&self) -> &'static str {
        self.target.name()
    }

    /// Attributes an error to the file and its keys if the value came from there, instead of to the flags.
    pub fn blame(&self, args: FlagsAndFile, failure: Failure) -> Failure {
        let mut error = match failure {
            Failure::Input(error) => error,
            other => return other,
        };
        // Another file is already named: the job's, the cluster's or the model's.
        if !error.source_name.is_empty() && error.source_name != input::FLAGS {
            return Failure::Input(error);
        }
        // A missing field is not in the file, or is undefined there.
        if error.problem == "is required" {
            error.problem += ", because the file leaves it open";
            return Failure::Input(error.in_file(&self.file));
        }
        let field = error.field.clone();
        let (mut keys, mut flags) = (Vec::new(), Vec::new());
        for part in field.split(", ").flat_map(|part| part.split(" x ")) {
            let first = part.split('.').next().unwrap_or(part);
            let spoken =
                SPOKEN.iter().find(|(names, field)| field.flag() == Some(part) || names.contains(&first));
            let Some((_, field)) = spoken else { continue };
            if is_given(args, *field) {
                return Failure::Input(error);
            }
            if let Some(key) = self.imported.keys(*field).filter(|key| !keys.contains(key)) {
                keys.push(key);
                flags.push(instead_of(*field));
            }
        }
        if keys.is_empty() {
            return Failure::Input(error.in_file(&self.file));
        }
        error.field = keys.join(", ");
        error.source_name.clone_from(&self.file);
        Failure::Input(error.hint(format!(
            "change it in the file, or give {} in addition to --from: flags override the file",
            flags.join(", ")
        )))
    }

    /// Prints which keys of the file a search of layouts ignores.
    pub fn note_layout(&self) {
        let mut keys: Vec<String> = Vec::new();
        let layout = Field::ALL.iter().copied().filter(|field| field.is_layout());
        for key in layout.filter_map(|field| self.imported.keys(field)) {
            if !keys.iter().any(|known| known == key) {
                keys.push(key.to_owned());
            }
        }
        if !keys.is_empty() {
            output::note(&format!(
                "{}: not used, because --best searches these settings: {}; use flags to fix them",
                self.file,
                some_of(&keys)
            ));
        }
    }

    /// The model: from the flag, or else from the file. Files contain no model name: a model equal to
    /// `measured` gets its name.
    pub fn model(&self, flag: Option<&str>, measured: Option<&ModelSpec>) -> Result<ModelSpec, Failure> {
        if let Some(name) = flag {
            return input::model(name);
        }
        let settings = &self.imported.settings;
        let Some(mut model) = settings.model.clone() else {
            let error =
                InputError::new("--model", "", "is required, because the file does not describe the model");
            return Err(error.hint("give `--model`, e.g. `--model llama3-8b`").in_file(&self.file).into());
        };
        if model.max_seq_len == 0 {
            model.max_seq_len = settings.seq_len;
        }
        if model.vocab == 0 {
            let error =
                InputError::new("vocab-size", "", "is missing, but the size of the embedding depends on it");
            return Err(error.hint("add it to the file, or give `--model`").in_file(&self.file).into());
        }
        if let Some(measured) = measured {
            let named = ModelSpec { name: measured.name.clone(), ..model.clone() };
            // The maximum sequence length affects weights only with learned position embeddings.
            let as_long = ModelSpec { max_seq_len: measured.max_seq_len, ..named.clone() };
            let alike = if measured.positions == Positions::Learned { named } else { as_long };
            if alike == *measured {
                model = alike;
            }
        }
        model.check().map_err(|error| error.under("model").in_file(&self.file))?;
        Ok(model)
    }

    /// Whether the file gives the precision.
    pub fn gives_precision(&self) -> bool {
        self.imported.known.contains(&Field::Precision)
    }

    fn known<T>(&self, field: Field, value: T) -> Option<T> {
        self.imported.known.contains(&field).then_some(value)
    }

    /// Flags override the file.
    pub fn strategy(&self, flags: &Layout) -> Layout {
        let settings = &self.imported.settings;
        let mode = settings.recompute.iter().copied().max();
        Layout {
            tp: flags.tp.or(self.known(Field::Tensor, settings.tensor)),
            pp: flags.pp.or(self.known(Field::Pipeline, settings.pipeline)),
            dp: flags.dp.or(self.known(Field::Data, settings.data)),
            cp: flags.cp.or(self.known(Field::Context, settings.context)),
            ep: flags.ep.or(self.known(Field::Expert, settings.expert)),
            vpp: flags.vpp.or(self.known(Field::VirtualStages, settings.virtual_stages)),
            zero: flags.zero.or(self.known(Field::ZeroStage, settings.zero_stage)),
            shard: flags.shard.or(self.known(Field::Shard, settings.shard)),
            sp: flags.sp.or(settings.sequence_parallel.then_some(true)),
            recompute: flags.recompute.or(self.known(Field::Recompute, mode).flatten()),
            micro_batch: flags.micro_batch.or(self.known(Field::MicroBatch, settings.micro_batch)),
            schedule: flags.schedule.or(self.known(Field::Schedule, settings.schedule)),
            bucket_bytes: flags.bucket_bytes.or(self.known(Field::BucketBytes, settings.bucket_bytes)),
        }
    }

    /// Flags override the job file, which contains all of these, and which overrides the trainer's file.
    pub fn job_flags(&self, flags: &JobArgs) -> Result<JobArgs, Failure> {
        let settings = &self.imported.settings;
        if flags.job.is_some() {
            let precision = match input::given_precision(flags)? {
                None => self.known(Field::Precision, settings.precision),
                given => given,
            };
            return Ok(JobArgs { precision, ..flags.clone() });
        }
        Ok(JobArgs {
            global_batch: flags.global_batch.or(self.known(Field::GlobalBatch, settings.global_batch)),
            seq_len: flags.seq_len.or(self.known(Field::SeqLen, settings.seq_len)),
            precision: flags.precision.or(self.known(Field::Precision, settings.precision)),
            ..flags.clone()
        })
    }

    /// Sets the hyperparameters of the file that neither a flag nor a job file gives.
    pub fn complete(&self, job: &mut Job) -> Result<(), Failure> {
        use Hyperparameter::{
            Betas, Epsilon, FinalFraction, GradientClip, Momentum, PeakLearningRate, Seed, TotalSteps,
            WarmupSteps, WeightDecay,
        };
        let settings = &self.imported.settings;
        let before = job.given();
        // The hyperparameters of one optimizer belong together.
        let own = [Betas, Epsilon, Momentum, WeightDecay];
        let optimizer = !own.iter().any(|part| before.contains(part));
        if let Some(theirs) = self.known(Field::Optimizer, settings.optimizer).filter(|_| optimizer) {
            job.optimizer = theirs;
        }
        let (rate, theirs) = (&mut job.learning_rate, settings.learning_rate);
        let mut taken = Vec::new();
        for one in settings.given.iter().filter(|one| !before.contains(one)) {
            match one {
                PeakLearningRate => rate.peak = theirs.peak,
                WarmupSteps => rate.warmup_steps = theirs.warmup_steps,
                TotalSteps => rate.total_steps = theirs.total_steps,
                FinalFraction => rate.final_fraction = theirs.final_fraction,
                GradientClip => job.gradient_clip = settings.gradient_clip,
                Seed => job.seed = settings.seed,
                Betas | Epsilon | Momentum | WeightDecay if optimizer => {}
                Betas | Epsilon | Momentum | WeightDecay => continue,
            }
            taken.push(*one);
        }
        taken.into_iter().for_each(|one| job.give(one));
        job.fit_schedule();
        Ok(job.check()?)
    }

    /// Bits and places of the state: those of the file, unless a job file gives them, overridden by flags.
    pub fn states(&self, flags: &JobArgs, job: &mut Job) {
        if flags.job.is_some() && !job.states.is_usual() {
            return;
        }
        let settings = &self.imported.settings;
        let mut states = settings.states.clone();
        // Megatron accumulates gradients as it reduces them.
        let narrow = settings.gradients == Codec::Bf16 && job.precision.is_mixed();
        if narrow && matches!(self.target, Target::Megatron | Target::MegatronBridge) {
            states.gradient_bits = states.gradient_bits.or(Some(16));
        }
        flags.states.apply(&mut states);
        job.states = states;
    }

    /// The kernels of the file.
    pub fn named_kernels(&self) -> KernelNames {
        self.imported.kernels
    }

    /// The kernels that the file names or its trainer has by default, unless flags do.
    pub fn kernels(&self, software: &mut Software) {
        let names = self.imported.kernels;
        let kernels = &mut software.kernels;
        kernels.attention = kernels.attention.or(names.attention.and_then(|name| name.parse().ok()));
        kernels.loss = kernels.loss.or(names.loss.and_then(|name| name.parse().ok()));
        if kernels.blocks.is_none() && names.blocks.is_some() {
            kernels.blocks = names.blocks.and_then(|name| name.parse().ok());
            if names.blocks_by_default && names.blocks == Some("eager") {
                let format = self.format();
                software.assumptions.push(format!(
                    "eager blocks, each operation a kernel of its own: {format}'s default, --blocks not given"
                ));
            }
        }
    }

    /// That sequences are as long as a limit of the file allows.
    pub fn assumed_length(&self, flags: &JobArgs) -> Option<String> {
        let is_limit = self.target == Target::Transformers && flags.seq_len.is_none() && flags.job.is_none();
        let keys = self.keys(Field::SeqLen).filter(|_| is_limit)?;
        let length = self.imported.settings.seq_len;
        Some(format!("sequences of {length} tokens, the longest that {keys} allows: --seq-len not given"))
    }

    /// What is trained: as the file says, unless a job file does, overridden by flags.
    ///
    /// # Errors
    /// Flags and file contradict each other.
    pub fn trainable(&self, flags: &JobArgs, job: &mut Job) -> Result<(), Failure> {
        if flags.job.is_none() || job.trainable.is_all() {
            let mut trainable = self.imported.settings.trainable.clone();
            flags.trainable.apply(&mut trainable)?;
            trainable.check().map_err(|error| input::blame_trainable(error, flags))?;
            job.trainable = trainable;
        }
        Ok(())
    }

    /// The pipeline's stages, if the file contains them and no flag overrides them.
    pub fn stages(&self, flags: &Layout, model: &ModelSpec) -> Option<Vec<Stage>> {
        let settings = &self.imported.settings;
        let said = self.imported.known.contains(&Field::Stages) && flags.pp.is_none() && flags.vpp.is_none();
        (said && flags.recompute.is_none() && settings.stages.iter().sum::<u32>() == model.layers)
            .then(|| settings.plan_stages())
    }

    /// The recomputation of each block, if the file has different ones and no flag overrides them.
    pub fn policies(&self, flags: &Layout, model: &ModelSpec) -> Option<&[Recompute]> {
        let policies = self.imported.settings.recompute.as_slice();
        let said = self.imported.known.contains(&Field::Recompute) && flags.recompute.is_none();
        let differ = policies.windows(2).any(|pair| pair[0] != pair[1]);
        (said && differ && policies.len() == model.layers as usize).then_some(policies)
    }

    /// For estimates with one recomputation policy for all blocks.
    pub fn one_recompute(&self) -> Result<(), Failure> {
        Ok(self.imported.check_one_recompute().map_err(|error| error.in_file(&self.file))?)
    }

    /// Sets the codecs of gradients and gathered parameters.
    pub fn code(&self, strategy: &mut ParallelStrategy) {
        strategy.communication.reduce.codec = self.imported.settings.gradients;
        strategy.communication.parameters = self.imported.settings.parameters;
    }
}
