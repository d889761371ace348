//! What of a model is trained: all of it, a part of it, or low-rank adapters of frozen weights.

mod format;
mod part;
mod targets;
mod work;

pub use format::BaseBits;
pub use part::FrozenPart;
pub use targets::{LoraTarget, LoraTargets};
pub use work::Adapter;

use crate::error::{InputError, in_range};
use crate::model::{LayerKind, ModelSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What of a model is trained. Without any field all of it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Trainable {
    /// Low-rank adapters beside frozen weights: all weights of the model are then frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Parts whose weights are frozen: `embedding`, `head`, `blocks:0-15` (blocks count from 0), `all-but-head`.
    /// With LoRA, blocks that have no adapters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<FrozenPart>,
    /// Bits of a frozen weight of a block's linear layers: 16 for the training precision, 8, or for NF4 4
    /// (with double quantisation) or 4.5 (without).
    #[serde(skip_serializing_if = "BaseBits::is_whole")]
    pub base_bits: BaseBits,
}

/// Low-rank adapters: next to a frozen weight `[out, in]` the trained matrices `[rank, in]` and `[out, rank]`
/// (Hu et al., 2106.09685).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub rank: u32,
    /// The linear layers of a block that have adapters: q, k, v, o, gate, up, down, or all-linear.
    #[serde(default)]
    pub targets: LoraTargets,
}

/// What of one layer of the chain is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerTraining {
    /// Whether its own weights are trained.
    pub weights: bool,
    pub adapters: Option<Lora>,
    /// Whether it has a backward pass: it or a layer before it is trained.
    pub backward: bool,
    /// Bits of its frozen weights.
    pub bits: BaseBits,
}

impl LayerTraining {
    /// All weights are trained.
    pub const WHOLE: Self = Self { weights: true, adapters: None, backward: true, bits: BaseBits::Whole };

    /// Whether a linear layer keeps its input for the gradient of its weights or of an adapter.
    pub fn keeps_input_of(&self, targets: &[LoraTarget]) -> bool {
        self.weights || targets.iter().any(|target| self.adapts(*target))
    }

    /// Whether a linear layer has an adapter.
    pub fn adapts(&self, target: LoraTarget) -> bool {
        self.adapters.is_some_and(|lora| lora.targets.contains(target))
    }

    /// By layer of the chain: the first layer that is like it and is trained as it is.
    pub fn alike(layers: &[Self], model: &ModelSpec) -> Vec<usize> {
        let shapes = model.alike();
        if layers.iter().all(|layer| *layer == Self::WHOLE) {
            return shapes;
        }
        let mut known: Vec<(usize, Self, usize)> = Vec::new();
        let first = |layer: usize| {
            let (shape, training) = (shapes[layer], layers[layer]);
            if let Some(one) = known.iter().find(|one| (one.0, one.1) == (shape, training)) {
                return one.2;
            }
            known.push((shape, training, layer));
            layer
        };
        (0..shapes.len()).map(first).collect()
    }

    /// Whether anything of the layer is trained.
    fn trains(&self) -> bool {
        self.weights || self.adapters.is_some()
    }
}

impl Default for LayerTraining {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Trainable {
    /// Whether the whole model is trained.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// By layer of the model's chain.
    pub fn layers(&self, model: &ModelSpec) -> Vec<LayerTraining> {
        if self.is_all() {
            return vec![LayerTraining::WHOLE; model.chain_len()];
        }
        let mut backward = false;
        let of = |layer| {
            let kind = model.kind(layer);
            let listed = self.freeze.iter().any(|part| part.holds(kind, layer));
            let block = kind == LayerKind::Block;
            let mut own = LayerTraining {
                weights: self.lora.is_none() && !listed,
                adapters: self.lora.filter(|_| block && !listed),
                backward: false,
                bits: if block { self.base_bits } else { BaseBits::Whole },
            };
            backward |= own.trains();
            own.backward = backward;
            own
        };
        (0..model.chain_len()).map(of).collect()
    }

    /// The most frequent training of the model's blocks: that of the last one.
    pub fn usual(&self, model: &ModelSpec) -> LayerTraining {
        self.layers(model).into_iter().rev().nth(1).unwrap_or_default()
    }

    /// By layer of the chain: the first layer that is like it and is trained as it is.
    pub fn alike(&self, model: &ModelSpec) -> Vec<usize> {
        LayerTraining::alike(&self.layers(model), model)
    }

    /// The different blocks by shape and training: the first layer of each.
    pub fn distinct_blocks(&self, model: &ModelSpec) -> Vec<usize> {
        let alike = self.alike(model);
        let first = |layer: &usize| alike[*layer] == *layer && model.kind(*layer) == LayerKind::Block;
        (0..alike.len()).filter(first).collect()
    }

