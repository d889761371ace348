//! How long one price takes to compute, for shapes in random order, so that caches hold almost none of them.
//!
//! ```text
//! cargo run --release -p autodist-hardware --example speed
//! ```

#![allow(clippy::print_stdout, reason = "a program")]

use autodist_hardware::{Attention, AttentionKernel, DeviceModel, GroupShape, Interconnect};
use autodist_spec::{Bytes, Collective, InputError, Precision};
use std::time::Instant;

const COUNT: u64 = 2_000_000;

fn time(what: &str, price: impl Fn(u64) -> f64) {
    let start = Instant::now();
    let sum: f64 = (0..COUNT).map(price).sum();
    println!("{:4.0} ns a {what} ({sum:.1} s in all)", start.elapsed().as_nanos() as f64 / COUNT as f64);
}

fn main() -> Result<(), InputError> {
    let device = DeviceModel::named("h100-80gb-sxm")?;
    let links = Interconnect::named("dgx-h100")?;
    time("product", |i| {
        device.gemm(Precision::Bf16, 512 + i % 7000, 1024 + i * 7 % 9000, 768 + i * 13 % 12000).time.0
    });
    time("attention", |i| {
        let sequence = 512 + i * 11 % 7000;
        let batch = 1 + i % 8;
        let shape = Attention {
            batch,
            sequence,
            keys: sequence,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            causal: true,
        };
        device.attention_forward(&shape, AttentionKernel::Flash).time.0
    });
    time("collective", |i| {
        let group = GroupShape { per_node: 8, nodes: 1 + (i % 4) as u32, sharing: 1 };
        links.collective(Collective::AllReduce, Bytes(1000 + i * 1000), group).time.0
    });
    Ok(())
}
