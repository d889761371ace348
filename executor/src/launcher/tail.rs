//! The last part of a process's output, for messages.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time limit to wait for the end of the output: children of the process may keep it open.
const WITHIN: Duration = Duration::from_millis(500);
/// Bytes kept.
const KEPT: usize = 4096;

/// Reads the output until its end.
#[derive(Default)]
pub(super) struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tail {
    /// # Errors
    /// No thread can be started.
    pub fn follow(source: Option<impl Read + Send + 'static>) -> io::Result<Self> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let text = kept.clone();
        let reader = source.map(|mut source| {
            std::thread::Builder::new().name("output".to_owned()).spawn(move || {
                let mut portion = [0; 1024];
                while let Ok(n @ 1..) = source.read(&mut portion) {
                    let mut kept = text.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend_from_slice(&portion[..n]);
                    let surplus = kept.len().saturating_sub(KEPT);
                    kept.drain(..surplus);
                }
            })
        });
        Ok(Self { kept, reader: reader.transpose()? })
    }

    /// Waits for the end of the output, when all writers have closed it, up to a time limit.
    pub fn whole(&mut self) -> String {
        let until = Instant::now() + WITHIN;
        if let Some(reader) = self.reader.take() {
            while !reader.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.so_far()
    }

    /// The output received so far.
    fn so_far(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim_end().to_owned()
    }
}
