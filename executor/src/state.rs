//! The state of a training by position in the whole model: it continues under any strategy.

use crate::ExecutionError;
use crate::parameters::ModelElement;
use autodist_spec::{ModelSpec, Optimizer};
use std::collections::BTreeMap;

/// What a training needs to continue. The data and the learning rate follow from the step. Residuals of lossy
/// codecs are not part of it: they belong to a rank, and begin at zero again.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelState {
    /// Steps that have been trained.
    pub step: u32,
    /// By layer of the chain and index in [`ModelSpec::parameters`].
    pub tensors: BTreeMap<(usize, usize), TensorState>,
}

/// One parameter of the whole model, row-major, in full precision.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorState {
    pub values: Vec<f32>,
    /// What the optimizer keeps for each element, by kind: AdamW's first and second moments, SGD's momentum.
    pub optimizer: Vec<Vec<f32>>,
}

/// A part of a training's state: the elements that one rank updates.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StateShard {
    /// The position of each element, and its index in the lists of `kinds`.
    pub elements: Vec<ModelElement>,
    /// Values, then each kind of optimizer state.
    pub kinds: Vec<Vec<f32>>,
}

impl ModelState {
    /// Puts the shards of all ranks together. Elements that no rank holds are NaN.
    pub fn of(model: &ModelSpec, optimizer: &Optimizer, step: u32, shards: &[StateShard]) -> Self {
        let mut tensors = BTreeMap::new();
        for layer in 0..model.chain_len() {
            for (index, parameter) in model.parameters(layer).iter().enumerate() {
                let values = vec![f32::NAN; parameter.elements() as usize];
                let optimizer = vec![values.clone(); optimizer.state_elements() as usize];
                tensors.insert((layer, index), TensorState { values, optimizer });
            }
        }
        for shard in shards {
            for (index, element) in shard.elements.iter().enumerate() {
                let Some(tensor) = tensors.get_mut(&(element.layer, element.parameter)) else { continue };
                let kinds = std::iter::once(&mut tensor.values).chain(&mut tensor.optimizer);
                for (values, of_kind) in kinds.zip(&shard.kinds) {
                    values[element.position] = of_kind[index];
                }
            }
        }
        Self { step, tensors }
    }

    /// # Errors
    /// A parameter of the model that is missing, has another size or lacks a kind of the optimizer's state.
    pub fn check(&self, model: &ModelSpec, optimizer: &Optimizer) -> Result<(), ExecutionError> {
        for layer in 0..model.chain_len() {
            for (index, parameter) in model.parameters(layer).iter().enumerate() {
                let elements = parameter.elements() as usize;
                let state = optimizer.state_elements() as usize;
                let fits = self.tensors.get(&(layer, index)).is_some_and(|tensor| {
                    let lists = std::iter::once(&tensor.values).chain(&tensor.optimizer);
                    tensor.optimizer.len() == state && lists.into_iter().all(|list| list.len() == elements)
                });
                if !fits {
                    let name = parameter.name;
                    return Err(ExecutionError::ForeignState { layer, name, elements, state });
                }
            }
        }
        Ok(())
    }

    /// An element's value of a kind: 0 for the parameter itself, then the kinds of optimizer state. The state
    /// must have passed [`Self::check`].
    pub(crate) fn value(&self, kind: usize, element: ModelElement) -> f32 {
        let tensor = &self.tensors[&(element.layer, element.parameter)];
        let values = if kind == 0 { &tensor.values } else { &tensor.optimizer[kind - 1] };
        values[element.position]
    }
}
