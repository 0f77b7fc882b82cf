//! The next extent, made ahead by a thread of its own, so that a commit does not wait for zeroes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::extent::Spare;
use crate::options::Options;

/// Length of the extent after one of `len`.
pub(crate) fn next_len(len: u64, options: &Options) -> u64 {
    len.saturating_mul(2)
        .clamp(options.extent_len_first, options.extent_len_max)
}

/// The extent that is being prepared, or is ready, or was refused.
#[derive(Debug, Default)]
pub(crate) struct NextSpare {
    preparing: Option<JoinHandle<io::Result<Spare>>>,
    stop: Arc<AtomicBool>,
}

impl NextSpare {
    /// Starts preparing. A failure shows when the spare is needed, and is then tried once more.
    pub(crate) fn request(&mut self, dir: &Path, len: u64, options: &Options) {
        let (dir, faults, stop) = (
            dir.to_owned(),
            options.faults.clone(),
            Arc::clone(&self.stop),
        );
        let thread = thread::Builder::new().name("log-extent".to_owned());
        self.preparing = thread
            .spawn(move || Spare::prepare(&dir, len, &faults, &stop))
            .ok();
    }

    /// The prepared extent, or a new one of `len`, or of what is `needed`, if it failed or is short.
    pub(crate) fn take(
        &mut self,
        dir: &Path,
        needed: u64,
        len: u64,
        options: &Options,
    ) -> io::Result<Spare> {
        let ready = self.preparing.take().and_then(|thread| thread.join().ok());
        match ready {
            Some(Ok(spare)) if spare.len >= needed => Ok(spare),
            _ => Spare::prepare(dir, len, &options.faults, &self.stop).or_else(|_| {
                // A disk with little space left is still used, in small pieces.
                let len = needed.max(options.extent_len_first);
                Spare::prepare(dir, len, &options.faults, &self.stop)
            }),
        }
    }
}

impl Drop for NextSpare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.preparing.take() {
            // Its file is removed by the next opener, whatever became of it.
            let _ = thread.join();
        }
    }
}
