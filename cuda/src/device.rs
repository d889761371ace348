//! A GPU in a process: context, kernels, memory statistics, the first failure.

use crate::api::{DevicePointer, Handle};
use crate::blas::Blas;
use crate::compile::{self, KERNELS};
use crate::error::CudaError;
use crate::library::Libraries;
use autodist_compute::DeviceError;
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUmemPool_attribute_enum as PoolAttribute};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    /// In NVML's format, for example "GPU-8f3c…".
    pub uuid: String,
    /// For example "0000:65:00.0".
    pub pci_bus: String,
    pub memory_bytes: usize,
    pub multiprocessors: u32,
    /// Compute capability.
    pub capability: (u32, u32),
}

/// The GPUs that are visible to this process.
///
/// # Errors
/// The driver's.
pub fn gpus(libraries: &Libraries) -> Result<Vec<Gpu>, CudaError> {
    let driver = &libraries.driver;
    let mut count = 0;
    // SAFETY: the pointer is valid.
    driver.check("cuDeviceGetCount", unsafe { (driver.cuDeviceGetCount)(&raw mut count) })?;
    if count == 0 {
        return Err(CudaError::NoDevice { visible: std::env::var("CUDA_VISIBLE_DEVICES").ok() });
    }
    (0..count as usize).map(|ordinal| gpu(libraries, ordinal)).collect()
}

