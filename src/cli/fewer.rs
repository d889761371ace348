//! Flags of searches over fewer devices.

use super::EstimateArgs;
use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct FewerArgs {
    /// Use every device, even if fewer are as fast [default: with a profile, or with --from]
    #[arg(help_heading = "Search", long, conflicts_with = "fewer_devices")]
    pub all_devices: bool,
    /// Leave devices off if fewer are as fast [default: without a profile and --from]
    #[arg(help_heading = "Search", long)]
    pub fewer_devices: bool,
}

impl FewerArgs {
    /// Whether a search must use every device. Ranks that were measured are started by `validate`, `train` and
    /// launchers as they are, so fewer of them must be asked for.
    pub fn all(&self, measured: bool) -> bool {
        self.all_devices || (measured && !self.fewer_devices)
    }
}

impl EstimateArgs {
    /// The flags of `--best`, which are of no other use here.
    pub fn fewer(&self) -> FewerArgs {
        FewerArgs { all_devices: self.all_devices, fewer_devices: self.fewer_devices }
    }
}
