//! Tests of the tests: the self-test finds mistakes of kernels, of their launches and of the order of work.

use crate::common;

use autodist_compute::{Backend, Region};
use autodist_cuda::compile::{Output, SOURCE, compile_source};
use autodist_cuda::{Cuda, Nvrtc};
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision::{Bf16, Fp32};
use common::{aborts_on, failed, folder, on, open, search, wrong};
use std::path::Path;

/// Driver errors that end the self-test.
const ILLEGAL_ADDRESS: &str = "CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered";
const INVALID_VALUE: &str = "CUDA_ERROR_INVALID_VALUE, invalid argument";

#[test]
fn a_queue_that_never_waits_is_found() {
    let told = on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_IGNORE_WAIT", "all"),
        || {
            let error = wrong(&open(Fp32), Fp32).unwrap_err();
            assert!(error.contains(ILLEGAL_ADDRESS), "{error}");
        },
    );
    assert!(told.contains("whose allocation its stream has not reached yet"), "{told}");
}

#[test]
fn one_forgotten_wait_among_many_is_found() {
    on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_IGNORE_WAIT", "5"),
        || assert_eq!(wrong(&open(Fp32), Fp32), Ok(["wait_for"].into())),
    );
}

#[test]
fn an_operand_that_is_not_transposed_is_found() {
    on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_TRANSPOSE_BUG", "1"),
        // The layers are made of GEMMs.
        || assert_eq!(wrong(&open(Fp32), Fp32), Ok(["block", "head", "matmul"].into())),
    );
}

#[test]
fn a_row_too_many_is_found() {
    let told = on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_INDEX_BUG", "gather_rows_bf16"),
        || {
            let error = wrong(&open(Bf16), Bf16).unwrap_err();
            assert!(error.contains(ILLEGAL_ADDRESS), "{error}");
        },
    );
    assert!(told.contains("gather_rows_bf16 ("), "{told}");
    assert!(told.contains("illegal write") && told.contains("beyond the end of allocation"), "{told}");
}

#[test]
fn threads_beyond_the_last_element_do_nothing() {
    on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_INDEX_BUG", "add_bf16"),
        || assert_eq!(wrong(&open(Bf16), Bf16), Ok([].into())),
    );
}

#[test]
fn a_buffer_that_is_too_short_for_a_fill_is_found() {
    let told = on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_SHORT_ALLOCATION", "2"),
        || {
            let error = wrong(&open(Fp32), Fp32).unwrap_err();
            assert!(error.contains("cuMemsetD8Async") && error.contains(INVALID_VALUE), "{error}");
        },
    );
    assert!(told.contains("cuMemsetD8Async: 4148 bytes"), "{told}");
    assert!(told.contains("leave allocation 2 of 4144 bytes"), "{told}");
}

#[test]
fn a_buffer_that_is_too_short_for_a_kernel_is_found() {
    let told = on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_SHORT_ALLOCATION", "2"),
        || {
            let cuda = open(Fp32);
            let numbers = cuda.upload(&[1.0; 100]);
            // The second allocation is for the blocks' sums.
            cuda.sum_of_squares(100, Region::start(&numbers));
            let error = cuda.synchronise().unwrap_err().to_string();
            assert!(error.contains(ILLEGAL_ADDRESS), "{error}");
        },
    );
    assert!(told.contains("sum_of_squares_f32 (") && told.contains("illegal write"), "{told}");
    assert!(told.contains("beyond the end of allocation 2 of 2044 bytes"), "{told}");
}

/// Opens the GPU with kernels from a changed source, through the cache of compiled kernels.
fn with_changes(cache: &Path, changes: &[(&str, &str)]) -> Cuda {
    drop(open(Fp32));
    let mut source = SOURCE.to_owned();
    for (from, to) in changes {
        assert_eq!(source.matches(from).count(), 1, "{from}");
        source = source.replace(from, to);
    }
    let compiler = Nvrtc::load(&search()).unwrap();
    let image = compile_source(&compiler, &source, "sm_80", Output::Cubin).unwrap();
    let kept: Vec<_> = std::fs::read_dir(cache.join("autodist/kernels")).unwrap().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    std::fs::write(kept[0].as_ref().unwrap().path(), image).unwrap();
    open(Fp32)
}

