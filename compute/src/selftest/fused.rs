//! Compares fused attention, if the device supports it, with reference loops.

use super::Outcome;
use super::lab::{BufferPrecision, Lab};
use crate::backend::{AttentionShape, Backend};

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for (seq_len, micro_batch, heads, kv_heads, head_dim) in [
        (1, 1, 6, 2, 3),
        (1, 2, 6, 2, 64),
        (5, 2, 6, 2, 20),
        (5, 1, 6, 2, 96),
        (67, 2, 6, 2, 3),
        (67, 1, 6, 2, 64),
        (67, 1, 3, 3, 20),
        (130, 2, 6, 2, 20),
        (130, 1, 6, 2, 96),
        (64, 1, 4, 1, 64),
    ] {
        let scale = (head_dim as f64).sqrt().recip();
        check(lab, AttentionShape { seq_len, micro_batch, heads, kv_heads, head_dim, scale })?;
    }
    Ok(())
}

fn check<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, shape: AttentionShape) -> Outcome {
    let Some(fused) = lab.device.fused_attention() else { return Ok(()) };
    let AttentionShape { seq_len, micro_batch, heads, kv_heads, head_dim, .. } = shape;
    let (rows, width) = (seq_len * micro_batch, (heads + 2 * kv_heads) * head_dim);
    let (qkv_len, attended_len, statistics_len) = (rows * width, rows * heads * head_dim, rows * heads);
    let case = format!("[{seq_len}, {micro_batch}], {heads} heads for {kv_heads} of {head_dim}");
    let qkv = lab.around(0.0, 1.5, qkv_len);
    let qkv = lab.upload(BufferPrecision::Working, &qkv);
    let (mut attended, mut logsumexp) =
        (lab.blank(BufferPrecision::Working, attended_len), lab.blank(BufferPrecision::Full, statistics_len));
    fused.forward(shape, qkv.device.region(), attended.device.region_mut(), logsumexp.device.region_mut());
    let exact = Attended::new(shape, qkv.exact(qkv_len));
    lab.exact.write(&exact.attended, attended.exact.region_mut());
    lab.exact.write(&exact.logsumexp, logsumexp.exact.region_mut());
    lab.is_intact &= qkv.is_intact(lab.device);
    // Operands that are not stored, here the probabilities, are rounded like those of any GEMM; and the error
    // of a score, from query and key, becomes a relative error of its probability.
    let r = lab.rounding;
    let sums = r.sum(head_dim) + r.sum(seq_len);
    lab.check(
        "fused_attention forward",
        &case,
        r.result(BufferPrecision::Working) + 4.0 * r.operand() + sums,
        &attended,
    )?;
    let tolerance = r.result(BufferPrecision::Full) + 4.0 * r.operand() + sums;
    lab.check("fused_attention forward", &format!("{case}, logsumexp"), tolerance, &logsumexp)?;

    // Both backward passes start from the CPU's results, rounded to the device's precision.
    let attended = lab.upload(BufferPrecision::Working, &exact.attended);
    let logsumexp = lab.upload(BufferPrecision::Full, &exact.logsumexp);
    let d_attended = lab.random(BufferPrecision::Working, attended_len);
    let mut d_qkv = lab.blank(BufferPrecision::Working, qkv_len);
    fused.backward(
        shape,
        qkv.device.region(),
        attended.device.region(),
        d_attended.device.region(),
        logsumexp.device.region(),
        d_qkv.device.region_mut(),
    );
    lab.exact.write(&exact.backward(&d_attended.exact(attended_len)), d_qkv.exact.region_mut());
    for pair in [&qkv, &attended, &d_attended, &logsumexp] {
        lab.is_intact &= pair.is_intact(lab.device);
    }
    // Outputs are rounded; probabilities and their gradients are GEMM operands; all are terms of sums in
    // which terms of opposite sign may cancel.
    let tolerance = r.result(BufferPrecision::Working) + 4.0 * r.working + 8.0 * r.operand() + 4.0 * sums;
    let (query_end, key_end) = (heads * head_dim, (heads + kv_heads) * head_dim);
    for (name, columns) in [("query", 0..query_end), ("key", query_end..key_end), ("value", key_end..width)] {
        let case = format!("{case}, gradient of {name}");
        let counts = |i: usize| columns.contains(&(i % width));
        lab.check_part("fused_attention backward", &case, tolerance, &d_qkv, counts)?;
    }
    Ok(())
}

/// Reference attention, one query at a time.
struct Attended {
    shape: AttentionShape,
    qkv: Vec<f64>,
    /// A row for each query, per sequence and head.
    probabilities: Vec<Vec<Vec<f64>>>,
    attended: Vec<f64>,
    logsumexp: Vec<f64>,
}

