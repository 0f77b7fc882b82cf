//! How a log is opened.

use std::fmt;
use std::io;
use std::sync::Arc;

use tabbify_process::Clock;

use crate::frame::SECTOR;

/// LIMIT: the greatest extent, in bytes; at 64 MiB a new one is rare and is written in half a second.
const EXTENT_LEN_MAX: u64 = 64 * 1024 * 1024;
/// Length of the first extent, in bytes: a new platform should not take 64 MiB to say hello.
const EXTENT_LEN_FIRST: u64 = 1024 * 1024;

type OnFailure = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// What a log needs to know beyond its directory.
#[derive(Clone)]
pub struct Options {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) extent_len_first: u64,
    pub(crate) extent_len_max: u64,
    pub(crate) on_failure: OnFailure,
    pub(crate) faults: Faults,
}

impl Options {
    /// The usual: extents from 1 MiB doubling to 64 MiB, and a disk that fails ends the process.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            extent_len_first: EXTENT_LEN_FIRST,
            extent_len_max: EXTENT_LEN_MAX,
            // Linux may mark pages clean after a failed sync: whoever goes on works with a memory
            // that is not on disk. The end of the process is what makes recovery look again.
            on_failure: Arc::new(|_| std::process::abort()),
            faults: Faults::default(),
        }
    }

    /// Other extent lengths, in bytes: the first and the greatest. Both become whole sectors, at
    /// least two and at most 64 MiB. A batch that does not fit gets an extent of its own length.
    #[must_use]
    pub fn extent_lens(mut self, first: u64, max: u64) -> Self {
        let sector = SECTOR as u64;
        let whole = |len: u64| {
            len.clamp(2 * sector, EXTENT_LEN_MAX)
                .next_multiple_of(sector)
        };
        self.extent_len_first = whole(first);
        self.extent_len_max = whole(max).max(whole(first));
        self
    }

    /// What happens when a write or sync of the log fails, instead of aborting the process. When it
    /// returns, the log answers everything with `Stopping` and must be opened again.
    #[must_use]
    pub fn on_failed_sync(mut self, act: impl Fn(&io::Error) + Send + Sync + 'static) -> Self {
        self.on_failure = Arc::new(act);
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("extent_len_first", &self.extent_len_first)
            .field("extent_len_max", &self.extent_len_max)
            .finish_non_exhaustive()
    }
}

type Fault = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Asked before the real thing; tests answer for a disk that is full or broken.
#[derive(Clone)]
pub(crate) struct Faults {
    pub(crate) on_sync: Fault,
    pub(crate) on_allocate: Fault,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            on_sync: Arc::new(|| Ok(())),
            on_allocate: Arc::new(|| Ok(())),
        }
    }
}
