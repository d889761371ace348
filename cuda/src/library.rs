//! Finds NVIDIA's libraries and loads them at run time, so that one binary runs on machines with and without
//! them.
//!
//! Types and constants are cudarc's; loading is our own, because cudarc's loader panics if a library or a
//! function is missing, and tries too few names (`libnccl.so.2`, the `.so.13` of CUDA 13, the folders of
//! Python's wheels).

use crate::api::{CublasLt, Driver, Nccl, Nvrtc};
use crate::error::{CudaError, Missing};
use libloading::Library;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The places to search for libraries.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Folders, in order.
    pub directories: Vec<PathBuf>,
    /// Whether to try the system's loader for libraries that are not in the folders.
    pub system: bool,
}

/// Environment variable with folders to search before the system's loader; a list as in `PATH`.
pub const OVERRIDE: &str = "AUTODIST_CUDA_PATH";
/// Usual CUDA folders outside the loader's own.
const INSTALLED: [&str; 6] = [
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/opt/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
];
/// Folders of the wheels' libraries inside a `site-packages`.
const WHEELS: [&str; 5] =
    ["nvidia/cu13/lib", "nvidia/cu12/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib", "nvidia/nccl/lib"];

impl Search {
    /// `AUTODIST_CUDA_PATH`, `LD_LIBRARY_PATH`, the system's loader, CUDA's usual folders, Python's wheels.
    pub fn from_environment() -> Self {
        let listed = [OVERRIDE, "LD_LIBRARY_PATH"].into_iter().filter_map(std::env::var_os);
        let mut directories: Vec<PathBuf> = listed
            .flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>())
            .filter(|folder| !folder.as_os_str().is_empty())
            // The toolkit's stubs are only for linking: their driver finds no device.
            .filter(|folder| !folder.ends_with("stubs"))
            .collect();
        directories.extend(INSTALLED.map(PathBuf::from));
        directories.extend(site_packages().flat_map(|site| WHEELS.map(|wheel| site.join(wheel))));
        Self { directories, system: true }
    }

    /// Searches only this folder.
    pub fn only(directory: impl Into<PathBuf>) -> Self {
        Self { directories: vec![directory.into()], system: false }
    }

    /// Loads the first of `names` that is found.
    fn library(&self, what: Kind) -> Result<(Library, String), Missing> {
        let mut refused = Vec::new();
        let mut open = |path: &Path| {
            // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers do not access our
            // data.
            match unsafe { Library::new(path) } {
                Ok(library) => Some((library, path.display().to_string())),
                Err(error) => {
                    refused.push(error.to_string());
                    None
                }
            }
        };
        for directory in &self.directories {
            for name in what.names() {
                let path = directory.join(name);
                if path.exists()
                    && let Some(found) = open(&path)
                {
                    return Ok(found);
                }
            }
        }
        if self.system {
            for name in what.names() {
                if let Some(found) = open(Path::new(name)) {
                    return Ok(found);
                }
            }
        }
        let mut searched: Vec<String> =
            self.directories.iter().filter(|d| d.is_dir()).map(|d| d.display().to_string()).collect();
        searched.extend(self.system.then(|| "the system's loader".to_owned()));
        Err(Missing {
            library: what.title(),
            names: what.names().join(", "),
            searched: if searched.is_empty() { "no folder".to_owned() } else { searched.join(", ") },
            cause: refused.into_iter().find(|cause| !cause.contains("No such file")).unwrap_or_default(),
            hint: what.hint(),
        })
    }
}

/// `site-packages` folders of the active environment, the user and the system.
fn site_packages() -> impl Iterator<Item = PathBuf> {
    let home = |folder: &str| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(folder));
    let roots = [
        std::env::var_os("VIRTUAL_ENV").map(|root| PathBuf::from(root).join("lib")),
        std::env::var_os("CONDA_PREFIX").map(|root| PathBuf::from(root).join("lib")),
        home(".local/lib"),
        Some(PathBuf::from("/usr/local/lib")),
        Some(PathBuf::from("/usr/lib")),
    ];
    roots.into_iter().flatten().flat_map(|root| {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let mut pythons: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .map(|entry| entry.path())
            .collect();
        pythons.sort();
        pythons
            .into_iter()
            .flat_map(|python| ["site-packages", "dist-packages"].map(|site| python.join(site)))
    })
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Driver,
    Nvrtc,
    CublasLt,
    Nccl,
    Nvml,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Driver => "NVIDIA's driver",
            Self::Nvrtc => "NVRTC, CUDA's run-time compiler",
            Self::CublasLt => "cuBLASLt",
            Self::Nccl => "NCCL",
            Self::Nvml => "NVML",
        }
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1", "libcuda.so"],
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"],
            Self::CublasLt => {
                &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"]
            }
            Self::Nccl => &["libnccl.so.2", "libnccl.so"],
            Self::Nvml => &["libnvidia-ml.so.1", "libnvidia-ml.so"],
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Driver | Self::Nvml => {
                "install NVIDIA's driver for this GPU; in a container, start it with its GPUs"
            }
            Self::Nvrtc => "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc-cu12`",
            Self::CublasLt => "install the CUDA toolkit, or `pip install nvidia-cublas-cu12`",
            Self::Nccl => "`pip install nvidia-nccl-cu12`, or the package libnccl2",
        }
    }
}

