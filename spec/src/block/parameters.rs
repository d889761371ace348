//! The parameters of a block.

use super::{Addition, BlockSpec, Experts, Latent};
use crate::model::{Init, ModelSpec, Parameter, TensorSplit};

impl BlockSpec {
    /// Parameters in the order of the flat buffer: those that tensor parallelism shards, then the replicated
    /// ones.
    pub(crate) fn parameters(&self, model: &ModelSpec) -> Vec<Parameter> {
        use TensorSplit::{Columns, Replicated, Rows};
        let hidden = u64::from(model.hidden);
        let bias = |name, rows, split| Parameter::vector(name, rows, split, Init::Zeros);
        let mut list = Vec::new();
        let mut replicated = Vec::new();
        match self.latent {
            None => self.projections(model, &mut list),
            Some(latent) => self.latent_projections(latent, hidden, &mut list, &mut replicated),
        }
        let width = self.value_width();
        list.push(Parameter::matrix("attention.output.weight", hidden, width, Columns, Init::ScaledNormal));
        if let Some(experts) = self.experts {
            self.expert_parameters(experts, model, &mut list);
            let rows = experts.count.into();
            list.push(Parameter::matrix("router.weight", rows, hidden, Replicated, Init::Normal));
        } else {
            let ffn = u64::from(self.ffn);
            let names = ["mlp.gate.weight", "mlp.up.weight", "mlp.down.weight"];
            let [gate, up, down] = mlp(names, ffn, hidden);
            let gated = model.activation.matrices() == 3;
            list.extend(Some(gate).filter(|_| gated));
            list.push(up);
            if model.bias {
                list.extend(Some(bias("mlp.gate.bias", ffn, Rows)).filter(|_| gated));
                list.push(bias("mlp.up.bias", ffn, Rows));
            }
            list.push(down);
            if model.bias {
                list.push(bias("attention.output.bias", hidden, Replicated));
                list.push(bias("mlp.down.bias", hidden, Replicated));
            }
        }
        for addition in &model.additions {
            self.addition(*addition, model, &mut list, &mut replicated);
        }
        list.append(&mut replicated);
        model.norm_parameters(["attention_norm.weight", "attention_norm.bias"], &mut list);
        if !model.additions.contains(&Addition::SharedNorm) {
            model.norm_parameters(["mlp_norm.weight", "mlp_norm.bias"], &mut list);
        }
        list
    }

    /// The parameters of an addition, where the block has the part that it belongs to.
    fn addition(
        &self,
        addition: Addition,
        model: &ModelSpec,
        list: &mut Vec<Parameter>,
        replicated: &mut Vec<Parameter>,
    ) {
        use TensorSplit::{Replicated, Rows};
        let (zeros, ones) = (Init::Zeros, Init::Ones);
        let hidden = u64::from(model.hidden);
        let head_dim = u64::from(self.head_dim);
        let kv = u64::from(self.kv_heads) * head_dim;
        let vector = Parameter::vector;
        match (addition, self.experts) {
            (Addition::QkvBias, _) => {
                list.push(vector("attention.query.bias", self.query_width(), Rows, zeros));
                list.push(vector("attention.key.bias", kv, Rows, zeros));
                list.push(vector("attention.value.bias", kv, Rows, zeros));
            }
            (Addition::OutputBias, _) => {
                replicated.push(vector("attention.output.bias", hidden, Replicated, zeros));
            }
            (Addition::HeadNorm, _) => {
                replicated.push(vector("attention.query_norm.weight", head_dim, Replicated, ones));
                replicated.push(vector("attention.key_norm.weight", head_dim, Replicated, ones));
            }
            (Addition::QueryKeyNorm, _) => {
                list.push(vector("attention.query_norm.weight", self.query_width(), Rows, ones));
                list.push(vector("attention.key_norm.weight", kv, Rows, ones));
            }
            (Addition::AttentionSink, _) => {
                list.push(vector("attention.sink", self.heads.into(), Rows, zeros));
            }
            (Addition::PostNorm, _) => {
                model.norm_parameters(["attention_post_norm.weight", "attention_post_norm.bias"], replicated);
                model.norm_parameters(["mlp_post_norm.weight", "mlp_post_norm.bias"], replicated);
            }
            (Addition::ExpertBias, Some(experts)) => {
                let count = u64::from(experts.count);
                let gates = u64::from(model.activation.matrices() - 1);
                let routed = |one: Parameter| Parameter { routed: true, ..one };
                let inner = gates * count * u64::from(self.ffn);
                list.push(routed(vector("experts.up.bias", inner, Rows, zeros)));
                replicated.push(vector("experts.down.bias", count * hidden, Replicated, zeros));
                replicated.push(vector("router.bias", count, Replicated, zeros));
            }
            (Addition::SharedGate, Some(_)) => {
                replicated.push(vector("shared_gate.weight", hidden, Replicated, zeros));
            }
            (Addition::MlpBias, None) => {
                let gates = u64::from(model.activation.matrices() - 1);
                list.push(vector("mlp.up.bias", gates * u64::from(self.ffn), Rows, zeros));
                replicated.push(vector("mlp.down.bias", hidden, Replicated, zeros));
            }
            // Those of other layers, and those without parameters.
            _ => {}
        }
    }

