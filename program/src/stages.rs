//! Cuts of the layer chain into model chunks.

use autodist_spec::{LayerKind, ModelSpec, ParallelStrategy, Recompute, Stage};

/// Chunks of nearly equal work, with `cost` as the cost of a layer: the largest chunk is as small as
/// contiguous cuts allow (exact, dynamic programming over cuts), and among such cuts the first chunks are the
/// larger ones. `None` if there are more chunks than layers.
pub fn balanced(
    model: &ModelSpec,
    chunks: usize,
    recompute: Recompute,
    cost: &dyn Fn(usize) -> f64,
) -> Option<Vec<Stage>> {
    balanced_on(model, &vec![0; chunks], recompute, &|_, layer| cost(layer))
}

/// As [`balanced`], for chunks on unequal devices: `devices` has the kind of device of each chunk, and `cost`
/// is the cost of a layer on a kind of device.
pub fn balanced_on(
    model: &ModelSpec,
    devices: &[usize],
    recompute: Recompute,
    cost: &dyn Fn(usize, usize) -> f64,
) -> Option<Vec<Stage>> {
    let (layers, chunks) = (model.chain_len(), devices.len());
    if chunks == 0 || chunks > layers {
        return None;
    }
    let prefix_on = |device: usize| {
        let mut prefix = vec![0.0];
        for layer in 0..layers {
            prefix.push(prefix[layer] + cost(device, layer));
        }
        prefix
    };
    let prefixes: Vec<Vec<f64>> = (0..=*devices.iter().max()?).map(prefix_on).collect();
    let mut best = vec![f64::INFINITY; layers + 1];
    best[0] = 0.0;
    let mut cut = vec![vec![0; layers + 1]];
    for (k, device) in (1..).zip(devices) {
        let (next, starts) = next_row(k, &best, &prefixes[*device]);
        best = next;
        cut.push(starts);
    }
    let mut ends = vec![layers];
    for k in (1..=chunks).rev() {
        ends.push(cut[k][ends[ends.len() - 1]]);
    }
    ends.reverse();
    Some(from_ends(model, &ends, recompute))
}

/// The cuts of a chain of layers into any number of chunks on equal devices, as of [`balanced`]: those into more chunks
/// continue those into fewer.
#[derive(Debug)]
pub struct Cuts {
    prefix: Vec<f64>,
    /// Of the last row of `cut`: smallest possible largest chunk when the first layers make so many chunks.
    best: Vec<f64>,
    /// By number of chunks and of layers: where the last chunk begins. Row 0 is of no chunk.
    cut: Vec<Vec<u16>>,
}

impl Cuts {
    pub fn new(costs: impl Iterator<Item = f64>) -> Self {
        let mut prefix = vec![0.0];
        for cost in costs {
            prefix.push(prefix[prefix.len() - 1] + cost);
        }
        let mut best = vec![f64::INFINITY; prefix.len()];
        best[0] = 0.0;
        let cut = vec![vec![0; prefix.len()]];
        Self { prefix, best, cut }
    }

    /// The ends of `chunks` chunks, which begin with 0; `None` if there are more chunks than layers.
    pub fn ends(&mut self, chunks: usize) -> Option<Vec<usize>> {
        let layers = self.prefix.len() - 1;
        if chunks == 0 || chunks > layers || layers > usize::from(u16::MAX) {
            return None;
        }
        while self.cut.len() <= chunks {
            let (best, cut) = next_row(self.cut.len(), &self.best, &self.prefix);
            self.best = best;
            self.cut.push(cut.into_iter().map(|start| start as u16).collect());
        }
        let mut ends = vec![layers];
        for k in (1..=chunks).rev() {
            ends.push(usize::from(self.cut[k][ends[ends.len() - 1]]));
        }
        ends.reverse();
        Some(ends)
    }
}

/// The row of `k` chunks, by the number of layers that they have: the smallest possible largest chunk, and where the last
/// chunk begins. `before` is the row of one chunk less, and `prefix` the sums of the costs on the device of the last one.
fn next_row(k: usize, before: &[f64], prefix: &[f64]) -> (Vec<f64>, Vec<usize>) {
    let layers = prefix.len() - 1;
    let (mut best, mut cut) = (vec![f64::INFINITY; layers + 1], vec![0; layers + 1]);
    // Both only grow with `end`: costs are not negative.
    let (mut crossing, mut latest) = (k - 1, k - 1);
    for end in k..=layers {
        // A later start makes the previous chunks costlier and the last one cheaper: the best start is
        // where the two cross, and of equally good ones the latest.
        let last = |start: usize| prefix[end] - prefix[start];
        while crossing < end && before[crossing] < last(crossing) {
            crossing += 1;
        }
        let around = crossing.saturating_sub(1).max(k - 1)..(crossing + 1).min(end);
        let value = around.map(|start| before[start].max(last(start))).fold(f64::INFINITY, f64::min);
        while latest + 1 < end && before[latest + 1] <= value {
            latest += 1;
        }
        best[end] = value;
        cut[end] = latest;
    }
    (best, cut)
}

