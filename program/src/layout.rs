//! Ranks on the axes of the device mesh.

use autodist_spec::ParallelStrategy;

/// The coordinates of a rank on each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    pub pipeline: usize,
    pub data: usize,
    pub tensor: usize,
}

/// The device mesh: tensor ranks are neighbours, then data, then pipeline, so that the axis with the most
/// traffic crosses the shortest links (Narayanan et al., SC'21, section 3.1). Within the data axis, the ranks
/// that shard one replica are neighbours, and within these the ranks that split one sequence (context
/// parallelism): they hold the same parameters, so for these they are data-parallel ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub pipeline: usize,
    pub data: usize,
    pub tensor: usize,
    /// Ranks of the data axis that split one sequence; divides `data`.
    pub context: usize,
    /// Ranks of the data axis that shard one replica; divides `data`.
    pub shard: usize,
}

impl Layout {
    pub fn of(strategy: &ParallelStrategy) -> Self {
        Self {
            pipeline: strategy.pipeline as usize,
            data: strategy.replicas() as usize,
            tensor: strategy.tensor as usize,
            context: strategy.context as usize,
            shard: strategy.shards() as usize,
        }
    }

    pub fn world(&self) -> usize {
        self.pipeline * self.data * self.tensor
    }

    /// Replicas of a sharded model (HSDP); the whole data axis without ZeRO.
    pub fn replicas(&self) -> usize {
        self.data / self.shard
    }

    pub fn rank(&self, at: Coordinates) -> usize {
        (at.pipeline * self.data + at.data) * self.tensor + at.tensor
    }

    pub fn coordinates(&self, rank: usize) -> Coordinates {
        Coordinates {
            tensor: rank % self.tensor,
            data: rank / self.tensor % self.data,
            pipeline: rank / self.tensor / self.data,
        }
    }

    /// Ranks that split the same layers by tensor parallelism.
    pub fn tensor_group(&self, at: Coordinates) -> Vec<usize> {
        (0..self.tensor).map(|tensor| self.rank(Coordinates { tensor, ..at })).collect()
    }

    /// Ranks that hold the same parameters and process different data.
    pub fn data_group(&self, at: Coordinates) -> Vec<usize> {
        (0..self.data).map(|data| self.rank(Coordinates { data, ..at })).collect()
    }

    /// Ranks that shard one replica.
    pub fn shard_group(&self, at: Coordinates) -> Vec<usize> {
        let first = at.data / self.shard * self.shard;
        (first..first + self.shard).map(|data| self.rank(Coordinates { data, ..at })).collect()
    }

    /// Ranks that hold the same shard in different replicas.
    pub fn replica_group(&self, at: Coordinates) -> Vec<usize> {
        let shards = (at.data % self.shard..self.data).step_by(self.shard);
        shards.map(|data| self.rank(Coordinates { data, ..at })).collect()
    }

    /// Ranks that together hold one whole model: the gradient norm is all-reduced over them.
    pub fn model_group(&self, at: Coordinates) -> Vec<usize> {
        let first = at.data / self.shard * self.shard;
        let mut group = Vec::new();
        for pipeline in 0..self.pipeline {
            for data in first..first + self.shard {
                group
                    .extend((0..self.tensor).map(|tensor| self.rank(Coordinates { pipeline, data, tensor })));
            }
        }
        group
    }

    /// First and last pipeline rank, which both hold a tied embedding table.
    pub fn tied_group(&self, at: Coordinates) -> Vec<usize> {
        [0, self.pipeline - 1].map(|pipeline| self.rank(Coordinates { pipeline, ..at })).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_partition_the_world() {
        let layout = Layout { pipeline: 2, data: 4, tensor: 2, context: 1, shard: 2 };
        for rank in 0..layout.world() {
            let at = layout.coordinates(rank);
            assert_eq!(layout.rank(at), rank);
            for group in [
                layout.tensor_group(at),
                layout.data_group(at),
                layout.shard_group(at),
                layout.replica_group(at),
                layout.model_group(at),
            ] {
                assert!(group.contains(&rank));
                // All members agree on the group.
                for member in &group {
                    assert!(*member < layout.world());
                }
            }
        }
        let at = layout.coordinates(5);
        assert_eq!((at.pipeline, at.data, at.tensor), (0, 2, 1));
        assert_eq!(layout.shard_group(at), [5, 7]);
        assert_eq!(layout.replica_group(at), [1, 5]);
        assert_eq!(layout.tied_group(at), [5, 13]);
    }
}
