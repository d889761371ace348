//! How many more steps lossy gradients need to the same loss (phi), and how long training takes to it.
//!
//! `time to loss = S_min (1 + B_crit / B) phi t_step` (steps as a function of the batch: McCandlish et al.,
//! 1812.06162, section 2.2). Without a measurement phi is a prior, no more than an order of magnitude:
//! - unbiased codecs add their variance to the gradient's noise:
//!   `phi = (1 + omega/p + (1 + omega) r) / (1 + r)` with `r = B_noise / B`, from the second moment of a mean
//!   of `p` compressed gradients;
//! - codecs with error feedback converge at the exact rate except for a term that fades (Karimireddy et al.,
//!   1901.09847, theorem II): `phi = 1 + (1 - delta) / (delta² T)` over `T` steps.

use crate::coding;
use autodist_codecs::{Distortion, distortion};
use autodist_program::{Bucket, Program};
use autodist_spec::{Codec, CodecProbe, Coded, Job, Provenance, Seconds, Slowdown};

/// Noise scale / global batch if the job does not give its critical batch.
const NOISE_RATIO: f64 = 1.0;

/// Factor on the number of steps for all codecs in the program; `None` without lossy codecs. For gradients,
/// the factor of the worst bucket. The prior for parameters and activations in a codec is 1, an assumption
/// until a probe has measured it.
pub(crate) fn slowdown(program: &Program, job: &Job, probes: &[CodecProbe]) -> Option<Slowdown> {
    let communication = &program.strategy.communication;
    let probed = |codec: Codec, coded: Coded| {
        let probe = probes.iter().find(|probe| (probe.codec, probe.coded) == (codec, coded))?;
        Some(Slowdown { factor: probe.factor(), provenance: Provenance::Measured, noise: probe.noise })
    };
    let rounded = |codec: Codec, coded: Coded| {
        (codec != Codec::None).then(|| probed(codec, coded).unwrap_or(Slowdown::prior(1.0)))
    };
    let of_bucket = |(codec, bucket): (Codec, &Bucket)| {
        // A codec on shards is at most as lossy as on whole gradients.
        probed(codec, Coded::Gradients).unwrap_or_else(|| {
            let distortion = distortion(codec, &coding::tensors(program, bucket), bucket.padded);
            Slowdown::prior(prior(distortion, program.mesh.data(), job))
        })
    };
    let buckets = program.ranks.iter().flat_map(|rank| {
        let codec = |index| communication.reduction(rank.pipeline_rank, index).codec;
        rank.buckets().iter().enumerate().map(move |(index, bucket)| (codec(index), bucket))
    });
    let gradients = buckets
        .filter(|(codec, _)| *codec != Codec::None && program.strategy.data > 1)
        .map(of_bucket)
        .max_by(|a, b| a.factor.total_cmp(&b.factor));
    let parts = [
        gradients,
        rounded(communication.parameters, Coded::Parameters),
        rounded(communication.activations, Coded::Activations),
    ];
    parts.into_iter().flatten().reduce(|a, b| Slowdown {
        factor: a.factor * b.factor,
        provenance: a.provenance.max(b.provenance),
        noise: a.noise.zip(b.noise).map(|(a, b)| a.hypot(b)),
    })
}

fn prior(distortion: Distortion, members: usize, job: &Job) -> f64 {
    match distortion {
        Distortion::Unbiased { omega } => {
            let noise = job
                .convergence
                .map_or(NOISE_RATIO, |known| known.critical_batch / f64::from(job.global_batch));
            (1.0 + omega / members as f64 + (1.0 + omega) * noise) / (1.0 + noise)
        }
        Distortion::Contraction { delta } => {
            1.0 + (1.0 - delta) / (delta * delta * f64::from(job.learning_rate.total_steps))
        }
    }
}

/// Seconds to the job's loss at a step time; `None` if the job does not give the number of steps.
pub(crate) fn time_to_loss(job: &Job, slowdown: Option<Slowdown>, step_s: f64) -> Option<Seconds> {
    Some(Seconds(job.steps_to_loss()? * slowdown.map_or(1.0, |s| s.factor) * step_s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::Convergence;

    #[test]
    fn priors_follow_their_formulas() {
        let mut job = Job::new(64, 128);
        job.learning_rate.total_steps = 100;
        assert_eq!(prior(Distortion::Unbiased { omega: 0.0 }, 4, &job), 1.0);
        // Noise as large as the gradient: (1 + 1/4 + 2) / 2.
        assert_eq!(prior(Distortion::Unbiased { omega: 1.0 }, 4, &job), 1.625);
        assert!((prior(Distortion::Contraction { delta: 0.5 }, 4, &job) - 1.02).abs() < 1e-12);
        assert_eq!(time_to_loss(&job, None, 2.0), None);
        job.convergence = Some(Convergence { min_steps: 1000.0, critical_batch: 64.0 });
        let slow = Slowdown { factor: 1.5, provenance: Provenance::Measured, noise: None };
        assert_eq!(time_to_loss(&job, Some(slow), 2.0), Some(Seconds(6000.0)));
    }
}
