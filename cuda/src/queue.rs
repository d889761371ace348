//! Streams, events and buffers.

use crate::api::{DevicePointer, Handle};
use crate::blas::WORKSPACE_BYTES;
use crate::device::{Device, Shared, lock};
use crate::error::CudaError;
use std::ffi::c_int;
use std::ptr;
use std::sync::{Arc, Mutex};

/// The number format of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    Bf16,
}

impl Kind {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A stream of a device.
pub(crate) struct Queue {
    pub device: Arc<Device>,
    pub stream: Shared,
    /// Scratch memory of GEMMs, which run one after the other.
    workspace: Mutex<DevicePointer>,
}

impl Queue {
    pub fn new(device: Arc<Device>) -> Result<Arc<Self>, CudaError> {
        const NON_BLOCKING: u32 = 1;
        device.enter();
        let driver = &device.libraries.driver;
        let mut stream = ptr::null_mut();
        // SAFETY: the pointer is valid.
        driver.check("cuStreamCreate", unsafe { (driver.cuStreamCreate)(&raw mut stream, NON_BLOCKING) })?;
        Ok(Arc::new(Self { device, stream: Shared(stream), workspace: Mutex::default() }))
    }

    /// The scratch memory; null if the allocation failed, which is recorded.
    pub fn workspace(&self) -> DevicePointer {
        let mut workspace = lock(&self.workspace);
        if *workspace == 0 {
            *workspace = self.device.allocate(WORKSPACE_BYTES, self.stream.0);
        }
        *workspace
    }

    pub fn allocate(self: &Arc<Self>, len: usize, kind: Kind) -> Buffer {
        let bytes = len * kind.bytes();
        let pointer = if bytes == 0 { 0 } else { self.device.allocate(bytes, self.stream.0) };
        Buffer { queue: self.clone(), pointer, len, kind }
    }

    /// Runs `call` with the stream and the device's context as current; returns whether it succeeded. A
    /// failure is recorded.
    pub fn run(&self, operation: &'static str, call: impl FnOnce(Handle) -> c_int) -> bool {
        self.device.enter();
        let code = call(self.stream.0);
        self.device.attempt(operation, code)
    }

    pub fn record(&self) -> Event {
        self.device.enter();
        // An event that was not recorded would count as completed.
        let handle = self.device.event().filter(|event| {
            // SAFETY: event and stream are this device's.
            self.run("cuEventRecord", |stream| unsafe {
                (self.device.libraries.driver.cuEventRecord)(*event, stream)
            })
        });
        Event(Arc::new(Mark { device: self.device.clone(), handle: handle.map(Shared) }))
    }

    /// Blocks until all work queued so far is done.
    pub fn drain(&self) {
        if !self.record().wait() {
            // Host memory must not be reused while the queue writes to it: without an event, wait for the
            // stream itself.
            // SAFETY: the stream is this device's.
            self.run("cuStreamSynchronize", |stream| unsafe {
                (self.device.libraries.driver.cuStreamSynchronize)(stream)
            });
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let workspace = *lock(&self.workspace);
        if workspace != 0 {
            self.device.free(workspace, WORKSPACE_BYTES, self.stream.0);
        }
        // SAFETY: the driver keeps the stream until its work is done.
        self.run("cuStreamDestroy", |stream| unsafe {
            (self.device.libraries.driver.cuStreamDestroy_v2)(stream)
        });
    }
}

/// A point in a queue's work.
#[derive(Clone)]
pub struct Event(Arc<Mark>);

struct Mark {
    device: Arc<Device>,
    /// `None` after a failure.
    handle: Option<Shared>,
}

impl Event {
    pub(crate) fn handle(&self) -> Option<Handle> {
        self.0.handle.map(|event| event.0)
    }

    /// Blocks until the event is reached; false if there was a failure before it was recorded, or during the
    /// wait.
    pub(crate) fn wait(&self) -> bool {
        let device = &self.0.device;
        device.enter();
        self.handle().is_some_and(|event| {
            // SAFETY: the event is recorded and alive.
            let code = unsafe { (device.libraries.driver.cuEventSynchronize)(event) };
            device.attempt("cuEventSynchronize", code)
        })
    }

    /// Seconds to a later event; NaN after a failure.
    pub(crate) fn seconds_to(&self, later: &Event) -> f64 {
        let (Some(from), Some(to)) = (self.handle(), later.handle()) else { return f64::NAN };
        self.wait();
        later.wait();
        let device = &self.0.device;
        let mut milliseconds = f32::NAN;
        // SAFETY: the pointer is valid, both events are recorded.
        let code = unsafe { (device.libraries.driver.cuEventElapsedTime)(&raw mut milliseconds, from, to) };
        device.attempt("cuEventElapsedTime", code);
        f64::from(milliseconds) / 1e3
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(event) = self.handle {
            self.device.keep_event(event.0);
        }
    }
}

/// Memory of a device, freed in the order of the queue that allocated it.
pub struct Buffer {
    queue: Arc<Queue>,
    /// 0 if the buffer is empty or its allocation failed.
    pub(crate) pointer: DevicePointer,
    pub(crate) len: usize,
    pub(crate) kind: Kind,
}

impl Buffer {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.kind.bytes()
    }

    /// Whether the buffer has memory; false if it is empty or its allocation failed.
    pub(crate) fn is_there(&self) -> bool {
        self.pointer != 0 || self.len == 0
    }

    /// The address of an element; 0 if the buffer has no memory.
    pub(crate) fn at(&self, offset: usize) -> DevicePointer {
        match self.pointer {
            0 => 0,
            start => start + (offset * self.kind.bytes()) as DevicePointer,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.pointer != 0 {
            self.queue.device.free(self.pointer, self.bytes(), self.queue.stream.0);
        }
    }
}
