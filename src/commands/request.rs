//! What a command asks about: a model and a job, from flags or from a trainer's file.

use super::from_trainer::{FlagsAndFile, Given};
use super::{DEFAULT_MODEL, check_experts};
use crate::failure::Failure;
use crate::input;
use autodist_spec::{Job, ModelSpec, Precision, Profile};

pub struct JobRequest<'a> {
    pub model: ModelSpec,
    pub job: Job,
    /// The trainer's file.
    pub given: Option<Given>,
    pub flags: FlagsAndFile<'a>,
}

impl<'a> JobRequest<'a> {
    /// What neither the flags nor the file give is that of the profile, or `usual`.
    ///
    /// # Errors
    /// The file or the flags are not valid.
    pub fn of(
        flags: FlagsAndFile<'a>,
        given: Option<Given>,
        profile: Option<&Profile>,
        usual: Precision,
    ) -> Result<Self, Failure> {
        let model = match &given {
            None => input::model(flags.model.unwrap_or(DEFAULT_MODEL))?,
            Some(given) => given.model(flags.model, profile.map(|profile| &profile.model))?,
        };
        let seq_len = profile.map(|profile| profile.seq_len);
        let job = |args| input::job(args, None, seq_len, Some(usual));
        let job = match &given {
            None => job(flags.job)?,
            Some(given) => {
                let blame = |failure| given.blame(flags, failure);
                let mut job = job(&given.job_flags(flags.job)?).map_err(blame)?;
                given.complete(&mut job).map_err(blame)?;
                given.states(flags.job, &mut job);
                given.trainable(flags.job, &mut job)?;
                job
            }
        };
        job.trainable.check_model(&model).map_err(|error| {
            let error = input::blame_trainable(error, flags.job);
            match &given {
                Some(given) if error.source_name.is_empty() => given.blame(flags, error.into()),
                _ => Failure::from(error),
            }
        })?;
        Ok(Self { model, job, given, flags })
    }

    /// # Errors
    /// Experts are to be distributed that the model does not have, or not evenly.
    pub fn check_experts(&self, degrees: &[u32]) -> Result<(), Failure> {
        check_experts(&self.model, degrees).map_err(|error| self.blame(error.into()))
    }

    /// A failure, attributed to the trainer's file if it gave the value.
    pub fn blame(&self, failure: Failure) -> Failure {
        match &self.given {
            Some(given) => given.blame(self.flags, failure),
            None => failure,
        }
    }
}
