//! The correction of a profile by measured step times of a trainer.

use crate::error::{InputError, in_range, not_negative};
use crate::network::Network;
use crate::profile::{Profile, Sample};
use crate::units::{BytesPerSecond, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Step times of a trainer, compared with those that the measurements of a profile predict. `autodist calibrate` writes
/// it: the measurements themselves stay as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileCorrection {
    /// The runs, such as `1 run of train.jsonl`.
    pub fitted_to: String,
    pub runs: u32,
    /// Measured over predicted step time, the geometric mean of the runs. All times of the profile are multiplied by
    /// it.
    pub factor: f64,
    /// Relative error that nine of ten further runs are expected to stay within.
    pub error_bar: f64,
}

impl ProfileCorrection {
    pub(crate) fn check(&self) -> Result<(), InputError> {
        in_range("correction.runs", u64::from(self.runs), 1, u64::from(u32::MAX))?;
        not_negative("correction.error_bar", self.error_bar)?;
        if (0.01..=100.0).contains(&self.factor) {
            return Ok(());
        }
        Err(InputError::new("correction.factor", self.factor, "must be a number from 0.01 to 100")
            .hint("create the file again with `autodist calibrate`"))
    }
}

impl Profile {
    /// The profile with corrected times; the factor of its correction is then 1.
    pub fn corrected(&self) -> Cow<'_, Self> {
        match &self.correction {
            Some(correction) if correction.factor != 1.0 => Cow::Owned(self.slower(correction.factor)),
            _ => Cow::Borrowed(self),
        }
    }

    /// The profile of a machine all operations of which take `factor` times as long.
    fn slower(&self, factor: f64) -> Self {
        let mut profile = self.clone();
        let mut samples: Vec<&mut Sample> = Vec::new();
        for cell in &mut profile.segments {
            cell.launch_s.0 *= factor;
            samples.push(&mut cell.time);
        }
        for cells in [&mut profile.collectives, &mut profile.exchanges, &mut profile.within_steps] {
            samples.extend(cells.iter_mut().map(|cell| &mut cell.time));
        }
        samples.extend(profile.messages.iter_mut().map(|cell| &mut cell.time));
        samples.extend(profile.codecs.iter_mut().map(|cell| &mut cell.time));
        samples.extend(profile.pipelining.iter_mut().map(|cell| &mut cell.time));
        samples.extend(profile.optimizer.iter_mut().flat_map(|cell| [&mut cell.update, &mut cell.norm]));
        samples.extend(&mut profile.sharding);
        samples.extend([
            &mut profile.synchronisation,
            &mut profile.stream_handover,
            &mut profile.step_overhead,
        ]);
        samples.into_iter().for_each(|sample| sample.slow_down(factor));
        for fit in &mut profile.fits {
            fit.alpha_s.0 *= factor;
            fit.beta_s_per_byte *= factor;
        }
        profile.zero_s_per_element *= factor;
        profile.add_s_per_element *= factor;
        if let Some(network) = &mut profile.network {
            slow_down(network, factor);
        }
        if let Some(correction) = &mut profile.correction {
            correction.factor = 1.0;
        }
        profile
    }
}

impl Sample {
    fn slow_down(&mut self, factor: f64) {
        for seconds in [&mut self.median_s, &mut self.low_s, &mut self.high_s] {
            *seconds = Seconds(seconds.0 * factor);
        }
    }
}

fn slow_down(network: &mut Network, factor: f64) {
    for link in &mut network.links {
        let both = link.both_ways_bytes_per_s.iter_mut();
        both.chain([&mut link.bytes_per_s]).for_each(|rate| *rate = BytesPerSecond(rate.0 / factor));
    }
    network.paths.iter_mut().flatten().for_each(|path| path.latency_s.0 *= factor);
    network.patterns.iter_mut().for_each(|pattern| pattern.time.slow_down(factor));
}
