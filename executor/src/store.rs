//! The parameters, gradients and optimizer state that a rank holds, by bucket.

use crate::parameters;
use crate::state::{ModelState, StateShard};
use autodist_compute::optimizer::{AdamW, Sgd};
use autodist_compute::{Backend, Region, RegionMut};
use autodist_program::{Bucket, Coordinates, Program, Transfer};
use autodist_spec::{ModelSpec, Optimizer};
use std::ops::Range;

/// The storage of one bucket. Sharded parts are as long as this rank's shard.
struct BucketStorage<B: Backend> {
    /// The elements that this rank updates.
    own: Range<usize>,
    /// Whole or this rank's shard, by the bucket's residence; absent while a transfer owns it.
    parameters: Option<B::Buffer>,
    /// Sharded parameters, gathered for use.
    gathered: Option<B::Buffer>,
    /// Whole; sharded gradients are so only between the first use in a backward pass and the reduce-scatter.
    gradients: Option<B::Buffer>,
    /// Sum of the scattered gradients, where they are sharded.
    gradient_shard: Option<B::Buffer>,
    /// This rank's part in full precision (master weights), on a mixed-precision device; the optimizer
    /// updates it.
    master: Option<B::Buffer>,
    /// Optimizer state of this rank's part.
    state: Vec<B::Buffer>,
}

pub struct Store<B: Backend> {
    device: B,
    model: ModelSpec,
    buckets: Vec<Bucket>,
    storage: Vec<BucketStorage<B>>,
    tensor: usize,
    tensor_rank: usize,
}

/// Gets a buffer that must be present, by the order of the Program.
macro_rules! expect_buffer {
    ($option:expr) => {
        $option.expect("the Program has put this buffer in place")
    };
}

impl<B: Backend<Element = f32>> Store<B> {
    pub fn new(device: &B, program: &Program, at: Coordinates, optimizer: &Optimizer, seed: u64) -> Self {
        let mut store = Self {
            device: device.clone(),
            model: program.model.clone(),
            buckets: program.ranks[at.pipeline].class(at.tensor).buckets.clone(),
            storage: Vec::new(),
            tensor: program.mesh.tensor,
            tensor_rank: at.tensor,
        };
        for index in 0..store.buckets.len() {
            let bucket = &store.buckets[index];
            let (whole, each, residence) = (bucket.padded, bucket.shard_elements(), bucket.residence);
            let shard = program.transfer_view(Transfer::Gather, bucket).index(program.mesh.rank(at));
            let own = each * shard..each * (shard + 1);
            let range = if residence.shards_parameters() { own.clone() } else { 0..whole };
            let parameters = device.upload(&store.initial(index, range, seed));
            let master =
                device.is_mixed().then(|| device.upload_full(&store.initial(index, own.clone(), seed)));
            let sharded_gradients = residence.shards_gradients();
            store.storage.push(BucketStorage {
                own: own.clone(),
                parameters: Some(parameters),
                gathered: None,
                gradients: (!sharded_gradients).then(|| device.zeros_full(whole)),
                gradient_shard: sharded_gradients.then(|| device.zeros_full(own.len())),
                master,
                state: (0..optimizer.state_elements()).map(|_| device.zeros_full(own.len())).collect(),
            });
        }
        store
    }

    fn initial(&self, bucket: usize, range: Range<usize>, seed: u64) -> Vec<f32> {
        let bucket = &self.buckets[bucket];
        parameters::initial(&self.model, bucket, self.tensor_rank, self.tensor, range, seed)
    }

    pub fn bucket(&self, bucket: usize) -> &Bucket {
        &self.buckets[bucket]
    }

    /// The elements of a bucket that this rank updates.
    pub fn own(&self, bucket: usize) -> Range<usize> {
        self.storage[bucket].own.clone()
    }

    /// The bucket and offset of a layer's region; for a tied head's table, use layer 0.
    pub fn find(&self, layer: usize) -> Option<(usize, usize)> {
        self.buckets.iter().enumerate().find_map(|(index, bucket)| {
            bucket.layers.iter().find(|l| l.layer == layer).map(|l| (index, l.offset))
        })
    }

    /// A layer's parameters, and the buffer that its gradients are added to.
    pub fn region(&mut self, (bucket, offset): (usize, usize)) -> (Region<'_, B>, RegionMut<'_, B>) {
        let storage = &mut self.storage[bucket];
        let whole = self.buckets[bucket].padded;
        let gradients = storage.gradients.get_or_insert_with(|| self.device.zeros_full(whole));
        let sharded = self.buckets[bucket].residence.shards_parameters();
        let parameters =
            expect_buffer!(if sharded { &storage.gathered } else { &storage.parameters }.as_ref());
        (Region::new(parameters, offset), RegionMut::new(gradients, offset))
    }

