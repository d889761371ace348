//! Parameters, kernels and FLOPs of a model of which not all is trained.

use super::{LayerTraining, Lora, LoraTarget, Trainable};
use crate::block::BlockSpec;
use crate::kernels::{Linear, Shard};
use crate::model::{Init, LayerKind, ModelSpec, Parameter, TensorSplit};
use crate::profile::Segment;
use crate::units::Flops;

/// An adapter of a linear layer on one rank: `rows` tokens of width `into` to the rank and from there to `out`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adapter {
    /// Adapters of equal shape, side by side: of experts.
    pub count: f64,
    pub rows: f64,
    pub into: f64,
    pub rank: f64,
    pub out: f64,
}

impl Lora {
    /// The two matrices beside a weight. Tensor parallelism splits the one that has the split side of the weight.
    /// Experts have an adapter each, below each other.
    fn beside(&self, weight: &Parameter, experts: u64) -> [Parameter; 2] {
        let copies = if weight.routed { experts } else { 1 };
        let (rank, all) = (u64::from(self.rank), copies * u64::from(self.rank));
        let of = |name, rows, columns, split| {
            let matrix = Parameter::matrix(name, rows, columns, split, Init::Normal);
            Parameter { routed: weight.routed, ..matrix }
        };
        let (into, out) = ("lora.into.weight", "lora.out.weight");
        match weight.split {
            // What is below each other of replicated matrices is beside each other: only their sizes matter.
            TensorSplit::Rows => [
                of(into, weight.columns, all, TensorSplit::Replicated),
                of(out, weight.rows, rank, TensorSplit::Rows),
            ],
            TensorSplit::Columns => [
                of(into, rank, weight.columns, TensorSplit::Columns),
                of(out, weight.rows, all, TensorSplit::Replicated),
            ],
            TensorSplit::Replicated => [
                of(into, rank, weight.columns, TensorSplit::Replicated),
                of(out, weight.rows, rank, TensorSplit::Replicated),
            ],
        }
    }
}

impl LayerTraining {
    fn is_adapted(&self, weight: &Parameter) -> bool {
        LoraTarget::LAYERS.into_iter().any(|target| self.adapts(target) && target.is(weight.name))
    }

