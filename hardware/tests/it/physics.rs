//! Laws that hold for every device, measured or not, within the tables and beyond.

use autodist_hardware::{
    Attention, AttentionKernel, Catalogue, DeviceModel, GroupShape, InterNodeNetwork, Interconnect,
    KernelParameters,
};
use autodist_spec::{Bytes, BytesPerSecond, Cluster, Collective, Precision, Provenance, Seconds};

const SIZES: [u64; 9] = [1, 48, 200, 777, 2048, 5000, 15360, 40000, 300000];

fn all() -> Vec<DeviceModel> {
    let catalogue = Catalogue::shipped();
    catalogue.devices().iter().map(|d| DeviceModel::new(d, KernelParameters::shipped()).unwrap()).collect()
}

#[test]
fn no_product_beats_the_peak_or_takes_for_ever() {
    for device in all() {
        for &dtype in Precision::ALL {
            for (m, n, k) in
                SIZES.iter().flat_map(|m| SIZES.iter().flat_map(move |n| SIZES.map(|k| (*m, *n, k))))
            {
                let time = device.gemm(dtype, m, n, k).time.0;
                let least = 2.0 * m as f64 * n as f64 * k as f64 / device.peak(dtype).0;
                let bytes = dtype.operand_bytes() * (m + n) as f64 * k as f64
                    + dtype.result_bytes() * m as f64 * n as f64;
                let slow = bytes / device.figures().memory_bytes_per_s.0;
                // Padded to tiles of 64 x 64 at least; at the FLOP/s of one streaming multiprocessor if there
                // is only one tile.
                let padded =
                    least * (m.div_ceil(64) * n.div_ceil(64) * 64 * 64) as f64 / (m as f64 * n as f64);
                let one = 2.0 * 64.0 * 64.0 * k as f64 / device.peak(dtype).0 * 500.0;
                // Plus a few microseconds for each wave of tiles.
                let waves = (m.div_ceil(64) * n.div_ceil(64)) as f64 / 80.0;
                let most = 12.0 * (padded + slow + one) + 1e-4 + 5e-6 * waves;
                let name = &device.figures().name;
                // But for rounding.
                assert!(time >= least * (1.0 - 1e-12), "{name} {dtype} {m} {n} {k}: {time} under {least}");
                assert!(time <= most, "{name} {dtype} {m} {n} {k}: {time} over {most}");
            }
        }
    }
}

#[test]
fn more_rows_take_as_long_or_longer_but_for_what_libraries_do() {
    for device in all() {
        for (n, k) in [(4096, 4096), (11008, 4096), (5120, 13824), (128256, 8192)] {
            let time = |m: u64| device.gemm(Precision::Bf16, m, n, k).time.0;
            for m in (0..14).map(|power| 8 << power) {
                // Doubling the rows takes between almost the same time and well over twice as long.
                let growth = time(2 * m) / time(m);
                assert!((0.93..2.6).contains(&growth), "{} {m} {n} {k}: {growth}", device.figures().name);
            }
        }
    }
}

