//! Random numbers by position: any part of a tensor or a data set can be made without making the rest, so
//! training has the same initial parameters and the same data for every sharding of the model.

/// A stream of random numbers, identified by a key.
#[derive(Debug, Clone, Copy)]
pub struct RandomStream(u64);

/// Mixes the bits of one word (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl RandomStream {
    pub fn new(key: &[u64]) -> Self {
        Self(key.iter().fold(0, |state, word| mix(state ^ mix(*word))))
    }

    /// The word at `position`.
    pub fn word(self, position: u64) -> u64 {
        mix(self.0.wrapping_add(position.wrapping_mul(0xD134_2543_DE82_EF95)))
    }

    /// Uniform on `[0, 1)`.
    pub fn uniform(self, position: u64) -> f64 {
        (self.word(position) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(self, position: u64) -> f64 {
        let (radius, angle) = (self.uniform(2 * position), self.uniform(2 * position + 1));
        (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let stream = RandomStream::new(&[7, 1]);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|i| stream.normal(i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
