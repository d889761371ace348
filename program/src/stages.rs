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
    // best[k][i]: smallest possible largest chunk when the first i layers make k chunks.
    let mut best = vec![vec![f64::INFINITY; layers + 1]; chunks + 1];
    let mut cut = vec![vec![0; layers + 1]; chunks + 1];
    best[0][0] = 0.0;
    for k in 1..=chunks {
        let prefix = &prefixes[devices[k - 1]];
        // Both only grow with `end`: costs are not negative.
        let (mut crossing, mut latest) = (k - 1, k - 1);
        for end in k..=layers {
            // A later start makes the previous chunks costlier and the last one cheaper: the best start is
            // where the two cross, and of equally good ones the latest.
            let before = &best[k - 1];
            let last = |start: usize| prefix[end] - prefix[start];
            while crossing < end && before[crossing] < last(crossing) {
                crossing += 1;
            }
            let around = crossing.saturating_sub(1).max(k - 1)..(crossing + 1).min(end);
            let value = around.map(|start| before[start].max(last(start))).fold(f64::INFINITY, f64::min);
            while latest + 1 < end && before[latest + 1] <= value {
                latest += 1;
            }
            best[k][end] = value;
            cut[k][end] = latest;
        }
    }
    let mut ends = vec![layers];
    for k in (1..=chunks).rev() {
        ends.push(cut[k][ends[ends.len() - 1]]);
    }
    ends.reverse();
    Some(from_ends(model, &ends, recompute))
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