#[test]
fn what_was_measured_and_what_was_not_is_told_apart() {
    let h100 = DeviceModel::named("h100-80gb-sxm").unwrap();
    let inside = h100.gemm(Precision::Bf16, 4096, 4096, 4096);
    let between = h100.gemm(Precision::Bf16, 4096, 11008, 4096);
    let outside = h100.gemm(Precision::Bf16, 1 << 20, 4096, 4096);
    assert_eq!(inside.provenance, Provenance::Interpolated);
    assert_eq!(between.provenance, Provenance::Interpolated);
    assert_eq!(outside.provenance, Provenance::Extrapolated);
    assert!(inside.spread < between.spread && between.spread < 0.15 && outside.spread > inside.spread);
    assert_eq!(h100.gemm(Precision::Fp8, 4096, 4096, 4096).provenance, Provenance::Interpolated);
    assert_eq!(h100.gemm(Precision::Fp16, 4096, 4096, 4096).provenance, Provenance::Modelled);
    assert_eq!(h100.memory_bound(1e9).provenance, Provenance::Modelled);
    for name in ["v100-32gb-sxm", "a100-40gb-sxm", "mi300x"] {
        let device = DeviceModel::named(name).unwrap();
        let price = device.gemm(Precision::Bf16, 4096, 4096, 4096);
        assert_eq!(price.provenance, Provenance::Extrapolated, "{name}");
        assert!(price.spread >= 0.2, "{name}");
    }
    let a100 = Interconnect::named("dgx-a100").unwrap();
    let one = a100.collective(Collective::AllReduce, Bytes(1 << 26), GroupShape::in_one_node(8));
    assert_eq!(one.provenance, Provenance::Interpolated);
    let v100 = Interconnect::named("dgx-1v").unwrap();
    let other = v100.collective(Collective::AllReduce, Bytes(1 << 26), GroupShape::in_one_node(8));
    assert_eq!(other.provenance, Provenance::Extrapolated);
}

#[test]
fn attention_grows_with_what_it_computes() {
    let shape = Attention {
        batch: 2,
        sequence: 4096,
        keys: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        causal: true,
    };
    for device in all() {
        let name = &device.figures().name;
        let forward = |shape: &Attention| device.attention_forward(shape, AttentionKernel::Flash);
        let time = forward(&shape).time.0;
        assert!(time > shape.forward_flops() / device.peak(Precision::Bf16).0, "{name}");
        let full = forward(&Attention { causal: false, ..shape }).time.0 / time;
        assert!((1.6..2.1).contains(&full), "{name}: all keys take {full} times the half");
        let longer = forward(&Attention { sequence: 8192, keys: 8192, ..shape }).time.0 / time;
        assert!((2.5..4.5).contains(&longer), "{name}: twice as long takes {longer} times as long");
        let backward = device.attention_backward(&shape, AttentionKernel::Flash).time.0 / time;
        assert!((2.0..3.5).contains(&backward), "{name}");
        let unfused = device.attention_forward(&shape, AttentionKernel::Unfused).time.0;
        assert!(unfused > time, "{name}: scores in memory cost more");
        let odd = forward(&Attention { head_dim: 96, ..shape });
        assert_eq!(odd.provenance, Provenance::Extrapolated, "{name}");
    }
}

#[test]
fn between_nodes_the_cards_are_the_limit_and_are_shared() {
    let node = Interconnect::named("dgx-a100").unwrap();
    let bytes = Bytes(1 << 30);
    let time = |group: GroupShape| node.collective(Collective::AllReduce, bytes, group).time.0;
    let whole = time(GroupShape { per_node: 8, nodes: 4, sharing: 1 });
    let sent = 2.0 * 31.0 / 32.0 * bytes.as_f64();
    assert!(sent / whole < 200e9 && sent / whole > 150e9, "{}", sent / whole);
    let one_of_eight = time(GroupShape { per_node: 1, nodes: 4, sharing: 8 });
    let alone = time(GroupShape { per_node: 1, nodes: 4, sharing: 1 });
    // A single device uses only its own NIC, whether the others are busy or not.
    assert!((one_of_eight / alone - 1.0).abs() < 1e-9);
    assert!(one_of_eight > 6.0 * whole);
    let few = InterNodeNetwork { nics: 1, ..*node.network().unwrap() };
    let shared = node.clone().with_network(few);
    let alone =
        shared.collective(Collective::AllReduce, bytes, GroupShape { per_node: 1, nodes: 4, sharing: 1 });
    let busy =
        shared.collective(Collective::AllReduce, bytes, GroupShape { per_node: 1, nodes: 4, sharing: 8 });
    assert!(busy.time.0 > 6.0 * alone.time.0);
    // If rings use one of eight NICs, whole nodes are as slow as one device, and eight groups at once are no
    // slower.
    let one_card =
        node.clone().with_network(InterNodeNetwork { group_nics: Some(1), ..*node.network().unwrap() });
    let time = |group: GroupShape| one_card.collective(Collective::AllReduce, bytes, group).time.0;
    assert!(time(GroupShape { per_node: 8, nodes: 4, sharing: 1 }) > 6.0 * whole);
    assert_eq!(time(GroupShape { per_node: 1, nodes: 4, sharing: 8 }), one_of_eight);
}

