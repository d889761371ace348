//! A failure of work on a GPU is reported once, with a message, and later work succeeds unless the GPU is
//! broken.

use crate::common;

use autodist_compute::{Backend, GemmShape, Region, RegionMut};
use autodist_cuda::{Cuda, CudaError, gpus};
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision::{Bf16, Fp32};
use common::{host, libraries, on, open};

/// Error codes of the driver.
const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
const LAUNCH_FAILED: i32 = 719;
/// Error codes of cuBLASLt.
const ALLOC_FAILED: i32 = 3;
const NOT_SUPPORTED: i32 = 15;

const MIB: usize = 1 << 20;

/// The first failure since the last call.
fn failure(cuda: &Cuda) -> String {
    cuda.synchronise().unwrap_err().to_string()
}

/// `[1, 2] + [1, 2]`.
fn assert_works(cuda: &Cuda) {
    let one = cuda.upload(&[1.0, 2.0]);
    let mut sum = cuda.upload(&[1.0, 2.0]);
    cuda.add(2, Region::start(&one), RegionMut::start(&mut sum));
    assert_eq!(host(cuda, &sum), [2.0, 4.0]);
    cuda.synchronise().unwrap();
}

/// `2 × 3`, by cuBLASLt.
fn product_of_ones(cuda: &Cuda) -> f32 {
    let ones = cuda.upload(&[1.0; 3]);
    let mut result = cuda.zeros(1);
    let (left, right) = (Region::start(&ones).rows(3), Region::start(&ones).rows(1));
    cuda.matmul(GemmShape::new(1, 1, 3), 2.0, left, right, 0.0, RegionMut::start(&mut result).rows(1));
    let mut six = [f32::NAN];
    cuda.download(Region::start(&result), &mut six);
    six[0]
}

fn refusal(ordinal: usize) -> CudaError {
    Cuda::open(libraries(), ordinal, Fp32).err().unwrap()
}

#[test]
fn a_gpu_that_is_not_there_is_told() {
    on(
        || SoftwareGpus::new().devices(2),
        || {
            assert_eq!(gpus(&libraries()).unwrap().len(), 2);
            assert_eq!(refusal(2).to_string(), "GPU 2 does not exist: this process sees 2 GPUs");
        },
    );
}

#[test]
fn a_gpu_that_is_too_old_is_refused() {
    on(
        || SoftwareGpus::new().capability(7, 5),
        || {
            let refusal = refusal(0).to_string();
            assert!(refusal.contains("compute capability 7.5: 8.0"), "{refusal}");
        },
    );
}

#[test]
fn memory_that_is_used_up_is_told_in_bytes_and_the_gpu_goes_on() {
    on(
        || SoftwareGpus::new().memory(64 << 20),
        || {
            let cuda = open(Fp32);
            let kept = cuda.zeros(10 * MIB);
            let lost = cuda.zeros(8 * MIB);
            assert_eq!(cuda.len(&lost), 8 * MIB);
            let error = failure(&cuda);
            assert!(error.contains("out of GPU memory: cannot allocate 33554432 bytes"), "{error}");
            assert!(error.contains("25165824 of 67108864 bytes are free"), "{error}");
            drop(kept);
            assert_works(&cuda);
            assert_eq!(host(&cuda, &cuda.zeros(8 * MIB)), vec![0.0; 8 * MIB]);
        },
    );
}

#[test]
fn work_on_what_has_no_memory_is_left_out_wherever_it_begins() {
    on(
        || SoftwareGpus::new().memory(64 << 20),
        || {
            let cuda = open(Fp32);
            let mut lost = cuda.uninitialised(20 * MIB);
            let mut kept = cuda.upload(&[1.0; 8]);
            for offset in [0, 3] {
                cuda.fill_zero(8, RegionMut::new(&mut lost, offset));
                cuda.write(&[5.0; 8], RegionMut::new(&mut lost, offset));
                cuda.scale(8, 2.0, RegionMut::new(&mut lost, offset));
                cuda.copy(8, Region::new(&lost, offset), RegionMut::start(&mut kept));
                cuda.add(8, Region::new(&lost, offset), RegionMut::start(&mut kept));
                let (left, right) = (Region::new(&lost, offset).rows(2), Region::new(&lost, offset).rows(2));
                cuda.matmul(
                    GemmShape::new(2, 2, 2),
                    1.0,
                    left,
                    right,
                    0.0,
                    RegionMut::start(&mut kept).rows(2),
                );
                cuda.download(Region::new(&lost, offset), &mut [0.0; 8]);
            }
            let error = failure(&cuda);
            assert!(error.contains("out of GPU memory"), "{error}");
            assert_eq!(host(&cuda, &kept), [1.0; 8]);
            assert_works(&cuda);
        },
    );
}