    /// For a model that has only the blocks of these layers, in their order.
    #[must_use]
    pub fn of_blocks(&self, layers: &[usize]) -> Self {
        let frozen = |(_, layer): &(usize, &usize)| {
            self.freeze.iter().any(|part| part.holds(LayerKind::Block, **layer))
        };
        let blocks = layers.iter().enumerate().filter(frozen).map(|(index, _)| {
            let index = index as u32;
            FrozenPart::Blocks { first: index, last: index }
        });
        let ends = self.freeze.iter().flat_map(|part| part.ends()).copied();
        Self { freeze: ends.chain(blocks).collect(), ..self.clone() }
    }

    /// # Errors
    /// Fields contradict each other.
    pub fn check(&self) -> Result<(), InputError> {
        if let Some(lora) = &self.lora {
            in_range("trainable.lora.rank", u64::from(lora.rank), 1, 1 << 16)?;
            if lora.targets.is_empty() {
                return Err(InputError::new("trainable.lora.targets", "[]", "must not be empty")
                    .hint("list the linear layers that have adapters, e.g. q and v, or all-linear"));
            }
        }
        if !self.base_bits.is_whole() && self.lora.is_none() {
            let problem = "needs LoRA: quantised weights are not trained themselves";
            return Err(InputError::new("trainable.base_bits", self.base_bits, problem)
                .hint("give `--lora-rank`, e.g. 16, or leave `--base-bits` out"));
        }
        for (index, part) in self.freeze.iter().enumerate() {
            let field = format!("trainable.freeze[{index}]");
            if let FrozenPart::Blocks { first, last } = part
                && first > last
            {
                return Err(InputError::new(field, part, "ends before it begins")
                    .hint("give the first and the last block, counted from 0, e.g. blocks:0-15"));
            }
            if self.lora.is_some() && !matches!(part, FrozenPart::Blocks { .. }) {
                let problem = "is frozen with LoRA, as all weights are";
                return Err(InputError::new(field, part, problem)
                    .hint("leave it out: with LoRA, `freeze` lists blocks that have no adapters"));
            }
        }
        Ok(())
    }

    /// # Errors
    /// The model does not have the parts that are named, or nothing of it would be trained.
    pub fn check_model(&self, model: &ModelSpec) -> Result<(), InputError> {
        if self.is_all() {
            return Ok(());
        }
        for (index, part) in self.freeze.iter().enumerate() {
            if let FrozenPart::Blocks { last, .. } = part
                && *last >= model.layers
            {
                let problem = format!("is not in {}, whose blocks are 0 to {}", model.name, model.layers - 1);
                return Err(InputError::new(format!("trainable.freeze[{index}]"), part, problem)
                    .hint("give blocks of the model, counted from 0"));
            }
        }
        if let Some(lora) = &self.lora {
            lora.check_model(model)?;
        }
        let layers = self.layers(model);
        let (embedding, head) = (layers[0], layers[layers.len() - 1]);
        if model.tied_embeddings && embedding.weights != head.weights {
            let problem = format!("freezes one of embedding and head, which are one table in {}", model.name);
            return Err(InputError::new("trainable.freeze", self.listed(), problem)
                .hint("freeze both or neither, e.g. `--freeze embedding,head`"));
        }
        if !layers.iter().any(LayerTraining::trains) {
            return Err(InputError::new("trainable.freeze", self.listed(), "leaves nothing to train")
                .hint("freeze fewer parts"));
        }
        Ok(())
    }

    fn listed(&self) -> String {
        self.freeze.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// What is trained, without numbers: `LoRA rank 16 on q, v`, `all but embedding, blocks:0-15`.
    pub fn label(&self) -> String {
        let frozen = self.freeze.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let Some(lora) = &self.lora else {
            return if frozen.is_empty() { "all".to_owned() } else { format!("all but {frozen}") };
        };
        let mut text = format!("LoRA rank {} on {}", lora.rank, lora.targets);
        if !self.freeze.is_empty() {
            text += &format!(", not in {frozen}");
        }
        if !self.base_bits.is_whole() {
            text += &format!(", base weights in {}", self.base_bits.name());
        }
        text
    }
}

impl Lora {
    fn check_model(&self, model: &ModelSpec) -> Result<(), InputError> {
        let has = |target: LoraTarget| {
            let mut blocks = model.distinct_blocks().into_iter();
            blocks.any(|(layer, _)| model.parameters(layer).iter().any(|one| target.is(one.name)))
        };
        let known: Vec<&str> =
            LoraTarget::LAYERS.into_iter().filter(|one| has(*one)).map(LoraTarget::name).collect();
        let missing = self.targets.iter().find(|one| *one != LoraTarget::AllLinear && !has(*one));
        missing.map_or(Ok(()), |target| {
            let problem = format!("is no linear layer of {}", model.name);
            Err(InputError::new("trainable.lora.targets", target.name(), problem)
                .hint(format!("give some of {}, or all-linear", known.join(", "))))
        })
    }
}
