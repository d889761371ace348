#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program")]
use autodist_hardware::*;
use autodist_spec::Bytes;
fn main() {
    for name in [
        "v100-32gb-sxm",
        "a100-40gb-sxm",
        "a100-80gb-sxm",
        "a100-80gb-pcie",
        "h100-80gb-sxm",
        "h100-80gb-pcie",
        "h200-141gb-sxm",
        "gh200-96gb",
        "b200-180gb-sxm",
        "b300-288gb-sxm",
        "gb300-288gb",
        "l40s",
        "rtx4090",
        "rtx-pro-6000-server",
        "a10g",
        "mi250x",
        "mi300x",
        "mi355x",
    ] {
        let d = DeviceModel::named(name).unwrap();
        print!("{name:20}");
        for dtype in [Dtype::Fp32, Dtype::Tf32, Dtype::Fp16, Dtype::Bf16, Dtype::Fp8, Dtype::Fp4] {
            let p = d.gemm(dtype, 8192, 8192, 8192);
            print!(
                " {dtype} {:.0} ({:.0}%)",
                2.0 * 8192f64.powi(3) / p.time.0 / 1e12,
                2.0 * 8192f64.powi(3) / p.time.0 / d.peak(dtype).0 * 100.0
            );
        }
        for s in [2048u64, 8192] {
            let a = Attention {
                batch: 2,
                sequence: s,
                keys: s,
                heads: 32,
                kv_heads: 32,
                head_dim: 128,
                causal: true,
            };
            let f = d.attention_forward(&a, AttentionKernel::Flash);
            let u = d.attention_forward(&a, AttentionKernel::Unfused);
            let ub = d.attention_backward(&a, AttentionKernel::Unfused);
            print!(
                " att{s} {:.0} TF unf {:.1}x bwd {:.1}x",
                a.forward_flops() / f.time.0 / 1e12,
                u.time.0 / f.time.0,
                ub.time.0 / u.time.0
            );
        }
        let p = d.memory_bound(1e9);
        println!(
            " mem {:.0} GB/s launch {:.1}us {} {:.2} stream",
            1e9 / p.time.0 / 1e9,
            d.launch().0 * 1e6,
            d.gemm(Dtype::Bf16, 8192, 8192, 8192).provenance,
            d.gemm(Dtype::Bf16, 8192, 8192, 8192).spread
        );
    }
    // monotone?
    for name in ["a100-80gb-sxm", "h100-80gb-sxm", "mi300x"] {
        let d = DeviceModel::named(name).unwrap();
        let mut worst = (1.0f64, 0, 0, 0);
        for m in (1..600).map(|i| i * 96) {
            for (n, k) in
                [(4096, 4096), (11008, 4096), (15360, 5120), (128256, 8192), (100, 4096), (4096, 100)]
            {
                let (a, b) = (d.gemm(Dtype::Bf16, m, n, k).time.0, d.gemm(Dtype::Bf16, m + 96, n, k).time.0);
                if b / a < worst.0 {
                    worst = (b / a, m, n, k);
                }
            }
        }
        println!("{name} worst {worst:?}");
        for m in [1u64, 16, 64, 128, 1 << 16, 1 << 18, 1 << 20] {
            let p = d.gemm(Dtype::Bf16, m, 8192, 8192);
            println!(
                "  m {m} {:.1} us {:.0} TF {} {:.2}",
                p.time.0 * 1e6,
                2.0 * m as f64 * 8192.0 * 8192.0 / p.time.0 / 1e12,
                p.provenance,
                p.spread
            );
        }
    }
    let d = DeviceModel::named("h100-80gb-sxm").unwrap();
    let start = std::time::Instant::now();
    let mut sum = 0.0;
    let n = 2_000_000u64;
    for i in 0..n {
        sum += d.gemm(Dtype::Bf16, 512 + i % 7000, 1024 + (i * 7) % 9000, 768 + (i * 13) % 12000).time.0;
    }
    println!("{:.0} ns per product ({sum})", start.elapsed().as_nanos() as f64 / n as f64);
    let start = std::time::Instant::now();
    let n = 1_000_000u64;
    let mut sum = 0.0;
    for i in 0..n {
        sum += d
            .attention_forward(
                &Attention {
                    batch: 1 + i % 8,
                    sequence: 512 + i % 7000,
                    keys: 512 + i % 7000,
                    heads: 32,
                    kv_heads: 8,
                    head_dim: 128,
                    causal: true,
                },
                AttentionKernel::Flash,
            )
            .time
            .0;
    }
    println!("{:.0} ns per attention ({sum})", start.elapsed().as_nanos() as f64 / n as f64);
    let node = Interconnect::named("dgx-h100").unwrap();
    let start = std::time::Instant::now();
    for i in 0..n {
        sum += node
            .collective(
                Collective::AllReduce,
                Bytes(1000 + i * 1000),
                Group { per_node: 8, nodes: 1 + (i % 4) as u32, sharing: 1 },
            )
            .time
            .0;
    }
    println!("{:.0} ns per collective ({sum})", start.elapsed().as_nanos() as f64 / n as f64);
    for name in [
        "dgx-1v",
        "dgx-a100",
        "p4d.24xlarge",
        "dgx-h100",
        "dgx-b200",
        "mi300x-8",
        "gb200-nvl72",
        "l40s-8",
        "jean-zay-v100",
    ] {
        let node = Interconnect::named(name).unwrap();
        print!("{name:14}");
        for (g, n) in [(2, 1), (4, 1), (8, 1), (8, 2), (8, 16), (8, 128), (1, 16)] {
            for bytes in [1u64 << 20, 1 << 30] {
                let group = Group { per_node: g, nodes: n, sharing: if g == 1 { 8 } else { 1 } };
                let p = node.collective(Collective::AllReduce, Bytes(bytes), group);
                let ranks = f64::from(g * n);
                print!(
                    " {g}x{n}:{:.0}us/{:.1}GB/s",
                    p.time.0 * 1e6,
                    2.0 * (ranks - 1.0) / ranks * bytes as f64 / p.time.0 / 1e9
                );
            }
        }
        let send = node.collective(
            Collective::PointToPoint,
            Bytes(1 << 25),
            Group { per_node: 1, nodes: 2, sharing: 1 },
        );
        let near = node.collective(Collective::PointToPoint, Bytes(1 << 25), Group::in_one_node(2));
        let a2a = node.collective(
            Collective::AllToAll,
            Bytes(1 << 28),
            Group { per_node: 8, nodes: 4, sharing: 1 },
        );
        println!(
            " p2p {:.1} near {:.1} GB/s a2a {:.1} GB/s",
            33.554432e-3 / send.time.0,
            33.554432e-3 / near.time.0,
            0.268435456 / a2a.time.0
        );
    }
}
