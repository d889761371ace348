//! The kernels, compiled by NVRTC when a device is first opened, and cached.

use crate::api::{Handle, Nvrtc};
use crate::error::CudaError;
use crate::library::Libraries;
use sha2::{Digest, Sha256};
use std::ffi::{CString, c_char, c_int};
use std::io::Write;
use std::path::PathBuf;
use std::ptr;
use std::sync::LazyLock;

/// One translation unit.
pub const SOURCE: &str = concat!(
    include_str!("../kernels/prelude.cu"),
    include_str!("../kernels/elementwise.cu"),
    include_str!("../kernels/norm.cu"),
    include_str!("../kernels/attention.cu"),
    include_str!("../kernels/tables.cu"),
    include_str!("../kernels/loss.cu"),
    include_str!("../kernels/optimizer.cu"),
    include_str!("../kernels/codecs.cu"),
);

/// Names of all kernels.
pub static KERNELS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let starts = SOURCE.split("\nextern \"C\" __global__ void ").skip(1);
    starts.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
});

/// The output format of NVRTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Machine code (SASS) for one architecture, for example "sm_90".
    Cubin,
    /// Portable code (PTX), which the driver compiles further: "compute_90".
    Ptx,
}

/// Compiles the kernels for an architecture.
///
/// # Errors
/// [`CudaError::Compile`] with the compiler's log.
pub fn compile(nvrtc: &Nvrtc, architecture: &str, output: Output) -> Result<Vec<u8>, CudaError> {
    compile_source(nvrtc, SOURCE, architecture, output)
}

/// Compiles any source.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_source(
    nvrtc: &Nvrtc,
    source: &str,
    architecture: &str,
    output: Output,
) -> Result<Vec<u8>, CudaError> {
    let text = |what: &str| CString::new(what).unwrap_or_default();
    let (source, name) = (text(source), text("autodist.cu"));
    let options = options(architecture).map(|option| text(&option));
    let mut program = ptr::null_mut();
    // SAFETY: all strings are null-terminated and outlive the calls; sizes are queried before buffers are
    // filled.
    unsafe {
        let code = (nvrtc.nvrtcCreateProgram)(
            &raw mut program,
            source.as_ptr(),
            name.as_ptr(),
            0,
            ptr::null(),
            ptr::null(),
        );
        nvrtc.check("nvrtcCreateProgram", code)?;
        let pointers = options.each_ref().map(|option| option.as_ptr());
        let code = (nvrtc.nvrtcCompileProgram)(program, pointers.len() as c_int, pointers.as_ptr());
        let result = match code {
            0 => match output {
                Output::Cubin => fetch(nvrtc, program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN),
                Output::Ptx => fetch(nvrtc, program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX),
            },
            _ => {
                let log = fetch(nvrtc, program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog);
                let log = log.map(|log| String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned());
                let log = match (log, nvrtc.check("nvrtcCompileProgram", code)) {
                    (Ok(log), _) if !log.trim().is_empty() => log,
                    (_, Err(error)) => error.to_string(),
                    (_, Ok(())) => String::new(),
                };
                Err(CudaError::Compile { architecture: architecture.to_owned(), log })
            }
        };
        (nvrtc.nvrtcDestroyProgram)(&raw mut program);
        result
    }
}

fn options(architecture: &str) -> [String; 2] {
    [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()]
}

type Size = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Fill = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;

/// # Safety
/// The two functions belong together, and to this program.
unsafe fn fetch(nvrtc: &Nvrtc, program: Handle, size: Size, fill: Fill) -> Result<Vec<u8>, CudaError> {
    let mut len = 0;
    // SAFETY: the buffer has the size returned by the library.
    unsafe {
        nvrtc.check("the size of NVRTC's output", size(program, &raw mut len))?;
        let mut bytes = vec![0_u8; len];
        nvrtc.check("NVRTC's output", fill(program, bytes.as_mut_ptr().cast()))?;
        Ok(bytes)
    }
}

/// The kernels as a module of the current context: from the cache, or compiled now.
pub(crate) fn module(libraries: &Libraries, capability: (u32, u32)) -> Result<Handle, CudaError> {
    let (driver, nvrtc) = (&libraries.driver, &libraries.nvrtc);
    let load = |image: &[u8]| {
        // The driver reads the length from the image; PTX text must be null-terminated.
        let mut image = image.to_vec();
        image.push(0);
        let mut module = ptr::null_mut();
        // SAFETY: the pointers are valid, and the image is copied by the driver.
        let code = unsafe { (driver.cuModuleLoadData)(&raw mut module, image.as_ptr().cast()) };
        driver.check("cuModuleLoadData", code).map(|()| module)
    };
    let native = format!("sm_{}{}", capability.0, capability.1);
    let file = cached(nvrtc, &native);
    if let Some(module) =
        file.as_ref().and_then(|file| std::fs::read(file).ok()).and_then(|image| load(&image).ok())
    {
        return Ok(module);
    }
    let image = match compile(nvrtc, &native, Output::Cubin) {
        // This compiler may be older than the device: the driver can compile PTX for the newest architecture
        // of the compiler.
        Err(error @ CudaError::Compile { .. }) => {
            let older = [(9, 0), (8, 0)].into_iter().find(|older| *older < capability);
            let portable =
                older.map(|(major, minor)| compile(nvrtc, &format!("compute_{major}{minor}"), Output::Ptx));
            // If that fails too, the first log has the reason.
            portable.and_then(Result::ok).ok_or(error)?
        }
        other => other?,
    };
    let module = load(&image)?;
    if let Some(file) = file {
        // Without a cache the kernels are compiled again next time.
        let _ = keep(&file, &image);
    }
    Ok(module)
}

/// The cache file of the compiled kernels.
fn cached(nvrtc: &Nvrtc, architecture: &str) -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let mut hash = Sha256::new();
    let (major, minor) = nvrtc.version();
    for part in [SOURCE, &options(architecture).join(" "), &nvrtc.file, &format!("{major}.{minor}")] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(base.join("autodist").join("kernels").join(format!("{name}.cubin")))
}

/// Writes the file atomically, because other ranks compile at the same time.
fn keep(file: &std::path::Path, image: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    std::fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(image)?;
    temporary.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::Search;

    #[test]
    fn every_kernel_is_found_by_name() {
        assert!(KERNELS.len() > 60, "{}", KERNELS.len());
        assert!(KERNELS.iter().any(|name| name == "adamw_with_copy"));
        let mut sorted = KERNELS.clone();
        sorted.dedup();
        assert_eq!(sorted.len(), SOURCE.matches("__global__ void").count());
    }

    #[test]
    fn kernels_for_different_gpus_are_kept_apart() {
        let compiler = Nvrtc::load(&Search::only(autodist_software_gpu::libraries())).unwrap();
        let [ampere, again, hopper] = ["sm_80", "sm_80", "sm_90"].map(|gpu| cached(&compiler, gpu).unwrap());
        assert!(ampere == again && ampere != hopper);
    }
}
