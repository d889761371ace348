//! Values as the bytes that travel. Ranks of one job run the same binary on machines of the same byte order
//! (the handshake checks it), so values travel as they lie in memory.

/// A type whose values may be sent as they lie in memory, and for which any bytes are a value.
///
/// # Safety
/// The type has no padding, no invalid bit patterns and no pointers.
pub(crate) unsafe trait Element: Copy + Default + 'static {}

// SAFETY: four bytes, every pattern of which is a float.
unsafe impl Element for f32 {}

// SAFETY: a byte is a byte.
unsafe impl Element for u8 {}

pub(crate) fn as_bytes<E: Element>(values: &[E]) -> &[u8] {
    // SAFETY: `Element` has no padding, and a byte needs no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

pub(crate) fn as_bytes_mut<E: Element>(values: &mut [E]) -> &mut [u8] {
    // SAFETY: as above; and whatever is written is a valid `E`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