    /// A layer's parameters, for the forward pass.
    pub fn parameters(&self, (bucket, offset): (usize, usize)) -> Region<'_, B> {
        let storage = &self.storage[bucket];
        let sharded = self.buckets[bucket].residence.shards_parameters();
        let parameters =
            expect_buffer!(if sharded { &storage.gathered } else { &storage.parameters }.as_ref());
        Region::new(parameters, offset)
    }

    /// Whole gradients, to be read and written in place: where they are not sharded, and while a backward pass
    /// computes them.
    pub fn gradients_mut(&mut self, bucket: usize) -> &mut B::Buffer {
        expect_buffer!(self.storage[bucket].gradients.as_mut())
    }

    pub fn take_gradients(&mut self, bucket: usize) -> B::Buffer {
        expect_buffer!(self.storage[bucket].gradients.take())
    }

    /// Stores reduced gradients.
    pub fn put_reduced(&mut self, bucket: usize, gradients: B::Buffer) {
        let own = self.own(bucket);
        let storage = &mut self.storage[bucket];
        match storage.gradient_shard.as_mut() {
            Some(shard) => {
                self.device.add(own.len(), Region::new(&gradients, own.start), RegionMut::start(shard));
            }
            None => storage.gradients = Some(gradients),
        }
    }

    /// The part of the gradients for this rank's update: a buffer, and the range in it.
    pub fn own_gradients(&mut self, bucket: usize) -> (&mut B::Buffer, Range<usize>) {
        let own = self.own(bucket);
        let storage = &mut self.storage[bucket];
        match storage.gradient_shard.as_mut() {
            Some(shard) => (shard, 0..own.len()),
            None => (expect_buffer!(storage.gradients.as_mut()), own),
        }
    }

    pub fn take_own_gradients(&mut self, bucket: usize) -> (B::Buffer, Range<usize>) {
        let own = self.own(bucket);
        let storage = &mut self.storage[bucket];
        match storage.gradient_shard.take() {
            Some(shard) => (shard, 0..own.len()),
            None => (expect_buffer!(storage.gradients.take()), own),
        }
    }

    pub fn put_own_gradients(&mut self, bucket: usize, gradients: B::Buffer) {
        let storage = &mut self.storage[bucket];
        if self.buckets[bucket].residence.shards_gradients() {
            storage.gradient_shard = Some(gradients);
        } else {
            storage.gradients = Some(gradients);
        }
    }

    /// The buffer for an all-gather, with this rank's part in place.
    pub fn take_for_gather(&mut self, bucket: usize) -> B::Buffer {
        if !self.buckets[bucket].residence.shards_parameters() {
            return expect_buffer!(self.storage[bucket].parameters.take());
        }
        let own = self.own(bucket);
        let mut whole = self.device.uninitialised(self.buckets[bucket].padded);
        let shard = expect_buffer!(self.storage[bucket].parameters.as_ref());
        self.device.copy(own.len(), Region::start(shard), RegionMut::new(&mut whole, own.start));
        whole
    }

    pub fn put_gathered(&mut self, bucket: usize, whole: B::Buffer) {
        let storage = &mut self.storage[bucket];
        if self.buckets[bucket].residence.shards_parameters() {
            storage.gathered = Some(whole);
        } else {
            storage.parameters = Some(whole);
        }
    }

    pub fn release(&mut self, bucket: usize) {
        self.storage[bucket].gathered = None;
    }

    /// Sum of squares of this rank's part of the gradients. Replicated elements are counted by one rank only:
    /// a tied table's copy by none, parameters that tensor-parallel ranks replicate by the first of them.
    pub fn sum_of_squares(&mut self) -> f64 {
        let mut sums = Vec::new();
        for bucket in (0..self.buckets.len()).filter(|b| !self.buckets[*b].copy).collect::<Vec<_>>() {
            let own = self.own(bucket);
            let counted: Vec<Range<usize>> = self.buckets[bucket]
                .layers
                .iter()
                .map(|l| {
                    let replicated = if self.tensor_rank == 0 { 0 } else { l.replicated };
                    l.offset.max(own.start)..(l.offset + l.elements - replicated).min(own.end)
                })
                .filter(|r| !r.is_empty())
                .collect();
            let device = self.device.clone();
            let (gradients, range) = self.own_gradients(bucket);
            for part in counted {
                let at = part.start - own.start + range.start;
                sums.push(device.sum_of_squares(part.len(), Region::new(gradients, at)));
            }
        }
        sums.iter().map(|sum| self.device.read(sum)).sum()
    }

    /// Updates this rank's part of a bucket and zeroes the bucket's gradients. Second moments change until
    /// update `frozen_after`.
    pub fn update(
        &mut self,
        bucket: usize,
        optimizer: &Optimizer,
        step: u64,
        learning_rate: f64,
        gradient_scale: f64,
        frozen_after: Option<u64>,
    ) {
        let own = self.own(bucket);
        let sharded = self.buckets[bucket].residence.shards_parameters();
        let device = &self.device;
        let storage = &mut self.storage[bucket];
        let parameter_offset = if sharded { 0 } else { own.start };
        let working = RegionMut::new(expect_buffer!(storage.parameters.as_mut()), parameter_offset);
        let (parameters, working) = match storage.master.as_mut() {
            Some(master) => (RegionMut::start(master), Some(working)),
            None => (working, None),
        };
        let (gradients, offset) = match storage.gradient_shard.as_mut() {
            Some(shard) => (shard, 0),
            None => (expect_buffer!(storage.gradients.as_mut()), own.start),
        };
        let gradient = Region::new(gradients, offset);
        match (optimizer, storage.state.as_mut_slice()) {
            (Optimizer::AdamW { beta1, beta2, epsilon, weight_decay }, [first, second]) => {
                let (beta1, beta2, epsilon, weight_decay) = (*beta1, *beta2, *epsilon, *weight_decay);
                let adamw = AdamW { beta1, beta2, epsilon, weight_decay, frozen_after };
                let (first, second) = (RegionMut::start(first), RegionMut::start(second));
                adamw.step(
                    device,
                    own.len(),
                    step,
                    learning_rate,
                    gradient_scale,
                    gradient,
                    parameters,
                    first,
                    second,
                    working,
                );
            }
            (Optimizer::Sgd { momentum, weight_decay }, [state]) => {
                let sgd = Sgd { momentum: *momentum, weight_decay: *weight_decay };
                sgd.step(
                    device,
                    own.len(),
                    learning_rate,
                    gradient_scale,
                    gradient,
                    parameters,
                    RegionMut::start(state),
                    working,
                );
            }
            _ => unreachable!("the state was made for this optimizer"),
        }
        let whole = device.len(gradients);
        device.fill_zero(whole, RegionMut::start(gradients));
    }

    /// The state of the elements that this rank updates.
    pub fn export(&self) -> StateShard {
        let mut shard = StateShard::default();
        for (index, bucket) in self.buckets.iter().enumerate().filter(|(_, b)| !b.copy) {
            let (own, storage) = (self.own(index), &self.storage[index]);
            let parameters = storage.master.as_ref().unwrap_or(expect_buffer!(storage.parameters.as_ref()));
            let buffers = std::iter::once(parameters).chain(&storage.state);
            let kinds: Vec<(usize, Vec<f32>)> = buffers
                .map(|buffer| {
                    let mut values = vec![0.0; self.device.len(buffer)];
                    self.device.download(Region::start(buffer), &mut values);
                    // A buffer has this rank's part or the whole bucket.
                    (if values.len() == own.len() { own.start } else { 0 }, values)
                })
                .collect();
            shard.kinds.resize_with(kinds.len(), Vec::new);
            let (tensor_rank, degree) = (self.tensor_rank, self.tensor);
            parameters::elements(&self.model, bucket, tensor_rank, degree, own, |at, element, _| {
                shard.elements.push(element);
                for (list, (start, values)) in shard.kinds.iter_mut().zip(&kinds) {
                    list.push(values[at - start]);
                }
            });
        }
        shard
    }

    /// Continues from a state, which fits the model and the optimizer.
    pub fn import(&mut self, state: &ModelState) {
        for index in 0..self.buckets.len() {
            let own = self.own(index);
            let values = |kind: usize, range: Range<usize>| {
                let mut values = vec![0.0; range.len()];
                let (bucket, start) = (&self.buckets[index], range.start);
                let (tensor_rank, degree) = (self.tensor_rank, self.tensor);
                parameters::elements(&self.model, bucket, tensor_rank, degree, range, |at, element, _| {
                    values[at - start] = state.value(kind, element);
                });
                values
            };
            let sharded = self.buckets[index].residence.shards_parameters();
            let held = if sharded { own.clone() } else { 0..self.buckets[index].padded };
            let parameters = self.device.upload(&values(0, held));
            let master = self.device.is_mixed().then(|| self.device.upload_full(&values(0, own.clone())));
            let kinds = 1..=self.storage[index].state.len();
            let kept = kinds.map(|kind| self.device.upload_full(&values(kind, own.clone()))).collect();
            let storage = &mut self.storage[index];
            (storage.parameters, storage.master, storage.state) = (Some(parameters), master, kept);
        }
    }
}