#[test]
fn collectives_grow_with_bytes_and_ranks() {
    let catalogue = Catalogue::shipped();
    for node in catalogue.nodes() {
        let links = Interconnect::named(&node.name).unwrap();
        for kind in [
            Collective::AllReduce,
            Collective::ReduceScatter,
            Collective::AllGather,
            Collective::AllToAll,
            Collective::Broadcast,
            Collective::SendRecv,
        ] {
            for nodes in [1, 2, 16] {
                let group = GroupShape { per_node: node.devices.min(8), nodes, sharing: 1 };
                let mut last = 0.0;
                for power in (10..34).step_by(2) {
                    let price = links.collective(kind, Bytes(1 << power), group);
                    // Measured collectives of few bytes jump where the protocol changes.
                    let least = if power < 20 { 0.7 } else { 0.9 };
                    assert!(price.time.0 > least * last, "{} {} {nodes} 2^{power}", node.name, kind.name());
                    assert!(price.spread > 0.0);
                    last = price.time.0;
                }
                let rate = (1u64 << 32) as f64 / last;
                assert!(rate > 1e8 && rate < 2e13, "{} {} {nodes}: {rate}", node.name, kind.name());
            }
        }
        let alone = links.collective(Collective::AllReduce, Bytes(1 << 20), GroupShape::in_one_node(1));
        assert_eq!(alone.time, Seconds::ZERO);
    }
}

#[test]
fn clusters_are_priced_by_their_names_and_by_their_own_figures() {
    let catalogue = Catalogue::shipped();
    let named = Cluster::from_short_form("4x8xa100-80gb-sxm@8x200gbps").unwrap();
    let own = DeviceModel::of_nodes(&named, 0, &catalogue).unwrap();
    let same = DeviceModel::named("a100-80gb-sxm").unwrap();
    assert_eq!(own.gemm(Precision::Bf16, 999, 999, 999), same.gemm(Precision::Bf16, 999, 999, 999));
    let links = Interconnect::of_nodes(&named, 0, &catalogue).unwrap();
    assert_eq!(links.network().unwrap().node_rate, BytesPerSecond(200e9));
    // Half as many NICs of twice the bandwidth: a single device has a faster one.
    let fewer = Cluster::from_short_form("4x8xa100-80gb-sxm@4x400gbps").unwrap();
    let message = |cluster: &Cluster| {
        let pair = GroupShape { per_node: 1, nodes: 2, sharing: 1 };
        let links = Interconnect::of_nodes(cluster, 0, &catalogue).unwrap();
        links.collective(Collective::SendRecv, Bytes(1 << 30), pair).time
    };
    assert!(message(&fewer).0 < 0.6 * message(&named).0);
    let mut other = named.clone();
    other.nodes[0].device.name = "abacus".to_owned();
    other.nodes[0].link = None;
    let slow = DeviceModel::of_nodes(&other, 0, &catalogue).unwrap();
    assert_eq!(slow.gemm(Precision::Bf16, 999, 999, 999).provenance, Provenance::Extrapolated);
    assert!(Interconnect::of_nodes(&other, 0, &catalogue).unwrap_err().to_string().contains("nodes[0].link"));
    other.nodes[0].device.peak_flops_per_s = None;
    let error = DeviceModel::of_nodes(&other, 0, &catalogue).unwrap_err().to_string();
    assert!(error.contains("nodes[0].device.peak_flops_per_s"), "{error}");
}
