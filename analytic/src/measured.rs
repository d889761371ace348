//! Plans priced from layer times measured by others: the input has a list of layers for each device,
//! micro-batch and tensor-parallel degree, link bandwidths by message size, and plans on one or several kinds
//! of devices, with their measurements.

use crate::memory::{BUCKET, Reserve, kept};
use crate::trainer::AttentionKind;
use autodist_spec::error::{in_range, not_negative, positive, rate};
use autodist_spec::{Check, InputError, ModelSpec, Segment, Shard, parse};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rate of layers inside a step relative to layers timed alone: caches are cold, clocks lower. This is the
/// `gemm_efficiency` of a fit to catalog/published/training_runs.csv, which does not contain these plans.
const ALONE: f64 = 0.935;

/// The file: measured layers, and the plans to price.
#[derive(Debug, Clone, Deserialize)]
pub struct MeasuredPlans {
    pub source: String,
    pub models: BTreeMap<String, Model>,
    pub profiles: Vec<Layers>,
    pub links: Vec<LinkRates>,
    pub plans: Vec<MeasuredPlan>,
}

/// Shapes for the count of activations, which the timings do not contain.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Model {
    /// Width of the residual stream.
    pub hidden: u32,
    pub heads: u32,
    pub seq_len: u32,
    pub vocab: u32,
}

/// All layers of a model, in order, as one device of a tensor-parallel group runs them.
#[derive(Debug, Clone, Deserialize)]
pub struct Layers {
    pub model: String,
    pub device: String,
    pub micro_batch: u32,
    pub tensor: u32,
    pub layers: Vec<Layer>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Layer {
    pub forward_s: f64,
    pub backward_s: f64,
    pub update_s: f64,
    /// Elements on one rank.
    pub parameters: f64,
    /// Elements of the result for one sequence.
    pub result: f64,
    /// Number of consecutive layers of this kind.
    #[serde(default = "once")]
    pub times: usize,
}

fn once() -> usize {
    1
}

/// Bandwidth from the devices of one node together to those of another.
#[derive(Debug, Clone, Deserialize)]
pub struct LinkRates {
    pub from: Place,
    pub to: Place,
    /// Pairs of message size in bytes and bytes per second, ascending.
    pub rates: Vec<(f64, f64)>,
}

/// A tensor-parallel group: a number of devices of one kind on one node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Place {
    pub device: String,
    pub tensor: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct MeasuredPlan {
    pub id: String,
    pub model: String,
    pub micro_batch: u32,
    pub global_batch: u32,
    pub stages: Vec<PlanStage>,
    pub measured_s: Option<f64>,
    pub measured_memory_bytes: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PlanStage {
    /// Layer counts; each must be in the list.
    pub layers: Vec<usize>,
    pub replicas: Vec<Place>,
}

/// Time and memory of one plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlanEstimate {
    pub id: String,
    pub predicted_s: f64,
    pub measured_s: Option<f64>,
    pub error: Option<f64>,
    /// Memory of the fullest device.
    pub predicted_memory_bytes: f64,
    pub measured_memory_bytes: Option<f64>,
    pub memory_error: Option<f64>,
}

/// Upper limit of the layers of all profiles together, repetitions included.
const MOST_LAYERS: u64 = 1_000_000;

impl Check for MeasuredPlans {
    const WHAT: &'static str = "measured plans";

    fn versioned() -> bool {
        false
    }

