//! Values as bytes on the wire. Ranks of one job run on machines with the same byte order (the handshake
//! checks it), so values are sent as stored in memory.

/// A type whose values can be sent as stored in memory, and for which any bytes are a valid value.
///
/// # Safety
/// The type has no padding, no invalid bit patterns and no pointers.
pub(crate) unsafe trait Element: Copy + Default + 'static {}

// SAFETY: four bytes, every pattern of which is a float.
unsafe impl Element for f32 {}

// SAFETY: one byte, every pattern of which is valid.
unsafe impl Element for u8 {}

pub(crate) fn as_bytes<E: Element>(values: &[E]) -> &[u8] {
    // SAFETY: `Element` has no padding, and a byte needs no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

pub(crate) fn as_bytes_mut<E: Element>(values: &mut [E]) -> &mut [u8] {
    // SAFETY: as above; and any written bytes are a valid `E`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
