//! Tables of the library functions in use, filled when a library is loaded. Return codes are plain integers,
//! because a library may be newer than the enumerations in our declarations.

#![allow(non_snake_case, reason = "the names are NVIDIA's")]

use crate::error::{CudaError, Missing};
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// An opaque object of a library.
pub type Handle = *mut c_void;
/// An address in a device's memory.
pub type DevicePointer = u64;

macro_rules! table {
    ($name:ident { $( $entry:ident ( $($argument:ty),* ) -> $result:ty; )* }) => {
        pub struct $name {
            $(pub(crate) $entry: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// The file it was loaded from.
            pub file: String,
            _library: Library,
        }

        impl $name {
            pub(crate) fn new(library: Library, file: String, title: &'static str) -> Result<Self, Missing> {
                // SAFETY: the types are those of the documented entry points.
                unsafe {
                    Ok(Self {
                        $($entry: *library
                            .get(concat!(stringify!($entry), "\0").as_bytes())
                            .map_err(|_| lacks(title, &file, stringify!($entry)))?,)*
                        file,
                        _library: library,
                    })
                }
            }

            /// The names of all functions in use.
            #[cfg(test)]
            pub const ENTRIES: &[&str] = &[$(stringify!($entry)),*];
        }
    };
}

fn lacks(title: &'static str, file: &str, entry: &str) -> Missing {
    Missing {
        library: title,
        names: file.to_owned(),
        searched: String::new(),
        cause: format!("{file} lacks the entry point {entry}: it is too old, or a stub"),
        hint: "install a newer one",
    }
}

table!(Driver {
    cuInit(c_uint) -> c_int;
    cuDriverGetVersion(*mut c_int) -> c_int;
    cuGetErrorName(c_int, *mut *const c_char) -> c_int;
    cuGetErrorString(c_int, *mut *const c_char) -> c_int;
    cuDeviceGetCount(*mut c_int) -> c_int;
    cuDeviceGet(*mut c_int, c_int) -> c_int;
    cuDeviceGetName(*mut c_char, c_int, c_int) -> c_int;
    cuDeviceGetUuid_v2(*mut [u8; 16], c_int) -> c_int;
    cuDeviceTotalMem_v2(*mut usize, c_int) -> c_int;
    cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> c_int;
    cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> c_int;
    cuCtxSetCurrent(Handle) -> c_int;
    cuMemGetInfo_v2(*mut usize, *mut usize) -> c_int;
    cuStreamCreate(*mut Handle, c_uint) -> c_int;
    cuStreamDestroy_v2(Handle) -> c_int;
    cuStreamWaitEvent(Handle, Handle, c_uint) -> c_int;
    cuStreamSynchronize(Handle) -> c_int;
    cuEventCreate(*mut Handle, c_uint) -> c_int;
    cuEventRecord(Handle, Handle) -> c_int;
    cuEventSynchronize(Handle) -> c_int;
    cuEventElapsedTime(*mut f32, Handle, Handle) -> c_int;
    cuDeviceGetDefaultMemPool(*mut Handle, c_int) -> c_int;
    cuMemPoolSetAttribute(Handle, c_int, *mut c_void) -> c_int;
    cuMemPoolGetAttribute(Handle, c_int, *mut c_void) -> c_int;
    cuMemAllocAsync(*mut DevicePointer, usize, Handle) -> c_int;
    cuMemFreeAsync(DevicePointer, Handle) -> c_int;
    cuMemcpyHtoDAsync_v2(DevicePointer, *const c_void, usize, Handle) -> c_int;
    cuMemcpyDtoHAsync_v2(*mut c_void, DevicePointer, usize, Handle) -> c_int;
    cuMemcpyDtoDAsync_v2(DevicePointer, DevicePointer, usize, Handle) -> c_int;
    cuMemsetD8Async(DevicePointer, u8, usize, Handle) -> c_int;
    cuModuleLoadData(*mut Handle, *const c_void) -> c_int;
    cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> c_int;
    cuLaunchKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    ) -> c_int;
});

