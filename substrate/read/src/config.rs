//! What a read node is told.

use std::path::PathBuf;
use std::time::Duration;

/// How long one question may take, with its wait for a free reader.
pub(crate) const QUERY_TIME_MAX: Duration = Duration::from_secs(5);
/// LIMIT: events of one transaction; the bytes of a page are limited by the log. Every commit adds a
/// segment to the text index, so that few large ones fold history faster.
pub(crate) const BATCH_EVENTS_MAX: usize = 4096;
/// How long folding rests after the store failed, such as on a full disk.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Configuration of a read node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where its files are (made with mode 0700). Everything in it can be removed while the node is
    /// down: it is built again from the log.
    pub dir: PathBuf,
}
