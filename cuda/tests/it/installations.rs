//! Error messages about missing or incompatible libraries name them and the remedy.

use crate::common;

use autodist_cuda::{CudaError, Libraries, OVERRIDE, Search, diagnose, nvml};
use autodist_software_gpu::{SoftwareGpus, libraries as all_libraries, with_missing_symbol, without};
use common::{folder, on, search};

/// The message why the libraries of this process's machine cannot be loaded.
fn refusal() -> String {
    match Libraries::load(&search()) {
        Ok(_) => panic!("all is there"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_tells(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

fn machine_without(library: &'static str) -> impl FnOnce() -> SoftwareGpus {
    move || SoftwareGpus::with_libraries(without(library))
}

fn machine_with_an_old(library: &'static str, entry: &'static str) -> impl FnOnce() -> SoftwareGpus {
    move || SoftwareGpus::with_libraries(with_missing_symbol(library, entry))
}

#[test]
fn a_missing_driver_is_named() {
    on(machine_without("libcuda.so.1"), || {
        assert_tells(
            &refusal(),
            &[
                "NVIDIA's driver: not found",
                "looked for libcuda.so.1, libcuda.so in /",
                "install NVIDIA's driver",
            ],
        );
    });
}

#[test]
fn a_missing_compiler_is_named() {
    on(machine_without("libnvrtc.so.12"), || {
        assert_tells(
            &refusal(),
            &["NVRTC", "not found", "libnvrtc.so.12", "pip install nvidia-cuda-nvrtc-cu12"],
        );
    });
}

#[test]
fn missing_products_are_named() {
    on(machine_without("libcublasLt.so.12"), || {
        assert_tells(
            &refusal(),
            &["cuBLASLt: not found", "libcublasLt.so.12", "pip install nvidia-cublas-cu12"],
        );
    });
}

#[test]
fn nccl_may_be_missing_until_it_is_asked_for() {
    on(machine_without("libnccl.so.2"), || {
        let libraries = Libraries::load(&search()).unwrap();
        let missing = libraries.nccl().err().unwrap().to_string();
        assert_tells(
            &missing,
            &["NCCL: not found", "libnccl.so.2", "pip install nvidia-nccl-cu12", "libnccl2"],
        );
    });
}

#[test]
fn nvml_may_be_missing_until_it_is_asked_for() {
    on(machine_without("libnvidia-ml.so.1"), || {
        let libraries = Libraries::load(&search()).unwrap();
        let error = nvml::look(&libraries, &[]).unwrap_err();
        assert!(matches!(error, CudaError::Missing(_)));
        assert_tells(
            &error.to_string(),
            &["NVML: not found", "libnvidia-ml.so.1", "install NVIDIA's driver"],
        );
    });
}

#[test]
fn an_old_driver_is_told_by_the_entry_point_that_it_lacks() {
    on(machine_with_an_old("libcuda.so.1", "cuMemAllocAsync"), || {
        assert_tells(
            &refusal(),
            &[
                "NVIDIA's driver: cannot be loaded",
                "/libcuda.so.1 lacks the entry point cuMemAllocAsync",
                "newer",
            ],
        );
    });
}

#[test]
fn an_old_compiler_is_told_by_the_entry_point_that_it_lacks() {
    on(machine_with_an_old("libnvrtc.so.12", "nvrtcGetCUBIN"), || {
        assert_tells(&refusal(), &["NVRTC", "/libnvrtc.so.12 lacks the entry point nvrtcGetCUBIN"]);
    });
}

#[test]
fn old_products_are_told_by_the_entry_point_that_they_lack() {
    on(machine_with_an_old("libcublasLt.so.12", "cublasLtMatmulAlgoGetHeuristic"), || {
        assert_tells(
            &refusal(),
            &["cuBLASLt", "/libcublasLt.so.12 lacks the entry point cublasLtMatmulAlgoGetHeuristic"],
        );
    });
}

#[test]
fn an_old_nccl_is_told_by_the_entry_point_that_it_lacks() {
    on(machine_with_an_old("libnccl.so.2", "ncclCommGetAsyncError"), || {
        let libraries = Libraries::load(&search()).unwrap();
        let missing = libraries.nccl().err().unwrap().to_string();
        assert_tells(&missing, &["NCCL", "/libnccl.so.2 lacks the entry point ncclCommGetAsyncError"]);
    });
}

#[test]
fn a_file_that_is_no_library_is_told_with_the_loaders_reason() {
    let place = folder("installations-text");
    std::fs::write(place.join("libcuda.so.1"), "No library.\n".repeat(100)).unwrap();
    let error = Libraries::load(&Search::only(&place)).err().unwrap().to_string();
    assert_tells(
        &error,
        &["NVIDIA's driver: cannot be loaded", "installations-text/libcuda.so.1", "invalid ELF header"],
    );
}

#[test]
fn a_file_that_is_no_library_is_passed_over_for_one_that_is() {
    let place = folder("installations-stale");
    std::fs::write(place.join("libcuda.so.1"), "").unwrap();
    on(SoftwareGpus::new, || {
        let mut search = search();
        search.directories.insert(0, place);
        Libraries::load(&search).unwrap();
    });
}

#[test]
fn the_systems_loader_finds_what_no_folder_has() {
    on(SoftwareGpus::new, || {
        // The machine's libraries are on LD_LIBRARY_PATH.
        Libraries::load(&Search { directories: Vec::new(), system: true }).unwrap();
        let error = Libraries::load(&Search::default()).err().unwrap().to_string();
        assert_tells(&error, &["looked for libcuda.so.1, libcuda.so in no folder"]);
    });
}

#[test]
fn folders_that_the_user_names_come_first_and_python_wheels_last() {
    let home = folder("installations-python");
    let packages = home.join("lib/python3.12/site-packages");
    std::fs::create_dir_all(&packages).unwrap();
    on(
        || SoftwareGpus::new().set(OVERRIDE, "/first:/second").set("VIRTUAL_ENV", &home),
        || {
            let Search { directories, system } = Search::from_environment();
            let at = |path: &std::path::Path| directories.iter().position(|folder| folder == path);
            assert_eq!((at("/first".as_ref()), at("/second".as_ref())), (Some(0), Some(1)));
            assert_eq!(at(&all_libraries()), Some(2), "LD_LIBRARY_PATH");
            let (installed, wheel) =
                (at("/usr/local/cuda/lib64".as_ref()), at(&packages.join("nvidia/nccl/lib")));
            assert!(Some(2) < installed && installed < wheel, "{directories:?}");
            assert!(system);
        },
    );
}

#[test]
fn a_complete_installation_is_described() {
    on(SoftwareGpus::new, || {
        let at = all_libraries().display().to_string();
        assert_eq!(
            diagnose(&search()),
            [
                format!("NVIDIA's driver: {at}/libcuda.so.1, for CUDA 12.8"),
                format!("NVRTC, CUDA's run-time compiler: {at}/libnvrtc.so.12, 12.8"),
                format!("cuBLASLt: {at}/libcublasLt.so.12"),
                format!("NCCL: {at}/libnccl.so.2, 2.28.3"),
                format!("NVML: {at}/libnvidia-ml.so.1"),
            ]
        );
    });
}

#[test]
fn an_incomplete_installation_is_described_to_its_end() {
    on(machine_without("libnvrtc.so.12"), || {
        let lines = diagnose(&search());
        assert_eq!(lines.len(), 5);
        assert_tells(&lines[0], &["NVIDIA's driver: /", "for CUDA 12.8"]);
        assert_tells(&lines[1], &["run-time compiler: not found: looked for", "pip install"]);
        assert!(lines[2..].iter().all(|line| !line.contains("not found")), "{lines:?}");
    });
}

#[test]
fn a_machine_without_gpus_is_described() {
    on(
        || SoftwareGpus::new().devices(0),
        || assert_tells(&diagnose(&search())[0], &["NVIDIA's driver: the driver finds no GPU"]),
    );
}

#[test]
fn a_machine_without_gpus_is_told() {
    on(
        || SoftwareGpus::new().devices(0),
        || assert_eq!(refusal(), "the driver finds no GPU; `nvidia-smi` shows what it sees"),
    );
}

#[test]
fn hidden_gpus_are_told_by_what_may_hide_them() {
    on(
        || SoftwareGpus::new().set("CUDA_VISIBLE_DEVICES", "7"),
        || {
            assert_eq!(refusal(), "the driver finds no GPU; CUDA_VISIBLE_DEVICES is `7`: does it hide them?");
        },
    );
}

#[test]
fn a_driver_that_does_not_start_is_told() {
    const MISMATCH: i32 = 803;
    on(
        || SoftwareGpus::new().fault("cuInit", 1, MISMATCH),
        || {
            assert_tells(
                &refusal(),
                &["cuInit failed: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, system has unsupported"],
            )
        },
    );
}
