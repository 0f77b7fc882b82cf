//! The next extent, made ahead by a thread of its own, so that a commit does not wait for zeroes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::extent::{Spare, is_full};
use crate::options::Options;

/// Length of the extent after one of `len`.
pub(crate) fn next_len(len: u64, options: &Options) -> u64 {
    len.saturating_mul(2)
        .clamp(options.extent_len_first, options.extent_len_max)
}

/// The extent that is being prepared, or is ready, or was refused.
#[derive(Debug, Default)]
pub(crate) struct NextSpare {
    preparing: Option<Preparing>,
    stop: Arc<AtomicBool>,
}

impl NextSpare {
    /// Starts preparing. That there is no space shows when the spare is needed, and is tried again.
    pub(crate) fn request(&mut self, dir: &Path, len: u64, options: &Options) {
        let (dir, disk) = (dir.to_owned(), Arc::clone(&options.disk));
        let stop = Arc::clone(&self.stop);
        let prepare = move || Spare::prepare(&*disk, &dir, len, &stop);
        self.preparing = if options.spare_ahead {
            let thread = thread::Builder::new().name("log-extent".to_owned());
            thread.spawn(prepare).ok().map(Preparing::Thread)
        } else {
            Some(Preparing::Done(prepare()))
        };
    }

    /// The prepared extent, or a new one of `len`, or of what is `needed`, if there was no space or
    /// it is short. A disk that has failed is not asked again.
    pub(crate) fn take(
        &mut self,
        dir: &Path,
        needed: u64,
        len: u64,
        options: &Options,
    ) -> io::Result<Spare> {
        match self.preparing.take().and_then(Preparing::join) {
            Some(Ok(spare)) if spare.len >= needed => return Ok(spare),
            Some(Err(error)) if !is_full(&error) => return Err(error),
            _ => {}
        }
        match Spare::prepare(&*options.disk, dir, len, &self.stop) {
            // A disk with little space left is still used, in small pieces.
            Err(error) if is_full(&error) => {
                let len = needed.max(options.extent_len_first);
                Spare::prepare(&*options.disk, dir, len, &self.stop)
            }
            made => made,
        }
    }
}

/// A spare on its way.
#[derive(Debug)]
enum Preparing {
    Thread(JoinHandle<io::Result<Spare>>),
    Done(io::Result<Spare>),
}

impl Preparing {
    /// `None` if its thread has panicked.
    fn join(self) -> Option<io::Result<Spare>> {
        match self {
            Self::Thread(thread) => thread.join().ok(),
            Self::Done(done) => Some(done),
        }
    }
}

impl Drop for NextSpare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(preparing) = self.preparing.take() {
            // Its file is removed by the next opener, whatever became of it.
            let _ = preparing.join();
        }
    }
}