/// The loaded libraries, which are never unloaded.
pub struct Libraries {
    pub(crate) driver: Driver,
    pub(crate) nvrtc: Nvrtc,
    pub(crate) cublaslt: CublasLt,
    nccl: Result<Nccl, Missing>,
    nvml: Result<PathBuf, Missing>,
}

impl Libraries {
    /// Loads driver, compiler and cuBLASLt, which are required, and NCCL and NVML, which are optional.
    ///
    /// # Errors
    /// The first library that is missing or lacks an entry point; a driver that does not initialise, or finds
    /// no device.
    pub fn load(search: &Search) -> Result<Arc<Self>, CudaError> {
        let driver = load_driver(search)?;
        let nvrtc = Nvrtc::load(search)?;
        let cublaslt = search
            .library(Kind::CublasLt)
            .and_then(|(l, file)| CublasLt::new(l, file, Kind::CublasLt.title()))?;
        let nccl = search.library(Kind::Nccl).and_then(|(l, file)| Nccl::new(l, file, Kind::Nccl.title()));
        Ok(Arc::new(Self { driver, nvrtc, cublaslt, nccl, nvml: nvml_file(search) }))
    }

    /// # Errors
    /// It is missing.
    pub fn nccl(&self) -> Result<&Nccl, &Missing> {
        self.nccl.as_ref()
    }

    /// The file of NVML.
    ///
    /// # Errors
    /// It is missing.
    pub fn nvml(&self) -> Result<&Path, &Missing> {
        self.nvml.as_deref()
    }
}

impl Nvrtc {
    /// Loads only the compiler, which does not need a driver.
    ///
    /// # Errors
    /// It is missing or lacks an entry point.
    pub fn load(search: &Search) -> Result<Self, Missing> {
        search.library(Kind::Nvrtc).and_then(|(l, file)| Self::new(l, file, Kind::Nvrtc.title()))
    }
}

fn load_driver(search: &Search) -> Result<Driver, CudaError> {
    let driver =
        search.library(Kind::Driver).and_then(|(l, file)| Driver::new(l, file, Kind::Driver.title()))?;
    // SAFETY: cuInit takes no pointer.
    driver.check("cuInit", unsafe { (driver.cuInit)(0) })?;
    Ok(driver)
}

/// NVML is loaded by its own wrapper; here it is only found.
fn nvml_file(search: &Search) -> Result<PathBuf, Missing> {
    search.library(Kind::Nvml).map(|(_, file)| PathBuf::from(file))
}

/// The libraries that were found or are missing, one per line.
pub fn diagnose(search: &Search) -> Vec<String> {
    let find = |what: Kind| search.library(what);
    let driver = load_driver(search).map(|driver| format!("{}, for CUDA {}", driver.file, driver.version()));
    let nvrtc = Nvrtc::load(search);
    let cublaslt = find(Kind::CublasLt).and_then(|(l, file)| CublasLt::new(l, file, Kind::CublasLt.title()));
    let nccl = find(Kind::Nccl).and_then(|(l, file)| Nccl::new(l, file, Kind::Nccl.title()));
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let libraries = [
        (Kind::Nvrtc, nvrtc.map(|l| format!("{}, {}", l.file, version(l.version())))),
        (Kind::CublasLt, cublaslt.map(|l| l.file)),
        (Kind::Nccl, nccl.map(|l| format!("{}, {}", l.file, l.version()))),
        (Kind::Nvml, find(Kind::Nvml).map(|(_, file)| file)),
    ];
    let driver = match driver {
        Ok(found) => found,
        Err(CudaError::Missing(missing)) => missing.explain(),
        Err(error) => error.to_string(),
    };
    let mut lines = vec![format!("{}: {driver}", Kind::Driver.title())];
    for (what, found) in libraries {
        lines.push(format!("{}: {}", what.title(), found.unwrap_or_else(|missing| missing.explain())));
    }
    lines
}
