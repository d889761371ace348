//! A queue between two threads of one rank.
//!
//! `std::sync::mpsc` is unsuitable: a receiver that finds a half-written message spins until the sender
//! continues. If the receiver has a higher real-time priority on the same core, the sender never does. Here,
//! waiting threads sleep.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    /// Whether the other end still exists.
    sender: bool,
    receiver: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // State under this lock stays consistent if a thread panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending end.
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving end.
pub struct Receiver<T>(Arc<Shared<T>>);

/// Makes an unbounded queue.
///
/// ```
/// let (sender, receiver) = autodist_communication::queue::queue();
/// assert!(sender.send(1).is_ok());
/// drop(sender);
/// assert_eq!((receiver.receive(), receiver.receive()), (Some(1), None));
/// ```
#[must_use]
pub fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), sender: true, receiver: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Adds an item and returns at once.
    ///
    /// # Errors
    /// The item itself if the receiver is dropped.
    pub fn send(&self, item: T) -> Result<(), T> {
        let mut state = self.0.lock();
        if !state.receiver {
            return Err(item);
        }
        state.items.push_back(item);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Waits for the next item; `None` if the queue is empty and all senders are dropped.
    #[must_use]
    pub fn receive(&self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Some(item);
            }
            if !state.sender {
                return None;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().sender = false;
        self.0.changed.notify_one();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver = false;
        // Items may hold senders of other queues: they are dropped outside the lock.
        let left = std::mem::take(&mut state.items);
        drop(state);
        drop(left);
    }
}
