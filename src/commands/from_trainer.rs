//! `autodist estimate --from`: a trainer's own file in the place of flags.

use crate::cli::{EstimateArgs, JobArgs, StrategyArgs};
use crate::failure::Failure;
use crate::{input, output};
use autodist_exporters::{Field, Imported, Target, import};
use autodist_spec::{Check, InputError, Job, LearningRate, ModelSpec, ParallelStrategy, Positions, Stage};
use std::path::Path;

/// What the file says.
pub struct Given {
    imported: Imported,
    file: String,
}

/// Reads the file that `--from` names, if there is one.
pub fn read(args: &EstimateArgs) -> Result<Option<Given>, Failure> {
    let [trainer, file] = args.from.as_slice() else { return Ok(None) };
    let trainers: Vec<_> = Target::ALL.into_iter().filter(|t| t.is_trainer()).map(Target::name).collect();
    let target = Target::of_name(trainer).filter(|target| target.is_trainer()).ok_or_else(|| {
        InputError::new("--from", trainer, "is no trainer whose files are read")
            .hint(format!("give one of {}", trainers.join(", ")))
    })?;
    let content = input::bytes(Path::new(file), "configuration")?;
    let text = String::from_utf8(content).map_err(|_| {
        InputError::new("", "", "is no text").hint("give the trainer's configuration").in_file(file)
    })?;
    let model = args.model.as_deref().map(input::model).transpose()?;
    let imported = import(target, &text, model).map_err(|error| error.in_file(file))?;
    if !imported.unread.is_empty() {
        output::note(&format!(
            "{file}: not used, as it says nothing of the split: {}",
            imported.unread.join(", ")
        ));
    }
    Ok(Some(Given { imported, file: file.clone() }))
}

impl Given {
    /// The model: of the flag, or else of the file. Files give models no name: one that is as `measured` is that one.
    pub fn model(&self, flag: Option<&str>, measured: Option<&ModelSpec>) -> Result<ModelSpec, Failure> {
        if let Some(name) = flag {
            return input::model(name);
        }
        let settings = &self.imported.settings;
        let Some(mut model) = settings.model.clone() else {
            let error = InputError::new("--model", "", "is missing: the file does not say what is trained");
            return Err(error.hint("give --model").in_file(&self.file).into());
        };
        if model.max_seq_len == 0 {
            model.max_seq_len = settings.seq_len;
        }
        if model.vocab == 0 {
            let error =
                InputError::new("vocab-size", "", "is missing, and with it the size of the embedding");
            return Err(error.hint("add it to the file, or give --model").in_file(&self.file).into());
        }
        if let Some(measured) = measured {
            let named = ModelSpec { name: measured.name.clone(), ..model.clone() };
            // How long sequences could be is a matter of weights with learned positions only.
            let as_long = ModelSpec { max_seq_len: measured.max_seq_len, ..named.clone() };
            let alike = if measured.positions == Positions::Learned { named } else { as_long };
            if alike == *measured {
                model = alike;
            }
        }
        model.check().map_err(|error| error.under("model").in_file(&self.file))?;
        Ok(model)
    }

    fn known<T>(&self, field: Field, value: T) -> Option<T> {
        self.imported.known.contains(&field).then_some(value)
    }

    /// Flags over the file.
    pub fn strategy(&self, flags: &StrategyArgs) -> StrategyArgs {
        let settings = &self.imported.settings;
        let mode = settings.recompute.iter().copied().max().map(Into::into);
        StrategyArgs {
            tp: flags.tp.or(self.known(Field::Tensor, settings.tensor)),
            pp: flags.pp.or(self.known(Field::Pipeline, settings.pipeline)),
            dp: flags.dp.or(self.known(Field::Data, settings.data)),
            cp: flags.cp.or(self.known(Field::Context, settings.context)),
            ep: flags.ep.or(self.known(Field::Expert, settings.expert)),
            vpp: flags.vpp.or(self.known(Field::VirtualStages, settings.virtual_stages)),
            zero: flags.zero.or(self.known(Field::ZeroStage, settings.zero_stage)),
            shard: flags.shard.or(self.known(Field::Shard, settings.shard)),
            sp: flags.sp || settings.sequence_parallel,
            recompute: flags.recompute.or(self.known(Field::Recompute, mode).flatten()),
            micro_batch: flags.micro_batch.or(self.known(Field::MicroBatch, settings.micro_batch)),
            schedule: flags.schedule.or(self.known(Field::Schedule, settings.schedule.into())),
            bucket_bytes: flags.bucket_bytes.or(self.known(Field::BucketBytes, settings.bucket_bytes)),
        }
    }

    /// Flags over the file.
    pub fn job_flags(&self, flags: &JobArgs) -> JobArgs {
        let settings = &self.imported.settings;
        JobArgs {
            global_batch: flags.global_batch.or(self.known(Field::GlobalBatch, settings.global_batch)),
            seq_len: flags.seq_len.or(self.known(Field::SeqLen, settings.seq_len)),
            seed: flags.seed.or(self.known(Field::Seed, settings.seed)),
            learning_rate: flags
                .learning_rate
                .or(self.known(Field::LearningRate, settings.learning_rate.peak)),
            precision: flags.precision.or(self.known(Field::Precision, settings.precision.into())),
            ..flags.clone()
        }
    }

    /// What the file says of a job and no flag does.
    pub fn complete(&self, job: &mut Job) -> Result<(), Failure> {
        let settings = &self.imported.settings;
        job.optimizer = self.known(Field::Optimizer, settings.optimizer).unwrap_or(job.optimizer);
        job.gradient_clip =
            self.known(Field::GradientClip, settings.gradient_clip).unwrap_or(job.gradient_clip);
        if let Some(rate) = self.known(Field::LearningRate, settings.learning_rate) {
            job.learning_rate = LearningRate { peak: job.learning_rate.peak, ..rate };
        }
        Ok(job.check().map_err(|error| error.in_file(&self.file))?)
    }

    /// The pipeline's stages, where the file says them and no flag says otherwise.
    pub fn stages(&self, flags: &StrategyArgs, model: &ModelSpec) -> Option<Vec<Stage>> {
        let settings = &self.imported.settings;
        let said = self.imported.known.contains(&Field::Stages) && flags.pp.is_none() && flags.vpp.is_none();
        (said && flags.recompute.is_none() && settings.stages.iter().sum::<u32>() == model.layers)
            .then(|| settings.plan_stages())
    }

    /// In which form gradients and gathered parameters travel.
    pub fn code(&self, strategy: &mut ParallelStrategy) {
        strategy.communication.reduce.codec = self.imported.settings.gradients;
        strategy.communication.parameters = self.imported.settings.parameters;
    }
}
