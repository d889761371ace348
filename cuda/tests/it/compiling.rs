//! Kernels are compiled when a GPU is first opened, and cached.

use crate::common;

use autodist_compute::Backend;
use autodist_cuda::{Cuda, CudaError};
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision::Fp32;
use common::{folder, host, libraries, on, open};
use std::path::{Path, PathBuf};

/// An error code of NVRTC.
const COMPILATION: i32 = 6;
const NO_BINARY_FOR_GPU: i32 = 209;

fn refusal() -> CudaError {
    Cuda::open(libraries(), 0, Fp32).err().unwrap()
}

/// The file of the kernels in a cache.
fn kept(cache: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(cache.join("autodist/kernels")).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none(), "one file, and nothing temporary");
    file
}

#[test]
fn kernels_that_do_not_compile_are_told_with_the_compilers_words() {
    let cache = folder("compiling-broken");
    on(
        || SoftwareGpus::new().set("SOFTWARE_GPU_CXX", "/nowhere/compiler").set("XDG_CACHE_HOME", &cache),
        || {
            let error = refusal();
            assert!(matches!(error, CudaError::Compile { .. }));
            let text = error.to_string();
            assert!(text.starts_with("the kernels do not compile for sm_80: "), "{text}");
            assert!(text.contains("cannot run /nowhere/compiler: No such file"), "{text}");
        },
    );
}

#[test]
fn a_compiler_that_fails_without_a_word_is_told_by_its_code() {
    let cache = folder("compiling-silent");
    on(
        || {
            let always = format!("nvrtcCompileProgram:all:{COMPILATION}");
            SoftwareGpus::new().set("SOFTWARE_GPU_FAULT", always).set("XDG_CACHE_HOME", &cache)
        },
        || {
            let text = refusal().to_string();
            assert_eq!(
                text,
                "the kernels do not compile for sm_80: nvrtcCompileProgram failed: NVRTC_ERROR_COMPILATION"
            );
        },
    );
}

#[test]
fn a_compiler_older_than_the_gpu_compiles_for_the_drivers_own_compiler() {
    let cache = folder("compiling-portable");
    on(
        || {
            let newer = SoftwareGpus::new().capability(12, 0).set("XDG_CACHE_HOME", &cache);
            newer.fault("nvrtcCompileProgram", 1, COMPILATION)
        },
        || {
            let cuda = open(Fp32);
            assert_eq!(cuda.gpu().capability, (12, 0));
            assert_eq!(host(&cuda, &cuda.upload(&[1.5])), [1.5]);
        },
    );
    let image = std::fs::read(kept(&cache)).unwrap();
    // The trailer of the software GPU's images: the capability, and whether the image is only for that.
    assert_eq!(image[image.len() - 8..], [90, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn kernels_that_the_driver_refuses_are_told() {
    let cache = folder("compiling-refused");
    on(
        || {
            let machine = SoftwareGpus::new().fault("cuModuleLoadData", 1, NO_BINARY_FOR_GPU);
            machine.set("XDG_CACHE_HOME", &cache)
        },
        || {
            let text = refusal().to_string();
            assert!(text.starts_with("cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU"), "{text}");
        },
    );
}

#[test]
fn kernels_are_compiled_once() {
    let cache = folder("compiling-once");
    on(
        || {
            let machine = SoftwareGpus::new().set("XDG_CACHE_HOME", &cache);
            machine.fault("nvrtcCompileProgram", 2, COMPILATION).fault("nvrtcCompileProgram", 3, COMPILATION)
        },
        || {
            for _ in 0..3 {
                open(Fp32);
            }
            std::fs::remove_file(kept(&cache)).unwrap();
            refusal();
        },
    );
}

#[test]
fn a_damaged_file_of_the_cache_is_made_anew() {
    let cache = folder("compiling-damaged");
    on(
        || SoftwareGpus::new().set("XDG_CACHE_HOME", &cache),
        || {
            open(Fp32);
            let file = kept(&cache);
            let whole = std::fs::read(&file).unwrap();
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            for damaged in
                [flipped.as_slice(), &whole[..whole.len() / 2], &whole[..10], b"", b"no kernels at all"]
            {
                std::fs::write(&file, damaged).unwrap();
                open(Fp32);
                assert!(std::fs::read(kept(&cache)).unwrap() == whole, "{} bytes", damaged.len());
            }
        },
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    on(|| SoftwareGpus::new().set("XDG_CACHE_HOME", "/dev/null"), || drop(open(Fp32)));
}

#[test]
fn a_cache_must_be_named_by_an_absolute_path() {
    let home = folder("compiling-home");
    on(|| SoftwareGpus::new().set("XDG_CACHE_HOME", "relative").set("HOME", &home), || drop(open(Fp32)));
    kept(&home.join(".cache"));
    assert!(!Path::new("relative").exists());
}
