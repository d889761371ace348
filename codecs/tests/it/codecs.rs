//! Properties of every codec: the same bits on all members, the announced bytes, and no loss beyond the
//! reported one.
use crate::common;

use autodist_codecs::{Compressor, Tensor, footprint, phases};
use autodist_spec::{Codec, Coded};
use common::{Step, run, run_with, value};
use proptest::prelude::*;

/// Two matrices with a vector between and after them.
const TENSORS: [Tensor; 4] = [
    Tensor { offset: 0, rows: 24, columns: 20 },
    Tensor { offset: 480, rows: 1, columns: 13 },
    Tensor { offset: 493, rows: 18, columns: 30 },
    Tensor { offset: 1033, rows: 1, columns: 7 },
];
const ELEMENTS: usize = 1040;

/// The default codecs, with ranks that are small for these matrices, and without warm-up.
fn codecs() -> Vec<Codec> {
    let smaller = |codec: Codec| match codec {
        Codec::PowerSgd { .. } => Codec::PowerSgd { rank: 2, start_step: 0 },
        Codec::PowerSgdHalf { .. } => Codec::PowerSgdHalf { rank: 2, start_step: 0 },
        other => other.at_once(),
    };
    Codec::DEFAULTS.iter().copied().map(smaller).collect()
}

fn gradients(step: usize, member: usize) -> Vec<f32> {
    (0..ELEMENTS).map(|index| value(step, member, index)).collect()
}

fn sum(step: usize, size: usize) -> Vec<f64> {
    (0..ELEMENTS).map(|i| (0..size).map(|m| f64::from(value(step, m, i))).sum()).collect()
}

