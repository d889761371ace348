//! Fits [`KernelParameters`] to tables of measured kernels, and evaluates them on held-out measurements.
//!
//! Deterministic: the same tables give the same parameters.

mod attention;
mod backfit;
mod check;
mod collective;
mod gemm;
mod rows;
mod simplex;

pub use check::{ErrorLine, FitErrors, LeftOut, RESERVED, check, check_devices, compare};
pub use rows::{AttentionRow, CollectiveRow, GemmRow, Measurements};

use crate::KernelParameters;
use crate::catalogue::Catalogue;
use autodist_spec::InputError;

const SOURCE: &str =
    "fitted to performance tables of github:ai-dynamo/aiconfigurator (commit 095f58a, Apache-2.0)";

/// Fits everything in the tables. Texts are CSV with the columns `gpu,dtype,m,n,k,min_ms,median_ms,sources`,
/// `gpu,batch,seq_len,heads,kv_heads_as_given,head_dim,min_ms,median_ms,sources` and
/// `gpu,library,op,dtype,gpus,bytes,time_us`; devices are found by their `measured_as` in the catalogue.
///
/// # Errors
/// A table has other columns, or a device that the catalogue does not contain.
pub fn kernels(gemm: &str, attention: &str, nccl: &str) -> Result<KernelParameters, InputError> {
    Ok(fit(&Measurements::read(&Catalogue::shipped(), gemm, attention, nccl)?))
}

/// Fits everything that was measured.
pub fn fit(measurements: &Measurements) -> KernelParameters {
    KernelParameters {
        source: SOURCE.to_owned(),
        gemm: gemm::fit_all(measurements),
        attention: attention::fit_all(measurements),
        collective: collective::fit_all(measurements),
    }
}

/// Assigns a row to one of a hundred groups by a hash of its numbers: pseudo-random, and the same on every
/// machine (SplitMix64's mixing).
pub(crate) fn draw(seed: u64, numbers: &[u64]) -> f64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for number in numbers {
        state = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    (state >> 11) as f64 / (1u64 << 53) as f64
}