impl Attended {
    fn new(shape: AttentionShape, qkv: Vec<f64>) -> Self {
        let AttentionShape { seq_len, micro_batch, heads, head_dim, scale, .. } = shape;
        let attended = vec![0.0; seq_len * micro_batch * heads * head_dim];
        let mut all = Self { shape, qkv, probabilities: Vec::new(), attended, logsumexp: Vec::new() };
        for (sequence, head) in all.heads() {
            let mut of_head = Vec::new();
            for query in 0..seq_len {
                let scores = (0..=query).map(|key| {
                    scale
                        * dot(
                            all.part(all.query(sequence, head, query)),
                            all.part(all.key(sequence, head, key)),
                        )
                });
                let scores: Vec<f64> = scores.collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let probabilities: Vec<f64> =
                    scores.iter().map(|score| (score - largest).exp() / sum).collect();
                for (key, &probability) in probabilities.iter().enumerate() {
                    let (to, value) = (all.output(sequence, head, query), all.value(sequence, head, key));
                    for i in 0..head_dim {
                        all.attended[to + i] += probability * all.qkv[value + i];
                    }
                }
                all.logsumexp.push(largest + sum.ln());
                of_head.push(probabilities);
            }
            all.probabilities.push(of_head);
        }
        all
    }

    /// The gradient of `qkv`.
    fn backward(&self, d_attended: &[f64]) -> Vec<f64> {
        let AttentionShape { head_dim, scale, .. } = self.shape;
        let mut d_qkv = vec![0.0; self.qkv.len()];
        for ((sequence, head), of_head) in self.heads().into_iter().zip(&self.probabilities) {
            for (query, probabilities) in of_head.iter().enumerate() {
                let d_out = &d_attended[self.output(sequence, head, query)..][..head_dim];
                let value = |key| self.part(self.value(sequence, head, key));
                let d_probabilities: Vec<f64> =
                    (0..probabilities.len()).map(|key| dot(d_out, value(key))).collect();
                let mean = dot(probabilities, &d_probabilities);
                let at_query = self.query(sequence, head, query);
                for (key, probability) in probabilities.iter().enumerate() {
                    let d_score = scale * probability * (d_probabilities[key] - mean);
                    let (at_key, at_value) = (self.key(sequence, head, key), self.value(sequence, head, key));
                    for i in 0..head_dim {
                        d_qkv[at_query + i] += d_score * self.qkv[at_key + i];
                        d_qkv[at_key + i] += d_score * self.qkv[at_query + i];
                        d_qkv[at_value + i] += probability * d_out[i];
                    }
                }
            }
        }
        d_qkv
    }

    /// Sequences and their heads, in the order of `logsumexp`.
    fn heads(&self) -> Vec<(usize, usize)> {
        let AttentionShape { micro_batch, heads, .. } = self.shape;
        (0..micro_batch).flat_map(|sequence| (0..heads).map(move |head| (sequence, head))).collect()
    }

    fn part(&self, offset: usize) -> &[f64] {
        &self.qkv[offset..][..self.shape.head_dim]
    }

    /// The offset of a token's head in `qkv`, counted over query, key and value heads.
    fn offset(&self, sequence: usize, position: usize, head: usize) -> usize {
        let AttentionShape { micro_batch, heads, kv_heads, head_dim, .. } = self.shape;
        ((position * micro_batch + sequence) * (heads + 2 * kv_heads) + head) * head_dim
    }

    fn query(&self, sequence: usize, head: usize, position: usize) -> usize {
        self.offset(sequence, position, head)
    }

    /// The offset of the key that query head `head` attends to.
    fn key(&self, sequence: usize, head: usize, position: usize) -> usize {
        let AttentionShape { heads, kv_heads, .. } = self.shape;
        self.offset(sequence, position, heads + head / (heads / kv_heads))
    }

    fn value(&self, sequence: usize, head: usize, position: usize) -> usize {
        self.key(sequence, head, position) + self.shape.kv_heads * self.shape.head_dim
    }

    /// The offset of a token's head in `attended`.
    fn output(&self, sequence: usize, head: usize, position: usize) -> usize {
        let AttentionShape { micro_batch, heads, head_dim, .. } = self.shape;
        ((position * micro_batch + sequence) * heads + head) * head_dim
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the backward of the reference loops with central differences of their forward.
    #[test]
    fn loops_agree_with_finite_differences() {
        let shape =
            AttentionShape { seq_len: 4, micro_batch: 2, heads: 4, kv_heads: 2, head_dim: 3, scale: 0.5 };
        let wave = |len: usize, step: f64| (0..len).map(|i| (step * i as f64).sin()).collect::<Vec<_>>();
        let (mut qkv, d_attended) = (wave(8 * 24, 1.7), wave(8 * 12, 2.3));
        let analytic = Attended::new(shape, qkv.clone()).backward(&d_attended);
        for i in 0..qkv.len() {
            let value = qkv[i];
            let [above, below] = [value + 1e-5, value - 1e-5].map(|moved| {
                qkv[i] = moved;
                dot(&Attended::new(shape, qkv.clone()).attended, &d_attended)
            });
            qkv[i] = value;
            assert!(((above - below) / 2e-5 - analytic[i]).abs() < 1e-8, "element {i}");
        }
    }
}