/// L2 norm of the difference, relative to that of the expected values.
fn apart(got: &[f32], expected: &[f64]) -> f64 {
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
    (difference / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

#[test]
fn all_members_get_the_same_bits() {
    for codec in codecs() {
        for size in 2..=5 {
            for step in run(codec, &TENSORS, ELEMENTS, size, 3, true, gradients) {
                let bits = |s: &Step| s.result.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(step.iter().all(|s| bits(s) == bits(&step[0])), "{} over {size}", codec.name());
            }
        }
    }
}

#[test]
fn the_exchanges_are_those_that_were_announced() {
    for codec in codecs() {
        for size in 2..=5 {
            let announced = phases(codec, Coded::Gradients, &TENSORS, ELEMENTS, size);
            for (index, step) in run(codec, &TENSORS, ELEMENTS, size, 3, true, gradients).iter().enumerate() {
                if matches!(codec, Codec::OneBitAdam { .. }) && index == 0 {
                    let dense = phases(Codec::None, Coded::Gradients, &TENSORS, ELEMENTS, size);
                    assert!(step.iter().all(|s| s.seen == dense), "the warm-up over {size}");
                    continue;
                }
                // Left factors in one step, right ones in the next: the larger of them is announced.
                if matches!(codec, Codec::PowerSgdHalf { .. }) && step[0].seen != announced {
                    assert_eq!((step[0].seen.len(), announced.len()), (1, 1), "step {index}");
                    continue;
                }
                assert!(step.iter().all(|s| s.seen == announced), "{} over {size}", codec.name());
            }
        }
    }
}

#[test]
fn state_is_as_large_as_the_footprint_says() {
    for codec in codecs() {
        let steps = run(codec, &TENSORS, ELEMENTS, 3, 2, true, gradients);
        for (rank, step) in steps[1].iter().enumerate() {
            let expected = footprint(codec, Coded::Gradients, &TENSORS, ELEMENTS, 3, rank).state_bytes;
            assert_eq!(step.state_bytes, expected, "{}", codec.name());
        }
    }
}

#[test]
fn no_codec_is_the_sum_bit_for_bit() {
    let steps = run(Codec::None, &TENSORS, ELEMENTS, 4, 1, true, gradients);
    let expected = |i: usize| (0..4).fold(0.0_f32, |sum, m| sum + value(0, m, i));
    assert!(steps[0][0].result.iter().enumerate().all(|(i, v)| v.to_bits() == expected(i).to_bits()));
}

#[test]
fn fewer_bits_stay_close_to_the_sum() {
    for (codec, tolerance) in [
        (Codec::Fp16, 6e-4),
        (Codec::Bf16, 4e-3),
        (Codec::Int8 { block: 64 }, 8e-3),
        (Codec::Qsgd { levels: 127, bucket: 128 }, 0.06),
    ] {
        let steps = run(codec, &TENSORS, ELEMENTS, 4, 1, true, gradients);
        let error = apart(&steps[0][0].result, &sum(0, 4));
        assert!(error < tolerance, "{}: {error}", codec.name());
        // The codecs do lose something: otherwise this test would not test them.
        assert!(error > 1e-6, "{}: {error}", codec.name());
    }
}

#[test]
fn a_rank_as_large_as_the_matrix_loses_nothing() {
    // A sum of outer products has the rank of its terms, for a matrix of any size.
    let low = |step: usize, member: usize| -> Vec<f32> {
        let (rows, columns) = (40, 30);
        let term = |t: usize, i: usize, j: usize| value(step, member + 10 * t, i) * value(step, 99 + t, j);
        (0..rows * columns).map(|at| (0..2).map(|t| term(t, at / columns, at % columns)).sum()).collect()
    };
    let tensors = [Tensor { offset: 0, rows: 40, columns: 30 }];
    let steps = run(Codec::PowerSgd { rank: 4, start_step: 0 }, &tensors, 1200, 3, 1, true, |_, member| {
        low(0, member)
    });
    let exact: Vec<f64> = (0..1200).map(|i| (0..3).map(|m| f64::from(low(0, m)[i])).sum()).collect();
    let error = apart(&steps[0][0].result, &exact);
    assert!(error < 1e-4, "{error}");
}

/// The sum of everything sent and of the kept error equals the sum of the gradients.
#[test]
fn error_feedback_loses_nothing_over_time() {
    let size = 4;
    // The same gradient in every step: the average sent must converge to it.
    let same = |_: usize, member: usize| gradients(0, member);
    for codec in [
        Codec::TopK { per_mille: 50 },
        Codec::OneBit,
        Codec::PowerSgd { rank: 2, start_step: 0 },
        Codec::PowerSgdHalf { rank: 2, start_step: 0 },
    ] {
        let mean_error = |memory: bool, count: usize| {
            let steps = run(codec, &TENSORS, ELEMENTS, size, count, memory, same);
            let mean: Vec<f32> = (0..ELEMENTS)
                .map(|i| (steps.iter().map(|s| f64::from(s[0].result[i])).sum::<f64>() / count as f64) as f32)
                .collect();
            apart(&mean, &sum(0, size))
        };
        let (with, without) = (mean_error(true, 400), mean_error(false, 400));
        assert!(with < 0.1, "{}: {with} with error feedback", codec.name());
        assert!(without > 3.0 * with, "{}: {without} without, {with} with", codec.name());
    }
}

#[test]
fn random_rounding_is_right_on_average() {
    let same = |_: usize, member: usize| gradients(0, member).iter().map(|v| v * 0.5).collect();
    for codec in [Codec::Qsgd { levels: 4, bucket: 64 }, Codec::TernGrad] {
        let count = 3000;
        let steps = run(codec, &TENSORS, ELEMENTS, 2, count, true, same);
        let expected: Vec<f64> = sum(0, 2).iter().map(|v| 0.5 * v).collect();
        // No element's mean may be far from the exact one: more than 5 standard errors among a thousand is a
        // bias.
        for (i, expected) in expected.iter().enumerate() {
            let values: Vec<f64> = steps.iter().map(|s| f64::from(s[0].result[i])).collect();
            let mean = values.iter().sum::<f64>() / count as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
            let z = (mean - expected).abs() / (variance / count as f64).sqrt().max(1e-9);
            assert!(z < 5.0, "{}: element {i} is {mean}, not {expected}", codec.name());
        }
    }
}

#[test]
fn deep_gradient_compression_follows_its_paper() {
    // By hand: u = 0.9 u + g, v = v + u, the largest of v is sent, and u and v are cleared where it was.
    let gradient = [4.0_f32, 3.0, 1.0];
    let steps =
        run(Codec::Dgc { per_mille: 333, start_step: 0 }, &[], 3, 2, 3, true, |_, _| gradient.to_vec());
    let (mut u, mut v) = ([0.0_f32; 3], [0.0_f32; 3]);
    for step in &steps {
        let mut expected = [0.0_f32; 3];
        for i in 0..3 {
            u[i] = 0.9 * u[i] + gradient[i];
            v[i] += u[i];
        }
        let largest = (0..3).max_by(|a, b| v[*a].total_cmp(&v[*b])).unwrap();
        expected[largest] = 2.0 * v[largest];
        (u[largest], v[largest]) = (0.0, 0.0);
        assert_eq!(step[0].result, expected);
    }
}

/// The gradients returned by 1-bit Adam give the optimizer the agreed momentum: signs times one scale.
#[test]
fn one_bit_adam_sends_the_momentum() {
    let (size, warmup, decay) = (3, 4, 0.8);
    let compressor = || {
        let codec = Codec::OneBitAdam { warmup_steps: warmup };
        Compressor::new(codec, &TENSORS, ELEMENTS, 0).with_momentum(f64::from(decay))
    };
    // The last elements get a gradient only after the warm-up.
    let gradient = |step: usize, member: usize| -> Vec<f32> {
        let late = |index| if index >= ELEMENTS - 7 && step < warmup as usize { 0.0 } else { 1.0 };
        (0..ELEMENTS).map(|index| late(index) * (value(step, member, index) + value(0, 0, index))).collect()
    };
    let steps = run_with(compressor, size, 12, gradient);
    let mut momentum = vec![0.0_f32; ELEMENTS];
    for (index, step) in steps.iter().enumerate() {
        for (m, g) in momentum.iter_mut().zip(&step[0].result) {
            *m = decay * *m + (1.0 - decay) * g;
        }
        if index < warmup as usize {
            let exact = |i: usize| (0..size).map(|member| f64::from(gradient(index, member)[i])).sum();
            assert!(apart(&step[0].result, &(0..ELEMENTS).map(exact).collect::<Vec<f64>>()) < 1e-6);
            continue;
        }
        assert!(momentum[ELEMENTS - 7..].iter().all(|m| m.abs() < 1e-6), "what has no second moment stays");
        // One scale per member's shard.
        for member in 0..size {
            let shard = ELEMENTS * member / size + 1..ELEMENTS * (member + 1) / size - 7;
            let scale = momentum[shard.start].abs();
            for m in &momentum[shard] {
                assert!((m.abs() / scale - 1.0).abs() < 1e-4, "step {index}: {m} where +-{scale} is due");
            }
        }
    }
}

#[test]
fn one_bit_is_a_sign_times_the_root_mean_square() {
    let gradient = [3.0_f32, -4.0, 0.0, 1.0];
    let steps = run(Codec::OneBit, &[], 4, 2, 1, true, |_, _| gradient.to_vec());
    // Both members send the same, so the mean of their scaled signs equals them, and compressing it again
    // changes nothing.
    let scale = (26.0_f32 / 4.0).sqrt();
    for (value, exact) in steps[0][0].result.iter().zip([2.0 * scale, -2.0 * scale, 2.0 * scale, 2.0 * scale])
    {
        assert!((value - exact).abs() < 1e-5, "{value} where {exact} is due");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_length_goes_through_every_codec(elements in 0_usize..70, size in 2_usize..5) {
        for codec in codecs() {
            let gradient = |step: usize, member: usize| (0..elements).map(|i| value(step, member, i)).collect();
            let steps = run(codec, &[], elements, size, 2, true, gradient);
            for step in steps[1..].iter().flatten() {
                prop_assert!(step.result.iter().all(|v| v.is_finite()), "{}", codec.name());
                prop_assert_eq!(&step.seen, &phases(codec, Coded::Gradients, &[], elements, size), "{}", codec.name());
            }
        }
    }
}
