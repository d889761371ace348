//! Ranks on the named axes of the device mesh.

use autodist_spec::ParallelStrategy;

/// An axis of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    Pipeline,
    /// Replicas of the model: all of data parallelism without ZeRO, the copies of a sharded model with it
    /// (HSDP).
    Replicate,
    /// Ranks that shard one replica (ZeRO).
    Shard,
    /// Ranks that split one sequence.
    Context,
    Tensor,
}

/// All axes, from the outermost to the innermost.
const AXES: [Axis; 5] = [Axis::Pipeline, Axis::Replicate, Axis::Shard, Axis::Context, Axis::Tensor];

/// The axes whose ranks run the same layers.
pub const DATA: [Axis; 3] = [Axis::Replicate, Axis::Shard, Axis::Context];

/// The coordinates of a rank: its pipeline rank, its place on the axes of [`DATA`] together, its tensor rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    pub pipeline: usize,
    pub data: usize,
    pub tensor: usize,
}

/// The device mesh, with the size of each axis. Tensor ranks are neighbours, then those of one sequence, of one
/// replica, of all replicas and of the pipeline, so that the axis with the most traffic crosses the shortest
/// links (Narayanan et al., SC'21, section 3.1). The names are those of torchtitan's `ParallelDims`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    pub pipeline: usize,
    pub replicate: usize,
    pub shard: usize,
    pub context: usize,
    pub tensor: usize,
}

impl Mesh {
    pub fn of(strategy: &ParallelStrategy) -> Self {
        let shard = if strategy.zero_stage == 0 { 1 } else { strategy.shard.max(1) };
        Self {
            pipeline: strategy.pipeline as usize,
            replicate: (strategy.data / shard) as usize,
            shard: shard as usize,
            context: strategy.context as usize,
            tensor: strategy.tensor as usize,
        }
    }

    pub fn size(&self, axis: Axis) -> usize {
        match axis {
            Axis::Pipeline => self.pipeline,
            Axis::Replicate => self.replicate,
            Axis::Shard => self.shard,
            Axis::Context => self.context,
            Axis::Tensor => self.tensor,
        }
    }

    /// Ranks that run the same layers on the same part of the tensors: those of the axes of [`DATA`].
    pub fn data(&self) -> usize {
        self.replicate * self.shard * self.context
    }

    /// Ranks of one pipeline stage.
    pub fn stage(&self) -> usize {
        self.data() * self.tensor
    }

    pub fn world(&self) -> usize {
        self.pipeline * self.stage()
    }

    pub fn rank(&self, at: Coordinates) -> usize {
        (at.pipeline * self.data() + at.data) * self.tensor + at.tensor
    }

    pub fn coordinates(&self, rank: usize) -> Coordinates {
        Coordinates {
            tensor: rank % self.tensor,
            data: rank / self.tensor % self.data(),
            pipeline: rank / self.stage(),
        }
    }

    /// The groups of ranks that differ in these axes only.
    pub fn view(&self, axes: &[Axis]) -> View {
        let mut dimensions = [Dimension { size: 1, stride: 1 }; AXES.len()];
        let mut stride = 1;
        for (dimension, axis) in dimensions.iter_mut().zip(AXES).rev() {
            let size = if axes.contains(&axis) { self.size(axis) } else { 1 };
            *dimension = Dimension { size, stride };
            stride *= self.size(axis);
        }
        let innermost = AXES.iter().rposition(|axis| axes.contains(axis));
        View { dimensions, stride: innermost.map_or(1, |place| dimensions[place].stride) }
    }

    /// First and last pipeline rank, which both hold a tied embedding table.
    pub fn ends(&self, at: Coordinates) -> Vec<usize> {
        [0, self.pipeline - 1].map(|pipeline| self.rank(Coordinates { pipeline, ..at })).to_vec()
    }
}

/// One digit of a rank's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dimension {
    size: usize,
    /// Distance in ranks of two neighbours.
    stride: usize,
}

impl Dimension {
    fn digit(self, rank: usize) -> usize {
        rank / self.stride % self.size
    }
}

/// A partition of the ranks into groups of equal size, each in the order of its ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// From the outermost; of size 1 where the members of a group are alike.
    dimensions: [Dimension; AXES.len()],
    stride: usize,
}