    /// The adapters' matrices of a layer of a model.
    pub fn adapters(&self, model: &ModelSpec, layer: usize) -> Vec<Parameter> {
        match self.adapters {
            Some(lora) if model.kind(layer) == LayerKind::Block => {
                let experts = model.block(layer).experts.map_or(1, |experts| experts.count.into());
                let weights = model.parameters(layer);
                weights
                    .iter()
                    .filter(|weight| self.is_adapted(weight))
                    .flat_map(|weight| lora.beside(weight, experts))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a frozen parameter is held in fewer bits: matrices of blocks.
    pub fn quantises(&self, parameter: &Parameter) -> bool {
        !self.weights && !self.bits.is_whole() && parameter.columns > 1
    }

    /// The adapters of a block's segment on one rank.
    pub fn adapter_kernels(
        &self,
        model: &ModelSpec,
        block: &BlockSpec,
        segment: Segment,
        shard: &Shard,
    ) -> Vec<Adapter> {
        let Some(lora) = self.adapters else { return Vec::new() };
        let rank = f64::from(lora.rank);
        let of = |weight: &Parameter| {
            let in_attention = weight.name.starts_with("attention.");
            if in_attention != (segment == Segment::Attention) || !self.is_adapted(weight) {
                return None;
            }
            let (out, into) = weight.local_shape(0, shard.tensor);
            let (out, into) = (out as f64, into as f64);
            Some(match block.experts.filter(|_| weight.routed) {
                None => Adapter { count: 1.0, rows: shard.tokens, into, rank, out },
                Some(experts) => {
                    let held = f64::from(experts.count / shard.expert.max(1));
                    let rows = shard.tokens * f64::from(experts.active) / held;
                    // The experts' matrices are below or beside each other.
                    let each = f64::from(experts.count);
                    let (into, out) = match weight.split {
                        TensorSplit::Rows => (into, out / each),
                        _ => (into / each, out),
                    };
                    Adapter { count: held, rows, into, rank, out }
                }
            })
        };
        match segment {
            Segment::Attention | Segment::Mlp => block.parameters(model).iter().filter_map(of).collect(),
            _ => Vec::new(),
        }
    }
}

impl Trainable {
    /// Parameters that are trained.
    pub fn trained_parameters(&self, model: &ModelSpec) -> u64 {
        let of = |(layer, training): (usize, LayerTraining)| {
            let own = if training.weights { model.layer_parameters(layer) } else { 0 };
            training.adapters(model, layer).iter().map(Parameter::elements).fold(own, u64::saturating_add)
        };
        self.layers(model).into_iter().enumerate().map(of).fold(0, u64::saturating_add)
    }

    /// FLOPs of a training step without recomputation: those of the forward pass, as many for the gradients of
    /// activations where there is a backward pass, and as many for those of trained weights.
    pub fn step_flops(&self, model: &ModelSpec, tokens: u64, seq_len: u64) -> Flops {
        if self.is_all() {
            return model.step_flops(tokens, seq_len);
        }
        let shard = Shard::whole(tokens, seq_len);
        let of = |(layer, training): (usize, LayerTraining)| {
            let block = model.block(layer);
            let segments: &[Segment] = match model.kind(layer) {
                LayerKind::Embedding => &[],
                LayerKind::Block => &[Segment::Attention, Segment::Mlp],
                LayerKind::Head => &[Segment::Logits],
            };
            let of_segment = |segment: &Segment| {
                let kernels = model.kernels(&block, *segment, &shard);
                let core = kernels.core.map_or(0.0, |core| core.flops());
                let linear: f64 = kernels.linear.iter().map(Linear::flops).sum();
                let passes =
                    1.0 + f64::from(u8::from(training.backward)) + f64::from(u8::from(training.weights));
                let attention = if training.backward { 3.0 } else { 1.0 };
                let adapters: f64 = training
                    .adapter_kernels(model, &block, *segment, &shard)
                    .iter()
                    .map(|one| 6.0 * one.count * one.rows * one.rank * (one.into + one.out))
                    .sum();
                passes * linear + attention * core + adapters
            };
            segments.iter().map(of_segment).sum::<f64>()
        };
        Flops(self.layers(model).into_iter().enumerate().map(of).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BaseBits, FrozenPart, LoraTargets};
    use super::*;
    use crate::catalog;

    fn lora(rank: u32, targets: &[LoraTarget]) -> Trainable {
        let targets = targets.iter().copied().collect::<LoraTargets>();
        Trainable { lora: Some(Lora { rank, targets }), ..Trainable::default() }
    }

    #[test]
    fn adapters_have_the_published_numbers_of_parameters() {
        // PEFT prints these for r = 16 on q_proj and v_proj, and for r = 8 and 16 on all linear layers.
        for (name, trainable, expected) in [
            ("llama3-8b", lora(16, &[LoraTarget::Q, LoraTarget::V]), 6_815_744),
            ("llama3-8b", lora(16, &[LoraTarget::AllLinear]), 41_943_040),
            ("llama2-7b", lora(8, &[LoraTarget::Q, LoraTarget::V]), 4_194_304),
            ("llama2-7b", lora(64, &[LoraTarget::AllLinear]), 159_907_840),
        ] {
            let model = catalog::model(name).unwrap();
            trainable.check_model(&model).unwrap();
            assert_eq!(trainable.trained_parameters(&model), expected, "{name} {}", trainable.label());
        }
    }

    #[test]
    fn experts_have_an_adapter_each_and_ranks_hold_their_part() {
        let model = catalog::model("mixtral-8x7b").unwrap();
        let training = lora(8, &[LoraTarget::Gate, LoraTarget::Down]).layers(&model)[1];
        let all = training.adapters(&model, 1);
        let elements: u64 = all.iter().map(Parameter::elements).sum();
        assert_eq!(elements, 2 * 8 * 8 * (4096 + 14_336));
        let held: u64 = all.iter().map(|one| one.clone().distributed(8).elements()).sum();
        assert_eq!(8 * held, elements);
    }

    #[test]
    fn frozen_first_layers_have_no_backward_pass() {
        let model = catalog::model("llama3-8b").unwrap();
        let first = |freeze: Vec<FrozenPart>| Trainable { freeze, ..Trainable::default() };
        let half = first(vec![FrozenPart::Embedding, FrozenPart::Blocks { first: 0, last: 15 }]);
        let layers = half.layers(&model);
        assert!(!layers[16].backward && layers[17].backward && layers[17].weights);
        assert_eq!(half.distinct_blocks(&model), [1, 17]);
        let small = half.of_blocks(&[1, 17]);
        assert_eq!(small.freeze, [FrozenPart::Embedding, FrozenPart::Blocks { first: 0, last: 0 }]);
        // Without the embedding among them, gradients pass through the frozen blocks.
        let blocks = first(vec![FrozenPart::Blocks { first: 0, last: 15 }]);
        assert!(blocks.layers(&model)[1].backward && !blocks.layers(&model)[1].weights);
        let flops = |one: &Trainable| one.step_flops(&model, 4096, 4096).0;
        assert!(flops(&half) < flops(&blocks) && flops(&blocks) < flops(&Trainable::default()));
        // Two of three passes, and little for the adapters.
        let low = lora(16, &[LoraTarget::Q, LoraTarget::V]);
        let ratio = flops(&low) / flops(&Trainable::default());
        assert!((0.66..0.72).contains(&ratio), "{ratio}");
    }

    #[test]
    fn what_contradicts_is_refused_by_name() {
        let model = catalog::model("llama3-8b").unwrap();
        let refused = |one: &Trainable| one.check().and_then(|()| one.check_model(&model)).unwrap_err().field;
        let freeze = |text: &str| Trainable { freeze: vec![text.parse().unwrap()], ..Trainable::default() };
        let only_bits = Trainable { base_bits: BaseBits::Four, ..Trainable::default() };
        assert_eq!(refused(&only_bits), "trainable.base_bits");
        assert_eq!(refused(&lora(0, &[LoraTarget::Q])), "trainable.lora.rank");
        assert_eq!(refused(&freeze("blocks:5-3")), "trainable.freeze[0]");
        assert_eq!(refused(&freeze("blocks:0-32")), "trainable.freeze[0]");
        let none =
            Trainable { freeze: vec![FrozenPart::AllButHead, FrozenPart::Head], ..Trainable::default() };
        assert_eq!(refused(&none), "trainable.freeze");
        let gpt = catalog::model("gpt2").unwrap();
        assert_eq!(
            lora(8, &[LoraTarget::Gate]).check_model(&gpt).unwrap_err().field,
            "trainable.lora.targets"
        );
        assert_eq!(freeze("embedding").check_model(&gpt).unwrap_err().field, "trainable.freeze");
        lora(8, &[LoraTarget::AllLinear]).check_model(&gpt).unwrap();
    }

    #[test]
    fn documents_say_it_as_flags_do() {
        let text = r#"{"lora":{"rank":16,"targets":["q","v"]},"freeze":["blocks:0-3"],"base_bits":4.0}"#;
        let read: Trainable = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(
            read.label(),
            "LoRA rank 16 on q, v, not in blocks:0-3, base weights in NF4 (4.127 bits a weight, double quantisation)"
        );
        assert!((read.base_bits.bytes(2.0) * 8.0 - 4.127).abs() < 1e-3);
        for wrong in
            [r#"{"freeze":["block:1"]}"#, r#"{"base_bits":3}"#, r#"{"lora":{"rank":8,"targets":["w"]}}"#]
        {
            assert!(serde_json::from_str::<Trainable>(wrong).is_err(), "{wrong}");
        }
    }
}
