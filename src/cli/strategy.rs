//! Arguments of the parallel strategy.

use super::values::{degree, recompute_modes, schedules};
use autodist_spec::{InputError, Recompute, ScheduleKind, quantity};
use clap::Args;

/// The parallel strategy. A search takes every flag as a restriction, and a list as the values to choose from;
/// `estimate` prices exactly the one that the flags give.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Strategy")]
pub struct StrategyArgs {
    /// Tensor-parallel degree; searches take lists here and below, e.g., 1,2,4 [default: searched; 1 for `estimate`]
    ///
    /// It must divide the devices and the attention heads.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub tp: Vec<u32>,
    /// Pipeline-parallel degree [default: searched; 1 for `estimate`]
    ///
    /// It must divide the devices.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub pp: Vec<u32>,
    /// Data-parallel degree [default: searched; for `estimate` the devices that the other degrees leave]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub dp: Vec<u32>,
    /// Context-parallel degree; above 1 only without a profile [default: searched; 1 for `estimate`]
    ///
    /// The ranks of a context-parallel group split every sequence.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub cp: Vec<u32>,
    /// Expert-parallel degree; above 1 only without a profile [default: searched; 1 for `estimate`]
    ///
    /// The data-parallel ranks over which a layer's experts are distributed.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub ep: Vec<u32>,
    /// Virtual stages per pipeline rank; above 1 the schedule is interleaved [default: searched; 1 for `estimate`]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub vpp: Vec<u32>,
    /// ZeRO stage [default: searched; for `estimate` 0, or with --cluster the trainer's usual stage]
    ///
    /// 1 shards the optimizer state, 2 also gradients, 3 also parameters.
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=3))]
    pub zero: Vec<u8>,
    /// Data-parallel ranks that ZeRO shards over [default: searched; for `estimate` all of them]
    ///
    /// Fewer than --dp is HSDP: sharded in a group and replicated across groups.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = degree)]
    pub shard: Vec<u32>,
    /// Sequence parallelism in the tensor-parallel groups [default: searched; off for `estimate`]
    ///
    /// `--sp` and `--sp true` turn it on, `--no-sp` and `--sp false` off.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub sp: Option<bool>,
    /// No sequence parallelism
    #[arg(long, conflicts_with = "sp")]
    pub no_sp: bool,
    /// Activation recomputation [default: searched; for `estimate` none, or with --cluster the least that fits]
    #[arg(long, value_name = "MODE", value_delimiter = ',', value_parser = recompute_modes())]
    pub recompute: Vec<Recompute>,
    /// Sequences per micro-batch and data-parallel rank [default: searched; 1 for `estimate`]
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', value_parser = quantity::length)]
    pub micro_batch: Vec<u32>,
    /// Pipeline schedule [default: searched; for `estimate` 1f1b, or interleaved if --vpp is above 1]
    #[arg(long, value_delimiter = ',', value_parser = schedules())]
    pub schedule: Vec<ScheduleKind>,
    /// Minimum size of a gradient bucket, e.g., 25MiB or 100MB [default: 25MiB]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = quantity::bytes)]
    pub bucket_bytes: Vec<u64>,
}

/// At most one value of each flag: the strategy that `estimate` prices.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub tp: Option<u32>,
    pub pp: Option<u32>,
    pub dp: Option<u32>,
    pub cp: Option<u32>,
    pub ep: Option<u32>,
    pub vpp: Option<u32>,
    pub zero: Option<u8>,
    pub shard: Option<u32>,
    pub sp: Option<bool>,
    pub recompute: Option<Recompute>,
    pub micro_batch: Option<u32>,
    pub schedule: Option<ScheduleKind>,
    pub bucket_bytes: Option<u64>,
}

impl StrategyArgs {
    /// Whether sequence parallelism must be used, or must not be.
    pub fn sequence_parallel(&self) -> Option<bool> {
        if self.no_sp { Some(false) } else { self.sp }
    }

    /// The first value of each flag.
    pub fn first(&self) -> Layout {
        Layout {
            tp: self.tp.first().copied(),
            pp: self.pp.first().copied(),
            dp: self.dp.first().copied(),
            cp: self.cp.first().copied(),
            ep: self.ep.first().copied(),
            vpp: self.vpp.first().copied(),
            zero: self.zero.first().copied(),
            shard: self.shard.first().copied(),
            sp: self.sequence_parallel(),
            recompute: self.recompute.first().copied(),
            micro_batch: self.micro_batch.first().copied(),
            schedule: self.schedule.first().copied(),
            bucket_bytes: self.bucket_bytes.first().copied(),
        }
    }

    /// The one strategy of the flags.
    ///
    /// # Errors
    /// A flag has several values.
    pub fn one(&self) -> Result<Layout, InputError> {
        let numbers = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>();
        let lists = [
            ("--tp", numbers(&self.tp)),
            ("--pp", numbers(&self.pp)),
            ("--dp", numbers(&self.dp)),
            ("--cp", numbers(&self.cp)),
            ("--ep", numbers(&self.ep)),
            ("--vpp", numbers(&self.vpp)),
            ("--zero", self.zero.iter().map(u8::to_string).collect()),
            ("--shard", numbers(&self.shard)),
            ("--recompute", self.recompute.iter().map(|mode| mode.name().to_owned()).collect()),
            ("--micro-batch", numbers(&self.micro_batch)),
            ("--schedule", self.schedule.iter().map(|one| one.name().to_owned()).collect()),
            ("--bucket-bytes", self.bucket_bytes.iter().map(u64::to_string).collect()),
        ];
        match lists.into_iter().find(|(_, values)| values.len() > 1) {
            None => Ok(self.first()),
            Some((flag, values)) => {
                let problem =
                    "is a list, but one strategy is priced: that of `estimate`, or of the file of `--from`";
                Err(InputError::new(flag, values.join(","), problem)
                    .hint("give one value, or search these values with `--best`, or `autodist plan` without `--from`"))
            }
        }
    }
}
