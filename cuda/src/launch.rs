//! Kernel launches: grids and arguments.

use crate::api::DevicePointer;
use crate::error::CudaError;
use crate::queue::Queue;
use autodist_compute::backend::AttentionShape;
use std::ffi::c_void;
use std::ptr;

/// The mapping of threads to work (`kernels/prelude.cu`, `kernels/attention.cu`).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// One thread per element.
    Elements(usize),
    /// One block per row.
    Rows(usize),
    /// One block per 32 columns.
    Columns(usize),
    /// Blocks of the fused attention.
    Attention([usize; 3]),
}

/// `ATTENTION_TILE` and `ATTENTION_WINDOW` of the kernels.
const ATTENTION_TILE: usize = 64;
const ATTENTION_WINDOW: usize = 128;

impl Form {
    /// The grid over query heads, or over key/value heads.
    pub fn attention(shape: &AttentionShape, heads: usize) -> Self {
        let tiles = shape.seq_len.div_ceil(ATTENTION_TILE);
        Self::Attention([tiles, shape.micro_batch * heads, shape.head_dim.div_ceil(ATTENTION_WINDOW)])
    }

    /// Blocks, and threads of a block.
    fn grid(self) -> ([usize; 3], [u32; 3]) {
        match self {
            Self::Elements(count) => ([count.div_ceil(256), 1, 1], [256, 1, 1]),
            Self::Rows(count) => ([count, 1, 1], [256, 1, 1]),
            Self::Columns(count) => ([count.div_ceil(32), 1, 1], [32, 8, 1]),
            Self::Attention(blocks) => (blocks, [256, 1, 1]),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument {
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    /// Address of a buffer; null if its allocation failed, in which case the kernel is not launched.
    Pointer(DevicePointer),
    /// A missing optional operand.
    Null,
}

impl From<DevicePointer> for Argument {
    fn from(pointer: DevicePointer) -> Self {
        Self::Pointer(pointer)
    }
}

/// # Panics
/// If it does not fit an `int` of the device.
pub(crate) fn int(value: usize) -> Argument {
    Argument::Int(i32::try_from(value).expect("sizes of single dimensions fit 31 bits"))
}

pub(crate) fn long(value: usize) -> Argument {
    Argument::Long(value as i64)
}

pub(crate) fn float(value: f64) -> Argument {
    Argument::Float(value as f32)
}

pub(crate) fn double(value: f64) -> Argument {
    Argument::Double(value)
}

/// Maximum blocks of a grid along x, y and z, on every GPU (CUDA C++ Programming Guide, "Technical
/// Specifications per Compute Capability").
const MOST_BLOCKS: [usize; 3] = [(1 << 31) - 1, (1 << 16) - 1, (1 << 16) - 1];

/// # Errors
/// More blocks than CUDA allows.
fn checked(kernel: &str, blocks: [usize; 3]) -> Result<[u32; 3], CudaError> {
    for ((blocks, most), axis) in blocks.into_iter().zip(MOST_BLOCKS).zip(["x", "y", "z"]) {
        if blocks > most {
            return Err(CudaError::Grid { kernel: kernel.to_owned(), axis, blocks, most });
        }
    }
    // They are below 2^31.
    Ok(blocks.map(|count| count as u32))
}

impl Queue {
    pub fn launch(&self, kernel: &str, form: Form, arguments: &[Argument]) {
        let (blocks, threads) = form.grid();
        let lost = arguments.iter().any(|argument| matches!(argument, Argument::Pointer(0)));
        if lost || blocks.contains(&0) {
            return;
        }
        static NOTHING: DevicePointer = 0;
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Int(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Long(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Float(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Double(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Pointer(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Null => (&raw const NOTHING).cast_mut().cast(),
            })
            .collect();
        let [x, y, z] = match checked(kernel, blocks) {
            Ok(blocks) => blocks,
            Err(error) => return self.device.fail("cuLaunchKernel", error),
        };
        let function = self.device.kernel(kernel);
        let [tx, ty, tz] = threads;
        // SAFETY: the arguments are those of the kernel's signature, in order, and are copied by the call.
        self.run("cuLaunchKernel", |stream| unsafe {
            (self.device.libraries.driver.cuLaunchKernel)(
                function,
                x,
                y,
                z,
                tx,
                ty,
                tz,
                0,
                stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_that_cuda_does_not_allow_are_refused_with_the_way_out() {
        assert_eq!(checked("k", [(1 << 31) - 1, 65_535, 65_535]).unwrap(), [0x7fff_ffff, 65_535, 65_535]);
        for (blocks, axis) in [([1 << 31, 1, 1], "x"), ([1, 65_536, 1], "y"), ([1, 1, 1 << 40], "z")] {
            let error = checked("attention_forward", blocks).unwrap_err().to_string();
            assert!(error.contains("`attention_forward`") && error.contains("micro-batch"), "{error}");
            assert!(error.contains(&format!("along {axis}")), "{error}");
        }
    }
}
