//! The software GPU: stand-ins for the CUDA libraries, built from the C++ sources of this crate for tests on
//! machines without a GPU. They offer the entry points that our code calls, with the documented behaviour,
//! and are stricter than hardware: see `device.h` for the model. Nothing that they report is a measurement.
//!
//! A process sees the machine that its environment describes when it first calls any of the libraries:
//!
//! | variable | value | meaning |
//! |---|---|---|
//! | `SOFTWARE_GPU_DEVICES` | count, 1 | devices in the machine; `CUDA_VISIBLE_DEVICES` (numbers) chooses among them |
//! | `SOFTWARE_GPU_MEMORY` | bytes, 2 GiB | of each device, in each process |
//! | `SOFTWARE_GPU_CAPABILITY` | `8.0` | compute capability |
//! | `SOFTWARE_GPU_POISON` | two hex digits, `FF` | value of fresh memory |
//! | `SOFTWARE_GPU_FAULT` | list, see below | calls and operations that fail |
//! | `SOFTWARE_GPU_IGNORE_WAIT` | n or `all` | the nth `cuStreamWaitEvent` does nothing |
//! | `SOFTWARE_GPU_SHORT_ALLOCATION` | n or `all` | the nth `cuMemAllocAsync` gets four bytes too few |
//! | `SOFTWARE_GPU_INDEX_BUG` | kernel | is launched with one more block in x |
//! | `SOFTWARE_GPU_TRANSPOSE_BUG` | any | `cublasLtMatmul` ignores the transpose of A |
//! | `SOFTWARE_GPU_NO_PEER` | any | devices cannot access each other |
//! | `SOFTWARE_GPU_NCCL_STALL` | any | after the loss of a rank, operations hang until `ncclCommAbort`, as on hardware |
//! | `SOFTWARE_GPU_NCCL_TIMEOUT` | seconds, 120 | that `ncclCommInitRank` waits for the other ranks |
//! | `SOFTWARE_GPU_STANDSTILL` | milliseconds, 100 | after which a wait that gets nowhere lets everything enqueued go |
//! | `SOFTWARE_GPU_THROTTLE`, `SOFTWARE_GPU_OTHER_PROCESS` | any | NVML reports throttling, another process |
//! | `SOFTWARE_GPU_TRACE` | path | gets a line per executed operation, and one at exit with memory in use |
//! | `SOFTWARE_GPU_CXX` | `g++` | compiler of the libraries and of kernels |
//!
//! An entry of `SOFTWARE_GPU_FAULT` is `<name>:<nth>:<code>`, entries are separated by commas, and `all`
//! stands for each. A name is an entry point (the call returns the code without doing its work), a kernel
//! (the launch succeeds and its execution fails for good) or an operation's name in the trace followed by
//! `@run` (the same). `/<device>` after the name counts only calls and operations on that device.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;
use sha2::{Digest, Sha256};

/// Shared code of the libraries, which each of them links to.
const CORE: (&str, &str) = ("libsoftware-gpu.so", "device.cpp");

/// The libraries, by the names under which the real ones are installed, and their sources.
const LIBRARIES: [(&str, &str); 5] = [
    ("libcuda.so.1", "driver.cpp"),
    ("libnvrtc.so.12", "nvrtc.cpp"),
    ("libcublasLt.so.12", "cublaslt.cpp"),
    ("libnccl.so.2", "nccl.cpp"),
    ("libnvidia-ml.so.1", "nvml.cpp"),
];

const HEADERS: [&str; 4] = ["device.h", "image.h", "numbers.h", "shim.h"];

/// Plain `-O1` keeps the build short. The fault handler leaves operations by a long jump from another stack,
/// which fortified builds treat as an attack.
const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-U_FORTIFY_SOURCE",
    "-fPIC",
    "-shared",
    "-pthread",
    "-Wl,-z,defs,-z,nodelete",
    "-Wl,-rpath,$ORIGIN",
];

