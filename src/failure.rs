//! Kinds of failures, and the exit code of each.

use autodist_executor::launcher::LaunchError;
use autodist_profiler::ProfileError;
use autodist_spec::InputError;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug)]
pub enum Failure {
    /// Exit code 2.
    Input(InputError),
    /// No plan fits: exit code 3.
    Infeasible(String),
    /// A rank could not be started or failed: exit code 4.
    Run(String),
    /// A result could not be written: exit code 4.
    Write { path: PathBuf, source: std::io::Error },
    /// The measurement refutes the prediction of the plan: exit code 5.
    Refuted(String),
    /// Ctrl-C or a termination signal: exit code 130.
    Interrupted,
}

impl Failure {
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Input(_) => 2,
            Self::Infeasible(_) => 3,
            Self::Run(_) | Self::Write { .. } => 4,
            Self::Refuted(_) => 5,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(error) => write!(f, "{error}"),
            Self::Infeasible(text) | Self::Run(text) | Self::Refuted(text) => f.write_str(text),
            Self::Write { path, source } => write!(f, "cannot write {}: {source}", path.display()),
            Self::Interrupted => f.write_str("interrupted: all ranks have been stopped"),
        }
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        Self::Input(error)
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Interrupted => Self::Interrupted,
            other => Self::Run(other.to_string()),
        }
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        match error {
            ProfileError::Launch(error) => error.into(),
            ProfileError::Nothing { ranks, .. } => Self::Input(
                InputError::new("ranks", ranks, error.to_string())
                    .hint("choose a global batch that the number of ranks divides, or use fewer ranks"),
            ),
            ProfileError::Answer(_) => Self::Run(error.to_string()),
        }
    }
}
