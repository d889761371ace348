//! Cache of recent prices: a search queries the same GEMMs again and again.

use std::cell::RefCell;

/// The key of a query.
pub(crate) type Key = [u64; 6];

/// A power of two, so that the cache slot is a bit range of the hash.
const PLACES: usize = 4096;

thread_local! {
    static MEMORY: RefCell<Vec<(Key, f64)>> = RefCell::new(vec![([u64::MAX; 6], 0.0); PLACES]);
}

/// The result of `ask`, which must depend only on the key. Each thread remembers the last key of each slot.
pub fn remembered(key: Key, ask: impl FnOnce() -> f64) -> f64 {
    let hash = key
        .iter()
        .fold(0_u64, |hash, part| (hash.rotate_left(23) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let place = (hash >> 52) as usize % PLACES;
    MEMORY.with_borrow_mut(|memory| {
        let entry = &mut memory[place];
        if entry.0 != key {
            *entry = (key, ask());
        }
        entry.1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_asked_for_once_and_never_mixed_up() {
        for round in 0..2 {
            for number in 0..10_000_u64 {
                let answer = remembered([number, 1, 2, 3, 4, 5], || number as f64);
                assert_eq!(answer, number as f64, "round {round}");
            }
        }
        remembered([7; 6], || 1.0);
        assert_eq!(remembered([7; 6], || unreachable!("it is remembered")), 1.0);
    }
}