    fn check(&self) -> Result<(), InputError> {
        let count = |field: String, value: u32| in_range(&field, u64::from(value), 1, 1 << 20);
        for (name, model) in &self.models {
            let at = |field: &str| format!("models.{name}.{field}");
            count(at("hidden"), model.hidden)?;
            count(at("heads"), model.heads)?;
            in_range(&at("seq_len"), u64::from(model.seq_len), 1, 1 << 24)?;
            in_range(&at("vocab"), u64::from(model.vocab), 1, 1 << 26)?;
        }
        let mut all = 0;
        for (index, profile) in self.profiles.iter().enumerate() {
            let at = |field: &str| format!("profiles[{index}].{field}");
            count(at("micro_batch"), profile.micro_batch)?;
            count(at("tensor"), profile.tensor)?;
            in_range(&at("layers"), profile.layers.len() as u64, 1, MOST_LAYERS)?;
            for (number, layer) in profile.layers.iter().enumerate() {
                let at = |field: &str| at(&format!("layers[{number}].{field}"));
                in_range(&at("times"), layer.times as u64, 1, MOST_LAYERS)?;
                all += layer.times as u64;
                in_range("layers of all profiles", all, 1, MOST_LAYERS)?;
                for (field, value) in [
                    ("forward_s", layer.forward_s),
                    ("backward_s", layer.backward_s),
                    ("update_s", layer.update_s),
                    ("parameters", layer.parameters),
                    ("result", layer.result),
                ] {
                    not_negative(&at(field), value)?;
                }
            }
        }
        for (index, link) in self.links.iter().enumerate() {
            let at = |field: &str| format!("links[{index}].{field}");
            in_range(&at("rates"), link.rates.len() as u64, 1, 1 << 20)?;
            for (point, (bytes, of)) in link.rates.iter().enumerate() {
                positive(&at(&format!("rates[{point}][0]")), *bytes)?;
                rate(&at(&format!("rates[{point}][1]")), *of)?;
            }
            if let Some(at_point) = link.rates.windows(2).position(|pair| pair[0].0 >= pair[1].0) {
                let field = at(&format!("rates[{}][0]", at_point + 1));
                let error = InputError::new(
                    field,
                    link.rates[at_point + 1].0,
                    "message sizes must be in ascending order",
                );
                return Err(error.hint("list each size once, the smallest first"));
            }
        }
        for (index, plan) in self.plans.iter().enumerate() {
            let at = |field: &str| format!("plans[{index}].{field}");
            count(at("micro_batch"), plan.micro_batch)?;
            count(at("global_batch"), plan.global_batch)?;
            for (field, measured) in
                [("measured_s", plan.measured_s), ("measured_memory_bytes", plan.measured_memory_bytes)]
            {
                positive(&at(field), measured.unwrap_or(1.0))?;
            }
            for (number, stage) in plan.stages.iter().enumerate() {
                in_range(
                    &at(&format!("stages[{number}].layers")),
                    stage.layers.len() as u64,
                    1,
                    MOST_LAYERS,
                )?;
                for place in &stage.replicas {
                    count(at(&format!("stages[{number}].replicas[].tensor")), place.tensor)?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes per element in communication: 16 bits.
const SENT: f64 = 2.0;

impl MeasuredPlans {
    /// Reads the JSON form of docs/files.md.
    ///
    /// # Errors
    /// The text has another form, or a number is out of range; the error names the field.
    pub fn read(file: &str, text: &[u8]) -> Result<Self, InputError> {
        let mut plans: Self = parse::json(file, text)?;
        for profile in &mut plans.profiles {
            let repeated = profile.layers.iter().flat_map(|layer| std::iter::repeat_n(*layer, layer.times));
            profile.layers = repeated.collect();
        }
        Ok(plans)
    }

    /// Prices every plan, or returns which input is missing for it.
    pub fn estimate(&self) -> Vec<Result<PlanEstimate, String>> {
        self.plans
            .iter()
            .map(|plan| self.one(plan).map_err(|reason| format!("{}: {reason}", plan.id)))
            .collect()
    }

    fn profile(&self, plan: &MeasuredPlan, place: &Place) -> Result<&Layers, String> {
        let same = |p: &&Layers| {
            p.model == plan.model
                && p.device == place.device
                && p.micro_batch == plan.micro_batch
                && p.tensor == place.tensor
        };
        self.profiles.iter().find(same).ok_or_else(|| {
            format!(
                "there is no timing of {} on {} with tensor parallelism {} and micro-batches of {}",
                plan.model, place.device, place.tensor, plan.micro_batch
            )
        })
    }

    /// The sum over a stage's layers, for its slowest or largest replica.
    fn worst(&self, plan: &MeasuredPlan, stage: &PlanStage, of: fn(&Layer) -> f64) -> Result<f64, String> {
        let mut worst: f64 = 0.0;
        for place in &stage.replicas {
            let layers = &self.profile(plan, place)?.layers;
            let mut sum = 0.0;
            for &number in &stage.layers {
                sum += of(layers.get(number).ok_or_else(|| format!("there is no layer {number}"))?);
            }
            worst = worst.max(sum);
        }
        Ok(worst)
    }

    /// Seconds to send `bytes` in total from one node to the other, over the link between them in either
    /// direction.
    fn send(&self, from: &Place, to: &Place, bytes: f64) -> Result<f64, String> {
        let joins = |a: &Place, b: &Place| self.links.iter().find(|link| link.from == *a && link.to == *b);
        let link = joins(from, to).or_else(|| joins(to, from)).ok_or_else(|| {
            format!(
                "there is no measurement of the link from {} x {} to {} x {}",
                from.tensor, from.device, to.tensor, to.device
            )
        })?;
        Ok(bytes / between(&link.rates, bytes))
    }

    fn one(&self, plan: &MeasuredPlan) -> Result<PlanEstimate, String> {
        let replicas = plan.stages.first().map_or(0, |stage| stage.replicas.len());
        if replicas == 0 || plan.stages.iter().any(|stage| stage.replicas.len() != replicas) {
            return Err("all stages must have the same number of replicas, at least one".to_owned());
        }
        let micro_batches = f64::from(plan.global_batch) / (replicas as f64 * f64::from(plan.micro_batch));
        if micro_batches < 1.0 {
            return Err(format!(
                "{replicas} replicas with micro-batches of {} exceed the batch of {}",
                plan.micro_batch, plan.global_batch
            ));
        }
        let mut work = Vec::new();
        for stage in &plan.stages {
            work.push(self.worst(plan, stage, |layer| layer.forward_s + layer.backward_s)? / ALONE);
        }
        // A stage of 1F1B receives and sends one activation and one gradient per micro-batch at each border;
        // DeepSpeed splits them, so that each tensor-parallel rank sends its share.
        let mut borders = Vec::new();
        for pair in plan.stages.windows(2) {
            let mut slowest: f64 = 0.0;
            for (from, to) in pair[0].replicas.iter().zip(&pair[1].replicas) {
                let last = pair[0].layers.last().ok_or("a stage without layers")?;
                let result = self.profile(plan, from)?.layers.get(*last).map_or(0.0, |layer| layer.result);
                let bytes = SENT * result * f64::from(plan.micro_batch);
                slowest = slowest.max(self.send(from, to, bytes)?);
            }
            borders.push(slowest);
        }
        let at = |index: usize| borders.get(index).copied().unwrap_or(0.0);
        let busy = |stage: usize| {
            let before = stage.checked_sub(1).map_or(0.0, at);
            work[stage] + 2.0 * (before + at(stage))
        };
        let pace = (0..work.len()).map(busy).fold(0.0, f64::max);
        let fill: f64 = work.iter().sum::<f64>() + 2.0 * borders.iter().sum::<f64>();
        let (mut reduce, mut update): (f64, f64) = (0.0, 0.0);
        for stage in &plan.stages {
            reduce = reduce.max(self.reduce(plan, stage)?);
            update = update.max(self.worst(plan, stage, |layer| layer.update_s)?);
        }
        let predicted_s = (micro_batches - 1.0) * pace + fill + reduce + update;
        let predicted_memory_bytes = self.memory(plan, micro_batches)?;
        if !(1e-9..=1e15).contains(&predicted_s) || predicted_memory_bytes > 1e18 {
            return Err(format!(
                "{predicted_s:.1e} s and {predicted_memory_bytes:.1e} bytes are implausible: check the timings and sizes of its layers"
            ));
        }
        Ok(PlanEstimate {
            id: plan.id.clone(),
            predicted_s,
            measured_s: plan.measured_s,
            error: plan.measured_s.map(|measured| predicted_s / measured - 1.0),
            predicted_memory_bytes,
            measured_memory_bytes: plan.measured_memory_bytes,
            memory_error: plan.measured_memory_bytes.map(|measured| predicted_memory_bytes / measured - 1.0),
        })
    }

    /// A ring all-reduce over the replicas of a stage, at the bandwidth of its slowest link.
    fn reduce(&self, plan: &MeasuredPlan, stage: &PlanStage) -> Result<f64, String> {
        let ranks = stage.replicas.len();
        if ranks < 2 {
            return Ok(0.0);
        }
        let parameters = self.worst(plan, stage, |layer| layer.parameters)?;
        let mut slowest: f64 = 0.0;
        for (index, from) in stage.replicas.iter().enumerate() {
            let to = &stage.replicas[(index + 1) % ranks];
            let chunk = SENT * parameters * f64::from(from.tensor) / ranks as f64;
            slowest = slowest.max(self.send(from, to, chunk)?);
        }
        Ok(2.0 * (ranks as f64 - 1.0) * slowest)
    }

    /// Memory under DeepSpeed, which trained these plans: 20 bytes per parameter, its buckets, and
    /// activations without recomputation.
    fn memory(&self, plan: &MeasuredPlan, micro_batches: f64) -> Result<f64, String> {
        let model =
            self.models.get(&plan.model).ok_or_else(|| format!("there is no model {}", plan.model))?;
        let gpt = ModelSpec::gpt(1, model.hidden, model.heads, model.vocab, model.seq_len);
        let whole =
            Shard::whole(u64::from(model.seq_len) * u64::from(plan.micro_batch), model.seq_len.into());
        let stages = plan.stages.len();
        let mut fullest: f64 = 0.0;
        for (index, stage) in plan.stages.iter().enumerate() {
            for place in &stage.replicas {
                let layers = &self.profile(plan, place)?.layers;
                let (first, last) = (0, layers.len() - 1);
                let parameters: f64 =
                    stage.layers.iter().filter_map(|&number| layers.get(number)).map(|l| l.parameters).sum();
                let blocks = stage.layers.iter().filter(|&&number| number != first && number != last).count();
                let tensor = f64::from(place.tensor);
                let shard = Shard { tensor: place.tensor, ..whole };
                let kernels = [Segment::Attention, Segment::Mlp]
                    .map(|segment| gpt.kernels(&gpt.block(1), segment, &shard));
                let rows = whole.tokens * f64::from(model.hidden);
                let block = kept(2.0, false, &kernels, AttentionKind::Unfused, rows).all();
                let flight = ((stages - index) as f64).min(micro_batches);
                let logits = if stage.layers.contains(&last) {
                    6.0 * whole.tokens * f64::from(model.vocab) / tensor
                } else {
                    0.0
                };
                let held = 20.0 * parameters
                    + flight * blocks as f64 * block
                    + logits
                    + 4.0 * BUCKET.min(parameters);
                let reserve = Reserve::SHIPPED;
                fullest = fullest.max((1.0 + reserve.fragmentation) * held + reserve.context);
            }
        }
        Ok(fullest)
    }
}

/// The bandwidth at a message size: interpolated between measured sizes in logarithms, constant beyond them.
fn between(rates: &[(f64, f64)], bytes: f64) -> f64 {
    match rates.iter().position(|(size, _)| *size >= bytes) {
        Some(0) => rates[0].1,
        None => rates.last().map_or(f64::NAN, |last| last.1),
        Some(at) => {
            let ((low, from), (high, to)) = (rates[at - 1], rates[at]);
            from + (to - from) * (bytes / low).ln() / (high / low).ln()
        }
    }
}
