//! The cost of single layers, independent of its stage: for cutting stages and for quick bounds.

use crate::CostModel;
use crate::curve::Price;
use crate::measured::Unpriced;
use crate::memory::body_memory;
use crate::priced::Pricer;
use autodist_program::{Body, Instruction, Program, stages};
use autodist_spec::{BlockSpec, ClassRange, Job, LayerKind, ModelSpec, ParallelStrategy, Seconds};

/// Cost of one layer for one micro-batch, including its tensor collectives.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerCost {
    pub forward: Price,
    pub backward: Price,
    /// Seconds of the host to launch the forward and the backward pass.
    pub launches: [f64; 2],
    /// Live memory after the forward pass minus before it, in bytes.
    pub forward_growth: i64,
}

/// The cost of every layer of the chain.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerCosts(Vec<LayerCost>);

impl LayerCosts {
    pub fn of(&self, layer: usize) -> &LayerCost {
        &self.0[layer]
    }

    /// The minimum of each number: a lower bound for any mixture of the two.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        let price = |a: Price, b: Price| if a.seconds <= b.seconds { a } else { b };
        let layer = |a: &LayerCost, b: &LayerCost| LayerCost {
            forward: price(a.forward, b.forward),
            backward: price(a.backward, b.backward),
            launches: [0, 1].map(|pass| a.launches[pass].min(b.launches[pass])),
            forward_growth: a.forward_growth.min(b.forward_growth),
        };
        Self(self.0.iter().zip(&other.0).map(|(a, b)| layer(a, b)).collect())
    }

    /// Forward and backward of a layer, by the slower of device and host.
    pub fn time(&self, layer: usize) -> Seconds {
        let cost = self.of(layer);
        Seconds((cost.forward + cost.backward).seconds.max(cost.launches[0] + cost.launches[1]))
    }
}

/// The cost of layers on the devices of each pipeline rank.
#[derive(Debug, Clone, PartialEq)]
pub struct RankCosts {
    /// For each combination of classes of devices.
    distinct: Vec<LayerCosts>,
    /// By pipeline rank, an index of `distinct`.
    of_rank: Vec<usize>,
    /// As in [`StepCosts`](crate::StepCosts).
    pub(crate) receives_block: bool,
}

impl RankCosts {
    pub fn of_rank(&self, pipeline_rank: usize) -> &LayerCosts {
        &self.distinct[self.of_rank[pipeline_rank]]
    }

    /// The costs that occur, and which of them each pipeline rank has.
    pub fn distinct(&self) -> (&[LayerCosts], &[usize]) {
        (&self.distinct, &self.of_rank)
    }

    /// The same costs on another number of pipeline ranks; `None` if ranks have devices of several classes.
    pub fn on_ranks(&self, ranks: usize) -> Option<Self> {
        let [only] = self.distinct.as_slice() else { return None };
        Some(Self { distinct: vec![only.clone()], of_rank: vec![0; ranks], ..*self })
    }

    /// As [`LayerCosts::least`]; `other` is for the same pipeline ranks.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        let least = self.distinct.iter().zip(&other.distinct).map(|(a, b)| a.least(b));
        Self { distinct: least.collect(), of_rank: self.of_rank.clone(), ..*self }
    }
}

impl CostModel {
    /// Costs of single layers on each pipeline rank of a strategy.
    ///
    /// # Errors
    /// The profile lacks a cost, or the strategy is not legal for the model.
    pub fn layer_costs(
        &self,
        model: &ModelSpec,
        job: &Job,
        strategy: &ParallelStrategy,
    ) -> Result<RankCosts, Unpriced> {
        let mut seen: Vec<ClassRange> = Vec::new();
        let mut costs =
            RankCosts { distinct: Vec::new(), of_rank: Vec::new(), receives_block: self.receives_block };
        for classes in self.classes_of(strategy) {
            let index = match seen.iter().position(|other| *other == classes) {
                Some(index) => index,
                None => {
                    seen.push(classes);
                    costs.distinct.push(self.costs_on(model, job, strategy, classes)?);
                    seen.len() - 1
                }
            };
            costs.of_rank.push(index);
        }
        Ok(costs)
    }

