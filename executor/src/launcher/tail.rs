//! The end of what a process writes, for messages.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes kept.
const KEPT: usize = 4096;

/// Follows what is written until it ends.
pub(super) struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tail {
    pub fn follow(source: Option<impl Read + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let text = kept.clone();
        let reader = source.map(|mut source| {
            std::thread::spawn(move || {
                let mut portion = [0; 1024];
                while let Ok(n @ 1..) = source.read(&mut portion) {
                    let mut kept = text.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend_from_slice(&portion[..n]);
                    let surplus = kept.len().saturating_sub(KEPT);
                    kept.drain(..surplus);
                }
            })
        });
        Self { kept, reader }
    }

    /// Waits for the end, which comes when nobody can write any more.
    pub fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.so_far()
    }

    /// What has come until now.
    pub fn so_far(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim_end().to_owned()
    }
}
