//! What a read node is told.

use std::path::PathBuf;
use std::time::Duration;

/// How long one question may take, with its wait for a free reader.
pub(crate) const QUERY_TIME_MAX: Duration = Duration::from_secs(5);
/// LIMIT: events of one transaction; the bytes of a page are limited by the log. Every commit adds a
/// segment to the text index, so that few large ones fold history faster.
pub(crate) const BATCH_EVENTS_MAX: usize = 4096;
/// LIMIT: events that are folded into the content that is served while a rebuild folds
/// [`BATCH_EVENTS_MAX`]: fewer, so that the rebuild comes to its end however fast the log grows.
pub(crate) const BESIDE_EVENTS_MAX: usize = BATCH_EVENTS_MAX / 4;
/// How long folding rests after it failed, such as on a full disk or while the log is away; doubles
/// with each failure.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// LIMIT: the longest such rest.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// Configuration of a read node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where its files are (made with mode 0700). Everything in it can be removed while the node is
    /// down: it is built again from the log.
    pub dir: PathBuf,
}