#[test]
fn sums_that_do_not_wait_and_indices_off_by_one_are_found() {
    let cache = folder("bugs-mistakes");
    on(
        || SoftwareGpus::new().set("XDG_CACHE_HOME", &cache),
        || {
            let changes = [
                // A warp adds up values that others have not written yet: of a row, of a column.
                ("    __syncthreads();\n    A total = of_warps[0];", "    A total = of_warps[0];"),
                ("    __syncthreads();\n    float total = 0.0f;", "    float total = 0.0f;"),
                // A sum lacks its last term; attention includes one token too many.
                ("for (int j = 0; j < repeat; j++)", "for (int j = 0; j < repeat - 1; j++)"),
                ("score = key <= query ?", "score = key <= query + 1 ?"),
            ];
            let wrong = wrong(&with_changes(&cache, &changes), Fp32).unwrap();
            for operation in ["sum_of_squares", "causal_softmax", "norm_forward", "row_max", "exponentials"] {
                assert!(wrong.contains(operation), "a row's {operation} is not in {wrong:?}");
            }
            for operation in ["sum_rows", "sum_positions", "fused_attention forward", "block", "head"] {
                assert!(wrong.contains(operation), "{operation} is not in {wrong:?}");
            }
            for operation in ["matmul", "add", "add_row", "gather_rows", "rotary", "adamw_step"] {
                assert!(!wrong.contains(operation), "{operation} is in {wrong:?}");
            }
        },
    );
}

#[test]
fn mistakes_in_codecs_are_found() {
    let cache = folder("bugs-codecs");
    on(
        || SoftwareGpus::new().set("XDG_CACHE_HOME", &cache),
        || {
            let changes = [
                // Half precision truncates, sent entries are kept, factors are not orthogonal, random numbers
                // are off by one.
                ("rest += 0xfffu + (rest >> 13 & 1u);", ""),
                ("            x[begin + i] = 0.0f;\n", ""),
                ("for (int again = 0; again < 2; again++)", "for (int again = 0; again < 0; again++)"),
                ("(unsigned long long)(index + 1)", "(unsigned long long)index"),
            ];
            let wrong = wrong(&with_changes(&cache, &changes), Fp32).unwrap();
            let expected = ["fp16", "top-k", "dgc", "powersgd", "powersgd-half", "qsgd", "terngrad"]
                .map(|name| format!("codec {name}"));
            assert_eq!(wrong, expected.iter().map(String::as_str).collect());
        },
    );
}

#[test]
fn sums_that_overwrite_what_is_still_read_are_found() {
    let cache = folder("bugs-overwritten");
    on(
        || SoftwareGpus::new().set("XDG_CACHE_HOME", &cache),
        || {
            let barrier = "    // The next call writes the same memory.\n    __syncthreads();\n";
            let (rows, columns) = ("of_warps[warp]);\n    }\n", "[threadIdx.x];\n        }\n    }\n");
            let [with_rows, with_columns] = [rows, columns].map(|before| format!("{before}{barrier}"));
            let changes = [(with_rows.as_str(), rows), (with_columns.as_str(), columns)];
            let failed = failed(&with_changes(&cache, &changes), Fp32).unwrap();
            let fails = |what: &str, case: &str| {
                failed.iter().any(|check| check.what == what && check.case.contains(case))
            };
            assert!(fails("norm_forward", "LayerNorm") && !fails("norm_forward", "RMSNorm"), "{failed:?}");
            assert!(
                fails("norm_backward", "LayerNorm") && fails("norm_backward", "parameters"),
                "{failed:?}"
            );
            // A single sum does not need the second barrier.
            assert!(!fails("sum_rows", "") && !fails("sum_of_squares", ""), "{failed:?}");
        },
    );
}

#[test]
fn a_barrier_that_not_all_threads_reach_ends_the_process() {
    let cache = folder("bugs-barrier");
    aborts_on(
        || SoftwareGpus::new().set("XDG_CACHE_HOME", &cache),
        || {
            let barrier = "    __syncthreads();\n    A total = of_warps[0];";
            let divergent =
                "    if (threadIdx.x < 128) {\n        __syncthreads();\n    }\n    A total = of_warps[0];";
            let cuda = with_changes(&cache, &[(barrier, divergent)]);
            let _ = wrong(&cuda, Fp32);
        },
        "software GPU: kernel sum_of_squares_f32, block (0, 0, 0): thread 0 waits at the barrier of line",
    );
}