fn gpu(libraries: &Libraries, ordinal: usize) -> Result<Gpu, CudaError> {
    let driver = &libraries.driver;
    let mut device = 0;
    let mut name = [0; 128];
    let mut uuid = [0; 16];
    let mut memory_bytes = 0;
    // SAFETY: every pointer is to memory of the given or documented size.
    unsafe {
        driver.check("cuDeviceGet", (driver.cuDeviceGet)(&raw mut device, ordinal as c_int))?;
        let text = name.as_mut_ptr();
        driver.check("cuDeviceGetName", (driver.cuDeviceGetName)(text, name.len() as c_int, device))?;
        driver.check("cuDeviceGetUuid", (driver.cuDeviceGetUuid_v2)(&raw mut uuid, device))?;
        driver.check("cuDeviceTotalMem", (driver.cuDeviceTotalMem_v2)(&raw mut memory_bytes, device))?;
    }
    let attribute = |which: Attribute| {
        let mut value = 0;
        // SAFETY: the pointer is valid.
        let code = unsafe { (driver.cuDeviceGetAttribute)(&raw mut value, which as c_int, device) };
        driver.check("cuDeviceGetAttribute", code).map(|()| value as u32)
    };
    let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    let hex: Vec<String> = uuid.iter().map(|byte: &u8| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex[range].concat();
    Ok(Gpu {
        ordinal,
        name: String::from_utf8_lossy(&name).into_owned(),
        uuid: format!("GPU-{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16)),
        pci_bus: format!(
            "{:04x}:{:02x}:{:02x}.0",
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?
        ),
        memory_bytes,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
    })
}

/// Shared by all queues and buffers of a GPU in this process. It is never freed: contexts and kernels live as
/// long as the process.
pub(crate) struct Device {
    pub libraries: Arc<Libraries>,
    pub gpu: Gpu,
    context: Shared,
    pool: Shared,
    kernels: BTreeMap<&'static str, Shared>,
    pub blas: Blas,
    /// Events that can be reused.
    events: Mutex<Vec<Shared>>,
    live: AtomicUsize,
    peak: AtomicUsize,
    failure: Mutex<Option<DeviceError>>,
}

/// A handle that any thread may use, as the driver allows.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub Handle);

// SAFETY: handles of contexts, streams, events and functions may be used from any thread of the process.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

thread_local! {
    /// The context that is current on this thread.
    static CURRENT: Cell<Handle> = const { Cell::new(ptr::null_mut()) };
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    pub fn open(libraries: Arc<Libraries>, ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let all = gpus(&libraries)?;
        let count = all.len();
        let gpu = all.into_iter().nth(ordinal).ok_or(CudaError::Ordinal { ordinal, count })?;
        // The kernels convert to bf16 with an instruction that older GPUs lack.
        if gpu.capability < (8, 0) {
            return Err(CudaError::TooOld { name: gpu.name, capability: gpu.capability });
        }
        let driver = &libraries.driver;
        let (mut device, mut context, mut pool) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: every pointer is valid, and the context is retained for the life of the process.
        unsafe {
            driver.check("cuDeviceGet", (driver.cuDeviceGet)(&raw mut device, ordinal as c_int))?;
            let code = (driver.cuDevicePrimaryCtxRetain)(&raw mut context, device);
            driver.check("cuDevicePrimaryCtxRetain", code)?;
            driver.check("cuCtxSetCurrent", (driver.cuCtxSetCurrent)(context))?;
            CURRENT.set(context);
            let code = (driver.cuDeviceGetDefaultMemPool)(&raw mut pool, device);
            driver.check("cuDeviceGetDefaultMemPool", code)?;
            // Freed memory stays in the pool for the next step.
            let mut keep = u64::MAX;
            let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as c_int;
            let code = (driver.cuMemPoolSetAttribute)(pool, attribute, (&raw mut keep).cast());
            driver.check("cuMemPoolSetAttribute", code)?;
        }
        let module = compile::module(&libraries, gpu.capability)?;
        let mut kernels = BTreeMap::new();
        for name in KERNELS.iter().map(String::as_str) {
            let mut function = ptr::null_mut();
            let text = CString::new(name).unwrap_or_default();
            // SAFETY: the pointers are valid, and the name is null-terminated.
            let code = unsafe {
                (driver.cuModuleGetFunction)(&raw mut function, module, text.as_ptr().cast::<c_char>())
            };
            driver.check("cuModuleGetFunction", code)?;
            kernels.insert(name, Shared(function));
        }
        let blas = Blas::new(&libraries.cublaslt)?;
        Ok(Arc::new(Self {
            gpu,
            context: Shared(context),
            pool: Shared(pool),
            kernels,
            blas,
            events: Mutex::default(),
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            failure: Mutex::default(),
            libraries,
        }))
    }

    /// Makes the context current on this thread.
    pub fn enter(&self) {
        if CURRENT.get() != self.context.0 {
            let driver = &self.libraries.driver;
            // SAFETY: the context lives as long as the process.
            let code = unsafe { (driver.cuCtxSetCurrent)(self.context.0) };
            if self.attempt("cuCtxSetCurrent", code) {
                CURRENT.set(self.context.0);
            }
        }
    }

    /// Records a failure, unless there was one before.
    pub fn fail(&self, operation: &'static str, error: CudaError) {
        let mut failure = lock(&self.failure);
        failure.get_or_insert_with(|| error.on(&self.gpu.name, operation));
    }

    pub fn take_failure(&self) -> Result<(), DeviceError> {
        lock(&self.failure).take().map_or(Ok(()), Err)
    }

    /// Returns whether the driver call succeeded; a failure is recorded.
    pub fn attempt(&self, operation: &'static str, code: c_int) -> bool {
        self.libraries.driver.check(operation, code).map_err(|error| self.fail(operation, error)).is_ok()
    }

    pub fn kernel(&self, name: &str) -> Handle {
        match self.kernels.get(name) {
            Some(kernel) => kernel.0,
            None => panic!("there is no kernel `{name}`"),
        }
    }

    /// Allocates memory; returns 0 and records the failure if there is not enough.
    pub fn allocate(&self, bytes: usize, stream: Handle) -> DevicePointer {
        const OUT_OF_MEMORY: c_int = 2;
        self.enter();
        let driver = &self.libraries.driver;
        let mut pointer = 0;
        // SAFETY: the pointer is valid, the stream is this device's.
        let code = unsafe { (driver.cuMemAllocAsync)(&raw mut pointer, bytes, stream) };
        if code == OUT_OF_MEMORY {
            let (mut free, mut total) = (0, 0);
            // SAFETY: the pointers are valid; a failure leaves zeros.
            unsafe { (driver.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
            self.fail("an allocation", CudaError::OutOfMemory { asked: bytes, free, total });
            return 0;
        }
        if !self.attempt("cuMemAllocAsync", code) {
            return 0;
        }
        let live = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(live, Relaxed);
        pointer
    }

    pub fn free(&self, pointer: DevicePointer, bytes: usize, stream: Handle) {
        self.enter();
        // SAFETY: the pointer came from `allocate` on this stream and is not used again.
        let code = unsafe { (self.libraries.driver.cuMemFreeAsync)(pointer, stream) };
        self.attempt("cuMemFreeAsync", code);
        self.live.fetch_sub(bytes, Relaxed);
    }

    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    pub fn reset_peak(&self) -> usize {
        self.peak.swap(self.live(), Relaxed)
    }

    /// Highest use of the driver's pool since the last call, bytes.
    pub fn pool_high_water(&self) -> usize {
        self.enter();
        let driver = &self.libraries.driver;
        let mut high: u64 = 0;
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH as c_int;
        let mut zero: u64 = 0;
        // SAFETY: the attribute is a 64-bit number; setting it to 0 begins a new high-water mark.
        unsafe {
            let code = (driver.cuMemPoolGetAttribute)(self.pool.0, attribute, (&raw mut high).cast());
            self.attempt("cuMemPoolGetAttribute", code);
            let code = (driver.cuMemPoolSetAttribute)(self.pool.0, attribute, (&raw mut zero).cast());
            self.attempt("cuMemPoolSetAttribute", code);
        }
        high as usize
    }

    /// An event that threads wait for by blocking, not by spinning.
    pub fn event(&self) -> Option<Handle> {
        const BLOCKING_SYNC: u32 = 1;
        if let Some(event) = lock(&self.events).pop() {
            return Some(event.0);
        }
        let mut event = ptr::null_mut();
        // SAFETY: the pointer is valid.
        let code = unsafe { (self.libraries.driver.cuEventCreate)(&raw mut event, BLOCKING_SYNC) };
        self.attempt("cuEventCreate", code).then_some(event)
    }

    pub fn keep_event(&self, event: Handle) {
        lock(&self.events).push(Shared(event));
    }
}
