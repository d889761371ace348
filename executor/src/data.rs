//! Training data: a text file with bytes as tokens, or a synthetic language with known entropy.

use crate::host;
use crate::random::RandomStream;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The source of the sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// A Markov chain over a small alphabet: see [`SyntheticLanguage`].
    Synthetic,
    /// Random windows of a file, one token per byte.
    Text(PathBuf),
}

/// An opened source.
#[derive(Debug)]
pub enum Data {
    Synthetic { language: SyntheticLanguage, seed: u64 },
    Text { file: File, len: u64, seed: u64 },
}

/// The reason why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("the training data {path} cannot be read: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the training data {path} has {len} bytes; a sequence needs {needed}")]
    TooShort { path: PathBuf, len: u64, needed: u64 },
    #[error("text is read as bytes, which need a vocabulary of at least 256, but the model has {vocab}")]
    Vocabulary { vocab: u32 },
    #[error("the synthetic language needs a vocabulary of at least 2, but the model has {vocab}")]
    NoAlphabet { vocab: u32 },
}

/// A first-order Markov chain. Every symbol has four successors, with probabilities 1/2, 1/4, 3/20 and 1/10,
/// so that the entropy of the next symbol is the same for every last symbol: it is a lower bound of any
/// model's loss.
#[derive(Debug, Clone)]
pub struct SyntheticLanguage {
    /// For each symbol its successors, most likely first.
    successors: Vec<[u32; 4]>,
}

const PROBABILITIES: [f64; 4] = [0.5, 0.25, 0.15, 0.1];
const LARGEST_ALPHABET: u32 = 32;

impl SyntheticLanguage {
    /// The language is the same in all runs; only the text depends on the seed.
    pub fn new(vocab: u32) -> Self {
        let alphabet = vocab.min(LARGEST_ALPHABET);
        let successors = (0..alphabet)
            .map(|symbol| {
                let stream = RandomStream::new(&[0x1A46, u64::from(symbol)]);
                let mut order: Vec<u32> = (0..alphabet).collect();
                order.sort_by_key(|other| stream.word(u64::from(*other)));
                // With fewer than four symbols, some are repeated.
                std::array::from_fn(|i| order[i % order.len()])
            })
            .collect();
        Self { successors }
    }

    /// Entropy of the next symbol given the last, in nats.
    pub fn entropy(&self) -> f64 {
        let of = |successors: &[u32; 4]| {
            let mut merged = std::collections::BTreeMap::new();
            for (symbol, p) in successors.iter().zip(PROBABILITIES) {
                *merged.entry(*symbol).or_insert(0.0) += p;
            }
            -merged.values().map(|p: &f64| p * p.ln()).sum::<f64>()
        };
        self.successors.iter().map(of).sum::<f64>() / self.successors.len() as f64
    }

    fn write(&self, stream: RandomStream, sequence: &mut [u32]) {
        let mut symbol = (stream.word(0) % self.successors.len() as u64) as u32;
        for (position, token) in sequence.iter_mut().enumerate() {
            *token = symbol;
            let mut draw = stream.uniform(position as u64 + 1);
            let choice = PROBABILITIES.iter().position(|p| {
                draw -= p;
                draw < 0.0
            });
            symbol = self.successors[symbol as usize][choice.unwrap_or(3)];
        }
    }
}

impl Data {
    /// # Errors
    /// A file that cannot be opened or is too short, or a vocabulary that cannot hold the tokens.
    pub fn open(source: &DataSource, vocab: u32, seq_len: usize, seed: u64) -> Result<Self, DataError> {
        match source {
            DataSource::Synthetic if vocab < 2 => Err(DataError::NoAlphabet { vocab }),
            DataSource::Synthetic => Ok(Self::Synthetic { language: SyntheticLanguage::new(vocab), seed }),
            DataSource::Text(_) if vocab < 256 => Err(DataError::Vocabulary { vocab }),
            DataSource::Text(path) => {
                let failed = |source| DataError::Io { path: path.clone(), source };
                let file = host::open_regular(path).map_err(failed)?;
                let len = file.metadata().map_err(failed)?.len();
                let needed = seq_len as u64 + 1;
                if len < needed {
                    return Err(DataError::TooShort { path: path.clone(), len, needed });
                }
                Ok(Self::Text { file, len, seed })
            }
        }
    }

    /// Fills `tokens` with sequence number `index` of the run; it has one token more than the model's input,
    /// for the targets.
    pub fn sequence(&self, index: u64, tokens: &mut [u32]) -> io::Result<()> {
        match self {
            Self::Synthetic { language, seed } => {
                language.write(RandomStream::new(&[*seed, 0xDA7A, index]), tokens)
            }
            Self::Text { file, len, seed } => {
                let starts = len - tokens.len() as u64 + 1;
                let start = RandomStream::new(&[*seed, 0x7E47]).word(index) % starts;
                let mut bytes = vec![0; tokens.len()];
                file.read_exact_at(&mut bytes, start)?;
                for (token, byte) in tokens.iter_mut().zip(bytes) {
                    *token = u32::from(byte);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_languages_entropy_is_that_of_its_text() {
        let language = SyntheticLanguage::new(256);
        let expected = -PROBABILITIES.iter().map(|p| p * p.ln()).sum::<f64>();
        assert!((language.entropy() - expected).abs() < 1e-12);
        let data = Data::open(&DataSource::Synthetic, 256, 10, 3).unwrap();
        let mut text = vec![0; 200_001];
        data.sequence(0, &mut text).unwrap();
        let mut counts = vec![[0.0_f64; 32]; 32];
        for pair in text.windows(2) {
            counts[pair[0] as usize][pair[1] as usize] += 1.0;
        }
        let measured: f64 = counts
            .iter()
            .flat_map(|row| {
                let total: f64 = row.iter().sum();
                row.iter().filter(|c| **c > 0.0).map(move |c| -c * (c / total).ln())
            })
            .sum::<f64>()
            / 200_000.0;
        assert!((measured / expected - 1.0).abs() < 0.01, "{measured} against {expected}");
    }
}