impl View {
    /// Ranks of a group.
    pub fn size(&self) -> usize {
        self.dimensions.iter().map(|dimension| dimension.size).product()
    }

    /// Distance in ranks of neighbours in a group.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The place of a rank in its group.
    pub fn index(&self, rank: usize) -> usize {
        self.dimensions.iter().fold(0, |index, one| index * one.size + one.digit(rank))
    }

    /// The group of a rank.
    pub fn group(&self, rank: usize) -> Vec<usize> {
        let first: usize = self.dimensions.iter().map(|one| one.digit(rank) * one.stride).sum();
        let mut group = vec![rank - first];
        for one in self.dimensions {
            let places = |start: usize| (0..one.size).map(move |place| start + place * one.stride);
            group = group.into_iter().flat_map(places).collect();
        }
        group
    }

    /// The innermost `ranks` of each group, for groups without gaps: an axis that is borrowed from others, as
    /// expert parallelism borrows data-parallel ranks.
    #[must_use]
    pub fn within(&self, ranks: usize) -> Self {
        Self::regular(ranks, self.stride)
    }

    /// Every `ranks`-th rank of each group without gaps: what remains of it beside a borrowed axis. It is one
    /// rank if the axis borrows all of them.
    #[must_use]
    pub fn beyond(&self, ranks: usize) -> Self {
        Self::regular((self.size() / ranks).max(1), self.stride * ranks)
    }

    /// Groups of ranks that are `stride` apart.
    pub fn regular(size: usize, stride: usize) -> Self {
        let mut dimensions = [Dimension { size: 1, stride: 1 }; AXES.len()];
        dimensions[AXES.len() - 1] = Dimension { size, stride };
        Self { dimensions, stride }
    }

    /// All groups that have a member among these ranks.
    pub fn groups(&self, ranks: std::ops::Range<usize>) -> Vec<Vec<usize>> {
        ranks.filter(|rank| self.index(*rank) == 0).map(|rank| self.group(rank)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: Mesh = Mesh { pipeline: 2, replicate: 2, shard: 3, context: 2, tensor: 2 };

    #[test]
    fn every_view_is_a_partition() {
        let views = [
            MESH.view(&[]),
            MESH.view(&[Axis::Tensor]),
            MESH.view(&DATA),
            MESH.view(&[Axis::Shard, Axis::Context]),
            MESH.view(&[Axis::Replicate]),
            MESH.view(&[Axis::Pipeline, Axis::Shard, Axis::Context, Axis::Tensor]),
            MESH.view(&DATA).within(4),
            MESH.view(&DATA).beyond(4),
            MESH.view(&[Axis::Shard, Axis::Context]).beyond(6),
        ];
        for view in views {
            let mut seen = Vec::new();
            for group in view.groups(0..MESH.world()) {
                assert_eq!(group.len(), view.size(), "{view:?}");
                for (index, rank) in group.iter().enumerate() {
                    assert_eq!((view.index(*rank), &view.group(*rank)), (index, &group), "{view:?}");
                }
                seen.extend(group);
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..MESH.world()).collect::<Vec<_>>(), "{view:?}");
        }
    }

    #[test]
    fn groups_by_hand() {
        let at = MESH.coordinates(29);
        assert_eq!((at.pipeline, at.data, at.tensor), (1, 2, 1));
        assert_eq!(MESH.rank(at), 29);
        assert_eq!(MESH.view(&[Axis::Tensor]).group(29), [28, 29]);
        assert_eq!(MESH.view(&[Axis::Context]).group(29), [29, 31]);
        assert_eq!(MESH.view(&[Axis::Shard, Axis::Context]).group(29), [25, 27, 29, 31, 33, 35]);
        assert_eq!(MESH.view(&[Axis::Replicate]).group(29), [29, 41]);
        assert_eq!(MESH.ends(at), [5, 29]);
        // Four experts' ranks out of twelve that are two apart, and the three that hold the same ones.
        assert_eq!(MESH.view(&DATA).within(4).group(29), [25, 27, 29, 31]);
        assert_eq!(MESH.view(&DATA).beyond(4).group(29), [29, 37, 45]);
    }
}
