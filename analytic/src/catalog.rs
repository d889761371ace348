//! Models of the catalogue that only this crate prices: mixture-of-experts models.

use crate::run::{Experts, Shape};
use serde::Deserialize;
use std::sync::LazyLock;

/// A mixture-of-experts model, and the publication of its shape.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertModel {
    pub name: String,
    pub source: String,
    layers: u32,
    hidden: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    ffn: u32,
    vocab: u32,
    pub max_seq_len: u32,
    experts: u32,
    experts_active: u32,
}

#[derive(Deserialize)]
struct File {
    model: Vec<ExpertModel>,
}

static MODELS: LazyLock<Vec<ExpertModel>> = LazyLock::new(|| {
    let file: File =
        toml::from_str(include_str!("../../catalog/experts.toml")).expect("the embedded catalogue is TOML");
    file.model
});

pub fn expert_models() -> &'static [ExpertModel] {
    &MODELS
}

pub fn expert_model(name: &str) -> Option<&'static ExpertModel> {
    MODELS.iter().find(|model| model.name == name)
}

impl ExpertModel {
    pub fn shape(&self) -> Shape {
        Shape {
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            gated: true,
            position_rows: 0,
            tied_embeddings: false,
            experts: Some(Experts { count: self.experts, active: self.experts_active, ffn: self.ffn }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_the_published_ones() {
        // 46.7 billion (2401.04088, section 3), and 141 billion (Mistral's announcement).
        for (name, billions) in [("mixtral-8x7b", 46.7), ("mixtral-8x22b", 141.0)] {
            let model = expert_model(name).unwrap();
            let counted = model.shape().parameters() / 1e9;
            assert!((counted / billions - 1.0).abs() < 0.005, "{name}: {counted}");
        }
    }
}
