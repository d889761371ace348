#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program")]
use autodist_hardware::*;
fn main() {
    let d = DeviceModel::named("h100-80gb-sxm").unwrap();
    let n = 10_000_000u64;
    let start = std::time::Instant::now();
    let mut sum = 0.0;
    for i in 0..n {
        sum += d.gemm(Dtype::Bf16, 512 + i % 7000, 1024 + (i * 7) % 9000, 768 + (i * 13) % 12000).time.0;
    }
    println!("{:.0} ns per product ({sum})", start.elapsed().as_nanos() as f64 / n as f64);
}
