//! Compares our codecs with reference implementations on the same gradients, step by step.
//! `fixtures/make_fixtures.py` wrote the reference results, from PyTorch's own hook and from
//! reimplementations of the other papers and packages.
use crate::common;

use autodist_codecs::{Compressor, Tensor};
use autodist_spec::Codec;
use common::{run_with, value};
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Weights of the outer products that all gradients share, and of the noise of each gradient; the same as in
/// the script.
const SHARED: [f32; 4] = [4.0, 2.0, 1.0, 0.5];
const OWN: f32 = 0.1;

struct Fixtures {
    members: usize,
    steps: usize,
    elements: usize,
    tensors: Vec<Tensor>,
    per_mille: u32,
}

impl Fixtures {
    fn read() -> Self {
        let text = std::fs::read_to_string(folder().join("fixtures.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let tensor = |t: &serde_json::Value| Tensor {
            offset: number(&t[0]),
            rows: number(&t[1]),
            columns: number(&t[2]),
        };
        Self {
            members: number(&json["members"]),
            steps: number(&json["steps"]),
            elements: number(&json["elements"]),
            tensors: json["tensors"].as_array().unwrap().iter().map(tensor).collect(),
            per_mille: number(&json["dgc_per_mille"]) as u32,
        }
    }

    /// A few constant directions plus noise: `gradient` of the script.
    fn gradient(&self, step: usize, member: usize, directions: usize) -> Vec<f32> {
        let mut flat: Vec<f32> = (0..self.elements).map(|index| OWN * value(step, member, index)).collect();
        for Tensor { offset, rows, columns } in &self.tensors {
            for (term, weight) in SHARED.iter().take(directions).enumerate() {
                for (at, element) in flat[*offset..offset + rows * columns].iter_mut().enumerate() {
                    let left = value(2000 + term, 0, offset + at / columns);
                    *element += weight * left * value(3000 + term, 0, offset + at % columns);
                }
            }
        }
        flat
    }

    /// Per step: the mean over all members, and the error that one member keeps.
    fn expected(&self, name: &str) -> Vec<(Vec<f32>, Vec<f32>)> {
        let bytes = std::fs::read(folder().join(format!("{name}.bin"))).unwrap();
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(values.len(), 2 * self.steps * self.elements, "{name}");
        values
            .chunks(2 * self.elements)
            .map(|step| (step[..self.elements].to_vec(), step[self.elements..].to_vec()))
            .collect()
    }

    /// Checks `codec` against the fixture within the relative `tolerance`, by L2 norm. The kept error is
    /// compared where `keeps`.
    fn check(&self, name: &str, codec: Codec, tolerance: f64, keeps: impl Fn(usize) -> bool) {
        let compressor = || {
            // As many as the largest factor needs; the same formula as in the references.
            let factors: Vec<f32> = (0..self.elements).map(|index| value(1000, 0, index)).collect();
            Compressor::new(codec, &self.tensors, self.elements, 0).with_first_factors(&factors)
        };
        let directions = match codec {
            Codec::PowerSgd { rank, .. } | Codec::PowerSgdHalf { rank, .. } => rank as usize,
            _ => SHARED.len(),
        };
        let gradient = |step: usize, member: usize| self.gradient(step, member, directions);
        let steps = run_with(compressor, self.members, self.steps, gradient);
        let scale = 1.0 / self.members as f32;
        for (index, (step, (mean, kept))) in steps.iter().zip(self.expected(name)).enumerate() {
            let member = &step[index % self.members];
            let got: Vec<f32> = member.result.iter().map(|value| value * scale).collect();
            let error = apart(&got, &mean);
            assert!(error < tolerance, "{name}, step {index}: results are {error} apart");
            let among = |values: &[f32]| -> Vec<f32> {
                values.iter().enumerate().filter(|(at, _)| keeps(*at)).map(|(_, value)| *value).collect()
            };
            let error = apart(&among(&member.kept), &among(&kept));
            assert!(error < tolerance, "{name}, step {index}: errors are {error} apart");
        }
    }
}

/// L2 norm of the difference, relative to that of the expected values.
fn apart(got: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    square(&mut got.iter().zip(expected).map(|(g, e)| f64::from(*g) - f64::from(*e)))
        / square(&mut expected.iter().map(|e| f64::from(*e)))
}

#[test]
fn powersgd_is_the_hook_of_pytorch() {
    let fixtures = Fixtures::read();
    // For vectors, the hook keeps the difference of the member's gradient from the mean, which sums to zero.
    let keeps = |at: usize| {
        fixtures.tensors.iter().any(|t| t.rows > 1 && (t.offset..t.offset + t.rows * t.columns).contains(&at))
    };
    for rank in [1, 2, 4] {
        fixtures.check(&format!("powersgd-{rank}"), Codec::PowerSgd { rank, start_step: 0 }, 1e-5, keeps);
    }
}

#[test]
fn powersgd_half_is_the_package_of_its_authors() {
    let fixtures = Fixtures::read();
    for rank in [1, 2, 4] {
        fixtures.check(
            &format!("powersgd-half-{rank}"),
            Codec::PowerSgdHalf { rank, start_step: 0 },
            1e-5,
            |_| true,
        );
    }
}

#[test]
fn one_bit_is_the_compressed_all_reduce_of_deepspeed() {
    Fixtures::read().check("one-bit", Codec::OneBit, 1e-5, |_| true);
}

#[test]
fn deep_gradient_compression_is_its_reference_with_exact_selection() {
    let fixtures = Fixtures::read();
    let codec = Codec::Dgc { per_mille: fixtures.per_mille, start_step: 0 };
    fixtures.check("dgc", codec, 1e-5, |_| true);
}

/// The two forms keep different errors; a fixture of one must refuse the other.
#[test]
#[should_panic(expected = "apart")]
fn the_two_forms_of_powersgd_are_told_apart() {
    Fixtures::read().check("powersgd-half-2", Codec::PowerSgd { rank: 2, start_step: 0 }, 1e-2, |_| true);
}
