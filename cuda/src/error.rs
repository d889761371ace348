//! Errors of GPUs and libraries, with messages that contain the remedy.

use autodist_compute::DeviceError;

/// A library that is missing or unusable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub library: &'static str,
    /// File names that were tried.
    pub names: String,
    /// The places that were searched.
    pub searched: String,
    /// Why a file that was found could not be used; empty if none was found.
    pub cause: String,
    pub hint: &'static str,
}

impl Missing {
    /// The message without the library's name.
    pub fn explain(&self) -> String {
        if self.cause.is_empty() {
            format!("not found: looked for {} in {}; {}", self.names, self.searched, self.hint)
        } else {
            format!("cannot be loaded: {}; {}", self.cause, self.hint)
        }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.library, self.explain())
    }
}

impl std::error::Error for Missing {}

#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("{operation} failed: {name}, {text}")]
    Driver { operation: &'static str, code: i32, name: String, text: String },
    #[error("the driver finds no GPU{}", hidden(.visible.as_deref()))]
    NoDevice { visible: Option<String> },
    #[error("{name} has compute capability {}.{}: 8.0 (Ampere) or newer is needed", .capability.0, .capability.1)]
    TooOld { name: String, capability: (u32, u32) },
    #[error("GPU {ordinal} does not exist: this process sees {count} GPUs")]
    Ordinal { ordinal: usize, count: usize },
    #[error("out of GPU memory: cannot allocate {asked} bytes, {free} of {total} bytes are free")]
    OutOfMemory { asked: usize, free: usize, total: usize },
    #[error(
        "kernel `{kernel}` needs {blocks} blocks along {axis}, but CUDA allows {most}: use a smaller micro-batch, or a larger tensor-parallel degree"
    )]
    Grid { kernel: String, axis: &'static str, blocks: usize, most: usize },
    #[error("the kernels do not compile for {architecture}: {log}")]
    Compile { architecture: String, log: String },
    #[error("{operation} failed: {text}")]
    Library { operation: &'static str, text: String },
}

fn hidden(devices: Option<&str>) -> String {
    match devices {
        Some(list) => format!("; CUDA_VISIBLE_DEVICES is `{list}`: does it hide them?"),
        None => "; `nvidia-smi` shows what it sees".to_owned(),
    }
}

impl CudaError {
    /// Converts the error to a failure of `operation` on `device`.
    pub fn on(self, device: &str, operation: &'static str) -> DeviceError {
        DeviceError { device: device.to_owned(), operation, cause: self.to_string() }
    }
}
