//! Every operation on the software GPU.

use crate::common;

use autodist_compute::{Backend, GemmShape, Matrix, MatrixMut, Region, RegionMut};
use autodist_cuda::Cuda;
use autodist_cuda::blas::Strides;
use autodist_cuda::compile::KERNELS;
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision;
use common::{folder, host, libraries, on, open, wrong};
use std::collections::BTreeSet;

#[test]
fn every_operation_is_right_in_fp32() {
    on(SoftwareGpus::new, || assert_eq!(wrong(&open(Precision::Fp32), Precision::Fp32), Ok(BTreeSet::new())));
}

#[test]
fn every_operation_is_right_in_tf32() {
    on(SoftwareGpus::new, || assert_eq!(wrong(&open(Precision::Tf32), Precision::Tf32), Ok(BTreeSet::new())));
}

#[test]
fn every_operation_is_right_in_bf16() {
    on(SoftwareGpus::new, || assert_eq!(wrong(&open(Precision::Bf16), Precision::Bf16), Ok(BTreeSet::new())));
}

#[test]
fn the_selftest_runs_every_kernel_and_leaves_no_memory_behind() {
    let file = folder("kernels-trace").join("trace");
    on(
        || SoftwareGpus::new().trace(&file),
        || {
            let cuda = open(Precision::Fp32);
            for precision in [Precision::Fp32, Precision::Bf16] {
                wrong(&cuda, precision).unwrap();
            }
        },
    );
    let trace = std::fs::read_to_string(&file).unwrap();
    let launched: BTreeSet<&str> =
        trace.lines().filter_map(|line| line.split("name=").nth(1)?.split(' ').next()).collect();
    let idle: Vec<_> = KERNELS.iter().filter(|kernel| !launched.contains(kernel.as_str())).collect();
    assert!(idle.is_empty(), "never launched: {idle:?}");
    assert!(trace.contains(" exit allocations=0 bytes=0\n"), "{:?}", trace.lines().last());
}

/// Multiplies `a[2, 4, 3]` by `b[2, 3, 5]`, small whole numbers, and compares with the result defined by the
/// strides.
fn assert_multiplies([a, b, c]: [Strides; 3], precision: Precision) {
    const LEN: usize = 300;
    let cuda = open(precision);
    let product = GemmShape::new(4, 5, 3).batched(2);
    let numbers: Vec<f32> = (0..LEN).map(|i| (i * 37 % 11) as f32 - 5.0).collect();
    let (left, right) = (cuda.upload(&numbers), cuda.upload(&numbers[7..]));
    let mut result = cuda.upload(&[99.0; LEN]);
    let of = |buffer, s: Strides| Matrix {
        region: Region::start(buffer),
        row_stride: s.row,
        column_stride: s.column,
        batch_stride: s.batch,
    };
    let to = MatrixMut {
        region: RegionMut::start(&mut result),
        row_stride: c.row,
        column_stride: c.column,
        batch_stride: c.batch,
    };
    cuda.matmul(product, 1.0, of(&left, a), of(&right, b), 0.0, to);

    let at = |s: Strides, matrix, row, column| matrix * s.batch + row * s.row + column * s.column;
    let mut expected = vec![99.0; LEN];
    for (matrix, row, column) in (0..40).map(|i| (i / 20, i / 5 % 4, i % 5)) {
        let term = |i| numbers[at(a, matrix, row, i)] * numbers[7 + at(b, matrix, i, column)];
        expected[at(c, matrix, row, column)] = (0..3).map(term).sum();
    }
    assert_eq!(host(&cuda, &result), expected, "{a:?} {b:?} {c:?}");
    cuda.synchronise().unwrap();
}

#[test]
fn products_of_matrices_that_are_dense_neither_way_are_right() {
    on(SoftwareGpus::new, || {
        let strides = |row, column, batch| Strides { row, column, batch };
        let (a, b, c) = (strides(3, 1, 12), strides(5, 1, 15), strides(5, 1, 20));
        let gaps = strides(10, 2, 50);
        // One row for all rows: a broadcast.
        let repeated = strides(0, 1, 3);
        for precision in [Precision::Fp32, Precision::Bf16] {
            for operands in [[gaps, b, c], [a, gaps, c], [gaps, gaps, c], [repeated, b, c], [a, repeated, c]]
            {
                assert_multiplies(operands, precision);
            }
        }
    });
}

#[test]
fn products_by_columns_are_right() {
    on(SoftwareGpus::new, || {
        let strides = |row, column, batch| Strides { row, column, batch };
        let by_columns = [strides(1, 4, 12), strides(1, 3, 15), strides(1, 6, 40)];
        let [a, b, c] = by_columns;
        let gaps = strides(10, 2, 50);
        for operands in [by_columns, [strides(3, 1, 12), b, c], [a, strides(5, 1, 15), c], [gaps, gaps, c]] {
            assert_multiplies(operands, Precision::Fp32);
        }
    });
}

#[test]
fn gpus_opened_one_after_the_other_all_work() {
    on(
        || SoftwareGpus::new().devices(3),
        || {
            for ordinal in 0..3 {
                let cuda = Cuda::open(libraries(), ordinal, Precision::Fp32).unwrap();
                let mut numbers = cuda.upload(&[1.0, 2.0]);
                cuda.scale(2, 3.0, RegionMut::start(&mut numbers));
                assert_eq!(host(&cuda, &numbers), [3.0, 6.0]);
            }
        },
    );
}

#[test]
fn sums_of_nothing_are_zero() {
    on(SoftwareGpus::new, || {
        let cuda = open(Precision::Bf16);
        let nothing = cuda.zeros_full(0);
        assert_eq!(cuda.read(&cuda.sum_of_squares(0, Region::start(&nothing))), 0.0);
        assert_eq!(cuda.read(&cuda.cross_entropy(0, Region::start(&nothing))), 0.0);
        cuda.synchronise().unwrap();
    });
}
