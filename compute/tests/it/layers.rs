//! Compares every backward with finite differences, every sharding with one rank, and all of them with
//! PyTorch.

use crate::common;

use autodist_spec::model::ModelSpec;
use common::*;

fn case(model: &ModelSpec) -> (Chain, Batch) {
    let mut noise = Noise::new(7);
    (random_parameters(model, &mut noise), Batch::random(model, 3, 6, &mut noise))
}

/// Central differences of the loss in every parameter, in double precision.
fn check_finite_differences(model: &ModelSpec) {
    let (mut parameters, batch) = case(model);
    let (_, gradients) = train_step::<f64>(model, &parameters, &batch, ONE_RANK);
    let step = 1e-5;
    for layer in 0..model.chain_len() {
        let mut start = 0;
        for parameter in model.parameters(layer) {
            let range = start..start + parameter.elements() as usize;
            start = range.end;
            // Large matrices are sampled.
            let stride = range.len().div_ceil(60);
            let (mut differences, mut analytic) = (Vec::new(), Vec::new());
            for index in range.step_by(stride) {
                let value = parameters[layer][index];
                let [above, below] = [value + step, value - step].map(|moved| {
                    parameters[layer][index] = moved;
                    train_step::<f64>(model, &parameters, &batch, ONE_RANK).0
                });
                parameters[layer][index] = value;
                differences.push((above - below) / (2.0 * step));
                analytic.push(gradients[layer][index]);
            }
            // A key's bias shifts all scores of a query equally, so its gradient is zero except for rounding.
            let size = analytic.iter().map(|x| x * x).sum::<f64>().sqrt();
            if size < 1e-12 {
                assert!(differences.iter().all(|d| d.abs() < 1e-9), "layer {layer} {}", parameter.name);
                continue;
            }
            let error = relative_error(&differences, &analytic);
            assert!(error < 1e-6, "{}, layer {layer}, {}: off by {error:e}", model.name, parameter.name);
        }
    }
}

#[test]
fn gpt2_gradients_are_finite_differences() {
    check_finite_differences(&gpt2_like());
}

#[test]
fn llama_gradients_are_finite_differences() {
    check_finite_differences(&llama_like());
}

#[test]
fn qwen_gradients_are_finite_differences() {
    check_finite_differences(&qwen_like());
}

#[test]
fn every_division_equals_one_rank() {
    for model in [gpt2_like(), llama_like(), qwen_like()] {
        let (parameters, batch) = case(&model);
        let (loss, gradients) = train_step::<f64>(&model, &parameters, &batch, ONE_RANK);
        for degree in [1, 2] {
            for (sequence_parallel, keep_probabilities) in
                [(false, true), (false, false), (true, true), (true, false)]
            {
                let way = Way { degree, sequence_parallel, keep_probabilities, ..ONE_RANK };
                let (divided_loss, divided) = train_step::<f64>(&model, &parameters, &batch, way);
                assert!((loss - divided_loss).abs() < 1e-12 * loss);
                for (layer, (divided, whole)) in divided.iter().zip(&gradients).enumerate() {
                    let error = relative_error(divided, whole);
                    assert!(
                        error < 1e-12,
                        "{}, layer {layer}, tensor degree {degree}: {error:e}",
                        model.name
                    );
                }
            }
        }
    }
}

#[test]
fn recomputed_probabilities_and_batched_heads_change_no_bit() {
    for model in [gpt2_like(), llama_like()] {
        let (parameters, batch) = case(&model);
        let one_by_one = train_step::<f32>(&model, &parameters, &batch, ONE_RANK);
        for (keep_probabilities, heads_at_once) in [(false, 1), (true, 3), (false, 3), (true, 99)] {
            let way = Way { keep_probabilities, heads_at_once, ..ONE_RANK };
            assert_eq!(one_by_one, train_step::<f32>(&model, &parameters, &batch, way));
        }
    }
}

#[test]
fn single_precision_agrees_with_double() {
    for model in [gpt2_like(), llama_like(), qwen_like()] {
        let (parameters, batch) = case(&model);
        let (exact_loss, exact) = train_step::<f64>(&model, &parameters, &batch, ONE_RANK);
        let (loss, gradients) = train_step::<f32>(&model, &parameters, &batch, ONE_RANK);
        assert!((loss - exact_loss).abs() < 2e-6 * exact_loss, "{loss} is not {exact_loss}");
        for (single, double) in gradients.iter().zip(&exact) {
            let error = relative_error(single, double);
            assert!(error < 1e-5, "{}: {error:e}", model.name);
        }
    }
}

/// Compares with `reference.py`: the loss, then the Euclidean norm of each layer's gradient.
#[test]
fn losses_and_gradients_are_pytorchs() {
    let references = [
        (
            gpt2_like(),
            [
                3.3056388248537005,
                1.5965306758436317,
                1.7860785537931898,
                1.0155333250040042,
                0.46968979968769725,
            ],
        ),
        (
            llama_like(),
            [
                2.8605036666982904,
                1.7217826574740709,
                2.41377056898235,
                1.4631832627478802,
                1.2541978757117878,
            ],
        ),
        (
            qwen_like(),
            [
                3.06931968080234,
                1.9825279753996068,
                2.403655824451732,
                1.1758290772345303,
                0.36750975156418786,
            ],
        ),
    ];
    for (model, reference) in references {
        let (parameters, batch) = case(&model);
        let (loss, gradients) = train_step::<f64>(&model, &parameters, &batch, ONE_RANK);
        let norm = |layer: &Vec<f64>| layer.iter().map(|x| x * x).sum::<f64>().sqrt();
        let ours: Vec<f64> = std::iter::once(loss).chain(gradients.iter().map(norm)).collect();
        let error = relative_error(&ours, &reference);
        assert!(error < 1e-12, "{}: {ours:?} is not {reference:?}", model.name);
    }
}