    fn projections(&self, model: &ModelSpec, list: &mut Vec<Parameter>) {
        let rows = TensorSplit::Rows;
        let (hidden, query) = (u64::from(model.hidden), self.query_width());
        let kv = u64::from(self.kv_heads) * u64::from(self.head_dim);
        for (name, width) in
            [("attention.query.weight", query), ("attention.key.weight", kv), ("attention.value.weight", kv)]
        {
            list.push(Parameter::matrix(name, width, hidden, rows, Init::Normal));
        }
        if model.bias {
            for (name, width) in
                [("attention.query.bias", query), ("attention.key.bias", kv), ("attention.value.bias", kv)]
            {
                list.push(Parameter::vector(name, width, rows, Init::Zeros));
            }
        }
    }

    /// Projections to the ranks are replicated, those from there to the heads are split by heads, as in
    /// Megatron.
    fn latent_projections(
        &self,
        latent: Latent,
        hidden: u64,
        list: &mut Vec<Parameter>,
        replicated: &mut Vec<Parameter>,
    ) {
        use TensorSplit::{Replicated, Rows};
        let matrix = |name, rows, columns, split| Parameter::matrix(name, rows, columns, split, Init::Normal);
        let norm = |name, rows| Parameter::vector(name, rows, Replicated, Init::Ones);
        let kv_rank = u64::from(latent.kv_rank);
        let query = self.query_width();
        match latent.query_rank.map(u64::from) {
            None => list.push(matrix("attention.query.weight", query, hidden, Rows)),
            Some(rank) => {
                list.push(matrix("attention.query_up.weight", query, rank, Rows));
                replicated.push(matrix("attention.query_down.weight", rank, hidden, Replicated));
                replicated.push(norm("attention.query_norm.weight", rank));
            }
        }
        list.push(matrix("attention.kv_up.weight", self.expanded_width(latent), kv_rank, Rows));
        let down = kv_rank + u64::from(latent.rope_dim);
        replicated.push(matrix("attention.kv_down.weight", down, hidden, Replicated));
        replicated.push(norm("attention.kv_norm.weight", kv_rank));
    }

    fn expert_parameters(&self, experts: Experts, model: &ModelSpec, list: &mut Vec<Parameter>) {
        let hidden = u64::from(model.hidden);
        let gated = model.activation.matrices() == 3;
        // The experts' matrices below each other.
        let inner = u64::from(experts.count) * u64::from(self.ffn);
        let routed = mlp(["experts.gate.weight", "experts.up.weight", "experts.down.weight"], inner, hidden)
            .map(|one| Parameter { routed: true, ..one });
        let shared = u64::from(experts.shared_ffn);
        let names = ["shared.gate.weight", "shared.up.weight", "shared.down.weight"];
        let shared = (shared > 0).then(|| mlp(names, shared, hidden));
        for matrices in [Some(routed), shared].into_iter().flatten() {
            list.extend(matrices.into_iter().skip(usize::from(!gated)));
        }
    }
}

/// Gate, up and down of an MLP.
fn mlp([gate, up, down]: [&'static str; 3], inner: u64, hidden: u64) -> [Parameter; 3] {
    [
        Parameter::matrix(gate, inner, hidden, TensorSplit::Rows, Init::Normal),
        Parameter::matrix(up, inner, hidden, TensorSplit::Rows, Init::Normal),
        Parameter::matrix(down, hidden, inner, TensorSplit::Columns, Init::ScaledNormal),
    ]
}