/// Chunks by FLOPs: for callers without measured costs.
pub fn even(model: &ModelSpec, strategy: &ParallelStrategy) -> Vec<Stage> {
    let seq = u64::from(model.max_seq_len);
    // The embedding has no FLOPs, but a chunk with only the embedding is not empty: it weighs a hundredth of
    // a block.
    let block = model.forward_flops(1, seq, seq).0;
    let cost = |layer| model.forward_flops(layer, seq, seq).0.max(block / 100.0);
    let chunks = (strategy.chunks() as usize).clamp(1, model.chain_len());
    balanced(model, chunks, strategy.recompute, &cost).unwrap_or_default()
}

/// Chunks with the given boundaries: `ends` begins with 0 and ends with the number of layers.
pub fn from_ends(model: &ModelSpec, ends: &[usize], recompute: Recompute) -> Vec<Stage> {
    let stage = |pair: &[usize]| Stage {
        first_layer: pair[0] as u32,
        end_layer: pair[1] as u32,
        recompute: (pair[0]..pair[1]).map(|layer| policy(model, layer, recompute)).collect(),
    };
    ends.windows(2).map(stage).collect()
}

/// Only blocks recompute: the embedding keeps nothing worth it, and the head's backward directly follows its
/// forward.
fn policy(model: &ModelSpec, layer: usize, recompute: Recompute) -> Recompute {
    if model.kind(layer) == LayerKind::Block { recompute } else { Recompute::None }
}

/// The same stages, with `recompute` on the first `count` blocks of every chunk and none on the others.
pub fn with_recompute(model: &ModelSpec, stages: &[Stage], recompute: Recompute, count: usize) -> Vec<Stage> {
    let mut stages = stages.to_vec();
    for stage in &mut stages {
        let mut left = count;
        let first = stage.first_layer as usize;
        for (index, entry) in stage.recompute.iter_mut().enumerate() {
            let block = model.kind(first + index) == LayerKind::Block;
            *entry = if block && left > 0 { recompute } else { Recompute::None };
            left -= usize::from(block && left > 0);
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::catalog;

    #[test]
    fn balanced_cuts_are_the_best_of_all_cuts() {
        let model = catalog::model("tiny-llama").unwrap(); // 6 layers
        let costs = [1.0, 4.0, 4.0, 4.0, 4.0, 7.0];
        let largest = |stages: &[Stage]| {
            stages.iter().map(|s| s.layers().map(|l| costs[l]).sum::<f64>()).fold(0.0, f64::max)
        };
        for chunks in 1..=6 {
            let ours = balanced(&model, chunks, Recompute::None, &|l| costs[l]).unwrap();
            assert_eq!(ours.len(), chunks);
            // Brute force over all sets of cuts.
            let best = (0..1 << 5)
                .filter(|mask: &u32| mask.count_ones() as usize == chunks - 1)
                .map(|mask| {
                    let mut ends = vec![0];
                    ends.extend((1..6).filter(|cut| mask >> (cut - 1) & 1 == 1));
                    ends.push(6);
                    largest(&from_ends(&model, &ends, Recompute::None))
                })
                .fold(f64::INFINITY, f64::min);
            assert_eq!(largest(&ours), best, "{chunks} chunks");
        }
        assert!(balanced(&model, 7, Recompute::None, &|_| 1.0).is_none());
    }

    /// In whatever order the numbers of chunks are asked for.
    #[test]
    fn cuts_into_any_number_of_chunks_are_those_of_one_number() {
        let model = catalog::model("gpt2-large").unwrap();
        let layers = model.chain_len();
        let cost = |layer: usize| 1.0 + ((layer * 7919) % 13) as f64 / 10.0;
        let mut cuts = Cuts::new((0..layers).map(cost));
        for chunks in [7, 1, 36, 12, layers, 2] {
            let expected = balanced(&model, chunks, Recompute::Full, &cost).unwrap();
            let ends = cuts.ends(chunks).unwrap();
            assert_eq!(from_ends(&model, &ends, Recompute::Full), expected, "{chunks} chunks");
        }
        assert!(cuts.ends(0).is_none() && cuts.ends(layers + 1).is_none());
    }

    #[test]
    fn faster_devices_get_more_layers() {
        let model = catalog::model("tiny-llama").unwrap(); // 6 layers
        let cost = |device: usize, _| [1.0, 2.0][device];
        let ends = |devices: &[usize]| -> Vec<u32> {
            let stages = balanced_on(&model, devices, Recompute::None, &cost).unwrap();
            stages.iter().map(|stage| stage.end_layer).collect()
        };
        assert_eq!(ends(&[0, 1]), [4, 6]);
        assert_eq!(ends(&[1, 0]), [2, 6]);
        assert_eq!(ends(&[1, 0, 0]), [1, 4, 6]);
    }
}
