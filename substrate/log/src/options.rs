//! How a log is opened.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tabbify_process::Clock;

use crate::checkpoint::Signed;
use crate::cold::Cold;
use crate::disk::{Disk, RealDisk};
use crate::frame::SECTOR;
use crate::index::{CACHE_LEN_MAX, HashKey, KeyHash, SEAL_LEN};

/// LIMIT: the greatest extent, in bytes; at 64 MiB a new one is rare and is written in half a second.
const EXTENT_LEN_MAX: u64 = 64 * 1024 * 1024;
/// Length of the first extent, in bytes: a new platform should not take 64 MiB to say hello.
const EXTENT_LEN_FIRST: u64 = 1024 * 1024;

pub(crate) type OnFailure = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// What a log needs to know beyond its directory.
#[derive(Clone)]
pub struct Options {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) extent_len_first: u64,
    pub(crate) extent_len_max: u64,
    pub(crate) on_failure: OnFailure,
    /// Where the files are.
    pub(crate) disk: Arc<dyn Disk>,
    /// The next extent is prepared and the index kept by threads of their own. Without, the steps of
    /// the writer come in one order, which is what the proofs replay.
    pub(crate) spare_ahead: bool,
    /// Where closed extents go.
    pub(crate) cold: Option<Cold>,
    /// What the log is known to have been.
    pub(crate) checkpoint: Option<Signed>,
    /// Everything is read and verified before the log is used.
    pub(crate) verify_whole: bool,
    /// Sealed extents are read and verified once after every start.
    pub(crate) scrub: bool,
    /// What stands for a (segment, key) in the index.
    pub(crate) hash_key: HashKey,
    /// Bytes of closed extents that become runs.
    pub(crate) seal_len: u64,
    /// Bytes of pages that the index keeps in memory.
    pub(crate) index_cache_len: usize,
    /// Set when the log closes; of each open log its own.
    pub(crate) stop: Arc<AtomicBool>,
    /// Names a new log.
    pub(crate) new_log_id: fn() -> [u8; 16],
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
            disk: Arc::new(RealDisk),
            spare_ahead: true,
            cold: None,
            checkpoint: None,
            verify_whole: false,
            scrub: true,
            hash_key: KeyHash::of,
            seal_len: SEAL_LEN,
            index_cache_len: CACHE_LEN_MAX,
            stop: Arc::default(),
            new_log_id: tabbify_process::random,
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

    /// The newest checkpoint of the log: it opens only if it is at least that long and has that
    /// history.
    #[must_use]
    pub fn checkpoint(mut self, newest: Option<Signed>) -> Self {
        self.checkpoint = newest;
        self
    }

    /// Stores closed extents in an object store, from which they are read when they are not on the
    /// local disk any more. A log that has stored extents needs the same store at every open.
    #[must_use]
    pub fn cold(mut self, cold: Option<Cold>) -> Self {
        self.cold = cold;
        self
    }

    /// Reads and verifies every byte of the log before it is used, as [`Log::verify`](crate::Log::verify)
    /// does. Without, that is done for what the index does not cover, and for the rest afterwards, in
    /// the background: damage found there ends the log as a failed sync does.
    #[must_use]
    pub const fn verify_whole(mut self) -> Self {
        self.verify_whole = true;
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