#[test]
fn products_work_again_once_there_is_memory_for_their_workspace() {
    on(
        || SoftwareGpus::new().memory(48 << 20),
        || {
            let cuda = open(Fp32);
            let large = cuda.zeros(8 * MIB);
            product_of_ones(&cuda);
            assert!(failure(&cuda).contains("out of GPU memory"));
            product_of_ones(&cuda);
            assert!(failure(&cuda).contains("out of GPU memory"), "and is told each time");
            drop(large);
            assert_eq!(product_of_ones(&cuda), 6.0);
            cuda.synchronise().unwrap();
        },
    );
}

#[test]
fn a_launch_that_is_refused_is_told_once() {
    on(
        || SoftwareGpus::new().fault("cuLaunchKernel", 1, LAUNCH_OUT_OF_RESOURCES),
        || {
            let cuda = open(Fp32);
            let mut numbers = cuda.upload(&[1.0; 4]);
            cuda.scale(4, 2.0, RegionMut::start(&mut numbers));
            let error = failure(&cuda);
            assert!(error.contains("cuLaunchKernel failed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{error}");
            assert!(error.contains("Software GPU"), "the device is named: {error}");
            cuda.synchronise().unwrap();
            assert_works(&cuda);
        },
    );
}

#[test]
fn a_kernel_that_fails_is_told_by_its_error_and_the_gpu_stays_broken() {
    on(
        || SoftwareGpus::new().fault("scale_f32", 1, LAUNCH_FAILED),
        || {
            let cuda = open(Fp32);
            let mut numbers = cuda.upload(&[1.0; 4]);
            cuda.scale(4, 2.0, RegionMut::start(&mut numbers));
            for _ in 0..2 {
                let error = failure(&cuda);
                assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED, unspecified launch failure"), "{error}");
            }
            assert!(cuda.queue().is_err());
            assert!(cuda.seconds_between(&cuda.record(), &cuda.record()).is_nan());
        },
    );
}

#[test]
fn the_first_of_several_failures_is_told() {
    on(
        || {
            SoftwareGpus::new().fault("cuMemsetD8Async", 1, LAUNCH_OUT_OF_RESOURCES).fault(
                "cuLaunchKernel",
                1,
                1,
            )
        },
        || {
            let cuda = open(Fp32);
            let mut numbers = cuda.zeros(4);
            cuda.scale(4, 2.0, RegionMut::start(&mut numbers));
            let error = failure(&cuda);
            assert!(error.contains("cuMemsetD8Async") && !error.contains("cuLaunchKernel"), "{error}");
        },
    );
}

#[test]
fn a_failure_on_another_thread_is_told_to_the_queue_that_asks() {
    on(
        || SoftwareGpus::new().fault("cuLaunchKernel", 1, LAUNCH_OUT_OF_RESOURCES),
        || {
            let cuda = open(Fp32);
            let other = cuda.queue().unwrap();
            std::thread::spawn(move || {
                let mut numbers = other.zeros(4);
                other.scale(4, 2.0, RegionMut::start(&mut numbers));
            })
            .join()
            .unwrap();
            assert!(failure(&cuda).contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"));
        },
    );
}

#[test]
fn products_that_cublaslt_has_no_algorithm_for_are_told() {
    on(
        || SoftwareGpus::new().fault("cublasLtMatmulAlgoGetHeuristic", 1, NOT_SUPPORTED),
        || {
            let cuda = open(Bf16);
            product_of_ones(&cuda);
            let error = failure(&cuda);
            assert!(error.starts_with("a matrix product failed on Software GPU"), "{error}");
            assert!(error.contains("cublasLtMatmulAlgoGetHeuristic failed: the functionality"), "{error}");
            assert!(error.contains("not supported"), "{error}");
            assert_eq!(product_of_ones(&cuda), 6.0, "what failed is not kept");
        },
    );
}

#[test]
fn products_that_cublaslt_refuses_are_told() {
    on(
        || SoftwareGpus::new().fault("cublasLtMatmul", 1, NOT_SUPPORTED),
        || {
            let cuda = open(Fp32);
            product_of_ones(&cuda);
            let error = failure(&cuda);
            assert!(error.contains("cublasLtMatmul failed: the functionality requested is not"), "{error}");
            assert_eq!(product_of_ones(&cuda), 6.0);
        },
    );
}

#[test]
fn a_gpu_without_cublaslt_does_not_open() {
    on(
        || SoftwareGpus::new().fault("cublasLtCreate", 1, ALLOC_FAILED),
        || assert_eq!(refusal(0).to_string(), "cublasLtCreate failed: the resource allocation failed"),
    );
}