    /// Costs of single layers, taken from the program of a model with one of each different block, so that only
    /// the compiler defines the operations of a layer.
    fn costs_on(
        &self,
        model: &ModelSpec,
        job: &Job,
        split: &ParallelStrategy,
        classes: ClassRange,
    ) -> Result<LayerCosts, Unpriced> {
        let distinct = job.trainable.distinct_blocks(model);
        let blocks: Vec<BlockSpec> = distinct.iter().map(|layer| model.block(*layer)).collect();
        let small = model.clone().with_blocks(&blocks);
        // Two replicas: a single rank has copies in place of its collectives, which other splits do without, so that its
        // costs would be no lower bound of theirs.
        let replicas = split.expert.saturating_mul(2);
        let alone = Job {
            global_batch: split.micro_batch.saturating_mul(replicas),
            trainable: job.trainable.of_blocks(&distinct),
            ..job.clone()
        };
        let strategy = ParallelStrategy {
            tensor: split.tensor,
            context: split.context,
            expert: split.expert,
            sequence_parallel: split.sequence_parallel,
            recompute: split.recompute,
            // Experts are distributed over data-parallel ranks.
            ..ParallelStrategy::data_parallel(replicas, split.micro_batch)
        };
        let whole = stages::from_ends(&small, &[0, small.chain_len()], split.recompute);
        let program = Program::compile(&small, &alone, strategy.devices() as u32, &strategy, &whole)
            .map_err(|illegal| Unpriced {
                what: illegal.reason,
                hint: "choose a legal split".to_owned(),
                doubted: false,
            })?;
        let mut pricer = Pricer::on(self, &program, vec![classes]);
        let rank = &program.ranks[0];
        let [forward, backward, ..] = rank.bodies.as_slice() else { return Ok(LayerCosts::default()) };
        let mut cost = |layer: usize| -> Result<LayerCost, Unpriced> {
            let pass = only(forward, layer);
            let (forward, launch_forward) = time(&mut pricer, &pass)?;
            let (backward, launch_backward) = time(&mut pricer, &only(backward, layer))?;
            Ok(LayerCost {
                forward,
                backward,
                launches: [launch_forward, launch_backward],
                forward_growth: body_memory(&mut pricer, rank, &pass)?.net_activations(),
            })
        };
        let mut costs: Vec<LayerCost> = Vec::with_capacity(model.chain_len());
        for (layer, first) in job.trainable.alike(model).into_iter().enumerate() {
            let known = costs.get(first).copied();
            let small_layer = match model.kind(layer) {
                LayerKind::Embedding => 0,
                LayerKind::Block => 1 + distinct.iter().filter(|other| **other < first).count(),
                LayerKind::Head => distinct.len() + 1,
            };
            costs.push(known.map_or_else(|| cost(small_layer), Ok)?);
        }
        Ok(LayerCosts(costs))
    }
}

/// The part of a body that belongs to one layer.
fn only(body: &Body, layer: usize) -> Body {
    let mine = |instruction: &&Instruction| instruction.layer() == Some(layer);
    Body { kind: body.kind, instructions: body.instructions.iter().filter(mine).copied().collect() }
}

/// Of the device and, in seconds, of the host.
fn time(pricer: &mut Pricer, body: &Body) -> Result<(Price, f64), Unpriced> {
    let (mut total, mut launch) = (Price::ZERO, 0.0);
    for instruction in &body.instructions {
        total = total
            + match *instruction {
                Instruction::Segment { layer, segment, pass, recompute } => {
                    let price = pricer.segment((0, layer), segment, pass, recompute)?;
                    launch += price.launch_s.0;
                    price.time
                }
                // If links differ, its links depend on the placement, which is not decided yet.
                Instruction::Tensor { .. } if pricer.places_matter() => Price::ZERO,
                Instruction::Tensor { layer, segment, collective, elements, .. } => {
                    let bytes = pricer.program().tensor_bytes(segment, collective, elements);
                    pricer.tensor((0, layer), collective.kind(), bytes)?
                }
                Instruction::Context { layer, pass, elements } => {
                    pricer.context((0, layer), pass, elements)?
                }
                Instruction::Experts { elements, .. } => pricer.experts(0, elements)?,
                _ => Price::ZERO,
            };
    }
    Ok((total, launch))
}
