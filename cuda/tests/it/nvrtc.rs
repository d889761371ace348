//! The kernels compile with NVIDIA's own compiler, which needs no GPU.

use autodist_cuda::compile::{KERNELS, Output, SOURCE, compile, compile_source};
use autodist_cuda::{CudaError, Nvrtc, Search};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The real NVRTC, if installed: from `target/nvrtc`, or from the system.
static COMPILER: LazyLock<Option<Nvrtc>> = LazyLock::new(|| {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nvrtc");
    let mut directories = Vec::new();
    library_folders(&installed, &mut directories);
    let here = Search { directories, system: false };
    let found = Nvrtc::load(&here).or_else(|_| Nvrtc::load(&Search::from_environment()));
    if let Err(missing) = &found {
        // Written directly to stderr, because the test harness hides the output of passing tests.
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: NVIDIA's compiler has not seen the kernels. {missing}\nTo let it, install it where tests \
             look: pip install --target target/nvrtc nvidia-cuda-nvrtc-cu12==12.8.93\n"
        );
    }
    found.ok()
});

/// All folders named `lib`, at any depth.
fn library_folders(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            library_folders(&entry.path(), found);
            found.extend((entry.file_name() == "lib").then(|| entry.path()));
        }
    }
}

fn machine_code_for(architecture: &str) {
    let Some(compiler) = &*COMPILER else { return };
    let code = compile(compiler, architecture, Output::Cubin).unwrap();
    assert_eq!(code[..4], *b"\x7fELF", "{architecture}");
    // Symbol names in an ELF file are null-terminated.
    let text = String::from_utf8_lossy(&code);
    for kernel in KERNELS.iter() {
        assert!(text.contains(&format!("\0{kernel}\0")), "{architecture} lacks {kernel}");
    }
}

fn portable_code_for(architecture: &str) {
    let Some(compiler) = &*COMPILER else { return };
    let code = String::from_utf8(compile(compiler, architecture, Output::Ptx).unwrap()).unwrap();
    assert!(code.contains(&format!(".target {}", architecture.replace("compute", "sm"))));
    for kernel in KERNELS.iter() {
        assert!(code.contains(&format!(".entry {kernel}(")), "{architecture} lacks {kernel}");
    }
}

#[test]
fn all_kernels_become_machine_code_for_ampere() {
    machine_code_for("sm_80");
}

#[test]
fn all_kernels_become_machine_code_for_hopper() {
    machine_code_for("sm_90");
}

#[test]
fn all_kernels_become_portable_code_for_ampere() {
    portable_code_for("compute_80");
}

#[test]
fn all_kernels_become_portable_code_for_hopper() {
    portable_code_for("compute_90");
}

#[test]
fn a_mistake_in_the_source_is_told_with_its_line() {
    let Some(compiler) = &*COMPILER else { return };
    let broken = format!("{SOURCE}\nextern \"C\" __global__ void broken() {{ nonsense; }}\n");
    let line = broken.lines().count();
    match compile_source(compiler, &broken, "sm_80", Output::Cubin) {
        Err(CudaError::Compile { architecture, log }) => {
            assert_eq!(architecture, "sm_80");
            assert!(log.contains(&format!("autodist.cu({line})")) && log.contains("nonsense"), "{log}");
        }
        other => panic!("{:?}", other.map(|code| code.len())),
    }
}

#[test]
fn a_gpu_that_the_compiler_does_not_know_is_told() {
    let Some(compiler) = &*COMPILER else { return };
    let error = compile(compiler, "sm_999", Output::Cubin).unwrap_err().to_string();
    assert!(error.contains("do not compile for sm_999") && error.contains("gpu-architecture"), "{error}");
}