table!(Nvrtc {
    nvrtcVersion(*mut c_int, *mut c_int) -> c_int;
    nvrtcGetErrorString(c_int) -> *const c_char;
    nvrtcCreateProgram(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
    nvrtcDestroyProgram(*mut Handle) -> c_int;
    nvrtcCompileProgram(Handle, c_int, *const *const c_char) -> c_int;
    nvrtcGetPTXSize(Handle, *mut usize) -> c_int;
    nvrtcGetPTX(Handle, *mut c_char) -> c_int;
    nvrtcGetCUBINSize(Handle, *mut usize) -> c_int;
    nvrtcGetCUBIN(Handle, *mut c_char) -> c_int;
    nvrtcGetProgramLogSize(Handle, *mut usize) -> c_int;
    nvrtcGetProgramLog(Handle, *mut c_char) -> c_int;
});

table!(CublasLt {
    cublasLtCreate(*mut Handle) -> c_int;
    cublasLtGetStatusString(c_int) -> *const c_char;
    cublasLtMatmulDescCreate(*mut Handle, c_int, c_int) -> c_int;
    cublasLtMatmulDescSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
    cublasLtMatrixLayoutCreate(*mut Handle, c_int, u64, u64, i64) -> c_int;
    cublasLtMatrixLayoutSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
    cublasLtMatmulPreferenceCreate(*mut Handle) -> c_int;
    cublasLtMatmulPreferenceDestroy(Handle) -> c_int;
    cublasLtMatmulPreferenceSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
    cublasLtMatmulAlgoGetHeuristic(
        Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut HeuristicResult, *mut c_int
    ) -> c_int;
    cublasLtMatmul(
        Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void,
        Handle, *mut c_void, Handle, *const cublasLtMatmulAlgo_t, *mut c_void, usize, Handle
    ) -> c_int;
});

/// `cublasLtMatmulHeuristicResult_t`, with its status as an integer.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct HeuristicResult {
    pub algorithm: cublasLtMatmulAlgo_t,
    pub workspace: usize,
    pub status: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

/// `ncclUniqueId`, which is passed by value.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawUniqueId(pub [u8; 128]);

table!(Nccl {
    ncclGetVersion(*mut c_int) -> c_int;
    ncclGetUniqueId(*mut RawUniqueId) -> c_int;
    ncclCommInitRank(*mut Handle, c_int, RawUniqueId, c_int) -> c_int;
    ncclCommDestroy(Handle) -> c_int;
    ncclCommAbort(Handle) -> c_int;
    ncclCommGetAsyncError(Handle, *mut c_int) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetLastError(Handle) -> *const c_char;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, Handle, Handle) -> c_int;
    ncclSend(*const c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclRecv(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
});

/// A string of a library; empty if the pointer is null.
///
/// # Safety
/// The pointer is null or a string with static lifetime.
pub(crate) unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: guaranteed by the caller.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

impl Driver {
    pub(crate) fn check(&self, operation: &'static str, code: c_int) -> Result<(), CudaError> {
        const NO_DEVICE: c_int = 100;
        match code {
            0 => Ok(()),
            NO_DEVICE => Err(CudaError::NoDevice { visible: std::env::var("CUDA_VISIBLE_DEVICES").ok() }),
            _ => {
                let (mut name, mut words) = (std::ptr::null(), std::ptr::null());
                // SAFETY: both pointers are written, or left null for a code that the driver does not define.
                let (name, text) = unsafe {
                    (self.cuGetErrorName)(code, &raw mut name);
                    (self.cuGetErrorString)(code, &raw mut words);
                    (text(name), text(words))
                };
                let name = if name.is_empty() { format!("error {code}") } else { name };
                Err(CudaError::Driver { operation, code, name, text })
            }
        }
    }

    /// The CUDA version that the driver supports, for example "12.8".
    pub(crate) fn version(&self) -> String {
        let mut version = 0;
        // SAFETY: the pointer is valid; a failure leaves 0.
        unsafe { (self.cuDriverGetVersion)(&raw mut version) };
        format!("{}.{}", version / 1000, version % 1000 / 10)
    }
}

impl Nvrtc {
    pub(crate) fn check(&self, operation: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a static string for any code.
        Err(CudaError::Library { operation, text: unsafe { text((self.nvrtcGetErrorString)(code)) } })
    }

    pub(crate) fn version(&self) -> (c_int, c_int) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the pointers are valid; a failure leaves 0.
        unsafe { (self.nvrtcVersion)(&raw mut major, &raw mut minor) };
        (major, minor)
    }
}

impl CublasLt {
    pub(crate) fn check(&self, operation: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a static string for any code.
        Err(CudaError::Library { operation, text: unsafe { text((self.cublasLtGetStatusString)(code)) } })
    }
}

impl Nccl {
    /// `group` may be null.
    pub(crate) fn check(&self, operation: &'static str, code: c_int, group: Handle) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library returns static strings, and accepts null as a group.
        let (what, last) =
            unsafe { (text((self.ncclGetErrorString)(code)), text((self.ncclGetLastError)(group))) };
        let text = if last.is_empty() { what } else { format!("{what}: {}", last.trim()) };
        Err(CudaError::Library { operation, text })
    }

    /// The version, for example "2.21.5".
    pub fn version(&self) -> String {
        let mut version = 0;
        // SAFETY: the pointer is valid; a failure leaves 0.
        unsafe { (self.ncclGetVersion)(&raw mut version) };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::cublaslt::sys::cublasLtMatmulHeuristicResult_t;
    use std::mem::offset_of;

    /// Sizes of a function's result and arguments.
    trait Signature {
        const SIZES: &'static [usize];
    }

    macro_rules! signatures {
        () => {};
        ($first:ident $($rest:ident)*) => {
            impl<$first, $($rest,)* R> Signature for unsafe extern "C" fn($first, $($rest),*) -> R {
                const SIZES: &'static [usize] = &[size_of::<R>(), size_of::<$first>(), $(size_of::<$rest>()),*];
            }
            impl<$first, $($rest,)* R> Signature for unsafe fn($first, $($rest),*) -> R {
                const SIZES: &'static [usize] = &[size_of::<R>(), size_of::<$first>(), $(size_of::<$rest>()),*];
            }
            signatures!($($rest)*);
        };
    }
    signatures!(A B C D E F G H I J K L M N O P);

    fn ours<T, F: Signature>(_: fn(&T) -> F) -> &'static [usize] {
        F::SIZES
    }

    fn theirs<F: Signature>(_: F) -> &'static [usize] {
        F::SIZES
    }

    /// Compares all functions of a library with cudarc's declarations, from NVIDIA's headers.
    macro_rules! compare {
        ($library:ident, $module:ident: $($entry:ident($($argument:tt)*))*) => {
            $(assert_eq!(
                ours(|library: &$library| library.$entry),
                theirs(cudarc::$module::sys::$entry as unsafe fn($($argument),*) -> _),
                stringify!($entry)
            );)*
            assert_eq!($library::ENTRIES, [$(stringify!($entry)),*]);
        };
    }

    #[test]
    #[rustfmt::skip]
    fn entry_points_are_called_with_the_arguments_of_nvidias_headers() {
        compare!(Driver, driver:
            cuInit(_) cuDriverGetVersion(_) cuGetErrorName(_ _) cuGetErrorString(_ _) cuDeviceGetCount(_)
            cuDeviceGet(_ _) cuDeviceGetName(_ _ _) cuDeviceGetUuid_v2(_ _) cuDeviceTotalMem_v2(_ _)
            cuDeviceGetAttribute(_ _ _) cuDevicePrimaryCtxRetain(_ _) cuCtxSetCurrent(_) cuMemGetInfo_v2(_ _)
            cuStreamCreate(_ _) cuStreamDestroy_v2(_) cuStreamWaitEvent(_ _ _) cuStreamSynchronize(_) cuEventCreate(_ _)
            cuEventRecord(_ _) cuEventSynchronize(_) cuEventElapsedTime(_ _ _) cuDeviceGetDefaultMemPool(_ _)
            cuMemPoolSetAttribute(_ _ _) cuMemPoolGetAttribute(_ _ _) cuMemAllocAsync(_ _ _)
            cuMemFreeAsync(_ _) cuMemcpyHtoDAsync_v2(_ _ _ _) cuMemcpyDtoHAsync_v2(_ _ _ _)
            cuMemcpyDtoDAsync_v2(_ _ _ _) cuMemsetD8Async(_ _ _ _) cuModuleLoadData(_ _)
            cuModuleGetFunction(_ _ _) cuLaunchKernel(_ _ _ _ _ _ _ _ _ _ _)
        );
        compare!(Nvrtc, nvrtc:
            nvrtcVersion(_ _) nvrtcGetErrorString(_) nvrtcCreateProgram(_ _ _ _ _ _) nvrtcDestroyProgram(_)
            nvrtcCompileProgram(_ _ _) nvrtcGetPTXSize(_ _) nvrtcGetPTX(_ _) nvrtcGetCUBINSize(_ _)
            nvrtcGetCUBIN(_ _) nvrtcGetProgramLogSize(_ _) nvrtcGetProgramLog(_ _)
        );
        compare!(CublasLt, cublaslt:
            cublasLtCreate(_) cublasLtGetStatusString(_) cublasLtMatmulDescCreate(_ _ _)
            cublasLtMatmulDescSetAttribute(_ _ _ _) cublasLtMatrixLayoutCreate(_ _ _ _ _)
            cublasLtMatrixLayoutSetAttribute(_ _ _ _) cublasLtMatmulPreferenceCreate(_)
            cublasLtMatmulPreferenceDestroy(_) cublasLtMatmulPreferenceSetAttribute(_ _ _ _)
            cublasLtMatmulAlgoGetHeuristic(_ _ _ _ _ _ _ _ _ _)
            cublasLtMatmul(_ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _)
        );
        compare!(Nccl, nccl:
            ncclGetVersion(_) ncclGetUniqueId(_) ncclCommInitRank(_ _ _ _) ncclCommDestroy(_) ncclCommAbort(_)
            ncclCommGetAsyncError(_ _) ncclGetErrorString(_) ncclGetLastError(_) ncclAllReduce(_ _ _ _ _ _ _)
            ncclReduceScatter(_ _ _ _ _ _ _) ncclAllGather(_ _ _ _ _ _) ncclSend(_ _ _ _ _ _)
            ncclRecv(_ _ _ _ _ _)
        );
    }

    #[test]
    fn an_algorithm_lies_where_cublaslt_puts_it() {
        type Theirs = cublasLtMatmulHeuristicResult_t;
        assert_eq!(size_of::<HeuristicResult>(), size_of::<Theirs>());
        assert_eq!(offset_of!(HeuristicResult, algorithm), offset_of!(Theirs, algo));
        assert_eq!(offset_of!(HeuristicResult, workspace), offset_of!(Theirs, workspaceSize));
        assert_eq!(offset_of!(HeuristicResult, status), offset_of!(Theirs, state));
        assert_eq!(offset_of!(HeuristicResult, waves), offset_of!(Theirs, wavesCount));
    }
}