/// The folder with all libraries, built on the first call after a change.
///
/// # Panics
///
/// With the compiler's output if they cannot be built.
pub fn libraries() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build(&key(), compile_all)).clone()
}

/// A folder in which one library is not installed.
///
/// # Panics
///
/// If there is no such library, or [`libraries`] panics.
pub fn without(library: &str) -> PathBuf {
    known(library);
    let whole = libraries();
    build(&format!("{}-without-{library}", key()), |folder, _| link_all_but(library, &whole, folder))
}

/// A folder in which one library lacks an entry point, as an older one would.
///
/// # Panics
///
/// If there is no such library, or it cannot be built.
pub fn with_missing_symbol(library: &str, symbol: &str) -> PathBuf {
    let source = known(library);
    let whole = libraries();
    build(&format!("{}-{library}-without-{symbol}", key()), |folder, _| {
        link_all_but(library, &whole, folder);
        // The function is still there, but under another name.
        let renamed = format!("-D{symbol}=software_gpu_removed_{symbol}");
        compile(folder, library, source, &whole.join("shim.h"), &[&renamed]);
    })
}

/// A machine with software GPUs: the environment variables that a process needs to use it.
#[derive(Clone, Debug)]
pub struct SoftwareGpus {
    folder: PathBuf,
    variables: BTreeMap<String, OsString>,
    faults: Vec<String>,
}

impl Default for SoftwareGpus {
    fn default() -> Self {
        Self::new()
    }
}

impl SoftwareGpus {
    /// One device with all libraries.
    pub fn new() -> Self {
        Self::with_libraries(libraries())
    }

    /// One device, with the libraries of a folder from [`without`] or [`with_missing_symbol`].
    pub fn with_libraries(folder: PathBuf) -> Self {
        Self { folder, variables: BTreeMap::new(), faults: Vec::new() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn devices(self, count: usize) -> Self {
        self.set("SOFTWARE_GPU_DEVICES", count.to_string())
    }

    /// Bytes of memory that each device has.
    pub fn memory(self, bytes: u64) -> Self {
        self.set("SOFTWARE_GPU_MEMORY", bytes.to_string())
    }

    pub fn capability(self, major: u32, minor: u32) -> Self {
        self.set("SOFTWARE_GPU_CAPABILITY", format!("{major}.{minor}"))
    }

    /// The nth call of an entry point returns `code`; the nth launch of a kernel ends with it, for good.
    /// `name` may end in `/<device>` (counted on that device alone) and in `@run` before it (the execution of
    /// an operation).
    pub fn fault(mut self, name: &str, nth: usize, code: i32) -> Self {
        self.faults.push(format!("{name}:{nth}:{code}"));
        let list = self.faults.join(",");
        self.set("SOFTWARE_GPU_FAULT", list)
    }

    /// One line per executed operation is appended to this file.
    pub fn trace(self, path: &Path) -> Self {
        self.set("SOFTWARE_GPU_TRACE", path)
    }

    /// Any other variable of the software GPU.
    pub fn set(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.insert(name.to_owned(), value.as_ref().to_owned());
        self
    }

    /// The environment variables, the search path for libraries among them.
    pub fn variables(&self) -> BTreeMap<String, OsString> {
        let mut variables = self.variables.clone();
        let mut path = self.folder.clone().into_os_string();
        if let Some(before) = std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty()) {
            path.push(":");
            path.push(before);
        }
        variables.insert("LD_LIBRARY_PATH".to_owned(), path);
        variables
    }

    /// Starts the command on this machine, instead of the present one.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SOFTWARE_GPU_") && name != "SOFTWARE_GPU_CXX" {
                command.env_remove(name);
            }
        }
        command.env_remove("CUDA_VISIBLE_DEVICES").envs(self.variables())
    }
}

/// The source of a library.
fn known(library: &str) -> &'static str {
    let found = LIBRARIES.iter().find(|(name, _)| *name == library);
    found.unwrap_or_else(|| panic!("the software GPU has no {library}")).1
}

fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compiler() -> OsString {
    std::env::var_os("SOFTWARE_GPU_CXX").unwrap_or_else(|| "g++".into())
}

/// Names a build by everything that goes into it.
fn key() -> String {
    static KEY: OnceLock<String> = OnceLock::new();
    let make = || {
        let mut digest = Sha256::new();
        let version = Command::new(compiler()).arg("--version").output();
        let version = version.unwrap_or_else(|error| panic!("cannot run {}: {error}", compiler().display()));
        digest.update(version.stdout);
        digest.update(FLAGS.join(" "));
        for name in LIBRARIES.iter().chain([&CORE]).map(|(_, source)| *source).chain(HEADERS) {
            let path = sources().join(name);
            digest.update(name);
            digest.update(fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    };
    KEY.get_or_init(make).clone()
}

/// Where builds are kept: a folder of cargo's target directory.
fn builds() -> PathBuf {
    let workspace = sources().join("../..");
    // A relative CARGO_TARGET_DIR is relative to where cargo was started, which tests cannot determine; the
    // workspace is most likely.
    let target = workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let folder = target.join("software-gpu");
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The folder `name`, created by `make` (with the path to write to, and the final path) if it does not exist.
/// If several processes need it, one creates it and the others wait.
fn build(name: &str, make: impl FnOnce(&Path, &Path)) -> PathBuf {
    let folder = builds().join(name);
    if folder.is_dir() {
        return folder;
    }
    let lock_path = builds().join(format!("{name}.lock"));
    let lock = File::create(&lock_path).unwrap_or_else(|error| panic!("{}: {error}", lock_path.display()));
    // Closing the file at the end of this function gives the lock back.
    let locked = retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive));
    locked.unwrap_or_else(|error| panic!("{}: {error}", lock_path.display()));
    if folder.is_dir() {
        return folder;
    }
    let work = tempfile::Builder::new().prefix("building-").tempdir_in(builds());
    let work = work.unwrap_or_else(|error| panic!("{}: {error}", builds().display()));
    let inner = work.path().join("folder");
    fs::create_dir(&inner).unwrap_or_else(|error| panic!("{}: {error}", inner.display()));
    make(&inner, &folder);
    fs::rename(&inner, &folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

fn compile_all(folder: &Path, finally: &Path) {
    let shim = folder.join("shim.h");
    fs::copy(sources().join("shim.h"), &shim).unwrap_or_else(|error| panic!("{}: {error}", shim.display()));
    let shim = finally.join("shim.h");
    compile(folder, CORE.0, CORE.1, &shim, &[]);
    // Two at a time: test machines are small and shared.
    for pair in LIBRARIES.chunks(2) {
        std::thread::scope(|scope| {
            for (library, source) in pair {
                scope.spawn(|| compile(folder, library, source, &shim, &[]));
            }
        });
    }
}

fn compile(folder: &Path, library: &str, source: &str, shim: &Path, more: &[&str]) {
    let mut command = Command::new(compiler());
    command.args(FLAGS).args(more);
    command.arg(format!("-DSHIM=\"{}\"", shim.display()));
    command.arg(format!("-DMODULES=\"{}\"", shim.with_file_name("modules").display()));
    command.arg(format!("-Wl,-soname,{library}")).arg("-o").arg(folder.join(library));
    command.arg(sources().join(source));
    if library != CORE.0 {
        command.arg(folder.join(CORE.0));
    }
    command.arg("-ldl");
    let output =
        command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", compiler().display()));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the software GPU's {library} does not build:\n{words}");
}

fn link_all_but(library: &str, from: &Path, to: &Path) {
    for (name, _) in LIBRARIES.iter().chain([&CORE]).filter(|(name, _)| *name != library) {
        let (from, to) = (from.join(name), to.join(name));
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(|_| ())).unwrap_or_else(|error| {
            panic!("{}: {error}", to.display());
        });
    }
}
