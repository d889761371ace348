//! Memory of the host, aligned for vector loads.

use super::real::Real;
use std::alloc::{self, Layout};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// In bytes: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// An owned array of a fixed length.
pub struct HostBuffer<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer has exclusive ownership of its elements, as `Box<[T]>` does.
unsafe impl<T: Send> Send for HostBuffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HostBuffer<T> {}

impl<T: Real> HostBuffer<T> {
    pub fn zeros(len: usize) -> Self {
        // SAFETY: all bits zero is the number 0.
        Self::allocate(len, |layout| unsafe { alloc::alloc_zeroed(layout) })
    }

    /// Unspecified numbers, to be written before they are read; debug builds fill them with NaN to expose
    /// mistakes.
    pub fn uninitialised(len: usize) -> Self {
        // SAFETY: `allocate` passes a layout of non-zero size.
        let mut buffer = Self::allocate(len, |layout| settled(unsafe { alloc::alloc(layout) }, layout));
        if cfg!(debug_assertions) {
            buffer.fill(T::from_f64(f64::NAN));
        }
        buffer
    }

    /// `by` receives a layout of non-zero size.
    fn allocate(len: usize, by: impl FnOnce(Layout) -> *mut u8) -> Self {
        if len == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        match NonNull::new(by(layout).cast()) {
            Some(start) => Self { start, len },
            None => alloc::handle_alloc_error(layout),
        }
    }
}

impl<T> HostBuffer<T> {
    fn layout(len: usize) -> Layout {
        Layout::array::<T>(len)
            .and_then(|layout| layout.align_to(ALIGNMENT))
            .unwrap_or_else(|error| panic!("{len} elements: {error}"))
    }
}

/// Makes the bytes of uninitialised memory arbitrary but fixed. By the language's rules, memory from the
/// allocator is uninitialised, and no reference to it is allowed.
fn settled(memory: *mut u8, layout: Layout) -> *mut u8 {
    // The compiler must assume that the inline assembly writes every byte. Unlike filling every buffer in
    // every step, this takes no time.
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let _ = layout;
        // SAFETY: no instruction is executed.
        unsafe { std::arch::asm!("/* {0} */", in(reg) memory, options(nostack, preserves_flags)) }
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    if !memory.is_null() {
        // SAFETY: the memory was allocated with this layout.
        unsafe { memory.write_bytes(0, layout.size()) }
    }
    memory
}

impl<T: Real> From<&[T]> for HostBuffer<T> {
    fn from(from: &[T]) -> Self {
        let mut buffer = Self::uninitialised(from.len());
        buffer.copy_from_slice(from);
        buffer
    }
}

impl<T> Drop for HostBuffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated with this layout; elements are numbers and need no drop.
            unsafe { alloc::dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
        }
    }
}

impl<T> Deref for HostBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` points to `len` elements, or `len` is 0.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for HostBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for HostBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
